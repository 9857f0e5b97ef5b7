"""python -m bertqa.predict: answers for files, for one question, at a prompt or through a pipe; classes of texts, where
the model is a classifier. `bertqa.Reader` is the same thing in Python.
"""

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from bertqa.errors import SpeedHint, UserError
from bertqa.files import read_text
from bertqa.flags import VerbParser, add_machine_flags, run_verb, verb
from bertqa.folders import bundled_reader
from bertqa.reader import Reader

EXAMPLES = """examples:
  python -m bertqa.predict --question 'Who kept the lamp?' --context 'Agnes Holm kept the lamp for thirty years.'
  python -m bertqa.predict --context-file report.txt                      then ask, again and again
  python -m bertqa.predict --data questions.json --out answers
  python -m bertqa.predict --jsonl < questions.jsonl > answers.jsonl"""


@verb
def main(argv: Sequence[str] | None = None) -> int:
    """Do what the flags ask for. Returns the exit status."""
    args = parse_args(argv)
    asked = is_asked(args)
    check(args, asked)
    if asked:
        return answer_asked(args)
    from bertqa.device import set_threads
    from bertqa.distributed import world_of_torchrun
    from bertqa.hf.convert import resolve_weights
    from bertqa.model import folder

    # Files are shared by torchrun's processes; what is asked at a prompt has but one of them.
    with world_of_torchrun() as world:
        set_threads(args.threads)
        names = [args.model, *args.others]
        args.model, *args.others = world.in_turn(lambda: [*map(resolve_weights, names)])
        config = folder.read_config(args.model)
        if args.others or (args.data and config["head"] != folder.CLASSES):
            return answer_files(args, world)
        from bertqa.classify_texts import classify

        return classify(args, config, world)


def threshold_of(args: argparse.Namespace, qa: dict) -> float | None:
    """The threshold in force: the model's own, or the one given."""
    if args.threshold is None:
        return qa.get("null_threshold")
    if args.threshold.lower() == "none":
        return None
    try:
        value = float(args.threshold)
        if value != value:
            raise ValueError("not a number")
        return value
    except ValueError:
        raise UserError(
            f"--threshold {args.threshold}: give a number, or none to always answer"
        ) from None


def load_reader(args: argparse.Namespace) -> Reader:
    """The Reader that the flags ask for, of one model or of several."""
    from bertqa.device import pick_device
    from bertqa.loading import device_for

    device = pick_device(device_for(args.device, args.precision, args.int8))
    readers = []
    for name in (args.model, *args.others):
        readers.append(Reader.load(name, device, args.precision, int8=args.int8))
    if args.others:
        return together(readers, args.others)
    return readers[0]


def together(readers: list[Reader], names: Sequence) -> Reader:
    """A Reader of the mean of several readers' logits; `names` are of all but the first, for messages.

    Settings are the first one's; the threshold is the mean of theirs, for null odds are differences of logits.

    Raises:
        UserError: where their vocabularies differ.
    """
    from bertqa.data.tokenizer import vocabulary_difference
    from bertqa.model.heads import Ensemble

    first = readers[0]
    for reader, name in zip(readers[1:], names, strict=True):
        differs = vocabulary_difference(reader.tokenizer.tokenizer, first.tokenizer.tokenizer)
        if differs:
            raise UserError(f"--model {name}: its vocabulary is not the first model's: {differs}")
    thresholds = [reader.qa.get("null_threshold") for reader in readers]
    mean = None
    if None not in thresholds:
        mean = sum(thresholds) / len(thresholds)
    model = Ensemble([reader.model for reader in readers])
    qa = {**first.qa, "null_threshold": mean}
    qa.pop("confidence", None)  # it was fitted to one model's scores, and these are others
    return Reader(model, first.tokenizer, qa, first.device, first.dtype)


def answer_files(args: argparse.Namespace, world) -> int:
    """Answer files of questions; with --int8 also say what it cost."""
    from bertqa.answer_file import answer_file, int8_cost

    reader = load_reader(args)
    threshold = threshold_of(args, reader.qa)
    status = answer_file(args, reader, threshold, world)
    if args.int8 and world.first:
        args.int8 = False  # the same questions, by the model as it is
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SpeedHint)  # who chose int8 knows
            exact = load_reader(args)
        print(int8_cost(args, exact, threshold), file=sys.stderr)
    return status


def answer_asked(args: argparse.Namespace) -> int:
    """Answer what is asked on the command line, at the prompt or through a pipe."""
    from bertqa import prompt
    from bertqa.answer_lines import answer_lines, stdin_lines
    from bertqa.device import set_threads

    set_threads(args.threads)
    # What is wrong with the text is said before the model is loaded, which takes seconds.
    context = text_asked_about(args)
    if context is None and not args.jsonl:
        context = prompt.paste()
    if args.context_file == "-" and not args.question:
        prompt.stdin_from_terminal()
    reader = load_reader(args)
    threshold = threshold_of(args, reader.qa)
    options = dict(
        allow_no_answer=threshold is not None,
        threshold=threshold,
        max_answer_length=args.max_answer_length,
        whole_words=args.whole_words,
    )
    if args.jsonl:
        return answer_lines(
            reader, stdin_lines(), sys.stdout, context, args.top_k, options, args.on_error
        )
    if not args.question:
        return prompt.ask_again(reader, context, options, args.json, args.top_k)
    # Two at least: with one, an Answer comes back and not a list.
    answers = reader.answer(args.question, context, max(2, args.top_k), **options)
    for answer in answers[: args.top_k]:
        print(prompt.one_line(answer, args.json), flush=True)
    silent = threshold is not None and not answers[0].answer
    if silent and not args.json and sys.stderr.isatty():
        print("--threshold none shows the nearest answer all the same", file=sys.stderr)
    return 0


def text_asked_about(args: argparse.Namespace) -> str | None:
    """The text to find answers in, None where none is given. Raises UserError for flags that do not go together."""
    if args.top_k < 1:
        raise UserError(f"--top-k {args.top_k}: give 1 or more")
    if args.question is not None and args.jsonl:
        raise UserError("--jsonl reads its questions from standard input; leave out --question")
    if args.context is not None and args.context_file is not None:
        raise UserError("there are two texts: give either --context or --context-file")
    if args.context_file == "-" and args.jsonl:
        raise UserError(
            "--context-file - and --jsonl both read standard input; give the text as a file"
        )
    context = args.context if args.context_file is None else read_text(args.context_file)
    if args.question is not None and context is None:
        raise UserError("--question needs a text: give either --context or --context-file")
    if args.question is not None and not args.question.strip():
        raise UserError("--question is empty; leave it out to be asked at a prompt")
    if context is not None and not context.strip() and not args.jsonl:
        raise UserError("the text to ask about is empty")
    return context


# Flags


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = VerbParser(
        prog="python -m bertqa.predict",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EXAMPLES,
        description="Answer questions from their paragraphs, or classify texts: the model folder tells which.",
    )
    add = parser.add_argument
    bundled = bundled_reader()
    says = "model folder, run folder, Hugging Face folder or Hub id; several readers of one vocabulary answer by the mean of "
    says += (
        f"their logits, with the first one's settings and the mean of their thresholds [{bundled}]"
    )
    add("--model", "--weights", nargs="+", default=[bundled], metavar="MODEL", help=says)
    add_machine_flags(parser)
    add_file_flags(parser)
    add_question_flags(parser)
    args = parser.parse_args(argv)
    args.model, *args.others = args.model
    return args


def add_file_flags(parser: argparse.ArgumentParser) -> None:
    says = "Answers are written as they come; what is written stays, and --resume goes on."
    add = parser.add_argument_group("files", says).add_argument
    says = "files of questions or texts, of any form that train reads, or of a text per line; folders, patterns, - for "
    says += "standard input; answers and labels in them are not used; squad1 and squad2 are the official dev files, fetched once"
    add("--data", metavar="FILE", nargs="+", help=says)
    says = "where predictions.jsonl goes, and at the end predictions.json, null_odds.json, na_prob.json"
    add("--out", metavar="FOLDER", type=Path, help=says)
    says = "go on with what --out holds, if it is this very job"
    add("--resume", action="store_true", help=says)
    add("--limit", type=int, help="only the first N questions or texts of the files [all]")
    says = "also nbest_predictions.json, N spans a question"
    add("--n-best", type=int, metavar="N", help=says)
    says = (
        "which spans: the true best, or those that run_qa or Google's run_squad would pick [exact]"
    )
    add("--decoding", default="exact", choices=["exact", "hf", "google"], help=says)
    says = "a span counts only in the window that shows most context around its first token, as in Google's scripts"
    add("--max-context", action="store_true", help=says)
    says = 'what becomes of a record or line that is no question: {"id", "error"} in its place, or the end [write]'
    add("--on-error", default="write", choices=["write", "stop"], help=says)


def add_question_flags(parser: argparse.ArgumentParser) -> None:
    title = "one question, or many about one text"
    says = "Without --question, questions are asked at a prompt, or read one per line from a pipe."
    add = parser.add_argument_group(title, says).add_argument
    add("--question", help="one question")
    add("--context", help="the text to find its answer in")
    add("--context-file", metavar="FILE", help="a file with that text; - reads standard input")
    says = 'read {"question", "context", "id"} objects from standard input, one a line, and write an answer object for each'
    add("--jsonl", action="store_true", help=says)
    add("--json", action="store_true", help="print answers, or classes, as JSON")

    add = parser.add_argument_group("answers").add_argument
    add("--top-k", type=int, default=1, help="answers to show for a question [1]")
    says = "null odds above which there is no answer: a number, or none to always answer [as tuned with the model]"
    add("--threshold", help=says)
    add("--max-answer-length", type=int, help="most tokens of an answer [as trained]")
    add("--whole-words", action="store_true", help="widen answers that end inside a word")

    add = parser.add_argument_group("classes").add_argument
    add("--text", help="one text to classify")
    add("--pair", metavar="TEXT", help="its second text, for a classifier of pairs")
    add("--text-column", metavar="NAME", help="column of the texts in the file [as trained]")
    add("--pair-column", metavar="NAME", help="column of the second texts [as trained]")


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


if __name__ == "__main__":
    raise SystemExit(run_verb(main))
