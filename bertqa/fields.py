"""A field of a settings dataclass: the rule that its value must keep, and the flag that it becomes.

The flag has the field's name with dashes, its type, its default, and as help the string literal under it in the source. So
a setting is written down once, and `--help` can never drift from the code.
"""

import argparse
import ast
import dataclasses
import inspect
import math
import os
import re
import textwrap
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints


class Rule(NamedTuple):
    """What a setting must be, where it is not left open (None)."""

    must: str
    holds: Callable[[Any], object]


DEVICE_TEXT = re.compile(r"auto|cpu|mps|cuda(:[0-9]{1,4})?")
FROZEN_TEXT = re.compile(r"none|embeddings|encoder|[0-9]{1,9}")
TOKENS_TEXT = re.compile(r"auto|0*[1-9][0-9]*")
# 500steps is in its first group, minutes (10, 0.5, 1e-2) in its second.
SAVE_EVERY = re.compile(r"([1-9][0-9]{0,17}) ?steps|([0-9]*[.]?[0-9]+(?:e[-+]?[0-9]+)?)")
# OpenMP ends the process without a word where it cannot have as many as it was asked for.
MOST_THREADS = max(64, 4 * (os.cpu_count() or 1))
POSITIVE = Rule("be positive", lambda value: 0 < value < 2**63)  # other numbers are divided by it
NOT_NEGATIVE = Rule("not be negative", lambda value: 0 <= value < math.inf)
RATE = Rule("lie in [0, 1)", lambda value: 0 <= value < 1)
FACTOR = Rule("lie in (0, 1]", lambda value: 0 < value <= 1)
SHARE = Rule("lie in (0, 1)", lambda value: 0 < value < 1)
NORM = Rule("be positive, or 0 for no clipping", lambda norm: norm >= 0)
WARMUP = Rule("be a fraction below 1 or a number of steps", NOT_NEGATIVE.holds)
EPOCHS = Rule("be positive, and a million at most", lambda epochs: 0 < epochs <= 10**6)
STEPS = Rule("be a number of steps, or 0", lambda steps: steps >= 0)
SEED = Rule(f"lie between 0 and {2**63 - 1}", lambda seed: 0 <= seed < 2**63)
THREADS = Rule(f"lie between 0 and {MOST_THREADS}", lambda count: 0 <= count <= MOST_THREADS)
TOKENS = Rule("be a number of tokens, or auto", lambda text: TOKENS_TEXT.fullmatch(str(text)))
SAVES = Rule(
    "be minutes, as in 10, or steps, as in 500steps, or 0",
    lambda text: SAVE_EVERY.fullmatch(str(text)),
)
DEVICE = Rule("be auto, cpu, cuda, cuda:1 or mps", DEVICE_TEXT.fullmatch)
FROZEN = Rule("be none, embeddings, encoder or a number of layers", FROZEN_TEXT.fullmatch)


def broken(settings) -> list[str]:
    """A phrase for each setting of a dataclass that breaks the rule, or is none of the choices, in its annotation."""
    found = []
    for name, annotation in get_type_hints(type(settings), include_extras=True).items():
        value = getattr(settings, name)
        if get_origin(annotation) is Literal and value not in get_args(annotation):
            choices = ", ".join(get_args(annotation))
            found.append(f"{name} is {value}, it must be one of {choices}")
        # What stands behind the type in Annotated[type, rule].
        for rule in getattr(annotation, "__metadata__", ()):
            if value is not None and not rule.holds(value):
                found.append(f"{name} is {value}, it must {rule.must}")
    return found


# Flags


def add_fields(parser: argparse.ArgumentParser, cls: type, title: str) -> None:
    """Add a flag for each field of the dataclass `cls`, as a group of the parser. Flags not given stay out of the result."""
    group = parser.add_argument_group(title)
    docs = field_docs(cls)
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        flag = "--" + field.name.replace("_", "-")
        text = f"{docs[field.name]} [{shown_default(field)}]".replace("%", "%%")
        # Not the default: what was not typed must leave room for a preset, or a file of settings.
        common = dict(dest=field.name, default=argparse.SUPPRESS, help=text)
        # bool, str, ... or, of `float | None`, the two types
        kinds = [hints[field.name]]
        if get_origin(kinds[0]) in (typing.Union, types.UnionType):
            kinds = get_args(kinds[0])
        kind = kinds[0]  # of str | int, how it is typed
        if kind is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, **common)
        elif get_origin(kind) is list:
            group.add_argument(flag, nargs="*", metavar="TEXT", **common)
        elif get_origin(kind) is Literal:
            group.add_argument(flag, choices=get_args(kind), metavar="TEXT", **common)
        else:
            metavar = {int: "N", float: "X"}.get(kind, "TEXT")
            read = {int: whole_number, float: number}.get(kind, str)
            if types.NoneType in kinds:
                read = or_none(read)
            group.add_argument(flag, type=read, metavar=metavar, **common)


def field_docs(cls: type) -> dict[str, str]:
    """The string literal that stands under each field of a dataclass, by field name, base classes included."""
    docs = {}
    # Python keeps no docstrings of fields: they are only in the source. A subclass may say it otherwise, so it comes last.
    for base in reversed(cls.__mro__[:-1]):
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body
        for field, doc in zip(body, body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(doc, ast.Expr):
                docs[field.target.id] = inspect.cleandoc(doc.value.value)
    return docs


def shown_default(field: dataclasses.Field) -> object:
    """The default of a field as one would type it."""
    value = field.default
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    if value is None or value == []:
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    # The bundled files, whose folder depends on where bertqa is installed.
    if isinstance(value, str) and os.path.isabs(value):
        path = Path(value)
        return f".../{path.parent.name}/{path.name}"
    return value


def or_none(read: Callable[[str], object]) -> Callable[[str], object]:
    """A reader of what is typed that also knows none."""
    return lambda text: None if text.lower() == "none" else read(text)


def whole_number(text: str) -> int:
    """12, or 1e3, exactly: a detour over float would change numbers beyond 2^53."""
    try:
        return int(text)
    except ValueError:
        pass
    try:
        value = float(text)
        whole = int(value)
    except (ValueError, OverflowError):
        value, whole = 0.5, 0
    if value != whole:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a whole number")
    # Beyond it a float has no room for every whole number: 1e17 + 1 would be read as 1e17.
    if abs(whole) > 2**53:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not exact; write all its digits")
    return whole


def number(text: str) -> float:
    """A decimal number."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a number") from None
