"""Texts, or pairs of texts, to token sequences: what is classified or embedded. One window a text, none overlaps. And their
labels to classes, and to parts for training and for tests.

A sequence is  [CLS] text [SEP],  of a pair  [CLS] text [SEP] second text [SEP].
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bertqa.data.texts import Texts
from bertqa.data.tokenizer import WordPiece
from bertqa.data.tokens import Tokens, no_tokens
from bertqa.data.windows import Sequences, fingerprint
from bertqa.errors import UserError, show


@dataclass
class TextWindows:
    """R texts, or pairs of texts, in their order."""

    texts: Tokens  # one row a text, already cut
    seconds: Tokens | None  # one row a second text, already cut; None where there are single texts
    classes: np.ndarray  # (R,) int32, the class of each; 0 where none is known
    cls_id: int
    sep_id: int
    cut: int  # texts or pairs that were longer than the limit and lost their end

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
        # As in windows.py: [CLS] and [SEP] come first, then all first texts, then all second ones.
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
    # A first text keeps what the second leaves, and half of the room at least; a second one gets the rest.
    kept = np.minimum(whole.counts, np.maximum(room - seconds.counts, (room + 1) // 2))  # (R,)
    return TextWindows(
        texts=whole.cut(kept),
        seconds=seconds.cut(room - kept),
        classes=classes,
        cls_id=tokenizer.cls_id,
        sep_id=tokenizer.sep_id,
        cut=int((whole.counts + seconds.counts > room).sum()),
    )


# Labels to classes


def label_names(labels: Sequence[str]) -> list[str]:
    """The classes in their order: by value where all are whole numbers, else by name."""
    names = set(labels)
    if all(re.fullmatch(r"-?[0-9]{1,18}", name) for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def label_rows(texts: Texts, names: Sequence[str]) -> np.ndarray:
    """(R,) the class of each row, as its place in `names`. Raises UserError for labels that are not among them."""
    place = {name: row for row, name in enumerate(names)}
    unseen: dict[str, str] = {}  # label -> where it stands first
    count = 0
    for label, where in zip(texts.labels, texts.where, strict=True):
        if label not in place:
            unseen.setdefault(label, where)
            count += 1
    if unseen:
        some = label_names(list(unseen))[:8]
        kinds = ", ".join(f"{show(name)} (first: {unseen[name]})" for name in some)
        raise UserError(
            f"{texts.path}: {count:,} of {len(texts):,} labels were not seen in training: {kinds}; "
            f"known are {', '.join(map(show, names))}"
        )
    return np.array([place[label] for label in texts.labels])


def split(texts: Texts, share: float, seed: int) -> tuple[Texts, Texts]:
    """(the rest, `share` of the rows), both in the file's order.

    Stratified: that share is drawn of each label, by seed; one row at least if there are two, and never the last.
    """
    labels = np.array(texts.labels)
    draw = np.random.default_rng([seed, 2])
    drawn: set[int] = set()
    for name in label_names(texts.labels):
        rows = draw.permutation(np.flatnonzero(labels == name)).tolist()
        count = min(len(rows) - 1, max(1, round(share * len(rows))))
        drawn.update(rows[:count])
    rest = [row for row in range(len(texts)) if row not in drawn]
    return texts.select(rest), texts.select(sorted(drawn))
