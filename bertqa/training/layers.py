"""Settings from several places, a later one before an earlier one: presets, files of settings, what was typed or called.

No torch here, nor argparse: `fine_tune` takes its settings by the same way as the command line.
"""

import dataclasses
import difflib
import os
import types
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from bertqa.console import say
from bertqa.errors import UserError
from bertqa.files import read_object, show
from bertqa.settings import RunSettings

PUBLISHED = dict(
    max_length=384,
    max_question=64,
    batch_size=12,
    lr=3e-5,
    epochs=2.0,
    clip=1.0,
    schedule="linear",
    attention_dropout=0.1,
)
"""What google-research/bert's run_squad and transformers' run_qa have in common."""
GOOGLE = dict(step=128, warmup=0.1, weight_decay=0.01, eps=1e-6, bias_correction=False)
HF = dict(overlap=128, warmup=0.0, weight_decay=0.0, eps=1e-8, bias_correction=True)
OURS = dict(batch_size=16, lr=1e-4, warmup=0.1, weight_decay=0.01, attention_dropout=0.0)

PRESETS = {
    "google": PUBLISHED | GOOGLE,
    "hf": PUBLISHED | HF,
    "fast": dict(max_length=384, overlap=128, epochs=2.0) | OURS,
}
"""Settings of published rows, and ours for small encoders."""

REMOVED = {
    "keep_impossible": 1.0,
    "label_smoothing": 0.0,
    "patience": 0,
    "tensorboard": False,
    "tune_on": None,
}
"""Settings that earlier versions had, and the values at which they did nothing."""

OTHER_OF = {"overlap": "step", "step": "overlap"}
"""Two ways to say one thing: the one that is said last holds."""

WORDS = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
    types.NoneType: "null",
}


def preset_layer(preset: str, parts: dict[str, type]) -> dict:
    """The settings of a preset that this task has; says what they are."""
    known = owners(parts)
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
    if "settings" in saved:
        settings.pop("out", None)
    return settings


def without_removed(settings: dict, path: str | Path) -> dict:
    """The settings of an earlier version without those that are gone, which must have done nothing.

    Raises:
        UserError: naming those that did something.
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

    Raises:
        UserError: naming all names that do not exist and all values of the wrong type.
    """
    merged = stacked(layers)
    known = owners(parts)
    problems = unknown(merged, list(known))
    for part in parts.values():
        problems += mistyped(part, merged)
    if problems:
        raise UserError(f"{source}: {'; '.join(problems)}")
    chosen = {}
    for name, part in parts.items():
        own = {key: value for key, value in merged.items() if known[key] is part}
        chosen[name] = part(**own)
    return RunSettings(**chosen)


def stacked(layers: list[dict]) -> dict:
    """One layer of several. Overlap and step replace each other: a layer that gives one unsays the other below it."""
    merged: dict = {}
    for layer in layers:
        for name, other in OTHER_OF.items():
            if layer.get(name) is not None and layer.get(other) is None:
                merged.pop(other, None)
        merged |= layer
    return merged


def owners(parts: dict[str, type]) -> dict[str, type]:
    """The part that each setting belongs to, by the setting's name."""
    found = {}
    for part in parts.values():
        for field in dataclasses.fields(part):
            found[field.name] = part
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
    for name, kind in typing.get_type_hints(part).items():
        if name in values and not fits(values[name], kind):
            found.append(f"{name} is {show(values[name])}, it must be {in_words(kind)}")
    return found


def fits(value: object, kind) -> bool:
    """Whether a value is of a field's type; a whole number is also a number."""
    allowed = typing.get_args(kind) or (kind,)
    if typing.get_origin(kind) is list:
        return isinstance(value, list) and all(type(one) in allowed for one in value)
    if typing.get_origin(kind) is Literal:
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
    allowed = typing.get_args(kind) or (kind,)
    if typing.get_origin(kind) is list:
        return "a list of texts"
    if typing.get_origin(kind) is Literal:
        return f"one of {', '.join(allowed)}"
    return " or ".join(WORDS[choice] for choice in allowed)
