"""Tables to records: CSV, TSV and Parquet.

Comma, semicolon or tab between the cells, whichever gives a header with the columns that are looked
for. A first line "sep=;", as Excel writes it, says which.
"""

import contextlib
import csv
import io
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from bertqa.errors import UserError
from bertqa.files import show

DELIMITERS = ",;\t"

PARQUET = b"PAR1"
"""How a Parquet file begins: what the Hub has of most data sets."""

ROWS_AT_ONCE = 1024
"""Of a Parquet file."""


@dataclass
class Table:
    """The rows of a file, each as an object of its cells."""

    header: list[str]
    rows: list[tuple[str, dict[str, str]]]
    """"line 3", where the row begins, and column -> cell."""


def read_table(
    text: str, wanted: Collection[str], *, lower: bool = False, keep_blank: bool = False
) -> Table:
    """Read the rows of a CSV, with the delimiter that gives its header most of the columns `wanted`, then most columns.

    Args:
        lower: column names are those of the header in lower case.
        keep_blank: keep rows whose cells are all blank.

    Raises:
        UserError: for two columns of one name, a row of another width, a file that ends within quotes.
    """
    text, delimiter = _said_by_excel(text)
    if not delimiter:
        delimiter = best_delimiter(text, wanted)
    try:
        return _table(csv_rows(text, delimiter, keep_blank), lower)
    except UserError:
        if delimiter != "\t":
            raise
        # Many a TSV (GLUE's) quotes nothing, and a quotation mark in it is just one.
        rows = []
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip() or (keep_blank and line):
                rows.append((f"line {number}", line.removesuffix("\r").split("\t")))
        return _table(rows, lower)


def best_delimiter(text: str, wanted: Collection[str]) -> str:
    """The delimiter under which the first line has most of the columns `wanted`, in any case, then most cells."""

    def merit(delimiter: str) -> tuple[int, int]:
        names = header_cells(text, delimiter)
        return sum(name.lower() in wanted or name in wanted for name in names), len(names)

    return max(DELIMITERS, key=merit)


def header_cells(text: str, delimiter: str) -> list[str]:
    """The cells of the first line, trimmed."""
    first = re.split("[\r\n]", _said_by_excel(text)[0].lstrip(), maxsplit=1)[0]
    return [name.strip(' "') for name in first.split(delimiter)]


def _said_by_excel(text: str) -> tuple[str, str]:
    """The text with its first line blank if that is "sep=;", and the delimiter that it names; "" where it is not."""
    match = re.match(r'\s*"?sep=([,;\t])"?[ ;,\t]*(?=[\r\n])', text)
    if not match:
        return text, ""
    # The line itself stays, so that messages count lines as the file does.
    return text[match.end() :], match[1]


def csv_rows(text: str, delimiter: str, keep_blank: bool = False) -> list[tuple[str, list[str]]]:
    """The rows that are not blank (or all that have a cell). A quoted paragraph may go over several lines: a row is named
    by its first."""
    rows = []
    last = 0
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        with _large_cells():
            for row in reader:
                if (row and keep_blank) or any(cell.strip() for cell in row):
                    rows.append((f"line {last + 1}", row))
                last = reader.line_num
    except csv.Error as error:
        cut = "cut off: " if "unexpected end" in str(error) else ""
        raise UserError(
            f"{cut}the CSV row that begins on line {last + 1} cannot be read: {error}"
        ) from None
    return rows


@dataclass
class TableStream:
    """A CSV whose rows are read one after the other."""

    header: list[str]
    head: str
    """The line of the header as it stands in the file."""
    rows: Iterator[tuple[str, dict[str, str] | UserError]]
    """"line 3", where the row begins, and column -> cell; or what is wrong with the row."""


def stream_table(
    lines: Iterator[str],
    wanted: Collection[str],
    *,
    lower: bool = False,
    keep_blank: bool = False,
    quoted: bool = True,
) -> TableStream:
    """What `read_table` reads, of a file that need not fit into memory.

    Without `quoted` a quotation mark is a character like others. Raises UserError for the header, and from `rows` where
    nothing behind a place can be read.
    """
    lines = _at_every_return(lines)
    head, before, delimiter = head_of(lines, wanted)
    reader = csv.reader(
        chain([head], lines),
        delimiter=delimiter,
        strict=True,
        quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE,
    )
    with _large_cells():
        try:
            header = [name.strip() for name in next(reader)]
        except csv.Error as error:
            raise UserError(f"the header of the CSV cannot be read: {error}") from None
    if lower:
        header = [name.lower() for name in header]
    refuse_doubled_columns(header)
    return TableStream(header, head, _row_after_row(reader, header, before, keep_blank))


def _at_every_return(lines: Iterator[str]) -> Iterator[str]:
    """Lines as csv wants them: they also end at a \\r that no \\n follows, as Excel for old Macs has it."""
    for line in lines:
        if "\r" in line[:-2]:
            yield from filter(None, re.split("(?<=\r)(?!\n)", line))
        else:
            yield line


def _row_after_row(reader, header: list[str], before: int, keep_blank: bool) -> Iterator:
    """The rows behind the header. `before` is how many lines of the file stand before it."""
    while True:
        where = f"line {reader.line_num + 1 + before}"
        try:
            with _large_cells():
                row = next(reader, None)
        except csv.Error as error:
            cut = "cut off: " if "unexpected end" in str(error) else ""
            raise UserError(
                f"{cut}the CSV row that begins on {where} cannot be read: {error}"
            ) from None
        if row is None:
            return
        if not any(cell.strip() for cell in row) and not (row and keep_blank):
            continue
        if len(row) == len(header):
            yield where, dict(zip(header, row, strict=True))
        elif any(row):
            message = (
                f"has {len(row)} cells, the header {len(header)}; cut off, or a quote missing?"
            )
            yield where, UserError(message)


@contextlib.contextmanager
def _large_cells() -> Iterator[None]:
    """Cells over 128 KiB are read inside; that limit is one for the whole process."""
    usual = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(usual)


def head_of(lines: Iterator[str], wanted: Collection[str]) -> tuple[str, int, str]:
    """-> the line of the header, how many stand before it, and what separates cells: as Excel says, or as it seems."""
    said = ""
    for number, line in enumerate(lines):
        excel = re.match(r'\s*"?sep=([,;\t])', line)
        if excel:
            said = excel[1]
        elif line.strip():
            return line, number, said or best_delimiter(line, wanted)
    raise UserError("holds no rows" if said else "holds only white space")


def _table(rows: Sequence[tuple[str, list[str]]], lower: bool) -> Table:
    """The rows behind the first, which is the header, as objects."""
    if not rows:
        raise UserError("holds no rows")
    (_, header), *rest = rows
    header = [name.strip() for name in header]
    if lower:
        header = [name.lower() for name in header]
    refuse_doubled_columns(header)
    records = []
    for where, row in rest:
        if len(row) != len(header):
            raise UserError(
                f"{where}: has {len(row)} cells, the header {len(header)}; cut off, or a quote missing?"
            )
        records.append((where, dict(zip(header, row, strict=True))))
    return Table(header, records)


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
