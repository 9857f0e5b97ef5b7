"""Reading and writing files: bytes, text and JSON from outside, and files that appear whole or not at all.

Readers raise UserError that says what is wrong, where, and what to do. read_text, read_json and read_object name the
file in the message; after the others the caller puts the name before it.
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

from bertqa.errors import UserError, no_data, show


def read_bytes(path: Path) -> bytes:
    """Return the content of a file, unpacked if it is gzipped."""
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
    """Return the content of a file, unpacked if it is gzipped. Raise UserError if it is empty or a Git LFS pointer."""
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
        raise no_data("is empty (0 bytes)")
    refuse_lfs_pointer(content)
    return content


def refuse_lfs_pointer(content: bytes) -> None:
    """Raise UserError if the content is a Git LFS pointer, which stands in for a file that was not fetched."""
    if content.startswith(b"version https://git-lfs.github.com/spec/"):
        raise UserError(
            "is a Git LFS pointer: the file itself was not fetched; run git lfs pull in its repository"
        )


def decode(content: bytes) -> str:
    """Decode UTF-8 and drop the byte order mark; line ends stay as they are."""
    try:
        text = content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise UserError(_why_not_utf8(content, error)) from None
    if not text.strip():
        raise no_data("holds only white space")
    # ASCII text in UTF-16 without a byte order mark is valid UTF-8, with a NUL after each character.
    if text[1:4:2] == "\0\0":
        raise UserError("UTF-16, not UTF-8; save it as UTF-8 (iconv -f utf-16le -t utf-8)")
    return text


BINARY = (b"BZ", b"\xfd7", b"PK", b"(\xb5/\xfd", b"%PDF")
"""How files of bzip2, xz, ZIP, zstd and PDF begin."""


def _why_not_utf8(content: bytes, error: UnicodeDecodeError) -> str:
    """Word the message for bytes that are not UTF-8: the first wrong one, the likely encoding, how to convert the file."""
    line = content.count(b"\n", 0, error.start) + 1
    where = f"byte {content[error.start]:#04x} at offset {error.start} (line {line})"
    if error.reason == "unexpected end of data":
        return f"cut off in the middle of a character: {where}; fetch it again"
    if content.startswith(b"PK\x03\x04"):
        return "is a ZIP archive, or an Excel file; unpack it, or save the table as CSV (UTF-8)"
    if b"\0" in content[:64] or content.startswith(BINARY):
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
    """Read a text file, or standard input if the path is "-". Raise UserError that names it."""
    try:
        if str(path) == "-":
            path = "standard input"
            return decode(unpacked(sys.stdin.buffer.read()))
        return decode(read_bytes(Path(path)))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


class RepeatedKey(UserError):
    """A key that stands twice in one JSON object."""


def parse_json(text: str, line: int | None = None, *, allow_nan: bool = False) -> object:
    """Parse a JSON text: a whole file, or line number `line` of one.

    A key that stands twice in an object is refused, since one of its values would be lost. NaN and infinities are not JSON
    and are refused too, unless `allow_nan`: pandas writes them into data.
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
    """Make a dict of a JSON object's keys and values. Raise RepeatedKey if a key stands twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        name, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise RepeatedKey(f"the key {show(name)} stands twice in one object; leave one out")
    return found


def _finite(number: str) -> float:
    """Read a JSON number with a point or an exponent. Raise UserError for NaN and infinities."""
    value = float(number)
    if not math.isfinite(value):
        raise UserError(f"JSON has no {number}; write a number of usual size, or null")
    return value


def _ends_early(message: str, rest: str) -> bool:
    """Return whether the text stops in the middle of a literal, an escape or a string, as a truncated file does."""
    literals = ("true", "false", "null", "NaN", "-Infinity", "Infinity")
    for word in literals:
        if word.startswith(rest):
            return True
    if message.startswith("Invalid \\u"):
        return len(rest) < 6
    return message.startswith("Unterminated")


def json_lines(text: str, *, allow_nan: bool = False) -> Iterator[tuple[str, object]]:
    """Yield "line 3" and the JSON value of that line, for each line that is not blank."""
    # not splitlines: U+2028 may stand inside a JSON string
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield f"line {number}", parse_json(line, number, allow_nan=allow_nan)


def read_json(path: str | Path, *, allow_nan: bool = False) -> object:
    """Return the value in a JSON file. Raise UserError that names the file."""
    try:
        return parse_json(decode(read_bytes(Path(path))), allow_nan=allow_nan)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def read_object(path: str | Path) -> dict:
    """Return the object in a JSON file. Raise UserError that names the file, also if it holds another value."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds a JSON {type(value).__name__}, expected an object")
    return value


def same_file(one: Path, other: Path) -> bool:
    """Return whether both paths exist and are the same file."""
    return one.exists() and other.exists() and one.samefile(other)


def sha256(*paths: Path) -> str:
    """Return the checksum that `cat FILES | sha256sum` prints, as hexadecimal digits."""
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
    """Yield a temporary file beside `path`, and rename it to `path` if the block ends without an exception.

    Its name is unique, so several processes may write the same `path`: each writes a whole file, and the last rename
    wins. If `path` is a device or a pipe (/dev/stdout), the content is copied into it instead.

    Raises:
        UserError: if `path` is a folder, or its folder does not exist.
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
        fresh.chmod(0o666 & ~umask())  # mkstemp makes files that only their owner may read
        flush_to_disk(fresh)
        os.replace(fresh, path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


def write_text(path: str | Path, text: str) -> None:
    """Write a text file atomically, in UTF-8; line ends stay as they are."""
    with replacing(path) as fresh:
        fresh.write_text(text, encoding="utf-8", newline="")


def write_json(path: str | Path, value: object) -> None:
    """Write a JSON file atomically."""
    write_text(path, to_json(value, indent=1) + "\n")


def to_json(value: object, indent: int | None = None) -> str:
    """Return the value as JSON that UTF-8 can encode: lone surrogates are escaped, other characters are not."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return re.sub("[\ud800-\udfff]", lambda half: f"\\u{ord(half[0]):04x}", text)


def flush_to_disk(path: Path) -> None:
    """Call fsync on a file: without it, a crash after the rename could leave an empty file."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def umask() -> int:
    """Return this process's umask: the permissions that its new files lack."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
