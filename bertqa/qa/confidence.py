"""How likely it is that an answer is right, and that there is none: fitted on questions whose answers are known.

Scores of spans are no probabilities, and the softmax over a text's tokens says less the longer the text is. What does tell
right answers from wrong ones are three numbers of a question (`Evidence`): the scores of its best span and of the null
answer, and how far the best span stands above the next different answer. Two logistic regressions (Platt 1999, with more
inputs) make probabilities of them.

Each number is cut to the range that was seen in fitting, and may change its weight at its median, so it makes two inputs.
Of scores between 2 and 16 with the median 10, the score 12.5 makes (12.5 - 2) / 14 = 0.75 and (12.5 - 10) / 14 = 0.18.

Q questions, D documents (several of a question are read as one text), F = 7 inputs, the constant 1 among them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from bertqa.data.examples import Example
from bertqa.data.windows import Windows
from bertqa.errors import UserError, show
from bertqa.qa.answers import best_answers, characters
from bertqa.qa.metrics import score_answers
from bertqa.qa.spans import Spans
from bertqa.qa.thresholds import abstain, fit_logistic, gap_of_equal_bins, sigmoid

NAMES = ("best", "null", "margin")
"""The numbers of a question."""

LOOKED_AT = 20
"""Spans among which the next different answer is looked for, however many are kept: confidence must not depend on top_k."""

STRENGTH = 1.0
"""Of the pull of each weight towards 0; it decides where some hundred questions leave a weight open."""


@dataclass(frozen=True)
class Evidence:
    """What speaks for the best answers of Q questions."""

    best: np.ndarray  # (Q,) score of the best span; -inf where there is none
    null: np.ndarray  # (Q,) score of the null answer
    margin: np.ndarray
    """(Q,) score of the best span minus that of the best span elsewhere with another text."""
    texts: np.ndarray | None = None
    """(Q,) texts of the best spans, where they are needed to tell other answers from the same."""


def evidence_of(spans: Spans, windows: Windows, examples: Sequence[Example]) -> Evidence:
    """The evidence of each document by itself."""
    first = spans.first[:, :LOOKED_AT]  # (D, n)
    last = spans.last[:, :LOOKED_AT]
    score = spans.score[:, :LOOKED_AT].astype(np.float64)
    starts, ends = characters(spans, windows)
    found = np.count_nonzero(first >= 0, axis=1)  # (D,)
    elsewhere = (first > last[:, :1]) | ((last < first[:, :1]) & (first >= 0))
    # Elsewhere is what shares no token with the best span: of 3-5, 4-4 and 7-8 the last. Where there is no other answer
    # among the spans, it scores less than the last of them.
    rival = score[np.arange(len(score)), np.maximum(found - 1, 0)]
    texts = np.empty(len(score), object)
    for d, example in enumerate(examples):
        answer = texts[d] = example.context[starts[d, 0] : ends[d, 0]]
        for column in np.flatnonzero(elsewhere[d]):
            if example.context[starts[d, column] : ends[d, column]] != answer:
                rival[d] = score[d, column]
                break
    best = score[:, 0]
    # Where no span is valid both are -inf, whose difference is no number: such a question has margin 0.
    margin = np.zeros(len(best))
    np.subtract(best, rival, out=margin, where=found > 0)
    return Evidence(best, spans.null_score.astype(np.float64), margin, texts)


def of_questions(evidence: Evidence, begins: np.ndarray) -> Evidence:
    """(D,) -> (Q,): documents become questions; those of a question stand together from `begins` (Q,) on.

    With best scores 5, 9, 4 of a question's documents and margins 1, 6, 2, the best is 9. Its rival in its own document
    scores 3, and that in the others 5: the margin is 4. A document that gives the same answer is no rival.
    """
    best = np.maximum.reduceat(evidence.best, begins)
    owner = np.repeat(np.arange(len(begins)), np.diff([*begins, len(evidence.best)]))  # (D,)
    places = np.arange(len(owner))
    # With begins 0, 3 and best scores 5, 9, 4 | 7 the owners are 0 0 0 1 and the winners documents 1 and 3.
    holds_best = evidence.best == best[owner]
    winner = np.minimum.reduceat(np.where(holds_best, places, len(owner)), begins)  # (Q,)
    # The same answer found in another document speaks for it, not against it.
    others = evidence.best.copy()
    others[evidence.texts == evidence.texts[winner][owner]] = -np.inf
    others = np.maximum.reduceat(others, begins)  # (Q,)
    margin = evidence.margin[winner]
    has_rival = np.isfinite(others)
    margin[has_rival] = np.minimum(margin[has_rival], best[has_rival] - others[has_rival])
    return Evidence(best, np.minimum.reduceat(evidence.null, begins), margin)


@dataclass(frozen=True)
class Confidence:
    """What makes probabilities of evidence; as qa.json keeps it under "confidence"."""

    ranges: dict[str, list[float]]  # lowest, middle and highest value of each of NAMES
    no_answer: list[float] | None
    """(F,) weights for "there is no answer"; None where all questions that it was fitted on had one."""
    right: list[float] | None
    """(F,) weights for "the best span is right"; None where all of them were, or none."""

    def chance_of_none(self, evidence: Evidence) -> np.ndarray | None:
        """(Q,) probability that there is no answer; None where it is not known."""
        return self._chance(self.no_answer, evidence)

    def chance_of_right(self, evidence: Evidence) -> np.ndarray | None:
        """(Q,) probability that the best span is right; None where it is not known."""
        return self._chance(self.right, evidence)

    def chance_of_given(self, evidence: Evidence, silent: np.ndarray) -> np.ndarray:
        """(Q,) probability that what is answered is right: "" where `silent` (Q,), else the best span; NaN: not known."""
        none = self.chance_of_none(evidence)
        right = self.chance_of_right(evidence)
        if none is None:
            none = np.nan
        if right is None:
            right = np.nan
        return np.where(silent, none, right).astype(np.float64)

    def of_lists(
        self, evidence: Evidence, scores: list[list[float]]
    ) -> tuple[list[float | None], list[list[float | None]]]:
        """The probability that there is no answer, of each question, and that it is right, of each of its answers.

        Args:
            scores: of the answers of each question, best first. The best is held against its rival, the others against it.
        """
        # All answers of all questions in a row. Scores 9 6 | 4, with a margin of 2 and of 5 for the best, get 2 -3 | 5.
        counts = np.array([len(own) for own in scores], np.int64)
        every = np.fromiter(chain.from_iterable(scores), np.float64)
        margin = every - evidence.best.repeat(counts)
        answered = np.flatnonzero(counts)
        margin[(counts.cumsum() - counts)[answered]] = evidence.margin[answered]
        right = self.chance_of_right(Evidence(every, evidence.null.repeat(counts), margin))
        chances = [[None] * len(own) for own in scores]
        if right is not None:
            chances = [part.tolist() for part in np.split(right, counts.cumsum()[:-1])]
        none = self.chance_of_none(evidence)
        if none is None:
            return [None] * len(scores), chances
        return none.tolist(), chances

    def _chance(self, weights: list[float] | None, evidence: Evidence) -> np.ndarray | None:
        if weights is None:
            return None
        logit = 0.0
        for weight, row in zip(weights, inputs_of(evidence, self.ranges), strict=True):
            # Not a matrix product: that rounds a question's sum by how many stand beside it.
            logit = logit + weight * row
        return sigmoid(logit)


def inputs_of(evidence: Evidence, ranges: dict[str, list[float]]) -> np.ndarray:
    """(F, Q) inputs of the regressions."""
    rows = []
    for name in NAMES:
        low, middle, high = ranges[name]
        values = np.clip(getattr(evidence, name), low, high)
        # A number that was the same in all questions has no width, and says nothing.
        width = max(high - low, 1e-9)
        rows.append((values - low) / width)
        rows.append(np.maximum(values - middle, 0.0) / width)
    rows.append(np.ones_like(values))
    return np.stack(rows)


def fit_confidence(evidence: Evidence, right: np.ndarray, has_answer: np.ndarray) -> Confidence:
    """Fit on held-out questions: none that the model was trained on, whose answers it would be too sure of.

    Args:
        right: (Q,) how right the best spans are, as `how_right` says.
        has_answer: (Q,) whether the data has an answer.
    """
    # A question without any span says nothing about spans.
    found = np.isfinite(evidence.best)
    known = Evidence(evidence.best[found], evidence.null[found], evidence.margin[found])
    ranges = dict.fromkeys(NAMES, [0.0] * 3)
    if found.any():
        for name in NAMES:
            ranges[name] = np.quantile(getattr(known, name), [0.01, 0.5, 0.99]).tolist()
    inputs = inputs_of(known, ranges)
    none = 1.0 - np.asarray(has_answer, float)
    return Confidence(
        ranges,
        no_answer=_weights(inputs, none[found]),
        right=_weights(inputs, np.asarray(right, float)[found]),
    )


def _weights(inputs: np.ndarray, target: np.ndarray) -> list[float] | None:
    """(F,) weights for targets (Q,); None where there is nothing to tell apart."""
    if not len(target) or not 0.0 < target.mean() < 1.0:
        return None
    start = np.zeros(len(inputs))
    return fit_logistic(inputs, target, start, strength=STRENGTH).tolist()


@dataclass(frozen=True)
class Marks:
    """What the raw best spans of Q questions are worth, (Q,) each."""

    exact: np.ndarray  # exact match with an answer of the data, 0 or 1
    f1: np.ndarray  # from 0 to 1
    has_answer: np.ndarray  # whether the data has an answer


def marks_of(spans: Spans, windows: Windows, examples: Sequence[Example]) -> Marks:
    """Score the best spans, whatever the null answer's score is."""
    texts = best_answers(spans, windows, examples).texts
    ids = [example.id for example in examples]
    scores = score_answers(examples, dict(zip(ids, texts, strict=True)))
    return Marks(
        np.array(scores.exact, float), np.array(scores.f1, float), np.array(scores.has_answer, bool)
    )


def how_right(examples: Sequence[Example], marks: Marks) -> np.ndarray:
    """(Q,) how right raw best answers are, 0 to 1; 0 where there is no answer.

    That is exact match where several people have answered. Where one has, many of the wrong answers differ from hers by a
    word or two which a second person would have left out too: F1 then is nearer to what people find.
    """
    references = [len(set(example.answer_texts)) for example in examples if example.answer_texts]
    several = bool(references) and np.mean(references) >= 1.5
    return np.where(marks.has_answer, marks.exact if several else marks.f1, 0.0)


def errors_of(
    confidence: Confidence,
    evidence: Evidence,
    right: np.ndarray,
    has_answer: np.ndarray,
    threshold: float | None,
) -> dict[str, float]:
    """Expected calibration errors of the two probabilities, over 15 bins of as many questions each.

    confidence_error is that of the answers which are given at a threshold, where best spans are `right` (Q,);
    no_answer_error is there where both kinds of questions were fitted.
    """
    silent = abstain(evidence.null - evidence.best, threshold)
    sure = confidence.chance_of_given(evidence, silent)
    errors = {}
    if not np.isnan(sure).any():
        good = np.where(silent, ~has_answer, right)
        errors["confidence_error"] = gap_of_equal_bins(sure, good)
    none = confidence.chance_of_none(evidence)
    if none is not None:
        errors["no_answer_error"] = gap_of_equal_bins(none, ~has_answer)
    return errors


def of_qa(qa: dict, file: str | Path = "qa.json") -> Confidence | None:
    """What qa.json says, checked; None where it says nothing, as before there was such.

    Raises UserError for what cannot be meant, naming the `file`.
    """
    said = qa.get("confidence")
    if said is None:
        return None
    problem = _problem(said)
    if problem:
        raise UserError(
            f"{file}: confidence: {problem}; train the model again, or take the entry out"
        )
    return Confidence(said["ranges"], said.get("no_answer"), said.get("right"))


def _problem(said: object) -> str:
    """What is wrong with an entry "confidence"; "": nothing."""
    if not isinstance(said, dict) or not isinstance(said.get("ranges"), dict):
        return f"it is {show(said)}, it must be an object with ranges, no_answer and right"
    lists = {f"ranges.{name}": (said["ranges"].get(name), 3) for name in NAMES}
    for name in ("no_answer", "right"):
        if said.get(name) is not None:
            lists[name] = (said[name], 2 * len(NAMES) + 1)
    for name, (values, count) in lists.items():
        if not _are_numbers(values, count):
            return f"{name} is {show(values)}, it must be {count} numbers"
    return ""


def _are_numbers(values: object, count: int) -> bool:
    if not isinstance(values, list) or len(values) != count:
        return False
    kinds = {type(value) for value in values}
    return kinds <= {int, float} and bool(np.isfinite(values).all())
