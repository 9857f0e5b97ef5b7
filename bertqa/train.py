"""python -m bertqa.train: fine-tune a BERT, evaluate it, tune its no-answer threshold, and leave a run folder.

Without arguments it fine-tunes the bundled reader on the bundled sample; `--task classify` makes a text classifier.
"""

import argparse
import dataclasses
import json
import os
import platform
import random
import subprocess
import sys
import time
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bertqa.errors import UserError
from bertqa.flags import add_fields, merge, read_config_file, run_verb

PACKAGE = Path(__file__).resolve().parent
SAMPLE = PACKAGE / "data" / "sample"


def bundled_reader() -> str:
    """The reader in the repository's weights/, seen from the working directory or from an editable install."""
    name = Path("weights") / "minilm-squad2"
    return str(name if name.is_dir() else PACKAGE.parent / name)


@dataclass(frozen=True)
class FileSettings:
    """What goes in and where it comes out."""

    train: str = str(SAMPLE / "train.json")
    """Questions to train on: SQuAD v1.1 or v2.0 JSON, flat records as JSON or JSONL, MRQA, CSV; .gz or not. squad1 and
    squad2 fetch the official train files."""
    dev: str = str(SAMPLE / "dev.json")
    """Questions to evaluate on, of any of these forms; squad1 and squad2 fetch the official dev files."""
    weights: str = dataclasses.field(default_factory=bundled_reader)
    """Where to start from: a model folder, a Hugging Face folder, or a Hub id."""
    out: str | None = None
    """Run folder to make; none = runs/ and the time."""
    fresh_head: bool = False
    """Draw the answer head at random: needed, and only allowed, where the weights have none."""
    task: Literal["qa", "classify"] = "qa"
    """What to learn: answers to questions, or classes of texts; `--task classify --help` shows the flags of that."""


@dataclass(frozen=True)
class LabelledFiles(FileSettings):
    """What goes in and where it comes out, for classification."""

    train: str = str(SAMPLE / "reviews.csv")
    """Texts with labels to train on: CSV, TSV or JSONL; .gz or not."""
    dev: str | None = None
    """Texts with labels to evaluate on, of any of these forms; none = a part of train, see --split."""
    fresh_head: bool = False
    """Draw the class head at random although the weights have one; without one it is drawn anyway."""


@dataclass(frozen=True)
class ModelSettings:
    """Changes to the encoder for training."""

    dropout: float | None = None
    """Dropout in the encoder; none = as the weights' config says."""
    attention_dropout: float = 0.0
    """Dropout of attention weights; 0 by default, because the fastest attention bodies have none."""
    recompute: bool = False
    """Compute the inside of each layer again for the backward pass instead of keeping it: much less memory, a third slower."""
    compile: bool = False
    """Let torch.compile fuse what stands between matrix products. Meant for GPUs; on two CPU cores it was 5-10 % slower."""

    def problems(self) -> list[str]:
        """Everything that is wrong with these values, one phrase each."""
        shares = {"dropout": self.dropout, "attention_dropout": self.attention_dropout}
        return [f"{name} is {value}, it must lie in [0, 1)" for name, value in shares.items()
                if value is not None and not 0 <= value < 1]


def sections(task: str = "qa"):
    """The settings dataclasses that make up a run of this task, with the titles of their flags."""
    from bertqa.training.classification import ClassificationSettings
    from bertqa.training.loop import LoopSettings
    from bertqa.training.optim import OptimSettings
    from bertqa.training.question_answering import QuestionAnsweringSettings

    own = ({"files": LabelledFiles, "texts and classes": ClassificationSettings} if task == "classify" else
           {"files": FileSettings, "windows and answers": QuestionAnsweringSettings})
    return {**own, "model": ModelSettings, "optimizer": OptimSettings, "loop": LoopSettings}


PRESETS = {
    "google": dict(max_length=384, step=128, max_question=64, batch_size=12, lr=3e-5, epochs=2.0, warmup=0.1,
                   weight_decay=0.01, clip=1.0, eps=1e-6, bias_correction=False, schedule="linear",
                   attention_dropout=0.1),
    "hf": dict(max_length=384, overlap=128, max_question=64, batch_size=12, lr=3e-5, epochs=2.0, warmup=0.0,
               weight_decay=0.0, clip=1.0, eps=1e-8, bias_correction=True, schedule="linear", attention_dropout=0.1),
    "fast": dict(max_length=384, overlap=128, batch_size=16, lr=1e-4, epochs=2.0, warmup=0.1, weight_decay=0.01,
                 attention_dropout=0.0),
}
"""Settings of published rows: google-research/bert's run_squad, transformers' run_qa, and ours for small encoders."""


RESUMABLE = {"max_minutes", "device", "threads", "save_every", "tensorboard"}
"""Settings that a resumed run may have otherwise than the run had: none of them is part of its result."""

ENDS = {"epochs", "max_steps"}
"""Settings by which --resume moves the end of a run; its config.json says at which step that was."""


def lasting(chosen: dict) -> dict:
    """The settings that must not change over a run's life; its files have fingerprints of their own."""
    others = {title: part for title, part in chosen.items() if title != "files"}
    return {name: value for name, value in settings_of(others).items() if name not in RESUMABLE | ENDS}


def task_of(argv: Sequence[str] | None) -> str:
    """The task that a command line means, which decides what other flags there are."""
    early = argparse.ArgumentParser(prog="python -m bertqa.train", add_help=False, allow_abbrev=False)
    for name in ("--task", "--config", "--resume"):
        early.add_argument(name)
    given = early.parse_known_args(argv)[0]
    path = Path(given.resume) / "config.json" if given.resume else given.config
    return given.task or (settings_in(path) if path else {}).get("task", "qa")


def settings_in(path: str | Path) -> dict:
    """The settings in a JSON file of just them, or in a run folder's config.json; of that not its own run folder."""
    saved = read_config_file(path)
    settings = saved.get("settings", saved)
    if not isinstance(settings, dict):
        raise UserError(f"{path}: its \"settings\" are {settings!r}, expected an object {{setting: value}}")
    return {name: value for name, value in settings.items() if settings is saved or name != "out"}


def mistyped(part: type, values: dict) -> list[str]:
    """Which of the values are not of the type of their field of a dataclass, one phrase each."""
    found, words = [], {int: "a whole number", float: "a number", str: "a text", bool: "true or false", types.NoneType: "null"}
    for name, kind in typing.get_type_hints(part).items():
        allowed, value = typing.get_args(kind) or (kind,), values.get(name)
        one_of = typing.get_origin(kind) is Literal
        fits = value in allowed if one_of else type(value) in allowed or type(value) is int and float in allowed
        if name in values and not fits:
            choices = ", ".join(allowed) if one_of else " or ".join(words[choice] for choice in allowed)
            found.append(f"{name} is {json.dumps(value)}, it must be {'one of ' * one_of}{choices}")
    return found


def parse(argv: Sequence[str] | None):
    """(settings by section, resume folder or None) from defaults < preset < --config file < command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bertqa.train", allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Fine-tune a BERT for question answering, or with --task classify for text classification. Without "
                    "arguments: the bundled reader on the bundled sample.",
        epilog="example: python -m bertqa.train --train squad2 --dev squad2 --weights google-bert/"
               "bert-base-uncased --fresh-head --epochs 2 --out runs/base")
    parser.add_argument("--config", metavar="FILE", help="settings from a JSON file, such as a run folder's config.json")
    parser.add_argument("--preset", choices=PRESETS, help="settings of a published recipe; prints what they are")
    parser.add_argument("--resume", metavar="RUN", help="go on with a run folder, from its last checkpoint; "
                        "--epochs or --max-steps move its end")
    parser.add_argument("--doc-stride", dest="doc_stride", help=argparse.SUPPRESS)
    parts = sections(task_of(argv))
    for title, part in parts.items():
        add_fields(parser, part, title)
    given = {name: value for name, value in vars(parser.parse_args(argv)).items() if value is not None
             or name in ("overlap", "step")}
    if "doc_stride" in given:
        raise UserError("--doc-stride means the step between windows in Google's script and their overlap in run_qa; "
                        "say --step N or --overlap N")
    config, preset, resume = (given.pop(name, None) for name in ("config", "preset", "resume"))
    if resume:
        allowed = RESUMABLE | ENDS
        extra = set(given) - allowed | ({"config"} if config else set()) | ({"preset"} if preset else set())
        if extra:
            raise UserError(f"--resume goes on with the run's own settings; leave out {', '.join(sorted(extra))} "
                            f"(only {', '.join(sorted(allowed))} can be given with it)")
        config = str(Path(resume) / "config.json")
    owner = {field.name: part for part in parts.values() for field in dataclasses.fields(part)}
    layers = []
    if preset:
        layers.append({name: value for name, value in PRESETS[preset].items() if name in owner})
        print(f"preset {preset}: " + ", ".join(f"{name} {value}" for name, value in layers[0].items()), file=sys.stderr)
    if config:
        layers.append(settings_in(config))
    layers.append(given)
    merged = {name: value for layer in layers for name, value in layer.items()}
    everything = dataclasses.make_dataclass("Settings", [(name, object, None) for name in owner])
    problems = [problem for part in parts.values() for problem in mistyped(part, merged)]
    try:
        merge(everything, merged, source=config or "command line")  # unknown names, all at once
    except UserError as error:
        raise UserError("; ".join([str(error), *problems])) from None
    if problems:
        raise UserError(f"{config}: {'; '.join(problems)}")
    chosen = {title: part(**{name: value for name, value in merged.items() if owner[name] is part})
              for title, part in parts.items()}
    return chosen, Path(resume) if resume else None


def main(argv: Sequence[str] | None = None) -> int:
    """Train. Returns the exit status: 0, or 130 where a signal stopped the run (it can be resumed)."""
    from bertqa.training.distributed import world_of_torchrun

    with world_of_torchrun() as world:
        chosen, resume = parse(argv)
        files, answers, modelling, optim, loop = chosen.values()
        import torch

        from bertqa.model import folder, hf
        from bertqa.model.weight_files import sha256
        from bertqa.training.checkpoint import check_same, load_checkpoint, load_weights
        from bertqa.training.classification import Classification
        from bertqa.training.journal import Journal
        from bertqa.training.loop import summary, total_steps, train
        from bertqa.training.optim import freeze
        from bertqa.training.precision import pick_device, pick_precision
        from bertqa.training.question_answering import QuestionAnswering, write_json

        def say(line: str) -> None:
            if world.first:
                print(line, file=sys.stderr, flush=True)

        weights = Path(world.in_turn(lambda: hf.resolve_weights(files.weights)))
        model_config = folder.read_config(weights)
        positions = model_config["architecture"]["max_position_embeddings"]
        problems = [*loop.problems(), *optim.problems(), *modelling.problems(), *answers.problems(positions)]
        if problems:
            raise UserError("; ".join(problems))
        device = pick_device(loop.device)
        dtype = pick_precision(loop.precision, device)
        if loop.threads:
            torch.set_num_threads(loop.threads)
        if loop.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it torch refuses matrix products on GPUs
        torch.use_deterministic_algorithms(loop.deterministic)
        random.seed(loop.seed)
        torch.manual_seed(loop.seed)

        make = Classification if files.task == "classify" else QuestionAnswering
        task = make(files.train, files.dev, weights, answers, seed=loop.seed, device=device, say=say,
                    progress=world.first, recipe=settings_of(chosen), world=world)
        model, had_head = starting_model(weights, model_config, files.fresh_head, modelling, task)
        if not had_head:
            say(f"a head for {task.head} is drawn at random; that of the weights: {model_config['head'] or 'none'}")
        model.to(device)
        freeze(model, optim.freeze)
        torch.manual_seed(loop.seed + world.rank)

        run = resume or Path(files.out or time.strftime("runs/%Y%m%d-%H%M%S"))
        fingerprints = {**task.fingerprints(), "weights file": sha256(weights / "model.safetensors")[:16],
                        "processes": world.size}
        state = None
        if resume:
            last, state = load_checkpoint(run, world)
            saved = state or read_config_file(run / "config.json")
            check_same(saved["fingerprints"], fingerprints | lasting(chosen), run)
            if last:
                load_weights(model, last)
            for sentence in (moves := move_end(run, state["progress"]["step"] if state else 0, loop, len(task.store), world)):
                say(sentence)
            task.recipe["moved_ends"] = " ".join(moves) or None
        elif world.first:
            start_run(run, chosen, fingerprints)
        if world.first and state is None:
            task.save_rejected(run)
        journal = Journal(run / "metrics.jsonl" if world.first else None, state["journal_bytes"] if state else 0,
                          loop.tensorboard)
        steps = total_steps(len(task.store), loop)
        say(f"{sum(p.numel() for p in model.parameters() if p.requires_grad):,} weights to train on {device}, "
            f"{str(dtype).removeprefix('torch.')}, {steps:,} steps of {loop.batch_size} windows; run folder {run}")

        outcome = train(model, task, loop, optim, run=run, device=device, dtype=dtype, journal=journal, world=world,
                        fingerprints=fingerprints | lasting(chosen), resumed=state, evaluate_first=had_head)
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
        raise UserError(f"{weights}: these weights have no answer head; --fresh-head draws one at random")
    if not fresh and config.get("labels") != task.labels:
        raise UserError(f"{weights}: its head knows the classes {', '.join(config['labels'])}, the training data has "
                        f"{', '.join(task.labels)}; name them alike, or draw another head: --fresh-head")
    shape = BertConfig(**config["architecture"])
    shape = shape.replace(
        attention_probs_dropout_prob=modelling.attention_dropout,
        hidden_dropout_prob=shape.hidden_dropout_prob if modelling.dropout is None else modelling.dropout)
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


def start_run(run: Path, chosen: dict, fingerprints: dict) -> None:
    """Make the run folder and write config.json: every setting, versions, commit, fingerprints.

    Raises:
        UserError: where the folder already holds something.
    """
    import torch

    from bertqa.training.question_answering import write_json

    if run.exists() and any(path.suffix != ".tmp" for path in run.iterdir()):
        raise UserError(f"{run}: already holds a run; give another --out, or go on with it: --resume {run}")
    run.mkdir(parents=True, exist_ok=True)
    write_json(run / "config.json", {
        "settings": settings_of(chosen), "fingerprints": fingerprints, "command": sys.argv, "commit": git_commit(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "platform": platform.platform()},
        "hardware": {"cores": os.cpu_count(), "threads": torch.get_num_threads(),
                     **({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {})},
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z")})


def move_end(run: Path, step: int, loop, windows: int, world) -> list[str]:
    """Where a run resumed at this step was given another end, put it in config.json. Returns all such moves, in words.

    Raises:
        UserError: where the run is past that end.
    """
    from bertqa.training.loop import total_steps
    from bertqa.training.question_answering import write_json
    from bertqa.training.run_folder import moved_ends

    config = read_config_file(run / "config.json")
    before = dataclasses.replace(loop, **{name: config["settings"][name] for name in ENDS})
    old, new = total_steps(windows, before), total_steps(windows, loop)
    if old != new:
        if new <= step:
            raise UserError(f"{run}: is at step {step:,} and cannot end at step {new:,}; give more --epochs or --max-steps")
        config["settings"] |= {name: getattr(loop, name) for name in ENDS}
        config["moved_ends"] = [*config.get("moved_ends", []), {"step": step, "from": old, "to": new}]
        if world.first:
            write_json(run / "config.json", config)
    return moved_ends(config)


def say_report(run: Path, say) -> None:
    """Write report.html. A page that cannot be written is no reason to fail a run that could be trained."""
    from bertqa.report import write_report

    try:
        say(f"report: {write_report(run, say=say)}")
    except (UserError, OSError) as error:
        say(f"no report: {error}")


def settings_of(chosen: dict) -> dict:
    """Every setting of a run by its name."""
    return {name: value for part in chosen.values() for name, value in dataclasses.asdict(part).items()}


def git_commit() -> str | None:
    """The commit of this source tree, with + where it has changes; None outside of a checkout."""
    try:
        said = subprocess.run(["git", "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"], cwd=PACKAGE,
                              capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return said.stdout.strip() or None


def closing(outcome, figures: dict, run: Path, task) -> str:
    """The last lines for people."""
    speed = (f"{figures['steps']:,} steps, {figures['windows']:,} windows in {figures['seconds']:,.0f} s of training: "
             f"{figures['windows_per_s']:.1f} windows/s, {figures['tokens_per_s']:,.0f} useful tokens/s, peak memory "
             f"{figures['peak_memory_mb']:,} MB")
    if not outcome.finished:
        return f"{speed}\nstopped by {outcome.stopped_by}; go on with: python -m bertqa.train --resume {run}"
    return (f"{speed}\nlast evaluation: {task.describe(outcome.last)}\n"
            f"best {task.key} {outcome.progress.best:.2f} at step {outcome.progress.best_step}, kept in {run / 'best'}")


if __name__ == "__main__":
    raise SystemExit(run_verb(main))
