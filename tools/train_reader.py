"""The reader of weights/, made by one command: teachers, their mean logits, a student, its threshold, its card.

    python tools/train_reader.py --out runs/reader                     all of it (a GPU: minutes; two CPU cores: days)
    python tools/train_reader.py --out runs/reader --max-minutes 5     what five minutes allow
    python tools/train_reader.py --out runs/try --quick                a few hundred questions, two minutes on two cores

Stopped, the same command goes on. What it does, in order:

1. Articles are held out of the training data, by seed, among those that have questions without an answer (where there are
   any), as every article of SQuAD 2.0's dev set has them. They choose: threshold, calibration, which model is kept.
2. Teachers: the plain recipe with several seeds. Their time decides how many there are and how many epochs the student
   has, before it starts, so that everything ends within --max-minutes: never a student that is half trained.
3. The student learns from the mean of the teachers' logits (bertqa/training/distillation.py).
4. The best on the held-out articles is rounded to float16, its threshold is tuned on them, and it is measured on the
   dev sets, which choose nothing.

Left in --out: reader/ (the model folder with its card), results.json, results.md, split.json, data/, a run folder for each
training.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from reader_card import lineage, reader_card
from split_articles import LOGGED, split_data
from trainings import Bench, Results, Row, Training, open_bench, say

from bertqa.data.download import locate
from bertqa.files import read_json, write_json
from bertqa.flags import run_verb
from bertqa.model import folder
from bertqa.model.heads import Ensemble

OTHER = Path(__file__).resolve().parents[1] / "weights" / "out_of_domain.jsonl"
"""Questions about texts that are not Wikipedia: reported, they choose nothing."""


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python tools/train_reader.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--out", required=True, help="folder for everything")
    add("--train", default="squad2-train", help="questions to learn from [%(default)s]")
    add("--dev", default="squad2-dev", help="questions that measure the reader [%(default)s]")
    add("--dev1", help="SQuAD 1.1 dev, on which it always answers")
    add("--weights", default="sentence-transformers/all-MiniLM-L6-v2", help="start [%(default)s]")
    add("--device", default="auto")
    add("--precision", default="auto")
    add("--max-minutes", type=float, help="for everything; fewer epochs and teachers where needed")
    add("--max-length", type=int, default=384, help="tokens of a window [%(default)s]")
    add("--held-out", type=float, default=0.1, help="share of the articles [%(default)s]")
    add("--seed", type=int, default=0, help="of the split; others are counted from it [0]")
    add("--teachers", type=int, default=5, help="how many [%(default)s]")
    add("--teacher-epochs", type=int, default=2, help="[%(default)s]")
    add("--teacher-lr", default="3e-4", help="[%(default)s]")
    add("--epochs", type=int, default=18, help="of the student [%(default)s]")
    add("--lr", default="4e-4", help="of the student [%(default)s]")
    add("--batch-size", default="64", help="[%(default)s]")
    add("--warmup", default="0.06", help="[%(default)s]")
    add("--ema", default="0.999", help="[%(default)s]")
    add("--temperature", default="2", help="[%(default)s]")
    add("--teacher-weight", default="0.9", help="[%(default)s]")
    add("--limit", type=int, help="use N questions of each file only")
    add("--quick", action="store_true", help="a few hundred questions, one epoch: does it run?")
    args = parser.parse_args(argv)
    if args.quick:
        args.limit = args.limit or 200
        args.teachers = min(args.teachers, 2)
        args.teacher_epochs = 1
        args.epochs = min(args.epochs, 2)
        args.batch_size = "16"
        args.ema = "0.5"  # a longer average of so few steps would be the weights of the start
    return args


# ---- time ----


@dataclass(frozen=True)
class Cost:
    """Seconds that a training takes on this machine, with this data."""

    epoch: float
    fixed: float
    """What is not steps: loading, compiling, the evaluation, writing."""

    @classmethod
    def of(cls, training: Training, epochs: int) -> "Cost":
        """What a training of so many epochs has shown."""
        # Seconds are known to a tenth: a training of next to no steps may say 0.
        steps = max(training.steps_seconds, 0.05)
        return cls(steps / epochs, training.seconds - training.steps_seconds)

    @property
    def end(self) -> float:
        """What comes behind the student: measured on the held-out questions, and again on some three times as many."""
        return 3 * self.fixed

    def student(self, left: float, teachers: int) -> int:
        """The epochs that the student of so many teachers can have; they are asked first, each at a tenth of an epoch."""
        rest = left - self.end - self.fixed - 0.1 * teachers * self.epoch
        return int(rest / (1.05 * self.epoch))


def count_teachers(wanted: int, epochs: int, teacher_epochs: int, cost: Cost, left: float) -> int:
    """How many teachers there are, with the first one trained and `left` seconds to go.

    As many as wanted, if the student then still has twice a teacher's epochs (or all that it should have); else fewer. At
    20 s an epoch and 2 s fixed, three teachers of 3 epochs and a student of 6 need 2 x 62 + 6 + 128 + 6 = 264 s.
    """
    least = min(epochs, 2 * teacher_epochs)
    teacher = cost.fixed + teacher_epochs * cost.epoch
    for count in range(wanted, 1, -1):
        if cost.student(left - (count - 1) * teacher, count) >= least:
            return count
    return 1


# ---- the flow ----


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    deadline = time.monotonic() + 60 * (args.max_minutes or 1e9)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    split = split_data(args, out)
    articles = split["held_out_articles"]
    say(
        f"{split['train_questions']:,} questions to learn from, {split['held_out_questions']:,} of "
        f"{len(articles)} articles held out: {', '.join(articles)}"
    )
    train, held = str(out / "data" / "train.json"), str(out / "data" / "held-out.json")
    bench = open_bench(args, out, train, held, ["--ema", args.ema])
    results = Results(bench, "held out, tuned on it", {"split": split})
    teachers = train_teachers(args, bench, results, deadline)
    train_student(args, bench, teachers, deadline)
    results.write()

    best = max(bench.done, key=lambda training: training.metrics["f1"])
    say(f"{best.name} is the best on the held-out articles")
    make_reader(args, bench, results, best)
    if len(teachers) > 1 and time.monotonic() < deadline:
        measure_ensemble(args, bench, results, teachers)
    print(results.table())
    return 0


def train_teachers(
    args: argparse.Namespace, bench: Bench, results: Results, deadline: float
) -> list[Training]:
    """The first teacher, and as many more as its time allows: decided once, a second sitting follows the first."""
    flags = ["--epochs", str(args.teacher_epochs), "--lr", args.teacher_lr]
    teachers = [bench.train("teacher0", *flags, "--seed", str(args.seed))]
    results.write()
    cost = Cost.of(teachers[0], args.teacher_epochs)

    def fitting() -> int:
        left = deadline - time.monotonic()
        return count_teachers(args.teachers, args.epochs, args.teacher_epochs, cost, left)

    count = decided(bench.out / "teachers.json", fitting if args.max_minutes else args.teachers)
    say(f"{count} teacher(s)")
    for number in range(1, count):
        seed = str(args.seed + number)
        teachers.append(bench.train(f"teacher{number}", *flags, "--seed", seed))
        results.write()
    return teachers


def train_student(
    args: argparse.Namespace, bench: Bench, teachers: list[Training], deadline: float
) -> None:
    """The student, of as many epochs as there is time for."""

    def fitting() -> int:
        # The last teacher found everything compiled; so will the student.
        cost = Cost.of(teachers[-1], args.teacher_epochs)
        most = cost.student(deadline - time.monotonic(), len(teachers))
        return max(1, min(args.epochs, most))

    epochs = decided(bench.out / "epochs.json", fitting if args.max_minutes else args.epochs)
    say(f"a student of {epochs} epochs")
    flags = ["--epochs", str(epochs), "--lr", args.lr, "--seed", str(args.seed + 10)]
    flags += ["--temperature", args.temperature, "--teacher-weight", args.teacher_weight]
    bench.train("student", *flags, teachers=teachers)


def decided(note: Path, choose: Callable[[], int] | int) -> int:
    """What was decided in an earlier sitting, or is now."""
    if not note.exists():
        write_json(note, choose if isinstance(choose, int) else choose())
    return read_json(note)


def make_reader(args: argparse.Namespace, bench: Bench, results: Results, best: Training) -> None:
    """Round the best model to float16, tune its threshold on the held-out articles, measure it, write out/reader.

    In float32 products, as a CPU answers: what the card says is what people get.
    """
    source = bench.model_of(best)
    model = folder.load(source, device=bench.device)
    for parameter in model.parameters():
        parameter.data = parameter.data.half().float()
    held = bench.task.dev.examples
    tuned = bench.tune(model, torch.float32)
    results.add(Row("reader", "held out, tuned on it", len(held), tuned.metrics))
    threshold = tuned.qa["null_threshold"]

    def save() -> None:
        folder.save(
            bench.out / "reader",
            model,
            tokenizer_from=source,
            dtype=torch.float16,
            qa={**folder.read_qa(source), **tuned.qa},
            provenance=lineage(results, best),
            card=reader_card(results, best),
        )

    save()  # before anything else can go wrong
    logged = [example for example in held if example.title in LOGGED]
    if 0 < len(logged) < len(held):
        asked = bench.held_out("six held-out articles of the log", logged)
        results.measure("reader", model, asked, threshold, torch.float32)
    for name, asked in dev_sets(args, bench).items():
        at = None if name == "dev 1.1" else threshold
        results.measure("reader", model, asked, at, torch.float32)
    save()
    say(f"{bench.out / 'reader'} is written")


def dev_sets(args: argparse.Namespace, bench: Bench) -> dict:
    """The questions that measure and choose nothing."""
    found = {"dev": bench.read("dev", locate(args.dev, "dev"), args.limit)}
    if args.dev1:
        found["dev 1.1"] = bench.read("dev 1.1, always answering", Path(args.dev1), args.limit)
    if OTHER.exists():
        found["other"] = bench.read("questions about other kinds of text", OTHER)
    return found


def measure_ensemble(
    args: argparse.Namespace, bench: Bench, results: Results, teachers: list[Training]
) -> None:
    """What the teachers are worth together: the mean of their logits, as the student learned it."""
    members = [folder.load(bench.model_of(one), device=bench.device) for one in teachers]
    ensemble = Ensemble(members).eval()
    name = f"ensemble of the {len(members)} teachers"
    tuned = bench.tune(ensemble, bench.dtype)
    results.add(Row(name, "held out, tuned on it", len(bench.task.dev.examples), tuned.metrics))
    asked = bench.read("dev", locate(args.dev, "dev"), args.limit)
    results.measure(name, ensemble, asked, tuned.qa["null_threshold"], bench.dtype)


if __name__ == "__main__":
    raise SystemExit(run_verb(main))
