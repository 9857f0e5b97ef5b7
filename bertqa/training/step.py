"""One optimizer step, in the order of its arithmetic: forward, backward, unscale, clip, update, average.

The loss of a step is the sum over its windows, on all ranks and in all micro-batches, divided once by their number; so
accumulation and several GPUs give the numbers of one big batch.
"""

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from bertqa.data.batches import split_by_tokens
from bertqa.device import autocast, grad_scaler
from bertqa.distributed import without_sync
from bertqa.model.attention import Layout
from bertqa.training.job import Job
from bertqa.training.optim import Average, make_optimizer, set_lr
from bertqa.training.progress import Progress, require_finite


@dataclass
class StepResult:
    """What a step found; the tensors may still be on their way on a GPU."""

    loss: Tensor
    """(): this rank's share of the mean loss over the step's windows."""
    norm: Tensor
    """(): the gradient's norm before clipping."""
    scale: float | None
    """fp16's loss scale behind the step; None in other formats."""
    skipped: bool
    """Whether the loss scaler left the update out, for gradients that were not finite."""


class Step:
    """Takes optimizer steps: `step(rows, lr, progress)` trains the job's model on the windows `rows`."""

    def __init__(self, job: Job):
        self.job = job
        self.model = job.world.wrap(job.model, job.device)
        self.cast = autocast(job.device, job.dtype)
        self.optimizer = make_optimizer(job.model, job.optim, job.device)
        self.scaler = grad_scaler(job.device, job.dtype)
        self.average = Average(job.model, job.settings.ema)

    def __call__(self, rows: np.ndarray, lr: float, progress: Progress) -> StepResult:
        """Train on the windows `rows`, of which each rank takes its share.

        Raises:
            UserError: where loss or gradient is not finite and to know so costs nothing (not on a GPU, not in fp16).
        """
        job = self.job
        set_lr(self.optimizer, lr, progress.step - progress.skipped, job.optim)
        mine = rows[job.world.rank :: job.world.size]
        loss = self.forward_backward(mine, len(rows))

        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(job.model.parameters(), job.optim.clip or math.inf)
        if job.device.type != "cuda" and job.dtype != torch.float16:
            # Before the update, so that the weights are saved too.
            require_finite(float(loss), float(norm), progress.step, job.run)
        skipped = self.update()
        if not skipped:
            self.average.update()
        scale = self.scaler.get_scale() if self.scaler.is_enabled() else None
        return StepResult(loss, norm, scale, skipped)

    def forward_backward(self, rows: np.ndarray, windows: int) -> Tensor:
        """Gradients of the mean loss over `windows` windows, of which this rank has `rows`.

        Returns this rank's share of that mean, ().
        """
        job = self.job
        store = job.task.store
        micros = split_by_tokens(rows, store.lengths, job.settings.micro_tokens)
        share = 1 / windows
        if not micros:
            # A rank without windows (the last batch was too small for all) still takes part in the exchange of gradients.
            micros = [np.zeros(1, np.int64)]
            share = 0.0
        total = torch.zeros((), device=job.device)
        for number, micro in enumerate(micros, 1):
            batch = store.batch(micro)
            layout = Layout.of_batch(batch)
            with without_sync(self.model, last=number == len(micros)):
                with self.cast:
                    loss = job.task.loss(self.model, batch, layout) * share
                # DDP averages over ranks; the sum is wanted.
                self.scaler.scale(loss * job.world.size).backward()
            total = total + loss.detach()
        return total

    def update(self) -> bool:
        """Let the optimizer use the gradients up. Returns whether fp16's scaler skipped it."""
        before = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return self.scaler.get_scale() < before

    def weights_to_keep(self) -> AbstractContextManager:
        """Inside, the model holds the weights to evaluate and keep: the averages, where there are any."""
        return self.average.in_place()

    def state_dict(self) -> dict:
        """What the next step depends on, beside the model: state by part."""
        return {name: part.state_dict() for name, part in self._parts.items()}

    def load_state_dict(self, state: dict) -> None:
        """Put back what `state_dict` returned."""
        for name, part in self._parts.items():
            part.load_state_dict(state[name])

    @property
    def _parts(self) -> dict:
        return {"optimizer": self.optimizer, "scaler": self.scaler, "average": self.average}
