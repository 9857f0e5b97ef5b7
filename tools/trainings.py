"""Trainings on one data set, which is read once; each has a run folder of its own, as `python -m bertqa.train` leaves it.

A finished training is not repeated: the same command, run again, goes on where it was stopped.
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
from folds import ask_fold_teachers
from torch import nn

from bertqa.data.examples import Dataset, Example, read_examples
from bertqa.data.windows import Windows, build_windows
from bertqa.device import autocast, pick_device, pick_precision
from bertqa.errors import UserError
from bertqa.files import read_object, write_json
from bertqa.hf.convert import resolve_weights
from bertqa.inference import find_spans
from bertqa.qa.answers import best_answers, null_odds
from bertqa.qa.evaluation import Evaluation
from bertqa.qa.metrics import Scores, evaluate_v2, score_answers
from bertqa.qa.thresholds import abstain, bootstrap
from bertqa.settings import QuestionAnsweringSettings
from bertqa.training.command_line import parse
from bertqa.training.question_answering import QuestionAnswering
from bertqa.training.run import Trained, run_training
from bertqa.training.starting import job_of

BEGAN = time.monotonic()


@dataclass
class Training:
    """A finished training."""

    name: str
    command: str
    """The command line that repeats it; of a student of fold teachers, only this bench does."""
    metrics: dict
    """Of its last evaluation, in percent."""
    seconds: float
    """Wall time from the start weights to the model folder."""
    steps_seconds: float
    """The part of `seconds` spent in optimizer steps; the rest (loading, evaluating, writing) does not grow with them."""
    windows: int
    """Windows it was trained on, counted in every epoch."""
    fold: list[str] = field(default_factory=list)
    """Of a fold teacher: the titles of the articles that it was not trained on, and labels."""


@dataclass
class Questions:
    """Questions to evaluate models on, with their windows."""

    name: str
    data: Dataset
    windows: Windows


@dataclass
class Bench:
    """Makes trainings: their folder, their data, the flags that they share."""

    out: Path
    train_file: str
    task: QuestionAnswering
    flags: list[str]
    device: torch.device
    dtype: torch.dtype
    checkpoints: bool = True
    """Whether a training that was stopped goes on from a checkpoint, or begins again."""
    done: list[Training] = field(default_factory=list)

    def model_of(self, training: Training) -> Path:
        """Return the model folder of a training."""
        return self.out / training.name / "best"

    def learning_from(self, train_file: str) -> "Bench":
        """Return a bench that trains on another file; both share the list `done`."""
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

    def train(
        self,
        name: str,
        *flags: str,
        teachers: Sequence[Training] = (),
        fold: Sequence[str] = (),
    ) -> Training:
        """Train with the shared flags and these, into out/NAME; a finished training is read from there.

        Args:
            teachers: to learn from. The mean of their logits is learned; of fold teachers, each window's own.
            fold: the titles that this teacher labels (Training.fold).

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
            trained = self._fit(run, arguments, teachers)
            training = Training(
                name=name,
                command=command,
                metrics=trained.evaluations[-1],
                seconds=time.monotonic() - began,
                steps_seconds=trained.figures["seconds"],
                windows=trained.figures["windows"],
                fold=list(fold),
            )
            write_json(note, vars(training))
        self.done.append(training)
        say(f"{name}: {line_of(training.metrics)} | {training.seconds:.1f} s")
        return training

    def _fit(self, run: Path, arguments: list[str], teachers: Sequence[Training]) -> Trained:
        """Train, or resume the training that was stopped."""
        begun = (run / "config.json").exists()
        if begun:
            arguments = ["--resume", str(run)]
        command = ["python", "-m", "bertqa.train", *arguments]
        settings = parse(arguments).settings
        # A task keeps its run's teachers, recipe and last evaluation; data and windows are shared.
        task = copy.copy(self.task)
        folds = [teacher.fold for teacher in teachers]
        if any(folds):
            task.teaching = ask_fold_teachers(settings.teachers, folds, task, self.dtype)
        job = job_of(settings, run, task=task, say=say, command=command)
        job.checkpoints = self.checkpoints
        job.report = False
        trained = run_training(job, resume=begun)
        if trained.interrupted:
            raise UserError(f"{run}: stopped; the same command goes on with it")
        return trained

    def read(self, name: str, path: Path, limit: int | None = None) -> Questions:
        """Read the questions of a file and cut them into windows like those of training."""
        return self.cut(name, read_examples(path, limit))

    def cut(self, name: str, data: Dataset) -> Questions:
        """Cut questions into windows like those of training."""
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
        """Cut some of the held-out questions into windows."""
        return self.cut(name, replace(self.task.dev, examples=examples))

    def tune(self, model: nn.Module, dtype: torch.dtype) -> Evaluation:
        """Evaluate a model on the held-out questions, at the threshold that is best for them."""
        self.task.evaluate(model, autocast(self.device, dtype))
        return self.task.evaluation

    def score(
        self, model: nn.Module, asked: Questions, threshold: float | None, dtype: torch.dtype
    ) -> dict:
        """Evaluate a model on other questions, at a threshold that was chosen before; None = it always answers.

        Returns the metrics of evaluate-v2.0.py, the 95 % bootstrap interval of F1, and F1 at threshold 0.
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
    """Read the data and cut them into windows; all trainings get `flags` beside those of `args`."""
    weights = Path(resolve_weights(args.weights))
    device = pick_device(args.device)
    out.mkdir(parents=True, exist_ok=True)
    length = args.max_length
    overlap = min(128, length // 3)
    question = min(64, length // 6)
    settings = QuestionAnsweringSettings(max_length=length, overlap=overlap, max_question=question)
    task = QuestionAnswering(train, dev, weights, settings, seed=0, device=device, say=say)
    common = ["--dev", dev, "--weights", str(weights), "--fresh-head"]
    common += ["--batch-size", args.batch_size, "--warmup", args.warmup]
    common += ["--max-length", str(length), "--overlap", str(overlap)]
    common += ["--max-question", str(question)]
    common += ["--device", args.device, "--precision", args.precision]
    # One evaluation, at the end, where the learning rate is 0 and the averaged weights are best.
    common += ["--eval-every", "1000000000", *flags]
    dtype = pick_precision(args.precision, device)
    # A checkpoint is four times the size of the model: too much to write where an epoch takes seconds.
    return Bench(out, train, task, common, device, dtype, checkpoints=args.max_minutes is None)


def line_of(metrics: dict) -> str:
    """Return the main metrics as one line for people."""
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
    """Print a line on stderr, with the seconds since the start."""
    print(f"[{time.monotonic() - BEGAN:6.1f} s] {line}", file=sys.stderr, flush=True)
