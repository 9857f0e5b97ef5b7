"""Files of data as streams: which files are meant, what is in them, unpacked as it is read, and streams cut into chunks."""

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
    """The files that are meant by names of files, folders (all files in them), patterns (*.jsonl) and data sets (squad2).

    In the order of the names, and within a folder or pattern in that of the alphabet. "-" is standard input.

    Raises UserError for a name that stands for nothing.
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
    """An open file of data. Use as a context manager.

    Raises UserError where there is nothing to read. Its messages do not name the file.
    """

    def __init__(self, path: Path):
        self.path = path
        self.name = "standard input" if path == STDIN else str(path)
        self._raw = _open(path)
        self.size = 0  # bytes on the disk, packed or not; 0: unknown
        if path.is_file():
            self.size = path.stat().st_size
        # Names lie: the first bytes tell what is in the file. To peek does not take them from a pipe.
        self.head = self._raw.peek(64)[:64]
        if not self.head:
            raise no_data("is empty (0 bytes)")
        refuse_lfs_pointer(self.head)
        self.stream = _unpacked(self._raw, self.head)
        self.digest = hashlib.sha256()
        """Of what was read, unpacked."""
        self.share_of_records: float | None = None
        """How much of it is out, where its reader knows better than its bytes: it was read whole."""

    def __enter__(self) -> "Source":
        return self

    def __exit__(self, *error) -> None:
        if self.path != STDIN:
            self._raw.close()

    @property
    def share_read(self) -> float:
        """How much of the file has been read, 0 to 1; 0 where nobody can know."""
        if self.share_of_records is not None:
            return self.share_of_records
        if not self.size or self._raw.closed:
            return 0.0
        return min(1.0, self._raw.tell() / self.size)

    def tell_share(self, share: float) -> None:
        """Take note of how much of it is out, 0 to 1."""
        self.share_of_records = share

    def lines(self) -> Iterator[bytes]:
        """The lines, with their ends."""
        while True:
            line = self._said_well(self.stream.readline)
            if not line:
                return
            self.digest.update(line)
            yield line

    def read(self) -> bytes:
        """All that is left."""
        content = self._said_well(self.stream.read)
        self.digest.update(content)
        return content

    def _said_well(self, read: Callable[[], bytes]) -> bytes:
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
        # A test, or a program, may have put something without bytes in the place of standard input.
        bytes_of = getattr(sys.stdin, "buffer", None) or io.BytesIO(sys.stdin.read().encode())
        return bytes_of if hasattr(bytes_of, "peek") else io.BufferedReader(bytes_of)
    try:
        return open(path, "rb")
    except FileNotFoundError:
        raise UserError("there is no such file") from None
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}") from None


def _unpacked(raw: io.BufferedReader, head: bytes) -> BinaryIO:
    if head.startswith(GZIP):
        return io.BufferedReader(gzip.GzipFile(fileobj=raw))
    if head.startswith(BZIP2):
        return bz2.BZ2File(raw)
    if head.startswith(ZSTANDARD):
        return _zstandard(raw)
    return raw


def zstandard_errors() -> tuple[type[Exception], ...]:
    """What the optional package raises for damaged data, if it was needed."""
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
    """Lines in UTF-8 as text, without a byte order mark."""
    first = True
    for line in lines:
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError:
            # It fails too, and says why in words for people.
            decode(line)
            raise
        yield text.removeprefix("\ufeff") if first else text
        first = False


def look_at(lines: Iterator, most: int) -> tuple[list, Iterator]:
    """The first lines, until `most` of them are not blank; and all lines, these again."""
    first = []
    filled = 0
    for line in lines:
        first.append(line)
        filled += bool(line.strip())
        if filled == most:
            break
    return first, chain(first, lines)


class Stream:
    """The records of files, one file after the other: an iterator that knows how far it has come."""

    def __init__(self, paths: Sequence[Path], read: Callable[[Source], Iterator]):
        """`read` gives the records of an open file."""
        self.paths = paths
        self.read = read
        self.source: Source | None = None
        self.files = 0  # read to their end
        self.count = 0  # of records

    @property
    def share_read(self) -> float:
        """How much has been read, 0 to 1; 0 where nobody can know."""
        here = self.source.share_read if self.source else 0.0
        return (self.files + here) / len(self.paths)

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


# A stream in pieces that suit the model: lists of questions, small ones first so that answers come soon

QUESTIONS_AT_ONCE = (
    2048  # whose windows are sorted by length together: it bounds memory, not the file
)
FIRST_QUESTIONS = 32  # in the first chunk of `answer_many`; each next one is twice as large
CHARACTERS = 1 << 21  # to read in a chunk: where texts are long, it holds fewer items


def chunks(
    items: Iterable, size: int, weigh: Callable = lambda item: 0, first: int | None = None
) -> Iterator[list]:
    """Consecutive lists of `size` items, or fewer where they weigh over CHARACTERS; the last one is shorter.

    With `first` the lists grow from that many items, doubling.
    """
    chunk: list = []
    now = min(first or size, size)
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
    """An iterator that threads may share: each item goes to one of them."""

    def __init__(self, items: Iterator):
        self.items = items
        self.lock = threading.Lock()

    def __iter__(self) -> "Shared":
        return self

    def __next__(self):
        with self.lock:
            return next(self.items)
