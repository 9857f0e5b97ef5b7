"""Read texts to classify or embed one after the other, from files that need not fit in memory.

A row that cannot be read comes out in its place, with a message. labelled_texts.py reads the same files whole. They are
UTF-8, with or without byte order mark, packed or not (sources.py), in one of these formats:

    csv      cells separated by comma, semicolon or tab, whichever gives a header with the wanted columns
    jsonl    an object per line, or a list of objects
    parquet  recognised by its first bytes
    lines    a text per line, blank lines included, so that row n is line n + 1

A column "id" holds the ids of the rows; without one they are numbered from 0.
"""

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path

from bertqa.data.record_fields import field, refuse_doubles
from bertqa.data.records import line_values
from bertqa.data.sources import STDIN, Source, Stream, decoded, look_at
from bertqa.data.tables import (
    DELIMITERS,
    PARQUET,
    header_cells,
    parquet_records,
    quotes_well,
    stream_table,
)
from bertqa.errors import UserError, no_data, show
from bertqa.files import parse_json

Row = tuple[str, dict | UserError]
"""The place of a row in its file, for messages, and its values by column, or a UserError that names its place."""

PACKED = (".gz", ".bz2", ".zst")


@dataclass(frozen=True)
class Columns:
    """The names of the columns to read."""

    text: str | None = None  # None: "text", or the lines of a file that is not a table
    pair: str | None = None
    label: str | None = None

    @property
    def wanted(self) -> list[str]:
        """All names, in the order text, pair, label."""
        return [name for name in (self.text or "text", self.pair, self.label) if name]

    def require(self, where: str, found: Collection[str]) -> None:
        """Raise UserError if one of the columns is not in `found`, or is there in two spellings."""
        refuse_doubles(where, dict.fromkeys(found), set(self.wanted))
        lacking = [name for name in self.wanted if name not in found]
        if lacking:
            raise UserError(
                f"{where} has no column {' and no '.join(map(show, lacking))}; its columns are "
                f"{', '.join(map(show, found))}; say which with --text-column, --label-column, --pair-column"
            )


@dataclass(slots=True)
class Text:
    """A text of a file, or a pair of texts, or a message about its row."""

    id: str
    where: str  # "texts.csv: line 3"
    text: str = ""
    second: str | None = None  # the second text of a pair
    error: str = ""  # what is wrong with the row, and its place; "": nothing

    @property
    def characters(self) -> int:
        """Number of characters of both texts."""
        return len(self.text) + len(self.second or "")


def text_stream(
    paths: Sequence[Path], text_column: str | None = None, pair_column: str | None = None
) -> Stream:
    """Return the texts of files, in the order of the files. Rows without an id are numbered over all files.

    Columns are those of `read_texts`.
    """
    return Stream(paths, partial(_texts_in, Columns(text_column, pair_column), count()))


def _texts_in(columns: Columns, numbers: Iterator[int], source: Source) -> Iterator[Text]:
    """Yield the texts of a file; `numbers` goes on from file to file."""
    for where, row in rows_in(source, columns):
        number = str(next(numbers))
        text = Text(number, f"{source.name}: {where}")
        try:
            if isinstance(row, UserError):
                raise row
            text.id = str(row.get("id", number))
            columns.require(where, row)
            first = field(where, row, columns.text or "text", str)
            if columns.pair:
                text.second = field(where, row, columns.pair, str)
            text.text = first  # last, so that a row with an error has no text
        except UserError as error:
            text.error = f"{source.name}: {error}"
        yield text


# Rows


def rows_in(source: Source, columns: Columns) -> Iterator[Row]:
    """Yield the rows of a file, with a UserError in the place of a row that cannot be read.

    Raises UserError if the file, or its first row, lacks a column, or if the rest of the file cannot be read.
    """
    if source.head.startswith(PARQUET):
        rows = parquet_records(source.parquet_path(), source.tell_share)
        yield from _objects(rows, columns)
        return
    first, lines = look_at(decoded(source.lines()), 1)
    head = "".join(first)
    if not head.strip():
        raise no_data("holds only white space")
    if columns.text is None and not is_table(source.name, head):
        for number, line in enumerate(lines, 1):
            yield f"line {number}", {"text": line.removesuffix("\n").removesuffix("\r")}
    elif head.lstrip().startswith("["):
        yield from _objects(_list(source, "".join(lines)), columns)
    elif head.lstrip().startswith("{"):
        yield from _objects(line_values(lines), columns)
    else:
        yield from _cells(source, lines, columns)


def is_table(name: str, text: str) -> bool:
    """Return whether a file is CSV or JSON, by its name or its first line; otherwise it holds a text per line.

    A list of texts may begin with the word "text". So a first line is the header of a CSV only if it has "text" and other
    names, and the file is not called .txt.

    Args:
        text: the beginning of the file.
    """
    # The suffix of texts.csv.gz is .csv.
    path = Path(name.lower())
    suffix = path.with_suffix("").suffix if path.suffix in PACKED else path.suffix
    if suffix in (".csv", ".tsv", ".json", ".jsonl"):
        return True
    if suffix == ".txt":
        return False
    if text.lstrip().startswith("{"):
        return True
    for delimiter in DELIMITERS:
        cells = header_cells(text, delimiter)
        # A sentence with commas has blanks between its words; column names have none.
        are_names = all(re.fullmatch(r"[\w.-]*", cell) for cell in cells)
        if len(cells) > 1 and "text" in cells and are_names:
            return True
    return False


def _list(source: Source, text: str) -> Iterator[Row]:
    """Yield the members of a JSON list."""
    values = parse_json(text, allow_nan=True)
    for number, value in enumerate(values, 1):
        source.tell_share(number / len(values))
        yield f"record {number}", value


def _objects(rows: Iterator[Row], columns: Columns) -> Iterator[Row]:
    """Yield rows, with a UserError in the place of those that are not objects.

    Raises UserError if the first object lacks a column. If a later one does, only that row is faulty: the caller checks it.
    """
    checked = False
    for where, row in rows:
        if isinstance(row, dict):
            if not checked:
                columns.require(where, row)
            checked = True
        elif not isinstance(row, UserError):
            row = UserError(f"{where}: must be an object, not {show(row)}")
        yield where, row


def _cells(source: Source, lines: Iterator[str], columns: Columns) -> Iterator[Row]:
    """Yield the rows of a CSV."""
    # Whether quotation marks enclose cells takes a reading of its own, which a pipe does not allow.
    quoted = True
    if source.path != STDIN and source.path.is_file():
        with Source(source.path) as again:
            quoted = quotes_well(decoded(again.lines()), columns.wanted)
    # A blank row is an empty text, which is embedded so that rows stay in place. With labels it would have none.
    keep_blank = columns.label is None
    table = stream_table(lines, columns.wanted, keep_blank=keep_blank, quoted=quoted)
    columns.require("the header", table.header)
    for where, row in table.rows:
        if isinstance(row, UserError):
            row = UserError(f"{where}: {row}")
        yield where, row
