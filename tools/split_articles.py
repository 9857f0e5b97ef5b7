"""Split a training file by articles: some are held out to choose models by, the others are trained on."""

import argparse
import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from folds import split_folds
from new_pairs import new_pairs

from bertqa.data.download import locate
from bertqa.data.examples import Example, read_examples
from bertqa.errors import UserError
from bertqa.files import read_object, to_json, write_json, write_text

LOGGED = (
    "Appalachian_Mountains",
    "Everton_F.C.",
    "Hunter-gatherer",
    "Internet_service_provider",
    "National_Archives_and_Records_Administration",
    "United_States_dollar",
)
"""The articles held out in weights/EXPERIMENTS.md: holding them out too makes results comparable with its rows."""


def hold_out(examples: Sequence[Example], share: float, seed: int) -> list[str]:
    """Choose the titles to hold out, LOGGED first, others by seed.

    `share` is of the articles that have unanswerable questions, as all of dev's have, and only those are held out; of all
    articles where none has any.
    """
    impossible = {example.title for example in examples if not example.answer_texts}
    every = list(dict.fromkeys(example.title for example in examples))
    fitting = [title for title in every if title in impossible] or every
    wanted = max(1, round(share * len(fitting)))
    if wanted >= len(every):
        raise UserError(
            f"the training data have {len(every)} article(s) (titles): none would be left to train on; "
            "give more data, or titles"
        )
    chosen = [title for title in LOGGED if title in fitting][:wanted]
    others = [title for title in fitting if title not in chosen]
    chosen += random.Random(seed).sample(others, wanted - len(chosen))
    return sorted(chosen)


def write_squad(path: Path, examples: Sequence[Example]) -> None:
    """Write questions as SQuAD 2.0 JSON, grouped by article and paragraph."""
    articles: dict = defaultdict(lambda: defaultdict(list))
    for example in examples:
        answers = []
        for text, start in zip(example.answer_texts, example.answer_starts, strict=True):
            answers.append({"text": text, "answer_start": start})
        asked = {"id": example.id, "question": example.question, "answers": answers}
        asked["is_impossible"] = not answers
        articles[example.title][example.context].append(asked)
    data = []
    for title, paragraphs in articles.items():
        kept = [{"context": context, "qas": qas} for context, qas in paragraphs.items()]
        data.append({"title": title, "paragraphs": kept})
    write_text(path, to_json({"version": "v2.0", "data": data}))


def split_data(args: argparse.Namespace, out: Path) -> dict:
    """Write data/train.json and data/held-out.json, once; train-and-pairs.json and not-fold0.json, ... where asked for.

    Returns the content of split.json: what was asked for, counts, the titles held out and those of each fold.

    Raises:
        UserError: where the folder was begun with another file or other settings, and as `split_folds` does.
    """
    source = read_examples(locate(args.train, "train"))
    asked = {"sha256": source.sha256, "share": args.held_out, "seed": args.seed}
    asked |= {"limit": args.limit, "swaps": args.swaps, "edits": args.edits}
    if args.folds:
        asked["folds"] = args.folds
    note = out / "split.json"
    if note.exists():
        known = read_object(note)
        if known["asked"] != asked:
            raise UserError(
                f"{out}: was begun with other data, --held-out, --swaps, --edits, --folds, --seed or "
                "--limit; give another --out"
            )
        return known
    usable = source.trainable()
    if args.limit:
        every = -(-len(usable) // args.limit)
        usable = usable[::every]  # some questions of every article
    held_out = hold_out(usable, args.held_out, args.seed)
    held = [example for example in usable if example.title in held_out]
    kept = [example for example in usable if example.title not in held_out]
    (out / "data").mkdir(parents=True, exist_ok=True)
    write_squad(out / "data" / "train.json", kept)
    write_squad(out / "data" / "held-out.json", held)
    pairs = new_pairs(kept, args.swaps, args.edits, args.seed)
    if pairs:
        write_squad(out / "data" / "train-and-pairs.json", kept + pairs)
    folds = split_folds(kept, args.folds, args.seed) if args.folds else []
    for number, titles in enumerate(folds):
        others = [example for example in kept if example.title not in titles]
        write_squad(out / "data" / f"not-fold{number}.json", others)
    split = {
        "asked": asked,
        "source": Path(source.path).name,
        "train_questions": len(kept),
        "new_pairs": len(pairs),
        "held_out_questions": len(held),
        "held_out_impossible": sum(not example.answer_texts for example in held),
        "held_out_articles": held_out,
        "folds": folds,
    }
    write_json(note, split)
    return split
