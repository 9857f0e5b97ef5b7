"""The settings of a training run: its dataclasses, the presets, and how defaults, preset, file and command line make one.

Each dataclass becomes a group of flags (flags.py); `parse` is what `python -m bertqa.train` was asked for.
"""

import argparse
import dataclasses
import json
import sys
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bertqa.errors import UserError
from bertqa.flags import add_fields, merge, read_config_file

PACKAGE = Path(__file__).resolve().parent
SAMPLE = PACKAGE / "data" / "sample"


def bundled_reader() -> str:
    """The reader in the repository's weights/, seen from the working directory or from an editable install."""
    name = Path("weights") / "minilm-squad2"
    return str(name if name.is_dir() else PACKAGE.parent / name)


@dataclass(frozen=True)
class FileSettings:
    """What goes in and where it comes out."""

    train: str = str(SAMPLE / "train.json")
    """Questions to train on: SQuAD v1.1 or v2.0 JSON, flat records as JSON or JSONL, MRQA, CSV; .gz or not. squad1 and
    squad2 fetch the official train files."""
    dev: str = str(SAMPLE / "dev.json")
    """Questions to evaluate on, of any of these forms; squad1 and squad2 fetch the official dev files."""
    weights: str = dataclasses.field(default_factory=bundled_reader)
    """Where to start from: a model folder, a Hugging Face folder, or a Hub id."""
    out: str | None = None
    """Run folder to make; none = runs/ and the time."""
    fresh_head: bool = False
    """Draw the answer head at random: needed, and only allowed, where the weights have none."""
    task: Literal["qa", "classify"] = "qa"
    """What to learn: answers to questions, or classes of texts; `--task classify --help` shows the flags of that."""


@dataclass(frozen=True)
class LabelledFiles(FileSettings):
    """What goes in and where it comes out, for classification."""

    train: str = str(SAMPLE / "reviews.csv")
    """Texts with labels to train on: CSV, TSV or JSONL; .gz or not."""
    dev: str | None = None
    """Texts with labels to evaluate on, of any of these forms; none = a part of train, see --split."""
    fresh_head: bool = False
    """Draw the class head at random although the weights have one; without one it is drawn anyway."""


@dataclass(frozen=True)
class ModelSettings:
    """Changes to the encoder for training."""

    dropout: float | None = None
    """Dropout in the encoder; none = as the weights' config says."""
    attention_dropout: float = 0.0
    """Dropout of attention weights; 0 by default, because the fastest attention bodies have none."""
    recompute: bool = False
    """Compute the inside of each layer again for the backward pass instead of keeping it: much less memory, a third slower."""
    compile: bool = False
    """Let torch.compile fuse what stands between matrix products. Meant for GPUs; on two CPU cores it was 5-10 % slower."""

    def problems(self) -> list[str]:
        """Everything that is wrong with these values, one phrase each."""
        shares = {"dropout": self.dropout, "attention_dropout": self.attention_dropout}
        return [
            f"{name} is {value}, it must lie in [0, 1)"
            for name, value in shares.items()
            if value is not None and not 0 <= value < 1
        ]


def sections(task: str = "qa"):
    """The settings dataclasses that make up a run of this task, with the titles of their flags."""
    from bertqa.training.classification import ClassificationSettings
    from bertqa.training.loop import LoopSettings
    from bertqa.training.optim import OptimSettings
    from bertqa.training.question_answering import QuestionAnsweringSettings

    own = (
        {"files": LabelledFiles, "texts and classes": ClassificationSettings}
        if task == "classify"
        else {"files": FileSettings, "windows and answers": QuestionAnsweringSettings}
    )
    return {**own, "model": ModelSettings, "optimizer": OptimSettings, "loop": LoopSettings}


PRESETS = {
    "google": dict(
        max_length=384,
        step=128,
        max_question=64,
        batch_size=12,
        lr=3e-5,
        epochs=2.0,
        warmup=0.1,
        weight_decay=0.01,
        clip=1.0,
        eps=1e-6,
        bias_correction=False,
        schedule="linear",
        attention_dropout=0.1,
    ),
    "hf": dict(
        max_length=384,
        overlap=128,
        max_question=64,
        batch_size=12,
        lr=3e-5,
        epochs=2.0,
        warmup=0.0,
        weight_decay=0.0,
        clip=1.0,
        eps=1e-8,
        bias_correction=True,
        schedule="linear",
        attention_dropout=0.1,
    ),
    "fast": dict(
        max_length=384,
        overlap=128,
        batch_size=16,
        lr=1e-4,
        epochs=2.0,
        warmup=0.1,
        weight_decay=0.01,
        attention_dropout=0.0,
    ),
}
"""Settings of published rows: google-research/bert's run_squad, transformers' run_qa, and ours for small encoders."""


RESUMABLE = {"max_minutes", "device", "threads", "save_every", "tensorboard"}
"""Settings that a resumed run may have otherwise than the run had: none of them is part of its result."""

ENDS = {"epochs", "max_steps"}
"""Settings by which --resume moves the end of a run; its config.json says at which step that was."""


def lasting(chosen: dict) -> dict:
    """The settings that must not change over a run's life; its files have fingerprints of their own."""
    others = {title: part for title, part in chosen.items() if title != "files"}
    return {
        name: value for name, value in settings_of(others).items() if name not in RESUMABLE | ENDS
    }


def task_of(argv: Sequence[str] | None) -> str:
    """The task that a command line means, which decides what other flags there are."""
    early = argparse.ArgumentParser(
        prog="python -m bertqa.train", add_help=False, allow_abbrev=False
    )
    for name in ("--task", "--config", "--resume"):
        early.add_argument(name)
    given = early.parse_known_args(argv)[0]
    path = Path(given.resume) / "config.json" if given.resume else given.config
    if given.resume and not path.exists():
        raise UserError(
            f"{given.resume}: not the folder of a run, there is no config.json in it; --resume wants what --out "
            "named, or what the run said on its first lines"
        )
    return given.task or (settings_in(path) if path else {}).get("task", "qa")


def settings_in(path: str | Path) -> dict:
    """The settings in a JSON file of just them, or in a run folder's config.json; of that not its own run folder."""
    saved = read_config_file(path)
    settings = saved.get("settings", saved)
    if not isinstance(settings, dict):
        raise UserError(
            f'{path}: its "settings" are {settings!r}, expected an object {{setting: value}}'
        )
    return {name: value for name, value in settings.items() if settings is saved or name != "out"}


def mistyped(part: type, values: dict) -> list[str]:
    """Which of the values are not of the type of their field of a dataclass, one phrase each."""
    found, words = (
        [],
        {
            int: "a whole number",
            float: "a number",
            str: "a text",
            bool: "true or false",
            types.NoneType: "null",
        },
    )
    for name, kind in typing.get_type_hints(part).items():
        allowed, value = typing.get_args(kind) or (kind,), values.get(name)
        one_of = typing.get_origin(kind) is Literal
        fits = (
            value in allowed
            if one_of
            else type(value) in allowed or type(value) is int and float in allowed
        )
        if name in values and not fits:
            choices = (
                ", ".join(allowed) if one_of else " or ".join(words[choice] for choice in allowed)
            )
            found.append(f"{name} is {json.dumps(value)}, it must be {'one of ' * one_of}{choices}")
    return found


def parse(argv: Sequence[str] | None):
    """(settings by section, resume folder or None) from defaults < preset < --config file < command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bertqa.train",
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Fine-tune a BERT for question answering, or with --task classify for text classification. Without "
        "arguments: the bundled reader on the bundled sample.",
        epilog="example: python -m bertqa.train --train squad2 --dev squad2 --weights google-bert/"
        "bert-base-uncased --fresh-head --epochs 2 --out runs/base",
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="settings from a JSON file, such as a run folder's config.json",
    )
    parser.add_argument(
        "--preset", choices=PRESETS, help="settings of a published recipe; prints what they are"
    )
    parser.add_argument(
        "--resume",
        metavar="RUN",
        help="go on with a run folder, from its last checkpoint; "
        "--epochs or --max-steps move its end",
    )
    parser.add_argument("--doc-stride", dest="doc_stride", help=argparse.SUPPRESS)
    parts = sections(task_of(argv))
    for title, part in parts.items():
        add_fields(parser, part, title)
    given = {
        name: value
        for name, value in vars(parser.parse_args(argv)).items()
        if value is not None or name in ("overlap", "step")
    }
    if "doc_stride" in given:
        raise UserError(
            "--doc-stride means the step between windows in Google's script and their overlap in run_qa; "
            "say --step N or --overlap N"
        )
    config, preset, resume = (given.pop(name, None) for name in ("config", "preset", "resume"))
    if resume:
        allowed = RESUMABLE | ENDS
        extra = (
            set(given) - allowed
            | ({"config"} if config else set())
            | ({"preset"} if preset else set())
        )
        if extra:
            raise UserError(
                f"--resume goes on with the run's own settings; leave out {', '.join(sorted(extra))} "
                f"(only {', '.join(sorted(allowed))} can be given with it)"
            )
        config = str(Path(resume) / "config.json")
    owner = {field.name: part for part in parts.values() for field in dataclasses.fields(part)}
    layers = []
    if preset:
        layers.append({name: value for name, value in PRESETS[preset].items() if name in owner})
        print(
            f"preset {preset}: "
            + ", ".join(f"{name} {value}" for name, value in layers[0].items()),
            file=sys.stderr,
        )
    if config:
        layers.append(settings_in(config))
    layers.append(given)
    merged = {name: value for layer in layers for name, value in layer.items()}
    everything = dataclasses.make_dataclass("Settings", [(name, object, None) for name in owner])
    problems = [problem for part in parts.values() for problem in mistyped(part, merged)]
    try:
        merge(everything, merged, source=config or "command line")  # unknown names, all at once
    except UserError as error:
        raise UserError("; ".join([str(error), *problems])) from None
    if problems:
        raise UserError(f"{config}: {'; '.join(problems)}")
    chosen = {
        title: part(**{name: value for name, value in merged.items() if owner[name] is part})
        for title, part in parts.items()
    }
    return chosen, Path(resume) if resume else None


def settings_of(chosen: dict) -> dict:
    """Every setting of a run by its name."""
    return {
        name: value for part in chosen.values() for name, value in dataclasses.asdict(part).items()
    }
