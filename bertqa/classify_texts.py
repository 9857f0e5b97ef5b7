"""Classes of texts, where the model is a classifier: `python -m bertqa.predict --text`, or `--data` with a file of texts."""

import argparse
import sys
from itertools import islice

from bertqa import __version__
from bertqa.data.chunks import chunks
from bertqa.data.sources import expand
from bertqa.data.text_windows import text_windows
from bertqa.data.texts import Texts, read_texts
from bertqa.data.tokenizer import WordPiece
from bertqa.device import autocast, pick_device, pick_precision
from bertqa.distributed import World
from bertqa.errors import UserError
from bertqa.files import to_json
from bertqa.inference import class_logits
from bertqa.jobs import Job, data_fingerprint, model_fingerprint, stop_on_sigterm
from bertqa.model import folder, prepack
from bertqa.training.classification import probabilities

SHARE = 4096
"""Texts of a file that are classified, and written, together."""


def classify(args: argparse.Namespace, config: dict, world: World) -> int:
    """Print the classes of one text, or write a line of predictions.jsonl for each text of the files."""
    if config["head"] != folder.CLASSES:
        raise UserError(
            f"{args.model}: its head is {config['head']!r}, but --text needs a classifier; train one first: "
            "python -m bertqa.train --task classify"
        )
    trained = {"text_column": "text", "pair_column": None, **folder.read_qa(args.model)}
    classifier = Classifier(args, config, trained.get("max_length"))
    second = args.pair_column or trained["pair_column"]
    if args.data:
        return classify_files(
            args, classifier, args.text_column or trained["text_column"], second, world
        )
    if second and args.pair is None:
        raise UserError(
            f"{args.model}: classifies pairs ({trained['text_column']}, {second}); give --pair TEXT too"
        )
    pairs = None if args.pair is None else [args.pair]
    (found,) = classifier.classes([args.text], pairs)
    if args.json:
        print(to_json({"label": next(iter(found)), "probabilities": found}))
    else:
        for label, share in found.items():
            print(f"{label}   [probability {share:.3f}]")
    return 0


class Classifier:
    """The model that the flags ask for. `cut` counts the texts that lost their end."""

    def __init__(self, args: argparse.Namespace, config: dict, most: int | None):
        self.labels = config["labels"]
        self.most = most or config["architecture"]["max_position_embeddings"]  # tokens
        self.device = pick_device(args.device)
        self.dtype = pick_precision(args.precision, self.device)
        self.tokenizer = WordPiece.load(args.model)
        self.model = prepack.pack(folder.load(args.model, device=self.device), self.dtype)
        self.cut = 0

    def classes(
        self, texts: list[str], pairs: list[str] | None, world=None, progress=None
    ) -> list[dict]:
        """Class -> probability of each text, or pair of texts, the most probable first."""
        windows = text_windows(texts, self.tokenizer, pairs=pairs, max_length=self.most)
        self.cut += windows.cut
        cast = autocast(self.device, self.dtype)
        logits, _ = class_logits(
            self.model, windows, self.device, autocast=cast, progress=progress, world=world
        )
        if self.cut and pairs is None and len(texts) == 1:
            print(f"1 of 1 texts cut to {self.most} tokens", file=sys.stderr)
        return probabilities(logits, self.labels)


def classify_files(
    args: argparse.Namespace, classifier: Classifier, column: str, second: str | None, world: World
) -> int:
    """Append a line to predictions.jsonl for each text of the files; what is written stays, and --resume goes on."""
    stop_on_sigterm()
    paths = expand(args.data)
    texts = read_all(paths, None if column == "text" and not second else column, second, args.limit)
    job = None
    if world.first:
        about = {
            "bertqa": __version__,
            "data": data_fingerprint(paths),
            "model": model_fingerprint(args.model),
            "precision": str(classifier.dtype),
            "limit": args.limit,
            "columns": [column, second],
        }
        job = Job(args.out, about, args.resume)
    done = world.gather(job.done if job else 0)[0]
    done -= done % SHARE if done < len(texts) else 0
    if job:
        job.keep(done)
    rest = range(done, len(texts))
    for share in chunks(rest, SHARE):
        rows = texts.select(share)
        found = classifier.classes(rows.texts, rows.pairs, world, "classify")
        if job:
            named = zip(rows.ids, found, strict=True)
            job.append(
                [{"id": id, "label": next(iter(one)), "probabilities": one} for id, one in named]
            )
    if classifier.cut:
        print(
            f"{classifier.cut:,} of {len(rest):,} texts cut to {classifier.most} tokens",
            file=sys.stderr,
        )
    if job:
        print(f"classes of {len(texts):,} texts in {job.lines}", file=sys.stderr)
    return 0


def read_all(paths: list, column: str | None, second: str | None, limit: int | None) -> Texts:
    """The texts of all files, as one. Those without ids are numbered throughout."""
    found = [read_texts(path, column, pair_column=second, limit=limit) for path in paths]
    first, *others = found
    for other in others:
        numbered = other.ids == [str(number) for number in range(len(other))]
        first.ids += [str(len(first) + n) for n in range(len(other))] if numbered else other.ids
        first.where += other.where
        first.texts += other.texts
        if second:
            first.pairs += other.pairs
    return first.select(list(islice(range(len(first)), limit)))
