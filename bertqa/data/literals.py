"""Values as Python, NumPy and pandas print them into cells and strings: {'text': array(['a'], dtype=object)}.

Read by hand and never evaluated. NumPy leaves commas out (['a' 'b'], where Python would glue the
two), names its types (np.int64(32)), and cuts what is long (...), which is refused.
"""

import ast
import re

from bertqa.errors import UserError
from bertqa.files import parse_json, show

DEPTH = 20
"""Brackets within brackets; answers have two or three."""

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
