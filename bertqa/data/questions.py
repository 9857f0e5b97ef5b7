"""Questions as a file has them, checked: each has an id of its own, a text, and says what its answers are, in one of the
forms in which files write them:

"answers": {"text": ["a", "b"], "answer_start": [3, 7]}     SQuAD's rows on the Hub; also single values
"answers": [{"text": "a", "answer_start": 3}]               SQuAD; {"start", "end", "text"} of annotation tools
"answers": ["a", "b"]                                       texts without a place
"answers": "{'text': ['a'], 'answer_start': [3]}"           any of these, printed
"answers": "a"                                              one text
"answers.text": ["a"], "answers.answer_start": [3]          flattened rows
"answer_text": "a", "answer_start": 3                       one answer
"detected_answers": [{"text", "char_spans": [[3, 4]]}]      MRQA, with "answers" as further accepted texts
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bertqa.data.formats import Question
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

PRINTED = ("[", "{", "array(", "np.array(")
"""How a text begins that is printed answers."""


@dataclass(slots=True)
class Gold:
    """An answer as a file gives it."""

    text: str
    start: int = -1  # offset in the file's own counting; -1: none was given
    end: int = -1
    """One past the last character, where a file gives the span to the character (MRQA); else -1."""
    keys: tuple[str, ...] = ()  # the keys of an answer that has no offset under any known name
    further: bool = False
    """A text that is accepted too, and not needed where an answer before it is the same."""

    def stands_in(self, context: str) -> bool:
        """Whether the text stands at its offset, counted in characters and to the character, as nearly all do."""
        if self.start < 0 or not context.startswith(self.text, self.start):
            return False
        return self.text != "" and not self.text[0].isspace() and not self.text[-1].isspace()


@dataclass(slots=True)
class CheckedQuestion:
    """A question whose record is sound; its answers are not placed yet."""

    where: str
    id: str
    question: str
    context: str
    title: str
    golds: list[Gold]
    flag: bool | None  # is_impossible, where it is said
    record: dict
    repeat: bool = False  # whether an earlier question has its id


def checked_questions(questions: Iterator[Question], faults: Faults) -> Iterator[CheckedQuestion]:
    """The questions whose records are sound; of others the mistake is raised, or noted in `faults`."""
    first: Question | None = None  # it decides whether ids are read or given
    seen: dict[str, str] = {}  # id -> where
    contexts: dict[str, str] = {}  # one object for each paragraph, so that it is tokenised once
    for number, question in enumerate(questions):
        with faults:
            if first is None and isinstance(question.record, dict):
                first = question
            checked = _check(question, _id_of(question, first, number))
            checked.context = contexts.setdefault(checked.context, checked.context)
            user = seen.setdefault(checked.id, question.where)
            checked.repeat = user != question.where
            if not checked.repeat or faults.gather:
                yield checked
            if checked.repeat:
                raise UserError(
                    f"{question.where}: id {show(checked.id)} was used by {user}; make every id unique"
                )


def _id_of(question: Question, first: Question | None, number: int) -> str:
    """The id of a question; its number where the first one has no id. Raises UserError where it has one all the same."""
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


def _check(question: Question, id: str) -> CheckedQuestion:
    """A question with its fields checked. Raises UserError."""
    where, record = question.where, question.record
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
        golds = []  # impossible, and written with "" as its answer
    return CheckedQuestion(where, id, text, question.context, question.title, golds, flag, record)


def _without_answers(where: str, record: dict, flag: bool | None) -> str:
    """What is wrong with a record that lacks every key of answers: a name that nobody knows must not pass for none."""
    lacks = 'neither "answers" nor "is_impossible"'
    if flag is False:
        lacks = 'no "answers", though "is_impossible" is false'
    return (
        f"{where}: has {lacks}, its keys are {show(list(record))}; "
        'a question without an answer says "answers": []'
    )


# Answers


def gold_answers(where: str, record: dict) -> list[Gold] | None:
    """The answers of a record; None where it says nothing of them."""
    if "detected_answers" in record:
        return _mrqa(where, record)
    answers = record.get("answers")
    if (
        isinstance(answers, str)
        and not missing(answers)
        and not answers.lstrip().startswith(PRINTED)
    ):
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
    if isinstance(answers, str):
        answers = parse_printed(where.removesuffix(".answers"), "answers", answers)
    if isinstance(answers, dict):
        return _columns(where, answers)
    if not isinstance(answers, list):
        raise UserError(f"{where}: must be a list or an object, not {show(answers)}")
    return [_answer(f"{where}[{number}]", answer) for number, answer in enumerate(answers)]


def _answer(where: str, answer: object) -> Gold:
    if isinstance(answer, str):
        return Gold(answer)
    refuse_doubles(where, answer, {"text", *STARTS})
    text = field(where, answer, "text", str)
    name = name_among(answer, STARTS)
    return _gold(where, answer, text, name, answer.get(name))


def _single(where: str, record: dict) -> Gold:
    """The one answer of a record that has it beside its question."""
    name = name_among(record, STARTS)
    return _gold(where, record, record["answer_text"], name, record.get(name))


def _columns(where: str, answers: dict) -> list[Gold]:
    """One object for all answers, a list or a single value under each key."""
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
    """An answer, checked; `record` is what has its offset under this `name`, or lacks it under any known one."""
    if not isinstance(text, str):
        raise UserError(f'{where}: "text" must be text, not {show(text)}')
    keys = () if name in record else tuple(record)
    return Gold(text, _offset(where, name, start), keys=keys)


def _column(where: str, answers: dict, name: str) -> list:
    """The list under a key, or the list that a string prints; a single value is a list of one."""
    value = answers.get(name)
    if isinstance(value, str) and value.lstrip().startswith(("[", "array(", "np.array(")):
        printed = parse_printed(where, name, value)
        # "[sic]" as a single answer is a text, and no list
        value = printed if isinstance(printed, list) else value
    if isinstance(value, (str, int, float)) and not isinstance(value, bool):
        return [value]
    found = field(where, answers, name, list)
    while found and all(isinstance(member, list) for member in found):
        found = [value for member in found for value in member]  # arrays within arrays
    return found


def _offset(where: str, name: str, value: object) -> int:
    """An offset as a number; -1 for none."""
    if isinstance(value, float) and value.is_integer():  # a pandas column with empty cells
        value = int(value)
    if value is None:
        return -1
    if type(value) is not int:
        raise UserError(f'{where}: "{name}" must be a whole number, not {show(value)}')
    return max(value, -1)


def _mrqa(where: str, record: dict) -> list[Gold]:
    """The first span of each detected answer, then the other accepted texts."""
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
    """MRQA's spans are [first, last character]."""
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
