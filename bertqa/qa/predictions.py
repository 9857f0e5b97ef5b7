"""Read files of predictions and of no-answer odds, in the forms in which people have them.

    {question id: answer text}                  SQuAD's own, and what predict writes
    [{"id", "prediction_text", "no_answer_probability"}, ...]
                                                for the metrics of the libraries datasets and evaluate
    one such object per line (JSONL), or a CSV with these columns

null means no answer, as "" does. The keys may have the other names in ID_KEYS, TEXT_KEYS and ODDS_KEYS.
"""

import math
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from bertqa.data.record_fields import name_among
from bertqa.data.tables import whole_table
from bertqa.errors import UserError, show
from bertqa.files import decode, json_lines, parse_json, read_bytes

ID_KEYS = ("id", "question_id", "qid", "query_id", "guid", "_id")
TEXT_KEYS = ("prediction_text", "answer_text", "answer", "prediction", "text")
ODDS_KEYS = ("no_answer_probability", "na_prob", "null_odds")

TEXTS_WANTED = "it must hold one object {question id: answer text}"
ODDS_WANTED = "it must hold one object {question id: no-answer odds}"


@dataclass
class Predictions:
    """Answers by question id, and the no-answer odds that the same file has for them."""

    texts: dict[str, str] = field(default_factory=dict)
    odds: dict[str, float] = field(default_factory=dict)


def read_predictions(path: Path) -> Predictions:
    """Read a predictions file, gzipped or not. Raises UserError, naming the file."""
    try:
        found = contents(decode(read_bytes(path)))
    except UserError as error:
        raise UserError(f"{path}: not a JSON file ({error}); {TEXTS_WANTED}") from None
    if isinstance(found, dict):
        return Predictions({id: checked_text(path, id, text) for id, text in found.items()})
    if not found or not isinstance(found[0][1], dict):
        raise UserError(
            f"{path}: holds a JSON list; {TEXTS_WANTED}, or a list of objects "
            '{"id", "prediction_text"}'
        )
    return from_records(path, found)


def contents(text: str) -> dict | list[tuple[str, object]]:
    """Return the object in a file, or its records, each with its place in the file: "line 3", "entry 3".

    NaN passes: later checks refuse it, and name its question.
    """
    if text.lstrip()[0] not in "{[":
        return csv_records(text)
    if is_json_lines(text):
        return list(json_lines(text, allow_nan=True))
    value = parse_json(text, allow_nan=True)
    if isinstance(value, dict):
        return value
    return [(f"entry {number}", record) for number, record in enumerate(value, 1)]


def is_json_lines(text: str) -> bool:
    """Return whether the first of several lines is a whole object; indented JSON has only "{" there."""
    first, _, rest = text.strip().partition("\n")
    return first.startswith("{") and first.rstrip().endswith("}") and bool(rest)


def csv_records(text: str) -> list[tuple[str, dict]]:
    """Return the rows of a CSV with their places. Raises UserError without columns of ids and answers."""
    header, rows = whole_table(text, {*ID_KEYS, *TEXT_KEYS})
    if not set(header) & set(ID_KEYS) or not set(header) & set(TEXT_KEYS):
        first = text.lstrip().partition("\n")[0]
        raise UserError(
            f"neither JSON nor a CSV with the columns id and prediction_text: {show(first[:60])}"
        )
    return rows


def from_records(path: Path, records: list[tuple[str, object]]) -> Predictions:
    """Return the predictions in records, each of which comes with its place in the file."""
    found = Predictions()
    for where, record in records:
        if not isinstance(record, dict):
            raise UserError(f"{path}: {where}: must be an object, not {show(record)}")
        id_key = name_among(record, ID_KEYS)
        text_key = name_among(record, TEXT_KEYS)
        if text_key not in record and "error" in record:
            continue  # predict wrote this for a question that it could not read
        for key in (id_key, text_key):
            if key not in record:
                raise UserError(
                    f'{path}: {where}: has no "{key}", its keys are {show(list(record))}'
                )
        id = str(record[id_key])
        if id in found.texts:
            raise UserError(f"{path}: {where}: question {id!r} is answered a second time")
        found.texts[id] = checked_text(path, id, record[text_key])
        odds_key = next((key for key in ODDS_KEYS if record.get(key) not in (None, "")), None)
        if odds_key:
            found.odds[id] = checked_odds(path, id, number_in(record[odds_key]))
    return found


def number_in(cell: object) -> object:
    """Return a CSV cell as a number if it spells one; anything else as it is."""
    if isinstance(cell, str):
        with suppress(ValueError):
            return float(cell)
    return cell


def checked_text(path: Path, id: str, value: object) -> str:
    """Return an answer, "" for null. Raises UserError for anything that is not a string."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    hint = ""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        hint = "; this looks like an n-best file: give predictions.json"
    elif isinstance(value, list):
        hint = "; give each question one text, not a list"
    raise UserError(f"{path}: question {id!r} has {show(value)}; {TEXTS_WANTED}{hint}")


def read_odds(path: Path) -> dict[str, float]:
    """Read {question id: no-answer odds}. Raises UserError, naming the file."""
    try:
        found = parse_json(decode(read_bytes(path)), allow_nan=True)
    except UserError as error:
        raise UserError(f"{path}: not a JSON file ({error}); {ODDS_WANTED}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: holds a JSON {type(found).__name__}; {ODDS_WANTED}")
    return {id: checked_odds(path, id, value) for id, value in found.items()}


def checked_odds(path: Path, id: str, value: object) -> float:
    """Return no-answer odds: a number, may be infinite. Raises UserError for anything else, NaN included."""
    # An int may be too large for a float, and would fail later, in arithmetic with floats.
    fits = type(value) is float or (type(value) is int and abs(value) <= sys.float_info.max)
    if not fits or math.isnan(value):
        raise UserError(f"{path}: question {id!r} has {show(value)}; {ODDS_WANTED}")
    return value


def threshold_of(texts: Mapping[str, str], odds: Mapping[str, float]) -> float | None:
    """Return a no-answer threshold that gives these answers, or None if there is none.

    There is one if all empty answers have higher odds than all others. With odds a -3, b 1.5, c 4, of which only c is
    empty, thresholds from 1.5 up to 4 all give these answers, and 2.75 is returned.
    """
    given = [odds[id] for id, text in texts.items() if text and id in odds]
    silent = [odds[id] for id, text in texts.items() if not text and id in odds]
    if not given or not silent or max(given) >= min(silent):
        return None
    # Rounded for people to read, unless that leaves the range.
    middle = round((max(given) + min(silent)) / 2, 4)
    if max(given) <= middle < min(silent):
        return middle
    return max(given)
