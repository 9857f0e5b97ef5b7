"""One optimizer step: forward, loss, backward, accumulate, clip, update, average of the weights.

The loss of a step is the sum over all its windows, on all ranks and in all micro-batches, divided once by their number.
So gradient accumulation and several GPUs give the numbers of one big batch.

A step is computed in one of two ways (capture.Plan):

eager    batches have whatever size they have; DDP adds up the gradients of the ranks
static   on GPUs: token counts are rounded up to buckets, and every tensor stays at its address, so that the work can be
         captured in CUDA graphs. Nothing in `_add_gradients` and `_update` may then read a number from the device.
"""

import math
import warnings
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from bertqa.data.batches import Batch, bucket_of, split_by_tokens, split_evenly
from bertqa.device import OnItsWay, autocast, grad_scaler, to_device
from bertqa.distributed import without_sync
from bertqa.errors import UserError
from bertqa.model.attention import Layout
from bertqa.model.copies import WeightCopies
from bertqa.model.encoder import encoder_of
from bertqa.training.capture import FusedLayers, Graphs, Plan, plan_of, settle
from bertqa.training.gradients import Gradients
from bertqa.training.job import Job
from bertqa.training.optim import Average, load_optimizer, make_optimizer, set_lr
from bertqa.training.progress import Progress, require_finite


@dataclass
class StepResult:
    """What a step reports."""

    numbers: OnItsWay
    """(2 + P,): this rank's share of the step's mean loss, the gradient norm before clipping, and this rank's share of
    each of the P parts of the loss (Task.loss_parts)."""
    scale: float | None
    """fp16's loss scale after the step; None in other formats."""
    skipped: bool
    """Whether the loss scaler skipped the update, because gradients were not finite."""


class Step:
    """Takes optimizer steps: `step(rows, lr, progress)` trains the job's model on the windows `rows`."""

    def __init__(self, job: Job, plan: Plan | None = None):
        self.job = job
        self.plan = plan_of(job) if plan is None else plan
        self.store = job.task.store
        self.micro_tokens = settle(job.settings, job.model, job.device, job.dtype).micro_tokens
        # Static steps exchange gradients once, after the backward pass; DDP does it during the pass.
        self.model = job.model if self.plan.static else job.world.wrap(job.model, job.device)
        # In a graph autocast's cache would hold casts that only existed while the graph was captured.
        self.cast = autocast(job.device, job.dtype, cache=not self.plan.static)
        self.optimizer = make_optimizer(
            job.model,
            job.optim,
            job.device,
            tensor_lr=self.plan.static,
            capturable=self.plan.captured,
            lr_factors=job.lr_factors,
        )
        self.scaler = grad_scaler(job.device, job.dtype)
        self.average = Average(job.model, job.settings.ema)
        # This rank's share of the step's mean loss, () or (P,), and the numbers of StepResult, (2 + P,).
        parts = len(job.loss_parts)
        self.loss = torch.zeros((parts,) if parts else (), device=job.device)
        self.report = torch.zeros(2 + parts, device=job.device)

        # Of static steps; see _make_static.
        self.copies: WeightCopies | None = None
        self.graphs: Graphs | None = None
        self.fused_update = None
        if self.plan.static:
            self._make_static()

    def __call__(self, rows: np.ndarray, lr: float, progress: Progress) -> StepResult:
        """Train on the windows `rows`, of which each rank takes its share.

        Raises:
            UserError: if the device has too little memory; if the loss or the gradient is not finite, except on a GPU and
                in fp16, where checking here would make the host wait (see progress.Logs and the loss scaler).
        """
        world = self.job.world
        set_lr(self.optimizer, lr, progress.step - progress.skipped, self.job.optim)
        micro_batches = self.split(rows[world.rank :: world.size])
        if self.plan.static:
            self.gradients.begin(len(micro_batches))
        try:
            for number, micro_batch in enumerate(micro_batches, 1):
                with without_sync(self.model, last=number == len(micro_batches)):
                    self.forward_backward(micro_batch, len(rows), is_first=number == 1)
            self.exchange_gradients()
            skipped = self.update(progress)
        except torch.OutOfMemoryError as error:
            raise UserError(self.out_of_memory()) from error
        scale = self.scaler.get_scale() if self.scaler.is_enabled() else None
        return StepResult(OnItsWay(self.report.clone()), scale, skipped)

    def split(self, rows: np.ndarray) -> list[np.ndarray]:
        """Split this rank's windows into micro-batches of at most `micro_tokens` tokens.

        A rank without windows (at the end of an epoch) gets one empty micro-batch: it must take part in the exchange of
        gradients.
        """
        # Static: micro-batches of one size, which need few graphs.
        split = split_evenly if self.plan.static else split_by_tokens
        return split(rows, self.store.lengths, self.micro_tokens) or [rows]

    def forward_backward(self, rows: np.ndarray, windows: int, is_first: bool) -> None:
        """Add the gradients of one micro-batch to those of the step, which has `windows` windows in all."""
        if self.plan.static:
            self._static_forward_backward(rows, windows, is_first)
            return
        share = 1 / windows
        if not len(rows):
            # Any window, with a loss that counts nothing.
            rows = np.zeros(1, np.int64)
            share = 0.0
        self._backward(self.store.batch(rows), share, is_first)

    def _backward(self, batch: Batch, share: float | Tensor, is_first: bool) -> None:
        """Forward, loss and backward of one batch; `share` is 1 / number of windows in the step."""
        layout = Layout.of_batch(batch)
        with self.cast:
            loss = self.job.task.loss(self.model, batch, layout) * share
        # DDP averages over the ranks, but the sum is wanted.
        ranks = 1 if self.plan.static else self.job.world.size
        self.scaler.scale(loss.sum() * ranks).backward()
        if is_first:
            self.loss.zero_()
        self.loss.add_(loss.detach())

    def exchange_gradients(self) -> None:
        """Add up the gradients of all ranks, unless DDP has done it."""
        if self.plan.static and self.job.world.size > 1:
            torch.distributed.all_reduce(self.gradients.flat)

    def update(self, progress: Progress) -> bool:
        """Update the weights from the gradients. Returns whether fp16's scaler skipped it."""
        # Without bias correction eps and weight decay change at each step (optim.set_lr); a graph would keep the first.
        if self.graphs is None or not self.job.optim.bias_correction:
            return self._update(progress)
        work = self._update
        if self.updates_at_once:
            self._make_fused_update()
            work = self._update_at_once
        self.graphs.run(("update", self.gradients.at_home), work, warm_up=False)
        return False

    def _update(self, progress: Progress | None = None) -> bool:
        """Unscale, clip, update, average. Returns whether fp16's scaler skipped it."""
        job = self.job
        if self.plan.static:
            self.gradients.show()
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(job.model.parameters(), job.optim.clip or math.inf)
        self._write_report(norm)
        if progress and job.device.type != "cuda" and job.dtype != torch.float16:
            # Before the update, so that the weights stay sound.
            require_finite(float(self.loss.sum()), float(norm), progress.step, job.run)
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        # After a skipped step, and only then, the scaler lowers its scale.
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

    # ---- static steps ----

    def _make_static(self) -> None:
        """Make every tensor that graphs read or write, at an address that stays."""
        job = self.job
        # Windows of this rank in a step, rounded up.
        most = -(-job.settings.batch_size // job.world.size)
        self.rows = torch.full((most,), -1, device=job.device)  # of the micro-batch; -1 = none
        self.share = torch.zeros((), device=job.device)  # 1 / windows of the step
        encoder = encoder_of(job.model)
        self.fused = FusedLayers(encoder.layers if self.plan.fused else (), job.device)
        trained = [weight for weight in job.model.parameters() if weight.requires_grad]
        # The tensors that the backward pass leaves gradients at: the weights, or their 16-bit copies.
        leaves = trained
        if self.plan.copies:
            self.copies = WeightCopies(encoder, job.dtype)
            self.cast = autocast(job.device, torch.float32)
            leaves = self.copies.of(trained)
        self.gradients = Gradients(trained, leaves)
        # Only the fused update can read gradients there, and only if there are none of other ranks to add.
        if self.updates_at_once and job.world.size == 1:
            self.gradients.make_homes()
        if self.plan.captured:
            self.graphs = Graphs(job.device, job.world.size)
            self._make_moments()

    def _static_forward_backward(self, rows: np.ndarray, windows: int, is_first: bool) -> None:
        """Like `forward_backward`, in tensors that stay; captured once for each bucket of token counts."""
        tokens = bucket_of(int(self.store.lengths[rows].sum()))
        filled = np.full(len(self.rows), -1)
        filled[: len(rows)] = rows
        self.rows.copy_(to_device(filled, self.job.device), non_blocking=True)
        self.share.fill_(1 / windows)
        work = partial(self._add_gradients, tokens, is_first)
        if self.graphs is None:
            work()
            return
        # The warm-up before a capture must not count twice.
        keep = [] if is_first else [self.gradients.flat, self.loss]
        self.graphs.run((tokens, is_first, self.gradients.at_home), work, keep)

    def _add_gradients(self, tokens: int, is_first: bool) -> None:
        """Add the gradients of the windows `self.rows` to those of the step; `tokens` is the size of the bucket."""
        batch = self.store.static_batch(self.rows, tokens)
        with ExitStack() as lent:
            lent.enter_context(self.fused.lent())
            if self.copies is not None:
                lent.enter_context(self.copies.lent())
            self._backward(batch, self.share, is_first)
        self.gradients.collect(is_first)

    def _make_moments(self) -> None:
        """Let the optimizer make its moments now; made inside a graph, each replay would make them anew.

        An update with learning rate 0 and gradients 0 leaves weights, averages and moments as they are.
        """
        for group in self.optimizer.param_groups:
            group["lr"].zero_()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns that this step is not captured
            self._update()
        for moments in self.optimizer.state.values():
            moments["step"].zero_()

    @property
    def updates_at_once(self) -> bool:
        """Whether the update is a single kernel (fused_update.py)."""
        return self.plan.captured and self.plan.fused and self.job.optim.bias_correction

    def _make_fused_update(self) -> None:
        """Make the kernel's table of addresses at the first update, when a resumed run has loaded its moments."""
        if self.fused_update is None:
            from bertqa.training.fused_update import FusedUpdate  # needs Triton

            self.fused_update = FusedUpdate(
                self.optimizer, self.gradients, self.copies, self.job.optim.clip
            )

    def _update_at_once(self) -> None:
        """Do what `_update` does: clipping, AdamW and copies in one kernel, then the average."""
        self._write_report(self.fused_update())
        self.average.update()

    # ---- evaluation and checkpoints ----

    def weights_to_keep(self) -> AbstractContextManager:
        """Inside, the model holds the weights to evaluate and keep: their moving average, if there is one."""
        return self.average.in_place()

    def state_dict(self) -> dict:
        """Return what the next step depends on, beside the model's weights."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": self.average.state_dict(),
        }

    def load_state_dict(self, state: dict) -> None:
        """Load what `state_dict` returned, perhaps on another device."""
        load_optimizer(self.optimizer, state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.average.load_state_dict(state["average"])

    def out_of_memory(self) -> str:
        """Return the error message for a device that has too little memory."""
        return (
            f"the device has too little memory for {self.micro_tokens:,} tokens at once; use "
            f"--micro-tokens {self.micro_tokens // 2} or less (gradients are added up, so the result is the same), "
            "or --recompute"
        )
