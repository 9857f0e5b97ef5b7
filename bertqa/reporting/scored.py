"""A run's predictions against the questions: scores, places in the text, and curves over the null
odds.
"""

from dataclasses import dataclass

import numpy as np

from bertqa.data.examples import Example
from bertqa.errors import UserError
from bertqa.qa import metrics
from bertqa.qa.metrics import Scores
from bertqa.qa.thresholds import NO_SPAN_ODDS
from bertqa.reporting import analysis
from bertqa.reporting.kinds import kind_of
from bertqa.reporting.run_folder import Run, is_number


@dataclass
class Scored:
    """A run's predictions against the examples, a row per question."""

    texts: list[str | None]
    exact: np.ndarray
    f1: np.ndarray
    spans: list[tuple[int, int] | None]
    kinds: list[str]


def score(run: Run, examples: list[Example]) -> Scored:
    """Score predictions.json, which is written at the tuned threshold; a question it lacks counts
    as wrong.
    """
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
    scale = run.qa.get("no_answer_scale")
    bias = run.qa.get("no_answer_bias")
    result["reliability"] = "best/qa.json holds no fitted probability."
    if is_number(scale) and is_number(bias):
        found = odds < NO_SPAN_ODDS
        result["reliability"] = analysis.reliability(odds[found], has_answer[found], scale, bias)
    return result


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
    """(Q,) windows of each question as the run cut them; None where its tokenizer or settings are
    missing.
    """
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
