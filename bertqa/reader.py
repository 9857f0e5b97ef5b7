"""`Reader`: a model folder that answers questions, from Python. What transformers 4's question-answering pipeline was.

A text of any length is read in overlapping windows, and several documents as if they were one text, except that no
window spans two of them. Answers are compared by start + end logit over all windows, as evaluation does.
"""

import copy
import operator
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypedDict, overload

from bertqa.data.chunks import FIRST_QUESTIONS, QUESTIONS_AT_ONCE, Shared, chunks
from bertqa.data.examples import Example
from bertqa.data.tokens import TokenCache
from bertqa.data.windows import Windows, build_windows
from bertqa.errors import UserError
from bertqa.model.record import positions_of, qa_of, with_defaults
from bertqa.qa.asked import Asked, How, answer_length, asked_of_pair, how_of, pairs_in
from bertqa.qa.confidence import of_qa
from bertqa.qa.documents import Answer, Ranking, Reading, not_ranked, rank, widen
from bertqa.qa.search import SpanSettings
from bertqa.qa.spans import Spans
from bertqa.requests import Requests

if TYPE_CHECKING:
    import torch
    from torch import nn
    from typing_extensions import Unpack

    from bertqa.data.tokenizer import WordPiece
    from bertqa.training.run import Trained

Text = str | Sequence[str]
"""A text to find the answer in, or documents."""


class Options(TypedDict, total=False):
    """How to answer; what each means stands with `Reader.answer_many`."""

    allow_no_answer: bool | None
    threshold: float | None
    max_answer_length: int | None
    whole_words: bool


DOCUMENTS_BETWEEN = 256
SECONDS_BETWEEN = 2.0
"""Read, and gone by, before memory that is free is given back to the system: a service keeps a hundred megabytes more with
every thousand questions. It costs a tenth of a second."""

FEW = 64
"""Questions that a service reads at once, at most. Long jobs read more, and their memory stays as it is by itself."""


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
        self.device = next(model.parameters()).device if device is None else device
        self.dtype = dtype
        self.loaded = None  # or the Parts that it is made of
        self.process = os.getpid()
        self.requests = Requests(self)
        self.documents = 0  # read since memory was given back
        self.gave_back = time.monotonic()

    def __repr__(self) -> str:
        """What was loaded, and how it computes."""
        name = self.loaded.arguments[0] if self.loaded else type(self.model).__name__
        precision = "" if self.dtype is None else f", {str(self.dtype).removeprefix('torch.')}"
        threshold = self.qa.get("null_threshold")
        shown = "none" if threshold is None else f"{threshold:.4g}"
        return f"Reader({name!r}, {self.device}{precision}, threshold {shown})"

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
            int8: run the matrix products in 8 bits, on the CPU.
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

    def answer(
        self,
        question: str,
        context: Text,
        top_k: int = 1,
        *,
        allow_no_answer: bool | None = None,
        threshold: float | None = None,
        max_answer_length: int | None = None,
        whole_words: bool = False,
    ) -> Answer | list[Answer]:
        """The best answer, or the `top_k` best in a list where top_k > 1; options as those of `answer_many`.

        The context is a text, or a list of documents, of which the best answer over all is given.
        """
        how = self.how(
            top_k,
            allow_no_answer=allow_no_answer,
            threshold=threshold,
            max_answer_length=max_answer_length,
            whole_words=whole_words,
        )
        return next(self._answers([(question, context)], how, "stop"))

    @overload
    def answer_many(
        self,
        pairs: Iterable[tuple[str, Text]],
        top_k: Literal[1] = 1,
        *,
        on_error: str = "stop",
        **options: "Unpack[Options]",
    ) -> Iterator[Answer]: ...

    @overload
    def answer_many(
        self,
        pairs: Iterable[tuple[str, Text]],
        top_k: int,
        *,
        on_error: str = "stop",
        **options: "Unpack[Options]",
    ) -> Iterator[list[Answer]]: ...

    def answer_many(
        self,
        pairs: Iterable[tuple[str, Text]],
        top_k: int = 1,
        *,
        allow_no_answer: bool | None = None,
        threshold: float | None = None,
        max_answer_length: int | None = None,
        whole_words: bool = False,
        on_error: str = "stop",
    ) -> Iterator[Answer] | Iterator[list[Answer]]:
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
        how = self.how(
            top_k,
            allow_no_answer=allow_no_answer,
            threshold=threshold,
            max_answer_length=max_answer_length,
            whole_words=whole_words,
        )
        return Shared(self._answers(pairs_in(pairs), how, on_error))

    def _answers(self, pairs: Iterable, how: How, on_error: str) -> Iterator:
        asked = (asked_of_pair(number, pair) for number, pair in enumerate(pairs, 1))
        weigh = operator.attrgetter("characters")
        for chunk in chunks(asked, QUESTIONS_AT_ONCE, weigh, first=FIRST_QUESTIONS):
            for ranking in self.rank(chunk, how):
                if ranking.error and on_error == "stop":
                    raise UserError(ranking.error)
                yield ranking.answers[0] if how.top_k == 1 else ranking.answers[: how.top_k]

    def submit(
        self,
        question: str,
        context: Text,
        top_k: int = 1,
        *,
        allow_no_answer: bool | None = None,
        threshold: float | None = None,
        max_answer_length: int | None = None,
        whole_words: bool = False,
    ) -> Future:
        """The answer to come, as a Future: what several threads ask at the same time is answered together.

        A thread of its own answers; it ends when nothing is asked. Where a thousand questions wait already, this waits
        until there is room. Options as those of `answer_many`, but `on_error`: the Future raises.
        """
        self._notice_fork()
        how = self.how(
            top_k,
            allow_no_answer=allow_no_answer,
            threshold=threshold,
            max_answer_length=max_answer_length,
            whole_words=whole_words,
        )
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
        good = [asked for asked in chunk if not asked.error]
        found = iter(self._rank(good, how, how.spans, done))
        rankings = []
        for asked in chunk:
            ranking = not_ranked(asked.error) if asked.error else next(found)
            # Where texts repeat, the n best spans hold fewer answers than are asked for: look at more.
            wider = how.spans
            while len(ranking.answers) < how.top_k and ranking.more and wider.mode == "exact":
                wider = replace(wider, n_best=8 * wider.n_best)
                (ranking,) = self._rank([asked], how, wider)
            rankings.append(ranking)
        return rankings

    def _rank(
        self, chunk: Sequence[Asked], how: How, settings: SpanSettings, done=None
    ) -> list[Ranking]:
        if not chunk:
            return []
        examples = [example for asked in chunk for example in asked.documents]
        reading = self.read(examples, settings, done=done)
        if len(chunk) <= FEW:
            self._give_back_memory(len(examples))
        if how.whole_words:
            windows = reading.windows
            widen(reading.spans, windows, self.tokenizer.continues(windows.contexts.ids))
        sizes = [len(asked.documents) for asked in chunk]
        most = max(how.top_k, how.listed)
        return list(rank(reading, sizes, how.threshold, most, of_qa(self.qa)))

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
        reading = self.read(examples, SpanSettings(n, length, mode, max_context), progress)
        return reading.spans, reading.windows

    def read(
        self,
        examples: Sequence[Example],
        settings: SpanSettings,
        progress: str | None = None,
        done: Callable[[float], None] | None = None,
    ) -> Reading:
        """Run the model over all windows of the examples."""
        self._notice_fork()
        from bertqa.device import autocast
        from bertqa.inference import read_windows

        windows = build_windows(
            examples,
            self.tokenizer,
            max_length=self.qa["max_length"],
            overlap=self.qa.get("overlap"),
            step=self.qa.get("step"),
            max_question=self.qa["max_question"],
        )
        if windows.cut_questions:
            # Python shows a warning of the same words once, however many questions come.
            limit = self.qa["max_question"]
            warnings.warn(
                f"a question has more than {limit} tokens, and is read without its end (max_question in qa.json)",
                stacklevel=2,
            )
        cast = None if self.dtype is None else autocast(self.device, self.dtype)
        return read_windows(
            self.model,
            windows,
            examples,
            self.device,
            settings,
            autocast=cast,
            progress=progress,
            done=done,
        )

    def _give_back_memory(self, documents: int) -> None:
        """From time to time, on a CPU, what is free goes back to the system."""
        from bertqa.device import give_back_memory

        self.documents += documents
        waited = time.monotonic() - self.gave_back
        if (
            self.device.type != "cpu"
            or self.documents < DOCUMENTS_BETWEEN
            or waited < SECONDS_BETWEEN
        ):
            return
        give_back_memory()
        self.documents = 0
        self.gave_back = time.monotonic()

    # What it is worth, and where it is kept

    def evaluate(self, data: object) -> dict[str, float]:
        """Exact match and F1 of its answers, in percent: what `python -m bertqa.score` says of those of `bertqa.predict`.

        Args:
            data: questions with their answers, as `bertqa.fine_tune` takes them: a file, a list of dictionaries, a
                DataFrame or a datasets.Dataset.

        Raises:
            UserError: for data that cannot be read, or do not say what is right.
        """
        from bertqa.measuring import evaluate

        return evaluate(self, data)

    def calibrate(self, data: object) -> dict[str, float]:
        """Fit what `confidence` and `no_answer` are made of on questions that the model was not trained on; `save` keeps it.

        For a model that has none, since it was converted or trained long ago, and for texts of another kind: some hundred
        questions, a thousand better, a third of them or so without an answer.

        Args:
            data: as that of `evaluate`.

        Returns:
            confidence_error and no_answer_error, the expected calibration errors on these questions, which flatters a little.
        """
        from bertqa.measuring import calibrate

        return calibrate(self, data)

    def save(self, folder: str | Path) -> None:
        """Write a model folder, in place of an older one, that `Reader.load` and `--model` take, with what `qa` says now.

        What was loaded from a folder is copied from there as it is, also where it computes in other precision here.

        Raises:
            UserError: where the folder cannot be written, or nothing says where the tokenizer of a model of your own is.
        """
        from bertqa.model import folder as models

        if self.loaded and self.loaded.model is self.model:
            models.copy(self.loaded.arguments[0], folder, self.qa)
        else:
            models.save(folder, self.model, qa=self.qa)

    # Copies, other processes

    def __reduce__(self):
        """Pickled as what it was loaded from; by value where it was not, or its model is another now."""
        if self.loaded and self.loaded.model is self.model:
            return _load_again, (self.loaded.arguments, self.qa)
        from bertqa.model.prepack import slim

        parts = (self.tokenizer, self.qa, self.device, self.dtype)
        return _made_again, (slim(self.model), parts)

    def __deepcopy__(self, memo: dict) -> "Reader":
        model = copy.deepcopy(self.model, memo)
        made = Reader(model, copy.copy(self.tokenizer), self.qa, self.device, self.dtype)
        if self.loaded and self.loaded.model is self.model:
            made.loaded = replace(self.loaded, model=model)
        return made

    def _notice_fork(self) -> None:
        """In a forked child: none of the threads that the parent had is there, nor anybody who would open its locks."""
        if self.process != os.getpid():
            from bertqa.device import after_fork

            after_fork(self.device)
            self.tokenizer = copy.copy(self.tokenizer)
            self.requests = Requests(self)
            self.process = os.getpid()


def _load_again(arguments: tuple, qa: dict) -> Reader:
    """A Reader in another process, with what may have been changed in its `qa`."""
    name, device, dtype, int8, attention = arguments
    reader = Reader.load(name, device, dtype, int8=int8, attention=attention)
    reader.qa = qa
    return reader


def _made_again(slimmed: tuple, parts: tuple) -> Reader:
    """A Reader in another process, of a model that came by value."""
    from bertqa.model.prepack import widen as widen_parameters

    return Reader(widen_parameters(*slimmed), *parts)
