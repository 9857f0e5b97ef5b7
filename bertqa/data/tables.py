"""Tables to records: CSV, TSV and Parquet.

Comma, semicolon or tab between the cells, whichever gives a header with the columns that are looked
for. A first line "sep=;", as Excel writes it, says which.
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

from bertqa.data.sources import STDIN, Source
from bertqa.errors import UserError, no_data, show

DELIMITERS = ",;\t"

BLANK = DELIMITERS + '" \r\n'
"""What a row without a cell is made of: a sheet may begin with some, before its header."""

PARQUET = b"PAR1"
"""How a Parquet file begins: what the Hub has of most data sets."""

ROWS_AT_ONCE = 1024
"""Of a Parquet file."""


@dataclass
class Table:
    """A table whose rows are read one after the other."""

    header: list[str]
    head: str  # the line of the header as it stands in the file
    rows: Iterator[tuple[str, dict[str, str] | UserError]]
    """"line 3", where the row begins, and column -> cell; or what is wrong with the row."""


def whole_table(text: str, wanted: Collection[str]) -> tuple[list[str], list[tuple[str, dict]]]:
    """(header in lower case, rows) of a CSV in memory. Raises UserError for the first row that cannot be read."""
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
    """A CSV, with the delimiter that gives its header most of the columns `wanted`; it need not fit into memory.

    Args:
        lower: column names are those of the header in lower case.
        keep_blank: keep rows whose cells are all blank.
        quoted: whether a quotation mark begins a quoted cell; else it is a character like others.

    Raises UserError for a header with two columns of one name, and from `rows` where nothing behind a place can be read.
    """
    # Lines, not the file, for csv: the first are looked at, and each row's place is known by the lines taken so far.
    lines = _at_every_return(lines)
    head, before, delimiter = head_of(lines, wanted)
    quoting = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    reader = csv.reader(chain([head], lines), delimiter=delimiter, strict=True, quoting=quoting)
    header = [name.strip() for name in _next_row(reader, before)]
    if lower:
        header = [name.lower() for name in header]
    refuse_doubled_columns(header)
    return Table(header, head, _rows(reader, header, before, keep_blank))


def quotes_well(lines: Iterator[str], wanted: Collection[str]) -> bool:
    """Whether a quotation mark in a table begins a quoted cell. In many a TSV (GLUE's) it is a character like others: where
    quoted cells make no table, nothing is quoted."""
    head, before, delimiter = head_of(lines, wanted)
    if delimiter != "\t":
        return True
    try:
        rows = stream_table(chain([head], lines), wanted).rows
        return not any(isinstance(row, UserError) for _, row in rows)
    except UserError:
        return False


def head_of(lines: Iterator[str], wanted: Collection[str]) -> tuple[str, int, str]:
    """-> the line of the header, how many stand before it, and what separates cells: as Excel says, or as it seems."""
    said = ""
    for number, line in enumerate(lines):
        excel = re.match(r'\s*"?sep=([,;\t])', line)
        if excel:
            said = excel[1]
        elif line.strip(BLANK):
            return line, number, said or best_delimiter(line, wanted)
    raise no_data("holds no rows" if said else "holds only white space")


def best_delimiter(head: str, wanted: Collection[str]) -> str:
    """The delimiter under which a header has most of the columns `wanted`, in any case, then most cells."""

    def merit(delimiter: str) -> tuple[int, int]:
        names = header_cells(head, delimiter)
        return sum(name.lower() in wanted or name in wanted for name in names), len(names)

    return max(DELIMITERS, key=merit)


def header_cells(head: str, delimiter: str) -> list[str]:
    """The cells of a header, trimmed."""
    line = re.split("[\r\n]", head.lstrip(), maxsplit=1)[0]
    return [name.strip(' "') for name in line.split(delimiter)]


def _at_every_return(lines: Iterator[str]) -> Iterator[str]:
    """Lines as csv wants them: they also end at a \\r that no \\n follows, as Excel for old Macs has it."""
    for line in lines:
        if "\r" in line[:-2]:
            yield from filter(None, re.split("(?<=\r)(?!\n)", line))
        else:
            yield line


def _next_row(reader, before: int) -> list[str] | None:
    """The next row of a CSV, None behind the last; `before` lines of the file stand before what the reader was given."""
    begins = reader.line_num + 1 + before
    # Cells may be over 128 KiB. That limit is one for the whole process, so it is put back.
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
    """The rows behind the header. A quoted paragraph may go over several lines: a row is named by its first."""
    while True:
        where = f"line {reader.line_num + 1 + before}"
        row = _next_row(reader, before)
        if row is None:
            return
        if not any(cell.strip() for cell in row) and not (row and keep_blank):
            continue
        if len(row) == len(header):
            yield where, dict(zip(header, row, strict=True))
        # Spreadsheets leave rows of empty cells behind the last: these are none of the table's.
        elif any(row):
            cells = f"has {len(row)} cells, the header {len(header)}"
            yield where, UserError(f"{cells}; cut off, or a quote missing?")


def refuse_doubled_columns(header: Sequence[str]) -> None:
    """Raise UserError where two columns have one name: of two cells one would be lost."""
    for name, count in Counter(header).items():
        if name and count > 1:  # pandas leaves the name of its index blank
            raise UserError(f"the header has {count} columns {show(name)}; leave out all but one")


def parquet_records(
    file: Path | BinaryIO, tell_share: Callable[[float], None] = lambda share: None
) -> Iterator[tuple[str, dict]]:
    """-> "row 3", counted from 0, and its columns as Python values; a list or struct column becomes a list or object.

    `tell_share` is told how much of the file is out, 0 to 1. Raises UserError, also where pyarrow is missing.
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


def parquet_rows(source: Source) -> Iterator[tuple[str, dict]]:
    """The rows of an open file, which is told how far they have come."""
    if source.path == STDIN:
        raise UserError("is Parquet, which cannot be read from a pipe; give the file's name")
    return parquet_records(source.path, source.tell_share)
