"""The questions of a run: those to train on and those to evaluate on, and what about them is likely to be a mistake."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bertqa.data.download import locate, official
from bertqa.data.examples import Dataset, Example, read_examples
from bertqa.data.windows import fingerprint
from bertqa.distributed import World
from bertqa.errors import UserError
from bertqa.settings import SAMPLE, FileSettings, QuestionAnsweringSettings

HELD_OUT = 0.1
"""Share of the training questions, in whole articles, that is the dev set where no other is given."""


@dataclass
class Questions:
    """What is trained and evaluated on."""

    train: Dataset
    dev: Dataset
    held_out: bool = False
    """Whether dev is a part of the training file."""


def with_dev(files: FileSettings) -> FileSettings:
    """The files with the dev set that belongs to the training set, where that is the bundled sample or an official one."""
    if files.task != "qa" or files.dev is not None:
        return files
    if files.train == str(SAMPLE / "train.json"):
        return dataclasses.replace(files, dev=str(SAMPLE / "dev.json"))
    name = files.train.removesuffix("-train")
    if name in ("squad1", "squad2") and official(files.train, "train"):
        return dataclasses.replace(files, dev=name)
    return files


def read_questions(
    train: str | Sequence[Example],
    dev: str | Sequence[Example] | None,
    settings: QuestionAnsweringSettings,
    *,
    seed: int,
    world: World = World(),
) -> Questions:
    """Read both files, or take examples as they are; without `dev` a part of the training questions is held out for it.

    Raises:
        UserError: for files that cannot be read, or a single article of which nothing can be held out.
    """
    read = _read(train, "train", settings.limit_train, world)
    if dev is None:
        return hold_out(read, HELD_OUT, seed, settings.limit_dev)
    return Questions(read, _read(dev, "dev", settings.limit_dev, world))


def _read(source: str | Sequence[Example], split: str, limit: int | None, world: World) -> Dataset:
    """The questions of a file, or examples that were made in Python, which nobody repairs or rejects."""
    if isinstance(source, (str, Path)):
        return read_examples(world.in_turn(lambda: locate(source, split)), limit)
    examples = list(source)[:limit]
    for example in examples:
        _check_answers(example)
    content = "".join(repr(example) for example in examples).encode()
    name = f"{len(examples):,} examples from Python"
    return Dataset(name, fingerprint([np.frombuffer(content, np.uint8)]), "examples", examples)


def _check_answers(example: Example) -> None:
    """Refuse an example whose answers do not stand where it says. Raises UserError."""
    for text, start in zip(example.answer_texts, example.answer_starts, strict=True):
        if start < 0 or example.context[start : start + len(text)] != text:
            raise UserError(
                f"example {example.id!r}: its answer {text!r} does not stand at character {start} of the context"
            )


def hold_out(data: Dataset, share: float, seed: int, limit: int | None = None) -> Questions:
    """Split off whole articles for the dev set, drawn by seed until they are nearest to the share of all questions.

    Questions about one article resemble each other, so a split through it would score too well. Where examples have
    no title the paragraph stands for it. With articles of 5, 2 and 9 questions, drawn in this order, and a share of
    half: 5, 7 and 16 questions would be held out; 7 of 16 is nearest, so it is the first two.

    Raises:
        UserError: where all questions are about one article.
    """
    names = sorted({article_of(example) for example in data.examples})
    if len(names) < 2:
        raise UserError(
            f"{data.path}: no --dev is given, and nothing can be held out: all "
            f"{len(data.examples):,} questions are about one article; give questions to evaluate on"
        )
    counts = dict.fromkeys(names, 0)
    for example in data.examples:
        counts[article_of(example)] += 1
    order = [names[place] for place in np.random.default_rng([seed, 2]).permutation(len(names))]
    total = np.cumsum([counts[name] for name in order])[:-1]  # never all articles
    chosen = 1 + int(np.abs(total - share * len(data.examples)).argmin())
    articles = set(order[:chosen])
    kept = [example for example in data.examples if article_of(example) not in articles]
    out = [example for example in data.examples if article_of(example) in articles]
    return Questions(
        train=dataclasses.replace(data, examples=kept),
        dev=dataclasses.replace(data, examples=out[:limit], rejected=[]),
        held_out=True,
    )


def article_of(example: Example) -> str:
    """What a question is about."""
    return example.title or example.context


def warnings_of(questions: Questions) -> list[str]:
    """What is likely to be a mistake, a line each."""
    train = questions.train
    dev = questions.dev
    found = []
    if questions.held_out:
        articles = len({article_of(example) for example in dev.examples})
        found.append(
            f"no --dev is given: {len(dev.examples):,} questions of {train.path}, all those about "
            f"{articles:,} of its articles, are held out to evaluate on (-> dev.json)"
        )
    elif train.sha256 == dev.sha256:
        found.append(
            "warning: train and dev are the same file, so the scores say how well it was learned by heart; "
            "without --dev some articles are held out"
        )
    trainable = train.trainable()
    impossible = sum(not example.answer_texts for example in trainable)
    if trainable and impossible == len(trainable):
        found.append(
            f"warning: none of the {impossible:,} questions in {train.path} has an answer, so all that can be "
            "learned is to give none"
        )
    elif dev.has_impossible and not impossible:
        found.append(
            f"warning: {dev.path} has impossible questions, but {train.path} has none, so when to give no "
            "answer is not learned"
        )
    elif impossible and not dev.has_impossible:
        found.append(
            f"warning: {train.path} has impossible questions, but {dev.path} has none, so no threshold for "
            "giving no answer can be tuned"
        )
    return found
