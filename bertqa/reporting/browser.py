"""The data of the question browser: columns of numbers, each context once, so that the page stays
small.
"""

from bisect import bisect_left
from collections.abc import Callable

from bertqa.data.examples import Example
from bertqa.qa.thresholds import NO_SPAN_ODDS
from bertqa.reporting.kinds import KINDS
from bertqa.reporting.run_folder import Run
from bertqa.reporting.scored import Scored

RUNNERS_UP = 3
"""Spans shown beneath each prediction."""


def utf16(text: str) -> Callable[[int], int]:
    """From Python's character offsets to JavaScript's, which counts characters beyond U+FFFF twice."""
    wide = []
    if max(text, default="") > "\uffff":
        wide = [i for i, character in enumerate(text) if character > "\uffff"]
    return lambda offset: offset + bisect_left(wide, offset)


def browser(examples: list[Example]) -> dict:
    """Questions and accepted answers: `gold` is start, end, start, end, ... in the context, `lost`
    what has no place.
    """
    contexts: dict[str, int] = {}
    titles: list[str] = []
    rows: list[int] = []
    gold: list[list[int]] = []
    lost: dict[int, list[str]] = {}
    for number, example in enumerate(examples):
        row = contexts.setdefault(example.context, len(contexts))
        rows.append(row)
        if row == len(titles):
            titles.append(example.title)
        at = utf16(example.context)
        ends: dict[tuple[int, int], None] = {}  # a set that keeps its order
        for text, start in zip(example.answer_texts, example.answer_starts, strict=True):
            if start >= 0:
                ends[at(start), at(start + len(text))] = None
            else:
                lost.setdefault(number, []).append(text)
        gold.append([side for span in ends for side in span])
    return {
        "contexts": list(contexts),
        "titles": titles,
        "context": rows,
        "id": [example.id for example in examples],
        "question": [example.question for example in examples],
        "gold": gold,
        "lost": lost,
    }


def columns(run: Run, scored: Scored, examples: list[Example]) -> dict:
    """One run's answers: `answer` is [start, end], "" for none, null for missing, or a text that
    has no place.

    `best` is start, end, per mille of the best entries of the n-best list, the null answer as 0, 0.
    """
    names = list(KINDS)
    result = {"kind": [], "f1": [], "odds": [], "answer": [], "best": []}
    for row, example in enumerate(examples):
        at = utf16(example.context)
        span = scored.spans[row]
        odds = run.odds.get(example.id)
        result["kind"].append(names.index(scored.kinds[row]))
        result["f1"].append(round(100 * float(scored.f1[row])))
        result["odds"].append(None if odds is None or odds >= NO_SPAN_ODDS else round(odds, 2))
        result["answer"].append([at(span[0]), at(span[1])] if span else scored.texts[row])
        best = []
        for entry in run.nbest.get(example.id, ())[: RUNNERS_UP + 1]:
            share = round(1000 * entry["probability"])
            best += [at(entry["start"]), at(entry["end"]), share]
        result["best"].append(best)
    return result
