"""What predictions tell beyond their score: kinds of miss, groups of questions, points for plots, two runs compared.

Q questions; `exact` and `f1` are (Q,) fractions after the no-answer threshold, `odds` (Q,) null odds. Scores that leave
this file are percentages.
"""

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bertqa.data.examples import Example
from bertqa.qa.calibration import calibration_error, no_answer_probability
from bertqa.qa.intervals import bootstrap
from bertqa.qa.thresholds import NO_SPAN_ODDS, tune_threshold

KINDS = {
    "right": ("Right answer", "exactly an accepted answer"),
    "right_silent": ("Rightly silent", "there is no answer, and none was given"),
    "boundary": ("Boundary", "overlaps an accepted answer, but begins or ends elsewhere"),
    "wrong": ("Wrong span", "there is an answer, and it stands elsewhere"),
    "false_answer": ("False answer", "there is no answer, and one was given"),
    "false_silence": ("False no-answer", "there is an answer, and none was given"),
    "missing": ("No prediction", "the predictions do not have this question"),
}
"""Every question is of one kind: name -> label, what it means."""

# ---- one question ----


def kind_of(
    example: Example, text: str | None, exact: float, f1: float, span: tuple[int, int] | None
) -> str:
    """The key of `KINDS` for a prediction; `span` is where it stands in the context, None where that is not known.

    Places decide between boundary and wrong span, for a wrong answer may share a word with the right one by chance.
    Only where a place is missing do the words decide.
    """
    if text is None:
        return "missing"
    if exact:
        return "right" if example.answer_texts else "right_silent"
    if not example.answer_texts:
        return "false_answer"
    if text == "":
        return "false_silence"
    golds = [
        (start, start + len(gold))
        for gold, start in zip(example.answer_texts, example.answer_starts, strict=True)
        if start >= 0
    ]
    if span and any(span[0] < end and start < span[1] for start, end in golds):
        return "boundary"
    placed = span is not None and len(golds) == len(example.answer_texts)
    return "boundary" if f1 > 0 and not placed else "wrong"


QUESTION_WORDS = ("what", "who", "when", "where", "which", "why", "how many", "how", "other")
_WORD = re.compile(r"\b(?:what|who(?:se|m)?|when|where|which|why|how(?: many| much)?)\b")


def question_word(question: str) -> str:
    """The first question word, wherever it stands: "In what year" -> what, "To whom" -> who, "How much" -> how many."""
    found = _WORD.search(question.lower())
    if not found:
        return "other"
    return {"whose": "who", "whom": "who", "how much": "how many"}.get(found[0], found[0])


# ---- groups ----


@dataclass
class Group:
    """One way to part the questions."""

    name: str
    labels: list[str]
    of: np.ndarray
    """(Q,) int, index of each question's label; -1 = the question has no part in it."""


def group(examples: Sequence[Example], windows: np.ndarray | None = None) -> list[Group]:
    """Questions by question word, answer length, context length and, if their number (Q,) is given, windows.

    Lengths are in words. Labels that no question has are left out, and a group of fewer than two labels with them.
    """
    words = [QUESTION_WORDS.index(question_word(example.question)) for example in examples]
    answer = [
        len(example.answer_texts[0].split()) if example.answer_texts else -1 for example in examples
    ]
    length = {example.context: len(example.context.split()) for example in examples}
    groups = [
        Group("Question word", list(QUESTION_WORDS), np.array(words)),
        _buckets("Words in the answer", answer, (1, 2, 3, 4, 6, 11)),
        _buckets(
            "Words in the context",
            [length[example.context] for example in examples],
            (0, 80, 120, 160, 240, 400, 800, 1600),
        ),
    ]
    if windows is not None:
        groups.append(_buckets("Windows", windows, (1, 2, 3, 4, 6, 11)))
    return [small for small in map(_without_empty, groups) if len(small.labels) > 1]


def _buckets(name: str, counts, starts: tuple[int, ...]) -> Group:
    labels = [f"{a}" if b - a == 1 else f"{a}–{b - 1}" for a, b in itertools.pairwise(starts)]
    return Group(
        name, [*labels, f"{starts[-1]}+"], np.searchsorted(starts, counts, side="right") - 1
    )


def _without_empty(old: Group) -> Group:
    used = np.unique(old.of[old.of >= 0])
    place = np.full(len(old.labels) + 1, -1)  # the last entry serves -1
    place[used] = np.arange(len(used))
    return Group(old.name, [old.labels[i] for i in used], place[old.of])


def group_rows(parted: Group, systems: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[dict]:
    """Per label: n, and for each system's (exact, f1) its means and the half width of the F1 mean's 95 % interval."""
    rows = []
    for index in range(len(parted.labels)):
        inside = parted.of == index
        n = int(inside.sum())
        rows.append(
            {
                "n": n,
                "exact": [_percent(exact[inside].mean()) for exact, _ in systems],
                "f1": [_percent(f1[inside].mean()) for _, f1 in systems],
                "margin": [_percent(1.96 * f1[inside].std() / math.sqrt(n)) for _, f1 in systems],
            }
        )
    return rows


# ---- tables ----


def score_table(
    has_answer: np.ndarray, systems: Sequence[tuple[np.ndarray, np.ndarray]]
) -> list[dict]:
    """Rows for all questions, those with and those without an answer: n, exact and f1 as [mean, low, high] per system.

    Intervals are 95 % bootstrap intervals over questions. With two systems `difference` holds that of the second minus
    the first, of which the draws are paired by question.
    """
    names = ("exact", "f1")
    rows = []
    for label, inside in (
        ("All questions", np.ones(len(has_answer), bool)),
        ("With an answer", has_answer),
        ("Without an answer", ~has_answer),
    ):
        if not inside.any() or label != "All questions" and inside.all():
            continue
        columns = [np.asarray(values, float)[inside] for system in systems for values in system]
        if len(systems) == 2:
            columns += [columns[2] - columns[0], columns[3] - columns[1]]
        columns = np.stack(columns, 1)  # (q, 2) exact and f1, or (q, 6) with two differences
        limits = bootstrap(columns)
        cells = [
            [_percent(value) for value in (mean, *pair)]
            for mean, pair in zip(columns.mean(0), limits, strict=True)
        ]
        row = {"label": label, "n": int(inside.sum())}
        row |= {
            name: [cells[2 * system + i] for system in range(len(systems))]
            for i, name in enumerate(names)
        }
        if len(systems) == 2:
            row["difference"] = dict(zip(names, cells[4:], strict=True))
        rows.append(row)
    return rows


def kind_rows(kinds: Sequence[str], f1: np.ndarray) -> list[dict]:
    """Per kind in the order of `KINDS`: n, and the F1 points it costs; these add up to 100 - F1."""
    kinds = np.array(kinds)
    return [
        {
            "n": int((kinds == kind).sum()),
            "lost": _percent((1 - f1)[kinds == kind].sum() / len(kinds)),
        }
        for kind in KINDS
    ]


def mcnemar(only_first: int, only_second: int) -> tuple[float, str]:
    """p value and method for "both are right equally often", from the questions that only one of them gets right.

    Exact (binomial) below 25 such questions, else chi-squared with continuity correction (McNemar 1947; Edwards 1948).
    """
    n = only_first + only_second
    if n < 25:
        tail = sum(math.comb(n, i) for i in range(min(only_first, only_second) + 1)) / 2**n
        return min(1.0, 2 * tail), "exact"
    chi2 = max(0, abs(only_first - only_second) - 1) ** 2 / n
    return math.erfc(math.sqrt(chi2 / 2)), "χ² with continuity correction"


def verdict(row: dict, exact: Sequence[np.ndarray], names: Sequence[str]) -> dict:
    """Whether the second system differs from the first: `row` is the first of `score_table`, `exact` two times (Q,).

    `text` judges F1 by its paired bootstrap interval, `detail` exact match by McNemar's test.
    """
    gap, low, high = row["difference"]["f1"]
    first, second = (np.asarray(values) > 0 for values in exact)
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    p, method = mcnemar(only_first, only_second)
    better = None if low <= 0 <= high else int(gap > 0)
    if better is None:
        text = (
            f"No significant difference: {names[1]} − {names[0]} = {_signed(gap)} F1 "
            f"[{_signed(low)}, {_signed(high)}]"
        )
    else:
        low, high = (low, high) if better else (-high, -low)
        text = f"{names[better]} is better by {abs(gap):.2f} F1 [{low:.2f}, {high:.2f}]"
    shown = "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
    detail = (
        f"Exact match: {only_first:,} questions only {names[0]} gets right, {only_second:,} only {names[1]}; that "
        f"is {'' if p < 0.05 else 'not '}significant (McNemar's test, {method}: {shown})."
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


# ---- points for plots ----


def thin(most: int, *columns: Sequence[float]) -> list[list[float]]:
    """At most `most` points of each column: means over neighbours, so that noise shrinks and no trend is lost."""
    n = len(columns[0])
    edges = np.unique(np.linspace(0, n, min(n, most) + 1).astype(int))
    return (
        [
            [
                _short(value)
                for value in np.add.reduceat(np.asarray(column, float), edges[:-1]) / np.diff(edges)
            ]
            for column in columns
        ]
        if n
        else [[] for _ in columns]
    )


def pick(most: int, *columns: Sequence[float]) -> list[list[float]]:
    """At most `most` of the points, evenly spaced, both ends among them: for curves whose every point is exact."""
    rows = np.unique(
        np.linspace(0, len(columns[0]) - 1, min(len(columns[0]), most)).round().astype(int)
    )
    return [[_short(value) for value in np.asarray(column, float)[rows]] for column in columns]


def sweep(odds: np.ndarray, exact: np.ndarray, f1: np.ndarray, has_answer: np.ndarray) -> dict:
    """EM and F1 of the raw best answers at every threshold; questions without any span stay unanswered throughout."""
    odds = np.where(odds < NO_SPAN_ODDS, odds, odds[odds < NO_SPAN_ODDS].max(initial=0.0))
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
    low, high = (float(real.min()), float(real.max())) if len(real) else (0.0, 1.0)
    high = high if high > low else low + 1.0
    counts = [
        np.histogram(np.clip(odds[rows], low, high), bins=bins, range=(low, high))[0].tolist()
        for rows in (has_answer, ~has_answer)
    ]
    return {
        "edges": [_short(edge) for edge in np.linspace(low, high, bins + 1)],
        "has": counts[0],
        "none": counts[1],
    }


def reliability(
    odds: np.ndarray, has_answer: np.ndarray, scale: float, bias: float, bins: int = 10
) -> dict:
    """Promised and actual share of questions without an answer, [mean probability, share, n] per bin that is used."""
    probability = no_answer_probability(odds, scale, bias)
    place = np.minimum((probability * bins).astype(int), bins - 1)
    inside = [place == i for i in range(bins) if (place == i).any()]
    points = [
        [_short(probability[rows].mean()), _short((~has_answer)[rows].mean()), int(rows.sum())]
        for rows in inside
    ]
    return {"points": points, "error": _short(calibration_error(probability, has_answer))}


def _percent(fraction: float) -> float:
    return round(100.0 * float(fraction), 4)


def _short(value: float) -> float:
    """Six significant digits: more cannot be seen, and the page stays small."""
    return float(f"{float(value):.6g}")
