"""Long jobs: a stream of records is answered share by share into a folder, and a job that was stopped can be resumed.

    predictions.jsonl   a JSON object per record, in the order of the data; appended to after every share
    job.json            what the answers depend on: data, model, settings

Memory holds one share of records and answers. How records are cut into shares depends on the records alone, so that the
answers are the same to the last bit with one process or eight, and stopped and resumed or not.
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
from bertqa.data.sources import Stream, chunks, expand
from bertqa.distributed import World
from bertqa.errors import UserError, no_data
from bertqa.files import parse_json, read_object, sha256, to_json, write_json
from bertqa.model.record import RANGES

LINES = "predictions.jsonl"
ABOUT = "job.json"

FIRST = 8 * (8,) + 8 * (64,)
"""Records in the first shares. Few, so that the first answers come soon; and eight shares of each size, because processes
wait for each other after every share."""

CHARACTERS = {"cpu": 1 << 17}
"""Most characters of a share, by device. A CPU computes for seconds on so many, and a stop loses no more than that; a GPU
is filled by more."""

AnswerShare = Callable[[list, Callable[[float], None]], list[dict]]
"""Takes the records of a share, and a function to call after every batch with the fraction of the share that it was;
returns a row for each record."""


@dataclass
class Share:
    """Records that are answered together."""

    start: int
    """Position of the first one in the stream."""
    records: list


class Job:
    """A job in its folder. The first process of `world` writes to it; every process knows how many records are done."""

    def __init__(
        self,
        args: argparse.Namespace,
        folder: Path,
        models: Sequence[Path],
        loaded,
        settings: dict,
        world: World = World(),
    ):
        """Begin a job, or continue it.

        Args:
            args: the flags of the verb: `data`, the files; `limit`, to answer only the first records; `on_error`, see
                `append`; `resume` and `int8`.
            models: the model folders.
            loaded: their Reader, or what else has the `device` and `dtype` that they compute in.
            settings: what else the answers depend on.

        Raises:
            UserError: where the folder holds answers, and `resume` is not set or they depend on something else.
        """
        self.args = args
        self.folder = folder
        self.lines = folder / LINES
        self.paths = expand(args.data)
        self.device = loaded.device
        self.world = world
        if world.first:  # the checksums of the data cost a second a gigabyte
            self._begin(self._depends_on(models, loaded.dtype, settings))
        lines = 0  # complete ones: the last may be cut off
        if self.lines.exists():
            with open(self.lines, "rb") as file:
                lines = sum(line.endswith(b"\n") for line in file)
        self.done = world.gather(lines)[0]
        self.answered = 0  # records, since this start
        self.took = 0.0  # seconds

    def _begin(self, about: dict) -> None:
        folder = self.folder
        begun = [name for name in (ABOUT, LINES, "predictions.json") if (folder / name).exists()]
        if not begun or self._has_no_answers():
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / ABOUT, about)
            return
        if not self.args.resume:
            raise UserError(
                f"{folder}: already holds {begun[0]}; give another --out, or --resume to go on where it ends"
            )
        if begun[0] != ABOUT:
            raise UserError(
                f"{folder}: has no {ABOUT}, so nobody knows what its answers are to; give another --out"
            )
        refuse_other(folder, read_object(folder / ABOUT), about)

    def _depends_on(self, models: Sequence[Path], dtype, settings: dict) -> dict:
        """Return what the answers depend on: checksums of all files, flags and settings."""
        data = []
        for path in self.paths:
            entry = {"file": path.name}
            if path.is_file():  # standard input has only its name
                entry["sha256"] = sha256(path)[:16]
            data.append(entry)
        int8 = self.args.int8
        return {
            "bertqa": __version__,
            "data": data,
            "model": " ".join(model_fingerprint(folder, int8) for folder in models),
            "device": self.device.type,
            "precision": "int8" if int8 else str(dtype),
            "limit": self.args.limit,
            **settings,
        }

    def _has_no_answers(self) -> bool:
        """Return whether the folder holds what a start without any answers leaves: job.json, and predictions.jsonl if empty."""
        names = set(os.listdir(self.folder))
        if names == {ABOUT, LINES}:
            return self.lines.stat().st_size == 0
        return names == {ABOUT}

    def truncate(self, lines: int) -> None:
        """Drop everything after the first `lines` lines: a line that is cut off, a share that is incomplete."""
        self.done = lines
        if not self.world.first:
            return
        size = 0
        with open(self.lines, "ab+") as file:
            file.seek(0)
            for _ in range(lines):
                size += len(file.readline())
            file.truncate(size)

    def append(self, rows: Sequence[dict]) -> None:
        """Append the rows. When this returns the system has them, and they survive the end of this process.

        Raises:
            UserError: with --on-error stop, for the first row that has an "error"; the rows before it are written.
        """
        kept = rows
        if self.args.on_error == "stop":
            kept = list(takewhile(lambda row: "error" not in row, rows))
        if self.world.first:
            with open(self.lines, "ab") as file:
                file.write("".join(to_json(row) + "\n" for row in kept).encode())
        self.done += len(kept)
        self.answered += len(kept)
        if len(kept) < len(rows):
            raise UserError(rows[len(kept)]["error"])

    def answer(self, stream: Stream, answer_share: AnswerShare, *, noun: str, size: int) -> None:
        """Answer the records of a stream that are not done yet, each process of the world a share at a time.

        Args:
            stream: records with id, where, error and characters; at least one, or UserError is raised.
            noun: what a record is.
            size: most records of a share.
        """
        stop_on_sigterm()
        began = time.perf_counter()
        world = self.world
        limit = self.args.limit
        shares = shares_of(islice(stream, limit), size, self.device.type)
        try:
            with progress_bar(desc="answer", unit=f" {noun}s", shown=world.first) as bar:
                for nth, turn in enumerate(chunks(not_done(shares, self), world.size)):
                    if nth == 0:
                        # A share is answered as a whole: other batches would round differently.
                        self.truncate(turn[0].start)
                        bar.initial = bar.n = bar.last_print_n = self.done
                        bar.unpause()  # restarts its clock: the rate is that of this start
                    rows: list[dict] = []
                    if world.rank < len(turn):
                        mine = turn[world.rank]
                        rows = answer_share(mine.records, ShareProgress(bar, stream, limit, mine))
                    for part in world.gather(rows)[: len(turn)]:
                        self.append(part)
                    bar.update(self.done - bar.n)
        except (KeyboardInterrupt, OSError):
            if world.first:
                said = f"{self.done:,} answers are in {self.lines}; --resume goes on behind them"
                print("\n" + said, file=sys.stderr)
            raise
        self.took = time.perf_counter() - began
        if not self.done:
            raise no_data(f"{', '.join(self.args.data)}: there is no {noun} in it")

    def rows(self) -> Iterator[dict]:
        """Read the rows that are written so far."""
        with open(self.lines, encoding="utf-8", newline="\n") as file:
            for number, line in enumerate(file, 1):
                try:
                    yield parse_json(line, number)
                except UserError as error:
                    raise UserError(f"{self.lines}: {error}") from None

    def summary(self, noun: str, failed: int, records: str) -> str:
        """Return the end of the closing message: how many records in which time, and how many could not be read."""
        said = ""
        if self.answered:
            rate = self.answered / self.took
            said = f"; {self.answered:,} {noun}s in {self.took:.1f} s, {rate:,.1f} {noun}s/s"
        if failed:
            said += f'; {failed:,} {records} could not be read: see "error" in {LINES}'
        return said


def shares_of(records: Iterable, size: int, device: str) -> Iterator[Share]:
    """Cut a stream into shares: the first ones as FIRST says, then `size` records each, all bounded by CHARACTERS."""
    first = (min(small, size) for small in FIRST)
    records = iter(records)
    start = 0
    for most in chain(first, repeat(size)):
        share = take(records, most, CHARACTERS.get(device, 1 << 21))
        if not share:
            return
        yield Share(start, share)
        start += len(share)


def take(records: Iterator, most: int, characters: int) -> list:
    """Return the next `most` records, or fewer where these have more than so many characters."""
    taken = []
    for record in records:
        taken.append(record)
        characters -= record.characters
        if len(taken) == most or characters < 0:
            break
    return taken


def not_done(shares: Iterator[Share], job: Job) -> Iterator[Share]:
    """Skip the shares that are answered. Raises UserError where the id of a record is not that of its answer."""
    ids = iter(())
    done = job.done
    if done and job.world.first:
        ids = (row.get("id") for row in job.rows())
    for share in shares:
        if share.start + len(share.records) > done:
            yield share
            continue
        for record, id in zip(share.records, ids, strict=False):
            if record.id != id:
                raise UserError(
                    f"{record.where}: its id is {record.id!r}, but the answer in its place is to {id!r}; "
                    "give the data that the job was begun with, or another --out"
                )


class ShareProgress:
    """Advances the progress bar within a share. The number of all records is estimated from the bytes read so far."""

    def __init__(self, bar, stream: Stream, limit: int | None, share: Share):
        self.bar = bar
        self.share = share
        self.fraction = 0.0  # of the share that is answered
        if stream.share_read:
            total = round(stream.count / stream.share_read)
            bar.total = min(total, limit) if limit else total

    def __call__(self, fraction: float) -> None:
        self.fraction += fraction
        at = self.share.start + int(self.fraction * len(self.share.records))
        self.bar.update(at - self.bar.n)


def model_fingerprint(folder: Path, int8: bool) -> str:
    """Return a checksum of the files of a model folder that its answers depend on."""
    names = ["model.safetensors", "config.json", "qa.json", "vocab.txt", "tokenizer.json"]
    if int8:
        names.append(RANGES)
    return sha256(*(folder / name for name in names if (folder / name).is_file()))[:16]


def refuse_other(folder: Path, before: dict, now: dict) -> None:
    """Raise UserError where two contents of job.json differ, naming what does."""
    differ = []
    for name, value in parse_json(to_json(now)).items():  # as JSON gives it back: lists for tuples
        if before.get(name) != value:
            differ.append(f"{name} was {before.get(name)!r} and is {value!r}")
    if differ:
        raise UserError(
            f"{folder}: was begun with something else: {'; '.join(differ)}; give the same, or another --out"
        )
