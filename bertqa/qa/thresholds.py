"""When to give no answer: the decision rule, a threshold tuned without fooling oneself, and a calibrated probability.

Everything here works on raw best non-null answers; `tune_threshold` says why.

All arrays are (Q,): `odds` the null odds (null score - best span's score), `exact` and `f1` the scores of the raw best
answers as fractions, `has_answer` whether the data has one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bertqa.data.examples import Example
from bertqa.errors import UserError

NO_SPAN_ODDS = 1e4
"""Null odds of a question without any valid span: finite, since JSON knows no infinity, and beyond what logits give."""


def abstain(odds: np.ndarray, threshold: float | None) -> np.ndarray:
    """(Q,) bool, the one decision rule: "" is the answer where null odds > threshold. None never abstains."""
    odds = np.asarray(odds)
    return np.zeros(odds.shape, bool) if threshold is None else odds > threshold


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
    """The no-answer threshold that scores best, given each question's raw best non-null answer. All arrays are (Q,).

    `exact` and `f1` score the raw answers (`score_answers` of the best non-null texts): once a threshold has emptied
    some of them, no sweep can see what a higher threshold would have earned. The official sweep has more to correct: it
    takes points between questions of equal odds, which no threshold can reach; it charges an unanswerable question for
    an answer without words, which scores as no answer; and where answering nothing is best it reports 0.0, which still
    answers whatever has odds below 0.

    A threshold lies midway between neighbouring odds, 1 below the lowest (nothing is answered) or 1 above the highest
    (everything is). Of equally good ones the lowest is taken. Raises UserError without questions or with infinite odds.
    """
    odds, exact, f1 = (np.asarray(a, np.float64) for a in (odds, exact, f1))
    has_answer = np.asarray(has_answer, bool)
    assert odds.shape == exact.shape == f1.shape == has_answer.shape and odds.ndim == 1
    if len(odds) == 0 or not np.isfinite(odds).all():
        bad = int(np.count_nonzero(~np.isfinite(odds)))
        raise UserError(
            f"a threshold needs no-answer odds that are finite numbers: {bad} of {len(odds)} are not"
        )
    order = np.argsort(odds, kind="stable")
    levels, first = np.unique(
        odds[order], return_index=True
    )  # (K-1,) distinct odds and where each starts
    below, above = levels[:-1], levels[1:]
    middle = below + (above - below) / 2
    middle = np.where(
        middle < above, middle, below
    )  # neighbouring floats have nothing between them
    thresholds = np.concatenate(([levels[0] - 1.0], middle, [levels[-1] + 1.0]))
    answered = np.append(first, len(odds))  # (K,) questions answered at each threshold
    nothing = (~has_answer).astype(np.float64)

    def curve(values: np.ndarray) -> np.ndarray:
        gains = np.concatenate(
            ([0.0], np.cumsum((values - nothing)[order]))
        )  # answering this one more question
        return 100.0 * (nothing.sum() + gains[answered]) / len(odds)

    exact, f1 = curve(exact), curve(f1)
    at_exact, at_f1 = int(exact.argmax()), int(f1.argmax())
    return Sweep(
        thresholds,
        exact,
        f1,
        float(exact[at_exact]),
        float(thresholds[at_exact]),
        float(f1[at_f1]),
        float(thresholds[at_f1]),
    )


def tune(
    odds: np.ndarray,
    exact: np.ndarray,
    f1: np.ndarray,
    has_answer: np.ndarray,
    *,
    examples: Sequence[Example] | None = None,
    tune_on: float | None = None,
    seed: int = 0,
) -> dict:
    """The threshold of best F1 and the calibration of the null odds, as entries for qa.json.

    Without `tune_on` both are fitted and reported on all questions, which flatters them. With it, they are fitted on
    that fraction of the questions, whole articles of `examples`, and `held_out` reports what they give on the rest.

    Returns:
        null_threshold, and no_answer_scale and no_answer_bias for `no_answer_probability`. All three are None for data
        without impossible questions; scale and bias also where no question has an answer.
        tuning: how they came about; for the tuned part and, if any, the held-out part what `_report` says.

    Raises:
        UserError: for a fraction outside of (0, 1), or data that has one article only.
    """
    odds, exact, f1 = (np.asarray(values, np.float64) for values in (odds, exact, f1))
    has_answer = np.asarray(has_answer, bool)
    # A question without a span scores the same at any threshold; its odds must not stretch the range of thresholds.
    found = odds < NO_SPAN_ODDS
    odds = np.where(found, odds, odds[found].max(initial=0.0))
    part = np.ones(len(odds), bool) if tune_on is None else hold_out(examples, tune_on, seed)
    threshold = scale = bias = None
    if not has_answer[part].all():
        threshold = tune_threshold(
            odds[part], exact[part], f1[part], has_answer[part]
        ).best_f1_thresh
        fit = part & found
        if has_answer[fit].any() and not has_answer[fit].all():
            scale, bias = fit_probability(odds[fit], has_answer[fit])
    tuning = {"tune_on": tune_on, "seed": seed}
    for name, rows in (("tuned", part), ("held_out", ~part)):
        if rows.any():
            tuning[name] = _report(
                odds[rows], exact[rows], f1[rows], has_answer[rows], threshold, scale, bias
            )
    return {
        "null_threshold": threshold,
        "no_answer_scale": scale,
        "no_answer_bias": bias,
        "tuning": tuning,
    }


def _report(odds, exact, f1, has_answer, threshold, scale, bias) -> dict:
    """questions; exact and f1 (percent) at the tuned threshold and at 0; the best that any threshold gives on these
    questions, which is hindsight; the calibration error of sigmoid(odds) and of the fitted probability."""
    sweep = tune_threshold(odds, exact, f1, has_answer)
    report = {"questions": len(odds)}
    for suffix, value in (("", threshold), ("_at_zero", 0.0)):
        silent = abstain(odds, value)
        report |= {
            name + suffix: 100.0 * float(np.where(silent, ~has_answer, values).mean())
            for name, values in (("exact", exact), ("f1", f1))
        }
    report |= {
        name: getattr(sweep, name)
        for name in ("best_f1", "best_f1_thresh", "best_exact", "best_exact_thresh")
    }
    if scale is not None:
        report["calibration_error_before"] = calibration_error(
            no_answer_probability(odds, 1.0, 0.0), has_answer
        )
        report["calibration_error"] = calibration_error(
            no_answer_probability(odds, scale, bias), has_answer
        )
    return report


def hold_out(examples: Sequence[Example], fraction: float, seed: int = 0) -> np.ndarray:
    """(Q,) bool, True for the questions to tune on: whole articles drawn by `seed` until nearest to the fraction.

    Questions of an article resemble each other, so a split through one would report too good a number. Where examples
    have no title the paragraph stands for it. The order of the examples does not matter.

    Raises:
        UserError: for a fraction outside of (0, 1), or fewer than two articles.
    """
    if not 0.0 < fraction < 1.0:
        raise UserError(
            f"tune_on is {fraction}; it is the fraction of the questions to tune on, above 0 and below 1"
        )
    names, article = np.unique(
        [example.title or example.context for example in examples], return_inverse=True
    )
    if len(names) < 2:
        raise UserError(
            f"tune_on {fraction} holds out whole articles, but all {len(examples)} questions are of "
            f"{len(names)} article; tune on all of them, or give data with more articles"
        )
    order = np.random.default_rng(seed).permutation(len(names))
    total = np.bincount(article)[order].cumsum()  # questions in the first k+1
    chosen = 1 + int(np.abs(total[:-1] - fraction * len(examples)).argmin())  # never all articles
    return np.isin(article, order[:chosen])


def no_answer_probability(odds: np.ndarray, scale: float, bias: float) -> np.ndarray:
    """(Q,) probability that a question has no answer, sigmoid(scale * odds + bias)."""
    return np.exp(-np.logaddexp(0.0, -(scale * np.asarray(odds, np.float64) + bias)))


def fit_probability(odds: np.ndarray, has_answer: np.ndarray) -> tuple[float, float]:
    """Scale and bias of `no_answer_probability` by maximum likelihood: Newton's method, halving steps that overshoot.

    Targets are Platt's (1999), a little inside of 0 and 1, so that separable data has a finite optimum too. Both kinds
    of questions must occur.
    """
    none = ~np.asarray(has_answer, bool)
    assert none.any() and not none.all(), "a probability needs questions with and without an answer"
    target = np.where(none, (none.sum() + 1) / (none.sum() + 2), 1 / ((~none).sum() + 2))
    inputs = np.stack([odds, np.ones(len(odds))])  # (2, Q)

    def loss(weights):
        logit = weights @ inputs
        return float((np.logaddexp(0.0, logit) - target * logit).sum())

    weights = np.array([1.0, 0.0])
    for _ in range(100):
        p = no_answer_probability(odds, *weights)
        hessian = (inputs * (p * (1 - p))) @ inputs.T + 1e-9 * np.eye(
            2
        )  # constant odds stay solvable
        step = np.linalg.solve(hessian, inputs @ (target - p))
        while loss(weights + step) > loss(weights) and np.abs(step).max() > 1e-9:
            step /= 2
        weights = weights + step
        if np.abs(step).max() < 1e-9:
            break
    return float(weights[0]), float(weights[1])


def calibration_error(probability: np.ndarray, has_answer: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error of a no-answer probability, 0 to 1 (Naeini et al. 2015; Guo et al. 2017).

    The mean over questions of |mean probability - share without an answer| of the question's bin; bins of equal width.
    """
    place = np.minimum((np.asarray(probability) * bins).astype(np.int64), bins - 1)
    gap = np.bincount(place, probability - ~np.asarray(has_answer, bool), minlength=bins)
    return float(np.abs(gap).sum() / len(place))
