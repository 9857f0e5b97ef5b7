"""The fields of a record and the rows of a CSV, checked.

Each raises UserError that says what is wrong, where, and what to do; its callers put the name of the file before it.
"""

import csv
import io

from bertqa.errors import UserError
from bertqa.files import show

KINDS = {str: "text", list: "a list", dict: "an object", bool: "true or false"}


def field(where: str, record: object, key: str, kind: type):
    """record[key], checked to be there and to be of this type."""
    if isinstance(record, dict) and isinstance(value := record.get(key), kind):
        return value
    if not isinstance(record, dict):
        raise UserError(f"{where}: must be an object, not {show(record)}")
    if key not in record:
        raise UserError(f'{where}: has no "{key}", its keys are {show(list(record))}')
    raise UserError(f'{where}: "{key}" must be {KINDS[kind]}, not {show(value)}')


def name_in(where: str, record: dict, key: str) -> str:
    """record[key], text or a whole number, as text."""
    if isinstance(record, dict) and type(record.get(key)) is int:
        return str(record[key])
    return field(where, record, key, str)


def title_in(where: str, record: dict) -> str:
    return "" if record.get("title") is None else name_in(where, record, "title")


def csv_rows(text: str, delimiter: str, keep_blank: bool = False) -> list[tuple[str, list[str]]]:
    """The rows that are not blank (or all that have a cell). A quoted paragraph may go over several lines: a row is named
    by its first."""
    rows, last = [], 0
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    usual_limit = csv.field_size_limit(2**31 - 1)  # 128 KiB, for the whole process: put it back
    try:
        for row in reader:
            if row and keep_blank or any(cell.strip() for cell in row):
                rows.append((f"line {last + 1}", row))
            last = reader.line_num
    except csv.Error as error:
        cut = "cut off: " if "unexpected end" in str(error) else ""
        raise UserError(
            f"{cut}the CSV row that begins on line {last + 1} cannot be read: {error}"
        ) from None
    finally:
        csv.field_size_limit(usual_limit)
    return rows
