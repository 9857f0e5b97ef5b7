"""The folder of a run: where it is made, and its config.json, which is everything that it takes to repeat the run."""

import contextlib
import itertools
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
from bertqa.reporting.run_folder import moved_ends
from bertqa.settings import ENDS, MOVABLE, LoopSettings
from bertqa.training.job import Job, total_steps

LOCK = "lock"
"""Name of the file in a run folder that says who is training there."""
NOT_BEGUN = {LOCK, "train.jsonl", "dev.jsonl", "rejected.jsonl", "dev.json"}
"""What may be in the folder of a run that has not begun, or failed before it had a config.json."""


@contextlib.contextmanager
def run_folder(given: str | Path | None, world: World = World()) -> Iterator[Path]:
    """The run folder that a user names, or one named by the time, which is nobody else's: several runs may start in one
    second. That one is gone again where a mistake left it empty."""
    if given is not None:
        yield Path(given)
        return
    run = world.gather(_made_by_time() if world.first else None)[0]
    try:
        yield run
    finally:
        if world.first:
            # Each only where it is empty.
            with contextlib.suppress(OSError):
                run.rmdir()
                run.parent.rmdir()


def _made_by_time() -> Path:
    """runs/20261126-221544, or, where it is taken, runs/20261126-221544-2."""
    stamp = Path(time.strftime("runs/%Y%m%d-%H%M%S"))
    check_possible(stamp)
    run = stamp
    for number in itertools.count(2):
        with contextlib.suppress(FileExistsError):
            run.mkdir(parents=True)
            break
        run = stamp.with_name(f"{stamp.name}-{number}")
    return run


def check_free(run: Path) -> None:
    """Refuse a run folder in which another process trains, before minutes are spent on reading data."""
    with held(run / LOCK):
        pass


def check_new(run: Path) -> None:
    """Refuse a run folder that holds something already, or cannot be made. Raises UserError."""
    if run.is_dir():
        names = {path.name for path in run.iterdir() if path.suffix != ".tmp"}
        if names - NOT_BEGUN:
            raise UserError(
                f"{run}: already holds a run; give another --out, or go on with it: "
                f"--resume {shlex.quote(str(run))}"
            )
    check_possible(run)


def check_possible(run: Path) -> None:
    """Refuse a run folder that cannot be made. Raises UserError."""
    there = next(path for path in [run.absolute(), *run.absolute().parents] if path.exists())
    if not there.is_dir():
        raise UserError(f"{run}: {there} is a file, not a folder; give another --out")
    if not os.access(there, os.W_OK):
        raise UserError(f"{run}: {there} cannot be written to; give another --out")


def write_run_config(job: Job, fingerprints: dict) -> None:
    """Write config.json: every setting, versions, commit, fingerprints, and the device and format that were chosen."""
    hardware = {
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(job.device),
        "precision": str(job.dtype).removeprefix("torch."),
    }
    if job.device.type == "cuda":
        hardware["gpu"] = torch.cuda.get_device_name(job.device)
    config = {
        "settings": job.all_settings,
        "fingerprints": fingerprints,
        "command": job.command,
        "steps": total_steps(len(job.task.store), job.settings),
        "commit": git_commit(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "platform": platform.platform(),
        },
        "hardware": hardware,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    write_json(job.run / "config.json", config)


def read_run_config(run: Path) -> dict:
    """config.json of a run, with the kinds of values that going on with it needs.

    Raises:
        UserError: where it is missing or damaged; names what is wrong.
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

    Raises:
        UserError: where the run is past that end.
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
    changed = {**config["settings"], **{name: job.all_settings[name] for name in ENDS}}
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


def git_commit() -> str | None:
    """The commit of this source tree, with + where it has changes; None outside of a checkout."""
    try:
        said = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return said.stdout.strip() or None
