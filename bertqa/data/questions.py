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
    unlabelled: bool
    record: dict
    repeat: bool = False
    """Whether an earlier question has its id."""


def checked_questions(
    questions: Iterator[Question], labelled: bool, faults: Faults
) -> Iterator[Checked]:
    """The questions whose records are sound; of others the mistake is raised, or noted in `faults`."""
    numbered: bool | None = None  # whether ids are given here, for records that have none
    first = ""
    seen: dict[str, str] = {}  # id -> where
    contexts: dict[str, str] = {}  # one object for each paragraph, so that it is tokenised once
    for number, question in enumerate(questions):
        with faults:
            record = question.record
            if isinstance(record, dict) and numbered is None:
                numbered = not any(name in record for name in IDS)
                first = question.where
            if not numbered:
                id = name_in(question.where, record, name_among(record, IDS))
            elif isinstance(record, dict) and any(name in record for name in IDS):
                raise UserError(
                    f"{question.where}: has an id, but {first} has none; give all an id, or none"
                )
            else:
                id = str(number)
            checked = _check(question, id, labelled)
            checked.context = contexts.setdefault(checked.context, checked.context)
            checked.repeat = id in seen
            first_user = seen.setdefault(id, question.where)
            if checked.repeat and faults.gather:
                yield checked
            if checked.repeat:
                raise UserError(
                    f"{question.where}: id {show(id)} was used by {first_user}; make every id unique"
                )
            yield checked


def _check(question: Question, id: str, labelled: bool) -> Checked:
    """A question with its fields checked. Raises UserError."""
    where, record = question.where, question.record
    if isinstance(record, dict):
        refuse_doubles(where, record, KNOWN)
    text = field(where, record, name_among(record, QUESTIONS), str)
    if not id.strip():
        raise UserError(f'{where}: "id" is empty; every question needs its own')
    flag = flag_in(where, record, "is_impossible")
    golds = _golds(where, record, labelled)
    unlabelled = golds is None and flag is None
    if unlabelled and labelled:
        raise UserError(
            f'{where}: has neither "answers" nor "is_impossible", its keys are {show(list(record))}; '
            'a question without an answer says "answers": []'
        )
    golds = golds or []
    if flag and not any(gold.text.strip() for gold in golds):
        golds = []  # impossible, and written with "" as its answer
    return Checked(
        where, id, text, question.context, question.title, golds, flag, unlabelled, record
    )


def _golds(where: str, record: dict, labelled: bool) -> list[Gold] | None:
    """The answers of a record. Where none are needed, those under an unknown key are not looked at."""
    if not labelled and "answers" not in record and "answer" in record:
        return None
    return gold_answers(where, record)
