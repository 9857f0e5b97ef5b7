"""Files to checked values, for questions and texts alike: bytes, UTF-8 text, JSON, CSV, and the fields of a record.

Each raises UserError that says what is wrong, where, and what to do; its callers put the name of the file before it.
"""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path

from bertqa.errors import UserError

KINDS = {str: "text", list: "a list", dict: "an object", bool: "true or false"}


def read_bytes(path: Path) -> bytes:
    """What is in a file, unpacked where it is gzipped."""
    if path.is_dir():
        raise UserError("is a folder; name a file in it")
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except FileNotFoundError:
        raise UserError("there is no such file") from None
    except EOFError:
        raise UserError(f"cut off: its gzip stream ends early, after {len(content):,} bytes; fetch it again") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"damaged: its gzip stream cannot be read ({error}); fetch it again") from None
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}") from None
    if not content:
        raise UserError("is empty (0 bytes)")
    return content


def decode(content: bytes) -> str:
    """The text that these bytes are in UTF-8, without its byte order mark."""
    try:
        text = content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        where = f"byte {content[error.start]:#04x} at offset {error.start} (line {line})"
        if error.reason == "unexpected end of data":
            raise UserError(f"cut off in the middle of a character: {where}; fetch it again") from None
        if b"\0" in content[:64] or content[:2] in (b"BZ", b"\xfd7", b"PK"):
            raise UserError(f"not text in UTF-8: {where}; UTF-16, or packed? Needed is UTF-8, plain or .gz") from None
        raise UserError(f"not UTF-8: {where}, probably Latin-1; save it as UTF-8 (iconv -f latin1 -t utf-8)") from None
    if not text.strip():
        raise UserError("holds only white space")
    return text


def parse_json(text: str, line: int = 1) -> object:
    """`json.loads` for a text that begins on this line of the file."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"line {line + error.lineno - 1}, column {error.colno}"
        rest = text[error.pos :].rstrip()
        # what is left is nothing, or the beginning of a literal, an escape or a string: more was to come
        cut = any(word.startswith(rest) for word in ("true", "false", "null", "NaN", "-Infinity", "Infinity"))
        if cut or error.msg.startswith("Unterminated") or (error.msg.startswith("Invalid \\u") and len(rest) < 6):
            raise UserError(f"cut off: the JSON ends early, {where}; fetch it again") from None
        raise UserError(f"not JSON: {where}: {error.msg}, near {show(rest[:30])}") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets thousands deep
        raise UserError(f"line {line}: JSON that Python cannot read: {error}") from None


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


def show(value: object) -> str:
    """The value as JSON, on one line that any terminal can print, cut to 80 characters."""
    text = json.dumps(value, ensure_ascii=False, default=repr).encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= 80 else text[:77] + "..."


def json_lines(text: str) -> Iterator[tuple[str, object]]:
    """-> "line 3" and the value on it, for each line that is not blank."""
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines: U+2028 may stand inside a JSON string
        if line.strip():
            yield f"line {number}", parse_json(line, number)


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
        raise UserError(f"{cut}the CSV row that begins on line {last + 1} cannot be read: {error}") from None
    finally:
        csv.field_size_limit(usual_limit)
    return rows
