"""When to give no answer: the decision rule, the threshold that scores best, and how likely it is that there is none.

Everything here works on raw best non-null answers; `tune_threshold` says why.

All arrays are (Q,): `odds` the null odds (null score - best span's score), `exact` and `f1` the scores of the raw best
answers as fractions, `has_answer` whether the data has one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bertqa.errors import UserError

NO_SPAN_ODDS = 1e4
"""Null odds of a question without any valid span: finite, since JSON knows no infinity, and beyond what logits give."""


def abstain(odds: np.ndarray, threshold: float | None) -> np.ndarray:
    """(Q,) bool, the one decision rule: "" is the answer where null odds > threshold. None never abstains."""
    odds = np.asarray(odds)
    if threshold is None:
        return np.zeros(odds.shape, bool)
    return odds > threshold


@dataclass(frozen=True, slots=True)
class Sweep:
    """Scores in percent at all K thresholds that make a difference, rising; `odds > threshold` means no answer."""

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
    """The no-answer threshold that scores best, given the scores of raw best non-null answers: of answers that a threshold
    has emptied no sweep can see what a higher one would have earned.

    The official sweep has more to correct: it takes points between questions of equal odds, which no threshold can
    reach; it charges an unanswerable question for an answer without words, which scores as no answer; and where answering
    nothing is best it reports 0.0, which still answers whatever has odds below 0.

    A threshold lies midway between neighbouring odds, 1 below the lowest (nothing is answered) or 1 above the highest
    (everything is). Of equally good ones the lowest is taken. Raises UserError without questions or with infinite odds.
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
    # Odds -2, 3, 3, 7 have the levels -2, 3, 7, which begin at 0, 1, 3. Of the thresholds -3, 0.5, 5, 8
    # the first answers 0 questions, the second 1, the third 3, the last all 4: no threshold answers 2.
    order = np.argsort(odds, kind="stable")
    levels, first = np.unique(odds[order], return_index=True)  # (K-1,) each
    thresholds = _between(levels)  # (K,)
    answered = np.append(first, len(odds))  # (K,) questions answered at each threshold
    exact = _curve(exact[order], has_answer[order], answered)
    f1 = _curve(f1[order], has_answer[order], answered)
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


def _between(levels: np.ndarray) -> np.ndarray:
    """(K-1,) distinct odds, rising -> (K,) thresholds: below all of them, between neighbours, above all."""
    below = levels[:-1]
    above = levels[1:]
    middle = below + (above - below) / 2
    # Neighbouring floats have nothing between them: the lower one itself answers as a middle would.
    middle = np.where(middle < above, middle, below)
    return np.concatenate(([levels[0] - 1.0], middle, [levels[-1] + 1.0]))


def _curve(values: np.ndarray, has_answer: np.ndarray, answered: np.ndarray) -> np.ndarray:
    """(K,) mean score in percent when the first `answered` (K,) questions, by rising odds, get their answers.

    Answering none of three questions, of which the last has no answer, scores 0 + 0 + 1. Each answer then adds its own
    score and takes away what silence scored: with values 1, 0.5, 0 the sums are 1, 2, 2.5, 1.5.
    """
    silence = (~has_answer).astype(np.float64)  # what giving no answer scores
    gains = np.concatenate(([0.0], np.cumsum(values - silence)))
    return 100.0 * (silence.sum() + gains[answered]) / len(values)


def tune(
    odds: np.ndarray, exact: np.ndarray, f1: np.ndarray, has_answer: np.ndarray
) -> dict[str, object]:
    """The threshold of best F1 and the calibration of the null odds, as entries for qa.json, and what they are worth on the
    same questions, which flatters them a little ("tuning").

    null_threshold, and no_answer_scale and no_answer_bias for `no_answer_probability`, are None for data without
    impossible questions; scale and bias also where no question has an answer.
    """
    odds = np.asarray(odds, np.float64)
    exact = np.asarray(exact, np.float64)
    f1 = np.asarray(f1, np.float64)
    has_answer = np.asarray(has_answer, bool)
    # A question without a span scores the same at any threshold; its odds must not stretch the range of thresholds.
    found = odds < NO_SPAN_ODDS
    odds = np.where(found, odds, odds[found].max(initial=0.0))
    threshold = scale = bias = None
    if not has_answer.all():
        threshold = tune_threshold(odds, exact, f1, has_answer).best_f1_thresh
        # A fit needs both kinds of questions. Those without a span say nothing of what odds mean.
        kinds = set(has_answer[found].tolist())
        if kinds == {True, False}:
            scale, bias = fit_probability(odds[found], has_answer[found])
    return {
        "null_threshold": threshold,
        "no_answer_scale": scale,
        "no_answer_bias": bias,
        "tuning": {"tuned": _report(odds, exact, f1, has_answer, threshold, scale, bias)},
    }


def _report(odds, exact, f1, has_answer, threshold, scale, bias) -> dict[str, float]:
    """What the threshold and the calibration are worth on these questions, scores in percent.

    questions; exact and f1 at the tuned threshold and, with the suffix _at_zero, at 0; best_* of any threshold, which is
    hindsight; the calibration error of sigmoid(odds) and of the fitted probability.
    """
    report = {"questions": len(odds)}
    for suffix, value in (("", threshold), ("_at_zero", 0.0)):
        # Silence is right, and scores 1, where there is no answer.
        silent = abstain(odds, value)
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


# ---- null odds to a probability that means what it says: Platt's logistic fit, and the error of any ----


def sigmoid(logit: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-logit)), which never overflows."""
    return np.exp(-np.logaddexp(0.0, -np.asarray(logit, np.float64)))


def no_answer_probability(odds: np.ndarray, scale: float, bias: float) -> np.ndarray:
    """(Q,) probability that a question has no answer, sigmoid(scale * odds + bias)."""
    return sigmoid(scale * np.asarray(odds, np.float64) + bias)


def fit_probability(odds: np.ndarray, has_answer: np.ndarray) -> tuple[float, float]:
    """Scale and bias of `no_answer_probability` by maximum likelihood.

    Targets are Platt's (1999), a little inside of 0 and 1, so that separable data has a finite optimum too. Both kinds
    of questions must occur.
    """
    has_answer = np.asarray(has_answer, bool)
    assert has_answer.any() and not has_answer.all(), (
        "it takes questions with and without an answer"
    )
    without = np.count_nonzero(~has_answer)
    answerable = np.count_nonzero(has_answer)
    # With 8 questions of each kind: 0.1 for those with an answer, 0.9 for those without, never 0 and 1.
    target = np.where(has_answer, 1 / (answerable + 2), (without + 1) / (without + 2))  # (Q,)
    inputs = np.stack([odds, np.ones(len(odds))])  # (2, Q)
    # Where all odds are the same, scale and bias cannot be told apart: a tiny pull decides.
    scale, bias = fit_logistic(inputs, target, np.array([1.0, 0.0]), strength=1e-9)
    return float(scale), float(bias)


def fit_logistic(
    inputs: np.ndarray, target: np.ndarray, weights: np.ndarray, *, strength: float
) -> np.ndarray:
    """(F,) weights with which sigmoid(weights @ inputs) explains the targets best, by Newton's method.

    Args:
        inputs: (F, Q).
        target: (Q,) from 0 to 1.
        weights: (F,) to start from.
        strength: of a pull of the weights towards the start, half of it times their squared distance.
    """
    start = weights

    def loss(weights):
        logit = weights @ inputs  # (Q,)
        pull = 0.5 * strength * np.square(weights - start).sum()
        return float((np.logaddexp(0.0, logit) - target * logit).sum() + pull)

    enough = 1e-9
    for _ in range(100):
        p = sigmoid(weights @ inputs)
        gradient = inputs @ (target - p) - strength * (weights - start)
        hessian = (inputs * (p * (1 - p))) @ inputs.T + strength * np.eye(len(weights))
        step = np.linalg.solve(hessian, gradient)
        # A step may overshoot where the curve is not the parabola that Newton takes it for: half of it does not.
        while loss(weights + step) > loss(weights) and np.abs(step).max() > enough:
            step /= 2
        weights = weights + step
        if np.abs(step).max() < enough:
            break
    return weights


def calibration_error(probability: np.ndarray, has_answer: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error of a no-answer probability, 0 to 1 (Naeini et al. 2015; Guo et al. 2017).

    The mean over questions of |mean probability - share without an answer| of the question's bin; bins of equal width.
    """
    probability = np.asarray(probability)
    without = ~np.asarray(has_answer, bool)
    place = np.minimum((probability * bins).astype(np.int64), bins - 1)  # (Q,) its bin
    gap = np.bincount(place, probability - without, minlength=bins)  # (bins,) summed, not averaged
    return float(np.abs(gap).sum() / len(place))


def gap_of_equal_bins(probability: np.ndarray, outcome: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error of any probability, 0 to 1, over bins of as many questions each.

    Where most probabilities are near 0 or 1, as an answer's confidence, bins of equal width would be nearly empty. The
    mean over questions of |mean probability - share of `outcome`| of the question's bin.
    """
    probability = np.asarray(probability, np.float64)
    outcome = np.asarray(outcome, np.float64)
    order = np.argsort(probability, kind="stable")
    gaps = [abs((probability[part] - outcome[part]).sum()) for part in np.array_split(order, bins)]
    return float(sum(gaps)) / len(order)


# ---- what scores of single questions say of a whole ----


def bootstrap(
    values: np.ndarray, resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> np.ndarray:
    """Percentile confidence intervals of column means (Efron 1979): values (Q, K) -> low and high (K, 2).

    All columns see the same draws of questions: to compare two systems, give their difference as a column and see whether
    its interval holds 0.
    """
    values = np.asarray(values, np.float64)
    questions = len(values)
    rng = np.random.default_rng(seed)
    means = np.empty((resamples, values.shape[1]))
    for mean in means:
        drawn = rng.integers(questions, size=questions)
        times = np.bincount(drawn, minlength=questions)  # (Q,) how often each was drawn
        mean[:] = times @ values / questions
    outside = (1 - level) / 2
    return np.quantile(means, (outside, 1 - outside), axis=0).T


def histogram(odds: Sequence[float], bins: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Proportions (bins,) and edges (bins + 1,) of no-answer odds: over [0, 1] as official, else over all that occurs.

    The official plot drops what lies outside [0, 1], and with log-odds for probabilities that is nearly everything.
    Infinite odds count in the first or the last bin.
    """
    odds = np.asarray(odds, np.float64)
    finite = odds[np.isfinite(odds)]
    low, high = 0.0, 1.0
    if len(finite) and (finite.min() < low or finite.max() > high):
        low, high = finite.min(), finite.max()
    counts, edges = np.histogram(np.clip(odds, low, high), bins=bins, range=(low, high))
    return counts / len(odds), edges
