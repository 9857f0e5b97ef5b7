"""Windows to packed batches on the device. The only room of data that knows torch.

Which windows make up step k of epoch e on rank r is a pure function of (seed, epoch, rank, world): the position in the
data is one integer, nothing is replayed on resume, and no `set_epoch` can be forgotten.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bertqa.data.text_windows import TextWindows
from bertqa.data.windows import Windows
from bertqa.device import to_device

START, END, LENGTH = 3, 4, 5
"""Columns of WindowStore's table."""


@dataclass
class Batch:
    """S windows packed into N tokens, one behind the other. All tensors are on the device."""

    input_ids: Tensor  # (N,) int64
    token_type_ids: Tensor  # (N,) int64: 0 up to the first [SEP], 1 behind it
    start_labels: Tensor  # (S,) int64, position in the window; 0 = no answer here
    end_labels: Tensor  # (S,) int64
    picked: Tensor  # (S,) int64: which windows these are
    weights: Tensor
    """(S,) float32: how much each window counts in the loss: 1, and 0 for what only fills a static batch."""
    cu_seqlens: Tensor  # (S+1,) int32: window s owns tokens cu_seqlens[s] : cu_seqlens[s+1]
    positions: Tensor  # (N,) int64: of each token in its window
    sequence: Tensor  # (N,) int64: which of the S windows each token belongs to
    longest: int  # no window is longer than this
    rows: np.ndarray | None = None
    """(S,) `picked` on the host, by which a task of one's own finds its labels; None in a static batch."""
    lengths: tuple[int, ...] | None = None
    """S lengths, on the host; they sum to N. None in a static batch, whose lengths only the device knows."""

    @property
    def classes(self) -> Tensor:
        """(S,) int64, where the windows are texts to classify: the class of each, which stands for the start label."""
        return self.start_labels


class WindowStore:
    """All windows of a data set resident on a device as flat integer arrays, from which batches are gathered there."""

    def __init__(self, windows: Windows | TextWindows, device: torch.device | str = "cpu"):
        sequences = windows.sequences()
        self.device = torch.device(device)
        self.lengths = sequences.lengths
        self.ids = torch.from_numpy(sequences.ids).to(self.device)
        table = np.column_stack([sequences.table, sequences.lengths]).astype(np.int64)
        self.window = torch.from_numpy(table).to(self.device)  # (W, 6)

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def longest(self) -> int:
        """Tokens of the longest window."""
        return int(self.lengths.max())

    def batch(self, rows: np.ndarray) -> Batch:
        """The windows `rows` (S,), packed in that order. Nothing here makes the host wait for the device."""
        # Lengths are known on the host too: to ask the device for them would be to wait for it.
        lengths = tuple(self.lengths[rows].tolist())
        picked = to_device(rows.astype(np.int64), self.device)  # (S,)
        ends = self.window[picked, LENGTH].cumsum(0)  # (S,)
        batch = self._gather(picked, ends, sum(lengths), max(lengths))
        batch.rows = rows
        batch.lengths = lengths
        return batch

    def static_batch(self, picked: Tensor, tokens: int) -> Batch:
        """The same with nothing that depends on which windows they are but the numbers in its tensors.

        So one CUDA graph serves all batches of so many tokens: `picked` is all that the host writes, and the host looks at
        nothing. Windows that are missing have no tokens, and dummy windows behind the last take up those that are left.
        With windows of 5 and 4 tokens, one missing, none longer than 6, and 16 tokens to fill:

            picked 7 3 -1     lengths 5 4 0 | 6 1     cu_seqlens 0 5 9 9 15 16     weights 1 1 0 0 0

        Args:
            picked: (S,) int64 on the device, -1 for a window that is missing.
            tokens: N, from `bucket_of` the tokens of the windows.
        """
        longest = self.longest
        dummies = -(-bucket_width(tokens) // longest)
        lengths = self.window[picked.clamp(min=0), LENGTH]
        ends = torch.where(picked < 0, 0, lengths).cumsum(0)  # (S,)
        # A dummy is no longer than a window: its positions must exist, and attention computes up to the longest only.
        steps = longest * torch.arange(1, dummies + 1, device=self.device)
        ends = torch.cat([ends, (ends[-1] + steps).clamp(max=tokens)])  # (S + dummies,)
        picked = torch.cat([picked, picked.new_full((dummies,), -1)])
        return self._gather(picked, ends, tokens, longest)

    def _gather(self, picked: Tensor, ends: Tensor, tokens: int, longest: int) -> Batch:
        """The batch of the windows `picked` (S,), -1 for none, that end behind so many tokens (S,)."""
        is_window = picked >= 0  # (S,)
        picked = picked.clamp(min=0)
        fields = self.window[picked]  # (S, 6)
        place = torch.arange(tokens, device=self.device)  # (N,)
        # Windows without tokens end where their neighbour does, and no place lies in them.
        sequence = torch.searchsorted(ends, place, right=True)  # (N,)
        begins = F.pad(ends, (1, 0))  # (S+1,)
        position = place - begins[sequence]  # (N,)

        question_at, asked, context_at, _, _, length = fields[sequence].unbind(1)  # (N,) each
        # Of [CLS] q q [SEP] c c [SEP], which asks 2 tokens, positions 0 to 6 are -4 -3 -2 -1 0 1 2 in the context.
        in_context = position - asked - 2
        # The ids of [CLS] and [SEP] are the first two that there are.
        source = torch.where(in_context < 0, question_at + position - 1, context_at + in_context)
        is_separator = (in_context == -1) | (position == length - 1)
        source = torch.where(is_separator, 1, torch.where(position == 0, 0, source))
        is_real = is_window[sequence]  # (N,)
        return Batch(
            input_ids=self.ids[torch.where(is_real, source, 0)].long(),
            token_type_ids=((in_context >= 0) & is_real).long(),
            start_labels=torch.where(is_window, fields[:, START], 0),
            end_labels=torch.where(is_window, fields[:, END], 0),
            picked=picked,
            weights=is_window.float(),
            cu_seqlens=begins.to(torch.int32),
            positions=position,
            sequence=sequence,
            longest=longest,
        )


def bucket_width(tokens: int) -> int:
    """How far token counts of this size are rounded up: 3 % at most, and 128 for small ones."""
    return max(128, 2 ** (tokens.bit_length() - 6))


def bucket_of(tokens: int) -> int:
    """A count of tokens, rounded up, so that few CUDA graphs serve many batches.

    2,800 -> 2,816 (in steps of 128); 11,400 -> 11,520 (256); 30,000 -> 30,208 (512).
    """
    width = bucket_width(tokens)
    return max(1, -(-tokens // width)) * width


def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """(count,) the order of `count` windows in an epoch: a permutation that depends on nothing else."""
    return np.random.default_rng([seed, epoch]).permutation(count)


def step_rows(order: np.ndarray, step: int, batch_size: int) -> np.ndarray:
    """The windows of optimizer step `step` of an epoch, over all ranks; those of the last one may be fewer.

    Ranks share them by turns: of order 0..9 and batch_size 4, step 0 gives rank 0 of two `[0, 1, 2, 3][0::2]` = [0, 2],
    rank 1 [1, 3]; step 2 gives them [8] and [9].
    """
    return order[step * batch_size : (step + 1) * batch_size]


def split_by_tokens(rows: np.ndarray, lengths: np.ndarray, most: int) -> list[np.ndarray]:
    """Cut `rows` into consecutive micro-batches of at most `most` tokens each (a single window may exceed it)."""
    parts = []
    start = 0
    tokens = 0
    for i, length in enumerate(lengths[rows].tolist()):
        if tokens and tokens + length > most:
            parts.append(rows[start:i])
            start = i
            tokens = 0
        tokens += length
    if len(rows):
        parts.append(rows[start:])
    return parts


def split_evenly(rows: np.ndarray, lengths: np.ndarray, most: int) -> list[np.ndarray]:
    """Cut `rows` into consecutive micro-batches of at most `most` tokens that are nearly equal, not the last a small one.

    Windows of 4 4 4 4 4 tokens with most 16 are not 4 4 4 4 | 4 but 4 4 4 | 4 4.
    """
    if not len(rows):
        return []
    ends = lengths[rows].cumsum(dtype=np.int64)
    if ends[-1] <= most:
        return [rows]
    # As many parts as the tokens need, and more where a cut between windows makes one of them too large.
    count = -(-int(ends[-1]) // most)
    while True:
        shares = ends[-1] * np.arange(1, count) / count
        # A cut stands behind the first window that reaches its share.
        parts = np.split(rows, np.searchsorted(ends, shares) + 1)
        parts = [part for part in parts if len(part)]
        largest = max(int(lengths[part].sum()) for part in parts)
        if largest <= most or count >= len(rows):
            return parts if largest <= most else split_by_tokens(rows, lengths, most)
        count += 1


def by_length(lengths: np.ndarray, most: int) -> Iterator[np.ndarray]:
    """All windows, longest first, in batches of at most `most` tokens: for inference, where order does not matter.

    Neighbours are of nearly equal length, and the largest batch comes first, so memory that suffices for it suffices.
    """
    yield from split_by_tokens(np.argsort(-lengths, kind="stable"), lengths, most)


def padded(batch: Batch, pad_id: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """The same batch as people know it: input_ids, attention_mask, token_type_ids, each (S, L)."""

    def rows(values: Tensor, fill: int) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(values.split(batch.lengths), True, fill)

    mask = rows(torch.ones_like(batch.input_ids), 0)
    return rows(batch.input_ids, pad_id), mask, rows(batch.token_type_ids, 0)
