"""The fields of a record, checked: the right type under one of the names that files give them.

Each raises UserError that says what is wrong, where, and what to do; its callers put the name of the file before it.
"""

import math
from collections.abc import Iterator, Sequence, Set

from bertqa.errors import UserError
from bertqa.files import show

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
