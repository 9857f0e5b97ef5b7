"""Points for the page's plots: of training, over the null odds, and of how sure a run is.

Q questions; `exact` and `f1` are (Q,) fractions, `odds` (Q,) null odds. A curve is points, or a sentence why there are none.
"""

from collections.abc import Sequence

import numpy as np

from bertqa.data.examples import Example
from bertqa.qa import metrics
from bertqa.qa.metrics import Scores
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


# Few points for many


def thin(most: int, *columns: Sequence[float]) -> list[list[float]]:
    """At most `most` points of each column: means over neighbours, so that noise shrinks and no trend is lost.

    thin(2, [1, 2, 3, 4]) is [[1.5, 3.5]].
    """
    n = len(columns[0])
    if n == 0:
        return [[] for _ in columns]
    # of 5 points, 2 wanted: edges 0, 2, 5, and the means of rows 0:2 and 2:5
    edges = np.unique(np.linspace(0, n, min(n, most) + 1).astype(int))
    thinned = []
    for column in columns:
        means = np.add.reduceat(np.asarray(column, float), edges[:-1]) / np.diff(edges)
        thinned.append([_short(mean) for mean in means])
    return thinned


def pick(most: int, *columns: Sequence[float]) -> list[list[float]]:
    """At most `most` of the points, evenly spaced, both ends among them: for curves whose every point is exact."""
    n = len(columns[0])
    rows = np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(int))  # no row twice
    return [[_short(value) for value in np.asarray(column, float)[rows]] for column in columns]


def _short(value: float) -> float:
    """Six significant digits: more cannot be seen, and the page stays small."""
    return float(f"{float(value):.6g}")


# Training


def training_curves(run: Run) -> dict:
    """name -> [steps, values], of training thinned; `dev` has two scores, by their label."""
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


# Whether there is an answer


def answer_or_not(run: Run, examples: list[Example], has_answer: np.ndarray) -> dict:
    """Curves over the null odds: pr, sweep, histogram, reliability.

    `at_zero` has EM and F1 at threshold 0, for a run whose threshold was tuned.
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
    # what the model would score had nobody tuned a threshold on these questions
    if run.qa.get("null_threshold") is not None:
        exact_at_zero = np.where(odds > 0, ~has_answer, exact)
        f1_at_zero = np.where(odds > 0, ~has_answer, f1)
        result["at_zero"] = [100 * float(exact_at_zero.mean()), 100 * float(f1_at_zero.mean())]
    # Platt's two numbers, fitted when the threshold was tuned (thresholds.fit_probability)
    scale = run.qa.get("no_answer_scale")
    bias = run.qa.get("no_answer_bias")
    result["reliability"] = "best/qa.json holds no fitted probability."
    if is_number(scale) and is_number(bias):
        found = odds < NO_SPAN_ODDS
        result["reliability"] = reliability(odds[found], has_answer[found], scale, bias)
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
        curves[name] = {"points": pick(MOST, recalls, precisions), "area": round(area, 2)}
    return curves


def sweep(odds: np.ndarray, exact: np.ndarray, f1: np.ndarray, has_answer: np.ndarray) -> dict:
    """EM and F1 of the raw best answers at every threshold; questions without any span stay unanswered throughout."""
    # NO_SPAN_ODDS is far beyond all others, and would make the curve a point at the left
    highest = odds[odds < NO_SPAN_ODDS].max(initial=0.0)
    odds = np.where(odds < NO_SPAN_ODDS, odds, highest)
    found = tune_threshold(odds, exact, f1, has_answer)
    threshold, exact, f1 = pick(MOST, found.thresholds, found.exact, found.f1)
    best = [_short(found.best_f1_thresh), _short(found.best_f1)]
    return {"threshold": threshold, "exact": exact, "f1": f1, "best": best}


def odds_histogram(odds: np.ndarray, has_answer: np.ndarray, bins: int = 30) -> dict:
    """Questions with and without an answer per bin of null odds; the last bin takes those without any span."""
    real = odds[odds < NO_SPAN_ODDS]
    low = float(real.min()) if len(real) else 0.0
    high = float(real.max()) if len(real) else 1.0
    if high <= low:  # one question, or all alike: a bin needs a width
        high = low + 1.0
    edges = np.linspace(low, high, bins + 1)
    inside = np.clip(odds, low, high)
    has, _ = np.histogram(inside[has_answer], edges)
    none, _ = np.histogram(inside[~has_answer], edges)
    return {"edges": [_short(edge) for edge in edges], "has": has.tolist(), "none": none.tolist()}


def reliability(odds: np.ndarray, has_answer: np.ndarray, scale: float, bias: float) -> dict:
    """Promised and actual share of questions without an answer, [mean probability, share, n] per tenth that is used."""
    probability = no_answer_probability(odds, scale, bias)
    place = np.minimum((probability * 10).astype(int), 9)  # 1.0 falls into the last
    points = []
    for index in np.unique(place):
        rows = place == index
        promised = _short(probability[rows].mean())
        actual = _short((~has_answer)[rows].mean())
        points.append([promised, actual, int(rows.sum())])
    return {"points": points, "error": _short(calibration_error(probability, has_answer))}


# Whether the answer is right


def risk(run: Run, examples: list[Example], exact: np.ndarray) -> dict | str:
    """The curve of risk and coverage of the run's answers."""
    lacking = sum(example.id not in run.confidence for example in examples)
    if lacking:
        return f"confidence.json lacks {lacking:,} of {len(examples):,} questions."
    sure = np.array([run.confidence[example.id] for example in examples])
    return risk_and_coverage(sure, exact)


def risk_and_coverage(sure: np.ndarray, exact: np.ndarray) -> dict:
    """How often the surest answers are wrong: coverage and risk of the surest one, the two surest, ... all questions.

    Answers of confidence 0.9, 0.8 and 0.7, of which the second is wrong, give coverage 1/3, 2/3, 1 and risk 0, 1/2, 1/3,
    which is 0.28 on average, the area. `error` is the expected calibration error of the confidence.
    """
    order = np.argsort(-sure, kind="stable")
    answered = np.arange(1, len(order) + 1)
    risk = np.cumsum(1.0 - exact[order]) / answered
    return {
        "points": pick(MOST, answered / len(order), risk),
        "area": _short(risk.mean()),
        "error": _short(gap_of_equal_bins(sure, exact)),
    }
