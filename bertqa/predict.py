"""python -m bertqa.predict: answers for files, for one question, at a prompt or through a pipe; classes of texts, where
the model is a classifier. `bertqa.Reader` is the same thing in Python.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bertqa.errors import UserError
from bertqa.files import read_text
from bertqa.flags import run_verb, verb
from bertqa.predict_flags import check, is_asked, parse_args
from bertqa.reader import Reader


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

    with world_of_torchrun() as world:
        set_threads(args.threads)
        args.model = Path(world.in_turn(lambda: resolve_weights(args.model)))
        args.others = world.in_turn(lambda: [Path(resolve_weights(name)) for name in args.others])
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

    device = pick_device(args.device)
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
    known = [value for value in thresholds if value is not None]
    mean = sum(known) / len(known) if len(known) == len(readers) else None
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
        args.int8 = False
        print(int8_cost(args, load_reader(args), threshold), file=sys.stderr)
    return status


def answer_asked(args: argparse.Namespace) -> int:
    """Answer what is asked on the command line, at the prompt or through a pipe."""
    from bertqa import prompt
    from bertqa.answer_lines import answer_lines, stdin_lines
    from bertqa.device import set_threads

    set_threads(args.threads)
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


if __name__ == "__main__":
    raise SystemExit(run_verb(main))
