"""Runs of bertqa in processes of their own, to be killed: forked from a server that has imported torch once for all.

Hooks are called in the new process before the verb, each with the arguments that functools.partial has bound to it.
"""

import importlib.util
import json
import multiprocessing
import os
import re
import resource
import runpy
import signal
import sys
import time
import types
import warnings
from pathlib import Path

from safetensors.torch import load_file

SHORT = [
    "--max-length",
    "32",
    "--overlap",
    "4",
    "--max-question",
    "8",
    "--lr",
    "1e-3",
    "--seed",
    "1",
    "--threads",
    "1",
]
TIMES = {"time", "seconds", "windows_per_s", "tokens_per_s", "peak_memory_mb"}
"""Fields of the journal that tell of the clock or the machine, not of the run."""

FILE_EVENTS = {
    "open",
    "os.rename",
    "os.remove",
    "os.mkdir",
    "os.rmdir",
    "os.truncate",
    "shutil.rmtree",
}

server = multiprocessing.get_context("forkserver")
server.set_forkserver_preload(
    [
        "torch._dynamo",
        "torch._inductor.config",
        "torch.distributed",
        "bertqa.train",
        "bertqa.predict",
        "bertqa.reader",
        "bertqa.hf.convert",
        "bertqa.training.classification",
        "bertqa.training.loop",
        "bertqa.training.question_answering",
    ]
)


def training(tiny_model, letters, out, *more) -> list[str]:
    """The arguments of a short run."""
    return [
        "train",
        "--train",
        str(letters),
        "--dev",
        str(letters),
        "--weights",
        str(tiny_model),
        "--out",
        str(out),
        *SHORT,
        *more,
    ]


def start(args, log: Path, *hooks, **environment):
    """Start `bertqa VERB ARGUMENTS`; what it says on either stream is added to `log`."""
    process = server.Process(
        target=_child, args=(list(map(str, args)), str(log), hooks, environment)
    )
    process.start()
    return process


def python(argv, cwd: Path, environment: dict[str, str], said: Path, typed: Path | None = None):
    """Start what `python ARGV` does, of `-m MODULE ...`, `-c CODE` or a script: without the seconds of importing torch.

    It has this environment only. What it says on its two streams stands in the files out and err of the folder `said`.
    """
    streams = (str(typed or os.devnull), str(said / "out"), str(said / "err"))
    process = server.Process(target=_python, args=(argv, str(cwd), environment, streams))
    process.start()
    return process


def _python(argv: list[str], cwd: str, environment: dict[str, str], streams) -> None:
    modes = (
        os.O_RDONLY,
        os.O_CREAT | os.O_WRONLY | os.O_TRUNC,
        os.O_CREAT | os.O_WRONLY | os.O_TRUNC,
    )
    for number, (path, mode) in enumerate(zip(streams, modes, strict=True)):
        os.dup2(os.open(path, mode), number)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    os.setsid()  # so that all of it can be killed
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = environment.get("PYTHONPATH", "").split(os.pathsep)
    # The module is in sys.modules already, which runpy warns of; it is run anew.
    warnings.filterwarnings("ignore", "'bertqa", RuntimeWarning)
    if importlib.util.find_spec("sitecustomize"):
        runpy.run_module("sitecustomize")
    what, *rest = argv
    if what == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif what == "-c":
        sys.argv = ["-c", *rest[1:]]
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(rest[0], main.__dict__)
    else:
        sys.argv = argv
        sys.path.insert(0, os.path.dirname(what))
        runpy.run_path(what, run_name="__main__")


def run(args, log: Path, *hooks, status: int = 0) -> str:
    """Start and wait; what it said."""
    process = start(args, log, *hooks)
    process.join(300)
    said = log.read_text()
    assert process.exitcode == status, (
        f"exit status {process.exitcode}, expected {status}: {said[-3000:]}"
    )
    return said


def start_ranks(args, size: int, logs: Path, *hooks, only: dict | None = None) -> list:
    """What torchrun does: `size` processes that know of each other. `only` holds one more hook for some ranks."""
    import torch.distributed as dist

    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    processes = []
    for rank in range(size):
        own = [only[rank]] if only and rank in only else []
        process = start(
            args,
            logs / f"rank{rank}",
            *hooks,
            *own,
            RANK=rank,
            LOCAL_RANK=rank,
            WORLD_SIZE=size,
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=store.port,
            TORCHELASTIC_USE_AGENT_STORE="True",
        )
        process.store = store  # lives as long as they do
        processes.append(process)
    return processes


def wait(processes, logs: Path) -> tuple[list[int], str]:
    """(exit statuses, what all of them said)."""
    for process in processes:
        process.join(300)
    return [process.exitcode for process in processes], "".join(
        path.read_text() for path in sorted(logs.glob("rank*"))
    )


def run_ranks(args, size: int, logs: Path, *hooks) -> str:
    """Start so many processes and wait until all have ended well; what they said."""
    logs.mkdir(exist_ok=True)
    statuses, said = wait(start_ranks(args, size, logs, *hooks), logs)
    assert statuses == [0] * size, said[-3000:]
    return said


def _child(args, log, hooks, environment) -> None:
    file = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ.update({name: str(value) for name, value in environment.items()})
    import torch

    from bertqa.__main__ import main

    torch.set_num_threads(1)
    afterwards = [hook() for hook in hooks]
    sys.argv = ["bertqa", *args]
    status = main()
    for act in filter(None, afterwards):
        act()
    sys.exit(status)


# ---- hooks ----


def die_at_step(step: int, number: int = signal.SIGKILL) -> None:
    """Sends itself a signal before optimizer step `step`, counted from 1 in this process."""
    at_step(step, lambda: os.kill(os.getpid(), number))


def signal_in_evaluation(call: int, number: int) -> None:
    """Sends itself a signal within evaluation `call`, counted from 1 in this process."""
    from bertqa.training.question_answering import QuestionAnswering

    whole, calls = QuestionAnswering.evaluate, []

    def evaluate(*args):
        calls.append(None)
        if len(calls) == call:
            os.kill(os.getpid(), number)
        return whole(*args)

    QuestionAnswering.evaluate = evaluate


def at_step(step: int, do) -> None:
    """Call `do` before optimizer step `step`."""
    from bertqa.training import step as taken

    update, calls = taken.set_lr, []

    def counted(*args):
        calls.append(None)
        if len(calls) == step:
            do()
        return update(*args)

    taken.set_lr = counted


def die_at_file_event(number: int, folder: str, part: str = "") -> None:
    """Kills itself before its `number`-th act on a file of `folder` whose path matches `part`."""
    count_file_events(
        folder, part, lambda count: count == number and os.kill(os.getpid(), signal.SIGKILL)
    )


def count_file_events(folder: str, part: str = "", each=None, total: str | None = None):
    """Calls `each(count)` before every act; returns what writes the count to the file `total`."""
    count = 0

    def hook(event, args):
        nonlocal count
        if event in FILE_EVENTS and isinstance(args[0], (str, Path)):
            path = str(args[0])
            if path.startswith(folder) and re.search(part, path):
                count += 1
                if each:
                    each(count)

    sys.addaudithook(hook)
    return total and (lambda: Path(total).write_text(str(count)))


def small_files_from(step: int, size: int) -> None:
    """From this step on no file can grow beyond `size` bytes."""
    at_step(step, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY)))


def nan_loss_at(step: int) -> None:
    """The loss of this step is NaN."""
    from bertqa.training.question_answering import QuestionAnswering

    whole, poison = QuestionAnswering.loss, []
    at_step(step, lambda: poison.append(float("nan")))
    QuestionAnswering.loss = lambda *args: whole(*args) + (poison.pop() if poison else 0.0)


def wild_clock() -> None:
    """The wall clock jumps by days, back and forth, each time it is read."""
    now, jump = time.time(), [1.0]

    def read():
        jump[0] *= -1.3
        return now + 86400 * jump[0] % 1e7

    time.time = read


def static_steps() -> None:
    """Steps as they are on a GPU, but for the capture: static shapes, gradients exchanged in one piece."""
    from bertqa.training import step
    from bertqa.training.capture import Plan

    step.plan_of = lambda job: Plan(static=True)


def small_work() -> None:
    """Evaluation in batches of 100 tokens, predictions in shares of 8 and 10 questions: enough of both for several ranks."""
    from bertqa import answer_file, inference

    inference.TOKENS["cpu"] = 100
    answer_file.SHARE = 10


# ---- what a run left ----


def weights(run_folder: Path, which: str = "last") -> dict:
    return load_file(run_folder / which / "model.safetensors")


def most_apart(a: dict, b: dict) -> float:
    """The largest difference between any two weights."""
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def journal(run_folder: Path) -> list[dict]:
    """Steps and evaluations, without what the clock says."""
    records = map(json.loads, (run_folder / "metrics.jsonl").read_text().splitlines())
    return [
        {name: value for name, value in record.items() if name not in TIMES}
        for record in records
        if record["event"] in ("train", "eval")
    ]


def result(run_folder: Path) -> dict:
    """All that a run leaves, without times: two of the same are equal bit for bit."""
    import torch

    state = torch.load(run_folder / "last" / "state.pt", weights_only=True)
    state["progress"].pop("seconds")
    for group in state["optimizer"]["param_groups"]:
        group.pop("lr")  # set anew before every update; the journal has it step by step
    for name in ("journal_bytes", "fingerprints"):
        state.pop(name)
    summary = json.loads((run_folder / "summary.json").read_text())
    files = [
        "predictions.json",
        "nbest_predictions.json",
        "null_odds.json",
        "rejected.jsonl",
        "best/qa.json",
        "best/model.safetensors",
        "last/model.safetensors",
    ]
    return {
        "state": repr(state),
        "rng": [generator["cpu"].tolist() for generator in state["rng"]],
        "moments": [
            moment.tolist()
            for moments in state["optimizer"]["state"].values()
            for moment in moments.values()
        ],
        "journal": journal(run_folder),
        "summary": {name: summary[name] for name in summary.keys() - TIMES},
        "leftovers": [
            path.name for path in run_folder.iterdir() if path.suffix in (".tmp", ".old", ".part")
        ],
        **{name: (run_folder / name).read_bytes() for name in files},
    }
