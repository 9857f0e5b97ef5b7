"""Question files become a list of `Example`, whatever their format; content tells the format, the name never does.

Plain or gzipped UTF-8, with or without byte order mark, in one of these shapes:

    squad      {"data": [{"title", "paragraphs": [{"context", "qas": [{"id", "question", "answers",
               "is_impossible"}]}]}]}; v1.1 has no is_impossible
    flat json  a list of flat records, or {"data": [flat records]}
    jsonl      a flat record per line: id, question, context, answers, and optionally title and is_impossible
    mrqa       a header line, then {"context", "qas": [{"qid", "question", "detected_answers", "answers"}]} per line
    csv        columns id, question, context; answers, or answer_text and answer_start; optionally title, is_impossible
               (true/false/1/0); others are ignored; comma, semicolon or tab between them

`answers` is {"text": [...], "answer_start": [...]} or a list of {"text", "answer_start"}. A CSV cell holds it as JSON
or as the Python literal that datasets' `to_csv` writes, NumPy arrays included. None: the question is impossible.
MRQA: the first span of each detected answer, then the other accepted texts.

What is checked:

    structure   a wrong type, an absent key, an id seen before: `UserError`, naming file and record.
    offsets     an answer that does not stand at its offset moves to the one place that has its text, or to the nearest
                if that is at most `NEARBY` characters off and the next one at least twice as far; `repaired` counts it.
                An answer without an offset is looked for likewise, uncounted. What cannot be placed keeps start -1.
                White space around an answer is dropped.
    rejected    what training cannot use: an empty question, answers of which none can be placed, is_impossible true
                with answers or false without. They stay in `examples`, for evaluation loses no question, and count
                there as in the official scorer: by their answers, whatever the flag says.
"""

import gc
import hashlib
import json
import os
import re
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from bertqa.data.download import locate
from bertqa.data.fields import field, name_in
from bertqa.data.formats import questions_in
from bertqa.errors import UserError
from bertqa.files import decode, read_bytes, show

NEARBY = 20  # characters; offsets slip by a few through stripped blanks, byte order marks and UTF-16 counting


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
    format: str  # "squad", "flat json", "jsonl", "mrqa" or "csv"
    examples: list[Example]
    repaired: int  # answers whose offset was off and was repaired
    rejected: list[Rejected]
    flagged: bool = False  # whether a record has the key is_impossible

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
        impossible = sum(not example.answer_texts for example in self.examples)
        where = " (-> rejected.jsonl)" if self.rejected else ""
        return (
            f"{len(self.examples):,} example{'s' * (len(self.examples) != 1)}, {impossible:,} impossible, "
            f"{self.repaired:,} offset{'s' * (self.repaired != 1)} repaired, {len(self.rejected):,} rejected{where}"
        )


def read_examples(path: str | Path, limit: int | None = None) -> Dataset:
    """Read a file of questions; `limit` keeps the first so many of them, in file order, and checks no further.

    The names `squad1` and `squad2` stand for dev files here, `squad2-train` for that one: see `bertqa.data.download`.

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
        kind, questions = questions_in(decode(content))
        data = Dataset(str(path), hashlib.sha256(content).hexdigest(), kind, [], 0, [])
        seen: dict[str, str] = {}  # id -> where
        contexts: dict[str, str] = {}
        for where, record, context, title in islice(questions, limit):
            example, repaired, reason = _example(
                where, record, contexts.setdefault(context, context), title
            )
            if example.id in seen:
                raise UserError(
                    f"{where}: id {show(example.id)} was used by {seen[example.id]}; make every id unique"
                )
            seen[example.id] = where
            data.examples.append(example)
            data.repaired += repaired
            data.flagged |= "is_impossible" in record
            if reason:
                record = {**record, "id": example.id, "context": context, "title": title}
                data.rejected.append(Rejected(example.id, reason, record))
        if not data.examples:
            raise UserError(f"has no questions in it, though its shape is right ({kind})")
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    finally:
        if collects:
            gc.enable()
    return data


def write_rejected(dataset: Dataset, path: str | Path) -> None:
    """Write a line of JSON per rejected question: its flat record and "reason". No rejected ones: an empty file."""
    path = Path(path)
    part = path.with_name(path.name + ".part")
    with open(part, "wb") as file:
        for question in dataset.rejected:
            line = (
                json.dumps({**question.record, "reason": question.reason}, ensure_ascii=False)
                + "\n"
            )
            # UTF-8 has no lone surrogates; backslashreplace writes \udXXX, which is just how JSON spells them
            file.write(line.encode("utf-8", "backslashreplace"))
    os.replace(part, path)


# ---- one record -> one example


def _example(where: str, record: dict, context: str, title: str) -> tuple[Example, int, str]:
    """-> the example, how many of its offsets were repaired, and why training cannot use it ("": it can)."""
    id, question = name_in(where, record, "id"), field(where, record, "question", str)
    if not id.strip():
        raise UserError(f'{where}: "id" is empty; every question needs its own')
    flag = record.get("is_impossible")
    if flag is not None:
        field(where, record, "is_impossible", bool)
    answers = _answers(where, record)
    if flag and not any(text.strip() for text, _ in answers):
        answers = []  # impossible, and written with "" as its answer
    texts, starts, repaired = [], [], 0
    for text, start in answers:
        text, start, moved = _locate(context, text, start)
        texts.append(text)
        starts.append(start)
        repaired += moved

    reason = ""
    if not question.strip():
        reason = "the question is empty"
    elif flag and answers:
        reason = "is_impossible is true, but there are answers"
    elif flag is False and not answers:
        reason = "is_impossible is false, but there are no answers"
    elif starts and max(starts) < 0:
        reason = "; ".join(dict.fromkeys(_why_lost(context, text) for text in texts))
    return Example(id, question, context, tuple(texts), tuple(starts), title), repaired, reason


def _locate(context: str, text: str, start: int) -> tuple[str, int, bool]:
    """-> the text without outer white space, its offset (-1: unknown), and whether the offset given was wrong."""
    bare = text.strip()
    if not bare:
        return bare, -1, False
    if start >= 0:
        for offset in (
            start + text.index(bare),
            start,
        ):  # files strip the text after counting, or never
            if context.startswith(bare, offset):
                return bare, offset, False
    found = [
        match.start() for match in re.finditer(f"(?={re.escape(bare)})", context)
    ]  # lookahead: may overlap
    if len(found) == 1:
        return bare, found[0], start >= 0
    if found and start >= 0:
        nearest, second = sorted(found, key=lambda offset: abs(offset - start))[:2]
        if abs(nearest - start) <= NEARBY and 2 * abs(nearest - start) <= abs(second - start):
            return bare, nearest, True
    return bare, -1, False


def _why_lost(context: str, text: str) -> str:
    if not text:
        return "the answer text is empty"
    if text not in context:
        return f"the answer {show(text)} does not occur in the context"
    return f"the answer {show(text)} occurs more than once, and answer_start is not clearly nearest to one of them"


def _answers(where: str, record: dict) -> list[tuple[str, int]]:
    """-> text and offset of each answer as the file has them; -1 = without offset."""
    answers = record.get("answers")
    if answers is None and record.get("answer_text") is not None:
        answers = [{"text": record["answer_text"], "answer_start": record.get("answer_start")}]
    elif (
        answers is None and "answer" in record
    ):  # or a file of answers would quietly train as all impossible
        raise UserError(
            f'{where}: unknown key "answer"; write "answers", or "answer_text" and "answer_start"'
        )
    where += ".answers"
    if isinstance(answers, dict):
        texts = field(where, answers, "text", list)
        starts = (
            field(where, answers, "answer_start", list)
            if "answer_start" in answers
            else [None] * len(texts)
        )
        if len(texts) != len(starts):
            raise UserError(
                f"{where}: {len(texts)} in text but {len(starts)} in answer_start; they must pair up"
            )
        answers = [
            {"text": text, "answer_start": start} for text, start in zip(texts, starts, strict=True)
        ]
    elif not isinstance(answers or [], list):
        raise UserError(f"{where}: must be a list or an object, not {show(answers)}")
    pairs = []
    for i, answer in enumerate(answers or []):
        text = field(f"{where}[{i}]", answer, "text", str)
        start = answer.get("answer_start")
        if isinstance(start, float) and start.is_integer():  # a pandas column with empty cells
            start = int(start)
        if start is not None and type(start) is not int:
            raise UserError(
                f'{where}[{i}]: "answer_start" must be a whole number, not {show(start)}'
            )
        pairs.append((text, -1 if start is None else max(start, -1)))
    return pairs
