"""Reading and writing files, one way for each: bytes, text and JSON from outside; files written whole.

Readers raise UserError that says what is wrong, where, and what to do. Those that take bytes or text do not know the
name of the file: their caller puts it before the message.
"""

import contextlib
import gzip
import hashlib
import json
import math
import os
import re
import shutil
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from bertqa.errors import UserError


def read_bytes(path: Path) -> bytes:
    """What is in a file, unpacked where it is gzipped."""
    if path.is_dir():
        raise UserError("is a folder; name a file in it")
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError("there is no such file") from None
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}") from None
    except MemoryError:
        raise UserError("does not fit into memory") from None
    return unpacked(content)


def unpacked(content: bytes) -> bytes:
    """The content of a file, however it came here: unpacked where it is gzipped, refused where nothing is in it."""
    try:
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except EOFError:
        raise UserError(
            f"cut off: its gzip stream ends early, after {len(content):,} bytes; fetch it again"
        ) from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise UserError(
            f"damaged: its gzip stream cannot be read ({error}); fetch it again"
        ) from None
    except MemoryError:
        raise UserError("does not fit into memory") from None
    if not content:
        raise UserError("is empty (0 bytes)")
    refuse_lfs_pointer(content)
    return content


def refuse_lfs_pointer(content: bytes) -> None:
    """Raise UserError where the content is what Git LFS leaves in the place of a file."""
    if content.startswith(b"version https://git-lfs.github.com/spec/"):
        raise UserError(
            "is a Git LFS pointer: the file itself was not fetched; run git lfs pull in its repository"
        )


def decode(content: bytes) -> str:
    """The text that these bytes are in UTF-8, without its byte order mark; line ends stay as they are."""
    try:
        text = content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise UserError(_why_not_utf8(content, error)) from None
    if not text.strip():
        raise UserError("holds only white space")
    if text[1:4:2] == "\0\0":
        raise UserError("UTF-16, not UTF-8; save it as UTF-8 (iconv -f utf-16le -t utf-8)")
    return text


def _why_not_utf8(content: bytes, error: UnicodeDecodeError) -> str:
    """Where UTF-8 ends, which encoding the bytes may be in, and how to convert them."""
    line = content.count(b"\n", 0, error.start) + 1
    where = f"byte {content[error.start]:#04x} at offset {error.start} (line {line})"
    if error.reason == "unexpected end of data":
        return f"cut off in the middle of a character: {where}; fetch it again"
    if content.startswith(b"PK\x03\x04"):
        return "is a ZIP archive, or an Excel file; unpack it, or save the table as CSV (UTF-8)"
    if b"\0" in content[:64] or content.startswith(
        (b"BZ", b"\xfd7", b"PK", b"(\xb5/\xfd", b"%PDF")
    ):
        return f"not text in UTF-8: {where}; UTF-16, or packed? Needed is UTF-8, plain or .gz"
    # Latin-1 has no character in 0x80 to 0x9f, where Windows-1252 has its quotes, dashes and the euro.
    high = set(content) & set(range(0x80, 0xA0))
    if high & {0x81, 0x8D, 0x8F, 0x90, 0x9D}:
        return (
            f"not UTF-8: {where}, nor Windows-1252; save it as UTF-8 (iconv -f ENCODING -t utf-8)"
        )
    if high:
        return (
            f"not UTF-8: {where}, probably Windows-1252; save it as UTF-8 "
            "(iconv -f windows-1252 -t utf-8)"
        )
    return f"not UTF-8: {where}, probably Latin-1; save it as UTF-8 (iconv -f latin1 -t utf-8)"


def read_text(path: str | Path) -> str:
    """A file of text, or standard input where the path is "-". Raises UserError that names it."""
    try:
        if str(path) == "-":
            path = "standard input"
            return decode(unpacked(sys.stdin.buffer.read()))
        return decode(read_bytes(Path(path)))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


class RepeatedKey(UserError):
    """A key stands twice in an object of JSON."""


def parse_json(text: str, line: int | None = None, *, allow_nan: bool = False) -> object:
    """The value of a JSON text: a whole file, or what begins on this line of it.

    A key that stands twice in an object is refused: of two values one would be lost. So are NaN
    and infinities, which JSON does not have, unless `allow_nan` (pandas writes them into data).
    """
    checks: dict = {"object_pairs_hook": _without_repeats}
    if not allow_nan:
        checks |= {"parse_constant": _finite, "parse_float": _finite}
    try:
        return json.loads(text, **checks)
    except json.JSONDecodeError as error:
        where = f"line {(line or 1) + error.lineno - 1}, column {error.colno}"
        rest = text[error.pos :].rstrip()
        if _ends_early(error.msg, rest):
            raise UserError(f"cut off: the JSON ends early, {where}; fetch it again") from None
        raise UserError(f"not JSON: {where}: {error.msg}, near {show(rest[:30])}") from None
    except UserError as error:
        if line is None:
            raise
        raise type(error)(f"line {line}: {error}") from None
    except (ValueError, RecursionError, MemoryError) as error:
        # a number of thousands of digits, brackets thousands deep, a file larger than memory
        why = str(error) or "it does not fit into memory"
        raise UserError(f"line {line or 1}: JSON that Python cannot read: {why}") from None


def _without_repeats(pairs: list[tuple[str, object]]) -> dict:
    """An object of JSON, from its keys and values."""
    found = dict(pairs)
    if len(found) < len(pairs):
        name, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise RepeatedKey(f"the key {show(name)} stands twice in one object; leave one out")
    return found


def _finite(number: str) -> float:
    """A number of JSON with a point or an exponent, or NaN and the like, which are refused."""
    value = float(number)
    if not math.isfinite(value):
        raise UserError(f"JSON has no {number}; write a number of usual size, or null")
    return value


def _ends_early(message: str, rest: str) -> bool:
    """Whether the text stops in the middle of a literal, an escape or a string: more was to come."""
    literals = ("true", "false", "null", "NaN", "-Infinity", "Infinity")
    for word in literals:
        if word.startswith(rest):
            return True
    if message.startswith("Invalid \\u"):
        return len(rest) < 6
    return message.startswith("Unterminated")


def json_lines(text: str, *, allow_nan: bool = False) -> Iterator[tuple[str, object]]:
    """-> "line 3" and the value on it, for each line that is not blank."""
    # not splitlines: U+2028 may stand inside a JSON string
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield f"line {number}", parse_json(line, number, allow_nan=allow_nan)


def read_json(path: str | Path, *, allow_nan: bool = False) -> object:
    """The value that a JSON file holds. Raises UserError that names the file."""
    try:
        return parse_json(decode(read_bytes(Path(path))), allow_nan=allow_nan)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def read_object(path: str | Path) -> dict:
    """The object that a JSON file holds. Raises UserError that names the file."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds a JSON {type(value).__name__}, expected an object")
    return value


def show(value: object) -> str:
    """The value as JSON, on one line that any terminal can print, cut to 80 characters."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=repr)
    except (TypeError, ValueError, RecursionError):  # keys that are no text; too large; too deep
        text = f"a {type(value).__name__} that JSON cannot show"
    text = text.encode("utf-8", "backslashreplace").decode()
    if len(text) > 80:
        return text[:77] + "..."
    return text


def same_file(one: Path, other: Path) -> bool:
    """Whether two names are those of one file that exists."""
    return one.exists() and other.exists() and one.samefile(other)


def sha256(*paths: Path) -> str:
    """Of the content of files, one behind the other, as `cat FILES | sha256sum` prints it."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as stream:
            # in blocks: a file may be larger than memory
            while block := stream.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


# Writing


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A new name beside `path` to write to, which takes its place if the block ends well.

    The name is nobody else's, so that several processes can write the same file: each writes it
    whole, and the last one wins. A device or a pipe (/dev/stdout) is written to, and stays what it is.

    Raises:
        UserError: where `path` is a folder, or is to be in one that is not there.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path}: is a folder; give the name of a file")
    if path.exists() and not path.is_file():
        with tempfile.TemporaryDirectory() as scratch:
            fresh = Path(scratch) / "whole"
            fresh.touch()
            yield fresh
            with open(fresh, "rb") as whole, open(path, "wb") as stream:
                shutil.copyfileobj(whole, stream)
        return
    if not path.parent.is_dir():
        raise UserError(f"{path}: there is no folder {path.parent}")
    handle, name = tempfile.mkstemp(prefix=path.name + ".", suffix=".tmp", dir=path.parent)
    os.close(handle)
    fresh = Path(name)
    try:
        yield fresh
        fresh.chmod(0o666 & ~umask())  # mkstemp's files are for their owner alone
        flush_to_disk(fresh)
        os.replace(fresh, path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


def write_text(path: str | Path, text: str) -> None:
    """Write a text file whole, in UTF-8 with \\n at line ends."""
    with replacing(path) as fresh:
        fresh.write_text(text, encoding="utf-8", newline="")


def write_json(path: str | Path, value: object) -> None:
    """Write a JSON file whole."""
    write_text(path, to_json(value, indent=1) + "\n")


def to_json(value: object, indent: int | None = None) -> str:
    """JSON that can be read and be written in UTF-8: half a surrogate pair is escaped."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return re.sub("[\ud800-\udfff]", lambda half: f"\\u{ord(half[0]):04x}", text)


def flush_to_disk(path: Path) -> None:
    """Have the system put a file on the disk before the rename that makes it count."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def umask() -> int:
    """The permissions that this process withholds from new files."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
