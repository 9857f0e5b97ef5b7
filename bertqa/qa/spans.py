"""Logits to spans: the n best of every question over all its windows, and the null score beside them.

A span is a first and a last paragraph token of one window, at most `max_answer_length` tokens long. Its score is the
start logit of the first plus the end logit of the last. The null answer's score is the same sum at [CLS], the minimum
over the question's windows, since each of them must want to abstain. Three ways to search (search.py) fill one table
(best.py):

    exact   the true n best spans; of equal scores the earlier first token, then the earlier last token. A span that
            several windows see counts once, with its highest score.
    hf      the candidates of transformers' run_qa (postprocess_qa_predictions), in its order and with its repeats: the
            20 best starts x 20 best ends of each window
    google  those of google-research/bert's run_squad (write_predictions), which asks for maximum context too

Two things differ from the old scripts on purpose. Text is cut from the raw paragraph by character offset, never put
together from word pieces. And where no span is valid they submit the literal text "empty"; here the answer is "".
Logits are those of a window's own tokens: the old scripts may also rank padding positions, which do not exist here.

W windows, S of them in a call with N tokens, Q questions, n spans kept of each.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from bertqa.data.windows import Windows
from bertqa.errors import UserError
from bertqa.qa.best import BestSpans, first_of_each
from bertqa.qa.search import Block, SpanSettings, find_candidates, find_exact

BLOCK = 1 << 18
"""Candidates looked at in one go, by measurement: smaller wastes calls, larger leaves the processor's cache."""

BUFFER = 1 << 17
"""Tokens held back until they are worth searching: small batches then cost no more than large ones."""

LARGEST_LOGIT = 1e30
"""Beyond it a model has diverged, and the sum of two could leave float32."""


@dataclass
class Spans:
    """The best spans of Q questions, best first; a row with fewer than n ends in score -inf, tokens -1."""

    settings: SpanSettings
    first: np.ndarray
    """(Q, n) int32, first token of the span, counted within its paragraph."""
    last: np.ndarray
    """(Q, n) int32, last token, inclusive."""
    start: np.ndarray
    """(Q, n) float32, start logit of the first token."""
    end: np.ndarray
    """(Q, n) float32, end logit of the last token."""
    score: np.ndarray
    """(Q, n) start + end, summed in float32; in float64 in google mode, as Google's Python does."""
    null_start: np.ndarray
    """(Q,) float32, start logit of [CLS] in the window with the lowest null score, the first of equals."""
    null_end: np.ndarray
    """(Q,) float32, its end logit."""
    null_score: np.ndarray
    """(Q,) their sum, and what a verifier adds to it, of the type of `score`."""


class SpanDecoder:
    """Streams logits of windows into the n best spans of each question, and forgets the logits.

    The result does not depend on the order or the grouping of the windows. Memory: 28 bytes a kept span (560 a question
    for n = 20; four times that in google mode) and some ten MB for the buffer and one block, however many windows come.
    """

    def __init__(self, windows: Windows, settings: SpanSettings = SpanSettings()):
        self.windows = windows
        self.settings = settings
        self.lengths = windows.lengths  # (W,)
        questions = len(windows.question_context)
        self.best = BestSpans(
            windows_of=np.bincount(windows.question, minlength=questions),
            kept=settings.kept,
            score_type=settings.score_type,
            once=settings.mode == "exact",
        )
        self.null = np.zeros(
            questions,
            [
                ("score", settings.score_type),
                ("row", np.int64),  # of the window that it is from
                ("start", np.float32),
                ("end", np.float32),
            ],
        )
        self.null["score"] = np.inf
        self.waiting = np.ones(len(windows.question), bool)  # (W,) not yet added
        self.buffer: list[tuple[np.ndarray, ...]] = []  # rows, starts, ends, own null scores
        self.buffered = 0  # tokens

    def add(
        self,
        rows: np.ndarray,
        start_logits: np.ndarray,
        end_logits: np.ndarray,
        null: np.ndarray | None = None,
    ) -> None:
        """Take the logits of S whole windows.

        Args:
            rows: (S,) rows of `windows`, each added once in the decoder's life.
            start_logits, end_logits: (N,) float32, window after window in the order of `rows`, each with all of its
                `windows.lengths` tokens from [CLS] to the last [SEP]. They are copied.
            null: (S,) what a head of its own, a verifier, adds to the null score of each window.

        Raises:
            UserError: naming a question whose logits are not finite.
        """
        rows = np.array(rows, np.int64)
        start = np.array(start_logits, np.float32)
        end = np.array(end_logits, np.float32)
        if null is None:
            null = np.zeros(len(rows))
        null = np.array(null, np.float32)
        tokens = int(self.lengths[rows].sum())
        assert start.shape == end.shape == (tokens,), (
            f"{start.shape} and {end.shape} logits for {tokens} tokens"
        )
        assert null.shape == rows.shape, f"{null.shape} null scores for {len(rows)} windows"
        assert self.waiting[rows].all() and (np.diff(np.sort(rows)) > 0).all(), (
            "a window was added twice"
        )
        self._check_finite(rows, start, end)
        self._check_null(rows, null)
        self.waiting[rows] = False
        self.buffer.append((rows, start, end, null))
        self.buffered += tokens
        if self.buffered >= BUFFER:
            self._search()

    def finish(self) -> Spans:
        """The spans, once every window was added."""
        assert not self.waiting.any(), (
            f"{self.waiting.sum()} windows never added, e.g. row {self.waiting.argmax()}"
        )
        self._search()
        assert np.isfinite(self.null["score"]).all(), "every question needs a window"
        best = self.best.rows
        return Spans(
            settings=self.settings,
            first=best["first"],
            last=best["last"],
            start=best["start"],
            end=best["end"],
            score=best["score"],
            null_start=self.null["start"],
            null_end=self.null["end"],
            null_score=self.null["score"],
        )

    def _check_finite(self, rows, start, end):
        # A comparison with NaN is False.
        finite = (np.abs(start) < LARGEST_LOGIT) & (np.abs(end) < LARGEST_LOGIT)  # (N,)
        if finite.all():
            return
        token = int(finite.argmin())  # the first that is not
        # Windows of 5 and 4 tokens end at 5 and 9: token 4 is of the first, token 5 of the second.
        ends = self.lengths[rows].cumsum()
        nth = np.searchsorted(ends, token, side="right")
        raise UserError(
            f"question {self.windows.question[rows[nth]]} (counted from 0): the model gave start logit "
            f"{start[token]} and end logit {end[token]}; logits must be finite, so its weights are damaged, or "
            "training diverged, or half precision overflowed: try float32"
        )

    def _check_null(self, rows, null):
        good = np.abs(null) < LARGEST_LOGIT  # False for NaN too
        if not good.all():
            window = int(good.argmin())
            raise UserError(
                f"question {self.windows.question[rows[window]]} (counted from 0): the model gave null score {null[window]}; "
                "scores must be finite, so its weights are damaged, or training diverged"
            )

    def _search(self):
        """Empty the buffer into the tables."""
        if not self.buffer:
            return
        columns = zip(*self.buffer, strict=True)
        rows, starts, ends, null = (np.concatenate(parts) for parts in columns)
        self.buffer = []
        self.buffered = 0
        cls = self.lengths[rows].cumsum() - self.lengths[rows]  # (S,) where each sequence begins
        self._add_null(rows, starts[cls], ends[cls], null)
        # A block is as wide as its longest window: windows of one length waste none of it.
        find = find_exact if self.settings.mode == "exact" else find_candidates
        for part in _parts_of_similar_size(self.windows.count[rows], self.settings):
            block = self._block(rows[part], cls[part])
            found = find(block, self.windows, self.settings, starts, ends)
            self.best.add(self.windows.question[block.rows], found)

    def _block(self, rows: np.ndarray, cls: np.ndarray) -> Block:
        length = self.lengths[rows]
        count = self.windows.count[rows]
        return Block(
            rows=rows,
            cls=cls,
            length=length,
            question=length - count - 1,  # all but the paragraph and the last [SEP]
            count=count,
            ahead=self.windows.first[rows].astype(np.int64),
        )

    def _add_null(self, rows, start, end, null):
        """Lower the null score of each question to that of its windows, the first window winning ties.

        Question 7 has null score 3 from window 20. Its windows 22, 21 and 24 bring 2, 1 and 1: it gets the 1 of
        window 21, in whatever order and company they come.
        """
        new = np.empty(len(rows), self.null.dtype)
        new["score"] = start.astype(self.settings.score_type) + end + null
        new["row"] = rows
        new["start"] = start
        new["end"] = end
        question = self.windows.question[rows]
        # One window for each question first: an assignment by index keeps one of several at random.
        order = np.lexsort((rows, new["score"], question))  # by question, lowest score first
        lowest = order[first_of_each(question[order])]
        new = new[lowest]
        question = question[lowest]
        old = self.null[question]
        tied = new["score"] == old["score"]
        lower = (new["score"] < old["score"]) | (tied & (new["row"] < old["row"]))
        self.null[question[lower]] = new[lower]


def _parts_of_similar_size(counts: np.ndarray, settings: SpanSettings) -> Iterator[np.ndarray]:
    """Places in counts (S,), largest first, as many at a time as a block should hold.

    With room for two windows of 300 tokens or for three of 200, counts 200 300 200 100 300 are given out
    as [1, 4], [0, 2, 3].
    """
    order = np.argsort(-counts, kind="stable")
    begin = 0
    while begin < len(order):
        largest = int(counts[order[begin]])
        per_start = settings.n_best
        if settings.mode == "exact":
            per_start = min(settings.max_answer_length, largest)
        candidates = largest + settings.n_best * per_start + 1  # of a window
        stop = begin + max(1, BLOCK // candidates)
        yield order[begin:stop]
        begin = stop
