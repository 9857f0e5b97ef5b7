"""Fields of a settings dataclass: rules that check their values, and the command-line flags made from them.

A flag has the field's name with dashes, its type and its default, and its help is the string literal under the field in the
source. Each setting is thus written down once, and `--help` cannot drift from the code.
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
    """A condition on a setting's value; None is always allowed."""

    must: str
    """The condition in words, after "it must"."""
    holds: Callable[[Any], object]
    """Value -> whether the condition holds, as a truth value."""


DEVICE_TEXT = re.compile(r"auto|cpu|mps|cuda(:[0-9]{1,4})?")
FROZEN_TEXT = re.compile(r"none|embeddings|encoder|[0-9]{1,9}")
TOKENS_TEXT = re.compile(r"auto|0*[1-9][0-9]*")
# Group 1 is a number of steps (500steps), group 2 a number of minutes (10, 0.5, 1e-2).
SAVE_EVERY = re.compile(r"([1-9][0-9]{0,17}) ?steps|([0-9]*[.]?[0-9]+(?:e[-+]?[0-9]+)?)")
# With more threads than it can get, OpenMP ends the process without a message.
MOST_THREADS = max(64, 4 * (os.cpu_count() or 1))
POSITIVE = Rule("be positive", lambda value: 0 < value < 2**63)  # floats are divided by it
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
    """Return a phrase for each field whose value breaks the Rule in its annotation, or is none of its Literal's choices."""
    found = []
    for name, annotation in get_type_hints(type(settings), include_extras=True).items():
        value = getattr(settings, name)
        if get_origin(annotation) is Literal and value not in get_args(annotation):
            choices = ", ".join(get_args(annotation))
            found.append(f"{name} is {value}, it must be one of {choices}")
        # __metadata__ of Annotated[type, rule] is (rule,)
        for rule in getattr(annotation, "__metadata__", ()):
            if value is not None and not rule.holds(value):
                found.append(f"{name} is {value}, it must {rule.must}")
    return found


# Flags


def add_fields(parser: argparse.ArgumentParser, cls: type, title: str) -> None:
    """Add a group of flags to the parser, one for each field of the dataclass `cls`.

    Flags that are not typed stay out of the parsed namespace, so that a preset or a settings file can give the value.
    """
    group = parser.add_argument_group(title)
    docs = field_docs(cls)
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        flag = "--" + field.name.replace("_", "-")
        text = f"{docs[field.name]} [{shown_default(field)}]".replace("%", "%%")
        common = dict(dest=field.name, default=argparse.SUPPRESS, help=text)
        # (float, None) for `float | None`; of `str | int` the first type reads what is typed
        kinds = [hints[field.name]]
        if get_origin(kinds[0]) in (typing.Union, types.UnionType):
            kinds = get_args(kinds[0])
        kind = kinds[0]
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
    """Return the string literal under each field of a dataclass, by field name, base classes included."""
    docs = {}
    # Python keeps no docstrings of fields: they are only in the source. Subclasses come last, to override their bases.
    for base in reversed(cls.__mro__[:-1]):
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body
        for field, doc in zip(body, body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(doc, ast.Expr):
                docs[field.target.id] = inspect.cleandoc(doc.value.value)
    return docs


def shown_default(field: dataclasses.Field) -> object:
    """Return the default of a field as one would type it."""
    value = field.default
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    if value is None or value == []:
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    # A bundled file: its folder depends on where bertqa is installed.
    if isinstance(value, str) and os.path.isabs(value):
        path = Path(value)
        return f".../{path.parent.name}/{path.name}"
    return value


def or_none(read: Callable[[str], object]) -> Callable[[str], object]:
    """Return a function that reads "none" as None, and any other text by `read`."""
    return lambda text: None if text.lower() == "none" else read(text)


def whole_number(text: str) -> int:
    """Read a whole number, as 12 or 1e3, exactly. Digits are not read as a float, which rounds beyond 2^53."""
    try:
        return int(text)
    except ValueError:
        pass
    not_whole = argparse.ArgumentTypeError(f"{text[:40]!r} is not a whole number")
    try:
        value = float(text)
    except ValueError:
        raise not_whole from None
    if not value.is_integer():  # infinities and NaN too
        raise not_whole
    whole = int(value)
    # Above 2^53 not every whole number is a float, so this one may have been rounded.
    if abs(whole) > 2**53:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not exact; write all its digits")
    return whole


def number(text: str) -> float:
    """Read a decimal number."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a number") from None
