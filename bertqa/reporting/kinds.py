"""Kinds of miss, and groups of questions.

Q questions; `exact` and `f1` are (Q,) fractions after the no-answer threshold. Scores that leave
this file are percentages.
"""

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bertqa.data.examples import Example

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

QUESTION_WORDS = ("what", "who", "when", "where", "which", "why", "how many", "how", "other")
_WORD = re.compile(r"\b(?:what|who(?:se|m)?|when|where|which|why|how(?: many| much)?)\b")


def kind_of(
    example: Example, text: str | None, exact: float, f1: float, span: tuple[int, int] | None
) -> str:
    """The key of `KINDS` for a prediction; `span` is where it stands in the context, None where
    that is not known.

    Places decide between boundary and wrong span, for a wrong answer may share a word with the
    right one by chance. Only where a place is missing do the words decide.
    """
    if text is None:
        return "missing"
    if exact:
        return "right" if example.answer_texts else "right_silent"
    if not example.answer_texts:
        return "false_answer"
    if text == "":
        return "false_silence"
    golds = []
    for gold, start in zip(example.answer_texts, example.answer_starts, strict=True):
        if start >= 0:
            golds.append((start, start + len(gold)))
    if span and any(span[0] < end and start < span[1] for start, end in golds):
        return "boundary"
    all_placed = span is not None and len(golds) == len(example.answer_texts)
    if f1 > 0 and not all_placed:
        return "boundary"
    return "wrong"


def kind_rows(kinds: Sequence[str], f1: np.ndarray) -> list[dict]:
    """Per kind in the order of `KINDS`: n, and the F1 points it costs; these add up to 100 - F1."""
    kinds = np.array(kinds)
    rows = []
    for kind in KINDS:
        inside = kinds == kind
        lost = (1 - f1)[inside].sum() / len(kinds)
        rows.append({"n": int(inside.sum()), "lost": percent(lost)})
    return rows


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
    """Questions by question word, answer length, context length and, if their number (Q,) is given,
    windows.

    Lengths are in words. Labels that no question has are left out, and a group of fewer than two
    labels with them.
    """
    words = [QUESTION_WORDS.index(question_word(example.question)) for example in examples]
    answer = [words_in_answer(example) for example in examples]
    length = {example.context: len(example.context.split()) for example in examples}
    context = [length[example.context] for example in examples]
    groups = [
        Group("Question word", list(QUESTION_WORDS), np.array(words)),
        _buckets("Words in the answer", answer, (1, 2, 3, 4, 6, 11)),
        _buckets("Words in the context", context, (0, 80, 120, 160, 240, 400, 800, 1600)),
    ]
    if windows is not None:
        groups.append(_buckets("Windows", windows, (1, 2, 3, 4, 6, 11)))
    smaller = [_without_empty(each) for each in groups]
    return [each for each in smaller if len(each.labels) > 1]


def words_in_answer(example: Example) -> int:
    """Of the first accepted answer; -1 where there is none."""
    return len(example.answer_texts[0].split()) if example.answer_texts else -1


def _buckets(name: str, counts: Sequence[int], starts: tuple[int, ...]) -> Group:
    """Counts by the bucket they fall in: (1, 2, 4) gives "1", "2–3" and "4+"."""
    labels = []
    for low, next_low in itertools.pairwise(starts):
        labels.append(f"{low}" if next_low - low == 1 else f"{low}–{next_low - 1}")
    labels.append(f"{starts[-1]}+")
    return Group(name, labels, np.searchsorted(starts, counts, side="right") - 1)


def _without_empty(old: Group) -> Group:
    """The group without labels that no question has: of [0, 2, -1] with labels a, b, c is [0, 1, -1] with a, c."""
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
                "exact": [percent(exact[inside].mean()) for exact, _ in systems],
                "f1": [percent(f1[inside].mean()) for _, f1 in systems],
                "margin": [percent(1.96 * f1[inside].std() / math.sqrt(n)) for _, f1 in systems],
            }
        )
    return rows


def percent(fraction: float) -> float:
    return round(100.0 * float(fraction), 4)
