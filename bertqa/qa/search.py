"""Find the best spans of single windows, in the three modes that spans.py describes.

Windows of similar length are searched together as a block, so that numpy does the work.
B windows in a block, L paragraph tokens in the longest of them, n spans kept, K candidates.
"""

from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from bertqa.data.windows import Windows
from bertqa.errors import UserError

MODES = ("exact", "hf", "google")

SPARE = 4
"""Times n_best spans are kept in google mode: its script drops spans with repeated texts, which are not known here."""


@dataclass(frozen=True)
class SpanSettings:
    """How to search for spans. Raises UserError for invalid values."""

    n_best: int = 20
    """Spans kept for each question; in the modes hf and google also the starts and the ends tried in each window."""
    max_answer_length: int = 30  # tokens
    mode: str = "exact"  # exact, hf or google
    max_context: bool = False
    """Take a span only from the window that shows most context around its first token. Always on in google mode."""

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
        """Number of spans kept for each question, the n of all shapes."""
        return self.n_best * SPARE if self.mode == "google" else self.n_best

    @property
    def score_type(self) -> type:
        """Number format in which logits are summed. Google's script sums Python floats, which are float64."""
        return np.float64 if self.mode == "google" else np.float32


@dataclass(frozen=True)
class Block:
    """B windows, with the packed logits in which theirs are found."""

    windows: Windows
    rows: np.ndarray  # (B,) int64, rows of `windows`
    cls: np.ndarray  # (B,) int64, position of each window's [CLS] in the logits
    start_logits: np.ndarray  # (N,) of these windows and others
    end_logits: np.ndarray  # (N,)

    @property
    def count(self) -> np.ndarray:
        """(B,) number of paragraph tokens in the window."""
        return self.windows.count[self.rows]

    @property
    def prefix(self) -> np.ndarray:
        """(B,) number of tokens before the paragraph: [CLS] question [SEP]."""
        return self.windows.questions.counts[self.windows.question[self.rows]] + 2

    @property
    def first(self) -> np.ndarray:
        """(B, 1) int64, first paragraph token of the window, counted within the paragraph."""
        return self.windows.first[self.rows, None].astype(np.int64)


@dataclass(frozen=True)
class Found:
    """The best spans of B windows, best first, (B, n) each; where a window has fewer, the score is -inf."""

    score: np.ndarray  # start + end
    order: np.ndarray  # int64, sorts equal scores; in exact mode the same number for the same span
    first: np.ndarray  # first token of the span, counted within the paragraph
    last: np.ndarray  # last token, inclusive
    start: np.ndarray  # start logit of the first token
    end: np.ndarray  # end logit of the last token


def find_exact(block: Block, settings: SpanSettings) -> Found:
    """Return the true n best spans of each window.

    The best span that starts at a token has the largest end logit within reach. Take the n tokens whose best spans
    score most. These are already n spans that none from any other token can beat, so only the spans that start at
    these n tokens are scored, max_answer_length of each. With n = 2 and answers of at most 2 tokens:

        token                           0    1    2    3
        start logit                     1    5    0    2
        end logit                       4    1    3    2
        largest end within reach        4    3    3    2
        best score from here            5    8    3    4      the 2 best are tokens 0 and 1
        their spans                     0-0: 5    0-1: 2    1-1: 6    1-2: 8
        the n best                      1-2: 8    1-1: 6
    """
    B = len(block.rows)
    L = max(1, int(block.count.max()))  # a paragraph without tokens gets one column of -inf
    reach = min(settings.max_answer_length, L)
    start, end = _padded(block, L, reach)  # (B, L), (B, L + reach - 1)
    if settings.max_context:
        tokens = np.broadcast_to(np.arange(L), (B, L))
        start[~has_max_context(block.windows, block.rows, tokens)] = -np.inf

    # Floating-point addition is monotone, so this equals the best span's own score to the last bit.
    best_from = start + _largest_within(end, reach)  # (B, L)
    promising = _columns_of_largest(best_from, settings.kept)  # (B, n) first tokens

    # [b, t] of this view is the `reach` end logits from token t on. Only the n rows that are picked get copied.
    ends_from = sliding_window_view(end, reach, axis=1)  # (B, L, reach)
    b = np.arange(B)[:, None]
    scores = ends_from[b, promising]  # (B, n, reach)
    scores += start[b, promising][:, :, None]
    column, score = _best_columns(scores.reshape(B, -1), settings.kept)  # (B, n)
    # With reach 30, column 43 is the span of 14 tokens that starts at promising token 1.
    first = promising[b, column // reach]  # in the window's part of the paragraph
    last = first + column % reach

    return Found(
        score=score,
        order=(first + block.first) << 32 | (last + block.first),  # by first token, then by last
        first=first + block.first,
        last=last + block.first,
        start=start[b, first],
        end=end[b, last],
    )


def find_candidates(block: Block, settings: SpanSettings) -> Found:
    """Return the best spans of each window among the candidates of the old scripts.

    The candidates are the n_best starts x the n_best ends of each window. As in the scripts, tokens of the question
    and [SEP] may be among these starts and ends, and take the places of others.
    """
    n = settings.n_best
    b = np.arange(len(block.rows))[:, None]
    prefix = block.prefix[:, None]
    start_at = _best_positions(block.start_logits, block, settings)  # (B, n) in the sequence
    end_at = _best_positions(block.end_logits, block, settings)
    start = block.start_logits[block.cls[:, None] + start_at]
    end = block.end_logits[block.cls[:, None] + end_at]

    first = start_at - prefix  # (B, n) in the window's part of the paragraph
    last = end_at - prefix
    valid_start = first >= 0
    if settings.max_context:
        valid_start &= has_max_context(block.windows, block.rows, first)
    valid_end = last < block.count[:, None]
    size = last[:, None, :] - first[:, :, None] + 1  # (B, n, n) tokens of each pair's span
    valid = valid_start[:, :, None] & valid_end[:, None, :]
    valid &= (size >= 1) & (size <= settings.max_answer_length)

    scores = start[:, :, None].astype(settings.score_type) + end[:, None, :]  # (B, n, n)
    scores = np.where(valid, scores, -np.inf)
    column, score = _best_columns(scores.reshape(len(block.rows), -1), settings.kept)
    nth_start = column // n  # with n = 20, column 43 is the pair of start 2 and end 3
    nth_end = column % n
    return Found(
        score=score,
        order=block.rows[:, None] << 32 | column,  # window by window, start by start, end by end
        first=first[b, nth_start] + block.first,
        last=last[b, nth_end] + block.first,
        start=start[b, nth_start],
        end=end[b, nth_end],
    )


def _padded(block: Block, L: int, reach: int) -> tuple[np.ndarray, np.ndarray]:
    """Return start logits (B, L) and end logits (B, L + reach - 1) of paragraph tokens, padded with -inf.

    End logits get more padding, so that `reach` of them follow every start.
    """
    column = np.arange(L + reach - 1)
    place = (block.cls + block.prefix)[:, None] + column  # (B, L + reach - 1) in the logits
    padding = column >= block.count[:, None]
    # "clip": the last window's padding may lie beyond the last logit.
    start = block.start_logits.take(place[:, :L], mode="clip")
    end = block.end_logits.take(place, mode="clip")
    np.copyto(start, -np.inf, where=padding[:, :L])
    np.copyto(end, -np.inf, where=padding)
    return start, end


def _largest_within(values: np.ndarray, reach: int) -> np.ndarray:
    """(B, L + reach - 1) -> (B, L): the largest of the `reach` values from each column on.

    The width doubles: the largest of 4 values is that of two pairs, the largest of 5 that of two overlapping fours.
    """
    width = 1
    while width < reach:
        more = min(width, reach - width)
        values = np.maximum(values[:, :-more], values[:, more:])
        width += more
    return values


def _best_positions(logits: np.ndarray, block: Block, settings: SpanSettings) -> np.ndarray:
    """Return (B, n_best) positions of the largest logits of each sequence, best first; -1 where it has fewer tokens."""
    n = settings.n_best
    best = np.full((len(block.cls), n), -1)
    stops = block.cls + block.prefix + block.count + 1  # behind the last [SEP]
    for b, (cls, stop) in enumerate(zip(block.cls.tolist(), stops.tolist(), strict=True)):
        sequence = logits[cls:stop]
        if settings.mode == "hf":
            # The very call of run_qa, which leaves the order of equal logits to numpy and the processor.
            positions = np.argsort(sequence)[: -n - 1 : -1]
        else:
            positions = np.argsort(-sequence, kind="stable")[:n]  # Google's sort is stable
        best[b, : len(positions)] = positions
    return best


def _columns_of_largest(values: np.ndarray, n: int) -> np.ndarray:
    """(B, K) -> (B, min(n, K)) columns of the largest values of each row, ascending; lower columns win ties.

    The two largest of  4 1 4 4 7:  the second largest value is 4, and columns 0, 2, 3 and 4 have at least as much:
    two too many. Only column 4 has more than 4, which leaves room for one of the ties, the first: columns 0 and 4.
    """
    B, K = values.shape
    if n >= K:
        return np.broadcast_to(np.arange(K), (B, K))
    least = np.partition(values, K - n, axis=1)[:, K - n, None]  # (B, 1) the n-th largest
    keep = values >= least
    if np.count_nonzero(keep) > n * B:
        # Rows in which several values equal the n-th largest keep too many.
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
    """Return (B, k) bool: no other window of the question shows more context around the token (Google's rule).

    A token's context in a window is the number of tokens to its left or to its right, whichever is smaller, plus a
    hundredth of the window's size; the first window wins ties. In windows [0..5] and [4..9], token 4 has 1 token to
    its right in the first and 0 to its left in the second, so the first wins; for token 5 it is the other way round.

    Args:
        rows: (B,) rows of `windows`.
        tokens: (B, k) counted from the window's first paragraph token; those outside of the window give False.
    """
    rows = np.asarray(rows, np.int64)
    token = windows.first[rows][:, None] + tokens  # (B, k) in the paragraph
    mine = _context(windows, rows, token)
    best = mine > -np.inf
    for direction in (-1, 1):
        # Go from each window to its neighbours on one side, as far as they overlap it.
        others = rows + direction
        near = np.flatnonzero(_overlap(windows, rows, others))  # which of the B windows go on
        while len(near):
            theirs = _context(windows, others[near], token[near])
            # The earlier window wins ties.
            if direction < 0:
                best[near] &= mine[near] > theirs
            else:
                best[near] &= mine[near] >= theirs
            others = others + direction
            near = near[_overlap(windows, rows[near], others[near])]
    return best


def _context(windows: Windows, rows: np.ndarray, token: np.ndarray) -> np.ndarray:
    """Return the context (B, k) that windows (B,) show around paragraph tokens (B, k), -inf outside of the window."""
    count = windows.count[rows][:, None]
    left = token - windows.first[rows][:, None]
    right = count - 1 - left
    context = np.minimum(left, right) + 0.01 * count
    return np.where((left >= 0) & (right >= 0), context, -np.inf)


def _overlap(windows: Windows, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return (B,) bool: the other row exists, belongs to the same question, and shares tokens with this one."""
    exists = (others >= 0) & (others < len(windows.question))
    others = np.where(exists, others, rows)
    left = np.minimum(others, rows)  # windows of a question are in the order of their tokens
    right = np.maximum(others, rows)
    same = windows.question[others] == windows.question[rows]
    return exists & same & (windows.first[left] + windows.count[left] > windows.first[right])
