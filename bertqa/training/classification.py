"""Text classification as a task of the loop: its settings, its reader, its loss, and its evaluation."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bertqa.data.batches import Batch
from bertqa.data.text_windows import TextWindows, label_names, label_rows, split, text_windows
from bertqa.data.texts import Texts, read_texts
from bertqa.errors import UserError
from bertqa.files import to_json, write_text
from bertqa.inference import class_logits
from bertqa.model import folder
from bertqa.model.attention import Layout
from bertqa.model.card import classifier_card
from bertqa.settings import ClassificationSettings
from bertqa.training.job import FileTask


@dataclass
class Evaluation:
    """What an evaluation found."""

    logits: np.ndarray
    """(R, C) of the dev texts."""
    metrics: dict


class Classification(FileTask):
    """Reads the texts, and is the loop's `Task`."""

    key = "macro_f1"
    head = folder.CLASSES
    static_shapes = True

    weight: Tensor | None = None
    """(C,) how much an error on a text of each class weighs: N texts / (C classes * its texts)."""
    evaluation: Evaluation | None = None

    def read(self, train: str, dev: str | None, seed: int) -> None:
        """Read, split, and leave out texts that are empty."""
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
        """Tokenise texts, and say what they are like."""
        if not len(texts):
            raise UserError(
                f"{texts.path}: no text is left for {name}; give more texts, or another --split"
            )
        rows = label_rows(texts, self.labels)
        windows = text_windows(
            texts.texts,
            self.tokenizer,
            pairs=texts.pairs,
            labels=rows,
            max_length=self.max_length,
            progress=self.bar(name),
        )
        counts = np.bincount(rows, minlength=len(self.labels))  # (C,)
        # Two classes with 30 and 10 texts weigh 40 / (2 * 30) = 0.67 and 40 / (2 * 10) = 2.
        if name == "train" and self.settings.class_weights == "balanced":
            weights = len(rows) / (len(self.labels) * np.maximum(1, counts))
            self.weight = torch.from_numpy(weights).to(self.device, torch.float32)
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
        self.say(f"{name}: {texts.path}: {', '.join(parts)}")
        return windows

    def fingerprints(self) -> dict[str, str]:
        """What a resumed run must have in common with this one."""
        return {**super().fingerprints(), "labels": ", ".join(self.labels)}

    def loss(self, model: nn.Module, batch: Batch, layout: Layout) -> Tensor:
        """Summed cross-entropy of a packed batch, each text's times the weight of its class; with what teachers say."""
        # (S, C)
        logits = model(batch.input_ids, token_type_ids=batch.token_type_ids, lengths=layout)
        losses = F.cross_entropy(logits, batch.classes, self.weight, reduction="none")
        loss = (losses * batch.weights).sum()
        if self.teaching is None:
            return loss
        return self.teaching.class_loss(loss, logits, batch)

    def evaluate(self, model: nn.Module, autocast) -> dict[str, float]:
        """Accuracy and macro-F1 in percent, plain cross-entropy, and the confusion matrix, on dev."""
        how = {"autocast": autocast, "progress": self.bar("dev"), "world": self.world}
        logits, loss = class_logits(model, self.dev_windows, self.device, **how)
        matrix = confusion(self.dev_windows.classes, logits.argmax(1), len(self.labels))
        metrics = {**scores(matrix), "loss": loss, "confusion": matrix.tolist()}
        self.evaluation = Evaluation(logits, metrics)
        return metrics

    def describe(self, found: dict) -> str:
        """The scores of an evaluation that people look for."""
        figures = (
            f"accuracy {found['accuracy']:.2f}, macro_f1 {found['macro_f1']:.2f}, "
            f"loss {found['loss']:.3f}"
        )
        return f"{figures}\n{table(found['confusion'], self.labels)}"

    def card(self, where: Path, provenance: dict) -> str:
        """Return the model card, with the metrics of the last evaluation."""
        measured = f"{Path(self.dev.path).name}: {len(self.dev)} texts."
        metrics = self.evaluation.metrics
        return classifier_card(where, provenance, self.recipe, metrics, self.labels, measured)

    def saved_settings(self) -> dict:
        """Return the contents of qa.json: columns and length, so that `predict` reads texts in the same way."""
        return self.settings.saved(self.max_length)

    def save_predictions(self, run: Path) -> None:
        """predictions.jsonl: of each dev text its id, label, probabilities, and "gold", the right label."""
        assert self.evaluation, "nothing has been evaluated yet"
        write_predictions(
            run / "predictions.jsonl",
            self.dev.ids,
            self.evaluation.logits,
            self.labels,
            self.dev.labels,
        )

    def save_rejected(self, run: Path) -> None:
        """rejected.jsonl: the training texts that could not be used."""
        lines = []
        for where in self.rejected:
            lines.append(to_json({"where": where, "reason": "the text is empty"}) + "\n")
        write_text(run / "rejected.jsonl", "".join(lines))


def read_both(
    train: str, dev: str | None, settings: ClassificationSettings, seed: int
) -> tuple[Texts, Texts]:
    """The texts to train and to evaluate on; without `dev` a part of the training texts is held out."""
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
    """The classes in order: as the weights' own head has them, where it has all of the training data's."""
    found = label_names(texts.labels)
    if len(found) < 2:
        raise UserError(
            f"{texts.path}: all {len(texts):,} labels are {found[0]!r}; a classifier needs at least two classes"
        )
    if set(found) <= set(known):
        return known
    return found


def confusion(gold: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """(C, C) counts: row = the right class, column = the predicted one."""
    # Each pair is the number of its cell, row by row: of 3 classes, right 1 and predicted 2 is cell 5.
    cells = gold.astype(np.int64) * classes + predicted
    return np.bincount(cells, minlength=classes**2).reshape(classes, classes)


def scores(matrix: np.ndarray) -> dict[str, float]:
    """Accuracy, and the mean of F1 over the classes that are right or predicted at least once, in percent."""
    right = matrix.diagonal()  # (C,)
    asked = matrix.sum(1)
    said = matrix.sum(0)
    # A class that nobody asks for nor names has no F1; with 0 it would lower the mean.
    seen = asked + said > 0
    f1 = 2 * right[seen] / (asked + said)[seen]
    return {
        "accuracy": 100 * float(right.sum() / matrix.sum()),
        "macro_f1": 100 * float(f1.mean()),
    }


def table(matrix: Sequence[Sequence[int]], labels: Sequence[str]) -> str:
    """A confusion matrix for people: a line for each right class, such as

    right \\ predicted  no  perhaps
    no                 10        2
    perhaps             0        3
    """
    rows = [["right \\ predicted", *labels]]
    for label, counts in zip(labels, matrix, strict=True):
        rows.append([label, *map(str, counts)])
    widest, *widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *cells in rows:
        padded = [cell.rjust(width) for cell, width in zip(cells, widths, strict=True)]
        lines.append("  ".join([name.ljust(widest), *padded]))
    return "\n".join(lines)


def probabilities(logits: np.ndarray, labels: Sequence[str]) -> list[dict[str, float]]:
    """Of each row of logits (R, C): class -> probability, the most probable first."""
    # Less the largest one, which a softmax does not see: no exp overflows.
    powers = np.exp(logits - logits.max(1, keepdims=True), dtype=np.float64)
    found = []
    for row in powers / powers.sum(1, keepdims=True):  # (C,)
        falling = np.argsort(-row, kind="stable")
        found.append({labels[place]: float(row[place]) for place in falling})
    return found


def write_predictions(
    path: Path,
    ids: Sequence[str],
    logits: np.ndarray,
    labels: Sequence[str],
    gold: Sequence[str] | None = None,
) -> None:
    """A line of JSON for each text: {"id", "label", "probabilities"}, and "gold" where it is known."""
    lines = []
    for row, (name, found) in enumerate(zip(ids, probabilities(logits, labels), strict=True)):
        record = {"id": name, "label": next(iter(found))}
        if gold:
            record["gold"] = gold[row]
        record["probabilities"] = found
        lines.append(to_json(record) + "\n")
    write_text(path, "".join(lines))
