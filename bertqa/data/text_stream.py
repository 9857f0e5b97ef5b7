"""Texts read one after the other, for classifying and embedding: no file need fit into memory, and a row that is no text
comes out in its place, with what is wrong with it.

UTF-8 with or without byte order mark, packed or not (sources.py), in one of these shapes:

    csv      comma, semicolon or tab between the cells, whichever gives a header with the columns asked for
    jsonl    an object per line, or a list of objects
    parquet  by its first bytes
    lines    a text per line, blank ones included, so that row n is line n + 1

A column "id" names the rows; without one they are numbered from 0.
"""

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, count
from pathlib import Path

from bertqa.data.fields import field, refuse_doubles
from bertqa.data.sources import STDIN, Source, Stream, decoded
from bertqa.data.tables import (
    DELIMITERS,
    PARQUET,
    head_of,
    header_cells,
    parquet_records,
    stream_table,
)
from bertqa.errors import UserError
from bertqa.files import parse_json, show

Row = tuple[str, dict | UserError]
"""Where a row stands in its file, for messages, and its values by column; or what is wrong with it, and where."""

PACKED = (".gz", ".bz2", ".zst")


@dataclass(frozen=True)
class Columns:
    """The columns that are read."""

    text: str | None = None
    """None: "text", or the lines of what is no table."""
    pair: str | None = None
    label: str | None = None

    @property
    def wanted(self) -> list[str]:
        return [name for name in (self.text or "text", self.pair, self.label) if name]

    def require(self, where: str, found: Collection[str]) -> None:
        """Raise UserError where one of them is not among those found, or is there in two spellings."""
        refuse_doubles(where, dict.fromkeys(found), set(self.wanted))
        lacking = [name for name in self.wanted if name not in found]
        if lacking:
            raise UserError(
                f"{where} has no column {' and no '.join(map(show, lacking))}; its columns are "
                f"{', '.join(map(show, found))}; say which with --text-column, --label-column, --pair-column"
            )


@dataclass(slots=True)
class Text:
    """A text of a file, or a pair of them, or what is wrong with its row."""

    id: str
    where: str
    """"texts.csv: line 3"."""
    text: str = ""
    second: str | None = None
    """Of a pair."""
    error: str = ""
    """What is wrong, and where; "": nothing."""

    @property
    def characters(self) -> int:
        """How long it is to read."""
        return len(self.text) + len(self.second or "")


def text_stream(
    paths: Sequence[Path], text_column: str | None = None, pair_column: str | None = None
) -> Stream:
    """The texts of files, in their order; columns as those of `read_texts`. Without ids they are numbered throughout."""
    return Stream(paths, partial(_texts_in, Columns(text_column, pair_column), count()))


def _texts_in(columns: Columns, numbers: Iterator[int], source: Source) -> Iterator[Text]:
    for where, row in rows_in(source, columns):
        number = str(next(numbers))
        text = Text(number, f"{source.name}: {where}")
        try:
            if isinstance(row, UserError):
                raise row
            text.id = str(row.get("id", number))
            columns.require(where, row)
            text.text, *seconds = [text_in(where, row, name) for name in columns.wanted]
            text.second = seconds[0] if seconds else None
        except UserError as error:
            text.error = f"{source.name}: {error}"
        yield text


# Rows


def rows_in(source: Source, columns: Columns) -> Iterator[Row]:
    """The rows of a file; in the place of one that cannot be read a UserError.

    Raises:
        UserError: where the file, or the first of its rows, has none of the columns, and where nothing behind a place
            can be read.
    """
    if source.head.startswith(PARQUET):
        yield from _objects(_parquet(source), columns)
        return
    lines = decoded(source.lines())
    first = []
    for line in lines:
        first.append(line)
        if line.strip():
            break
    head = "".join(first)
    lines = chain(first, lines)
    if not head.strip():
        raise UserError("holds only white space")
    if columns.text is None and not is_table(source.name, head):
        yield from _lines(lines)
    elif head.lstrip().startswith("["):
        yield from _objects(_list(source, "".join(lines)), columns)
    elif head.lstrip().startswith("{"):
        yield from _objects(_json_lines(lines), columns)
    else:
        yield from _cells(source, lines, columns)


def _parquet(source: Source) -> Iterator[Row]:
    if source.path == STDIN:
        raise UserError("is Parquet, which cannot be read from a pipe; give the file's name")
    return parquet_records(source.path, source.tell_share)


def text_in(where: str, row: dict, name: str) -> str:
    """The text in a column of a row."""
    return field(where, row, name, str)


def is_table(name: str, text: str) -> bool:
    """Whether a file is CSV or JSON, and no list of texts, by its name or by its first line.

    A list may well begin with the word "text": a header that tells a CSV by itself has "text" and
    other names, and stands in no file that is called .txt.
    """
    path = Path(name.lower())
    suffix = path.with_suffix("").suffix if path.suffix in PACKED else path.suffix
    if suffix in (".csv", ".tsv", ".json", ".jsonl"):
        return True
    if suffix == ".txt":
        return False
    if text.lstrip().startswith("{"):
        return True
    headers = [header_cells(text, delimiter) for delimiter in DELIMITERS]
    return any(
        len(cells) > 1 and "text" in cells and all(re.fullmatch(r"[\w.-]*", c) for c in cells)
        for cells in headers
    )


def _lines(lines: Iterator[str]) -> Iterator[Row]:
    """A text a line."""
    for number, line in enumerate(lines, 1):
        yield f"line {number}", {"text": line.removesuffix("\n").removesuffix("\r")}


def _list(source: Source, text: str) -> Iterator[Row]:
    """The values of a JSON list."""
    values = parse_json(text, allow_nan=True)
    for number, value in enumerate(values, 1):
        source.tell_share(number / len(values))
        yield f"record {number}", value


def _json_lines(lines: Iterator[str]) -> Iterator[Row]:
    """The value of each line that is not blank."""
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield f"line {number}", parse_json(line, number, allow_nan=True)
            except UserError as error:
                yield f"line {number}", error


def _objects(rows: Iterator[Row], columns: Columns) -> Iterator[Row]:
    """Rows that are objects. The first one that is decides whether the file has the columns."""
    decided = False
    for where, row in rows:
        if isinstance(row, dict):
            if not decided:
                columns.require(where, row)
            decided = True
        elif not isinstance(row, UserError):
            row = UserError(f"{where}: must be an object, not {show(row)}")
        yield where, row


def _cells(source: Source, lines: Iterator[str], columns: Columns) -> Iterator[Row]:
    """The rows of a CSV."""
    keep_blank = columns.label is None
    quoted = quotes_well(source.path, columns)
    table = stream_table(lines, columns.wanted, keep_blank=keep_blank, quoted=quoted)
    columns.require("the header", table.header)
    for where, row in table.rows:
        if isinstance(row, UserError):
            row = UserError(f"{where}: {row}")
        yield where, row


def quotes_well(path: Path, columns: Columns) -> bool:
    """Whether a quotation mark in a table begins a quoted cell. In many a TSV (GLUE's) it is a character like others: where
    such cells make no table, nothing is quoted. Of a pipe nobody can know before it is read."""
    if path == STDIN or not path.is_file():
        return True
    with Source(path) as source:
        lines = decoded(source.lines())
        head, _, delimiter = head_of(lines, columns.wanted)
        if delimiter != "\t":
            return True
        try:
            table = stream_table(chain([head], lines), columns.wanted)
            return not any(isinstance(row, UserError) for _, row in table.rows)
        except UserError:
            return False
