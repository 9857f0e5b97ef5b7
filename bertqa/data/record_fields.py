"""Check the fields of a record, under any of the names that files give them; and parse values that Python printed.

Errors are UserErrors that name the record; callers put the name of the file before the message.
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
"""A record with one of these keys states its answers, even if it states that there are none."""

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
"""Keys and columns that are read, in lower case."""

TYPE_NAMES = {str: "text", list: "a list", dict: "an object"}
"""How messages call the types of JSON."""

FLAGS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
"""What files write for true and false, in lower case; pandas writes 1.0 for true if the column has empty cells."""

EMPTY = ("", "nan", "none", "null")
"""What files write for a missing value, in lower case."""


class Faults:
    """A context manager that decides what happens to a UserError inside it.

    By default the error is raised. With `gather` its message is added to `found`, and the program goes on after the block.
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
    """Return record[key]. Raises UserError if the record is not an object, lacks the key or has a value of another type."""
    if not isinstance(record, dict):
        raise UserError(f"{where}: must be an object, not {show(record)}")
    if key not in record:
        raise UserError(f'{where}: has no "{key}", its keys are {show(list(record))}')
    value = record[key]
    if not isinstance(value, kind):
        raise UserError(f'{where}: "{key}" must be {TYPE_NAMES[kind]}, not {show(value)}')
    return value


def members(where: str, record: object, key: str) -> Iterator[tuple[str, object]]:
    """Yield the place and value of each member of the list record[key]. Raises UserError as `field` does."""
    for number, member in enumerate(field(where, record, key, list)):
        yield f"{where}.{key}[{number}]", member


def name_among(record: object, names: Sequence[str]) -> str:
    """Return the first of these names that is a key of the record; names[0] if none is, for messages about its absence."""
    if isinstance(record, dict):
        for name in names:
            if name in record:
                return name
    return names[0]


def name_in(where: str, record: dict, key: str) -> str:
    """Return record[key], a string or a whole number, as a string. Raises UserError as `field` does."""
    if isinstance(record, dict) and type(record.get(key)) is int:
        return str(record[key])
    return field(where, record, key, str)


def title_in(where: str, record: dict) -> str:
    """Return the title of a record; "" if it has none."""
    if not isinstance(record, dict) or missing(record.get("title")):
        return ""
    return name_in(where, record, "title")


def flag_in(where: str, record: dict, key: str) -> bool | None:
    """Return record[key] as a bool; None if it is missing or blank. Raises UserError if it is something else."""
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
    """Return whether a value is null, or NaN, which pandas writes instead."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def refuse_doubles(where: str, record: object, names: Set[str]) -> None:
    """Raise UserError if an object has one of the keys `names` in two spellings, such as "Question" beside "question"."""
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
    """Return the keys of a JSON value in lower case, nested ones with a dot: {"qas": [{"id": 1}]} has "qas" and "qas.id".

    A key that is a number becomes #. Large values are sampled: 5 members of a list, 200 keys of an object, `depth` levels.
    """
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


# Values as Python, NumPy and pandas print them into cells and strings: {'text': array(['a'], dtype=object)}. They are parsed
# here and never evaluated. NumPy leaves commas out (['a' 'b'], which Python would concatenate), names its types
# (np.int64(32)), and abbreviates long arrays (...), which is refused.

MAX_DEPTH = 20  # nested brackets; answers have two or three levels

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

CONSTANTS = {
    **dict.fromkeys(["True", "true", "np.True_"], True),
    **dict.fromkeys(["False", "false", "np.False_"], False),
    **dict.fromkeys(["None", "null", "nan", "NaN", "np.nan"], None),
}


def parse_printed(where: str, name: str, cell: str) -> object:
    """Parse a cell that holds JSON, or what Python or NumPy prints; None if it is blank.

    Lists, tuples and arrays become lists; keys of dictionaries must be strings. Raises UserError for anything else, with the
    record's place `where` and the cell's key `name`.
    """
    if not cell.strip():
        return None
    try:
        return parse_json(cell, allow_nan=True)
    except UserError:
        pass
    try:
        parser = PrintedParser(cell)
        value = parser.value()
        parser.finish()
        return value
    except Abbreviated:
        raise UserError(
            f'{where}: "{name}" is cut: NumPy or pandas wrote "..." in the place of values: '
            f"{show(cell)}; write JSON instead (to_json)"
        ) from None
    except (ValueError, SyntaxError):
        raise UserError(
            f'{where}: "{name}" is neither JSON nor a Python literal: {show(cell)}'
        ) from None


class Abbreviated(ValueError):
    """A printed value has ... in the place of values."""


class PrintedParser:
    """A recursive descent parser of one printed value. Its methods raise ValueError if the text is not such a value."""

    def __init__(self, text: str):
        self.tokens: list[tuple[str, str]] = []  # kind (a group of TOKEN) and text of each
        self.at = 0  # index of the next token
        place = 0
        text = text.rstrip()
        while place < len(text):
            match = TOKEN.match(text, place)
            if not match:
                raise ValueError("no token")
            self.tokens.append((match.lastgroup, match[match.lastgroup]))
            place = match.end()

    def next(self) -> tuple[str, str]:
        """Return the next token and go past it."""
        if self.at == len(self.tokens):
            raise ValueError("ends early")
        self.at += 1
        return self.tokens[self.at - 1]

    def skip(self, mark: str) -> bool:
        """Go past `mark` if it is the next token; return whether it was."""
        comes = self.at < len(self.tokens) and self.tokens[self.at] == ("mark", mark)
        self.at += comes
        return comes

    def finish(self) -> None:
        if self.at < len(self.tokens):
            raise ValueError("more follows")

    def value(self, depth: int = 0) -> object:
        """Parse a value; `depth` is the number of brackets around it."""
        kind, text = self.next()
        if depth > MAX_DEPTH:
            raise ValueError("too deep")
        if kind == "cut":
            raise Abbreviated("...")
        if kind == "string":
            # Line ends inside a string literal were printed as they are.
            literal = text.replace("\r", "\\r").replace("\n", "\\n")
            value = ast.literal_eval(literal)
            return value.decode() if isinstance(value, bytes) else value
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
        """Parse the members of a list, up to the bracket `end`."""
        found = []
        while not self.skip(end):
            found.append(self.value(depth + 1))
            self.skip(",")  # NumPy prints none
        return found

    def dictionary(self, depth: int) -> dict:
        """Parse the items of a dictionary, up to its closing bracket."""
        found: dict = {}
        while not self.skip("}"):
            key = self.value(depth + 1)
            if not isinstance(key, str) or key in found or not self.skip(":"):
                raise ValueError("a set, a key that is no text, or one that stands twice")
            found[key] = self.value(depth + 1)
            self.skip(",")
        return found

    def named(self, name: str, depth: int) -> object:
        """Parse a constant, or a value with NumPy's type around it: array([1, 2], dtype=int32), np.str_('a')."""
        if name in CONSTANTS:
            return CONSTANTS[name]
        if name != "array" and not name.startswith(("np.", "numpy.")):
            raise ValueError(f"unknown {name}")
        if not self.skip("("):
            raise ValueError("a type alone")
        inside = self.value(depth + 1)
        while not self.skip(")"):
            # dtype=object or dtype='<U9' is skipped: it does not change the values
            if not self.skip(",") or self.next()[0] != "name" or not self.skip("="):
                raise ValueError("more than one value")
            self.next()
        return inside
