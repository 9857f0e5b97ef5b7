"""Score a predictions file as SQuAD's scripts do: exact match, F1, no-answer thresholds, precision-recall curves.

The scripts are evaluate-v2.0.py (Rajpurkar, Jia and Liang 2018) and that of v1.1 (Rajpurkar et al. 2016). Results equal
theirs to the last digit, so values are summed as they sum them: of the same types, in the same order, by `sum` or by a
loop (since Python 3.12 the two round differently).

Scores of single questions are fractions (0 to 1), averages are percentages (0 to 100).
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from bertqa.data.examples import Example
from bertqa.errors import UserError
from bertqa.qa.agreement import char_tokens, normalise_answer, token_f1

# ---- Single questions ----


@dataclass(slots=True)
class Scores:
    """Scores of a predictions file before any no-answer threshold, a row per question in the order of the data.

    exact, f1 and char_f1 are the best over the accepted answers; char_f1 is empty unless asked for.
    """

    ids: list[str] = field(default_factory=list)
    has_answer: list[bool] = field(default_factory=list)  # any in the data, even one without words
    texts: list[str | None] = field(default_factory=list)  # None: no prediction, counts as wrong
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
    """Score the prediction for each question against its accepted answers; predictions of unknown ids are ignored.

    By the rules of v2, accepted answers without words are dropped, and where none is left only an empty answer is
    right; of records with the same id the last one counts. By those of v1.1, all answers and records count, and ""
    has F1 0.

    Args:
        missing: what to do with a question without a prediction. "wrong": it scores 0 at any threshold, as in the v1.1
            script. "skip": it is left out, as if it were not in the data (the v2 script stops with a KeyError).
        v1: use the rules of v1.1.
        characters: fill `Scores.char_f1` too.

    Raises:
        UserError: for a question without answers under the rules of v1.1, which cannot score it, and where no question
            has a prediction: the two files do not belong together.
    """
    assert missing in ("wrong", "skip"), missing
    normalise = functools.cache(normalise_answer)  # answers repeat
    examples = list(examples)
    if not v1:
        # The v2 script has a dictionary by id, in which the last record of an id wins.
        examples = list({example.id: example for example in examples}.values())
    _check_ids([example.id for example in examples], predictions)
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


def _check_ids(ids: list[str], predictions: Mapping[str, str]) -> None:
    """Raise UserError if no question has a prediction."""
    if not any(id in predictions for id in ids):
        raise UserError(
            f"none of the {len(predictions)} predictions belongs to one of the {len(ids)} questions: ids are like "
            f"{_some(predictions)} in the predictions and {_some(ids)} in the data; give the data they were made for"
        )


def _accepted(golds: Iterable[str], v1: bool) -> list[str]:
    """Return the distinct normalised answers that count; [""] where v2 rules leave none."""
    distinct = dict.fromkeys(golds)
    if not v1:
        distinct.pop("", None)
    return list(distinct) or [""]


def _some(ids: Iterable[str]) -> str:
    """Return the first three ids, for a message."""
    return ", ".join(map(repr, itertools.islice(ids, 3))) or "nothing"


def _best_f1(
    golds: list[str], guess: str | None, tokens: Callable[[str], list[str]], v1: bool
) -> float:
    """Return the highest F1 of a normalised prediction over the normalised answers; 0 for no prediction."""
    if guess is None:
        return 0
    if guess and guess in golds:  # only to save time: most predictions that score at all are exact
        return 1.0
    guess = tokens(guess)
    return max(token_f1(tokens(gold), guess, v1) for gold in golds)


# ---- The whole file ----


def evaluate_v1(scores: Scores) -> dict[str, float]:
    """Return what the v1.1 script prints, exact_match and f1. `scores` must have been made with `v1=True`."""
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
    """Return what evaluate-v2.0.py prints, with its keys in its order.

    HasAns_* and NoAns_* are there only if such questions are, pr_*_ap only if some question has an answer. The best_*
    keys come from the script's own sweep; to choose a threshold use `thresholds.tune_threshold`, which says why.

    Args:
        na_probs: no-answer odds by question id, the script's --na-prob-file. Other ids than the data's are ignored.
        threshold: the script's --na-prob-thresh.
        curves: add the average precisions that the script adds with --out-image-dir.

    Raises:
        UserError: where `na_probs` lacks a question that has a prediction.
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
    """Return the no-answer odds of each row, 0.0 without `na_probs`; None where a question without prediction has none.

    Raises UserError where `na_probs` lacks a question that has a prediction.
    """
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
    """Return the scores once answers with odds > threshold are replaced by "". Missing predictions stay at 0."""
    result = []
    for value, text, odd, has in zip(values, scores.texts, odds, scores.has_answer, strict=True):
        if text is not None and odd > threshold:
            value = float(not has)
        result.append(value)
    return result


def averages(
    exact: Sequence[float], f1: Sequence[float], has_answer: Sequence[bool]
) -> dict[str, float]:
    """Return exact, f1 and total of all questions, and as HasAns_* and NoAns_* of each kind that occurs."""
    result = {}
    for prefix, kinds in (("", (True, False)), ("HasAns_", (True,)), ("NoAns_", (False,))):
        rows = [row for row, has in enumerate(has_answer) if has in kinds]
        if rows:
            result[prefix + "exact"] = 100.0 * sum(exact[row] for row in rows) / len(rows)
            result[prefix + "f1"] = 100.0 * sum(f1[row] for row in rows) / len(rows)
            result[prefix + "total"] = len(rows)
    return result


def answered(scores: Scores, odds: Sequence[float | None], threshold: float) -> list[bool | None]:
    """Return whether each question gets an answer: a text other than "", with odds <= threshold. None: missing."""
    result: list[bool | None] = []
    for text, odd in zip(scores.texts, odds, strict=True):
        if text is None:
            result.append(None)
        else:
            result.append(text != "" and odd <= threshold)
    return result


def answer_vs_no_answer(scores: Scores, odds: Sequence[float | None], threshold: float) -> float:
    """Return the percentage of questions rightly given any answer at all, or rightly given none."""
    rows = zip(answered(scores, odds, threshold), scores.has_answer, strict=True)
    return 100.0 * sum(given is has for given, has in rows) / len(scores.ids)


def ranking(scores: Scores, na_probs: Mapping[str, float]) -> list[int]:
    """Return the rows by ascending no-answer odds; ties in the order of `na_probs`, as the official sweep has them."""
    row = {id: number for number, id in enumerate(scores.ids)}
    return [row[id] for id in sorted(na_probs, key=na_probs.__getitem__) if id in row]


def find_best_thresh(
    values: Sequence[float], scores: Scores, odds: Sequence[float | None], order: Sequence[int]
) -> tuple[float, float]:
    """Return the best score in percent and its threshold by the official sweep.

    This is only for the script's numbers: to choose a threshold use `thresholds.tune_threshold`.
    """
    score = 0  # answering nothing is right for the questions without an answer
    for text, has in zip(scores.texts, scores.has_answer, strict=True):
        score += text is not None and not has
    best = score
    threshold = 0.0
    for row in order:
        if scores.texts[row] is None:
            continue
        # One more question is answered. To an unanswerable one any text costs 1, and "" costs nothing.
        if scores.has_answer[row]:
            score += values[row]
        elif scores.texts[row]:
            score -= 1
        if score > best:
            best = score
            threshold = odds[row]
    return 100.0 * best / len(values), threshold


def curve_values(scores: Scores) -> dict[str, Sequence[float]]:
    """Return what an answered question counts in each of the three curves; in "oracle" 1 if it has an answer at all."""
    oracle = [float(has) for has in scores.has_answer]
    return {"exact": scores.exact, "f1": scores.f1, "oracle": oracle}


def precision_recall(
    values: Sequence[float],
    has_answer: Sequence[bool],
    odds: Sequence[float | None],
    order: Sequence[int],
) -> tuple[list[float], list[float], float]:
    """Return precisions and recalls (fractions, from 1 and 0 on) and the average precision in percent.

    Questions are answered in the order of `order`. There is a point for each possible threshold, so none between
    questions of equal odds. At least one question must have an answer.
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
