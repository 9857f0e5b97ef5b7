"""`Reader`: a model folder that answers questions, from Python. What transformers 4's question-answering pipeline was.

A text of any length is read in overlapping windows, and several documents as if they were one text, except that no
window spans two of them. Answers are compared by start + end logit over all windows, as evaluation does.
"""

import operator
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bertqa.data.chunks import chunks
from bertqa.data.examples import Example
from bertqa.data.token_cache import TokenCache
from bertqa.data.tokenizer import WordPiece
from bertqa.data.windows import Windows, build_windows
from bertqa.errors import UserError
from bertqa.qa.asked import Asked, asked_of_pair
from bertqa.qa.documents import Answer, Ranking, Reading, log_mass, not_ranked, rank, widen
from bertqa.qa.search import SpanSettings
from bertqa.qa.spans import SpanDecoder, Spans

QUESTIONS_AT_ONCE = 2048
"""Questions whose windows are laid and sorted by length together: memory is bounded by it, not by the file."""

FIRST_QUESTIONS = 32
"""Questions in the first chunk of `answer_many`, so that answers come soon; each next one is twice as large."""

MAX_ANSWER_LENGTH = 30
"""Tokens, where the model folder does not say how it was trained."""


@dataclass(frozen=True)
class How:
    """How questions are to be answered."""

    top_k: int
    threshold: float | None
    """Null odds above which the answer is ""; None: never."""
    spans: SpanSettings
    whole_words: bool = False


class Reader:
    """A model folder ready to answer questions. Several threads may ask one Reader at once.

    >>> reader = Reader.load("weights/minilm-squad2")                                               # doctest: +SKIP
    >>> reader.answer("Who kept the lamp?", "Agnes Holm kept the lamp for thirty years.").answer    # doctest: +SKIP
    'Agnes Holm'
    """

    def __init__(self, model, tokenizer, qa: dict | None = None, device=None, dtype=None):
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
        self.qa = with_defaults(_qa_of(model) if qa is None else qa, _positions(model))
        self.device = next(model.parameters()).device if device is None else device
        self.dtype = dtype

    @classmethod
    def load(
        cls, name: str | Path, device=None, dtype=None, *, int8: bool = False, attention=None
    ) -> "Reader":
        """Load a model folder, a Hugging Face folder or a Hub id.

        Args:
            device: "cuda", "cuda:1", "cpu", "mps" or a torch.device; None or "auto" takes the fastest that is there.
            dtype: "fp32", "bf16", "fp16" or the torch dtype; None or "auto" what is fastest there without loss.
            int8: run the matrix products in 8 bits, on the CPU.
            attention: of your own, where the model was trained with it.

        Raises:
            UserError: where there is no such model, or no such device, or the model has no answer head.
        """
        from bertqa.device import as_device, as_dtype
        from bertqa.hf.resolve import resolve_weights
        from bertqa.model import folder, prepack

        where = Path(resolve_weights(name))
        if int8 and device in (None, "auto"):
            device = "cpu"
        device = as_device(device)
        if int8 and device.type != "cpu":
            raise UserError(
                f"int8 runs on the CPU only, and the device is {device}; use device cpu, or bf16 on a GPU"
            )
        config = folder.read_config(where)
        if config["head"] != folder.QA:
            raise UserError(
                f"{where}: its head is {config['head']!r}, but answering needs {folder.QA!r}; fine-tune it first: "
                "python -m bertqa.train --weights ... --fresh-head"
            )
        qa = folder.read_qa(where)
        dtype = as_dtype(dtype, device)
        model = folder.load(where, device=device, attention=attention)
        model = prepack.int8(model) if int8 else prepack.pack(model, dtype)
        return cls(model, WordPiece.load(where), qa, device, dtype)

    def answer(
        self, question: str, context: str | Sequence[str], top_k: int = 1, **options
    ) -> Answer | list[Answer]:
        """The best answer, or the `top_k` best in a list where top_k > 1; options as those of `answer_many`.

        The context is a text, or a list of documents, of which the best answer over all is given.
        """
        return next(self.answer_many([(question, context)], top_k, **options))

    def answer_many(
        self,
        pairs: Iterable[tuple[str, str | Sequence[str]]],
        top_k: int = 1,
        *,
        allow_no_answer: bool | None = None,
        threshold: float | None = None,
        max_answer_length: int | None = None,
        whole_words: bool = False,
        on_error: str = "stop",
    ) -> Iterator:
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
        return Answers(self._answers(pairs, how, on_error))

    def _answers(self, pairs: Iterable, how: How, on_error: str) -> Iterator:
        asked = (asked_of_pair(number, pair) for number, pair in enumerate(pairs, 1))
        weigh = operator.attrgetter("characters")
        for chunk in chunks(asked, QUESTIONS_AT_ONCE, weigh, first=FIRST_QUESTIONS):
            for ranking in self.rank(chunk, how):
                if ranking.error and on_error == "stop":
                    raise UserError(ranking.error)
                yield ranking.answers[0] if how.top_k == 1 else ranking.answers[: how.top_k]

    def how(
        self,
        top_k: int = 1,
        *,
        allow_no_answer: bool | None = None,
        threshold: float | None = None,
        max_answer_length: int | None = None,
        whole_words: bool = False,
        mode: str = "exact",
        max_context: bool = False,
    ) -> How:
        """The options of `answer_many` with the model's own values where None. Raises UserError for what has no meaning."""
        if top_k < 1:
            raise UserError(f"top_k is {top_k}; use 1 or more")
        tuned = self.qa.get("null_threshold")
        if allow_no_answer is None:
            allow_no_answer = threshold is not None or tuned is not None
        if threshold is None:
            threshold = 0.0 if tuned is None else tuned
        # More spans than answers, since some have the same text.
        spans = self._span_settings(max(20, 3 * top_k), max_answer_length, mode, max_context)
        return How(top_k, threshold if allow_no_answer else None, spans, whole_words)

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
        if how.whole_words:
            windows = reading.windows
            widen(reading.spans, windows, self.tokenizer.continues(windows.contexts.ids))
        return list(rank(reading, [len(asked.documents) for asked in chunk], how.threshold))

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
        settings = self._span_settings(n, max_answer_length, mode, max_context)
        reading = self.read(examples, settings, progress)
        return reading.spans, reading.windows

    def _span_settings(self, n: int, max_answer_length: int | None, mode: str, max_context: bool):
        if max_answer_length is None:
            max_answer_length = self.qa.get("max_answer_length", MAX_ANSWER_LENGTH)
        return SpanSettings(n, max_answer_length, mode, max_context)

    def read(
        self,
        examples: Sequence[Example],
        settings: SpanSettings,
        progress: str | None = None,
        done: Callable[[float], None] | None = None,
    ) -> Reading:
        """Run the model over all windows of the examples."""
        from bertqa.device import autocast
        from bertqa.inference import forward_all, span_scores

        windows = build_windows(
            examples,
            self.tokenizer,
            max_length=self.qa["max_length"],
            overlap=self.qa.get("overlap"),
            step=self.qa.get("step"),
            max_question=self.qa["max_question"],
        )
        decoder = SpanDecoder(windows, settings)
        lengths = windows.lengths
        mass = np.full((2, len(examples)), -np.inf)  # start and end of each document

        def compute(batch, layout):
            return span_scores(
                self.model(batch.input_ids, token_type_ids=batch.token_type_ids, lengths=layout)
            )

        cast = None if self.dtype is None else autocast(self.device, self.dtype)
        batches = forward_all(compute, windows, self.device, autocast=cast, progress=progress)
        for rows, (start, end, *null) in batches:
            decoder.add(rows, start, end, *null)
            question = windows.question[rows]
            count = windows.count[rows]
            np.logaddexp.at(mass[0], question, log_mass(start, lengths[rows], count))
            np.logaddexp.at(mass[1], question, log_mass(end, lengths[rows], count))
            if done is not None:
                done(len(rows) / len(windows))
        return Reading(examples, decoder.finish(), windows, mass)


def _qa_of(model) -> dict:
    """qa.json of the folder that a model was loaded from, if it was."""
    from bertqa.model.folder import read_qa

    where = getattr(model, "folder", None)
    return {} if where is None else read_qa(where)


def _positions(model) -> int:
    """The longest sequence that a model takes, 512 where it does not say; a model of one's own may leave it to its encoder."""
    config = getattr(getattr(model, "encoder", model), "config", None)
    return 512 if config is None else config.max_position_embeddings


def with_defaults(qa: dict, positions: int) -> dict:
    """What qa.json says of windows, completed: a folder that was converted and never trained here says nothing.

    The defaults are those of transformers' pipeline, or what a model of so many positions can take.
    """
    qa = dict(qa)
    length = qa.setdefault("max_length", min(384, positions))
    asked = qa.setdefault("max_question", min(64, length // 2))
    if "step" not in qa:
        qa.setdefault("overlap", min(128, (length - asked) // 2))
    return qa


class Answers:
    """Answers as they are found. Threads may share it: each answer goes to one of them."""

    def __init__(self, answers: Iterator):
        self.answers = answers
        self.lock = threading.Lock()

    def __iter__(self) -> "Answers":
        return self

    def __next__(self):
        with self.lock:
            return next(self.answers)
