"""What a run starts from: a folder, and settings that become a `Job`, that is weights, data, a device and a model."""

import contextlib
import itertools
import os
import random
import shlex
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from bertqa.console import say
from bertqa.data.download import official
from bertqa.device import faster_here, pick_device, pick_precision
from bertqa.distributed import World
from bertqa.errors import UserError
from bertqa.files import sha256
from bertqa.folders import held
from bertqa.hf.convert import resolve_weights
from bertqa.model import folder
from bertqa.model.config import BertConfig
from bertqa.settings import (
    SAMPLE,
    FileSettings,
    LoopSettings,
    ModelSettings,
    OptimSettings,
    RunSettings,
)
from bertqa.training.classification import Classification
from bertqa.training.distillation import ask_teachers
from bertqa.training.job import Job, Task, total_steps
from bertqa.training.question_answering import QuestionAnswering

TASKS = {"qa": QuestionAnswering, "classify": Classification}

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
    # All processes of a run have the folder of the first one, however their clocks differ.
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
    # The nearest folder that is there decides: the others are made in it.
    there = next(path for path in [run.absolute(), *run.absolute().parents] if path.exists())
    if not there.is_dir():
        raise UserError(f"{run}: {there} is a file, not a folder; give another --out")
    if not os.access(there, os.W_OK):
        raise UserError(f"{run}: {there} cannot be written to; give another --out")


# ---- the job ----


def job_of(
    settings: RunSettings,
    run: Path,
    *,
    task: Task | None = None,
    world: World = World(),
    say: Callable[[str], None] = say,
    typed: frozenset[str] = frozenset(),
    command: list[str] | None = None,
) -> Job:
    """Everything that a run of these settings needs: files read, windows cut, teachers asked, the model built.

    Args:
        task: of another run on the same data, which are not read again; the new run's models and scores are put into it. Its
            `teaching`, where it has one, is learned as it is.
        typed: names of the settings that somebody just gave, about which more is said.
        command: the command line, for config.json.

    Raises:
        UserError: for settings, weights and files that cannot be used; all bad settings at once.
    """
    settings = replace(settings, files=with_dev(settings.files))
    files = settings.files
    weights = find_weights(settings, world)
    config = folder.read_config(weights)
    device = pick_device(settings.loop.device)
    dtype = pick_precision(settings.loop.precision, device)
    # Before anything is drawn: a fresh head comes from the seed too.
    set_up_torch(settings.loop)
    if task is None:
        task = task_of(settings, weights, device, say, world)
    task.recipe = settings.recipe()
    if settings.teachers.teacher and task.teaching is None:
        task.teaching = ask_teachers(settings.teachers, task, dtype)
    is_fresh = files.fresh_head or config["head"] != task.head
    model = starting_model(weights, config, is_fresh, settings.model, task)
    if is_fresh:
        of_weights = config["head"] or "none"
        say(f"a head for {task.head} is drawn at random; that of the weights: {of_weights}")
    if settings.loop.precision == "auto":
        hint = faster_here("training", device)
        if hint:
            say(f"hint: {hint}")
    for line in length_remarks(len(task.store), settings.loop, settings.optim, typed):
        say(line)
    return Job(
        model=model.to(device),
        task=task,
        settings=settings.loop,
        optim=settings.optim,
        run=run,
        device=device,
        dtype=dtype,
        world=world,
        fingerprints={"weights file": sha256(weights / "model.safetensors")[:16]},
        evaluate_first=not is_fresh,
        recorded=settings.by_name(),
        command=command,
        say=say,
    )


def task_of(settings: RunSettings, weights: Path, device: torch.device, say, world: World) -> Task:
    """The task with its data read and tokenised."""
    files = settings.files
    around = {"device": device, "say": say, "progress": world.first, "world": world}
    make = TASKS[files.task]
    return make(files.train, files.dev, weights, settings.data, seed=settings.loop.seed, **around)


def with_dev(files: FileSettings) -> FileSettings:
    """The files with the dev set that belongs to the training set, where that is the bundled sample or an official one."""
    if files.task != "qa" or files.dev is not None:
        return files
    if files.train == str(SAMPLE / "train.json"):
        return replace(files, dev=str(SAMPLE / "dev.json"))
    name = files.train.removesuffix("-train")
    if name in ("squad1", "squad2") and official(files.train, "train"):
        return replace(files, dev=name)
    return files


def find_weights(settings: RunSettings, world: World) -> Path:
    """The model folder to start from, converted or fetched by one process where it has to be.

    Bad settings are refused, all at once: before weights are fetched, and, where they ask too much of these weights,
    before minutes go into reading data.
    """
    files = settings.files
    check(settings)
    fetch = partial(resolve_weights, files.weights, encoder_only=files.fresh_head)
    weights = Path(world.in_turn(fetch))
    config = folder.read_config(weights)
    check(settings, BertConfig(**config["architecture"]).longest)
    wanted = TASKS[files.task].head
    if wanted == folder.QA and config["head"] != wanted and not files.fresh_head:
        raise UserError(
            f"{weights}: these weights have no answer head; --fresh-head draws one at random"
        )
    return weights


def check(settings: RunSettings, positions: int | None = None) -> None:
    """Raise UserError for bad settings; with the model's number of positions also for windows that it cannot read."""
    problems = settings.problems(positions)
    if problems:
        raise UserError("; ".join(problems))


def set_up_torch(settings: LoopSettings) -> None:
    """Threads, determinism and seeds, which torch keeps for the whole process."""
    if settings.threads:
        torch.set_num_threads(settings.threads)
    if settings.deterministic:
        # Without it torch refuses matrix products on GPUs.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(settings.deterministic)
    random.seed(settings.seed)
    torch.manual_seed(settings.seed)


def starting_model(
    weights: Path, config: dict, is_fresh: bool, settings: ModelSettings, task: Task
) -> nn.Module:
    """The weights, in the encoder that training wants; the head is theirs, or a fresh one.

    Raises UserError for a class head whose classes are not the training data's.
    """
    if not is_fresh and config.get("labels") != task.labels:
        raise UserError(
            f"{weights}: its head knows the classes {', '.join(config['labels'])}, the training data has "
            f"{', '.join(task.labels)}; name them alike, or draw another head: --fresh-head"
        )
    model = folder.build(shape_of(config, settings), task.head, task.labels)
    if is_fresh:
        take_weights(model.encoder, folder.load_encoder(weights))
    else:
        take_weights(model, folder.load(weights))
    model.encoder.recompute = settings.recompute
    if settings.compile:
        model.encoder.fuse()
    return model.to(torch.float32)


def shape_of(config: dict, settings: ModelSettings) -> BertConfig:
    """The architecture of the weights, with the dropout that training wants."""
    shape = BertConfig(**config["architecture"])
    shape = shape.replace(attention_probs_dropout_prob=settings.attention_dropout)
    if settings.dropout is None:
        return shape
    return shape.replace(hidden_dropout_prob=settings.dropout)


def take_weights(target: nn.Module, source: nn.Module) -> None:
    """Copy what both have. Answers need no pooler; classes do, and one that the weights lack is part of a fresh head."""
    # Nothing else may be missing on either side: that would be a part of the model left at random.
    drawn = target.state_dict()
    there = source.state_dict()
    assert all(name.startswith("pooler.") for name in drawn.keys() ^ there.keys())
    kept = {name: value for name, value in there.items() if name in drawn}
    target.load_state_dict({**drawn, **kept}, strict=True)


def length_remarks(
    windows: int, loop: LoopSettings, optim: OptimSettings, typed: frozenset[str]
) -> list[str]:
    """What the length of the run makes of settings that say something else, a line each."""
    total = total_steps(windows, loop)
    in_all_epochs = total_steps(windows, replace(loop, max_steps=None))
    most = loop.max_steps or in_all_epochs
    remarks = []
    if optim.warmup >= total > 0 and optim.warmup >= 1:
        remarks.append(
            f"warmup is {optim.warmup:g} steps, but the run has {total:,}: the learning rate only rises, and peaks "
            "at the last step; --warmup 0.1 would be a tenth of the run"
        )
    if most > in_all_epochs:
        remarks.append(
            f"max_steps is {most:,}, but {loop.epochs:g} epochs end at step {total:,}; more --epochs reach it"
        )
    if most < in_all_epochs and "epochs" in typed:
        remarks.append(
            f"epochs is {loop.epochs:g}, that is {in_all_epochs:,} steps, but max_steps ends the run at step "
            f"{total:,}; --max-steps none lets the epochs decide"
        )
    if loop.eval_every > total:
        remarks.append(
            f"eval_every is {loop.eval_every:,}, but the run has {total:,} steps: it is evaluated at its end only"
        )
    return remarks
