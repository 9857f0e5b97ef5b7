"""A file's text to its records, whatever holds them: JSON lines, a list, an object around a list, CSV.

What a record is, an article or a question, is formats.py's affair.
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from bertqa.data.record_fields import STARTS, Faults, parse_printed, refuse_doubles
from bertqa.data.tables import refuse_doubled_columns, whole_table
from bertqa.errors import UserError, show
from bertqa.files import RepeatedKey, decode, parse_json

Located = tuple[str, object]
"""Where a record stands, for messages, and the record."""

SPLITS = ("train", "training", "validation", "valid", "dev", "test")

ANSWER_COLUMNS = ("answers", "answers.text", "answers.answer_start", "detected_answers")
"""Columns of a CSV whose cells hold lists and objects, printed."""


@dataclass
class Records:
    """The records of a file, lazily."""

    kind: str  # jsonl, json or csv
    items: Iterator[Located]
    header: list[str] | None = None  # the columns of a CSV


def records_in(text: str, known: Collection[str], faults: Faults) -> Records:
    """The records of a file; `known` are names of columns by which a CSV is told. Raises UserError.

    A line of JSONL that is no JSON is a fault of that line; other files cannot be read behind such a place.
    """
    if text.lstrip()[0] not in "{[":
        header, rows = whole_table(text, known)
        return Records("csv", map(_with_values, rows), header)
    if _is_lines(text):
        return Records("jsonl", _lines(text, faults))
    document = parse_json(text, allow_nan=True)
    if isinstance(document, list):
        return Records("json", _numbered("records", document))
    return _inside(document, known)


def _is_lines(text: str) -> bool:
    """Whether the first line is whole JSON and more follows: the mark of JSONL."""
    first, _, rest = text.lstrip().partition("\n")
    if not rest.strip():
        return False
    try:
        value = parse_json(first, allow_nan=True)
    except RepeatedKey:
        return True  # a mistake, but a whole line
    except UserError:
        return False
    return not (isinstance(value, dict) and "data" in value)


def _lines(text: str, faults: Faults) -> Iterator[Located]:
    """The values of the lines."""
    # not splitlines: U+2028 may stand inside a JSON string
    for where, value in line_values(text.split("\n")):
        with faults:
            if isinstance(value, UserError):
                raise value
            yield where, alone(value)


def line_values(lines: Iterable[str | bytes]) -> Iterator[Located]:
    """The value of each line that is not blank; a UserError in its place says what is wrong with it.

    Of text an error names the line, of bytes it does not: those come from streams, which say it themselves.
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
    """{...} for [{...}]: some write MRQA's header so."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _numbered(name: str, values: Iterable[object]) -> Iterator[Located]:
    return ((f"{name}[{number}]", value) for number, value in enumerate(values))


def _inside(document: dict, known: Collection[str]) -> Records:
    """The records of an object: those of the list that it wraps, or the object itself."""
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
    if isinstance(document.get("rows"), list):  # the Hub's viewer
        return Records("json", _rows(document["rows"]))
    filled = [name for name in SPLITS if isinstance(document.get(name), list) and document[name]]
    if len(filled) > 1:
        raise UserError(
            f"holds several splits, {', '.join(map(show, filled))}; save each to a file of its own"
        )
    if filled:
        return Records("json", _numbered(filled[0], document[filled[0]]))
    values = list(document.values())
    if values and not document.keys() & known and all(isinstance(v, dict) for v in values):
        # {"0": record, "1": record}: pandas with orient="index", DROP
        return Records("json", ((f"[{show(key)}]", value) for key, value in document.items()))
    return Records("jsonl", iter([("the only record", document)]))


def _rows(rows: list) -> Iterator[Located]:
    """The Hub's viewer puts each record under "row", and says which of its cells it has cut."""
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
    """pandas with orient="split": {"columns": ["id", ...], "data": [["1", ...], ...]}."""
    refuse_doubled_columns([str(name) for name in columns])
    for number, row in enumerate(rows):
        where = f"data[{number}]"
        if not isinstance(row, list) or len(row) != len(columns):
            raise UserError(
                f"{where}: must be a list of {len(columns)} values, one for each column"
            )
        yield where, dict(zip(map(str, columns), row, strict=True))


def _with_values(item: tuple[str, dict[str, str]]) -> Located:
    """A row of a CSV as the record that JSON would hold: printed lists and numbers read, blank cells null."""
    where, row = item
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
    """A cell as a whole number, None where it is blank, and as it is where it is no number."""
    if cell.lower() in ("", "nan"):
        return None
    try:
        return float(cell)
    except ValueError:
        return cell


def look_ahead(items: Iterator[Located], most: int) -> tuple[list[Located], Iterator[Located]]:
    """The first items, and all of them again. A mistake behind the first is left to be found in its place."""
    first: list[Located] = []
    broken: list[UserError] = []
    try:
        for item in islice(items, most):
            first.append(item)
    except UserError as error:
        broken.append(error)

    def again() -> Iterator[Located]:
        yield from first
        if broken:
            raise broken[0]
        yield from items

    return first, again()
