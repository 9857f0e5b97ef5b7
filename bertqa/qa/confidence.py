"""Calibrated probabilities: that an answer is right, and that a question has no answer.

Scores of spans are no probabilities, and the softmax over a text's tokens says less the longer the text is. What tells
right answers from wrong ones are three numbers of a question (`Evidence`): the score of its best span, its null score,
and the margin of the best span over the next different answer. Two logistic regressions on them, fitted on held-out
questions, give the probabilities (Platt scaling, 1999, with more inputs).

Each of the three numbers gives two inputs: its place in the range seen in fitting, to which it is clipped, and how far
it lies above the median, where its weight may thus change. With scores from 2 to 16 and the median 10, the score 12.5
gives (12.5 - 2) / 14 = 0.75 and (12.5 - 10) / 14 = 0.18.

Q questions, D documents (several of a question are treated as one text), F = 7 inputs with the constant 1.
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
"""The numbers of `Evidence`, in the order of the inputs."""

RIVALS = 20
"""Spans among which a different answer is looked for, however many are kept: top_k must not change confidence."""

STRENGTH = 1.0
"""L2 penalty of the weights; it matters where there are only some hundred questions."""


@dataclass(frozen=True)
class Evidence:
    """What the probabilities of Q questions are computed from."""

    best: np.ndarray  # (Q,) score of the best span; -inf without a span
    null: np.ndarray  # (Q,) null score
    margin: np.ndarray
    """(Q,) score of the best span minus that of its rival: the best span elsewhere with another text."""
    texts: np.ndarray | None = None  # (Q,) texts of the best spans, to compare documents by


def evidence_of(spans: Spans, windows: Windows, examples: Sequence[Example]) -> Evidence:
    """Return the evidence of each document (D,)."""
    first = spans.first[:, :RIVALS]  # (D, n)
    last = spans.last[:, :RIVALS]
    score = spans.score[:, :RIVALS].astype(np.float64)
    starts, ends = characters(spans, windows)
    found = np.count_nonzero(first >= 0, axis=1)  # (D,) number of spans
    # Spans that share no token with the best one: if that is 3-5, then 7-8 but not 4-4.
    elsewhere = (first > last[:, :1]) | ((last < first[:, :1]) & (first >= 0))
    # Where no other answer is among the spans, it scores less than the last of them.
    rival = score[np.arange(len(score)), np.maximum(found - 1, 0)]
    texts = np.empty(len(score), object)
    for d, example in enumerate(examples):
        answer = example.context[starts[d, 0] : ends[d, 0]]
        texts[d] = answer
        for column in np.flatnonzero(elsewhere[d]):
            if example.context[starts[d, column] : ends[d, column]] != answer:
                rival[d] = score[d, column]
                break
    best = score[:, 0]
    # Without a span both are -inf, and their difference NaN: the margin stays 0.
    margin = np.zeros(len(best))
    np.subtract(best, rival, out=margin, where=found > 0)
    return Evidence(best, spans.null_score.astype(np.float64), margin, texts)


def merge_documents(evidence: Evidence, begins: np.ndarray) -> Evidence:
    """Merge the evidence of documents (D,) into that of questions (Q,), whose documents begin at `begins` (Q,).

    A question has documents with best scores 5, 9, 4 and margins 1, 6, 2. Its best score is 9. The rival in the same
    document scores 3, that in the others 5, so the margin is 4. A document with the same answer is no rival.
    """
    best = np.maximum.reduceat(evidence.best, begins)
    # With begins 0, 3 and best scores 5, 9, 4 | 7, the questions are 0 0 0 1, and documents 1 and 3 win.
    sizes = np.diff(begins, append=len(evidence.best))
    question = np.arange(len(begins)).repeat(sizes)  # (D,)
    has_best = evidence.best == best[question]
    documents = np.arange(len(question))
    winner = np.minimum.reduceat(np.where(has_best, documents, len(documents)), begins)  # (Q,)
    # The same answer in another document speaks for it, not against it.
    others = evidence.best.copy()
    others[evidence.texts == evidence.texts[winner][question]] = -np.inf
    others = np.maximum.reduceat(others, begins)  # (Q,)
    margin = evidence.margin[winner]
    has_rival = np.isfinite(others)
    margin[has_rival] = np.minimum(margin[has_rival], best[has_rival] - others[has_rival])
    return Evidence(best, np.minimum.reduceat(evidence.null, begins), margin)


@dataclass(frozen=True)
class Confidence:
    """The fitted regressions, as qa.json has them under "confidence"."""

    ranges: dict[str, list[float]]  # lowest, middle and highest value of each of NAMES
    no_answer: list[float] | None
    """(F,) weights for "there is no answer"; None if all questions of the fit had one, or none."""
    right: list[float] | None
    """(F,) weights for "the best span is right"; None if all of them were, or none."""

    def chance_of_none(self, evidence: Evidence) -> np.ndarray | None:
        """Return (Q,) the probability that there is no answer; None where it was not fitted."""
        return self._probability(self.no_answer, evidence)

    def chance_of_right(self, evidence: Evidence) -> np.ndarray | None:
        """Return (Q,) the probability that the best span is right; None where it was not fitted."""
        return self._probability(self.right, evidence)

    def chance_of_given(self, evidence: Evidence, silent: np.ndarray) -> np.ndarray:
        """Return (Q,) the probability that the given answer is right: "" where `silent`, else the best span.

        NaN where it was not fitted.
        """
        none = self.chance_of_none(evidence)
        right = self.chance_of_right(evidence)
        if none is None:
            none = np.nan
        if right is None:
            right = np.nan
        return np.where(silent, none, right).astype(np.float64)

    def of_answers(
        self, evidence: Evidence, scores: list[list[float]]
    ) -> tuple[list[float | None], list[list[float | None]]]:
        """Return the probability that each question has no answer, and that each of its answers is right.

        Args:
            scores: of the answers of each question, best first. The margin of the best is to its rival; the margin of
                the others is to the best, and negative.
        """
        # All answers in a row. With scores 9 6 | 4, whose best have margins 2 and 5, the margins are 2 -3 | 5.
        counts = np.array([len(own) for own in scores], np.int64)
        flat = np.fromiter(chain.from_iterable(scores), np.float64)
        margin = flat - evidence.best.repeat(counts)
        begins = counts.cumsum() - counts
        answered = counts > 0
        margin[begins[answered]] = evidence.margin[answered]
        right = self.chance_of_right(Evidence(flat, evidence.null.repeat(counts), margin))
        chances = [[None] * len(own) for own in scores]
        if right is not None:
            chances = [part.tolist() for part in np.split(right, counts.cumsum()[:-1])]
        none = self.chance_of_none(evidence)
        if none is None:
            return [None] * len(scores), chances
        return none.tolist(), chances

    def _probability(self, weights: list[float] | None, evidence: Evidence) -> np.ndarray | None:
        if weights is None:
            return None
        logit = 0.0
        for weight, values in zip(weights, inputs_of(evidence, self.ranges), strict=True):
            # Not a matrix product, whose rounding for a question depends on how many others there are.
            logit = logit + weight * values
        return sigmoid(logit)


def inputs_of(evidence: Evidence, ranges: dict[str, list[float]]) -> np.ndarray:
    """Return the inputs (F, Q) of the regressions."""
    rows = []
    for name in NAMES:
        low, middle, high = ranges[name]
        values = np.clip(getattr(evidence, name), low, high)
        # The width is 0 where all questions of the fit had the same value.
        width = max(high - low, 1e-9)
        rows.append((values - low) / width)
        rows.append(np.maximum(values - middle, 0.0) / width)
    rows.append(np.ones_like(values))
    return np.stack(rows)


def fit_confidence(evidence: Evidence, right: np.ndarray, has_answer: np.ndarray) -> Confidence:
    """Fit on held-out questions: the model would be too sure of those that it was trained on.

    Args:
        right: (Q,) how right the best spans are, 0 to 1, see `how_right`.
        has_answer: (Q,) whether the data has an answer.
    """
    found = np.isfinite(evidence.best)  # (Q,) questions with a span
    known = Evidence(evidence.best[found], evidence.null[found], evidence.margin[found])
    ranges = {name: [0.0, 0.0, 0.0] for name in NAMES}
    if found.any():
        for name in NAMES:
            ranges[name] = np.quantile(getattr(known, name), [0.01, 0.5, 0.99]).tolist()
    inputs = inputs_of(known, ranges)
    none = 1.0 - np.asarray(has_answer, float)
    return Confidence(
        ranges,
        no_answer=_fit(inputs, none[found]),
        right=_fit(inputs, np.asarray(right, float)[found]),
    )


def _fit(inputs: np.ndarray, target: np.ndarray) -> list[float] | None:
    """Return weights (F,) for targets (Q,); None where all targets are 0, or all 1."""
    if not len(target) or not 0.0 < target.mean() < 1.0:
        return None
    start = np.zeros(len(inputs))
    return fit_logistic(inputs, target, start, strength=STRENGTH).tolist()


@dataclass(frozen=True)
class Marks:
    """Scores of the best spans of Q questions, (Q,) each, before any threshold."""

    exact: np.ndarray  # exact match, 0 or 1
    f1: np.ndarray  # 0 to 1
    has_answer: np.ndarray  # whether the data has an answer


def marks_of(spans: Spans, windows: Windows, examples: Sequence[Example]) -> Marks:
    """Score the best spans against the answers of the data."""
    texts = best_answers(spans, windows, examples).texts
    ids = [example.id for example in examples]
    scores = score_answers(examples, dict(zip(ids, texts, strict=True)))
    return Marks(
        np.array(scores.exact, float), np.array(scores.f1, float), np.array(scores.has_answer, bool)
    )


def how_right(examples: Sequence[Example], marks: Marks) -> np.ndarray:
    """Return (Q,) how right the best spans are, 0 to 1; 0 where there is no answer.

    This is exact match where the data has answers of several people. Where it has those of one, many spans that miss
    them by a word or two would be another person's answer, so F1 is nearer to what people find right.
    """
    references = [len(set(example.answer_texts)) for example in examples if example.answer_texts]
    of_several_people = bool(references) and np.mean(references) >= 1.5
    right = marks.exact if of_several_people else marks.f1
    return np.where(marks.has_answer, right, 0.0)


def calibration_errors(
    confidence: Confidence,
    evidence: Evidence,
    right: np.ndarray,
    has_answer: np.ndarray,
    threshold: float | None,
) -> dict[str, float]:
    """Return the expected calibration errors of the two probabilities, over 15 bins of equally many questions.

    confidence_error is that of the answers given at the threshold, where `right` (Q,) says how right the best spans
    are. no_answer_error is that of "there is no answer". Each is left out where its probability was not fitted.
    """
    errors = {}
    silent = abstain(evidence.null - evidence.best, threshold)
    given = confidence.chance_of_given(evidence, silent)
    if not np.isnan(given).any():
        errors["confidence_error"] = gap_of_equal_bins(given, np.where(silent, ~has_answer, right))
    none = confidence.chance_of_none(evidence)
    if none is not None:
        errors["no_answer_error"] = gap_of_equal_bins(none, ~has_answer)
    return errors


def read_confidence(qa: dict, file: str | Path = "qa.json") -> Confidence | None:
    """Return the entry "confidence" of qa.json; None if there is none, as in older models.

    Raises UserError for an invalid entry, naming the `file`.
    """
    entry = qa.get("confidence")
    if entry is None:
        return None
    problem = _problem(entry)
    if problem:
        raise UserError(
            f"{file}: confidence: {problem}; train the model again, or take the entry out"
        )
    return Confidence(entry["ranges"], entry.get("no_answer"), entry.get("right"))


def _problem(entry: object) -> str:
    """Return what is wrong with an entry "confidence"; "" if nothing is."""
    if not isinstance(entry, dict) or not isinstance(entry.get("ranges"), dict):
        return f"it is {show(entry)}, it must be an object with ranges, no_answer and right"
    lists = {f"ranges.{name}": (entry["ranges"].get(name), 3) for name in NAMES}
    for name in ("no_answer", "right"):
        if entry.get(name) is not None:
            lists[name] = (entry[name], 2 * len(NAMES) + 1)
    for name, (values, count) in lists.items():
        if not _are_numbers(values, count):
            return f"{name} is {show(values)}, it must be {count} numbers"
    return ""


def _are_numbers(values: object, count: int) -> bool:
    """Return whether this is a list of so many finite numbers."""
    if not isinstance(values, list) or len(values) != count:
        return False
    kinds = {type(value) for value in values}
    return kinds <= {int, float} and bool(np.isfinite(values).all())
