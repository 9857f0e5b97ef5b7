"""Questions written to files: rows given from Python (lists of dictionaries, DataFrames, data sets of Hugging Face), what
training cannot use, and a data set with everything mended that can be mended (`doctor --fix`).
"""

import gzip
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from bertqa.data.examples import Dataset, Example, read_examples
from bertqa.errors import UserError, show
from bertqa.files import replacing, to_json, write_text


def examples_of(data: object) -> Dataset:
    """The questions of a file, or of rows. Raises UserError for what holds none."""
    if isinstance(data, (str, Path)):
        return read_examples(data)
    with tempfile.TemporaryDirectory() as folder:
        return read_examples(as_file(data, Path(folder) / "questions.jsonl"))


def as_file(data: object, path: Path) -> str:
    """A file's name as it is; rows in a file of their own, so that the run can be resumed and looked at later."""
    if isinstance(data, (str, Path)):
        return str(data)
    lines = []
    for number, record in enumerate(rows_of(data)):
        if not isinstance(record, Mapping):
            raise UserError(f"record {number}: it is {show(record)}, it must be a dictionary")
        refuse_texts(record, number)
        lines.append(to_json(plain(record)) + "\n")
    if not lines:
        raise UserError("there is not one record to train or evaluate on")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(lines))
    return str(path)


def rows_of(data: object) -> Iterator:
    """What should be dictionaries, one for each question, told by what the object can do."""
    if hasattr(data, "to_dicts"):  # a DataFrame of polars
        data = data.to_dicts()
    elif hasattr(data, "to_dict") and hasattr(data, "columns"):  # of pandas
        data = data.to_dict("records")
    if not isinstance(data, Iterable) or isinstance(data, (Mapping, bytes)):
        splits = ""
        if isinstance(data, Mapping):  # as a DatasetDict of datasets
            splits = f"; of its parts {', '.join(map(str, list(data)[:5]))} give one"
        raise UserError(
            f"{show(data)}: give a file, or a list of dictionaries, one for each question{splits}"
        )
    return iter(data)


def refuse_texts(record: Mapping, number: int) -> None:
    """Refuse a classifier's data by the name of its task."""
    if "label" in record and "question" not in record:
        raise UserError(
            f"record {number} has a label and no question: that is text classification; "
            "python -m bertqa.train --task classify trains it, from a CSV or JSONL file"
        )


def plain(value: object) -> object:
    """The value in JSON's own types: arrays and numbers of numpy become lists and numbers, NaN of pandas null."""
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float) and value != value:
        return None
    return value


def write_rejected(dataset: Dataset, path: str | Path) -> None:
    """Write a line of JSON per rejected question: its flat record and "reason". No rejected ones: an empty file."""
    lines = []
    for question in dataset.rejected:
        lines.append(to_json({**question.record, "reason": question.reason}) + "\n")
    write_text(path, "".join(lines))


# A data set mended


def write_repaired(data: Dataset, path: Path) -> dict:
    """Write what training can use, every offset right, gzipped where the name ends in .gz.

    Broken records are left out; a question whose id another has gets one of its own. Answers that
    could not be placed are left out: SQuAD's format has no way to say so.

    Returns:
        what was written and what was left out, counted.

    Raises UserError where nothing is left to write.
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
    """The usable questions whose id an earlier one has, as "ID-2", "ID-3", ...: the next that is free.

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
    data = []
    for title, paragraphs in articles.items():
        written = [{"context": text, "qas": questions} for text, questions in paragraphs.items()]
        data.append({"title": title, "paragraphs": written})
    return {"version": "v2.0", "data": data}


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
