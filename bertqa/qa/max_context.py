"""Google's rule of maximum context: of a token that several windows see, the one that shows most around it decides."""

import numpy as np

from bertqa.data.windows import Windows


def has_max_context(windows: Windows, rows: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """(B, k) bool: no other window of the question shows more context around the token (Google's rule).

    A token's context in a window is the smaller of the tokens to its left and right, plus a hundredth of the window's
    size; the first of equals wins. In windows [0..5] and [4..9], token 4 has 1 to its right in the first and 0 to its
    left in the second, so the first scores it; of token 5 it is the other way round.

    Args:
        rows: (B,) rows of `windows`.
        tokens: (B, k) tokens counted from the window's first paragraph token; others than the window's give False.
    """
    rows = np.asarray(rows, np.int64)
    token = windows.first[rows][:, None] + tokens  # (B, k) in the paragraph
    mine = _context(windows, rows, token)
    best = mine > -np.inf
    for direction in (-1, 1):
        # Away from each window, until its neighbours no longer overlap it.
        lines = np.arange(len(rows))  # whose neighbours remain to be looked at
        others = rows + direction
        while True:
            near = _overlap(windows, rows[lines], others)
            lines = lines[near]
            others = others[near]
            if not len(lines):
                break
            theirs = _context(windows, others, token[lines])
            if direction < 0:
                best[lines] &= mine[lines] > theirs
            else:
                best[lines] &= mine[lines] >= theirs
            others = others + direction
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
