"""A data set with everything mended that can be mended, written as SQuAD v2 JSON: `doctor --fix`."""

import gzip
from dataclasses import replace
from pathlib import Path

from bertqa.data.examples import Dataset, Example
from bertqa.errors import UserError
from bertqa.files import replacing, to_json


def write_repaired(data: Dataset, path: Path) -> dict:
    """Write what training can use, every offset right, gzipped where the name ends in .gz.

    Broken records are left out; a question whose id another has gets one of its own. Answers that
    could not be placed are left out: SQuAD's format has no way to say so.

    Returns:
        what was written and what was left out, counted.

    Raises:
        UserError: where nothing is left to write.
    """
    kept = data.trainable()
    if not kept:
        raise UserError(
            f"{data.path}: all {len(data.examples):,} questions are rejected; nothing is left to write"
        )
    renamed = with_own_ids(data)
    content = to_json(squad_document(kept + renamed)).encode()
    if path.suffix == ".gz":
        content = gzip.compress(content, mtime=0)  # no time in it: the same data, the same bytes
    with replacing(path) as fresh:
        fresh.write_bytes(content)
    unplaced = 0
    for example in kept + renamed:
        unplaced += sum(start < 0 for start in example.answer_starts)
    return {
        "file": str(path),
        "questions": len(kept) + len(renamed),
        "repaired": data.repaired,
        "renamed": len(renamed),
        "broken_left_out": len(data.faults) - len(renamed),
        "rejected_left_out": len(data.examples) - len(kept),
        "answers_left_out": unplaced,
    }


def with_own_ids(data: Dataset) -> list[Example]:
    """The usable questions whose id an earlier one has, as "ID-2", "ID-3", ...: the next that is
    free.

    A question that is an earlier one over again, answers and all, is left out.
    """
    used = {example.id for example in [*data.examples, *data.repeats]}
    seen = set(data.examples)
    renamed = []
    for example in data.repeats:
        usable = not example.answer_starts or max(example.answer_starts) >= 0
        if not usable or not example.question.strip() or example in seen:
            continue
        seen.add(example)
        number = 2
        while f"{example.id}-{number}" in used:
            number += 1
        used.add(f"{example.id}-{number}")
        renamed.append(replace(example, id=f"{example.id}-{number}"))
    return renamed


def squad_document(examples: list[Example]) -> dict:
    """The questions as SQuAD v2 has them, those of an article and of a paragraph together."""
    articles: dict[str, dict[str, list[dict]]] = {}
    for example in examples:
        paragraphs = articles.setdefault(example.title, {})
        paragraphs.setdefault(example.context, []).append(squad_question(example))
    return {
        "version": "v2.0",
        "data": [
            {
                "title": title,
                "paragraphs": [
                    {"context": context, "qas": questions}
                    for context, questions in paragraphs.items()
                ],
            }
            for title, paragraphs in articles.items()
        ],
    }


def squad_question(example: Example) -> dict:
    """One question as SQuAD v2 has it, with those of its answers whose place is known."""
    answers = []
    for text, start in zip(example.answer_texts, example.answer_starts, strict=True):
        if start >= 0:
            answers.append({"text": text, "answer_start": start})
    return {
        "id": example.id,
        "question": example.question,
        "answers": answers,
        "is_impossible": not answers,
    }
