"""The answers that a record gives, in every form in which files write them.

"answers": {"text": ["a", "b"], "answer_start": [3, 7]}     SQuAD's rows on the Hub; also single values
"answers": [{"text": "a", "answer_start": 3}]               SQuAD; {"start", "end", "text"} of annotation tools
"answers": ["a", "b"]                                       texts without a place
"answers": "{'text': ['a'], 'answer_start': [3]}"           any of these, printed
"answers": "a"                                              one text
"answers.text": ["a"], "answers.answer_start": [3]          flattened rows
"answer_text": "a", "answer_start": 3                       one answer
"detected_answers": [{"text", "char_spans": [[3, 4]]}]      MRQA, with "answers" as further accepted texts
"""

from collections.abc import Sequence
from dataclasses import dataclass

from bertqa.data.fields import field, missing, name_among, refuse_doubles
from bertqa.data.literals import parse_printed
from bertqa.errors import UserError
from bertqa.files import show

STARTS = ("answer_start", "start", "start_offset", "answer_offset", "char_start", "offset", "begin")
"""Names of the offset at which an answer begins."""

ANSWER_NAMES = {"text", *STARTS}
"""Keys of an answer."""

ANSWER_KEYS = ("answers", "answer_text", "answers.text", "detected_answers")
"""A record with one of them says what its answers are, be it that there are none."""

PRINTED = ("[", "{", "array(", "np.array(")
"""How a text begins that is printed answers."""


@dataclass(slots=True)
class Gold:
    """An answer as a file gives it."""

    text: str
    start: int = -1
    """Offset in the file's own counting; -1: none was given."""
    end: int = -1
    """One past the last character, where a file gives the span to the character (MRQA); else -1."""
    keys: tuple[str, ...] = ()
    """The keys of an answer that has no offset under any known name."""
    further: bool = False
    """A text that is accepted too, and not needed where an answer before it is the same."""

    def stands_in(self, context: str) -> bool:
        """Whether the text stands at its offset, counted in characters and to the character, as nearly all do."""
        if self.start < 0 or not context.startswith(self.text, self.start):
            return False
        return self.text != "" and not self.text[0].isspace() and not self.text[-1].isspace()


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
    if any(key in record for key in ANSWER_KEYS):
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
    refuse_doubles(where, answer, ANSWER_NAMES)
    text = field(where, answer, "text", str)
    name = name_among(answer, STARTS)
    start = _offset(where, name, answer.get(name))
    keys = () if name in answer else tuple(answer)
    return Gold(text, start, keys=keys)


def _single(where: str, record: dict) -> Gold:
    """The one answer of a record that has it beside its question."""
    name = name_among(record, STARTS)
    text = record["answer_text"]
    if not isinstance(text, str):
        raise UserError(f'{where}: "text" must be text, not {show(text)}')
    keys = () if name in record else tuple(record)
    return Gold(text, _offset(where, name, record.get(name)), keys=keys)


def _columns(where: str, answers: dict) -> list[Gold]:
    """One object for all answers, a list or a single value under each key."""
    refuse_doubles(where, answers, ANSWER_NAMES)
    name = name_among(answers, STARTS)
    texts = _column(where, answers, "text")
    starts = _column(where, answers, name) if name in answers else [None] * len(texts)
    if len(texts) != len(starts):
        raise UserError(
            f"{where}: {len(texts)} in text but {len(starts)} in {name}; they must pair up"
        )
    keys = () if name in answers else tuple(answers)
    found = []
    for number, (text, start) in enumerate(zip(texts, starts, strict=True)):
        here = f"{where}[{number}]"
        if not isinstance(text, str):
            raise UserError(f'{here}: "text" must be text, not {show(text)}')
        found.append(Gold(text, _offset(here, name, start), keys=keys))
    return found


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
    if not _is_span(spans[0]):
        raise UserError(
            f'{where}: "char_spans" must hold [first, last] character offsets, not {show(spans[0])}'
        )
    first, last = spans[0]
    return Gold(text, first, last + 1)


def _is_span(pair: object) -> bool:
    """Whether this is two offsets."""
    if not isinstance(pair, Sequence) or len(pair) != 2:
        return False
    return all(type(end) is int and end >= 0 for end in pair)
