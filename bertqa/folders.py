"""Folders: where models and caches are, folders written atomically, and locks between processes."""

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
    """Return the model folder of a run folder: best/, or else last/. Return any other path as it is."""
    path = Path(path)
    # a run folder holds the run's config.json and no weights
    if (path / "config.json").exists() and not list(path.glob("*model*.*")):
        for part in ("best", "last"):
            if (path / part / "config.json").exists():
                return path / part
    return path


def bundled_reader() -> str:
    """Return the folder of the reader that comes with bertqa: in ./weights or the clone's, else in the installed package."""
    package = Path(__file__).resolve().parent
    name = Path("weights") / "minilm-squad2"
    for place in (name, package.parent / name):
        if place.is_dir():
            return str(place)
    return str(package / name)


def cache_folder() -> Path:
    """Return BERTQA_CACHE, or else bertqa/ in XDG_CACHE_HOME or ~/.cache. The folder may not exist yet."""
    own = os.environ.get("BERTQA_CACHE")
    if own:
        return Path(own).expanduser().absolute()
    common = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(common, "bertqa").expanduser().absolute()


def new_folder(path: str | Path) -> Path:
    """Return the path if it does not exist or is an empty folder, else raise UserError."""
    path = Path(path)
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise UserError(
            f"{path}: exists and is not an empty folder; name another, or remove it first"
        )
    return path


@contextlib.contextmanager
def staged(folder: str | Path, keep_as: Path | None = None) -> Iterator[Path]:
    """Yield a temporary folder beside `folder`, and rename it to `folder` if the block ends without an exception.

    A folder of that name is replaced and deleted, or renamed to `keep_as`, whose old content is deleted. Several processes
    may do this at once: the temporary name is unique.

    Raises:
        UserError: if `folder` is a file.
    """
    folder = Path(folder).resolve()
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file, expected a folder or a new name")
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=folder.name + ".", suffix=".tmp", dir=folder.parent))
    try:
        fresh.chmod(0o777 & ~umask())  # mkdtemp makes folders that only their owner may open
        yield fresh
        # Without this, a crash after the rename could leave a folder of empty files.
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
    """Rename `fresh` to `folder`, and delete the folder that had this name."""
    try:
        fresh.rename(folder)
        return
    except OSError:
        # A folder that is not empty cannot be replaced by one rename.
        if not folder.is_dir():
            raise
    # Between these two renames there is no `folder` for a moment, but no content is ever lost.
    aside = Path(tempfile.mkdtemp(prefix=folder.name + ".", suffix=".old", dir=folder.parent))
    folder.rename(aside / "replaced")
    fresh.rename(folder)
    shutil.rmtree(aside, ignore_errors=True)


def clear_leftovers(folder: Path) -> None:
    """Delete the temporary folders that `staged` left beside `folder` when its process was killed.

    Call it only while holding the lock under which `folder` is made: another process may be writing there otherwise.
    """
    made = re.compile(re.escape(folder.name) + r"\.\w{8}\.(tmp|old)")  # as mkdtemp names them
    for path in folder.parent.iterdir():
        if made.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Wait for the lock of a file or folder, and hold it inside the block.

    Yields whether there is a lock: False on Windows and on file systems without locks, where nothing keeps others out.
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
    """Hold the lock file `path` inside the block, without waiting; the file says which process holds it.

    The system releases the lock however the process ends. There is none on Windows and on file systems without locks.

    Raises:
        UserError: if another process holds it; the message names the process and its host.
    """
    handle = _try_lock(path)
    try:
        if handle is not None:
            holder = f"process {os.getpid()} on {platform.node()}, since {time.strftime('%F %T')}"
            os.ftruncate(handle, 0)  # a killed process's line
            os.pwrite(handle, holder.encode(), 0)
        yield
    finally:
        if handle is not None:
            path.unlink(missing_ok=True)
            os.close(handle)


def _try_lock(path: Path) -> int | None:
    """Open and lock a file and return its handle; None where locks do not exist. Raise UserError if another has it."""
    try:
        import fcntl
    except ImportError:
        return None
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Between our open and our lock the holder may have deleted the file; its lock would then keep nobody out.
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
