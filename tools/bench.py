"""bertqa beside what people use, on this machine: one command, one table.

    python tools/bench.py                                  the bundled reader and sample
    python tools/bench.py --data dev-v2.0.json             real questions
    python tools/bench.py --only training --windows 16,64  by windows in an optimizer step
    python tools/bench.py --only inference --precision fp32,bf16,int8 --models reader,BERT-base
    python tools/bench.py --device cuda                    three shapes with random weights, in bf16

Contestants (tools/contestants.py) do the same work on the same questions with the same weights: transformers, onnxruntime
and OpenVINO where they are installed (with onnx, onnxscript, nncf). On a CPU they take turns, so that a slow moment of the
machine hits all of them; on a GPU, whose memory does not hold all of them, one comes after the other. Times are medians,
ratios medians over rounds; F1 is at the threshold that is best for these logits, on the questions answered.
"""

import argparse
import datetime
import gc
import importlib.metadata
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from contestants import TASKS, LeftOut, Round, Work

from bertqa import BertConfig, BertForQuestionAnswering
from bertqa.data.examples import read_examples
from bertqa.device import DTYPES
from bertqa.errors import UserError
from bertqa.files import write_json
from bertqa.flags import run_verb
from bertqa.model import folder
from bertqa.qa.answers import best_answers, null_odds
from bertqa.qa.metrics import score_answers
from bertqa.qa.spans import SpanDecoder
from bertqa.qa.thresholds import tune_threshold

ROOT = Path(__file__).resolve().parents[1]
SHAPES = {
    "MiniLM-L6": (384, 6, 12, 1536),
    "BERT-base": (768, 12, 12, 3072),
    "BERT-large": (1024, 24, 16, 4096),
}
"""Hidden size, layers, heads, feed-forward size of models with random weights."""


@dataclass
class Row:
    """One line of the table: a contestant at a task."""

    task: str
    who: str
    seconds: list[float]  # of each round
    questions: float = 0  # in a round; in training windows
    tokens: float = 0  # in a round, padding not counted
    flops: float = 0  # of matrix products in a round, padding not counted
    peak: float = 0  # FLOP/s of plain matrix products, here and now
    ratio: float = 1  # how many times as long as ours it takes
    memory: float = 0  # peak bytes on a GPU
    f1: float | None = None  # in percent; None for a model with random weights

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def cells(self) -> dict[str, str]:
        """What the table says. MFU is the share of the matrix products' peak that goes into useful operations."""
        used = self.flops / self.median / self.peak if self.peak else 0
        return {
            "task": self.task,
            "who": self.who,
            "seconds": f"{self.median:.3g}",
            "questions/s": rate(self.questions / self.median),
            "useful tokens/s": rate(self.tokens / self.median),
            "MFU": f"{used:.0%}" if used else "",
            "time, ours = 1": f"{self.ratio:.3g}",
            "peak memory, MiB": rate(self.memory / 2**20),
            "F1": "" if self.f1 is None else f"{self.f1:.2f}",
        }


def rate(amount: float) -> str:
    if not amount:
        return ""
    return f"{amount:,.0f}" if amount >= 100 else f"{amount:.1f}"


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown."""
    header = list(rows[0].cells())
    lines = [header, ["---", "---", *["---:"] * (len(header) - 2)]]
    lines += [list(row.cells().values()) for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


# ---- measuring ----


def take_turns(everyone: dict[str, Round], rounds: int) -> dict[str, list[float]]:
    """Seconds of each contestant in each round. Every other round goes backwards, so that nobody is always first."""
    seconds: dict[str, list[float]] = {who: [] for who in everyone}
    for number in range(rounds):
        for who in reversed(everyone) if number % 2 else everyone:
            begun = time.perf_counter()
            everyone[who]()
            seconds[who].append(time.perf_counter() - begun)
    return seconds


def run_task(work: Work, task: str, rounds: int) -> list[Row]:
    """The rows of a task, ours first."""
    on_gpu = work.device.type == "cuda"
    together = [list(TASKS[task])]
    if on_gpu:
        together = [[who] for who in TASKS[task]]
    is_run = task == "run"  # minutes long: once, and nothing to warm up
    done = amounts(work, task)
    rows: list[Row] = []
    for names in together:
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        everyone = load(work, task, names)
        found = {} if is_run else {who: play() for who, play in everyone.items()}  # warms up
        for who, seconds in take_turns(everyone, 1 if is_run else rounds).items():
            row = Row(name_of(work, task), who, seconds, **done)
            ours = rows[0].seconds if rows else seconds
            row.ratio = statistics.median(a / b for a, b in zip(seconds, ours, strict=True))
            if on_gpu and not is_run:
                row.memory = torch.cuda.max_memory_allocated()
            if task == "inference" and not work.label:
                row.f1 = f1_of(work, found[who])
            rows.append(row)
            say(" | ".join(row.cells().values()))
        del everyone
        gc.collect()
        if on_gpu:
            torch.cuda.empty_cache()
    return rows


def load(work: Work, task: str, names: Sequence[str]) -> dict[str, Round]:
    """Those who can take part, ready to play."""
    ready = {}
    for who in names:
        try:
            ready[who] = TASKS[task][who](work)
        except (LeftOut, ImportError) as reason:
            say(f"{name_of(work, task)}: without {who}: {reason}")
    return ready


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def name_of(work: Work, task: str) -> str:
    """The task in the table, with what is special about it: "training (BERT-base, bf16, 64 windows a step)"."""
    special = [work.label] if work.label else []
    if work.format != "fp32":
        special.append(work.format)
    if task == "training":
        special.append(f"{work.batch_size} windows a step")
    return f"{task} ({', '.join(special)})" if special else task


def amounts(work: Work, task: str) -> dict[str, float]:
    """What a round of a task consists of, by Row's names."""
    if task == "run":
        return {"questions": len(work.data.examples)}
    questions = len(work.asked)
    lengths = work.asked_windows.lengths
    passes = 1
    if task == "training":
        lengths = work.store.lengths[np.concatenate(work.random_batches)]
        questions = len(lengths)
        passes = 3  # a backward pass is two of them
    return {
        "questions": questions,
        "tokens": float(lengths.sum()),
        "flops": passes * operations(work.config, lengths),
        "peak": 0 if work.format == "int8" else matrix_peak(work),
    }


def operations(config: dict, lengths: np.ndarray) -> float:
    """Of the forward pass of these windows: two for each product of a number and a weight; attention multiplies every
    token with every token twice."""
    hidden = config["hidden_size"]
    lengths = lengths.astype(float)
    weights = 4 * hidden**2 + 2 * hidden * config["intermediate_size"]
    products = weights * lengths.sum() + 2 * hidden * (lengths**2).sum()
    return 2 * config["num_hidden_layers"] * float(products)


def matrix_peak(work: Work) -> float:
    """FLOP/s of a square matrix product, the best of several."""
    size = 8192 if work.device.type == "cuda" else 2048
    a = torch.randn(size, size, device=work.device).to(work.dtype)

    def product():
        torch.mm(a, a)
        work.wait()

    return 2 * size**3 / min(take_turns({"": product}, 8)[""])


def f1_of(work: Work, found: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> float:
    """F1 in percent that logits give, (rows (S,), start, end) of each batch, at the threshold that is best for them."""
    windows = work.asked_windows
    decoder = SpanDecoder(windows)
    for rows, *logits in found:
        if logits[0].ndim == 2:  # padded (S, L) to packed (N,)
            mask = np.arange(logits[0].shape[1]) < windows.lengths[rows][:, None]
            logits = [padded[mask] for padded in logits]
        decoder.add(rows, *logits)
    spans = decoder.finish()
    texts = best_answers(spans, windows, work.asked).texts
    ids = [example.id for example in work.asked]
    scores = score_answers(work.asked, dict(zip(ids, texts, strict=True)))
    return tune_threshold(null_odds(spans), scores.exact, scores.f1, scores.has_answer).best_f1


# ---- what is measured ----


def models(work: Work, names: Sequence[str]) -> Iterator[Work]:
    """The work with the reader, or with weights drawn at random for the shape that is named."""
    for name in names:
        if name == "reader":
            yield work
            continue
        hidden, layers, heads, inner = SHAPES[name]
        config = BertConfig(
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=inner,
            attention_probs_dropout_prob=0.0,
        )
        weights = work.scratch / name
        source = {"source": "random", "license": "CC0-1.0", "sha256": ""}
        model = BertForQuestionAnswering(config)
        folder.save(weights, model, tokenizer_from=work.weights, provenance=source)
        yield replace(work, weights=weights, label=name)


def variants(work: Work, task: str, sizes: Sequence[int]) -> list[Work]:
    """The works on which a task is measured: where it takes steps, with each number of windows in one."""
    if work.format == "int8" and task != "inference":
        return []
    if task == "run" and work.label not in ("", "BERT-base"):
        return []
    if task != "training":
        sizes = sizes[-1:]
    return [replace(work, batch_size=size) for size in sizes]


def machine(work: Work) -> dict[str, str]:
    """What the numbers were measured on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    processor = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    found = {
        "date": str(datetime.date.today()),
        "processor": f"{(processor or ['?'])[0]}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "load before": f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "?",
        "data": f"{Path(work.data.path).name}, {len(work.data.examples):,} questions",
    }
    installed = {each.name: each.version for each in importlib.metadata.distributions()}
    for package in ("torch", "numpy", "transformers", "onnxruntime", "openvino", "nncf"):
        found[package] = installed.get(package, "not installed")
    return found


# ---- the command ----


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    sample = ROOT / "bertqa/data/sample/dev.json"
    reader = ROOT / "weights/minilm-squad2"
    add("--data", default=sample, help="questions [the bundled sample]")
    add("--weights", type=Path, default=reader, help="of the reader [the bundled one]")
    add("--models", metavar="M,...", help="reader or shapes [reader; with cuda the three shapes]")
    add("--only", metavar="TASK,...", help=f"some of {','.join(TASKS)} [all but run on a CPU]")
    add("--rounds", type=int, help="turns of each contestant [3]")
    add("--windows", metavar="N,...", help="in an optimizer step [16; with cuda 16,64]")
    add("--questions", type=int, help="to answer in a round [160; with cuda 4096]")
    add("--quick", action="store_true", help="one small round of everything: does it run?")
    add("--device", default="cpu", choices=["cpu", "cuda"], help="[cpu]")
    add("--precision", metavar="FORMAT,...", help="fp32, bf16, fp16, int8 [fp32; with cuda bf16]")
    add("--json", metavar="FILE", help="write machine and rows there too")
    return parser.parse_args(argv)


def choices(flag: str, given: str, known: Sequence[str], what: str) -> list[str]:
    """A flag's list. Raises UserError for what is not known."""
    chosen = given.split(",")
    unknown = [name for name in chosen if name not in known]
    if unknown:
        raise UserError(
            f"{flag} {','.join(unknown)}: there is no such {what}; use some of {','.join(known)}"
        )
    return chosen


def usual(on_gpu: bool, quick: bool) -> dict:
    """What is measured where nothing is said: what the machine does in minutes."""
    found = {"only": "training,inference", "models": "reader", "precision": "fp32"}
    found |= {"windows": "16", "questions": 160, "steps": 3, "rounds": 3}
    if on_gpu:
        found |= {"only": ",".join(TASKS), "models": ",".join(SHAPES), "precision": "bf16"}
        found |= {"windows": "16,64", "questions": 4096, "steps": 8}
    if quick:
        found |= {"questions": 8, "steps": 1, "rounds": 1}
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write. Returns the exit status."""
    args = parse_args(argv)
    for name, value in usual(args.device == "cuda", args.quick).items():
        setattr(args, name, getattr(args, name, None) or value)
    tasks = choices("--only", args.only, list(TASKS), "task")
    names = choices("--models", args.models, ["reader", *SHAPES], "model")
    formats = choices("--precision", args.precision, [*DTYPES, "int8"], "format")
    if not all(size.isdecimal() and int(size) for size in args.windows.split(",")):
        raise UserError(f"--windows {args.windows}: use whole numbers, as in 16,64")
    sizes = [int(size) for size in args.windows.split(",")]
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        work = Work(args.weights, read_examples(args.data), Path(scratch))
        work.device = torch.device(args.device)
        work.steps = args.steps
        work.questions = args.questions
        about = machine(work)
        every = list(models(work, names))
        for task in tasks:
            for model in every:
                for name in formats:
                    for one in variants(replace(model, format=name), task, sizes):
                        rows += run_task(one, task, args.rounds)
    if not rows:
        raise UserError("nothing to measure: int8 is a format of inference, run is for BERT-base")
    peaks = {f"{row.task}: {row.peak / 1e9:,.0f} GFLOP/s" for row in rows if row.peak}
    about["peak of matrix products"] = ", ".join(sorted(peaks)) or "not measured"
    print("\n".join(f"- {name}: {value}" for name, value in about.items()))
    print("\n" + table(rows))
    if args.json:
        content = {"machine": about, "rows": [asdict(row) | {"median": row.median} for row in rows]}
        write_json(Path(args.json), content)
    return 0


if __name__ == "__main__":
    sys.exit(run_verb(main))
