"""Write questions to files: rows given from Python, questions that training rejected, and repaired data sets.

Rows are lists of dictionaries, DataFrames of pandas or polars, or data sets of Hugging Face's datasets.
"""

import gzip
import math
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from bertqa.data.examples import Dataset, Example, read_examples
from bertqa.errors import UserError, show
from bertqa.files import replacing, to_json, write_text


def examples_of(data: object) -> Dataset:
    """Read the questions of a file, or of rows. Raises UserError as `read_examples` and `as_file` do."""
    if isinstance(data, (str, Path)):
        return read_examples(data)
    with tempfile.TemporaryDirectory() as folder:
        return read_examples(as_file(data, Path(folder) / "questions.jsonl"))


def as_file(data: object, path: Path) -> str:
    """Write rows to `path` as JSONL and return its name; if `data` is the name of a file, return that and write nothing.

    So every run reads a file, which it can read again when it is resumed. Raises UserError for data that are neither.
    """
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
    """Return an iterator over the rows of a list, a DataFrame or a data set. Raises UserError for other objects."""
    if hasattr(data, "to_dicts"):  # a DataFrame of polars
        data = data.to_dicts()
    elif hasattr(data, "to_dict") and hasattr(data, "columns"):  # of pandas
        data = data.to_dict("records")
    if not isinstance(data, Iterable) or isinstance(data, (Mapping, bytes)):
        splits = ""
        if isinstance(data, Mapping):  # such as a DatasetDict
            splits = f"; of its parts {', '.join(map(str, list(data)[:5]))} give one"
        raise UserError(
            f"{show(data)}: give a file, or a list of dictionaries, one for each question{splits}"
        )
    return iter(data)


def refuse_texts(record: Mapping, number: int) -> None:
    """Raise UserError for a row of text classification: it names that task."""
    if "label" in record and "question" not in record:
        raise UserError(
            f"record {number} has a label and no question: that is text classification; "
            "python -m bertqa.train --task classify trains it, from a CSV or JSONL file"
        )


def plain(value: object) -> object:
    """Return a value in the types of JSON: arrays and numbers of NumPy become lists and numbers, NaN becomes None."""
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float) and math.isnan(value):
        return None
    return value


def write_rejected(dataset: Dataset, path: str | Path) -> None:
    """Write the flat record of each rejected question, with a "reason", as JSONL; the file may come out empty."""
    lines = []
    for question in dataset.rejected:
        lines.append(to_json({**question.record, "reason": question.reason}) + "\n")
    write_text(path, "".join(lines))


# A repaired data set (doctor --fix)


def write_repaired(data: Dataset, path: Path) -> dict:
    """Write the questions that training can use as SQuAD v2 with correct offsets, gzipped if the name ends in .gz.

    A question that repeats an id gets an id of its own. Broken records are left out, and so are answers that could not be
    placed, because SQuAD's format requires offsets.

    Returns the numbers of what was written, repaired and left out. Raises UserError if nothing is left to write.
    """
    kept = data.trainable()
    if not kept:
        raise UserError(
            f"{data.path}: all {len(data.examples):,} questions are rejected; nothing is left to write"
        )
    renamed = with_own_ids(data)
    written = kept + renamed
    content = to_json(squad_document(written)).encode()
    if path.suffix == ".gz":
        # Without a time stamp, so that equal data give equal bytes.
        content = gzip.compress(content, mtime=0)
    with replacing(path) as fresh:
        fresh.write_bytes(content)
    unplaced = 0
    for example in written:
        unplaced += sum(start < 0 for start in example.answer_starts)
    return {
        "file": str(path),
        "questions": len(written),
        "repaired": data.repaired,
        "renamed": len(renamed),
        "broken_left_out": len(data.faults) - len(renamed),
        "rejected_left_out": len(data.examples) - len(kept),
        "answers_left_out": unplaced,
    }


def with_own_ids(data: Dataset) -> list[Example]:
    """Return the usable questions that repeat an id, with new ids: the next free one of ID-2, ID-3, ...

    A question that equals an earlier one, answers included, is left out.
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
    """Return questions in the format of SQuAD v2, grouped by title and paragraph."""
    articles: dict[str, dict[str, list[dict]]] = defaultdict(lambda: defaultdict(list))
    for example in examples:
        articles[example.title][example.context].append(squad_question(example))
    data = []
    for title, questions_of in articles.items():
        paragraphs = [{"context": text, "qas": qas} for text, qas in questions_of.items()]
        data.append({"title": title, "paragraphs": paragraphs})
    return {"version": "v2.0", "data": data}


def squad_question(example: Example) -> dict:
    """Return a question in the format of SQuAD v2, without the answers that could not be placed."""
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
