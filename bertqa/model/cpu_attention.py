"""Attention for sequences of equal length on a CPU, without padding or mask.

The fastest way depends on the dtype. Milliseconds for a sequence of 196 and of 384 tokens, 12 heads of size 32, on one
core (Zen 4):

    float32   torch's fused call 1.2, 3.9     written out 1.3, 6.9 (the scores do not fit the cache)
    bf16      torch's fused call 1.3, 3.9     written out 1.1, 3.0, with softmax in place 0.9, 2.7

N tokens, A heads, D head size, S adjacent sequences of L tokens each.
"""

import itertools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from bertqa.model.dropout import dropout as cheap_dropout


def runs(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Return length and count of each run of adjacent equal lengths: 9, 9, 9, 4 -> (9, 3), (4, 1)."""
    return [(length, len(list(same))) for length, same in itertools.groupby(lengths)]


def fastest_call(query: Tensor, dropout: float) -> Callable[..., Tensor]:
    """Return the fastest `attend(query, key, value, dropout_p=...)` for (S, A, L, D) tensors of equal length.

    That is torch's fused attention, with two exceptions on CPUs. With dropout torch has no fused kernel there, and draws a
    random number for each weight. In 16 bits its kernel does not use the processor's bf16 units: its backward takes 4 times
    as long.
    """
    if query.device.type != "cpu":
        return F.scaled_dot_product_attention
    if dropout > 0:
        return written_out
    if query.dtype in (torch.bfloat16, torch.float16):
        return _in_sixteen_bits
    return F.scaled_dot_product_attention


def written_out(query: Tensor, key: Tensor, value: Tensor, dropout_p: float) -> Tensor:
    """Compute `F.scaled_dot_product_attention` of (S, A, L, D) tensors step by step."""
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)  # (S, A, L, L)
    weights = cheap_dropout(scores.softmax(-1), dropout_p, True)
    return weights @ value  # (S, A, L, D)


def _in_sixteen_bits(query: Tensor, key: Tensor, value: Tensor, dropout_p: float) -> Tensor:
    """Compute `written_out` without dropout, with a backward pass written by hand."""
    assert dropout_p == 0
    # Made contiguous once: otherwise each of the six products of forward and backward would copy its inputs.
    scaled = (query * query.shape[-1] ** -0.5).contiguous()
    return _SixteenBits.apply(scaled, key.contiguous(), value.contiguous())


class _SixteenBits(torch.autograd.Function):
    """softmax(Q K^T) V of (S, A, L, D) tensors, Q already scaled, with fewer passes over memory than autograd makes."""

    @staticmethod
    def forward(ctx, query, key, value):
        weights = query @ key.transpose(-1, -2)  # (S, A, L, L), scores until softmax
        torch.softmax(weights, -1, out=weights)
        ctx.save_for_backward(query, key, value, weights)
        return weights @ value

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        query, key, value, weights = ctx.saved_tensors
        gradient = gradient.contiguous()
        of_weights = gradient @ value.transpose(-1, -2)  # (S, A, L, L)
        # weights * (of_weights - sum of weights * of_weights over the row), the sum in float32
        of_scores = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype)
        of_query = of_scores @ key
        of_key = of_scores.transpose(-1, -2) @ query
        of_value = weights.transpose(-1, -2) @ gradient
        return of_query, of_key, of_value


def forward_in_16_bits(qkv: Tensor, lengths: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Compute attention for inference: qkv (N, 3, A, D) bf16, as the product returns it -> (N, A, D) of `dtype`.

    Softmax works in place: a second tensor of the scores' size would not fit the cache beside the first.
    """
    tokens, _, heads, size = qkv.shape
    mixed = torch.empty(tokens, heads, size, dtype=dtype)
    end = 0
    for length, count in runs(lengths):
        here = slice(end, end + count * length)
        end = here.stop
        # (S*L, 3, A, D) -> (3, S*A, L, D): one copy here instead of one of each operand in oneDNN
        rows = qkv[here].unflatten(0, (count, -1)).permute(2, 0, 3, 1, 4)  # (3, S, A, L, D)
        query, key, value = rows.flatten(1, 2).contiguous()  # (S*A, L, D) each
        scores = torch.empty(*key.shape[:2], key.shape[1], dtype=qkv.dtype)  # (S*A, L, L)
        torch.baddbmm(scores, query, key.mT, beta=0, alpha=size**-0.5, out=scores)
        torch.softmax(scores, -1, out=scores)
        found = torch.bmm(scores, value).unflatten(0, (count, heads))  # (S, A, L, D)
        mixed[here].unflatten(0, (count, -1)).copy_(found.transpose(1, 2))
    return mixed
