"""What scores of single questions say of a whole: intervals of their means, and histograms of no-answer odds."""

from collections.abc import Sequence

import numpy as np


def bootstrap(
    values: np.ndarray, resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> np.ndarray:
    """Percentile confidence intervals of column means (Efron 1979): values (Q, K) -> low and high (K, 2).

    Questions are drawn with replacement, and all columns see the same draws. So the columns are paired by question: to
    compare two systems, give their difference as a column and see whether its interval holds 0.
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
