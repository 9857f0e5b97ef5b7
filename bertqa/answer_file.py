"""Files of questions in, a folder of answers out: `python -m bertqa.predict --data`.

Questions are answered as they are read (jobs.py); the files of SQuAD's scripts are made of the lines when all are there.
"""

import argparse
import contextlib
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TextIO

from bertqa.data.examples import read_examples
from bertqa.data.question_stream import Question, question_stream
from bertqa.data.sources import expand
from bertqa.distributed import World
from bertqa.errors import UserError
from bertqa.files import read_object, replacing
from bertqa.jobs import Job, answer_stream, depends_on
from bertqa.qa.asked import Asked, How, asked_of
from bertqa.qa.documents import Ranking, n_best_list
from bertqa.qa.metrics import evaluate_v2, score_answers
from bertqa.qa.thresholds import no_answer_probability
from bertqa.reader import Reader

SHARE = 512
"""Questions answered at once: few enough that eight processes are busy with ten thousand and that little is lost by a
stop, and enough to sort windows by length."""

COMPARED = 512
"""Questions on which --int8 is held against the model as it is."""


def answer_file(
    args: argparse.Namespace, reader: Reader, threshold: float | None, world: World
) -> int:
    """Answer the files of `args.data` into the folder `args.out`, in the processes of `world`.

    Returns the exit status: 1 where a record could not be read.
    """
    paths = expand(args.data)
    how = how_asked(args, reader, threshold)
    depends = {}
    if world.first:  # checksums of the data cost a second a gigabyte: once is enough
        models = [args.model, *args.others]
        others = {"n_best": args.n_best, **asdict(how)}
        depends = depends_on(args, paths, models, reader.device, reader.dtype, **others)
    job = Job(args.out, depends, args.resume, world)
    tally: Counter = Counter()
    answer_stream(
        job,
        question_stream(paths, tally),
        partial(rows_of, reader, how, args.n_best),
        args,
        noun="question",
        size=SHARE,
        device=reader.device.type,
    )
    if not world.first:
        return 0
    failed = write_official_files(job, reader.qa, args.n_best)
    shown = "none" if threshold is None else f"{threshold:.4f}"
    said = f"answers in {job.folder}, threshold {shown}"
    print(said + job.told("question", failed, "records"), file=sys.stderr)
    if tally["unlabelled"]:
        said = f"{tally['unlabelled']:,} of {tally['records']:,} records do not say what is right"
        print(f"unlabelled: {said}", file=sys.stderr)
    return int(failed > 0)


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


def rows_of(
    reader: Reader, how: How, n_best: int | None, questions: Sequence[Question], done=None
) -> list[dict]:
    """A row for each question; `done` is told after every batch which part of them it was."""
    asked = []
    for question in questions:
        if question.error:
            asked.append(Asked(error=f"{question.where}: {question.error}"))
        else:
            asked.append(asked_of(question.id, question.question, question.documents))
    rows = []
    rankings = reader.rank(asked, how, done)
    for question, ranking in zip(questions, rankings, strict=True):
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


# The files of SQuAD's scripts


def write_official_files(job: Job, qa: dict, n_best: int | None) -> int:
    """The files of SQuAD's scripts, made of the lines. Returns how many records could not be read."""
    scale = qa.get("no_answer_scale")
    bias = qa.get("no_answer_bias")
    # A model that was never tuned: sigmoid(odds), whose order is right and whose size means little.
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
            id = str(row["id"])  # a key of JSON, whatever it was in the data
            predictions.add(id, row["answer"])
            null_odds.add(id, row["null_odds"])
            na_prob.add(id, float(no_answer_probability(row["null_odds"], scale, bias)))
            if lists:
                lists.add(id, row["nbest"])
    return failed


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


# What 8 bits cost


def int8_cost(args: argparse.Namespace, exact: Reader, threshold: float | None) -> str:
    """What 8 bits changed: the first questions of a finished job answered again by `exact`, the model as it is."""
    # Without labels the answers are compared with each other, with labels F1 says whether they are worse.
    paths = expand(args.data)
    if not all(path.is_file() for path in paths):
        return "int8: what comes through a pipe is read once, so its answers are not compared"
    found = read_object(args.out / "predictions.json")
    questions = list(islice(question_stream(paths), min(COMPARED, args.limit or COMPARED)))
    given = {}
    right = {}
    same = 0
    for row in rows_of(exact, how_asked(args, exact, threshold), None, questions):
        if "error" not in row:
            id = str(row["id"])
            given[id] = found[id]
            right[id] = row["answer"]
            same += given[id] == right[id]
    share = same / max(1, len(right))
    said = f"int8: of the first {len(right):,} questions {share:.1%} have the answer that {args.precision} precision gives"
    f1 = f1_of(args.data[0], given)
    if f1 is not None:
        said += f"; F1 {f1:.2f} instead of {f1_of(args.data[0], right):.2f}"
    return said


def f1_of(path: str, answers: dict[str, str]) -> float | None:
    """F1 of answers to the first questions of a file; None where it does not say what is right."""
    try:
        examples = read_examples(path, len(answers)).examples
        if not any(example.answer_texts for example in examples):
            return None
        return evaluate_v2(score_answers(examples, answers))["f1"]
    except UserError:
        return None
