"""Tokens of many texts in flat arrays: ids, and where each token stands in its text; a cache of them."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bertqa.data.characters import beginnings, extends

LONG_TEXT = 2000  # characters from which tokens are kept; shorter texts are tokenised in no time
MOST_TOKENS = 1 << 20  # tokens kept (12 MB, and their texts)


@dataclass
class Tokens:
    """R texts as one flat array of T tokens, without special tokens.

    Offsets count Python characters of the raw text, whatever the tokenizer did to it (lower case,
    accents, controls).
    """

    ids: np.ndarray  # (T,) int32
    starts: np.ndarray  # (T,) int32, first character of each token in its text
    ends: np.ndarray  # (T,) int32, one past its last character
    rows: np.ndarray  # (R+1,) int64: text r owns tokens rows[r] : rows[r+1]

    @property
    def counts(self) -> np.ndarray:
        """(R,) tokens of each text."""
        return np.diff(self.rows)

    def cut(self, most: "int | np.ndarray") -> "Tokens":
        """Every text cut to its first `most` tokens: one number for all, or (R,)."""
        most = np.broadcast_to(most, self.counts.shape)
        begins = np.repeat(self.rows[:-1], self.counts)  # (T,) where each token's text begins
        place = np.arange(len(self.ids)) - begins  # (T,) in its text
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
        begins = np.array(beginnings(text))  # 0 1 2 3 4 6 7 in the example
        own = slice(tokens.rows[row], tokens.rows[row + 1])
        # A start moves back to where its character begins, an end on to where the next one does.
        before = np.searchsorted(begins, tokens.starts[own], side="right") - 1
        behind = np.searchsorted(begins, tokens.ends[own], side="left")
        tokens.starts[own] = begins[before]
        tokens.ends[own] = begins[behind]
    return tokens


class TokenCache:
    """`encode` of a WordPiece, with the tokens of the long texts that were used last. Threads may share it."""

    def __init__(self, tokenizer, most: int = MOST_TOKENS):
        self.tokenizer = tokenizer
        self.cls_id = tokenizer.cls_id
        self.sep_id = tokenizer.sep_id
        self.most = most
        self.kept: OrderedDict[str, Tokens] = OrderedDict()  # the one used last stands last
        self.lock = threading.Lock()

    def encode(self, texts: Sequence[str], progress: str | None = None) -> Tokens:
        """What the tokenizer gives for these texts."""
        if all(len(text) < LONG_TEXT for text in texts):
            return self.tokenizer.encode(texts, progress)
        # Two threads may tokenise the same text at once: that costs time and changes nothing.
        with self.lock:
            found = {text: self.kept[text] for text in texts if text in self.kept}
        new = [text for text in texts if text not in found]
        fresh = self.tokenizer.encode(new, progress)
        for row, text in enumerate(new):
            found[text] = _row(fresh, row)
        self._keep({text: found[text] for text in texts if len(text) >= LONG_TEXT})
        return _joined([found[text] for text in texts])

    def _keep(self, texts: dict[str, Tokens]) -> None:
        """Put texts at the end of the queue, and drop from its front what is too much; the last one always stays."""
        with self.lock:
            for text, tokens in texts.items():
                self.kept[text] = tokens
                self.kept.move_to_end(text)
            size = sum(len(tokens.ids) for tokens in self.kept.values())
            # A text larger than all the room is kept all the same: the next question is likely about it.
            while size > self.most and len(self.kept) > 1:
                _, dropped = self.kept.popitem(last=False)
                size -= len(dropped.ids)

    def continues(self, ids: np.ndarray) -> np.ndarray:
        """(T,) bool: the token goes on with the word of the one before it, as "##ing" does."""
        backend = self.tokenizer.backend
        prefix = getattr(backend.model, "continuing_subword_prefix", None) or "##"
        # A text has far fewer distinct tokens than tokens, and each costs a call of the library.
        distinct, where = np.unique(ids, return_inverse=True)
        goes_on = [backend.id_to_token(int(id)).startswith(prefix) for id in distinct]
        return np.array(goes_on, bool)[where]

    def __getstate__(self) -> dict:
        """Pickled and copied without its lock, and empty: what is kept must not change what a Reader is."""
        return {"tokenizer": self.tokenizer, "most": self.most}

    def __setstate__(self, state: dict) -> None:
        self.__init__(**state)


def _row(tokens: Tokens, row: int) -> Tokens:
    """One text of many, its arrays copied so that it does not hold on to the others."""
    part = slice(int(tokens.rows[row]), int(tokens.rows[row + 1]))
    ids = tokens.ids[part].copy()
    rows = np.array([0, len(ids)], np.int64)
    return Tokens(ids, tokens.starts[part].copy(), tokens.ends[part].copy(), rows)


def _joined(texts: list[Tokens]) -> Tokens:
    """Texts one behind the other."""
    return Tokens(
        ids=np.concatenate([text.ids for text in texts]),
        starts=np.concatenate([text.starts for text in texts]),
        ends=np.concatenate([text.ends for text in texts]),
        rows=running_sum([len(text.ids) for text in texts]),
    )
