"""Command lines generated from dataclasses, and the wrapper that turns user errors into one line
and an exit status.

A field of a settings dataclass becomes a flag: its name with dashes, its type, its default, and as
help the string literal under it in the source. So a setting is written down once, and `--help` can
never drift from the code.
"""

import argparse
import ast
import dataclasses
import difflib
import inspect
import os
import sys
import textwrap
import types
import typing
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from bertqa.console import prepare_streams
from bertqa.errors import UserError

Main = Callable[[Sequence[str] | None], int]

OTHER_NAMES = {
    "adam-epsilon": "--eps",
    "bf16": "--precision bf16",
    "dataset-name": "--train squad1 or --train squad2",
    "do-lower-case": "not needed: the vocabulary's own files say it",
    "eval-steps": "--eval-every",
    "fp16": "--precision fp16",
    "gradient-accumulation-steps": "not needed: --batch-size is an optimizer step's, --micro-tokens what fits at once",
    "init-checkpoint": "--weights",
    "learning-rate": "--lr",
    "lr-scheduler-type": "--schedule",
    "max-eval-samples": "--limit-dev",
    "max-grad-norm": "--clip",
    "max-query-length": "--max-question",
    "max-seq-length": "--max-length",
    "max-train-samples": "--limit-train",
    "model-name-or-path": "--weights in training, --model elsewhere",
    "null-score-diff-threshold": "--threshold",
    "num-train-epochs": "--epochs",
    "output-dir": "--out",
    "pad-to-max-length": "not needed: nothing is padded",
    "per-device-eval-batch-size": "not needed: --micro-tokens bounds it",
    "per-device-train-batch-size": "--batch-size, which counts over all devices",
    "predict-file": "--dev in training, --data in predict",
    "save-steps": "--save-every 500steps",
    "train-batch-size": "--batch-size",
    "train-file": "--train",
    "validation-file": "--dev",
    "version-2-with-negative": "not needed: the data tell",
    "vocab-file": "not needed: the vocabulary stands beside the weights",
    "warmup-proportion": "--warmup",
    "warmup-ratio": "--warmup",
    "warmup-steps": "--warmup, a share of the steps below 1, a number of them above",
}
"""What flags are called in run_qa.py and run_squad.py, and what they are here."""


def run_verb(main: Main) -> int:
    """Run `main(argv)` as a command: exit status 0 fine, 2 the user's mistake, 130 interrupted.

    Prints `error: ...` on stderr, without a traceback, for a UserError, for files that the system
    refuses, and where memory or the disk is full.
    """
    prepare_streams()
    warnings.formatwarning = lambda message, *where: f"warning: {message}\n"
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


def full_disk(error: RuntimeError) -> str:
    """What torch.save's error means where the disk is full; "" for any other error."""
    words = str(error)
    if "unexpected pos" in words or "failed writing file" in words:
        return f"a file could not be written whole: the disk is full? ({words.splitlines()[0]})"
    return ""


class VerbParser(argparse.ArgumentParser):
    """A parser whose complaint about a flag that it does not know says what was probably meant.

    It prints one line, and not the whole usage before it.
    """

    def error(self, message: str):
        words = message.removeprefix("unrecognized arguments: ").split()
        if message.startswith("unrecognized arguments:"):
            message = "; ".join(
                map(self.explain, words[:1] + [w for w in words[1:] if w[:2] == "--"])
            )
        self.exit(2, f"error: {message} ({self.prog} --help lists what there is)\n")

    def explain(self, word: str) -> str:
        """What is wrong with a word that is no flag of this verb."""
        flag = word.partition("=")[0]
        plain = flag.lstrip("-").replace("_", "-")
        if not flag.startswith("-"):
            return f"{word!r} is not expected here"
        known = [name for name in self._option_string_actions if name.startswith("--")]
        ours = OTHER_NAMES.get(plain, "")
        if ours.startswith("not needed: "):
            return f"{flag} is {ours}"
        if ours and ours.split()[0].rstrip(",") in known:
            return f"{flag} is {ours} here"
        near = difflib.get_close_matches("--" + plain, known, n=1)
        if near:
            return f"there is no {flag}; did you mean {near[0]}?"
        return f"there is no {flag}"


def field_docs(cls: type) -> dict[str, str]:
    """The string literal that stands under each field of a dataclass, by field name (base classes
    included).
    """
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


@dataclasses.dataclass(frozen=True)
class FieldType:
    """What a flag's value may be, from the annotation of its field: int, float | None, Literal["a",
    "b"], ...
    """

    kind: type
    optional: bool
    """Whether it may be None, typed as none."""
    choices: tuple = ()


def field_type(annotation) -> FieldType:
    """The type of a field for the command line."""
    optional = False
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        members = typing.get_args(annotation)
        optional = types.NoneType in members
        annotation = next(member for member in members if member is not types.NoneType)
    if typing.get_origin(annotation) is typing.Literal:
        choices = typing.get_args(annotation)
        return FieldType(type(choices[0]), optional, choices)
    return FieldType(annotation, optional)


class DocStride(argparse.Action):
    """`--doc-stride`, which asks for two things, depending on whom one has learned it from."""

    def __call__(self, parser, namespace, values, option_string=None):
        raise UserError(
            "--doc-stride means the step between windows in Google's script and their overlap in "
            "run_qa; say --step N or --overlap N"
        )


class CompactHelp(argparse.HelpFormatter):
    """Help in two columns that stand close, so that all flags of a verb fit on few screens."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=26)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if isinstance(action, argparse.BooleanOptionalAction):
            return "--[no-]" + action.option_strings[0].removeprefix("--")
        return super()._format_action_invocation(action)


def add_fields(parser: argparse.ArgumentParser, cls: type, title: str) -> None:
    """Add a flag for each field of the dataclass `cls`, as a group of the parser. Flags not given
    stay out of the result.
    """
    group = parser.add_argument_group(title)
    docs = field_docs(cls)
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        flag = "--" + field.name.replace("_", "-")
        what = field_type(hints[field.name])
        text = f"{docs[field.name]} [{shown_default(field)}]"
        common = dict(dest=field.name, default=argparse.SUPPRESS, help=text.replace("%", "%%"))
        if what.kind is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, **common)
            continue
        if typing.get_origin(what.kind) is list:
            group.add_argument(flag, nargs="*", metavar="TEXT", **common)
            continue
        choices = what.choices
        metavar = {int: "N", float: "X"}.get(what.kind, "TEXT")
        if choices and what.optional:
            choices = (*choices, None)
        group.add_argument(
            flag, type=value_reader(what), metavar=metavar, choices=choices or None, **common
        )


def shown_default(field: dataclasses.Field) -> object:
    """The default of a field as one would type it."""
    value = field.default
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    if value is None or value == []:
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, str) and os.path.isabs(value):
        path = Path(value)
        return f".../{path.parent.name}/{path.name}"
    return value


def value_reader(what: FieldType) -> Callable[[str], object]:
    """The function that makes a value of what was typed."""
    read = {int: whole_number, float: number}.get(what.kind, str)
    if not what.optional:
        return read
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
    if abs(whole) > 2**53:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not exact; write all its digits")
    return whole


def number(text: str) -> float:
    """A decimal number."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a number") from None
