"""Questions read one after the other, for answering: no labels are looked at, and no file need fit into memory.

JSONL, MRQA, CSV and Parquet are read as they are answered; SQuAD's and other JSON is one value, and read whole. A record
that is no question does not end the stream: it comes out in its place, with what is wrong with it.
"""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from bertqa.data.ids import Ids
from bertqa.data.sources import PARQUET, Source
from bertqa.errors import UserError
from bertqa.files import decode, parse_json, show

COLUMNS = ("id", "question", "context")

RECORD_KEYS = {"question", "context", "qas", "header"}
"""One of them is in every record, and in every line of MRQA."""

DELIMITERS = ",;\t"

ACCEPTED = (
    'SQuAD JSON ("data", "paragraphs", "qas"); records with id, question and context, in a list or one per line; MRQA '
    'lines ("context", "qas"); CSV with the columns question and context; Parquet with these columns'
)

SNIFFED = 3
"""Lines looked at to tell JSON lines, the first of which may be damaged, from one large JSON value."""


@dataclass(slots=True)
class Question:
    """A question of a file, or what is wrong with its record."""

    id: object
    """Its text, or its number in the stream, counted from 0; None where the record is beyond reading."""
    where: str
    """"questions.jsonl: line 3"."""
    question: str = ""
    documents: tuple[str, ...] = ()
    error: str = ""
    """What is wrong; "": nothing."""

    @property
    def characters(self) -> int:
        """How long it is to read."""
        return sum(map(len, self.documents))


class QuestionStream:
    """The questions of files, in their order. An iterator that knows how far it has come."""

    def __init__(self, paths: Sequence[Path]):
        self.paths = paths
        self.source: Source | None = None
        self.done = 0  # files read to their end
        self.ids = Ids()

    @property
    def share_read(self) -> float:
        """How much has been read, 0 to 1; 0 where nobody can know."""
        here = self.source.share_read if self.source else 0.0
        return (self.done + here) / len(self.paths)

    def __iter__(self) -> Iterator[Question]:
        for path in self.paths:
            try:
                with Source(path) as self.source:
                    for where, record in records_in(self.source):
                        yield self._question(f"{self.source.name}: {where}", record)
            except UserError as error:
                name = self.source.name if self.source else path
                raise UserError(f"{name}: {error}") from None
            self.source = None
            self.done += 1

    def _question(self, where: str, record: object) -> Question:
        """A record, checked."""
        id, error = self.ids.of(record)
        if isinstance(record, UserError):
            return Question(id, where, error=str(record))
        try:
            if error:
                raise UserError(error)
            question, documents = question_in(record)
        except UserError as error:
            return Question(id, where, error=str(error))
        return Question(id, where, question, documents)


def question_in(record: object) -> tuple[str, tuple[str, ...]]:
    """The question of a record, and its documents. Raises UserError that says what is wrong."""
    if not isinstance(record, dict):
        raise UserError(f"must be an object, not {show(record)}")
    for key in ("question", "context"):
        if key not in record:
            raise UserError(f'has no "{key}", its keys are {show(list(record))}')
    question = record["question"]
    context = record["context"]
    if not isinstance(question, str):
        raise UserError(f'"question" must be text, not {show(question)}')
    documents = context if isinstance(context, (list, tuple)) else [context]
    if not all(isinstance(document, str) for document in documents):
        raise UserError(f'"context" must be text or a list of texts, not {show(context)}')
    return question, tuple(documents)


Records = Iterator[tuple[str, object]]
"""Where each record stands in its file, and the record; a UserError in its place says why it could not be read."""


def records_in(source: Source) -> Records:
    """The flat records of a file, whatever its format: the content tells."""
    if source.head.startswith(PARQUET):
        from bertqa.data.parquet import parquet_records

        yield from parquet_records(source)
        return
    lines = source.lines()
    first: list[bytes] = []
    for line in lines:
        first.append(line)
        if sum(bool(line.strip()) for line in first) == SNIFFED:
            break
    start = b"".join(first).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    if start not in (b"{", b"["):
        yield from csv_records(chain(first, lines))
        return
    objects = [] if start == b"[" else objects_in(first)
    if any(value.keys() & RECORD_KEYS for value in objects):
        yield from json_line_records(chain(first, lines))
    elif len(objects) > 1:
        raise UserError(f"wrong shape: found {show(list(objects[0]))}; accepted are {ACCEPTED}")
    else:
        yield from json_records(source, decode(b"".join(first) + source.read()))


def objects_in(lines: list[bytes]) -> list[dict]:
    """Those of the lines that are JSON objects of their own, and do not hold all the data."""
    found = []
    for line in lines:
        try:
            value = parse_json(decode(line), allow_nan=True)
        except UserError:
            continue
        if isinstance(value, dict) and not value.keys() & {"data", "paragraphs"}:
            found.append(value)
    return found


def json_line_records(lines: Iterator[bytes]) -> Records:
    """JSONL, and MRQA's lines, of which each has a paragraph and its questions."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"line {number}"
        try:
            value = parse_json(decode(line), allow_nan=True)
        except UserError as error:
            yield where, error
            continue
        if isinstance(value, dict) and "header" in value and "context" not in value:
            continue  # MRQA's first line
        yield from flat_records(where, value)


def json_records(source: Source, text: str) -> Records:
    """A JSON file: articles, paragraphs or flat records, in a list or under "data"."""
    document = parse_json(text, allow_nan=True)
    name = "records"
    items = document if isinstance(document, list) else [document]
    if isinstance(document, dict) and isinstance(document.get("data"), list):
        name = "data"
        items = document["data"]
    if not any(_has_questions(item) for item in items):
        found = list(document) if isinstance(document, dict) else document
        raise UserError(f"wrong shape: found {show(found)}; accepted are {ACCEPTED}")
    for number, item in enumerate(items):
        source.share_of_records = (number + 1) / len(items)
        yield from flat_records(f"{name}[{number}]", item)


def _has_questions(item: object) -> bool:
    return isinstance(item, dict) and bool(item.keys() & {"paragraphs", "qas", "question"})


def flat_records(where: str, value: object) -> Records:
    """The records in an article, a paragraph, or a record itself."""
    for key in ("paragraphs", "qas"):
        if not isinstance(value, dict) or key not in value:
            continue
        if not isinstance(value[key], list):
            yield where, UserError(f'"{key}" must be a list, not {show(value[key])}')
            return
        for number, item in enumerate(value[key]):
            here = f"{where}.{key}[{number}]"
            if key == "qas" and isinstance(item, dict):
                id = item.get("id", item.get("qid"))
                yield (
                    here,
                    {"id": id, "question": item.get("question"), "context": value.get("context")},
                )
            else:
                yield from flat_records(here, item)
        return
    yield where, value


def csv_records(lines: Iterator[bytes]) -> Records:
    """The rows of a CSV, as objects of its cells."""
    text = (line.decode("utf-8") for line in lines)
    usual_limit = csv.field_size_limit(2**31 - 1)  # 128 KiB, for the whole process: put it back
    try:
        yield from _csv_records(text)
    except UnicodeDecodeError as error:
        decode(error.object)  # says it well
        raise
    finally:
        csv.field_size_limit(usual_limit)


def _csv_records(text: Iterator[str]) -> Records:
    head = ""
    before = 0  # lines read before the reader's own first
    delimiter = ""
    for head in text:
        before += 1
        head = head.removeprefix("\ufeff")
        cells = head.strip().strip('"').rstrip(",;\t ")
        if cells.startswith("sep=") and len(head.strip().strip('"')) >= 5:
            delimiter = head.strip().strip('"')[4]  # as Excel writes it
        elif head.strip():
            break
    delimiter = delimiter or max(DELIMITERS, key=lambda mark: _merit(head, mark))
    reader = csv.reader(chain([head], text), delimiter=delimiter, strict=True)
    header = [name.strip().lower() for name in next(reader)]
    missing = [name for name in ("question", "context") if name not in header]
    if missing:
        raise UserError(
            f"neither JSON nor a CSV with the columns question and context: {show(head.strip())}; accepted are {ACCEPTED}"
        )
    twice = [name for name in COLUMNS if header.count(name) > 1]
    if twice:
        raise UserError(f"the header has the column {show(twice[0])} twice; leave one out")
    last = reader.line_num
    while True:
        where = f"line {last + before}"
        try:
            row = next(reader, None)
        except csv.Error as error:
            cut = "cut off: " if "unexpected end" in str(error) else ""
            raise UserError(
                f"{cut}the CSV row that begins on {where} cannot be read: {error}"
            ) from None
        last = reader.line_num
        if row is None:
            return
        if len(row) != len(header) and any(row):
            yield (
                where,
                UserError(f"has {len(row)} cells, the header {len(header)}; a quote missing?"),
            )
        elif any(cell.strip() for cell in row):
            yield where, dict(zip(header, row, strict=True))


def _merit(head: str, delimiter: str) -> tuple[int, int]:
    """How good a header this line is under this delimiter: columns that are looked for, then columns."""
    names = [name.strip(' "\r\n').lower() for name in head.split(delimiter)]
    return sum(name in COLUMNS for name in names), len(names)
