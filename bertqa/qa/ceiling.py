"""Compute the ceiling of a data set: the scores of a perfect model.

Such a model gives each question the best answer that it can: "", or any span of at most `max_answer_length` tokens in
one window. It still scores below 100 where the data, the vocabulary or the window settings forbid the right answer:
one that ends inside a token, has too many tokens, or is not in its paragraph.

T tokens of a paragraph; a span (i, j) is its tokens i to j, inclusive.
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
    """The tokens of a question's paragraph, and where its windows (w of them) cut it."""

    starts: np.ndarray  # (T,) first character of each token
    ends: np.ndarray  # (T,) one past its last
    first: np.ndarray  # (w,) first token of each window, increasing
    stop: np.ndarray  # (w,) one past the last token of each window, never decreasing

    def reach(self, token: int) -> int:
        """Return where spans that begin at this token must stop: at the end of the last window that has the token."""
        return int(self.stop[np.searchsorted(self.first, token, "right") - 1])


@dataclass(frozen=True, slots=True)
class Placed:
    """An accepted answer, and the shortest span that covers it."""

    text: str
    fault: str  # one of FAULTS, why no span hits the answer exactly; "" if one does
    tokens: int  # length of the span; 0 if there is none
    nearest: str  # text of the span; "" if there is none


def views(windows: Windows) -> Iterator[View]:
    """Yield the View of each question, in order."""
    contexts = windows.contexts
    stop = windows.first + windows.count
    # Windows are sorted by question. Those of questions 0 0 1 1 1 2 begin at 0, 2, 5 and end at 6.
    rows = np.searchsorted(windows.question, np.arange(len(windows.question_context) + 1))
    for question, context in enumerate(windows.question_context):
        tokens = slice(contexts.rows[context], contexts.rows[context + 1])
        own = slice(rows[question], rows[question + 1])
        yield View(contexts.starts[tokens], contexts.ends[tokens], windows.first[own], stop[own])


def place(example: Example, view: View, most: int) -> list[Placed]:
    """Return the distinct accepted answers of a question, and whether spans of at most `most` tokens can hit them."""
    pairs = dict.fromkeys(zip(example.answer_texts, example.answer_starts, strict=True))
    return [place_one(example.context, text, start, view, most) for text, start in pairs]


def place_one(context: str, text: str, start: int, view: View, most: int) -> Placed:
    """Return the answer `text` at character `start` of the paragraph with the tokens that cover it; -1: not found."""
    if start < 0:
        return Placed(text, UNPLACED, 0, "")
    # The first token that ends after the answer's start, and the last that starts before its end.
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
    """Return the text with the highest (EM, F1) that any model could answer: "" or a span."""
    golds = dict.fromkeys(map(normalise_answer, example.answer_texts))
    if not v1:
        golds.pop("", None)  # as `score_answers` does: answers without words do not count
    if not golds:
        return ""
    for answer in answers:
        if answer.fault in ("", INSIDE) and normalise_answer(answer.nearest) in golds:
            return answer.nearest
    return search(example.context, view, list(golds), most, v1)


def search(context: str, view: View, golds: list[str], most: int, v1: bool) -> str:
    """Return the text of the best of all spans for these normalised answers; "", then the first span, wins ties."""
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
    """Yield (start, end) characters of the spans that must be scored to find a best one.

    Spans are skipped that a shorter span is sure to equal. Normalisation treats each stretch between blanks by itself.
    So where a span begins with a piece that ends at a blank, that piece only adds its own words. If none of them is in
    `wanted`, the words of the right answers, the span without the piece has the same hits among as many or fewer words,
    and scores no less. (It is a span too, since reach never decreases.) The same holds at the end of a span. The shorter
    span may itself be skipped for a shorter one, and so on down to one that is scored.

    Example: of "the old mill burned" with the answer "mill", only single words are scored. "the old mill" can lose
    "the" at its beginning, "mill burned" can lose "burned" at its end.
    """
    starts = view.starts.tolist()
    ends = view.ends.tolist()
    behind = next_after_blank(context, starts)
    before = last_before_blank(context, ends)

    def hopeless(begin: int, end: int) -> bool:
        """Whether this piece has none of the wanted words."""
        return wanted.isdisjoint(normalise_answer(context[begin:end]).split())

    @functools.cache
    def ends_hopeless(token: int) -> bool:
        """Whether the piece from the last blank to the end of this token is hopeless."""
        return hopeless(ends[before[token]], ends[token])

    for first in range(len(starts)):
        stop = min(first + most, view.reach(first))
        # Spans that go beyond a hopeless first piece can lose it.
        if behind[first] < stop and hopeless(starts[first], starts[behind[first]]):
            stop = behind[first]
        for last in range(first, stop):
            can_lose_its_end = before[last] >= first and ends_hopeless(last)
            if not can_lose_its_end:
                yield starts[first], ends[last]


def next_after_blank(context: str, starts: list[int]) -> list[int]:
    """Return for each token (T,) the next one that follows a blank; T if none does. "a b-c d" -> [1, 4, 4, 4, 5]."""
    total = len(starts)
    behind = [total] * total
    for i in range(total - 2, -1, -1):
        if context[starts[i + 1] - 1 : starts[i + 1]].isspace():
            behind[i] = i + 1
        else:
            behind[i] = behind[i + 1]
    return behind


def last_before_blank(context: str, ends: list[int]) -> list[int]:
    """Return for each token (T,) the last one before it that a blank follows; -1 if there is none."""
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
    """Return the official scores of the best answers, and all questions below 100 EM with their answers' faults."""
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
