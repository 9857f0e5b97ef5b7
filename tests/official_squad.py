"""What SQuAD's own scripts compute, written down plainly from their definition, to test the scorer against.

Dictionaries by question id, one pass per rule, nothing shared with bertqa. A missing prediction crashes `evaluate_v2`,
as it crashes the official script; `drop_unpredicted` makes the data on which neither does.
"""

import functools
import re
import string
from collections import Counter


@functools.cache
def normal(text):
    text = text.lower()
    text = "".join(c for c in text if c not in string.punctuation)
    text = re.sub(r"\b(a|an|the)\b", " ", text)
    return " ".join(text.split())


def questions(dataset):
    return [
        q
        for article in dataset["data"]
        for paragraph in article["paragraphs"]
        for q in paragraph["qas"]
    ]


def drop_unpredicted(dataset, predictions):
    paragraphs = [
        {**paragraph, "qas": [q for q in paragraph["qas"] if q["id"] in predictions]}
        for article in dataset["data"]
        for paragraph in article["paragraphs"]
    ]
    return {**dataset, "data": [{"title": "", "paragraphs": paragraphs}]}


# ---- v2.0 ----


def exact_v2(gold, guess):
    return int(normal(gold) == normal(guess))


def f1_v2(gold, guess):
    gold, guess = normal(gold).split(), normal(guess).split()
    if not gold or not guess:
        return int(gold == guess)
    overlap = sum((Counter(gold) & Counter(guess)).values())
    if overlap == 0:
        return 0
    precision = overlap / len(guess)
    recall = overlap / len(gold)
    return 2 * precision * recall / (precision + recall)


def evaluate_v2(dataset, predictions, na_probs=None, threshold=1.0, curves=False):
    odds = dict.fromkeys(predictions, 0.0) if na_probs is None else na_probs
    has_answer, exact, f1 = {}, {}, {}
    for q in questions(dataset):
        golds = [a["text"] for a in q["answers"] if normal(a["text"])] or [""]
        has_answer[q["id"]] = len(q["answers"]) > 0
        exact[q["id"]] = max(exact_v2(gold, predictions[q["id"]]) for gold in golds)
        f1[q["id"]] = max(f1_v2(gold, predictions[q["id"]]) for gold in golds)

    def thresholded(raw):
        return {i: float(not has_answer[i]) if odds[i] > threshold else raw[i] for i in raw}

    result = {}
    for prefix, wanted in (("", [True, False]), ("HasAns_", [True]), ("NoAns_", [False])):
        ids = [i for i in has_answer if has_answer[i] in wanted]
        if ids:
            for name, values in (("exact", thresholded(exact)), ("f1", thresholded(f1))):
                result[prefix + name] = 100.0 * sum([values[i] for i in ids]) / len(ids)
            result[prefix + "total"] = len(ids)
    if na_probs is None:
        return result
    for name, values in (("exact", exact), ("f1", f1)):
        result["best_" + name], result[f"best_{name}_thresh"] = best_threshold(
            predictions, values, odds, has_answer
        )
    if curves and any(has_answer.values()):
        for name, values in (("exact", exact), ("f1", f1), ("oracle", has_answer)):
            result[f"pr_{name}_ap"] = average_precision(values, odds, has_answer)
    return result


def best_threshold(predictions, values, odds, has_answer):
    score = best = list(has_answer.values()).count(False)
    at = 0.0
    for i in sorted(odds, key=lambda i: odds[i]):
        if i in values:
            if has_answer[i]:
                score += values[i]
            elif predictions[i]:
                score -= 1
            if score > best:
                best, at = score, odds[i]
    return 100.0 * best / len(values), at


def average_precision(values, odds, has_answer):
    ids = sorted(odds, key=lambda i: odds[i])
    possible = list(has_answer.values()).count(True)
    found, area, last_recall = 0.0, 0.0, 0.0
    for rank, i in enumerate(ids):
        if has_answer[i]:
            found += values[i]
        if rank + 1 == len(ids) or odds[ids[rank + 1]] != odds[i]:
            recall = found / possible
            area += found / (rank + 1) * (recall - last_recall)
            last_recall = recall
    return 100.0 * area


# ---- v1.1 ----


def f1_v1(gold, guess):
    gold, guess = normal(gold).split(), normal(guess).split()
    overlap = sum((Counter(gold) & Counter(guess)).values())
    if overlap == 0:
        return 0
    precision = overlap / len(guess)
    recall = overlap / len(gold)
    return 2 * precision * recall / (precision + recall)


def evaluate_v1(dataset, predictions):
    total = exact = f1 = 0
    for q in questions(dataset):
        total += 1
        if q["id"] in predictions:
            exact += max(normal(a["text"]) == normal(predictions[q["id"]]) for a in q["answers"])
            f1 += max(f1_v1(a["text"], predictions[q["id"]]) for a in q["answers"])
    return {"exact_match": 100.0 * exact / total, "f1": 100.0 * f1 / total}
