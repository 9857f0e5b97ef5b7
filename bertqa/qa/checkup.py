"""What is wrong with a data set, counted: repeats, contradictions, and what tokens and windows allow; as what JSON has."""

import sys
from collections import Counter
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
    """The whole report. Without a tokenizer it has no "settings" and nothing that counts tokens.

    Args:
        other: data that `data` should not overlap with.
        settings: max_length, overlap or step, max_question, max_answer_length, all in tokens.
    """
    examples = data.examples
    groups = repeated(examples)
    answers = Counter(len(example.answer_texts) for example in examples)
    unplaced = 0  # accepted answers whose place in the paragraph is not known
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


# Questions among themselves


def question_key(question: str) -> str:
    """What makes two questions the same: case, blanks and closing punctuation aside."""
    return " ".join(question.casefold().split()).rstrip(" ?!.") or question.strip()


def paragraph_key(example: Example) -> str:
    """What makes two paragraphs the same: blanks aside."""
    return " ".join(example.context.split())


def repeated(examples: Sequence[Example]) -> list[list[Example]]:
    """Groups of two or more questions that ask the same about the same paragraph."""
    groups: dict[tuple[str, str], list[Example]] = {}
    for example in examples:
        key = (question_key(example.question), example.context)
        groups.setdefault(key, []).append(example)
    return [group for group in groups.values() if len(group) > 1]


def contradictions(groups: Sequence[Sequence[Example]]) -> list[dict]:
    """Those of the groups that contradict themselves: their ids, and how."""
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
    """Whether two of these sets that are not empty have nothing in common."""
    filled = [each for each in sets if each]
    for i, first in enumerate(filled):
        if any(first.isdisjoint(second) for second in filled[:i]):
            return True
    return False


def overlap(data: Dataset, other: Dataset) -> dict:
    """What `data` shares with `other`. Lists hold ids of `data`."""
    ids, titles, paragraphs, questions, pairs = set(), set(), set(), set(), set()
    for example in other.examples:
        question = question_key(example.question)
        paragraph = paragraph_key(example)
        ids.add(example.id)
        titles.add(example.title)
        paragraphs.add(paragraph)
        questions.add(question)
        pairs.add((question, paragraph))
    same = {"ids": [], "questions": [], "questions_and_paragraphs": []}
    on_shared = []  # the paragraph of each question that is on a shared one
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


# What tokens and windows allow


def token_report(data: Dataset, tokenizer: WordPiece, settings: dict) -> dict:
    """Lengths, windows, answers that the tokens do not allow, and the ceiling."""
    window_settings = dict(settings)
    most = window_settings.pop("max_answer_length")
    progress = "tokens" if sys.stderr.isatty() else None
    windows = build_windows(data.examples, tokenizer, progress=progress, **window_settings)

    # The ceiling: each question gets the best answer that a model could give it, and is scored.
    best: dict[str, str] = {}
    placed: list[list[Placed]] = []
    tokens: list[int] = []  # of every answer that has any
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
    """Per fault, the answers that no span can hit exactly."""
    faulty: dict[str, list[dict]] = {fault: [] for fault in FAULTS}
    for example, answers in zip(examples, placed, strict=True):
        for answer in answers:
            if answer.fault:
                entry = {"id": example.id, "answer": answer.text}
                entry |= {"tokens": answer.tokens, "nearest": answer.nearest}
                faulty[answer.fault].append(entry)
    return faulty


def percentiles(counts: Sequence[int]) -> dict:
    """Values that do occur in `counts`, so whole numbers."""
    names = ("least", "median", "90 %", "99 %", "most")
    values = np.percentile(counts, (0, 50, 90, 99, 100), method="inverted_cdf")
    return dict(zip(names, map(int, values), strict=True))
