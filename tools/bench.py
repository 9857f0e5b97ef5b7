"""Measure bertqa beside what people use, on this machine, and print one table.

    python tools/bench.py                                  the bundled reader and sample
    python tools/bench.py --data dev-v2.0.json             real questions
    python tools/bench.py --only training --windows 16,64  by windows in an optimizer step
    python tools/bench.py --only inference --precision fp32,bf16,int8 --models reader,BERT-base
    python tools/bench.py --device cuda                    three shapes with random weights, in bf16

The contestants (tools/contestants.py) take turns, so that a slow moment of the machine hits all of them; on a GPU, whose
memory does not hold all, one comes after the other. Times and ratios are medians over rounds; F1 is at the threshold that is
best for these logits on these questions.
"""

import argparse
import gc
import importlib.metadata
import itertools
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from contestants import CONTESTANTS, Work

from bertqa import BertConfig, BertForQuestionAnswering
from bertqa.console import say, silent
from bertqa.data.examples import read_examples
from bertqa.device import pick_device
from bertqa.errors import UserError
from bertqa.flags import run_verb, verb
from bertqa.model import folder
from bertqa.qa.evaluation import Evaluation
from bertqa.qa.spans import SpanDecoder
from bertqa.settings import SAMPLE, QuestionAnsweringSettings
from bertqa.training.question_answering import QuestionAnswering

ROOT = Path(__file__).resolve().parents[1]
READER = ROOT / "weights/minilm-squad2"
SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
SHAPES = {
    "MiniLM-L6": (384, 6, 12, 1536),
    "BERT-base": (768, 12, 12, 3072),
    "BERT-large": (1024, 24, 16, 4096),
}
"""Of models with random weights."""
FORMATS = ["fp32", "bf16", "int8"]
KNOWN = {"only": [*CONTESTANTS, "run"], "models": ["reader", *SHAPES], "precision": FORMATS}
"""The words of each flag that takes a list."""
ON_GPU = {"only": "training,inference,run", "models": ",".join(SHAPES), "precision": "bf16"}
ON_GPU |= {"windows": "16,64", "questions": 4096}


def take_turns(everyone: dict[str, Callable], rounds: int) -> dict[str, list[float]]:
    """Seconds of each contestant in each round; every other round goes backwards, so that nobody is always first."""
    seconds: dict[str, list[float]] = {who: [] for who in everyone}
    for number in range(rounds):
        for who in reversed(everyone) if number % 2 else everyone:
            begun = time.perf_counter()
            everyone[who]()
            seconds[who].append(time.perf_counter() - begun)
    return seconds


def measure(work: Work, task: str, rounds: int) -> list[dict[str, str]]:
    """Return the rows of a task, ours first."""
    groups = [list(CONTESTANTS[task])]
    # A GPU's memory does not hold all of them at once.
    if work.device.type == "cuda":
        groups = [[who] for who in CONTESTANTS[task]]
    amount = len(work.task.dev.examples)
    if task == "training":
        amount = work.steps * work.batch_size
    shortest = seconds_at_peak(work, task)
    rows = []
    ours: list[float] = []
    for names in groups:
        everyone = prepared(work, task, names)
        found = {who: one_round() for who, one_round in everyone.items()}  # warms up
        for who, seconds in take_turns(everyone, rounds).items():
            ours = ours or seconds
            row = new_row(work, task, who, seconds, amount)
            if work.format != "int8":  # its peak is not that of torch.mm
                row["MFU"] = f"{shortest / statistics.median(seconds):.0%}"
            ratios = [theirs / our for theirs, our in zip(seconds, ours, strict=True)]
            row["time, ours = 1"] = f"{statistics.median(ratios):.3g}"
            if task == "inference" and not work.label:
                row["F1"] = f"{f1_of(work, found[who]):.2f}"
            rows.append(row)
            say(" | ".join(row.values()))
        del everyone
        gc.collect()  # a step and its job refer to each other, and hold the GPU's memory
    return rows


def prepared(work: Work, task: str, names: list[str]) -> dict[str, Callable]:
    """Return the rounds of those contestants that can take part."""
    ready = {}
    for who in names:
        try:
            ready[who] = CONTESTANTS[task][who](work)
        except (UserError, ImportError) as reason:
            say(f"{task} in {work.format}: without {who}: {reason}")
    return ready


def new_row(work: Work, task: str, who: str, seconds: list[float], amount: int) -> dict[str, str]:
    """Return a row of the table; `amount` counts the questions of a round, in training its windows."""
    median = statistics.median(seconds)
    kind = f"{task}, {work.batch_size} windows a step" if task == "training" else task
    row = {"task": kind, "model": work.label or "reader", "format": work.format, "who": who}
    row |= {"seconds": f"{median:.3g}", "a second": f"{amount / median:,.1f}"}
    return {**row, "MFU": "", "time, ours = 1": "", "F1": ""}


def table(rows: list[dict[str, str]]) -> str:
    """Return the rows as Markdown."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def seconds_at_peak(work: Work, task: str) -> float:
    """Return the seconds of a round at the speed of plain matrix products; their share of the real time is the MFU."""
    size = 8192 if work.device.type == "cuda" else 2048
    square = torch.randn(size, size, device=work.device).to(work.dtype)

    def product():
        torch.mm(square, square)
        work.wait()

    peak = 2 * size**3 / min(take_turns({"": product}, 8)[""])
    say(f"{task} in {work.format}: plain matrix products reach {peak / 1e9:,.0f} GFLOP/s")
    if task == "inference":
        return operations(work.weights, work.task.dev_windows.lengths) / peak
    lengths = work.task.store.lengths[np.concatenate(work.batches())]
    return 3 * operations(work.weights, lengths) / peak  # a backward pass costs two forward passes


def operations(weights: Path, lengths: np.ndarray) -> float:
    """Return the FLOPs of a forward pass: two for each weight and token, and attention's two products of all token pairs."""
    config = folder.read_config(weights)["architecture"]
    hidden = config["hidden_size"]
    lengths = lengths.astype(float)
    weights_of_layer = 4 * hidden**2 + 2 * hidden * config["intermediate_size"]
    products = weights_of_layer * lengths.sum() + 2 * hidden * (lengths**2).sum()
    return 2 * config["num_hidden_layers"] * float(products)


def f1_of(work: Work, found: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> float:
    """Return the F1 in percent of a round's logits, at the threshold that is best for them."""
    windows = work.task.dev_windows
    decoder = SpanDecoder(windows)
    for rows, start, end in found:
        if start.ndim == 2:  # padded (S, L) to packed (N,)
            mask = np.arange(start.shape[1]) < windows.lengths[rows][:, None]
            start = start[mask]
            end = end[mask]
        decoder.add(rows, start, end)
    return Evaluation.of(decoder.finish(), windows, work.task.dev.examples, 0.0).metrics["f1"]


def whole_run(work: Work, data: str) -> dict[str, str]:
    """Time `python -m bertqa.train` from its start to its last line: an epoch, an evaluation, and all files."""
    file = Path(data).resolve()
    command = [sys.executable, "-m", "bertqa.train", "--train", file, "--dev", file, "--epochs", 1]
    command += ["--weights", work.weights, "--out", work.scratch / f"run-{work.format}"]
    command += ["--batch-size", work.batch_size, "--precision", work.format]
    command += ["--device", work.device, "--limit-dev", 10570]  # as many as dev-v1.1 has
    begun = time.perf_counter()
    subprocess.run(list(map(str, command)), check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    took = time.perf_counter() - begun
    return new_row(work, "run", "bertqa.train", [took], len(work.task.train.examples))


def with_model(work: Work, name: str) -> Work:
    """Return the work with the model that is named: the reader, or a shape with random weights."""
    if name == "reader":
        return work
    sizes = dict(zip(SIZES, SHAPES[name], strict=True))
    config = BertConfig(**sizes, attention_probs_dropout_prob=0.0)
    model = BertForQuestionAnswering(config)
    weights = work.scratch / name
    folder.save(weights, model, tokenizer_from=READER, provenance={"source": "random"})
    return replace(work, weights=weights, label=name)


def machine() -> str:
    """Return what the numbers were measured on: threads, GPU, processor, versions."""
    found = [f"{torch.get_num_threads()} threads"]
    if torch.cuda.is_available():
        found.append(torch.cuda.get_device_name())
    if sys.platform == "linux":
        found += re.findall(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())[:1]
    for package in importlib.metadata.distributions():
        if package.name in ("torch", "transformers", "onnxruntime", "openvino", "nncf"):
            found.append(f"{package.name} {package.version}")
    return ", ".join(found)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Parse the flags and split their lists. Raises UserError for a word that is not known."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", default=str(SAMPLE / "dev.json"), help="questions [the bundled sample]")
    add("--models", default="reader", help="reader, or shapes; with cuda the three shapes")
    add("--only", default="training,inference", help="tasks; with cuda run too")
    add("--precision", default="fp32", help="fp32, bf16, int8; with cuda bf16")
    add("--windows", default="16", help="in an optimizer step; with cuda 16,64")
    add("--questions", type=int, default=160, help="to answer in a round; with cuda 4096")
    add("--rounds", type=int, default=3, help="turns of each contestant")
    add("--device", default="cpu", choices=["cpu", "cuda"])
    args = parser.parse_args(argv)
    if args.device == "cuda":
        args = parser.parse_args(argv, argparse.Namespace(**ON_GPU))
    for name, known in KNOWN.items():
        words = getattr(args, name).split(",")
        unknown = ",".join(word for word in words if word not in known)
        if unknown:
            raise UserError(f"--{name} {unknown}: not known; use some of {','.join(known)}")
        setattr(args, name, words)
    sizes = args.windows.split(",")
    if not all(size.isdecimal() and int(size) for size in sizes):
        raise UserError(f"--windows {args.windows}: use whole numbers, as in 16,64")
    args.windows = [int(size) for size in sizes]
    return args


@verb
def main(argv: list[str] | None = None) -> int:
    """Measure, and print the table. Returns the exit status."""
    args = parse_args(argv)
    examples = read_examples(args.data).examples
    drawn = np.random.default_rng(2).permutation(len(examples))[: args.questions]
    asked = [examples[i] for i in drawn]
    around = {"device": pick_device(args.device), "say": silent, "progress": False}
    task = QuestionAnswering(examples, asked, READER, QuestionAnsweringSettings(), seed=0, **around)
    rows = []
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        work = Work(task, READER, Path(scratch), steps=8 if args.device == "cuda" else 3)
        models = [with_model(work, name) for name in args.models]
        for what, model, precision in itertools.product(args.only, models, args.precision):
            one = replace(model, format=precision, batch_size=args.windows[-1])
            if what == "inference":
                rows += measure(one, what, args.rounds)
            elif what == "run" and precision != "int8" and model.label in ("", "BERT-base"):
                rows.append(whole_run(one, args.data))
            elif what == "training" and precision != "int8":
                for size in args.windows:
                    rows += measure(replace(one, batch_size=size), what, args.rounds)
    if not rows:
        raise UserError("nothing to measure: int8 is a format of inference, run is for BERT-base")
    print(f"{machine()}; {Path(args.data).name}, {len(examples):,} questions\n\n{table(rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(run_verb(main))
