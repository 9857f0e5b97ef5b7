"""Classify texts: `python -m bertqa.predict --text`, or `--data` with files of texts, where the model is a classifier."""

import argparse
import sys
from collections.abc import Callable, Sequence

from bertqa.data.text_windows import text_windows
from bertqa.data.texts import Text, text_stream
from bertqa.device import autocast
from bertqa.distributed import World
from bertqa.errors import UserError
from bertqa.files import to_json
from bertqa.inference import class_logits, probabilities
from bertqa.jobs import Job
from bertqa.loading import load_for_verb, tell_what_is_faster
from bertqa.model import folder

SHARE = 4096
"""Most texts of a share, which are classified and written together."""


def classify(args: argparse.Namespace, config: dict, world: World) -> int:
    """Print the classes of one text, or write a line of predictions.jsonl for each text of the files.

    Returns:
        The exit status: 1 where a row could not be read.
    """
    if config["head"] != folder.CLASSES:
        raise UserError(
            f"{args.model}: its head is {config['head']!r}, but --text needs a classifier; train one first: "
            "python -m bertqa.train --task classify"
        )
    classifier = Classifier(args, config)
    trained = {"text_column": "text", "pair_column": None, **classifier.loaded.qa}
    first = args.text_column or trained["text_column"]
    second = args.pair_column or trained["pair_column"]
    if args.data:
        return classify_files(args, classifier, first, second, world)
    if second and args.pair is None:
        raise UserError(
            f"{args.model}: classifies pairs ({trained['text_column']}, {second}); give --pair TEXT too"
        )
    (found,) = classifier([Text("0", "--text", args.text, args.pair)])
    if args.json:
        print(to_json({"label": next(iter(found)), "probabilities": found}))
    else:
        for label, share in found.items():
            print(f"{label}   [probability {share:.3f}]")
    if classifier.cut:
        print(f"1 of 1 texts cut to {classifier.max_length} tokens", file=sys.stderr)
    return 0


class Classifier:
    """The classifier that the flags ask for: a function from texts to the probabilities of their classes."""

    def __init__(self, args: argparse.Namespace, config: dict):
        """Load `args.model`. `config` is that of its folder."""
        self.loaded = load_for_verb(args, args.model)
        self.labels = config["labels"]
        # In tokens: as trained, else all positions.
        self.max_length = self.loaded.qa.get("max_length")
        if self.max_length is None:
            self.max_length = config["architecture"]["max_position_embeddings"]
        tell_what_is_faster(args.precision, args.int8, self.loaded.device)
        self.cut = 0  # texts that were longer

    def __call__(self, texts: Sequence[Text]) -> list[dict]:
        """Return {class: probability} for each text, or pair of texts, the most probable class first."""
        pairs = None
        if any(text.second is not None for text in texts):
            pairs = [text.second for text in texts]
        firsts = [text.text for text in texts]
        loaded = self.loaded
        windows = text_windows(firsts, loaded.tokenizer, pairs=pairs, max_length=self.max_length)
        self.cut += windows.cut
        cast = autocast(loaded.device, loaded.dtype)
        logits, _ = class_logits(loaded.model, windows, loaded.device, autocast=cast)
        return probabilities(logits, self.labels)

    def rows(self, texts: Sequence[Text], done: Callable[[float], None]) -> list[dict]:
        """Return the row of predictions.jsonl for each text of a share."""
        found = iter(self([text for text in texts if not text.error]))
        rows = []
        for text in texts:
            if text.error:
                rows.append({"id": text.id, "error": text.error})
                continue
            classes = next(found)
            label = next(iter(classes))
            rows.append({"id": text.id, "label": label, "probabilities": classes})
        done(1.0)
        return rows


def classify_files(
    args: argparse.Namespace, classifier: Classifier, column: str, second: str | None, world: World
) -> int:
    """Write a line of predictions.jsonl for each text of the files, or with `second` each pair. Returns the exit status."""
    settings = {"columns": [column, second]}
    job = Job(args, args.out, [args.model], classifier.loaded, settings, world)
    named = column
    if column == "text" and not second:
        named = None  # reads files without columns too, a text per line
    stream = text_stream(job.paths, named, second)
    job.answer(stream, classifier.rows, noun="text", size=SHARE)
    cut = world.sum(classifier.cut)  # a collective call: before the other processes leave
    if not world.first:
        return 0
    if cut:
        said = f"{cut:,.0f} of {job.answered:,} texts cut to {classifier.max_length} tokens"
        print(said, file=sys.stderr)
    failed = sum("error" in row for row in job.rows())
    said = f"classes of {job.done:,} texts in {job.lines}"
    print(said + job.summary("text", failed, "rows"), file=sys.stderr)
    return int(failed > 0)
