"""Measure what each part of a recipe is worth: a training for every row and seed on the same data, one table.

    python tools/ablation.py --out runs/ablation --train squad2-train-8k.json.gz --dev squad2-dev-2k.json.gz
    python tools/ablation.py --out runs/ablation --rows ema,ensemble --seeds 0,1,2     plain against taught, the same steps
    python tools/ablation.py --out runs/ablation --rows ema,ensemble --rows long,swaps      the first rows first, all seeds

Teachers are trainings of another row with other seeds (10, 11, 12), so no student learns from its own answers. As in
weights/EXPERIMENTS.md, F1 is at the threshold tuned on the same dev questions, and at 0. A difference is that of the means
over the seeds that both rows have, with a 95 % bootstrap interval over questions.

Finished trainings are kept: if it is stopped, the same command goes on. With --max-minutes no training is started that
would end too late. ablation.md, written after every training, has the table and the command of each row.
"""

import argparse
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from new_pairs import new_pairs
from results import markdown
from split_articles import write_squad
from trainings import Bench, Training, open_bench, say

from bertqa.errors import UserError
from bertqa.files import read_object, write_text
from bertqa.flags import run_verb
from bertqa.model.card import without_folders
from bertqa.qa.metrics import score_answers
from bertqa.qa.thresholds import bootstrap


@dataclass(frozen=True)
class Recipe:
    """How a row of the table is trained."""

    about: str
    flags: tuple[str, ...] = ()
    against: str = ""
    """The row to compare it with."""
    teachers: int = 0
    taught_by: str = "ema"
    """The row whose trainings with TEACHER_SEEDS are the teachers."""
    swaps: float = 0
    edits: float = 0
    """New pairs for each question (new_pairs.py); teachers are trained without."""


EMA = ("--ema", "0.99")
"""Averages some hundred steps; with 0.999 a fifth of the average would still be initial weights after 1,500 steps."""

LONG = (*EMA, "--epochs", "9")
"""Soft labels allow more epochs than the right answers alone, which are soon learned by heart."""

AS_LONG = (*EMA, "--epochs", "6")
"""As many windows as LONG in fewer epochs, where half of the questions have a new pair."""

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
    "second": Recipe("three of row ensemble as teachers", EMA, "ensemble", 3, "ensemble"),
    "negatives": Recipe("average, swaps as plain negatives", EMA, "ema", swaps=0.5),
    "long": Recipe("three teachers, 9 epochs", LONG, "ensemble", 3),
    "dropout": Recipe("long, dropout 0", (*LONG, "--dropout", "0"), "long", 3),
    "swaps": Recipe("as long, other paragraphs", AS_LONG, "long", 3, swaps=0.5),
    "edits": Recipe("as long, other words", AS_LONG, "long", 3, edits=0.5),
    "early": Recipe("long, teachers of 2 epochs", LONG, "long", 3, "short"),
    "short": Recipe("average, 2 epochs", (*EMA, "--epochs", "2"), "ema"),
}
"""Name -> recipe; its flags come after those that all rows share."""

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
    add("--rows", action="append", help="which, with commas between; again: then these [all]")
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
    groups = [list(ROWS)]
    if args.rows:
        groups = [names.split(",") for names in args.rows]
    for group in groups:
        unknown = [name for name in group if name not in ROWS]
        if unknown:
            raise UserError(f"--rows: unknown {', '.join(unknown)}; known are {', '.join(ROWS)}")
    seeds = [int(seed) for seed in args.seeds.split(",")]
    deadline = time.monotonic() + 60 * (args.max_minutes or 1e9)
    # Of two equal flags the last one counts, so a row can override these.
    flags = ["--epochs", args.epochs, "--lr", args.lr]
    bench = open_bench(args, Path(args.out), args.train, args.dev, flags)
    made = Made(bench, deadline)
    for group in groups:
        # Seed by seed, so that one seed of all rows is complete before the next begins.
        for seed in seeds:
            for name in group:
                made.train(name, seed)
                write_text(bench.out / "ablation.md", f"{made.table()}\n\n{made.commands()}\n")
    print(made.table())
    return 0


class Made:
    """The trainings so far by row, and the table of them."""

    def __init__(self, bench: Bench, deadline: float):
        self.bench = bench
        self.deadline = deadline
        self.rows: dict[str, list[Training]] = {}
        self.with_pairs: dict[tuple[float, float], Bench] = {}
        self.differences: dict[tuple[str, int], str] = {}

    def train(self, row: str, seed: int) -> None:
        """Train this row with this seed, and its teachers before, unless there is too little time."""
        training = self._train(row, seed)
        if training is not None:
            self.rows.setdefault(row, []).append(training)

    def _train(self, row: str, seed: int) -> Training | None:
        recipe = ROWS[row]
        name = f"{row}-{seed}"
        for training in self.bench.done:
            if training.name == name:
                return training
        teachers = []
        for number in TEACHER_SEEDS[: recipe.teachers]:
            teacher = self._train(recipe.taught_by, number)
            if teacher is None:
                return None
            teachers.append(teacher)
        if time.monotonic() + self._longest(row) > self.deadline:
            say(f"{name}: no time left for it")
            return None
        bench = self._bench(recipe)
        return bench.train(name, *recipe.flags, "--seed", str(seed), teachers=teachers)

    def _longest(self, row: str) -> float:
        """Return the most seconds that a training of this row took, or of any row where it has none yet."""
        done = self.bench.done
        if len(done) > 1:
            done = done[1:]  # the first one of all also compiled, which takes longer
        of_row = [training for training in done if training.name.startswith(f"{row}-")]
        return max((training.seconds for training in of_row or done), default=0.0)

    def _bench(self, recipe: Recipe) -> Bench:
        """Return the bench of a row; one with new pairs is made once."""
        shares = (recipe.swaps, recipe.edits)
        if not any(shares):
            return self.bench
        if shares not in self.with_pairs:
            known = self.bench.task.train.trainable()
            path = self.bench.out / f"train-swaps-{recipe.swaps}-edits-{recipe.edits}.json"
            write_squad(path, known + new_pairs(known, *shares, seed=0))
            self.with_pairs[shares] = self.bench.learning_from(str(path))
        return self.with_pairs[shares]

    def commands(self) -> str:
        """Return the command of each row's first training as Markdown."""
        lines = []
        for row, trainings in self.rows.items():
            words = shlex.split(trainings[0].command)
            lines.append(f"- {row}: `{shlex.join(map(without_folders, words))}`")
        return "\n".join(lines)

    def table(self) -> str:
        """Return the rows as Markdown, means over the seeds."""
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
        """Return the gain in F1 over the row to compare with, and its interval, over the seeds that both have."""
        other = ROWS[row].against
        count = min(len(self.rows[row]), len(self.rows.get(other, [])))
        if not count:
            return ""
        # Kept, as a bootstrap takes a second and the whole table is written after every training.
        if (row, count) not in self.differences:
            gain = self._f1(row, count) - self._f1(other, count)  # (Q,)
            low, high = 100 * bootstrap(gain[:, None], resamples=10000)[0]
            line = f"{100 * gain.mean():+.2f} [{low:+.2f}, {high:+.2f}] over {other}"
            self.differences[row, count] = line
        return self.differences[row, count]

    def _f1(self, row: str, count: int) -> np.ndarray:
        """Return (Q,) the F1 of each question, averaged over the first `count` seeds."""
        examples = self.bench.task.dev.examples
        found = []
        for training in self.rows[row][:count]:
            given = read_object(self.bench.out / training.name / "predictions.json")
            found.append(score_answers(examples, given).f1)
        return np.mean(found, axis=0)


def spread(values: list[float]) -> str:
    """Return the mean, with the standard deviation where there are several."""
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}"


if __name__ == "__main__":
    raise SystemExit(run_verb(main))
