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
    dtype = spans.null_score.dtype
    odds = spans.null_score - spans.start[:, 0].astype(dtype) - spans.end[:, 0].astype(dtype)
    return np.where(spans.first[:, 0] >= 0, odds.astype(np.float64), NO_SPAN_ODDS)


@dataclass
class BestAnswers:
    """The best non-null span of Q questions, whatever the threshold: what thresholds are tuned on."""

    texts: list[str]
    """"" only where no span is valid."""
    starts: np.ndarray
    """(Q,) int32, first character in the paragraph."""
    ends: np.ndarray
    """(Q,) int32, one past the last; starts == ends where no span is valid."""


def best_answers(spans: Spans, windows: Windows, examples: Sequence[Example]) -> BestAnswers:
    """The raw best spans, cut from the paragraphs; `examples` are those that were windowed, in that order."""
    assert len(examples) == len(spans.first), (
        f"{len(examples)} examples for {len(spans.first)} questions"
    )
    starts, ends = (side[:, 0].copy() for side in characters(spans, windows))
    texts = [
        example.context[a:b]
        for example, a, b in zip(examples, starts.tolist(), ends.tolist(), strict=True)
    ]
    return BestAnswers(texts, starts, ends)


def n_best(
    spans: Spans,
    windows: Windows,
    examples: Sequence[Example],
    *,
    no_answer: bool,
    non_overlapping: bool = False,
) -> Iterator[list[dict]]:
    """For each question its answers, best first: {text, probability, start_logit, end_logit, start, end}.

    The list holds the n best spans by position, without those whose text a better one has (hf keeps them, as run_qa
    does). `start` and `end` are characters of the raw paragraph. With `no_answer` the null answer, text "" at 0 to 0,
    stands where its score belongs, and last if it is not among the n best; where no span is valid it stands alone.

    `probability`, our one definition of an answer's score in [0, 1], is the softmax of start + end over this list.
    `non_overlapping` afterwards drops spans that share a token with a better one that stayed, and leaves the
    probabilities of the others as they are; take a larger n_best for more of them.
    """
    n, repeats = spans.settings.n_best, spans.settings.mode == "hf"
    starts, ends = characters(spans, windows)
    found = np.count_nonzero(spans.first >= 0, axis=1)
    for q, example in enumerate(examples):
        columns = (
            side[q, : found[q]].tolist()
            for side in (spans.score, spans.first, spans.last, spans.start, spans.end, starts, ends)
        )
        entries, seen = [], set()  # score, first and last token, answer
        for score, first, last, start, end, a, b in zip(*columns, strict=True):
            text = example.context[a:b]
            if repeats or text not in seen:
                seen.add(text)
                entries.append((score, first, last, _answer(text, start, end, a, b)))
        entries = entries[:n]
        if no_answer or not entries:
            null = spans.null_score[q].item()
            place = sum(entry[0] >= null for entry in entries)
            if place < n:  # then it takes one of the n places
                entries = entries[: n - 1]
            answer = _answer("", spans.null_start[q].item(), spans.null_end[q].item(), 0, 0)
            entries.insert(place, (null, 0, -1, answer))
        scores = np.array([entry[0] for entry in entries])
        shares = np.exp(scores - scores.max())
        for entry, share in zip(entries, shares / shares.sum(), strict=True):
            entry[-1]["probability"] = float(share)
        yield [entry[-1] for entry in (_without_overlap(entries) if non_overlapping else entries)]


def _answer(text, start_logit, end_logit, start, end):
    return dict(
        text=text,
        probability=0.0,
        start_logit=start_logit,
        end_logit=end_logit,
        start=start,
        end=end,
    )


def _without_overlap(entries):
    kept = []
    for entry in entries:
        if all(entry[2] < first or last < entry[1] for _, first, last, _ in kept):
            kept.append(entry)
    return kept


def prediction_files(
    spans: Spans, windows: Windows, examples: Sequence[Example], threshold: float | None
) -> dict[str, dict]:
    """File name -> content of predictions.json, nbest_predictions.json and null_odds.json, as the old scripts had them.

    A question is answered "" where its null odds exceed `threshold`; None never abstains, and leaves the null answer
    out of the n-best lists.
    """
    texts, odds = best_answers(spans, windows, examples).texts, null_odds(spans)
    ids = [example.id for example in examples]
    answers = [
        "" if silent else text
        for text, silent in zip(texts, abstain(odds, threshold).tolist(), strict=True)
    ]
    lists = n_best(spans, windows, examples, no_answer=threshold is not None)
    return {
        "predictions.json": dict(zip(ids, answers, strict=True)),
        "nbest_predictions.json": dict(zip(ids, lists, strict=True)),
        "null_odds.json": dict(zip(ids, odds.tolist(), strict=True)),
    }
