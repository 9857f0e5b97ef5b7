"""Read the records of a file's text, whatever holds them: JSON lines, a JSON list, an object around a list, CSV.

What a record is, an article, a paragraph or a question, is decided in formats.py.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from bertqa.data.record_fields import KNOWN, STARTS, Faults, parse_printed, refuse_doubles
from bertqa.data.tables import refuse_doubled_columns, whole_table
from bertqa.errors import UserError, show
from bertqa.files import RepeatedKey, decode, parse_json

Located = tuple[str, object]
"""The place of a record in its file, for messages, and the record."""

SPLITS = ("train", "training", "validation", "valid", "dev", "test")
"""Keys under which a JSON object may hold the records of a split."""

ANSWER_COLUMNS = ("answers", "answers.text", "answers.answer_start", "detected_answers")
"""Columns of a CSV whose cells hold printed lists and objects."""


@dataclass
class Records:
    """The records of a file, read lazily."""

    kind: str  # jsonl, json, csv or parquet
    items: Iterator[Located]
    header: list[str] | None = None  # the columns of a CSV, in lower case


def records_in(text: str, faults: Faults) -> Records:
    """Return the records of a file.

    Args:
        text: the file, which is not blank.
        faults: what to do about a line of JSONL that is not JSON.

    Raises UserError if another form of file cannot be parsed, because there the rest cannot be read either.
    """
    if text.lstrip()[0] not in "{[":
        header, rows = whole_table(text, KNOWN)
        return Records("csv", (_with_values(where, row) for where, row in rows), header)
    if _is_lines(text):
        return Records("jsonl", _lines(text, faults))
    document = parse_json(text, allow_nan=True)
    if isinstance(document, list):
        return Records("json", _numbered("records", document))
    return _inside(document)


def _is_lines(text: str) -> bool:
    """Return whether a text is JSONL: its first line is a JSON value by itself, and other lines follow."""
    first, _, rest = text.lstrip().partition("\n")
    if not rest.strip():
        return False
    try:
        value = parse_json(first, allow_nan=True)
    except RepeatedKey:
        return True  # a fault of that line, but it is a line of JSONL
    except UserError:
        return False
    return not (isinstance(value, dict) and "data" in value)


def _lines(text: str, faults: Faults) -> Iterator[Located]:
    """Yield the values of the lines of JSONL."""
    # not splitlines: a JSON string may contain U+2028, which is a line end for Python
    for where, value in line_values(text.split("\n")):
        with faults:
            if isinstance(value, UserError):
                raise value
            yield where, alone(value)


def line_values(lines: Iterable[str | bytes]) -> Iterator[Located]:
    """Yield the value of each line that is not blank, or a UserError if it is not JSON.

    The error names the line if the lines are str, and not if they are bytes: streams put it before the message themselves.
    """
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            if isinstance(line, bytes):
                value = parse_json(decode(line), allow_nan=True)
            else:
                value = parse_json(line, number, allow_nan=True)
        except UserError as error:
            value = error
        yield f"line {number}", value


def alone(value: object) -> object:
    """Return the only member of a list of one, and any other value as it is: some write MRQA's header as [{...}]."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _numbered(name: str, values: Iterable[object]) -> Iterator[Located]:
    """Yield name[0], name[1], ... with the values."""
    for number, value in enumerate(values):
        yield f"{name}[{number}]", value


def _inside(document: dict) -> Records:
    """Return the records of a JSON object: those of the list in it, or the object itself as the only one."""
    refuse_doubles("the file", document, {"data", "columns", "export", "rows", *SPLITS})
    if "data" in document:
        data = document["data"]
        if not isinstance(data, list):
            raise UserError(f'the file: "data" must be a list, not {show(data)}')
        if isinstance(document.get("columns"), list) and data and isinstance(data[0], list):
            return Records("json", _of_columns(document["columns"], data))
        return Records("json", _numbered("data", data))
    if isinstance(document.get("export"), list):  # Haystack's feedback
        return Records("json", _numbered("export", document["export"]))
    if isinstance(document.get("rows"), list):  # the Hub's data set viewer
        return Records("json", _rows(document["rows"]))
    split = _only_split(document)
    if split:
        return Records("json", _numbered(split, document[split]))
    # {"0": record, "1": record}: pandas with orient="index", DROP
    are_objects = all(isinstance(value, dict) for value in document.values())
    if document and are_objects and not document.keys() & KNOWN:
        return Records("json", ((f"[{show(key)}]", value) for key, value in document.items()))
    return Records("jsonl", iter([("the only record", document)]))


def _only_split(document: dict) -> str:
    """Return the key of the only split in a JSON object; "" if there is none. Raises UserError if there are several."""
    filled = [name for name in SPLITS if isinstance(document.get(name), list) and document[name]]
    if len(filled) > 1:
        raise UserError(
            f"holds several splits, {', '.join(map(show, filled))}; save each to a file of its own"
        )
    return filled[0] if filled else ""


def _rows(rows: list) -> Iterator[Located]:
    """Yield the records of the Hub's data set viewer, each under "row"; refuse those of which it has cut cells."""
    for number, row in enumerate(rows):
        where = f"rows[{number}]"
        if isinstance(row, dict) and row.get("truncated_cells"):
            raise UserError(
                f"{where}: the viewer has cut {show(row['truncated_cells'])}; download the data set instead"
            )
        if isinstance(row, dict) and "row" in row:
            yield f"{where}.row", row["row"]
        else:
            yield where, row


def _of_columns(columns: list, rows: list) -> Iterator[Located]:
    """Yield the records of pandas' orient="split": {"columns": ["id", ...], "data": [["1", ...], ...]}."""
    names = [str(name) for name in columns]
    refuse_doubled_columns(names)
    for number, row in enumerate(rows):
        where = f"data[{number}]"
        if not isinstance(row, list) or len(row) != len(columns):
            raise UserError(
                f"{where}: must be a list of {len(columns)} values, one for each column"
            )
        yield where, dict(zip(names, row, strict=True))


def _with_values(where: str, row: dict[str, str]) -> Located:
    """Turn a row of a CSV into the record that JSON would hold: lists and numbers are parsed, blank cells become None."""
    record: dict[str, object] = dict(row)
    for name in ANSWER_COLUMNS:
        if name in row:
            record[name] = parse_printed(where, name, row[name])
    if "answer_text" in row:
        record["answer_text"] = row["answer_text"] or None
    for name in STARTS:
        if name in row:
            record[name] = _number(row[name].strip())
    return where, record


def _number(cell: str) -> object:
    """Return a cell as a number; None if it is blank; the cell itself if it is not a number."""
    if cell.lower() in ("", "nan"):
        return None
    try:
        return float(cell)
    except ValueError:
        return cell


def look_ahead(items: Iterator[Located], most: int) -> tuple[list[Located], Iterator[Located]]:
    """Return the first `most` items, and an iterator of all items, these included.

    A UserError among the first items is raised by the iterator, in its place.
    """
    first: list[Located] = []
    error: UserError | None = None
    try:
        for item in islice(items, most):
            first.append(item)
    except UserError as caught:
        error = caught
    return first, _again(first, error, items)


def _again(
    first: list[Located], error: UserError | None, rest: Iterator[Located]
) -> Iterator[Located]:
    """Yield the first items, then raise the error that came after them, or yield the rest."""
    yield from first
    if error:
        raise error
    yield from rest
