"""Read the rows of tables: CSV, TSV and Parquet.

The delimiter of a CSV is the comma, semicolon or tab that gives its header the columns that are wanted, unless a first line
"sep=;", as Excel writes it, states it.
"""

import csv
import io
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from bertqa.errors import UserError, no_data, show

DELIMITERS = ",;\t"

BLANK = DELIMITERS + '" \r\n'
"""Characters of a row whose cells are all empty; a spreadsheet may have such rows above its header."""

PARQUET = b"PAR1"
"""First bytes of a Parquet file, the form in which the Hub keeps most data sets."""

ROWS_AT_ONCE = 1024
"""Rows of a Parquet file that are in memory at a time."""


@dataclass
class Head:
    """The header of a CSV as it is in the file."""

    line: str
    before: int  # number of lines above it
    delimiter: str


@dataclass
class Table:
    """A CSV whose rows are read lazily."""

    header: list[str]  # column names
    head: str  # the header as it is in the file
    rows: Iterator[tuple[str, dict[str, str] | UserError]]
    """The line on which each row begins ("line 3"), and its cells by column; or an error, if the row is not sound."""


def whole_table(text: str, wanted: Collection[str]) -> tuple[list[str], list[tuple[str, dict]]]:
    """Return the header in lower case, and the rows, of a CSV. Raises UserError for the first row that cannot be read."""
    quoted = quotes_well(io.StringIO(text, newline=""), wanted)
    table = stream_table(io.StringIO(text, newline=""), wanted, lower=True, quoted=quoted)
    rows = []
    for where, row in table.rows:
        if isinstance(row, UserError):
            raise UserError(f"{where}: {row}")
        rows.append((where, row))
    return table.header, rows


def stream_table(
    lines: Iterator[str],
    wanted: Collection[str],
    *,
    lower: bool = False,
    keep_blank: bool = False,
    quoted: bool = True,
) -> Table:
    """Read a CSV, which need not fit into memory.

    Args:
        wanted: column names, by which the delimiter is chosen.
        lower: put column names in lower case.
        keep_blank: keep rows whose cells are all blank.
        quoted: whether a quotation mark begins a quoted cell; otherwise it is a character like any other.

    Raises UserError if two columns have the same name. `rows` raises it where the rest of the file cannot be read.
    """
    # csv is given lines, not the file, because the first lines are looked at here and rows are named by their line.
    lines = _at_every_return(lines)
    head = head_of(lines, wanted)
    reader = csv.reader(
        chain([head.line], lines),
        delimiter=head.delimiter,
        strict=True,
        quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE,
    )
    header = [name.strip() for name in _next_row(reader, head.before)]
    if lower:
        header = [name.lower() for name in header]
    refuse_doubled_columns(header)
    return Table(header, head.line, _rows(reader, header, head.before, keep_blank))


def quotes_well(lines: Iterator[str], wanted: Collection[str]) -> bool:
    """Return whether quotation marks in a table enclose cells.

    In many TSVs, such as GLUE's, a quotation mark is a character like any other. A TSV that cannot be read with quoted cells
    is taken for one of them.
    """
    head = head_of(lines, wanted)
    if head.delimiter != "\t":
        return True
    try:
        rows = stream_table(chain([head.line], lines), wanted).rows
        return not any(isinstance(row, UserError) for _, row in rows)
    except UserError:
        return False


def head_of(lines: Iterator[str], wanted: Collection[str]) -> Head:
    """Find the header of a CSV. Raises UserError if there is none."""
    stated = ""  # by Excel's line
    for number, line in enumerate(lines):
        excel = re.match(r'\s*"?sep=([,;\t])', line)
        if excel:
            stated = excel[1]
        elif line.strip(BLANK):
            return Head(line, number, stated or best_delimiter(line, wanted))
    raise no_data("holds no rows" if stated else "holds only white space")


def best_delimiter(head: str, wanted: Collection[str]) -> str:
    """Return the delimiter that gives a header the most columns of `wanted`, whatever their case; then the most cells."""

    def merit(delimiter: str) -> tuple[int, int]:
        names = header_cells(head, delimiter)
        return sum(name.lower() in wanted or name in wanted for name in names), len(names)

    return max(DELIMITERS, key=merit)


def header_cells(head: str, delimiter: str) -> list[str]:
    """Split a header into column names, without blanks and quotation marks around them."""
    line = re.split("[\r\n]", head.lstrip(), maxsplit=1)[0]
    return [name.strip(' "') for name in line.split(delimiter)]


def _at_every_return(lines: Iterator[str]) -> Iterator[str]:
    """Split lines at each \\r that no \\n follows, as Excel wrote on old Macs: csv refuses them inside a line."""
    for line in lines:
        if "\r" in line[:-2]:
            parts = re.split("(?<=\r)(?!\n)", line)
            yield from (part for part in parts if part)
        else:
            yield line


def _next_row(reader, before: int) -> list[str] | None:
    """Return the next row of a CSV, None at its end. Raises UserError if it cannot be read.

    Args:
        reader: a `csv.reader`.
        before: lines of the file that the reader was not given.
    """
    begins = reader.line_num + 1 + before
    # Cells may be longer than csv's limit of 128 KiB, which holds for the whole process, so it is restored.
    usual = csv.field_size_limit(2**31 - 1)
    try:
        return next(reader, None)
    except csv.Error as error:
        cut = "cut off: " if "unexpected end" in str(error) else ""
        raise UserError(
            f"{cut}the CSV row that begins on line {begins} cannot be read: {error}"
        ) from None
    finally:
        csv.field_size_limit(usual)


def _rows(reader, header: list[str], before: int, keep_blank: bool) -> Iterator:
    """Yield the rows below the header. A row is named by its first line, because a quoted cell may span several lines."""
    while True:
        where = f"line {reader.line_num + 1 + before}"
        row = _next_row(reader, before)
        if row is None:
            return
        if not any(cell.strip() for cell in row) and not (row and keep_blank):
            continue
        if len(row) == len(header):
            yield where, dict(zip(header, row, strict=True))
        # Rows of empty cells that do not fit the header are skipped: spreadsheets leave them below a table.
        elif any(row):
            cells = f"has {len(row)} cells, the header {len(header)}"
            yield where, UserError(f"{cells}; cut off, or a quote missing?")


def refuse_doubled_columns(header: Sequence[str]) -> None:
    """Raise UserError if two columns have the same name: one of their cells would be lost."""
    for name, count in Counter(header).items():
        if name and count > 1:  # pandas leaves the name of its index blank
            raise UserError(f"the header has {count} columns {show(name)}; leave out all but one")


def parquet_records(
    file: Path | BinaryIO, tell_share: Callable[[float], None] = lambda share: None
) -> Iterator[tuple[str, dict]]:
    """Yield "row 0", "row 1", ... and their values by column; lists and structs become lists and dictionaries.

    Args:
        tell_share: called with the share of the file that has been read, 0 to 1.

    Raises UserError if pyarrow is missing or cannot read the file.
    """
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise UserError(
            "is a Parquet file, which needs the package pyarrow: pip install 'bertqa[parquet]'; or save it as JSONL"
        ) from None
    try:
        number = 0
        table = parquet.ParquetFile(file)
        for batch in table.iter_batches(ROWS_AT_ONCE):
            tell_share((number + batch.num_rows) / table.metadata.num_rows)
            for row in batch.to_pylist():
                yield f"row {number}", row
                number += 1
    except (ArrowException, OSError) as error:
        why = " ".join(str(error).split())
        raise UserError(f"damaged: not a Parquet file that pyarrow can read ({why})") from None
