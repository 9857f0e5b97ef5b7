"""Text classification as a task of the training loop: its data, its loss and its evaluation."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bertqa.data.batches import Batch
from bertqa.data.labelled_texts import Texts, label_names, label_rows, read_texts, split
from bertqa.data.text_windows import TextWindows, text_windows
from bertqa.errors import UserError
from bertqa.files import to_json, write_text
from bertqa.inference import class_logits, probabilities
from bertqa.model import folder
from bertqa.model.attention import Layout
from bertqa.model.card import classifier_card
from bertqa.settings import ClassificationSettings
from bertqa.training.job import FileTask


@dataclass
class Evaluation:
    """What an evaluation found."""

    logits: np.ndarray
    """(R, C), of the R dev texts."""
    metrics: dict


class Classification(FileTask):
    """Classification of texts, or of pairs of texts, that files hold."""

    key = "macro_f1"
    head = folder.CLASSES
    static_shapes = True

    weight: Tensor | None = None
    """(C,) the weight of each class in the loss; None = 1 for all."""
    evaluation: Evaluation | None = None
    """The last evaluation."""

    def read(self, train: str, dev: str | None, seed: int) -> None:
        """Read the texts, hold some out if there is no dev set, and leave empty ones out of training."""
        config = folder.read_config(self.weights)
        positions = config["architecture"]["max_position_embeddings"]
        self.max_length = self.settings.max_length or positions
        texts, self.dev = read_both(train, dev, self.settings, seed)
        self.labels = classes_of(texts, config.get("labels") or [])
        empty = set(texts.empty())
        self.rejected = [texts.where[row] for row in sorted(empty)]
        self.train = texts.select([row for row in range(len(texts)) if row not in empty])
        if dev and texts.sha256 == self.dev.sha256:
            self.say(
                "warning: train and dev are the same file, so the scores say how well it was learned by heart; "
                "without --dev a part is held out"
            )

    def cut(self, texts: Texts, name: str) -> TextWindows:
        """Tokenise the texts, weight the classes, and say how many texts there are and how long."""
        if not len(texts):
            raise UserError(
                f"{texts.path}: no text is left for {name}; give more texts, or another --split"
            )
        classes = label_rows(texts, self.labels)  # (R,)
        windows = text_windows(
            texts.texts,
            self.tokenizer,
            pairs=texts.pairs,
            labels=classes,
            max_length=self.max_length,
            progress=self.bar(name),
        )
        counts = np.bincount(classes, minlength=len(self.labels))  # (C,)
        if name == "train" and self.settings.class_weights == "balanced":
            weights = balanced_weights(counts)
            self.weight = torch.from_numpy(weights).to(self.device, torch.float32)
        self.say(f"{name}: {texts.path}: {', '.join(self.about(texts, name, windows, counts))}")
        return windows

    def about(self, texts: Texts, name: str, windows: TextWindows, counts: np.ndarray) -> list[str]:
        """Return the numbers of the texts in words; `counts` (C,) are the texts of each class."""
        shares = [f"{count:,} {label}" for label, count in zip(self.labels, counts, strict=True)]
        parts = [
            f"{len(texts):,} texts ({', '.join(shares)})",
            f"{windows.lengths.mean():.0f} tokens on average",
        ]
        if windows.cut:
            parts.append(f"{windows.cut:,} cut to {self.max_length}")
        if name == "train" and self.rejected:
            parts.append(f"{len(self.rejected):,} empty ones left out (-> rejected.jsonl)")
        elif texts.empty():
            parts.append(f"{len(texts.empty()):,} of them empty")
        return parts

    def fingerprints(self) -> dict[str, str]:
        """Return what must be the same when the run is resumed."""
        return {**super().fingerprints(), "labels": ", ".join(self.labels)}

    def loss(self, model: nn.Module, batch: Batch, layout: Layout) -> Tensor:
        """Return the weighted cross-entropy of a packed batch, summed over its texts; teachers, if any, are mixed in."""
        # (S, C)
        logits = model(batch.input_ids, token_type_ids=batch.token_type_ids, lengths=layout)
        losses = F.cross_entropy(logits, batch.classes, self.weight, reduction="none")  # (S,)
        loss = (losses * batch.weights).sum()
        if self.teaching is None:
            return loss
        return self.teaching.class_loss(loss, logits, batch)

    def evaluate(self, model: nn.Module, autocast) -> dict[str, float]:
        """Return accuracy and macro-F1 in percent, the unweighted cross-entropy and the confusion matrix on the dev set."""
        logits, loss = class_logits(
            model,
            self.dev_windows,
            self.device,
            autocast=autocast,
            progress=self.bar("dev"),
            world=self.world,
        )
        matrix = confusion(self.dev_windows.classes, logits.argmax(1), len(self.labels))
        metrics = {**scores(matrix), "loss": loss, "confusion": matrix.tolist()}
        self.evaluation = Evaluation(logits, metrics)
        return metrics

    def describe(self, metrics: dict) -> str:
        """Return the main scores and the confusion matrix in words."""
        figures = (
            f"accuracy {metrics['accuracy']:.2f}, macro_f1 {metrics['macro_f1']:.2f}, "
            f"loss {metrics['loss']:.3f}"
        )
        return f"{figures}\n{table(metrics['confusion'], self.labels)}"

    def card(self, where: Path, provenance: dict) -> str:
        """Return the model card, with the metrics of the last evaluation."""
        measured = f"{Path(self.dev.path).name}: {len(self.dev)} texts."
        metrics = self.evaluation.metrics
        return classifier_card(where, provenance, self.recipe, metrics, self.labels, measured)

    def saved_settings(self) -> dict:
        """Return the contents of qa.json: columns and length, so that `predict` reads texts in the same way."""
        return self.settings.saved(self.max_length)

    def save_predictions(self, run: Path) -> None:
        """Write predictions.jsonl: id, label and probabilities of each dev text, and the right label as "gold"."""
        assert self.evaluation, "nothing has been evaluated yet"
        found = probabilities(self.evaluation.logits, self.labels)
        lines = []
        for name, gold, by_class in zip(self.dev.ids, self.dev.labels, found, strict=True):
            predicted = next(iter(by_class))
            record = {
                "id": name,
                "label": predicted,
                "gold": gold,
                "probabilities": by_class,
            }
            lines.append(to_json(record) + "\n")
        write_text(run / "predictions.jsonl", "".join(lines))

    def save_rejected(self, run: Path) -> None:
        """Write rejected.jsonl: the training texts that cannot be used."""
        lines = []
        for where in self.rejected:
            lines.append(to_json({"where": where, "reason": "the text is empty"}) + "\n")
        write_text(run / "rejected.jsonl", "".join(lines))


# ---- data ----


def read_both(
    train: str, dev: str | None, settings: ClassificationSettings, seed: int
) -> tuple[Texts, Texts]:
    """Return the texts to train and to evaluate on; without `dev` a part of the training texts, drawn by seed, is held out."""
    if dev and settings.split is not None:
        raise UserError(
            f"--split cuts a dev set out of the training texts, but --dev {dev} is one; leave one out"
        )
    columns = {
        "text_column": settings.text_column,
        "label_column": settings.label_column,
        "pair_column": settings.pair_column,
    }
    whole = read_texts(train, **columns, limit=settings.limit_train)
    if dev:
        return whole, read_texts(dev, **columns, limit=settings.limit_dev)
    kept, out = split(whole, settings.split or 0.3, seed)
    return kept, out.select(range(len(out))[: settings.limit_dev])


def classes_of(texts: Texts, known: list[str]) -> list[str]:
    """Return the names of the classes in order.

    If the starting weights have a class head whose classes (`known`) include all of the training data's, it is theirs.
    """
    found = label_names(texts.labels)
    if len(found) < 2:
        raise UserError(
            f"{texts.path}: all {len(texts):,} labels are {found[0]!r}; a classifier needs at least two classes"
        )
    if set(found) <= set(known):
        return known
    return found


def balanced_weights(counts: np.ndarray) -> np.ndarray:
    """Return weights (C,) for classes with so many texts: all texts / (classes * texts of the class).

    Two classes with 30 and 10 texts get 40 / (2 * 30) = 0.67 and 40 / (2 * 10) = 2. The sum over all texts stays 40.
    """
    return counts.sum() / (len(counts) * np.maximum(1, counts))


# ---- scores and predictions ----


def confusion(gold: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Return counts (C, C): row = gold class, column = predicted class."""
    # Cells are numbered row by row: of 3 classes, gold 1 and predicted 2 is cell 5.
    cells = gold.astype(np.int64) * classes + predicted
    return np.bincount(cells, minlength=classes**2).reshape(classes, classes)


def scores(matrix: np.ndarray) -> dict[str, float]:
    """Return accuracy and macro-F1 in percent, from a confusion matrix (C, C).

    Macro-F1 is the mean over the classes that occur, as gold or as predicted class.
    """
    right = matrix.diagonal()  # (C,)
    gold_and_predicted = matrix.sum(1) + matrix.sum(0)  # (C,)
    # A class that does not occur has no F1; counted as 0 it would lower the mean.
    seen = gold_and_predicted > 0
    f1 = 2 * right[seen] / gold_and_predicted[seen]
    return {
        "accuracy": 100 * float(right.sum() / matrix.sum()),
        "macro_f1": 100 * float(f1.mean()),
    }


def table(matrix: Sequence[Sequence[int]], labels: Sequence[str]) -> str:
    """Return a confusion matrix as text, a line for each gold class:

    right \\ predicted  no  perhaps
    no                 10        2
    perhaps             0        3
    """
    rows = [["right \\ predicted", *labels]]
    for label, counts in zip(labels, matrix, strict=True):
        rows.append([label, *map(str, counts)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *counts in rows:
        line = name.ljust(widths[0])
        for count, width in zip(counts, widths[1:], strict=True):
            line += "  " + count.rjust(width)
        lines.append(line)
    return "\n".join(lines)
