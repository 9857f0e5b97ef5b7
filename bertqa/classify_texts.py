"""Classes of texts, where the model is a classifier: `python -m bertqa.predict --text`, or `--data` with files of texts."""

import argparse
import sys
from collections.abc import Callable, Sequence

from bertqa.data.sources import expand
from bertqa.data.text_windows import text_windows
from bertqa.data.texts import Text, text_stream
from bertqa.data.tokenizer import WordPiece
from bertqa.device import autocast, pick_device, pick_precision
from bertqa.distributed import World
from bertqa.errors import UserError
from bertqa.files import to_json
from bertqa.inference import class_logits
from bertqa.jobs import Job, answer_stream, depends_on
from bertqa.loading import device_for, for_int8, tell_what_is_faster
from bertqa.model import folder, prepack
from bertqa.training.classification import probabilities

SHARE = 4096
"""Most texts that are classified, and written, together."""


def classify(args: argparse.Namespace, config: dict, world: World) -> int:
    """Print the classes of one text, or write a line of predictions.jsonl for each text of the files. Returns the exit
    status: 1 where a row could not be read."""
    if config["head"] != folder.CLASSES:
        raise UserError(
            f"{args.model}: its head is {config['head']!r}, but --text needs a classifier; train one first: "
            "python -m bertqa.train --task classify"
        )
    trained = {"text_column": "text", "pair_column": None, **folder.read_qa(args.model)}
    classifier = Classifier(args, config, trained.get("max_length"))
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
        print(f"1 of 1 texts cut to {classifier.most} tokens", file=sys.stderr)
    return 0


class Classifier:
    """The model that the flags ask for. `cut` counts the texts that lost their end."""

    def __init__(self, args: argparse.Namespace, config: dict, most: int | None):
        self.labels = config["labels"]
        self.most = most or config["architecture"]["max_position_embeddings"]  # tokens
        self.device = pick_device(device_for(args.device, args.precision, args.int8))
        tell_what_is_faster(args.precision, args.int8, self.device)
        self.dtype = pick_precision(args.precision, self.device)
        self.tokenizer = WordPiece.load(args.model)
        model = folder.load(args.model, device=self.device)
        self.model = for_int8(model, args.model) if args.int8 else prepack.pack(model, self.dtype)
        self.cut = 0

    def __call__(self, texts: Sequence[Text]) -> list[dict]:
        """Class -> probability of each text, or pair of texts, the most probable first."""
        pairs = None
        if any(text.second is not None for text in texts):
            pairs = [text.second for text in texts]
        firsts = [text.text for text in texts]
        windows = text_windows(firsts, self.tokenizer, pairs=pairs, max_length=self.most)
        self.cut += windows.cut
        cast = autocast(self.device, self.dtype)
        logits, _ = class_logits(self.model, windows, self.device, autocast=cast)
        return probabilities(logits, self.labels)

    def rows(self, texts: Sequence[Text], done: Callable[[float], None]) -> list[dict]:
        """The line of predictions.jsonl for each text of a share."""
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
    """Append a line to predictions.jsonl for each text of the files; what is written stays, and --resume goes on."""
    paths = expand(args.data)
    depends = {}
    if world.first:
        columns = [column, second]
        models = [args.model]
        depends = depends_on(
            args, paths, models, classifier.device, classifier.dtype, columns=columns
        )
    job = Job(args.out, depends, args.resume, world)
    answer_stream(
        job,
        text_stream(paths, None if column == "text" and not second else column, second),
        classifier.rows,
        args,
        noun="text",
        size=SHARE,
        device=classifier.device.type,
    )
    cut = world.sum(classifier.cut)  # all processes have to come here
    if not world.first:
        return 0
    if cut:
        said = f"{cut:,.0f} of {job.answered:,} texts cut to {classifier.most} tokens"
        print(said, file=sys.stderr)
    failed = sum("error" in row for row in job.rows())
    said = f"classes of {job.done:,} texts in {job.lines}"
    print(said + job.told("text", failed, "rows"), file=sys.stderr)
    return int(failed > 0)
