"""Tokens of many texts in flat arrays: ids, and where each token stands in its text."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bertqa.data.characters import beginnings, extends


@dataclass
class Tokens:
    """R texts as one flat array of T tokens, without special tokens.

    Offsets count Python characters of the raw text, whatever the tokenizer did to it (lower case,
    accents, controls).
    """

    ids: np.ndarray
    """(T,) int32."""
    starts: np.ndarray
    """(T,) int32, first character of each token in its text."""
    ends: np.ndarray
    """(T,) int32, one past its last character."""
    rows: np.ndarray
    """(R+1,) int64: text r owns tokens rows[r] : rows[r+1]."""

    @property
    def counts(self) -> np.ndarray:
        """(R,) tokens of each text."""
        return np.diff(self.rows)

    @property
    def nbytes(self) -> int:
        """Bytes of all four arrays."""
        return self.ids.nbytes + self.starts.nbytes + self.ends.nbytes + self.rows.nbytes

    def cut(self, most: "int | np.ndarray") -> "Tokens":
        """Every text cut to its first `most` tokens: one number for all, or (R,)."""
        most = np.broadcast_to(most, self.counts.shape)
        place = np.arange(len(self.ids)) - np.repeat(
            self.rows[:-1], self.counts
        )  # (T,) in its text
        keep = place < np.repeat(most, self.counts)  # (T,)
        rows = running_sum(np.minimum(self.counts, most))
        return Tokens(self.ids[keep], self.starts[keep], self.ends[keep], rows)


def no_tokens() -> Tokens:
    """The tokens of no texts."""
    none = np.zeros(0, np.int32)
    return Tokens(none, none, none, np.zeros(1, np.int64))


def running_sum(counts: Sequence[int] | np.ndarray) -> np.ndarray:
    """(n+1,) int64: the sum of all before each, and of all.  2 0 3 -> 0 2 2 5."""
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64)


def whole_characters(tokens: Tokens, texts: Sequence[str]) -> Tokens:
    """The tokens of these texts, each taking whole every character that it has a part of; changed in place.

    Example: "Dupré." with a combining accent is D u p r e ´ . and a tokenizer that drops accents
    gives  dupre 0-5  and  . 6-7.  Here the first becomes 0-6.
    """
    for row, text in enumerate(texts):
        if text.isascii() or not any(map(extends, set(text))):
            continue
        begins = np.array(beginnings(text))
        own = slice(tokens.rows[row], tokens.rows[row + 1])
        starts, ends = tokens.starts[own], tokens.ends[own]
        tokens.starts[own] = begins[np.searchsorted(begins, starts, side="right") - 1]
        tokens.ends[own] = begins[np.searchsorted(begins, ends, side="left")]
    return tokens
