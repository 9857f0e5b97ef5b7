"""Read files of questions into a list of `Example`, checked and repaired.

The format is told by a file's content, never by its name. Read are UTF-8 files, with or without byte order mark, plain or
gzipped, in one of these formats (the table of formats.py has all):

    squad      {"data": [{"title", "paragraphs": [{"context", "qas": [{"id", "question", "answers",
               "is_impossible"}]}]}]}; v1.1 has no is_impossible; also a list of such paragraphs
    flat json  a list of flat records, or {"data": [flat records]}
    jsonl      a flat record per line: id, question, context, answers, and optionally title and is_impossible
    mrqa       a header line, then {"context", "qas": [{"qid", "question", "detected_answers", "answers"}]} per line
    csv        columns id, question, context; answers, or answer_text and answer_start; optionally title, is_impossible
               (true/false/1/0); other columns are ignored; cells are separated by comma, semicolon or tab

questions.py lists the forms of answers. A record must have answers or is_impossible: an empty list means that there is no
answer, a missing key is an error. If no record has an id, the questions are numbered.

Three kinds of fault are told apart:

    structure   a wrong type, a missing key, a repeated id: `UserError` that names the file and the record.
    offsets     an answer that is not at its offset is searched for (offsets.py) and counted in `repaired`. If it
                cannot be placed, its start is -1. White space around answers is dropped.
    rejected    training cannot use the question: it is empty, or none of its answers can be placed, or it has is_impossible
                true with answers or false without. It stays in `examples`, because evaluation must not lose questions, and
                is scored by its answers whatever its flag, as the official scorer does.
"""

import gc
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from bertqa.data.download import locate
from bertqa.data.formats import questions_in
from bertqa.data.offsets import (
    CHARACTERS,
    Placed,
    exact_place,
    place,
    unit_of,
    unit_of_paragraph,
    why_unplaced,
)
from bertqa.data.questions import CheckedQuestion, Gold, checked_questions
from bertqa.data.record_fields import Faults
from bertqa.errors import UserError, no_data
from bertqa.files import read_bytes


@dataclass(frozen=True, slots=True)
class Example:
    """One question about one paragraph. Where start >= 0, context[start : start + len(text)] == text."""

    id: str
    question: str
    context: str  # the same object for all questions about a paragraph
    answer_texts: tuple[str, ...]  # gold answers; (): the question is impossible
    answer_starts: tuple[int, ...]  # character offset of each answer in context; -1: not located
    title: str = ""


@dataclass(frozen=True, slots=True)
class Rejected:
    """A question that training cannot use, and why. Its record is flat, so that it can be corrected and read as JSONL."""

    id: str
    reason: str
    record: dict


@dataclass
class Dataset:
    """The questions of one file, as `read_examples` returns them."""

    path: str
    sha256: str  # of the uncompressed content, so that a file and its .gz agree
    format: str  # squad, flat json, jsonl, mrqa, csv or parquet
    examples: list[Example] = field(default_factory=list)
    repaired: int = 0  # number of answers whose offset or text was repaired
    rejected: list[Rejected] = field(default_factory=list)
    flagged: bool = False  # whether any record has the key is_impossible
    unit: str = CHARACTERS  # what the file's offsets count, see offsets.UNITS
    faults: list[str] = field(default_factory=list)
    """Messages about broken records, which were left out; filled only by `gather=True`."""
    repeats: list[Example] = field(default_factory=list)
    """Questions that were left out only because an earlier question has their id; filled only by `gather=True`."""

    @property
    def has_impossible(self) -> bool:
        """Whether any question has no answer."""
        return any(not example.answer_texts for example in self.examples)

    @property
    def version(self) -> str:
        """The SQuAD version that the data resemble: "2.0" if any question is impossible, otherwise "1.1"."""
        return "2.0" if self.has_impossible else "1.1"

    @property
    def is_v1(self) -> bool:
        """Whether SQuAD v1.1's scoring rules apply.

        A subset of a v2 file may have answerable questions only, but it still has the key is_impossible, so it is v2 data.
        """
        return not self.has_impossible and not self.flagged

    def trainable(self) -> list[Example]:
        """Return the examples that were not rejected, in file order: each has a located answer or is impossible."""
        rejected = {question.id for question in self.rejected}
        return [example for example in self.examples if example.id not in rejected]

    def summary(self) -> str:
        """Describe the data in one line: how many examples, impossible ones, repaired offsets and rejected questions."""
        examples = _count_of(len(self.examples), "example")
        impossible = sum(not example.answer_texts for example in self.examples)
        repaired = _count_of(self.repaired, "offset") + " repaired"
        if self.unit != CHARACTERS:
            repaired += f" (counted in {self.unit})"
        rejected = f"{len(self.rejected):,} rejected"
        if self.rejected:
            rejected += " (-> rejected.jsonl)"
        return ", ".join([examples, f"{impossible:,} impossible", repaired, rejected])


def _count_of(count: int, name: str) -> str:
    """Return "1 example", "2,000 examples"."""
    plural = "" if count == 1 else "s"
    return f"{count:,} {name}{plural}"


def read_examples(path: str | Path, limit: int | None = None, *, gather: bool = False) -> Dataset:
    """Read a file of questions.

    Args:
        path: a file, or a name such as `squad2-train` (data/download.py); `squad1` and `squad2` are dev files here.
        limit: keep only the first questions, this many; what follows is not checked.
        gather: leave broken records out and list them in `faults`, if at least one record is sound.

    Raises UserError, one line that names the file and the record, line or byte, for a file that is missing, empty, cut
    off, not UTF-8, not JSON, in an unknown format or without questions, and for a broken record unless `gather`.
    """
    if limit is not None and limit < 1:
        raise UserError(f"limit is {limit}; it must be at least 1 question")
    path = locate(path)
    try:
        with _garbage_collection_paused():
            return _read(Path(path), limit, Faults(gather))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


@contextmanager
def _garbage_collection_paused() -> Iterator[None]:
    """Keep Python from searching for reference cycles: among a million new records it takes a third of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _read(path: Path, limit: int | None, faults: Faults) -> Dataset:
    """Read the questions of a file. Its errors do not name the file."""
    content = read_bytes(path)
    format, questions = questions_in(content, faults)
    found = list(checked_questions(islice(questions, limit), faults))
    data = Dataset(str(path), hashlib.sha256(content).hexdigest(), format, faults=faults.found)
    _fill(data, found)
    if data.examples:
        return data
    if not data.faults:
        raise no_data(f"has no questions in it, though its shape is right ({format})")
    first, *others = data.faults
    more = f" (and {len(others):,} more)" if others else ""
    raise UserError(f"not one question is whole: {first}{more}")


def _fill(data: Dataset, found: Sequence[CheckedQuestion]) -> None:
    """Place the answers of all questions, and add the questions to `data`."""
    units = _offset_units(found)
    data.unit = units.file
    for question in found:
        answers = _placed_answers(question, units.of(question.context))
        example = Example(
            id=question.id,
            question=question.question,
            context=question.context,
            answer_texts=tuple(answer.text for answer in answers),
            answer_starts=tuple(answer.start for answer in answers),
            title=question.title,
        )
        if question.repeat:
            data.repeats.append(example)
            continue
        data.examples.append(example)
        data.repaired += sum(answer.repaired for answer in answers)
        data.flagged |= "is_impossible" in question.record
        reason = _why_rejected(question, example)
        if reason:
            record = {**question.record, "id": example.id, "context": example.context}
            record["title"] = example.title
            data.rejected.append(Rejected(example.id, reason, record))


@dataclass
class OffsetUnits:
    """What the offsets of a file count, as keys of `offsets.UNITS`: characters, UTF-8 bytes, ..."""

    file: str = CHARACTERS  # the unit that explains most answers
    paragraphs: dict[str, str] = field(default_factory=dict)
    """Paragraph -> its own unit, for paragraphs whose answers are not all at their offsets in characters."""

    def of(self, context: str) -> str:
        """Return the unit of a paragraph's offsets."""
        return self.paragraphs.get(context, self.file)


def _offset_units(found: Sequence[CheckedQuestion]) -> OffsetUnits:
    """Work out what the offsets of a file count, by where its answers occur."""
    golds_of: dict[str, list[Gold]] = {}  # paragraph -> the answers of all its questions
    missed = set()  # paragraphs with an answer that is not at its offset, counted in characters
    for question in found:
        golds_of.setdefault(question.context, []).extend(question.golds)
        for gold in question.golds:
            if gold.start < 0 or gold.is_at_offset(question.context):
                continue
            if gold.text.strip() and exact_place(question.context, gold) < 0:
                missed.add(question.context)
    if not missed:
        return OffsetUnits()
    pairs = []
    for context, golds in golds_of.items():
        pairs += [(context, gold) for gold in golds]
    units = OffsetUnits(unit_of(pairs))
    # In a file that counts bytes, an answer may be at its offset in characters by chance, so check every paragraph.
    if units.file != CHARACTERS:
        missed = set(golds_of)
    for context in missed:
        units.paragraphs[context] = unit_of_paragraph(context, golds_of[context], units.file)
    return units


def _placed_answers(question: CheckedQuestion, unit: str) -> list[Placed]:
    """Place a question's gold answers in its paragraph; `unit` is what their offsets count."""
    found: list[Placed] = []
    other_spellings: list[str] = []
    for gold in question.golds:
        if gold.further and _has_text(found, gold.text):
            continue
        # The fast path, for nearly all answers.
        if unit == CHARACTERS and gold.is_at_offset(question.context):
            found.append(Placed(gold.text, gold.start))
            continue
        placed = place(question.context, gold, unit)
        found.append(placed)
        # A file that states ends as well may have another text than its span: the span's characters are the answer, and the
        # text is accepted too, if it differs by more than case and blanks.
        same = placed.text.casefold().split() == gold.text.casefold().split()
        if gold.end >= 0 and not same:
            other_spellings.append(gold.text)
    for text in other_spellings:
        if not _has_text(found, text):
            found.append(Placed(text, -1))
    return found


def _has_text(answers: list[Placed], text: str) -> bool:
    return any(answer.text == text for answer in answers)


def _why_rejected(question: CheckedQuestion, example: Example) -> str:
    """Return why training cannot use a question; "" if it can."""
    if not example.question.strip():
        return "the question is empty"
    if question.flag and example.answer_texts:
        return "is_impossible is true, but there are answers"
    if question.flag is False and not example.answer_texts:
        return "is_impossible is false, but there are no answers"
    if example.answer_starts and max(example.answer_starts) < 0:
        reasons = [why_unplaced(example.context, gold) for gold in question.golds]
        return "; ".join(dict.fromkeys(reasons))
    return ""
