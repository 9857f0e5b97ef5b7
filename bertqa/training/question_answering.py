"""Extractive question answering as a task of the loop: its reader, its loss, and its evaluation."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from bertqa.data.batches import Batch
from bertqa.data.download import locate
from bertqa.data.examples import Dataset, Example, read_examples
from bertqa.data.windows import Windows, build_windows, fingerprint
from bertqa.data.writing import squad_document, write_rejected
from bertqa.errors import UserError
from bertqa.files import write_json
from bertqa.inference import find_spans
from bertqa.model import folder
from bertqa.model.attention import Layout
from bertqa.model.card import model_card
from bertqa.model.heads import span_loss
from bertqa.qa import metrics, thresholds
from bertqa.qa.answers import null_odds, prediction_files
from bertqa.qa.confidence import (
    calibration_errors,
    evidence_of,
    fit_confidence,
    how_right,
    marks_of,
)
from bertqa.qa.spans import Spans, SpanSettings
from bertqa.training.job import FileTask

HELD_OUT = 0.1
"""Share of the training questions, in whole articles, that is the dev set where no other is given."""
LOOKED_FOR = ("exact", "f1", "exact_at_zero", "f1_at_zero")
"""The scores that people look for."""
Source = str | Sequence[Example]
"""A file of questions, or examples that were made in Python."""


class QuestionAnswering(FileTask):
    """Reads the two files, cuts them into windows, and is the loop's `Task`."""

    key = "f1"
    head = folder.QA
    static_shapes = True
    evaluation: "Evaluation | None" = None

    def read(self, train: Source, dev: Source | None, seed: int) -> None:
        """Read files of questions, or take Examples, and say what about them is likely to be a mistake."""
        everything = self.questions_of(train, "train", self.settings.limit_train)
        if dev is None:
            found = hold_out(everything, HELD_OUT, seed, self.settings.limit_dev)
        else:
            found = Questions(everything, self.questions_of(dev, "dev", self.settings.limit_dev))
        for line in warnings_of(found):
            self.say(line)
        self.train = found.train
        self.dev = found.dev
        self.held_out = found.held_out

    def questions_of(self, source: Source, split: str, limit: int | None) -> Dataset:
        """The questions of a file, or examples from Python, which nobody repairs or rejects."""
        if isinstance(source, (str, Path)):
            # One process fetches what is not there yet.
            return read_examples(self.world.in_turn(lambda: locate(source, split)), limit)
        examples = list(source)[:limit]
        for example in examples:
            check_answers(example)
        content = np.frombuffer("".join(map(repr, examples)).encode(), np.uint8)
        name = f"{len(examples):,} examples from Python"
        return Dataset(name, fingerprint([content]), "examples", examples)

    def cut(self, data: Dataset, name: str) -> Windows:
        """Cut examples into windows, and say what they are like."""
        self.say(f"{name}: {data.path}: {data.summary()}")
        examples = data.trainable() if name == "train" else data.examples
        if not examples:
            why = data.rejected[0].reason if data.rejected else "nothing"
            raise UserError(
                f"{data.path}: not one question is usable for {name}; rejected, for example: {why}"
            )
        stride = self.settings.stride
        windows = build_windows(
            examples,
            self.tokenizer,
            max_length=self.settings.max_length,
            max_question=self.settings.max_question,
            progress=self.bar(name),
            **stride,
        )
        parts = [f"{len(windows):,} windows of at most {self.settings.max_length} tokens"]
        for way, tokens in stride.items():
            if tokens is not None:
                parts.append(f"{way} {tokens}")
        parts.append(f"{windows.lengths.mean():.0f} tokens on average")
        if windows.cut_questions:
            parts.append(f"{windows.cut_questions} questions cut")
        if windows.unlabelled:
            parts.append(f"{len(windows.unlabelled)} answers that no window holds")
        self.say(f"{name}: {', '.join(parts)}")
        return windows

    def loss(self, model: nn.Module, batch: Batch, layout: Layout) -> Tensor:
        """Summed span loss of a packed batch, with what teachers say where there are any."""
        logits = model(batch.input_ids, token_type_ids=batch.token_type_ids, lengths=layout)
        labels = batch.start_labels, batch.end_labels
        loss = span_loss(logits, layout, *labels, weights=batch.weights)
        if self.teaching is None:
            return loss
        return self.teaching.span_loss(loss, logits, batch, layout)

    def evaluate(self, model: nn.Module, autocast) -> dict[str, float]:
        """EM, F1 (at the tuned threshold, and at 0) and loss on dev."""
        search = SpanSettings(max_answer_length=self.settings.max_answer_length)
        how = {"autocast": autocast, "progress": self.bar("dev"), "world": self.world}
        spans, loss = find_spans(model, self.dev_windows, self.device, search, **how)
        self.evaluation = Evaluation.of(spans, self.dev_windows, self.dev, loss)
        return self.evaluation.metrics

    def describe(self, found: dict) -> str:
        """The scores of an evaluation that people look for."""
        shown = []
        for name in LOOKED_FOR:
            if name in found:
                shown.append(f"{name} {found[name]:.2f}")
        return ", ".join(shown)

    def card(self, where: Path, provenance: dict) -> str:
        """Return the model card, with the metrics of the last evaluation."""
        return model_card(
            where, provenance, self.recipe, self.evaluation.metrics, self.evaluation.qa
        )

    def saved_settings(self) -> dict:
        """Return the contents of qa.json: the threshold of the last evaluation, and how windows are cut."""
        found = self.evaluation.qa if self.evaluation else {"null_threshold": None}
        return {**found, **self.settings.saved()}

    def save_predictions(self, run: Path) -> None:
        """predictions.json (at the tuned threshold), nbest_predictions.json, null_odds.json, confidence.json."""
        assert self.evaluation, "nothing has been evaluated yet"
        found = self.evaluation
        examples = self.dev.examples
        threshold = found.qa["null_threshold"]
        files = prediction_files(found.spans, self.dev_windows, examples, threshold)
        sure = {}
        for example, value in zip(examples, found.sure.tolist(), strict=True):
            if not math.isnan(value):
                sure[example.id] = value
        for name, content in {**files, "confidence.json": sure}.items():
            write_json(run / name, content)

    def save_rejected(self, run: Path) -> None:
        """rejected.jsonl: the training questions that could not be used; dev.json: those that were held out."""
        write_rejected(self.train, run / "rejected.jsonl")
        if self.held_out:
            write_json(run / "dev.json", squad_document(self.dev.examples))


@dataclass
class Evaluation:
    """What an evaluation found."""

    spans: Spans
    metrics: dict[str, float]
    """exact, f1, HasAns_*, NoAns_* in percent at the threshold below; *_at_zero; loss."""
    qa: dict
    """null_threshold, calibration and confidence, as qa.json keeps them."""
    sure: np.ndarray
    """(Q,) confidence of each answer at the threshold; NaN where it is not known."""

    @classmethod
    def of(cls, spans: Spans, windows: Windows, data: Dataset, loss: float) -> "Evaluation":
        """Score the spans of `data`, tuning the threshold on raw best non-null answers."""
        examples = data.examples
        odds = null_odds(spans)
        # EM and F1 of the raw best spans: a tuned threshold must not have emptied any of them.
        marks = marks_of(spans, windows, examples)
        has_answer = marks.has_answer
        qa = thresholds.tune(odds, marks.exact, marks.f1, has_answer)
        threshold = qa["null_threshold"]

        # How sure each answer is, fitted to how often such answers are right.
        evidence = evidence_of(spans, windows, examples)
        right = how_right(examples, marks)
        confidence = fit_confidence(evidence, right, has_answer)
        qa["confidence"] = asdict(confidence)
        errors = calibration_errors(confidence, evidence, right, has_answer, threshold)
        qa["tuning"]["tuned"] |= errors

        silent = thresholds.abstain(odds, threshold)
        sure = confidence.chance_of_given(evidence, silent)
        # Behind the threshold, where no answer is given, that is right just where there is none.
        exact = np.where(silent, ~has_answer, marks.exact)
        f1 = np.where(silent, ~has_answer, marks.f1)
        found = metrics.averages(exact.tolist(), f1.tolist(), has_answer.tolist())
        if threshold is not None:
            tuned = qa["tuning"]["tuned"]
            found |= {name: tuned[name] for name in LOOKED_FOR}
            found["null_threshold"] = threshold
        return cls(spans, {**found, "loss": loss}, qa, sure)


# ---- the questions of a run ----


@dataclass
class Questions:
    """What is trained and evaluated on."""

    train: Dataset
    dev: Dataset
    held_out: bool = False  # whether dev is a part of the training file


def check_answers(example: Example) -> None:
    """Raises UserError for an example whose answers do not stand where it says."""
    for text, start in zip(example.answer_texts, example.answer_starts, strict=True):
        if start < 0 or example.context[start : start + len(text)] != text:
            raise UserError(
                f"example {example.id!r}: its answer {text!r} does not stand at character {start} of the context"
            )


def hold_out(data: Dataset, share: float, seed: int, limit: int | None = None) -> Questions:
    """Split off whole articles for the dev set, drawn by seed until they are nearest to the share of all questions.

    Questions about one article resemble each other, so a split through it would score too well. Where examples have
    no title the paragraph stands for it. With articles of 5, 2 and 9 questions, drawn in this order, and a share of
    half: 5, 7 and 16 questions would be held out; 7 of 16 is nearest, so it is the first two.

    Raises:
        UserError: where all questions are about one article.
    """
    counts = Counter(map(article_of, data.examples))
    names = sorted(counts)
    if len(names) < 2:
        raise UserError(
            f"{data.path}: no --dev is given, and nothing can be held out: all "
            f"{len(data.examples):,} questions are about one article; give questions to evaluate on"
        )
    order = [names[place] for place in np.random.default_rng([seed, 2]).permutation(len(names))]
    total = np.cumsum([counts[name] for name in order])[:-1]  # never all articles
    chosen = 1 + int(np.abs(total - share * len(data.examples)).argmin())
    articles = set(order[:chosen])
    kept = []
    out = []
    for example in data.examples:
        side = out if article_of(example) in articles else kept
        side.append(example)
    dev = replace(data, examples=out[:limit], rejected=[])
    return Questions(replace(data, examples=kept), dev, held_out=True)


def article_of(example: Example) -> str:
    """What a question is about."""
    return example.title or example.context


def warnings_of(questions: Questions) -> list[str]:
    """What is likely to be a mistake, a line each."""
    train = questions.train
    dev = questions.dev
    found = []
    if questions.held_out:
        articles = len({article_of(example) for example in dev.examples})
        found.append(
            f"no --dev is given: {len(dev.examples):,} questions of {train.path}, all those about "
            f"{articles:,} of its articles, are held out to evaluate on (-> dev.json)"
        )
    elif train.sha256 == dev.sha256:
        found.append(
            "warning: train and dev are the same file, so the scores say how well it was learned by heart; "
            "without --dev some articles are held out"
        )
    trainable = train.trainable()
    impossible = sum(not example.answer_texts for example in trainable)
    if trainable and impossible == len(trainable):
        found.append(
            f"warning: none of the {impossible:,} questions in {train.path} has an answer, so all that can be "
            "learned is to give none"
        )
    elif dev.has_impossible and not impossible:
        found.append(
            f"warning: {dev.path} has impossible questions, but {train.path} has none, so when to give no "
            "answer is not learned"
        )
    elif impossible and not dev.has_impossible:
        found.append(
            f"warning: {train.path} has impossible questions, but {dev.path} has none, so no threshold for "
            "giving no answer can be tuned"
        )
    return found
