"""How far a run has come and how it ended: what it counts, and how that is told to the journal and to the person who waits."""

import math
import time
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from bertqa.console import progress_bar
from bertqa.device import OnItsWay, peak_memory
from bertqa.errors import UserError
from bertqa.training.job import Job


@dataclass
class Progress:
    """Where a run stands; all of it travels in the checkpoint."""

    step: int = 0
    """Optimizer steps taken, skipped ones included: the position in the data."""
    skipped: int = 0
    """fp16 steps left out for gradients that were not finite."""
    skipped_in_row: int = 0
    best: float = -math.inf
    best_step: int = 0
    evaluated: int = -1
    """The last step behind which there was an evaluation."""
    windows: int = 0
    """Windows trained on, over all ranks."""
    tokens: int = 0
    """Tokens in them."""
    seconds: float = 0.0
    """Spent training: without evaluation and saving, over all sittings."""


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


@dataclass
class StepRecord:
    """A step's numbers, until they are written."""

    at: Progress
    """Where the run stood behind the step."""
    numbers: OnItsWay
    """This rank's share of the mean loss over the step's windows, the gradient's norm before clipping, and the share of
    each part of the loss, where the task has parts."""
    lr: float
    scale: float | None
    """fp16's loss scale; None in other formats."""


class Logs:
    """Journal and progress bar. On a GPU, losses are read one step late so that the host never waits for a step."""

    def __init__(self, job: Job, progress: Progress, total: int, steps_per_epoch: int):
        self.journal = job.journal
        self.loss_parts = job.loss_parts
        self.world = job.world
        self.run = job.run
        self.say = job.say
        self.progress = progress
        self.steps_per_epoch = steps_per_epoch
        self.late = 1 if job.device.type == "cuda" else 0
        self.waiting: deque[StepRecord] = deque()
        self.bar = progress_bar(
            total=total,
            desc="train",
            unit=" steps",
            shown=job.world.first,
            initial=progress.step,
            smoothing=0.1,
        )
        self.clock = time.perf_counter()
        # The speed that is shown is that of the last 49 steps.
        self.recent = deque([replace(progress)], maxlen=50)

    def step(self, numbers: OnItsWay, lr: float, scale: float | None) -> None:
        """Take a step's numbers; those on the GPU are written when the next step's arrive."""
        now = time.perf_counter()
        self.progress.seconds += now - self.clock
        self.clock = now
        # A copy: by the time it is written, the run may be a step further.
        self.waiting.append(StepRecord(replace(self.progress), numbers, lr, scale))
        while len(self.waiting) > self.late:
            self._write(self.waiting.popleft())

    def _write(self, record: StepRecord) -> None:
        at = record.at
        share, norm, *parts = record.numbers.read().tolist()
        loss = self.world.sum(share)
        if record.scale is None:
            require_finite(loss, norm, at.step - 1, self.run)
        then = self.recent[0]
        self.recent.append(at)
        took = max(1e-9, at.seconds - then.seconds)
        line = {
            "step": at.step,
            "epoch": round(at.step / self.steps_per_epoch, 4),
            "loss": loss,
            "lr": record.lr,
            "grad_norm": norm,
            "windows_per_s": round((at.windows - then.windows) / took, 2),
            "tokens_per_s": round((at.tokens - then.tokens) / took, 1),
            "seconds": round(at.seconds, 3),
        }
        for name, part in zip(self.loss_parts, parts, strict=True):
            line[f"loss_{name}"] = self.world.sum(part)
        if record.scale is not None:
            line["loss_scale"] = record.scale
            line["skipped"] = at.skipped
        self.journal.write("train", **line)
        self.bar.set_postfix_str(
            f"loss {loss:.3f}, lr {record.lr:.1e}, {line['windows_per_s']:.1f} windows/s, "
            f"{line['tokens_per_s']:,.0f} tokens/s",
            refresh=False,  # with the bar's next step, not now: a log is to stay short
        )
        self.bar.update(1)

    def evaluation(self, metrics: dict) -> None:
        """Write an evaluation and show its numbers above the bar."""
        step = self.progress.step
        epoch = round(step / self.steps_per_epoch, 4)
        self.journal.write("eval", step=step, epoch=epoch, **metrics)
        if self.world.first:
            shown = [
                f"{name} {value:.2f}"
                for name, value in metrics.items()
                if isinstance(value, float) and not name.endswith("_total")
            ]
            self.say(f"step {step}: {', '.join(shown)}")

    def flush(self) -> None:
        """Write all that is waiting."""
        while self.waiting:
            self._write(self.waiting.popleft())

    @contextmanager
    def paused(self):
        """Time spent inside does not count as training."""
        yield
        self.clock = time.perf_counter()


def require_finite(loss: float, norm: float, step: int, run: Path) -> None:
    """Stop where the loss or the gradient is not a finite number. Raises UserError with what to do."""
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise UserError(
            f"step {step + 1}: the loss is {loss:g} and the gradient norm {norm:g}, so training has diverged. "
            f"The last sound state is in {run / 'last'} where there is one. Try a lower --lr, a longer "
            "--warmup or --clip 1; if it is the first step, the weights or the data hold NaN"
        )
