"""The training loop: one for every task, on one screen (`train`).

What a run needs is a `Job` (job.py), one of its optimizer steps is step.py, and what it tells people is progress.py.

An example: 3 epochs of 7 steps, --eval-every 5, weights that have a head already.

    evaluate            what the weights are worth before the first step
    steps 1 to 5        then evaluate, keep the best weights, save
    steps 6 and 7       save: the epoch is over
    steps 8 to 10       evaluate, save
    step 11, Ctrl-C     the step ends, save; --resume goes on with step 12
    evaluate, Ctrl-C    (behind step 15) it is broken off, save; --resume makes it, then goes on with step 16
    step 21             evaluate, save: the end, whatever --eval-every says
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
from bertqa.training.progress import Logs, Outcome, Progress
from bertqa.training.signals import StopRequest, stop_signals
from bertqa.training.step import Step, StepResult

SKIPS = 25
"""fp16 steps skipped in a row after which the run stops: by then the loss scale has fallen by 2^25."""


@dataclass
class Decision:
    """What all ranks do next: evaluate, then save, then stop; where it is nothing of these, take a step."""

    evaluate: bool = False
    save: bool = False
    stop: str = ""
    """Why the run stops early; "" where it goes on."""


def train(job: Job) -> Outcome:
    """Train `job.model` on `job.task`: the best weights go to run/best, the whole state to run/last.

    Raises:
        UserError: for a loss or gradient that is not finite (in fp16: many steps in a row), with what to try.
    """
    trainer = Trainer(job)
    with stop_signals(aloud=job.world.first) as request, trainer.logs.bar:
        while True:
            # Between two steps nothing is half done: only here a run is evaluated, saved or stopped.
            decision = trainer.decide(request.received)
            if decision.evaluate:
                trainer.evaluate(request)
            if decision.save:
                trainer.save()
            if decision.stop or trainer.finished:
                return trainer.outcome(decision.stop)
            # Behind an evaluation decide anew: a signal may have come, and the next step would delay the save.
            if not decision.evaluate:
                trainer.step()


class Trainer:
    """A run under way: how far it is, what is due, and the things that it can do."""

    def __init__(self, job: Job):
        self.job = job
        self.world = job.world
        freeze(job.model, job.optim.freeze)
        # Each rank drops other activations. The order of the data is a function of the seed, and draws from nothing.
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

        # The windows in the order of an epoch, made when its first step is taken.
        self.order = np.zeros(0, np.int64)
        self.order_of_epoch = -1

        # This sitting: a run that is stopped and resumed has several.
        self.began = time.monotonic()
        self.first_step = self.progress.step
        self.last_metrics: dict = {}

        # Of a new run not even step 0 is saved.
        self.saved_step = self.progress.step if job.resumed else -1
        self.saved_at = time.monotonic()
        job.model.train()

    # ---- a step ----

    def step(self) -> None:
        """One optimizer step: its windows, its learning rate, the step itself, and what is counted."""
        job = self.job
        progress = self.progress
        rows = self.next_rows()
        # A function of the step: there is no scheduler whose state would have to be saved.
        lr = lr_at(progress.step, self.total, job.optim)
        result = self.take_step(rows, lr, progress)
        self.count_skip(result)

        progress.step += 1
        progress.windows += len(rows)
        progress.tokens += int(job.task.store.lengths[rows].sum())
        self.logs.step(lr, result.numbers, result.scale)

    def next_rows(self) -> np.ndarray:
        """The windows of the next step, (batch_size,) or fewer at the end of an epoch; each rank takes its share of them."""
        # The place in the data is one number, the step, so a resumed run finds it without replaying anything:
        # with 7 steps an epoch, step 15 is the second one (1) of the third epoch (2).
        epoch, step_in_epoch = divmod(self.progress.step, self.steps_per_epoch)
        if epoch != self.order_of_epoch:
            self.order = epoch_order(len(self.job.task.store), self.job.settings.seed, epoch)
            self.order_of_epoch = epoch
        return step_rows(self.order, step_in_epoch, self.job.settings.batch_size)

    def count_skip(self, result: StepResult) -> None:
        """Count a step that the loss scaler skipped. Raises UserError after too many in a row."""
        # Each skip halves the scale. One now and then is how the scaler finds it; a row of them is a run that has diverged.
        progress = self.progress
        if not result.skipped:
            progress.skipped_in_row = 0
            return
        progress.skipped += 1
        progress.skipped_in_row += 1
        if progress.skipped_in_row >= SKIPS:
            raise UserError(
                f"fp16: {SKIPS} steps in a row had gradients that are not finite; the loss scale is down to "
                f"{result.scale:g} and the last good step was {progress.step - SKIPS + 1}. The last sound state is in "
                f"{self.job.run / 'last'}. Try --precision bf16 or fp32, or a lower --lr"
            )

    # ---- what is due ----

    @property
    def all_steps_taken(self) -> bool:
        """Whether the last step is behind us."""
        return self.progress.step >= self.total

    @property
    def finished(self) -> bool:
        """Whether all steps have been taken, and the evaluation at the end is made."""
        return self.all_steps_taken and not self.evaluation_owed

    @property
    def epoch_over(self) -> bool:
        """Whether the last step was the last one of its epoch."""
        return self.progress.step > 0 and self.progress.step % self.steps_per_epoch == 0

    @property
    def evaluation_due(self) -> bool:
        """At the end always; before it by steps where `eval_every` says so, else behind every epoch."""
        every = self.job.settings.eval_every
        if self.progress.step == 0:
            return self.job.evaluate_first
        if self.all_steps_taken:
            return True
        if every:
            return self.progress.step % every == 0
        return self.epoch_over

    @property
    def evaluation_owed(self) -> bool:
        """Whether the evaluation that is due here is still to be made, perhaps because a signal broke it off."""
        return self.evaluation_due and self.progress.evaluated != self.progress.step

    @property
    def checkpoint_due(self) -> bool:
        """Behind every epoch, and by steps or minutes as `save_every` says."""
        steps = self.job.settings.save_steps
        step = self.progress.step
        if step == 0:
            return False
        if self.epoch_over or (steps and step % steps == 0):
            return True
        return time.monotonic() - self.saved_at >= 60 * self.job.settings.save_minutes

    @property
    def out_of_time(self) -> bool:
        """Whether this sitting has lasted as long as it may; it takes one step at least."""
        minutes = self.job.settings.max_minutes
        if minutes is None or self.progress.step == self.first_step:
            return False
        return time.monotonic() - self.began >= 60 * minutes

    def decide(self, signals: list[str]) -> Decision:
        """What comes next, the same on every rank: those who went on alone would wait for ever.

        A signal comes first: who sends one may send SIGKILL soon, and an evaluation can be made by the resumed run.
        """
        # Clocks and signals differ between ranks. One exchange for the three: it is made between any two steps.
        interrupted, late, due = self.world.any(
            bool(signals), self.out_of_time, self.checkpoint_due
        )
        unsaved = self.saved_step != self.progress.step
        if interrupted:
            reasons = [*signals, "a signal to another process"]
            return Decision(save=unsaved, stop=reasons[0])
        if self.evaluation_owed:
            return Decision(evaluate=True, save=self.progress.step > 0)
        if late and not self.all_steps_taken:
            minutes = self.job.settings.max_minutes
            return Decision(save=unsaved, stop=f"the time limit of {minutes:g} minutes")
        return Decision(save=due and unsaved)

    # ---- evaluating, saving ----

    def evaluate(self, request: StopRequest) -> None:
        """Evaluate the (averaged) weights, and keep them in run/best where they are the best so far.

        A signal breaks an evaluation off, which is then still owed.
        """
        job = self.job
        self.logs.flush()  # the lines of the steps before it stand before it in the journal
        with self.logs.paused(), self.take_step.weights_to_keep():
            try:
                with request.breaking_off(job.world):
                    metrics = job.task.evaluate(job.model, autocast(job.device, job.dtype))
            except StopEvaluation:
                return
            self.keep(metrics)
            self.logs.evaluation(metrics)
        self.last_metrics = metrics
        self.progress.evaluated = self.progress.step

    def keep(self, metrics: dict) -> None:
        """Keep the weights if these metrics of theirs are the best so far."""
        score = metrics[self.job.task.key]
        progress = self.progress
        if score > progress.best:  # not >=: of equals the earlier one, which has seen less
            progress.best = score
            progress.best_step = progress.step
            if self.world.first:
                checkpoint.keep_best(self.job)

    def save(self) -> None:
        """Write run/last: the model as it is trained, not averaged, and everything else that the next step depends on."""
        job = self.job
        if not job.checkpoints:
            return
        self.logs.flush()  # a checkpoint is only written behind steps that are known to be sound
        generators = self.world.gather(checkpoint.rng_state(job.device))
        if self.world.first:
            with self.logs.paused():
                state = {
                    **self.take_step.state_dict(),
                    "progress": asdict(self.progress),
                    "rng": generators,  # of every rank
                    "world": self.world.size,
                    "fingerprints": job.fingerprints,
                    # What was written to the journal behind this, a resumed run cuts off and writes again.
                    "journal_bytes": job.journal.size,
                }
                save_model = partial(job.task.save_model, job.model, evaluated=False)
                checkpoint.save_checkpoint(job.run, save_model, state)
        self.saved_step = self.progress.step
        self.saved_at = time.monotonic()

    def outcome(self, stopped_by: str = "") -> Outcome:
        """How the run ended."""
        self.logs.flush()
        return Outcome(self.progress, self.last_metrics, self.finished, stopped_by)
