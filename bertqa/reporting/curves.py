"""Compute the curves of the page: training, no-answer threshold, calibration, and risk over coverage.

Q questions; `exact` and `f1` are (Q,) fractions, `odds` (Q,) null odds. In place of a curve there may be a sentence
that says why there is none.
"""

from collections.abc import Sequence

import numpy as np

from bertqa.data.examples import Example
from bertqa.qa import metrics
from bertqa.qa.thresholds import (
    NO_SPAN_ODDS,
    calibration_error,
    gap_of_equal_bins,
    no_answer_probability,
    tune_threshold,
)
from bertqa.reporting.run_folder import Run, is_number, numbers

MOST = 300
"""Points of a curve; a screen shows no more."""

# Fewer points


def thin(most: int, *columns: Sequence[float]) -> list[list[float]]:
    """Average neighbouring points to at most `most`, which removes noise: thin(2, [1, 2, 3, 4]) is [[1.5, 3.5]]."""
    n = len(columns[0])
    if n == 0:
        return [[] for _ in columns]
    # To make 2 points of 5, the edges are 0, 2, 5: means of rows 0:2 and 2:5.
    edges = np.unique(np.linspace(0, n, min(n, most) + 1).astype(int))
    thinned = []
    for column in columns:
        means = np.add.reduceat(np.asarray(column, float), edges[:-1]) / np.diff(edges)
        thinned.append([_short(mean) for mean in means])
    return thinned


def pick(most: int, *columns: Sequence[float]) -> list[list[float]]:
    """Pick at most `most` evenly spaced points, the first and the last among them: for curves without noise."""
    n = len(columns[0])
    rows = np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(int))  # no row twice
    return [[_short(value) for value in np.asarray(column, float)[rows]] for column in columns]


def _short(value: float) -> float:
    """Round to six significant digits, to keep the page small."""
    return float(f"{float(value):.6g}")


# Training


def training_curves(run: Run) -> dict:
    """Return [steps, values] of each curve by name; "dev" has two scores by their labels."""
    scores = {"F1": "f1", "EM": "exact"}
    if run.classifies:
        scores = {"macro-F1": "macro_f1", "accuracy": "accuracy"}
    steps = run.of("train")
    evaluations = run.of("eval")
    found = {}
    for name in ("loss", "lr", "grad_norm", "windows_per_s"):
        found[name] = thin(400, *numbers(steps, "step", name))
    found["dev_loss"] = numbers(evaluations, "step", "loss")
    found["dev"] = {label: numbers(evaluations, "step", name) for label, name in scores.items()}
    return found


# Null odds


def answer_or_not(run: Run, examples: list[Example], has_answer: np.ndarray) -> dict:
    """Return the curves over null odds: pr (precision and recall), sweep, histogram, reliability.

    With a tuned threshold, `at_zero` has EM and F1 at threshold 0 instead.
    """
    best = best_texts(run)
    known = best.keys() & run.odds.keys()
    lacking = sum(example.id not in known for example in examples)
    if lacking:
        why = f"null_odds.json and nbest_predictions.json lack {lacking:,} of {len(examples):,} questions."
        return dict.fromkeys(("pr", "sweep", "histogram", "reliability"), why)
    raw = metrics.score_answers(examples, best)
    odds = np.array([run.odds[id] for id in raw.ids], float)
    exact = np.array(raw.exact, float)
    f1 = np.array(raw.f1, float)
    result = {
        "histogram": odds_histogram(odds, has_answer),
        "pr": precision_and_recall(run, raw, odds),
    }
    if has_answer.all():
        why = "Every question has an answer: there is nothing to tune."
        return {**result, "sweep": why, "reliability": why}

    result["sweep"] = sweep(odds, exact, f1, has_answer)
    # For comparison: the tuned threshold was fitted to these same questions.
    if run.qa.get("null_threshold") is not None:
        exact_at_zero = np.where(odds > 0, ~has_answer, exact)
        f1_at_zero = np.where(odds > 0, ~has_answer, f1)
        result["at_zero"] = [100 * float(exact_at_zero.mean()), 100 * float(f1_at_zero.mean())]
    # Fitted when the threshold was tuned (thresholds.fit_probability).
    scale = run.qa.get("no_answer_scale")
    bias = run.qa.get("no_answer_bias")
    result["reliability"] = "best/qa.json holds no fitted probability."
    if is_number(scale) and is_number(bias):
        found = odds < NO_SPAN_ODDS
        result["reliability"] = reliability(odds[found], has_answer[found], scale, bias)
    return result


def best_texts(run: Run) -> dict[str, str]:
    """Return the best non-null answer of each question, before any threshold; "" where there is none."""
    best = {}
    for id, entries in run.nbest.items():
        best[id] = next((entry["text"] for entry in entries if entry["text"]), "")
    return best


def precision_and_recall(run: Run, raw: metrics.Scores, odds: np.ndarray) -> dict | str:
    """Return the precision-recall curves of exact match and of F1."""
    if not any(raw.has_answer):
        return "No question has an answer."
    order = metrics.ranking(raw, run.odds)
    curves = {}
    for name, values in (("exact", raw.exact), ("f1", raw.f1)):
        precisions, recalls, area = metrics.precision_recall(values, raw.has_answer, odds, order)
        curves[name] = {"points": pick(MOST, recalls, precisions), "area": round(area, 2)}
    return curves


def sweep(odds: np.ndarray, exact: np.ndarray, f1: np.ndarray, has_answer: np.ndarray) -> dict:
    """Return EM and F1 of the best non-null answers at every threshold."""
    # NO_SPAN_ODDS is so far beyond all others that the curve would be a point at the left.
    highest = odds[odds < NO_SPAN_ODDS].max(initial=0.0)
    odds = np.where(odds < NO_SPAN_ODDS, odds, highest)
    found = tune_threshold(odds, exact, f1, has_answer)
    threshold, exact, f1 = pick(MOST, found.thresholds, found.exact, found.f1)
    best = [_short(found.best_f1_thresh), _short(found.best_f1)]
    return {"threshold": threshold, "exact": exact, "f1": f1, "best": best}


def odds_histogram(odds: np.ndarray, has_answer: np.ndarray, bins: int = 30) -> dict:
    """Count questions with and without an answer per bin of null odds; those without a span are in the last bin."""
    real = odds[odds < NO_SPAN_ODDS]
    low = float(real.min()) if len(real) else 0.0
    high = float(real.max()) if len(real) else 1.0
    if high <= low:  # all odds are equal, but bins need a width
        high = low + 1.0
    edges = np.linspace(low, high, bins + 1)
    inside = np.clip(odds, low, high)
    has, _ = np.histogram(inside[has_answer], edges)
    none, _ = np.histogram(inside[~has_answer], edges)
    return {"edges": [_short(edge) for edge in edges], "has": has.tolist(), "none": none.tolist()}


def reliability(odds: np.ndarray, has_answer: np.ndarray, scale: float, bias: float) -> dict:
    """Return the reliability diagram of the no-answer probability: [mean probability, share without an answer, n].

    There is a point for each tenth of the probability that has questions.
    """
    probability = no_answer_probability(odds, scale, bias)
    bin_of = np.minimum((probability * 10).astype(int), 9)  # 1.0 belongs to the last bin
    points = []
    for index in np.unique(bin_of):
        rows = bin_of == index
        predicted = _short(probability[rows].mean())
        actual = _short((~has_answer)[rows].mean())
        points.append([predicted, actual, int(rows.sum())])
    return {"points": points, "error": _short(calibration_error(probability, has_answer))}


# Confidence


def risk(run: Run, examples: list[Example], exact: np.ndarray) -> dict | str:
    """Return the risk-coverage curve of the run's answers."""
    lacking = sum(example.id not in run.confidence for example in examples)
    if lacking:
        return f"confidence.json lacks {lacking:,} of {len(examples):,} questions."
    sure = np.array([run.confidence[example.id] for example in examples])
    return risk_and_coverage(sure, exact)


def risk_and_coverage(sure: np.ndarray, exact: np.ndarray) -> dict:
    """Return how often the most confident answers are wrong: (coverage, risk) of the first, the first two, ... all.

    Answers of confidence 0.9, 0.8 and 0.7, of which the second is wrong, have coverage 1/3, 2/3, 1 and risk 0, 1/2,
    1/3. `area` is the mean risk, here 0.28; `error` the expected calibration error of the confidence.
    """
    order = np.argsort(-sure, kind="stable")
    answered = np.arange(1, len(order) + 1)
    risk = np.cumsum(1.0 - exact[order]) / answered
    return {
        "points": pick(MOST, answered / len(order), risk),
        "area": _short(risk.mean()),
        "error": _short(gap_of_equal_bins(sure, exact)),
    }
