"""Analyse the scores of runs: tables with confidence intervals, comparisons, kinds of error, groups of questions.

Q questions; `exact` and `f1` are (Q,) fractions after the no-answer threshold. Returned scores are percentages.
"""

import functools
import itertools
import math
import re
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bertqa.data.examples import Example
from bertqa.qa.thresholds import bootstrap

System = tuple[np.ndarray, np.ndarray]
"""exact and f1 of one run, (Q,) each."""


def percent(fraction: float) -> float:
    """Return a fraction in percent, rounded."""
    return round(100.0 * float(fraction), 4)


# Tables


def score_table(has_answer: np.ndarray, systems: Sequence[System]) -> list[dict]:
    """Return a row for all questions, for those with an answer and for those without: n, and per system exact and f1.

    Scores are [mean, low, high], with 95 % bootstrap intervals over questions. With two systems `difference` has the
    second's minus the first's, from paired resamples.
    """
    rows = [score_row("All questions", np.ones(len(has_answer), bool), systems)]
    if has_answer.any() and not has_answer.all():
        rows.append(score_row("With an answer", has_answer, systems))
        rows.append(score_row("Without an answer", ~has_answer, systems))
    return rows


def score_row(label: str, inside: np.ndarray, systems: Sequence[System]) -> dict:
    """Return one row of the table, for the questions that are `inside`, (Q,) bool."""
    exact = [np.asarray(system_exact, float)[inside] for system_exact, _ in systems]
    f1 = [np.asarray(system_f1, float)[inside] for _, system_f1 in systems]
    columns = [*exact, *f1]
    if len(systems) == 2:
        # The bootstrap draws the same questions for all columns, which makes the differences paired.
        columns += [exact[1] - exact[0], f1[1] - f1[0]]
    table = np.stack(columns, axis=1)  # (questions inside, columns)
    cells = []
    for mean, (low, high) in zip(table.mean(axis=0), bootstrap(table), strict=True):
        cells.append([percent(mean), percent(low), percent(high)])
    row = {"label": label, "n": int(inside.sum())}
    row["exact"] = cells[: len(systems)]
    row["f1"] = cells[len(systems) : 2 * len(systems)]
    if len(systems) == 2:
        row["difference"] = {"exact": cells[4], "f1": cells[5]}
    return row


NOT_OF_THE_RECIPE = {"seed", "out", "dev", "threads", "device", "save_every", "max_minutes"}
"""Settings in which runs of one recipe may differ."""


def families(runs: Sequence[dict]) -> dict[str, list[int]]:
    """Group runs by recipe, given the settings of each: {the settings in which recipes differ: rows of the runs}."""
    names = dict.fromkeys(itertools.chain(*runs))  # a set that keeps its order
    differing = []
    for name in names:
        values = [settings.get(name) for settings in runs]
        is_same = all(value == values[0] for value in values)
        if name not in NOT_OF_THE_RECIPE and not is_same:
            differing.append(name)
    found: dict[str, list[int]] = defaultdict(list)
    for row, settings in enumerate(runs):
        recipe = ", ".join(f"{name} {settings.get(name)}" for name in differing)
        found[recipe or "one recipe"].append(row)
    return found


def family_rows(families: dict[str, list[int]], systems: Sequence[System]) -> list[dict]:
    """Return the mean and the standard deviation of scores over the runs of each recipe.

    Args:
        families: recipe -> rows of its runs in `systems`.
        systems: two scores of each run as fractions, (Q,) or averages.

    Returns:
        name, runs, and exact and f1 as [mean, deviation, lowest, highest]; the deviation is None for a single run.
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


# Comparing two runs


def mcnemar(only_first: int, only_second: int) -> tuple[float, str]:
    """Test whether two runs are right equally often; return the p value and the method (McNemar's test).

    Only the numbers of questions that one run alone gets right matter.

    Exact (binomial) below 25 such questions, else chi-squared with continuity correction (McNemar 1947; Edwards 1948).
    """
    n = only_first + only_second
    if n < 25:
        # Two-sided: the probability that a fair coin gives at least this imbalance.
        tail = sum(math.comb(n, i) for i in range(min(only_first, only_second) + 1)) / 2**n
        return min(1.0, 2 * tail), "exact"
    chi2 = max(0, abs(only_first - only_second) - 1) ** 2 / n
    return math.erfc(math.sqrt(chi2 / 2)), "χ² with continuity correction"


def verdict(row: dict, exact: Sequence[np.ndarray], names: Sequence[str]) -> dict:
    """Say whether the second system differs from the first.

    Args:
        row: the first row of `score_table`.
        exact: exact match of both systems, (Q,) each.

    Returns:
        text: a sentence on F1, by its paired bootstrap interval.
        detail: a sentence on exact match, by McNemar's test.
        better: 0 or 1, the system with significantly better F1, or None.
        p: of McNemar's test.
        only: how many questions each system alone gets right.
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
        shown = f"{gap:+.2f} F1 [{low:+.2f}, {high:+.2f}]".replace("-", "−")
        text = f"No significant difference: {names[1]} − {names[0]} = {shown}"

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
    only = [only_first, only_second]
    return {"text": text, "detail": detail, "better": better, "p": p, "only": only}


# Kinds of error

KINDS = {
    "right": ("Right answer", "exactly an accepted answer"),
    "right_silent": ("Rightly silent", "there is no answer, and none was given"),
    "boundary": ("Boundary", "overlaps an accepted answer, but begins or ends elsewhere"),
    "wrong": ("Wrong span", "there is an answer, and it stands elsewhere"),
    "false_answer": ("False answer", "there is no answer, and one was given"),
    "false_silence": ("False no-answer", "there is an answer, and none was given"),
    "missing": ("No prediction", "the predictions do not have this question"),
}
"""Each question is of one kind: name -> label, meaning."""


def kind_of(
    example: Example, text: str | None, exact: float, f1: float, span: tuple[int, int] | None
) -> str:
    """Return the kind of a prediction, a key of KINDS; `span` is its place in the context, None if not known."""
    if text is None:
        return "missing"
    if exact:
        return "right" if example.answer_texts else "right_silent"
    if not example.answer_texts:
        return "false_answer"
    if text == "":
        return "false_silence"
    # Places decide rather than words, since a wrong answer may share a word with the right one by chance.
    all_placed = span is not None
    for gold, start in zip(example.answer_texts, example.answer_starts, strict=True):
        if start < 0:
            all_placed = False
        elif span and span[0] < start + len(gold) and start < span[1]:
            return "boundary"
    # Words decide only where a place is not known.
    if f1 > 0 and not all_placed:
        return "boundary"
    return "wrong"


def kind_rows(kinds: Sequence[str], f1: np.ndarray) -> list[dict]:
    """Return n of each kind in KINDS, and the F1 points that it costs; these add up to 100 - F1."""
    kind_of_question = np.array(kinds)
    rows = []
    for kind in KINDS:
        inside = kind_of_question == kind
        lost = (1 - f1)[inside].sum() / len(kinds)
        rows.append({"n": int(inside.sum()), "lost": percent(lost)})
    return rows


# Groups of questions

QUESTION_WORDS = ("what", "who", "when", "where", "which", "why", "how many", "how", "other")
_WORD = re.compile(r"\b(?:what|who(?:se|m)?|when|where|which|why|how(?: many| much)?)\b")


def question_word(question: str) -> str:
    """Return the first question word: "In what year" -> what, "To whom" -> who, "How much" -> how many."""
    found = _WORD.search(question.lower())
    if not found:
        return "other"
    return {"whose": "who", "whom": "who", "how much": "how many"}.get(found[0], found[0])


@dataclass
class Group:
    """A way to divide the questions into groups."""

    name: str
    labels: list[str]
    of: np.ndarray  # (Q,) int, index of each question's label; -1: in none of the groups


def group(examples: Sequence[Example], windows: np.ndarray | None = None) -> list[Group]:
    """Group questions by question word, by words in the answer and in the context, and by their windows (Q,) if given.

    Empty groups are left out, and so is a division into fewer than two.
    """
    words = [QUESTION_WORDS.index(question_word(example.question)) for example in examples]
    answer = []
    for example in examples:
        first = example.answer_texts[:1]
        answer.append(len(first[0].split()) if first else -1)
    count_words = functools.cache(lambda text: len(text.split()))  # many questions share a context
    context = [count_words(example.context) for example in examples]
    groups = [
        Group("Question word", list(QUESTION_WORDS), np.array(words)),
        _buckets("Words in the answer", answer, (1, 2, 3, 4, 6, 11)),
        _buckets("Words in the context", context, (0, 80, 120, 160, 240, 400, 800, 1600)),
    ]
    if windows is not None:
        groups.append(_buckets("Windows", windows, (1, 2, 3, 4, 6, 11)))
    smaller = [_without_empty(each) for each in groups]
    return [each for each in smaller if len(each.labels) > 1]


def _buckets(name: str, counts: Sequence[int], starts: tuple[int, ...]) -> Group:
    """Group counts into buckets that start at these numbers: (1, 2, 4) gives "1", "2–3" and "4+"."""
    labels = []
    for low, next_low in itertools.pairwise(starts):
        high = next_low - 1
        labels.append(f"{low}" if low == high else f"{low}–{high}")
    labels.append(f"{starts[-1]}+")
    return Group(name, labels, np.searchsorted(starts, counts, side="right") - 1)


def _without_empty(old: Group) -> Group:
    """Leave out labels that no question has: labels a, b, c with [0, 2, -1] become a, c with [0, 1, -1]."""
    used = np.unique(old.of[old.of >= 0])
    new_label = np.full(len(old.labels) + 1, -1)  # of each old one; the last entry is for -1
    new_label[used] = np.arange(len(used))
    return Group(old.name, [old.labels[i] for i in used], new_label[old.of])


def group_rows(parted: Group, systems: Sequence[System]) -> list[dict]:
    """Return for each label n, and per system the mean exact and f1, and half the width of F1's 95 % interval."""
    rows = []
    for index in range(len(parted.labels)):
        inside = parted.of == index
        n = int(inside.sum())
        row = {"n": n, "exact": [], "f1": [], "margin": []}
        for exact, f1 in systems:
            row["exact"].append(percent(exact[inside].mean()))
            row["f1"].append(percent(f1[inside].mean()))
            row["margin"].append(percent(1.96 * f1[inside].std() / math.sqrt(n)))
        rows.append(row)
    return rows
