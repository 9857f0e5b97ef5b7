"""Count what is wrong with a data set: repeated or contradictory questions, answers that no span can hit."""

import itertools
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from bertqa.data.examples import Dataset, Example
from bertqa.data.tokenizer import WordPiece
from bertqa.data.windows import build_windows
from bertqa.qa import metrics
from bertqa.qa.agreement import normalise_answer
from bertqa.qa.ceiling import FAULTS, Placed, best_answer, ceiling, place, views


def examine(
    data: Dataset, other: Dataset | None, tokenizer: WordPiece | None, settings: dict
) -> dict:
    """Return the report as a JSON object. Without a tokenizer it has no "settings", and nothing about tokens.

    Args:
        other: data that `data` should share nothing with.
        settings: max_length, overlap or step, max_question, max_answer_length, all in tokens.
    """
    examples = data.examples
    groups = repeated(examples)
    answers = Counter(len(example.answer_texts) for example in examples)
    unplaced = 0  # accepted answers without a known place in the paragraph
    for example in examples:
        unplaced += example.answer_starts.count(-1)
    report = {
        "file": data.path,
        "format": data.format,
        "sha256": data.sha256,
        "version": data.version,
        "questions": len(examples),
        "impossible": answers[0],
        "paragraphs": len({example.context for example in examples}),
        "articles": len({example.title for example in examples} - {""}),
        "answers_per_question": dict(sorted(answers.items())),
        "faults": data.faults,
        "offsets_in": data.unit,
        "repaired": data.repaired,
        "unplaced_answers": unplaced,
        "rejected": [{"id": question.id, "reason": question.reason} for question in data.rejected],
        "duplicates": [[example.id for example in group] for group in groups],
        "contradictions": contradictions(groups),
    }
    if other:
        report["overlap"] = overlap(data, other)
    if tokenizer:
        report |= token_report(data, tokenizer, settings)
    return report


# Questions that repeat others


def question_key(question: str) -> str:
    """Return what equal questions have in common: lower case, single spaces, no punctuation at the end."""
    return " ".join(question.casefold().split()).rstrip(" ?!.") or question.strip()


def paragraph_key(example: Example) -> str:
    """Return what equal paragraphs have in common: the text with single spaces."""
    return " ".join(example.context.split())


def repeated(examples: Sequence[Example]) -> list[list[Example]]:
    """Return the groups of two or more examples with the same question about the same paragraph."""
    groups: dict[tuple[str, str], list[Example]] = defaultdict(list)
    for example in examples:
        groups[question_key(example.question), example.context].append(example)
    return [group for group in groups.values() if len(group) > 1]


def contradictions(groups: Sequence[Sequence[Example]]) -> list[dict]:
    """Return the groups whose answers contradict each other: ids, and the kind of contradiction."""
    found = []
    for group in groups:
        golds = [set(map(normalise_answer, example.answer_texts)) for example in group]
        kind = ""
        if any(golds) and not all(golds):
            kind = "answerable and impossible"
        elif any_disjoint(golds):
            kind = "different answers"
        if kind:
            found.append({"ids": [example.id for example in group], "kind": kind})
    return found


def any_disjoint(sets: Sequence[set]) -> bool:
    """Return whether two of these sets, of those that are not empty, have nothing in common."""
    filled = [each for each in sets if each]
    return any(first.isdisjoint(second) for first, second in itertools.combinations(filled, 2))


def overlap(data: Dataset, other: Dataset) -> dict:
    """Return what `data` shares with `other`, counted; "ids", "questions" and the like are lists of ids of `data`."""
    pairs = {(question_key(example.question), paragraph_key(example)) for example in other.examples}
    questions = {question for question, _ in pairs}
    paragraphs = {paragraph for _, paragraph in pairs}
    ids = {example.id for example in other.examples}
    titles = {example.title for example in other.examples}
    same = {"ids": [], "questions": [], "questions_and_paragraphs": []}
    on_shared = []  # the shared paragraph of each question that is about one
    for example in data.examples:
        question = question_key(example.question)
        paragraph = paragraph_key(example)
        if example.id in ids:
            same["ids"].append(example.id)
        if question in questions:
            same["questions"].append(example.id)
        if (question, paragraph) in pairs:
            same["questions_and_paragraphs"].append(example.id)
        if paragraph in paragraphs:
            on_shared.append(paragraph)
    shared_titles = titles & {example.title for example in data.examples}
    return {
        "file": other.path,
        "questions_in_it": len(other.examples),
        "articles": len(shared_titles - {""}),
        "paragraphs": len(set(on_shared)),
        "questions_on_them": len(on_shared),
        **same,
    }


# Tokens and windows


def token_report(data: Dataset, tokenizer: WordPiece, settings: dict) -> dict:
    """Return the part of the report about tokens: lengths, windows, answers that no span can hit, and the ceiling."""
    window_settings = dict(settings)
    most = window_settings.pop("max_answer_length")
    progress = "tokens" if sys.stderr.isatty() else None
    windows = build_windows(data.examples, tokenizer, progress=progress, **window_settings)

    # The ceiling: score the best answer that a model could give to each question.
    best: dict[str, str] = {}
    placed: list[list[Placed]] = []
    tokens: list[int] = []  # lengths of the answers that have any
    for example, view in zip(data.examples, views(windows), strict=True):
        answers = place(example, view, most)
        best[example.id] = best_answer(example, view, answers, most, data.is_v1)
        placed.append(answers)
        tokens += [answer.tokens for answer in answers if answer.tokens]
    scores = metrics.score_answers(data.examples, best, v1=data.is_v1)

    lengths = {
        "question": windows.questions.counts,
        "paragraph": windows.contexts.counts,
        "answer": tokens,
    }
    windows_of_question = np.bincount(windows.question)
    return {
        "vocabulary": str(tokenizer.folder),
        "settings": dict(settings),
        "tokens": {name: percentiles(counts) for name, counts in lengths.items() if len(counts)},
        "windows": {
            "count": len(windows),
            "filled": float(windows.lengths.mean() / settings["max_length"]),
            "questions_with_several": int((windows_of_question > 1).sum()),
        },
        "questions_cut": windows.cut_questions,
        "answers": {
            "distinct": sum(map(len, placed)),
            "faulty": faulty_answers(data.examples, placed),
        },
        "ceiling": ceiling(data.examples, placed, scores, data.is_v1),
    }


def faulty_answers(
    examples: Sequence[Example], placed: Sequence[Sequence[Placed]]
) -> dict[str, list[dict]]:
    """Return, for each fault, the answers that no span can hit exactly because of it."""
    faulty: dict[str, list[dict]] = {fault: [] for fault in FAULTS}
    for example, answers in zip(examples, placed, strict=True):
        for answer in answers:
            if answer.fault:
                entry = {"id": example.id, "answer": answer.text}
                entry |= {"tokens": answer.tokens, "nearest": answer.nearest}
                faulty[answer.fault].append(entry)
    return faulty


def percentiles(counts: Sequence[int]) -> dict:
    """Return percentiles of whole numbers, each of which is one of them (no interpolation)."""
    names = ("least", "median", "90 %", "99 %", "most")
    values = np.percentile(counts, (0, 50, 90, 99, 100), method="inverted_cdf")
    return dict(zip(names, map(int, values), strict=True))
