"""The settings of a run from its command line, without torch: defaults < preset < --config file < flags."""

import argparse
import difflib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

from bertqa.console import say
from bertqa.errors import UserError, show
from bertqa.fields import add_fields
from bertqa.files import read_object
from bertqa.flags import CompactHelp, DocStride, VerbParser
from bertqa.settings import ENDS, MOVABLE, RESUMABLE, ClassificationSettings, RunSettings, parts_of

PROG = "python -m bertqa.train"

QUESTIONS_HELP = """example:
  python -m bertqa.train --train squad2 --dev squad2 --weights google-bert/bert-base-uncased \\
      --fresh-head --out runs/base

your own questions, one record of JSONL (no answer: []; ids may be left out), or the same as CSV:
  {"id": "1", "question": "Who kept it?", "context": "Agnes Holm kept it.",
   "answers": [{"text": "Agnes Holm", "answer_start": 0}]}

  id,question,context,answer_text,answer_start
  1,Who kept it?,Agnes Holm kept it.,Agnes Holm,0
"""
TEXTS_HELP = """example:
  python -m bertqa.train --task classify --train reviews.csv --epochs 6 --lr 1e-4

your own texts, one record of JSONL, or the same as CSV:
  {"text": "A kind and funny book.", "label": "good"}

  text,label
  A kind and funny book.,good
"""

PUBLISHED = dict(max_length=384, max_question=64, batch_size=12, lr=3e-5, epochs=2.0)
PUBLISHED |= dict(clip=1.0, schedule="linear", attention_dropout=0.1)
"""The settings that google-research/bert's run_squad and transformers' run_qa share."""
GOOGLE = dict(step=128, warmup=0.1, weight_decay=0.01, eps=1e-6, bias_correction=False)
HF = dict(overlap=128, warmup=0.0, weight_decay=0.0, eps=1e-8, bias_correction=True)
FAST = dict(max_length=384, overlap=128, epochs=2.0, batch_size=16, lr=1e-4)
FAST |= dict(warmup=0.1, weight_decay=0.01, attention_dropout=0.0)

PRESETS = {"google": PUBLISHED | GOOGLE, "hf": PUBLISHED | HF, "fast": FAST}
"""The recipes of published results (google, hf), and ours for small encoders (fast)."""

REMOVED = {
    "keep_impossible": 1.0,
    "label_smoothing": 0.0,
    "patience": 0,
    "tensorboard": False,
    "tune_on": None,
}
"""Settings of earlier versions, and the value at which each had no effect."""


@dataclass(frozen=True)
class Asked:
    """A parsed command line."""

    settings: RunSettings
    resume: Path | None = None
    """The run folder to resume; None for a new run."""
    typed: frozenset[str] = frozenset()
    """Names of the settings given as flags, not by a file or preset."""


def parse(argv: Sequence[str] | None) -> Asked:
    """Parse a command line; None = this process's own.

    Raises UserError for settings that do not exist, have the wrong type or cannot be given with --resume.
    """
    # The task decides which flags there are, and it may be set in a file; so it is looked up first.
    parts = parts_of(task_of(argv))
    given = vars(parser_of(parts).parse_args(argv))
    if "resume" in given:
        check_resume(given)
    config = given.pop("config", None)
    preset = given.pop("preset", None)
    resume = given.pop("resume", None)
    layers = []
    if resume:
        config = str(config_of_run(resume))
        resume = Path(config).parent
    if preset:
        layers.append(preset_layer(preset, owners(parts)))
    if config:
        layers.append(settings_in(config))
    layers.append(given)
    settings = settings_from(layers, parts, source=config or "command line")
    return Asked(settings, resume, frozenset(given))


def parser_of(parts: dict[str, type]) -> argparse.ArgumentParser:
    """Return a parser with a flag for each setting; its result has only the flags that were given."""
    parser = VerbParser(
        prog=PROG,
        usage=f"{PROG} [--flag value ...]",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        formatter_class=CompactHelp,
        description="Fine-tune a BERT for question answering, or with --task classify for text "
        "classification. Without arguments: the bundled reader on the bundled sample.",
        epilog=TEXTS_HELP if parts["data"] is ClassificationSettings else QUESTIONS_HELP,
    )
    add = parser.add_argument
    add("--config", metavar="FILE", help="settings from a JSON file, or a run's config.json")
    recipes = "settings of a published recipe: google, hf or fast"
    add("--preset", metavar="NAME", choices=PRESETS, help=recipes)
    add("--resume", metavar="RUN", help="go on with a run; --epochs, --max-steps: its end")
    add("--doc-stride", action=DocStride, help=argparse.SUPPRESS)
    add("--model", dest="weights", help=argparse.SUPPRESS)  # as in other verbs
    for part in parts.values():
        add_fields(parser, part, part.__doc__.rstrip("."))
    return parser


def task_of(argv: Sequence[str] | None) -> str:
    """Return the task that a command line asks for, by --task or by a file of settings."""
    early = argparse.ArgumentParser(prog=PROG, add_help=False, allow_abbrev=False)
    for name in ("--task", "--config", "--resume"):
        early.add_argument(name)
    given = early.parse_known_args(argv)[0]
    if given.task:
        return given.task
    file = config_of_run(given.resume) if given.resume else given.config
    if not file:
        return "qa"
    return settings_in(file).get("task", "qa")


def config_of_run(run: str) -> Path:
    """Return the path of a run's config.json; `run` may also be a model folder in it, such as its last/.

    Raises UserError if there is none.
    """
    path = Path(run) / "config.json"
    above = path.parent.parent / "config.json"
    if path.parent.name in ("best", "last", "previous") and above.exists():
        path = above
    if not path.exists():
        raise UserError(
            f"{run}: not the folder of a run, there is no config.json in it; --resume wants what "
            "--out named, or what the run said on its first lines"
        )
    return path


def check_resume(given: dict) -> None:
    """Raise UserError for settings that cannot be changed when a run is resumed."""
    allowed = RESUMABLE | ENDS | MOVABLE
    extra = set(given) - allowed - {"resume"}
    if extra:
        raise UserError(
            "--resume goes on with the run's own settings; leave out "
            f"{', '.join(sorted(extra))} (only {', '.join(sorted(allowed))} can be given with it)"
        )


# ---- layers of settings ----


def preset_layer(preset: str, known: Iterable[str]) -> dict:
    """Return the settings of a preset that this task has (`known`), and say what they are."""
    layer = {name: value for name, value in PRESETS[preset].items() if name in known}
    said = ", ".join(f"{name} {value}" for name, value in layer.items())
    say(f"preset {preset}: {said}")
    return layer


def settings_in(path: str | Path) -> dict:
    """Read settings from a JSON file, which may be a run's config.json; its run folder ("out") is left out."""
    try:
        saved = read_object(path)
    except UserError as error:
        raise UserError(f"{error}; settings are a JSON object {{setting: value}}") from None
    settings = saved.get("settings", saved)
    if not isinstance(settings, dict):
        raise UserError(
            f'{path}: its "settings" are {settings!r}, expected an object {{setting: value}}'
        )
    settings = without_removed(settings, path)
    # A new run with the settings of an old one needs its own folder.
    if "settings" in saved:
        settings.pop("out", None)
    return settings


def without_removed(settings: dict, path: str | Path) -> dict:
    """Return settings, perhaps of an earlier version, without those that no longer exist.

    Raises UserError if one of them had an effect.
    """
    gone = {name: settings[name] for name in REMOVED if name in settings}
    used = [f"{name} (it is {show(gone[name])})" for name in gone if gone[name] != REMOVED[name]]
    if used:
        raise UserError(
            f"{path}: this version has no setting {', '.join(used)} any more; go on with the "
            "version that made the file, or leave it out of a copy and start a new run"
        )
    return {name: value for name, value in settings.items() if name not in gone}


def settings_from(layers: list[dict], parts: dict[str, type], source: str) -> RunSettings:
    """Merge layers of settings, later ones overriding earlier ones; `parts` is what `settings.parts_of` returns.

    Raises UserError, beginning with `source`, that names all unknown settings and all values of the wrong type.
    """
    merged = stacked(layers)
    known = owners(parts)
    problems = unknown(merged, list(known))
    for part in parts.values():
        problems += mistyped(part, merged)
    if problems:
        raise UserError(f"{source}: {'; '.join(problems)}")
    chosen: dict[str, dict] = {name: {} for name in parts}
    for name, value in merged.items():
        chosen[known[name]][name] = value
    return RunSettings(**{name: parts[name](**chosen[name]) for name in parts})


def stacked(layers: list[dict]) -> dict:
    """Merge layers into one. Overlap and step exclude each other: a layer with one of them removes the other."""
    # {"step": 128, "lr": 1}, then {"overlap": 64}: {"lr": 1, "overlap": 64}
    merged: dict = {}
    for layer in layers:
        for name, other in (("overlap", "step"), ("step", "overlap")):
            if layer.get(name) is not None and layer.get(other) is None:
                merged.pop(other, None)
        merged |= layer
    return merged


def owners(parts: dict[str, type]) -> dict[str, str]:
    """Return for each setting, by name, the name of the part that it belongs to."""
    found = {}
    for name, part in parts.items():
        found |= dict.fromkeys(part.__dataclass_fields__, name)
    return found


def unknown(given: Iterable[str], known: list[str]) -> list[str]:
    """Return a phrase about names that are not `known`, with the nearest known ones; an empty list if all are known."""
    found = []
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            found.append(f"{name!r}{hint}")
    if not found:
        return []
    return [f"unknown {', '.join(found)}; known are {', '.join(known)}"]


def mistyped(part: type, values: dict) -> list[str]:
    """Return a phrase for each value that does not have the type of its field in the dataclass `part`."""
    found = []
    for name, kind in get_type_hints(part).items():
        if name in values and not fits(values[name], kind):
            found.append(f"{name} is {show(values[name])}, it must be {in_words(kind)}")
    return found


def fits(value: object, kind) -> bool:
    """Whether a value has a field's type; a whole number is also a number."""
    # type(), not isinstance, because True is an int.
    allowed = get_args(kind) or (kind,)
    if get_origin(kind) is list:
        return isinstance(value, list) and {type(one) for one in value} <= set(allowed)
    if get_origin(kind) is Literal:
        return value in allowed
    if type(value) is int and float in allowed:
        return abs(value) < 2**1000  # what a float can hold
    if type(value) is str and str in allowed:
        return can_name_a_file(value)
    return type(value) in allowed


def can_name_a_file(text: str) -> bool:
    """Whether the text can be a file name, as everything typed can: it has no NUL and no half of a surrogate pair."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def in_words(kind) -> str:
    """Return a field's type in words."""
    allowed = get_args(kind) or (kind,)
    if get_origin(kind) is list:
        return "a list of texts"
    if get_origin(kind) is Literal:
        return f"one of {', '.join(allowed)}"
    words = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
    return " or ".join(words.get(choice, "null") for choice in allowed)
