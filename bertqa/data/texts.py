"""Files of texts, with labels or without: row after row for classifying and embedding, where no file need fit into memory
and a row that is no text comes out in its place with what is wrong with it; or whole, as columns to train on.

UTF-8 with or without byte order mark, packed or not (sources.py), in one of these shapes:

    csv      comma, semicolon or tab between the cells, whichever gives a header with the columns asked for
    jsonl    an object per line, or a list of objects
    parquet  by its first bytes
    lines    a text per line, blank ones included, so that row n is line n + 1

A column "id" names the rows; without one they are numbered from 0. A label is a name or a whole number.
"""

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, islice
from pathlib import Path

from bertqa.data.record_fields import EMPTY, field, refuse_doubles
from bertqa.data.records import line_values
from bertqa.data.sources import STDIN, Source, Stream, decoded, look_at
from bertqa.data.tables import (
    DELIMITERS,
    PARQUET,
    header_cells,
    parquet_rows,
    quotes_well,
    stream_table,
)
from bertqa.errors import UserError, no_data, show
from bertqa.files import parse_json

Row = tuple[str, dict | UserError]
"""Where a row stands in its file, for messages, and its values by column; or what is wrong with it, and where."""

PACKED = (".gz", ".bz2", ".zst")


@dataclass(frozen=True)
class Columns:
    """The columns that are read."""

    text: str | None = None  # none: "text", or the lines of what is no table
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
    where: str  # "texts.csv: line 3"
    text: str = ""
    second: str | None = None  # of a pair
    error: str = ""  # what is wrong, and where; "": nothing

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
            text.text, *seconds = [field(where, row, name, str) for name in columns.wanted]
            text.second = seconds[0] if seconds else None
        except UserError as error:
            text.error = f"{source.name}: {error}"
        yield text


# Rows


def rows_in(source: Source, columns: Columns) -> Iterator[Row]:
    """The rows of a file; in the place of one that cannot be read a UserError.

    Raises UserError where the file, or the first of its rows, lacks a column, and where nothing behind a place can be read.
    """
    if source.head.startswith(PARQUET):
        yield from _objects(parquet_rows(source), columns)
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
    """Whether a file is CSV or JSON, and no list of texts, by its name or by its first line.

    A list may well begin with the word "text": a header that tells a CSV by itself has "text" and
    other names, and stands in no file that is called .txt.
    """
    # Of texts.csv.gz the suffix that counts is .csv.
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
        # A sentence with commas in it has blanks between its words, which names of columns have not.
        are_names = all(re.fullmatch(r"[\w.-]*", cell) for cell in cells)
        if len(cells) > 1 and "text" in cells and are_names:
            return True
    return False


def _list(source: Source, text: str) -> Iterator[Row]:
    """The values of a JSON list."""
    values = parse_json(text, allow_nan=True)
    for number, value in enumerate(values, 1):
        source.tell_share(number / len(values))
        yield f"record {number}", value


def _objects(rows: Iterator[Row], columns: Columns) -> Iterator[Row]:
    """Rows that are objects. The first one that is decides whether the file has the columns."""
    # Others may lack a column: that is a mistake of theirs, which the caller says.
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
    # The file is read twice where need be; of a pipe nobody can know before it is read.
    quoted = True
    if source.path != STDIN and source.path.is_file():
        with Source(source.path) as again:
            quoted = quotes_well(decoded(again.lines()), columns.wanted)
    # An empty text has a vector, and so keeps its place; without a label it teaches nothing.
    keep_blank = columns.label is None
    table = stream_table(lines, columns.wanted, keep_blank=keep_blank, quoted=quoted)
    columns.require("the header", table.header)
    for where, row in table.rows:
        if isinstance(row, UserError):
            row = UserError(f"{where}: {row}")
        yield where, row


# Whole files


@dataclass
class Texts:
    """R rows of a file, in its order."""

    path: str
    sha256: str  # of the uncompressed content
    where: list[str]  # "line 3": where each row stands in the file, for messages
    ids: list[str]
    texts: list[str]
    pairs: list[str] | None = None  # the second text of each row
    labels: list[str] | None = None

    def __len__(self) -> int:
        return len(self.texts)

    def select(self, rows: Sequence[int]) -> "Texts":
        """These rows, in this order."""
        chosen = {}
        for name in ("where", "ids", "texts", "pairs", "labels"):
            column = getattr(self, name)
            chosen[name] = None if column is None else [column[row] for row in rows]
        return replace(self, **chosen)

    def empty(self) -> list[int]:
        """Rows without a word in any of their texts."""
        seconds = self.pairs or [""] * len(self)
        found = []
        for row, (text, second) in enumerate(zip(self.texts, seconds, strict=True)):
            if not text.strip() and not second.strip():
                found.append(row)
        return found


def read_texts(
    path: str | Path,
    text_column: str | None = None,
    *,
    pair_column: str | None = None,
    label_column: str | None = None,
    limit: int | None = None,
) -> Texts:
    """Read the columns named, and "id"; `limit` keeps the first so many rows.

    Without `text_column` the column is "text", and what is no table is read as lines (see `is_table`). Raises UserError,
    one line that names the file and what is wrong with it, or with the first row that cannot be read.
    """
    if limit is not None and limit < 1:
        raise UserError(f"limit is {limit}; it must be at least 1 text")
    columns = Columns(text_column, pair_column, label_column)
    rows: list[tuple[str, dict]] = []
    try:
        with Source(Path(path)) as source:
            for where, row in islice(rows_in(source, columns), limit):
                if isinstance(row, UserError):
                    raise row
                columns.require(where, row)
                rows.append((where, row))
            # What is behind the limit is read all the same, for the checksum is of the whole file.
            for _ in source.lines():
                pass
        if not rows:
            raise no_data("has a header, but no rows")
        found = Texts(
            path=str(path),
            sha256=source.digest.hexdigest(),
            where=[where for where, _ in rows],
            ids=[str(row.get("id", number)) for number, (_, row) in enumerate(rows)],
            texts=[field(where, row, columns.wanted[0], str) for where, row in rows],
        )
        if pair_column:
            found.pairs = [field(where, row, pair_column, str) for where, row in rows]
        if label_column:
            found.labels = [_label(where, row, label_column) for where, row in rows]
        return found
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _label(where: str, row: dict, name: str) -> str:
    """A label as text; a whole number that pandas has made a float of, as it was: 1.0 is 1."""
    value = row[name]
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, (str, int)):
        label = str(value).strip()
        if re.fullmatch(r"-?[0-9]+\.0", label):
            label = label.removesuffix(".0")
        if label.lower() not in EMPTY:
            return label
    raise UserError(
        f'{where}: the label "{name}" is {show(value)}; it must be a name or a whole number'
    )
