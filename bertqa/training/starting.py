"""What a run starts from: settings become a `Job`, that is weights, data, a device and a model."""

import dataclasses
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from bertqa.console import say
from bertqa.device import pick_device, pick_precision
from bertqa.distributed import World
from bertqa.errors import UserError
from bertqa.files import sha256
from bertqa.hf.convert import resolve_weights
from bertqa.model import folder
from bertqa.model.config import BertConfig
from bertqa.settings import FileSettings, LoopSettings, ModelSettings, OptimSettings, RunSettings
from bertqa.training.classification import Classification
from bertqa.training.distillation import ask_teachers
from bertqa.training.job import Job, Task, total_steps
from bertqa.training.question_answering import QuestionAnswering
from bertqa.training.questions import with_dev

TASKS = {"qa": QuestionAnswering, "classify": Classification}


@dataclass
class Start:
    """The model that training starts from."""

    model: nn.Module
    had_head: bool
    """Whether its head was trained before."""


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
        task: of another run on the same data, which are not read again; the new run's models and scores are put into it.
        say: takes a line at a time for people.
        typed: names of the settings that somebody just gave, about which more is said.
        command: the command line, for config.json.

    Raises:
        UserError: for settings, weights and files that cannot be used; all bad settings at once.
    """
    files = with_dev(settings.files)
    settings = dataclasses.replace(settings, files=files)
    check(settings)  # before weights are fetched
    weights = find_weights(files, world)
    config = folder.read_config(weights)
    # Now that the model's positions are known, and still before minutes go into reading data.
    check(settings, BertConfig(**config["architecture"]).longest)
    check_head(weights, config, TASKS[files.task].head, files.fresh_head)
    device = pick_device(settings.loop.device)
    dtype = pick_precision(settings.loop.precision, device)
    set_up_torch(settings.loop)
    if task is None:
        task = task_of(settings, weights, device, world, say)
    task.recipe = settings.recipe()
    if settings.teachers.teacher:
        task.teaching = ask_teachers(
            settings.teachers, task, device, dtype, world=world, say=say, progress=world.first
        )
    start = starting_model(weights, config, files.fresh_head, settings.model, task)
    if not start.had_head:
        say(
            f"a head for {task.head} is drawn at random; that of the weights: {config['head'] or 'none'}"
        )
    for line in length_remarks(len(task.store), settings.loop, settings.optim, typed):
        say(line)
    return Job(
        model=start.model.to(device),
        task=task,
        settings=settings.loop,
        optim=settings.optim,
        run=run,
        device=device,
        dtype=dtype,
        world=world,
        fingerprints={"weights file": sha256(weights / "model.safetensors")[:16]},
        evaluate_first=start.had_head,
        recorded=settings.by_name(),
        command=command,
        say=say,
    )


def find_weights(files: FileSettings, world: World) -> Path:
    """The model folder to start from, converted or fetched by one process where it has to be."""
    return Path(
        world.in_turn(lambda: resolve_weights(files.weights, encoder_only=files.fresh_head))
    )


def check(settings: RunSettings, positions: int | None = None) -> None:
    """Refuse bad settings, all at once; with the model's number of positions, where it has any, also those that it cannot have."""
    problems = settings.problems(positions)
    if problems:
        raise UserError("; ".join(problems))


def task_of(
    settings: RunSettings,
    weights: Path,
    device: torch.device,
    world: World,
    say: Callable[[str], None],
) -> Task:
    """The task with its data read and tokenised."""
    files = settings.files
    return TASKS[files.task](
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


def set_up_torch(settings: LoopSettings) -> None:
    """Threads, determinism and seeds, which torch keeps for the whole process."""
    if settings.threads:
        torch.set_num_threads(settings.threads)
    if settings.deterministic:
        # without it torch refuses matrix products on GPUs
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(settings.deterministic)
    random.seed(settings.seed)
    torch.manual_seed(settings.seed)


def check_head(weights: Path, config: dict, head: str, fresh_head: bool) -> None:
    """Refuse weights without an answer head, before any data is read, unless a fresh one is wanted."""
    if head == folder.QA and config["head"] != head and not fresh_head:
        raise UserError(
            f"{weights}: these weights have no answer head; --fresh-head draws one at random"
        )


def starting_model(
    weights: Path, config: dict, fresh_head: bool, settings: ModelSettings, task
) -> Start:
    """The weights, in the encoder that training wants; a head is drawn where one is wanted, or the weights have none.

    Raises:
        UserError: for a class head whose classes are not the training data's.
    """
    fresh = fresh_head or config["head"] != task.head
    if not fresh and config.get("labels") != task.labels:
        raise UserError(
            f"{weights}: its head knows the classes {', '.join(config['labels'])}, the training data has "
            f"{', '.join(task.labels)}; name them alike, or draw another head: --fresh-head"
        )
    model = folder.build(shape_of(config, settings), task.head, task.labels)
    if fresh:
        take_weights(model.encoder, folder.load_encoder(weights))
    else:
        take_weights(model, folder.load(weights))
    model.encoder.recompute = settings.recompute
    if settings.compile:
        model.encoder.fuse()
    return Start(model.to(torch.float32), had_head=not fresh)


def shape_of(config: dict, settings: ModelSettings) -> BertConfig:
    """The architecture of the weights, with the dropout that training wants."""
    shape = BertConfig(**config["architecture"])
    dropout = settings.dropout
    if dropout is None:
        dropout = shape.hidden_dropout_prob
    return shape.replace(
        attention_probs_dropout_prob=settings.attention_dropout, hidden_dropout_prob=dropout
    )


def take_weights(target: nn.Module, source: nn.Module) -> None:
    """Copy what both have. Answers need no pooler; classes do, and one that the weights lack is part of a fresh head."""
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
    in_all_epochs = total_steps(
        windows, LoopSettings(epochs=loop.epochs, batch_size=loop.batch_size)
    )
    remarks = []
    if optim.warmup >= total > 0 and optim.warmup >= 1:
        remarks.append(
            f"warmup is {optim.warmup:g} steps, but the run has {total:,}: the learning rate only rises, and peaks "
            "at the last step; --warmup 0.1 would be a tenth of the run"
        )
    if loop.max_steps and loop.max_steps > in_all_epochs:
        remarks.append(
            f"max_steps is {loop.max_steps:,}, but {loop.epochs:g} epochs end at step {total:,}; more --epochs reach it"
        )
    if loop.max_steps and loop.max_steps < in_all_epochs and "epochs" in typed:
        remarks.append(
            f"epochs is {loop.epochs:g}, that is {in_all_epochs:,} steps, but max_steps ends the run at step "
            f"{total:,}; --max-steps none lets the epochs decide"
        )
    if loop.eval_every > total:
        remarks.append(
            f"eval_every is {loop.eval_every:,}, but the run has {total:,} steps: it is evaluated at its end only"
        )
    return remarks
