"""The progress of a run: its counters, its journal metrics.jsonl, its progress bar, and how it ended."""

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

TIME_LIMIT = "the time limit"
"""How `Outcome.stopped_by` begins where --max-minutes stopped a run."""


@dataclass
class Progress:
    """The counters of a run; every checkpoint has them."""

    step: int = 0
    """Optimizer steps taken, skipped ones included. It is also the position in the data."""
    skipped: int = 0
    """Steps that fp16's loss scaler skipped, because gradients were not finite."""
    skipped_in_row: int = 0
    """The same, since the last step that was not skipped."""
    best: float = -math.inf
    """The best score so far."""
    best_step: int = 0
    """The step at which it was found."""
    evaluated: int = -1
    """The step of the last evaluation; -1 = none yet."""
    windows: int = 0
    """Windows trained on, by all ranks together."""
    tokens: int = 0
    """Tokens of these windows."""
    seconds: float = 0.0
    """Time spent on steps, without evaluation and saving; it goes on when a run is resumed."""


@dataclass
class Outcome:
    """How a run ended."""

    progress: Progress
    last: dict
    """Metrics of the last evaluation; empty if this process made none."""
    finished: bool
    """False if it was stopped early, so that --resume would go on."""
    stopped_by: str = ""
    """Why it was stopped early: a signal's name, or TIME_LIMIT and its minutes."""

    @property
    def interrupted(self) -> bool:
        """Whether a signal stopped it. (A time limit ends a run as asked for.)"""
        return not self.finished and not self.stopped_by.startswith(TIME_LIMIT)


def summary(outcome: Outcome, key: str, device: torch.device) -> dict:
    """Return the figures of a run for summary.json: time, speed, memory, best score (of the metric `key`)."""
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
    """metrics.jsonl, from which report and plots are made: one JSON object a line.

    Without a path, as on all ranks but the first, it writes nothing.
    """

    def __init__(self, path: Path | None, keep_bytes: int | None = None):
        """Open the file for appending.

        Args:
            keep_bytes: the size at the checkpoint that the run goes on from; the file is cut back to it. If the file is
                shorter, there is a warning.
        """
        self.path = path
        self.file = None
        if path is None:
            return
        if keep_bytes is not None:
            self._cut(keep_bytes)
        self.file = open(path, "ab", buffering=0)  # noqa: SIM115 (open as long as the run)

    def _cut(self, keep_bytes: int) -> None:
        size = self.path.stat().st_size if self.path.exists() else 0
        if size > keep_bytes:
            os.truncate(self.path, keep_bytes)
        elif size < keep_bytes:
            say(
                f"warning: {self.path}: {keep_bytes - size:,} bytes of it are lost, so the curves of the "
                "report have a gap; the training itself goes on as it would have"
            )

    def write(self, event: str, **fields) -> None:
        """Append a line {"event", "time", fields...}; NaN and infinity, which JSON lacks, become strings.

        Raises UserError if the disk is full.
        """
        record = {"event": event, "time": round(time.time(), 3)}
        for name, value in fields.items():
            finite = not isinstance(value, float) or math.isfinite(value)
            record[name] = value if finite else str(value)
        if self.file:
            self._append((to_json(record) + "\n").encode())

    def _append(self, line: bytes) -> None:
        try:
            # A disk that becomes full first writes fewer bytes than asked for, and fails at the next write.
            while line:
                line = line[self.file.write(line) :]
        except OSError as error:
            raise UserError(
                f"{self.path}: could not be written ({error}); make room, then go on from the last "
                "checkpoint with --resume"
            ) from None

    @property
    def size(self) -> int:
        """The number of bytes written so far; they are flushed to the disk."""
        if not self.file:
            return 0
        # A checkpoint refers to these bytes, so they must survive a power cut, as it does.
        os.fsync(self.file.fileno())
        return os.fstat(self.file.fileno()).st_size

    def close(self) -> None:
        """Close the file; nothing can be written afterwards."""
        if self.file:
            self.file.close()


@dataclass
class StepRecord:
    """A step that is not written to the journal yet."""

    progress: Progress
    """The counters after the step."""
    lr: float
    numbers: OnItsWay
    """Loss, gradient norm, parts of the loss, as in step.StepResult; so is the scale."""
    scale: float | None


class Logs:
    """The journal and the progress bar of a `Job`.

    On a GPU the loss is read one step late, so that the host launches the next step instead of waiting for it.
    """

    def __init__(self, job, progress: Progress, total: int, steps_per_epoch: int):
        """Show the bar. `job` is a `Job` (whose module imports this one); `total` is the number of steps of the run."""
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
        # The counters after each of the last 50 steps, whose speed is shown.
        self.recent = deque([replace(progress)], maxlen=50)

    def step(self, lr: float, numbers: OnItsWay, scale: float | None) -> None:
        """Log a step; on a GPU the line is written when the next step is logged."""
        now = time.perf_counter()
        self.progress.seconds += now - self.clock
        self.clock = now
        # A copy, because the run may be a step further when the line is written.
        self.waiting.append(StepRecord(replace(self.progress), lr, numbers, scale))
        self.flush(keep=self.late)

    def flush(self, keep: int = 0) -> None:
        """Write the waiting steps to the journal, except for the last `keep`.

        Raises:
            UserError: if a loss or gradient norm is not finite.
        """
        while len(self.waiting) > keep:
            self._write(self.waiting.popleft())

    def _write(self, record: StepRecord) -> None:
        now = record.progress
        share, norm, *parts = record.numbers.read().tolist()
        # Each rank has divided by the windows of all ranks, so the sum over the ranks is the mean over the windows.
        loss = self.world.sum(share)
        # In fp16 the scaler has skipped such a step, and the loop counts skips in a row.
        if record.scale is None:
            require_finite(loss, norm, now.step - 1, self.run)
        then = self.recent[0]
        self.recent.append(now)
        took = max(1e-9, now.seconds - then.seconds)
        line = {
            "step": now.step,
            "epoch": self.epoch_of(now),
            "loss": loss,
            "lr": record.lr,
            "grad_norm": norm,
            "windows_per_s": round((now.windows - then.windows) / took, 2),
            "tokens_per_s": round((now.tokens - then.tokens) / took, 1),
            "seconds": round(now.seconds, 3),
        }
        for name, part in zip(self.loss_parts, parts, strict=True):
            line[f"loss_{name}"] = self.world.sum(part)
        if record.scale is not None:
            line["loss_scale"] = record.scale
            line["skipped"] = now.skipped
        self.journal.write("train", **line)
        self.bar.set_postfix_str(
            f"loss {loss:.3f}, lr {record.lr:.1e}, {line['windows_per_s']:.1f} windows/s, "
            f"{line['tokens_per_s']:,.0f} tokens/s",
            refresh=False,  # shown at the bar's next update, so that a log file stays short
        )
        self.bar.update(1)

    def epoch_of(self, progress: Progress) -> float:
        """Return the epochs taken so far; 1.5 is half way through the second one."""
        return round(progress.step / self.steps_per_epoch, 4)

    def evaluation(self, metrics: dict) -> None:
        """Write an evaluation to the journal, and say its scores above the progress bar."""
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
        """Stop the clock of `Progress.seconds` inside."""
        yield
        self.clock = time.perf_counter()


def require_finite(loss: float, norm: float, step: int, run: Path) -> None:
    """Raise UserError, with what to try, if the loss or the gradient norm is not finite."""
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise UserError(
            f"step {step + 1}: the loss is {loss:g} and the gradient norm {norm:g}, so training has diverged. "
            f"The last sound state is in {run / 'last'} where there is one. Try a lower --lr, a longer "
            "--warmup or --clip 1; if it is the first step, the weights or the data hold NaN"
        )
