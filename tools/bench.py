"""bertqa beside what people use, on this machine: one command, one table.

    python tools/bench.py                                  the bundled reader and sample
    python tools/bench.py --data dev-v2.0.json             real questions
    python tools/bench.py --only training --windows 16,64  by windows in an optimizer step
    python tools/bench.py --only inference --precision fp32,bf16,int8 --models reader,BERT-base
    python tools/bench.py --device cuda                    three shapes with random weights, in bf16

The contestants (tools/contestants.py) do the same work on the same questions with the same weights. On a CPU they take turns,
so that a slow moment of the machine hits all of them; on a GPU, whose memory does not hold all, one comes after the other.
Times are medians, ratios medians over rounds; F1 is at the threshold that is best for these logits, on these questions.
"""

import argparse
import gc
import importlib.metadata
import itertools
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
from bertqa.qa.spans import SpanDecoder
from bertqa.settings import SAMPLE, QuestionAnsweringSettings
from bertqa.training.question_answering import Evaluation, QuestionAnswering

ROOT = Path(__file__).resolve().parents[1]
READER = ROOT / "weights/minilm-squad2"
SHAPES = {
    "MiniLM-L6": (384, 6, 12, 1536),
    "BERT-base": (768, 12, 12, 3072),
    "BERT-large": (1024, 24, 16, 4096),
}
"""Hidden size, layers, heads, feed-forward size of models with random weights."""
KNOWN = {
    "only": [*CONTESTANTS, "run"],
    "models": ["reader", *SHAPES],
    "precision": ["fp32", "bf16", "int8"],
}
"""What may be named in lists."""
ON_GPU = {"only": "training,inference,run", "models": ",".join(SHAPES), "precision": "bf16"}
ON_GPU |= {"windows": "16,64", "questions": 4096, "steps": 8}


def take_turns(everyone: dict[str, Callable], rounds: int) -> dict[str, list[float]]:
    """Seconds of each contestant in each round. Every other round goes backwards, so that nobody is always first."""
    seconds: dict[str, list[float]] = {who: [] for who in everyone}
    for number in range(rounds):
        for who in reversed(everyone) if number % 2 else everyone:
            begun = time.perf_counter()
            everyone[who]()
            seconds[who].append(time.perf_counter() - begun)
    return seconds


def measure(work: Work, task: str, rounds: int) -> list[dict[str, str]]:
    """The rows of a task, ours first. MFU is the share of the matrix products' peak that goes into useful operations."""
    together = [list(CONTESTANTS[task])]
    if work.device.type == "cuda":
        together = [[who] for who in CONTESTANTS[task]]
    lengths = work.task.dev_windows.lengths
    amount = len(work.task.dev.examples)
    passes = 1
    if task == "training":
        lengths = work.task.store.lengths[np.concatenate(work.random_batches())]
        amount = len(lengths)
        passes = 3  # a backward pass is two of them
    peak = matrix_peak(work)
    say(f"{task} in {work.format}: plain matrix products reach {peak / 1e9:,.0f} GFLOP/s")
    shortest = passes * operations(work.weights, lengths) / peak
    rows = []
    ours: list[float] = []
    for names in together:
        everyone = prepared(work, task, names)
        found = {who: run() for who, run in everyone.items()}  # warms up
        for who, seconds in take_turns(everyone, rounds).items():
            ours = ours or seconds
            row = new_row(work, task, who, seconds, amount)
            if work.format != "int8":  # whose peak torch.mm does not tell
                row["MFU"] = f"{shortest / statistics.median(seconds):.0%}"
            ratios = [theirs / our for theirs, our in zip(seconds, ours, strict=True)]
            row["time, ours = 1"] = f"{statistics.median(ratios):.3g}"
            if task == "inference" and not work.label:
                row["F1"] = f"{f1_of(work, found[who]):.2f}"
            rows.append(row)
            say(" | ".join(row.values()))
        del everyone
        gc.collect()  # a step and its job hold each other, and the GPU's memory
    return rows


def prepared(work: Work, task: str, names: list[str]) -> dict[str, Callable]:
    """Those who can take part."""
    ready = {}
    for who in names:
        try:
            ready[who] = CONTESTANTS[task][who](work)
        except (UserError, ImportError) as reason:
            say(f"{task} in {work.format}: without {who}: {reason}")
    return ready


def new_row(work: Work, task: str, who: str, seconds: list[float], amount: int) -> dict[str, str]:
    """A line of the table; `amount` are the questions of a round, in training its windows."""
    median = statistics.median(seconds)
    kind = f"{task}, {work.batch_size} windows a step" if task == "training" else task
    row = {"task": kind, "model": work.label or "reader", "format": work.format, "who": who}
    row |= {"seconds": f"{median:.3g}", "a second": f"{amount / median:,.1f}"}
    return {**row, "MFU": "", "time, ours = 1": "", "F1": ""}


def table(rows: list[dict[str, str]]) -> str:
    """The rows as Markdown."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def operations(weights: Path, lengths: np.ndarray) -> float:
    """Of the forward pass of these windows: two for each product of a number and a weight; attention multiplies every
    token with every token twice."""
    config = folder.read_config(weights)["architecture"]
    hidden = config["hidden_size"]
    lengths = lengths.astype(float)
    of_a_token = 4 * hidden**2 + 2 * hidden * config["intermediate_size"]
    products = of_a_token * lengths.sum() + 2 * hidden * (lengths**2).sum()
    return 2 * config["num_hidden_layers"] * float(products)


def matrix_peak(work: Work) -> float:
    """FLOP/s of a square matrix product, the best of several."""
    size = 8192 if work.device.type == "cuda" else 2048
    square = torch.randn(size, size, device=work.device).to(work.dtype)

    def product():
        torch.mm(square, square)
        work.wait()

    return 2 * size**3 / min(take_turns({"": product}, 8)[""])


def f1_of(work: Work, found: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> float:
    """F1 in percent of a round's logits, at the threshold that is best for them."""
    windows = work.task.dev_windows
    decoder = SpanDecoder(windows)
    for rows, start, end in found:
        if start.ndim == 2:  # padded (S, L) to packed (N,)
            mask = np.arange(start.shape[1]) < windows.lengths[rows][:, None]
            start = start[mask]
            end = end[mask]
        decoder.add(rows, start, end)
    return Evaluation.of(decoder.finish(), windows, work.task.dev, 0.0).metrics["f1"]


def whole_run(work: Work, data: str) -> dict[str, str]:
    """`python -m bertqa.train` from its start to its last line: an epoch, an evaluation, and all that it writes."""
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
    """The work with the reader, or with weights drawn at random for the shape that is named."""
    if name == "reader":
        return work
    sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    config = BertConfig(
        **dict(zip(sizes, SHAPES[name], strict=True)), attention_probs_dropout_prob=0.0
    )
    weights = work.scratch / name
    source = {"source": "random", "license": "CC0-1.0", "sha256": ""}
    model = BertForQuestionAnswering(config)
    folder.save(weights, model, tokenizer_from=READER, provenance=source)
    return replace(work, weights=weights, label=name)


def machine() -> str:
    """What the numbers were measured on."""
    found = [f"{torch.get_num_threads()} threads"]
    if torch.cuda.is_available():
        found.append(torch.cuda.get_device_name())
    info = Path("/proc/cpuinfo")
    if info.exists():
        _, _, rest = info.read_text().partition("model name")
        found.append(rest.partition("\n")[0].strip("\t :"))
    for package in importlib.metadata.distributions():
        if package.name in ("torch", "transformers", "onnxruntime", "openvino", "nncf"):
            found.append(f"{package.name} {package.version}")
    return ", ".join(found)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Raises UserError for what is not known in a list."""
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
    add("--steps", type=int, default=3, help="of the optimizer in a round; with cuda 8")
    add("--rounds", type=int, default=3, help="turns of each contestant")
    add("--device", default="cpu", choices=["cpu", "cuda"])
    args = parser.parse_args(argv)
    if args.device == "cuda":
        args = parser.parse_args(argv, argparse.Namespace(**ON_GPU))
    for name, known in KNOWN.items():
        given = getattr(args, name).split(",")
        setattr(args, name, given)
        unknown = ",".join(one for one in given if one not in known)
        if unknown:
            raise UserError(f"--{name} {unknown}: not known; use some of {','.join(known)}")
    sizes = args.windows.split(",")
    if not all(size.isdecimal() and int(size) for size in sizes):
        raise UserError(f"--windows {args.windows}: use whole numbers, as in 16,64")
    args.windows = list(map(int, sizes))
    return args


@verb
def main(argv: list[str] | None = None) -> int:
    """Measure and print. Returns the exit status."""
    args = parse_args(argv)
    examples = read_examples(args.data).examples
    drawn = np.random.default_rng(2).permutation(len(examples))[: args.questions]
    task = QuestionAnswering(
        examples,
        [examples[i] for i in drawn],
        READER,
        QuestionAnsweringSettings(),
        seed=0,
        device=pick_device(args.device),
        say=silent,
        progress=False,
    )
    rows = []
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        work = Work(task, READER, Path(scratch), steps=args.steps)
        models = [with_model(work, name) for name in args.models]
        for what, model, name in itertools.product(args.only, models, args.precision):
            one = replace(model, format=name, batch_size=args.windows[-1])
            if what == "inference":
                rows += measure(one, what, args.rounds)
            elif what == "run" and name != "int8" and model.label in ("", "BERT-base"):
                rows.append(whole_run(one, args.data))
            elif what == "training" and name != "int8":
                for size in args.windows:
                    rows += measure(replace(one, batch_size=size), what, args.rounds)
    if not rows:
        raise UserError("nothing to measure: int8 is a format of inference, run is for BERT-base")
    print(f"{machine()}; {Path(args.data).name}, {len(examples):,} questions\n\n{table(rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(run_verb(main))
