"""What each part of a recipe is worth: the same data, a training for every row and seed, one table.

    python tools/ablation.py --out runs/ablation --train squad2-train-8k.json.gz --dev squad2-dev-2k.json.gz
    python tools/ablation.py --out runs/ablation --rows ema,ensemble --seeds 0,1,2     plain against taught, the same steps

Teachers are trainings of the row that their student is compared with, of other seeds (10, 11, 12), so no student has
seen its own answers. F1 is at the threshold tuned on the same dev questions, as in weights/EXPERIMENTS.md, and at 0; an
interval of 95 % is a bootstrap over questions of the difference to the row that is named, the mean over the seeds of both.

Every finished training is kept: stopped, the same command goes on. --max-minutes starts no training that would not end in
time, and prints what is there.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from trainings import Bench, Training, markdown, open_bench, say

from bertqa.errors import UserError
from bertqa.files import read_object, write_text
from bertqa.flags import run_verb
from bertqa.qa.metrics import score_answers
from bertqa.qa.thresholds import bootstrap


@dataclass(frozen=True)
class Recipe:
    """A row of the table."""

    about: str
    flags: tuple[str, ...] = ()
    against: str = ""
    """The row that it is compared with."""
    teachers: int = 0


EMA = ("--ema", "0.99")
"""Of the last hundred steps; 0.999 would still hold a fifth of the first weights after 1,500."""

ROWS = {
    "plain": Recipe("one epoch", ("--epochs", "1")),
    "epochs": Recipe("more epochs", (), "plain"),
    "ema": Recipe("and an average of the weights", EMA, "epochs"),
    "decay": Recipe("and layer decay 0.9", (*EMA, "--layer-decay", "0.9"), "ema"),
    "one": Recipe("average, one teacher", EMA, "ema", 1),
    "ensemble": Recipe("average, three teachers", EMA, "ema", 3),
    "t1": Recipe("the same at temperature 1", (*EMA, "--temperature", "1"), "ensemble", 3),
    "t4": Recipe("the same at temperature 4", (*EMA, "--temperature", "4"), "ensemble", 3),
    "soft": Recipe("the teachers alone", (*EMA, "--teacher-weight", "1"), "ensemble", 3),
}
"""Name -> recipe, on top of the flags that all rows have."""

TEACHERS = "ema"
"""The row whose trainings, with TEACHER_SEEDS, are the teachers."""

TEACHER_SEEDS = (10, 11, 12)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python tools/ablation.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--out", required=True, help="folder for everything")
    add("--train", default="squad2-train-8k.json.gz", help="[%(default)s]")
    add("--dev", default="squad2-dev-2k.json.gz", help="[%(default)s]")
    add("--weights", default="sentence-transformers/all-MiniLM-L6-v2", help="[%(default)s]")
    add("--rows", default=",".join(ROWS), help="which, with commas between them [%(default)s]")
    add("--seeds", default="0", help="of every row [%(default)s]")
    add("--epochs", default="3", help="of all rows but plain [%(default)s]")
    add("--lr", default="2e-4", help="[%(default)s]")
    add("--batch-size", default="16", help="[%(default)s]")
    add("--warmup", default="0.1", help="[%(default)s]")
    add("--max-length", type=int, default=384, help="[%(default)s]")
    add("--device", default="auto")
    add("--precision", default="auto")
    add("--max-minutes", type=float, help="for everything")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    names = args.rows.split(",")
    unknown = [name for name in names if name not in ROWS]
    if unknown:
        raise UserError(f"--rows: unknown {', '.join(unknown)}; known are {', '.join(ROWS)}")
    seeds = [int(seed) for seed in args.seeds.split(",")]
    deadline = time.monotonic() + 60 * (args.max_minutes or 1e9)
    # The last of two flags holds, so a row can have its own.
    flags = ["--epochs", args.epochs, "--lr", args.lr]
    bench = open_bench(args, Path(args.out), args.train, args.dev, flags)
    made = Made(bench, deadline)
    # Seeds outside, so that the table of one seed is whole before the next begins.
    for seed in seeds:
        for name in names:
            made.train(name, seed)
            write_text(bench.out / "ablation.md", made.table() + "\n")
    print(made.table())
    return 0


class Made:
    """The trainings so far, by row."""

    def __init__(self, bench: Bench, deadline: float):
        self.bench = bench
        self.deadline = deadline
        self.rows: dict[str, list[Training]] = {}

    def train(self, row: str, seed: int) -> None:
        """A training of this row, after the teachers that it needs; nothing where the time does not suffice."""
        teachers = []
        for number in TEACHER_SEEDS[: ROWS[row].teachers]:
            teacher = self._train(TEACHERS, number, [])
            if teacher is None:
                return
            teachers.append(teacher)
        training = self._train(row, seed, teachers)
        if training is not None:
            self.rows.setdefault(row, []).append(training)

    def _train(self, row: str, seed: int, teachers: list[Training]) -> Training | None:
        name = f"{row}-{seed}"
        for training in self.bench.done:
            if training.name == name:
                return training
        longest = max((training.seconds for training in self.bench.done), default=0.0)
        if time.monotonic() + longest > self.deadline:
            say(f"{name}: no time left for it")
            return None
        return self.bench.train(name, *ROWS[row].flags, "--seed", str(seed), teachers=teachers)

    def table(self) -> str:
        """All rows as Markdown, means over the seeds."""
        header = ["row", "what", "seeds", "F1 tuned", "F1 at 0", "HasAns F1", "NoAns F1"]
        header += ["difference in F1", "windows", "seconds"]
        lines = []
        for row, trainings in self.rows.items():
            cells = [row, ROWS[row].about, str(len(trainings))]
            for metric in ("f1", "f1_at_zero", "HasAns_f1", "NoAns_f1"):
                cells.append(spread([training.metrics[metric] for training in trainings]))
            cells.append(self.difference(row))
            cells.append(f"{trainings[0].windows:,}")
            cells.append(f"{np.mean([training.seconds for training in trainings]):.0f}")
            lines.append(cells)
        return markdown(header, lines)

    def difference(self, row: str) -> str:
        """The gain of a row over the one that it is compared with, over the seeds that both have, with its interval."""
        other = ROWS[row].against
        count = min(len(self.rows[row]), len(self.rows.get(other, [])))
        if not count:
            return ""
        gain = self._f1(row, count) - self._f1(other, count)  # (Q,)
        low, high = 100 * bootstrap(gain[:, None], resamples=10000)[0]
        return f"{100 * gain.mean():+.2f} [{low:+.2f}, {high:+.2f}] over {other}"

    def _f1(self, row: str, count: int) -> np.ndarray:
        """(Q,) F1 of each question, the mean over the first `count` seeds."""
        examples = self.bench.task.dev.examples
        found = []
        for training in self.rows[row][:count]:
            given = read_object(self.bench.out / training.name / "predictions.json")
            found.append(score_answers(examples, given).f1)
        return np.mean(found, axis=0)


def spread(values: list[float]) -> str:
    """The mean, and the standard deviation where there are several."""
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}"


if __name__ == "__main__":
    raise SystemExit(run_verb(main))
