"""Extractive question answering as a task of the loop: its reader, its loss, and its evaluation."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from bertqa.console import say
from bertqa.data.batches import Batch, WindowStore
from bertqa.data.examples import Dataset, Example
from bertqa.data.windows import Windows, build_windows
from bertqa.data.writing import squad_document, write_rejected
from bertqa.distributed import World
from bertqa.errors import UserError
from bertqa.files import write_json
from bertqa.inference import find_spans
from bertqa.model import folder
from bertqa.model.attention import Layout
from bertqa.model.card import model_card
from bertqa.model.heads import span_loss
from bertqa.qa import metrics, thresholds
from bertqa.qa.answers import null_odds, prediction_files
from bertqa.qa.confidence import errors_of, evidence_of, fit_confidence, how_right, marks_of
from bertqa.qa.spans import Spans, SpanSettings
from bertqa.settings import QuestionAnsweringSettings
from bertqa.training.job import FileTask
from bertqa.training.questions import read_questions, warnings_of


class QuestionAnswering(FileTask):
    """Reads the two files, cuts them into windows, and is the loop's `Task`."""

    key = "f1"
    head = folder.QA
    static_shapes = True

    def __init__(
        self,
        train: str | Sequence[Example],
        dev: str | Sequence[Example] | None,
        weights: Path,
        settings: QuestionAnsweringSettings,
        *,
        seed: int,
        device: torch.device,
        say=say,
        progress: bool = True,
        world: World = World(),
    ):
        """Read and tokenise.

        Args:
            train, dev: files of questions, or Examples; without `dev` a part of the training questions is held out.
            weights: the model folder whose tokenizer is used.
            say: takes a line at a time for people.
            progress: whether to show bars.
            world: its ranks share evaluations.

        Raises:
            UserError: for files that cannot be read or hold nothing to train or evaluate on.
        """
        super().__init__(weights, settings, device, say, progress, world)
        questions = read_questions(train, dev, settings, seed=seed, world=world)
        for line in warnings_of(questions):
            say(line)
        self.train = questions.train
        self.dev = questions.dev
        self.held_out = questions.held_out
        self.windows = self._windows(self.train, self.train.trainable(), "train")
        self.dev_windows = self._windows(self.dev, self.dev.examples, "dev")
        self.store = WindowStore(self.windows, device)
        self.evaluation: Evaluation | None = None

    def _windows(self, data: Dataset, examples: list[Example], name: str) -> Windows:
        """Cut examples into windows, and say what they are like."""
        self.say(f"{name}: {data.path}: {data.summary()}")
        if not examples:
            example = data.rejected[0].reason if data.rejected else "nothing"
            raise UserError(
                f"{data.path}: not one question is usable for {name}; rejected, for example: {example}"
            )
        windows = build_windows(
            examples,
            self.tokenizer,
            max_length=self.settings.max_length,
            max_question=self.settings.max_question,
            progress=name if self.progress else None,
            **self.settings.stride,
        )
        parts = [f"{len(windows):,} windows of at most {self.settings.max_length} tokens"]
        for way, tokens in self.settings.stride.items():
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
        loss = span_loss(
            logits, layout, batch.start_labels, batch.end_labels, weights=batch.weights
        )
        if self.teaching is None:
            return loss
        return self.teaching.span_loss(loss, logits, batch, layout)

    def evaluate(self, model: nn.Module, autocast) -> dict[str, float]:
        """EM, F1 (at the tuned threshold, and at 0) and loss on dev."""
        search = SpanSettings(max_answer_length=self.settings.max_answer_length)
        spans, loss = find_spans(
            model,
            self.dev_windows,
            self.device,
            search,
            autocast=autocast,
            progress="dev" if self.progress else None,
            world=self.world,
        )
        self.evaluation = Evaluation.of(spans, self.dev_windows, self.dev, loss)
        return self.evaluation.metrics

    def describe(self, found: dict) -> str:
        """The scores of an evaluation that people look for."""
        names = [name for name in ("exact", "f1", "exact_at_zero", "f1_at_zero") if name in found]
        return ", ".join(f"{name} {found[name]:.2f}" for name in names)

    def save_model(self, model: nn.Module, where: Path, evaluated: bool) -> None:
        """A model folder; qa.json holds the threshold of the last evaluation, the card the numbers of an evaluated model."""
        found = self.evaluation.qa if self.evaluation else {"null_threshold": None}
        provenance = self.provenance()
        card = None
        if evaluated:
            card = model_card(where, provenance, self.recipe, self.evaluation.metrics, found)
        folder.save(
            where,
            model,
            tokenizer_from=self.weights,
            qa={**found, **self.settings.saved()},
            provenance=provenance,
            card=card,
        )

    def save_predictions(self, run: Path) -> None:
        """predictions.json (at the tuned threshold), nbest_predictions.json, null_odds.json, confidence.json."""
        assert self.evaluation, "nothing has been evaluated yet"
        threshold = self.evaluation.qa["null_threshold"]
        files = prediction_files(
            self.evaluation.spans, self.dev_windows, self.dev.examples, threshold
        )
        sure = {}
        for example, value in zip(self.dev.examples, self.evaluation.sure.tolist(), strict=True):
            if value == value:  # NaN: not known
                sure[example.id] = value
        for name, content in {**files, "confidence.json": sure}.items():
            write_json(run / name, content)

    def save_rejected(self, run: Path) -> int:
        """rejected.jsonl: the training questions that could not be used; dev.json: those that were held out."""
        write_rejected(self.train, run / "rejected.jsonl")
        if self.held_out:
            write_json(run / "dev.json", squad_document(self.dev.examples))
        return len(self.train.rejected)


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
        marks = marks_of(spans, windows, examples)
        has_answer = marks.has_answer
        qa = thresholds.tune(odds, marks.exact, marks.f1, has_answer)
        threshold = qa["null_threshold"]

        evidence = evidence_of(spans, windows, examples)
        right = how_right(examples, marks)
        confidence = fit_confidence(evidence, right, has_answer)
        qa["confidence"] = asdict(confidence)
        errors = errors_of(confidence, evidence, right, has_answer, threshold)
        qa["tuning"]["tuned"] |= errors

        silent = thresholds.abstain(odds, threshold)
        sure = confidence.chance_of_given(evidence, silent)
        # Where no answer is given, that is right just where there is none.
        exact = np.where(silent, ~has_answer, marks.exact)
        f1 = np.where(silent, ~has_answer, marks.f1)
        found = metrics.averages(exact.tolist(), f1.tolist(), has_answer.tolist())
        if threshold is not None:
            tuned = qa["tuning"]["tuned"]
            for name in ("exact", "f1", "exact_at_zero", "f1_at_zero"):
                found[name] = tuned[name]
            found["null_threshold"] = threshold
        return cls(spans, {**found, "loss": loss}, qa, sure)
