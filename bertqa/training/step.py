"""One optimizer step, in the order of its arithmetic: gather, forward, loss, backward, accumulate, clip, update, average.

The loss of a step is the sum over its windows, on all ranks and in all micro-batches, divided once by their number; so
accumulation and several GPUs give the numbers of one big batch.

A step is computed in one of two ways (capture.Plan). Eager: batches as they come, gradients exchanged by DDP. Static, on
GPUs: token counts rounded up, everything made on the device, at addresses that stay. What is static can be captured, and
nothing in it knows whether it is. So inside `_add_gradients` and `_update` nothing reads a number from the device.
"""

import math
import warnings
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from bertqa.data.batches import Batch, bucket_of, split_by_tokens, split_evenly
from bertqa.device import OnItsWay, autocast, grad_scaler, to_device
from bertqa.distributed import without_sync
from bertqa.errors import UserError
from bertqa.model.attention import Layout
from bertqa.model.copies import WeightCopies
from bertqa.training.capture import FusedLayers, Graphs, Plan, plan_of, settle
from bertqa.training.gradients import Gradients
from bertqa.training.job import Job
from bertqa.training.optim import Average, load_optimizer, make_optimizer, set_lr
from bertqa.training.progress import Progress, require_finite

if TYPE_CHECKING:
    from bertqa.training.fused_update import FusedUpdate


@dataclass
class StepResult:
    """What a step found."""

    numbers: OnItsWay
    """(2,): this rank's share of the mean loss over the step's windows, and the gradient's norm before clipping; behind
    them the share of each part of the loss, where the task has parts."""
    scale: float | None
    """fp16's loss scale behind the step; None in other formats."""
    skipped: bool
    """Whether the loss scaler left the update out, for gradients that were not finite."""


class Step:
    """Takes optimizer steps: `step(rows, lr, progress)` trains the job's model on the windows `rows`."""

    def __init__(self, job: Job, plan: Plan | None = None):
        self.job = job
        self.plan = plan_of(job) if plan is None else plan
        self.store = job.task.store
        self.micro_tokens = settle(job.settings, job.model, job.device, job.dtype).micro_tokens
        # Gradients of static steps are exchanged between two graphs and not, as DDP does, during the backward pass.
        self.model = job.model if self.plan.static else job.world.wrap(job.model, job.device)
        # Captured, autocast's cache of cast weights would hold what only existed while the graph was made.
        self.cast = autocast(job.device, job.dtype, cache=not self.plan.static)
        self.optimizer = make_optimizer(
            job.model, job.optim, job.device, self.plan.static, self.plan.captured, job.lr_factors
        )
        self.scaler = grad_scaler(job.device, job.dtype)
        self.average = Average(job.model, job.settings.ema)
        parts = len(job.loss_parts)
        self.loss = torch.zeros((parts,) if parts else (), device=job.device)
        self.report = torch.zeros(2 + parts, device=job.device)  # for the host, see StepResult
        if self.plan.static:
            self._make_static()

    def __call__(self, rows: np.ndarray, lr: float, progress: Progress) -> StepResult:
        """Train on the windows `rows`, of which each rank takes its share.

        Raises:
            UserError: where loss or gradient is not finite and to know so costs nothing (not on a GPU, not in fp16), and
                where the device has too little memory.
        """
        world = self.job.world
        set_lr(self.optimizer, lr, progress.step - progress.skipped, self.job.optim)
        micros = self.split(rows[world.rank :: world.size])
        if self.plan.static:
            self.gradients.begin(len(micros))
        try:
            for number, micro in enumerate(micros, 1):
                with without_sync(self.model, last=number == len(micros)):
                    self.forward_backward(micro, len(rows), is_first=number == 1)
            self.exchange_gradients()
            skipped = self.update(progress)
        except torch.OutOfMemoryError as error:
            raise UserError(self.out_of_memory()) from error
        scale = self.scaler.get_scale() if self.scaler.is_enabled() else None
        return StepResult(OnItsWay(self.report.clone()), scale, skipped)

    def split(self, rows: np.ndarray) -> list[np.ndarray]:
        """This rank's windows as micro-batches.

        A rank without windows (the last batch was too small for all) has one without any: it still takes part in the
        exchange of gradients.
        """
        # Micro-batches of one size need few graphs.
        split = split_evenly if self.plan.static else split_by_tokens
        return split(rows, self.store.lengths, self.micro_tokens) or [rows]

    def forward_backward(self, rows: np.ndarray, windows: int, is_first: bool) -> None:
        """Add the gradients of a micro-batch, of a step of `windows` windows, to those of the step."""
        if not self.plan.static:
            # In place of no window, one whose loss counts nothing.
            batch = self.store.batch(rows if len(rows) else np.zeros(1, np.int64))
            self._backward(batch, 1 / windows if len(rows) else 0.0, is_first)
            return
        tokens = bucket_of(int(self.store.lengths[rows].sum()))
        filled = np.full(len(self.rows), -1)
        filled[: len(rows)] = rows
        self.rows.copy_(to_device(filled, self.job.device), non_blocking=True)
        self.share.fill_(1 / windows)
        work = partial(self._add_gradients, tokens, is_first)
        if self.graphs is None:
            work()
        else:
            keep = [] if is_first else [self.gradients.flat, self.loss]
            self.graphs.run((tokens, is_first, self.gradients.at_home), work, keep)

    def _backward(self, batch: Batch, share: float | Tensor, is_first: bool) -> None:
        """Forward, loss and backward of a batch whose windows have this share each in the step's loss."""
        layout = Layout.of_batch(batch)
        with self.cast:
            loss = self.job.task.loss(self.model, batch, layout) * share
        # DDP averages over ranks; the sum is wanted.
        ranks = 1 if self.plan.static else self.job.world.size
        self.scaler.scale(loss.sum() * ranks).backward()
        if is_first:
            self.loss.zero_()
        self.loss.add_(loss.detach())

    def update(self, progress: Progress) -> bool:
        """Let the optimizer use the gradients. Returns whether fp16's scaler skipped it."""
        # Without bias correction the update's floats are others at each step, and a graph would keep the first ones.
        if self.graphs is None or not self.job.optim.bias_correction:
            return self._update(progress)
        work = self._update
        if self.updates_at_once:
            self._make_fused_update()
            work = self._update_at_once
        self.graphs.run(("update", self.gradients.at_home), work, warm_up=False)
        return False

    @property
    def updates_at_once(self) -> bool:
        """Whether the update is one kernel (fused_update.py)."""
        return self.plan.captured and self.plan.fused and self.job.optim.bias_correction

    def _update(self, progress: Progress | None = None) -> bool:
        """Unscale, clip, update, average. Returns whether fp16's scaler skipped it."""
        job = self.job
        if self.plan.static:
            self.gradients.show()
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(job.model.parameters(), job.optim.clip or math.inf)
        self._write_report(norm)
        if progress and job.device.type != "cuda" and job.dtype != torch.float16:
            # Before the update, so that the weights are saved too.
            require_finite(float(self.loss.sum()), float(norm), progress.step, job.run)
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        skipped = self.scaler.get_scale() < scale
        if not skipped:
            self.average.update()
        if self.copies is not None:
            self.copies.refresh()
        self.optimizer.zero_grad(set_to_none=True)
        return skipped

    def _write_report(self, norm: Tensor) -> None:
        self.report[:2] = torch.stack([self.loss.sum(), norm])
        if len(self.report) > 2:
            self.report[2:] = self.loss

    # ---- what is static ----

    fused_update: "FusedUpdate | None" = None
    copies: WeightCopies | None = None
    graphs: Graphs | None = None

    def _make_static(self) -> None:
        """Everything that stays where it is, so that graphs find it there."""
        job = self.job
        most = -(-job.settings.batch_size // job.world.size)  # windows of a rank in a step
        self.rows = torch.full((most,), -1, device=job.device)
        self.share = torch.zeros((), device=job.device)
        self.fused = FusedLayers(job.model.encoder.layers if self.plan.fused else (), job.device)
        trained = [weight for weight in job.model.parameters() if weight.requires_grad]
        leaves = trained
        if self.plan.copies:
            self.copies = WeightCopies(job.model.encoder, job.dtype)
            self.cast = autocast(job.device, torch.float32)
            leaves = self.copies.of(trained)
        self.gradients = Gradients(trained, leaves)
        # Only the fused update can read them there, and only where no other rank's are to be added.
        if self.updates_at_once and job.world.size == 1:
            self.gradients.make_homes()
        if self.plan.captured:
            self.graphs = Graphs(job.device, job.world.size)
            self._make_moments()

    def _add_gradients(self, tokens: int, is_first: bool) -> None:
        """What is captured for a bucket: the gradients of the windows `self.rows` are added to those of the step."""
        batch = self.store.static_batch(self.rows, tokens)
        with ExitStack() as lent:
            lent.enter_context(self.fused.lent())
            if self.copies is not None:
                lent.enter_context(self.copies.lent())
            self._backward(batch, self.share, is_first)
        self.gradients.collect(is_first)

    def _make_moments(self) -> None:
        """Let the optimizer make its moments now: what is made inside of a graph, each replay makes anew.

        An update with learning rate 0 and gradients 0 leaves weights, averages and moments as they are.
        """
        for group in self.optimizer.param_groups:
            group["lr"].zero_()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns that this step is not captured
            self._update()
        for moments in self.optimizer.state.values():
            moments["step"].zero_()

    def _make_fused_update(self) -> None:
        """Once, when the moments are where they stay: a resumed run has loaded them."""
        if self.fused_update is None:
            from bertqa.training.fused_update import FusedUpdate  # where there is Triton

            self.fused_update = FusedUpdate(
                self.optimizer, self.gradients, self.copies, self.job.optim.clip
            )

    def _update_at_once(self) -> None:
        """`_update` with clipping, AdamW and copies in one kernel."""
        self._write_report(self.fused_update())
        self.average.update()

    def exchange_gradients(self) -> None:
        """Add up the gradients of all ranks, where DDP has not done it."""
        if self.plan.static and self.job.world.size > 1:
            torch.distributed.all_reduce(self.gradients.flat)

    # ---- what travels in a checkpoint, and what is said ----

    def weights_to_keep(self) -> AbstractContextManager:
        """Inside, the model holds the weights to evaluate and keep: the averages, where there are any."""
        return self.average.in_place()

    def state_dict(self) -> dict:
        """What the next step depends on, beside the model: state by part."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": self.average.state_dict(),
        }

    def load_state_dict(self, state: dict) -> None:
        """Put back what `state_dict` returned, perhaps of a run on another device."""
        load_optimizer(self.optimizer, state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.average.load_state_dict(state["average"])

    def out_of_memory(self) -> str:
        """What to do about it."""
        return (
            f"the device has too little memory for {self.micro_tokens:,} tokens at once; use "
            f"--micro-tokens {self.micro_tokens // 2} or less (gradients are added up, so the result is the same), "
            "or --recompute"
        )
