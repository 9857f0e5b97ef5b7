"""`Reader`: a model folder that answers questions, from Python. What transformers 4's question-answering pipeline was.

A text of any length is read in overlapping windows, and several documents as if they were one text, except that no
window spans two of them. Answers are compared by start + end logit over all windows, as evaluation does.
"""

import reprlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bertqa.data.examples import Example
from bertqa.data.tokenizer import WordPiece
from bertqa.data.tokens import Tokens
from bertqa.data.windows import Windows, build_windows
from bertqa.errors import UserError
from bertqa.qa.answers import n_best, null_odds
from bertqa.qa.spans import SpanDecoder, Spans, SpanSettings
from bertqa.qa.thresholds import abstain

CHUNK = 2048
"""Questions whose windows are laid and sorted by length together: memory is bounded by it, not by the file."""

CHARACTERS = 1 << 21
"""Characters to read in a chunk: where texts are long, it holds fewer questions."""

FIRST = 32
"""Questions in the first chunk of `answer_many`, so that answers come soon; each next one is twice as large."""

LONG = 2000
"""Characters from which the tokens of a text are kept for the next question about it."""

MEMORY = 1 << 20
"""Tokens kept (12 MB, and their texts)."""


@dataclass(frozen=True)
class Answer:
    """An answer cut from its context. `dataclasses.asdict` gives what transformers 4's pipeline returned, and `document`."""

    answer: str
    """"" where the context has no answer."""
    score: float
    """P(first token) x P(last token), in [0, 1], each a softmax over every token that was read and [CLS]."""
    start: int
    """First character of the answer in its document; 0 where there is none."""
    end: int
    """One past its last character."""
    document: int = 0
    """Which of the documents it stands in, counted from 0; 0 where there is no answer."""


class Reader:
    """A model folder ready to answer questions. Several threads may ask one Reader at once.

    >>> reader = Reader.load("weights/minilm-squad2")                                               # doctest: +SKIP
    >>> reader.answer("Who kept the lamp?", "Agnes Holm kept the lamp for thirty years.").answer    # doctest: +SKIP
    'Agnes Holm'
    """

    def __init__(self, model, tokenizer, qa: dict, device, dtype=None):
        self.model, self.qa, self.device, self.dtype = model.eval(), qa, device, dtype
        self.tokenizer = tokenizer if isinstance(tokenizer, Memory) else Memory(tokenizer)

    @classmethod
    def load(cls, name: str | Path, device=None, dtype=None, *, int8: bool = False) -> "Reader":
        """Load a model folder, a Hugging Face folder or a Hub id.

        Args:
            device: "cuda", "cuda:1", "cpu", "mps" or a torch.device; None or "auto" takes the fastest that is there.
            dtype: "fp32", "bf16", "fp16" or the torch dtype; None or "auto" what is fastest there without loss.
            int8: run the matrix products in 8 bits, on the CPU.

        Raises:
            UserError: where there is no such model, or no such device, or the model has no answer head.
        """
        from bertqa.hf.resolve import resolve_weights
        from bertqa.model import folder, prepack

        where = Path(resolve_weights(name))
        device = _device("cpu" if int8 and device in (None, "auto") else device)
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
        # A folder that was converted and never trained here says nothing about windows: the pipeline's defaults.
        length = qa.setdefault(
            "max_length", min(384, config["architecture"]["max_position_embeddings"])
        )
        asked = qa.setdefault("max_question", min(64, length // 2))
        if "step" not in qa:
            qa.setdefault("overlap", min(128, (length - asked) // 2))
        model, dtype = folder.load(where, device=device), _dtype(dtype, device)
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
    ) -> Iterator:
        """Answers for (question, context) pairs, in their order; `pairs` may be endless, answers come as it is read.

        Args:
            top_k: 1 yields an Answer for each pair, more yields lists of at most so many, with distinct texts in a document.
            allow_no_answer: True answers "" where the null odds exceed the threshold; False never does; None is True for
                a model with a threshold.
            threshold: where it lies; None takes the one that was tuned with the model, or else 0.
            max_answer_length: most tokens of an answer; as trained where None.
            whole_words: widen answers that begin or end inside a word to all of it, as transformers' pipeline did.

        Raises:
            UserError: for a pair that is not texts, by its number, and for options without meaning.
        """
        if top_k < 1:
            raise UserError(f"top_k is {top_k}; use 1 or more")
        tuned = self.qa.get("null_threshold")
        if allow_no_answer is None:
            allow_no_answer = threshold is not None or tuned is not None
        if threshold is None:
            threshold = tuned if tuned is not None else 0.0
        length = (
            self.qa.get("max_answer_length", 30) if max_answer_length is None else max_answer_length
        )
        settings = SpanSettings(
            max(20, 3 * top_k), length
        )  # more than asked for, since some have the same text
        asked = (_examples(number, pair) for number, pair in enumerate(pairs, 1))
        for chunk in chunks(
            asked, CHUNK, lambda examples: sum(len(e.context) for e in examples), first=FIRST
        ):
            for answers in self._ranked(
                chunk, settings, threshold if allow_no_answer else None, whole_words
            ):
                yield answers[0] if top_k == 1 else answers[:top_k]

    def spans(
        self,
        examples,
        n: int = 20,
        max_answer_length: int | None = None,
        progress: str | None = None,
        *,
        mode: str = "exact",
        max_context: bool = False,
    ) -> tuple[Spans, Windows]:
        """(Spans, Windows) of examples: what decoding, scoring and files are made from; modes as those of SpanSettings."""
        settings = SpanSettings(
            n, max_answer_length or self.qa.get("max_answer_length", 30), mode, max_context
        )
        return self._read(examples, settings, progress)[:2]

    def _read(
        self, examples, settings, progress: str | None = None
    ) -> tuple[Spans, Windows, np.ndarray]:
        """(Spans, Windows, mass): mass (2, Q) is the log of what exp(start logit), exp(end logit) sum to over all
        windows of a question, at [CLS] and the paragraph's tokens."""
        from bertqa.device import autocast
        from bertqa.inference import forward_all

        windows = build_windows(
            examples,
            self.tokenizer,
            max_length=self.qa["max_length"],
            overlap=self.qa.get("overlap"),
            step=self.qa.get("step"),
            max_question=self.qa["max_question"],
        )
        decoder, lengths, mass = (
            SpanDecoder(windows, settings),
            windows.lengths,
            np.full((2, len(examples)), -np.inf),
        )

        def compute(batch, layout):
            return tuple(
                self.model(batch.input_ids, token_type_ids=batch.token_type_ids, lengths=layout)
            )

        cast = autocast(self.device, self.dtype) if self.dtype is not None else None
        for rows, (start, end) in forward_all(
            compute, windows, self.device, autocast=cast, progress=progress
        ):
            decoder.add(rows, start, end)
            for side, logits in zip(mass, (start, end), strict=True):
                np.logaddexp.at(
                    side,
                    windows.question[rows],
                    log_mass(logits, lengths[rows], windows.count[rows]),
                )
        return decoder.finish(), windows, mass

    def _ranked(
        self, chunk: list[list], settings, threshold: float | None, whole_words: bool
    ) -> Iterator[list[Answer]]:
        """Answers, best first, for each list of a chunk: one Example per document of a question."""
        examples = [example for documents in chunk for example in documents]
        spans, windows, mass = self._read(examples, settings)
        # The documents of a question are one text: one null score, the least of all, and one sum of probabilities.
        sizes = np.array([len(documents) for documents in chunk])
        begins = sizes.cumsum() - sizes
        spans.null_score = np.minimum.reduceat(spans.null_score, begins).repeat(sizes)  # (Q,)
        total = np.logaddexp.reduceat(mass, begins, axis=1).sum(axis=0)  # (questions asked,)
        silent = abstain(np.minimum.reduceat(null_odds(spans), begins), threshold)
        if whole_words:
            widen(spans, windows, self.tokenizer.continues(windows.contexts.ids))
        lists = n_best(spans, windows, examples, no_answer=False)
        for documents, begin, log_sum, abstains in zip(chunk, begins, total, silent, strict=True):
            found = [
                (entry["start_logit"] + entry["end_logit"], number, entry)
                for number in range(len(documents))
                for entry in next(lists)
                if entry["text"]
            ]
            if len(documents) > 1:
                found.sort(key=lambda item: -item[0])
            answers = [
                Answer(entry["text"], _share(score, log_sum), entry["start"], entry["end"], number)
                for score, number, entry in found
            ]
            if threshold is not None or not answers:
                # The threshold decides whether "" comes first; if not, it stands behind those that score higher.
                null = float(spans.null_score[begin])
                place = 0 if abstains else max(1, sum(score >= null for score, _, _ in found))
                answers.insert(place, Answer("", _share(null, log_sum), 0, 0))
            yield answers


class Memory:
    """A tokenizer that keeps the tokens of the long texts it saw last: many questions about one text tokenise it once."""

    def __init__(self, tokenizer, most: int = MEMORY):
        self.tokenizer, self.cls_id, self.sep_id, self.most = (
            tokenizer,
            tokenizer.cls_id,
            tokenizer.sep_id,
            most,
        )
        self.kept: OrderedDict[str, Tokens] = OrderedDict()
        self.lock = threading.Lock()

    def encode(self, texts: Sequence[str], progress: str | None = None) -> Tokens:
        """What the tokenizer gives for these texts."""
        if not any(len(text) >= LONG for text in texts):
            return self.tokenizer.encode(texts, progress)
        with self.lock:
            found = {text: self.kept[text] for text in texts if text in self.kept}
        new = [text for text in texts if text not in found]
        fresh = self.tokenizer.encode(new, progress)
        found.update((text, _row(fresh, row)) for row, text in enumerate(new))
        self._keep({text: found[text] for text in texts if len(text) >= LONG})
        pieces = [found[text] for text in texts]
        rows = np.concatenate([[0], np.cumsum([len(piece.ids) for piece in pieces])])
        return Tokens(
            *(
                np.concatenate([getattr(piece, name) for piece in pieces])
                for name in ("ids", "starts", "ends")
            ),
            rows,
        )

    def _keep(self, texts: dict[str, Tokens]) -> None:
        """Put texts at the end of the queue, and drop from its front what is too much; the last one always stays."""
        with self.lock:
            for text, tokens in texts.items():
                self.kept[text] = tokens
                self.kept.move_to_end(text)
            size = sum(len(tokens.ids) for tokens in self.kept.values())
            while size > self.most and len(self.kept) > 1:
                size -= len(self.kept.popitem(last=False)[1].ids)

    def continues(self, ids: np.ndarray) -> np.ndarray:
        """(T,) bool: the token goes on with the word of the one before it ("##ing")."""
        backend = self.tokenizer.backend
        prefix = getattr(backend.model, "continuing_subword_prefix", None) or "##"
        distinct, where = np.unique(ids, return_inverse=True)
        return np.array([backend.id_to_token(int(i)).startswith(prefix) for i in distinct], bool)[
            where
        ]


def _row(tokens: Tokens, row: int) -> Tokens:
    """One text of many, its arrays copied so that it does not hold on to the others."""
    part = slice(*tokens.rows[row : row + 2].tolist())
    ids, starts, ends = (array[part].copy() for array in (tokens.ids, tokens.starts, tokens.ends))
    return Tokens(ids, starts, ends, np.array([0, len(ids)], np.int64))


def widen(spans: Spans, windows: Windows, continues: np.ndarray) -> None:
    """Move the ends of spans that lie inside a word to its first and its last token.

    Args:
        continues: (T,) bool for the tokens of `windows.contexts`, see `Memory.continues`.
    """
    tokens = np.arange(len(continues))
    begins = ~continues
    begins[windows.contexts.rows[:-1][windows.contexts.counts > 0]] = True
    first_of = np.maximum.accumulate(
        np.where(begins, tokens, 0)
    )  # (T,) where the token's word begins
    behind = np.append(begins[1:], True)  # (T,) the next token begins another
    last_of = np.minimum.accumulate(np.where(behind, tokens, len(tokens))[::-1])[::-1]  # (T,)
    base = np.broadcast_to(
        windows.contexts.rows[windows.question_context][:, None], spans.first.shape
    )
    found = spans.first >= 0
    spans.first[found] = first_of[(spans.first + base)[found]] - base[found]
    spans.last[found] = last_of[(spans.last + base)[found]] - base[found]


def log_mass(logits: np.ndarray, lengths: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(S,) log of the sum of exp(logit) over [CLS] and the paragraph's tokens of S windows.

    Args:
        logits: (N,) window after window.
        lengths, counts: (S,) tokens of each window, and how many of them, before the last [SEP], are the paragraph's.
    """
    logits, ends = logits.astype(np.float64), lengths.cumsum(dtype=np.int64)
    bounds = np.stack([ends - 1 - counts, ends - 1], axis=1).ravel()
    paragraph = np.logaddexp.reduceat(logits, bounds)[
        ::2
    ]  # every other one: the space between two of them
    return np.logaddexp(logits[ends - lengths], np.where(counts > 0, paragraph, -np.inf))


def chunks(
    items: Iterable, size: int, weigh: Callable = lambda item: 0, first: int | None = None
) -> Iterator[list]:
    """Consecutive lists of `size` items, or fewer where they weigh over CHARACTERS; the last one is shorter.

    With `first` the lists grow from that many items, doubling.
    """
    chunk: list = []
    now, weight = min(first or size, size), 0
    for item in items:
        chunk.append(item)
        weight += weigh(item)
        if len(chunk) >= now or weight > CHARACTERS:
            yield chunk
            chunk, now, weight = [], min(2 * now, size), 0
    if chunk:
        yield chunk


def _examples(number: int, pair) -> list[Example]:
    """A (question, context) pair as one Example per document. Raises UserError where it is something else."""
    question, context = pair if isinstance(pair, (tuple, list)) and len(pair) == 2 else (None, pair)
    documents = (
        [context]
        if isinstance(context, str)
        else list(context)
        if isinstance(context, (tuple, list))
        else [None]
    )
    for what in (question, *documents):
        if not isinstance(what, str):
            raise UserError(
                f"pair {number} is {reprlib.repr(pair)}; give (question, context), where the question is a "
                "string and the context a string or a list of strings"
            )
    return [Example(str(number), question, document, (), ()) for document in documents or [""]]


def _share(score: float, log_sum: float) -> float:
    """P(start) x P(end); at most 1, whatever rounding says."""
    return float(np.exp(min(0.0, score - log_sum)))


def _device(device):
    """The torch.device of a name, "cuda:1" included, or the one that is given."""
    import torch

    from bertqa.device import pick_device

    if isinstance(device, torch.device):
        return device
    name, _, number = (device or "auto").partition(":")
    if number and not number.isdigit():
        raise UserError(f"device is {device!r}; use auto, cpu, mps, cuda or cuda:N")
    return pick_device(name, int(number or 0))


def _dtype(dtype, device):
    """The torch dtype of a name, or the one that is given."""
    from bertqa.device import DTYPES, pick_precision

    if dtype in DTYPES.values():
        return dtype
    if dtype not in (None, "auto", *DTYPES):
        raise UserError(f"dtype is {dtype!r}; use auto, {', '.join(DTYPES)} or the torch dtype")
    return pick_precision(dtype or "auto", device)
