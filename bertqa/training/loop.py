"""The training loop: one for every task, on one screen (`train`).

What a run needs is a `Job` (job.py), one of its optimizer steps is step.py, and what it tells people is progress.py.
"""

import math
import time
from dataclasses import asdict, dataclass

import numpy as np
import torch

from bertqa.data.batches import epoch_order, step_rows
from bertqa.device import autocast, peak_memory
from bertqa.errors import UserError
from bertqa.files import staged
from bertqa.model.checksums import write_checksums
from bertqa.settings import LoopSettings
from bertqa.training import checkpoint
from bertqa.training.job import Job
from bertqa.training.optim import freeze, lr_at
from bertqa.training.progress import Logs, Progress, StepRecord
from bertqa.training.signals import stop_signals
from bertqa.training.step import Step, StepResult

SKIPS = 25
"""fp16 steps skipped in a row after which the run stops: by then the loss scale has fallen by 2^25."""


@dataclass
class Outcome:
    """How a run ended."""

    progress: Progress
    last: dict
    """Metrics of the last evaluation."""
    finished: bool
    """False where it was stopped early and --resume would go on."""
    stopped_by: str = ""
    """Why it was: a signal's name, or the time limit."""


@dataclass
class Decision:
    """What all ranks do behind a step."""

    save: bool
    """Write a checkpoint."""
    stop: str
    """Why the run stops early; "" where it goes on."""


def train(job: Job) -> Outcome:
    """Train `job.model` on `job.task`: the best weights go to run/best, the whole state to run/last.

    Raises:
        UserError: for a loss or gradient that is not finite (in fp16: many steps in a row), with what to try.
    """
    trainer = Trainer(job)
    with stop_signals() as signals, trainer.logs.bar:
        if job.evaluate_first and trainer.progress.step == 0:
            trainer.evaluate()
        while not trainer.finished:
            trainer.step()
            if trainer.evaluation_due:
                trainer.evaluate()
                trainer.save()
            decision = trainer.decide(signals)
            if decision.save:
                trainer.save()
            if decision.stop:
                return trainer.outcome(stopped_by=decision.stop)
    return trainer.outcome()


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
        self.progress = self.restore() if job.resumed else Progress()
        self.logs = Logs(job, self.progress, self.total, self.steps_per_epoch)

        self.order = np.zeros(0, np.int64)
        self.order_of_epoch = -1
        self.last_metrics: dict = {}
        self.saved_step = -1
        self.saved_at = time.monotonic()
        self.began = time.monotonic()
        job.model.train()

    # ---- what is due ----

    @property
    def finished(self) -> bool:
        """Whether all steps have been taken."""
        return self.progress.step >= self.total

    @property
    def epoch_over(self) -> bool:
        """Whether the last step was the last one of its epoch."""
        return self.progress.step % self.steps_per_epoch == 0

    @property
    def evaluation_due(self) -> bool:
        """At the end always; before it by steps where `eval_every` says so, else behind every epoch."""
        every = self.job.settings.eval_every
        if self.finished or not every:
            return self.finished or self.epoch_over
        return self.progress.step % every == 0

    @property
    def checkpoint_due(self) -> bool:
        """Behind every epoch, and by steps or minutes as `save_every` says."""
        steps, minutes = self.job.settings.save_after
        if self.epoch_over or (steps and self.progress.step % steps == 0):
            return True
        return time.monotonic() - self.saved_at >= 60 * minutes

    @property
    def out_of_time(self) -> bool:
        """Whether this sitting has lasted as long as it may."""
        minutes = self.job.settings.max_minutes
        return minutes is not None and time.monotonic() - self.began >= 60 * minutes

    def decide(self, signals: list[str]) -> Decision:
        """Whether to save and whether to stop, the same on every rank: those who went on alone would wait for ever."""
        interrupted, late, due = self.world.any(
            bool(signals), self.out_of_time, self.checkpoint_due
        )
        stop = ""
        if interrupted:
            stop = signals[0] if signals else "a signal to another process"
        elif late:
            stop = f"the time limit of {self.job.settings.max_minutes:g} minutes"
        already_saved = self.saved_step == self.progress.step
        return Decision(save=(due or stop != "") and not already_saved, stop=stop)

    # ---- what it does ----

    def step(self) -> None:
        """One optimizer step: its windows, its learning rate, the step itself, and the books."""
        job = self.job
        progress = self.progress
        everyone = self.next_rows()
        lr = lr_at(progress.step, self.total, job.optim)
        result = self.take_step(everyone, lr, progress)
        self.count_skip(result)

        progress.step += 1
        progress.windows += len(everyone)
        progress.tokens += int(job.task.store.lengths[everyone].sum())
        self.logs.step(
            StepRecord(
                progress.step,
                result.loss,
                result.norm,
                lr,
                result.scale,
                progress.skipped,
                progress.windows,
                progress.tokens,
            )
        )

    def next_rows(self) -> np.ndarray:
        """The windows of the next step, over all ranks."""
        epoch, step_in_epoch = divmod(self.progress.step, self.steps_per_epoch)
        if epoch != self.order_of_epoch:
            self.order = epoch_order(len(self.job.task.store), self.job.settings.seed, epoch)
            self.order_of_epoch = epoch
        return step_rows(self.order, step_in_epoch, self.job.settings.batch_size)

    def count_skip(self, result: StepResult) -> None:
        """Book a step that the loss scaler skipped. Raises UserError after too many in a row."""
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

    def evaluate(self) -> None:
        """Evaluate the (averaged) weights, and keep them in run/best where they are the best so far."""
        job = self.job
        progress = self.progress
        self.logs.flush()
        with self.logs.paused(), self.take_step.weights_to_keep():
            metrics = job.task.evaluate(job.model, autocast(job.device, job.dtype))
            if metrics[job.task.key] > progress.best:
                progress.best = metrics[job.task.key]
                progress.best_step = progress.step
                if self.world.first:
                    self.keep_best()
            self.logs.evaluation(metrics)
        self.last_metrics = metrics

    def keep_best(self) -> None:
        """Write run/best and the predictions of the last evaluation."""
        run = self.job.run
        best = run / "best"
        with checkpoint.writing(best):
            with staged(best) as fresh:
                self.job.task.save_model(self.job.model, fresh, evaluated=True)
                write_checksums(fresh)
            self.job.task.save_predictions(run)

    def save(self) -> None:
        """Write run/last: the model and everything else that the next step depends on."""
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
                    "rng": generators,
                    "world": self.world.size,
                    "fingerprints": job.fingerprints,
                    "journal_bytes": job.journal.size,
                }
                checkpoint.save_checkpoint(job.run, self.save_model, state)
        self.saved_step = self.progress.step
        self.saved_at = time.monotonic()

    def save_model(self, folder) -> None:
        """Write the model as it is trained, not averaged, into a folder."""
        self.job.task.save_model(self.job.model, folder, evaluated=False)

    def restore(self) -> Progress:
        """Put a checkpoint's state into optimizer, scaler, average and generators; returns where the run stood."""
        saved = self.job.resumed
        self.take_step.load_state_dict(saved)
        checkpoint.set_rng_state(saved["rng"][self.world.rank], self.job.device)
        known = asdict(Progress())  # older runs also counted what nothing asks for any more
        return Progress(**{name: saved["progress"][name] for name in known})

    def outcome(self, stopped_by: str = "") -> Outcome:
        """How the run ended."""
        self.logs.flush()
        return Outcome(self.progress, self.last_metrics, self.finished, stopped_by)


def total_steps(windows: int, settings: LoopSettings) -> int:
    """Optimizer steps of the whole run: counted on windows, not on questions."""
    # The product may be a hair above a whole number: 0.1 * 30 = 3.0000000000000004 are 3 steps.
    steps = math.ceil(settings.epochs * math.ceil(windows / settings.batch_size) - 1e-9)
    return max(1, min(steps, settings.max_steps or steps))


def summary(outcome: Outcome, key: str, device: torch.device) -> dict:
    """The closing figures of a run: time, speed, memory, best score."""
    progress = outcome.progress
    took = max(1e-9, progress.seconds)
    return {
        "steps": progress.step,
        "windows": progress.windows,
        "seconds": round(progress.seconds, 1),
        "windows_per_s": round(progress.windows / took, 2),
        "tokens_per_s": round(progress.tokens / took, 1),
        "peak_memory_mb": round(peak_memory(device) / 2**20),
        "skipped": progress.skipped,
        f"best_{key}": progress.best,
        "best_step": progress.best_step,
        "finished": outcome.finished,
    }
