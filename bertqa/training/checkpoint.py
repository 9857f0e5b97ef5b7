"""The training state on disk: written beside, checked, renamed; a kill at any moment leaves a whole one.

last/       a model folder, and state.pt: everything else that the next step depends on
previous/   the checkpoint before it, for when last/ is damaged
damaged/    a last/ that was found damaged
"""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from bertqa.distributed import World
from bertqa.errors import UserError
from bertqa.files import sha256

CHECKSUMS = "checksums.json"


def save_checkpoint(run: Path, save_model: Callable[[Path], None], state: dict) -> None:
    """Write run/last: the model folder by `save_model(path)`, then state.pt, then checksums, then rename.

    Raises:
        UserError: where the disk is full or read-only; the older checkpoint is left as it was.
    """
    fresh, last, previous = run / "last.tmp", run / "last", run / "previous"
    with writing(fresh):
        shutil.rmtree(fresh, ignore_errors=True)
        save_model(fresh)
        torch.save(state, fresh / "state.pt")
        sums = {path.name: sha256(path) for path in sorted(fresh.iterdir()) if path.is_file()}
        (fresh / CHECKSUMS).write_text(json.dumps(sums, indent=1) + "\n")
        for path in fresh.iterdir():
            _flush(path)
        # load_checkpoint leaves no damaged last/ here, so at every moment last/ or previous/ is whole.
        if last.exists():
            shutil.rmtree(previous, ignore_errors=True)
            last.rename(previous)
        fresh.rename(last)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns the failure to write a file or folder of the run into a UserError; what was half written is removed."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        shutil.rmtree(path, ignore_errors=True)
        raise UserError(
            f"{path}: could not be written ({error}); the last checkpoint is untouched. "
            "Make room or permit writing, then go on with --resume"
        ) from None


def load_checkpoint(run: Path, world: World = World()) -> tuple[Path | None, dict | None]:
    """(folder, state) of run/last, or of run/previous where last/ is missing or damaged, which is said on stderr; the
    damaged one is set aside as run/damaged. (None, None) for a run that was stopped before its first checkpoint.

    Raises:
        UserError: where there are checkpoints but none is whole, naming what is wrong with each.
    """
    folder = world.gather(_whole_checkpoint(run) if world.first else None)[
        0
    ]  # one process looks, and moves
    return folder, folder and torch.load(folder / "state.pt", map_location="cpu", weights_only=True)


def _sweep(run: Path) -> None:
    """Remove what a killed process had half written, or half replaced."""
    for path in [*run.glob("*.tmp"), *run.glob("*.old")]:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _whole_checkpoint(run: Path) -> Path | None:
    _sweep(run)
    last, previous = run / "last", run / "previous"
    problem = _damage(last)
    if problem is None:
        return last
    if not last.exists() and not previous.exists():
        print(f"{run}: was stopped before its first checkpoint; it begins again", file=sys.stderr)
        return None
    worse = _damage(previous)
    if worse is not None:
        raise UserError(
            f"{run}: no whole checkpoint to resume (last/: {problem}; previous/: {worse}); start afresh with "
            "another --out"
        )
    print(f"warning: last/: {problem}; going on from previous/ instead", file=sys.stderr)
    if last.exists():
        shutil.rmtree(run / "damaged", ignore_errors=True)
        last.rename(run / "damaged")
    return previous


def _damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint folder, or None."""
    if not folder.is_dir():
        return "not there"
    try:
        sums = json.loads((folder / CHECKSUMS).read_text())
        if not isinstance(sums, dict) or not {"state.pt", "model.safetensors"} <= set(sums):
            return f"{CHECKSUMS} is damaged"
        for name, expected in sums.items():
            if sha256(folder / name) != expected:
                return f"{name} is damaged (its checksum differs)"
    except (OSError, ValueError) as error:
        return f"unreadable ({error})"
    return None


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
    differ = [
        f"{name} was {saved[name]!r}, now {now[name]!r}"
        for name in now
        if name in saved and saved[name] != now[name]
    ]
    if differ:
        raise UserError(
            f"{run}: cannot resume, because {'; '.join(differ)}. Give what the run was started with, "
            "or start a new run with another --out"
        )


def _flush(path: Path) -> None:
    """Have the system put a file on the disk before the rename that makes it count."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def load_weights(model: nn.Module, folder: Path) -> None:
    """Put the weights of a checkpoint into a model, strictly and bit for bit."""
    from safetensors.torch import load_file

    model.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
