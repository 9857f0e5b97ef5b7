"""Several processes: the numbers of one, shared evaluation, one that dies, one error for all, torchrun itself."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
from processes import (
    die_at_step,
    journal,
    most_apart,
    nan_loss_at,
    python,
    result,
    run_ranks,
    signal_in_evaluation,
    small_work,
    start_ranks,
    static_steps,
    training,
    wait,
    weights,
)
from servers import free_port
from torch.distributed import TCPStore

from bertqa import UserError, distributed

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked here")

# 53 windows in batches of 4: the last batch of an epoch has one, so that two of three ranks have none. The gradient of some
# biases is zero (a shift of all keys, or of all logits, changes no softmax); what rounding leaves of it is another on other
# ranks, and with a tiny eps Adam would make whole steps of that.
STEPS = [
    "--batch-size",
    "4",
    "--max-steps",
    "20",
    "--epochs",
    "9",
    "--dropout",
    "0",
    "--micro-tokens",
    "30",
    "--eps",
    "1e-4",
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_model, letters):
    """Run folders of the same 20 steps on 1, 2 and 3 ranks."""
    folder = tmp_path_factory.mktemp("ranks")
    for size in (1, 2, 3):
        run_ranks(
            training(tiny_model, letters, folder / f"run{size}", *STEPS),
            size,
            folder / f"logs{size}",
            small_work,
        )
    return {size: folder / f"run{size}" for size in (1, 2, 3)}


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_train_like_one(runs, size):
    assert 0 < most_apart(weights(runs[1]), weights(runs[size])) < 1e-6
    for one, many in zip(journal(runs[1]), journal(runs[size]), strict=True):
        assert one["step"] == many["step"] and one["loss"] == pytest.approx(many["loss"], abs=1e-6)


@pytest.mark.parametrize("size", [2, 3])
def test_static_steps_of_ranks_are_those_of_one(tmp_path, runs, tiny_model, letters, size):
    """Without DDP: each rank adds up its gradients, then all exchange them. Of three ranks two have no window in the last
    batch of an epoch."""
    out = tmp_path / "run"
    args = training(tiny_model, letters, out, *STEPS)
    run_ranks(args, size, tmp_path / "logs", small_work, static_steps)
    assert 0 < most_apart(weights(runs[1]), weights(out)) < 1e-6
    for one, many in zip(journal(runs[1]), journal(out), strict=True):
        assert one["step"] == many["step"] and one["loss"] == pytest.approx(many["loss"], abs=1e-6)


@pytest.mark.parametrize("size", [2, 3])
def test_shared_evaluation_is_that_of_one(runs, size):
    """Before the first step the weights are the same: then so is every digit of every metric."""
    assert journal(runs[size])[0] == journal(runs[1])[0] and journal(runs[1])[0]["event"] == "eval"


@pytest.mark.parametrize("size", [2, 3])
def test_predictions_of_ranks_are_those_of_one(tmp_path, tiny_model, letters, size):
    """53 questions in shares of 8 and 10: six turns for one, two for three; in order, and the same to the last byte."""
    for count in (1, size):
        run_ranks(
            ["predict", "--model", tiny_model, "--data", letters, "--n-best", "20"]
            + ["--out", tmp_path / str(count)],
            count,
            tmp_path / f"logs{count}",
            small_work,
        )
    for name in ("predictions.json", "nbest_predictions.json", "null_odds.json"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / str(size) / name).read_bytes()


def test_only_the_first_rank_speaks_and_writes(tmp_path, tiny_model, letters):
    said = run_ranks(
        training(tiny_model, letters, tmp_path / "run", "--max-steps", "1"), 2, tmp_path / "logs"
    )
    other = (tmp_path / "logs" / "rank1").read_text().splitlines()
    other = [line for line in other if not line.startswith("[Gloo] ")]  # torch 2.10's own
    assert said.count("1 steps of 16 windows") == 1 and other == []
    assert len(journal(tmp_path / "run")) == 3


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--train", "/nowhere.json"], "error: /nowhere.json: there is no such file"),
        (["--no-such-flag"], "error: there is no --no-such-flag"),
    ],
)
def test_a_mistake_is_told_once(tmp_path, tiny_model, letters, flags, says):
    statuses, said = wait(
        start_ranks(training(tiny_model, letters, tmp_path / "run", *flags), 2, tmp_path), tmp_path
    )
    assert all(statuses) and said.count("error: ") == 1 and says in said and "Traceback" not in said


@pytest.mark.parametrize(
    ("hook", "says"),
    [
        (partial(nan_loss_at, 4), "error: step 4: the loss is"),
        (partial(die_at_step, 9), "error: another process of this run has died"),
    ],
    ids=["nan", "kill -9"],
)
def test_one_rank_fails_and_the_run_can_be_resumed(tmp_path, runs, tiny_model, letters, hook, says):
    """All ranks end, one error is told, and two ranks go on to what they would have reached undisturbed."""
    args = training(tiny_model, letters, tmp_path / "run", *STEPS, "--save-every", "0")
    statuses, said = wait(start_ranks(args, 2, tmp_path, small_work, only={1: hook}), tmp_path)
    assert (
        all(statuses) and said.count("error: ") == 1 and says in said and "Traceback" not in said
    ), said
    run_ranks(["train", "--resume", tmp_path / "run"], 2, tmp_path / "logs", small_work)
    assert result(tmp_path / "run") == result(runs[2])


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_stops_all_at_the_same_step(tmp_path, runs, tiny_model, letters, rank):
    args = training(tiny_model, letters, tmp_path / "run", *STEPS)
    hook = partial(die_at_step, 9, signal.SIGTERM)
    statuses, said = wait(start_ranks(args, 2, tmp_path, small_work, only={rank: hook}), tmp_path)
    assert statuses == [130, 130] and "go on with: python -m bertqa.train --resume" in said
    alone, said = wait(start_ranks(["train", "--resume", tmp_path / "run"], 1, tmp_path), tmp_path)
    assert alone == [2] and "cannot resume, because processes was 2, now 1" in said
    run_ranks(["train", "--resume", tmp_path / "run"], 2, tmp_path / "logs", small_work)
    assert result(tmp_path / "run") == result(runs[2])


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_breaks_off_an_evaluation_that_is_shared(
    tmp_path, runs, tiny_model, letters, rank
):
    """Whichever rank got it, all leave it at the same batch; the resumed run makes the evaluation that it owes."""
    args = training(tiny_model, letters, tmp_path / "run", *STEPS)
    hook = partial(signal_in_evaluation, 2, signal.SIGTERM)
    statuses, said = wait(start_ranks(args, 2, tmp_path, small_work, only={rank: hook}), tmp_path)
    assert statuses == [130, 130] and ("stopping in this evaluation" in said) == (rank == 0)
    assert [line["step"] for line in journal(tmp_path / "run") if line["event"] == "eval"] == [0]
    run_ranks(["train", "--resume", tmp_path / "run"], 2, tmp_path / "logs", small_work)
    assert result(tmp_path / "run") == result(runs[2])


TEN_WORLDS = """
import os
from bertqa.distributed import world_of_torchrun
for port in os.environ["PORTS"].split():
    os.environ["MASTER_PORT"] = port
    with world_of_torchrun() as world:
        assert world.gather([world.rank] * 1000)[1][0] == 1
"""


def test_processes_end_right_after_an_exchange(tmp_path):
    """With torch 2.6 one of two stood still for ever within six such ends: see distributed.SETTLE."""
    stores = [TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False) for _ in range(10)]
    environment = {
        **os.environ,
        "PORTS": " ".join(str(store.port) for store in stores),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    processes = []
    for rank in ("0", "1"):
        (tmp_path / rank).mkdir()
        own = {**environment, "RANK": rank, "LOCAL_RANK": rank}
        processes.append(python(["-c", TEN_WORLDS], tmp_path, own, tmp_path / rank))
    for process in processes:
        process.join(60)
    statuses = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    assert statuses == [0, 0], (tmp_path / "0" / "err").read_text()


# ---- a process that hangs ----


def stop_at_step(step: int) -> None:
    """Stops itself, as SIGSTOP or a lost disk does, before this step."""
    die_at_step(step, signal.SIGSTOP)


def hurry(timeout: float, patience: float) -> None:
    """Waits for others as long as this."""
    distributed.TIMEOUT = timeout
    distributed.TIMEOUT_AFTER_SIGNAL = patience


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("signalled", [False, True], ids=["time out", "SIGTERM"])
def test_a_process_that_hangs_is_told(tmp_path, tiny_model, letters, rank, signalled):
    """The others wait for a while, and a short while once a signal has come; then they end with one line."""
    args = training(tiny_model, letters, tmp_path / "run", *STEPS, "--save-every", "0")
    hook = partial(hurry, 3.0, 60.0) if not signalled else partial(hurry, 60.0, 2.0)
    processes = start_ranks(args, 2, tmp_path, hook, only={rank: partial(stop_at_step, 9)})
    stopped, other = processes[rank], processes[1 - rank]
    wait_for_step(tmp_path / "run", 8)
    time.sleep(1)  # until the other one waits
    if signalled:
        os.kill(other.pid, signal.SIGTERM)
    other.join(40)
    stopped.kill()
    stopped.join()
    said = (tmp_path / f"rank{1 - rank}").read_text()
    assert other.exitcode in (1, 2), said
    assert "Traceback" not in said and said.count("error: another process of this run hangs") == 1
    assert "--resume" in said


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        (
            {"RANK": "1", "WORLD_SIZE": "2"},
            "LOCAL_RANK, MASTER_ADDR, MASTER_PORT not; start several",
        ),
        ({"RANK": "x", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "RANK is 'x': not a whole number"),
        ({"RANK": "2", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "RANK is 2, but WORLD_SIZE 2"),
    ],
)
def test_half_a_world_is_refused(monkeypatch, environment, says):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    if "LOCAL_RANK" in environment:
        environment = {**environment, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=says), distributed.world_of_torchrun():
        pass
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with distributed.world_of_torchrun() as world:
        assert world.size == 1 and world.first


# ---- torchrun itself ----


def torchrun(flags, args, log):
    """Start torchrun; it and its processes write to `log`."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        *map(str, flags),
        "-m",
        f"bertqa.{args[0]}",
        *map(str, args[1:]),
    ]
    return subprocess.Popen(
        command,
        stdout=log.open("ab"),
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def wait_for_step(run_folder, step, seconds=300):
    """Wait until the run has taken so many steps."""
    journal, end = run_folder / "metrics.jsonl", time.monotonic() + seconds
    while not journal.exists() or journal.read_bytes().count(b'"train"') < step:
        assert time.monotonic() < end, "the run does not move"
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL], ids=["term", "int", "kill a rank"]
)
def test_torchrun_stops_and_resumes(tmp_path, tiny_model, letters, number):
    """SIGTERM or SIGINT to torchrun, or SIGKILL to one of its processes; then torchrun again, with --resume."""
    long = ["--batch-size", "4", "--epochs", "8", "--save-every", "0"]
    run_ranks(training(tiny_model, letters, tmp_path / "whole", *long), 2, tmp_path / "logs")
    agent = torchrun(
        ["--nproc-per-node", "2"],
        training(tiny_model, letters, tmp_path / "run", *long),
        tmp_path / "log",
    )
    wait_for_step(tmp_path / "run", 30)
    if number == signal.SIGKILL:
        children = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(agent.pid)], capture_output=True, text=True
        )
        os.kill(max(map(int, children.stdout.split())), number)
    else:
        agent.send_signal(number)
    assert agent.wait(120) != 0
    said = (tmp_path / "log").read_text()
    assert ("go on with" in said) == (number != signal.SIGKILL)
    assert said.count("another process of this run has died") == (number == signal.SIGKILL), said
    agent = torchrun(
        ["--nproc-per-node", "2"], ["train", "--resume", tmp_path / "run"], tmp_path / "log"
    )
    assert agent.wait(300) == 0, (tmp_path / "log").read_text()
    assert result(tmp_path / "run") == result(tmp_path / "whole")


@pytest.mark.slow
def test_two_machines(tmp_path, runs, tiny_model, letters):
    """Two torchrun agents that meet at an address, each with one process: as README starts two machines, but here."""
    flags = [
        "--nnodes",
        "2",
        "--nproc-per-node",
        "1",
        "--rdzv-id",
        "qa",
        "--rdzv-backend",
        "c10d",
        "--rdzv-endpoint",
        f"127.0.0.1:{free_port()}",
    ]
    args = training(tiny_model, letters, tmp_path / "run", *STEPS)
    agents = [torchrun(flags, args, tmp_path / f"log{node}") for node in (0, 1)]
    statuses = [agent.wait(300) for agent in agents]
    said = "".join((tmp_path / f"log{node}").read_text() for node in (0, 1))
    assert statuses == [0, 0] and said.count("20 steps of 4 windows") == 1, said
    assert most_apart(weights(tmp_path / "run"), weights(runs[2])) == 0


@pytest.mark.slow
def test_torchrun_predicts_like_one_process(tmp_path, tiny_model, letters):
    """A file of 4,240 questions: shares of up to 512 for two processes, merged in order."""
    rows = [json.loads(line) for line in letters.read_text().splitlines()]
    many = [{**row, "id": f"{row['id']}-{copy}"} for copy in range(80) for row in rows]
    (tmp_path / "many.jsonl").write_text("".join(json.dumps(row) + "\n" for row in many))
    for size in (1, 2):
        args = [
            "predict",
            "--model",
            tiny_model,
            "--data",
            tmp_path / "many.jsonl",
            "--n-best",
            "20",
            "--out",
            tmp_path / str(size),
        ]
        assert torchrun(["--nproc-per-node", size], args, tmp_path / f"log{size}").wait(300) == 0
    for name in ("predictions.json", "nbest_predictions.json", "null_odds.json"):
        found = (tmp_path / "2" / name).read_bytes()
        assert found == (tmp_path / "1" / name).read_bytes() and list(json.loads(found)) == [
            row["id"] for row in many
        ]
