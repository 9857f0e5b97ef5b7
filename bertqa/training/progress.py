"""How far a run has come: what it counts, and how that is told to the journal and to the person who waits."""

import math
import sys
import time
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from bertqa.distributed import World
from bertqa.errors import UserError
from bertqa.training.journal import Journal


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
    windows: int = 0
    """Windows trained on, over all ranks."""
    tokens: int = 0
    """Tokens in them."""
    seconds: float = 0.0
    """Spent training: without evaluation and saving, over all sittings."""


class Logs:
    """Journal and progress bar. On a GPU, losses are read one step late so that the host never waits for a step."""

    def __init__(
        self,
        state: Progress,
        total: int,
        steps_per_epoch: int,
        journal: Journal,
        run: Path,
        world: World,
        device: torch.device,
    ):
        self.state, self.steps_per_epoch, self.journal, self.run = (
            state,
            steps_per_epoch,
            journal,
            run,
        )
        self.world, self.device, self.waiting = world, device, deque()
        self.bar = tqdm(
            total=total,
            initial=state.step,
            unit=" steps",
            dynamic_ncols=True,
            disable=not world.first,
            desc="train",
            smoothing=0.1,
            mininterval=0.2 if sys.stderr.isatty() else 30,
        )
        self.clock, self.recent = (
            time.perf_counter(),
            deque([(state.seconds, state.windows, state.tokens)], maxlen=50),
        )

    def step(self, loss: Tensor, norm: Tensor, lr: float, scale: float | None) -> None:
        """Take a step's numbers; those on the GPU are written when the next step's arrive."""
        state = self.state
        state.seconds, self.clock = (
            state.seconds + time.perf_counter() - self.clock,
            time.perf_counter(),
        )
        self.waiting.append(
            (
                state.step,
                loss,
                norm,
                lr,
                scale,
                state.seconds,
                state.windows,
                state.tokens,
                state.skipped,
            )
        )
        while len(self.waiting) > (self.device.type == "cuda"):
            self._write(*self.waiting.popleft())

    def _write(self, step, loss, norm, lr, scale, seconds, windows, tokens, skipped) -> None:
        loss, norm = self.world.sum(float(loss)), float(norm)
        if scale is None:
            require_finite(loss, norm, step - 1, self.run)
        then, windows_then, tokens_then = self.recent[0]
        self.recent.append((seconds, windows, tokens))
        took = max(1e-9, seconds - then)
        record = {
            "step": step,
            "epoch": round(step / self.steps_per_epoch, 4),
            "loss": loss,
            "lr": lr,
            "grad_norm": norm,
            "windows_per_s": round((windows - windows_then) / took, 2),
            "tokens_per_s": round((tokens - tokens_then) / took, 1),
            "seconds": round(seconds, 3),
        }
        if scale is not None:
            record |= {"loss_scale": scale, "skipped": skipped}
        self.journal.write("train", **record)
        self.bar.update(1)
        self.bar.set_postfix_str(
            f"loss {loss:.3f}, lr {lr:.1e}, {record['windows_per_s']:.1f} windows/s, "
            f"{record['tokens_per_s']:,.0f} tokens/s"
        )

    def evaluation(self, metrics: dict) -> None:
        """Write an evaluation and show its numbers above the bar."""
        self.journal.write(
            "eval",
            step=self.state.step,
            epoch=round(self.state.step / self.steps_per_epoch, 4),
            **metrics,
        )
        if self.world.first:
            shown = ", ".join(
                f"{name} {value:.2f}"
                for name, value in metrics.items()
                if isinstance(value, float) and not name.endswith("_total")
            )
            self.bar.write(f"step {self.state.step}: {shown}", file=sys.stderr)

    def flush(self) -> None:
        """Write all that is waiting."""
        while self.waiting:
            self._write(*self.waiting.popleft())

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
