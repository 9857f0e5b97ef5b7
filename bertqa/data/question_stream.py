"""Read questions to be answered one after the other: without looking at labels, and from files that need not fit in memory.

JSONL, MRQA, CSV and Parquet are streamed; other JSON, SQuAD's included, is one value and read whole. The shapes are those of
formats.py. A record that cannot be answered comes out in its place, with a message.
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
from bertqa.data.tables import PARQUET, parquet_records, stream_table
from bertqa.errors import UserError, no_data, show
from bertqa.files import decode

RECENT = 1 << 16
"""Ids that `Seen` keeps in a set before it sorts them into its array."""

SNIFFED = 3
"""First lines by which JSON lines, of which one may be damaged, are told from one large JSON value."""

LABELS = {*ANSWERS, "answer", "is_impossible"}
"""Keys of a record that states its answers."""


@dataclass(slots=True)
class Question:
    """A question of a file, or a message about its record."""

    id: object
    """Its id, a str, or its number in the stream, an int from 0; None if the record cannot be read."""
    where: str  # "questions.jsonl: line 3"
    question: str = ""
    documents: tuple[str, ...] = ()
    error: str = ""  # what is wrong with the record; "": nothing

    @property
    def characters(self) -> int:
        """Number of characters of its documents."""
        return sum(len(document) for document in self.documents)


def question_stream(paths: Sequence[Path], tally: Counter | None = None) -> Stream:
    """Return the questions of files, in the order of the files.

    Args:
        tally: is increased by the number of "records", and of those that are "unlabelled".
    """
    if tally is None:
        tally = Counter()
    return Stream(paths, partial(questions_in, Ids(), tally))


def questions_in(ids: "Ids", tally: Counter, source: Source) -> Iterator[Question]:
    """Yield the questions of a file, checked. `ids` knows the ids of the files before it."""
    for where, record in rows_in(source):
        tally["records"] += 1
        tally["unlabelled"] += isinstance(record, dict) and record.keys().isdisjoint(LABELS)
        # A record that cannot be read is numbered too, so that the records after it keep their numbers.
        id, error = ids.of(record)
        found = Question(id, f"{source.name}: {where}", error=error)
        try:
            if isinstance(record, UserError):
                raise record
            if not error:
                found.question, found.documents = question_in(record)
        except UserError as refused:
            found.error = str(refused)
        yield found


def question_in(record: object) -> tuple[str, tuple[str, ...]]:
    """Return the question of a record, and its documents. Raises UserError if either is missing or not text."""
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
"""The place of each record in its file, and the record, or a UserError if it cannot be read."""


def rows_in(source: Source) -> Rows:
    """Yield the flat records of a file, whose format is recognised by its content."""
    if source.head.startswith(PARQUET):
        rows = parquet_records(source.parquet_path(), source.tell_share)
        records = Records("parquet", rows)
        shape = shape_of_records(records)
        yield from rows_of_shape(records.items, shape)
        return
    first, lines = look_at(source.lines(), SNIFFED)
    start = b"".join(first).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    if start not in (b"{", b"["):
        table = stream_table(decoded(lines), KNOWN, lower=True)
        yield from rows_of_shape(table.rows, shape_of_columns(table.header, table.head))
        return
    # A JSONL file with one damaged line must not be taken for JSON, because its other lines can be answered.
    objects = objects_in(first)
    shape = common_shape(objects)
    if shape:
        values = ((where, alone(value)) for where, value in line_values(lines))
        yield from rows_of_shape(values, shape)
    elif len(objects) > 1:
        raise UserError(f"wrong shape: found {show(list(objects[0]))}; accepted are {ACCEPTED}")
    else:
        yield from json_rows(source, decode(b"".join(first) + source.read()))


def objects_in(lines: list[bytes]) -> list[dict]:
    """Return the objects of the lines that are JSON objects by themselves, without one that holds all the data."""
    found = []
    for _, value in line_values(lines):
        if len(lines) > 1:  # [{...}] on the only line is a JSON file, not a header of MRQA
            value = alone(value)
        if isinstance(value, dict) and "data" not in value:
            found.append(value)
    return found


def json_rows(source: Source, text: str) -> Rows:
    """Yield the flat records of a JSON file that was read whole."""
    records = records_in(text, Faults())
    shape = shape_of_records(records)
    yield from rows_of_shape(_telling_share(records.items, source), shape)


def _telling_share(items: Rows, source: Source) -> Rows:
    """Yield the items, and tell the source which share of them was yielded. Raises UserError if there are none."""
    found = list(items)
    if not found:
        raise no_data("has no questions in it, though its shape is right")
    for number, item in enumerate(found, 1):
        source.tell_share(number / len(found))
        yield item


def rows_of_shape(items: Rows, shape: Shape) -> Rows:
    """Yield the flat records of records of this shape. Raises UserError for a shape that is not read."""
    # A shape without a context is let through: whatever the shape, a record without one comes out as a fault.
    if shape.then is not NO_CONTEXT:
        refuse(shape)
    for where, value in items:
        yield from flat_rows(where, value, shape)


def flat_rows(where: str, value: object, shape: Shape) -> Rows:
    """Yield the flat records in a record of this shape: one, or one for each question of its paragraphs.

    Faults come out in their place.
    """
    if isinstance(value, UserError):
        yield where, value
        return
    if shape.name == "flat" or isinstance(shape.then, str):
        yield where, renamed(value)
        return
    # Faults are gathered, not raised, because the paragraph's other questions can be answered.
    faults = Faults(gather=True)
    for question in shape.then(where, value, faults):
        yield from _errors_of(faults)
        record = renamed(question.record)
        if isinstance(record, dict):
            record = {**record, "context": question.context}
        yield question.where, record
    yield from _errors_of(faults)


def _errors_of(faults: Faults) -> Rows:
    """Yield and forget the gathered faults, each with its place."""
    while faults.found:
        where, _, what = faults.found.pop(0).partition(": ")
        yield where, UserError(what)


def renamed(record: object) -> object:
    """Return a record with its id, question and context under the keys "id", "question" and "context"."""
    if not isinstance(record, dict):
        return record
    for name, names in (("id", IDS), ("question", QUESTIONS), ("context", CONTEXTS)):
        other = name_among(record, names)
        if name not in record and other in record:
            record = {**record, name: record[other]}
    return record


# Ids of records


class Ids:
    """Gives records their ids: their own, or their numbers if the first record that can be read has no id."""

    def __init__(self):
        self.numbered: bool | None = None  # None until a record decides it
        self.count = 0
        self.seen = Seen()

    def of(self, record: object) -> tuple[object, str]:
        """Return the id of the next record, None if it has none; and what is wrong with the id, or ""."""
        number = self.count
        self.count += 1
        if not isinstance(record, dict):
            return number if self.numbered else None, ""
        id = record.get("id")
        if self.numbered is None:
            self.numbered = id is None
        if self.numbered and id is None:
            return number, ""
        if self.numbered:
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
    """A set of texts that takes 8 bytes for each, so that a hundred million ids fit into memory."""

    def __init__(self):
        self.old = np.zeros(0, np.uint64)  # sorted hashes
        self.recent: set[int] = set()  # further hashes

    def add(self, text: str) -> bool:
        """Add a text; return whether it was in the set already."""
        # The chance that any two of a hundred million texts have the same hash is 3 in 10,000.
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        value = int.from_bytes(digest, "little")
        place = int(np.searchsorted(self.old, np.uint64(value)))
        is_old = place < len(self.old) and int(self.old[place]) == value
        if is_old or value in self.recent:
            return True
        self.recent.add(value)
        # Sorting at every text would take quadratic time.
        if len(self.recent) == RECENT:
            new = np.fromiter(self.recent, np.uint64, len(self.recent))
            self.old = np.sort(np.concatenate([self.old, new]))
            self.recent = set()
        return False
