"""The flags of `python -m bertqa.predict`, and which of them go together."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bertqa.errors import UserError
from bertqa.flags import VerbParser
from bertqa.folders import bundled_reader

EXAMPLES = """examples:
  python -m bertqa.predict --question 'Who kept the lamp?' --context 'Agnes Holm kept the lamp for thirty years.'
  python -m bertqa.predict --context-file report.txt                      then ask, again and again
  python -m bertqa.predict --data questions.json --out answers
  python -m bertqa.predict --jsonl < questions.jsonl > answers.jsonl"""


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = VerbParser(
        prog="python -m bertqa.predict",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EXAMPLES,
        description="Answer questions from their paragraphs, or classify texts: the model folder tells which.",
    )
    add_model_flags(parser)
    add_file_flags(parser)
    add_question_flags(parser)
    add_answer_flags(parser)
    add_class_flags(parser)
    args = parser.parse_args(argv)
    args.model, *args.others = args.model
    return args


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        "--weights",
        nargs="+",
        default=[bundled_reader()],
        metavar="MODEL",
        help="model folder, run folder, Hugging Face folder or Hub id; several readers of one vocabulary answer by the mean of their "
        f"logits, with the first one's settings and the mean of their thresholds [{bundled_reader()}]",
    )
    parser.add_argument(
        "--device",
        default="auto",
        metavar="NAME",
        help="where to run: cpu, cuda, cuda:1, mps [auto]",
    )
    parser.add_argument(
        "--precision",
        default="auto",
        choices=["auto", "fp32", "bf16", "fp16"],
        help="number format [auto: 16 bits on a GPU, fp32 elsewhere]",
    )
    parser.add_argument(
        "--int8", action="store_true", help="matrix products in 8 bits; answering on the CPU only"
    )
    parser.add_argument(
        "--threads", type=int, default=0, help="CPU threads; 0 = torch's own choice [0]"
    )


def add_file_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "files", "Answers are written as they come; what is written stays, and --resume goes on."
    )
    group.add_argument(
        "--data",
        metavar="FILE",
        nargs="+",
        help="files of questions or texts, of any form that train reads, or of a text per line; folders, patterns, - for "
        "standard input; answers and labels in them are not used; squad1 and squad2 are the official dev files, "
        "fetched once",
    )
    group.add_argument(
        "--out",
        metavar="FOLDER",
        type=Path,
        help="where predictions.jsonl goes, and at the end predictions.json, null_odds.json, na_prob.json",
    )
    group.add_argument(
        "--resume", action="store_true", help="go on with what --out holds, if it is this very job"
    )
    group.add_argument(
        "--limit", type=int, help="only the first N questions or texts of the files [all]"
    )
    group.add_argument(
        "--n-best", type=int, metavar="N", help="also nbest_predictions.json, N spans a question"
    )
    group.add_argument(
        "--decoding",
        default="exact",
        choices=["exact", "hf", "google"],
        help="which spans: the true best, or those that run_qa or Google's run_squad would pick [exact]",
    )
    group.add_argument(
        "--max-context",
        action="store_true",
        help="a span counts only in the window that shows most context around its first token, as in Google's scripts",
    )
    group.add_argument(
        "--on-error",
        default="write",
        choices=["write", "stop"],
        help='what becomes of a record or line that is no question: {"id", "error"} in its place, or the end [write]',
    )


def add_question_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "one question, or many about one text",
        "Without --question, questions are asked at a prompt, or read one per line from a pipe.",
    )
    group.add_argument("--question", help="one question")
    group.add_argument("--context", help="the text to find its answer in")
    group.add_argument(
        "--context-file", metavar="FILE", help="a file with that text; - reads standard input"
    )
    group.add_argument(
        "--jsonl",
        action="store_true",
        help='read {"question", "context", "id"} objects from standard input, one a line, and write an answer object '
        "for each",
    )
    group.add_argument("--json", action="store_true", help="print answers, or classes, as JSON")


def add_answer_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("answers")
    group.add_argument("--top-k", type=int, default=1, help="answers to show for a question [1]")
    group.add_argument(
        "--threshold",
        help="null odds above which there is no answer: a number, or none to always answer "
        "[as tuned with the model]",
    )
    group.add_argument(
        "--max-answer-length", type=int, help="most tokens of an answer [as trained]"
    )
    group.add_argument(
        "--whole-words", action="store_true", help="widen answers that end inside a word"
    )


def add_class_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("classes")
    group.add_argument("--text", help="one text to classify")
    group.add_argument("--pair", metavar="TEXT", help="its second text, for a classifier of pairs")
    group.add_argument(
        "--text-column", metavar="NAME", help="column of the texts in the file [as trained]"
    )
    group.add_argument(
        "--pair-column", metavar="NAME", help="column of the second texts [as trained]"
    )


def is_asked(args: argparse.Namespace) -> bool:
    """Whether questions come from the command line, the terminal or a pipe, and not from files."""
    if args.question is not None or args.jsonl:
        return True
    if args.context is not None or args.context_file is not None:
        return True
    return not args.data and args.text is None and sys.stdin.isatty()


def check(args: argparse.Namespace, asked: bool) -> None:
    """Refuse flags that do not go together, before anything is loaded."""
    if bool(args.data) + asked + (args.text is not None) != 1:
        raise UserError(
            "give either --data FILE --out FOLDER, or --question with --context or --context-file, or one of "
            "these alone for a prompt, or --jsonl, or, for a classifier, --text"
        )
    if args.others and args.text is not None:
        raise UserError("--text takes one model; several are for questions")
    if args.data and not args.out:
        raise UserError("--data needs --out FOLDER, where the predictions go")
    for name in ("limit", "n_best", "max_answer_length"):
        value = getattr(args, name)
        if value is not None and value < 1:
            flag = "--" + name.replace("_", "-")
            raise UserError(f"{flag} {value}: give 1 or more")
    if args.data:
        without_effect = {"json": False, "top_k": 1, "pair": None}
    else:
        without_effect = {"out": None, "limit": None, "n_best": None, "resume": False}
        without_effect |= {"decoding": "exact", "max_context": False}
    given = []
    for name, default in without_effect.items():
        if getattr(args, name) != default:
            given.append("--" + name.replace("_", "-"))
    if given:
        raise UserError(
            f"{', '.join(given)}: has no effect {'with' if args.data else 'without'} --data; leave it out"
        )
