"""Trainings that share one data set: read once, each in a folder of its own as `python -m bertqa.train` leaves it.

A finished training is never done again: whoever runs the same command once more goes on where it was stopped.
"""

import argparse
import copy
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from bertqa.data.examples import Dataset, Example, read_examples
from bertqa.data.windows import Windows, build_windows
from bertqa.device import autocast, pick_device, pick_precision
from bertqa.errors import UserError
from bertqa.files import read_object, write_json
from bertqa.hf.convert import resolve_weights
from bertqa.inference import find_spans
from bertqa.qa.answers import best_answers, null_odds
from bertqa.qa.metrics import Scores, evaluate_v2, score_answers
from bertqa.qa.thresholds import abstain, bootstrap
from bertqa.reporting.run_folder import read_journal
from bertqa.settings import QuestionAnsweringSettings
from bertqa.training.command_line import parse
from bertqa.training.question_answering import Evaluation, QuestionAnswering
from bertqa.training.run import run_training
from bertqa.training.starting import job_of

BEGAN = time.monotonic()


@dataclass
class Training:
    """One that has ended."""

    name: str
    command: str
    """What repeats it."""
    metrics: dict
    """Of its last evaluation, in percent."""
    seconds: float
    """On the clock, from the start weights to the model folder."""
    steps_seconds: float
    """Of them in optimizer steps; the rest went into loading, evaluating and writing, however long the training is."""
    windows: int
    """How many it was trained on, repeats counted."""


@dataclass
class Questions:
    """What models are measured on, cut into windows once."""

    name: str
    data: Dataset
    windows: Windows


@dataclass
class Bench:
    """Where trainings are made: their folder, their data, the flags that all of them have."""

    out: Path
    train_file: str
    task: QuestionAnswering
    flags: list[str]
    device: torch.device
    dtype: torch.dtype
    checkpoints: bool = True
    """Whether a training that is stopped goes on where it was; else it begins again."""
    done: list[Training] = field(default_factory=list)

    def model_of(self, training: Training) -> Path:
        """The model folder that a training left."""
        return self.out / training.name / "best"

    def learning_from(self, train_file: str) -> "Bench":
        """This bench, but trainings learn from another file; `done` is one list for both."""
        task = self.task
        other = QuestionAnswering(
            train_file,
            task.dev.path,
            task.weights,
            task.settings,
            seed=0,
            device=self.device,
            say=say,
        )
        return replace(self, train_file=train_file, task=other)

    def train(self, name: str, *flags: str, teachers: Sequence[Training] = ()) -> Training:
        """Train as the common flags and these say, into out/NAME; a finished training is taken as it is.

        Raises:
            UserError: where out/NAME holds a training with other flags, or a signal stopped this one.
        """
        run = self.out / name
        arguments = ["--train", self.train_file, *self.flags, *flags, "--out", str(run)]
        if teachers:
            arguments += ["--teacher", *(str(self.model_of(teacher)) for teacher in teachers)]
        command = "python -m bertqa.train " + shlex.join(arguments)
        note = run / "training.json"
        if note.exists():
            training = Training(**read_object(note))
            if training.command != command:
                raise UserError(
                    f"{run}: holds a training with other settings; give another --out, or delete that folder"
                )
        else:
            began = time.monotonic()
            figures = self._fit(run, arguments)
            evaluations = []
            for record in read_journal(run / "metrics.jsonl"):
                if record["event"] == "eval":
                    evaluations.append(record)
            seconds = time.monotonic() - began
            training = Training(
                name, command, evaluations[-1], seconds, figures["seconds"], figures["windows"]
            )
            write_json(note, vars(training))
        self.done.append(training)
        say(f"{name}: {line_of(training.metrics)} | {training.seconds:.1f} s")
        return training

    def _fit(self, run: Path, arguments: list[str]) -> dict:
        """Train, or go on with what was stopped. Returns what summary.json says."""
        begun = (run / "config.json").exists()
        if begun:
            arguments = ["--resume", str(run)]
        command = ["python", "-m", "bertqa.train", *arguments]
        settings = parse(arguments).settings
        job = job_of(settings, run, task=copy.copy(self.task), say=say, command=command)
        job.checkpoints = self.checkpoints
        job.report = False
        trained = run_training(job, resume=begun)
        if trained.interrupted:
            raise UserError(f"{run}: stopped; the same command goes on with it")
        return trained.figures

    def read(self, name: str, path: Path, limit: int | None = None) -> Questions:
        """The questions of a file, in windows like those of training."""
        return self.cut(name, read_examples(path, limit))

    def cut(self, name: str, data: Dataset) -> Questions:
        """Questions in windows like those of training."""
        settings = self.task.settings
        windows = build_windows(
            data.examples,
            self.task.tokenizer,
            max_length=settings.max_length,
            max_question=settings.max_question,
            **settings.stride,
        )
        return Questions(name, data, windows)

    def held_out(self, name: str, examples: list[Example]) -> Questions:
        """Some of the held-out questions."""
        return self.cut(name, replace(self.task.dev, examples=examples))

    def tune(self, model: nn.Module, dtype: torch.dtype) -> Evaluation:
        """What a model gets on the held-out questions, at the threshold that is best there."""
        self.task.evaluate(model, autocast(self.device, dtype))
        return self.task.evaluation

    def score(
        self, model: nn.Module, asked: Questions, threshold: float | None, dtype: torch.dtype
    ) -> dict:
        """How a model does on questions at a threshold that was chosen elsewhere; None = it always answers.

        Returns what evaluate-v2.0.py prints, F1's 95 % interval over questions, and F1 at threshold 0.
        """
        spans, _ = find_spans(
            model,
            asked.windows,
            self.device,
            autocast=autocast(self.device, dtype),
            progress=asked.name,
        )
        examples = asked.data.examples
        texts = best_answers(spans, asked.windows, examples).texts
        odds = null_odds(spans)

        def scores_at(limit: float | None) -> Scores:
            given = {}
            for example, text, quiet in zip(examples, texts, abstain(odds, limit), strict=True):
                given[example.id] = "" if quiet else text
            return score_answers(examples, given)

        scores = scores_at(threshold)
        metrics = evaluate_v2(scores)
        interval = bootstrap(np.array(scores.f1, float)[:, None])[0]
        metrics["f1_interval"] = [100 * float(limit) for limit in interval]
        if threshold is not None:
            metrics["f1_at_zero"] = evaluate_v2(scores_at(0.0))["f1"]
        return metrics


def open_bench(
    args: argparse.Namespace, out: Path, train: str, dev: str, flags: Sequence[str]
) -> Bench:
    """Read the data and cut them into windows, for all trainings; `flags` are what all have beside those of `args`."""
    weights = Path(resolve_weights(args.weights))
    device = pick_device(args.device)
    out.mkdir(parents=True, exist_ok=True)
    length = args.max_length
    overlap, asked = min(128, length // 3), min(64, length // 6)
    settings = QuestionAnsweringSettings(max_length=length, overlap=overlap, max_question=asked)
    task = QuestionAnswering(train, dev, weights, settings, seed=0, device=device, say=say)
    common = ["--dev", dev, "--weights", str(weights), "--fresh-head"]
    common += ["--batch-size", args.batch_size, "--warmup", args.warmup]
    common += ["--max-length", str(length), "--overlap", str(overlap), "--max-question", str(asked)]
    common += ["--device", args.device, "--precision", args.precision]
    # One evaluation, at the end: the schedule ends there, and the average of the weights is best there.
    common += ["--eval-every", "1000000000", *flags]
    dtype = pick_precision(args.precision, device)
    # A checkpoint is four times the model: too much to write at the end of every epoch of some seconds.
    return Bench(out, train, task, common, device, dtype, checkpoints=args.max_minutes is None)


def line_of(metrics: dict) -> str:
    """The scores that people look for, on a line."""
    names = {
        "exact": "EM",
        "f1": "F1",
        "f1_at_zero": "F1 at 0",
        "HasAns_f1": "HasAns",
        "NoAns_f1": "NoAns",
        "loss": "loss",
    }
    shown = [f"{label} {metrics[name]:.2f}" for name, label in names.items() if name in metrics]
    return ", ".join(shown)


def say(line: str) -> None:
    """A line for people, with the time since the start."""
    print(f"[{time.monotonic() - BEGAN:6.1f} s] {line}", file=sys.stderr, flush=True)
