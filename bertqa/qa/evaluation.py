"""The evaluation of question answering: spans of a dev set become scores, a tuned null threshold and a fitted confidence."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from bertqa.data.examples import Example
from bertqa.data.windows import Windows
from bertqa.qa import metrics, thresholds
from bertqa.qa.answers import null_odds, prediction_files
from bertqa.qa.confidence import (
    calibration_errors,
    evidence_of,
    fit_confidence,
    how_right,
    marks_of,
)
from bertqa.qa.spans import Spans

MAIN_SCORES = ("exact", "f1", "exact_at_zero", "f1_at_zero")
"""The scores that people look for: EM and F1 at the tuned threshold, and at 0."""


@dataclass
class Evaluation:
    """What an evaluation found, on Q questions."""

    spans: Spans
    metrics: dict[str, float]
    """exact, f1, HasAns_*, NoAns_* in percent at the tuned threshold; exact_at_zero, f1_at_zero; loss."""
    qa: dict
    """null_threshold, tuning and confidence, for qa.json."""
    confidence: np.ndarray
    """(Q,) the probability that the answer given is right; NaN = not known."""

    @classmethod
    def of(
        cls, spans: Spans, windows: Windows, examples: Sequence[Example], loss: float
    ) -> "Evaluation":
        """Score the spans of the examples, tune the threshold, fit the confidence."""
        odds = null_odds(spans)
        # Of raw best spans: a sweep over thresholds means nothing if some answers are "" already.
        marks = marks_of(spans, windows, examples)
        has_answer = marks.has_answer
        qa = thresholds.tune(odds, marks.exact, marks.f1, has_answer)
        threshold = qa["null_threshold"]
        silent = thresholds.abstain(odds, threshold)

        # The confidence of an answer is fitted to how often such answers are right.
        evidence = evidence_of(spans, windows, examples)
        right = how_right(examples, marks)
        fitted = fit_confidence(evidence, right, has_answer)
        qa["confidence"] = asdict(fitted)
        qa["tuning"]["tuned"] |= calibration_errors(fitted, evidence, right, has_answer, threshold)

        # No answer is right for exactly the questions that have none.
        exact = np.where(silent, ~has_answer, marks.exact)
        f1 = np.where(silent, ~has_answer, marks.f1)
        found = metrics.averages(exact.tolist(), f1.tolist(), has_answer.tolist())
        if threshold is not None:
            tuned = qa["tuning"]["tuned"]
            found |= {name: tuned[name] for name in MAIN_SCORES}
            found["null_threshold"] = threshold
        found["loss"] = loss
        return cls(spans, found, qa, fitted.chance_of_given(evidence, silent))

    def files(self, windows: Windows, examples: Sequence[Example]) -> dict[str, dict]:
        """Return the predictions by file name: predictions.json (at the tuned threshold), nbest_predictions.json,
        null_odds.json and confidence.json."""
        files = prediction_files(self.spans, windows, examples, self.qa["null_threshold"])
        confidence = {}
        for example, value in zip(examples, self.confidence.tolist(), strict=True):
            if not math.isnan(value):
                confidence[example.id] = value
        return {**files, "confidence.json": confidence}
