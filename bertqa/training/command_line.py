"""What `python -m bertqa.train` was asked for: defaults < preset < --config file < command line. No torch here."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bertqa.errors import UserError
from bertqa.fields import add_fields
from bertqa.flags import CompactHelp, DocStride, VerbParser
from bertqa.settings import (
    ENDS,
    MOVABLE,
    RESUMABLE,
    ClassificationSettings,
    RunSettings,
    parts_of,
)
from bertqa.training.layers import PRESETS, preset_layer, settings_from, settings_in

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

    Raises:
        UserError: for settings that do not exist, have the wrong type or do not go with --resume.
    """
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
        layers.append(preset_layer(preset, parts))
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
    parser.add_argument(
        "--config", metavar="FILE", help="settings from a JSON file, or a run's config.json"
    )
    parser.add_argument(
        "--preset",
        metavar="NAME",
        choices=PRESETS,
        help="settings of a published recipe: google, hf or fast",
    )
    parser.add_argument(
        "--resume",
        metavar="RUN",
        help="go on with a run; --epochs, --max-steps: its end",
    )
    parser.add_argument("--doc-stride", action=DocStride, help=argparse.SUPPRESS)
    parser.add_argument("--model", dest="weights", help=argparse.SUPPRESS)  # as in other verbs
    for part in parts.values():
        add_fields(parser, part, part.__doc__.rstrip("."))
    return parser


def task_of(argv: Sequence[str] | None) -> str:
    """The task that a command line means, which decides what other flags there are."""
    early = argparse.ArgumentParser(prog=PROG, add_help=False, allow_abbrev=False)
    for name in ("--task", "--config", "--resume"):
        early.add_argument(name)
    given = early.parse_known_args(argv)[0]
    file = config_of_run(given.resume) if given.resume else given.config
    if given.task or not file:
        return given.task or "qa"
    return settings_in(file).get("task", "qa")


def config_of_run(run: str) -> Path:
    """The config.json of a run folder, also where one of the model folders in it is named.

    Raises:
        UserError: where there is none.
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
