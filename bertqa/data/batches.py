"""Gather windows into packed batches on the device. The only module of data that imports torch.

The windows of step k of epoch e on rank r are a pure function of (seed, epoch, rank, world size). So a training's position
in the data is one integer, resuming replays nothing, and there is no `set_epoch` to forget.

Shapes: S windows in a batch, N tokens of all of them, L tokens of the longest, W windows of the data set.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bertqa.data.text_windows import TextWindows
from bertqa.data.windows import Windows
from bertqa.device import to_device

START_LABEL = 3
END_LABEL = 4
LENGTH = 5
"""Columns of `WindowStore.table`."""


@dataclass
class Batch:
    """S windows packed into N tokens without padding. All tensors are on the device."""

    input_ids: Tensor  # (N,) int64
    token_type_ids: Tensor  # (N,) int64: 0 up to the first [SEP], then 1
    start_labels: Tensor  # (S,) int64, position in the window; 0: it does not hold the answer
    end_labels: Tensor  # (S,) int64
    picked: Tensor  # (S,) int64: row of each window in the data set
    weights: Tensor
    """(S,) float32: weight of each window in the loss: 1, or 0 for the dummy windows that fill a static batch."""
    cu_seqlens: Tensor  # (S+1,) int32: window s owns tokens cu_seqlens[s] : cu_seqlens[s+1]
    positions: Tensor  # (N,) int64: position of each token in its window
    sequence: Tensor  # (N,) int64: index (0 to S-1) of each token's window
    longest: int  # L, or an upper bound of it
    rows: np.ndarray | None = None
    """(S,) `picked` on the host, for tasks that look up labels of their own; None in a static batch."""
    lengths: tuple[int, ...] | None = None
    """Tokens of each window, on the host; they sum to N. None in a static batch, where only the device knows them."""

    @property
    def classes(self) -> Tensor:
        """(S,) int64, class of each text. `TextWindows.sequences` puts it in the place of the start label."""
        return self.start_labels


class WindowStore:
    """All windows of a data set, on a device, as flat integer arrays; batches are gathered from them on that device."""

    def __init__(self, windows: Windows | TextWindows, device: torch.device | str = "cpu"):
        sequences = windows.sequences()
        self.device = torch.device(device)
        self.lengths = sequences.lengths
        self.ids = torch.from_numpy(sequences.ids).to(self.device)
        table = np.column_stack([sequences.table, sequences.lengths]).astype(np.int64)
        self.table = torch.from_numpy(table).to(self.device)  # (W, 6)

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def longest(self) -> int:
        """Number of tokens of the longest window."""
        return int(self.lengths.max())

    def batch(self, rows: np.ndarray) -> Batch:
        """Return the windows `rows` (S,), packed in that order. The host never waits for the device here."""
        # The host has its own copy of the lengths: reading them from the device would be waiting for it.
        lengths = tuple(self.lengths[rows].tolist())
        picked = to_device(rows.astype(np.int64), self.device)  # (S,)
        ends = self.table[picked, LENGTH].cumsum(0)  # (S,)
        batch = self._gather(picked, ends, sum(lengths), max(lengths))
        batch.rows = rows
        batch.lengths = lengths
        return batch

    def static_batch(self, picked: Tensor, tokens: int) -> Batch:
        """Return a batch whose shapes depend on `len(picked)` and `tokens` alone, so that a CUDA graph can replay it.

        The host writes `picked` and reads nothing back. If a step has fewer windows, the missing ones have no tokens. Dummy
        windows of weight 0 at the end fill the batch up to `tokens`. Example: windows 7 and 3, of 5 and 4 tokens, one missing
        window, 6 tokens in the longest window of the data set, and 16 tokens to fill:

            picked 7 3 -1     lengths 5 4 0 | 6 1     cu_seqlens 0 5 9 9 15 16     weights 1 1 0 0 0

        Args:
            picked: (S,) int64 on the device, rows of windows; -1 for a missing window.
            tokens: N, which is `bucket_of` the number of tokens of the windows.
        """
        longest = self.longest
        dummies = -(-bucket_width(tokens) // longest)
        lengths = self.table[picked.clamp(min=0), LENGTH]
        ends = torch.where(picked < 0, 0, lengths).cumsum(0)  # (S,)
        # A dummy is at most as long as the longest window: attention and position embeddings reach no further.
        offsets = longest * torch.arange(1, dummies + 1, device=self.device)
        dummy_ends = (ends[-1] + offsets).clamp(max=tokens)
        ends = torch.cat([ends, dummy_ends])  # (S + dummies,)
        picked = torch.cat([picked, picked.new_full((dummies,), -1)])
        return self._gather(picked, ends, tokens, longest)

    def _gather(self, picked: Tensor, ends: Tensor, tokens: int, longest: int) -> Batch:
        """Return the batch of the windows `picked` (S,), -1 for a missing or dummy one, with cumulative lengths `ends` (S,)."""
        is_window = picked >= 0  # (S,)
        picked = picked.clamp(min=0)
        fields = self.table[picked]  # (S, 6)
        place = torch.arange(tokens, device=self.device)  # (N,)
        # A window without tokens ends where the one before it ends, so that no place is found in it.
        sequence = torch.searchsorted(ends, place, right=True)  # (N,)
        begins = F.pad(ends, (1, 0))  # (S+1,)
        position = place - begins[sequence]  # (N,)

        of_token = fields[sequence]  # (N, 6)
        question_at, question_count, context_at, _, _, length = of_token.unbind(1)  # (N,) each
        # In [CLS] q q [SEP] c c [SEP], with 2 question tokens, positions 0 to 6 are -4 -3 -2 -1 0 1 2 in the context.
        in_context = position - question_count - 2
        source = torch.where(in_context < 0, question_at + position - 1, context_at + in_context)
        # The ids of [CLS] and [SEP] are at indices 0 and 1 of `ids`.
        source = torch.where(position == 0, 0, source)
        is_separator = (in_context == -1) | (position == length - 1)
        source = torch.where(is_separator, 1, source)
        is_real = is_window[sequence]  # (N,)
        return Batch(
            input_ids=self.ids[torch.where(is_real, source, 0)].long(),
            token_type_ids=((in_context >= 0) & is_real).long(),
            start_labels=torch.where(is_window, fields[:, START_LABEL], 0),
            end_labels=torch.where(is_window, fields[:, END_LABEL], 0),
            picked=picked,
            weights=is_window.float(),
            cu_seqlens=begins.to(torch.int32),
            positions=position,
            sequence=sequence,
            longest=longest,
        )


def bucket_width(tokens: int) -> int:
    """Return the multiple to which `bucket_of` rounds: a power of two, at most 1/32 of `tokens` but at least 128."""
    return max(128, 2 ** (tokens.bit_length() - 6))


def bucket_of(tokens: int) -> int:
    """Round a number of tokens up, so that few CUDA graphs serve many batches.

    2,800 -> 2,816 (a multiple of 128); 11,400 -> 11,520 (256); 30,000 -> 30,208 (512).
    """
    width = bucket_width(tokens)
    return max(1, -(-tokens // width)) * width


def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """Return the order of `count` windows in an epoch: a permutation (count,) that depends on the arguments alone."""
    return np.random.default_rng([seed, epoch]).permutation(count)


def step_rows(order: np.ndarray, step: int, batch_size: int) -> np.ndarray:
    """Return the windows of optimizer step `step` of an epoch, for all ranks together; the last step may have fewer.

    Rank r of w takes every w-th of them, `[r::w]`. Example: order 0..9, batch_size 4, two ranks. Step 0 is [0, 1, 2, 3], of
    which rank 0 takes [0, 2] and rank 1 [1, 3]; step 2 is [8, 9], of which they take [8] and [9].
    """
    return order[step * batch_size : (step + 1) * batch_size]


def split_by_tokens(rows: np.ndarray, lengths: np.ndarray, most: int) -> list[np.ndarray]:
    """Split `rows` into consecutive micro-batches of at most `most` tokens each; a longer window is a batch of its own."""
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
    """Split `rows` into consecutive micro-batches of at most `most` tokens each, of nearly equal size.

    Example: windows of 4 4 4 4 4 tokens and most 16 become 4 4 4 | 4 4, where `split_by_tokens` gives 4 4 4 4 | 4.
    """
    if not len(rows):
        return []
    ends = lengths[rows].cumsum(dtype=np.int64)
    if ends[-1] <= most:
        return [rows]
    # Parts end between windows, so one of the fewest parts that could hold the tokens may be too large: then take more.
    fewest = -(-int(ends[-1]) // most)
    for count in range(fewest, len(rows) + 1):
        shares = ends[-1] * np.arange(1, count) / count
        # Each part ends with the first window that reaches its share of the tokens.
        parts = np.split(rows, np.searchsorted(ends, shares) + 1)
        parts = [part for part in parts if len(part)]
        if max(lengths[part].sum() for part in parts) <= most:
            return parts
    return split_by_tokens(rows, lengths, most)


def by_length(lengths: np.ndarray, most: int) -> list[np.ndarray]:
    """Split all windows, longest first, into batches of at most `most` tokens: for inference, where order does not matter.

    Windows of a batch are of nearly equal length. The first batch needs the most memory, so running out shows at once.
    """
    return split_by_tokens(np.argsort(-lengths, kind="stable"), lengths, most)


def padded(batch: Batch, pad_id: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Return input_ids, attention_mask and token_type_ids of the batch in the usual padded form, each (S, L)."""

    def rows(values: Tensor, fill: int) -> Tensor:
        sequences = values.split(batch.lengths)
        return torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=fill)

    mask = rows(torch.ones_like(batch.input_ids), 0)
    return rows(batch.input_ids, pad_id), mask, rows(batch.token_type_ids, 0)
