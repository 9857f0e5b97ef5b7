"""checksums.json of a model folder: the sha256 of its files, so that a bit that flipped on a disk is noticed."""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bertqa.errors import UserError
from bertqa.files import read_object, sha256, write_json

CHECKSUMS = "checksums.json"
FOR_PEOPLE = ("README.md", "qa.json")
"""Files that one may change by hand: a card, a threshold."""


def write_checksums(folder: Path, known: dict[str, str] | None = None) -> None:
    """Add the checksum of every file to checksums.json.

    Args:
        known: checksums of files that need not be read again, by name; those that stand there already are not either.
    """
    sums = dict(known or {})
    if (folder / CHECKSUMS).exists():
        sums.update(read_object(folder / CHECKSUMS))
    for path in sorted(folder.iterdir()):
        if path.name != CHECKSUMS and path.name not in sums:
            sums[path.name] = sha256(path)
    write_json(folder / CHECKSUMS, sums)


def find_damage(folder: Path, needed: Sequence[str] = (), ignored: Sequence[str] = ()) -> str:
    """What is wrong with the files of a folder; "" where they are what was written.

    Args:
        needed: files that must be there. Without checksums.json among them, a folder that has none is fine.
        ignored: files that may have changed.
    """
    if not folder.is_dir():
        return "not there"
    missing = [name for name in needed if not (folder / name).is_file()]
    if missing:
        return f"{', '.join(missing)} missing"
    if not (folder / CHECKSUMS).exists():
        return ""
    try:
        sums = read_object(folder / CHECKSUMS)
    except UserError:
        return f"{CHECKSUMS} is damaged"
    if not set(needed) <= {*sums, CHECKSUMS}:
        return f"{CHECKSUMS} is damaged"
    for name, expected in sums.items():
        path = folder / Path(name).name  # never outside of the folder
        if name in ignored:
            continue
        try:
            state = path.stat()
            found = _sha256_in_state(path, state.st_ino, state.st_size, state.st_mtime_ns)
        except OSError as error:
            return f"{name} is unreadable ({error.strerror})"
        except ValueError:  # a name that no file can have
            return f"{CHECKSUMS} is damaged"
        if found != expected:
            return f"{name} is damaged (its checksum differs)"
    return ""


@functools.lru_cache(maxsize=1024)
def _sha256_in_state(path: Path, inode: int, size: int, changed: int) -> str:
    """The checksum of a file that is in this state: a process that loads a model again does not read it all again."""
    return sha256(path)


@contextlib.contextmanager
def checked(folder: str | Path) -> Iterator[None]:
    """For reading a model folder: meanwhile another thread compares its files with checksums.json, where it has one.

    Raises:
        UserError: at the end, where they are not what was written; also in place of an error inside.
    """
    with ThreadPoolExecutor(1) as pool:
        damage = pool.submit(find_damage, Path(folder), ignored=(*FOR_PEOPLE, "state.pt"))
        try:
            yield
        finally:
            if damage.result():
                raise UserError(
                    f"{folder}: {damage.result()}; copy it again, or delete {CHECKSUMS} there if it was changed on purpose"
                )
