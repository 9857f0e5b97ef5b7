"""SQuAD by name: `squad1` (v1.1) and `squad2` (v2.0) are the official files, downloaded once and checked at every use.

    squad2-train, squad2-dev, squad1-train, squad1-dev   that file
    squad2, squad1                                       the train file after `--train`, the dev file anywhere else

A file or folder of that name in the working directory takes precedence. SQuAD: Rajpurkar et al. 2016, 2018, CC BY-SA 4.0.

    BERTQA_SQUAD_URL   the address of the server's folder [https://rajpurkar.github.io/SQuAD-explorer/dataset]
    BERTQA_CACHE       the folder to keep files in [$XDG_CACHE_HOME/bertqa, or ~/.cache/bertqa]
"""

import os
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from bertqa.console import progress_bar, say
from bertqa.data.http_blocks import blocks_of, request_of, without_password
from bertqa.errors import UserError
from bertqa.files import flush_to_disk, sha256
from bertqa.folders import cache_folder, locked

PAUSES = (0.5, 1, 2)
"""Seconds before each new attempt. They begin again after an attempt that received something."""
ATTEMPTS = 100  # connections at most, even if each receives something
LEAST_RATE = 16_384  # bytes a second on average, so that a slow server cannot hold us for ever
LEAST_TIME = 60  # seconds that a download may take in any case


@dataclass(frozen=True)
class Official:
    """An official file of SQuAD."""

    name: str
    size: int  # bytes
    sha256: str

    @property
    def base(self) -> str:
        """Address of the server's folder. Raises UserError if BERTQA_SQUAD_URL is not an address."""
        base = os.environ.get("BERTQA_SQUAD_URL")
        base = base or "https://rajpurkar.github.io/SQuAD-explorer/dataset"
        if not base.startswith(("http://", "https://")):
            raise UserError(
                f"BERTQA_SQUAD_URL is {without_password(base)!r}; it must start with http:// or https://"
            )
        return base.rstrip("/")

    @property
    def url(self) -> str:
        """Address of the file, without a password, for messages."""
        return f"{without_password(self.base)}/{self.name}"

    @property
    def path(self) -> Path:
        """Path of the file in the cache, even if it is not there."""
        return cache_folder() / self.name

    def fault(self, path: Path) -> str | None:
        """Return how the file at `path` differs from the official one; None if they are equal."""
        size = path.stat().st_size
        if size != self.size:
            return f"it has {size:,} bytes, not {self.size:,}"
        found = sha256(path)
        return None if found == self.sha256 else f"its sha256 is {found}, not {self.sha256}"

    def error(self, problem: str) -> UserError:
        """Return the error for a download that failed: the problem, and two ways to do without the download."""
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
    """Return the official file that a name stands for; None for any other path.

    Args:
        split: "train" or "dev", for a name without a split.
    """
    named = FILES.get(str(name)) or FILES.get(f"{name}-{split}")
    if named is None or Path(name).exists():
        return None
    return named


def locate(name: str | Path, split: str = "dev") -> Path:
    """Return the path of an official file, downloaded if it is not in the cache, or any other path as it is.

    Raises UserError if the file cannot be downloaded, or if what came, or is in the cache, is not the official file.
    """
    file = official(name, split)
    if file is None:
        return Path(name)
    if not file.path.exists():
        file.path.parent.mkdir(parents=True, exist_ok=True)
        with locked(file.path.parent):
            # Another process may have downloaded it while this one waited for the lock.
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
    """Download a file to NAME.part, or complete what is there, check it, and only then rename it to NAME."""
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
    """Open the unfinished file, at its end. Links are not followed, because they could lead into any file."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    if part.is_symlink():
        raise file.error(f"{part} is a link, to another file perhaps; delete it")
    out = open(os.open(part, flags, 0o666), "r+b")
    out.seek(0, os.SEEK_END)
    return out


def _fill(file: Official, out: BinaryIO) -> None:
    """Append to `out` until it has the size of the file, over as many connections as it takes.

    Raises UserError if the server refuses, has another file, or is too slow.
    """
    deadline = time.monotonic() + LEAST_TIME + file.size / LEAST_RATE
    most = out.tell()
    pauses = list(PAUSES)
    attempts = 0
    look = {"desc": file.name, "total": file.size, "unit": "B", "unit_scale": True}
    with progress_bar(initial=most, **look) as bar:
        while out.tell() < file.size:
            attempts += 1
            reason = _attempt(file, out, bar, deadline)
            if reason is None:
                return
            if out.tell() > most:
                most = out.tell()
                pauses = list(PAUSES)
            late = time.monotonic() >= deadline
            if late:
                reason += f", slower than {LEAST_RATE:,} bytes a second"
            if late or not pauses or attempts >= ATTEMPTS:
                raise file.error(
                    f"cannot be fetched ({reason}), {out.tell():,} of {file.size:,} bytes are here; "
                    "run the same command again to go on"
                )
            say(f"{file.name}: {reason}; trying again")
            time.sleep(pauses.pop(0))


def _attempt(file: Official, out: BinaryIO, bar, deadline: float) -> str | None:
    """Append what is missing to `out` over one connection; return why that ended early, None if the file is whole.

    Raises UserError if another attempt could not do better.
    """
    from http.client import HTTPException
    from urllib.error import HTTPError

    try:
        _receive(file, out, bar, deadline)
        return None
    except HTTPError as error:
        if error.code == 416 and out.tell():
            # The part here is longer than the server's file, so it belongs to another file: start again.
            out.seek(0)
            out.truncate()
        elif error.code < 500 and error.code not in (408, 429):
            raise file.error(f"{error}; see whether that address is right") from None
        reason = str(error)
    except UserError:  # a ValueError, but not one of those below
        raise
    except (OSError, HTTPException, ValueError) as error:
        # ValueError: an address, a length or a redirection that makes no sense
        reason = str(getattr(error, "reason", error)) or type(error).__name__
    return " ".join(reason.split())


def _receive(file: Official, out: BinaryIO, bar, deadline: float) -> None:
    """Append what is missing to `out`, until `deadline` by time.monotonic().

    Raises OSError, HTTPException or ValueError if the answer is incomplete or wrong, UserError if it is another file's.
    """
    request = request_of(f"{file.base}/{file.name}", out.tell())
    with closing(blocks_of(request, out.tell(), file.size, deadline)) as answer:
        content = next(answer)
        size = content.start + content.length
        if size != file.size:  # the login page of a network, another version on a mirror
            raise file.error(
                f"the server has {size:,} bytes under that name, not the official {file.size:,}"
            )
        out.seek(content.start)
        out.truncate()  # a server that does not know Range sends the file from its beginning
        for block in answer:
            out.write(block)
            bar.update(out.tell() - bar.n)
    if out.tell() < file.size:
        raise ConnectionError(f"the connection ended after {out.tell():,} bytes")
