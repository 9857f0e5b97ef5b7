"""The training loop: one for every task, on one screen (`train`), with the helpers it calls behind it.

A task is what the loop does not know: windows to train on, their summed loss, and an evaluation (question_answering.py).
The loss of an optimizer step is the sum over its windows, on all ranks and in all micro-batches, divided once by their
number; so accumulation and several GPUs give the numbers of one big batch.
"""

import math
import re
import signal
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from bertqa.data.batches import Batch, WindowStore, epoch_order, split_by_tokens, step_rows
from bertqa.device import autocast, grad_scaler, peak_memory
from bertqa.distributed import World, without_sync
from bertqa.errors import UserError
from bertqa.model.attention import Layout
from bertqa.training import checkpoint
from bertqa.training.journal import Journal
from bertqa.training.optim import Average, OptimSettings, lr_at, make_optimizer, set_lr
from bertqa.training.progress import Logs, Progress, require_finite

SAVE_EVERY = re.compile(r"([1-9][0-9]*) ?steps|([0-9]*[.]?[0-9]+(?:e[-+]?[0-9]+)?)")
SKIPS = 25
"""fp16 steps skipped in a row after which the run stops: by then the loss scale has fallen by 2^25."""


@dataclass(frozen=True)
class LoopSettings:
    """How long, how much at once, how often to look, and on what."""

    epochs: float = 2.0
    """Passes over the training windows."""
    max_steps: int | None = None
    """Stop after this many optimizer steps; the learning rate reaches zero there."""
    max_minutes: float | None = None
    """Save and stop after this long; --resume goes on, so a long run can have several sittings."""
    batch_size: int = 16
    """Windows in an optimizer step, over all ranks."""
    micro_tokens: int = 8192
    """Most tokens that one rank processes at once; a larger batch is cut and its gradients added up."""
    ema: float = 0.0
    """Decay of an exponential moving average of the weights, which is then what is evaluated and kept; 0 = none."""
    eval_every: int = 0
    """Evaluate every N steps, and always at the end; 0 = after every epoch."""
    save_every: str | float = 10.0
    """Minutes (10), or steps (500steps), between checkpoints of the whole training state in last/; 0 = every step. There
    is always one at an evaluation, at the end of an epoch, and on SIGTERM, SIGINT and SIGUSR1, which stop the run."""
    patience: int = 0
    """Stop after this many evaluations without a better score; 0 = never."""
    seed: int = 0
    """Decides the order of the data, dropout, and fresh weights."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Format of matrix products; auto = bf16 or fp16 on GPUs, fp32 elsewhere."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute; auto = the GPU where there is one."""
    threads: int = 0
    """CPU threads; 0 = torch's own choice."""
    deterministic: bool = False
    """Refuse GPU kernels whose results vary from run to run (slower; a CPU never has any)."""
    tensorboard: bool = False
    """Show the journal's numbers in TensorBoard too (its files: the run folder's tensorboard/)."""

    def problems(self) -> list[str]:
        """Everything that is wrong with these values, one phrase each."""
        rules = [
            (0 < self.epochs < math.inf, f"epochs is {self.epochs}, it must be positive"),
            (
                self.max_steps is None or self.max_steps > 0,
                f"max_steps is {self.max_steps}, it must be positive",
            ),
            (
                self.max_minutes is None or self.max_minutes > 0,
                f"max_minutes is {self.max_minutes}, it must be positive",
            ),
            (self.batch_size > 0, f"batch_size is {self.batch_size}, it must be positive"),
            (self.micro_tokens > 0, f"micro_tokens is {self.micro_tokens}, it must be positive"),
            (0 <= self.ema < 1, f"ema is {self.ema}, it must lie in [0, 1)"),
            (
                self.eval_every >= 0,
                f"eval_every is {self.eval_every}, it must be a number of steps, or 0",
            ),
            (
                SAVE_EVERY.fullmatch(str(self.save_every)),
                f"save_every is {self.save_every}, it must be minutes, as in 10, or steps, as in 500steps, or 0",
            ),
            (
                self.patience >= 0,
                f"patience is {self.patience}, it must be a number of evaluations, or 0",
            ),
            (self.threads >= 0, f"threads is {self.threads}, it must be positive, or 0"),
            (self.seed >= 0, f"seed is {self.seed}, it must not be negative"),
            (
                not self.tensorboard or find_spec("tensorboard"),
                "tensorboard is on, but that package is not installed; pip install tensorboard",
            ),
        ]
        return [problem for fine, problem in rules if not fine]

    @property
    def save_after(self) -> tuple[int, float]:
        """Checkpoints come at multiples of so many steps (0 = never), or after so many minutes."""
        steps, minutes = SAVE_EVERY.fullmatch(str(self.save_every)).groups()
        return int(steps or 0), float(minutes or math.inf)


class Task(Protocol):
    """What the loop needs to know of a task."""

    store: WindowStore
    """The windows to train on."""
    key: str
    """The metric that decides which weights are best; higher is better."""
    head: str
    """The head of its models, as model/folder.py names it."""
    labels: list[str] | None
    """The classes, for a head that has them."""

    def fingerprints(self) -> dict[str, str]:
        """What a resumed run must have in common with this one."""

    def loss(self, model: nn.Module, batch: Batch, layout: Layout) -> Tensor:
        """Loss summed over the batch's windows."""

    def evaluate(self, model: nn.Module, autocast) -> dict[str, float]:
        """Metrics on the dev set, `key` among them. Called on every rank; they share the work and all return the same."""

    def describe(self, metrics: dict) -> str:
        """Those metrics for people, at the end of a run."""

    def save_model(self, model: nn.Module, folder: Path, evaluated: bool) -> None:
        """Write a model folder with the threshold of the last evaluation, and with its numbers where it was `evaluated`."""

    def save_predictions(self, run: Path) -> None:
        """Write the predictions of the last evaluation into the run folder."""

    def save_rejected(self, run: Path) -> int:
        """Write what could not be trained on to rejected.jsonl. Returns how much that is."""


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


def total_steps(windows: int, settings: LoopSettings) -> int:
    """Optimizer steps of the whole run: counted on windows, not on questions."""
    steps = math.ceil(settings.epochs * math.ceil(windows / settings.batch_size) - 1e-9)
    return min(steps, settings.max_steps or steps)


def train(
    model: nn.Module,
    task: Task,
    settings: LoopSettings,
    optim: OptimSettings,
    *,
    run: Path,
    device: torch.device,
    dtype: torch.dtype,
    journal: Journal,
    world: World = World(),
    fingerprints: dict | None = None,
    resumed: dict | None = None,
    evaluate_first: bool = False,
) -> Outcome:
    """Train `model` on `task`, keep the best weights in run/best and the whole state in run/last.

    Args:
        dtype: of autocast; float32 = none.
        fingerprints: what a resumed run must share with this one (data, vocabulary, windows, settings).
        resumed: the state that `checkpoint.load_checkpoint` returned.
        evaluate_first: also evaluate before the first step, to know where training starts from.

    Raises:
        UserError: for a loss or gradient that is not finite (in fp16: many steps in a row), with what to try.
    """
    steps_per_epoch = math.ceil(len(task.store) / settings.batch_size)
    total, wrapped, cast = (
        total_steps(len(task.store), settings),
        world.wrap(model, device),
        autocast(device, dtype),
    )
    optimizer, scaler, average = (
        make_optimizer(model, optim, device),
        grad_scaler(device, dtype),
        Average(model, settings.ema),
    )
    state = Progress()
    state_parts = {"optimizer": optimizer, "scaler": scaler, "average": average}
    if resumed:
        state = restore(resumed, state_parts, device, world)
    logs = Logs(state, total, steps_per_epoch, journal, run, world, device)
    save_steps, save_minutes = settings.save_after
    last, order, order_epoch, saved_at, began = {}, None, -1, time.monotonic(), time.monotonic()
    model.train()

    def evaluate() -> None:
        nonlocal last
        logs.flush()
        with average.in_place_of(model), logs.paused():
            last = task.evaluate(model, cast)
            state.stale += 1
            if last[task.key] > state.best:
                state.best, state.best_step, state.stale = last[task.key], state.step, 0
                if world.first:
                    with checkpoint.writing(run / "best.tmp"):
                        task.save_model(model, run / "best", evaluated=True)
                        task.save_predictions(run)
            logs.evaluation(last)

    def save() -> None:
        nonlocal saved_at
        logs.flush()  # a checkpoint is only written behind steps that are known to be sound
        generators = world.gather(checkpoint.rng_state(device))
        if world.first:
            with logs.paused():
                parts = {name: part.state_dict() for name, part in state_parts.items()}
                checkpoint.save_checkpoint(
                    run,
                    lambda folder: task.save_model(model, folder, evaluated=False),
                    {
                        **parts,
                        "progress": asdict(state),
                        "rng": generators,
                        "world": world.size,
                        "fingerprints": fingerprints or {},
                        "journal_bytes": journal.size,
                    },
                )
        saved_at = time.monotonic()

    def tired() -> bool:
        return 0 < settings.patience <= state.stale

    with stop_signals() as stop, logs.bar:
        if evaluate_first and state.step == 0:
            evaluate()
        while state.step < total and not tired():
            epoch, step_in_epoch = divmod(state.step, steps_per_epoch)
            if epoch != order_epoch:
                order, order_epoch = epoch_order(len(task.store), settings.seed, epoch), epoch
            everyone = step_rows(order, step_in_epoch, settings.batch_size)
            mine = everyone[world.rank :: world.size]
            lr = lr_at(state.step, total, optim)
            set_lr(optimizer, lr, state.step - state.skipped, optim)

            loss = forward_backward(
                wrapped, task, mine, len(everyone), settings.micro_tokens, cast, scaler, world
            )
            scaler.unscale_(optimizer)
            norm = nn.utils.clip_grad_norm_(model.parameters(), optim.clip or math.inf)
            if device.type != "cuda" and dtype != torch.float16:
                require_finite(
                    float(loss), float(norm), state.step, run
                )  # costs nothing here, and saves the weights
            scale = scaler.get_scale()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
            skipped = scaler.get_scale() < scale
            count_skip(state, skipped, scale, run)
            if not skipped:
                average.update(model)

            state.step += 1
            state.windows += len(everyone)
            state.tokens += int(task.store.lengths[everyone].sum())
            logs.step(loss, norm, lr, scaler.get_scale() if scaler.is_enabled() else None)
            at_end, epoch_over = state.step == total, state.step % steps_per_epoch == 0
            if evaluated := at_end or (
                state.step % settings.eval_every == 0 if settings.eval_every else epoch_over
            ):
                evaluate()
                save()
            minutes = (time.monotonic() - began) / 60
            late = settings.max_minutes is not None and minutes >= settings.max_minutes
            due = (
                epoch_over
                or save_steps
                and state.step % save_steps == 0
                or time.monotonic() - saved_at >= 60 * save_minutes
            )
            interrupted, late, due = world.any(bool(stop), late, due)
            if (interrupted or late or due) and not evaluated:
                save()
            if interrupted or late:
                why = (
                    (stop[0] if stop else "a signal to another process")
                    if interrupted
                    else (f"the time limit of {settings.max_minutes:g} minutes")
                )
                return Outcome(state, last, at_end, why)
    logs.flush()
    return Outcome(
        state,
        last,
        True,
        f"{state.stale} evaluations without a better {task.key}" if tired() else "",
    )


def forward_backward(
    model: nn.Module, task: Task, rows, windows: int, micro_tokens: int, cast, scaler, world: World
):
    """Gradients of the mean loss over `windows` windows, of which this rank has `rows`; returns its share of that mean."""
    micros, total = split_by_tokens(rows, task.store.lengths, micro_tokens), 0.0
    # A rank without windows (the last batch was too small for all) still takes part in the exchange of gradients.
    weight = 1.0 if micros else 0.0
    micros = micros or [np.zeros(1, np.int64)]
    for number, micro in enumerate(micros, 1):
        batch = task.store.batch(micro)
        layout = Layout.of(batch.lengths, task.store.device)
        with without_sync(model, last=number == len(micros)):
            with cast:
                loss = task.loss(model, batch, layout) * (weight / windows)
            # DDP averages over ranks; the sum is wanted.
            scaler.scale(loss * world.size).backward()
        total = total + loss.detach()
    return total


def count_skip(state: Progress, skipped: bool, scale: float, run: Path) -> None:
    """Book a step that the loss scaler skipped. Raises UserError after too many in a row."""
    state.skipped += skipped
    state.skipped_in_row = state.skipped_in_row + 1 if skipped else 0
    if state.skipped_in_row >= SKIPS:
        raise UserError(
            f"fp16: {SKIPS} steps in a row had gradients that are not finite; the loss scale is down to "
            f"{scale:g} and the last good step was {state.step - SKIPS + 1}. The last sound state is in "
            f"{run / 'last'}. Try --precision bf16 or fp32, or a lower --lr"
        )


def restore(resumed: dict, parts: dict, device: torch.device, world: World) -> Progress:
    """Put a checkpoint's state into optimizer, scaler, average and generators; returns where the run stood."""
    for name, part in parts.items():
        part.load_state_dict(resumed[name])
    checkpoint.set_rng_state(resumed["rng"][world.rank], device)
    return Progress(**resumed["progress"])


@contextmanager
def stop_signals():
    """A list that is empty until SIGINT, SIGTERM or SIGUSR1 asks to stop, then holds its name.

    The loop finishes its step, saves and returns. A second SIGINT interrupts at once.
    """
    received: list[str] = []

    def ask(number, frame):
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(signal.Signals(number).name)

    names = [name for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]
    try:
        before = {name: signal.signal(getattr(signal, name), ask) for name in names}
    except ValueError:  # not in the main thread: signals are somebody else's
        before = {}
    try:
        yield received
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)


def summary(outcome: Outcome, key: str, device: torch.device) -> dict:
    """The closing figures of a run: time, speed, memory, best score."""
    state = outcome.progress
    took = max(1e-9, state.seconds)
    return {
        "steps": state.step,
        "windows": state.windows,
        "seconds": round(state.seconds, 1),
        "windows_per_s": round(state.windows / took, 2),
        "tokens_per_s": round(state.tokens / took, 1),
        "peak_memory_mb": round(peak_memory(device) / 2**20),
        "skipped": state.skipped,
        f"best_{key}": state.best,
        "best_step": state.best_step,
        "finished": outcome.finished,
    }
