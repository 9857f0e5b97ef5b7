"""Scores of a predictions file: exact match, F1, no-answer thresholds, precision-recall curves, as SQuAD's own scripts.

Sources: the official evaluate-v2.0.py (Rajpurkar, Jia and Liang 2018) and the v1.1 script (Rajpurkar et al. 2016).
Their numbers come out to the last digit, so everything is added up as they do it: the same values, of the same types,
in the same order, by `sum` or by a loop as the script has it (since Python 3.12 the two round differently).

Scores are fractions (0 to 1) per question, and percentages (0 to 100) once averaged.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from bertqa.data.examples import Example
from bertqa.errors import UserError
from bertqa.qa.agreement import char_tokens, normalise_answer, token_f1

# ---- one predictions file: a row per question ----


@dataclass(slots=True)
class Scores:
    """Scores of a predictions file: a row per question in the order of the data, as plain lists (see above).

    exact and f1 are the best over the accepted answers, before any threshold; so is char_f1, empty unless asked for.
    """

    ids: list[str] = field(default_factory=list)
    has_answer: list[bool] = field(default_factory=list)  # at least one, even one without words
    texts: list[str | None] = field(default_factory=list)  # none: missing, and counted as wrong
    exact: list[int] = field(default_factory=list)
    f1: list[float] = field(default_factory=list)
    char_f1: list[float] = field(default_factory=list)


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
    the v1.1 script. "skip": it is left out, as if the data did not have it (where the v2 script dies of a KeyError).

    Raises UserError where v1.1 rules meet a question without answers (they have no score for it), and where no question
    has a prediction at all (the files do not belong together).
    """
    assert missing in ("wrong", "skip"), missing
    normalise = functools.cache(normalise_answer)  # answers repeat; the cache dies with this call
    examples = list(examples)
    # The v2 script keeps answers in a dictionary by id, where the last record of an id wins.
    if not v1:
        examples = list({example.id: example for example in examples}.values())
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
        golds = _accepted(map(normalise, example.answer_texts), v1)
        guess = None if text is None else normalise(text)
        scores.exact.append(int(guess in golds))
        scores.f1.append(_best_f1(golds, guess, str.split, v1))
        if characters:
            scores.char_f1.append(_best_f1(golds, guess, char_tokens, v1))
    return scores


def _accepted(golds: Iterable[str], v1: bool) -> list[str]:
    """The normalised answers that count, each once; where v2 rules leave none, only "" is right."""
    distinct = dict.fromkeys(golds)
    if not v1:
        distinct.pop("", None)
    return list(distinct) or [""]


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
    `na_probs` that the data does not have are left out of the curves. The best_* keys are the script's own sweep; to
    choose a threshold use `thresholds.tune_threshold`, which says what is wrong with them.

    Raises UserError where `na_probs` lacks a question that has a prediction.
    """
    odds = odds_of(scores, na_probs)
    exact = apply_threshold(scores.exact, scores, odds, threshold)
    f1 = apply_threshold(scores.f1, scores, odds, threshold)
    result = averages(exact, f1, scores.has_answer)
    if na_probs is not None:
        order = ranking(scores, na_probs)
        for name, values in (("exact", scores.exact), ("f1", scores.f1)):
            result[f"best_{name}"], result[f"best_{name}_thresh"] = find_best_thresh(
                values, scores, odds, order
            )
        if curves and any(scores.has_answer):
            for name, values in curve_values(scores).items():
                _, _, area = precision_recall(values, scores.has_answer, odds, order)
                result[f"pr_{name}_ap"] = area
    return result


def odds_of(scores: Scores, na_probs: Mapping[str, float] | None) -> list[float | None]:
    """No-answer odds of each row, all 0.0 without `na_probs`; None where a missing prediction has (and needs) none."""
    if na_probs is None:
        return [0.0] * len(scores.ids)
    predicted = [id for id, text in zip(scores.ids, scores.texts, strict=True) if text is not None]
    absent = [id for id in predicted if id not in na_probs]
    if absent:
        raise UserError(
            f"{len(absent)} of {len(scores.ids)} questions have no no-answer probability, e.g. {absent[0]!r}; give the "
            "file that was written along with the predictions"
        )
    return [na_probs.get(id) for id in scores.ids]


def apply_threshold(
    values: Sequence[float], scores: Scores, odds: Sequence[float | None], threshold: float
) -> list[float]:
    """Scores after every answer with odds > threshold is replaced by no answer. A missing prediction stays at 0."""
    result = []
    for value, text, odd, has in zip(values, scores.texts, odds, scores.has_answer, strict=True):
        silent = text is not None and odd > threshold
        result.append(float(not has) if silent else value)
    return result


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
    result: list[bool | None] = []
    for text, odd in zip(scores.texts, odds, strict=True):
        result.append(None if text is None else text != "" and odd <= threshold)
    return result


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
    score = 0  # answering nothing is right for the questions without an answer
    for text, has in zip(scores.texts, scores.has_answer, strict=True):
        score += text is not None and not has
    best = score
    threshold = 0.0
    for row in order:
        if scores.texts[row] is None:
            continue
        # One more question is answered. A wrong answer costs 1, an empty one nothing: the script's own rule.
        if scores.has_answer[row]:
            score += values[row]
        elif scores.texts[row]:
            score -= 1
        if score > best:
            best = score
            threshold = odds[row]
    return 100.0 * best / len(values), threshold


def curve_values(scores: Scores) -> dict[str, Sequence[float]]:
    """What each of the three curves credits an answered question with; "oracle" asks only whether it has an answer."""
    oracle = [float(has) for has in scores.has_answer]
    return {"exact": scores.exact, "f1": scores.f1, "oracle": oracle}


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
    right = 0.0
    area = 0.0
    precisions = [1.0]
    recalls = [0.0]
    for count, row in enumerate(order, start=1):
        if has_answer[row]:
            right += values[row]
        is_last = count == len(order)
        if is_last or odds[row] != odds[order[count]]:
            precision = right / count
            recall = right / possible
            area += precision * (recall - recalls[-1])
            precisions.append(precision)
            recalls.append(recall)
    return precisions, recalls, 100.0 * area
