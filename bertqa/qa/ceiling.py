"""The ceiling: what a perfect model would score on a data set.

It picks for each question the best answer that it can give: "", or any span of at most `max_answer_length` tokens inside
one window. Data, vocabulary and window settings alone put it below 100: an answer ends inside a token, takes too many
tokens, or is not in its paragraph.

T tokens of a paragraph; a span (i, j) is its tokens i to j, both included.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain

import numpy as np

from bertqa.data.examples import Example
from bertqa.data.windows import Windows
from bertqa.qa.agreement import normalise_answer, token_f1
from bertqa.qa.metrics import Scores, evaluate_v1, evaluate_v2

UNPLACED = "not found in its paragraph"
NO_TOKEN = "has no token"
NO_WINDOW = "in no window"
TOO_LONG = "too many tokens"
INSIDE = "not on token boundaries"
FAULTS = (UNPLACED, NO_TOKEN, NO_WINDOW, TOO_LONG, INSIDE)


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
    contexts = windows.contexts
    stop = windows.first + windows.count
    # Windows stand by question: of questions 0 0 1 1 1 2 the first windows are 0, 2, 5, and 6 is the end.
    rows = np.searchsorted(windows.question, np.arange(len(windows.question_context) + 1))
    for question, context in enumerate(windows.question_context):
        tokens = slice(contexts.rows[context], contexts.rows[context + 1])
        own = slice(rows[question], rows[question + 1])
        yield View(contexts.starts[tokens], contexts.ends[tokens], windows.first[own], stop[own])


def place(example: Example, view: View, most: int) -> list[Placed]:
    """The distinct accepted answers of a question against its windows and the `most` tokens that an answer may have."""
    pairs = dict.fromkeys(zip(example.answer_texts, example.answer_starts, strict=True))
    return [place_one(example.context, text, start, view, most) for text, start in pairs]


def place_one(context: str, text: str, start: int, view: View, most: int) -> Placed:
    """The answer `text` at character `start` of the paragraph, or -1: which tokens cover it, and what is in the way."""
    if start < 0:
        return Placed(text, UNPLACED, 0, "")
    # The first token that ends behind the answer's start, and the last that begins before its end.
    i = int(np.searchsorted(view.ends, start, "right"))
    j = int(np.searchsorted(view.starts, start + len(text))) - 1
    if i > j:
        return Placed(text, NO_TOKEN, 0, "")
    nearest = context[view.starts[i] : view.ends[j]]
    tokens = j - i + 1
    fault = ""
    if j >= view.reach(i):
        fault = NO_WINDOW
    elif tokens > most:
        fault = TOO_LONG
    elif nearest != text:
        fault = INSIDE
    return Placed(text, fault, tokens, nearest)


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
    """The best span for these normalised answers, out of all; of equals the first, and "" before any."""
    words_of_golds = [gold.split() for gold in golds]

    def score(guess: str) -> tuple[int, float]:
        words = guess.split()
        return int(guess in golds), max(token_f1(gold, words, v1) for gold in words_of_golds)

    best = score("")
    text = ""
    seen: set[str] = set()
    wanted = set(chain.from_iterable(words_of_golds))
    for start, end in worth_scoring(context, view, wanted, most):
        guess = normalise_answer(context[start:end])
        if guess in seen:
            continue
        seen.add(guess)
        found = score(guess)
        if found > best:
            best = found
            text = context[start:end]
        if best == (1, 1):
            break
    return text


def worth_scoring(
    context: str, view: View, wanted: set[str], most: int
) -> Iterator[tuple[int, int]]:
    """Characters of the spans among which a best one is, rising; `wanted` are the words of the right answers.

    Few need to be scored. Normalisation works on each stretch between blanks alone, so a piece at the beginning of a
    span that reaches up to a blank adds its own words to the span's and changes no other. If none of them is a gold
    word, the span without that piece scores no less: the same hits among as many or fewer words. It is a span too, for
    reach never falls. The same holds at the end. A span that can lose such a piece is skipped: the shorter one is
    either scored or skipped for one that is shorter yet, and that must end.

    Example: of "the old mill burned" with the answer "mill" only single words are left: "the old mill" can lose "the" at
    its beginning, "mill burned" can lose "burned" at its end.
    """
    starts = view.starts.tolist()
    ends = view.ends.tolist()
    behind = next_after_blank(context, starts)
    before = last_before_blank(context, ends)

    def hopeless(begin: int, end: int) -> bool:
        return wanted.isdisjoint(normalise_answer(context[begin:end]).split())

    @functools.cache
    def ends_hopeless(token: int) -> bool:
        """Whether the piece from the last blank to the end of this token is."""
        return hopeless(ends[before[token]], ends[token])

    for first in range(len(starts)):
        stop = min(first + most, view.reach(first))
        # Spans from here on that reach behind a piece without a gold word can lose it: the shorter ones are scored.
        if behind[first] < stop and hopeless(starts[first], starts[behind[first]]):
            stop = behind[first]
        for last in range(first, stop):
            can_lose_its_end = before[last] >= first and ends_hopeless(last)
            if not can_lose_its_end:
                yield starts[first], ends[last]


def next_after_blank(context: str, starts: list[int]) -> list[int]:
    """(T,) the next token that stands behind a blank; T where there is none. "a b-c d" -> [1, 4, 4, 4, 5]."""
    total = len(starts)
    behind = [total] * total
    for i in range(total - 2, -1, -1):
        if context[starts[i + 1] - 1 : starts[i + 1]].isspace():
            behind[i] = i + 1
        else:
            behind[i] = behind[i + 1]
    return behind


def last_before_blank(context: str, ends: list[int]) -> list[int]:
    """(T,) the last token before this one that a blank follows; -1 where there is none."""
    before = [-1] * len(ends)
    for j in range(1, len(ends)):
        if context[ends[j - 1] : ends[j - 1] + 1].isspace():
            before[j] = j - 1
        else:
            before[j] = before[j - 1]
    return before


def ceiling(
    examples: Sequence[Example], placed: list[list[Placed]], scores: Scores, v1: bool
) -> dict:
    """The official numbers of the best answers, and every question below 100 EM with what stands in its way."""
    below = []
    rows = zip(examples, placed, scores.texts, scores.exact, scores.f1, strict=True)
    for example, answers, text, exact, f1 in rows:
        if not exact:
            entry = {"id": example.id, "question": example.question, "best": text}
            entry |= {"f1": 100.0 * f1, "answers": [asdict(answer) for answer in answers]}
            below.append(entry)
    if v1:
        return {"rules": "v1.1", "figures": evaluate_v1(scores), "below": below}
    return {"rules": "v2.0", "figures": evaluate_v2(scores), "below": below}
