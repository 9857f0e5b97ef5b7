"""`Reader`: a model folder that answers questions, from Python. What transformers 4's question-answering pipeline was.

A text of any length is read in overlapping windows, and several documents as if they were one text, except that no
window spans two of them. Answers are compared by start + end logit over all windows, as evaluation does.
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
from bertqa.data.sources import Shared
from bertqa.data.tokens import TokenCache
from bertqa.data.windows import Windows
from bertqa.data.writing import examples_of
from bertqa.errors import UserError
from bertqa.model.record import positions_of, qa_of, with_defaults
from bertqa.qa import metrics
from bertqa.qa.asked import Asked, How, answer_length, asked_of_pair, how_of, pairs_in
from bertqa.qa.confidence import (
    calibration_errors,
    evidence_of,
    fit_confidence,
    how_right,
    marks_of,
)
from bertqa.qa.documents import Answer, Ranking
from bertqa.qa.spans import Spans, SpanSettings

if TYPE_CHECKING:
    import torch
    from torch import nn
    from typing_extensions import Unpack

    from bertqa.data.tokenizer import WordPiece
    from bertqa.training.run import Trained


class Reader:
    """A model folder ready to answer questions. Several threads may ask one Reader at once.

    >>> reader = Reader.load("weights/minilm-squad2")                                               # doctest: +SKIP
    >>> reader.answer("Who kept the lamp?", "Agnes Holm kept the lamp for thirty years.").answer    # doctest: +SKIP
    'Agnes Holm'
    """

    training: "Trained | None" = None
    """The run that made it, where fine_tune did: its folder and its figures."""

    def __init__(
        self,
        model: "nn.Module",
        tokenizer: "WordPiece | TokenCache",
        qa: dict | None = None,
        device: "torch.device | None" = None,
        dtype: "torch.dtype | None" = None,
    ):
        """A Reader of a model of your own; `Reader.load` is for model folders.

        Args:
            model: called as BertForQuestionAnswering is with packed tokens; inference.span_scores says what it returns.
            tokenizer: its WordPiece.
            qa: threshold and window settings, as qa.json has them; a folder's, where the model was loaded from one, and
                else the defaults.
            device: where the model is.
            dtype: of autocast; none where None.
        """
        self.model = model.eval()
        self.tokenizer = tokenizer if isinstance(tokenizer, TokenCache) else TokenCache(tokenizer)
        self.qa = with_defaults(qa_of(model) if qa is None else qa, positions_of(model))
        self.device = device or next(model.parameters()).device
        self.dtype = dtype
        self.loaded = (
            None  # or the Parts that it is made of: it is pickled as their names, and not by value
        )
        self.requests = answering.Requests(self)

    def __repr__(self) -> str:
        """What was loaded, and how it computes."""
        name = self.loaded.arguments[0] if self.loaded else type(self.model).__name__
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
            name: what to load; None is the reader that comes with bertqa.
            device: "cuda", "cuda:1", "cpu", "mps" or a torch.device; None or "auto" takes the fastest that is there.
            dtype: "fp32", "bf16", "fp16", torch's names ("bfloat16") or its dtypes; None or "auto" what is fastest there
                without loss.
            int8: run the matrix products in 8 bits, on the CPU, by ranges that the folder keeps; where it has none,
                `bertqa.calibrate_int8` measures them, and until then it takes twice as long.
            attention: of your own, where the model was trained with it.

        Raises:
            UserError: where there is no such model, or no such device, or the model has no answer head.
        """
        from bertqa.loading import load_parts

        parts = load_parts(name, device, dtype, int8, attention)
        made = cls(parts.model, parts.tokenizer, parts.qa, parts.device, parts.dtype)
        made.loaded = parts
        return made

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
        """The best answer, or the `top_k` best in a list where top_k > 1; options as those of `answer_many`.

        The context is a text, or a list of documents, of which the best answer over all is given.
        """
        how = self.how(top_k, **options)
        return next(answering.answer_pairs(self, [(question, context)], how, "stop"))

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
        """Answers for (question, context) pairs, in their order; `pairs` may be endless, answers come as it is read.

        Args:
            top_k: 1 yields an Answer for each pair, more yields lists of at most so many, with distinct texts in a document.
            allow_no_answer: True answers "" where the null odds exceed the threshold; False never does; None is True for
                a model with a threshold.
            threshold: where it lies; None takes the one that was tuned with the model, or else 0.
            max_answer_length: most tokens of an answer; as trained where None.
            whole_words: widen answers that begin or end inside a word to all of it, as transformers' pipeline did.
            on_error: what becomes of a pair that is not texts. "stop": UserError in its place, behind the answers to
                those before it. "keep": an Answer whose `error` says what is wrong stands in its place.

        Raises:
            UserError: for a pair that is not texts, by its number, and for options without meaning.
        """
        if on_error not in ("stop", "keep"):
            raise UserError(f"on_error is {on_error!r}; use stop or keep")
        how = self.how(top_k, **options)
        return Shared(answering.answer_pairs(self, pairs_in(pairs), how, on_error))

    @with_options
    def submit(
        self, question: str, context: Text, top_k: int = 1, **options: "Unpack[Options]"
    ) -> Future:
        """The answer to come, as a Future: what several threads ask at the same time is answered together.

        A thread of its own answers; it ends when nothing is asked. Where a thousand questions wait already, this waits
        until there is room. Options as those of `answer_many`, but `on_error`: the Future raises.
        """
        answering.notice_fork(self)
        how = self.how(top_k, **options)
        return self.requests.put(asked_of_pair(1, (question, context)), how)

    def how(self, top_k: int = 1, **options) -> How:
        """The options of `answer_many`, with the model's own values where None, and `mode` and `max_context`."""
        return how_of(self.qa, top_k, **options)

    def rank(
        self, chunk: Sequence[Asked], how: How, done: Callable[[float], None] | None = None
    ) -> list[Ranking]:
        """The answers of each question of a chunk, best first, at least `how.top_k` where there are so many.

        `done` is told after every batch which share of the chunk it was.
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
        """(Spans, Windows) of examples: what decoding, scoring and files are made from; modes as those of SpanSettings."""
        length = answer_length(self.qa, max_answer_length)
        asked = SpanSettings(n, length, mode, max_context)
        reading = answering.read_documents(self, examples, asked, progress=progress)
        return reading.spans, reading.windows

    # What it is worth, and where it is kept

    def evaluate(self, data: object) -> dict[str, float]:
        """Exact match and F1 of its answers, in percent: what `python -m bertqa.score` says of those of `bertqa.predict`.

        Args:
            data: questions with their answers, as `bertqa.fine_tune` takes them: a file, a list of dictionaries, a
                DataFrame or a datasets.Dataset.

        Raises:
            UserError: for data that cannot be read, or do not say what is right.
        """
        asked = examples_of(data)
        pairs = ((example.question, example.context) for example in asked.examples)
        given = {}
        for example, answer in zip(asked.examples, self.answer_many(pairs), strict=True):
            given[example.id] = answer.answer
        scores = metrics.score_answers(asked.examples, given, v1=asked.is_v1)
        return metrics.evaluate_v1(scores) if asked.is_v1 else metrics.evaluate_v2(scores)

    def calibrate(self, data: object) -> dict[str, float]:
        """Fit what `confidence` and `no_answer` are made of on questions that the model was not trained on; `save` keeps it.

        For a model that has none, since it was converted or trained long ago, and for texts of another kind: some hundred
        questions, a thousand better, a third of them or so without an answer.

        Args:
            data: as that of `evaluate`.

        Returns:
            confidence_error and no_answer_error, the expected calibration errors on these questions, which flatters a little.
        """
        examples = examples_of(data).examples
        spans, windows = self.spans(examples)
        evidence = evidence_of(spans, windows, examples)
        marks = marks_of(spans, windows, examples)
        right = how_right(examples, marks)
        fitted = fit_confidence(evidence, right, marks.has_answer)
        self.qa["confidence"] = asdict(fitted)
        return calibration_errors(fitted, evidence, right, marks.has_answer, self.how().threshold)

    def save(self, folder: str | Path) -> None:
        """Write a model folder, in place of an older one, that `Reader.load` and `--model` take, with what `qa` says now.

        What was loaded from a folder is copied from there as it is, also where it computes in other precision here.

        Raises:
            UserError: where the folder cannot be written, or nothing says where the tokenizer of a model of your own is.
        """
        from bertqa.model import folder as models

        if self.is_as_loaded:
            models.copy(self.loaded.arguments[0], folder, self.qa)
        else:
            models.save(folder, self.model, qa=self.qa)

    # Copies, other processes

    def __reduce__(self):
        """Pickled as what it was loaded from; by value where it was not, or its model is another now."""
        if self.is_as_loaded:
            return _load_again, (self.loaded.arguments, self.qa)
        from bertqa.model.prepack import slim

        parts = (self.tokenizer, self.qa, self.device, self.dtype)
        return _made_again, (slim(self.model), parts)

    def __deepcopy__(self, memo: dict) -> "Reader":
        model = copy.deepcopy(self.model, memo)
        made = Reader(model, copy.copy(self.tokenizer), self.qa, self.device, self.dtype)
        if self.is_as_loaded:
            made.loaded = replace(self.loaded, model=model)
        return made

    @property
    def is_as_loaded(self) -> bool:
        """Whether its model is the one that `load` gave it."""
        return self.loaded is not None and self.loaded.model is self.model


def _load_again(arguments: tuple, qa: dict) -> Reader:
    """A Reader in another process, with what may have been changed in its `qa`."""
    name, device, dtype, int8, attention = arguments
    reader = Reader.load(name, device, dtype, int8=int8, attention=attention)
    reader.qa = qa
    return reader


def _made_again(slimmed: tuple, parts: tuple) -> Reader:
    """A Reader in another process, of a model that came by value."""
    from bertqa.model.prepack import widen

    return Reader(widen(*slimmed), *parts)
