"""`Reader`: answers to questions, from Python. It takes the place of transformers 4's question-answering pipeline.

A text of any length is read in overlapping windows. Several documents are read as one text, except that no window spans
two of them. Spans of all windows compete by the sum of their start and end logits, as in SQuAD's evaluation.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, overload

from bertqa import answering
from bertqa.answering import Options, Pairs, Text, with_options
from bertqa.data.examples import Example
from bertqa.data.tokens import TokenCache
from bertqa.data.windows import Windows
from bertqa.data.writing import examples_of
from bertqa.model.record import positions_of, qa_of, with_defaults
from bertqa.qa import confidence, metrics
from bertqa.qa.asked import Asked, How, answer_length, asked_of_pair, how_of, pairs_in
from bertqa.qa.documents import Answer, Ranking
from bertqa.qa.spans import Spans, SpanSettings

if TYPE_CHECKING:
    import torch
    from torch import nn
    from typing_extensions import Unpack

    from bertqa.data.tokenizer import WordPiece
    from bertqa.loading import Loaded
    from bertqa.training.run import Trained


class Reader:
    """A model with its tokenizer, ready to answer questions. Several threads may share one Reader.

    >>> reader = Reader.load("weights/minilm-squad2")                                               # doctest: +SKIP
    >>> reader.answer("Who kept the lamp?", "Agnes Holm kept the lamp for thirty years.").answer    # doctest: +SKIP
    'Agnes Holm'
    """

    training: "Trained | None" = None
    """Folder and figures of the training run, where `fine_tune` made this Reader."""

    def __init__(
        self,
        model: "nn.Module",
        tokenizer: "WordPiece | TokenCache",
        qa: dict | None = None,
        device: "torch.device | None" = None,
        dtype: "torch.dtype | None" = None,
    ):
        """Make a Reader of your own model; `Reader.load` is for model folders.

        Args:
            model: called with packed tokens, as BertForQuestionAnswering; inference.span_scores says what it returns.
            tokenizer: its WordPiece.
            qa: threshold and window settings, named as in qa.json; None: those of the model's folder, else the defaults.
            device: where the model is; None: where its parameters are.
            dtype: of autocast; None: no autocast.
        """
        self.model = model.eval()
        self.tokenizer = tokenizer if isinstance(tokenizer, TokenCache) else TokenCache(tokenizer)
        self.qa = with_defaults(qa_of(model) if qa is None else qa, positions_of(model))
        self.device = device or next(model.parameters()).device
        self.dtype = dtype
        self.loaded: Loaded | None = None  # where `load` made it: its pickle is a name, no weights
        self.requests = answering.Requests(self)

    def __repr__(self) -> str:
        """Show the model's name, where and in which dtype it computes, and the threshold."""
        name = self.loaded.arguments["name"] if self.loaded else type(self.model).__name__
        where = str(self.device)
        if self.dtype is not None:
            where += f", {self.dtype}".replace("torch.", "")
        threshold = self.qa.get("null_threshold")
        shown = "none" if threshold is None else f"{threshold:.4g}"
        return f"Reader({name!r}, {where}, threshold {shown})"

    @classmethod
    def load(
        cls,
        name: str | Path | None = None,
        device: "str | torch.device | None" = None,
        dtype: "str | torch.dtype | None" = None,
        *,
        int8: bool = False,
        attention: Callable | None = None,
    ) -> "Reader":
        """Load a model folder, a Hugging Face folder or a Hub id.

        Args:
            name: folder or id; None is the reader that comes with bertqa.
            device: "cuda", "cuda:1", "cpu", "mps" or a torch.device; None or "auto": the fastest that is there.
            dtype: "fp32", "bf16", "fp16", torch's names ("bfloat16") or its dtypes; None or "auto": 16 bits on a GPU, and
                else float32.
            int8: compute the matrix products in 8 bits, on a CPU, by the ranges measured for this model, which its folder
                keeps. `bertqa.calibrate_int8` measures them; without them int8 takes twice as long.
            attention: your own attention function, where the model was trained with it.

        Raises:
            UserError: where there is no such model or device, the model has no answer head, or int8 meets a 16-bit dtype.
        """
        from bertqa.loading import load_for_reader

        loaded = load_for_reader(name, device, dtype, int8, attention)
        reader = cls(loaded.model, loaded.tokenizer, loaded.qa, loaded.device, loaded.dtype)
        reader.loaded = loaded
        return reader

    @overload
    def answer(
        self, question: str, context: Text, top_k: Literal[1] = 1, **options: "Unpack[Options]"
    ) -> Answer: ...

    @overload
    def answer(
        self, question: str, context: Text, top_k: int, **options: "Unpack[Options]"
    ) -> list[Answer]: ...

    @with_options
    def answer(self, question: str, context: Text, top_k: int = 1, **options):
        """Answer a question from a text, or from several documents. Options are those of `answer_many`.

        Returns:
            The best answer over all documents; with `top_k` over 1 a list of the best ones.
        """
        how = self.how(top_k, **options)
        return next(answering.answer_pairs(self, [(question, context)], how))

    @overload
    def answer_many(
        self,
        pairs: Pairs,
        top_k: Literal[1] = 1,
        *,
        on_error: str = "stop",
        **options: "Unpack[Options]",
    ) -> Iterator[Answer]: ...

    @overload
    def answer_many(
        self, pairs: Pairs, top_k: int, *, on_error: str = "stop", **options: "Unpack[Options]"
    ) -> Iterator[list[Answer]]: ...

    @with_options
    def answer_many(self, pairs: Pairs, top_k: int = 1, *, on_error: str = "stop", **options):
        """Answer (question, context) pairs, in their order; `pairs` may be an endless iterator.

        Args:
            pairs: a context is a text or a list of documents.
            top_k: 1 yields an Answer for each pair; more yields a list of at most so many, whose texts differ within a
                document.
            allow_no_answer: True answers "" where the null odds exceed the threshold, False never; None: True where the
                model has a threshold.
            threshold: on the null odds (null score minus best span's score); None: as tuned with the model, else 0.
            max_answer_length: most tokens of an answer; None: as trained.
            whole_words: widen answers that begin or end inside a word to the whole word, as transformers' pipeline did.
            on_error: what a pair that is not texts gives: "stop" a UserError, "keep" an Answer with the `error` in it.

        Raises:
            UserError: for a pair that is not texts, and for an option that is out of range.
        """
        how = self.how(top_k, **options)
        return answering.answer_pairs(self, pairs_in(pairs), how, on_error)

    @with_options
    def submit(
        self, question: str, context: Text, top_k: int = 1, **options: "Unpack[Options]"
    ) -> Future:
        """Queue a question and return a Future of its answer: a background thread answers what waits in batches.

        Blocks while a thousand questions wait. Options are those of `answer_many`, except `on_error`: the Future raises.
        """
        answering.notice_fork(self)
        how = self.how(top_k, **options)
        return self.requests.put(asked_of_pair(1, (question, context)), how)

    def how(self, top_k: int = 1, **options) -> How:
        """Complete the options of `answer_many`, and `mode` and `max_context` of SpanSettings, by the model's own values."""
        return how_of(self.qa, top_k, **options)

    def rank(
        self, chunk: Sequence[Asked], how: How, done: Callable[[float], None] | None = None
    ) -> list[Ranking]:
        """Return the ranked answers of each question, at least `how.top_k` where there are so many.

        After every batch `done` is called with the fraction of all windows that it held.
        """
        return answering.rank_chunk(self, chunk, how, done)

    def spans(
        self,
        examples: Sequence[Example],
        n: int = 20,
        max_answer_length: int | None = None,
        progress: str | None = None,
        *,
        mode: str = "exact",
        max_context: bool = False,
    ) -> tuple[Spans, Windows]:
        """Return the `n` best spans of each example, and the windows that they lie in. `mode` as in SpanSettings."""
        length = answer_length(self.qa, max_answer_length)
        asked = SpanSettings(n, length, mode, max_context)
        reading = answering.read_documents(self, examples, asked, progress=progress)
        return reading.spans, reading.windows

    def evaluate(self, data: object) -> dict[str, float]:
        """Return exact match and F1 of the answers, in percent, with the keys of `python -m bertqa.score`.

        Args:
            data: labelled questions, in any form that `bertqa.fine_tune` takes.

        Raises:
            UserError: where the data cannot be read, or has no labels.
        """
        asked = examples_of(data)
        answers = self.answer_many((one.question, one.context) for one in asked.examples)
        given = {one.id: answer.answer for one, answer in zip(asked.examples, answers, strict=True)}
        scores = metrics.score_answers(asked.examples, given, v1=asked.is_v1)
        return metrics.evaluate_v1(scores) if asked.is_v1 else metrics.evaluate_v2(scores)

    def calibrate(self, data: object) -> dict[str, float]:
        """Fit the probabilities `confidence` and `no_answer` of answers; `save` keeps them.

        For a converted model, which has none, and for texts of another kind than those it was trained on.

        Args:
            data: as for `evaluate`; questions that the model was not trained on, a thousand or at least some hundreds,
                about a third of them without an answer.

        Returns:
            confidence_error and no_answer_error: expected calibration errors on the same questions, so a little too low.
        """
        examples = examples_of(data).examples
        spans, windows = self.spans(examples)
        evidence = confidence.evidence_of(spans, windows, examples)
        marks = confidence.marks_of(spans, windows, examples)
        right = confidence.how_right(examples, marks)
        fitted = confidence.fit_confidence(evidence, right, marks.has_answer)
        self.qa["confidence"] = asdict(fitted)
        threshold = self.how().threshold
        return confidence.calibration_errors(fitted, evidence, right, marks.has_answer, threshold)

    def save(self, folder: str | Path) -> None:
        """Write a model folder for `Reader.load` and `--model`, with the present `qa`; an older one is replaced.

        Weights that were loaded from a folder are copied from it unchanged, whatever precision is computed in.

        Raises:
            UserError: where the folder cannot be written, or the tokenizer's files of your own model are not known.
        """
        from bertqa.model import folder as models

        if self.is_as_loaded:
            models.copy(self.loaded.arguments["name"], folder, self.qa)
        else:
            models.save(folder, self.model, qa=self.qa)

    def __reduce__(self):
        """Pickle the arguments of `load`; the weights only where `load` did not make this Reader, or its model was replaced."""
        if self.is_as_loaded:
            return _load_again, (self.loaded.arguments, self.qa)
        from bertqa.model.prepack import slim

        others = (self.tokenizer, self.qa, self.device, self.dtype)
        return _make_again, (slim(self.model), others)

    def __deepcopy__(self, memo: dict) -> "Reader":
        model = copy.deepcopy(self.model, memo)
        made = Reader(model, copy.copy(self.tokenizer), self.qa, self.device, self.dtype)
        if self.is_as_loaded:
            made.loaded = replace(self.loaded, model=model)
        return made

    @property
    def is_as_loaded(self) -> bool:
        """Whether the model is still the one that `load` gave it."""
        return self.loaded is not None and self.loaded.model is self.model


def _load_again(arguments: dict, qa: dict) -> Reader:
    """Unpickle a Reader that was loaded, with its `qa`, which may have been changed since."""
    reader = Reader.load(**arguments)
    reader.qa = qa
    return reader


def _make_again(slimmed: tuple, others: tuple) -> Reader:
    """Unpickle a Reader whose weights were pickled."""
    from bertqa.model.prepack import widen

    return Reader(widen(*slimmed), *others)
