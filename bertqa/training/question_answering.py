"""Extractive question answering as a task of the loop: its reader, its loss, and its evaluation."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from bertqa.data.batches import Batch, WindowStore
from bertqa.data.download import locate
from bertqa.data.examples import Dataset, read_examples, write_rejected
from bertqa.data.tokenizer import WordPiece
from bertqa.data.windows import Windows, build_windows
from bertqa.distributed import World
from bertqa.errors import UserError
from bertqa.files import write_json
from bertqa.inference import find_spans
from bertqa.model import folder
from bertqa.model.attention import Layout
from bertqa.model.card import model_card
from bertqa.model.heads import span_loss
from bertqa.qa import metrics, thresholds
from bertqa.qa.answers import best_answers, null_odds, prediction_files
from bertqa.qa.spans import Spans, SpanSettings
from bertqa.settings import QuestionAnsweringSettings
from bertqa.training.distillation import Teaching
from bertqa.training.task import Task


class QuestionAnswering(Task):
    """Reads the two files, cuts them into windows, and is the loop's `Task`."""

    static_shapes = True

    key, head, labels = "f1", folder.QA, None

    def __init__(
        self,
        train: str,
        dev: str,
        weights: Path,
        settings: QuestionAnsweringSettings,
        *,
        seed: int,
        device: torch.device,
        say=print,
        progress: bool = True,
        recipe: dict | None = None,
        world: World = World(),
    ):
        """Read and tokenise. `say` takes one line at a time for people; `recipe` is what the model card tells of the run.
        The ranks of `world` share evaluations.

        Raises:
            UserError: for files that cannot be read or hold nothing to train or evaluate on.
        """
        self.settings, self.device, self.weights, self.progress = (
            settings,
            device,
            weights,
            progress,
        )
        self.recipe, self.world = recipe or {}, world
        self.tokenizer = WordPiece.load(weights)
        train_file, dev_file = self.world.in_turn(
            lambda: (locate(train, "train"), locate(dev, "dev"))
        )
        self.train = read_examples(train_file, settings.limit_train)
        self.dev = read_examples(dev_file, settings.limit_dev)
        stride = ", ".join(
            f"{name} {value}" for name, value in settings.stride.items() if value is not None
        )
        windows = self._windows(self.train, self.train.trainable(), "train", stride, say)
        self.dev_windows = self._windows(self.dev, self.dev.examples, "dev", stride, say)
        self.windows, self.store = windows, WindowStore(windows, device)
        self.teaching: Teaching | None = None
        self.evaluation: Evaluation | None = None

    def _windows(self, data: Dataset, examples, name: str, stride: str, say) -> Windows:
        say(f"{name}: {data.path}: {data.summary()}")
        if not examples:
            raise UserError(
                f"{data.path}: not one question is usable for {name}; rejected, for example: "
                f"{data.rejected[0].reason if data.rejected else 'nothing'}"
            )
        windows = build_windows(
            examples,
            self.tokenizer,
            max_length=self.settings.max_length,
            max_question=self.settings.max_question,
            progress=name if self.progress else None,
            **self.settings.stride,
        )
        extra = f", {windows.cut_questions} questions cut" if windows.cut_questions else ""
        if windows.unlabelled:
            extra += f", {len(windows.unlabelled)} answers that no window holds"
        say(
            f"{name}: {len(windows):,} windows of at most {self.settings.max_length} tokens, {stride}, "
            f"{windows.lengths.mean():.0f} tokens on average{extra}"
        )
        return windows

    def fingerprints(self) -> dict[str, str]:
        """What a resumed run must have in common with this one."""
        return {
            "train windows": self.windows.fingerprint(),
            "dev windows": self.dev_windows.fingerprint(),
            "train file": self.train.sha256[:16],
            "dev file": self.dev.sha256[:16],
            **({"teachers": self.teaching.fingerprint} if self.teaching else {}),
        }

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
        source = folder.read_config(self.weights)["provenance"]
        provenance = {
            **source,
            "fine_tuned_on": f"{Path(self.train.path).name}, sha256 {self.train.sha256[:16]}",
        }
        if self.teaching:
            provenance["taught_by"] = ", ".join(self.teaching.names)
        card = (
            model_card(where, provenance, self.recipe, self.evaluation.metrics, found)
            if evaluated
            else None
        )
        folder.save(
            where,
            model,
            tokenizer_from=self.weights,
            qa={**found, **self.settings.saved()},
            provenance=provenance,
            card=card,
        )

    def save_predictions(self, run: Path) -> None:
        """predictions.json (at the tuned threshold), nbest_predictions.json, null_odds.json."""
        assert self.evaluation, "nothing has been evaluated yet"
        files = prediction_files(
            self.evaluation.spans,
            self.dev_windows,
            self.dev.examples,
            self.evaluation.qa["null_threshold"],
        )
        for name, content in files.items():
            write_json(run / name, content)

    def save_rejected(self, run: Path) -> int:
        """rejected.jsonl: the training questions that could not be used. Returns how many."""
        write_rejected(self.train, run / "rejected.jsonl")
        return len(self.train.rejected)


@dataclass
class Evaluation:
    """What an evaluation found."""

    spans: Spans
    metrics: dict[str, float]
    """exact, f1, HasAns_*, NoAns_* in percent at the threshold below; *_at_zero; loss."""
    qa: dict
    """null_threshold and calibration, as qa.json keeps them."""

    @classmethod
    def of(cls, spans: Spans, windows: Windows, data: Dataset, loss: float) -> "Evaluation":
        """Score the spans of `data`, tuning the threshold on raw best non-null answers."""
        answers, odds = best_answers(spans, windows, data.examples), null_odds(spans)
        ids = [example.id for example in data.examples]
        scores = metrics.score_answers(data.examples, dict(zip(ids, answers.texts, strict=True)))
        exact, f1 = np.array(scores.exact, float), np.array(scores.f1, float)
        has_answer = np.array(scores.has_answer, bool)
        qa = thresholds.tune(odds, exact, f1, has_answer)
        silent = thresholds.abstain(odds, qa["null_threshold"])
        final = [np.where(silent, ~has_answer, values).tolist() for values in (exact, f1)]
        found = metrics.averages(*final, has_answer.tolist())
        if qa["null_threshold"] is not None:
            report = qa["tuning"]["tuned"]
            found |= {name: report[name] for name in ("exact", "f1", "exact_at_zero", "f1_at_zero")}
            found["null_threshold"] = qa["null_threshold"]
        return cls(spans, {**found, "loss": loss}, qa)
