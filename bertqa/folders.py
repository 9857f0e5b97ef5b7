"""Folders: where they are, written whole, and had by one process at a time."""

import contextlib
import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bertqa.errors import UserError
from bertqa.files import flush_to_disk, umask


def model_of(path: str | Path) -> Path:
    """The model folder in a run folder, best/ or else last/; any other path as it is."""
    path = Path(path)
    # a run folder has a config.json too, that of the run, but no weights beside it
    if (path / "config.json").exists() and not list(path.glob("*model*.*")):
        for part in ("best", "last"):
            if (path / part / "config.json").exists():
                return path / part
    return path


def bundled_reader() -> str:
    """The reader that comes with bertqa: in weights/ of where one stands or of the clone, else in the wheel."""
    package = Path(__file__).resolve().parent
    name = Path("weights") / "minilm-squad2"
    for place in (name, package.parent / name):
        if place.is_dir():
            return str(place)
    return str(package / name)


def cache_folder() -> Path:
    """Where files are kept between runs: BERTQA_CACHE, else bertqa/ in XDG_CACHE_HOME or ~/.cache. It may not exist yet."""
    own = os.environ.get("BERTQA_CACHE")
    if own:
        return Path(own).expanduser().absolute()
    common = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(common, "bertqa").expanduser().absolute()


@contextlib.contextmanager
def staged(folder: str | Path, keep_as: Path | None = None) -> Iterator[Path]:
    """A new empty folder beside `folder`, which takes its place if the block ends well.

    The folder that is replaced is deleted, or takes the name `keep_as` (from what had that one).

    The name is nobody else's, and nothing is deleted but what was made here and the folder that is
    replaced.

    Raises:
        UserError: where `folder` is a file.
    """
    folder = Path(folder).resolve()
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file, expected a folder or a new name")
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=folder.name + ".", suffix=".tmp", dir=folder.parent))
    try:
        fresh.chmod(0o777 & ~umask())  # mkdtemp's folders are for their owner alone
        yield fresh
        # Else a machine that goes down after the rename could leave a whole folder of empty files.
        for path in fresh.rglob("*"):
            if path.is_file():
                flush_to_disk(path)
        if keep_as is not None and folder.exists():
            shutil.rmtree(keep_as, ignore_errors=True)
            folder.rename(keep_as)
        take_place(fresh, folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def take_place(fresh: Path, folder: Path) -> None:
    """Give `fresh` the name of `folder`; a folder that had it is deleted."""
    try:
        fresh.rename(folder)
        return
    except OSError:
        # A folder that holds something cannot be replaced in one step.
        if not folder.is_dir():
            raise
    # Two renames: between them the name is nobody's for a moment, but no content is ever lost.
    aside = Path(tempfile.mkdtemp(prefix=folder.name + ".", suffix=".old", dir=folder.parent))
    folder.rename(aside / "replaced")
    fresh.rename(folder)
    shutil.rmtree(aside, ignore_errors=True)


def clear_leftovers(folder: Path) -> None:
    """Delete what `staged` left beside `folder` when its process was killed.

    Only for who holds a lock without which nobody makes that folder: then its maker is dead.
    """
    made = re.compile(re.escape(folder.name) + r"\.\w{8}\.(tmp|old)")  # as mkdtemp names them
    for path in folder.parent.iterdir():
        if made.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[bool]:
    """One process at a time inside, all that name the same file or folder; the others wait.

    Yields whether there is a lock: none where the system has none for files (Windows) or the file
    system knows none.
    """
    handle = None
    is_alone = False
    with contextlib.suppress(ImportError, OSError):
        import fcntl

        flags = os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT
        handle = os.open(path, flags)
        fcntl.flock(handle, fcntl.LOCK_EX)
        is_alone = True
    try:
        yield is_alone
    finally:
        if handle is not None:
            os.close(handle)


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold the lock file `path` inside, which says who has it; for work that nobody may do twice at once.

    The system lets go of it when the process ends in whatever way. No lock where the system has
    none for files (Windows) or the file system knows none.

    Raises:
        UserError: at once, where another process has it; says which one on which host.
    """
    handle = _take(path)
    try:
        if handle is not None:
            holder = f"process {os.getpid()} on {platform.node()}, since {time.strftime('%F %T')}"
            os.ftruncate(handle, 0)  # what the one before has left
            os.pwrite(handle, holder.encode(), 0)
        yield
    finally:
        if handle is not None:
            path.unlink(missing_ok=True)
            os.close(handle)


def _take(path: Path) -> int | None:
    """The open and locked file of that name; None where there are no locks. UserError where another has it."""
    try:
        import fcntl
    except ImportError:
        return None
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever had it deleted it when done: then this is a file without a name, and its lock is nobody's.
            if os.path.exists(path) and os.path.samestat(os.fstat(handle), os.stat(path)):
                return handle
        except BlockingIOError:
            holder = os.pread(handle, 200, 0).decode(errors="replace") or "another process"
            os.close(handle)
            raise UserError(
                f"{path.parent}: in use by {holder}; wait until it has ended, or stop it"
            ) from None
        except OSError:
            os.close(handle)
            return None
        os.close(handle)
