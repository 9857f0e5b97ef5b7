"""Questions as a file has them, checked: each has an id of its own, a text, and says what its answers are."""

from collections.abc import Iterator
from dataclasses import dataclass

from bertqa.data.fields import Faults, field, flag_in, name_among, name_in, refuse_doubles
from bertqa.data.formats import IDS, KNOWN, QUESTIONS, Question
from bertqa.data.gold import Gold, gold_answers
from bertqa.errors import UserError
from bertqa.files import show


@dataclass(slots=True)
class Checked:
    """A question whose record is sound; its answers are not placed yet."""

    where: str
    id: str
    question: str
    context: str
    title: str
    golds: list[Gold]
    flag: bool | None
    """is_impossible, where it is said."""
    record: dict
    repeat: bool = False
    """Whether an earlier question has its id."""


def checked_questions(questions: Iterator[Question], faults: Faults) -> Iterator[Checked]:
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


def _check(question: Question, id: str) -> Checked:
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
    return Checked(where, id, text, question.context, question.title, golds, flag, record)


def _without_answers(where: str, record: dict, flag: bool | None) -> str:
    """What is wrong with a record that lacks every key of answers: a name that nobody knows must not pass for none."""
    lacks = 'neither "answers" nor "is_impossible"'
    if flag is False:
        lacks = 'no "answers", though "is_impossible" is false'
    return (
        f"{where}: has {lacks}, its keys are {show(list(record))}; "
        'a question without an answer says "answers": []'
    )
