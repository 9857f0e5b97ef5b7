"""The fields of a record, checked: the right type under one of the names that files give them; and printed values read.

Each raises UserError that says what is wrong, where, and what to do; its callers put the name of the file before it.
"""

import ast
import math
import re
from collections.abc import Iterator, Sequence, Set

from bertqa.errors import UserError, show
from bertqa.files import parse_json

CONTEXTS = ("context", "context_text")
QUESTIONS = ("question", "query_text")
IDS = ("id", "qid", "question_id", "query_id", "guid", "_id", "key")
STARTS = ("answer_start", "start", "start_offset", "answer_offset", "char_start", "offset", "begin")
ANSWERS = ("answers", "answer_text", "answers.text", "detected_answers")
"""A record with one of them says what its answers are, be it that there are none."""

KNOWN = {
    *IDS,
    *QUESTIONS,
    *CONTEXTS,
    *ANSWERS,
    *STARTS,
    "answer",
    "title",
    "is_impossible",
    "header",
}
"""Names of keys and columns that mean something here, in lower case."""

KINDS = {str: "text", list: "a list", dict: "an object", bool: "true or false"}

FLAGS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
"""What files write for yes and no, in lower case; pandas makes 1.0 of true where cells are empty."""

EMPTY = ("", "nan", "none", "null")
"""What files write, in lower case, where nothing is said."""


class Faults:
    """What to do with a mistake in a file: raise it, or take note of it and go on with what follows.

    with faults:
        read one thing, which may raise UserError
    """

    def __init__(self, gather: bool = False):
        self.gather = gather
        self.found: list[str] = []

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace) -> bool:
        if self.gather and isinstance(error, UserError):
            self.found.append(str(error))
            return True
        return False


def field(where: str, record: object, key: str, kind: type):
    """record[key], checked to be there and to be of this type."""
    if not isinstance(record, dict):
        raise UserError(f"{where}: must be an object, not {show(record)}")
    if key not in record:
        raise UserError(f'{where}: has no "{key}", its keys are {show(list(record))}')
    value = record[key]
    if not isinstance(value, kind):
        raise UserError(f'{where}: "{key}" must be {KINDS[kind]}, not {show(value)}')
    return value


def members(where: str, record: object, key: str) -> Iterator[tuple[str, object]]:
    """Where each member of the list record[key] stands, and the member."""
    for number, member in enumerate(field(where, record, key, list)):
        yield f"{where}.{key}[{number}]", member


def name_among(record: object, names: Sequence[str]) -> str:
    """The first of these names that the record has as a key; the first of all where it has none."""
    if isinstance(record, dict):
        for name in names:
            if name in record:
                return name
    return names[0]


def name_in(where: str, record: dict, key: str) -> str:
    """record[key], text or a whole number, as text."""
    if isinstance(record, dict) and type(record.get(key)) is int:
        return str(record[key])
    return field(where, record, key, str)


def title_in(where: str, record: dict) -> str:
    """The title, "" where there is none."""
    if not isinstance(record, dict) or missing(record.get("title")):
        return ""
    return name_in(where, record, "title")


def flag_in(where: str, record: dict, key: str) -> bool | None:
    """record[key] as yes or no; None where it says neither."""
    value = record.get(key)
    if missing(value):
        return None
    text = str(value).strip().lower()  # True and "TRUE", 1 and "1.0"
    if isinstance(value, str) and text in EMPTY:
        return None
    if text not in FLAGS:
        raise UserError(f'{where}: "{key}" must be true or false, not {show(value)}')
    return FLAGS[text]


def missing(value: object) -> bool:
    """Whether a value says that there is none: null, or the NaN of pandas."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def refuse_doubles(where: str, record: object, names: Set[str]) -> None:
    """Raise UserError where an object has one of these keys twice, spelt in two ways ("Question" beside "question")."""
    if not isinstance(record, dict):
        return
    spelt: dict[str, str] = {}
    for key in record.keys() - names:
        name = key.strip().casefold()
        if name not in names:
            continue
        other = name if name in record else spelt.get(name)
        if other:
            raise UserError(f'{where}: has both "{other}" and "{key}"; leave one out')
        spelt[name] = key


def keys_in(value: object, before: str = "", depth: int = 4) -> set[str]:
    """The keys of an object in lower case, and those inside with a dot: {"qas": [{"id": 1}]} has "qas" and "qas.id"."""
    found: set[str] = set()
    if isinstance(value, list):
        for member in value[:5]:
            found |= keys_in(member, before, depth)
    elif isinstance(value, dict) and depth:
        for key, inside in list(value.items())[:200]:
            name = before + ("#" if key.isdigit() else key.lower())
            found.add(name)
            found |= keys_in(inside, f"{name}.", depth - 1)
    return found


# Values as Python, NumPy and pandas print them into cells and strings: {'text': array(['a'], dtype=object)}. They are read by
# hand and never evaluated. NumPy leaves commas out (['a' 'b'], where Python would glue the two), names its types
# (np.int64(32)), and cuts what is long (...), which is refused.

DEPTH = 20  # brackets within brackets; answers have two or three

TOKEN = re.compile(
    r"""\s*(?:
      (?P<string>[rbuRBU]{0,2}(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"))
    | (?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)
    | (?P<cut>\.\.\.)
    | (?P<name>[A-Za-z_][\w.]*)
    | (?P<mark>[\[\](){}:,=])
    )""",
    re.VERBOSE | re.DOTALL,
)

WORDS = {
    **dict.fromkeys(["True", "true", "np.True_"], True),
    **dict.fromkeys(["False", "false", "np.False_"], False),
    **dict.fromkeys(["None", "null", "nan", "NaN", "np.nan"], None),
}


def parse_printed(where: str, name: str, cell: str) -> object:
    """The value of a cell in JSON, or as Python or NumPy print it; None where it is blank.

    Lists, tuples and arrays become lists, dictionaries keep text keys. Raises UserError for anything else.
    """
    if not cell.strip():
        return None
    try:
        return parse_json(cell, allow_nan=True)
    except UserError:
        pass
    try:
        printed = Printed(cell)
        value = printed.value()
        printed.finish()
        return value
    except (ValueError, SyntaxError) as error:
        if str(error) == "...":
            raise UserError(
                f'{where}: "{name}" is cut: NumPy or pandas wrote "..." in the place of values: '
                f"{show(cell)}; write JSON instead (to_json)"
            ) from None
        raise UserError(
            f'{where}: "{name}" is neither JSON nor a Python literal: {show(cell)}'
        ) from None


class Printed:
    """A printed value, read from left to right. Each method raises ValueError where the text is something else."""

    def __init__(self, text: str):
        self.tokens: list[tuple[str, str]] = []
        self.at = 0
        place = 0
        text = text.rstrip()
        while place < len(text):
            match = TOKEN.match(text, place)
            if not match:
                raise ValueError("no token")
            self.tokens.append((match.lastgroup, match[match.lastgroup]))
            place = match.end()

    def next(self) -> tuple[str, str]:
        if self.at == len(self.tokens):
            raise ValueError("ends early")
        self.at += 1
        return self.tokens[self.at - 1]

    def skip(self, mark: str) -> bool:
        """Go past this mark if it comes next; whether it does."""
        comes = self.at < len(self.tokens) and self.tokens[self.at] == ("mark", mark)
        self.at += comes
        return comes

    def finish(self) -> None:
        if self.at < len(self.tokens):
            raise ValueError("more follows")

    def value(self, depth: int = 0) -> object:
        kind, text = self.next()
        if depth > DEPTH:
            raise ValueError("too deep")
        if kind == "cut":
            raise ValueError("...")
        if kind == "string":
            # Only a string literal can get here; a line end inside it was printed as it is.
            read = ast.literal_eval(text.replace("\r", "\\r").replace("\n", "\\n"))
            return read.decode() if isinstance(read, bytes) else read
        if kind == "number":
            return float(text) if re.search("[.eE]", text) else int(text)
        if text == "[":
            return self.items("]", depth)
        if text == "(":
            return self.items(")", depth)
        if text == "{":
            return self.dictionary(depth)
        if kind == "name":
            return self.named(text, depth)
        raise ValueError(f"stray {text}")

    def items(self, end: str, depth: int) -> list:
        found = []
        while not self.skip(end):
            found.append(self.value(depth + 1))
            self.skip(",")  # NumPy leaves it out
        return found

    def dictionary(self, depth: int) -> dict:
        found: dict = {}
        while not self.skip("}"):
            key = self.value(depth + 1)
            if not isinstance(key, str) or key in found or not self.skip(":"):
                raise ValueError("a set, a key that is no text, or one that stands twice")
            found[key] = self.value(depth + 1)
            self.skip(",")
        return found

    def named(self, name: str, depth: int) -> object:
        """A constant, or what NumPy wraps around a value: array([1, 2], dtype=int32), np.str_('a')."""
        if name in WORDS:
            return WORDS[name]
        if name != "array" and not name.startswith(("np.", "numpy.")):
            raise ValueError(f"unknown {name}")
        if not self.skip("("):
            raise ValueError("a type alone")
        inside = self.value(depth + 1)
        while not self.skip(")"):
            # dtype=object, dtype='<U9': how NumPy keeps the values does not matter
            if not self.skip(",") or self.next()[0] != "name" or not self.skip("="):
                raise ValueError("more than one value")
            self.next()
        return inside
