"""python -m bertqa.doctor FILE [OTHER]: what is wrong with a data set, and the best score that it allows.

That score is the ceiling, the score of a perfect model (qa/ceiling.py). qa/checkup.py counts, reporting/doctor_text.py
prints, data/writing.py writes what --fix repairs.
"""

import argparse
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path

from bertqa.data.examples import Dataset, Example, read_examples
from bertqa.data.tokenizer import WordPiece
from bertqa.data.windows import check_window_settings
from bertqa.data.writing import write_repaired
from bertqa.errors import UserError
from bertqa.files import same_file
from bertqa.flags import DocStride, VerbParser, run_verb, verb
from bertqa.folders import bundled_reader, model_of
from bertqa.model.record import read_qa
from bertqa.qa.checkup import examine
from bertqa.reporting.doctor_text import describe, fixed_line, marks_for, table

DEFAULTS = {"max_length": 384, "overlap": 128, "max_question": 64, "max_answer_length": 30}
"""In tokens."""

EXAMPLE = (
    "example: python -m bertqa.doctor train.json dev.json --weights my-model --fix train-fixed.json"
)
HELP = {
    "file": "questions, of any form that train reads, .gz or not; squad1, squad2 (the official dev files), squad2-train "
    "are fetched",
    "other": "data that FILE should not overlap with",
    "--json": "everything, as one JSON object",
    "--explain": "questions to list of each problem [5]",
    "--weights": "folder with a tokenizer [the bundled reader]",
    "--max-length": "tokens of a window [384]",
    "--overlap": "tokens that neighbouring windows share [128]",
    "--step": "or: tokens from one window's start to the next one's",
    "--max-question": "tokens after which questions are cut [64]",
    "--max-answer-length": "most tokens of an answer [30]",
    "--show": "print N random questions, answers and windows marked",
    "--id": "print these questions",
    "--seed": "of the random choice [0]",
    "--fix": "write SQuAD v2 JSON, .gz or not: offsets repaired, broken records left out, repeated ids made unique",
}


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = VerbParser(
        prog="python -m bertqa.doctor",
        description="What is wrong with a data set, and the best score that it allows.",
        epilog=EXAMPLE,
    )

    def add(group, name: str, *aliases: str, **options) -> None:
        group.add_argument(name, *aliases, help=HELP[name], **options)

    add(parser, "file", metavar="FILE", type=Path)
    add(parser, "other", metavar="OTHER", type=Path, nargs="?")
    add(parser, "--json", action="store_true")
    add(parser, "--explain", metavar="N", type=int, default=5)
    windows = parser.add_argument_group(
        "windows", "defaults are those of the model's qa.json, then these in brackets"
    )
    add(windows, "--weights", "--model", metavar="W", type=Path)
    for name in ("--max-length", "--overlap", "--step", "--max-question", "--max-answer-length"):
        add(windows, name, metavar="N", type=int)
    windows.add_argument("--doc-stride", action=DocStride, help=argparse.SUPPRESS)
    show = parser.add_argument_group("instead of the report")
    add(show, "--show", metavar="N", type=int)
    add(show, "--id", metavar="ID", nargs="+", action="extend")
    add(show, "--seed", metavar="S", type=int, default=0)
    add(parser, "--fix", metavar="OUT", type=Path)
    return parser.parse_args(argv)


@verb
def main(argv: Sequence[str] | None = None) -> int:
    """Report, show or repair; return the exit status, 0 also for data with faults."""
    args = parse_args(argv)
    check(args)
    folder = vocabulary_folder(args)
    settings = window_settings(args, folder)
    tokenizer = WordPiece.load(folder) if folder else None
    # gather: go on after a broken record, at which training would stop.
    data = read_examples(args.file, gather=True)
    other = read_examples(args.other, gather=True) if args.other else None
    fixed = write_repaired(data, args.fix) if args.fix else None

    if args.show is not None or args.id:
        if fixed:
            print(fixed_line(fixed), file=sys.stderr)
        chosen = named(data, args.id) if args.id else drawn(data, args.show, args.seed)
        for text in describe(chosen, tokenizer, settings, marks_for(sys.stdout)):
            print(text)
        return 0

    report = examine(data, other, tokenizer, settings)
    if fixed:
        report["fixed"] = fixed
    if args.json:
        print(json.dumps(report, indent=2))
    else:
        print("\n".join(table(report, max(args.explain, 0))))
    return 0


def check(args: argparse.Namespace) -> None:
    """Refuse invalid flags, before anything is read."""
    if args.json and (args.show is not None or args.id):
        raise UserError("--show and --id print text for people, not JSON; leave out --json")
    if args.show is not None and args.show < 1:
        raise UserError(f"--show {args.show}: give the number of questions to print, at least 1")
    for source in (args.file, args.other):
        if args.fix and source and same_file(args.fix, source):
            raise UserError(f"--fix {args.fix} would overwrite {source}; give another name")


def vocabulary_folder(args: argparse.Namespace) -> Path | None:
    """Return the model folder, which has the tokenizer and window settings; None if there is none."""
    if args.weights:
        return model_of(args.weights)
    bundled = Path(bundled_reader())
    return bundled if bundled.is_dir() else None


def window_settings(args: argparse.Namespace, folder: Path | None) -> dict:
    """Merge the window settings: DEFAULTS, then the model's qa.json, then the flags."""
    saved = read_qa(folder) if folder else {}
    given = {}
    for name in (*DEFAULTS, "step"):
        if getattr(args, name) is not None:
            given[name] = getattr(args, name)

    settings: dict = dict(DEFAULTS)
    for layer in (saved, given):
        for name in ("max_length", "max_question", "max_answer_length"):
            if name in layer:
                settings[name] = layer[name]
        # overlap and step are two ways to say the same thing, so one replaces the other.
        if layer.get("overlap") is not None or layer.get("step") is not None:
            settings["overlap"] = layer.get("overlap")
            settings["step"] = layer.get("step")
    settings = {name: value for name, value in settings.items() if value is not None}
    check_window_settings(
        settings["max_length"],
        settings.get("overlap"),
        settings.get("step"),
        settings["max_question"],
    )
    if settings["max_answer_length"] < 1:
        raise UserError(
            f"max_answer_length is {settings['max_answer_length']}; an answer needs at least 1 token"
        )
    return settings


def named(data: Dataset, ids: Sequence[str]) -> list[Example]:
    """Return the questions with these ids. Raises UserError for unknown ids."""
    by_id = {example.id: example for example in data.examples}
    unknown = [id for id in ids if id not in by_id]
    if unknown:
        raise UserError(
            f"{data.path}: has no question {', '.join(map(repr, unknown))}; ids are like "
            + ", ".join(map(repr, list(by_id)[:3]))
        )
    return [by_id[id] for id in ids]


def drawn(data: Dataset, count: int, seed: int) -> list[Example]:
    """Return random questions, in file order."""
    count = min(count, len(data.examples))
    rows = random.Random(seed).sample(range(len(data.examples)), count)
    return [data.examples[row] for row in sorted(rows)]


if __name__ == "__main__":
    raise SystemExit(run_verb(main))
