"""python -m bertqa.predict: answer questions from files, from the command line, at a prompt or through a pipe; classify texts.

`bertqa.Reader` does the same from Python.
"""

import argparse
import math
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from bertqa.distributed import World, world_of_torchrun
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

HELP = {
    "--model": "model folder, run folder, Hugging Face folder or Hub id; several readers of one vocabulary answer by the mean "
    "of their logits, with the first one's settings and the mean of their thresholds [%(default)s]",
    "--data": "files of questions or texts, of any form that train reads, or of a text per line; folders, patterns, - for "
    "standard input; answers and labels in them are not used; squad1 and squad2 are the official dev files, fetched once",
    "--out": "where predictions.jsonl goes, and at the end predictions.json, null_odds.json, na_prob.json",
    "--resume": "go on with what --out holds, if it is this very job",
    "--limit": "only the first N questions or texts of the files [all]",
    "--n-best": "also nbest_predictions.json, N spans a question",
    "--decoding": "which spans: the true best, or those that run_qa or Google's run_squad would pick [exact]",
    "--max-context": "a span counts only in the window that shows most context around its first token, as in Google's scripts",
    "--on-error": 'what becomes of a record or line that is no question: {"id", "error"} in its place, or the end [write]',
    "--question": "one question",
    "--context": "the text to find its answer in",
    "--context-file": "a file with that text; - reads standard input",
    "--jsonl": 'read {"question", "context", "id"} objects from standard input, one a line, and write an answer object for '
    "each",
    "--json": "print answers, or classes, as JSON",
    "--top-k": "answers to show for a question [1]",
    "--threshold": "null odds above which there is no answer: a number, or none to always answer [as tuned with the model]",
    "--max-answer-length": "most tokens of an answer [as trained]",
    "--whole-words": "widen answers that end inside a word",
    "--text": "one text to classify",
    "--pair": "its second text, for a classifier of pairs",
    "--text-column": "column of the texts in the file [as trained]",
    "--pair-column": "column of the second texts [as trained]",
}


@verb
def main(argv: Sequence[str] | None = None) -> int:
    """Do what the flags ask for. Returns the exit status."""
    args = parse_args(argv)
    asked = is_asked(args)
    check(args, asked)
    context = text_asked_about(args)
    # It imports torch, which takes a second: not before all flags are checked.
    from bertqa.device import set_threads

    set_threads(args.threads)
    if asked:
        return answer_asked(args, context)
    with world_of_torchrun() as world:
        return answer_or_classify(args, world)


def threshold_of(args: argparse.Namespace, qa: dict) -> float | None:
    """Return the threshold on null odds: as given, else the model's own; None: always answer."""
    if args.threshold is None:
        return qa.get("null_threshold")
    if args.threshold.lower() == "none":
        return None
    try:
        value = float(args.threshold)
    except ValueError:
        value = math.nan
    if math.isnan(value):
        raise UserError(f"--threshold {args.threshold}: give a number, or none to always answer")
    return value


def load_reader(args: argparse.Namespace) -> Reader:
    """Load the Reader of the model that the flags name, or of several."""
    from bertqa.loading import device_of_verb

    device = device_of_verb(args)
    readers = []
    for name in (args.model, *args.others):
        readers.append(Reader.load(name, device, args.precision, int8=args.int8))
    if args.others:
        return together(readers, args.others)
    return readers[0]


def together(readers: list[Reader], names: Sequence) -> Reader:
    """Make a Reader that answers by the mean of several readers' logits; `names`, of all but the first, are for messages.

    It has the settings of the first, and the mean of the thresholds, since null odds are differences of logits.

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
    model = Ensemble([reader.model for reader in readers])
    thresholds = [reader.qa.get("null_threshold") for reader in readers]
    qa = {**first.qa, "null_threshold": None}
    if None not in thresholds:
        qa["null_threshold"] = sum(thresholds) / len(thresholds)
    qa.pop("confidence", None)  # fitted to one model's scores, not to their mean
    return Reader(model, first.tokenizer, qa, first.device, first.dtype)


def answer_or_classify(args: argparse.Namespace, world: World) -> int:
    """Answer files of questions; or, where the model is a classifier, classify one text or files of texts."""
    from bertqa.loading import folder_of
    from bertqa.model import folder

    names = (args.model, *args.others)
    # In turn, so that one process downloads and converts a model of the Hub.
    args.model, *args.others = world.in_turn(lambda: [folder_of(name) for name in names])
    config = folder.read_config(args.model)
    if args.others or (args.data and config["head"] != folder.CLASSES):
        return answer_files(args, world)
    from bertqa.classify_texts import classify

    return classify(args, config, world)


def answer_files(args: argparse.Namespace, world: World) -> int:
    """Answer files of questions; with --int8 also say what it cost."""
    from bertqa.answer_file import answer_file, int8_cost

    reader = load_reader(args)
    threshold = threshold_of(args, reader.qa)
    status = answer_file(args, reader, threshold, world)
    if args.int8 and world.first:
        args.int8 = False  # the first questions again, by the model as it is
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SpeedHint)  # that says: --int8 is faster
            exact = load_reader(args)
        print(int8_cost(args, exact, threshold), file=sys.stderr)
    return status


def answer_asked(args: argparse.Namespace, context: str | None) -> int:
    """Answer what is asked on the command line, at the prompt or through a pipe."""
    from bertqa import prompt
    from bertqa.answer_lines import answer_lines, stdin_lines

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
    # With top_k 2 or more, answer returns a list.
    answers = reader.answer(args.question, context, max(2, args.top_k), **options)
    for answer in answers[: args.top_k]:
        print(prompt.one_line(answer, args.json), flush=True)
    silent = threshold is not None and not answers[0].answer
    if silent and not args.json and sys.stderr.isatty():
        print("--threshold none shows the nearest answer all the same", file=sys.stderr)
    return 0


def text_asked_about(args: argparse.Namespace) -> str | None:
    """Return the text to find answers in; None where none is given. Raises UserError for flags that do not go together."""
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


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = VerbParser(
        prog="python -m bertqa.predict",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EXAMPLES,
        description="Answer questions from their paragraphs, or classify texts: the model folder tells which.",
    )

    def add(group, name: str, *aliases: str, **options) -> None:
        group.add_argument(name, *aliases, help=HELP[name], **options)

    add(parser, "--model", "--weights", nargs="+", default=bundled_reader(), metavar="MODEL")
    add_machine_flags(parser)
    says = "Answers are written as they come; what is written stays, and --resume goes on."
    files = parser.add_argument_group("files", says)
    add(files, "--data", metavar="FILE", nargs="+")
    add(files, "--out", metavar="FOLDER", type=Path)
    add(files, "--resume", action="store_true")
    add(files, "--limit", type=int)
    add(files, "--n-best", type=int, metavar="N")
    add(files, "--decoding", default="exact", choices=["exact", "hf", "google"])
    add(files, "--max-context", action="store_true")
    add(files, "--on-error", default="write", choices=["write", "stop"])
    says = "Without --question, questions are asked at a prompt, or read one per line from a pipe."
    questions = parser.add_argument_group("one question, or many about one text", says)
    add(questions, "--question")
    add(questions, "--context")
    add(questions, "--context-file", metavar="FILE")
    add(questions, "--jsonl", action="store_true")
    add(questions, "--json", action="store_true")
    answers = parser.add_argument_group("answers")
    add(answers, "--top-k", type=int, default=1)
    add(answers, "--threshold")
    add(answers, "--max-answer-length", type=int)
    add(answers, "--whole-words", action="store_true")
    classes = parser.add_argument_group("classes")
    add(classes, "--text")
    add(classes, "--pair", metavar="TEXT")
    add(classes, "--text-column", metavar="NAME")
    add(classes, "--pair-column", metavar="NAME")
    args = parser.parse_args(argv)
    if isinstance(args.model, str):  # the default
        args.model = [args.model]
    args.model, *args.others = args.model
    return args


def is_asked(args: argparse.Namespace) -> bool:
    """Return whether questions come from the command line, the terminal or a pipe, and not from files."""
    given = (args.question, args.context, args.context_file)
    if args.jsonl or given != (None, None, None):
        return True
    return not args.data and args.text is None and sys.stdin.isatty()


def check(args: argparse.Namespace, asked: bool) -> None:
    """Raise UserError for flags that do not go together, before anything is loaded."""
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
