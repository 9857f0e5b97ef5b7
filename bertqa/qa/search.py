"""The best spans of each window: how `spans` looks for answers, in three ways (its docstring says which).

Windows are searched many at a time, in blocks of similar size, so that numpy does the work.
B windows in a block, L paragraph tokens in the longest of them, n spans kept, K candidates.
"""

from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from bertqa.data.windows import Windows
from bertqa.errors import UserError

MODES = ("exact", "hf", "google")

SPARE = 4
"""Google skips repeated texts while it fills its n-best list. Texts are not known here: its table is so much wider."""


@dataclass(frozen=True)
class SpanSettings:
    """How spans are searched. Raises UserError for values without meaning."""

    n_best: int = 20
    """Spans kept for each question; in the compatible modes also the starts and ends tried in a window."""
    max_answer_length: int = 30  # tokens
    mode: str = "exact"  # exact, hf or google
    max_context: bool = False
    """A span counts only in the window that shows most context around its first token; google implies it."""

    def __post_init__(self):
        problems = []
        if self.n_best < 1:
            problems.append(f"n_best is {self.n_best}; use 1 or more")
        if self.max_answer_length < 1:
            problems.append(f"max_answer_length is {self.max_answer_length}; use 1 or more")
        if self.mode not in MODES:
            problems.append(f"mode is {self.mode!r}; use one of {', '.join(MODES)}")
        if problems:
            raise UserError("span settings: " + "; ".join(problems))
        if self.mode == "google":
            object.__setattr__(self, "max_context", True)

    @property
    def kept(self) -> int:
        """Spans to keep of a question."""
        return self.n_best * SPARE if self.mode == "google" else self.n_best

    @property
    def score_type(self) -> type:
        """Google's Python adds up two numbers of double precision."""
        return np.float64 if self.mode == "google" else np.float32


@dataclass(frozen=True)
class Block:
    """B windows, and the logits among which theirs stand."""

    windows: Windows
    rows: np.ndarray  # (B,) int64, rows of `windows`
    cls: np.ndarray  # (B,) int64, place of [CLS] in the logits
    starts: np.ndarray  # (N,) start logits
    ends: np.ndarray  # (N,) end logits

    @property
    def count(self) -> np.ndarray:
        """(B,) tokens of the paragraph in the window."""
        return self.windows.count[self.rows]

    @property
    def question(self) -> np.ndarray:
        """(B,) tokens before the paragraph: [CLS] question [SEP]."""
        return self.windows.questions.counts[self.windows.question[self.rows]] + 2

    @property
    def ahead(self) -> np.ndarray:
        """(B, 1) int64, tokens of the paragraph before the window."""
        return self.windows.first[self.rows, None].astype(np.int64)


@dataclass
class Found:
    """The best spans of B windows, best first: (B, n) each. A score of -inf: the window has no more."""

    score: np.ndarray
    order: np.ndarray
    """int64: of equal scores the lowest comes first; in exact mode equal for the same span."""
    first: np.ndarray  # first token of the span, counted in the paragraph
    last: np.ndarray  # last token, inclusive
    start: np.ndarray  # start logit of the first token
    end: np.ndarray  # end logit of the last token


def find_exact(block: Block, settings: SpanSettings) -> Found:
    """The true n best spans of each window. The best span from a token has the largest end logit within reach. The n tokens of which that
    best span scores most own n spans that no span from another token can beat: so only their
    spans are scored, n x max_answer_length of them. With n = 2 and at most 2 tokens an answer:

        token                           0    1    2    3
        start logit                     1    5    0    2
        end logit                       4    1    3    2
        largest end within reach        4    3    3    2
        best score from here            5    8    3    4      so tokens 0 and 1 are enough
        their spans                     0-0: 5    0-1: 2    1-1: 6    1-2: 8
        the n best                      1-2: 8    1-1: 6
    """
    B = len(block.rows)
    L = max(1, int(block.count.max()))  # a paragraph without tokens has one column of -inf
    reach = min(settings.max_answer_length, L)
    start, end = _side_by_side(block, L, reach)  # (B, L), (B, L + reach - 1)
    if settings.max_context:
        tokens = np.broadcast_to(np.arange(L), (B, L))
        start[~has_max_context(block.windows, block.rows, tokens)] = -np.inf

    # Rounding is monotone, so this is bit for bit the score of the best span from a token.
    best_from = start + _largest_within(end, reach)  # (B, L)
    promising = _columns_of_largest(best_from, settings.kept)  # (B, n)

    # A view of `end` in which [b, t] is the `reach` ends from token t on: nothing is copied but the n rows picked.
    line = np.arange(B)[:, None]
    score = sliding_window_view(end, reach, axis=1)[line, promising]  # (B, n, reach)
    score += start[line, promising][:, :, None]
    pick, score = _best_columns(score.reshape(B, -1), settings.kept)  # (B, n)
    # Of n x reach spans in one row, pick 43 with reach 30 is the promising token 1, and the span of 14 tokens from it on.
    first = promising[line, pick // reach]
    last = first + pick % reach

    first_in_paragraph = first + block.ahead
    last_in_paragraph = last + block.ahead
    return Found(
        score=score,
        # Earlier first token, then earlier last token; and one number for one span.
        order=first_in_paragraph << 32 | last_in_paragraph,
        first=first_in_paragraph,
        last=last_in_paragraph,
        start=start[line, first],
        end=end[line, last],
    )


def find_candidates(block: Block, settings: SpanSettings) -> Found:
    """What the old scripts look at: the n best starts x the n best ends of each window, in their order.

    Positions of the question and [SEP] are among these starts and ends, and take up their places.
    """
    n = settings.n_best
    line = np.arange(len(block.rows))[:, None]
    question = block.question[:, None]
    start_at = _best_positions(block.starts, block, settings)  # (B, n) in the sequence
    end_at = _best_positions(block.ends, block, settings)
    start = block.starts[block.cls[:, None] + start_at]
    end = block.ends[block.cls[:, None] + end_at]

    first = start_at - question  # (B, n) in the window's part of the paragraph
    last = end_at - question
    good_start = first >= 0
    if settings.max_context:
        good_start &= has_max_context(block.windows, block.rows, first)
    good_end = last < block.count[:, None]
    size = last[:, None, :] - first[:, :, None] + 1  # (B, n, n)
    valid = good_start[:, :, None] & good_end[:, None, :]
    valid &= (size >= 1) & (size <= settings.max_answer_length)

    score = start[:, :, None].astype(settings.score_type) + end[:, None, :]  # (B, n, n)
    score = np.where(valid, score, -np.inf)
    pick, score = _best_columns(score.reshape(len(block.rows), -1), settings.kept)
    nth_start = pick // n  # of n x n pairs in one row, pick 43 with n = 20 is start 2 and end 3
    nth_end = pick % n
    return Found(
        score=score,
        order=block.rows[:, None] << 32 | pick,  # window by window, start by start, end by end
        first=first[line, nth_start] + block.ahead,
        last=last[line, nth_end] + block.ahead,
        start=start[line, nth_start],
        end=end[line, nth_end],
    )


def _side_by_side(block: Block, L: int, reach: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits of the paragraph's tokens, a window a line, -inf behind its end: (B, L), (B, L + reach - 1).

    Ends have room behind them, so that every start sees `reach` of them.
    """
    # A place behind the last logit is clipped to it, and then overwritten: it is outside of its window.
    column = np.arange(L + reach - 1)
    where = (block.cls + block.question)[:, None] + column  # (B, L + reach - 1)
    outside = column >= block.count[:, None]
    start = block.starts.take(where[:, :L], mode="clip")
    end = block.ends.take(where, mode="clip")
    np.copyto(start, -np.inf, where=outside[:, :L])
    np.copyto(end, -np.inf, where=outside)
    return start, end


def _largest_within(values: np.ndarray, reach: int) -> np.ndarray:
    """(B, L + reach - 1) -> (B, L): the largest of the `reach` values from each on.

    Widths double: the largest of 4 is that of two pairs, and of 5 that of two overlapping fours.
    """
    width = 1
    while width < reach:
        more = min(width, reach - width)
        values = np.maximum(values[:, :-more], values[:, more:])
        width += more
    return values


def _best_positions(logits: np.ndarray, block: Block, settings: SpanSettings) -> np.ndarray:
    """(B, n) positions of the largest logits of each sequence, best first; -1 where it has fewer tokens."""
    n = settings.n_best
    best = np.full((len(block.cls), n), -1)
    ends = block.cls + block.question + block.count + 1  # the last [SEP] among them
    for line, (begin, end) in enumerate(zip(block.cls.tolist(), ends.tolist(), strict=True)):
        sequence = logits[begin:end]
        if settings.mode == "hf":
            # run_qa's own call, which leaves the order of equals to numpy and the processor.
            found = np.argsort(sequence)[: -n - 1 : -1]
        else:
            # Google's sort keeps equals in their order.
            found = np.argsort(-sequence, kind="stable")[:n]
        best[line, : len(found)] = found
    return best


def _columns_of_largest(values: np.ndarray, n: int) -> np.ndarray:
    """(B, K) -> (B, min(n, K)) columns of the largest values of each row, ascending; lower columns win ties.

    The two largest of  4 1 4 4 7:  the second largest is 4, so columns 0, 2, 3 and 4 are kept, two too many. One is
    larger than 4, which leaves room for one of the equals, the first: columns 0 and 4.
    """
    B, K = values.shape
    if n >= K:
        return np.broadcast_to(np.arange(K), (B, K))
    least = np.partition(values, K - n, axis=1)[:, K - n, None]  # (B, 1) the n-th largest
    keep = values >= least
    if np.count_nonzero(keep) > n * B:
        # Some rows have several values as large as the n-th, and keep too many.
        tied = np.flatnonzero(np.count_nonzero(keep, axis=1) > n)
        equal = values[tied] == least[tied]
        room = n - np.count_nonzero(values[tied] > least[tied], axis=1)[:, None]
        keep[tied] &= ~equal | (np.cumsum(equal, axis=1) <= room)
    return np.flatnonzero(keep).reshape(B, n) - np.arange(B)[:, None] * K


def _best_columns(values: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """(B, K) -> columns and values (B, min(n, K)) of the largest of each row, best first; lower columns win ties."""
    columns = _columns_of_largest(values, n)
    found = np.take_along_axis(values, columns, axis=1)
    order = np.argsort(-found, axis=1, kind="stable")
    return np.take_along_axis(columns, order, axis=1), np.take_along_axis(found, order, axis=1)


def has_max_context(windows: Windows, rows: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """(B, k) bool: no other window of the question shows more context around the token (Google's rule).

    A token's context in a window is the smaller of the tokens to its left and right, plus a hundredth of the window's
    size; the first of equals wins. In windows [0..5] and [4..9], token 4 has 1 to its right in the first and 0 to its
    left in the second, so the first scores it; of token 5 it is the other way round.

    `rows` (B,) are rows of `windows`. `tokens` (B, k) count from the window's first paragraph token; others than the
    window's give False.
    """
    rows = np.asarray(rows, np.int64)
    token = windows.first[rows][:, None] + tokens  # (B, k) in the paragraph
    mine = _context(windows, rows, token)
    best = mine > -np.inf
    for direction in (-1, 1):
        # Away from each window, until its neighbours no longer overlap it.
        others = rows + direction
        near = np.flatnonzero(_overlap(windows, rows, others))  # of the B, whose neighbour does
        while len(near):
            theirs = _context(windows, others[near], token[near])
            # Of equals the window that stands first wins.
            wins = mine[near] > theirs if direction < 0 else mine[near] >= theirs
            best[near] &= wins
            others = others + direction
            near = near[_overlap(windows, rows[near], others[near])]
    return best


def _context(windows: Windows, rows: np.ndarray, token: np.ndarray) -> np.ndarray:
    """(B, k) context that windows (B,) show around tokens (B, k) of their paragraph, -inf outside of the window."""
    count = windows.count[rows][:, None]
    left = token - windows.first[rows][:, None]
    right = count - 1 - left
    context = np.minimum(left, right) + 0.01 * count
    return np.where((left >= 0) & (right >= 0), context, -np.inf)


def _overlap(windows: Windows, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(B,) bool: the other row exists, is of the same question, and shares tokens with this one."""
    there = (others >= 0) & (others < len(windows.question))
    others = np.where(there, others, rows)
    left = np.minimum(others, rows)  # windows of a question stand in the order of their tokens
    right = np.maximum(others, rows)
    same = windows.question[others] == windows.question[rows]
    return there & same & (windows.first[left] + windows.count[left] > windows.first[right])
