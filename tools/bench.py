"""bertqa beside what people use, on this machine: one command, one table.

    python tools/bench.py                                  bundled sample and reader
    python tools/bench.py --data dev-v2.0.json             real questions
    python tools/bench.py --only training,inference --json bench.json
    python tools/bench.py --only training --windows 16,64  by windows in an optimizer step
    python tools/bench.py --precision fp32,bf16            the model's tasks in both, for CPUs with bf16 units
    python tools/bench.py --device cuda                    three model shapes with random weights, in bf16

Contestants (tools/contestants.py) do the same work on the same questions with the same weights. They take turns, so
that a slow moment of the machine hits all of them; times are medians, ratios are medians over rounds. With --memory the
peak memory of each is measured too, in a process of its own, which does the first two pieces of the work (in training:
steps). transformers, its 4.x pipeline and onnxruntime take part where they are installed.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import contestants
import numpy as np
from contestants import Pieces
from workload import OTHERS, ROOT, Bench, importable

from bertqa.errors import UserError
from bertqa.flags import run_verb

TASKS = (
    "features",
    "training",
    "distilling",
    "inference",
    "answering",
    "embedding",
    "decoding",
    "scoring",
    "startup",
    "run",
)
STEPS = ("training", "distilling")
OF_THE_MODEL = (*STEPS, "inference", "answering", "embedding")
SHAPES = {
    "MiniLM-L6": (384, 6, 12, 1536),
    "BERT-base": (768, 12, 12, 3072),
    "BERT-large": (1024, 24, 16, 4096),
}
"""Hidden size, layers, heads, feed-forward size of the random models for --device cuda."""


@dataclass
class Row:
    """One line of the table: a contestant at a task."""

    task: str
    who: str
    seconds: list[float]
    """Of each round."""
    questions: float = 0
    """Questions (in training: windows) in a round."""
    tokens: float = 0
    """Tokens in a round, padding not counted."""
    flops: float = 0
    """Operations of matrix products in a round, padding not counted."""
    peak: float = 0
    """FLOP/s of plain matrix products, here and now."""
    ratio: float | None = None
    """How many times as long as ours it takes; None for ours."""
    memory: float | None = None
    """Peak bytes of a process that does nothing else; on a GPU those of the GPU."""

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def cells(self) -> list[str]:
        """What the table says. MFU is the share of the matrix products' peak that goes into useful operations."""
        cells = [self.task, self.who, f"{self.median:.3g}", *[""] * 5]
        if self.questions:
            cells[3] = rate(self.questions / self.median)
        if self.tokens:
            cells[4] = rate(self.tokens / self.median)
        if self.flops and self.peak:
            cells[5] = f"{self.flops / self.median / self.peak:.0%}"
        cells[6] = "1" if self.ratio is None else f"{self.ratio:.3g}"
        if self.memory:
            cells[7] = f"{self.memory / 2**20:,.0f}"
        return cells


HEADER = [
    "task",
    "who",
    "seconds",
    "questions/s",
    "useful tokens/s",
    "MFU",
    "time, ours = 1",
    "peak memory, MiB",
]


def rate(amount: float) -> str:
    return f"{amount:,.0f}" if amount >= 100 else f"{amount:.1f}"


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown."""
    lines = [HEADER, ["---", "---", *["---:"] * 6], *(row.cells() for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


# ---- measuring ----


def take_turns(everyone: dict[str, Pieces], rounds: int) -> dict[str, list[float]]:
    """Seconds of each contestant in each round. Every other round goes backwards, so that nobody is always first."""
    for pieces in everyone.values():
        pieces[0]()
    seconds: dict[str, list[float]] = {who: [] for who in everyone}
    for number in range(rounds):
        order = list(everyone)
        if number % 2:
            order.reverse()
        for who in order:
            begun = time.perf_counter()
            for piece in everyone[who]:
                piece()
            seconds[who].append(time.perf_counter() - begun)
    return seconds


def run_task(bench: Bench, task: str, rounds: int, memory: bool) -> list[Row]:
    """The rows of a task."""
    makers = getattr(contestants, task)(bench)
    if not makers:
        return []
    name = name_of(bench, task)
    print(f"{name}: {', '.join(makers)} ...", file=sys.stderr, flush=True)
    everyone = {who: make() for who, make in makers.items()}
    seconds = take_turns(everyone, rounds)
    work = work_of(bench, task)
    ours = seconds[next(iter(makers))]
    rows = []
    for who, times in seconds.items():
        row = Row(name, who, times, **work)
        if times is not ours:
            row.ratio = statistics.median(a / b for a, b in zip(times, ours, strict=True))
        if memory and task in OF_THE_MODEL:
            row.memory = memory_of(bench, task, who)
        rows.append(row)
    return rows


def name_of(bench: Bench, task: str) -> str:
    """The task in the table, with what is special about it: "training (BERT-base, bf16, 64 windows a step)"."""
    special = [bench.label] if bench.label else []
    if bench.dtype_name != "fp32":
        special.append(bench.dtype_name)
    if task in STEPS:
        special.append(f"{bench.batch_size} windows a step")
    return f"{task} ({', '.join(special)})" if special else task


def work_of(bench: Bench, task: str) -> dict:
    """What a round of a task consists of: questions, and for the model's tasks tokens, operations, and the peak."""
    if task == "features":
        return {"questions": len(bench.data.trainable())}
    if task == "startup":
        return {"questions": 1}
    if task not in OF_THE_MODEL:
        return {"questions": len(bench.data.examples)}
    if task in STEPS:
        lengths = bench.windows.lengths[np.concatenate(bench.random_batches)]
        questions = len(lengths)
    elif task == "embedding":
        lengths = bench.text_windows.lengths
        questions = len(bench.texts)
    else:
        lengths = bench.asked_windows.lengths
        questions = len(bench.asked)
    passes = 3 if task in STEPS else 1  # a backward pass is two of them
    return {
        "questions": questions,
        "tokens": float(lengths.sum()),
        "flops": passes * operations(bench.config, lengths),
        "peak": matrix_peak(bench),
    }


def operations(config: dict, lengths: np.ndarray) -> float:
    """Of the forward pass of these windows: two for each product of a number and a weight; attention multiplies every
    token with every token twice."""
    hidden = config["hidden_size"]
    lengths = lengths.astype(float)
    weights = 4 * hidden**2 + 2 * hidden * config["intermediate_size"]
    products = weights * lengths.sum() + 2 * hidden * (lengths**2).sum()
    return 2 * config["num_hidden_layers"] * float(products)


def matrix_peak(bench: Bench) -> float:
    """FLOP/s of a square matrix product, the best of several."""
    import torch

    size = 8192 if bench.on_gpu else 2048
    if bench.quick:
        size = 512
    a = torch.randn(size, size, device=bench.device_name).to(bench.dtype)

    def product():
        torch.mm(a, a)
        bench.wait()

    return 2 * size**3 / min(take_turns({"": [product]}, 7)[""])


def memory_of(bench: Bench, task: str, who: str) -> float:
    """Peak bytes of a process in which only this contestant works."""
    command = [sys.executable, __file__, "--alone", json.dumps([asdict(bench), task, who])]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout.split()[-1])


def alone(given: dict, task: str, who: str) -> int:
    """The main of that process."""
    from bertqa.device import peak_memory

    bench = Bench(**given)
    for piece in getattr(contestants, task)(bench)[who]()[:2]:
        piece()
    print(peak_memory(bench.device))
    return 0


# ---- what is measured ----


def variants(
    bench: Bench, task: str, models: Sequence[Bench], windows: Sequence[int]
) -> Iterator[Bench]:
    """The benches on which a task is measured: with each model and number format, and where it takes steps, each size."""
    if task == "run":
        models = [model for model in models if model.label in ("", "BERT-base")]
    elif task not in OF_THE_MODEL:
        models = [bench]
    if task not in STEPS:
        windows = windows[-1:]
    for model in models:
        for size in windows:
            yield replace(model, batch_size=size)


def random_models(bench: Bench) -> Iterator[Bench]:
    """A bench for each shape, with weights drawn at random."""
    from bertqa import BertConfig, BertForQuestionAnswering
    from bertqa.model import folder

    for label, (hidden, layers, heads, inner) in SHAPES.items():
        config = BertConfig(
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=inner,
            attention_probs_dropout_prob=0.0,
        )
        where = f"{bench.scratch}/{label}"
        source = {"source": "random", "license": "CC0-1.0", "sha256": ""}
        model = BertForQuestionAnswering(config)
        folder.save(where, model, tokenizer_from=bench.weights, provenance=source)
        yield replace(bench, weights=where, label=label, device_name="cuda")


def machine(bench: Bench) -> dict[str, str]:
    """What the numbers were measured on."""
    import torch

    processor = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                processor = line.partition(": ")[2]
    threads = torch.get_num_threads()
    found = {
        "date": str(datetime.date.today()),
        "python": platform.python_version(),
        "processor": f"{processor}, {os.cpu_count()} cores, {threads} threads",
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    if hasattr(os, "getloadavg"):
        found["load before"] = f"{os.getloadavg()[0]:.1f}"
    for package in ("torch", "numpy", "tokenizers", "transformers", "onnxruntime"):
        found[package] = "not installed"
        if importable(package):
            found[package] = sys.modules[package].__version__
    found["data"] = f"{Path(bench.data_path).name}, {len(bench.data.examples):,} questions"
    return found


# ---- the command ----


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    sample = str(ROOT / "bertqa/data/sample/dev.json")
    reader = str(ROOT / "weights/minilm-squad2")
    add("--data", default=sample, help="questions [the bundled sample]")
    add("--weights", default=reader, help="model folder [the bundled reader]")
    add("--only", metavar="TASK,...", help=f"some of {','.join(TASKS)} [all but run on a CPU]")
    add("--rounds", type=int, help="turns of each contestant [3]")
    add("--windows", metavar="N,...", help="in an optimizer step [16; with --device cuda 16,64]")
    add("--quick", action="store_true", help="one small round of everything: does it run?")
    add("--memory", action="store_true", help="measure memory too")
    add("--device", default="cpu", choices=["cpu", "cuda"], help="of the model's tasks [cpu]")
    add("--precision", metavar="FORMAT,...", help="of them [fp32; with --device cuda bf16]")
    add("--threads", type=int, help="CPU threads [torch's own choice]")
    add("--json", metavar="FILE", help="write machine and rows there too")
    add("--alone", help=argparse.SUPPRESS)
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


def sizes(given: str) -> list[int]:
    """--windows as numbers."""
    if not all(size.isdecimal() and int(size) for size in given.split(",")):
        raise UserError(f"--windows {given}: use whole numbers, as in 16,64")
    return [int(size) for size in given.split(",")]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write. Returns the exit status."""
    from bertqa.device import DTYPES

    args = parse_args(argv)
    if args.alone:
        return alone(*json.loads(args.alone))
    on_gpu = args.device == "cuda"
    # On a CPU an epoch may take hours.
    usual = TASKS if on_gpu else TASKS[:-1]
    tasks = choices("--only", args.only or ",".join(usual), TASKS, "task")
    dtypes = choices(
        "--precision", args.precision or ("bf16" if on_gpu else "fp32"), DTYPES, "format"
    )
    windows = sizes(args.windows or ("16,64" if on_gpu else "16"))
    if args.threads:
        # torch reads it when it is imported, here and in children
        os.environ["OMP_NUM_THREADS"] = str(args.threads)
    rounds = args.rounds or (1 if args.quick else 3)
    others = tuple(name for name in OTHERS if importable(name))
    rows = []
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        bench = Bench(args.data, args.weights, scratch, args.quick, others=others)
        about = machine(bench)
        models = list(random_models(bench)) if on_gpu else [bench]
        models = [replace(model, dtype_name=dtype) for model in models for dtype in dtypes]
        for task in tasks:
            for one in variants(bench, task, models, windows):
                rows += run_task(one, task, rounds, args.memory)
    peaks = {f"{row.task}: {row.peak / 1e9:,.0f} GFLOP/s" for row in rows if row.peak}
    about["peak of matrix products"] = ", ".join(sorted(peaks)) or "not measured"
    print("\n".join(f"- {name}: {value}" for name, value in about.items()))
    print("\n" + table(rows))
    if args.json:
        content = {"machine": about, "rows": [asdict(row) | {"median": row.median} for row in rows]}
        Path(args.json).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(run_verb(main))
