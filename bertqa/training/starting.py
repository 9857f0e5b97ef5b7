"""From settings to a `Job`: find the weights, read the data, ask the teachers, build the model."""

import os
import random
from collections.abc import Callable
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
from bertqa.hf.convert import resolve_weights
from bertqa.model import folder
from bertqa.model.config import BertConfig
from bertqa.settings import (
    SAMPLE,
    DistillationSettings,
    FileSettings,
    LoopSettings,
    ModelSettings,
    OptimSettings,
    RunSettings,
)
from bertqa.training.classification import Classification
from bertqa.training.distillation import Teaching, ask_teachers
from bertqa.training.job import FileTask, Job, total_steps
from bertqa.training.question_answering import QuestionAnswering

TASKS = {"qa": QuestionAnswering, "classify": Classification}


def job_of(
    settings: RunSettings,
    run: Path,
    *,
    task: FileTask | None = None,
    world: World = World(),
    say: Callable[[str], None] = say,
    typed: frozenset[str] = frozenset(),
    command: list[str] | None = None,
) -> Job:
    """Prepare everything that a run of these settings needs, and return it as a `Job`.

    Args:
        task: a task that has read the same data already; this run stores its evaluations in it. If it has a `teaching`, that
            is used instead of asking the teachers.
        typed: names of the settings that the user has just given; remarks are made about some of them.
        command: the command line, for config.json.

    Raises:
        UserError: for settings, weights and files that cannot be used; all bad settings at once.
    """
    settings = replace(settings, files=with_dev(settings.files))
    weights = find_weights(settings, world)
    device = pick_device(settings.loop.device)
    dtype = pick_precision(settings.loop.precision, device)
    # Before the model is built: the seed also decides what a fresh head is.
    set_up_torch(settings.loop)
    if task is None:
        task = task_of(settings, weights, device, say, world)
    task.recipe = settings.recipe()
    if settings.teachers.teacher and task.teaching is None:
        task.teaching = teaching_of(settings.teachers, task, dtype)
    is_fresh = needs_fresh_head(settings.files, weights, task)
    model = starting_model(weights, is_fresh, settings.model, task)
    for line in remarks(settings, typed, task, weights):
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


# ---- files and weights ----


def with_dev(files: FileSettings) -> FileSettings:
    """Add the dev set that belongs to the training set, if that is the bundled sample or an official SQuAD file."""
    if files.task != "qa" or files.dev is not None:
        return files
    if files.train == str(SAMPLE / "train.json"):
        return replace(files, dev=str(SAMPLE / "dev.json"))
    name = files.train.removesuffix("-train")
    if name in ("squad1", "squad2") and official(files.train, "train"):
        return replace(files, dev=name)
    return files


def find_weights(settings: RunSettings, world: World) -> Path:
    """Return the model folder to start from; one process downloads or converts it if necessary.

    Raises:
        UserError: for bad settings, all at once, before anything is downloaded; for windows longer than the model's
            positions, before minutes are spent on reading data; for weights without an answer head.
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
    """Raise UserError for bad settings; given the model's positions, also for windows that are longer."""
    problems = settings.problems(positions)
    if problems:
        raise UserError("; ".join(problems))


def task_of(
    settings: RunSettings, weights: Path, device: torch.device, say, world: World
) -> FileTask:
    """Return the task, its data read and tokenised."""
    files = settings.files
    make = TASKS[files.task]
    return make(
        files.train,
        files.dev,
        weights,
        settings.data,
        seed=settings.loop.seed,
        device=device,
        say=say,
        progress=world.first,
        world=world,
    )


def teaching_of(settings: DistillationSettings, task: FileTask, dtype: torch.dtype) -> Teaching:
    """Return the teachers' logits on the training windows; one process downloads or converts teachers if necessary."""
    names = settings.teacher
    folders = task.world.in_turn(lambda: [Path(resolve_weights(name)) for name in names])
    return ask_teachers(settings, folders, task, dtype)


# ---- torch and the model ----


def set_up_torch(settings: LoopSettings) -> None:
    """Set threads, determinism and seeds, all of which hold for the whole process."""
    if settings.threads:
        torch.set_num_threads(settings.threads)
    if settings.deterministic:
        # Without this variable torch refuses matrix products on GPUs.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(settings.deterministic)
    random.seed(settings.seed)
    torch.manual_seed(settings.seed)


def needs_fresh_head(files: FileSettings, weights: Path, task: FileTask) -> bool:
    """Whether the head is drawn at random: because the user wants it, or because the weights have none for this task."""
    return files.fresh_head or folder.read_config(weights)["head"] != task.head


def starting_model(
    weights: Path, is_fresh: bool, settings: ModelSettings, task: FileTask
) -> nn.Module:
    """Build the model for training and fill it with the weights, all but a fresh head.

    Raises UserError if the weights have a class head whose classes are not those of the training data.
    """
    config = folder.read_config(weights)
    if not is_fresh and config.get("labels") != task.labels:
        raise UserError(
            f"{weights}: its head knows the classes {', '.join(config['labels'])}, the training data has "
            f"{', '.join(task.labels)}; name them alike, or draw another head: --fresh-head"
        )
    model = folder.build(training_config(config, settings), task.head, task.labels)
    if is_fresh:
        copy_weights(folder.load_encoder(weights), model.encoder)
    else:
        copy_weights(folder.load(weights), model)
    model.encoder.recompute = settings.recompute
    if settings.compile:
        model.encoder.fuse()
    return model.to(torch.float32)


def training_config(config: dict, settings: ModelSettings) -> BertConfig:
    """Return the architecture of the weights with the dropout rates of the settings."""
    architecture = BertConfig(**config["architecture"])
    architecture = architecture.replace(attention_probs_dropout_prob=settings.attention_dropout)
    if settings.dropout is None:
        return architecture
    return architecture.replace(hidden_dropout_prob=settings.dropout)


def copy_weights(source: nn.Module, target: nn.Module) -> None:
    """Copy all tensors of `source` into `target`, except a pooler that only one of them has.

    A question answering model has no pooler. A classifier has one; if the weights do not, it stays as it was drawn.
    """
    stored = source.state_dict()
    drawn = target.state_dict()
    # Anything else that is missing would leave a part of the model at random.
    assert all(name.startswith("pooler.") for name in drawn.keys() ^ stored.keys())
    kept = {name: value for name, value in stored.items() if name in drawn}
    target.load_state_dict({**drawn, **kept}, strict=True)


# ---- what people are told ----


def remarks(
    settings: RunSettings, typed: frozenset[str], task: FileTask, weights: Path
) -> list[str]:
    """Return what the user should know before the run starts, a line each."""
    lines = []
    if needs_fresh_head(settings.files, weights, task):
        of_weights = folder.read_config(weights)["head"] or "none"
        lines.append(
            f"a head for {task.head} is drawn at random; that of the weights: {of_weights}"
        )
    if settings.loop.precision == "auto":
        hint = faster_here("training", task.device)
        if hint:
            lines.append(f"hint: {hint}")
    return lines + length_remarks(len(task.store), settings.loop, settings.optim, typed)


def length_remarks(
    windows: int, loop: LoopSettings, optim: OptimSettings, typed: frozenset[str]
) -> list[str]:
    """Return a line for each setting that the length of the run makes ineffective or surprising."""
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
