"""A whole training run, from its config.json to its report: for any task, from the command line or from Python."""

import contextlib
import math
import shlex
import signal
from dataclasses import dataclass, replace
from pathlib import Path

from safetensors.torch import load_file

from bertqa.errors import UserError, first_sentence
from bertqa.files import write_json
from bertqa.reporting.page import write_report
from bertqa.reporting.run_folder import moved_ends, read_journal
from bertqa.settings import ENDS, MOVABLE, RESUMABLE, LoopSettings, broken
from bertqa.training import checkpoint
from bertqa.training.capture import settle
from bertqa.training.job import Job, total_steps
from bertqa.training.loop import train
from bertqa.training.optim import freeze
from bertqa.training.progress import Journal, Outcome, summary
from bertqa.training.run_files import (
    check_new,
    locked,
    make_folder,
    read_run_config,
    write_run_config,
)


@dataclass
class Trained:
    """A run that has ended or was stopped."""

    run: Path
    outcome: Outcome
    figures: dict
    """Time, speed, memory, best score: what summary.json holds."""

    @property
    def interrupted(self) -> bool:
        """Whether a signal stopped it. (A time limit ends a run as asked for.)"""
        return self.outcome.interrupted

    @property
    def evaluations(self) -> list[dict]:
        """The evaluations in order, as metrics.jsonl has them: "step", "epoch" and the scores."""
        journal = read_journal(self.run / "metrics.jsonl")
        return [event for event in journal if event["event"] == "eval"]


def run_training(job: Job, *, resume: bool = False) -> Trained:
    """Train, and write the run folder; with `resume` go on from its last checkpoint.

    If a signal stops a run that was started from Python (without `command`), the run is saved and the signal passed on.

    Raises:
        UserError: for a folder that holds another run or in which another process trains; for a
            resumed run whose data, weights or settings have changed; and what the loop raises.
    """
    # Everything that can be refused is refused before a folder is made.
    problems = broken(job.settings) + broken(job.optim)
    if problems:
        raise UserError("; ".join(problems))
    freeze(job.model, job.optim.freeze)
    lock = contextlib.nullcontext()
    if job.world.first:
        if not resume:
            make_folder(job.run)
        lock = locked(job.run)
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
    """Send this process the signal that stopped the run, again; SIGINT is raised as KeyboardInterrupt."""
    # Otherwise "Run all" in a notebook would go on after Ctrl-C, and a service would survive its SIGTERM.
    if stopped_by == "SIGINT":
        raise KeyboardInterrupt(f"saved in {run}")
    if stopped_by in ("SIGTERM", "SIGHUP"):
        signal.raise_signal(signal.Signals[stopped_by])


def say_what_is_about_to_run(job: Job) -> None:
    """Say how much is trained, where, and for how many steps."""
    trained = sum(weight.numel() for weight in job.model.parameters() if weight.requires_grad)
    steps = total_steps(len(job.task.store), job.settings)
    dtype = str(job.dtype).removeprefix("torch.")
    job.say(
        f"{trained:,} weights to train on {job.device}, {dtype}, {steps:,} steps of "
        f"{job.settings.batch_size} windows; run folder {job.run}"
    )


# ---- a new run ----


def begin(job: Job) -> None:
    """Write config.json, rejected.jsonl and an empty journal into a new run folder."""
    job.settings = settle(job.settings, job.model, job.device, job.dtype)
    fingerprints = fingerprints_of(job)
    if job.world.first:
        check_new(job.run)  # again, now under the lock
        job.task.save_rejected(job.run)
        # A folder with a config.json is a run, which --resume goes on with.
        write_run_config(job, fingerprints)
        job.journal = Journal(job.run / "metrics.jsonl", keep_bytes=0)
    job.fingerprints = fingerprints | lasting_settings(job)


def fingerprints_of(job: Job) -> dict:
    """Return what must be the same when the run is resumed, beside its settings."""
    return {**job.task.fingerprints(), **job.fingerprints, "processes": job.world.size}


def lasting_settings(job: Job) -> dict:
    """Return the settings that must be the same when the run is resumed. (Files are known by their fingerprints.)"""
    changing = RESUMABLE | ENDS | MOVABLE | {"out", "fresh_head", "task"}
    return {name: value for name, value in job.all_settings.items() if name not in changing}


# ---- a resumed run ----


def restore(job: Job) -> None:
    """Load the last checkpoint of the run folder into the job.

    Raises UserError if data, weights or settings are not those of the run, or no checkpoint is whole.
    """
    config = read_run_config(job.run)
    last, state = checkpoint.load_checkpoint(job.run, job.world)
    if job.settings.micro_tokens == "auto":
        # "auto" was decided when the run began, perhaps on another device.
        decided = config["settings"].get("micro_tokens", "auto")
        job.settings = replace(job.settings, micro_tokens=decided)
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
    # --epochs and --max-steps may move the end of the run.
    moves = move_end(job, config, saved["progress"]["step"])
    for sentence in moves:
        job.say(sentence)
    job.task.recipe = {**job.task.recipe, "moved_ends": " ".join(moves) or None}
    if last:
        job.model.load_state_dict(load_file(last / "model.safetensors"))
        checkpoint.check_best(job, state)
    if job.world.first:
        if state is None:
            job.task.save_rejected(job.run)
        job.journal = Journal(job.run / "metrics.jsonl", keep_bytes=saved["journal_bytes"])


def check_same(saved: dict, now: dict, run: Path) -> None:
    """Raise UserError if a fingerprint or setting is not what was saved, listing each with both values."""
    differ = []
    for name, value in now.items():
        if name in saved and saved[name] != value:
            differ.append(f"{name} was {saved[name]!r}, now {value!r}")
    if differ:
        raise UserError(
            f"{run}: cannot resume, because {'; '.join(differ)}. Give what the run was started with, "
            "or start a new run with another --out"
        )


def move_end(job: Job, config: dict, step: int) -> list[str]:
    """Update the run's config.json with a new end and new places of its files.

    Args:
        config: the content of config.json; it is changed.
        step: where the run is resumed.

    Returns:
        A sentence for each time that the end was moved, earlier times included.

    Raises:
        UserError: if the run is past the new end.
    """
    windows = len(job.task.store)
    old = total_steps(windows, _end_settings(config["settings"]))
    new = total_steps(windows, job.settings)
    if old != new:
        if new <= step:
            raise UserError(
                f"{job.run}: is at step {step:,} and cannot end at step {new:,}; give more --epochs or --max-steps"
            )
        config["moved_ends"].append({"step": step, "from": old, "to": new})
    changed = dict(config["settings"])
    for name in ENDS:
        changed[name] = job.all_settings[name]
    # The fingerprints have shown that these are the same files.
    for name in MOVABLE & job.recorded.keys():
        changed[name] = job.recorded[name]
    if changed != config["settings"]:
        config["settings"] = changed
        if job.world.first:
            write_json(job.run / "config.json", config)
    return moved_ends(config)


def _end_settings(settings: dict) -> LoopSettings:
    """Return the loop's settings with just those that decide where the run ends; the others are defaults."""
    names = [*ENDS, "batch_size"]
    return LoopSettings(**{name: settings[name] for name in names if name in settings})


# ---- the end ----


def finish(job: Job, outcome: Outcome) -> Trained:
    """Write the last line of the journal, summary.json, the report and the int8 ranges of best/, and tell people."""
    figures = summary(outcome, job.task.key, job.device)
    if job.world.first:
        # A stopped run has this line too; when it is resumed, the journal is cut back to the checkpoint.
        job.journal.write("end", **figures)
        job.journal.close()
        if outcome.finished:
            write_json(job.run / "summary.json", figures)
            if job.report:
                say_report(job)
        for line in closing_lines(job, outcome, figures):
            job.say(line)
    # Last, because it takes seconds, or minutes for a large model: a process that is killed meanwhile loses nothing else.
    # Not after a signal, whose sender may not wait: the resumed run measures them.
    if job.world.first and not outcome.interrupted:
        checkpoint.measure_ranges(job)
    return Trained(job.run, outcome, figures)


def say_report(job: Job) -> None:
    """Write report.html and say where it is. A failure is no error, because the training itself went well."""
    try:
        job.say(f"report: {write_report(job.run, say=job.say)}")
    except Exception as error:
        if not isinstance(error, (UserError, OSError)):
            error = f"{type(error).__name__}: {first_sentence(error)}"
        job.say(f"no report: {error}")


def closing_lines(job: Job, outcome: Outcome, figures: dict) -> list[str]:
    """Return the last lines for people: speed, and the best score or how to go on."""
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
