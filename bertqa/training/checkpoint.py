"""The training state on disk: written beside, checked, renamed; a kill at any moment leaves a whole one.

    last/       a model folder, and state.pt: everything else that the next step depends on
    previous/   the checkpoint before it, for when last/ is damaged
"""

import hashlib
import json
import os
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from bertqa.errors import UserError

CHECKSUMS = "checksums.json"


def save_checkpoint(run: Path, save_model: Callable[[Path], None], state: dict) -> None:
    """Write run/last: the model folder by `save_model(path)`, then state.pt, then checksums, then rename.

    Raises:
        UserError: where the disk is full or read-only; the older checkpoint is left as it was.
    """
    fresh, last, previous = run / "last.tmp", run / "last", run / "previous"
    try:
        shutil.rmtree(fresh, ignore_errors=True)
        save_model(fresh)
        torch.save(state, fresh / "state.pt")
        sums = {path.name: _sha256(path) for path in sorted(fresh.iterdir()) if path.is_file()}
        (fresh / CHECKSUMS).write_text(json.dumps(sums, indent=1) + "\n")
        for path in fresh.iterdir():
            _flush(path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        shutil.rmtree(fresh, ignore_errors=True)
        raise UserError(f"{fresh}: the checkpoint could not be written ({error}); the one before it is untouched. "
                        "Make room or permit writing, then go on with --resume") from None
    if last.exists():
        shutil.rmtree(previous, ignore_errors=True)
        last.rename(previous)
    fresh.rename(last)


def load_checkpoint(run: Path) -> tuple[Path, dict]:
    """(folder, state) of run/last, or of run/previous where last/ is missing or damaged, which is said on stderr.

    Raises:
        UserError: where neither is whole, naming what is wrong with each.
    """
    problems = []
    for folder in (run / "last", run / "previous"):
        problem = _damage(folder)
        if problem is None:
            if problems:
                print(f"warning: {problems[0]}; going on from {folder.name}/ instead", file=sys.stderr)
            return folder, torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
        problems.append(f"{folder.name}/: {problem}")
    raise UserError(f"{run}: no whole checkpoint to resume ({'; '.join(problems)}); start afresh with another --out")


def _damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint folder, or None."""
    if not folder.is_dir():
        return "not there"
    try:
        sums = json.loads((folder / CHECKSUMS).read_text())
        if not isinstance(sums, dict) or not {"state.pt", "model.safetensors"} <= set(sums):
            return f"{CHECKSUMS} is damaged"
        for name, expected in sums.items():
            if _sha256(folder / name) != expected:
                return f"{name} is damaged (its checksum differs)"
        torch.load(folder / "state.pt", map_location="meta", weights_only=True)
    except (OSError, ValueError, RuntimeError, pickle.UnpicklingError) as error:
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
    """Refuse to resume on other ground: every fingerprint must be what it was.

    Raises:
        UserError: listing each difference with both values.
    """
    differ = [f"{name} was {saved.get(name)!r}, now {now[name]!r}" for name in now if saved.get(name) != now[name]]
    if differ:
        raise UserError(f"{run}: cannot resume, because {'; '.join(differ)}. Give what the run was started with, "
                        "or start a new run with another --out")


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else hashlib.sha256(
            file.read()).hexdigest()


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
