"""How far a run has come and how it ended: what it counts, its journal, and what the person who waits is told."""

import math
import os
import time
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from bertqa.console import progress_bar, say
from bertqa.device import OnItsWay, peak_memory
from bertqa.errors import UserError
from bertqa.files import to_json


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


class Journal:
    """metrics.jsonl: one JSON object a line, the only record of a run; console, report and plots are read from it.

    With no path (ranks other than the first) it writes nothing.
    """

    def __init__(self, path: Path | None, keep_bytes: int | None = None):
        """Open for appending.

        Args:
            keep_bytes: of a run that goes on, how much was written at its checkpoint: what is behind
                that is cut off; what is missing of it is said.
        """
        self.path = path
        self.file = None
        if path is None:
            return
        if keep_bytes is not None:
            self._cut(keep_bytes)
        self.file = open(path, "ab", buffering=0)  # noqa: SIM115 (open as long as the run)

    def _cut(self, keep_bytes: int) -> None:
        there = self.path.stat().st_size if self.path.exists() else 0
        if there > keep_bytes:
            os.truncate(self.path, keep_bytes)
        elif there < keep_bytes:
            say(
                f"warning: {self.path}: {keep_bytes - there:,} bytes of it are lost, so the curves of the "
                "report have a gap; the training itself goes on as it would have"
            )

    def write(self, event: str, **fields) -> None:
        """Add one line {"event", "time", fields...}; numbers that JSON does not know (NaN, infinity) become strings.

        Raises UserError where the disk is full.
        """
        record = {"event": event, "time": round(time.time(), 3)}
        for name, value in fields.items():
            finite = not isinstance(value, float) or math.isfinite(value)
            record[name] = value if finite else str(value)
        if self.file:
            self._append((to_json(record) + "\n").encode())

    def _append(self, line: bytes) -> None:
        try:
            # A disk that fills up takes fewer bytes than it was given; the next write then says why.
            while line:
                line = line[self.file.write(line) :]
        except OSError as error:
            raise UserError(
                f"{self.path}: could not be written ({error}); make room, then go on from the last "
                "checkpoint with --resume"
            ) from None

    @property
    def size(self) -> int:
        """Bytes written so far, all of them on the disk."""
        if not self.file:
            return 0
        # A checkpoint relies on these bytes: after a power cut they must be there.
        os.fsync(self.file.fileno())
        return os.fstat(self.file.fileno()).st_size

    def close(self) -> None:
        """Close the file; writing later is an error."""
        if self.file:
            self.file.close()


@dataclass
class StepRecord:
    """A step, until its numbers are written."""

    at: Progress
    """Where the run stood behind the step."""
    lr: float
    numbers: OnItsWay
    """As in step.StepResult, and so is the scale."""
    scale: float | None


class Logs:
    """Journal and progress bar of a `Job`. On a GPU, losses are read one step late, so that the host never waits for a step."""

    def __init__(self, job, progress: Progress, total: int, steps_per_epoch: int):
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
        # Where the run stood behind each of the last 50 steps: the speed that is shown is that of these steps.
        self.recent = deque([replace(progress)], maxlen=50)

    def step(self, lr: float, numbers: OnItsWay, scale: float | None) -> None:
        """Take a step's numbers; those on the GPU are written when the next step's arrive."""
        now = time.perf_counter()
        self.progress.seconds += now - self.clock
        self.clock = now
        # A copy: by the time it is written, the run may be a step further.
        self.waiting.append(StepRecord(replace(self.progress), lr, numbers, scale))
        self.flush(but=self.late)

    def flush(self, but: int = 0) -> None:
        """Write all that is waiting, but the last so many."""
        while len(self.waiting) > but:
            self._write(self.waiting.popleft())

    def _write(self, record: StepRecord) -> None:
        at = record.at
        share, norm, *parts = record.numbers.read().tolist()
        # Every rank has divided by the windows of all of them, so that the sum is the mean.
        loss = self.world.sum(share)
        # In fp16 such a step was skipped, and the loop counts how many are in a row.
        if record.scale is None:
            require_finite(loss, norm, at.step - 1, self.run)
        then = self.recent[0]
        self.recent.append(at)
        took = max(1e-9, at.seconds - then.seconds)
        line = {
            "step": at.step,
            "epoch": self.epoch_of(at),
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

    def epoch_of(self, progress: Progress) -> float:
        """1.5 where the second epoch is half over."""
        return round(progress.step / self.steps_per_epoch, 4)

    def evaluation(self, metrics: dict) -> None:
        """Write an evaluation and show its numbers above the bar."""
        step = self.progress.step
        self.journal.write("eval", step=step, epoch=self.epoch_of(self.progress), **metrics)
        if not self.world.first:
            return
        shown = []
        for name, value in metrics.items():
            if isinstance(value, float) and not name.endswith("_total"):
                shown.append(f"{name} {value:.2f}")
        self.say(f"step {step}: {', '.join(shown)}")

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
