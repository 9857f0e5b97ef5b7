"""A run's predictions against the questions: scores, places in the text, curves over the null odds,
and the columns of the question browser.
"""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bertqa.data.examples import Example
from bertqa.errors import UserError
from bertqa.qa import metrics
from bertqa.qa.metrics import Scores
from bertqa.qa.thresholds import NO_SPAN_ODDS
from bertqa.reporting import analysis
from bertqa.reporting.kinds import KINDS, kind_of
from bertqa.reporting.run_folder import Run, is_number

RUNNERS_UP = 3
"""Spans shown beneath each prediction."""


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
    spans = []
    kinds = []
    for example, text, exact, f1 in zip(
        examples, scores.texts, scores.exact, scores.f1, strict=True
    ):
        span = place(run, example, text)
        spans.append(span)
        kinds.append(kind_of(example, text, exact, f1, span))
    return Scored(
        scores.texts, np.array(scores.exact, float), np.array(scores.f1, float), spans, kinds
    )


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


def answer_or_not(run: Run, examples: list[Example], has_answer: np.ndarray) -> dict:
    """Curves over the null odds: pr, sweep, histogram, reliability. Each is points, or a sentence
    why there are none.

    `at_zero` has EM and F1 at threshold 0, for a run whose threshold was tuned.
    """
    best = best_texts(run)
    absent = [
        example.id for example in examples if example.id not in best or example.id not in run.odds
    ]
    if absent:
        why = f"null_odds.json and nbest_predictions.json lack {len(absent):,} of {len(examples):,} questions."
        return dict.fromkeys(("pr", "sweep", "histogram", "reliability"), why)
    raw = metrics.score_answers(examples, best)
    odds = np.array([run.odds[id] for id in raw.ids], float)
    exact = np.array(raw.exact, float)
    f1 = np.array(raw.f1, float)
    result = {
        "histogram": analysis.odds_histogram(odds, has_answer),
        "pr": precision_and_recall(run, raw, odds),
    }
    if has_answer.all():
        why = "Every question has an answer: there is nothing to tune."
        return {**result, "sweep": why, "reliability": why}

    result["sweep"] = analysis.sweep(odds, exact, f1, has_answer)
    # what the model would score had nobody tuned a threshold on these questions
    if run.qa.get("null_threshold") is not None:
        silent = odds > 0
        result["at_zero"] = [
            100 * float(np.where(silent, ~has_answer, values).mean()) for values in (exact, f1)
        ]
    # Platt's two numbers, fitted when the threshold was tuned (thresholds.fit_probability)
    scale = run.qa.get("no_answer_scale")
    bias = run.qa.get("no_answer_bias")
    result["reliability"] = "best/qa.json holds no fitted probability."
    if is_number(scale) and is_number(bias):
        found = odds < NO_SPAN_ODDS
        result["reliability"] = analysis.reliability(odds[found], has_answer[found], scale, bias)
    return result


def risk(run: Run, examples: list[Example], exact: np.ndarray) -> dict | str:
    """The curve of risk and coverage of the run's answers, `exact` (Q,), or why there is none."""
    lacking = sum(example.id not in run.confidence for example in examples)
    if lacking:
        return f"confidence.json lacks {lacking:,} of {len(examples):,} questions."
    sure = np.array([run.confidence[example.id] for example in examples])
    return analysis.risk_and_coverage(sure, exact)


def best_texts(run: Run) -> dict[str, str]:
    """The best span of each question, whatever the threshold says; "" where there is none."""
    best = {}
    for id, entries in run.nbest.items():
        best[id] = next((entry["text"] for entry in entries if entry["text"]), "")
    return best


def precision_and_recall(run: Run, raw: Scores, odds: np.ndarray) -> dict | str:
    """The two curves, of exact match and of F1."""
    if not any(raw.has_answer):
        return "No question has an answer."
    order = metrics.ranking(raw, run.odds)
    curves = {}
    for name, values in (("exact", raw.exact), ("f1", raw.f1)):
        precisions, recalls, area = metrics.precision_recall(values, raw.has_answer, odds, order)
        points = analysis.pick(300, recalls, precisions)
        curves[name] = {"points": points, "area": round(area, 2)}
    return curves


def count_windows(run: Run, examples: list[Example]) -> np.ndarray | None:
    """(Q,) windows of each question as the run cut them; None where its tokenizer or settings are missing."""
    # not at the top: tokenizers takes longer to import than a small report takes
    from bertqa.data.tokenizer import WordPiece
    from bertqa.data.windows import build_windows

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


def utf16(text: str) -> Callable[[int], int]:
    """From Python's character offsets to JavaScript's, which counts characters beyond U+FFFF twice: in "a🐼b" the b is at 2,
    and at 3 in JavaScript.
    """
    wide = []
    if max(text, default="") > "\uffff":
        wide = [i for i, character in enumerate(text) if character > "\uffff"]
    return lambda offset: offset + bisect_left(wide, offset)


def browser(examples: list[Example]) -> dict:
    """Questions and accepted answers: `gold` is start, end, start, end, ... in the context, `lost`
    what has no place.
    """
    contexts: dict[str, int] = {}
    titles: list[str] = []
    rows: list[int] = []
    gold: list[list[int]] = []
    lost: dict[int, list[str]] = {}
    for number, example in enumerate(examples):
        row = contexts.setdefault(example.context, len(contexts))
        rows.append(row)
        if row == len(titles):
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
    """One run's answers: `answer` is [start, end], "" for none, null for missing, or a text that
    has no place.

    `best` is start, end, per mille of the best entries of the n-best list, the null answer as 0, 0.
    """
    names = list(KINDS)
    result = {"kind": [], "f1": [], "odds": [], "answer": [], "best": []}
    for row, example in enumerate(examples):
        at = utf16(example.context)
        span = scored.spans[row]
        odds = run.odds.get(example.id)
        result["kind"].append(names.index(scored.kinds[row]))
        result["f1"].append(round(100 * float(scored.f1[row])))
        result["odds"].append(None if odds is None or odds >= NO_SPAN_ODDS else round(odds, 2))
        result["answer"].append([at(span[0]), at(span[1])] if span else scored.texts[row])
        best = []
        for entry in run.nbest.get(example.id, ())[: RUNNERS_UP + 1]:
            share = round(1000 * entry["probability"])
            best += [at(entry["start"]), at(entry["end"]), share]
        result["best"].append(best)
    return result
