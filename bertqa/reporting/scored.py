"""A run's predictions beside the data: what it got right, and what the page lists of single questions, or of texts and classes."""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bertqa.data.examples import Example
from bertqa.data.texts import read_texts
from bertqa.errors import UserError
from bertqa.qa import metrics
from bertqa.qa.thresholds import NO_SPAN_ODDS
from bertqa.reporting.analysis import KINDS, kind_of
from bertqa.reporting.run_folder import Run, find_file


@dataclass
class Scored:
    """A run's predictions against the examples, a row per question."""

    texts: list[str | None]
    exact: np.ndarray
    f1: np.ndarray
    spans: list[tuple[int, int] | None]
    kinds: list[str]


def score(run: Run, examples: list[Example]) -> Scored:
    """Score predictions.json, which is written at the tuned threshold; a question it lacks counts as wrong."""
    scores = metrics.score_answers(examples, run.predictions)
    exact = np.array(scores.exact, float)
    f1 = np.array(scores.f1, float)
    spans = []
    kinds = []
    for row, example in enumerate(examples):
        text = scores.texts[row]
        span = place(run, example, text)
        spans.append(span)
        kinds.append(kind_of(example, text, scores.exact[row], scores.f1[row], span))
    return Scored(scores.texts, exact, f1, spans, kinds)


def place(run: Run, example: Example, text: str | None) -> tuple[int, int] | None:
    """Where a prediction stands in the context, if the n-best list says so, and truly."""
    if not text:
        return None
    # not example.context.find(text): the text may stand there several times
    for entry in run.nbest.get(example.id, ()):
        start, end = entry["start"], entry["end"]
        if entry["text"] == text and example.context[start:end] == text:
            return start, end
    return None


def count_windows(run: Run, examples: list[Example]) -> np.ndarray | None:
    """(Q,) windows of each question as the run cut them; None where its tokenizer or settings are missing."""
    # not at the top: tokenizers takes longer to import than a small report takes
    from bertqa.data.tokenizer import WordPiece
    from bertqa.data.windows import build_windows

    # by the model's qa.json and not the run's settings: these may leave a choice to training
    options = {}
    for name in ("max_length", "overlap", "step", "max_question"):
        if run.qa.get(name) is not None:
            options[name] = run.qa[name]
    if run.weights is None:
        return None
    try:
        windows = build_windows(examples, WordPiece.load(run.weights), **options)
    except (UserError, TypeError, ImportError):
        return None
    return np.bincount(windows.question, minlength=len(examples))


# The question browser: columns of numbers, each context once, so that the page stays small

RUNNERS_UP = 3
"""Spans shown beneath each prediction."""


def utf16(text: str) -> Callable[[int], int]:
    """From Python's character offsets to JavaScript's, which counts characters beyond U+FFFF twice: in "a🐼b" the b is at 2,
    and at 3 in JavaScript.
    """
    wide = []
    if max(text, default="") > "\uffff":
        wide = [i for i, character in enumerate(text) if character > "\uffff"]
    return lambda offset: offset + bisect_left(wide, offset)


def browser(examples: list[Example]) -> dict:
    """Questions and accepted answers: `gold` is start, end, start, end, ... in the context, `lost` what has no place."""
    contexts: dict[str, int] = {}
    titles: list[str] = []
    rows: list[int] = []
    gold: list[list[int]] = []
    lost: dict[int, list[str]] = {}
    for number, example in enumerate(examples):
        row = contexts.setdefault(example.context, len(contexts))
        rows.append(row)
        if row == len(titles):  # a context that was not there before
            titles.append(example.title)
        at = utf16(example.context)
        ends: dict[tuple[int, int], None] = {}  # a set that keeps its order
        for text, start in zip(example.answer_texts, example.answer_starts, strict=True):
            if start >= 0:
                ends[at(start), at(start + len(text))] = None
            else:
                lost.setdefault(number, []).append(text)
        gold.append([side for span in ends for side in span])
    return {
        "contexts": list(contexts),
        "titles": titles,
        "context": rows,
        "id": [example.id for example in examples],
        "question": [example.question for example in examples],
        "gold": gold,
        "lost": lost,
    }


def columns(run: Run, scored: Scored, examples: list[Example]) -> dict:
    """One run's answers: `answer` is [start, end], "" for none, null for missing, or a text that has no place.

    `best` is start, end, per mille of the best entries of the n-best list, the null answer as 0, 0.
    """
    names = list(KINDS)
    result = {"kind": [], "f1": [], "odds": [], "answer": [], "best": []}
    for row, example in enumerate(examples):
        at = utf16(example.context)
        span = scored.spans[row]
        answer = scored.texts[row]
        if span:
            answer = [at(span[0]), at(span[1])]
        odds = run.odds.get(
            example.id, NO_SPAN_ODDS
        )  # which stands for a question without any span
        shown = round(odds, 2) if odds < NO_SPAN_ODDS else None
        result["kind"].append(names.index(scored.kinds[row]))
        result["f1"].append(round(100 * float(scored.f1[row])))
        result["odds"].append(shown)
        result["answer"].append(answer)
        best = []
        for entry in run.nbest.get(example.id, ())[: RUNNERS_UP + 1]:
            per_mille = round(1000 * entry["probability"])
            best += [at(entry["start"]), at(entry["end"]), per_mille]
        result["best"].append(best)
    return result


# Texts and classes, C of them

MOST_ERRORS = 500
"""Texts that the page lists, those first of which the model was surest."""
LONGEST = 600
"""Characters shown of a text."""


def class_report(run: Run, dev: str | None) -> dict:
    """What the page shows of a classifier's predictions on its dev texts: a confusion matrix, scores, the errors."""
    labelled = [record for record in run.classified if record.get("gold") is not None]
    labels = run.model.get("labels") or sorted({str(record["gold"]) for record in labelled})
    place = {label: row for row, label in enumerate(labels)}
    matrix = np.zeros(
        (len(labels), len(labels)), int
    )  # (C, C) texts: the right class, the predicted
    errors = []
    texts = dev_texts(run, dev)
    for record in labelled:
        gold, label = str(record["gold"]), str(record.get("label"))
        # else labels of another model's run, or a file that was edited
        if gold not in place or label not in place:
            continue
        matrix[place[gold], place[label]] += 1
        if gold != label:
            id = str(record.get("id"))
            errors.append(
                {
                    "id": id,
                    "gold": gold,
                    "label": label,
                    "probability": float(max(record["probabilities"].values(), default=0.0)),
                    "text": texts.get(id, "")[:LONGEST],
                }
            )
    errors.sort(key=lambda error: error["probability"], reverse=True)
    shown = errors[:MOST_ERRORS]
    for error in shown:
        error["probability"] = round(error["probability"], 4)
    total = int(matrix.sum())
    return {
        "labels": labels,
        "matrix": matrix.tolist(),
        "rows": class_rows(matrix),
        "accuracy": share(int(matrix.trace()), total) or 0.0,
        "macro_f1": macro_f1(matrix),
        "total": total,
        "wrong": len(errors),
        "errors": shown,
    }


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
