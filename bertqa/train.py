"""python -m bertqa.train: fine-tune a BERT, evaluate it, tune its no-answer threshold, and leave a run folder.

Without arguments it fine-tunes the bundled reader on the bundled sample; `--task classify` makes a text classifier.
"""

import dataclasses
import os
import platform
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bertqa.errors import UserError
from bertqa.files import write_json
from bertqa.flags import read_config_file, run_verb
from bertqa.settings import RunSettings
from bertqa.training.command_line import ENDS, lasting, parse


def main(argv: Sequence[str] | None = None) -> int:
    """Train. Returns the exit status: 0, or 130 where a signal stopped the run (it can be resumed)."""
    from bertqa.distributed import world_of_torchrun

    with world_of_torchrun() as world:
        asked = parse(argv)
        settings, resume = asked.settings, asked.resume
        files, optim, loop = settings.files, settings.optim, settings.loop
        import torch

        from bertqa.device import pick_device, pick_precision
        from bertqa.files import sha256
        from bertqa.hf.resolve import resolve_weights
        from bertqa.model import folder
        from bertqa.training.checkpoint import check_same, load_checkpoint, load_weights
        from bertqa.training.classification import Classification
        from bertqa.training.distillation import ask_teachers
        from bertqa.training.journal import Journal
        from bertqa.training.loop import Job, summary, total_steps, train
        from bertqa.training.optim import freeze
        from bertqa.training.question_answering import QuestionAnswering

        def say(line: str) -> None:
            if world.first:
                print(line, file=sys.stderr, flush=True)

        weights = Path(
            world.in_turn(lambda: resolve_weights(files.weights, encoder_only=files.fresh_head))
        )
        model_config = folder.read_config(weights)
        positions = model_config["architecture"]["max_position_embeddings"]
        problems = settings.problems(positions)
        if problems:
            raise UserError("; ".join(problems))
        device = pick_device(loop.device)
        dtype = pick_precision(loop.precision, device)
        if loop.threads:
            torch.set_num_threads(loop.threads)
        if loop.deterministic:
            os.environ.setdefault(
                "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
            )  # without it torch refuses matrix products on GPUs
        torch.use_deterministic_algorithms(loop.deterministic)
        random.seed(loop.seed)
        torch.manual_seed(loop.seed)

        make = Classification if files.task == "classify" else QuestionAnswering
        task = make(
            files.train,
            files.dev,
            weights,
            settings.data,
            seed=loop.seed,
            device=device,
            say=say,
            progress=world.first,
            recipe=settings.recipe(),
            world=world,
        )
        if settings.teachers.teacher:
            task.teaching = ask_teachers(
                settings.teachers, task, device, dtype, world=world, say=say, progress=world.first
            )
        model, had_head = starting_model(
            weights, model_config, files.fresh_head, settings.model, task
        )
        if not had_head:
            say(
                f"a head for {task.head} is drawn at random; that of the weights: {model_config['head'] or 'none'}"
            )
        model.to(device)
        freeze(model, optim.freeze)

        run = resume or Path(files.out or time.strftime("runs/%Y%m%d-%H%M%S"))
        fingerprints = {
            **task.fingerprints(),
            "weights file": sha256(weights / "model.safetensors")[:16],
            "processes": world.size,
        }
        state = None
        if resume:
            last, state = load_checkpoint(run, world)
            saved = state or read_config_file(run / "config.json")
            check_same(saved["fingerprints"], fingerprints | lasting(settings), run)
            if last:
                load_weights(model, last)
            for sentence in (
                moves := move_end(
                    run, state["progress"]["step"] if state else 0, loop, len(task.store), world
                )
            ):
                say(sentence)
            task.recipe["moved_ends"] = " ".join(moves) or None
        elif world.first:
            start_run(run, settings, fingerprints)
        if world.first and state is None:
            task.save_rejected(run)
        journal = Journal(
            run / "metrics.jsonl" if world.first else None,
            state["journal_bytes"] if state else 0,
        )
        steps = total_steps(len(task.store), loop)
        say(
            f"{sum(p.numel() for p in model.parameters() if p.requires_grad):,} weights to train on {device}, "
            f"{str(dtype).removeprefix('torch.')}, {steps:,} steps of {loop.batch_size} windows; run folder {run}"
        )

        job = Job(
            model,
            task,
            loop,
            optim,
            run=run,
            device=device,
            dtype=dtype,
            journal=journal,
            world=world,
            fingerprints=fingerprints | lasting(settings),
            resumed=state,
            evaluate_first=had_head,
        )
        outcome = train(job)
        figures = summary(outcome, task.key, device)
        if world.first:
            journal.write("end", **figures)
            journal.close()
            if outcome.finished:
                write_json(run / "summary.json", figures)
                say_report(run, say)
            say(closing(outcome, figures, run, task))
    return 0 if outcome.finished or "limit" in outcome.stopped_by else 130


def starting_model(weights: Path, config: dict, fresh_head: bool, modelling, task):
    """(model, whether its head was trained before): the weights, in the encoder that training wants.

    A class head is drawn where the weights have none, for it depends on the data's classes anyway.
    """
    import torch

    from bertqa.model import folder
    from bertqa.model.config import BertConfig

    fresh = fresh_head or config["head"] != task.head
    if fresh and not fresh_head and task.head == folder.QA:
        raise UserError(
            f"{weights}: these weights have no answer head; --fresh-head draws one at random"
        )
    if not fresh and config.get("labels") != task.labels:
        raise UserError(
            f"{weights}: its head knows the classes {', '.join(config['labels'])}, the training data has "
            f"{', '.join(task.labels)}; name them alike, or draw another head: --fresh-head"
        )
    shape = BertConfig(**config["architecture"])
    shape = shape.replace(
        attention_probs_dropout_prob=modelling.attention_dropout,
        hidden_dropout_prob=shape.hidden_dropout_prob
        if modelling.dropout is None
        else modelling.dropout,
    )
    model = folder.build(shape, task.head, task.labels)
    source = folder.load_encoder(weights) if fresh else folder.load(weights)
    target = model.encoder if fresh else model
    drawn = target.state_dict()
    kept = {name: value for name, value in source.state_dict().items() if name in drawn}
    # Answers need no pooler; classes do, and one that the weights lack is a part of the fresh head.
    assert all(name.startswith("pooler.") for name in drawn.keys() ^ source.state_dict().keys())
    target.load_state_dict({**drawn, **kept}, strict=True)
    model.encoder.recompute = modelling.recompute
    if modelling.compile:
        model.encoder.fuse()
    return model.to(torch.float32), not fresh


def start_run(run: Path, settings: RunSettings, fingerprints: dict) -> None:
    """Make the run folder and write config.json: every setting, versions, commit, fingerprints.

    Raises:
        UserError: where the folder already holds something.
    """
    import torch

    if run.exists() and any(path.suffix != ".tmp" for path in run.iterdir()):
        raise UserError(
            f"{run}: already holds a run; give another --out, or go on with it: --resume {run}"
        )
    run.mkdir(parents=True, exist_ok=True)
    write_json(
        run / "config.json",
        {
            "settings": settings.by_name(),
            "fingerprints": fingerprints,
            "command": sys.argv,
            "commit": git_commit(),
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "platform": platform.platform(),
            },
            "hardware": {
                "cores": os.cpu_count(),
                "threads": torch.get_num_threads(),
                **({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}),
            },
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        },
    )


def move_end(run: Path, step: int, loop, windows: int, world) -> list[str]:
    """Where a run resumed at this step was given another end, put it in config.json. Returns all such moves, in words.

    Raises:
        UserError: where the run is past that end.
    """
    from bertqa.reporting.run_folder import moved_ends
    from bertqa.training.loop import total_steps

    config = read_config_file(run / "config.json")
    before = dataclasses.replace(loop, **{name: config["settings"][name] for name in ENDS})
    old, new = total_steps(windows, before), total_steps(windows, loop)
    if old != new:
        if new <= step:
            raise UserError(
                f"{run}: is at step {step:,} and cannot end at step {new:,}; give more --epochs or --max-steps"
            )
        config["settings"] |= {name: getattr(loop, name) for name in ENDS}
        config["moved_ends"] = [
            *config.get("moved_ends", []),
            {"step": step, "from": old, "to": new},
        ]
        if world.first:
            write_json(run / "config.json", config)
    return moved_ends(config)


def say_report(run: Path, say) -> None:
    """Write report.html. A page that cannot be written is no reason to fail a run that could be trained."""
    from bertqa.reporting.page import write_report

    try:
        say(f"report: {write_report(run, say=say)}")
    except (UserError, OSError) as error:
        say(f"no report: {error}")


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


def closing(outcome, figures: dict, run: Path, task) -> str:
    """The last lines for people."""
    speed = (
        f"{figures['steps']:,} steps, {figures['windows']:,} windows in {figures['seconds']:,.0f} s of training: "
        f"{figures['windows_per_s']:.1f} windows/s, {figures['tokens_per_s']:,.0f} useful tokens/s, peak memory "
        f"{figures['peak_memory_mb']:,} MB"
    )
    if not outcome.finished:
        return f"{speed}\nstopped by {outcome.stopped_by}; go on with: python -m bertqa.train --resume {run}"
    return (
        f"{speed}\nlast evaluation: {task.describe(outcome.last)}\n"
        f"best {task.key} {outcome.progress.best:.2f} at step {outcome.progress.best_step}, kept in {run / 'best'}"
    )


if __name__ == "__main__":
    raise SystemExit(run_verb(main))
