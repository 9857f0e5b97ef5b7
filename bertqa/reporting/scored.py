"""Score a run's predictions against the data, and prepare what the page lists: questions, or texts and classes."""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from bertqa.data.examples import Example
from bertqa.data.labelled_texts import read_texts
from bertqa.errors import UserError
from bertqa.qa import metrics
from bertqa.qa.thresholds import NO_SPAN_ODDS
from bertqa.reporting.analysis import KINDS, kind_of
from bertqa.reporting.run_folder import Run, find_file


@dataclass
class Scored:
    """A run's scored predictions, Q questions."""

    texts: list[str | None]  # None: missing
    exact: np.ndarray  # (Q,)
    f1: np.ndarray  # (Q,)
    spans: list[tuple[int, int] | None]  # characters of each prediction in its context, if known
    kinds: list[str]  # keys of analysis.KINDS


def score(run: Run, examples: list[Example]) -> Scored:
    """Score predictions.json, which was written at the tuned threshold. Missing predictions count as wrong."""
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
    """Return the place of a prediction in the context, (start, end), if the n-best list has it and the text is there."""
    if not text:
        return None
    # Not example.context.find(text): the text may occur several times.
    for entry in run.nbest.get(example.id, ()):
        start = entry["start"]
        end = entry["end"]
        if entry["text"] == text and example.context[start:end] == text:
            return start, end
    return None


def count_windows(run: Run, examples: list[Example]) -> np.ndarray | None:
    """Return (Q,) the number of windows of each question, cut as in the run; None without its tokenizer or settings."""
    # Here, because importing tokenizers takes longer than a small report.
    from bertqa.data.tokenizer import WordPiece
    from bertqa.data.windows import build_windows

    # From the model's qa.json: the run's settings may be None, a choice that training made.
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


# The question browser: contexts only once, and columns of numbers, to keep the page small

RUNNERS_UP = 3
"""Spans shown below each prediction."""


def utf16(text: str) -> Callable[[int], int]:
    """Return a function from Python's character offsets in this text to JavaScript's.

    JavaScript counts characters beyond U+FFFF as two: the b of "a🐼b" is at 2 in Python, at 3 in JavaScript.
    """
    wide = []
    if max(text, default="") > "\uffff":
        wide = [i for i, character in enumerate(text) if character > "\uffff"]
    return lambda offset: offset + bisect_left(wide, offset)


def browser(examples: list[Example]) -> dict:
    """Return questions and accepted answers for the page.

    `gold` has start, end, start, end, ... of the answers in the context, `lost` the texts of those without a place.
    """
    contexts: dict[str, int] = {}
    titles: list[str] = []
    rows: list[int] = []
    gold: list[list[int]] = []
    lost: dict[int, list[str]] = defaultdict(list)
    for number, example in enumerate(examples):
        row = contexts.setdefault(example.context, len(contexts))
        rows.append(row)
        if row == len(titles):  # a new context
            titles.append(example.title)
        at = utf16(example.context)
        spans: dict[tuple[int, int], None] = {}  # a set that keeps its order
        for text, start in zip(example.answer_texts, example.answer_starts, strict=True):
            if start >= 0:
                spans[at(start), at(start + len(text))] = None
            else:
                lost[number].append(text)
        gold.append(list(chain.from_iterable(spans)))
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
    """Return one run's answers for the page.

    `answer` is [start, end], "" for no answer, None for a missing prediction, or the text if its place is not known.
    `best` has start, end and per mille of the best entries of the n-best list; 0, 0 is the null answer.
    """
    names = list(KINDS)
    result = {"kind": [], "f1": [], "odds": [], "answer": [], "best": []}
    for row, example in enumerate(examples):
        at = utf16(example.context)
        span = scored.spans[row]
        answer = scored.texts[row]
        if span:
            answer = [at(span[0]), at(span[1])]
        odds = run.odds.get(example.id, NO_SPAN_ODDS)
        result["kind"].append(names.index(scored.kinds[row]))
        result["f1"].append(round(100 * float(scored.f1[row])))
        result["odds"].append(round(odds, 2) if odds < NO_SPAN_ODDS else None)
        result["answer"].append(answer)
        best = []
        for entry in run.nbest.get(example.id, ())[: RUNNERS_UP + 1]:
            per_mille = round(1000 * entry["probability"])
            best += [at(entry["start"]), at(entry["end"]), per_mille]
        result["best"].append(best)
    return result


# Texts and classes, C of them

MOST_ERRORS = 500
"""Wrongly classified texts that the page lists, the most confident predictions first."""
LONGEST = 600
"""Characters shown of a text."""


def class_report(run: Run, dev: str | None) -> dict:
    """Return what the page shows of a classifier on its dev texts: confusion matrix, scores, wrong predictions."""
    labelled = [record for record in run.classified if record.get("gold") is not None]
    labels = run.model.get("labels") or sorted({str(record["gold"]) for record in labelled})
    class_of = {label: number for number, label in enumerate(labels)}
    matrix = np.zeros((len(labels), len(labels)), int)  # (C, C) texts by right and predicted class
    errors = []
    for record in labelled:
        gold = class_of.get(str(record["gold"]))
        label = class_of.get(str(record.get("label")))
        if gold is None or label is None:
            continue  # a label of another model, or of a file that was edited
        matrix[gold, label] += 1
        if gold != label:
            errors.append(record)
    errors.sort(key=surest, reverse=True)
    texts = dev_texts(run, dev)
    shown = []
    for record in errors[:MOST_ERRORS]:
        id = str(record.get("id"))
        shown.append(
            {
                "id": id,
                "gold": str(record["gold"]),
                "label": str(record["label"]),
                "probability": round(surest(record), 4),
                "text": texts.get(id, "")[:LONGEST],
            }
        )
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


def surest(record: dict) -> float:
    """Return the highest probability of a prediction."""
    return float(max(record["probabilities"].values(), default=0.0))


def class_rows(matrix: np.ndarray) -> list[dict]:
    """Return n, precision, recall and F1 in percent of each class; None where they are not defined."""
    rows = []
    for number in range(len(matrix)):
        right = int(matrix[number, number])
        actual = int(matrix[number].sum())
        predicted = int(matrix[:, number].sum())
        rows.append(
            {
                "n": actual,
                "precision": share(right, predicted),
                "recall": share(right, actual),
                "f1": share(2 * right, actual + predicted),
            }
        )
    return rows


def macro_f1(matrix: np.ndarray) -> float:
    """Return the mean F1 in percent of the classes that occur, in the data or among the predictions."""
    counts = matrix.sum(0) + matrix.sum(1)
    seen = counts > 0
    if not seen.any():
        return 0.0
    return round(100 * float(np.mean(2 * matrix.diagonal()[seen] / counts[seen])), 2)


def share(part: int, whole: int) -> float | None:
    """Return a part in percent; None of nothing."""
    return round(100 * part / whole, 2) if whole else None


def dev_texts(run: Run, dev: str | None) -> dict[str, str]:
    """Return the dev texts by id, which may be a part of the training file; empty if the file is not found."""
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
