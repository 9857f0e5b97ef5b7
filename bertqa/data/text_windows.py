"""Texts, or pairs of texts, to token sequences: what is classified or embedded. One window a text, none overlaps.

A sequence is  [CLS] text [SEP],  of a pair  [CLS] text [SEP] second text [SEP].
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bertqa.data.tokenizer import WordPiece
from bertqa.data.tokens import Tokens, no_tokens
from bertqa.data.windows import Sequences, fingerprint


@dataclass
class TextWindows:
    """R texts, or pairs of texts, in their order."""

    texts: Tokens
    """One row a text, already cut."""
    seconds: Tokens | None
    """One row a second text, already cut; None where there are single texts."""
    classes: np.ndarray
    """(R,) int32, the class of each; 0 where none is known."""
    cls_id: int
    sep_id: int
    cut: int
    """Texts or pairs that were longer than the limit and lost their end."""

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def lengths(self) -> np.ndarray:
        """(R,) int32, tokens of each sequence."""
        if self.seconds is None:
            return (self.texts.counts + 2).astype(np.int32)
        return (self.texts.counts + self.seconds.counts + 3).astype(np.int32)

    def sequences(self) -> Sequences:
        """The texts as a model reads them; the first label is the class, the second is not used."""
        seconds = self.seconds or no_tokens()
        second_at = seconds.rows[:-1] if self.seconds else np.zeros(len(self), np.int64)
        columns = [
            2 + self.texts.rows[:-1],
            self.texts.counts,
            2 + len(self.texts.ids) + second_at,
            self.classes,
            np.zeros(len(self), np.int64),
        ]
        special = np.array([self.cls_id, self.sep_id], np.int32)
        return Sequences(
            ids=np.concatenate([special, self.texts.ids, seconds.ids]),
            table=np.stack(columns, axis=1).astype(np.int64),
            lengths=self.lengths,
        )

    def fingerprint(self) -> str:
        """Of what the model sees: the same texts, classes and vocabulary give the same 16 digits."""
        seconds = self.seconds or no_tokens()
        arrays = [self.texts.ids, self.texts.rows, seconds.ids, seconds.rows, self.classes]
        return fingerprint(arrays)


def text_windows(
    texts: Sequence[str],
    tokenizer: WordPiece,
    *,
    pairs: Sequence[str] | None = None,
    labels: np.ndarray | None = None,
    max_length: int = 512,
    progress: str | None = None,
) -> TextWindows:
    """Tokenise texts, or pairs of a text and its second one in `pairs`, for sequences of at most `max_length` tokens.

    What is longer loses its end, a pair from the longer of its two first: with room for 7, tokens 9 and 1 become 6
    and 1, and 9 and 9 become 4 and 3. `labels` (R,) are the classes.
    """
    whole = tokenizer.encode(texts, progress)
    classes = np.zeros(len(texts), np.int32) if labels is None else labels.astype(np.int32)
    if pairs is None:
        room = max_length - 2  # [CLS] and [SEP]
        return TextWindows(
            texts=whole.cut(room),
            seconds=None,
            classes=classes,
            cls_id=tokenizer.cls_id,
            sep_id=tokenizer.sep_id,
            cut=int((whole.counts > room).sum()),
        )
    room = max_length - 3
    seconds = tokenizer.encode(pairs, progress)
    kept = np.minimum(whole.counts, np.maximum(room - seconds.counts, (room + 1) // 2))  # (R,)
    return TextWindows(
        texts=whole.cut(kept),
        seconds=seconds.cut(room - kept),
        classes=classes,
        cls_id=tokenizer.cls_id,
        sep_id=tokenizer.sep_id,
        cut=int((whole.counts + seconds.counts > room).sum()),
    )
