"""Check the questions of a file: each has a text, an id of its own, and answers, in one of the forms that files use.

"answers": {"text": ["a", "b"], "answer_start": [3, 7]}     SQuAD's rows on the Hub; also single values
"answers": [{"text": "a", "answer_start": 3}]               SQuAD; {"start", "end", "text"} of annotation tools
"answers": ["a", "b"]                                       texts without offsets
"answers": "{'text': ['a'], 'answer_start': [3]}"           any of these, printed by Python or NumPy
"answers": "a"                                              one text
"answers.text": ["a"], "answers.answer_start": [3]          flattened rows
"answer_text": "a", "answer_start": 3                       one answer
"detected_answers": [{"text", "char_spans": [[3, 4]]}]      MRQA, with "answers" as further accepted texts
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from bertqa.data.formats import RawQuestion
from bertqa.data.record_fields import (
    ANSWERS,
    IDS,
    KNOWN,
    QUESTIONS,
    STARTS,
    Faults,
    field,
    flag_in,
    missing,
    name_among,
    name_in,
    parse_printed,
    refuse_doubles,
)
from bertqa.errors import UserError, show

LISTS = ("[", "array(", "np.array(")
"""How a list begins that Python or NumPy printed into a string."""
PRINTED = ("{", *LISTS)
"""How answers begin that were printed into a string."""


@dataclass(slots=True)
class Gold:
    """A gold answer as its file states it; its offset is not checked."""

    text: str
    start: int = -1  # offset, in whatever the file counts; -1: not stated
    end: int = -1
    """One past the last character, in files that state it (MRQA); else -1."""
    keys: tuple[str, ...] = ()  # the keys of the answer if none of them is known to hold an offset
    further: bool = False
    """MRQA's other accepted texts: dropped if an answer before it has the same text."""

    def is_at_offset(self, context: str) -> bool:
        """Return whether the text, without blanks around it, is at its offset counted in characters: most are."""
        if self.start < 0 or not context.startswith(self.text, self.start):
            return False
        return self.text != "" and not self.text[0].isspace() and not self.text[-1].isspace()


@dataclass(slots=True)
class CheckedQuestion:
    """A question whose record is sound; its answers are not yet placed."""

    where: str
    id: str
    question: str
    context: str
    title: str
    golds: list[Gold]
    flag: bool | None  # is_impossible; None if the record does not say
    record: dict
    repeat: bool = False  # whether an earlier question has the same id


def checked_questions(
    questions: Iterator[RawQuestion], faults: Faults
) -> Iterator[CheckedQuestion]:
    """Yield the questions whose records are sound; raise UserError for the others, or note it in `faults`.

    A question that repeats an id is a fault too; if faults are gathered, it is yielded nevertheless, marked as `repeat`.
    """
    first: RawQuestion | None = None  # decides whether records have ids or are numbered
    seen: dict[str, str] = {}  # id -> where it was used first
    contexts: dict[str, str] = {}  # equal paragraphs become one object, which saves memory
    for number, question in enumerate(questions):
        with faults:
            if first is None and isinstance(question.record, dict):
                first = question
            checked = _check(question, _id_of(question, first, number))
            checked.context = contexts.setdefault(checked.context, checked.context)
            used_by = seen.setdefault(checked.id, question.where)
            checked.repeat = used_by != question.where
            if not checked.repeat or faults.gather:
                yield checked
            if checked.repeat:
                raise UserError(
                    f"{question.where}: id {show(checked.id)} was used by {used_by}; make every id unique"
                )


def _id_of(question: RawQuestion, first: RawQuestion | None, number: int) -> str:
    """Return the id of a question; its number if the first question has no id.

    Raises UserError if the first question has an id and this one has none, or the other way round.
    """
    record = question.record
    if first is None or _has_id(first.record):
        return name_in(question.where, record, name_among(record, IDS))
    if _has_id(record):
        raise UserError(
            f"{question.where}: has an id, but {first.where} has none; give all an id, or none"
        )
    return str(number)


def _has_id(record: object) -> bool:
    return isinstance(record, dict) and any(name in record for name in IDS)


def _check(question: RawQuestion, id: str) -> CheckedQuestion:
    """Check the fields of a question. Raises UserError for the first fault."""
    where = question.where
    record = question.record
    refuse_doubles(where, record, KNOWN)
    text = field(where, record, name_among(record, QUESTIONS), str)
    if not id.strip():
        raise UserError(f'{where}: "id" is empty; every question needs its own')
    flag = flag_in(where, record, "is_impossible")
    golds = gold_answers(where, record)
    if golds is None and not flag:
        raise UserError(_without_answers(where, record, flag))
    golds = golds or []
    if flag and not any(gold.text.strip() for gold in golds):
        golds = []  # an impossible question whose answer is written as ""
    return CheckedQuestion(where, id, text, question.context, question.title, golds, flag, record)


def _without_answers(where: str, record: dict, flag: bool | None) -> str:
    """Word the message for a record without a known key of answers: an unknown key must not pass for "no answer"."""
    lacks = 'neither "answers" nor "is_impossible"'
    if flag is False:
        lacks = 'no "answers", though "is_impossible" is false'
    return (
        f"{where}: has {lacks}, its keys are {show(list(record))}; "
        'a question without an answer says "answers": []'
    )


# Answers


def gold_answers(where: str, record: dict) -> list[Gold] | None:
    """Return the answers of a record; None if it has no key of answers. Raises UserError for answers that are not sound."""
    if "detected_answers" in record:
        return _mrqa(where, record)
    answers = record.get("answers")
    if isinstance(answers, str) and not answers.lstrip().startswith(PRINTED):
        return [_single(f"{where}.answers[0]", {**record, "answer_text": answers})]
    if not missing(answers):
        return _answers(f"{where}.answers", answers)
    if not missing(record.get("answers.text")):
        flat = {"text": record["answers.text"]}
        if "answers.answer_start" in record:
            flat["answer_start"] = record["answers.answer_start"]
        return _answers(f"{where}.answers", flat)
    if not missing(record.get("answer_text")):
        return [_single(f"{where}.answers[0]", record)]
    if "answer" in record:
        raise UserError(
            f'{where}: unknown key "answer"; write "answers", or "answer_text" and "answer_start"'
        )
    if any(key in record for key in ANSWERS):
        return []
    return None


def _answers(where: str, answers: object) -> list[Gold]:
    """Read the value of "answers": a list, an object of columns, or either of them printed."""
    if isinstance(answers, str):
        answers = parse_printed(where.removesuffix(".answers"), "answers", answers)
    if isinstance(answers, dict):
        return _columns(where, answers)
    if not isinstance(answers, list):
        raise UserError(f"{where}: must be a list or an object, not {show(answers)}")
    return [_answer(f"{where}[{number}]", answer) for number, answer in enumerate(answers)]


def _answer(where: str, answer: object) -> Gold:
    """Read one member of a list of answers: a text, or an object."""
    if isinstance(answer, str):
        return Gold(answer)
    refuse_doubles(where, answer, {"text", *STARTS})
    text = field(where, answer, "text", str)
    name = name_among(answer, STARTS)
    return _gold(where, answer, text, name, answer.get(name))


def _single(where: str, record: dict) -> Gold:
    """Read the only answer of a record, whose text and offset are fields of the record."""
    name = name_among(record, STARTS)
    return _gold(where, record, record["answer_text"], name, record.get(name))


def _columns(where: str, answers: dict) -> list[Gold]:
    """Read answers from an object of columns: under each key a list, or the value of a single answer."""
    refuse_doubles(where, answers, {"text", *STARTS})
    name = name_among(answers, STARTS)
    texts = _column(where, answers, "text")
    starts = _column(where, answers, name) if name in answers else [None] * len(texts)
    if len(texts) != len(starts):
        raise UserError(
            f"{where}: {len(texts)} in text but {len(starts)} in {name}; they must pair up"
        )
    found = []
    for number, (text, start) in enumerate(zip(texts, starts, strict=True)):
        found.append(_gold(f"{where}[{number}]", answers, text, name, start))
    return found


def _gold(where: str, record: dict, text: object, name: str, start: object) -> Gold:
    """Check an answer's text and its offset `start`, whose key in `record` is `name`."""
    if not isinstance(text, str):
        raise UserError(f'{where}: "text" must be text, not {show(text)}')
    keys = () if name in record else tuple(record)
    return Gold(text, _offset(where, name, start), keys=keys)


def _column(where: str, answers: dict, name: str) -> list:
    """Return the list under a key; a single value becomes a list of one."""
    value = answers.get(name)
    if isinstance(value, str) and value.lstrip().startswith(LISTS):
        printed = parse_printed(where, name, value)
        if isinstance(printed, list):
            value = printed
    if isinstance(value, (str, int, float)) and not isinstance(value, bool):
        return [value]
    found = field(where, answers, name, list)
    # Arrays within arrays, as NumPy prints them, are flattened.
    while found and all(isinstance(member, list) for member in found):
        found = list(chain.from_iterable(found))
    return found


def _offset(where: str, name: str, value: object) -> int:
    """Return an offset as an int; -1 if it is null or negative. Raises UserError if it is not a whole number."""
    # In a column with empty cells pandas makes a float of 3.
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if value is None:
        return -1
    if type(value) is not int:
        raise UserError(f'{where}: "{name}" must be a whole number, not {show(value)}')
    return max(value, -1)


def _mrqa(where: str, record: dict) -> list[Gold]:
    """Read MRQA's answers: the first span of each detected answer, then the other accepted texts."""
    found = []
    for number, detected in enumerate(field(where, record, "detected_answers", list)):
        found.append(_detected(f"{where}.detected_answers[{number}]", detected))
    others = field(where, record, "answers", list) if "answers" in record else []
    for number, text in enumerate(others):
        if not isinstance(text, str):
            raise UserError(f"{where}.answers[{number}]: must be text, not {show(text)}")
        found.append(Gold(text, further=True))
    return found


def _detected(where: str, detected: dict) -> Gold:
    """Read one of MRQA's detected answers, whose spans are [first, last] characters, inclusive."""
    text = field(where, detected, "text", str)
    spans = field(where, detected, "char_spans", list)
    if not spans:
        return Gold(text)
    span = spans[0]
    is_pair = isinstance(span, Sequence) and len(span) == 2
    if not is_pair or not all(type(end) is int and end >= 0 for end in span):
        raise UserError(
            f'{where}: "char_spans" must hold [first, last] character offsets, not {show(span)}'
        )
    return Gold(text, span[0], span[1] + 1)
