"""SQuAD by name: `squad1` (v1.1) and `squad2` (v2.0) are the official files, fetched once and checked on every use.

    squad2-train, squad2-dev, squad1-train, squad1-dev   that file
    squad2, squad1                                       the train file after `--train`, the dev file anywhere else

A file or folder of that name in the working directory wins. SQuAD is Rajpurkar et al. 2016, 2018, CC BY-SA 4.0.

    BERTQA_SQUAD_URL   where to fetch from, without the file's name [https://rajpurkar.github.io/SQuAD-explorer/dataset]
    BERTQA_CACHE       the folder to keep files in [$XDG_CACHE_HOME/bertqa, or ~/.cache/bertqa]
"""

import contextlib
import hashlib
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bertqa.errors import UserError
from bertqa.files import cache_folder

PAUSES = (
    0.5,
    1,
    2,
)  # seconds before each further attempt, counted anew whenever an attempt brought something


@dataclass(frozen=True)
class Official:
    """A file as its authors publish it."""

    name: str
    size: int  # bytes
    sha256: str

    @property
    def url(self) -> str:
        base = (
            os.environ.get("BERTQA_SQUAD_URL")
            or "https://rajpurkar.github.io/SQuAD-explorer/dataset"
        )
        if not base.startswith(("http://", "https://")):
            raise UserError(f"BERTQA_SQUAD_URL is {base!r}; it must start with http:// or https://")
        return f"{base.rstrip('/')}/{self.name}"

    @property
    def path(self) -> Path:
        """Where it lies once it was fetched."""
        return cache_folder() / self.name

    def fault(self, path: Path) -> str | None:
        """What tells the file at `path` from this one; None where they are the same."""
        if path.stat().st_size != self.size:
            return f"it has {path.stat().st_size:,} bytes, not {self.size:,}"
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        return None if found == self.sha256 else f"its sha256 is {found}, not {self.sha256}"

    def error(self, problem: str) -> UserError:
        """The problem, and the ways out that are always there."""
        return UserError(
            f"{self.url}: {problem}; or set BERTQA_SQUAD_URL to a mirror, or put the official file at "
            f"{self.path} yourself (sha256 {self.sha256})"
        )


FILES = {
    "squad1-train": Official(
        "train-v1.1.json",
        30288272,
        "3527663986b8295af4f7fcdff1ba1ff3f72d07d61a20f487cb238a6ef92fd955",
    ),
    "squad1-dev": Official(
        "dev-v1.1.json", 4854279, "95aa6a52d5d6a735563366753ca50492a658031da74f301ac5238b03966972c9"
    ),
    "squad2-train": Official(
        "train-v2.0.json",
        42123633,
        "68dcfbb971bd3e96d5b46c7177b16c1a4e7d4bdef19fb204502738552dede002",
    ),
    "squad2-dev": Official(
        "dev-v2.0.json", 4370528, "80a5225e94905956a6446d296ca1093975c4d3b3260f1d6c8f68bc2ab77182d8"
    ),
}


def official(name: str | Path, split: str = "dev") -> Official | None:
    """The file that a name stands for, `split` ("train" or "dev") where it says none; None for any other path."""
    named = FILES.get(str(name)) or FILES.get(f"{name}-{split}")
    return None if named is None or Path(name).exists() else named


def locate(name: str | Path, split: str = "dev") -> Path:
    """The path of a data file: that of a name, fetched if it has to be, and every other path as it is.

    Raises:
        UserError: the file cannot be fetched, or what came, or lies in the cache, is not the official one.
    """
    file = official(name, split)
    if file is None:
        return Path(name)
    if not file.path.exists():
        file.path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(file.path.parent):
            if not file.path.exists():  # another process may have fetched it while this one waited
                _fetch(file)
    elif fault := file.fault(file.path):
        raise UserError(
            f"{file.path}: this is not the official {file.name}: {fault}; delete it, and it is fetched again"
        )
    return file.path


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process at a time, so that no two append to the same part; no lock where folders cannot have one (Windows)."""
    handle = None
    with contextlib.suppress(ImportError, OSError):
        import fcntl

        handle = os.open(folder, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


def _fetch(file: Official) -> None:
    """Go on with NAME.part until it is whole, check it, and only then give it its name."""
    from http.client import HTTPException
    from urllib.error import HTTPError

    from tqdm import tqdm

    part = file.path.with_name(file.name + ".part")
    with (
        open(part, "ab") as out,
        tqdm(
            total=file.size,
            initial=out.tell(),
            desc=file.name,
            unit="B",
            unit_scale=True,
            dynamic_ncols=True,
        ) as bar,
    ):
        most, pauses = out.tell(), list(PAUSES)
        while out.tell() < file.size:
            try:
                _receive(file, out, bar)
            except (OSError, HTTPException) as error:
                answered = isinstance(error, HTTPError)
                reason = error if answered else getattr(error, "reason", error)
                if answered and error.code < 500 and error.code not in (408, 429):
                    raise file.error(f"{reason}; see whether that address is right") from None
                if out.tell() > most:
                    most, pauses = out.tell(), list(PAUSES)
                if not pauses:
                    raise file.error(
                        f"cannot be fetched ({reason}), {out.tell():,} of {file.size:,} bytes are here; "
                        "run the same command again to go on"
                    ) from None
                bar.write(f"{file.name}: {reason}; trying again", file=sys.stderr)
                time.sleep(pauses.pop(0))
    if fault := file.fault(part):
        part.unlink()
        raise file.error(
            f"what came is not the official {file.name}: {fault}; it was deleted, run the same command again"
        )
    os.replace(part, file.path)


def _receive(file: Official, out, bar) -> None:
    """Append to `out` what it lacks of the file. Raises OSError or HTTPException where that is cut short,
    UserError where the server has another file."""
    from urllib.request import Request, urlopen

    ranged = {"Range": f"bytes={out.tell()}-"} if out.tell() else {}
    with urlopen(
        Request(file.url, headers={"User-Agent": "bertqa", **ranged}), timeout=30
    ) as answer:
        start = out.tell() if answer.status == 206 else 0
        announced = start + int(answer.headers["Content-Length"] or file.size - start)
        if announced != file.size:  # the login page of a network, another version on a mirror
            raise file.error(
                f"the server has {announced:,} bytes under that name, not the official {file.size:,}"
            )
        out.seek(start)
        out.truncate()  # a server that knows no Range sends everything
        while out.tell() < file.size and (block := answer.read(1 << 16)):
            out.write(block)
            bar.update(out.tell() - bar.n)
    if out.tell() < file.size:
        raise ConnectionError(f"the connection ended after {out.tell():,} bytes")
