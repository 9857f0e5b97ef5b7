"""The model folders of a run, which are whole at every moment, even if the process is killed.

best/       a model folder: the best weights so far
last/       a checkpoint: a model folder, and state.pt with everything else that the next step depends on
previous/   the checkpoint before it, for when last/ is damaged
damaged/    a last/ that was found damaged; damaged-best/ is such a best/
"""

import math
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch

from bertqa.console import say
from bertqa.distributed import World
from bertqa.errors import UserError, first_sentence
from bertqa.folders import staged
from bertqa.inference import calibrate
from bertqa.model.disk import CHECKSUMS, WEIGHTS, find_damage, sha256_of, write_checksums
from bertqa.model.ranges import weights_of_ranges
from bertqa.model.record import RANGES, WINDOWS_FOR_RANGES, read_config
from bertqa.training.job import Job, total_steps
from bertqa.training.progress import Progress

NEEDED = ("state.pt", WEIGHTS, CHECKSUMS)
"""Files that every whole checkpoint has."""


# ---- written ----


def save_checkpoint(run: Path, save_model: Callable[[Path], None], state: dict) -> None:
    """Write run/last: the model folder by `save_model(path)`, then state.pt, then the checksums of all files.

    The checkpoint that was there becomes run/previous. One of the two is whole at every moment, since load_checkpoint
    moves a damaged last/ away.

    Raises:
        UserError: if the disk is full or read-only; the older checkpoint is left as it was.
    """
    last = run / "last"
    with writing(last), staged(last, keep_as=run / "previous") as fresh:
        save_model(fresh)
        torch.save(state, fresh / "state.pt")
        # Last, because a folder without checksums does not count as whole.
        write_checksums(fresh)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failure to write a file or folder of the run into a UserError."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        raise UserError(
            f"{path}: could not be written ({error}); the last checkpoint is untouched. "
            "Make room or permit writing, then go on with --resume"
        ) from None


def rng_state(device: torch.device) -> dict:
    """Return the state of torch's random generators on host and device. (The order of the data needs no state.)"""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


# ---- best/ ----


def keep_best(job: Job) -> None:
    """Write the model to run/best and the predictions of the last evaluation to the run folder.

    The new best/ has no int8 ranges yet; `measure_ranges` adds them at the end of the run.
    """
    best = job.run / "best"
    with writing(best):
        with staged(best) as fresh:
            job.task.save_model(job.model, fresh, evaluated=True)
            write_checksums(fresh)
        job.task.save_predictions(job.run)


def measure_ranges(job: Job) -> None:
    """Add int8 ranges (model/ranges.py) to best/, measured on training windows drawn by seed, unless it has them.

    A failure is only a warning: the training is worth more than what can be measured later.
    """
    best = job.run / "best"
    if not best.is_dir() or getattr(job.task, "head", None) is None:
        return
    began = time.monotonic()
    try:
        config = read_config(best)
        # A model or an attention of one's own can be loaded by nobody but its maker.
        is_own = "model" in config or "attention" in config
        if is_own or weights_of_ranges(best) == sha256_of(best / WEIGHTS):
            return
        count = calibrate(best, job.task.store, WINDOWS_FOR_RANGES, job.settings.seed)
    except (OSError, RuntimeError, UserError) as error:  # such as a full disk, or a full GPU
        job.say(f"warning: best/ has no ranges for int8: {first_sentence(error)}")
        return
    took = time.monotonic() - began
    job.say(f"best/: ranges for int8 measured on {count:,} training windows in {took:.1f} s")


def check_best(job: Job, state: dict) -> None:
    """Check that best/ of a resumed run is whole.

    If it is damaged or missing, the run forgets its best score, so that the next evaluation writes a new best/.

    Raises:
        UserError: if no evaluation is left to do so.
    """
    best = job.run / "best"
    progress = state["progress"]
    if progress["best"] == -math.inf:
        return
    # One process looks, so that all ranks go on, or fail, together. Damaged ranges are just measured again.
    found = find_damage(best, (WEIGHTS,), ignored=(RANGES,)) if job.world.first else ""
    problem = job.world.gather(found)[0]
    if not problem:
        return
    step = progress["step"]
    lost_step = progress["best_step"]
    lost = f"{best}: {problem}; the best weights so far, of step {lost_step:,}, are lost"
    is_evaluated = progress.get("evaluated", step) == step
    if is_evaluated and step >= total_steps(len(job.task.store), job.settings):
        raise UserError(
            f"{lost}. The run is at its end, so no evaluation will make new ones; its last weights "
            f"are in {job.run / 'last'}, and more --epochs or --max-steps would go on from there"
        )
    job.say(f"warning: {lost}; the next evaluation makes new ones")
    progress["best"] = -math.inf
    progress["best_step"] = 0
    # Renamed, not deleted: somebody may want to look at it.
    aside = job.run / "damaged-best"
    if job.world.first and best.exists() and not aside.exists():
        best.rename(aside)


# ---- read back ----


class Checkpoint(NamedTuple):
    """Where a run goes on from; both None if it was stopped before its first checkpoint."""

    folder: Path | None
    state: dict | None


def load_checkpoint(run: Path, world: World = World()) -> Checkpoint:
    """Load run/last; if it is missing or damaged, warn and load run/previous.

    Raises:
        UserError: if there are checkpoints but none is whole, naming what is wrong with each.
    """
    # One process looks and moves folders; the others load what it has found.
    folder = world.gather(whole_checkpoint(run) if world.first else None)[0]
    if folder is None:
        return Checkpoint(None, None)
    path = folder / "state.pt"
    try:
        # weights_only: a file from elsewhere must not run code.
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # Its checksum is right, so it was written by another version, or by hand.
        raise UserError(
            f"{path}: cannot be read ({first_sentence(error)}); start a new run with another --out"
        ) from None
    return Checkpoint(folder, checked_state(state, path))


def whole_checkpoint(run: Path) -> Path | None:
    """Return the newest checkpoint that is whole; None if the run has never written one. See `load_checkpoint`."""
    sweep(run)
    last = run / "last"
    previous = run / "previous"
    problem = find_damage(last, NEEDED)
    if not problem:
        return last
    if not last.exists() and not previous.exists():
        say(f"{run}: was stopped before its first checkpoint; it begins again")
        return None
    worse = find_damage(previous, NEEDED)
    if worse:
        raise UserError(
            f"{run}: no whole checkpoint to resume (last/: {problem}; previous/: {worse}); start afresh with "
            "another --out"
        )
    say(f"warning: last/: {problem}; going on from previous/ instead")
    # Out of the way, or the next checkpoint would rename it to previous/ and so replace the one that is whole.
    if last.exists():
        shutil.rmtree(run / "damaged", ignore_errors=True)
        last.rename(run / "damaged")
    return previous


def sweep(run: Path) -> None:
    """Clean up after a killed process: delete what it had half written, give back its name to what it had half replaced.

    Only to be called while the run's lock is held: otherwise another process may still be writing these files.
    """
    for aside in run.glob("*.old"):
        # best.x1y2z3.old/replaced was best/; the new best/ may not have come.
        replaced = aside / "replaced"
        original = run / aside.name.rsplit(".", 2)[0]
        if replaced.is_dir() and not original.exists():
            replaced.rename(original)
        shutil.rmtree(aside, ignore_errors=True)
    for path in run.glob("*.tmp"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def checked_state(state: object, path: Path) -> dict:
    """Return the content of state.pt if it has what a resumed run needs. Raises UserError naming what is wrong."""
    kinds = dict(progress=dict, optimizer=dict, rng=list, fingerprints=dict, journal_bytes=int)
    if not isinstance(state, dict):
        state = {}
    wrong = [name for name, kind in kinds.items() if not isinstance(state.get(name), kind)]
    if not wrong:
        wrong = wrong_numbers(state["progress"])
        simple = (str, int, float, list, type(None))
        for name, value in state["fingerprints"].items():
            if not isinstance(value, simple):
                wrong.append(name)
    if wrong:
        raise UserError(
            f"{path}: not the state of a training ({', '.join(wrong)} missing or of another kind); "
            "start a new run with another --out"
        )
    return state


def wrong_numbers(progress: dict) -> list[str]:
    """Return the names of the counts that are missing, not a number, or negative."""
    wrong = []
    for name in ("step", "best", "best_step", "skipped", "windows", "tokens", "seconds"):
        value = progress.get(name)
        is_number = type(value) in (int, float)  # not isinstance: True is an int
        if not is_number or (value < 0 and name != "best"):
            wrong.append(name)
    return wrong


def restore(take_step, saved: dict, job: Job) -> Progress:
    """Load a checkpoint's state into a `Step` and torch's random generators; return how far the run was.

    Raises UserError if the state does not fit this run.
    """
    counted = saved["progress"]
    # State of older versions has other fields; there every evaluation was made before the checkpoint was written.
    defaults = {**asdict(Progress()), "evaluated": counted["step"]}
    try:
        take_step.load_state_dict(saved)
        check_moments(take_step.optimizer)
        set_rng_state(saved["rng"][job.world.rank], job.device)
        return Progress(**{name: counted.get(name, defaults[name]) for name in defaults})
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"{job.run}: its checkpoint is not of such a run ({first_sentence(error)}); start a new run "
            "with another --out"
        ) from None


def check_moments(optimizer: torch.optim.Optimizer) -> None:
    """Raise TypeError or ValueError if the optimizer's state does not fit its weights."""
    for weight, state in optimizer.state.items():
        for name in ("exp_avg", "exp_avg_sq"):
            if state[name].shape != weight.shape:
                raise ValueError(
                    f"{name} has shape {tuple(state[name].shape)}, not {tuple(weight.shape)}"
                )
        float(state["step"])


def set_rng_state(state: dict, device: torch.device) -> None:
    """Put back what `rng_state` returned."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
    elif device.type == "mps" and "mps" in state:
        torch.mps.set_rng_state(state["mps"])
