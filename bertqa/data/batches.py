"""Windows to packed batches on the device. The only room of data that knows torch.

Which windows make up step k of epoch e on rank r is a pure function of (seed, epoch, rank, world): the position in the
data is one integer, nothing is replayed on resume, and no `set_epoch` can be forgotten.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bertqa.data.text_windows import TextWindows
from bertqa.data.windows import Windows


@dataclass
class Batch:
    """S whole windows packed into N tokens, one behind the other."""

    rows: np.ndarray
    """(S,) which windows these are."""
    lengths: tuple[int, ...]
    """S lengths, on the host; they sum to N."""
    input_ids: Tensor
    """(N,) int64."""
    token_type_ids: Tensor
    """(N,) int64: 0 up to the first [SEP], 1 behind it."""
    start_labels: Tensor
    """(S,) int64, position in the window; 0 = no answer here. Of texts to classify: the class."""
    end_labels: Tensor
    """(S,) int64."""
    picked: Tensor
    """(S,) int64: `rows` on the device."""


class WindowStore:
    """All windows of a data set resident on a device as flat integer arrays, from which batches are gathered there."""

    def __init__(self, windows: Windows | TextWindows, device: torch.device | str = "cpu"):
        sequences = windows.sequences()
        self.device, self.lengths = torch.device(device), sequences.lengths
        self.ids = torch.from_numpy(sequences.ids).to(device)
        self.window = torch.from_numpy(sequences.table).to(device)  # (W, 5)

    def __len__(self) -> int:
        return len(self.lengths)

    def batch(self, rows: np.ndarray) -> Batch:
        """The windows `rows` (S,), packed in that order. Nothing here makes the host wait for the device."""
        lengths = self.lengths[rows].astype(np.int64)  # (S,)
        ends = lengths.cumsum()
        total = int(ends[-1])
        to_device = torch.from_numpy(np.stack([rows.astype(np.int64), lengths, ends - lengths]))
        picked, length, begin = to_device.to(self.device, non_blocking=True)  # 3 x (S,)
        fields = self.window[picked]  # (S, 5)
        per_token = torch.repeat_interleave(
            torch.cat([fields[:, :3], length[:, None], begin[:, None]], 1),
            length,
            0,
            output_size=total,
        )
        question_at, asked, context_at, length, begin = per_token.unbind(1)  # 5 x (N,)
        position = torch.arange(total, device=self.device) - begin  # (N,)
        in_context = position - asked - 2  # [CLS] question [SEP] stand before it
        source = torch.where(in_context < 0, question_at + position - 1, context_at + in_context)
        separator = (in_context == -1) | (position == length - 1)
        source = torch.where(separator, 1, torch.where(position == 0, 0, source))
        return Batch(
            rows,
            tuple(lengths.tolist()),
            self.ids[source].long(),
            (in_context >= 0).long(),
            fields[:, 3],
            fields[:, 4],
            picked,
        )


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
    parts, start, tokens = [], 0, 0
    for i, length in enumerate(lengths[rows].tolist()):
        if tokens and tokens + length > most:
            parts.append(rows[start:i])
            start, tokens = i, 0
        tokens += length
    return [*parts, rows[start:]] if len(rows) else []


def by_length(lengths: np.ndarray, most: int) -> Iterator[np.ndarray]:
    """All windows, longest first, in batches of at most `most` tokens: for inference, where order does not matter.

    Neighbours are of nearly equal length, and the largest batch comes first, so memory that suffices for it suffices.
    """
    yield from split_by_tokens(np.argsort(-lengths, kind="stable"), lengths, most)


def padded(batch: Batch, pad_id: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """The same batch as people know it: input_ids, attention_mask, token_type_ids, each (S, L)."""
    return tuple(
        torch.nn.utils.rnn.pad_sequence(x.split(batch.lengths), True, fill)
        for x, fill in (
            (batch.input_ids, pad_id),
            (torch.ones_like(batch.input_ids), 0),
            (batch.token_type_ids, 0),
        )
    )
