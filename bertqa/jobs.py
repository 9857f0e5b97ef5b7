"""Long jobs: a stream of records is answered share by share, and answers are written as they come into a folder.

    predictions.jsonl   a line of JSON for each record of the data, in its order; appended to
    job.json            what the answers depend on: data, model, settings

What is written stays, and a later start goes on behind it. Memory holds a share of records and of answers. The shares
are the same whoever answers them, one process or eight, at once or after a stop: so are the answers, to the last bit.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice, repeat, takewhile
from pathlib import Path

from bertqa import __version__
from bertqa.console import progress_bar, stop_on_sigterm
from bertqa.data.sources import chunks
from bertqa.distributed import World
from bertqa.errors import UserError, no_data
from bertqa.files import parse_json, read_object, sha256, to_json, write_json
from bertqa.model.record import RANGES

LINES = "predictions.jsonl"
ABOUT = "job.json"

FIRST = (8, 64)
"""Records in the first shares, so that answers come soon."""

OF_EACH = 8
"""Shares of each of these sizes: processes that meet behind every share should have shares that take equally long."""

CHARACTERS = {"cpu": 1 << 17}
"""Characters to read in a share, by device; where texts are long it holds fewer records. A CPU has work for seconds with
so many, and a stop, or a process that waits for another, loses no more than that. A GPU wants more at a time."""


# The folder


class Job:
    """The folder of a job. The first process of `world` writes to it; all know how many records are done."""

    def __init__(self, folder: Path, about: dict, resume: bool, world: World = World()):
        """Begin a job, or go on with it; `about` is of use in the first process only.

        Raises:
            UserError: where the folder already holds answers and `resume` is False, or the answers of a job with
                other data, another model or other settings.
        """
        self.folder = folder
        self.lines = folder / LINES
        self.world = world
        if world.first:
            self._begin(about, resume)
        lines = 0  # whole ones: the last may be cut off
        if self.lines.exists():
            with open(self.lines, "rb") as file:
                lines = sum(line.endswith(b"\n") for line in file)
        self.done = world.gather(lines)[0]
        self.answered = 0  # by this start
        self.took = 0.0  # seconds

    def _begin(self, about: dict, resume: bool) -> None:
        folder = self.folder
        begun = [name for name in (ABOUT, LINES, "predictions.json") if (folder / name).exists()]
        if ABOUT in begun and not has_answers(folder):
            begun = []
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

    def keep(self, lines: int) -> None:
        """Forget what stands behind the first so many lines: a line cut off in the middle, a share begun."""
        self.done = lines
        if not self.world.first:
            return
        size = 0
        with open(self.lines, "ab+") as file:
            file.seek(0)
            for _ in range(lines):
                size += len(file.readline())
            file.truncate(size)

    def append(self, rows: Sequence[dict], on_error: str) -> None:
        """Add the rows; they are with the system when this returns, whatever becomes of this process.

        With `on_error` "stop" raises UserError for the first that has an "error", behind those before it.
        """
        kept = rows
        if on_error == "stop":
            kept = list(takewhile(lambda row: "error" not in row, rows))
        if self.world.first:
            with open(self.lines, "ab") as file:
                file.write("".join(to_json(row) + "\n" for row in kept).encode())
        self.done += len(kept)
        self.answered += len(kept)
        if len(kept) < len(rows):
            raise UserError(rows[len(kept)]["error"])

    def rows(self) -> Iterator[dict]:
        """The rows so far."""
        with open(self.lines, encoding="utf-8", newline="\n") as file:
            for number, line in enumerate(file, 1):
                try:
                    yield parse_json(line, number)
                except UserError as error:
                    raise UserError(f"{self.lines}: {error}") from None

    def told(self, noun: str, failed: int, records: str) -> str:
        """What was done, behind what people are told first."""
        said = ""
        if self.answered:
            rate = self.answered / self.took
            said = f"; {self.answered:,} {noun}s in {self.took:.1f} s, {rate:,.1f} {noun}s/s"
        if failed:
            said += f'; {failed:,} {records} could not be read: see "error" in {LINES}'
        return said


# Answering


@dataclass
class Share:
    """Records that are answered at once."""

    start: int
    """Place of the first in the stream."""
    records: list

    @property
    def stop(self) -> int:
        return self.start + len(self.records)


def answer_stream(
    job: Job,
    stream,
    answer: Callable[[list, Callable[[float], None]], list[dict]],
    args: argparse.Namespace,
    *,
    noun: str,
    size: int,
    device: str,
) -> None:
    """Answer the records of a stream that are not yet done, or raise UserError where it holds nothing. The processes of the
    job's world take turns.

    Args:
        stream: of records with id, where, error and characters; it says how much of it is read.
        answer: records, and a function to tell after every batch which part of them it was -> a row for each.
        args: the verb's flags. Only the first `limit` records are answered. With `on_error` "stop" the first row that has
            an "error" raises UserError, behind those before it. `data` names the stream.
        noun: what a record is.
        size: most records of a share.
        device: the type of what answers.
    """
    stop_on_sigterm()
    began = time.perf_counter()
    world = job.world
    shares = not_done(shares_of(islice(stream, args.limit), size, device), job)
    try:
        with progress_bar(desc="answer", unit=f" {noun}s", shown=world.first) as bar:
            for nth, turn in enumerate(chunks(shares, world.size)):
                if nth == 0:
                    # A share is answered whole, or its answers would be others.
                    job.keep(turn[0].start)
                    bar.initial = bar.n = bar.last_print_n = job.done
                    bar.unpause()  # its clock begins now: the rate is that of this start
                rows: list[dict] = []
                if world.rank < len(turn):
                    mine = turn[world.rank]
                    rows = answer(mine.records, Shown(bar, stream, args.limit, mine))
                for part in world.gather(rows)[: len(turn)]:
                    job.append(part, args.on_error)
                bar.update(job.done - bar.n)
    except (KeyboardInterrupt, OSError):
        if world.first:
            said = f"{job.done:,} answers are in {job.lines}; --resume goes on behind them"
            print("\n" + said, file=sys.stderr)
        raise
    job.took = time.perf_counter() - began
    if not job.done:
        raise no_data(f"{', '.join(args.data)}: there is no {noun} in it")


def shares_of(records: Iterable, size: int, device: str) -> Iterator[Share]:
    """The shares of a stream. They depend on nothing but the records, so that each is answered alike by whoever it is."""
    first = [repeat(min(small, size), OF_EACH) for small in FIRST]
    sizes = chain(*first, repeat(size))
    most = CHARACTERS.get(device, 1 << 21)
    start = 0
    share: list = []
    room = next(sizes)
    characters = 0
    for record in records:
        share.append(record)
        characters += record.characters
        if len(share) < room and characters <= most:
            continue
        yield Share(start, share)
        start += len(share)
        share = []
        room = next(sizes)
        characters = 0
    if share:
        yield Share(start, share)


def not_done(shares: Iterator[Share], job: Job) -> Iterator[Share]:
    """The shares that are not answered whole. Raises UserError where the answers so far are to other records."""
    ids = iter(())
    done = job.done
    if done and job.world.first:
        ids = (row.get("id") for row in job.rows())
    for share in shares:
        if share.stop > done:
            yield share
            continue
        for record, id in zip(share.records, ids, strict=False):
            if record.id != id:
                raise UserError(
                    f"{record.where}: its id is {record.id!r}, but the answer in its place is to {id!r}; "
                    "give the data that the job was begun with, or another --out"
                )


class Shown:
    """Moves the bar with every batch of a share. How many records there are is estimated from the bytes read."""

    def __init__(self, bar, stream, limit: int | None, share: Share):
        self.bar = bar
        self.share = share
        self.part = 0.0  # of the share
        if stream.share_read:
            total = round(stream.count / stream.share_read)
            bar.total = min(total, limit) if limit else total

    def __call__(self, part: float) -> None:
        self.part += part
        at = self.share.start + int(self.part * len(self.share.records))
        self.bar.update(at - self.bar.n)


# What answers depend on


def depends_on(
    args: argparse.Namespace, paths: Sequence[Path], models: Sequence[Path], device, dtype, **others
) -> dict:
    """What the answers to these files by these models depend on."""
    data = []
    for path in paths:
        entry = {"file": path.name}
        if path.is_file():  # of standard input there is only the name
            entry["sha256"] = sha256(path)[:16]
        data.append(entry)
    precision = "int8" if args.int8 else str(dtype)
    fingerprints = [model_fingerprint(folder, args.int8) for folder in models]
    return {
        "bertqa": __version__,
        "data": data,
        "model": " ".join(fingerprints),
        "device": device.type,
        "precision": precision,
        "limit": args.limit,
        **others,
    }


def model_fingerprint(folder: Path, int8: bool) -> str:
    """Of all that a model folder's answers depend on."""
    names = ["model.safetensors", "config.json", "qa.json", "vocab.txt", "tokenizer.json"]
    if int8:
        names.append(RANGES)
    return sha256(*(folder / name for name in names if (folder / name).is_file()))[:16]


def has_answers(folder: Path) -> bool:
    """Return whether a folder with a job.json holds anything else; a file of answers that is still empty does not count.

    A start that found no record, or was stopped before its first answers, leaves nothing else.
    """
    others = set(os.listdir(folder)) - {ABOUT, LINES}
    lines = folder / LINES
    return bool(others) or (lines.exists() and lines.stat().st_size > 0)


def refuse_other(folder: Path, before: dict, now: dict) -> None:
    differ = []
    for name, value in parse_json(to_json(now)).items():  # as it reads once it was written
        if before.get(name) != value:
            differ.append(f"{name} was {before.get(name)!r} and is {value!r}")
    if differ:
        told = f"was begun with something else: {'; '.join(differ)}"
        raise UserError(f"{folder}: {told}; give the same, or another --out")
