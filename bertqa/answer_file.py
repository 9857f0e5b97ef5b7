"""Answer files of questions into a folder: `python -m bertqa.predict --data`.

Questions are answered as they are read, into predictions.jsonl (jobs.py). When it is complete, the files that SQuAD's
scripts take are made from it.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import islice

from bertqa.data.examples import read_examples
from bertqa.data.question_stream import Question, question_stream
from bertqa.data.sources import expand
from bertqa.distributed import World
from bertqa.errors import UserError
from bertqa.files import read_object, replacing
from bertqa.jobs import Job
from bertqa.qa.asked import Asked, How, asked_of
from bertqa.qa.documents import Ranking, n_best_list
from bertqa.qa.metrics import evaluate_v2, score_answers
from bertqa.qa.thresholds import no_answer_probability
from bertqa.reader import Reader

SHARE = 512
"""Most questions of a share: few enough that ten thousand keep eight processes busy and that a stop loses little, and
enough to sort windows by length."""

COMPARED = 512
"""Number of questions on which int8 is compared with the model as it is."""


def answer_file(
    args: argparse.Namespace, reader: Reader, threshold: float | None, world: World
) -> int:
    """Answer the files `args.data` into the folder `args.out`, together with the other processes of `world`.

    Returns:
        The exit status: 1 where a record could not be read.
    """
    how = how_asked(args, reader, threshold)
    models = [args.model, *args.others]
    settings = {"n_best": args.n_best, **asdict(how)}
    job = Job(args, args.out, models, reader, settings, world)
    tally: Counter = Counter()
    stream = question_stream(job.paths, tally)
    job.answer(stream, partial(rows_of, reader, how, args.n_best), noun="question", size=SHARE)
    if not world.first:
        return 0
    failed = write_official_files(job, reader.qa, args.n_best)
    shown = "none" if threshold is None else f"{threshold:.4f}"
    said = f"answers in {job.folder}, threshold {shown}"
    print(said + job.summary("question", failed, "records"), file=sys.stderr)
    if tally["unlabelled"]:
        said = f"{tally['unlabelled']:,} of {tally['records']:,} records do not say what is right"
        print(f"unlabelled: {said}", file=sys.stderr)
    return int(failed > 0)


def how_asked(args: argparse.Namespace, reader: Reader, threshold: float | None) -> How:
    """Return how the flags ask for answers."""
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
    """Answer questions. Returns a row of predictions.jsonl for each; `done` as for `Reader.rank`."""
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
    """Return the row of predictions.jsonl for a question."""
    if ranking.error:
        return {"id": id, "error": ranking.error}
    row = {"id": id, **asdict(ranking.answers[0]), "null_odds": ranking.null_odds}
    if n_best:
        row["nbest"] = n_best_list(ranking, how.spans, no_answer=how.threshold is not None)
    return row


def write_official_files(job: Job, qa: dict, n_best: int | None) -> int:
    """Write the files of SQuAD's scripts from predictions.jsonl. Returns the number of records that could not be read."""
    scale = qa.get("no_answer_scale")
    bias = qa.get("no_answer_bias")
    if scale is None or bias is None:
        # The model was never calibrated: sigmoid(odds) ranks questions right, but is no probability.
        scale = 1.0
        bias = 0.0
    # Each file is a pass over the lines, of which memory holds one.
    write_object(job, "predictions.json", lambda row: row["answer"])
    write_object(job, "null_odds.json", lambda row: row["null_odds"])
    write_object(
        job,
        "na_prob.json",
        lambda row: float(no_answer_probability(row["null_odds"], scale, bias)),
    )
    if n_best:
        write_object(job, "nbest_predictions.json", lambda row: row["nbest"])
    return sum("error" in row for row in job.rows())


def write_object(job: Job, name: str, value: Callable[[dict], object]) -> None:
    """Write a file of the job: a JSON object with `value(row)` for the id of every row that is no error."""
    before = "{\n"
    with replacing(job.folder / name) as fresh, open(fresh, "w", encoding="utf-8") as file:
        for row in job.rows():
            if "error" not in row:
                key = str(row["id"])  # keys of a JSON object are strings
                file.write(f"{before}{json.dumps(key)}: {json.dumps(value(row))}")
                before = ",\n"
        file.write("{}\n" if before == "{\n" else "\n}\n")


def int8_cost(args: argparse.Namespace, exact: Reader, threshold: float | None) -> str:
    """Return a message on how int8 changed the answers of a finished job.

    `exact`, the same model without int8, answers the first questions again. Where the data has labels, F1 says whether the
    int8 answers are worse.
    """
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
    """Return F1 in percent of `answers` to the first questions of a file; None where it has no labels."""
    try:
        examples = read_examples(path, len(answers)).examples
        if not any(example.answer_texts for example in examples):
            return None
        return evaluate_v2(score_answers(examples, answers))["f1"]
    except UserError:
        return None
