"""A folder of answers that are written as they come: what is written stays, and a later start goes on behind it.

    predictions.jsonl   a line of JSON for each record of the data, in its order; appended to
    job.json            what the answers depend on: data, model, settings

The files of SQuAD's scripts are made of these lines when all are there.
"""

import contextlib
import json
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from bertqa.errors import UserError
from bertqa.files import parse_json, read_object, replacing, sha256, to_json, write_json

LINES = "predictions.jsonl"
ABOUT = "job.json"


class Job:
    """The folder of a job. Only one process writes to it; others may ask it what is done."""

    def __init__(self, folder: Path, about: dict, resume: bool):
        """Begin a job, or go on with it.

        Raises:
            UserError: where the folder already holds answers and `resume` is False, or the answers of a job with
                other data, another model or other settings.
        """
        self.folder = folder
        self.lines = folder / LINES
        begun = [name for name in (ABOUT, LINES, "predictions.json") if (folder / name).exists()]
        if begun and not resume:
            raise UserError(
                f"{folder}: already holds {begun[0]}; give another --out, or --resume to go on where it ends"
            )
        if begun and ABOUT not in begun:
            raise UserError(
                f"{folder}: has no {ABOUT}, so nobody knows what its answers are to; give another --out"
            )
        if begun:
            refuse_other(folder, read_object(folder / ABOUT), about)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / ABOUT, about)
        self.done = _count_lines(self.lines)

    def keep(self, lines: int) -> None:
        """Forget what stands behind the first so many lines: a line cut off in the middle, a share begun."""
        size = 0
        with open(self.lines, "ab+") as file:
            file.seek(0)
            for _ in range(lines):
                size += len(file.readline())
            file.truncate(size)
        self.done = lines

    def append(self, rows: Sequence[dict]) -> None:
        """Add the rows; they are with the system when this returns, whatever becomes of this process."""
        with open(self.lines, "ab") as file:
            file.write("".join(to_json(row) + "\n" for row in rows).encode())
        self.done += len(rows)

    def rows(self) -> Iterator[dict]:
        """The rows so far."""
        with open(self.lines, encoding="utf-8", newline="\n") as file:
            for number, line in enumerate(file, 1):
                try:
                    yield parse_json(line, number)
                except UserError as error:
                    raise UserError(f"{self.lines}: {error}") from None

    def ids(self) -> Iterator[object]:
        """The ids of the rows so far."""
        if self.done:
            for row in self.rows():
                yield row.get("id")


def refuse_other(folder: Path, before: dict, now: dict) -> None:
    now = parse_json(to_json(now))  # as it reads once it was written
    differ = [name for name in now if before.get(name) != now[name]]
    if differ:
        told = "; ".join(f"{name} was {before.get(name)!r} and is {now[name]!r}" for name in differ)
        raise UserError(
            f"{folder}: was begun with something else: {told}; give the same, or another --out"
        )


def _count_lines(path: Path) -> int:
    """Whole lines of a file, 0 where there is none."""
    if not path.exists():
        return 0
    lines = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            lines += block.count(b"\n")
    return lines


def data_fingerprint(paths: Sequence[Path]) -> list[dict]:
    """Name and checksum of each file; standard input has a name only."""
    found = []
    for path in paths:
        entry = {"file": path.name}
        if path.is_file():
            entry["sha256"] = sha256(path)[:16]
        found.append(entry)
    return found


def model_fingerprint(folder: Path) -> str:
    """Of all that a model folder's answers depend on."""
    names = ("model.safetensors", "config.json", "qa.json", "vocab.txt", "tokenizer.json")
    files = [folder / name for name in names]
    return sha256(*(path for path in files if path.is_file()))[:16]


class ObjectFile:
    """A JSON object written entry by entry, one a line: it need not fit into memory."""

    def __init__(self, file: TextIO):
        self.file = file
        self.separator = "{\n"

    def add(self, key: str, value: object) -> None:
        self.file.write(f"{self.separator}{json.dumps(key)}: {json.dumps(value)}")
        self.separator = ",\n"


@contextlib.contextmanager
def object_file(path: Path) -> Iterator[ObjectFile]:
    """An ObjectFile that takes the place of `path` if the block ends well."""
    with replacing(path) as fresh, open(fresh, "w", encoding="utf-8") as file:
        entries = ObjectFile(file)
        yield entries
        file.write("{}\n" if entries.separator == "{\n" else "\n}\n")


def stop_on_sigterm() -> None:
    """SIGTERM and SIGHUP end this process as Ctrl-C does, in order, and not in the middle of a line."""

    def interrupt(number, frame):
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread() and os.name == "posix":
        signal.signal(signal.SIGTERM, interrupt)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
            signal.signal(signal.SIGHUP, interrupt)
