"""SQuAD by name: `squad1` (v1.1) and `squad2` (v2.0) are the official files, fetched once and checked on every use.

    squad2-train, squad2-dev, squad1-train, squad1-dev   that file
    squad2, squad1                                       the train file after `--train`, the dev file anywhere else

A file or folder of that name in the working directory wins. SQuAD is Rajpurkar et al. 2016, 2018, CC BY-SA 4.0.

    BERTQA_SQUAD_URL   where to fetch from, without the file's name [https://rajpurkar.github.io/SQuAD-explorer/dataset]
    BERTQA_CACHE       the folder to keep files in [$XDG_CACHE_HOME/bertqa, or ~/.cache/bertqa]
"""

import base64
import os
import queue
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from bertqa.console import progress_bar, say
from bertqa.errors import UserError
from bertqa.files import flush_to_disk, sha256
from bertqa.folders import cache_folder, locked

PAUSES = (0.5, 1, 2)  # seconds before further attempts, anew whenever an attempt brought something
ATTEMPTS = 100  # at most, be it that each brings something
LEAST_RATE = (
    16_384  # bytes a second on average, so that a server that drips does not hold us for ever
)
LEAST_TIME = 60  # seconds that a fetch may take in any case
BLOCK = 1 << 16  # bytes that are read at once
SILENCE = 30  # seconds without a byte after which a connection is given up


@dataclass(frozen=True)
class Official:
    """A file as its authors publish it."""

    name: str
    size: int  # bytes
    sha256: str

    @property
    def base(self) -> str:
        """The folder of the server that holds the file."""
        base = os.environ.get("BERTQA_SQUAD_URL")
        base = base or "https://rajpurkar.github.io/SQuAD-explorer/dataset"
        if not base.startswith(("http://", "https://")):
            raise UserError(
                f"BERTQA_SQUAD_URL is {without_password(base)!r}; it must start with http:// or https://"
            )
        return base.rstrip("/")

    @property
    def url(self) -> str:
        """Where it is fetched from, without the password that the address may have."""
        return f"{without_password(self.base)}/{self.name}"

    @property
    def path(self) -> Path:
        """Where it lies once it was fetched."""
        return cache_folder() / self.name

    def fault(self, path: Path) -> str | None:
        """What tells the file at `path` from this one; None where they are the same."""
        size = path.stat().st_size
        if size != self.size:
            return f"it has {size:,} bytes, not {self.size:,}"
        found = sha256(path)
        return None if found == self.sha256 else f"its sha256 is {found}, not {self.sha256}"

    def error(self, problem: str) -> UserError:
        """The problem, and the ways out that are always there."""
        return UserError(
            f"{self.url}: {problem}; or set BERTQA_SQUAD_URL to a mirror, or put the official file at "
            f"{self.path} yourself (sha256 {self.sha256})"
        )


SHA256 = {
    "train-v1.1.json": "3527663986b8295af4f7fcdff1ba1ff3f72d07d61a20f487cb238a6ef92fd955",
    "dev-v1.1.json": "95aa6a52d5d6a735563366753ca50492a658031da74f301ac5238b03966972c9",
    "train-v2.0.json": "68dcfbb971bd3e96d5b46c7177b16c1a4e7d4bdef19fb204502738552dede002",
    "dev-v2.0.json": "80a5225e94905956a6446d296ca1093975c4d3b3260f1d6c8f68bc2ab77182d8",
}
FILES = {
    "squad1-train": Official("train-v1.1.json", 30288272, SHA256["train-v1.1.json"]),
    "squad1-dev": Official("dev-v1.1.json", 4854279, SHA256["dev-v1.1.json"]),
    "squad2-train": Official("train-v2.0.json", 42123633, SHA256["train-v2.0.json"]),
    "squad2-dev": Official("dev-v2.0.json", 4370528, SHA256["dev-v2.0.json"]),
}


def official(name: str | Path, split: str = "dev") -> Official | None:
    """The file that a name stands for, `split` ("train" or "dev") where it says none; None for any other path."""
    named = FILES.get(str(name)) or FILES.get(f"{name}-{split}")
    if named is None or Path(name).exists():
        return None
    return named


def locate(name: str | Path, split: str = "dev") -> Path:
    """The path of a data file: that of a name, fetched if it has to be, and every other path as it is.

    Raises UserError where the file cannot be fetched, or what came, or lies in the cache, is not the official one.
    """
    file = official(name, split)
    if file is None:
        return Path(name)
    if not file.path.exists():
        file.path.parent.mkdir(parents=True, exist_ok=True)
        with locked(file.path.parent):
            # Another process may have fetched it while this one waited.
            if not file.path.exists():
                _fetch(file)
        return file.path
    fault = file.fault(file.path)
    if fault:
        raise UserError(
            f"{file.path}: this is not the official {file.name}: {fault}; delete it, and it is fetched again"
        )
    return file.path


def _fetch(file: Official) -> None:
    """Go on with NAME.part until it is whole, check it, and only then give it its name."""
    part = file.path.with_name(file.name + ".part")
    with _open_part(file, part) as out:
        _fill(file, out)
    fault = file.fault(part)
    if fault:
        part.unlink()
        raise file.error(
            f"what came is not the official {file.name}: {fault}; it was deleted, run the same command again"
        )
    flush_to_disk(part)
    os.replace(part, file.path)


def _open_part(file: Official, part: Path) -> BinaryIO:
    """The unfinished file, at its end. A link is not followed: it would have us write into some other file."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    if part.is_symlink():
        raise file.error(f"{part} is a link, to another file perhaps; delete it")
    out = open(os.open(part, flags, 0o666), "r+b")
    out.seek(0, os.SEEK_END)
    return out


def _fill(file: Official, out: BinaryIO) -> None:
    """Append to `out` until it has the size of the file, in as many attempts as it takes, within bounds.

    Raises UserError where the server refuses, has another file, or is too slow.
    """
    from http.client import HTTPException
    from urllib.error import HTTPError

    end = time.monotonic() + LEAST_TIME + file.size / LEAST_RATE
    most = out.tell()
    pauses = list(PAUSES)
    attempts = 0
    shown = {"desc": file.name, "unit": "B", "unit_scale": True}
    with progress_bar(total=file.size, initial=most, **shown) as bar:
        while out.tell() < file.size:
            attempts += 1
            try:
                _receive(file, out, bar, end)
                continue
            except HTTPError as error:
                if error.code == 416 and out.tell():
                    # The part that is here is longer than the server's file: it is of another one.
                    out.seek(0)
                    out.truncate()
                elif error.code < 500 and error.code not in (408, 429):
                    raise file.error(f"{error}; see whether that address is right") from None
                reason = str(error)
            except UserError:
                raise
            except (OSError, HTTPException, ValueError) as error:
                # ValueError: an address, a length or a redirection that makes no sense
                reason = str(getattr(error, "reason", error)) or type(error).__name__
            reason = " ".join(reason.split())
            if out.tell() > most:
                most = out.tell()
                pauses = list(PAUSES)
            late = time.monotonic() >= end
            if late:
                reason += f", slower than {LEAST_RATE:,} bytes a second"
            if late or not pauses or attempts >= ATTEMPTS:
                raise file.error(
                    f"cannot be fetched ({reason}), {out.tell():,} of {file.size:,} bytes are here; "
                    "run the same command again to go on"
                )
            say(f"{file.name}: {reason}; trying again")
            time.sleep(pauses.pop(0))


def _receive(file: Official, out: BinaryIO, bar, end: float) -> None:
    """Append to `out` what it lacks of the file, until `end` by time.monotonic().

    Raises OSError, HTTPException or ValueError where that is cut short or not understood, UserError for another file.
    """
    request = request_of(f"{file.base}/{file.name}", out.tell())
    with closing(_blocks(request, out.tell(), file.size, end)) as blocks:
        start, announced = next(blocks)
        size = start + announced
        if size != file.size:  # the login page of a network, another version on a mirror
            raise file.error(
                f"the server has {size:,} bytes under that name, not the official {file.size:,}"
            )
        out.seek(start)
        out.truncate()  # a server that knows no Range sends everything
        for block in blocks:
            out.write(block)
            bar.update(out.tell() - bar.n)
    if out.tell() < file.size:
        raise ConnectionError(f"the connection ended after {out.tell():,} bytes")


def without_password(url: str) -> str:
    """An address as it may be shown: http://ada:secret@host/squad is http://host/squad."""
    scheme, mark, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    return scheme + mark + host.rpartition("@")[2] + slash + path


def request_of(url: str, start: int):
    """What is asked of a server: the file at this address, from byte `start` on; a name and password in it as such."""
    from urllib.parse import unquote, urlsplit
    from urllib.request import Request

    request = Request(without_password(url), headers={"User-Agent": "bertqa"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    parts = urlsplit(url)
    if parts.username is not None:
        secret = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        token = base64.b64encode(secret.encode()).decode()
        # unredirected: another server that this one points to is not told
        request.add_unredirected_header("Authorization", f"Basic {token}")
    return request


def _blocks(request, start: int, size: int, end: float) -> Iterator:
    """(where a server's answer begins in the file, its length), then its bytes: those from `start` on of `size`.

    A socket's timeout begins anew with each byte, so a server that drips could hold a reader for days. The answer is
    received in a thread of its own, and waiting for it given up at `end`.
    Raises TimeoutError then, and OSError, HTTPException or ValueError as urllib does.
    """
    came: queue.Queue = queue.Queue(maxsize=8)
    stop = threading.Event()  # set when nobody waits for what comes any more
    threading.Thread(target=_read, args=(request, start, size, came, stop), daemon=True).start()
    try:
        while True:
            try:
                item = came.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                raise TimeoutError("the server takes too long") from None
            if isinstance(item, Exception):
                raise item
            if item is None:
                return
            yield item
    finally:
        stop.set()


def _read(request, start: int, size: int, came: queue.Queue, stop: threading.Event) -> None:
    """The thread's work: put into `came` what `_blocks` yields, then None, or the error that came in between."""
    from urllib.request import urlopen

    def hand_over(item) -> None:
        """Wait until there is room for an item, as long as somebody waits for it."""
        while not stop.is_set():
            with suppress(queue.Full):
                return came.put(item, timeout=0.5)

    try:
        with urlopen(request, timeout=SILENCE) as answer:
            start = start if answer.status == 206 else 0
            announced = answer.headers["Content-Length"] or str(size - start)
            if not (announced.isascii() and announced.isdigit()):
                raise ValueError(f"the server's Content-Length is {announced[:30]!r}")
            hand_over((start, int(announced[:18])))
            left = size - start  # no more than these are taken
            while left > 0 and not stop.is_set():
                block = answer.read(min(BLOCK, left))
                if not block:
                    break
                left -= len(block)
                hand_over(block)
        hand_over(None)
    except Exception as error:  # what happens in this thread must be said in the other
        hand_over(error)
