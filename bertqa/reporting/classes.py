"""The data of a classifier's report: the confusion matrix, scores of each class, the texts it got wrong."""

from pathlib import Path

import numpy as np

from bertqa.data.texts import read_texts
from bertqa.errors import UserError
from bertqa.reporting.run_folder import Run, find_file

MOST_ERRORS = 500
"""Texts that the page lists, those first of which the model was surest."""
LONGEST = 600
"""Characters shown of a text."""


def class_report(run: Run, dev: str | None) -> dict:
    """What the page shows of a classifier's predictions on its dev texts."""
    labelled = [record for record in run.classified if record.get("gold") is not None]
    labels = run.model.get("labels") or sorted({str(record["gold"]) for record in labelled})
    known = []
    for record in labelled:
        # else labels of another model's run, or a file that was edited
        if str(record["gold"]) in labels and str(record.get("label")) in labels:
            known.append(record)
    matrix = confusion(known, labels)
    errors = [record for record in known if str(record["gold"]) != str(record["label"])]
    errors.sort(key=sureness, reverse=True)
    texts = dev_texts(run, dev)
    shown = []
    for record in errors[:MOST_ERRORS]:
        id = str(record.get("id"))
        shown.append(
            {
                "id": id,
                "gold": str(record["gold"]),
                "label": str(record["label"]),
                "probability": round(sureness(record), 4),
                "text": texts.get(id, "")[:LONGEST],
            }
        )
    return {
        "labels": labels,
        "matrix": matrix.tolist(),
        "rows": class_rows(matrix),
        "accuracy": share(int(matrix.trace()), len(known)) or 0.0,
        "macro_f1": macro_f1(matrix),
        "total": len(known),
        "wrong": len(errors),
        "errors": shown,
    }


def confusion(records: list[dict], labels: list[str]) -> np.ndarray:
    """(C, C) counts of texts: row = the right class, column = the predicted one."""
    place = {label: row for row, label in enumerate(labels)}
    matrix = np.zeros((len(labels), len(labels)), int)
    for record in records:
        matrix[place[str(record["gold"])], place[str(record["label"])]] += 1
    return matrix


def sureness(record: dict) -> float:
    """The probability of the class that was predicted."""
    return float(max(record["probabilities"].values(), default=0.0))


def class_rows(matrix: np.ndarray) -> list[dict]:
    """n, precision, recall and F1 in percent of each class; None where there is nothing to divide by."""
    rows = []
    for row in range(len(matrix)):
        right = int(matrix[row, row])
        asked = int(matrix[row].sum())
        said = int(matrix[:, row].sum())
        rows.append(
            {
                "n": asked,
                "precision": share(right, said),
                "recall": share(right, asked),
                "f1": share(2 * right, asked + said),
            }
        )
    return rows


def macro_f1(matrix: np.ndarray) -> float:
    """The mean of F1 over the classes that are right or predicted at least once, in percent."""
    counts = matrix.sum(0) + matrix.sum(1)
    seen = counts > 0
    if not seen.any():
        return 0.0
    return round(100 * float(np.mean(2 * matrix.diagonal()[seen] / counts[seen])), 2)


def share(part: int, whole: int) -> float | None:
    return round(100 * part / whole, 2) if whole else None


def dev_texts(run: Run, dev: str | None) -> dict[str, str]:
    """id -> text of the dev set, which may be a part of the training file; empty where that is not found."""
    path = Path(dev) if dev else find_file(run, run.setting("dev") or run.setting("train"))
    if path is None:
        return {}
    pair = run.setting("pair_column")
    try:
        found = read_texts(path, run.setting("text_column"), pair_column=pair)
    except UserError:
        if dev:
            raise
        return {}
    texts = dict(zip(found.ids, found.texts, strict=True))
    if found.pairs:
        for id, second in zip(found.ids, found.pairs, strict=True):
            texts[id] += f"  ·  {second}"
    return texts
