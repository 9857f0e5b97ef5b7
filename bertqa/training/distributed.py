"""torchrun's processes: who am I, wrap the model, agree, gather. A single process needs none of it and pays nothing."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn


@dataclass(frozen=True)
class World:
    """The processes of a run. Rank 0 writes files and the console."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    control: dist.ProcessGroup | None = None
    """A group on the host (gloo), so that small decisions never wait for the GPU."""

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def any(self, *flags: bool) -> list[bool]:
        """Each flag, true if it is true on any rank: every rank then takes the same decision at the same step."""
        if self.size == 1:
            return list(flags)
        shared = torch.tensor(flags, dtype=torch.uint8)
        dist.all_reduce(shared, dist.ReduceOp.MAX, group=self.control)
        return shared.bool().tolist()

    def sum(self, value: float) -> float:
        """The sum of a number over all ranks."""
        if self.size == 1:
            return value
        shared = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(shared, group=self.control)
        return float(shared)

    def gather(self, value) -> list:
        """`value` of every rank, in the order of ranks, on every rank."""
        if self.size == 1:
            return [value]
        gathered = [None] * self.size
        dist.all_gather_object(gathered, value, group=self.control)
        return gathered

    def wrap(self, model: nn.Module, device: torch.device) -> nn.Module:
        """The model whose backward pass averages gradients over ranks; the model itself for a single process."""
        if self.size == 1:
            return model
        return nn.parallel.DistributedDataParallel(model, [device] if device.type == "cuda" else None)


@contextlib.contextmanager
def world_of_torchrun(device_name: str) -> Iterator[World]:
    """The world that torchrun describes in the environment, or a world of one. Leaves the process group at the end."""
    if "RANK" not in os.environ:
        yield World()
        return
    rank, size, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    on_gpu = device_name in ("auto", "cuda") and torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if on_gpu else "gloo")
    try:
        yield World(rank, size, local, dist.new_group(backend="gloo") if on_gpu else None)
    finally:
        dist.destroy_process_group()


def without_sync(model: nn.Module, last: bool) -> contextlib.AbstractContextManager:
    """For the micro-batches of a step but the last: gradients add up locally and are exchanged once."""
    return contextlib.nullcontext() if last or not hasattr(model, "no_sync") else model.no_sync()
