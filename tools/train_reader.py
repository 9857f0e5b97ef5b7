"""Make the reader of weights/ with one command: teachers, their mean logits, a student, its threshold, its card.

    python tools/train_reader.py --out runs/reader                     all of it (a GPU: minutes; two CPU cores: days)
    python tools/train_reader.py --out runs/reader --max-minutes 5     as much as fits into five minutes
    python tools/train_reader.py --out runs/reader --folds 5           teachers label only articles new to them
    python tools/train_reader.py --out runs/try --quick                a few hundred questions, two minutes on two cores

If it is stopped, the same command goes on. It does, in this order:

1. Hold out some articles of the training data, drawn by seed among those with unanswerable questions, as all articles of
   SQuAD 2.0's dev set have them. Threshold, calibration and the best model are chosen on them.
2. Train the teachers: the plain recipe with several seeds. With --max-minutes, the time of the first one decides how many
   there are and how many epochs the student gets, so that no training is cut short.
   With --folds K each is trained on K - 1 of K folds of the articles, and labels the windows of the fold that it has not
   seen (tools/folds.py): K teachers, or a multiple of K with --teachers, however little time there is.
3. With --middle N, train a generation of N students of few epochs, which learn from the mean of the teachers' logits
   (bertqa/training/distillation.py). It is left out where there is no time for it.
4. Train the student on the mean logits of that generation, or of the teachers. With --swaps and --edits all students also
   learn from new pairs of question and paragraph (tools/new_pairs.py), which the teachers label.
5. Round the model that is best on the held-out articles to float16, tune its threshold on them, and measure it on the dev
   sets, which choose nothing.

It leaves in --out: reader/ (the model folder with its card), results.json, results.md, split.json, data/, and a run folder
for each training.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from generations import Generations
from reader_card import lineage, reader_card
from results import Results
from split_articles import LOGGED, split_data
from trainings import Bench, Training, open_bench, say

from bertqa.data.download import locate
from bertqa.errors import UserError
from bertqa.flags import run_verb
from bertqa.inference import calibrate
from bertqa.model import folder
from bertqa.model.heads import Ensemble
from bertqa.model.record import WINDOWS_FOR_RANGES

OTHER = Path(__file__).resolve().parents[1] / "weights" / "out_of_domain.jsonl"
"""Questions about texts that are not Wikipedia; they are reported and choose nothing."""


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
    add("--teachers", type=int, help="how many [5; with --folds one a fold]")
    add("--folds", type=int, default=0, help="of articles; teachers label what is new to them [0]")
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
    add("--layer-decay", default="1", help="of all trainings [%(default)s]")
    add("--ema", default="0.999", help="[%(default)s]")
    add("--temperature", default="2", help="[%(default)s]")
    add("--teacher-weight", default="0.9", help="[%(default)s]")
    add("--limit", type=int, help="use N questions of each file only")
    add("--quick", action="store_true", help="a few hundred questions, one epoch: does it run?")
    args = parser.parse_args(argv)
    if args.teachers is None:
        args.teachers = args.folds or 5
    if args.folds and args.teachers % args.folds:
        raise UserError(
            f"--teachers {args.teachers}: with --folds {args.folds} give a multiple of {args.folds}"
        )
    if args.quick:
        args.limit = args.limit or 200
        args.teachers = min(args.teachers, 2)
        args.folds = min(args.folds, 2)
        args.teacher_epochs = 1
        args.middle = min(args.middle, 2)
        args.middle_epochs = 1
        args.epochs = min(args.epochs, 2)
        args.batch_size = "16"
        # Over so few steps a longer average would hardly leave the initial weights.
        args.ema = "0.5"
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
    train = str(out / "data" / "train.json")
    held = str(out / "data" / "held-out.json")
    shared = ["--ema", args.ema, "--layer-decay", args.layer_decay]
    bench = open_bench(args, out, train, held, shared)
    students = bench
    if split["new_pairs"]:
        students = bench.learning_from(str(out / "data" / "train-and-pairs.json"))
    results = Results(bench, {"split": split})
    teaching = Generations(args, bench, students, results, deadline).train()

    # Fold teachers were trained on a part of the questions only.
    candidates = [training for training in bench.done if not training.fold]
    best = max(candidates, key=lambda training: training.metrics["f1"])
    say(f"{best.name} is the best on the held-out articles")
    make_reader(args, bench, results, best)
    for name, members in teaching.items():
        if len(members) > 1 and time.monotonic() < deadline:
            measure_ensemble(args, bench, results, name, members)
    print(results.table())
    return 0


def make_reader(args: argparse.Namespace, bench: Bench, results: Results, best: Training) -> None:
    """Round the best model to float16, tune its threshold on the held-out articles, measure it, write out/reader.

    It is measured in float32, as it answers on a CPU by default.
    """
    source = bench.model_of(best)
    model = folder.load(source, device=bench.device)
    for parameter in model.parameters():
        parameter.data = parameter.data.half().float()
    held = bench.task.dev.examples
    tuned = bench.tune(model, torch.float32)
    results.add(results.held_out("reader", tuned.metrics))
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
    calibrate(bench.out / "reader", bench.task.store, WINDOWS_FOR_RANGES, seed=0)
    say(f"{bench.out / 'reader'} is written")


def dev_sets(args: argparse.Namespace, bench: Bench) -> dict:
    """Return the questions that the reader is measured on, and that choose nothing."""
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
    """Measure the mean of several models' logits."""
    models = [folder.load(bench.model_of(one), device=bench.device) for one in members]
    ensemble = Ensemble(models).eval()
    name = f"ensemble of the {len(members)} {kind}"
    tuned = bench.tune(ensemble, bench.dtype)
    results.add(results.held_out(name, tuned.metrics))
    asked = bench.read("dev", locate(args.dev, "dev"), args.limit)
    results.measure(name, ensemble, asked, tuned.qa["null_threshold"], bench.dtype)


if __name__ == "__main__":
    raise SystemExit(run_verb(main))
