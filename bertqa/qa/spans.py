"""Logits to spans: the n best of every question over all its windows, and the null score beside them.

A span is a first and a last paragraph token of one window, at most `max_answer_length` tokens long. Its score is the
start logit of the first plus the end logit of the last. The null answer's score is the same sum at [CLS], the minimum
over the question's windows, since each of them must want to abstain. Three ways to search (search.py) fill one table:

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
from bertqa.qa.search import Block, Found, SpanSettings, find_candidates, find_exact

BLOCK = 1 << 18
"""Candidates looked at in one go, by measurement: smaller wastes calls, larger leaves the processor's cache."""

BUFFER = 1 << 17  # tokens held back until they are worth searching: small batches then cost no more
LARGEST_LOGIT = 1e30  # beyond it a model has diverged, and the sum of two could leave float32

FIELDS = (("order", "i8"), ("first", "i4"), ("last", "i4"), ("start", "f4"), ("end", "f4"))
"""What is kept of a span beside its score."""


@dataclass
class Spans:
    """The best spans of Q questions, best first; a row with fewer than n ends in score -inf, tokens -1."""

    settings: SpanSettings
    first: np.ndarray  # (Q, n) int32, first token of the span, counted within its paragraph
    last: np.ndarray  # (Q, n) int32, last token, inclusive
    start: np.ndarray  # (Q, n) float32, start logit of the first token
    end: np.ndarray  # (Q, n) float32, end logit of the last token
    score: np.ndarray
    """(Q, n) start + end, summed in float32; in float64 in google mode, as Google's Python does."""
    null_start: np.ndarray
    """(Q,) float32, start logit of [CLS] in the window with the lowest null score, the first of equals."""
    null_end: np.ndarray  # (Q,) float32, its end logit
    null_score: np.ndarray  # (Q,) their sum, and what a verifier adds to it, of the type of `score`


class SpanDecoder:
    """Streams logits of windows into the n best spans of each question, and forgets the logits.

    The result does not depend on the order or the grouping of the windows. Memory: 560 bytes a question for n = 20, four
    times that in google mode, and some ten MB for the buffer and one block, however many windows come.
    """

    def __init__(self, windows: Windows, settings: SpanSettings = SpanSettings()):
        self.windows = windows
        self.settings = settings
        self.lengths = windows.lengths  # (W,)
        questions = len(windows.question_context)
        self.best = BestSpans(np.bincount(windows.question, minlength=questions), settings)
        # The lowest null score of each question, with the row of the window that it is from.
        fields = [("score", settings.score_type), ("row", "i8"), ("start", "f4"), ("end", "f4")]
        self.null = np.zeros(questions, fields)
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

        Raises UserError naming a question whose logits are not finite.
        """
        # Copies: they wait in the buffer, and the caller may use its arrays again.
        rows = np.array(rows, np.int64)
        start = np.array(start_logits, np.float32)
        end = np.array(end_logits, np.float32)
        null = np.array(np.zeros(len(rows)) if null is None else null, np.float32)
        tokens = int(self.lengths[rows].sum())
        shapes = f"{start.shape} and {end.shape} logits for {tokens} tokens"
        assert start.shape == end.shape == (tokens,), shapes
        assert null.shape == rows.shape, f"{null.shape} null scores for {len(rows)} windows"
        once = self.waiting[rows].all() and len(np.unique(rows)) == len(rows)
        assert once, "a window was added twice"
        self._check_finite(rows, start, end, null)
        self.waiting[rows] = False
        self.buffer.append((rows, start, end, null))
        self.buffered += tokens
        if self.buffered >= BUFFER:
            self._search()

    def finish(self) -> Spans:
        """The spans, once every window was added."""
        missing = f"{self.waiting.sum()} windows never added, e.g. row {self.waiting.argmax()}"
        assert not self.waiting.any(), missing
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

    def _check_finite(self, rows, start, end, null):
        """Refuse logits (N,) and null scores (S,) that are not finite. A comparison with NaN is False."""
        finite = (np.abs(start) < LARGEST_LOGIT) & (np.abs(end) < LARGEST_LOGIT)  # (N,)
        if not finite.all():
            token = int(finite.argmin())  # the first that is not
            # Windows of 5 and 4 tokens end at 5 and 9: token 4 is of the first, token 5 of the second.
            nth = np.searchsorted(self.lengths[rows].cumsum(), token, side="right")
            raise UserError(
                f"question {self.windows.question[rows[nth]]} (counted from 0): the model gave start logit "
                f"{start[token]} and end logit {end[token]}; logits must be finite, so its weights are damaged, or "
                "training diverged, or half precision overflowed: try float32"
            )
        finite = np.abs(null) < LARGEST_LOGIT  # (S,)
        if not finite.all():
            nth = int(finite.argmin())
            raise UserError(
                f"question {self.windows.question[rows[nth]]} (counted from 0): the model gave null score {null[nth]}; "
                "scores must be finite, so its weights are damaged, or training diverged"
            )

    def _search(self):
        """Empty the buffer into the tables."""
        if not self.buffer:
            return
        rows, starts, ends, null = map(np.concatenate, zip(*self.buffer, strict=True))
        self.buffer = []
        self.buffered = 0
        # Lengths 5, 4, 7 begin at 0, 5, 9, where their [CLS] is.
        cls = self.lengths[rows].cumsum() - self.lengths[rows]  # (S,)
        self._add_null(rows, starts[cls], ends[cls], null)
        # A block is as wide as its longest window: windows of one length waste none of it.
        find = find_exact if self.settings.mode == "exact" else find_candidates
        for part in _parts_of_similar_size(self.windows.count[rows], self.settings):
            block = Block(self.windows, rows[part], cls[part], starts, ends)
            found = find(block, self.settings)
            self.best.add(self.windows.question[block.rows], found)

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


class BestSpans:
    """Q questions, the n best spans of each.

    `rows` is (Q,) records; each field of a record is n wide: score and FIELDS (see `Found`). Where there are fewer
    spans, score is -inf, first and last are -1.
    """

    def __init__(self, windows_of: np.ndarray, settings: SpanSettings):
        """windows_of (Q,): how many windows each question has."""
        self.settings = settings
        self.alone = windows_of == 1  # (Q,)
        fields = [("score", settings.score_type), *FIELDS]
        self.blank = np.zeros((), [(name, type, (settings.kept,)) for name, type in fields])
        self.blank["score"] = -np.inf
        self.blank["first"] = -1
        self.blank["last"] = -1
        self.rows = np.full(len(windows_of), self.blank)

    def add(self, questions: np.ndarray, found: Found) -> None:
        """Take the spans of B windows; `questions` (B,) may repeat."""
        records = self._records(found)
        alone = self.alone[questions]
        # A question's only window has nothing to be compared with, and most have only one.
        self.rows[questions[alone]] = records[alone]
        if not alone.all():
            self._merge(questions[~alone], records[~alone])

    def _records(self, found: Found) -> np.ndarray:
        """(B,) records of spans (B, n'), n' <= n; what is no valid span is blank."""
        records = np.full(len(found.score), self.blank)
        valid = found.score > -np.inf
        width = valid.shape[1]
        for name in records.dtype.names:
            values = getattr(found, name)
            np.copyto(records[name][:, :width], values, where=valid, casting="same_kind")
        return records

    def _merge(self, questions: np.ndarray, records: np.ndarray) -> None:
        """Keep the n best of what the table has and of (B,) new records, whose questions may repeat.

        With n = 2, question 7 has spans a (score 5) and b (1) in the table, and two windows bring
        c (4), a (5) and d (3):

            pool             5a 1b | 4c 5a | 3d      every span that may stay
            one of each      5a 1b 4c 3d             a was seen by two windows
            the n best       5a 4c                   back into the table
        """
        own = np.unique(questions)  # (R,) each question once
        pool = np.concatenate([self.rows[own], records])  # (R + B,)
        # In the example the pool has three lines of two spans, and all six are of line 0 of `own`.
        line = np.searchsorted(own, np.concatenate([own, questions]))
        line = line.repeat(self.settings.kept)  # whose each span is: a row of `own`
        field = {name: pool[name].ravel() for name in pool.dtype.names}  # a value a span
        # From here on spans are numbers into `field`, so that one sort orders all of its columns.
        spans = np.flatnonzero(field["score"] > -np.inf)
        # The old scripts list a span once for each window that sees it.
        if self.settings.mode == "exact":
            spans = _one_of_each(spans, line, field)
        spans, rank = _best_of_each_question(spans, line, field, self.settings.kept)

        merged = np.full(len(own), self.blank)
        for name, values in field.items():
            merged[name][line[spans], rank] = values[spans]
        self.rows[own] = merged


def _one_of_each(spans: np.ndarray, line: np.ndarray, field: dict) -> np.ndarray:
    """Of the same span in several windows the one with the highest score; of equals that with the highest start."""
    keys = (-field["end"], -field["start"], -field["score"], field["order"], line)
    spans = spans[np.lexsort([key[spans] for key in keys])]  # the last key sorts first
    return spans[first_of_each(line[spans], field["order"][spans])]


def _best_of_each_question(
    spans: np.ndarray, line: np.ndarray, field: dict, n: int
) -> tuple[np.ndarray, np.ndarray]:
    """The n best spans of each question, and their rank in it, 0 the best."""
    keys = (field["order"], -field["score"], line)
    spans = spans[np.lexsort([key[spans] for key in keys])]
    # Sorted lines 0 0 0 2 2 begin at 0 0 0 3 3, so the ranks are 0 1 2 0 1.
    begins = np.searchsorted(line[spans], line[spans])
    rank = np.arange(len(spans)) - begins
    return spans[rank < n], rank[rank < n]


def first_of_each(*keys: np.ndarray) -> np.ndarray:
    """Bool, True where sorted keys change: [4, 4, 6] -> [True, False, True]."""
    changed = np.ones(len(keys[0]), bool)
    changed[1:] = np.logical_or.reduce([key[1:] != key[:-1] for key in keys])
    return changed
