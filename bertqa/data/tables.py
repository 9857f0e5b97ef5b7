"""CSV and TSV: cells to records.

Comma, semicolon or tab between the cells, whichever gives a header with the columns that are looked
for. A first line "sep=;", as Excel writes it, says which.
"""

import csv
import io
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from bertqa.errors import UserError
from bertqa.files import show

DELIMITERS = ",;\t"


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
    rows, last = [], 0
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    usual_limit = csv.field_size_limit(2**31 - 1)  # 128 KiB, for the whole process: put it back
    try:
        for row in reader:
            if (row and keep_blank) or any(cell.strip() for cell in row):
                rows.append((f"line {last + 1}", row))
            last = reader.line_num
    except csv.Error as error:
        cut = "cut off: " if "unexpected end" in str(error) else ""
        raise UserError(
            f"{cut}the CSV row that begins on line {last + 1} cannot be read: {error}"
        ) from None
    finally:
        csv.field_size_limit(usual_limit)
    return rows


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
    name, count = Counter(filter(None, header)).most_common(1)[0] if any(header) else ("", 0)
    if count > 1:
        raise UserError(f"the header has {count} columns {show(name)}; leave out all but one")
