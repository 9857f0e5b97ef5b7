"""torchrun's processes: who am I, wrap the model, agree, gather, fail together. A single process pays nothing for it.

torch is imported where it is needed, so that a command line can be read inside of a world without it.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from bertqa.errors import UserError


@dataclass(frozen=True)
class World:
    """The processes of a run. Rank 0 writes files and the console."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

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

        shared = torch.tensor(
            values, dtype=torch.float64
        )  # on the host: small decisions never wait for the GPU
        torch.distributed.all_reduce(shared)
        return shared.tolist()

    def gather(self, value) -> list:
        """`value` of every rank, in the order of ranks, on every rank."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        gathered = [None] * self.size
        dist.all_gather_object(gathered, value)
        return gathered

    def in_turn(self, make: Callable):
        """What `make()` returns, called on rank 0 first, then on the first process of each other machine, then on the
        rest: for what the first call leaves on the disk and the others find there."""
        mine = 0 if self.first else 1 if self.local_rank == 0 else 2
        for turn in range(3):
            if turn == mine:
                made = make()
            self.gather(None)
        return made

    def wrap(self, model, device):
        """The model whose backward pass averages gradients over ranks; the model itself for a single process."""
        if self.size == 1:
            return model
        from torch.nn.parallel import DistributedDataParallel

        return DistributedDataParallel(
            model, [device] if device.type == "cuda" else None, gradient_as_bucket_view=True
        )


@contextlib.contextmanager
def world_of_torchrun() -> Iterator[World]:
    """The world that torchrun describes in the environment, or a world of one.

    Inside, only the first process of a machine has a console. Of an error that ends the run, on whichever rank, the
    first one is raised and the others leave silently with status 1.

    Raises:
        UserError: where another process of the run has died.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield World()
        return
    import torch
    import torch.distributed as dist

    rank, size, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    backend = "gloo"
    if torch.cuda.is_available():
        backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(local % torch.cuda.device_count())
    store, rank, size = next(dist.rendezvous("env://", rank, size))
    dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    try:
        with _console(local == 0):
            yield World(rank, size, local)
    except (Exception, KeyboardInterrupt) as error:
        # What a death breaks elsewhere is only its echo, and comes after it.
        if not _is_first(store, "bertqa: an error"):
            raise SystemExit(1) from None
        if (
            isinstance(error, dist.DistError)
            or isinstance(error, RuntimeError)
            and "gloo" in str(error).lower()
        ):
            raise UserError(
                "another process of this run has died; where it says nothing, the system has killed it, for "
                "its memory for example. Training goes on from the last checkpoint with --resume, in as many "
                f"processes. (As seen from here: {str(error).split('. ')[0]})"
            ) from None
        raise
    dist.destroy_process_group()


def _is_first(store, key: str) -> bool:
    """Whether this process is the first of all to ask; true where nobody is left to answer."""
    try:
        return store.add(key, 1) == 1
    except Exception:
        return True


def _console(mine: bool) -> contextlib.AbstractContextManager:
    """Python's standard output and error, or neither."""
    stack = contextlib.ExitStack()
    if not mine:
        nowhere = stack.enter_context(open(os.devnull, "w"))  # noqa: SIM115 (closed by the stack)
        stack.enter_context(contextlib.redirect_stdout(nowhere))
        stack.enter_context(contextlib.redirect_stderr(nowhere))
    return stack


def without_sync(model, last: bool) -> contextlib.AbstractContextManager:
    """For the micro-batches of a step but the last: gradients add up locally and are exchanged once."""
    return contextlib.nullcontext() if last or not hasattr(model, "no_sync") else model.no_sync()
