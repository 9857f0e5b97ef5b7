"""What a run can go on from: its config.json, and its training state, which a kill at any moment leaves whole.

best/       a model folder: the best weights so far
last/       a model folder, and state.pt: everything else that the next step depends on
previous/   the checkpoint before it, for when last/ is damaged
damaged/    a last/ that was found damaged
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch

from bertqa.console import say
from bertqa.distributed import World
from bertqa.errors import UserError, first_sentence
from bertqa.files import read_object, write_json
from bertqa.folders import staged
from bertqa.model.disk import CHECKSUMS, find_damage, write_checksums
from bertqa.reporting.run_folder import moved_ends
from bertqa.settings import ENDS, MOVABLE, LoopSettings
from bertqa.training.job import Job, measure_ranges, total_steps
from bertqa.training.progress import Progress

NEEDED = ("state.pt", "model.safetensors", CHECKSUMS)
"""What a checkpoint cannot be without."""


# ---- config.json ----


def read_run_config(run: Path) -> dict:
    """config.json of a run, with the kinds of values that going on with it needs.

    Raises UserError where it is missing or damaged; names what is wrong.
    """
    path = run / "config.json"
    config = read_object(path)
    kinds = {"settings": dict, "fingerprints": dict, "moved_ends": list}
    config.setdefault("moved_ends", [])
    for name, kind in kinds.items():
        if not isinstance(config.get(name), kind):
            raise UserError(f'{path}: its "{name}" is missing or of another kind; is it damaged?')
    for move in config["moved_ends"]:
        if not is_move(move):
            raise UserError(f'{path}: its "moved_ends" hold {move!r}; is it damaged?')
    return config


def is_move(move: object) -> bool:
    """Whether it is one of the moves that `move_end` writes: {"step": 7, "from": 20, "to": 30}."""
    if not isinstance(move, dict):
        return False
    return all(type(move.get(name)) is int for name in ("step", "from", "to"))


def move_end(job: Job, step: int) -> list[str]:
    """Where a run resumed at this step was given another end, put it in config.json. Returns all such moves, in words.

    Raises UserError where the run is past that end.
    """
    config = read_run_config(job.run)
    moves = config["moved_ends"]
    windows = len(job.task.store)
    old = total_steps(windows, _ends_of(config["settings"]))
    new = total_steps(windows, job.settings)
    if old != new:
        if new <= step:
            raise UserError(
                f"{job.run}: is at step {step:,} and cannot end at step {new:,}; give more --epochs or --max-steps"
            )
        moves.append({"step": step, "from": old, "to": new})
    changed = dict(config["settings"])
    for name in ENDS:
        changed[name] = job.all_settings[name]
    # Files that lie elsewhere now: their fingerprints have said that they are the same.
    for name in MOVABLE & job.recorded.keys():
        changed[name] = job.recorded[name]
    if changed != config["settings"]:
        config["settings"] = changed
        if job.world.first:
            write_json(job.run / "config.json", config)
    return moved_ends(config)


def _ends_of(settings: dict) -> LoopSettings:
    """The loop's settings as far as they say where the run ends."""
    names = [*ENDS, "batch_size"]
    return LoopSettings(**{name: settings[name] for name in names if name in settings})


# ---- written ----


def save_checkpoint(run: Path, save_model: Callable[[Path], None], state: dict) -> None:
    """Write run/last: the model folder by `save_model(path)`, then state.pt, then checksums of all of it.

    The checkpoint that was there becomes run/previous: at every moment one of the two is whole, for
    load_checkpoint leaves no damaged last/.

    Raises:
        UserError: where the disk is full or read-only; the older checkpoint is left as it was.
    """
    last = run / "last"
    # The state before the checksums, which tell a checkpoint that is whole from one that is not.
    with writing(last), staged(last, keep_as=run / "previous") as fresh:
        save_model(fresh)
        torch.save(state, fresh / "state.pt")
        write_checksums(fresh)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns the failure to write a file or folder of the run into a UserError."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        raise UserError(
            f"{path}: could not be written ({error}); the last checkpoint is untouched. "
            "Make room or permit writing, then go on with --resume"
        ) from None


def keep_best(job: Job) -> None:
    """Write run/best and the predictions of the last evaluation."""
    best = job.run / "best"
    with writing(best):
        # Written beside and renamed: best/ is whole at every moment, also where the process is killed here.
        with staged(best) as fresh:
            job.task.save_model(job.model, fresh, evaluated=True)
            measure_ranges(job, fresh)
            write_checksums(fresh)
        job.task.save_predictions(job.run)


# ---- read back ----


class Checkpoint(NamedTuple):
    """What a run goes on from; None both where it was stopped before its first checkpoint."""

    folder: Path | None
    state: dict | None


def load_checkpoint(run: Path, world: World = World()) -> Checkpoint:
    """That in run/last, or in run/previous where last/ is missing or damaged, which is said; what is damaged becomes run/damaged.

    Raises:
        UserError: where there are checkpoints but none is whole, naming what is wrong with each.
    """
    # One process looks, and moves; the others go where it says.
    folder = world.gather(whole_checkpoint(run) if world.first else None)[0]
    if folder is None:
        return Checkpoint(None, None)
    try:
        # weights_only: a file from elsewhere must not run code.
        state = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
    except Exception as error:
        # Its checksum is right, so it was written by another version, or by hand.
        raise UserError(
            f"{folder / 'state.pt'}: cannot be read ({first_sentence(error)}); start a new run with another --out"
        ) from None
    return Checkpoint(folder, checked_state(state, folder / "state.pt"))


def checked_state(state: object, path: Path) -> dict:
    """The state of a checkpoint, if it has what a resumed run needs. Raises UserError naming what is wrong."""
    kinds = {"progress": dict, "optimizer": dict, "rng": list}
    kinds |= {"fingerprints": dict, "journal_bytes": int}
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
    """The counts that are no numbers, below 0, or missing."""
    wrong = []
    for name in ("step", "best", "best_step", "skipped", "windows", "tokens", "seconds"):
        value = progress.get(name)
        if type(value) not in (int, float) or (value < 0 and name != "best"):
            wrong.append(name)
    return wrong


def restore(take_step, saved: dict, job: Job) -> Progress:
    """Put a checkpoint's state into optimizer, scaler, average and generators; returns where the run stood.

    Raises UserError where it is not the state of such a run.
    """
    counted = saved["progress"]
    # Older versions also counted what nothing asks for any more, and made every evaluation before they saved.
    known = {**asdict(Progress()), "evaluated": counted["step"]}
    try:
        take_step.load_state_dict(saved)
        check_moments(take_step.optimizer)
        set_rng_state(saved["rng"][job.world.rank], job.device)
        return Progress(**{name: counted.get(name, known[name]) for name in known})
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"{job.run}: its checkpoint is not of such a run ({first_sentence(error)}); start a new run "
            "with another --out"
        ) from None


def check_moments(optimizer: torch.optim.Optimizer) -> None:
    """Refuse an optimizer's state that is not of its weights. Raises TypeError or ValueError."""
    for weight, state in optimizer.state.items():
        for name in ("exp_avg", "exp_avg_sq"):
            if state[name].shape != weight.shape:
                raise ValueError(
                    f"{name} has shape {tuple(state[name].shape)}, not {tuple(weight.shape)}"
                )
        float(state["step"])


def sweep(run: Path) -> None:
    """Remove what a killed process had half written; what it had half replaced gets its name back.

    To be called under the run's lock: without it, these may be files that another process is writing.
    """
    for aside in run.glob("*.old"):
        # best.x1y2z3.old/replaced was best/, and what takes its place may not have come.
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


def whole_checkpoint(run: Path) -> Path | None:
    """The newest checkpoint that is whole; None where there has never been one. See `load_checkpoint`."""
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
    # Out of the way: the next checkpoint would make it previous/, in the place of the one that is whole.
    if last.exists():
        shutil.rmtree(run / "damaged", ignore_errors=True)
        last.rename(run / "damaged")
    return previous


def rng_state(device: torch.device) -> dict:
    """The generators that training draws from: torch's, on the host and on the device. Data order has no state."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


def set_rng_state(state: dict, device: torch.device) -> None:
    """Put back what `rng_state` returned."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
    elif device.type == "mps" and "mps" in state:
        torch.mps.set_rng_state(state["mps"])
