"""The training state on disk: written beside, checked, renamed; a kill at any moment leaves a whole one.

last/       a model folder, and state.pt: everything else that the next step depends on
previous/   the checkpoint before it, for when last/ is damaged
damaged/    a last/ that was found damaged
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import nn

from bertqa.console import say
from bertqa.distributed import World
from bertqa.errors import UserError, first_sentence
from bertqa.folders import staged
from bertqa.model.disk import CHECKSUMS, find_damage, write_checksums

NEEDED = ("state.pt", "model.safetensors", CHECKSUMS)
"""What a checkpoint cannot be without."""


def save_checkpoint(run: Path, save_model: Callable[[Path], None], state: dict) -> None:
    """Write run/last: the model folder by `save_model(path)`, then state.pt, then checksums of all of it.

    The checkpoint that was there becomes run/previous: at every moment one of the two is whole, for
    load_checkpoint leaves no damaged last/.

    Raises:
        UserError: where the disk is full or read-only; the older checkpoint is left as it was.
    """
    last = run / "last"
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


class Checkpoint(NamedTuple):
    """What a run goes on from; None both where it was stopped before its first checkpoint."""

    folder: Path | None
    state: dict | None


def load_checkpoint(run: Path, world: World = World()) -> Checkpoint:
    """That in run/last, or in run/previous where last/ is missing or damaged, which is said; the damaged one
    is set aside as run/damaged.

    Raises:
        UserError: where there are checkpoints but none is whole, naming what is wrong with each.
    """
    # one process looks, and moves
    folder = world.gather(whole_checkpoint(run) if world.first else None)[0]
    if folder is None:
        return Checkpoint(None, None)
    try:
        state = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
    except Exception as error:  # its checksum is right: written by another version, or by hand
        raise UserError(
            f"{folder / 'state.pt'}: cannot be read ({first_sentence(error)}); start a new run with another --out"
        ) from None
    return Checkpoint(folder, checked_state(state, folder / "state.pt"))


def checked_state(state: object, path: Path) -> dict:
    """The state of a checkpoint, if it has what a resumed run needs. Raises UserError naming what is wrong."""
    kinds = {
        "progress": dict,
        "optimizer": dict,
        "rng": list,
        "fingerprints": dict,
        "journal_bytes": int,
    }
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
        # best.x1y2z3.old/replaced was best/, and what takes its place may not have come
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


def check_same(saved: dict, now: dict, run: Path) -> None:
    """Refuse to resume on other ground: every fingerprint and setting that was saved must be what it was.

    Raises:
        UserError: listing each difference with both values.
    """
    differ = []
    for name, value in now.items():
        if name in saved and saved[name] != value:
            differ.append(f"{name} was {saved[name]!r}, now {value!r}")
    if differ:
        raise UserError(
            f"{run}: cannot resume, because {'; '.join(differ)}. Give what the run was started with, "
            "or start a new run with another --out"
        )


def load_weights(model: nn.Module, folder: Path) -> None:
    """Put the weights of a checkpoint into a model, strictly and bit for bit."""
    model.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
