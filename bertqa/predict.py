"""python -m bertqa.predict: answers for a file, for one question, at a prompt or through a pipe; classes of texts, where
the model is a classifier. `bertqa.Reader` is the same thing in Python.
"""

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from bertqa.data.chunks import chunks
from bertqa.errors import UserError
from bertqa.flags import VerbParser, run_verb
from bertqa.reader import QUESTIONS_AT_ONCE, Reader

COMPARED = 512
"""Questions on which --int8 is held against the model as it is."""

EXAMPLES = """examples:
  python -m bertqa.predict --question 'Who kept the lamp?' --context 'Agnes Holm kept the lamp for thirty years.'
  python -m bertqa.predict --context-file report.txt                      then ask, again and again
  python -m bertqa.predict --data questions.json --out answers
  python -m bertqa.predict --jsonl < questions.jsonl > answers.jsonl"""


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    from bertqa.settings import bundled_reader

    parser = VerbParser(
        prog="python -m bertqa.predict",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EXAMPLES,
        description="Answer questions from their paragraphs, or classify texts: the model folder tells which.",
    )
    parser.add_argument(
        "--model",
        default=bundled_reader(),
        help="model folder, Hugging Face folder or Hub id [%(default)s]",
    )
    parser.add_argument(
        "--device",
        default="auto",
        choices=["auto", "cpu", "cuda", "mps"],
        help="where to run [auto]",
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
    group = parser.add_argument_group("a file")
    group.add_argument(
        "--data",
        metavar="FILE",
        help="questions or texts, of any form that train reads, or a text per line; "
        "answers and labels in it are not used; squad1 and squad2 are the "
        "official dev files, fetched once",
    )
    group.add_argument(
        "--out",
        metavar="FOLDER",
        help="where predictions.json, nbest_predictions.json, null_odds.json go; "
        "a classifier's predictions.jsonl",
    )
    group.add_argument(
        "--limit", type=int, help="only the first N questions or texts of the file [all]"
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
        help="a span counts only in the window that shows most context "
        "around its first token, as in Google's scripts",
    )
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
        help='read {"question", "context", "id"} objects from standard input, '
        "one a line, and write an answer object for each",
    )
    group.add_argument("--json", action="store_true", help="print answers, or classes, as JSON")
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
        "--whole-words",
        action="store_true",
        help="widen answers that end inside a word (not with --data)",
    )
    group = parser.add_argument_group("classes")
    group.add_argument("--text", help="one text to classify")
    group.add_argument("--pair", metavar="TEXT", help="its second text, for a classifier of pairs")
    group.add_argument(
        "--text-column", metavar="NAME", help="column of the texts in the file [as trained]"
    )
    group.add_argument(
        "--pair-column", metavar="NAME", help="column of the second texts [as trained]"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the flags ask for. Returns the exit status."""
    args = parse_args(argv)
    texts = args.context is not None or args.context_file is not None
    ask = (
        args.question is not None
        or args.jsonl
        or texts
        or not args.data
        and args.text is None
        and sys.stdin.isatty()
    )
    if bool(args.data) + bool(ask) + (args.text is not None) != 1:
        raise UserError(
            "give either --data FILE --out FOLDER, or --question with --context or --context-file, or one of "
            "these alone for a prompt, or --jsonl, or, for a classifier, --text"
        )
    if args.data and not args.out:
        raise UserError("--data needs --out FOLDER, where the predictions go")
    ignored = (
        {"json": False, "whole_words": False, "top_k": 1, "pair": None}
        if args.data
        else {"out": None, "limit": None, "decoding": "exact", "max_context": False}
    )
    given = [
        "--" + name.replace("_", "-")
        for name, default in ignored.items()
        if getattr(args, name) != default
    ]
    if given:
        raise UserError(
            f"{', '.join(given)}: has no effect {'with' if args.data else 'without'} --data; leave it out"
        )
    if ask:
        return answer_asked(args)
    from bertqa.distributed import world_of_torchrun
    from bertqa.hf.resolve import resolve_weights
    from bertqa.model import folder

    with world_of_torchrun() as world:
        args.model = Path(world.in_turn(lambda: resolve_weights(args.model)))
        config = folder.read_config(args.model)
        verb = answer_file if args.data and config["head"] != folder.CLASSES else classify
        return verb(args, config, world)


def classify(args, config: dict, world) -> int:
    """Print the classes of one text, or write a line of predictions.jsonl for each text of a file."""
    from bertqa.data.texts import Texts, read_texts
    from bertqa.model import folder
    from bertqa.training.classification import probabilities, write_predictions

    if config["head"] != folder.CLASSES:
        raise UserError(
            f"{args.model}: its head is {config['head']!r}, but --text needs a classifier; train one first: "
            "python -m bertqa.train --task classify"
        )
    trained = {"text_column": "text", "pair_column": None, **folder.read_qa(args.model)}
    second = args.pair_column or trained["pair_column"]
    if args.data:
        column = args.text_column or trained["text_column"]
        texts = read_texts(
            args.data,
            None if column == "text" and not second else column,
            pair_column=second,
            limit=args.limit,
        )
    elif second and args.pair is None:
        raise UserError(
            f"{args.model}: classifies pairs ({trained['text_column']}, {second}); give --pair TEXT too"
        )
    else:
        texts = Texts(
            "--text", "", [""], [""], [args.text], None if args.pair is None else [args.pair]
        )
    most = trained.get("max_length", config["architecture"]["max_position_embeddings"])
    logits, cut = logits_of(args, texts, most, world)
    if cut:
        print(f"{cut:,} of {len(texts):,} texts cut to {most} tokens", file=sys.stderr)
    if args.data:
        out = Path(args.out) / "predictions.jsonl"
        if world.first:
            out.parent.mkdir(parents=True, exist_ok=True)
            write_predictions(out, texts.ids, logits, config["labels"])
        print(f"classes of {len(texts):,} texts in {out}", file=sys.stderr)
        return 0
    found = probabilities(logits, config["labels"])[0]
    if args.json:
        print(json.dumps({"label": next(iter(found)), "probabilities": found}, ensure_ascii=False))
    else:
        print("\n".join(f"{label}   [probability {share:.3f}]" for label, share in found.items()))
    return 0


def logits_of(args, texts, max_length: int, world):
    """(logits (R, C) of texts, how many of these were cut); the ranks of `world` share the work."""
    from bertqa.data.text_windows import text_windows
    from bertqa.data.tokenizer import WordPiece
    from bertqa.device import autocast, pick_device, pick_precision
    from bertqa.inference import class_logits
    from bertqa.model import folder, prepack

    device, names = (
        pick_device(args.device),
        ("tokenise", "classify") if args.data else (None, None),
    )
    windows = text_windows(
        texts.texts,
        WordPiece.load(args.model),
        pairs=texts.pairs,
        max_length=max_length,
        progress=names[0],
    )
    dtype = pick_precision(args.precision, device)
    logits, _ = class_logits(
        prepack.pack(folder.load(args.model, device=device), dtype),
        windows,
        device,
        autocast=autocast(device, dtype),
        progress=names[1],
        world=world,
    )
    return logits, windows.cut


def threshold_of(args, qa: dict) -> float | None:
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


def load_reader(args) -> Reader:
    """The Reader that the flags ask for."""
    from bertqa.device import pick_device

    return Reader.load(args.model, pick_device(args.device), args.precision, int8=args.int8)


def answer_asked(args) -> int:
    """Answer what is asked on the command line, at the prompt or through a pipe."""
    from bertqa import prompt

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
        return prompt.answer_lines(
            reader, prompt.stdin_lines(), sys.stdout, context, args.top_k, options
        )
    if not args.question:
        return prompt.ask_again(reader, context, options, args.json, args.top_k)
    answers = reader.answer(args.question, context, max(2, args.top_k), **options)[: args.top_k]
    for answer in answers:
        print(prompt.one_line(answer, args.json), flush=True)
    if not answers[0].answer and threshold is not None and not args.json and sys.stderr.isatty():
        print("--threshold none shows the nearest answer all the same", file=sys.stderr)
    return 0


def read_text(path: str) -> str:
    """The text of a file, or of standard input for "-"."""
    try:
        return sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        why = f"not UTF-8 text ({error.reason} at byte {error.start}); save it as plain UTF-8 text"
        raise UserError(f"{path}: {why}") from None


def answer_file(args, config: dict, world) -> int:
    """Write the three prediction files, a chunk of questions at a time; the ranks of `world` take turns at chunks.

    Whole chunks are dealt out, so that what is written is what a single process writes, to the last bit.
    """
    from tqdm import tqdm

    from bertqa.data.examples import read_examples
    from bertqa.qa.answers import prediction_files

    data = read_examples(args.data, args.limit, labelled=False)
    print(f"{args.data}: {data.summary()}", file=sys.stderr)
    reader, out = load_reader(args), Path(args.out)
    threshold = threshold_of(args, reader.qa)
    with contextlib.ExitStack() as stack:
        if world.first:
            out.mkdir(parents=True, exist_ok=True)
            files = {
                name: stack.enter_context(JsonObject(out / name))
                for name in ("predictions.json", "nbest_predictions.json", "null_odds.json")
            }
        bar = stack.enter_context(
            tqdm(
                total=len(data.examples),
                unit=" questions",
                desc="answer",
                dynamic_ncols=True,
                disable=not world.first,
            )
        )
        first_answers: dict = {}
        for turn in chunks(chunks(data.examples, QUESTIONS_AT_ONCE), world.size):
            contents: dict = {}
            if world.rank < len(turn):
                chunk = turn[world.rank]
                spans, windows = reader.spans(chunk, **decoding(args))
                contents = prediction_files(spans, windows, chunk, threshold)
            first_answers = first_answers or contents.get("predictions.json", {})
            for part in world.gather(contents):
                for name, content in part.items() if world.first else ():
                    files[name].update(content)
            bar.update(sum(map(len, turn)))
    print(
        f"answers in {out}, threshold {'none' if threshold is None else f'{threshold:.4f}'}",
        file=sys.stderr,
    )
    if args.int8 and world.first:
        print(int8_cost(args, data.examples, first_answers, threshold), file=sys.stderr)
    return 0


def decoding(args) -> dict:
    """How spans are searched, as keywords of Reader.spans."""
    return dict(
        max_answer_length=args.max_answer_length, mode=args.decoding, max_context=args.max_context
    )


def int8_cost(args, examples: Sequence, answers: dict[str, str], threshold: float | None) -> str:
    """What 8 bits changed: the first questions answered again by the model as it is. `answers` by question id."""
    from bertqa.qa.answers import prediction_files
    from bertqa.qa.metrics import evaluate_v2, score_answers

    args.int8, examples = False, examples[: min(COMPARED, len(answers))]
    spans, windows = load_reader(args).spans(examples, **decoding(args))
    exact = prediction_files(spans, windows, examples, threshold)["predictions.json"]
    same = sum(answers[key] == exact[key] for key in exact) / max(1, len(examples))
    f1 = [evaluate_v2(score_answers(examples, given))["f1"] for given in (answers, exact)]
    known = any(example.answer_texts for example in examples)
    return (
        f"int8: of the first {len(examples):,} questions {same:.1%} have the answer that {args.precision} precision gives"
        + (f"; F1 {f1[0]:.2f} instead of {f1[1]:.2f}" if known else "")
    )


class JsonObject:
    """A JSON object written entry by entry to a temporary name, renamed when the `with` block ends well."""

    def __init__(self, path: Path):
        self.path, self.temporary, self.empty = path, path.with_name(path.name + ".tmp"), True

    def __enter__(self) -> "JsonObject":
        self.file = open(self.temporary, "w", encoding="utf-8")  # noqa: SIM115 (closed by __exit__)
        self.file.write("{")
        return self

    def update(self, entries: dict) -> None:
        """Add entries, one a line."""
        for key, value in entries.items():
            self.file.write(
                ("\n" if self.empty else ",\n") + json.dumps(key) + ": " + json.dumps(value)
            )
            self.empty = False

    def __exit__(self, kind, error, traceback) -> None:
        if kind is None:
            self.file.write("\n}\n")
        self.file.close()
        if kind is None:
            os.replace(self.temporary, self.path)
        else:
            self.temporary.unlink(missing_ok=True)


if __name__ == "__main__":
    raise SystemExit(run_verb(main))
