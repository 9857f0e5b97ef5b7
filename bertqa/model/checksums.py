"""checksums.json of a model folder: the sha256 of its files, so that a bit that flipped on a disk is noticed."""

from collections.abc import Sequence
from pathlib import Path

from bertqa.errors import UserError
from bertqa.files import read_object, sha256, write_json

CHECKSUMS = "checksums.json"
FOR_PEOPLE = ("README.md", "qa.json")
"""Files that one may change by hand: a card, a threshold."""


def write_checksums(folder: Path) -> None:
    """Add the checksum of every file to checksums.json; files that stand there already are not read again."""
    sums = read_object(folder / CHECKSUMS) if (folder / CHECKSUMS).exists() else {}
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
            found = sha256(path)
        except OSError as error:
            return f"{name} is unreadable ({error.strerror})"
        if found != expected:
            return f"{name} is damaged (its checksum differs)"
    return ""


def refuse_damage(folder: str | Path) -> None:
    """Raise UserError where the files of a model folder are not what training wrote."""
    problem = find_damage(Path(folder), ignored=(*FOR_PEOPLE, "state.pt"))
    if problem:
        raise UserError(
            f"{folder}: {problem}; copy it again, or delete {CHECKSUMS} there if it was changed on purpose"
        )
