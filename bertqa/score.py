"""python -m bertqa.score DATA PREDICTIONS: the official SQuAD numbers, and on request what the official scripts lack.

Same flags and output as evaluate-v2.0.py, and for SQuAD v1.1 data as the v1.1 script. Everything else is asked for by a
flag and has keys of its own, so what is printed without such a flag can be compared byte for byte.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import json
import math
import os
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path

from bertqa.data.examples import Dataset, Example, read_examples
from bertqa.errors import UserError
from bertqa.flags import run_verb
from bertqa.qa import metrics
from bertqa.qa.metrics import Scores


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bertqa.score", description="Score answers as SQuAD's scripts do."
    )
    parser.add_argument(
        "data_file",
        metavar="DATA",
        type=Path,
        help="questions with their answers, .gz or not; squad1 "
        "and squad2 are the official dev files, fetched once",
    )
    parser.add_argument(
        "pred_file", metavar="PREDICTIONS", type=Path, help="JSON object {question id: answer text}"
    )
    official = parser.add_argument_group("as in evaluate-v2.0.py")
    official.add_argument(
        "-o", "--out-file", metavar="F", type=Path, help="write the JSON there, not on stdout"
    )
    official.add_argument(
        "-n", "--na-prob-file", metavar="F", type=Path, help="JSON object {question id: odds}"
    )
    official.add_argument(
        "-t",
        "--na-prob-thresh",
        metavar="T",
        type=float,
        help="an answer with odds > T counts as no answer [1.0, which suits probabilities and not log-odds]",
    )
    official.add_argument(
        "-p", "--out-image-dir", metavar="D", type=Path, help="plot curves and histograms there"
    )
    official.add_argument(
        "-v",
        "--verbose",
        action="store_true",
        help="say on stderr what was read and by which rules",
    )
    more = parser.add_argument_group("beyond it")
    rules = more.add_mutually_exclusive_group()
    rules.add_argument(
        "--v1", action="store_true", help="the rules and keys of the SQuAD v1.1 script"
    )
    rules.add_argument(
        "--v2", action="store_true", help="those of evaluate-v2.0.py [decided by the data]"
    )
    more.add_argument(
        "--missing",
        choices=("wrong", "skip"),
        default="wrong",
        help="a question without a prediction scores 0, or is left out as the official v2 script intends [wrong]",
    )
    more.add_argument(
        "--avna", action="store_true", help="add avna: answer-versus-no-answer accuracy"
    )
    more.add_argument(
        "--char-f1", action="store_true", help="add char_f1: F1 for languages without spaces"
    )
    more.add_argument(
        "--confidence",
        metavar="N",
        type=int,
        nargs="?",
        const=1000,
        help="add *_ci95: 95 %% intervals by bootstrap over questions, N resamples [1000]",
    )
    more.add_argument(
        "--details", metavar="F", type=Path, help="one row per question, as .csv or .jsonl"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    check(args)
    data = read_examples(args.data_file)
    predictions = read_mapping(args.pred_file, str)
    na_probs = read_mapping(args.na_prob_file, float) if args.na_prob_file else None
    threshold = 1.0 if args.na_prob_thresh is None else args.na_prob_thresh
    v1 = args.v1 or not args.v2 and na_probs is None and args.na_prob_thresh is None and is_v1(data)
    scores = metrics.score_answers(
        data.examples, predictions, missing=args.missing, v1=v1, characters=args.char_f1
    )
    say_what_is_odd(args, data, predictions, na_probs, v1)

    result = (
        metrics.evaluate_v1(scores)
        if v1
        else metrics.evaluate_v2(
            scores,
            na_probs,
            threshold,
            curves=na_probs is not None and args.out_image_dir is not None,
        )
    )
    odds = metrics.odds_of(scores, na_probs)
    final = Scores(
        scores.ids,
        scores.has_answer,
        scores.texts,
        *(
            metrics.apply_threshold(v, scores, odds, threshold)
            for v in (scores.exact, scores.f1, scores.char_f1)
            if v
        ),
    )
    result |= extras(args, final, odds, threshold, v1)
    if args.details:
        given = metrics.answered(final, odds, threshold)
        write_details(
            args.details, data.examples, final, given, odds if na_probs is not None else None
        )
    if na_probs is not None and args.out_image_dir:
        plot(args.out_image_dir, scores, na_probs)
    if args.out_file:
        replace_file(args.out_file, json.dumps(result))
    else:
        print(json.dumps(result, indent=None if v1 else 2))
    return 0


def check(args: argparse.Namespace) -> None:
    """What can be refused before anything is read."""
    if args.v1 and (args.na_prob_file or args.na_prob_thresh is not None):
        raise UserError(
            "--v1 has no no-answer threshold: leave out --na-prob-file and --na-prob-thresh, or --v1"
        )
    if args.na_prob_thresh is not None and math.isnan(args.na_prob_thresh):
        raise UserError("--na-prob-thresh nan: give a number")
    if args.confidence is not None and args.confidence < 2:
        raise UserError(
            f"--confidence {args.confidence}: give the number of resamples, 1000 or so, at least 2"
        )
    if args.details and args.details.suffix not in (".csv", ".jsonl"):
        raise UserError(
            f"--details {args.details}: the name must end in .csv or .jsonl, the two forms there are"
        )
    if args.out_image_dir and args.na_prob_file:
        load_matplotlib()


def is_v1(data: Dataset) -> bool:
    """Whether v1.1 rules apply: no question is impossible, and the file has not even the key `is_impossible`.

    A part of a v2 file with answerable questions only is still v2 data, and gets v2 keys.
    """
    if data.has_impossible:
        return False
    raw = Path(data.path).read_bytes()
    return b'"is_impossible"' not in (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw)


def read_mapping(path: Path, kind: type) -> dict:
    """A JSON object from question id to `kind` (str: answer texts, float: numbers, but not NaN), gzipped or not."""
    wanted = "{question id: answer text}" if kind is str else "{question id: no-answer odds}"
    raw = path.read_bytes()
    try:
        found = json.loads(
            (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode("utf-8-sig")
        )
    except (ValueError, EOFError, gzip.BadGzipFile, zlib.error, RecursionError) as error:
        raise UserError(
            f"{path}: not a JSON file ({error}); it must hold one object {wanted}"
        ) from None
    if not isinstance(found, dict):
        raise UserError(
            f"{path}: holds a JSON {type(found).__name__}; it must hold one object {wanted}"
        )
    for id, value in found.items():
        number = type(value) is int or (type(value) is float and not math.isnan(value))
        if not (isinstance(value, str) if kind is str else number):
            hint = (
                "; this looks like an n-best file: give predictions.json"
                if isinstance(value, list)
                else ""
            )
            shown = json.dumps(value)
            shown = shown if len(shown) < 80 else shown[:77] + "..."
            raise UserError(
                f"{path}: question {id!r} has {shown}; the file must be one object {wanted}{hint}"
            )
    return found


def say_what_is_odd(
    args: argparse.Namespace, data: Dataset, predictions: dict, na_probs: dict | None, v1: bool
) -> None:
    """What makes the numbers mean something else than one may think, on stderr."""
    ids = {example.id for example in data.examples}
    absent = [example.id for example in data.examples if example.id not in predictions]
    if absent:
        fate = (
            "count as wrong (--missing skip leaves them out)"
            if args.missing == "wrong"
            else "are left out"
        )
        say(
            f"warning: {len(absent)} of {len(data.examples)} questions have no prediction and {fate}: {few(absent)}"
        )
    extra = [id for id in predictions if id not in ids]
    if extra:
        say(
            f"note: {len(extra)} of {len(predictions)} predictions belong to no question: {few(extra)}"
        )
    if args.out_image_dir and na_probs is None:
        say(
            "note: --out-image-dir plots no-answer odds and needs --na-prob-file; nothing is plotted"
        )
    if na_probs:
        if args.na_prob_thresh is None and not all(
            0.0 <= value <= 1.0 for value in na_probs.values()
        ):
            say(
                "note: the no-answer odds are no probabilities, and the threshold is still 1.0; see --na-prob-thresh"
            )
        empty = sum(predictions.get(id) == "" for id in ids)
        if empty:
            say(
                f"note: {empty} predictions are empty; best_* and pr_* are right only for raw best non-null answers"
            )
    if args.verbose:
        say(f"{args.data_file}: {data.summary()}")
        say(f"{args.pred_file}: answers {len(ids) - len(absent)} of {len(ids)} questions")
        say(f"rules of SQuAD {'v1.1' if v1 else 'v2.0'}")


def say(message: str) -> None:
    print(message, file=sys.stderr)


def few(ids: Sequence[str]) -> str:
    return ", ".join(ids[:3]) + (", ..." if len(ids) > 3 else "")


def extras(args: argparse.Namespace, final: Scores, odds: list, threshold: float, v1: bool) -> dict:
    """The keys that no official script has. `final` is the scores after the threshold."""
    result = {}
    if args.avna:
        result["avna"] = metrics.answer_vs_no_answer(final, odds, threshold)
    if args.char_f1:
        result["char_f1"] = 100.0 * sum(final.char_f1) / len(final.ids)
    if args.confidence:
        columns = {
            "exact_match" if v1 else "exact": final.exact,
            "f1": final.f1,
            "char_f1": final.char_f1,
        }
        columns = {name: values for name, values in columns.items() if values}
        limits = metrics.bootstrap(list(zip(*columns.values(), strict=True)), args.confidence)
        result |= {
            f"{name}_ci95": [100.0 * float(x) for x in pair]
            for name, pair in zip(columns, limits, strict=True)
        }
    return result


def write_details(
    path: Path, examples: list[Example], final: Scores, given: list, odds: list | None
) -> None:
    """One row per scored question: all that its scores were made from. `answered` is null for a missing prediction."""
    by_id = {example.id: example for example in examples}
    rows = []
    for i, id in enumerate(final.ids):
        row = {
            "id": id,
            "title": by_id[id].title,
            "question": by_id[id].question,
            "prediction": final.texts[i],
        }
        row |= {"answers": list(by_id[id].answer_texts), "answered": given[i]}
        row |= {"exact": final.exact[i], "f1": final.f1[i]}
        if final.char_f1:
            row["char_f1"] = final.char_f1[i]
        if odds is not None:
            row["na_prob"] = odds[i]
        rows.append(row)
    out = io.StringIO()
    if path.suffix == ".jsonl":
        out.writelines(json.dumps(row) + "\n" for row in rows)
    else:
        writer = csv.DictWriter(out, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            row | {"answers": json.dumps(row["answers"], ensure_ascii=False)} for row in rows
        )
    replace_file(path, out.getvalue())


def replace_file(path: Path, text: str) -> None:
    """Write under a temporary name, then rename: nobody ever reads half a file."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")
    os.replace(part, path)


# ---- plots ----


def load_matplotlib():
    """matplotlib's Figure class: without pyplot there is no global state. Raises UserError where it is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError(
            "--out-image-dir needs matplotlib, which is not installed: pip install 'bertqa[plots]', or leave it out"
        ) from None
    return Figure


def plot(folder: Path, scores: Scores, na_probs: dict[str, float]) -> None:
    """Precision-recall curves and no-answer histograms, under the official script's file names."""
    figure_class = load_matplotlib()
    folder.mkdir(parents=True, exist_ok=True)

    def draw(name: str, title: str, x: str, y: str, paint) -> None:
        figure = figure_class()
        axes = figure.subplots()
        paint(axes)
        axes.set(title=title, xlabel=x, ylabel=y)
        figure.savefig(folder / name)

    odds, order = metrics.odds_of(scores, na_probs), metrics.ranking(scores, na_probs)
    titles = {"exact": "exact match", "f1": "F1", "oracle": "having an answer at all"}
    for name, values in metrics.curve_values(scores).items() if any(scores.has_answer) else ():
        precisions, recalls, ap = metrics.precision_recall(values, scores.has_answer, odds, order)

        def curve(axes, precisions=precisions, recalls=recalls) -> None:
            axes.step(recalls, precisions, where="post")
            axes.fill_between(recalls, precisions, step="post", alpha=0.2)
            axes.set(xlim=(0, 1.05), ylim=(0, 1.05))

        draw(
            f"pr_{name}.png",
            f"{titles[name]} (average precision {ap:.1f})",
            "recall",
            "precision",
            curve,
        )
    for name, kind in (("hasAns", True), ("noAns", False)):
        chosen = [
            o
            for o, has in zip(odds, scores.has_answer, strict=True)
            if has is kind and o is not None
        ]
        if chosen:
            shares, edges = metrics.histogram(chosen)

            def bars(axes, shares=shares, edges=edges) -> None:
                axes.stairs(shares, edges, fill=True)

            title = "questions with an answer" if kind else "questions without an answer"
            draw(f"na_prob_hist_{name}.png", title, "no-answer odds", "proportion", bars)


if __name__ == "__main__":
    raise SystemExit(run_verb(main))
