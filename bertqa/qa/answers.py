"""Spans to answers: texts cut from the raw paragraph by character offset, n-best lists, and the three prediction files.

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
    """(Q, n) first character of each span in its paragraph, and one past its last; 0, 0 where there is no span."""
    # Tokens of a span count within their paragraph, those of `contexts` over all paragraphs.
    base = windows.contexts.rows[windows.question_context][:, None]  # (Q, 1)
    there = spans.first >= 0
    starts, ends = np.zeros((2, *there.shape), np.int32)
    starts[there] = windows.contexts.starts[(spans.first + base)[there]]
    ends[there] = windows.contexts.ends[(spans.last + base)[there]]
    return starts, ends


def null_odds(spans: Spans) -> np.ndarray:
    """(Q,) float64 null score - best start logit - best end logit, subtracted in the old scripts' order and type.

    A question without any valid span has NO_SPAN_ODDS, far above what logits give: it is never answered.
    """
    # Google's null score is of double precision, and so must be what is taken from it.
    best_start = spans.start[:, 0].astype(spans.null_score.dtype)
    best_end = spans.end[:, 0].astype(spans.null_score.dtype)
    odds = spans.null_score - best_start - best_end
    return np.where(spans.first[:, 0] >= 0, odds.astype(np.float64), NO_SPAN_ODDS)


@dataclass
class BestAnswers:
    """The best non-null span of Q questions, whatever the threshold: what thresholds are tuned on."""

    texts: list[str]  # "" only where no span is valid
    starts: np.ndarray  # (Q,) int32, first character in the paragraph
    ends: np.ndarray  # (Q,) int32, one past the last; starts == ends where no span is valid


def best_answers(spans: Spans, windows: Windows, examples: Sequence[Example]) -> BestAnswers:
    """The raw best spans, cut from the paragraphs; `examples` are those that were windowed, in that order."""
    starts, ends = characters(spans, windows)  # (Q, n)
    starts = starts[:, 0].copy()  # a copy lets go of the others
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
    """For each question its answers, best first: {text, probability, start_logit, end_logit, start, end}.

    The list holds the n best spans by position, without those whose text a better one has (hf keeps them, as run_qa
    does). `start` and `end` are characters of the raw paragraph. With `no_answer` the null answer, text "" at 0 to 0,
    stands where its score belongs, and last if it is not among the n best; where no span is valid it stands alone.

    `most`: no more than so many, fewer than n_best: what is not asked for takes no time.

    `probability`, our one definition of an answer's score in [0, 1], is the softmax of start + end over this list.
    """
    n = min(spans.settings.n_best, most or spans.settings.n_best)
    repeats = spans.settings.mode == "hf"
    starts, ends = characters(spans, windows)
    found = np.count_nonzero(spans.first >= 0, axis=1)  # (Q,) spans of each, the first of its row
    for q, example in enumerate(examples):
        entries: list[dict] = []
        scores: list[float] = []
        seen: set[str] = set()
        columns = (spans.score, spans.start, spans.end, starts, ends)
        # Lists, for to read one number of an array takes longer than all that is done with it here.
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
    """Put the null answer where its score belongs in a list of at most n, or behind it.

    In a list of 3 with scores 5, 3, 1 a null score of 2 makes 5, 3, 2; a null score of 0 makes 5, 3, 1, 0.
    """
    place = sum(score >= null_score for score in scores)
    if place < n:  # then it takes one of the n places
        del entries[n - 1 :]
        del scores[n - 1 :]
    entries.insert(place, null)
    scores.insert(place, null_score)


def add_probabilities(entries: list[dict], scores: list[float]) -> None:
    """Tell each entry its share of the list."""
    for entry, share in zip(entries, softmax(np.array(scores)).tolist(), strict=True):
        entry["probability"] = share


def null_entry(spans: Spans, question: int) -> dict:
    """The null answer as an entry of an n-best list."""
    return _entry("", spans.null_start[question].item(), spans.null_end[question].item(), 0, 0)


def softmax(scores: np.ndarray) -> np.ndarray:
    """(n,) shares that sum to 1; the largest score is taken away first, so that none overflows."""
    shares = np.exp(scores - scores.max())
    return shares / shares.sum()


def _entry(text: str, start_logit: float, end_logit: float, start: int, end: int) -> dict:
    return {
        "text": text,
        "probability": 0.0,  # known once the list is whole
        "start_logit": start_logit,
        "end_logit": end_logit,
        "start": start,
        "end": end,
    }


def prediction_files(
    spans: Spans, windows: Windows, examples: Sequence[Example], threshold: float | None
) -> dict[str, dict]:
    """File name -> content of predictions.json, nbest_predictions.json and null_odds.json, as the old scripts had them.

    A question is answered "" where its null odds exceed `threshold`; None never abstains, and leaves the null answer
    out of the n-best lists.
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
