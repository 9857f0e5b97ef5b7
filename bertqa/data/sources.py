"""Read data files as streams: find them by name, unpack them while reading, cut what they hold into chunks."""

import bz2
import glob
import gzip
import hashlib
import io
import sys
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from bertqa.data.download import locate
from bertqa.errors import UserError, no_data
from bertqa.files import decode, refuse_lfs_pointer

STDIN = Path("-")

GZIP = b"\x1f\x8b"
BZIP2 = b"BZh"
ZSTANDARD = b"\x28\xb5\x2f\xfd"


def expand(names: Sequence[str]) -> list[Path]:
    """Return the files of a list of names: files, folders (all files in them), patterns (*.jsonl) and data sets (squad2).

    They come in the order of the names; those of a folder or pattern are sorted. "-" is standard input.

    Raises UserError for a folder or pattern without a file.
    """
    files: list[Path] = []
    for name in names:
        path = Path(name)
        if path == STDIN:
            files.append(path)
        elif path.is_dir():
            files += _files_in(path)
        elif glob.has_magic(str(name)) and not path.exists():
            files += _matching(str(name))
        else:
            files.append(Path(locate(name)))
    return files


def _files_in(folder: Path) -> list[Path]:
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name[0] != ".")
    if not files:
        raise UserError(f"{folder}: there is no file in this folder")
    return files


def _matching(pattern: str) -> list[Path]:
    names = sorted(glob.glob(pattern, recursive=True))
    files = [path for path in map(Path, names) if path.is_file()]
    if not files:
        raise UserError(f"{pattern}: no file has such a name")
    return files


class Source:
    """An open data file, which is unpacked (gzip, bzip2, zstandard) while it is read. Use it as a context manager.

    Opening and reading raise UserErrors that do not name the file.
    """

    def __init__(self, path: Path):
        self.path = path
        self.name = "standard input" if path == STDIN else str(path)
        self._raw = _open(path)
        self.size = 0  # bytes on the disk, packed or not; 0: not known
        if path.is_file():
            self.size = path.stat().st_size
        # The first bytes, not the name, tell what is in the file. peek leaves them in the stream, even in a pipe.
        self.head = self._raw.peek(64)[:64]
        if not self.head:
            raise no_data("is empty (0 bytes)")
        refuse_lfs_pointer(self.head)
        self.stream = _unpacked(self._raw, self.head)
        self.digest = hashlib.sha256()
        """Of the unpacked bytes that were read so far."""
        self.share_of_records: float | None = None
        """Share of the records that were yielded, if a reader that reads the file at once keeps it up to date."""

    def __enter__(self) -> "Source":
        return self

    def __exit__(self, *error) -> None:
        if self.path != STDIN:
            self._raw.close()

    @property
    def share_read(self) -> float:
        """Share of the file that has been read, 0 to 1; 0 if it cannot be known."""
        if self.share_of_records is not None:
            return self.share_of_records
        if not self.size or self._raw.closed:
            return 0.0
        return min(1.0, self._raw.tell() / self.size)

    def tell_share(self, share: float) -> None:
        """Set `share_read`, 0 to 1."""
        self.share_of_records = share

    def parquet_path(self) -> Path:
        """Return the path of a Parquet file, which its reader must seek in. Raises UserError for a pipe."""
        if self.path == STDIN:
            raise UserError("is Parquet, which cannot be read from a pipe; give the file's name")
        return self.path

    def lines(self) -> Iterator[bytes]:
        """Yield the lines, with their line ends."""
        while True:
            line = self._read_safely(self.stream.readline)
            if not line:
                return
            self.digest.update(line)
            yield line

    def read(self) -> bytes:
        """Return the rest of the file."""
        content = self._read_safely(self.stream.read)
        self.digest.update(content)
        return content

    def _read_safely(self, read: Callable[[], bytes]) -> bytes:
        """Call `read`, and turn what it raises for a damaged file into a UserError."""
        try:
            return read()
        except EOFError:
            raise UserError("cut off: its packed stream ends early; fetch it again") from None
        except (gzip.BadGzipFile, zlib.error, *zstandard_errors()) as error:
            raise UserError(
                f"damaged: its packed stream cannot be read ({error}); fetch it again"
            ) from None
        except OSError as error:
            raise UserError(f"cannot be read: {error.strerror or error}") from None


def _open(path: Path) -> io.BufferedReader:
    if path == STDIN:
        return _standard_input()
    try:
        return open(path, "rb")
    except FileNotFoundError:
        raise UserError("there is no such file") from None
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}") from None


def _standard_input() -> io.BufferedReader:
    """Return standard input as bytes, even if a program or a test has replaced it by a text stream."""
    stream = getattr(sys.stdin, "buffer", None)
    if stream is None:
        stream = io.BytesIO(sys.stdin.read().encode())
    return stream if hasattr(stream, "peek") else io.BufferedReader(stream)


def _unpacked(raw: io.BufferedReader, head: bytes) -> BinaryIO:
    """Return a stream of the unpacked content; `head` is the first bytes of `raw`."""
    if head.startswith(GZIP):
        return io.BufferedReader(gzip.GzipFile(fileobj=raw))
    if head.startswith(BZIP2):
        return bz2.BZ2File(raw)
    if head.startswith(ZSTANDARD):
        return _zstandard(raw)
    return raw


def zstandard_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions that the optional package zstandard raises for damaged data; () if it is not loaded."""
    zstandard = sys.modules.get("zstandard")
    return (zstandard.ZstdError,) if zstandard else ()


def _zstandard(raw: io.BufferedReader) -> BinaryIO:
    try:
        import zstandard
    except ImportError:
        raise UserError(
            "is packed by zstd, which needs the package zstandard: pip install zstandard, or unpack it on the way: "
            "zstdcat FILE | python -m bertqa.predict --data -"
        ) from None
    return io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(raw))


def decoded(lines: Iterator[bytes]) -> Iterator[str]:
    """Decode lines of UTF-8, and drop the byte order mark. Raises UserError for another encoding."""
    first = True
    for line in lines:
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError:
            decode(line)  # raises a UserError that explains what is wrong
            raise
        yield text.removeprefix("\ufeff") if first else text
        first = False


def look_at(lines: Iterator, most: int) -> tuple[list, Iterator]:
    """Return the first lines, up to the `most`-th that is not blank, and an iterator of all lines, these included."""
    first = []
    filled = 0
    for line in lines:
        first.append(line)
        if line.strip():
            filled += 1
        if filled == most:
            break
    return first, chain(first, lines)


class Stream:
    """The records of several files, one file after the other: an iterable that knows how much of them has been read.

    Args:
        read: yields the records of an open file.
    """

    def __init__(self, paths: Sequence[Path], read: Callable[[Source], Iterator]):
        self.paths = paths
        self.read = read
        self.source: Source | None = None  # the file that is being read
        self.files = 0  # number of files that were read to their end
        self.count = 0  # number of records that were yielded

    @property
    def share_read(self) -> float:
        """Share of the files that has been read, 0 to 1, each file counted alike; 0 if it cannot be known."""
        share_of_file = self.source.share_read if self.source else 0.0
        return (self.files + share_of_file) / len(self.paths)

    def __iter__(self) -> Iterator:
        for path in self.paths:
            try:
                with Source(path) as self.source:
                    for record in self.read(self.source):
                        self.count += 1
                        yield record
            except UserError as error:
                name = self.source.name if self.source else path
                raise UserError(f"{name}: {error}") from None
            self.source = None
            self.files += 1


# Chunks of a stream, for the model. The first ones are small, so that answers come soon

QUESTIONS_AT_ONCE = 2048
"""Questions in a chunk, whose windows are sorted by length together. It bounds the memory that a stream takes."""
FIRST_QUESTIONS = 32
"""Questions in the first chunk of `answer_many`; each next chunk is twice as large."""
CHARACTERS = 1 << 21
"""Characters to read in a chunk, so that a chunk of long texts holds fewer items."""


def chunks(
    items: Iterable, size: int, weigh: Callable = lambda item: 0, first: int | None = None
) -> Iterator[list]:
    """Yield consecutive lists of `size` items; a list ends early when its weight exceeds CHARACTERS.

    Args:
        weigh: returns the characters to read of an item.
        first: size of the first list, doubled for each next one up to `size`; None means `size`.
    """
    chunk: list = []
    now = size if first is None else min(first, size)  # size of the current list
    weight = 0
    for item in items:
        chunk.append(item)
        weight += weigh(item)
        if len(chunk) >= now or weight > CHARACTERS:
            yield chunk
            chunk = []
            now = min(2 * now, size)
            weight = 0
    if chunk:
        yield chunk


class Shared:
    """An iterator that several threads may use at once: each item goes to one of them."""

    def __init__(self, items: Iterator):
        self.items = items
        self.lock = threading.Lock()

    def __iter__(self) -> "Shared":
        return self

    def __next__(self):
        with self.lock:
            return next(self.items)
