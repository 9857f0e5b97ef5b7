"""Command lines generated from dataclasses, and the wrapper that turns user errors into one line and an exit status.

A field of a settings dataclass becomes a flag: its name with dashes, its type, its default, and as help the string
literal under it in the source. So a setting is written down once, and `--help` can never drift from the code.
"""

import argparse
import ast
import dataclasses
import inspect
import json
import os
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path

from bertqa.errors import UserError

Main = Callable[[Sequence[str] | None], int]


def run_verb(main: Main) -> int:
    """Run `main(argv)` as a command: exit status 0 fine, 2 the user's mistake, 130 interrupted.

    Prints `error: ...` on stderr, without a traceback, for a UserError, for files that the system
    refuses, and where memory or the disk is full.
    """
    prepare_streams()
    try:
        return main(sys.argv[1:])
    except UserError as error:
        message = str(error)
    except BrokenPipeError:
        # The reader of our output (head, less) has gone: not an error, and nothing is left to say.
        sys.stderr.close()
        return 0
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        message = f"{error.strerror or error}{where}"
    except MemoryError:
        message = "the memory is full; give less at once, or close other programs"
    except RecursionError:
        message = "something in the input is nested too deeply for Python"
    except RuntimeError as error:
        message = full_disk(error)
        if not message:
            raise
    except KeyboardInterrupt:
        # behind the terminal's ^C
        print("\ninterrupted" if sys.stderr.isatty() else "interrupted", file=sys.stderr)
        return 130
    print(f"error: {message}", file=sys.stderr)
    return 2


def prepare_streams() -> None:
    """Make every answer printable, and a stream that is closed (`<&-`) look empty.

    Answers may hold characters that the encoding of stdout lacks, or half a surrogate pair. Into a
    pipe or a file goes UTF-8, whatever the locale says; a terminal shows what it lacks as \\u0141.
    """
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif not stream.isatty():
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
        else:
            stream.reconfigure(errors="backslashreplace")


def full_disk(error: RuntimeError) -> str:
    """What torch.save's error means where the disk is full; "" for any other error."""
    words = str(error)
    if "unexpected pos" in words or "failed writing file" in words:
        return f"a file could not be written whole: the disk is full? ({words.splitlines()[0]})"
    return ""


def field_docs(cls: type) -> dict[str, str]:
    """The string literal that stands under each field of a dataclass, by field name (base classes included)."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body
        for field, doc in zip(body, body[1:], strict=False):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(doc, ast.Expr)
                and isinstance(doc.value, ast.Constant)
            ):
                docs[field.target.id] = inspect.cleandoc(doc.value.value)
    return docs


def _plain_type(annotation) -> tuple[type, bool, tuple]:
    """(scalar type, may be None, choices) of a field's annotation: int, float | None, Literal["a", "b"], ..."""
    optional = False
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        kinds = [kind for kind in typing.get_args(annotation) if kind is not type(None)]
        optional, annotation = len(kinds) < len(typing.get_args(annotation)), kinds[0]
    if typing.get_origin(annotation) is typing.Literal:
        choices = typing.get_args(annotation)
        return type(choices[0]), optional, choices
    return annotation, optional, ()


def add_fields(parser: argparse.ArgumentParser, cls: type, title: str) -> None:
    """Add a flag for each field of the dataclass `cls`, as a group of the parser. Flags not given stay out of the result."""
    group, docs, hints = (
        parser.add_argument_group(title),
        field_docs(cls),
        typing.get_type_hints(cls),
    )
    for field in dataclasses.fields(cls):
        kind, optional, choices = _plain_type(hints[field.name])
        value = (
            field.default
            if field.default_factory is dataclasses.MISSING
            else field.default_factory()
        )
        shown = "none" if value is None else value
        options: dict = {
            "dest": field.name,
            "default": argparse.SUPPRESS,
            "help": f"{docs[field.name]} [{shown}]",
        }
        options["help"] = options["help"].replace("%", "%%")
        if kind is bool:
            options["action"] = argparse.BooleanOptionalAction
        else:
            parse = _number if kind in (int, float) else str
            options["type"] = (
                _or_none(parse(kind) if parse is _number else str)
                if optional
                else (parse(kind) if parse is _number else str)
            )
            options["metavar"] = (
                "{" + ",".join(choices) + "}" if choices else kind.__name__.upper()[:5]
            )
            if choices:
                options["choices"] = [*choices, None] if optional else choices
        group.add_argument("--" + field.name.replace("_", "-"), **options)


def _number(kind: type) -> Callable[[str], float]:
    def parse(text: str):
        try:
            value = float(text)
            if kind is int and value != int(value):
                raise ValueError
            return kind(value)
        except (ValueError, OverflowError):
            raise argparse.ArgumentTypeError(
                f"{text!r} is not a {'whole ' if kind is int else ''}number"
            ) from None

    return parse


def _or_none(parse: Callable) -> Callable:
    return lambda text: None if text.lower() == "none" else parse(text)


def merge(cls: type, *layers: dict, source: str = "settings"):
    """One `cls` from its defaults and the layers in order (a later one wins).

    Raises:
        UserError: for names that `cls` does not have; all of them are listed, with the nearest names that it has.
    """
    import difflib

    names = [field.name for field in dataclasses.fields(cls)]
    merged: dict = {}
    for layer in layers:
        merged.update(layer)
    unknown = [name for name in merged if name not in names]
    if unknown:
        hints = []
        for name in unknown:
            near = difflib.get_close_matches(name, names, n=1)
            hints.append(f"{name!r}" + (f" (did you mean {near[0]!r}?)" if near else ""))
        raise UserError(f"{source}: unknown {', '.join(hints)}; known are {', '.join(names)}")
    return cls(**merged)


def read_config_file(path: str | Path) -> dict:
    """A JSON object of settings. Raises UserError where the file is missing or not a JSON object."""
    try:
        settings = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{path}: there is no such settings file; give the path of a JSON file"
        ) from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(
            f"{path}: not a JSON file ({error}); settings are a JSON object {{setting: value}}"
        ) from None
    if not isinstance(settings, dict):
        raise UserError(
            f"{path}: holds a JSON {type(settings).__name__}, but settings are an object {{setting: value}}"
        )
    return settings
