"""torchrun's processes: who am I, wrap the model, agree, gather, fail together. A single process pays nothing for it.

torch is imported where it is needed, so that a command line can be read inside of a world without it.
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
"""Seconds that a process waits for another at most: one that is evaluating or saving comes sooner."""
PATIENCE = 20.0
"""The same once a signal has asked to stop: torchrun sends SIGKILL after 30 s."""
LEAVE = 0.1
"""Seconds that gloo's threads have to let go of the last exchange's tensors, for which they need Python's lock. The end of
the group holds that lock and waits for the threads: with torch 2.6, one run in twenty never ended."""

ERROR = "bertqa: an error"
"""Key of the store by which the processes agree on who tells of an error."""


class StopEvaluation(BaseException):
    """Raised inside of an evaluation by a signal. No Exception: no task that evaluates should catch it."""


@dataclass(frozen=True)
class World:
    """The processes of a run. Rank 0 writes files and the console."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    store: object = None
    """torch's key-value store that all of them reach."""
    turns: Iterator[int] = field(default_factory=itertools.count)
    """Numbers the calls of `in_turn`."""
    leave: threading.Event = field(default_factory=threading.Event, compare=False)
    """Set where this process was asked to leave what it does together with the others."""

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def any(self, *flags: bool) -> list[bool]:
        """Each flag, true if it is true on any rank: every rank then takes the same decision at the same step."""
        return [total > 0 for total in self._sums(flags)]

    def sum(self, value: float) -> float:
        """The sum of a number over all ranks."""
        return self._sums([value])[0]

    def _sums(self, values: Sequence[float]) -> Sequence[float]:
        if self.size == 1:
            return values
        import torch

        # on the host: small decisions never wait for the GPU
        shared = torch.tensor(values, dtype=torch.float64)
        _wait(torch.distributed.all_reduce(shared, async_op=True))
        return shared.tolist()

    def gather(self, value) -> list:
        """`value` of every rank, in the order of ranks, on every rank. Raises StopEvaluation on all of them, where one has
        been asked to leave."""
        if self.size == 1:
            return [value]
        from torch.distributed import all_gather_object

        # This also waits for the others, in a place where signals are heard.
        if self.any(self.leave.is_set())[0]:
            raise StopEvaluation
        gathered = [None] * self.size
        all_gather_object(gathered, value)
        return gathered

    def in_turn(self, make: Callable):
        """What `make()` returns, called on rank 0 first, then on the first process of each other machine, then on the
        rest: for what the first call leaves on the disk and the others find there. The others wait as long as it takes:
        it may be a download."""
        if self.size == 1:
            return make()
        call = next(self.turns)
        mine = [self.first, self.local_rank == 0, True].index(True)
        for turn in range(3):
            if turn == mine:
                made = make()
            # All meet behind each turn; where one has failed, the others leave.
            here = f"bertqa: call {call}, turn {turn}"
            self.store.add(here, 1)
            while self.store.add(here, 0) < self.size:
                if self.store.add(ERROR, 0):
                    raise SystemExit(1)
                time.sleep(0.02)
        return made

    def wrap(self, model, device):
        """The model whose backward pass averages gradients over ranks; the model itself for a single process."""
        if self.size == 1:
            return model
        from torch.nn.parallel import DistributedDataParallel

        devices = [device] if device.type == "cuda" else None
        return DistributedDataParallel(model, devices, gradient_as_bucket_view=True)


class Heard:
    at = math.inf
    """When the first signal that asks to stop came, whatever the main thread was doing."""


def _wait(work) -> None:
    """Until the other processes have done their part, or UserError. Python runs meanwhile, so that signals are heard."""
    began = time.monotonic()
    pause = 0.0
    while not work.is_completed():
        now = time.monotonic()
        waited = now - began
        if waited > TIMEOUT or now - max(began, Heard.at) > PATIENCE:
            raise UserError(_lost(f"waited for {waited:.0f} s"))
        time.sleep(pause)
        pause = min(0.01, pause + 1e-5)  # a step that is in time pays next to nothing
    work.wait()  # raises what went wrong


def _lost(seen: str, how: str = "hangs or has died") -> str:
    return (
        f"another process of this run {how}; where it says nothing, the system has killed it, for its "
        "memory for example. Training goes on from the last checkpoint with --resume, in as many processes. "
        f"(As seen from here: {seen})"
    )


@contextlib.contextmanager
def world_of_torchrun() -> Iterator[World]:
    """The world that torchrun describes in the environment, or a world of one.

    Inside, only the first process of a machine has a console. Of an error that ends the run, on whichever rank, the
    first one is raised and the others leave silently with status 1.

    Raises:
        UserError: where the environment describes half a world, or another process of the run hangs or has died.
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
        # What a death breaks elsewhere is only its echo, and comes after it.
        if not _is_first(world.store):
            raise SystemExit(1) from None
        is_echo = isinstance(error, RuntimeError) and "gloo" in str(error).lower()
        if not isinstance(error, dist.DistError) and not is_echo:
            raise
        seen = str(error).split(". ")[0]
        how = "hangs or has died" if "timed out" in seen.lower() else "has died"
        raise UserError(_lost(seen, how)) from None
    time.sleep(LEAVE)
    dist.destroy_process_group()


def _described() -> World | None:
    """Rank, size and local rank as the environment says; None for a single process."""
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
    rank, size, local_rank, _ = map(int, values.values())
    if rank >= size:
        way_out = f"ranks are counted from 0; {way_out}"
        raise UserError(f"RANK is {rank}, but WORLD_SIZE {size}; {way_out}")
    return World(rank, size, local_rank)


def _join(described: World) -> World:
    """Meet the other processes."""
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
        raise UserError(
            f"could not meet the other {size - 1} processes at {at}; are all of them started?"
        ) from None
    return World(rank, size, described.local_rank, store)


def _is_first(store) -> bool:
    """Whether this process is the first of all to tell of an error; true where nobody is left to answer."""
    try:
        store.set_timeout(timedelta(seconds=10))
        return store.add(ERROR, 1) == 1
    except Exception:
        return True


@contextlib.contextmanager
def _console(mine: bool) -> Iterator[None]:
    """Python's standard output and error inside, or neither."""
    if mine:
        yield
        return
    with open(os.devnull, "w") as nowhere:
        with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            yield


@contextlib.contextmanager
def _watched(store) -> Iterator[None]:
    """A thread hears signals that the main thread cannot: one that waits for other ranks inside of torch runs no Python.

    Where a signal has come and the main thread stays there for PATIENCE seconds, the process ends.
    """
    ear, mouth = socket.socketpair()
    mouth.setblocking(False)
    try:
        before = signal.set_wakeup_fd(mouth.fileno(), warn_on_full_buffer=False)
    except ValueError:  # not in the main thread: signals are somebody else's
        yield
        return
    Heard.at = math.inf
    threading.Thread(target=_listen, args=(ear, store), daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        mouth.close()


def _listen(ear: socket.socket, store) -> None:
    """Note when a signal comes; then see to it that the main thread moves on."""
    if not ear.recv(1):
        return
    Heard.at = time.monotonic()
    stuck_since = Heard.at
    before = None
    while True:
        time.sleep(0.1)
        place = _waiting_place()
        if place is None or place != before:
            stuck_since = time.monotonic()
        before = place
        if time.monotonic() - stuck_since > PATIENCE:
            if _is_first(store):
                message = _lost(f"no answer for {PATIENCE:.0f} s after a signal to stop")
                os.write(2, f"\nerror: {message}\n".encode())
            os._exit(1)  # an exit in order would wait for the main thread


def _waiting_place() -> tuple | None:
    """Where in torch's code for several processes the main thread is; None where it is elsewhere."""
    frame = sys._current_frames().get(threading.main_thread().ident)
    waits = re.compile(r"[\\/]torch[\\/](autograd|distributed|nn[\\/]parallel)[\\/]")
    if frame is None or not waits.search(frame.f_code.co_filename):
        return None
    return id(frame), frame.f_lasti  # while these stay the same it has not moved


def without_sync(model, last: bool) -> contextlib.AbstractContextManager:
    """For the micro-batches of a step but the last: gradients add up locally and are exchanged once."""
    if last or not hasattr(model, "no_sync"):
        return contextlib.nullcontext()
    return model.no_sync()
