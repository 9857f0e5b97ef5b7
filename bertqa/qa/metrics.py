"""Exact match, F1, no-answer thresholds and precision-recall curves: SQuAD's own scripts, and what they lack.

Sources: the official evaluate-v2.0.py (Rajpurkar, Jia and Liang 2018) and the v1.1 script (Rajpurkar et al. 2016).
Their numbers come out to the last digit, so everything is added up as they do it: the same values, of the same types,
in the same order, by `sum` or by a loop as the script has it (since Python 3.12 the two round differently).

Scores are fractions (0 to 1) per question, and percentages (0 to 100) once averaged.
"""

from __future__ import annotations

import functools
import itertools
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bertqa.errors import UserError

if (
    TYPE_CHECKING
):  # importing numpy takes longer than scoring dev-v2.0, so only the functions that need it do
    import numpy as np

    from bertqa.data.examples import Example

PUNCTUATION = str.maketrans(
    "", "", string.punctuation
)  # ASCII only, as the official scripts have it
ARTICLES = re.compile(r"\b(a|an|the)\b")
# Thai to Myanmar, Khmer, kana, ideographs: scripts that put no spaces between words. Hangul does, so it is not here.
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
UNSPACED += "\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
CHARACTERS = re.compile(f"[{UNSPACED}]|[^\\s{UNSPACED}]+")


# ---- one answer against another ----


def normalise_answer(text: str) -> str:
    """Lower case, no ASCII punctuation, no a/an/the, single spaces: in that order, as both official scripts have it."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def char_tokens(normalised: str) -> list[str]:
    """Cut a normalised answer for `char_f1`: each character of a script without spaces alone, other words whole.

    Punctuation of every script goes, not only ASCII's. Text in a language with spaces gives its words, so its ordinary
    F1 but for such punctuation.
    """
    if not normalised.isascii():
        normalised = "".join(" " if unicodedata.category(c)[0] == "P" else c for c in normalised)
    return CHARACTERS.findall(normalised)


def token_f1(gold: Sequence[str], guess: Sequence[str], v1: bool = False) -> float:
    """Harmonic mean of precision and recall of the tokens, counted as multisets.

    With no tokens on either side: 1 when both are empty, else 0; v1.1 has no such rule and gives 0 for both.
    """
    if not gold or not guess:
        return 0 if v1 else int(gold == guess)
    same = 0 if set(gold).isdisjoint(guess) else sum((Counter(gold) & Counter(guess)).values())
    if same == 0:
        return 0
    precision, recall = same / len(guess), same / len(gold)
    return (2 * precision * recall) / (precision + recall)


# ---- one predictions file: a row per question ----


@dataclass(slots=True)
class Scores:
    """Scores of a predictions file: a row per question in the order of the data, as plain lists (see above)."""

    ids: list[str] = field(default_factory=list)
    has_answer: list[bool] = field(
        default_factory=list
    )  # the data gives at least one answer, even one without words
    texts: list[str | None] = field(
        default_factory=list
    )  # the prediction; None = missing and counted as wrong
    exact: list[int] = field(
        default_factory=list
    )  # best over the accepted answers, before any threshold
    f1: list[float] = field(default_factory=list)
    char_f1: list[float] = field(default_factory=list)  # empty unless asked for


def score_answers(
    examples: Iterable[Example],
    predictions: Mapping[str, str],
    *,
    missing: str = "wrong",
    v1: bool = False,
    characters: bool = False,
) -> Scores:
    """Score each question's prediction against all its accepted answers; predictions of unknown ids are ignored.

    v2 rules: accepted answers without words are dropped, and where none is left only an empty answer is right; a
    repeated id counts once, its last record. v1.1 rules: every answer and every record counts, and "" never earns F1.

    `missing` says what becomes of a question without a prediction. "wrong": it scores 0 whatever the threshold, as in
    the v1.1 script. "skip": it is left out, as if the data did not have it. The v2 script skips it too, but then dies
    of a KeyError in HasAns or NoAns: so "skip" is what it prints for the data cut down to the predicted questions.

    Raises UserError where v1.1 rules meet a question without answers (they have no score for it), and where no question
    has a prediction at all (the files do not belong together).
    """
    assert missing in ("wrong", "skip"), missing
    normalise = functools.cache(normalise_answer)  # answers repeat; the cache dies with this call
    examples = (
        list(examples) if v1 else list({example.id: example for example in examples}.values())
    )
    if not any(example.id in predictions for example in examples):
        ids = [example.id for example in examples]
        raise UserError(
            f"none of the {len(predictions)} predictions belongs to one of the {len(ids)} questions: ids are like "
            f"{_some(predictions)} in the predictions and {_some(ids)} in the data; give the data they were made for"
        )
    scores = Scores()
    for example in examples:
        if v1 and not example.answer_texts:
            raise UserError(
                f"question {example.id!r} has no answers, and SQuAD v1.1's rules cannot score it: use v2 rules (--v2)"
            )
        text = predictions.get(example.id)
        if text is None and missing == "skip":
            continue
        scores.ids.append(example.id)
        scores.has_answer.append(bool(example.answer_texts))
        scores.texts.append(text)
        golds = dict.fromkeys(map(normalise, example.answer_texts))
        if not v1:
            golds.pop("", None)
        golds, guess = list(golds) or [""], None if text is None else normalise(text)
        scores.exact.append(int(guess in golds))
        scores.f1.append(_best_f1(golds, guess, str.split, v1))
        if characters:
            scores.char_f1.append(_best_f1(golds, guess, char_tokens, v1))
    return scores


def _some(ids: Iterable[str]) -> str:
    return ", ".join(map(repr, itertools.islice(ids, 3))) or "nothing"


def _best_f1(
    golds: list[str], guess: str | None, tokens: Callable[[str], list[str]], v1: bool
) -> float:
    if guess is None:
        return 0
    if guess and guess in golds:  # by far the commonest way to score
        return 1.0
    guess = tokens(guess)
    return max(token_f1(tokens(gold), guess, v1) for gold in golds)


# ---- the whole file ----


def evaluate_v1(scores: Scores) -> dict[str, float]:
    """The keys of the v1.1 script: exact_match and f1. `scores` must have been made with `v1=True`."""
    f1 = 0
    for value in scores.f1:  # not sum(): see the module's docstring
        f1 += value
    return {
        "exact_match": 100.0 * sum(scores.exact) / len(scores.ids),
        "f1": 100.0 * f1 / len(scores.ids),
    }


def evaluate_v2(
    scores: Scores,
    na_probs: Mapping[str, float] | None = None,
    threshold: float = 1.0,
    curves: bool = False,
) -> dict[str, float]:
    """The keys of evaluate-v2.0.py, in its order; `na_probs` is its --na-prob-file, `curves` adds --out-image-dir's.

    HasAns_* or NoAns_* are absent when there is no such question, pr_*_ap when no question has an answer. Ids in
    `na_probs` that the data does not have are left out of the curves, where the script would crash. The best_* keys are
    the script's own sweep; to choose a threshold use `thresholds.tune_threshold`, which says what is wrong with them.

    Raises UserError where `na_probs` lacks a question that has a prediction.
    """
    odds = odds_of(scores, na_probs)
    result = averages(
        apply_threshold(scores.exact, scores, odds, threshold),
        apply_threshold(scores.f1, scores, odds, threshold),
        scores.has_answer,
    )
    if na_probs is not None:
        order = ranking(scores, na_probs)
        for name in ("exact", "f1"):
            best, at = find_best_thresh(getattr(scores, name), scores, odds, order)
            result |= {f"best_{name}": best, f"best_{name}_thresh": at}
        if curves and any(scores.has_answer):
            for name, values in curve_values(scores).items():
                result[f"pr_{name}_ap"] = precision_recall(values, scores.has_answer, odds, order)[
                    2
                ]
    return result


def odds_of(scores: Scores, na_probs: Mapping[str, float] | None) -> list[float | None]:
    """No-answer odds of each row, all 0.0 without `na_probs`; None where a missing prediction has (and needs) none."""
    if na_probs is None:
        return [0.0] * len(scores.ids)
    absent = [
        i
        for i, t in zip(scores.ids, scores.texts, strict=True)
        if t is not None and i not in na_probs
    ]
    if absent:
        raise UserError(
            f"{len(absent)} of {len(scores.ids)} questions have no no-answer probability, e.g. {absent[0]!r}; give the "
            "file that was written along with the predictions"
        )
    return [na_probs.get(i) for i in scores.ids]


def apply_threshold(
    values: Sequence[float], scores: Scores, odds: Sequence[float | None], threshold: float
) -> list[float]:
    """Scores after every answer with odds > threshold is replaced by no answer. A missing prediction stays at 0."""
    rows = zip(values, scores.texts, odds, scores.has_answer, strict=True)
    return [
        float(not has) if text is not None and o > threshold else value
        for value, text, o, has in rows
    ]


def averages(
    exact: Sequence[float], f1: Sequence[float], has_answer: Sequence[bool]
) -> dict[str, float]:
    """exact, f1 and total, over all questions and under HasAns_ and NoAns_ over the two kinds (a kind must occur)."""
    result = {}
    for prefix, kind in (("", (True, False)), ("HasAns_", (True,)), ("NoAns_", (False,))):
        rows = [row for row, has in enumerate(has_answer) if has in kind]
        if rows:
            result[prefix + "exact"] = 100.0 * sum(exact[row] for row in rows) / len(rows)
            result[prefix + "f1"] = 100.0 * sum(f1[row] for row in rows) / len(rows)
            result[prefix + "total"] = len(rows)
    return result


def answered(scores: Scores, odds: Sequence[float | None], threshold: float) -> list[bool | None]:
    """Whether each question got an answer: a text that is not empty, with odds up to the threshold. None: missing."""
    rows = zip(scores.texts, odds, strict=True)
    return [None if text is None else text != "" and not o > threshold for text, o in rows]


def answer_vs_no_answer(scores: Scores, odds: Sequence[float | None], threshold: float) -> float:
    """Percentage of questions for which giving or withholding an answer was right, whatever the answer says."""
    rows = zip(answered(scores, odds, threshold), scores.has_answer, strict=True)
    return 100.0 * sum(given is has for given, has in rows) / len(scores.ids)


def ranking(scores: Scores, na_probs: Mapping[str, float]) -> list[int]:
    """Rows by rising no-answer odds. Ties stay in the order of `na_probs`: the official sweep depends on it."""
    row = {id: number for number, id in enumerate(scores.ids)}
    return [row[id] for id in sorted(na_probs, key=na_probs.__getitem__) if id in row]


def find_best_thresh(
    values: Sequence[float], scores: Scores, odds: Sequence[float | None], order: Sequence[int]
) -> tuple[float, float]:
    """The official sweep, for its numbers only: (best score in percent, threshold). Use `thresholds.tune_threshold`."""
    known = [text is not None for text in scores.texts]
    score = best = sum(
        k and not has for k, has in zip(known, scores.has_answer, strict=True)
    )  # answering nothing
    threshold = 0.0
    for row in order:
        if not known[row]:
            continue
        score += values[row] if scores.has_answer[row] else -1 if scores.texts[row] else 0
        if score > best:
            best, threshold = score, odds[row]
    return 100.0 * best / len(values), threshold


def curve_values(scores: Scores) -> dict[str, Sequence[float]]:
    """What each of the three curves credits an answered question with; "oracle" asks only whether it has an answer."""
    return {
        "exact": scores.exact,
        "f1": scores.f1,
        "oracle": [float(has) for has in scores.has_answer],
    }


def precision_recall(
    values: Sequence[float],
    has_answer: Sequence[bool],
    odds: Sequence[float | None],
    order: Sequence[int],
) -> tuple[list[float], list[float], float]:
    """Precisions, recalls (fractions, starting at 1 and 0) and average precision in percent, answering down `order`.

    A point stands wherever a threshold can: not between questions of equal odds. Some question must have an answer.
    """
    possible = sum(has_answer)
    right, area = 0.0, 0.0
    precisions, recalls = [1.0], [0.0]
    for answered, row in enumerate(order, start=1):
        if has_answer[row]:
            right += values[row]
        if answered == len(order) or odds[row] != odds[order[answered]]:
            precision, recall = right / answered, right / possible
            area += precision * (recall - recalls[-1])
            precisions.append(precision)
            recalls.append(recall)
    return precisions, recalls, 100.0 * area


# ---- arrays ----


def bootstrap(
    values: np.ndarray, resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> np.ndarray:
    """Percentile confidence intervals of column means (Efron 1979): values (Q, K) -> low and high (K, 2).

    Questions are drawn with replacement, and all columns see the same draws. So the columns are paired by question: to
    compare two systems, give their difference as a column and see whether its interval holds 0.
    """
    import numpy as np

    values = np.asarray(values, np.float64)
    rng = np.random.default_rng(seed)
    means = np.empty((resamples, values.shape[1]))
    for mean in means:
        mean[:] = (
            np.bincount(rng.integers(len(values), size=len(values)), minlength=len(values))
            @ values
            / len(values)
        )
    return np.quantile(means, ((1 - level) / 2, (1 + level) / 2), axis=0).T


def histogram(odds: Sequence[float], bins: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Proportions (bins,) and edges (bins + 1,) of no-answer odds: over [0, 1] as official, else over all that occurs.

    The official plot drops what lies outside [0, 1], and with log-odds for probabilities that is nearly everything.
    Infinite odds count in the first or the last bin.
    """
    import numpy as np

    odds = np.asarray(odds, np.float64)
    finite = odds[np.isfinite(odds)]
    inside = len(finite) == 0 or (finite.min() >= 0.0 and finite.max() <= 1.0)
    low, high = (0.0, 1.0) if inside else (finite.min(), finite.max())
    counts, edges = np.histogram(np.clip(odds, low, high), bins=bins, range=(low, high))
    return counts / len(odds), edges
