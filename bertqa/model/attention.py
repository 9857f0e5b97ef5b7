"""Attention over packed sequences: the one place that knows where a sequence begins and ends.

S sequences, N tokens in all of them, L longest sequence, A heads, D head size.

Every body has the same signature, `body(query, key, value, layout, dropout) -> mixed`, all of shape (N, A, D), and the
same result up to rounding; `dropout` is the probability of dropping an attention weight. To try another kind of
attention, write such a function and pass it: `BertEncoder(config, attention=my_attention)`.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bertqa.model.dropout import dropout as cheap_dropout


@dataclass(frozen=True)
class Layout:
    """Where S sequences lie in N packed tokens, one behind the other, nothing between them."""

    lengths: tuple[int, ...]
    """S lengths, on the host: slicing by them needs no synchronisation with the device."""
    cu_seqlens: Tensor
    """(S+1,) int32 on the device: sequence s owns tokens cu_seqlens[s] : cu_seqlens[s+1]."""
    positions: Tensor
    """(N,) int64 on the device: position of each token in its own sequence."""
    sequence: Tensor
    """(N,) int64 on the device: the sequence of each token."""

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device) -> "Layout":
        """The layout of sequences with these lengths (each at least 1), its index tensors on `device`."""
        lengths = tuple(int(length) for length in lengths)
        on_host = torch.tensor(lengths)  # (S,)
        cu_seqlens = F.pad(on_host.cumsum(0), (1, 0))  # (S+1,)
        sequence = torch.repeat_interleave(on_host)  # (N,)
        positions = torch.arange(len(sequence)) - cu_seqlens[sequence]  # (N,)
        move = functools.partial(torch.Tensor.to, device=device, non_blocking=True)
        return cls(lengths, move(cu_seqlens.to(torch.int32)), move(positions), move(sequence))

    @property
    def longest(self) -> int:
        """L."""
        return max(self.lengths)

    @property
    def first_tokens(self) -> Tensor:
        """(S,) index of each sequence's first token, [CLS]."""
        return self.cu_seqlens[:-1].long()

    def pad(self, packed: Tensor, value: float = 0.0) -> Tensor:
        """(N, ...) -> (S, L, ...), `value` behind the end of each sequence."""
        padded = packed.new_full((len(self.lengths), self.longest, *packed.shape[1:]), value)
        return padded.index_put((self.sequence, self.positions), packed)

    def unpad(self, padded: Tensor) -> Tensor:
        """(S, L, ...) -> (N, ...)."""
        return padded[self.sequence, self.positions]

    def mask(self) -> Tensor:
        """(S, L) bool, true on tokens."""
        return self.pad(torch.ones_like(self.positions, dtype=torch.bool), False)


Attention = Callable[[Tensor, Tensor, Tensor, Layout, float], Tensor]


def reference_attention(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, dropout: float = 0.0
) -> Tensor:
    """softmax(Q K^T / sqrt(D)) V written out (Vaswani et al. 2017, equation 1): slow, plain, what the others must equal."""
    return reference_attention_with_maps(query, key, value, layout, dropout)[0]


def reference_attention_with_maps(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, dropout: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Like `reference_attention`, and the attention maps (S, A, L, L): row = asking token, zero outside the sequence."""
    query, key, value = (
        layout.pad(x).transpose(1, 2) for x in (query, key, value)
    )  # (N, A, D) -> (S, A, L, D)
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5  # (S, A, L, L)
    real = layout.mask()  # (S, L)
    # A row of padding asks about the sequence too: a fully masked row would be a softmax of nothing, NaN.
    scores = scores.masked_fill(~real[:, None, None, :], float("-inf"))
    maps = F.dropout(scores.softmax(-1), dropout) * real[:, None, :, None]  # (S, A, L, L)
    return layout.unpad((maps @ value).transpose(1, 2)), maps  # (N, A, D)


def per_sequence_attention(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, dropout: float = 0.0
) -> Tensor:
    """One attention call for each run of neighbours of equal length, no mask at all: the fastest way on a CPU.

    In batches sorted by length a run is many sequences; otherwise it is mostly one, and a call costs little.
    """
    runs = [(length, len(list(same))) for length, same in itertools.groupby(layout.lengths)]
    tokens = [length * count for length, count in runs]
    # On CPUs torch's fused body does not use their units for 16-bit products: its backward takes 4 times as long. With
    # dropout torch has no fused body for them, and draws a random number for each weight.
    slow = query.device.type == "cpu" and (
        dropout > 0 or query.dtype in (torch.bfloat16, torch.float16)
    )
    attend = written_out if slow else F.scaled_dot_product_attention
    mixed = [
        attend(*(x.unflatten(0, run[::-1]).transpose(1, 2) for x in qkv), dropout_p=dropout)
        for run, *qkv in zip(runs, *(x.split(tokens) for x in (query, key, value)), strict=True)
    ]  # (count, A, length, D) each
    return torch.cat([x.transpose(1, 2).flatten(0, 1) for x in mixed])  # (N, A, D)


def written_out(query: Tensor, key: Tensor, value: Tensor, dropout_p: float) -> Tensor:
    """`F.scaled_dot_product_attention` of (S, A, L, D) tensors, step by step."""
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)  # (S, A, L, L)
    return cheap_dropout(scores.softmax(-1), dropout_p, True) @ value  # (S, A, L, D)


def padded_attention(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, dropout: float = 0.0
) -> Tensor:
    """One fused attention call over padded rows with a mask: for devices without the variable-length kernel."""
    query, key, value = (
        layout.pad(x).transpose(1, 2) for x in (query, key, value)
    )  # (N, A, D) -> (S, A, L, D)
    keep = layout.mask()[:, None, None, :]  # (S, 1, 1, L)
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=keep, dropout_p=dropout)
    return layout.unpad(mixed.transpose(1, 2))  # (N, A, D)


def varlen_attention(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, dropout: float = 0.0
) -> Tensor:
    """Flash attention over the packed tokens themselves (CUDA, 16-bit, no attention dropout)."""
    assert dropout == 0, (
        "the variable-length kernel has no dropout; choose_attention never sends any here"
    )
    from torch.nn.attention.varlen import (
        varlen_attn,  # newer than the oldest torch that the other bodies need
    )

    cu_seqlens, longest = layout.cu_seqlens, layout.longest
    return varlen_attn(query, key, value, cu_seqlens, cu_seqlens, longest, longest)


@functools.cache
def _has_varlen(device: torch.device) -> bool:
    try:
        from torch.nn.attention.varlen import varlen_attn  # noqa: F401
    except ImportError:
        return False
    # The kernel is flash attention 2: Ampere and newer.
    return torch.version.cuda is not None and torch.cuda.get_device_capability(device) >= (8, 0)


def choose_attention(device: torch.device, dtype: torch.dtype, dropout: float) -> Attention:
    """The fastest body for these tensors. All bodies but the variable-length one can drop attention weights."""
    if device.type != "cuda":
        return per_sequence_attention
    if dropout == 0 and dtype in (torch.float16, torch.bfloat16) and _has_varlen(device):
        return varlen_attention
    return padded_attention
