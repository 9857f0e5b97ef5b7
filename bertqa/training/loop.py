"""The training loop, `train`: one for every task.

It takes a `Job` (job.py): model, task, settings and run folder. One optimizer step is computed in step.py; logging is in
progress.py.

Example: 3 epochs of 7 steps, --eval-every 5, starting from weights that have a head already.

    evaluate                before the first step, to know where training starts from
    steps 1 to 5            evaluate, keep the best weights, save a checkpoint
    steps 6 and 7           save: the epoch has ended
    steps 8 to 10           evaluate, save
    step 11, Ctrl-C         finish the step, save; --resume goes on with step 12
    step 15, evaluate,
        Ctrl-C              stop evaluating, save; --resume evaluates, then goes on with step 16
    step 21                 evaluate and save at the end, whatever --eval-every says
"""

import math
import time
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
import torch

from bertqa.data.batches import epoch_order, step_rows
from bertqa.device import autocast
from bertqa.distributed import StopEvaluation
from bertqa.errors import UserError
from bertqa.training import checkpoint
from bertqa.training.job import Job, total_steps
from bertqa.training.optim import freeze, lr_at
from bertqa.training.progress import TIME_LIMIT, Logs, Outcome, Progress
from bertqa.training.signals import StopRequest, stop_signals
from bertqa.training.step import Step, StepResult

MAX_SKIPS = 25
"""So many fp16 steps skipped in a row end the run: by then the loss scale has fallen by 2^25."""


@dataclass
class Decision:
    """What to do between two steps, in this order: evaluate, save, stop. If none of it, take the next step."""

    evaluate: bool = False
    save: bool = False
    stop: str = ""
    """The reason to stop early; "" = go on."""


def train(job: Job) -> Outcome:
    """Train `job.model` on `job.task`. The best weights are written to run/best, checkpoints to run/last.

    Raises:
        UserError: if the loss or the gradient is not finite (in fp16: many steps in a row); says what to try.
    """
    trainer = Trainer(job)
    with stop_signals(aloud=job.world.first) as request, trainer.logs.bar:
        while True:
            # A run is evaluated, saved and stopped only here, between two steps, where nothing is half done.
            decision = trainer.decide(request.received)
            if decision.evaluate:
                trainer.evaluate(request)
            if decision.save:
                trainer.save()
            if decision.stop or trainer.finished:
                return trainer.outcome(decision.stop)
            # After an evaluation decide again: a signal may have come, and a step would delay the stop.
            if not decision.evaluate:
                trainer.step()


class Trainer:
    """The state of a run: how far it is, what is due, and the actions of the loop."""

    def __init__(self, job: Job):
        self.job = job
        self.world = job.world
        freeze(job.model, job.optim.freeze)
        # For dropout, which must differ between ranks. The order of the data uses a generator of its own.
        torch.manual_seed(job.settings.seed + job.world.rank)

        windows = len(job.task.store)
        self.steps_per_epoch = math.ceil(windows / job.settings.batch_size)
        self.total = total_steps(windows, job.settings)
        self.take_step = Step(job)
        if job.device.type == "cuda" and job.world.first:
            job.say(f"steps: {self.take_step.plan}")
        self.progress = Progress()
        if job.resumed:
            self.progress = checkpoint.restore(self.take_step, job.resumed, job)
        self.logs = Logs(job, self.progress, self.total, self.steps_per_epoch)

        # The order of the windows in one epoch; made when the epoch's first step is taken.
        self.order = np.zeros(0, np.int64)
        self.order_of_epoch = -1

        # Since this process started; a run that was stopped and resumed has had several.
        self.began = time.monotonic()
        self.first_step = self.progress.step
        self.last_metrics: dict = {}

        # The step of the last checkpoint; -1 = none.
        self.saved_step = self.progress.step if job.resumed else -1
        self.saved_at = time.monotonic()
        job.model.train()

    # ---- one step ----

    def step(self) -> None:
        """Take one optimizer step and log it."""
        job = self.job
        progress = self.progress
        rows = self.next_rows()
        # A pure function of the step, so there is no scheduler whose state must be saved.
        lr = lr_at(progress.step, self.total, job.optim)
        result = self.take_step(rows, lr, progress)
        self.count_skip(result)

        progress.step += 1
        progress.windows += len(rows)
        progress.tokens += int(job.task.store.lengths[rows].sum())
        self.logs.step(lr, result.numbers, result.scale)

    def next_rows(self) -> np.ndarray:
        """Return the windows of the next step for all ranks together: (batch_size,), fewer at the end of an epoch."""
        # The step alone says where the run is in the data, so a resumed run has nothing to replay.
        # With 7 steps an epoch, step 15 is the second one (1) of the third epoch (2).
        epoch, step_in_epoch = divmod(self.progress.step, self.steps_per_epoch)
        if epoch != self.order_of_epoch:
            self.order = epoch_order(len(self.job.task.store), self.job.settings.seed, epoch)
            self.order_of_epoch = epoch
        return step_rows(self.order, step_in_epoch, self.job.settings.batch_size)

    def count_skip(self, result: StepResult) -> None:
        """Count a step that fp16's loss scaler skipped. Raises UserError after too many in a row."""
        # Each skip halves the loss scale. A single skip is how the scaler finds the right scale; many mean divergence.
        progress = self.progress
        if not result.skipped:
            progress.skipped_in_row = 0
            return
        progress.skipped += 1
        progress.skipped_in_row += 1
        if progress.skipped_in_row >= MAX_SKIPS:
            raise UserError(
                f"fp16: {MAX_SKIPS} steps in a row had gradients that are not finite; the loss scale is down to "
                f"{result.scale:g} and the last good step was {progress.step - MAX_SKIPS + 1}. The last sound state is in "
                f"{self.job.run / 'last'}. Try --precision bf16 or fp32, or a lower --lr"
            )

    # ---- what is due ----

    @property
    def all_steps_taken(self) -> bool:
        """Whether no step is left."""
        return self.progress.step >= self.total

    @property
    def finished(self) -> bool:
        """Whether no step is left and the weights are evaluated."""
        return self.all_steps_taken and not self.evaluation_pending

    @property
    def epoch_ended(self) -> bool:
        """Whether the step just taken was the last one of its epoch."""
        return self.progress.step > 0 and self.progress.step % self.steps_per_epoch == 0

    @property
    def evaluation_due(self) -> bool:
        """Whether the run is to be evaluated at this step: at the end, and every `eval_every` steps or after every epoch."""
        every = self.job.settings.eval_every
        if self.progress.step == 0:
            return self.job.evaluate_first
        if self.all_steps_taken:
            return True
        if every:
            return self.progress.step % every == 0
        return self.epoch_ended

    @property
    def evaluation_pending(self) -> bool:
        """Whether the evaluation due at this step is not made yet."""
        return self.evaluation_due and self.progress.evaluated != self.progress.step

    @property
    def checkpoint_due(self) -> bool:
        """Whether to save at this step: after every epoch, and by steps or minutes as `save_every` says."""
        steps = self.job.settings.save_steps
        step = self.progress.step
        if step == 0:
            return False
        if self.epoch_ended or (steps and step % steps == 0):
            return True
        return time.monotonic() - self.saved_at >= 60 * self.job.settings.save_minutes

    @property
    def out_of_time(self) -> bool:
        """Whether `max_minutes` have passed since this process started and at least one step was taken."""
        minutes = self.job.settings.max_minutes
        if minutes is None or self.progress.step == self.first_step:
            return False
        return time.monotonic() - self.began >= 60 * minutes

    def decide(self, signals: list[str]) -> Decision:
        """Decide what to do before the next step; all ranks decide the same, or some would wait for the others for ever.

        A signal comes first, since SIGKILL may follow soon; a pending evaluation can be made by the resumed run.
        """
        # Signals and clocks differ between ranks. All three flags in one exchange, since it is made at every step.
        interrupted, out_of_time, checkpoint_due = self.world.any(
            bool(signals), self.out_of_time, self.checkpoint_due
        )
        unsaved = self.saved_step != self.progress.step
        if interrupted:
            reasons = [*signals, "a signal to another process"]
            return Decision(save=unsaved, stop=reasons[0])
        if self.evaluation_pending:
            return Decision(evaluate=True, save=self.progress.step > 0)
        if out_of_time and not self.all_steps_taken:
            minutes = self.job.settings.max_minutes
            return Decision(save=unsaved, stop=f"{TIME_LIMIT} of {minutes:g} minutes")
        return Decision(save=checkpoint_due and unsaved)

    # ---- evaluate and save ----

    def evaluate(self, request: StopRequest) -> None:
        """Evaluate the weights, or their moving average (--ema), and keep them in run/best if they are the best so far.

        A signal interrupts the evaluation; it then stays pending.
        """
        job = self.job
        self.logs.flush()  # in the journal the steps come before their evaluation
        with self.logs.paused(), self.take_step.weights_to_keep():
            try:
                with request.breaking_off(job.world):
                    metrics = job.task.evaluate(job.model, autocast(job.device, job.dtype))
            except StopEvaluation:
                return
            self.keep_if_best(metrics[job.task.key])
            self.logs.evaluation(metrics)
        self.last_metrics = metrics
        self.progress.evaluated = self.progress.step

    def keep_if_best(self, score: float) -> None:
        """Write the weights to run/best if they have the best score so far."""
        progress = self.progress
        if score > progress.best:  # not >=: of equal scores the earlier one stays
            progress.best = score
            progress.best_step = progress.step
            if self.world.first:
                checkpoint.keep_best(self.job)

    def save(self) -> None:
        """Write a checkpoint to run/last: the trained weights (not their average) and all that the next step depends on."""
        job = self.job
        if not job.checkpoints:
            return
        self.logs.flush()  # raises if the loss was not finite: such weights must not replace a sound checkpoint
        generators = self.world.gather(checkpoint.rng_state(job.device))
        if self.world.first:
            with self.logs.paused():
                state = {
                    **self.take_step.state_dict(),
                    "progress": asdict(self.progress),
                    "rng": generators,  # of every rank
                    "world": self.world.size,
                    "fingerprints": job.fingerprints,
                    # A resumed run cuts the journal back to this size, and writes what followed again.
                    "journal_bytes": job.journal.size,
                }
                save_model = partial(job.task.save_model, job.model, evaluated=False)
                checkpoint.save_checkpoint(job.run, save_model, state)
        self.saved_step = self.progress.step
        self.saved_at = time.monotonic()

    def outcome(self, stopped_by: str = "") -> Outcome:
        """Return how the run ended."""
        self.logs.flush()
        return Outcome(self.progress, self.last_metrics, self.finished, stopped_by)
