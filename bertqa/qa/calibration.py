"""Null odds to a probability that means what it says: Platt's logistic fit, and the error of any such probability.

All arrays are (Q,): `odds` the null odds (null score - best span's score), `has_answer` whether the data has one.
"""

import numpy as np


def no_answer_probability(odds: np.ndarray, scale: float, bias: float) -> np.ndarray:
    """(Q,) probability that a question has no answer, sigmoid(scale * odds + bias)."""
    logit = scale * np.asarray(odds, np.float64) + bias
    return np.exp(-np.logaddexp(0.0, -logit))  # never overflows


def fit_probability(odds: np.ndarray, has_answer: np.ndarray) -> tuple[float, float]:
    """Scale and bias of `no_answer_probability` by maximum likelihood: Newton's method, halving steps that overshoot.

    Targets are Platt's (1999), a little inside of 0 and 1, so that separable data has a finite optimum too. Both kinds
    of questions must occur.
    """
    has_answer = np.asarray(has_answer, bool)
    assert has_answer.any() and not has_answer.all(), (
        "it takes questions with and without an answer"
    )
    without = np.count_nonzero(~has_answer)
    answerable = np.count_nonzero(has_answer)
    target = np.where(has_answer, 1 / (answerable + 2), (without + 1) / (without + 2))  # (Q,)
    inputs = np.stack([odds, np.ones(len(odds))])  # (2, Q)

    def loss(weights):
        logit = weights @ inputs  # (Q,)
        return float((np.logaddexp(0.0, logit) - target * logit).sum())

    tiny = 1e-9
    solvable = tiny * np.eye(2)  # where all odds are the same, scale and bias cannot be told apart
    weights = np.array([1.0, 0.0])
    for _ in range(100):
        p = no_answer_probability(odds, *weights)
        gradient = inputs @ (target - p)
        hessian = (inputs * (p * (1 - p))) @ inputs.T + solvable
        step = np.linalg.solve(hessian, gradient)
        while loss(weights + step) > loss(weights) and np.abs(step).max() > tiny:
            step /= 2
        weights = weights + step
        if np.abs(step).max() < tiny:
            break
    return float(weights[0]), float(weights[1])


def calibration_error(probability: np.ndarray, has_answer: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error of a no-answer probability, 0 to 1 (Naeini et al. 2015; Guo et al. 2017).

    The mean over questions of |mean probability - share without an answer| of the question's bin; bins of equal width.
    """
    probability = np.asarray(probability)
    without = ~np.asarray(has_answer, bool)
    place = np.minimum((probability * bins).astype(np.int64), bins - 1)  # (Q,) its bin
    gap = np.bincount(place, probability - without, minlength=bins)  # (bins,) summed, not averaged
    return float(np.abs(gap).sum() / len(place))
