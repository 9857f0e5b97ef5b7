"""Extractive question answering as a task of the training loop: its data, its loss and its evaluation."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from bertqa.data.batches import Batch
from bertqa.data.download import locate
from bertqa.data.examples import Dataset, Example, read_examples
from bertqa.data.windows import Windows, build_windows, fingerprint
from bertqa.data.writing import squad_document, write_rejected
from bertqa.errors import UserError
from bertqa.files import write_json
from bertqa.inference import find_spans
from bertqa.model import folder
from bertqa.model.attention import Layout
from bertqa.model.card import model_card
from bertqa.model.heads import span_loss
from bertqa.qa.evaluation import MAIN_SCORES, Evaluation
from bertqa.qa.spans import SpanSettings
from bertqa.training.job import FileTask

HELD_OUT = 0.1
"""Share of the training questions, in whole articles, that is held out if no dev set is given."""
Source = str | Sequence[Example]
"""A file of questions, or examples made in Python."""


class QuestionAnswering(FileTask):
    """Extractive question answering, on files of questions or on Examples."""

    key = "f1"
    head = folder.QA
    static_shapes = True
    evaluation: Evaluation | None = None
    """The last evaluation."""

    def read(self, train: Source, dev: Source | None, seed: int) -> None:
        """Read the questions, hold some out if there is no dev set, and warn of likely mistakes."""
        everything = self.questions_of(train, "train", self.settings.limit_train)
        if dev is None:
            found = hold_out(everything, HELD_OUT, seed, self.settings.limit_dev)
        else:
            found = Questions(everything, self.questions_of(dev, "dev", self.settings.limit_dev))
        for line in warnings_of(found):
            self.say(line)
        self.train = found.train
        self.dev = found.dev
        self.held_out = found.held_out

    def questions_of(self, source: Source, split: str, limit: int | None) -> Dataset:
        """Read the first `limit` questions of a file, or take Examples as they are, which must be sound."""
        if isinstance(source, (str, Path)):
            # One process downloads an official file that is not there yet.
            return read_examples(self.world.in_turn(lambda: locate(source, split)), limit)
        examples = list(source)[:limit]
        for example in examples:
            check_answers(example)
        content = np.frombuffer("".join(map(repr, examples)).encode(), np.uint8)
        name = f"{len(examples):,} examples from Python"
        return Dataset(name, fingerprint([content]), "examples", examples)

    def cut(self, data: Dataset, name: str) -> Windows:
        """Cut the questions into windows, and say how many there are and how long."""
        self.say(f"{name}: {data.path}: {data.summary()}")
        examples = data.trainable() if name == "train" else data.examples
        if not examples:
            why = data.rejected[0].reason if data.rejected else "nothing"
            raise UserError(
                f"{data.path}: not one question is usable for {name}; rejected, for example: {why}"
            )
        windows = build_windows(
            examples,
            self.tokenizer,
            max_length=self.settings.max_length,
            max_question=self.settings.max_question,
            progress=self.bar(name),
            **self.settings.stride,
        )
        self.say(f"{name}: {self.about(windows)}")
        return windows

    def about(self, windows: Windows) -> str:
        """Return the numbers of the windows in words."""
        parts = [f"{len(windows):,} windows of at most {self.settings.max_length} tokens"]
        for way, tokens in self.settings.stride.items():
            if tokens is not None:
                parts.append(f"{way} {tokens}")
        parts.append(f"{windows.lengths.mean():.0f} tokens on average")
        if windows.cut_questions:
            parts.append(f"{windows.cut_questions} questions cut")
        if windows.unlabelled:
            parts.append(f"{len(windows.unlabelled)} answers that no window holds")
        return ", ".join(parts)

    def loss(self, model: nn.Module, batch: Batch, layout: Layout) -> Tensor:
        """Return the span loss of a packed batch, summed over its windows; teachers, if any, are mixed in."""
        logits = model(batch.input_ids, token_type_ids=batch.token_type_ids, lengths=layout)
        loss = span_loss(
            logits, layout, batch.start_labels, batch.end_labels, weights=batch.weights
        )
        if self.teaching is None:
            return loss
        return self.teaching.span_loss(loss, logits, batch, layout)

    def evaluate(self, model: nn.Module, autocast) -> dict[str, float]:
        """Return EM and F1 on the dev set, at the threshold tuned on it and at 0, and the loss."""
        spans, loss = find_spans(
            model,
            self.dev_windows,
            self.device,
            SpanSettings(max_answer_length=self.settings.max_answer_length),
            autocast=autocast,
            progress=self.bar("dev"),
            world=self.world,
        )
        self.evaluation = Evaluation.of(spans, self.dev_windows, self.dev.examples, loss)
        return self.evaluation.metrics

    def describe(self, metrics: dict) -> str:
        """Return the main scores in words."""
        shown = [f"{name} {metrics[name]:.2f}" for name in MAIN_SCORES if name in metrics]
        return ", ".join(shown)

    def card(self, where: Path, provenance: dict) -> str:
        """Return the model card, with the metrics of the last evaluation."""
        return model_card(
            where, provenance, self.recipe, self.evaluation.metrics, self.evaluation.qa
        )

    def saved_settings(self) -> dict:
        """Return the contents of qa.json: the threshold of the last evaluation, and how windows are cut."""
        found = self.evaluation.qa if self.evaluation else {"null_threshold": None}
        return {**found, **self.settings.saved()}

    def save_predictions(self, run: Path) -> None:
        """Write the files of predictions of the last evaluation."""
        assert self.evaluation, "nothing has been evaluated yet"
        files = self.evaluation.files(self.dev_windows, self.dev.examples)
        for name, content in files.items():
            write_json(run / name, content)

    def save_rejected(self, run: Path) -> None:
        """Write rejected.jsonl, the training questions that cannot be used, and dev.json, those that are held out."""
        write_rejected(self.train, run / "rejected.jsonl")
        if self.held_out:
            write_json(run / "dev.json", squad_document(self.dev.examples))


# ---- the questions of a run ----


@dataclass
class Questions:
    """The questions to train and to evaluate on."""

    train: Dataset
    dev: Dataset
    held_out: bool = False
    """Whether `dev` was split off the training file."""


def check_answers(example: Example) -> None:
    """Raise UserError if the context does not have an answer at its offset."""
    for text, start in zip(example.answer_texts, example.answer_starts, strict=True):
        if start < 0 or example.context[start : start + len(text)] != text:
            raise UserError(
                f"example {example.id!r}: its answer {text!r} does not stand at character {start} of the context"
            )


def hold_out(data: Dataset, share: float, seed: int, limit: int | None = None) -> Questions:
    """Hold out whole articles as the dev set: drawn by seed, as many as come nearest to `share` of all questions.

    Whole articles, because questions about one article resemble each other: split between train and dev, they would make
    the score too good. An example without a title counts its paragraph as an article. With articles of 5, 2 and 9
    questions, drawn in this order, the first one, two or three hold 5, 7 or 16 questions; for a share of a half, 7 of 16
    is nearest.

    Args:
        limit: keep only the first so many questions of the dev set.

    Raises:
        UserError: if all questions are about one article.
    """
    counts = Counter(map(article_of, data.examples))
    names = sorted(counts)
    if len(names) < 2:
        raise UserError(
            f"{data.path}: no --dev is given, and nothing can be held out: all "
            f"{len(data.examples):,} questions are about one article; give questions to evaluate on"
        )
    order = [names[place] for place in np.random.default_rng([seed, 2]).permutation(len(names))]
    # Questions of the first 1, 2, ... articles, but never of all articles.
    questions = np.cumsum([counts[name] for name in order])[:-1]
    chosen = 1 + int(np.abs(questions - share * len(data.examples)).argmin())
    articles = set(order[:chosen])
    kept = []
    held_out = []
    for example in data.examples:
        side = held_out if article_of(example) in articles else kept
        side.append(example)
    dev = replace(data, examples=held_out[:limit], rejected=[])
    return Questions(replace(data, examples=kept), dev, held_out=True)


def article_of(example: Example) -> str:
    """Return the title of the article that a question is about, or, without one, its paragraph."""
    return example.title or example.context


def warnings_of(questions: Questions) -> list[str]:
    """Return what people should know about the split, and what is likely to be a mistake, a line each."""
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
