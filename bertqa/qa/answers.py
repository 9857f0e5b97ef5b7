"""Turn spans into answers: texts cut from the paragraph, n-best lists, and the three prediction files.

Q questions, n spans kept of each (spans.py).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from bertqa.data.examples import Example
from bertqa.data.windows import Windows
from bertqa.qa.spans import Spans
from bertqa.qa.thresholds import NO_SPAN_ODDS, abstain


def characters(spans: Spans, windows: Windows) -> tuple[np.ndarray, np.ndarray]:
    """Return (Q, n) the first character of each span in its paragraph, and one past its last; 0, 0 without a span."""
    # Tokens of a span are counted within its paragraph, the arrays of `contexts` hold the tokens of all paragraphs.
    base = windows.contexts.rows[windows.question_context][:, None]  # (Q, 1)
    exists = spans.first >= 0
    starts = np.zeros(exists.shape, np.int32)
    ends = np.zeros(exists.shape, np.int32)
    starts[exists] = windows.contexts.starts[(spans.first + base)[exists]]
    ends[exists] = windows.contexts.ends[(spans.last + base)[exists]]
    return starts, ends


def null_odds(spans: Spans) -> np.ndarray:
    """Return (Q,) float64 null odds: null score - best start logit - best end logit, as the old scripts subtract them.

    A question without a valid span gets NO_SPAN_ODDS, far above what logits give, so that it is never answered.
    """
    # In google mode the null score is float64, and the subtraction must be too.
    best_start = spans.start[:, 0].astype(spans.null_score.dtype)
    best_end = spans.end[:, 0].astype(spans.null_score.dtype)
    odds = spans.null_score - best_start - best_end
    return np.where(spans.first[:, 0] >= 0, odds.astype(np.float64), NO_SPAN_ODDS)


@dataclass
class BestAnswers:
    """The best non-null answers of Q questions, before any threshold: what thresholds are tuned on."""

    texts: list[str]  # "" only where no span is valid
    starts: np.ndarray  # (Q,) int32, first character in the paragraph
    ends: np.ndarray  # (Q,) int32, one past the last; starts == ends where no span is valid


def best_answers(spans: Spans, windows: Windows, examples: Sequence[Example]) -> BestAnswers:
    """Cut the best spans from their paragraphs; `examples` are those that the windows were built from."""
    starts, ends = characters(spans, windows)  # (Q, n)
    starts = starts[:, 0].copy()  # a copy, so that the other columns are freed
    ends = ends[:, 0].copy()
    texts = []
    for example, start, end in zip(examples, starts.tolist(), ends.tolist(), strict=True):
        texts.append(example.context[start:end])
    return BestAnswers(texts, starts, ends)


def n_best(
    spans: Spans,
    windows: Windows,
    examples: Sequence[Example],
    *,
    no_answer: bool,
    most: int | None = None,
) -> Iterator[list[dict]]:
    """Yield the n-best list of each question, best first: {text, probability, start_logit, end_logit, start, end}.

    `start` and `end` are character offsets in the paragraph. A span whose text a better span has is left out (but in hf
    mode kept, as in run_qa). `probability` is the softmax of start_logit + end_logit over the list.

    Args:
        no_answer: add the null answer, text "" at 0 to 0, where its score belongs, or last if it is not among the n
            best. Without a valid span it is the only entry, also if this is False.
        most: list at most this many answers, where that is less than n_best.
    """
    n = min(spans.settings.n_best, most or spans.settings.n_best)
    repeats = spans.settings.mode == "hf"
    starts, ends = characters(spans, windows)
    columns = (spans.score, spans.start, spans.end, starts, ends)  # (Q, n) each
    found = np.count_nonzero(spans.first >= 0, axis=1)  # (Q,) spans of each, first in their row
    for q, example in enumerate(examples):
        entries: list[dict] = []
        scores: list[float] = []
        seen: set[str] = set()
        # Lists, because reading single numbers from an array is slow.
        own = [column[q, : found[q]].tolist() for column in columns]
        for score, start_logit, end_logit, start, end in zip(*own, strict=True):
            text = example.context[start:end]
            if len(entries) == n:
                break
            if text in seen and not repeats:
                continue
            seen.add(text)
            entries.append(_entry(text, start_logit, end_logit, start, end))
            scores.append(score)
        if no_answer or not entries:
            insert_null(entries, scores, null_entry(spans, q), spans.null_score[q].item(), n)
        add_probabilities(entries, scores)
        yield entries


def insert_null(
    entries: list[dict], scores: list[float], null: dict, null_score: float, n: int
) -> None:
    """Insert the null answer into a list of at most n entries where its score belongs, or behind them.

    In a list of 3 with scores 5, 3, 1 a null score of 2 makes 5, 3, 2; a null score of 0 makes 5, 3, 1, 0.
    """
    place = sum(score >= null_score for score in scores)
    if place < n:  # it is among the n best, and so takes the place of one
        del entries[n - 1 :]
        del scores[n - 1 :]
    entries.insert(place, null)
    scores.insert(place, null_score)


def add_probabilities(entries: list[dict], scores: list[float]) -> None:
    """Set the "probability" of each entry: the softmax of the scores."""
    shares = np.exp(np.array(scores) - max(scores))
    shares /= shares.sum()
    for entry, share in zip(entries, shares.tolist(), strict=True):
        entry["probability"] = share


def null_entry(spans: Spans, question: int) -> dict:
    """Return the null answer of a question as an entry of its n-best list."""
    return _entry("", spans.null_start[question].item(), spans.null_end[question].item(), 0, 0)


def _entry(text: str, start_logit: float, end_logit: float, start: int, end: int) -> dict:
    return {
        "text": text,
        "probability": 0.0,  # set by `add_probabilities`, once the list is complete
        "start_logit": start_logit,
        "end_logit": end_logit,
        "start": start,
        "end": end,
    }


def prediction_files(
    spans: Spans, windows: Windows, examples: Sequence[Example], threshold: float | None
) -> dict[str, dict]:
    """Return the contents of predictions.json, nbest_predictions.json and null_odds.json, by file name.

    They have the form of the old scripts. A question whose null odds exceed `threshold` is answered with "". None
    answers all questions, and leaves the null answer out of the n-best lists.
    """
    odds = null_odds(spans)
    ids = [example.id for example in examples]
    answers = best_answers(spans, windows, examples).texts
    for q in np.flatnonzero(abstain(odds, threshold)):
        answers[q] = ""
    lists = n_best(spans, windows, examples, no_answer=threshold is not None)
    return {
        "predictions.json": dict(zip(ids, answers, strict=True)),
        "nbest_predictions.json": dict(zip(ids, lists, strict=True)),
        "null_odds.json": dict(zip(ids, odds.tolist(), strict=True)),
    }
