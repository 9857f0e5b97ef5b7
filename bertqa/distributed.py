"""The processes that torchrun starts: ranks, collective operations, gradient averaging, and failing together.

A single process is a World of one, whose operations cost nothing. Functions import torch, so that verbs start without it.
"""

import contextlib
import itertools
import math
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from bertqa.errors import UserError, first_sentence

TIMEOUT = 600.0
"""Seconds to wait for another process at most; longer than any evaluation or save takes between two exchanges."""
TIMEOUT_AFTER_SIGNAL = 20.0
"""The same after a signal to stop: torchrun sends SIGKILL 30 s after SIGTERM."""
SETTLE = 0.1
"""Seconds to sleep before destroy_process_group: it holds Python's lock, which gloo's threads need to end (torch 2.6 hung)."""
ERROR_KEY = "bertqa: an error"
"""Key of torch's store; the process that increments it first is the one that reports the error."""


class StopEvaluation(BaseException):
    """Raised in an evaluation after a signal to stop. Not an Exception, so that no `except Exception` catches it."""


@dataclass(frozen=True)
class World:
    """The processes of a run. Rank 0 writes files and to the console."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    store: object = None
    """torch's key-value store, shared by all processes."""
    turns: Iterator[int] = field(default_factory=itertools.count)
    """Numbers the calls of `in_turn`."""
    leave: threading.Event = field(default_factory=threading.Event, compare=False)
    """Set when this process was asked to break off what it computes with the others; `gather` heeds it."""

    @property
    def first(self) -> bool:
        """Whether this process is rank 0, which writes."""
        return self.rank == 0

    def any(self, *flags: bool) -> list[bool]:
        """Return for each flag whether it is true on any rank, so that all ranks decide alike at the same step."""
        return [total > 0 for total in self._sums(flags)]

    def sum(self, value: float) -> float:
        """Return the sum of `value` over all ranks."""
        return self._sums([value])[0]

    def _sums(self, values: Sequence[float]) -> Sequence[float]:
        if self.size == 1:
            return values
        import torch

        # on the host (gloo), so that a small decision does not wait for the GPU
        totals = torch.tensor(values, dtype=torch.float64)
        _wait(torch.distributed.all_reduce(totals, async_op=True))
        return totals.tolist()

    def gather(self, value) -> list:
        """Return every rank's `value`, in rank order. Raise StopEvaluation on all ranks if `leave` is set on one."""
        if self.size == 1:
            return [value]
        from torch.distributed import all_gather_object

        # This also waits for the others in Python code, where signal handlers run; all_gather_object would not.
        if self.any(self.leave.is_set())[0]:
            raise StopEvaluation
        gathered = [None] * self.size
        all_gather_object(gathered, value)
        return gathered

    def in_turn(self, make: Callable):
        """Call `make` on rank 0, then on the first process of each other machine, then on the rest; return its result.

        For functions that cache on disk: later calls find what the first left. There is no timeout: it may be a download.
        """
        if self.size == 1:
            return make()
        call = next(self.turns)
        my_turn = 1 if self.local_rank == 0 else 2
        if self.first:
            my_turn = 0
        for turn in range(3):
            if turn == my_turn:
                made = make()
            # A barrier after each turn: every process counts itself, then polls the count; after an error all exit.
            barrier = f"bertqa: call {call}, turn {turn}"
            self.store.add(barrier, 1)
            while self.store.add(barrier, 0) < self.size:
                if self.store.add(ERROR_KEY, 0):
                    raise SystemExit(1)
                time.sleep(0.02)
        return made

    def wrap(self, model, device):
        """Return a model whose backward pass averages gradients over ranks; for a single process, the model itself."""
        if self.size == 1:
            return model
        from torch.nn.parallel import DistributedDataParallel

        devices = [device] if device.type == "cuda" else None
        return DistributedDataParallel(model, devices, gradient_as_bucket_view=True)


class FirstSignal:
    at = math.inf
    """time.monotonic() when the first signal to stop came."""


def _wait(work) -> None:
    """Wait for a collective operation in Python code, where signal handlers run. Raise UserError after the timeout."""
    began = time.monotonic()
    pause = 0.0
    while not work.is_completed():
        now = time.monotonic()
        waited = now - began
        if waited > TIMEOUT or now - max(began, FirstSignal.at) > TIMEOUT_AFTER_SIGNAL:
            raise UserError(_lost_process(f"waited for {waited:.0f} s"))
        time.sleep(pause)
        pause = min(0.01, pause + 1e-5)  # grows from 0, so that a short wait costs next to nothing
    work.wait()  # raises the operation's error, if it had one


def _lost_process(seen: str, how: str = "hangs or has died") -> str:
    """Word the message about another process of the run; `seen` is the symptom in this one."""
    return (
        f"another process of this run {how}; where it says nothing, the system has killed it, for its "
        "memory for example. Training goes on from the last checkpoint with --resume, in as many processes. "
        f"(As seen from here: {seen})"
    )


@contextlib.contextmanager
def world_of_torchrun() -> Iterator[World]:
    """Yield the World that torchrun's environment variables describe, or a World of one.

    Only the first process of each machine has a console. The first process with an error raises it; the others exit.

    Raises:
        UserError: if the environment variables are incomplete or wrong, or another process of the run hangs or has died.
    """
    described = _described()
    if described is None:
        yield World()
        return
    world = _join(described)
    import torch.distributed as dist

    try:
        with _console(world.local_rank == 0), _watched(world.store):
            yield world
    except (Exception, KeyboardInterrupt) as error:
        # A process that fails breaks the others' connections: their errors come later, and say nothing new.
        if not _is_first(world.store):
            raise SystemExit(1) from None
        is_lost_connection = isinstance(error, RuntimeError) and "gloo" in str(error).lower()
        if not isinstance(error, dist.DistError) and not is_lost_connection:
            raise
        seen = str(error).split(". ")[0]
        how = "hangs or has died" if "timed out" in seen.lower() else "has died"
        raise UserError(_lost_process(seen, how)) from None
    time.sleep(SETTLE)
    dist.destroy_process_group()


def _described() -> World | None:
    """Read rank, size and local rank from the environment; return None for a single process."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return None
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    missing = [name for name in names if name not in os.environ]
    if missing and os.environ["WORLD_SIZE"] == "1":
        return None
    way_out = "start several processes with torchrun, or unset RANK and WORLD_SIZE to run one"
    if missing:
        raise UserError(f"RANK and WORLD_SIZE are set, but {', '.join(missing)} not; {way_out}")
    values = {name: os.environ[name] for name in names if name != "MASTER_ADDR"}
    wrong = [f"{name} is {value!r}" for name, value in values.items() if not value.isdecimal()]
    if wrong:
        raise UserError(f"{', '.join(wrong)}: not a whole number; {way_out}")
    rank = int(values["RANK"])
    size = int(values["WORLD_SIZE"])
    if rank >= size:
        way_out = f"ranks are counted from 0; {way_out}"
        raise UserError(f"RANK is {rank}, but WORLD_SIZE {size}; {way_out}")
    return World(rank, size, int(values["LOCAL_RANK"]))


def _join(described: World) -> World:
    """Create the process group and return the world with its store. Raise UserError if the others cannot be reached."""
    import torch
    import torch.distributed as dist

    rank, size = described.rank, described.size
    backend = "gloo"
    if torch.cuda.is_available():
        backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(described.local_rank % torch.cuda.device_count())
    limit = timedelta(seconds=TIMEOUT)
    try:
        store, *_ = next(dist.rendezvous("env://", rank, size, timeout=limit))
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=limit)
    except (dist.DistError, RuntimeError, ValueError) as error:
        at = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']} ({first_sentence(error)})"
        what = f"could not meet the other {size - 1} processes at {at}"
        raise UserError(f"{what}; are all of them started?") from None
    return World(rank, size, described.local_rank, store)


def _is_first(store) -> bool:
    """Return whether no other process has reported an error yet; also true if the store no longer answers."""
    try:
        store.set_timeout(timedelta(seconds=10))
        return store.add(ERROR_KEY, 1) == 1
    except Exception:
        return True


@contextlib.contextmanager
def _console(shown: bool) -> Iterator[None]:
    """Discard what Python writes to stdout and stderr inside, unless `shown`."""
    if shown:
        yield
        return
    with open(os.devnull, "w") as nowhere:
        with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            yield


@contextlib.contextmanager
def _watched(store) -> Iterator[None]:
    """Watch for signals in a thread, because the main thread handles none while it waits for other ranks inside of torch.

    If the main thread stays in one place there for TIMEOUT_AFTER_SIGNAL seconds after a signal, the process exits.
    """
    # The interpreter writes a byte to the wake-up socket when a signal comes, whatever the main thread does.
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    try:
        before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    except ValueError:  # only the main thread may do that, and only it gets signals
        yield
        return
    FirstSignal.at = math.inf
    threading.Thread(target=_watch, args=(reader, store), daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        writer.close()


def _watch(reader: socket.socket, store) -> None:
    """Wait for a signal and note its time; from then on, exit the process if its main thread is stuck in torch."""
    if not reader.recv(1):
        return
    FirstSignal.at = time.monotonic()
    stuck_since = FirstSignal.at
    before = None
    while True:
        time.sleep(0.1)
        place = _waiting_place()
        if place is None or place != before:
            stuck_since = time.monotonic()
        before = place
        if time.monotonic() - stuck_since > TIMEOUT_AFTER_SIGNAL:
            if _is_first(store):
                seen = f"no answer for {TIMEOUT_AFTER_SIGNAL:.0f} s after a signal to stop"
                os.write(2, f"\nerror: {_lost_process(seen)}\n".encode())
            os._exit(1)  # sys.exit would wait for the main thread


def _waiting_place() -> tuple[int, int] | None:
    """Return the main thread's frame and instruction if it is in torch's multi-process code, else None."""
    frame = sys._current_frames().get(threading.main_thread().ident)
    waits = re.compile(r"[\\/]torch[\\/](autograd|distributed|nn[\\/]parallel)[\\/]")
    if frame is None or not waits.search(frame.f_code.co_filename):
        return None
    return id(frame), frame.f_lasti


def without_sync(model, last: bool) -> contextlib.AbstractContextManager:
    """Return a context for a micro-batch's backward pass: ranks exchange gradients in the last one only."""
    if last or not hasattr(model, "no_sync"):
        return contextlib.nullcontext()
    return model.no_sync()
