"""When to give no answer: the decision rule, the threshold that scores best, the probability that there is no answer.

All arrays are (Q,), one entry for each question:

    odds        null odds, the null score minus the best span's score
    exact, f1   scores of the best non-null answer as fractions, as if it were always given
    has_answer  bool, whether the data has an answer
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bertqa.errors import UserError

NO_SPAN_ODDS = 1e4
"""Null odds of a question without a valid span: finite, since JSON has no infinity, and beyond what logits give."""


def abstain(odds: np.ndarray, threshold: float | None) -> np.ndarray:
    """Return (Q,) bool, True where the answer is "": where null odds > threshold. With None it is never ""."""
    odds = np.asarray(odds)
    if threshold is None:
        return np.zeros(odds.shape, bool)
    return odds > threshold


@dataclass(frozen=True, slots=True)
class Sweep:
    """Scores in percent at all K thresholds that make a difference, in ascending order."""

    thresholds: np.ndarray  # (K,) float64
    exact: np.ndarray  # (K,) float64
    f1: np.ndarray  # (K,) float64
    best_exact: float
    best_exact_thresh: float
    best_f1: float
    best_f1_thresh: float


def tune_threshold(
    odds: np.ndarray, exact: np.ndarray, f1: np.ndarray, has_answer: np.ndarray
) -> Sweep:
    """Score every no-answer threshold, and find the best.

    exact and f1 must be those of the best non-null answers. Of answers that a threshold has already replaced by ""
    nobody knows what they would have scored at a higher threshold.

    Thresholds lie midway between neighbouring odds, 1 below the lowest (no question is answered) and 1 above the
    highest (all are). Of equally good ones the lowest is taken.

    The sweep of evaluate-v2.0.py (`metrics.find_best_thresh`) differs in three ways. It also stops between questions of
    equal odds, which no threshold can separate. It counts an answer without words to an unanswerable question as wrong,
    though that scores as no answer. And where answering nothing is best, it returns the threshold 0.0, at which
    questions with odds below 0 are still answered.

    Raises UserError without questions, and for odds that are not finite.
    """
    odds = np.asarray(odds, np.float64)
    exact = np.asarray(exact, np.float64)
    f1 = np.asarray(f1, np.float64)
    has_answer = np.asarray(has_answer, bool)
    assert odds.shape == exact.shape == f1.shape == has_answer.shape and odds.ndim == 1
    if len(odds) == 0 or not np.isfinite(odds).all():
        bad = int(np.count_nonzero(~np.isfinite(odds)))
        raise UserError(
            f"a threshold needs no-answer odds that are finite numbers: {bad} of {len(odds)} are not"
        )
    # Odds -2, 3, 3, 7 have the distinct values -2, 3, 7, which begin at 0, 1, 3. Of the thresholds -3, 0.5, 5, 8
    # the first answers 0 questions, the second 1, the third 3, the last all 4: no threshold answers 2.
    order = np.argsort(odds, kind="stable")
    distinct, first = np.unique(odds[order], return_index=True)  # (K-1,) each
    thresholds = _thresholds_between(distinct)  # (K,)
    answered = np.append(first, len(odds))  # (K,) number of questions answered at each threshold
    exact = _score_curve(exact[order], has_answer[order], answered)
    f1 = _score_curve(f1[order], has_answer[order], answered)
    at_exact = int(exact.argmax())
    at_f1 = int(f1.argmax())
    return Sweep(
        thresholds=thresholds,
        exact=exact,
        f1=f1,
        best_exact=float(exact[at_exact]),
        best_exact_thresh=float(thresholds[at_exact]),
        best_f1=float(f1[at_f1]),
        best_f1_thresh=float(thresholds[at_f1]),
    )


def _thresholds_between(odds: np.ndarray) -> np.ndarray:
    """(K-1,) distinct odds, ascending -> (K,) thresholds: below all of them, between neighbours, above all."""
    below = odds[:-1]
    above = odds[1:]
    middle = below + (above - below) / 2
    # Nothing lies between neighbouring floats. The lower one then serves, since only odds above a threshold abstain.
    middle = np.where(middle < above, middle, below)
    return np.concatenate(([odds[0] - 1.0], middle, [odds[-1] + 1.0]))


def _score_curve(values: np.ndarray, has_answer: np.ndarray, answered: np.ndarray) -> np.ndarray:
    """Return (K,) mean scores in percent, when the first answered[k] questions, by ascending odds, get their answers.

    `values` (Q,) are the scores of the answers. No answer scores 1 where there is none, else 0. Of three questions,
    of which only the last has no answer, abstaining from all scores 0 + 0 + 1. Each answer given adds its own score
    and takes away that
    of abstaining: with values 1, 0.5, 0 the sums are 1, 2, 2.5, 1.5.
    """
    abstaining = (~has_answer).astype(np.float64)  # (Q,) scores of no answer
    gains = np.concatenate(([0.0], np.cumsum(values - abstaining)))
    return 100.0 * (abstaining.sum() + gains[answered]) / len(values)


def tune(
    odds: np.ndarray, exact: np.ndarray, f1: np.ndarray, has_answer: np.ndarray
) -> dict[str, object]:
    """Tune the threshold for F1 and calibrate the null odds; return the entries for qa.json.

    null_threshold: None for data without unanswerable questions.
    no_answer_scale, no_answer_bias: for `no_answer_probability`; None unless both kinds of questions occur.
    tuning: the scores at this threshold, on the same questions, so a little too good.
    """
    odds = np.asarray(odds, np.float64)
    exact = np.asarray(exact, np.float64)
    f1 = np.asarray(f1, np.float64)
    has_answer = np.asarray(has_answer, bool)
    # A question without a span scores the same at any threshold; its odds must not stretch the range of thresholds.
    found = odds < NO_SPAN_ODDS
    odds = np.where(found, odds, odds[found].max(initial=0.0))
    threshold = None
    scale = None
    bias = None
    if not has_answer.all():
        threshold = tune_threshold(odds, exact, f1, has_answer).best_f1_thresh
        # The fit is over questions with a span: the odds of the others are made up.
        both_kinds = has_answer[found].any() and not has_answer[found].all()
        if both_kinds:
            scale, bias = fit_probability(odds[found], has_answer[found])
    return {
        "null_threshold": threshold,
        "no_answer_scale": scale,
        "no_answer_bias": bias,
        "tuning": {"tuned": _report(odds, exact, f1, has_answer, threshold, scale, bias)},
    }


def _report(odds, exact, f1, has_answer, threshold, scale, bias) -> dict[str, float]:
    """Return scores in percent on these questions, and calibration errors.

    exact and f1 at the tuned threshold, and at 0 with the suffix _at_zero; best_* at the best threshold for these
    very questions; the calibration error of sigmoid(odds) and of the fitted probability.
    """
    report = {"questions": len(odds)}
    for suffix, value in (("", threshold), ("_at_zero", 0.0)):
        silent = abstain(odds, value)
        # No answer scores 1 where there is none.
        report["exact" + suffix] = 100.0 * float(np.where(silent, ~has_answer, exact).mean())
        report["f1" + suffix] = 100.0 * float(np.where(silent, ~has_answer, f1).mean())
    sweep = tune_threshold(odds, exact, f1, has_answer)
    for name in ("best_f1", "best_f1_thresh", "best_exact", "best_exact_thresh"):
        report[name] = getattr(sweep, name)
    if scale is not None:
        raw = no_answer_probability(odds, 1.0, 0.0)
        fitted = no_answer_probability(odds, scale, bias)
        report["calibration_error_before"] = calibration_error(raw, has_answer)
        report["calibration_error"] = calibration_error(fitted, has_answer)
    return report


# ---- Calibration: from null odds to a probability ----


def sigmoid(logit: np.ndarray) -> np.ndarray:
    """Return 1 / (1 + exp(-logit)), without overflow."""
    return np.exp(-np.logaddexp(0.0, -np.asarray(logit, np.float64)))


def no_answer_probability(odds: np.ndarray, scale: float, bias: float) -> np.ndarray:
    """Return (Q,) the probability that a question has no answer, sigmoid(scale * odds + bias)."""
    return sigmoid(scale * np.asarray(odds, np.float64) + bias)


def fit_probability(odds: np.ndarray, has_answer: np.ndarray) -> tuple[float, float]:
    """Fit the scale and the bias of `no_answer_probability` by maximum likelihood (Platt scaling, 1999).

    Both kinds of questions must occur.
    """
    has_answer = np.asarray(has_answer, bool)
    assert has_answer.any() and not has_answer.all(), (
        "it takes questions with and without an answer"
    )
    without = np.count_nonzero(~has_answer)
    answerable = np.count_nonzero(has_answer)
    # Platt's targets lie inside of 0 and 1, so that separable data has a finite optimum too. With 8 questions of each
    # kind: 0.1 for those with an answer, 0.9 for those without.
    target = np.where(has_answer, 1 / (answerable + 2), (without + 1) / (without + 2))  # (Q,)
    inputs = np.stack([odds, np.ones(len(odds))])  # (2, Q)
    # Where all odds are equal, scale and bias cannot be told apart: a tiny penalty decides.
    scale, bias = fit_logistic(inputs, target, np.array([1.0, 0.0]), strength=1e-9)
    return float(scale), float(bias)


def fit_logistic(
    inputs: np.ndarray, target: np.ndarray, weights: np.ndarray, *, strength: float
) -> np.ndarray:
    """Return the weights (F,) of a logistic regression, sigmoid(weights @ inputs), fitted by Newton's method.

    Args:
        inputs: (F, Q).
        target: (Q,) probabilities, 0 to 1.
        weights: (F,) where to start.
        strength: of the L2 penalty, strength / 2 * squared distance of the weights from the start.
    """
    start = weights

    def loss(weights):
        logit = weights @ inputs  # (Q,)
        penalty = 0.5 * strength * np.square(weights - start).sum()
        return float((np.logaddexp(0.0, logit) - target * logit).sum() + penalty)

    smallest_step = 1e-9
    for _ in range(100):
        p = sigmoid(weights @ inputs)
        gradient = inputs @ (target - p) - strength * (weights - start)
        hessian = (inputs * (p * (1 - p))) @ inputs.T + strength * np.eye(len(weights))
        step = np.linalg.solve(hessian, gradient)
        # A full Newton step may overshoot; halve it until the loss does not rise.
        while loss(weights + step) > loss(weights) and np.abs(step).max() > smallest_step:
            step /= 2
        weights = weights + step
        if np.abs(step).max() < smallest_step:
            break
    return weights


def calibration_error(probability: np.ndarray, has_answer: np.ndarray, bins: int = 15) -> float:
    """Return the expected calibration error of a no-answer probability, 0 to 1 (Naeini et al. 2015; Guo et al. 2017).

    That is the mean over questions of |mean probability - share without an answer| in the question's bin, over bins
    of equal width.
    """
    probability = np.asarray(probability)
    without = ~np.asarray(has_answer, bool)
    bin_of = np.minimum((probability * bins).astype(np.int64), bins - 1)  # (Q,)
    gap = np.bincount(bin_of, probability - without, minlength=bins)  # (bins,) sums, not means
    return float(np.abs(gap).sum() / len(probability))


def gap_of_equal_bins(probability: np.ndarray, outcome: np.ndarray, bins: int = 15) -> float:
    """Return the expected calibration error of any probability, 0 to 1, over bins of equally many questions.

    Most confidences of answers are near 0 or 1, which would leave bins of equal width nearly empty. The error is the
    mean over questions of |mean probability - mean outcome| in the question's bin; `outcome` (Q,) is 0 to 1.
    """
    probability = np.asarray(probability, np.float64)
    outcome = np.asarray(outcome, np.float64)
    order = np.argsort(probability, kind="stable")
    gaps = [abs((probability[part] - outcome[part]).sum()) for part in np.array_split(order, bins)]
    return float(sum(gaps)) / len(order)


# ---- Statistics over questions ----


def bootstrap(
    values: np.ndarray, resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> np.ndarray:
    """Return percentile bootstrap intervals of column means (Efron 1979): values (Q, K) -> low and high (K, 2).

    Each resample draws the same questions for all columns. So to compare two systems, give the difference of their
    scores as a column, and see whether its interval contains 0.
    """
    values = np.asarray(values, np.float64)
    questions = len(values)
    rng = np.random.default_rng(seed)
    means = np.empty((resamples, values.shape[1]))
    for mean in means:
        drawn = rng.integers(questions, size=questions)
        times = np.bincount(drawn, minlength=questions)  # (Q,) how often each was drawn
        mean[:] = times @ values / questions
    tail = (1 - level) / 2
    return np.quantile(means, (tail, 1 - tail), axis=0).T


def histogram(odds: Sequence[float], bins: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Return shares (bins,) and edges (bins + 1,) of a histogram of no-answer odds.

    It spans [0, 1] as the official plot does, or all finite odds where some lie outside: the official plot drops
    these, which are nearly all where odds are no probabilities. Infinite odds count in the first or the last bin.
    """
    odds = np.asarray(odds, np.float64)
    finite = odds[np.isfinite(odds)]
    low = 0.0
    high = 1.0
    if len(finite) and (finite.min() < low or finite.max() > high):
        low = finite.min()
        high = finite.max()
    counts, edges = np.histogram(np.clip(odds, low, high), bins=bins, range=(low, high))
    return counts / len(odds), edges
