"""python -m bertqa.predict: answers for a file, or for one question; classes of texts, where the model is a classifier.

`Reader` is the same thing in Python.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bertqa.errors import UserError
from bertqa.flags import run_verb

CHUNK = 2048
"""Questions whose windows are laid and sorted by length together: memory is bounded by it, not by the file."""


@dataclass(frozen=True)
class Answer:
    """An answer cut from its context. `dataclasses.asdict` gives what transformers 4's pipeline returned, and more."""

    answer: str
    """"" where the context has no answer."""
    score: float
    """Probability among the n best spans and the null answer, in [0, 1]."""
    start: int
    """First character of the answer in the context; 0 where there is none."""
    end: int
    """One past its last character."""


class Reader:
    """A model folder ready to answer questions. Reading is safe from several threads.

    >>> Reader.load("weights/minilm-squad2").answer("Who came?", "Ada came at noon.").answer  # doctest: +SKIP
    'Ada'
    """

    def __init__(self, model, tokenizer, qa: dict, device, dtype=None):
        self.model, self.tokenizer, self.qa, self.device, self.dtype = model.eval(), tokenizer, qa, device, dtype

    @classmethod
    def load(cls, name: str | Path, device: str = "auto", precision: str = "auto") -> "Reader":
        """Load a model folder, a Hugging Face folder or a Hub id.

        Raises:
            UserError: where there is no such model, or it has no answer head.
        """
        from bertqa.data.tokenizer import WordPiece
        from bertqa.model import folder, hf
        from bertqa.training.precision import pick_device, pick_precision

        where, device = Path(hf.resolve_weights(name)), pick_device(device)
        config = folder.read_config(where)
        if config["head"] != folder.QA:
            raise UserError(f"{where}: its head is {config['head']!r}, but answering needs {folder.QA!r}; fine-tune it first: "
                            "python -m bertqa.train --weights ... --fresh-head")
        qa = folder.read_qa(where)
        # A folder that was converted and never trained here says nothing about windows: the pipeline's defaults.
        length = qa.setdefault("max_length", min(384, config["architecture"]["max_position_embeddings"]))
        asked = qa.setdefault("max_question", min(64, length // 2))
        if "step" not in qa:
            qa.setdefault("overlap", min(128, (length - asked) // 2))
        return cls(folder.load(where, device=device), WordPiece.load(where), qa, device, pick_precision(precision, device))

    def answer(self, question: str, context: str, top_k: int = 1, **options) -> Answer | list[Answer]:
        """The best answer, or the `top_k` best in a list where top_k > 1; options as those of `answer_many`."""
        return next(self.answer_many([(question, context)], top_k, **options))

    def answer_many(self, pairs: Iterable[tuple[str, str]], top_k: int = 1, *, allow_no_answer: bool = True,
                    threshold: float | None = None, max_answer_length: int | None = None) -> Iterator:
        """Answers for (question, context) pairs, in their order, a chunk at a time.

        Args:
            top_k: 1 yields an Answer for each pair, more yields lists.
            allow_no_answer: "" where the null odds exceed the threshold that was tuned with the model.
            threshold: another one to use in its place.
            max_answer_length: most tokens of an answer; as trained where None.
        """
        from bertqa.data.examples import Example
        from bertqa.qa.spans import n_best, null_odds
        from bertqa.qa.thresholds import abstain

        if top_k < 1:
            raise UserError(f"top_k is {top_k}; use 1 or more")
        if threshold is None:
            threshold = self.qa.get("null_threshold")
        threshold = threshold if allow_no_answer else None
        for chunk in chunks(pairs, CHUNK):
            examples = [Example(str(i), question, context, (), ()) for i, (question, context) in enumerate(chunk)]
            spans, windows = self.spans(examples, n=max(20, top_k), max_answer_length=max_answer_length)
            silent = abstain(null_odds(spans), threshold)
            for abstains, ranked in zip(silent, n_best(spans, windows, examples, no_answer=threshold is not None),
                                        strict=True):
                # The threshold decides which comes first, "" or the best span; the others keep their order.
                first = [entry for entry in ranked if (entry["text"] == "") == bool(abstains)][:1]
                ordered = first + [entry for entry in ranked if entry is not first[0]] if first else ranked
                answers = [Answer(entry["text"], entry["probability"], entry["start"], entry["end"])
                           for entry in ordered[:top_k]] or [Answer("", 0.0, 0, 0)]
                yield answers[0] if top_k == 1 else answers

    def spans(self, examples, n: int = 20, max_answer_length: int | None = None, progress: str | None = None):
        """(Spans, Windows) of examples: what decoding, scoring and files are made from."""
        from bertqa.data.windows import build_windows
        from bertqa.inference import find_spans
        from bertqa.qa.spans import SpanSettings
        from bertqa.training.precision import autocast

        windows = build_windows(examples, self.tokenizer, max_length=self.qa["max_length"], overlap=self.qa.get("overlap"),
                                step=self.qa.get("step"), max_question=self.qa["max_question"])
        settings = SpanSettings(n, max_answer_length or self.qa.get("max_answer_length", 30))
        cast = autocast(self.device, self.dtype) if self.dtype is not None else None
        return find_spans(self.model, windows, self.device, settings, autocast=cast, progress=progress)[0], windows


def chunks(items: Iterable, size: int) -> Iterator[list]:
    """Consecutive lists of `size` items, the last one shorter."""
    chunk: list = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    from bertqa.train import bundled_reader

    parser = argparse.ArgumentParser(
        prog="python -m bertqa.predict",
        description="Answer questions from their paragraphs, or classify texts: the model folder tells which.",
        epilog="example: python -m bertqa.predict --question 'Who came?' --context 'Ada came at noon.'")
    parser.add_argument("--model", default=bundled_reader(), help="model folder, Hugging Face folder or Hub id [%(default)s]")
    parser.add_argument("--data", metavar="FILE", help="questions or texts, of any form that train reads, texts also a line each; "
                                                       "answers and labels in it are not used")
    parser.add_argument("--out", metavar="FOLDER", help="where predictions.json, nbest_predictions.json, null_odds.json go; of a "
                                                       "classifier: predictions.jsonl")
    parser.add_argument("--question", help="one question")
    parser.add_argument("--context", help="the text to find its answer in")
    parser.add_argument("--context-file", metavar="FILE", help="a file with that text; - reads standard input")
    parser.add_argument("--top-k", type=int, default=1, help="answers to show for one question [1]")
    parser.add_argument("--threshold", help="null odds above which there is no answer: a number, or none to always answer "
                                            "[as tuned with the model]")
    parser.add_argument("--max-answer-length", type=int, help="most tokens of an answer [as trained]")
    parser.add_argument("--text", help="one text to classify")
    parser.add_argument("--pair", metavar="TEXT", help="its second text, for a classifier of pairs")
    parser.add_argument("--text-column", metavar="NAME", help="column of the texts in the file [as trained]")
    parser.add_argument("--pair-column", metavar="NAME", help="column of the second texts [as trained]")
    parser.add_argument("--limit", type=int, help="only the first N questions or texts of the file")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"])
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16", "fp16"])
    parser.add_argument("--json", action="store_true", help="print the answers to one question as JSON")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Answer a file or one question. Returns the exit status."""
    args = parse_args(argv)
    if bool(args.data) + bool(args.question) + (args.text is not None) != 1:
        raise UserError("give either --data FILE --out FOLDER, or --question with --context or --context-file, or, for a "
                        "classifier, --text")
    if args.data and not args.out:
        raise UserError("--data needs --out FOLDER, where the predictions go")
    if args.question:
        return answer_one(args)
    from bertqa.model import folder, hf

    args.model = Path(hf.resolve_weights(args.model))
    config = folder.read_config(args.model)
    return answer_file(args) if args.data and config["head"] != folder.CLASSES else classify(args, config)


def classify(args, config: dict) -> int:
    """Print the classes of one text, or write a line of predictions.jsonl for each text of a file."""
    from bertqa.data.texts import Texts, read_texts
    from bertqa.data.tokenizer import WordPiece
    from bertqa.data.windows import text_windows
    from bertqa.inference import class_logits
    from bertqa.model import folder
    from bertqa.training.classification import probabilities, write_predictions
    from bertqa.training.precision import autocast, pick_device, pick_precision

    if config["head"] != folder.CLASSES:
        raise UserError(f"{args.model}: its head is {config['head']!r}, but --text needs a classifier; train one first: "
                        "python -m bertqa.train --task classify")
    trained = {"text_column": "text", "pair_column": None, **folder.read_qa(args.model)}
    second = args.pair_column or trained["pair_column"]
    if args.data:
        column = args.text_column or trained["text_column"]
        texts = read_texts(args.data, None if column == "text" and not second else column, pair_column=second,
                           limit=args.limit)
    elif second and args.pair is None:
        raise UserError(f"{args.model}: classifies pairs ({trained['text_column']}, {second}); give --pair TEXT too")
    else:
        texts = Texts("--text", "", [""], [""], [args.text], None if args.pair is None else [args.pair])
    device, labels = pick_device(args.device), config["labels"]
    windows = text_windows(texts.texts, WordPiece.load(args.model), pairs=texts.pairs, progress=args.data and "tokenise",
                           max_length=trained.get("max_length", config["architecture"]["max_position_embeddings"]))
    logits, _ = class_logits(folder.load(args.model, device=device), windows, device, progress=args.data and "classify",
                             autocast=autocast(device, pick_precision(args.precision, device)))
    if args.data:
        Path(args.out).mkdir(parents=True, exist_ok=True)
        write_predictions(Path(args.out) / "predictions.jsonl", texts.ids, logits, labels)
        cut = f", {windows.cut_questions:,} cut to what the model reads" if windows.cut_questions else ""
        print(f"classes of {len(texts):,} texts in {Path(args.out) / 'predictions.jsonl'}{cut}", file=sys.stderr)
        return 0
    found = probabilities(logits, labels)[0]
    if args.json:
        print(json.dumps({"label": next(iter(found)), "probabilities": found}, ensure_ascii=False))
    else:
        print("\n".join(f"{label}   [probability {share:.3f}]" for label, share in found.items()))
    return 0


def threshold_of(args, qa: dict) -> float | None:
    """The threshold in force: the model's own, or the one given."""
    if args.threshold is None:
        return qa.get("null_threshold")
    if args.threshold.lower() == "none":
        return None
    try:
        return float(args.threshold)
    except ValueError:
        raise UserError(f"--threshold {args.threshold}: give a number, or none to always answer") from None


def answer_one(args) -> int:
    """Print the answers to one question."""
    if (args.context is None) == (args.context_file is None):
        raise UserError("--question needs a text: give either --context or --context-file")
    context = args.context
    if args.context_file:
        try:
            context = sys.stdin.read() if args.context_file == "-" else Path(args.context_file).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{args.context_file}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    reader = Reader.load(args.model, args.device, args.precision)
    threshold = threshold_of(args, reader.qa)
    answers = reader.answer(args.question, context, max(2, args.top_k), allow_no_answer=threshold is not None,
                            threshold=threshold, max_answer_length=args.max_answer_length)[: args.top_k]
    for answer in answers:
        if args.json:
            print(json.dumps(dataclasses.asdict(answer), ensure_ascii=False))
        else:
            print(f"{answer.answer or '(no answer in this text)'}   [score {answer.score:.3f}"
                  + (f", characters {answer.start} to {answer.end}]" if answer.answer else "]"))
    return 0


def answer_file(args) -> int:
    """Write the three prediction files, a chunk of questions at a time."""
    from tqdm import tqdm

    from bertqa.data.examples import read_examples
    from bertqa.qa.spans import prediction_files

    data = read_examples(args.data, args.limit)
    print(f"{args.data}: {data.summary()}", file=sys.stderr)
    reader, out = Reader.load(args.model, args.device, args.precision), Path(args.out)
    threshold = threshold_of(args, reader.qa)
    out.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        files = {name: stack.enter_context(JsonObject(out / name))
                 for name in ("predictions.json", "nbest_predictions.json", "null_odds.json")}
        bar = stack.enter_context(tqdm(total=len(data.examples), unit=" questions", desc="answer", dynamic_ncols=True))
        for chunk in chunks(data.examples, CHUNK):
            spans, windows = reader.spans(chunk, max_answer_length=args.max_answer_length)
            for name, content in prediction_files(spans, windows, chunk, threshold).items():
                files[name].update(content)
            bar.update(len(chunk))
    print(f"answers in {out}, threshold {'none' if threshold is None else f'{threshold:.4f}'}", file=sys.stderr)
    return 0


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
            self.file.write(("\n" if self.empty else ",\n") + json.dumps(key) + ": " + json.dumps(value))
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
