"""What predictions tell beyond their score: tables with intervals, kinds of miss, groups of questions, runs compared.

Q questions; `exact` and `f1` are (Q,) fractions after the no-answer threshold. Scores that leave this file are percentages.
"""

import itertools
import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bertqa.data.examples import Example
from bertqa.qa.thresholds import bootstrap
from bertqa.reporting.run_folder import Run

System = tuple[np.ndarray, np.ndarray]
"""exact and f1 of one run, (Q,) each."""


def percent(fraction: float) -> float:
    return round(100.0 * float(fraction), 4)


# Tables


def score_table(has_answer: np.ndarray, systems: Sequence[System]) -> list[dict]:
    """Rows for all questions, those with and those without an answer: n, exact and f1 as [mean, low, high] per system.

    Intervals are 95 % bootstrap intervals over questions. With two systems `difference` holds that of the second minus the
    first, of which the draws are paired by question.
    """
    rows = [score_row("All questions", np.ones(len(has_answer), bool), systems)]
    if has_answer.any() and not has_answer.all():
        rows.append(score_row("With an answer", has_answer, systems))
        rows.append(score_row("Without an answer", ~has_answer, systems))
    return rows


def score_row(label: str, inside: np.ndarray, systems: Sequence[System]) -> dict:
    """One row: the scores of the questions that are `inside`, (Q,) bool."""
    columns = []
    for exact, f1 in systems:
        columns += [np.asarray(exact, float)[inside], np.asarray(f1, float)[inside]]
    if len(systems) == 2:
        first_exact, first_f1, second_exact, second_f1 = columns
        columns += [second_exact - first_exact, second_f1 - first_f1]
    # Differences are columns like the others, so that each draw of questions is that of both systems.
    table = np.stack(columns, 1)  # (q, 2 x systems), exact and f1 of each, then the differences
    cells = []
    for mean, (low, high) in zip(table.mean(0), bootstrap(table), strict=True):
        cells.append([percent(mean), percent(low), percent(high)])
    # of two systems: exact, f1, exact, f1, and the two differences
    row = {"label": label, "n": int(inside.sum())}
    row["exact"] = cells[0 : 2 * len(systems) : 2]
    row["f1"] = cells[1 : 2 * len(systems) : 2]
    if len(systems) == 2:
        row["difference"] = {"exact": cells[4], "f1": cells[5]}
    return row


CHANCE = {"seed", "out", "dev", "threads", "device", "save_every", "max_minutes"}
"""Settings in which runs of one recipe may differ."""


def families(runs: Sequence[Run]) -> dict[str, list[int]]:
    """Recipes: the settings in which they differ, in words -> the rows of their runs."""
    recipes = []
    for run in runs:
        settings = run.config["settings"]
        recipes.append({name: value for name, value in settings.items() if name not in CHANCE})
    differing: dict[str, None] = {}  # a set that keeps its order
    for name in itertools.chain(*recipes):
        if any(recipe.get(name) != recipes[0].get(name) for recipe in recipes):
            differing[name] = None
    found: dict[str, list[int]] = {}
    for row, recipe in enumerate(recipes):
        words = ", ".join(f"{name} {recipe.get(name)}" for name in differing)
        found.setdefault(words or "one recipe", []).append(row)
    return found


def family_rows(families: dict[str, list[int]], systems: Sequence[System]) -> list[dict]:
    """Mean and standard deviation over the runs of each recipe, which differ in their seeds alone.

    Args:
        families: name of a recipe -> rows of its runs in `systems`.
        systems: for each run two scores as fractions, (Q,) or of the whole.

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


# Two runs


def mcnemar(only_first: int, only_second: int) -> tuple[float, str]:
    """p value and method for "both are right equally often", from the questions that only one of them gets right.

    Exact (binomial) below 25 such questions, else chi-squared with continuity correction (McNemar 1947; Edwards 1948).
    """
    n = only_first + only_second
    if n < 25:
        # two-sided: the probability that a fair coin is at least as uneven
        tail = sum(math.comb(n, i) for i in range(min(only_first, only_second) + 1)) / 2**n
        return min(1.0, 2 * tail), "exact"
    chi2 = max(0, abs(only_first - only_second) - 1) ** 2 / n
    return math.erfc(math.sqrt(chi2 / 2)), "χ² with continuity correction"


def verdict(row: dict, exact: Sequence[np.ndarray], names: Sequence[str]) -> dict:
    """Whether the second system differs from the first: `row` is the first of `score_table`, `exact` two times (Q,).

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


# Kinds of miss

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


def kind_of(
    example: Example, text: str | None, exact: float, f1: float, span: tuple[int, int] | None
) -> str:
    """The key of `KINDS` for a prediction; `span` is where it stands in the context, None where that is not known."""
    if text is None:
        return "missing"
    if exact:
        return "right" if example.answer_texts else "right_silent"
    if not example.answer_texts:
        return "false_answer"
    if text == "":
        return "false_silence"
    # Places decide, for a wrong answer may share a word with the right one by chance.
    all_placed = span is not None
    for gold, start in zip(example.answer_texts, example.answer_starts, strict=True):
        if start < 0:
            all_placed = False
        elif span and span[0] < start + len(gold) and start < span[1]:
            return "boundary"
    # Only where a place is missing do the words decide.
    if f1 > 0 and not all_placed:
        return "boundary"
    return "wrong"


def kind_rows(kinds: Sequence[str], f1: np.ndarray) -> list[dict]:
    """Per kind in the order of `KINDS`: n, and the F1 points it costs; these add up to 100 - F1."""
    of = np.array(kinds)
    rows = []
    for kind in KINDS:
        inside = of == kind
        lost = (1 - f1)[inside].sum() / len(of)
        rows.append({"n": int(inside.sum()), "lost": percent(lost)})
    return rows


# Groups of questions

QUESTION_WORDS = ("what", "who", "when", "where", "which", "why", "how many", "how", "other")
_WORD = re.compile(r"\b(?:what|who(?:se|m)?|when|where|which|why|how(?: many| much)?)\b")


def question_word(question: str) -> str:
    """The first question word, wherever it stands: "In what year" -> what, "To whom" -> who, "How much" -> how many."""
    found = _WORD.search(question.lower())
    if not found:
        return "other"
    return {"whose": "who", "whom": "who", "how much": "how many"}.get(found[0], found[0])


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
    words = []
    answer = []
    context = []
    lengths: dict[str, int] = {}  # many questions share a context
    for example in examples:
        words.append(QUESTION_WORDS.index(question_word(example.question)))
        answer.append(len(example.answer_texts[0].split()) if example.answer_texts else -1)
        if example.context not in lengths:
            lengths[example.context] = len(example.context.split())
        context.append(lengths[example.context])
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
    """Counts by the bucket they fall in: (1, 2, 4) gives "1", "2–3" and "4+"."""
    labels = []
    for low, next_low in itertools.pairwise(starts):
        high = next_low - 1
        labels.append(f"{low}" if low == high else f"{low}–{high}")
    labels.append(f"{starts[-1]}+")
    return Group(name, labels, np.searchsorted(starts, counts, side="right") - 1)


def _without_empty(old: Group) -> Group:
    """The group without labels that no question has: of [0, 2, -1] with labels a, b, c is [0, 1, -1] with a, c."""
    used = np.unique(old.of[old.of >= 0])
    place = np.full(len(old.labels) + 1, -1)  # old label -> new one; the last entry serves -1
    place[used] = np.arange(len(used))
    return Group(old.name, [old.labels[i] for i in used], place[old.of])


def group_rows(parted: Group, systems: Sequence[System]) -> list[dict]:
    """Per label: n, and for each system its mean exact and f1, and the half width of the F1 mean's 95 % interval."""
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
