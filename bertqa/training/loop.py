"""The training loop: one for every task, on one screen (`train`), with the helpers it calls behind it.

A task is what the loop does not know: windows to train on, their summed loss, and an evaluation (question_answering.py).
The loss of an optimizer step is the sum over its windows, on all ranks and in all micro-batches, divided once by their
number; so accumulation and several GPUs give the numbers of one big batch.
"""

import math
import signal
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch import nn

from bertqa.data.batches import epoch_order, split_by_tokens, step_rows
from bertqa.device import autocast, grad_scaler, peak_memory
from bertqa.distributed import World, without_sync
from bertqa.errors import UserError
from bertqa.model.attention import Layout
from bertqa.settings import LoopSettings, OptimSettings
from bertqa.training import checkpoint
from bertqa.training.journal import Journal
from bertqa.training.optim import Average, lr_at, make_optimizer, set_lr
from bertqa.training.progress import Logs, Progress, require_finite
from bertqa.training.task import Task

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


def total_steps(windows: int, settings: LoopSettings) -> int:
    """Optimizer steps of the whole run: counted on windows, not on questions."""
    steps = math.ceil(settings.epochs * math.ceil(windows / settings.batch_size) - 1e-9)
    return max(1, min(steps, settings.max_steps or steps))


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
            if last[task.key] > state.best:
                state.best, state.best_step = last[task.key], state.step
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

    with stop_signals() as stop, logs.bar:
        if evaluate_first and state.step == 0:
            evaluate()
        while state.step < total:
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
    return Outcome(state, last, True)


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
    known = [field.name for field in fields(Progress)]  # an older version may have counted more
    return Progress(**{name: resumed["progress"][name] for name in known})


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
