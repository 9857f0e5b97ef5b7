"""The reader of weights/, made by one command: teachers, their mean logits, a student, its threshold, its card.

    python tools/train_reader.py --out runs/reader                     all of it (a GPU: minutes; two CPU cores: days)
    python tools/train_reader.py --out runs/reader --max-minutes 5     what five minutes allow
    python tools/train_reader.py --out runs/try --quick                a few hundred questions, two minutes on two cores

Stopped, the same command goes on. What it does, in order:

1. Articles are held out of the training data, by seed, among those that have questions without an answer (where there are
   any), as every article of SQuAD 2.0's dev set has them. They choose: threshold, calibration, which model is kept.
2. Teachers: the plain recipe with several seeds. Their time decides how many there are and how many epochs the student
   has, before it starts, so that everything ends within --max-minutes: never a student that is half trained.
3. With --middle, a generation of that many students of few epochs, which learn from the mean of the teachers' logits
   (bertqa/training/distillation.py). Where there is no time for it, there is none.
4. The student learns from the mean of that generation, or of the teachers. With --swaps and --edits all students also
   learn what their teachers say about new pairs of question and paragraph (tools/new_pairs.py).
5. The best on the held-out articles is rounded to float16, its threshold is tuned on them, and it is measured on the
   dev sets, which choose nothing.

Left in --out: reader/ (the model folder with its card), results.json, results.md, split.json, data/, a run folder for each
training.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from planning import Cost, count_middle, count_teachers
from reader_card import lineage, reader_card
from results import Results, Row
from split_articles import LOGGED, split_data
from trainings import Bench, Training, open_bench, say

from bertqa.data.download import locate
from bertqa.files import read_json, write_json
from bertqa.flags import run_verb
from bertqa.inference import calibrate
from bertqa.model import folder
from bertqa.model.heads import Ensemble
from bertqa.model.record import WINDOWS_FOR_RANGES

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
    add("--middle", type=int, default=0, help="students that teach the student [%(default)s]")
    add("--middle-epochs", type=int, default=5, help="[%(default)s]")
    add("--swaps", type=float, default=0, help="pairs with another paragraph, a question [0]")
    add("--edits", type=float, default=0, help="pairs with another word, a question [0]")
    add("--epochs", type=int, default=18, help="of the student [%(default)s]")
    add("--lr", default="4e-4", help="of all students [%(default)s]")
    add("--dropout", default="none", help="of all students; none = as the weights say [none]")
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
        args.middle = min(args.middle, 2)
        args.middle_epochs = 1
        args.epochs = min(args.epochs, 2)
        args.batch_size = "16"
        args.ema = "0.5"  # a longer average of so few steps would be the weights of the start
    return args


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
    students = bench
    if split["new_pairs"]:
        students = bench.learning_from(str(out / "data" / "train-and-pairs.json"))
    results = Results(bench, "held out, tuned on it", {"split": split})
    generations = train_generations(args, bench, students, results, deadline)

    best = max(bench.done, key=lambda training: training.metrics["f1"])
    say(f"{best.name} is the best on the held-out articles")
    make_reader(args, bench, results, best)
    for name, members in generations.items():
        if len(members) > 1 and time.monotonic() < deadline:
            measure_ensemble(args, bench, results, name, members)
    print(results.table())
    return 0


def train_generations(
    args: argparse.Namespace, bench: Bench, students: Bench, results: Results, deadline: float
) -> dict[str, list[Training]]:
    """Teachers, perhaps a middle generation, the student. Returns those that taught, by what they are.

    Args:
        bench: where teachers are trained.
        students: where all others are.
    """
    growth = len(students.task.windows) / len(bench.task.windows)
    teachers = train_teachers(args, bench, results, deadline, growth)
    # The last teacher found everything compiled; so will the students.
    cost = Cost.of(teachers[-1], args.teacher_epochs, growth)
    middle = train_middle(args, students, results, deadline, teachers, cost)
    if middle:
        # Of windows like the student's: they need no more growth.
        cost = Cost.of(middle[-1], args.middle_epochs)
    train_student(args, students, middle or teachers, deadline, cost)
    results.write()
    return {"teachers": teachers, "students between": middle}


def train_teachers(
    args: argparse.Namespace, bench: Bench, results: Results, deadline: float, growth: float
) -> list[Training]:
    """The first teacher, and as many more as its time allows: decided once, a second sitting follows the first."""
    flags = ["--epochs", str(args.teacher_epochs), "--lr", args.teacher_lr]
    teachers = [bench.train("teacher0", *flags, "--seed", str(args.seed))]
    results.write()
    cost = Cost.of(teachers[0], args.teacher_epochs, growth)

    def fitting() -> int:
        left = deadline - time.monotonic()
        middle = args.middle * cost.taught(args.middle_epochs, args.teachers)
        recipe = (args.teachers, args.epochs, args.teacher_epochs, cost)
        if count_teachers(*recipe, left - middle) == args.teachers:
            return args.teachers
        # The middle generation is the first thing to go.
        return count_teachers(*recipe, left)

    count = decided(bench.out / "teachers.json", fitting if args.max_minutes else args.teachers)
    say(f"{count} teacher(s)")
    for number in range(1, count):
        seed = str(args.seed + number)
        teachers.append(bench.train(f"teacher{number}", *flags, "--seed", seed))
        results.write()
    return teachers


def train_middle(
    args: argparse.Namespace,
    bench: Bench,
    results: Results,
    deadline: float,
    teachers: list[Training],
    cost: Cost,
) -> list[Training]:
    """The students that learn from the teachers and teach the last one: as many as there is time for."""

    def fitting() -> int:
        left = deadline - time.monotonic()
        return count_middle(args.middle, args.epochs, args.middle_epochs, cost, left, len(teachers))

    count = decided(bench.out / "middle.json", fitting if args.max_minutes else args.middle)
    if args.middle:
        say(f"{count} student(s) between teachers and student")
    middle = []
    for number in range(count):
        flags = ["--epochs", str(args.middle_epochs), "--seed", str(args.seed + 20 + number)]
        flags += student_flags(args)
        middle.append(bench.train(f"middle{number}", *flags, teachers=teachers))
        results.write()
    return middle


def train_student(
    args: argparse.Namespace, bench: Bench, teachers: list[Training], deadline: float, cost: Cost
) -> None:
    """The student, of as many epochs as there is time for."""

    def fitting() -> int:
        most = cost.student(deadline - time.monotonic(), len(teachers))
        return max(1, min(args.epochs, most))

    epochs = decided(bench.out / "epochs.json", fitting if args.max_minutes else args.epochs)
    say(f"a student of {epochs} epochs")
    flags = ["--epochs", str(epochs), "--seed", str(args.seed + 10), *student_flags(args)]
    bench.train("student", *flags, teachers=teachers)


def student_flags(args: argparse.Namespace) -> list[str]:
    """What all students have in common."""
    flags = ["--lr", args.lr, "--dropout", args.dropout]
    return [*flags, "--temperature", args.temperature, "--teacher-weight", args.teacher_weight]


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
        calibrate(bench.out / "reader", bench.task.store, WINDOWS_FOR_RANGES, seed=0)

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
    args: argparse.Namespace,
    bench: Bench,
    results: Results,
    kind: str,
    members: list[Training],
) -> None:
    """What models are worth together: the mean of their logits, as a student learned it."""
    models = [folder.load(bench.model_of(one), device=bench.device) for one in members]
    ensemble = Ensemble(models).eval()
    name = f"ensemble of the {len(members)} {kind}"
    tuned = bench.tune(ensemble, bench.dtype)
    results.add(Row(name, "held out, tuned on it", len(bench.task.dev.examples), tuned.metrics))
    asked = bench.read("dev", locate(args.dev, "dev"), args.limit)
    results.measure(name, ensemble, asked, tuned.qa["null_threshold"], bench.dtype)


if __name__ == "__main__":
    raise SystemExit(run_verb(main))
