"""The old scripts' post-processing, written anew and plainly, one question and one candidate at a time.

`run_qa` follows transformers' examples/pytorch/question-answering/utils_qa.py, `google` google-research/bert's
run_squad.py (`_check_is_max_context` and `write_predictions`). Traps are included: the answer "empty", and Google's
crash where nothing but the null answer is there, shown as odds of None. Texts are cut by offset in both.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass
class Feature:
    """One window: the characters of each position of its sequence, None where it is no paragraph token."""

    offsets: list[tuple[int, int] | None]
    first: int
    """First paragraph token, counted in the paragraph."""

    @cached_property
    def context(self) -> list[int]:
        return [position for position, offset in enumerate(self.offsets) if offset is not None]


def features_of(windows, question: int) -> list[Feature]:
    """All windows of a question."""
    features = []
    begin = windows.contexts.rows[windows.question_context[question]]
    for row in np.flatnonzero(windows.question == question).tolist():
        tokens = range(begin + windows.first[row], begin + windows.first[row] + windows.count[row])
        characters = [
            (int(windows.contexts.starts[token]), int(windows.contexts.ends[token]))
            for token in tokens
        ]
        before = windows.questions.rows[question + 1] - windows.questions.rows[question] + 2
        features.append(
            Feature([None] * int(before) + characters + [None], int(windows.first[row]))
        )
    return features


def run_qa(context, features, logits, n=20, max_length=30, v2=True, threshold=0.0):
    """(answer, n-best list, score difference or None); `logits` holds (start, end) float32 arrays of each feature."""
    found, null = [], None
    for feature, (start, end) in zip(features, logits, strict=True):
        if null is None or null["score"] > start[0] + end[0]:
            null = dict(text="", score=start[0] + end[0], start_logit=start[0], end_logit=end[0])
        for i in np.argsort(start)[-1 : -n - 1 : -1].tolist():
            for j in np.argsort(end)[-1 : -n - 1 : -1].tolist():
                if feature.offsets[i] is None or feature.offsets[j] is None:
                    continue
                if j < i or j - i + 1 > max_length:
                    continue
                text = context[feature.offsets[i][0] : feature.offsets[j][1]]
                found.append(
                    dict(text=text, score=start[i] + end[j], start_logit=start[i], end_logit=end[j])
                )
    if v2:
        found.append(null)
    best = sorted(found, key=lambda one: one["score"], reverse=True)[:n]
    if v2 and not any(one is null for one in best):
        best.append(null)
    if not best or (len(best) == 1 and best[0]["text"] == ""):
        best.insert(0, dict(text="empty", score=0.0, start_logit=0.0, end_logit=0.0))
    scores = np.array([one["score"] for one in best])
    shares = np.exp(scores - scores.max())
    for one, share in zip(best, shares / shares.sum(), strict=True):
        one["probability"] = share
    if not v2:
        return best[0]["text"], best, None
    answer = next(one for one in best if one["text"] != "")
    difference = null["score"] - answer["start_logit"] - answer["end_logit"]
    return ("" if difference > threshold else answer["text"]), best, float(difference)


def max_context_of(features, me, position):
    """Is the paragraph token at this position of feature `me` to be scored there?"""
    token = features[me].first + position - features[me].context[0]
    best, owner = None, None
    for number, feature in enumerate(features):
        size = len(feature.context)
        last = feature.first + size - 1
        if not feature.first <= token <= last:
            continue
        score = min(token - feature.first, last - token) + 0.01 * size
        if best is None or score > best:
            best, owner = score, number
    return owner == me


def google(context, features, logits, n=20, max_length=30, v2=True, threshold=0.0):
    """Like `run_qa`; Google's logits are lists of Python floats."""
    found, null, lowest = [], None, 1000000
    for me, (feature, (start, end)) in enumerate(zip(features, logits, strict=True)):
        start, end = start.tolist(), end.tolist()
        if v2 and start[0] + end[0] < lowest:
            lowest, null = start[0] + end[0], ("", start[0], end[0])
        for i in sorted(range(len(start)), key=start.__getitem__, reverse=True)[:n]:
            for j in sorted(range(len(end)), key=end.__getitem__, reverse=True)[:n]:
                if (
                    feature.offsets[i] is None
                    or feature.offsets[j] is None
                    or not max_context_of(features, me, i)
                ):
                    continue
                if i <= j and j - i + 1 <= max_length:
                    found.append(
                        (context[feature.offsets[i][0] : feature.offsets[j][1]], start[i], end[j])
                    )
    if v2:
        found.append(null)
    best, seen = [], set()
    for one in sorted(found, key=lambda one: one[1] + one[2], reverse=True):
        if len(best) == n:
            break
        if one is null or one[0] not in seen:
            seen.add(one[0])
            best.append(one)
    if v2 and null not in best:
        best.append(null)
    if not best:
        best.append(("empty", 0.0, 0.0))
    shares = [math.exp(s + e - max(a + b for _, a, b in best)) for _, s, e in best]
    nbest = [
        dict(text=text, start_logit=s, end_logit=e, probability=share / sum(shares))
        for (text, s, e), share in zip(best, shares, strict=True)
    ]
    if not v2:
        return best[0][0], nbest, None
    answer = next((one for one in best if one[0]), None)
    if answer is None:
        return None, nbest, None
    difference = lowest - answer[1] - answer[2]
    return ("" if difference > threshold else answer[0]), nbest, difference
