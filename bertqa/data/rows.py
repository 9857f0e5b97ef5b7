"""Questions given from Python, as rows and not as a file: lists of dictionaries, DataFrames, data sets of Hugging Face."""

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from bertqa.data.examples import Dataset, read_examples
from bertqa.errors import UserError
from bertqa.files import show, to_json, write_text


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
