"""bertqa beside what people use, on this machine: one command, one table.

    python tools/bench.py                                  bundled sample and reader
    python tools/bench.py --data dev-v2.0.json             real questions
    python tools/bench.py --only training,inference --json bench.json
    python tools/bench.py --precision fp32,bf16            the model's tasks in both, for CPUs with bf16 units
    python tools/bench.py --device cuda                    three model shapes, random weights, bf16 and fp16

Contestants (tools/contestants.py) do the same work on the same questions with the same weights. They take turns, so
that a slow moment of the machine hits all of them; times are medians, ratios are medians over rounds. Peak memory is
that of a process of its own, which does the first two pieces of the work (in training: steps). transformers, its 4.x
pipeline and onnxruntime take part where they are installed.
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
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import contestants
import numpy as np
from contestants import OTHERS, ROOT, Bench, Pieces, importable

from bertqa.errors import UserError
from bertqa.flags import run_verb

TASKS = ("features", "training", "inference", "embedding", "decoding", "scoring", "startup")
OF_THE_MODEL = ("training", "inference", "embedding")
SCALES = (1_000, 10_000, 100_000)
"""Questions on which features and decoding are timed beside all that there are: their cost should grow linearly."""
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


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown. MFU: the share of the matrix products' peak that goes into useful operations."""

    def rate(amount: float) -> str:
        return f"{amount:,.0f}" if amount >= 100 else f"{amount:.1f}"

    lines = [
        (
            "task",
            "who",
            "seconds",
            "questions/s",
            "useful tokens/s",
            "MFU",
            "time, ours = 1",
            "peak memory, MiB",
        ),
        ("---", "---", *["---:"] * 6),
    ]
    for row in rows:
        lines.append(
            (
                row.task,
                row.who,
                f"{row.median:.3g}",
                rate(row.questions / row.median) if row.questions else "",
                rate(row.tokens / row.median) if row.tokens else "",
                f"{row.flops / row.median / row.peak:.0%}" if row.flops and row.peak else "",
                "1" if row.ratio is None else f"{row.ratio:.3g}",
                f"{row.memory / 2**20:,.0f}" if row.memory else "",
            )
        )
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def take_turns(everyone: dict[str, Pieces], rounds: int) -> dict[str, list[float]]:
    """Seconds of each contestant in each round. Every other round goes backwards, so that nobody is always first."""
    for pieces in everyone.values():
        pieces[0]()
    seconds: dict[str, list[float]] = {who: [] for who in everyone}
    for number in range(rounds):
        for who in list(everyone)[:: -1 if number % 2 else 1]:
            begun = time.perf_counter()
            for piece in everyone[who]:
                piece()
            seconds[who].append(time.perf_counter() - begun)
    return seconds


def matrix_peak(bench: Bench) -> float:
    """FLOP/s of a square matrix product, the best of several."""
    import torch

    size = 8192 if bench.on_gpu else 512 if bench.quick else 2048
    a = torch.randn(size, size, device=bench.device_name).to(bench.dtype)

    def product():
        torch.mm(a, a)
        bench.wait()

    return 2 * size**3 / min(take_turns({"": [product]}, 7)[""])


def work_of(bench: Bench, task: str) -> dict:
    """What a round of a task consists of: questions, and for the model's tasks tokens, operations, and the peak."""
    if task.startswith("features"):
        return {"questions": len(bench.data.trainable()[: number_in(task)])}
    if task.startswith(("decoding", "scoring", "startup")):
        return {
            "questions": 1 if task == "startup" else len(bench.data.examples[: number_in(task)])
        }
    if task == "training":
        lengths = bench.windows.lengths[np.concatenate(bench.sorted_batches)]
        questions = len(lengths)
    elif task == "embedding":
        questions, lengths = len(bench.texts), bench.text_windows.lengths
    else:
        questions, lengths = len(bench.asked), bench.asked_windows.lengths
    return {
        "questions": questions,
        "tokens": float(lengths.sum()),
        "peak": matrix_peak(bench),
        "flops": operations(bench.config, lengths) * (3 if task == "training" else 1),
    }


def operations(config: dict, lengths: np.ndarray) -> float:
    """Of the forward pass of these windows: two for each product of a number and a weight; attention multiplies every
    token with every token twice."""
    hidden, inner, lengths = (
        config["hidden_size"],
        config["intermediate_size"],
        lengths.astype(float),
    )
    weights = (4 * hidden**2 + 2 * hidden * inner) * lengths.sum()
    return 2 * config["num_hidden_layers"] * float(weights + 2 * hidden * (lengths**2).sum())


def number_in(task: str) -> int | None:
    """1000 in "features 1000"."""
    return int(task.partition(" ")[2] or 0) or None


def makers_of(bench: Bench, task: str) -> contestants.Contestants:
    """The contestants of a task."""
    make = getattr(contestants, task.partition(" ")[0])
    return make(bench, number_in(task)) if number_in(task) else make(bench)


def run_task(bench: Bench, task: str, rounds: int) -> list[Row]:
    """The rows of a task."""
    makers = makers_of(bench, task)
    if not makers:
        return []
    print(
        f"{task} {bench.label} {bench.dtype_name}: {', '.join(makers)} ...",
        file=sys.stderr,
        flush=True,
    )
    seconds = take_turns({who: make() for who, make in makers.items()}, rounds)
    ours, work = next(iter(makers)), work_of(bench, task)
    rows = []
    for who, times in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(times, seconds[ours], strict=True))
        kind = ", ".join(
            filter(None, [bench.label, "" if bench.dtype_name == "fp32" else bench.dtype_name])
        )
        row = Row(
            f"{task} ({kind})" if kind else task,
            who,
            times,
            **work,
            ratio=None if who == ours else ratio,
        )
        if not bench.quick and task not in ("scoring", "startup"):
            row.memory = memory_of(bench, task, who)
        rows.append(row)
    return rows


def memory_of(bench: Bench, task: str, who: str) -> float:
    """Peak bytes of a process in which only this contestant works."""
    command = [sys.executable, __file__, "--alone", json.dumps([asdict(bench), task, who])]
    return float(
        subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1]
    )


def alone(given: dict, task: str, who: str) -> int:
    """The main of that process."""
    from bertqa.device import peak_memory

    bench = Bench(**given)
    for piece in makers_of(bench, task)[who]()[:2]:
        piece()
    print(peak_memory(bench.precision[0]))
    return 0


def random_models(bench: Bench, dtypes: Sequence[str]) -> list[Bench]:
    """A bench for each shape and format, on the GPU, with weights drawn at random."""
    from bertqa import BertConfig, BertForQuestionAnswering
    from bertqa.model import folder

    benches = []
    for label, (hidden, layers, heads, inner) in SHAPES.items():
        config = BertConfig(
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=inner,
            attention_probs_dropout_prob=0.0,
        )
        where = f"{bench.scratch}/{label}"
        folder.save(
            where,
            BertForQuestionAnswering(config),
            tokenizer_from=bench.weights,
            provenance={"source": "random", "license": "CC0-1.0", "sha256": ""},
        )
        benches += [
            Bench(
                bench.data_path,
                where,
                bench.scratch,
                bench.quick,
                "cuda",
                dtype,
                label,
                bench.others,
            )
            for dtype in dtypes
        ]
    return benches


def machine(bench: Bench) -> dict[str, str]:
    """What the numbers were measured on."""
    import torch

    info = Path("/proc/cpuinfo")
    names = (
        [line.split(": ")[1] for line in info.read_text().splitlines() if "model name" in line]
        if info.exists()
        else []
    )
    found = {
        "date": str(datetime.date.today()),
        "python": platform.python_version(),
        "processor": f"{(names or [platform.processor()])[0]}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    if hasattr(os, "getloadavg"):
        found["load before"] = f"{os.getloadavg()[0]:.1f}"
    for package in ("torch", "numpy", "tokenizers", "transformers", "onnxruntime"):
        found[package] = __import__(package).__version__ if importable(package) else "not installed"
    return found | {"data": f"{Path(bench.data_path).name}, {len(bench.data.examples):,} questions"}


def run(
    bench: Bench, tasks: Sequence[str], rounds: int, device: str, dtypes: Sequence[str]
) -> list[Row]:
    """All rows."""
    rows, models = [], [replace(bench, dtype_name=dtype) for dtype in dtypes]
    if device == "cuda" and set(OF_THE_MODEL) & set(tasks):
        models = random_models(bench, dtypes)
    for task in tasks:
        for one in models if task in OF_THE_MODEL else [bench]:
            rows += run_task(one, task, rounds)
        if task in ("features", "decoding") and not bench.quick:
            for count in SCALES:
                rows += (
                    run_task(bench, f"{task} {count}", rounds)
                    if count < len(bench.data.examples)
                    else []
                )
        if task == "inference" and device == "cpu":
            rows += run_task(bench, "answering", rounds)
    return rows


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data",
        default=str(ROOT / "bertqa/data/sample/dev.json"),
        help="questions [the bundled sample]",
    )
    parser.add_argument(
        "--weights",
        default=str(ROOT / "weights/minilm-squad2"),
        help="model folder [the bundled reader]",
    )
    parser.add_argument(
        "--only", metavar="TASK,...", default=",".join(TASKS), help="some of %(default)s"
    )
    parser.add_argument("--rounds", type=int, help="turns of each contestant [3]")
    parser.add_argument(
        "--quick", action="store_true", help="one small round of everything: does it run?"
    )
    parser.add_argument(
        "--device", default="cpu", choices=["cpu", "cuda"], help="of training and inference [cpu]"
    )
    parser.add_argument(
        "--precision",
        metavar="FORMAT,...",
        help="of the model's tasks [fp32; with --device cuda bf16,fp16]",
    )
    parser.add_argument("--threads", type=int, help="CPU threads [torch's own choice]")
    parser.add_argument("--json", metavar="FILE", help="write machine and rows there too")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write. Returns the exit status."""
    from bertqa.device import DTYPES

    args = parse_args(argv)
    if args.alone:
        return alone(*json.loads(args.alone))
    tasks = args.only.split(",")
    if unknown := [task for task in tasks if task not in TASKS]:
        raise UserError(
            f"--only {','.join(unknown)}: there is no such task; use some of {','.join(TASKS)}"
        )
    dtypes = (args.precision or ("bf16,fp16" if args.device == "cuda" else "fp32")).split(",")
    if unknown := [dtype for dtype in dtypes if dtype not in DTYPES]:
        raise UserError(
            f"--precision {','.join(unknown)}: there is no such format; use some of {','.join(DTYPES)}"
        )
    if args.threads:
        os.environ["OMP_NUM_THREADS"] = str(
            args.threads
        )  # torch reads it when it is imported, here and in children
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        bench = Bench(
            args.data, args.weights, scratch, args.quick, others=tuple(filter(importable, OTHERS))
        )
        about = machine(bench)
        rows = run(bench, tasks, args.rounds or (1 if args.quick else 3), args.device, dtypes)
    peaks = {f"{row.task}: {row.peak / 1e9:,.0f} GFLOP/s" for row in rows if row.peak}
    about["peak of matrix products"] = ", ".join(sorted(peaks)) or "not measured"
    print("\n".join(f"- {name}: {value}" for name, value in about.items()) + "\n\n" + table(rows))
    if args.json:
        content = {"machine": about, "rows": [asdict(row) | {"median": row.median} for row in rows]}
        Path(args.json).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(run_verb(main))
