"""Tokens of many texts in flat arrays, with their character offsets; and a cache of the tokens of long texts."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bertqa.data.characters import beginnings, extends

LONG_TEXT = 2000
"""Characters from which the cache keeps a text: shorter texts are tokenised fast enough."""
MOST_TOKENS = 1 << 20
"""Tokens that the cache keeps, which take 12 MB, and their texts."""


@dataclass
class Tokens:
    """The T tokens of R texts, without special tokens.

    Offsets count Python characters of the raw text, whatever the tokenizer's normalizer did to it (lower case, accents
    stripped, control characters dropped).
    """

    ids: np.ndarray  # (T,) int32
    starts: np.ndarray  # (T,) int32, offset in its text of each token's first character
    ends: np.ndarray  # (T,) int32, offset one past its last character
    rows: np.ndarray  # (R+1,) int64: text r owns tokens rows[r] : rows[r+1]

    @property
    def counts(self) -> np.ndarray:
        """(R,) int64, number of tokens of each text."""
        return np.diff(self.rows)

    def cut(self, most: int | np.ndarray) -> "Tokens":
        """Return only the first `most` tokens of every text; `most` is one number for all texts, or (R,)."""
        most = np.broadcast_to(most, self.counts.shape)
        begins = np.repeat(self.rows[:-1], self.counts)  # (T,) index of its text's first token
        place = np.arange(len(self.ids)) - begins  # (T,) index of each token in its text
        keep = place < np.repeat(most, self.counts)  # (T,)
        rows = running_sum(np.minimum(self.counts, most))
        return Tokens(self.ids[keep], self.starts[keep], self.ends[keep], rows)


def no_tokens() -> Tokens:
    """Return the tokens of zero texts."""
    none = np.zeros(0, np.int32)
    return Tokens(none, none, none, np.zeros(1, np.int64))


def running_sum(counts: Sequence[int] | np.ndarray) -> np.ndarray:
    """Return the cumulative sum of (n,) counts with a 0 in front, (n+1,) int64.  2 0 3 -> 0 2 2 5."""
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64)


def whole_characters(tokens: Tokens, texts: Sequence[str]) -> Tokens:
    """Widen the offsets of these texts' tokens, in place, to whole characters as readers see them; return the tokens.

    Example: "Dupré." with a combining accent has the 7 code points D u p r e ´ . and a tokenizer that strips accents gives
    the tokens  dupre 0-5  and  . 6-7.  The first one becomes 0-6.
    """
    for row, text in enumerate(texts):
        if text.isascii() or not any(map(extends, set(text))):
            continue
        begins = np.array(beginnings(text))  # 0 1 2 3 4 6 7 in the example
        own = slice(tokens.rows[row], tokens.rows[row + 1])
        # A start moves back to the beginning of its character, an end forward to the beginning of the next character.
        start_character = np.searchsorted(begins, tokens.starts[own], side="right") - 1
        end_character = np.searchsorted(begins, tokens.ends[own], side="left")
        tokens.starts[own] = begins[start_character]
        tokens.ends[own] = begins[end_character]
    return tokens


class TokenCache:
    """A `WordPiece` that keeps the tokens of the long texts used last. Threads may share it.

    Args:
        most: tokens to keep; at least one text is kept, however long it is.
    """

    def __init__(self, tokenizer, most: int = MOST_TOKENS):
        self.tokenizer = tokenizer
        self.cls_id = tokenizer.cls_id
        self.sep_id = tokenizer.sep_id
        self.most = most
        self.kept: OrderedDict[str, Tokens] = OrderedDict()  # least recently used first
        self.lock = threading.Lock()

    def encode(self, texts: Sequence[str], progress: str | None = None) -> Tokens:
        """Return the tokens of texts, as `WordPiece.encode` does."""
        if all(len(text) < LONG_TEXT for text in texts):
            return self.tokenizer.encode(texts, progress)
        # The lock is not held while tokenising: two threads may tokenise the same text, which only costs time.
        with self.lock:
            found = {text: self.kept[text] for text in texts if text in self.kept}
        new = [text for text in texts if text not in found]
        fresh = self.tokenizer.encode(new, progress)
        for row, text in enumerate(new):
            found[text] = _row(fresh, row)
        self._keep({text: found[text] for text in texts if len(text) >= LONG_TEXT})
        return _joined([found[text] for text in texts])

    def _keep(self, texts: dict[str, Tokens]) -> None:
        """Mark texts as just used, then drop the least recently used ones until at most `most` tokens are kept."""
        with self.lock:
            for text, tokens in texts.items():
                self.kept[text] = tokens
                self.kept.move_to_end(text)
            size = sum(len(tokens.ids) for tokens in self.kept.values())
            # The last text stays even if it alone is too long: the next question is probably about it.
            while size > self.most and len(self.kept) > 1:
                _, dropped = self.kept.popitem(last=False)
                size -= len(dropped.ids)

    def continues(self, ids: np.ndarray) -> np.ndarray:
        """Return (T,) bool: whether each token continues the word of the token before it, as "##ing" does."""
        backend = self.tokenizer.backend
        prefix = getattr(backend.model, "continuing_subword_prefix", None) or "##"
        # Each distinct id is looked up once, because a call of the library is slow.
        distinct, where = np.unique(ids, return_inverse=True)
        is_continuation = [backend.id_to_token(int(id)).startswith(prefix) for id in distinct]
        return np.array(is_continuation, bool)[where]

    def __getstate__(self) -> dict:
        """Pickle and copy without the lock, which cannot be pickled, and without the kept tokens, which are only a cache."""
        return {"tokenizer": self.tokenizer, "most": self.most}

    def __setstate__(self, state: dict) -> None:
        self.__init__(**state)


def _row(tokens: Tokens, row: int) -> Tokens:
    """Return one text's tokens, copied so that they do not keep the arrays of all texts in memory."""
    part = slice(int(tokens.rows[row]), int(tokens.rows[row + 1]))
    ids = tokens.ids[part].copy()
    rows = np.array([0, len(ids)], np.int64)
    return Tokens(ids, tokens.starts[part].copy(), tokens.ends[part].copy(), rows)


def _joined(texts: list[Tokens]) -> Tokens:
    """Return the concatenation of several texts' tokens."""
    return Tokens(
        ids=np.concatenate([text.ids for text in texts]),
        starts=np.concatenate([text.starts for text in texts]),
        ends=np.concatenate([text.ends for text in texts]),
        rows=running_sum([len(text.ids) for text in texts]),
    )
