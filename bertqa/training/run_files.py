"""The run folder: its name, its lock, the checks that it can be used, and its config.json."""

import contextlib
import os
import platform
import shlex
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from bertqa.distributed import World
from bertqa.errors import UserError
from bertqa.files import read_object, write_json
from bertqa.folders import held
from bertqa.training.job import Job, total_steps

LOCK = "lock"
"""The lock file in a run folder; it names the process that trains there."""
NOT_BEGUN = {LOCK, "train.jsonl", "dev.jsonl", "rejected.jsonl", "dev.json"}
"""Files that a run folder may hold before the run has begun, that is, before it has a config.json."""


# ---- name and lock ----


@contextlib.contextmanager
def run_folder(
    given: str | Path | None, world: World = World(), resume: bool = False
) -> Iterator[Path]:
    """Yield the run folder that the user names, or a new one in runs/ that is named by the time.

    A new one is removed at the end if it is still empty, as it is after a mistake in the settings.

    Raises:
        UserError: if the folder cannot be used. `run_training` checks that too, but then minutes were spent on reading data.
    """
    if given is not None:
        run = Path(given)
        if world.first and resume:
            check_free(run)
        elif world.first:
            check_new(run)
        yield run
        return
    # All processes use the folder of the first one, since their clocks may differ.
    run = world.gather(_make_by_time() if world.first else None)[0]
    try:
        yield run
    finally:
        if world.first:
            # rmdir refuses a folder that is not empty.
            with contextlib.suppress(OSError):
                run.rmdir()
                run.parent.rmdir()


def _make_by_time() -> Path:
    """Make runs/20261126-221544; if another run has taken that second, runs/20261126-221544-2, and so on."""
    stamp = Path(time.strftime("runs/%Y%m%d-%H%M%S"))
    check_possible(stamp)
    run = stamp
    number = 1
    while True:
        try:
            run.mkdir(parents=True)
            return run
        except FileExistsError:
            number += 1
            run = stamp.with_name(f"{stamp.name}-{number}")


def locked(run: Path) -> contextlib.AbstractContextManager:
    """Hold the lock of a run folder inside. Raises UserError if another process trains there."""
    return held(run / LOCK)


def check_free(run: Path) -> None:
    """Raise UserError if another process trains in this folder."""
    with locked(run):
        pass


def check_new(run: Path) -> None:
    """Raise UserError if the folder holds a run already, or cannot be made."""
    if run.is_dir():
        names = {path.name for path in run.iterdir() if path.suffix != ".tmp"}
        if names - NOT_BEGUN:
            raise UserError(
                f"{run}: already holds a run; give another --out, or go on with it: "
                f"--resume {shlex.quote(str(run))}"
            )
    check_possible(run)


def make_folder(run: Path) -> None:
    """Make the folder of a new run. Raises UserError if it holds a run already, or cannot be made."""
    check_new(run)
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{run}: cannot be made ({error.strerror}); give another --out") from None


def check_possible(run: Path) -> None:
    """Raise UserError if the folder cannot be made."""
    # It is made inside the nearest of its parents that exists.
    nearest = next(path for path in [run.absolute(), *run.absolute().parents] if path.exists())
    if not nearest.is_dir():
        raise UserError(f"{run}: {nearest} is a file, not a folder; give another --out")
    if not os.access(nearest, os.W_OK):
        raise UserError(f"{run}: {nearest} cannot be written to; give another --out")


# ---- config.json ----


def write_run_config(job: Job, fingerprints: dict) -> None:
    """Write config.json: all settings, fingerprints of the data, the command, git commit, versions and hardware."""
    hardware = {
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(job.device),
        "precision": str(job.dtype).removeprefix("torch."),
    }
    if job.device.type == "cuda":
        hardware["gpu"] = torch.cuda.get_device_name(job.device)
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
    }
    config = {
        "settings": job.all_settings,
        "fingerprints": fingerprints,
        "command": job.command,
        "steps": total_steps(len(job.task.store), job.settings),
        "commit": git_commit(),
        "versions": versions,
        "hardware": hardware,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    write_json(job.run / "config.json", config)


def git_commit() -> str | None:
    """Return the commit of this source tree, with + if it has uncommitted changes; None outside of a git checkout."""
    command = ["git", "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
    here = Path(__file__).parent
    try:
        done = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def read_run_config(run: Path) -> dict:
    """Read config.json of a run to be resumed; "moved_ends" is added if it is missing.

    Raises UserError if the file is missing or damaged, naming what is wrong.
    """
    path = run / "config.json"
    config = read_object(path)
    config.setdefault("moved_ends", [])
    kinds = {"settings": dict, "fingerprints": dict, "moved_ends": list}
    for name, kind in kinds.items():
        if not isinstance(config.get(name), kind):
            raise UserError(f'{path}: its "{name}" is missing or of another kind; is it damaged?')
    for move in config["moved_ends"]:
        if not is_move(move):
            raise UserError(f'{path}: its "moved_ends" hold {move!r}; is it damaged?')
    return config


def is_move(move: object) -> bool:
    """Whether this is an entry of "moved_ends": {"step": 7, "from": 20, "to": 30}."""
    if not isinstance(move, dict):
        return False
    return all(type(move.get(name)) is int for name in ("step", "from", "to"))
