"""Question files become a list of `Example`, whatever their format; content tells the format, the name never does.

Plain or gzipped UTF-8, with or without byte order mark, in one of these shapes (formats.py has the table of all):

    squad      {"data": [{"title", "paragraphs": [{"context", "qas": [{"id", "question", "answers",
               "is_impossible"}]}]}]}; v1.1 has no is_impossible; also a list of such paragraphs
    flat json  a list of flat records, or {"data": [flat records]}
    jsonl      a flat record per line: id, question, context, answers, and optionally title and is_impossible
    mrqa       a header line, then {"context", "qas": [{"qid", "question", "detected_answers", "answers"}]} per line
    csv        columns id, question, context; answers, or answer_text and answer_start; optionally title, is_impossible
               (true/false/1/0); others are ignored; comma, semicolon or tab between them

Answers come in the forms that questions.py lists. A record must say what its answers are, or is_impossible: an empty list
says that there is none, an absent key is a mistake. Where no record has an id, they are numbered.

What is checked:

    structure   a wrong type, an absent key, an id seen before: `UserError`, naming file and record.
    offsets     an answer that does not stand at its offset is looked for (offsets.py); `repaired` counts it. What
                cannot be placed keeps start -1. White space around an answer is dropped.
    rejected    what training cannot use: an empty question, answers of which none can be placed, is_impossible true
                with answers or false without. They stay in `examples`, for evaluation loses no question, and count
                there as in the official scorer: by their answers, whatever the flag says.
"""

import gc
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from bertqa.data.download import locate
from bertqa.data.formats import questions_in
from bertqa.data.offsets import (
    CHARACTERS,
    exact_place,
    place,
    unit_of,
    unit_of_paragraph,
    why_unplaced,
)
from bertqa.data.questions import Checked, Gold, checked_questions
from bertqa.data.record_fields import Faults
from bertqa.errors import UserError, no_data
from bertqa.files import read_bytes


@dataclass(frozen=True, slots=True)
class Example:
    """One question about one paragraph. A start >= 0 promises: context[start : start + len(text)] == text."""

    id: str
    question: str
    context: str  # one object for all questions about a paragraph, so that it is tokenised once
    answer_texts: tuple[str, ...]  # accepted answers; () = the question is impossible
    answer_starts: tuple[int, ...]  # character offset of each in context; -1 = could not be located
    title: str = ""


@dataclass(frozen=True, slots=True)
class Rejected:
    """A question that training cannot use, and why. Its record is flat: mended, it can be read again as JSONL."""

    id: str
    reason: str
    record: dict


@dataclass
class Dataset:
    """What `read_examples` found in one file."""

    path: str
    sha256: str  # of the uncompressed content, so that a file and its .gz have the same
    format: str  # squad, flat json, jsonl, mrqa, csv or parquet
    examples: list[Example] = field(default_factory=list)
    repaired: int = 0  # answers whose offset or text was off and was repaired
    rejected: list[Rejected] = field(default_factory=list)
    flagged: bool = False  # whether a record has the key is_impossible
    unit: str = CHARACTERS  # what the file's offsets count, see units.UNITS
    faults: list[str] = field(default_factory=list)
    """What is wrong with broken records, which were left out; only where that was asked for."""
    repeats: list[Example] = field(default_factory=list)
    """Of the broken ones those that are whole, but have the id of an earlier question."""

    @property
    def has_impossible(self) -> bool:
        return any(not example.answer_texts for example in self.examples)

    @property
    def version(self) -> str:
        """The SQuAD version that these data are like: "2.0" if a question is impossible, otherwise "1.1"."""
        return "2.0" if self.has_impossible else "1.1"

    @property
    def is_v1(self) -> bool:
        """Whether SQuAD v1.1's rules of scoring apply.

        A part of a v2 file with answerable questions only is still v2 data: its records have the key is_impossible.
        """
        return not self.has_impossible and not self.flagged

    def trainable(self) -> list[Example]:
        """The examples that have a located answer or are impossible, in file order, without the rejected ones."""
        rejected = {question.id for question in self.rejected}
        return [example for example in self.examples if example.id not in rejected]

    def summary(self) -> str:
        """What the file holds, in one line."""
        examples = counted(len(self.examples), "example")
        impossible = sum(not example.answer_texts for example in self.examples)
        repaired = counted(self.repaired, "offset") + " repaired"
        if self.unit != CHARACTERS:
            repaired += f" (counted in {self.unit})"
        rejected = f"{len(self.rejected):,} rejected"
        if self.rejected:
            rejected += " (-> rejected.jsonl)"
        return ", ".join([examples, f"{impossible:,} impossible", repaired, rejected])


def counted(count: int, name: str) -> str:
    """1 example, 2,000 examples."""
    plural = "" if count == 1 else "s"
    return f"{count:,} {name}{plural}"


def read_examples(path: str | Path, limit: int | None = None, *, gather: bool = False) -> Dataset:
    """Read a file of questions; `limit` keeps the first so many of them, in file order, and checks no further.

    The names `squad1` and `squad2` stand for dev files here, `squad2-train` for that one: see `bertqa.data.download`.

    Args:
        gather: leave broken records out and list them in `faults`, as long as one is whole.

    Raises UserError, one line that names the file and the record, line or byte, for a file that is missing, empty, cut
    off, not UTF-8, not JSON, of another shape or without questions, and for a record that breaks its structure.
    """
    if limit is not None and limit < 1:
        raise UserError(f"limit is {limit}; it must be at least 1 question")
    path = locate(path)
    collects = gc.isenabled()
    gc.disable()  # a million small objects and no cycle among them: looking for one takes a third of the time
    try:
        content = read_bytes(Path(path))
        faults = Faults(gather)
        kind, questions = questions_in(content, faults)
        data = Dataset(str(path), hashlib.sha256(content).hexdigest(), kind)
        found = list(checked_questions(islice(questions, limit), faults))
        _fill(data, found)
        data.faults = faults.found
        if not data.examples and data.faults:
            first, *others = data.faults
            more = f" (and {len(others):,} more)" if others else ""
            raise UserError(f"not one question is whole: {first}{more}")
        if not data.examples:
            raise no_data(f"has no questions in it, though its shape is right ({kind})")
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    finally:
        if collects:
            gc.enable()
    return data


def _fill(data: Dataset, found: Sequence[Checked]) -> None:
    """Place all answers, and put the questions into `data`."""
    units = _units(data, found)
    for checked in found:
        unit = units.get(checked.context, data.unit)
        example, repaired = _example(checked, unit)
        reason = _why_rejected(checked, example)
        if checked.repeat:
            data.repeats.append(example)
            continue
        data.examples.append(example)
        data.repaired += repaired
        data.flagged |= "is_impossible" in checked.record
        if reason:
            record = {**checked.record, "id": example.id, "context": example.context}
            record["title"] = example.title
            data.rejected.append(Rejected(example.id, reason, record))


def _units(data: Dataset, found: Sequence[Checked]) -> dict[str, str]:
    """paragraph -> the unit of its offsets, where any answer is not at its offset; `data.unit` becomes the file's."""
    paragraphs: dict[str, list[Gold]] = {}
    # Paragraphs with an answer that is not where the file says, counted in characters.
    missed = set()
    for checked in found:
        paragraphs.setdefault(checked.context, []).extend(checked.golds)
        for gold in checked.golds:
            if gold.start < 0 or gold.stands_in(checked.context):
                continue
            if gold.text.strip() and exact_place(checked.context, gold) < 0:
                missed.add(checked.context)
    if not missed:
        return {}
    pairs = []
    for context, golds in paragraphs.items():
        pairs += [(context, gold) for gold in golds]
    data.unit = unit_of(pairs)
    # Counted in bytes, an answer may stand at its offset by chance: then each paragraph is looked at.
    if data.unit != CHARACTERS:
        missed = set(paragraphs)
    units = {}
    for context in missed:
        units[context] = unit_of_paragraph(context, paragraphs[context], data.unit)
    return units


def _example(checked: Checked, unit: str) -> tuple[Example, int]:
    """-> the example, and how many of its answers were repaired."""
    texts: list[str] = []
    starts: list[int] = []
    other_spellings: list[str] = []
    repaired = 0
    for gold in checked.golds:
        if gold.further and gold.text in texts:
            continue
        if unit == CHARACTERS and gold.stands_in(checked.context):
            texts.append(gold.text)
            starts.append(gold.start)
            continue
        placed = place(checked.context, gold, unit)
        texts.append(placed.text)
        starts.append(placed.start)
        repaired += placed.repaired
        # Where a file gives the span, its text may be more than another case or other blanks: it is accepted too.
        same = placed.text.casefold().split() == gold.text.casefold().split()
        if gold.end >= 0 and not same:
            other_spellings.append(gold.text)
    for text in other_spellings:
        if text not in texts:
            texts.append(text)
            starts.append(-1)
    example = Example(
        checked.id, checked.question, checked.context, tuple(texts), tuple(starts), checked.title
    )
    return example, repaired


def _why_rejected(checked: Checked, example: Example) -> str:
    """Why training cannot use a question; "" where it can."""
    if not example.question.strip():
        return "the question is empty"
    if checked.flag and example.answer_texts:
        return "is_impossible is true, but there are answers"
    if checked.flag is False and not example.answer_texts:
        return "is_impossible is false, but there are no answers"
    if example.answer_starts and max(example.answer_starts) < 0:
        reasons = [why_unplaced(example.context, gold) for gold in checked.golds]
        return "; ".join(dict.fromkeys(reasons))
    return ""
