"""What predictions tell beyond their score: tables with intervals, runs compared, points for plots.

Q questions; `exact` and `f1` are (Q,) fractions after the no-answer threshold, `odds` (Q,) null
odds. Scores that leave this file are percentages.
"""

import math
import statistics
from collections.abc import Sequence

import numpy as np

from bertqa.qa.thresholds import (
    NO_SPAN_ODDS,
    bootstrap,
    calibration_error,
    gap_of_equal_bins,
    no_answer_probability,
    tune_threshold,
)
from bertqa.reporting.kinds import percent

System = tuple[np.ndarray, np.ndarray]
"""exact and f1 of one run, (Q,) each."""


# Tables


def score_table(has_answer: np.ndarray, systems: Sequence[System]) -> list[dict]:
    """Rows for all questions, those with and those without an answer: n, exact and f1 as [mean,
    low, high] per system.

    Intervals are 95 % bootstrap intervals over questions. With two systems `difference` holds that
    of the second minus the first, of which the draws are paired by question.
    """
    kinds = [("With an answer", has_answer), ("Without an answer", ~has_answer)]
    rows = [score_row("All questions", np.ones(len(has_answer), bool), systems)]
    if has_answer.any() and not has_answer.all():
        rows += [score_row(label, inside, systems) for label, inside in kinds]
    return rows


def score_row(label: str, inside: np.ndarray, systems: Sequence[System]) -> dict:
    """One row: the scores of the questions that are `inside`, (Q,) bool."""
    columns = [np.asarray(values, float)[inside] for system in systems for values in system]
    if len(systems) == 2:
        first_exact, first_f1, second_exact, second_f1 = columns
        columns += [second_exact - first_exact, second_f1 - first_f1]
    # Differences are columns like the others, so that each draw of questions is that of both systems.
    columns = np.stack(columns, 1)  # (q, 2 x systems), exact and f1 of each, then the differences
    means = columns.mean(0)
    cells = [
        [percent(mean), percent(low), percent(high)]
        for mean, (low, high) in zip(means, bootstrap(columns), strict=True)
    ]
    # of two systems: exact, f1, exact, f1, and the two differences
    row = {"label": label, "n": int(inside.sum())}
    row["exact"] = cells[0 : 2 * len(systems) : 2]
    row["f1"] = cells[1 : 2 * len(systems) : 2]
    if len(systems) == 2:
        row["difference"] = {"exact": cells[4], "f1": cells[5]}
    return row


def family_rows(families: dict[str, list[int]], systems: Sequence[System]) -> list[dict]:
    """Mean and standard deviation over the runs of each recipe, which differ in their seeds alone.

    Args:
        families: name of a recipe -> rows of its runs in `systems`.
        systems: for each run two scores as fractions, (Q,) or of the whole.

    Returns:
        name, runs, and exact and f1 as [mean, deviation, lowest, highest]; the deviation is None
        for a single run.
    """
    rows = []
    for name, members in families.items():
        row = {"name": name, "runs": members}
        for part, column in enumerate(("exact", "f1")):
            scores = [percent(np.mean(systems[member][part])) for member in members]
            deviation = statistics.stdev(scores) if len(scores) > 1 else None
            row[column] = [statistics.mean(scores), deviation, min(scores), max(scores)]
        rows.append(row)
    return rows


# Two runs


def mcnemar(only_first: int, only_second: int) -> tuple[float, str]:
    """p value and method for "both are right equally often", from the questions that only one of
    them gets right.

    Exact (binomial) below 25 such questions, else chi-squared with continuity correction (McNemar
    1947; Edwards 1948).
    """
    n = only_first + only_second
    if n < 25:
        tail = sum(math.comb(n, i) for i in range(min(only_first, only_second) + 1)) / 2**n
        return min(1.0, 2 * tail), "exact"
    chi2 = max(0, abs(only_first - only_second) - 1) ** 2 / n
    return math.erfc(math.sqrt(chi2 / 2)), "χ² with continuity correction"


def verdict(row: dict, exact: Sequence[np.ndarray], names: Sequence[str]) -> dict:
    """Whether the second system differs from the first: `row` is the first of `score_table`,
    `exact` two times (Q,).

    `text` judges F1 by its paired bootstrap interval, `detail` exact match by McNemar's test.
    """
    gap, low, high = row["difference"]["f1"]
    better = None
    if low > 0:
        better = 1
        text = f"{names[1]} is better by {gap:.2f} F1 [{low:.2f}, {high:.2f}]"
    elif high < 0:
        better = 0
        text = f"{names[0]} is better by {-gap:.2f} F1 [{-high:.2f}, {-low:.2f}]"
    else:
        text = (
            f"No significant difference: {names[1]} − {names[0]} = {_signed(gap)} F1 "
            f"[{_signed(low)}, {_signed(high)}]"
        )

    first = np.asarray(exact[0]) > 0
    second = np.asarray(exact[1]) > 0
    only_first = int((first & ~second).sum())
    only_second = int((second & ~first).sum())
    p, method = mcnemar(only_first, only_second)
    shown = "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
    judged = "significant" if p < 0.05 else "not significant"
    detail = (
        f"Exact match: {only_first:,} questions only {names[0]} gets right, {only_second:,} only "
        f"{names[1]}; that is {judged} (McNemar's test, {method}: {shown})."
    )
    return {
        "text": text,
        "detail": detail,
        "better": better,
        "p": p,
        "only": [only_first, only_second],
    }


def _signed(points: float) -> str:
    return f"{points:+.2f}".replace("-", "−")


# Points for plots


def thin(most: int, *columns: Sequence[float]) -> list[list[float]]:
    """At most `most` points of each column: means over neighbours, so that noise shrinks and no
    trend is lost.

    thin(2, [1, 2, 3, 4]) is [[1.5, 3.5]].
    """
    n = len(columns[0])
    if n == 0:
        return [[] for _ in columns]
    edges = np.unique(np.linspace(0, n, min(n, most) + 1).astype(int))
    thinned = []
    for column in columns:
        means = np.add.reduceat(np.asarray(column, float), edges[:-1]) / np.diff(edges)
        thinned.append([_short(mean) for mean in means])
    return thinned


def pick(most: int, *columns: Sequence[float]) -> list[list[float]]:
    """At most `most` of the points, evenly spaced, both ends among them: for curves whose every point is exact."""
    n = len(columns[0])
    rows = np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(int))
    return [[_short(value) for value in np.asarray(column, float)[rows]] for column in columns]


def sweep(odds: np.ndarray, exact: np.ndarray, f1: np.ndarray, has_answer: np.ndarray) -> dict:
    """EM and F1 of the raw best answers at every threshold; questions without any span stay unanswered throughout."""
    # NO_SPAN_ODDS is far beyond all others, and would make the curve a point at the left
    highest = odds[odds < NO_SPAN_ODDS].max(initial=0.0)
    odds = np.where(odds < NO_SPAN_ODDS, odds, highest)
    found = tune_threshold(odds, exact, f1, has_answer)
    threshold, exact, f1 = pick(300, found.thresholds, found.exact, found.f1)
    return {
        "threshold": threshold,
        "exact": exact,
        "f1": f1,
        "best": [_short(found.best_f1_thresh), _short(found.best_f1)],
    }


def odds_histogram(odds: np.ndarray, has_answer: np.ndarray, bins: int = 30) -> dict:
    """Questions with and without an answer per bin of null odds; the last bin takes those without any span."""
    real = odds[odds < NO_SPAN_ODDS]
    low = float(real.min()) if len(real) else 0.0
    high = float(real.max()) if len(real) else 1.0
    if high <= low:  # one question, or all alike: a bin needs a width
        high = low + 1.0
    inside = np.clip(odds, low, high)

    def counts(rows: np.ndarray) -> list[int]:
        return np.histogram(inside[rows], bins=bins, range=(low, high))[0].tolist()

    return {
        "edges": [_short(edge) for edge in np.linspace(low, high, bins + 1)],
        "has": counts(has_answer),
        "none": counts(~has_answer),
    }


def reliability(
    odds: np.ndarray, has_answer: np.ndarray, scale: float, bias: float, bins: int = 10
) -> dict:
    """Promised and actual share of questions without an answer, [mean probability, share, n] per bin that is used."""
    probability = no_answer_probability(odds, scale, bias)
    place = np.minimum((probability * bins).astype(int), bins - 1)
    points = []
    for index in np.unique(place):
        rows = place == index
        promised = _short(probability[rows].mean())
        actual = _short((~has_answer)[rows].mean())
        points.append([promised, actual, int(rows.sum())])
    return {"points": points, "error": _short(calibration_error(probability, has_answer))}


def risk_and_coverage(sure: np.ndarray, exact: np.ndarray) -> dict:
    """How often the surest answers are wrong: coverage and risk of the surest one, the two surest, ... all questions.

    Answers of confidence 0.9, 0.8 and 0.7, of which the second is wrong, give coverage 1/3, 2/3, 1 and risk 0, 1/2, 1/3,
    which is 0.28 on average, the area. `error` is the expected calibration error of the confidence.
    """
    order = np.argsort(-sure, kind="stable")
    answered = np.arange(1, len(order) + 1)
    risk = np.cumsum(1.0 - exact[order]) / answered
    return {
        "points": pick(300, answered / len(order), risk),
        "area": _short(risk.mean()),
        "error": _short(gap_of_equal_bins(sure, exact)),
    }


def _short(value: float) -> float:
    """Six significant digits: more cannot be seen, and the page stays small."""
    return float(f"{float(value):.6g}")
