"""What a run was asked for: defaults < preset < --config file < what was typed, or called. No torch here."""

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
"""What google-research/bert's run_squad and transformers' run_qa have in common."""
GOOGLE = dict(step=128, warmup=0.1, weight_decay=0.01, eps=1e-6, bias_correction=False)
HF = dict(overlap=128, warmup=0.0, weight_decay=0.0, eps=1e-8, bias_correction=True)
FAST = dict(max_length=384, overlap=128, epochs=2.0, batch_size=16, lr=1e-4)
FAST |= dict(warmup=0.1, weight_decay=0.01, attention_dropout=0.0)

PRESETS = {"google": PUBLISHED | GOOGLE, "hf": PUBLISHED | HF, "fast": FAST}
"""Settings of published rows, and ours for small encoders."""

REMOVED = {
    "keep_impossible": 1.0,
    "label_smoothing": 0.0,
    "patience": 0,
    "tensorboard": False,
    "tune_on": None,
}
"""Settings that earlier versions had, and the values at which they did nothing."""


@dataclass(frozen=True)
class Asked:
    """What the command line asks for."""

    settings: RunSettings
    resume: Path | None = None
    """The run folder to go on with."""
    typed: frozenset[str] = frozenset()
    """Names of the settings that the command line itself gave."""


def parse(argv: Sequence[str] | None) -> Asked:
    """The settings that a command line means.

    Raises UserError for settings that do not exist, have the wrong type or do not go with --resume.
    """
    # Two passes: the task, which may stand in a file, decides what flags there are.
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
    """The command line of these settings; what was not given stays out of its result."""
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
    """The task that a command line means, which decides what other flags there are."""
    early = argparse.ArgumentParser(prog=PROG, add_help=False, allow_abbrev=False)
    for name in ("--task", "--config", "--resume"):
        early.add_argument(name)
    given = early.parse_known_args(argv)[0]
    # What is typed comes before what a file says.
    file = config_of_run(given.resume) if given.resume else given.config
    if given.task or not file:
        return given.task or "qa"
    return settings_in(file).get("task", "qa")


def config_of_run(run: str) -> Path:
    """The config.json of a run folder, also where one of the model folders in it is named.

    Raises UserError where there is none.
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
    """Refuse settings that a resumed run cannot have otherwise than it had."""
    allowed = RESUMABLE | ENDS | MOVABLE
    extra = set(given) - allowed - {"resume"}
    if extra:
        raise UserError(
            "--resume goes on with the run's own settings; leave out "
            f"{', '.join(sorted(extra))} (only {', '.join(sorted(allowed))} can be given with it)"
        )


# ---- layers of settings ----


def preset_layer(preset: str, known: Iterable[str]) -> dict:
    """The settings of a preset that this task knows; says what they are."""
    layer = {name: value for name, value in PRESETS[preset].items() if name in known}
    said = ", ".join(f"{name} {value}" for name, value in layer.items())
    say(f"preset {preset}: {said}")
    return layer


def settings_in(path: str | Path) -> dict:
    """The settings in a JSON file of just them, or in a run folder's config.json; of that not its own run folder."""
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
    # A new run with an old one's settings needs a folder of its own.
    if "settings" in saved:
        settings.pop("out", None)
    return settings


def without_removed(settings: dict, path: str | Path) -> dict:
    """The settings of an earlier version without those that are gone, which must have done nothing.

    Raises UserError naming those that did something.
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
    """The settings that these layers give, a later one before an earlier one.

    Raises UserError naming all names that do not exist and all values of the wrong type.
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
    """One layer of several. Overlap and step replace each other: a layer that gives one unsays the other below it."""
    # {"step": 128, "lr": 1} below {"overlap": 64} is {"lr": 1, "overlap": 64}
    merged: dict = {}
    for layer in layers:
        for name, other in (("overlap", "step"), ("step", "overlap")):
            if layer.get(name) is not None and layer.get(other) is None:
                merged.pop(other, None)
        merged |= layer
    return merged


def owners(parts: dict[str, type]) -> dict[str, str]:
    """The name of the part that each setting belongs to, by the setting's name."""
    found = {}
    for name, part in parts.items():
        found |= dict.fromkeys(part.__dataclass_fields__, name)
    return found


def unknown(given: Iterable[str], known: list[str]) -> list[str]:
    """A phrase that names what is not known, with the nearest names that are; none where all is."""
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
    """Which of the values are not of the type of their field of a dataclass, one phrase each."""
    found = []
    for name, kind in get_type_hints(part).items():
        if name in values and not fits(values[name], kind):
            found.append(f"{name} is {show(values[name])}, it must be {in_words(kind)}")
    return found


def fits(value: object, kind) -> bool:
    """Whether a value is of a field's type; a whole number is also a number."""
    # type(), not isinstance: to Python True is a number.
    allowed = get_args(kind) or (kind,)
    if get_origin(kind) is list:
        return isinstance(value, list) and {type(one) for one in value} <= set(allowed)
    if get_origin(kind) is Literal:
        return value in allowed
    if type(value) is int and float in allowed:
        return abs(value) < 2**1000
    if type(value) is str and str in allowed:
        return can_name_a_file(value)
    return type(value) in allowed


def can_name_a_file(text: str) -> bool:
    """Whether the system would take it, as it takes all that is typed: no NUL, no half of a surrogate pair."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def in_words(kind) -> str:
    """A field's type for people."""
    allowed = get_args(kind) or (kind,)
    if get_origin(kind) is list:
        return "a list of texts"
    if get_origin(kind) is Literal:
        return f"one of {', '.join(allowed)}"
    words = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
    return " or ".join(words.get(choice, "null") for choice in allowed)
