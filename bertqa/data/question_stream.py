"""Questions read one after the other, for answering: no labels are looked at, and no file need fit into memory.

JSONL, MRQA, CSV and Parquet are read as they are answered; SQuAD's and other JSON is one value, and read whole. The
shapes are those of formats.py. A record that is no question comes out in its place, with what is wrong with it.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from bertqa.data.formats import (
    ACCEPTED,
    NO_CONTEXT,
    Shape,
    common_shape,
    refuse,
    shape_of_columns,
    shape_of_records,
)
from bertqa.data.record_fields import ANSWERS, CONTEXTS, IDS, KNOWN, QUESTIONS, Faults, name_among
from bertqa.data.records import Records, alone, line_values, records_in
from bertqa.data.sources import Source, Stream, decoded, look_at
from bertqa.data.tables import PARQUET, parquet_rows, stream_table
from bertqa.errors import UserError, no_data, show
from bertqa.files import decode

RECENT = 1 << 16
"""Ids kept in a set before they are sorted into the array."""

SNIFFED = 3
"""Lines looked at to tell JSON lines, the first of which may be damaged, from one large JSON value."""

LABELS = {*ANSWERS, "answer", "is_impossible"}
"""Keys of a record that says what is right."""


@dataclass(slots=True)
class Question:
    """A question of a file, or what is wrong with its record."""

    id: object
    """Its text, or its number in the stream, counted from 0; None where the record is beyond reading."""
    where: str  # "questions.jsonl: line 3"
    question: str = ""
    documents: tuple[str, ...] = ()
    error: str = ""  # what is wrong; "": nothing

    @property
    def characters(self) -> int:
        """How long it is to read."""
        return sum(map(len, self.documents))


def question_stream(paths: Sequence[Path], tally: Counter | None = None) -> Stream:
    """The questions of files, in their order; `tally` is told how many "records" came, and how many are "unlabelled"."""
    return Stream(paths, partial(questions_in, Ids(), Counter() if tally is None else tally))


def questions_in(ids: "Ids", tally: Counter, source: Source) -> Iterator[Question]:
    """The questions of a file, checked. `ids` knows those of the files before it."""
    for where, record in rows_in(source):
        tally["records"] += 1
        tally["unlabelled"] += isinstance(record, dict) and record.keys().isdisjoint(LABELS)
        where = f"{source.name}: {where}"
        # A record that cannot be read has a number too, so that those behind it keep theirs.
        id, error = ids.of(record)
        if isinstance(record, UserError):
            error = str(record)
        found = Question(id, where, error=error)
        if not error:
            try:
                found.question, found.documents = question_in(record)
            except UserError as refused:
                found.error = str(refused)
        yield found


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


Rows = Iterator[tuple[str, object]]
"""Where a record stands in its file, and the record; a UserError in its place says why it could not be read."""


def rows_in(source: Source) -> Rows:
    """The flat records of a file, whatever its format: the content tells."""
    if source.head.startswith(PARQUET):
        found = Records("parquet", parquet_rows(source))
        shape = shape_of_records(found)
        refuse_for_answering(shape)
        for where, row in found.items:
            yield from flat_rows(where, row, shape)
        return
    first, lines = look_at(source.lines(), SNIFFED)
    start = b"".join(first).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    if start not in (b"{", b"["):
        yield from csv_rows(lines)
        return
    # One damaged line must not make JSON of JSONL, whose other lines could be answered.
    objects = objects_in(first)
    shape = common_shape(objects)
    if shape:
        refuse_for_answering(shape)
        for where, value in line_values(lines):
            yield from flat_rows(where, alone(value), shape)
    elif len(objects) > 1:
        raise UserError(f"wrong shape: found {show(list(objects[0]))}; accepted are {ACCEPTED}")
    else:
        yield from json_rows(source, decode(b"".join(first) + source.read()))


def objects_in(lines: list[bytes]) -> list[dict]:
    """Those of the lines that are JSON objects of their own, and do not hold all the data."""
    found = []
    for _, value in line_values(lines):
        if len(lines) > 1:  # on the only line a list of one is a JSON file
            value = alone(value)
        if isinstance(value, dict) and "data" not in value:
            found.append(value)
    return found


def json_rows(source: Source, text: str) -> Rows:
    """A JSON file, whatever holds its records."""
    found = records_in(text, KNOWN, Faults())
    shape = shape_of_records(found)
    refuse_for_answering(shape)
    items = list(found.items)
    if not items:
        raise no_data("has no questions in it, though its shape is right")
    for number, (where, item) in enumerate(items):
        source.tell_share((number + 1) / len(items))
        yield from flat_rows(where, item, shape)


def refuse_for_answering(shape: Shape) -> None:
    """Raise UserError for a shape that is not read; a question without a context is a mistake of its own."""
    if shape.then is not NO_CONTEXT:
        refuse(shape)


def flat_rows(where: str, value: object, shape: Shape) -> Rows:
    """The questions in a record of this shape: its own, or those of its paragraphs. Mistakes stand in their place."""
    if isinstance(value, UserError):
        yield where, value
        return
    if shape.name == "flat" or isinstance(shape.then, str):
        yield where, renamed(value)
        return
    # Mistakes are gathered, not raised: the paragraph's other questions can be answered.
    faults = Faults(gather=True)
    for question in shape.then(where, value, faults):
        yield from _mistakes(faults)
        record = renamed(question.record)
        if isinstance(record, dict):
            record = {**record, "context": question.context}
        yield question.where, record
    yield from _mistakes(faults)


def _mistakes(faults: Faults) -> Rows:
    """What was noted since the last question, each with its place."""
    while faults.found:
        where, _, what = faults.found.pop(0).partition(": ")
        yield where, UserError(what)


def renamed(record: object) -> object:
    """A record with its id, question and context under these names."""
    if not isinstance(record, dict):
        return record
    for name, names in (("id", IDS), ("question", QUESTIONS), ("context", CONTEXTS)):
        other = name_among(record, names)
        if name not in record and other in record:
            record = {**record, name: record[other]}
    return record


def csv_rows(lines: Iterator[bytes]) -> Rows:
    """The rows of a CSV, as objects of its cells."""
    table = stream_table(decoded(lines), KNOWN, lower=True)
    shape = shape_of_columns(table.header, table.head)
    refuse_for_answering(shape)
    for where, row in table.rows:
        yield from flat_rows(where, row, shape)


# The names of records: their own ids, each of which stands once, or their numbers


class Ids:
    """Ids of record after record. The first record that can be read decides whether they have ids or are numbered."""

    def __init__(self):
        self.own: bool | None = None  # not yet known
        self.count = 0
        self.seen = Seen()

    def of(self, record: object) -> tuple[object, str]:
        """The id of the next record, None where it has none; and what is wrong with it, or ""."""
        number = self.count
        self.count += 1
        if not isinstance(record, dict):
            return number if self.own is False else None, ""
        id = record.get("id")
        # The first record that is an object decides for all.
        if self.own is None:
            self.own = id is not None
        if not self.own and id is None:
            return number, ""
        if not self.own:
            what = "has an id, but the first record has none, so that they are numbered"
            return id, f"{what}; give all of them one"
        if id is None or id == "":
            return None, "has no id, but the first record has one; give all of them one"
        if type(id) not in (str, int):
            return None, f'"id" must be text or a whole number, not {type(id).__name__}'
        if not str(id).strip():
            return None, '"id" is blank; every question needs its own'
        if self.seen.add(str(id)):
            return str(id), "its id was used before; make every id unique"
        return str(id), ""


class Seen:
    """Texts that were seen before, in 8 bytes each: a hundred million ids fit into memory."""

    def __init__(self):
        self.old = np.zeros(0, np.uint64)  # hashes, sorted
        self.recent: set[int] = set()

    def add(self, text: str) -> bool:
        """Whether this text was added before."""
        # Of a hundred million texts two have the same 8 bytes with a chance of 3 in 10,000.
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        value = int.from_bytes(digest, "little")
        place = int(np.searchsorted(self.old, np.uint64(value)))
        is_old = place < len(self.old) and int(self.old[place]) == value
        if is_old or value in self.recent:
            return True
        self.recent.add(value)
        # Sorted seldom: to sort at every text would take the square of their number.
        if len(self.recent) == RECENT:
            new = np.fromiter(self.recent, np.uint64, len(self.recent))
            self.old = np.sort(np.concatenate([self.old, new]))
            self.recent = set()
        return False
