"""python -m bertqa.score DATA PREDICTIONS: the official SQuAD scores, and more on request.

Flags and output are those of evaluate-v2.0.py, and for SQuAD v1.1 data the output is that of the v1.1 script. Everything
else has a flag and keys of its own: without such a flag the output is the script's, byte for byte.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bertqa.data.examples import Dataset, read_examples
from bertqa.errors import UserError
from bertqa.files import same_file, write_text
from bertqa.flags import VerbParser, run_verb, verb
from bertqa.qa import metrics
from bertqa.qa.predictions import Predictions, read_odds, read_predictions, threshold_of
from bertqa.reporting.score_files import details, load_matplotlib, plot, write_details

HELP = {
    "data_file": "questions with their answers, .gz or not; squad1 and squad2 are the official dev files, fetched once",
    "pred_file": "JSON object {question id: answer text}; or records of id and prediction_text as JSON, JSONL or CSV",
    "--out-file": "write the JSON there, not on stdout",
    "--na-prob-file": "JSON object {question id: odds}",
    "--na-prob-thresh": "an answer with odds > T counts as no answer [1.0, which suits probabilities and not log-odds]",
    "--out-image-dir": "plot curves and histograms there",
    "--verbose": "say on stderr what was read, by which rules",
    "--v1": "the rules and keys of the SQuAD v1.1 script",
    "--v2": "those of evaluate-v2.0.py [decided by the data]",
    "--missing": "a question without a prediction scores 0, or is left out as the official v2 script intends [wrong]",
    "--avna": "add avna: answer-versus-no-answer accuracy",
    "--char-f1": "add char_f1: F1 for languages without spaces",
    "--confidence": "add *_ci95: 95 %% intervals by bootstrap over questions, N resamples [1000]",
    "--details": "one row per question, as .csv or .jsonl",
}


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = VerbParser(
        prog="python -m bertqa.score", description="Score answers as SQuAD's scripts do."
    )

    def add(group, *names: str, **options) -> None:
        group.add_argument(*names, help=HELP[names[-1]], **options)

    add(parser, "data_file", metavar="DATA", type=Path)
    add(parser, "pred_file", metavar="PREDICTIONS", type=Path)
    official = parser.add_argument_group("as in evaluate-v2.0.py")
    add(official, "-o", "--out-file", metavar="F", type=Path)
    add(official, "-n", "--na-prob-file", metavar="F", type=Path)
    add(official, "-t", "--na-prob-thresh", metavar="T", type=float)
    add(official, "-p", "--out-image-dir", metavar="D", type=Path)
    add(official, "-v", "--verbose", action="store_true")
    own = parser.add_argument_group("beyond it")
    rules = own.add_mutually_exclusive_group()
    add(rules, "--v1", action="store_true")
    add(rules, "--v2", action="store_true")
    add(own, "--missing", choices=("wrong", "skip"), default="wrong")
    add(own, "--avna", action="store_true")
    add(own, "--char-f1", action="store_true")
    add(own, "--confidence", metavar="N", type=int, nargs="?", const=1000)
    add(own, "--details", metavar="F", type=Path)
    return parser.parse_args(argv)


@dataclass
class Inputs:
    """What to score, and by which rules."""

    data: Dataset
    predictions: Predictions
    na_probs: dict[str, float] | None  # no-answer odds by question id, if given
    threshold: float  # an answer with odds above it counts as no answer
    v1: bool  # the rules of v1.1


@verb
def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    check(args)
    inputs = read_inputs(args)
    na_probs = inputs.na_probs
    scores = metrics.score_answers(
        inputs.data.examples,
        inputs.predictions.texts,
        missing=args.missing,
        v1=inputs.v1,
        characters=args.char_f1,
    )
    print_notes(args, inputs)
    with_curves = na_probs is not None and args.out_image_dir is not None
    if inputs.v1:
        result = metrics.evaluate_v1(scores)
    else:
        result = metrics.evaluate_v2(scores, na_probs, inputs.threshold, curves=with_curves)
    odds = metrics.odds_of(scores, na_probs)
    final = after_threshold(scores, odds, inputs.threshold)
    result.update(extras(args, final, odds, inputs))
    if args.details:
        rows = details(inputs.data.examples, final, odds, inputs.threshold, na_probs is not None)
        write_details(args.details, rows)
    if with_curves:
        plot(args.out_image_dir, scores, na_probs)
    if args.out_file:
        write_text(args.out_file, json.dumps(result))
    else:
        print(json.dumps(result, indent=None if inputs.v1 else 2))
    return 0


def check(args: argparse.Namespace) -> None:
    """Refuse invalid flags, before anything is read."""
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
    for flag, out in (("--out-file", args.out_file), ("--details", args.details)):
        for source in (args.data_file, args.pred_file, args.na_prob_file):
            if out and source and same_file(out, source):
                raise UserError(f"{flag} {out} would overwrite {source}; give another name")
    if args.details and args.out_file and args.details.absolute() == args.out_file.absolute():
        raise UserError(f"--out-file and --details are both {args.details}; give two names")
    if args.out_image_dir and args.na_prob_file:
        load_matplotlib()


def read_inputs(args: argparse.Namespace) -> Inputs:
    """Read each file, once only since it may be a pipe, and choose the rules."""
    data = read_examples(args.data_file)
    predictions = read_predictions(args.pred_file)
    # Only the v2 script has a threshold.
    asks_for_v2 = args.v2 or args.na_prob_file or args.na_prob_thresh is not None
    v1 = args.v1 or (data.is_v1 and not asks_for_v2)
    threshold = 1.0 if args.na_prob_thresh is None else args.na_prob_thresh
    na_probs = None
    if args.na_prob_file:
        na_probs = read_odds(args.na_prob_file)
    # Odds beside the answers, as predict writes them. A threshold needs those of all.
    elif not v1 and predictions.odds and len(predictions.odds) == len(predictions.texts):
        na_probs = predictions.odds
        if args.na_prob_thresh is None and not are_probabilities(na_probs):
            # They are log-odds, for which the default of 1.0 means nothing.
            threshold = math.inf
    return Inputs(data, predictions, na_probs, threshold, v1)


def are_probabilities(odds: dict[str, float]) -> bool:
    """Return whether all no-answer odds are between 0 and 1."""
    return all(0.0 <= value <= 1.0 for value in odds.values())


# Notes on stderr, where the scores may mean something else than one thinks


def print_notes(args: argparse.Namespace, inputs: Inputs) -> None:
    """Print all of them."""
    warn_of_missing(args, inputs)
    if inputs.na_probs:
        warn_of_odds(args, inputs)
    if args.out_image_dir and inputs.na_probs is None:
        say(
            "note: --out-image-dir plots no-answer odds and needs --na-prob-file; nothing is plotted"
        )
    if args.verbose:
        tell_what_was_read(args, inputs)


def warn_of_missing(args: argparse.Namespace, inputs: Inputs) -> None:
    """Warn of questions without a prediction, and of predictions without a question."""
    examples = inputs.data.examples
    predictions = inputs.predictions.texts
    absent = [example.id for example in examples if example.id not in predictions]
    if absent:
        fates = {"skip": "are left out", "wrong": "count as wrong (--missing skip leaves them out)"}
        say(
            f"warning: {len(absent)} of {len(examples)} questions have no prediction and {fates[args.missing]}: "
            f"{few(absent)}"
        )
    ids = {example.id for example in examples}
    extra = [id for id in predictions if id not in ids]
    if extra:
        say(
            f"note: {len(extra)} of {len(predictions)} predictions belong to no question: {few(extra)}"
        )


def warn_of_odds(args: argparse.Namespace, inputs: Inputs) -> None:
    """Warn of no-answer odds to which the threshold does not fit, and of empty predictions."""
    texts = inputs.predictions.texts
    odds = inputs.na_probs
    if inputs.threshold == math.inf and args.na_prob_thresh is None:
        say(
            "note: the no-answer odds beside the predictions are no probabilities, so that no threshold is applied; "
            "--na-prob-thresh applies one"
        )
    elif args.na_prob_thresh is None and not are_probabilities(odds):
        made_at = threshold_of(texts, odds)
        advice = "--na-prob-thresh 0, above which no answer is the likelier"
        if made_at is not None:
            advice = (
                f"--na-prob-thresh {made_at:g}, at which these answers were made, to score them"
            )
        say(
            "note: the no-answer odds are no probabilities, and the threshold is still 1.0; "
            f"give {advice}"
        )
    empty = sum(texts.get(example.id) == "" for example in inputs.data.examples)
    if empty:
        say(
            f"note: {empty} predictions are empty; best_* and pr_* are right only for raw best non-null answers"
        )


def tell_what_was_read(args: argparse.Namespace, inputs: Inputs) -> None:
    """Print sizes and rules, for --verbose."""
    ids = {example.id for example in inputs.data.examples}
    answered = len(ids & inputs.predictions.texts.keys())
    say(f"{args.data_file}: {inputs.data.summary()}")
    say(f"{args.pred_file}: answers {answered} of {len(ids)} questions")
    if inputs.na_probs is inputs.predictions.odds:
        say(f"{args.pred_file}: has no-answer odds too")
    say(f"rules of SQuAD {'v1.1' if inputs.v1 else 'v2.0'}")


def say(message: str) -> None:
    print(message, file=sys.stderr)


def few(ids: Sequence[str]) -> str:
    """Return the first three ids, with "..." if there are more."""
    shown = ", ".join(ids[:3])
    return f"{shown}, ..." if len(ids) > 3 else shown


# What the official scripts do not have


def after_threshold(scores: metrics.Scores, odds: list, threshold: float) -> metrics.Scores:
    """Return the scores once every answer with odds above the threshold is replaced by no answer."""
    final = replace(scores)
    for name in ("exact", "f1", "char_f1"):
        values = getattr(scores, name)
        if values:  # char_f1 is empty unless asked for
            setattr(final, name, metrics.apply_threshold(values, scores, odds, threshold))
    return final


def extras(args: argparse.Namespace, final: metrics.Scores, odds: list, inputs: Inputs) -> dict:
    """Return the keys beyond the official ones. `final` has the scores after the threshold."""
    result = {}
    if args.avna:
        result["avna"] = metrics.answer_vs_no_answer(final, odds, inputs.threshold)
    if args.char_f1:
        result["char_f1"] = 100.0 * sum(final.char_f1) / len(final.ids)
    if args.confidence:
        # Here, because importing numpy takes longer than scoring.
        from bertqa.qa.thresholds import bootstrap

        exact = "exact_match" if inputs.v1 else "exact"
        columns = {exact: final.exact, "f1": final.f1}
        if final.char_f1:
            columns["char_f1"] = final.char_f1
        limits = bootstrap(list(zip(*columns.values(), strict=True)), args.confidence)
        for name, (low, high) in zip(columns, limits, strict=True):
            result[f"{name}_ci95"] = [100.0 * float(low), 100.0 * float(high)]
    return result


if __name__ == "__main__":
    raise SystemExit(run_verb(main))
