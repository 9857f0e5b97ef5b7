"""The ceiling: what a perfect model would score on a data set.

It picks for each question the best answer that it can give: "", or any span of at most `max_answer_length` tokens inside
one window. Data, vocabulary and window settings alone put it below 100: an answer ends inside a token, takes too many
tokens, or is not in its paragraph.

T tokens of a paragraph; a span (i, j) is its tokens i to j, both included.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from bertqa.data.examples import Example
from bertqa.data.windows import Windows
from bertqa.qa import metrics
from bertqa.qa.metrics import Scores, normalise_answer, token_f1

UNPLACED, NO_TOKEN, NO_WINDOW, TOO_LONG, INSIDE = FAULTS = (
    "not found in its paragraph",
    "has no token",
    "in no window",
    "too many tokens",
    "not on token boundaries",
)


@dataclass(frozen=True, slots=True)
class View:
    """What the windows of a question see of its paragraph."""

    starts: np.ndarray  # (T,) first character of each token
    ends: np.ndarray  # (T,) one past its last
    first: np.ndarray  # (w,) first token of each window, rising
    stop: np.ndarray  # (w,) one past its last token, never falling

    def reach(self, token: int) -> int:
        """One past the last token of any span that begins here: the window that begins last goes furthest."""
        return int(self.stop[np.searchsorted(self.first, token, "right") - 1])


@dataclass(frozen=True, slots=True)
class Placed:
    """One accepted answer, and the fewest tokens that cover it."""

    text: str
    fault: str  # one of FAULTS; "" = a span hits it exactly
    tokens: int
    nearest: str  # their text; "" = there is none


def views(windows: Windows) -> Iterator[View]:
    """One for each question, in order."""
    contexts, stop = windows.contexts, windows.first + windows.count
    rows = np.searchsorted(windows.question, np.arange(len(windows.question_context) + 1))
    for row, context in enumerate(windows.question_context):
        text, own = slice(*contexts.rows[context : context + 2]), slice(*rows[row : row + 2])
        yield View(contexts.starts[text], contexts.ends[text], windows.first[own], stop[own])


def place(example: Example, view: View, most: int) -> list[Placed]:
    """The distinct accepted answers of a question against its windows and the `most` tokens that an answer may have."""
    answers = []
    for text, start in dict.fromkeys(zip(example.answer_texts, example.answer_starts, strict=True)):
        if start < 0:
            answers.append(Placed(text, UNPLACED, 0, ""))
            continue
        i = int(np.searchsorted(view.ends, start, "right"))
        j = int(np.searchsorted(view.starts, start + len(text))) - 1
        nearest = example.context[view.starts[i] : view.ends[j]] if i <= j else ""
        faults = (
            (i > j, NO_TOKEN),
            (j >= i and j >= view.reach(i), NO_WINDOW),
            (j - i >= most, TOO_LONG),
            (nearest != text, INSIDE),
        )
        answers.append(
            Placed(
                text,
                next((name for wrong, name in faults if wrong), ""),
                max(j - i + 1, 0),
                nearest,
            )
        )
    return answers


def best_answer(example: Example, view: View, answers: list[Placed], most: int, v1: bool) -> str:
    """The text with the highest (EM, F1) that any model could answer: "" or a span."""
    golds = dict.fromkeys(map(normalise_answer, example.answer_texts))
    if not v1:
        golds.pop("", None)  # as in score_answers: an answer without words does not count
    if not golds:
        return ""
    for answer in answers:
        if answer.fault in ("", INSIDE) and normalise_answer(answer.nearest) in golds:
            return answer.nearest
    return search(example.context, view, list(golds), most, v1)


def search(context: str, view: View, golds: list[str], most: int, v1: bool) -> str:
    """The best span for these normalised answers, out of all; of equals the first, and "" before any.

    Few need to be scored. Normalisation works on each stretch between blanks alone, so a piece at the beginning of a
    span that reaches up to a blank adds its own words to the span's and changes no other. If none of them is a gold
    word, the span without that piece scores no less: the same hits among as many or fewer words. It is a span too, for
    reach never falls. The same holds at the end. A span that can lose such a piece is skipped: the shorter one is
    either scored or skipped for one that is shorter yet, and that must end.
    """

    def blank(character: int) -> bool:
        return 0 <= character < len(context) and context[character].isspace()

    def hopeless(begin: int, end: int) -> bool:
        return wanted.isdisjoint(normalise_answer(context[begin:end]).split())

    wanted = {word for gold in golds for word in gold.split()}
    starts, ends = view.starts.tolist(), view.ends.tolist()
    total = len(starts)
    behind, before = (
        [total] * total,
        [-1] * total,
    )  # next token that follows a blank; last that one follows
    for i in range(total - 2, -1, -1):
        behind[i] = i + 1 if blank(starts[i + 1] - 1) else behind[i + 1]
    for j in range(1, total):
        before[j] = j - 1 if blank(ends[j - 1]) else before[j - 1]

    best, text, seen = (
        (int("" in golds), max(token_f1(gold.split(), [], v1) for gold in golds)),
        "",
        set(),
    )
    skip_end: dict[int, bool] = {}
    for i in range(total):
        stop = min(i + most, view.reach(i))
        if behind[i] < stop and hopeless(starts[i], starts[behind[i]]):
            stop = behind[i]
        for j in range(i, stop):
            if before[j] >= i:
                if j not in skip_end:
                    skip_end[j] = hopeless(ends[before[j]], ends[j])
                if skip_end[j]:
                    continue
            guess = normalise_answer(context[starts[i] : ends[j]])
            if guess in seen:
                continue
            seen.add(guess)
            score = (
                int(guess in golds),
                max(token_f1(gold.split(), guess.split(), v1) for gold in golds),
            )
            if score > best:
                best, text = score, context[starts[i] : ends[j]]
                if score == (1, 1):
                    return text
    return text


def ceiling(
    examples: Sequence[Example], placed: list[list[Placed]], scores: Scores, v1: bool
) -> dict:
    """The official numbers of the best answers, and every question below 100 EM with what stands in its way."""
    below = [
        {
            "id": example.id,
            "question": example.question,
            "best": text,
            "f1": 100.0 * f1,
            "answers": [asdict(answer) for answer in answers],
        }
        for example, answers, text, exact, f1 in zip(
            examples, placed, scores.texts, scores.exact, scores.f1, strict=True
        )
        if not exact
    ]
    figures = metrics.evaluate_v1(scores) if v1 else metrics.evaluate_v2(scores)
    return {"rules": "v1.1" if v1 else "v2.0", "figures": figures, "below": below}
