"""Logits to spans: the n best of every question over all its windows, and the null score beside them.

A span is a first and a last paragraph token of one window, at most `max_answer_length` tokens long. Its score is the
start logit of the first plus the end logit of the last. The null answer's score is the same sum at [CLS], the minimum
over the question's windows, since each of them must want to abstain. Three ways to search fill one table:

    exact   the true n best spans; of equal scores the earlier first token, then the earlier last token. A span that
            several windows see counts once, with its highest score.
    hf      the candidates of transformers' run_qa (postprocess_qa_predictions), in its order and with its repeats: the
            20 best starts x 20 best ends of each window
    google  those of google-research/bert's run_squad (write_predictions), which asks for maximum context too

Two things differ from the old scripts on purpose. Text is cut from the raw paragraph by character offset, never put
together from word pieces. And where no span is valid they submit the literal text "empty"; here the answer is "".
Logits are those of a window's own tokens: the old scripts may also rank padding positions, which do not exist here.

S windows in a call with N tokens, B windows in a block, L paragraph tokens in its longest, n spans kept, K candidates.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from bertqa.data.windows import Windows
from bertqa.errors import UserError

MODES = ("exact", "hf", "google")

BLOCK = 1 << 18
"""Candidates looked at in one go, by measurement: smaller wastes calls, larger leaves the processor's cache."""

BUFFER = 1 << 17
"""Tokens held back until they are worth searching: small batches then cost no more than large ones."""

LARGEST_LOGIT = 1e30
"""Beyond it a model has diverged, and the sum of two could leave float32."""

SPARE = 4
"""Google skips repeated texts while it fills its n-best list. Texts are not known here: its table is so much wider."""


@dataclass(frozen=True)
class SpanSettings:
    """How spans are searched. Raises UserError for values without meaning."""

    n_best: int = 20
    """Spans kept for each question; in the compatible modes also the starts and ends tried in a window."""
    max_answer_length: int = 30
    """Tokens."""
    mode: str = "exact"
    """exact, hf or google."""
    max_context: bool = False
    """A span counts only in the window that shows most context around its first token; google implies it."""

    def __post_init__(self):
        problems = [
            f"{name} is {value}; use 1 or more"
            for name, value in (
                ("n_best", self.n_best),
                ("max_answer_length", self.max_answer_length),
            )
            if value < 1
        ]
        if self.mode not in MODES:
            problems.append(f"mode is {self.mode!r}; use one of {', '.join(MODES)}")
        if problems:
            raise UserError("span settings: " + "; ".join(problems))
        if self.mode == "google":
            object.__setattr__(self, "max_context", True)


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
    """(Q,) their sum, of the type of `score`."""


class SpanDecoder:
    """Streams logits of windows into the n best spans of each question, and forgets the logits.

    The result does not depend on the order or the grouping of the windows. Memory: 28 bytes a kept span (560 a question
    for n = 20; four times that in google mode) and some ten MB for the buffer and one block, however many windows come.
    """

    def __init__(self, windows: Windows, settings: SpanSettings = SpanSettings()):
        self.windows, self.settings = windows, settings
        self.lengths = windows.lengths  # (W,)
        self.head = self.lengths - windows.count - 1  # (W,) where the paragraph part begins
        self.alone = (
            np.bincount(windows.question, minlength=len(windows.question_context)) == 1
        )  # (Q,) has one window
        google = settings.mode == "google"
        self.sum_type = np.float64 if google else np.float32
        self.kept = settings.n_best * (SPARE if google else 1)
        # One record a question, n wide. `order` breaks ties of score, and in exact mode tells one span from another.
        types = dict(score=self.sum_type, order="i8", first="i4", last="i4", start="f4", end="f4")
        wide = [(name, type_, (self.kept,)) for name, type_ in types.items()]
        self.none = np.zeros((), wide)
        self.none["score"], self.none["first"], self.none["last"] = -np.inf, -1, -1
        self.table = np.full(len(self.alone), self.none)  # (Q,)
        self.null = np.zeros(
            len(self.alone),
            [
                ("score", self.sum_type),
                ("row", np.int64),
                ("start", np.float32),
                ("end", np.float32),
            ],
        )  # (Q,)
        self.null["score"] = np.inf
        self.waiting = np.ones(len(windows.question), bool)  # (W,)
        self.buffer: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self.buffered = 0

    def add(self, rows: np.ndarray, start_logits: np.ndarray, end_logits: np.ndarray) -> None:
        """Take the logits of S whole windows.

        Args:
            rows: (S,) rows of `windows`, each added once in the decoder's life.
            start_logits, end_logits: (N,) float32, window after window in the order of `rows`, each with all of its
                `windows.lengths` tokens from [CLS] to the last [SEP]. They are copied.

        Raises:
            UserError: naming a question whose logits are not finite.
        """
        rows = np.array(rows, np.int64)
        start, end = np.array(start_logits, np.float32), np.array(end_logits, np.float32)
        tokens = int(self.lengths[rows].sum())
        assert start.shape == end.shape == (tokens,), (
            f"{start.shape} and {end.shape} logits for {tokens} tokens"
        )
        assert self.waiting[rows].all() and (np.diff(np.sort(rows)) > 0).all(), (
            "a window was added twice"
        )
        self._check_finite(rows, start, end)
        self.waiting[rows] = False
        self.buffer.append((rows, start, end))
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
        names = ("first", "last", "start", "end", "score")
        return Spans(
            self.settings,
            **{name: self.table[name] for name in names},
            **{f"null_{name}": self.null[name] for name in names[2:]},
        )

    def _check_finite(self, rows, start, end):
        good = (np.abs(start) < LARGEST_LOGIT) & (np.abs(end) < LARGEST_LOGIT)  # False for NaN too
        if not good.all():
            token = int(good.argmin())
            question = self.windows.question[
                rows[np.searchsorted(self.lengths[rows].cumsum(), token, side="right")]
            ]
            raise UserError(
                f"question {question} (counted from 0): the model gave start logit {start[token]} and end "
                f"logit {end[token]}; logits must be finite, so its weights are damaged, or training "
                "diverged, or half precision overflowed: try float32"
            )

    def _search(self):
        """Empty the buffer into the table."""
        if not self.buffer:
            return
        rows, start, end = (np.concatenate(part) for part in zip(*self.buffer, strict=True))
        self.buffer, self.buffered = [], 0
        at = self.lengths[rows].cumsum() - self.lengths[rows]  # (S,) where each begins
        self._add_null(rows, start[at], end[at])
        find = self._exact if self.settings.mode == "exact" else self._candidates
        for block in _blocks(self.windows.count[rows], self.settings):
            self._merge(
                self.windows.question[rows[block]], find(rows[block], at[block], start, end)
            )

    def _add_null(self, rows, start, end):
        """Lower the null score of each question to that of its windows, the first window winning ties."""
        new = np.empty(len(rows), self.null.dtype)
        new["score"] = start.astype(self.sum_type) + end
        new["row"], new["start"], new["end"] = rows, start, end
        question = self.windows.question[rows]
        best = np.lexsort((rows, new["score"], question))
        best = best[_heads(question[best])]
        new, question = new[best], question[best]
        old = self.null[question]
        lower = (new["score"] < old["score"]) | (
            (new["score"] == old["score"]) & (new["row"] < old["row"])
        )
        self.null[question[lower]] = new[lower]

    def _exact(self, rows, at, start, end):
        """The n best spans of each window of a block: (B,) records as in the table.

        t[i] = start[i] + the largest end within reach of i is the best score of a span from i. n starts of largest t
        own n spans that no span from another start can beat, so only their n x max_answer_length spans are scored.
        Rounding is monotone, so t is bit for bit the score of that span.
        """
        B, L = len(rows), int(self.windows.count[rows].max())
        if L == 0:
            return np.full(B, self.none)
        reach = min(self.settings.max_answer_length, L)
        column = np.arange(L + reach - 1)  # with room behind, so that every start sees `reach` ends
        where = (at + self.head[rows])[:, None] + column  # (B, L+reach-1)
        outside = column >= self.windows.count[rows][:, None]
        start, end = start.take(where[:, :L], mode="clip"), end.take(where, mode="clip")
        np.copyto(start, -np.inf, where=outside[:, :L])  # (B, L)
        np.copyto(end, -np.inf, where=outside)  # (B, L+reach-1)
        if self.settings.max_context:
            start[
                ~has_max_context(self.windows, rows, np.broadcast_to(column[:L], (B, L)))
            ] = -np.inf
        largest, width = end, 1  # largest[i] over `width` ends from i on
        while width < reach:
            more = min(width, reach - width)
            largest, width = np.maximum(largest[:, :-more], largest[:, more:]), width + more
        starts = _largest(start + largest, self.kept)  # (B, n)
        line = np.arange(B)[:, None]
        score = sliding_window_view(end, reach, axis=1)[line, starts]  # (B, n, reach)
        score += start[line, starts][:, :, None]
        pick, score = _best(score.reshape(B, -1), self.kept)  # (B, n)
        first = starts[line, pick // reach]
        last = first + pick % reach
        ahead = self.windows.first[rows][:, None]
        return self._records(
            score,
            (first + ahead) << 32 | (last + ahead),
            first + ahead,
            last + ahead,
            start[line, first],
            end[line, last],
        )

    def _candidates(self, rows, at, start, end):
        """Like `_exact`, but from the best starts x best ends of each window, in the order of the old scripts."""
        line, n = np.arange(len(rows))[:, None], self.settings.n_best
        head, count = self.head[rows][:, None], self.windows.count[rows][:, None]
        by_start, by_end = (self._ranked(logits, at, self.lengths[rows]) for logits in (start, end))
        start, end = start[at[:, None] + by_start], end[at[:, None] + by_end]
        first, last = by_start - head, by_end - head  # (B, n)
        good_start, good_end = (first >= 0) & (first < count), (last >= 0) & (last < count)
        if self.settings.max_context:
            good_start &= has_max_context(self.windows, rows, first)
        size = last[:, None, :] - first[:, :, None] + 1  # (B, n, n)
        valid = good_start[:, :, None] & good_end[:, None, :]
        valid &= (size >= 1) & (size <= self.settings.max_answer_length)
        score = np.where(valid, start[:, :, None].astype(self.sum_type) + end[:, None, :], -np.inf)
        pick, score = _best(score.reshape(len(rows), -1), self.kept)
        i, j, ahead = pick // n, pick % n, self.windows.first[rows][:, None]
        return self._records(
            score,
            rows[:, None] << 32 | pick,
            first[line, i] + ahead,
            last[line, j] + ahead,
            start[line, i],
            end[line, j],
        )

    def _ranked(self, logits, at, lengths):
        """(B, n) positions of the largest logits of each window, best first; -1 where it has fewer tokens."""
        n, hf = self.settings.n_best, self.settings.mode == "hf"
        ranked = np.full((len(at), n), -1)
        for line, (begin, length) in enumerate(zip(at.tolist(), lengths.tolist(), strict=True)):
            window = logits[begin : begin + length]
            # run_qa's own call leaves ties to numpy and the processor; Google's sort is stable
            best = (
                np.argsort(window)[: -n - 1 : -1] if hf else np.argsort(-window, kind="stable")[:n]
            )
            ranked[line, : len(best)] = best
        return ranked

    def _records(self, *columns):
        """(B, n') of each column, n' <= n -> (B,) records; what is no valid span is blank."""
        records = np.full(len(columns[0]), self.none)
        real = columns[0] > -np.inf
        for name, values in zip(self.table.dtype.names, columns, strict=True):
            np.copyto(records[name][:, : real.shape[1]], values, where=real, casting="same_kind")
        return records

    def _merge(self, questions, records):
        """Keep the n best of what the table has and (B,) new records, whose questions may repeat."""
        alone = self.alone[questions]
        self.table[questions[alone]] = records[alone]
        if alone.all():
            return
        questions = questions[~alone]
        own = np.sort(questions)
        own = own[_heads(own)]  # each question once
        pool = np.concatenate([self.table[own], records[~alone]])
        line = np.searchsorted(own, np.concatenate([own, questions])).repeat(
            self.kept
        )  # of `own`, for each span
        score, order = pool["score"].ravel(), pool["order"].ravel()
        spans = np.flatnonzero(score > -np.inf)
        if (
            self.settings.mode == "exact"
        ):  # of a span that several windows saw the highest score, then start, then end
            start, end = (-pool[name].ravel()[spans] for name in ("start", "end"))
            spans = spans[np.lexsort((end, start, -score[spans], order[spans], line[spans]))]
            spans = spans[_heads(line[spans], order[spans])]
        spans = spans[np.lexsort((order[spans], -score[spans], line[spans]))]
        rank = np.arange(len(spans)) - np.searchsorted(line[spans], line[spans])
        spans, rank = spans[rank < self.kept], rank[rank < self.kept]
        merged = np.full(len(own), self.none)
        for name in merged.dtype.names:
            merged[name][line[spans], rank] = pool[name].ravel()[spans]
        self.table[own] = merged


def _blocks(counts: np.ndarray, settings: SpanSettings) -> Iterator[np.ndarray]:
    """Rows of similar size, largest first, as many as a block should hold."""
    order, begin = np.argsort(-counts, kind="stable"), 0
    while begin < len(order):
        largest = int(counts[order[begin]])
        reach = (
            min(settings.max_answer_length, largest)
            if settings.mode == "exact"
            else settings.n_best
        )
        stop = begin + max(1, BLOCK // (largest + settings.n_best * reach + 1))
        yield order[begin:stop]
        begin = stop


def _heads(*keys: np.ndarray) -> np.ndarray:
    """Bool, True where sorted keys change: the first of each group."""
    changed = np.ones(len(keys[0]), bool)
    changed[1:] = np.logical_or.reduce([key[1:] != key[:-1] for key in keys])
    return changed


def _largest(values: np.ndarray, n: int) -> np.ndarray:
    """(B, K) -> (B, min(n, K)) columns of the largest values in each row, ascending; lower columns win ties."""
    B, K = values.shape
    if n >= K:
        return np.broadcast_to(np.arange(K), (B, K))
    least = np.partition(values, K - n, axis=1)[:, K - n, None]  # (B, 1) the n-th largest
    keep = values >= least
    if np.count_nonzero(keep) > n * B:  # some rows keep too many
        tied = np.flatnonzero(np.count_nonzero(keep, axis=1) > n)
        equal = values[tied] == least[tied]
        room = n - np.count_nonzero(values[tied] > least[tied], axis=1)[:, None]
        keep[tied] &= ~equal | (np.cumsum(equal, axis=1) <= room)
    return np.flatnonzero(keep).reshape(B, n) - np.arange(B)[:, None] * K


def _best(values: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """(B, K) -> columns and values (B, min(n, K)) of the largest in each row, best first; lower columns win ties."""
    columns = _largest(values, n)
    found = np.take_along_axis(values, columns, axis=1)
    order = np.argsort(-found, axis=1, kind="stable")
    return np.take_along_axis(columns, order, axis=1), np.take_along_axis(found, order, axis=1)


def has_max_context(windows: Windows, rows: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Whether each window shows more context around its tokens than any other window of the question (Google's rule).

    A token's context in a window is the smaller of the tokens to its left and right, plus a hundredth of the window's
    size; the first of equals wins. In windows [0..5] and [4..9], token 4 has 1 to its right in the first and 0 to its
    left in the second, so the first scores it; of token 5 it is the other way round.

    Args:
        rows: (B,) rows of `windows`.
        tokens: (B, k) tokens counted from the window's first paragraph token; others than the window's give False.
    """

    def context(
        row, token
    ):  # (B, 1), (B, k) in the paragraph -> (B, k), -inf outside of the window
        left, count = token - windows.first[row], windows.count[row]
        right = count - 1 - left
        return np.where((left >= 0) & (right >= 0), np.minimum(left, right) + 0.01 * count, -np.inf)

    row = np.asarray(rows, np.int64)[:, None]
    token = windows.first[row] + tokens
    mine = context(row, token)
    best = mine > -np.inf
    for sign in (-1, 1):
        todo, distance = np.arange(len(row)), sign
        while len(todo):
            other = row[todo] + distance
            near = ((other >= 0) & (other < len(windows.question)))[:, 0]
            todo, other = todo[near], other[near]
            near = windows.question[other[:, 0]] == windows.question[row[todo, 0]]
            left, right = np.minimum(other, row[todo])[:, 0], np.maximum(other, row[todo])[:, 0]
            near &= windows.first[left] + windows.count[left] > windows.first[right]  # they overlap
            todo, other = todo[near], other[near]
            theirs = context(other, token[todo])
            best[todo] &= mine[todo] > theirs if sign < 0 else mine[todo] >= theirs
            distance += sign
    return best
