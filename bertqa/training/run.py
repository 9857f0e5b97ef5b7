"""A whole training run: its folder, the loop, and what is left behind. For any task, from the command line or Python."""

import contextlib
import math
import os
import platform
import shlex
import signal
import subprocess
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from bertqa.errors import UserError, first_sentence
from bertqa.files import write_json
from bertqa.folders import held
from bertqa.model.disk import find_damage
from bertqa.reporting.page import write_report
from bertqa.reporting.run_folder import read_journal
from bertqa.settings import ENDS, MOVABLE, RESUMABLE, broken
from bertqa.training import checkpoint
from bertqa.training.capture import settle
from bertqa.training.job import Job, total_steps
from bertqa.training.loop import train
from bertqa.training.optim import freeze
from bertqa.training.progress import Journal, Outcome, summary
from bertqa.training.starting import LOCK, check_new


@dataclass
class Trained:
    """What a run left."""

    run: Path
    outcome: Outcome
    figures: dict
    """Time, speed, memory, best score: summary.json."""

    @property
    def interrupted(self) -> bool:
        """Whether a signal stopped it; a time limit is as asked for."""
        return not self.outcome.finished and "limit" not in self.outcome.stopped_by

    @property
    def evaluations(self) -> list[dict]:
        """What each evaluation found, in order: "step", "epoch" and its scores, as metrics.jsonl has them."""
        journal = read_journal(self.run / "metrics.jsonl")
        return [event for event in journal if event["event"] == "eval"]


def run_training(job: Job, *, resume: bool = False) -> Trained:
    """Train, from the run folder's config.json to its report; with `resume`, from its last checkpoint on.

    A run without `command` was started from Python: where a signal stops it, it is saved, and the signal passed on.

    Raises:
        UserError: for a folder that holds another run or in which another process trains; for a
            resumed run whose data, weights or settings have changed; and what the loop raises.
    """
    # Before a folder is made; freeze refuses layers that the model does not have.
    problems = broken(job.settings) + broken(job.optim)
    if problems:
        raise UserError("; ".join(problems))
    freeze(job.model, job.optim.freeze)
    # The lock lies in the folder, so the folder comes first.
    if job.world.first and not resume:
        check_new(job.run)
        try:
            job.run.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            why = error.strerror
            raise UserError(f"{job.run}: cannot be made ({why}); give another --out") from None
    lock = held(job.run / LOCK) if job.world.first else contextlib.nullcontext()
    with lock:
        if resume:
            restore(job)
        else:
            begin(job)
        say_what_is_about_to_run(job)
        outcome = train(job)
        trained = finish(job, outcome)
    if job.command is None:
        pass_on(outcome.stopped_by, job.run)
    return trained


def pass_on(stopped_by: str, run: Path) -> None:
    """Give a signal that stopped a run to whom it was meant for; Ctrl-C is raised as KeyboardInterrupt."""
    # Saved and silent, a training called from Python would let "Run all" in a notebook go on, or a service stay alive.
    if stopped_by == "SIGINT":
        raise KeyboardInterrupt(f"saved in {run}")
    if stopped_by in ("SIGTERM", "SIGHUP"):
        signal.raise_signal(signal.Signals[stopped_by])


# ---- a run that begins, one that goes on ----


def begin(job: Job) -> None:
    """Fill a new run folder: config.json, rejected.jsonl, an empty journal."""
    job.settings = settle(job.settings, job.model, job.device, job.dtype)
    fingerprints = fingerprints_of(job)
    if job.world.first:
        check_new(job.run)  # again, now that nobody else can
        job.task.save_rejected(job.run)
        # From here on it is a run, which --resume goes on with.
        write_run_config(job, fingerprints)
        job.journal = Journal(job.run / "metrics.jsonl", keep_bytes=0)
    job.fingerprints = fingerprints | lasting_settings(job)


def write_run_config(job: Job, fingerprints: dict) -> None:
    """Write config.json: every setting, versions, commit, fingerprints, and the device and format that were chosen."""
    hardware = {"cores": os.cpu_count(), "threads": torch.get_num_threads()}
    hardware |= {"device": str(job.device), "precision": str(job.dtype).removeprefix("torch.")}
    if job.device.type == "cuda":
        hardware["gpu"] = torch.cuda.get_device_name(job.device)
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    versions["platform"] = platform.platform()
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
    """The commit of this source tree, with + where it has changes; None outside of a checkout."""
    command = ["git", "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
    here = Path(__file__).parent
    try:
        said = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return said.stdout.strip() or None


def restore(job: Job) -> None:
    """Put the last checkpoint of the run folder into the job, if it goes on where the run left off."""
    config = checkpoint.read_run_config(job.run)
    last, state = checkpoint.load_checkpoint(job.run, job.world)
    if job.settings.micro_tokens == "auto":
        # As the run has settled it, whatever this device would; a job made in Python still says "auto".
        settled = config["settings"].get("micro_tokens", "auto")
        job.settings = replace(job.settings, micro_tokens=settled)
    job.settings = settle(job.settings, job.model, job.device, job.dtype)
    saved = state
    if state is None:
        # Stopped before its first checkpoint, the run is where it began.
        saved = {
            "progress": {"step": 0},
            "journal_bytes": 0,
            "fingerprints": config["fingerprints"],
        }
    job.resumed = state
    job.fingerprints = fingerprints_of(job) | lasting_settings(job)
    check_same(saved["fingerprints"], job.fingerprints, job.run)
    # Its settings may name another end than the run had so far.
    moves = checkpoint.move_end(job, saved["progress"]["step"])
    for sentence in moves:
        job.say(sentence)
    job.task.recipe = {**job.task.recipe, "moved_ends": " ".join(moves) or None}
    if last:
        # Until here the model has the weights that the run began with.
        job.model.load_state_dict(load_file(last / "model.safetensors"))
        check_best(job, state)
    if job.world.first:
        if state is None:
            job.task.save_rejected(job.run)
        job.journal = Journal(job.run / "metrics.jsonl", keep_bytes=saved["journal_bytes"])


def fingerprints_of(job: Job) -> dict:
    """What a resumed run must have in common with this one, beside its settings."""
    return {**job.task.fingerprints(), **job.fingerprints, "processes": job.world.size}


def lasting_settings(job: Job) -> dict:
    """The settings that must not change over a run's life; its files have fingerprints of their own."""
    changing = RESUMABLE | ENDS | MOVABLE | {"out", "fresh_head", "task"}
    return {name: value for name, value in job.all_settings.items() if name not in changing}


def check_same(saved: dict, now: dict, run: Path) -> None:
    """Refuse to resume on other ground: every fingerprint and setting that was saved must be what it was.

    Raises UserError listing each difference with both values.
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


def check_best(job: Job, state: dict) -> None:
    """See to it that best/ of a resumed run holds what the run thinks it does.

    Where it is damaged or gone, the run forgets it, so that the next evaluation writes a new one; where none is to
    come, that is a UserError.
    """
    best = job.run / "best"
    progress = state["progress"]
    if progress["best"] == -math.inf:
        return
    # The first process looks; all of them must go on, or fail, together.
    found = find_damage(best, ("model.safetensors",)) if job.world.first else ""
    problem = job.world.gather(found)[0]
    if not problem:
        return
    step = progress["step"]
    kept_at = progress["best_step"]
    lost = f"{best}: {problem}; the best weights so far, of step {kept_at:,}, are lost"
    all_made = progress.get("evaluated", step) == step
    if all_made and step >= total_steps(len(job.task.store), job.settings):
        raise UserError(
            f"{lost}. The run is at its end, so no evaluation will make new ones; its last weights "
            f"are in {job.run / 'last'}, and more --epochs or --max-steps would go on from there"
        )
    job.say(f"warning: {lost}; the next evaluation makes new ones")
    progress["best"] = -math.inf
    progress["best_step"] = 0
    # Kept for whoever wants to look at it, and out of the way of the next one.
    aside = job.run / "damaged-best"
    if job.world.first and best.exists() and not aside.exists():
        best.rename(aside)


# ---- what people are told ----


def say_what_is_about_to_run(job: Job) -> None:
    """The first line for people."""
    trained = sum(weight.numel() for weight in job.model.parameters() if weight.requires_grad)
    steps = total_steps(len(job.task.store), job.settings)
    dtype = str(job.dtype).removeprefix("torch.")
    job.say(
        f"{trained:,} weights to train on {job.device}, {dtype}, {steps:,} steps of "
        f"{job.settings.batch_size} windows; run folder {job.run}"
    )


def finish(job: Job, outcome: Outcome) -> Trained:
    """Write the last line of the journal, summary.json and the report, and tell people."""
    figures = summary(outcome, job.task.key, job.device)
    if job.world.first:
        # A run that was stopped has this line too; the run that goes on cuts it off.
        job.journal.write("end", **figures)
        job.journal.close()
        if outcome.finished:
            write_json(job.run / "summary.json", figures)
            if job.report:
                say_report(job)
        for line in closing_lines(job, outcome, figures):
            job.say(line)
    return Trained(job.run, outcome, figures)


def say_report(job: Job) -> None:
    """Write report.html. Whatever keeps the page from being written is no reason to fail a run that was trained."""
    try:
        job.say(f"report: {write_report(job.run, say=job.say)}")
    except Exception as error:
        if not isinstance(error, (UserError, OSError)):
            error = f"{type(error).__name__}: {first_sentence(error)}"
        job.say(f"no report: {error}")


def closing_lines(job: Job, outcome: Outcome, figures: dict) -> list[str]:
    """The last lines for people."""
    lines = [
        f"{figures['steps']:,} steps, {figures['windows']:,} windows in {figures['seconds']:,.0f} s of training: "
        f"{figures['windows_per_s']:.1f} windows/s, {figures['tokens_per_s']:,.0f} useful tokens/s, peak memory "
        f"{figures['peak_memory_mb']:,} MB"
    ]
    if not outcome.finished:
        command = f"python -m bertqa.train --resume {shlex.quote(str(job.run))}"
        return [*lines, f"stopped by {outcome.stopped_by}; go on with: {command}"]
    if outcome.last:
        lines.append(f"last evaluation: {job.task.describe(outcome.last)}")
    key = job.task.key
    best = outcome.progress.best
    if best == -math.inf:
        return [*lines, f"no evaluation found a {key}, so nothing is kept in best/"]
    at = f"at step {outcome.progress.best_step}, kept in {job.run / 'best'}"
    return [*lines, f"best {key} {best:.2f} {at}"]
