"""Text classification as a task of the loop: its settings, its reader, its loss, and its evaluation."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bertqa.data.batches import Batch, WindowStore
from bertqa.data.text_windows import TextWindows, text_windows
from bertqa.data.texts import Texts, label_names, label_rows, read_texts, split
from bertqa.data.tokenizer import WordPiece
from bertqa.errors import UserError
from bertqa.files import to_json, write_text
from bertqa.inference import class_logits
from bertqa.model import folder
from bertqa.model.attention import Layout
from bertqa.model.card import card
from bertqa.settings import ClassificationSettings
from bertqa.training.distillation import Teaching
from bertqa.training.task import Task


class Classification(Task):
    """Reads the texts, and is the loop's `Task`."""

    static_shapes = True

    key, head = "macro_f1", folder.CLASSES

    def __init__(
        self,
        train: str,
        dev: str | None,
        weights: Path,
        settings: ClassificationSettings,
        *,
        seed: int,
        device: torch.device,
        say=print,
        progress: bool = True,
        recipe: dict | None = None,
        world=None,
    ):
        """Read, split and tokenise. `say` takes one line at a time for people; `recipe` is what the model card tells;
        the ranks of a `world` share the evaluation.

        Raises:
            UserError: for files that cannot be read, a single class, and dev labels that training does not have.
        """
        if dev and settings.split is not None:
            raise UserError(
                f"--split cuts a dev set out of the training texts, but --dev {dev} is one; leave one out"
            )
        config = folder.read_config(weights)
        self.settings, self.device, self.weights, self.progress, self.world = (
            settings,
            device,
            weights,
            progress,
            world,
        )
        self.max_length = settings.max_length or config["architecture"]["max_position_embeddings"]
        self.tokenizer, self.recipe, self.evaluation = WordPiece.load(weights), recipe or {}, None
        columns = {
            name: getattr(settings, name) for name in ("text_column", "label_column", "pair_column")
        }
        whole = read_texts(train, **columns, limit=settings.limit_train)
        if dev:
            self.train, self.dev = whole, read_texts(dev, **columns, limit=settings.limit_dev)
        else:
            self.train, self.dev = split(whole, settings.split or 0.3, seed)
            self.dev = self.dev.select(range(len(self.dev))[: settings.limit_dev])
        self.labels = self._classes(config)
        empty = set(self.train.empty())
        self.rejected = [self.train.where[row] for row in sorted(empty)]
        self.train = self.train.select([row for row in range(len(self.train)) if row not in empty])
        windows = self._windows(self.train, "train", say)
        self.windows, self.store = windows, WindowStore(windows, device)
        self.teaching: Teaching | None = None
        self.dev_windows = self._windows(self.dev, "dev", say)
        counts = np.bincount(windows.classes, minlength=len(self.labels))
        balanced = torch.from_numpy(
            len(windows) / (len(self.labels) * np.maximum(1, counts))
        )  # (C,)
        self.weight = (
            balanced.to(device, torch.float32) if settings.class_weights == "balanced" else None
        )

    def _classes(self, config: dict) -> list[str]:
        """The classes in order: as the weights' own head has them, where it has all of the training data's."""
        found = label_names(self.train.labels)
        if len(found) < 2:
            raise UserError(
                f"{self.train.path}: all {len(self.train):,} labels are {found[0]!r}; a classifier needs at least "
                "two classes"
            )
        known = config.get("labels") or []
        return known if set(found) <= set(known) else found

    def _windows(self, texts: Texts, name: str, say) -> TextWindows:
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
            progress=name if self.progress else None,
        )
        counts = zip(
            self.labels, np.bincount(rows, minlength=len(self.labels)).tolist(), strict=True
        )
        extra = f", {windows.cut:,} cut to {self.max_length}" if windows.cut else ""
        if name == "train" and self.rejected:
            extra += f", {len(self.rejected):,} empty ones left out (-> rejected.jsonl)"
        elif texts.empty():
            extra += f", {len(texts.empty()):,} of them empty"
        say(
            f"{name}: {texts.path}: {len(texts):,} texts ({', '.join(f'{count:,} {label}' for label, count in counts)}), "
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
            "labels": ", ".join(self.labels),
            **({"teachers": self.teaching.fingerprint} if self.teaching else {}),
        }

    def loss(self, model: nn.Module, batch: Batch, layout: Layout) -> Tensor:
        """Summed cross-entropy of a packed batch, each text's times the weight of its class; with what teachers say."""
        logits = model(
            batch.input_ids, token_type_ids=batch.token_type_ids, lengths=layout
        )  # (S, C)
        losses = F.cross_entropy(logits, batch.start_labels, self.weight, reduction="none")
        loss = (losses * batch.weights).sum()
        if self.teaching is None:
            return loss
        return self.teaching.class_loss(loss, logits, batch)

    def evaluate(self, model: nn.Module, autocast) -> dict[str, float]:
        """Accuracy and macro-F1 in percent, plain cross-entropy, and the confusion matrix, on dev."""
        logits, loss = class_logits(
            model,
            self.dev_windows,
            self.device,
            autocast=autocast,
            progress="dev" if self.progress else None,
            world=self.world,
        )
        matrix = confusion(self.dev_windows.classes, logits.argmax(1), len(self.labels))
        metrics = {**scores(matrix), "loss": loss, "confusion": matrix.tolist()}
        self.evaluation = logits, metrics
        return metrics

    def describe(self, found: dict) -> str:
        """The scores of an evaluation that people look for."""
        return found and (
            f"accuracy {found['accuracy']:.2f}, macro_f1 {found['macro_f1']:.2f}, loss {found['loss']:.3f}\n"
            + table(found["confusion"], self.labels)
        )

    def save_model(self, model: nn.Module, where: Path, evaluated: bool) -> None:
        """A model folder; config.json holds the classes in the order of the logits, the card the numbers of an evaluated
        model."""
        source = folder.read_config(self.weights)["provenance"]
        provenance = {
            **source,
            "fine_tuned_on": f"{Path(self.train.path).name}, sha256 {self.train.sha256[:16]}",
        }
        if self.teaching:
            provenance["taught_by"] = ", ".join(self.teaching.names)
        text = (
            card(
                where,
                provenance,
                self.recipe,
                self.evaluation[1],
                task="text-classification",
                tag="text-classification",
                about=f"A text classifier; its classes are {', '.join(self.labels)}.",
                measured=f"{self.dev.path}: {len(self.dev)} texts.",
                rule="Accuracy and macro_f1 are in percent; macro_f1 is the mean over the classes.",
                limits="It names one of its classes for any text, and can be wrong with a high "
                "probability.",
            )
            if evaluated
            else None
        )
        folder.save(
            where,
            model,
            tokenizer_from=self.weights,
            labels=self.labels,
            provenance=provenance,
            card=text,
            qa=self.settings.saved(self.max_length),
        )

    def save_predictions(self, run: Path) -> None:
        """predictions.jsonl: of each dev text its id, label, probabilities, and "gold", the right label."""
        assert self.evaluation, "nothing has been evaluated yet"
        write_predictions(
            run / "predictions.jsonl",
            self.dev.ids,
            self.evaluation[0],
            self.labels,
            self.dev.labels,
        )

    def save_rejected(self, run: Path) -> int:
        """rejected.jsonl: the training texts that could not be used. Returns how many."""
        reason = "the text is empty"
        lines = [to_json({"where": where, "reason": reason}) + "\n" for where in self.rejected]
        write_text(run / "rejected.jsonl", "".join(lines))
        return len(lines)


def confusion(gold: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """(C, C) counts: row = the right class, column = the predicted one."""
    return np.bincount(gold.astype(np.int64) * classes + predicted, minlength=classes**2).reshape(
        classes, classes
    )


def scores(matrix: np.ndarray) -> dict[str, float]:
    """Accuracy, and the mean of F1 over the classes that are right or predicted at least once, in percent."""
    right, asked, said = matrix.diagonal(), matrix.sum(1), matrix.sum(0)  # 3 x (C,)
    seen = asked + said > 0
    return {
        "accuracy": 100 * float(right.sum() / matrix.sum()),
        "macro_f1": 100 * float((2 * right[seen] / (asked + said)[seen]).mean()),
    }


def table(matrix: Sequence[Sequence[int]], labels: Sequence[str]) -> str:
    """A confusion matrix for people: a line for each right class."""
    rows = [
        ["right \\ predicted", *labels],
        *([label, *map(str, row)] for label, row in zip(labels, matrix, strict=True)),
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        f"{row[0]:{widths[0]}}  "
        + "  ".join(f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))
        for row in rows
    )


def probabilities(logits: np.ndarray, labels: Sequence[str]) -> list[dict[str, float]]:
    """Of each row of logits (R, C): class -> probability, the most probable first."""
    powers = np.exp(logits - logits.max(1, keepdims=True), dtype=np.float64)
    rows = powers / powers.sum(1, keepdims=True)  # (R, C)
    return [{labels[i]: float(row[i]) for i in np.argsort(-row, kind="stable")} for row in rows]


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
