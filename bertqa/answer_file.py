"""Files of questions in, a folder of answers out: `python -m bertqa.predict --data`.

Questions are read as they are answered, and answers written as they come (jobs.py), so memory holds a share of both.
The shares are the same whoever answers them, one process or eight, at once or after a stop: so are the answers, to the
last bit.
"""

import argparse
import contextlib
import operator
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path

from bertqa import __version__
from bertqa.console import progress_bar
from bertqa.data.chunks import chunks
from bertqa.data.sources import expand
from bertqa.data.stream import Question, QuestionStream
from bertqa.distributed import World
from bertqa.errors import UserError
from bertqa.files import read_object
from bertqa.jobs import (
    Job,
    ObjectFile,
    data_fingerprint,
    model_fingerprint,
    object_file,
    stop_on_sigterm,
)
from bertqa.qa.asked import Asked, asked_of
from bertqa.qa.documents import Ranking, n_best_list
from bertqa.qa.thresholds import no_answer_probability
from bertqa.reader import How, Reader

SHARE = 512
"""Questions answered at once: few enough that eight processes are busy with ten thousand and that little is lost by a
stop, and enough to sort windows by length."""

FIRST = 8
"""Questions in the first share, so that answers come soon; each next one is twice as large."""


@dataclass
class Share:
    """Questions that are answered at once."""

    start: int
    """Place of the first in the stream."""
    questions: list[Question]

    @property
    def stop(self) -> int:
        return self.start + len(self.questions)


def answer_file(
    args: argparse.Namespace, reader: Reader, threshold: float | None, world: World
) -> int:
    """Answer the files of `args.data` into the folder `args.out`, in the processes of `world`.

    Returns the exit status: 1 where a record could not be read.
    """
    stop_on_sigterm()
    paths = expand(args.data)
    how = how_asked(args, reader, threshold)
    job = None
    if world.first:
        job = Job(args.out, about(args, reader, how, paths), args.resume)
    began = time.perf_counter()
    try:
        answered = answer_all(args, reader, how, QuestionStream(paths), job, world)
    except (KeyboardInterrupt, OSError):
        if job:
            said = f"{job.done:,} answers are in {job.lines}; --resume goes on behind them"
            print("\n" + said, file=sys.stderr)
        raise
    failed = 0
    if job:
        took = time.perf_counter() - began
        failed = write_official_files(job, reader.qa, args.n_best)
        print(report(job, answered, took, failed, threshold), file=sys.stderr)
    return 1 if failed else 0


def how_asked(args: argparse.Namespace, reader: Reader, threshold: float | None) -> How:
    how = reader.how(
        allow_no_answer=threshold is not None,
        threshold=threshold,
        max_answer_length=args.max_answer_length,
        whole_words=args.whole_words,
        mode=args.decoding,
        max_context=args.max_context,
    )
    if args.n_best:
        spans = replace(how.spans, n_best=args.n_best)
        how = replace(how, spans=spans, listed=args.n_best)
    return how


def about(args: argparse.Namespace, reader: Reader, how: How, paths: Sequence[Path]) -> dict:
    """What the answers depend on."""
    return {
        "bertqa": __version__,
        "data": data_fingerprint(paths),
        "model": " ".join(map(model_fingerprint, (args.model, *args.others))),
        "device": reader.device.type,
        "precision": str(reader.dtype),
        "int8": args.int8,
        "limit": args.limit,
        "n_best": args.n_best,
        **asdict(how),
    }


def answer_all(
    args: argparse.Namespace,
    reader: Reader,
    how: How,
    stream: QuestionStream,
    job: Job | None,
    world: World,
) -> int:
    """Answer every question behind those that are done. Returns how many these were."""
    done = world.gather(job.done if job else 0)[0]
    ids = job.ids() if job else None
    begin = None
    at = 0
    with progress_bar(desc="answer", unit=" questions", shown=world.first) as bar:
        for turn in chunks(shares_ahead(stream, args.limit, done, ids), world.size):
            if begin is None:
                begin = turn[0].start
                begin_bar(bar, begin)
                if job:
                    job.keep(begin)  # a share is answered whole, or its answers would be others
            rows: list[dict] = []
            if world.rank < len(turn):
                mine = turn[world.rank]
                show = Shown(bar, stream, args.limit, mine)
                rows = rows_of(mine, reader, how, args.n_best, show)
            for share, part in zip(turn, world.gather(rows), strict=False):
                at = share.stop
                if job:
                    append(job, share, part, args.on_error)
            bar.update(at - bar.n)
    if begin is None and not done:
        raise UserError(f"{', '.join(args.data)}: there is no question in it")
    return 0 if begin is None else at - begin


def shares_ahead(
    stream: QuestionStream, limit: int | None, done: int, ids: Iterator | None
) -> Iterator[Share]:
    """The shares of a stream that are not yet answered whole; `ids` are those of the answers that are there."""
    start = 0
    questions_ahead = islice(stream, limit)
    weigh = operator.attrgetter("characters")
    for questions in chunks(questions_ahead, SHARE, weigh, first=FIRST):
        share = Share(start, questions)
        start = share.stop
        if share.stop > done:
            yield share
        elif ids is not None:
            for question in questions:
                refuse_other_id(question, next(ids))


def refuse_other_id(question: Question, before: object) -> None:
    if question.id != before:
        raise UserError(
            f"{question.where}: its id is {question.id!r}, but the answer in its place is to {before!r}; "
            "give the data that the job was begun with, or another --out"
        )


def rows_of(share: Share, reader: Reader, how: How, n_best: int | None, done) -> list[dict]:
    """A row for each question of a share."""
    asked = []
    for question in share.questions:
        if question.error:
            asked.append(Asked(error=f"{question.where}: {question.error}"))
        else:
            asked.append(asked_of(question.id, question.question, question.documents))
    rows = []
    rankings = reader.rank(asked, how, done)
    for question, ranking in zip(share.questions, rankings, strict=True):
        rows.append(row_of(question.id, ranking, how, n_best))
    return rows


def row_of(id: object, ranking: Ranking, how: How, n_best: int | None) -> dict:
    """The line of predictions.jsonl for a question."""
    if ranking.error:
        return {"id": id, "error": ranking.error}
    row = {"id": id, **asdict(ranking.answers[0]), "null_odds": ranking.null_odds}
    if n_best:
        row["nbest"] = n_best_list(ranking, how.spans, no_answer=how.threshold is not None)
    return row


def append(job: Job, share: Share, rows: list[dict], on_error: str) -> None:
    """Write the rows of a share. With `on_error` "stop" raises UserError for the first that is an error."""
    for nth, row in enumerate(rows):
        if "error" in row and on_error == "stop":
            job.append(rows[:nth])
            raise UserError(row["error"])
    job.append(rows)


# What is seen while it runs, and in the end


def begin_bar(bar, done: int) -> None:
    """Have the bar begin behind what an earlier start has done, and its clock now: the rate is that of this one."""
    bar.initial = bar.n = bar.last_print_n = done
    bar.unpause()


class Shown:
    """Moves the bar with every batch of a share. How many questions there are is estimated from the bytes read."""

    def __init__(self, bar, stream: QuestionStream, limit: int | None, share: Share):
        self.bar = bar
        self.share = share
        self.part = 0.0  # of the share
        if stream.share_read:
            total = round(stream.ids.count / stream.share_read)
            bar.total = min(total, limit) if limit else total

    def __call__(self, part: float) -> None:
        self.part += part
        at = self.share.start + int(self.part * len(self.share.questions))
        self.bar.update(at - self.bar.n)


def report(job: Job, answered: int, took: float, failed: int, threshold: float | None) -> str:
    """What was done, for people."""
    said = (
        f"answers in {job.folder}, threshold {'none' if threshold is None else f'{threshold:.4f}'}"
    )
    if answered:
        said += f"; {answered:,} questions in {took:.1f} s, {answered / took:,.1f} questions/s"
    if failed:
        said += f'; {failed:,} records could not be read: see "error" in {job.lines.name}'
    return said


def write_official_files(job: Job, qa: dict, n_best: int | None) -> int:
    """The files of SQuAD's scripts, made of the lines. Returns how many records could not be read."""
    scale = qa.get("no_answer_scale")
    bias = qa.get("no_answer_bias")
    if scale is None or bias is None:
        scale, bias = 1.0, 0.0
    failed = 0
    with contextlib.ExitStack() as stack:

        def file(name: str) -> ObjectFile:
            return stack.enter_context(object_file(job.folder / name))

        predictions = file("predictions.json")
        null_odds = file("null_odds.json")
        na_prob = file("na_prob.json")
        lists = file("nbest_predictions.json") if n_best else None
        for row in job.rows():
            if "error" in row:
                failed += 1
                continue
            id = str(row["id"])
            predictions.add(id, row["answer"])
            null_odds.add(id, row["null_odds"])
            na_prob.add(id, float(no_answer_probability(row["null_odds"], scale, bias)))
            if lists:
                lists.add(id, row["nbest"])
    return failed


# What 8 bits cost


def first_answers(folder: Path, most: int) -> dict[str, str]:
    """id -> answer of the first questions of a finished job."""
    return dict(islice(read_object(folder / "predictions.json").items(), most))


def answers_again(
    args: argparse.Namespace, reader: Reader, threshold: float | None, most: int
) -> dict[str, str]:
    """id -> answer of the first questions of the data by another reader."""
    questions = list(islice(QuestionStream(expand(args.data)), min(most, args.limit or most)))
    how = how_asked(args, reader, threshold)
    rows = rows_of(Share(0, questions), reader, how, None, None)
    return {str(row["id"]): row["answer"] for row in rows if "error" not in row}
