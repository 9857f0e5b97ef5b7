"""Turn texts to classify or embed, or pairs of texts, into token sequences.

A text becomes one sequence  [CLS] text [SEP],  a pair  [CLS] text [SEP] second text [SEP].  A long one is cut, not split.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bertqa.data.tokenizer import WordPiece
from bertqa.data.tokens import Tokens, no_tokens
from bertqa.data.windows import TokenSequences, fingerprint


@dataclass
class TextWindows:
    """R texts, or R pairs of texts."""

    texts: Tokens  # one row a text, already cut
    seconds: Tokens | None  # one row a second text, already cut; None for single texts
    classes: np.ndarray  # (R,) int32, class of each; 0 if it is not known
    cls_id: int
    sep_id: int
    cut: int  # number of texts or pairs that were cut

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def lengths(self) -> np.ndarray:
        """(R,) int32, tokens of each sequence."""
        if self.seconds is None:
            return (self.texts.counts + 2).astype(np.int32)
        return (self.texts.counts + self.seconds.counts + 3).astype(np.int32)

    def sequences(self) -> TokenSequences:
        """Return the texts as token sequences, for `WindowStore`: the first label is the class, the second is 0."""
        seconds = self.seconds or no_tokens()
        second_at = seconds.rows[:-1] if self.seconds else np.zeros(len(self), np.int64)
        # `ids` holds [CLS], [SEP], all first texts, all second texts, as in windows.py.
        columns = [
            2 + self.texts.rows[:-1],
            self.texts.counts,
            2 + len(self.texts.ids) + second_at,
            self.classes,
            np.zeros(len(self), np.int64),
        ]
        special = np.array([self.cls_id, self.sep_id], np.int32)
        return TokenSequences(
            ids=np.concatenate([special, self.texts.ids, seconds.ids]),
            table=np.stack(columns, axis=1).astype(np.int64),
            lengths=self.lengths,
        )

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits that depend on the tokens and the classes, and nothing else."""
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
    """Tokenise texts, or pairs of texts, and cut them to sequences of at most `max_length` tokens.

    Of a pair the longer text is cut first: with room for 7 tokens, texts of 9 and 1 tokens are cut to 6 and 1, texts of 9
    and 9 to 4 and 3.

    Args:
        pairs: the second text of each pair; None for single texts.
        labels: (R,) class of each; None if they are not known.
        progress: name of a progress bar; None shows none.
    """
    firsts = tokenizer.encode(texts, progress)
    if pairs is None:
        seconds = None
        totals = firsts.counts  # (R,)
        room = max_length - 2  # without [CLS] and [SEP]
        kept = np.minimum(firsts.counts, room)  # (R,) tokens of the first text
    else:
        seconds = tokenizer.encode(pairs, progress)
        totals = firsts.counts + seconds.counts  # (R,)
        room = max_length - 3  # without [CLS] and two [SEP]
        # The first text gets what the second leaves, but at least half of the room; the second gets the rest.
        share = np.maximum(room - seconds.counts, (room + 1) // 2)  # (R,)
        kept = np.minimum(firsts.counts, share)  # (R,)
        seconds = seconds.cut(room - kept)
    classes = np.zeros(len(texts), np.int32) if labels is None else labels.astype(np.int32)
    return TextWindows(
        texts=firsts.cut(kept),
        seconds=seconds,
        classes=classes,
        cls_id=tokenizer.cls_id,
        sep_id=tokenizer.sep_id,
        cut=int((totals > room).sum()),
    )
