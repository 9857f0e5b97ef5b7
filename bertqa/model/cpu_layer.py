"""A layer of the encoder for inference on a CPU: the arithmetic of encoder.Layer, with products that are faster there.

N tokens, H hidden size, A heads, D head size, L tokens of a sequence, S sequences of equal length side by side.
"""

import copy
import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from bertqa.errors import UserError
from bertqa.model.attention import Attention, Layout, choose_attention
from bertqa.model.encoder import Layer

SCORES = 2**20
"""Most attention scores that are made at once, in 16 bits: what stays in a core's cache."""


class CpuLayer(nn.Module):
    """An encoder layer that only goes forwards, made of products (products.py).

    Args:
        products: qkv, attention_out, ffn_in (with its activation) and ffn_out.
        dtype: of what flows between the products: torch.bfloat16, or torch.float32, for int8 products too.
    """

    def __init__(self, layer: Layer, products: dict[str, nn.Module], dtype: torch.dtype):
        super().__init__()
        self.heads = layer.heads
        self.dtype = dtype
        self.qkv = products["qkv"]
        self.attention_out = products["attention_out"]
        self.attention_norm = copy.deepcopy(layer.attention_norm)
        self.ffn_in = products["ffn_in"]
        self.ffn_out = products["ffn_out"]
        self.ffn_norm = copy.deepcopy(layer.ffn_norm)

    def forward(self, x: Tensor, layout: Layout, attention: Attention | None = None) -> Tensor:
        """(N, H) -> (N, H), as encoder.Layer; float32 in and out."""
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            out = self._forward(x.to(self.dtype), layout, attention)
        return forward_only(x, out)

    def _forward(self, x: Tensor, layout: Layout, attention: Attention | None) -> Tensor:
        mixed = self._attend(self.qkv(x), layout, attention)
        x = self.attention_norm(self.attention_out(mixed, onto=x))
        x = self.ffn_out(self.ffn_in(x), onto=x)
        return self.ffn_norm(x.float())

    def _attend(self, qkv: Tensor, layout: Layout, attention: Attention | None) -> Tensor:
        """(N, 3H) -> (N, H), by the fastest attention where none is given."""
        qkv = qkv.unflatten(1, (3, self.heads, -1))  # (N, 3, A, D)
        if attention is None and layout.lengths is not None and qkv.dtype == torch.bfloat16:
            return attention_in_16_bits(qkv, layout.lengths, self.dtype).flatten(1)
        body = attention or choose_attention(
            qkv.device, qkv.dtype, 0.0, layout.lengths is not None, isinstance(layout, Layout)
        )
        mixed = body(*qkv.to(self.dtype).unbind(1), layout, 0.0)  # (N, A, D)
        if isinstance(mixed, tuple):
            mixed, _ = mixed  # maps that nobody asked for
        return mixed.flatten(1)


def attention_in_16_bits(qkv: Tensor, lengths: Sequence[int], dtype: torch.dtype) -> Tensor:
    """(N, 3, A, D) bf16 -> (N, A, D) of `dtype`: attention written out, for a few sequences of equal length at a time.

    Its products run on the processor's bf16 units, which torch's fused attention does not use. Scores become weights in
    place: a second tensor of their size would push the first out of the cache.
    """
    tokens, _, heads, size = qkv.shape
    mixed = torch.empty(tokens, heads, size, dtype=dtype)
    for here, count in runs(lengths, heads):
        # (S*L, 3, A, D) -> (3, S*A, L, D): a copy that oneDNN would make of each operand otherwise
        rows = qkv[here].unflatten(0, (count, -1)).permute(2, 0, 3, 1, 4)  # (3, S, A, L, D)
        query, key, value = rows.flatten(1, 2).contiguous()  # (S*A, L, D) each
        scores = torch.empty(*key.shape[:2], key.shape[1], dtype=qkv.dtype)  # (S*A, L, L)
        torch.baddbmm(scores, query, key.mT, beta=0, alpha=size**-0.5, out=scores)
        torch.softmax(scores, -1, out=scores)
        found = torch.bmm(scores, value).unflatten(0, (count, heads))  # (S, A, L, D)
        mixed[here].unflatten(0, (count, -1)).copy_(found.transpose(1, 2))
    return mixed


def runs(lengths: Sequence[int], heads: int) -> Iterator[tuple[slice, int]]:
    """The tokens of neighbours of equal length, and how many sequences they are: as many as SCORES allow, at least one.

    Lengths 9, 9, 9, 4 are tokens 0 to 27, three sequences, and tokens 27 to 31, one.
    """
    begin = 0
    for length, same in itertools.groupby(lengths):
        left = len(list(same))
        most = max(1, SCORES // (heads * length**2))
        while left:
            count = min(left, most)
            end = begin + count * length
            yield slice(begin, end), count
            begin = end
            left -= count


class _ForwardOnly(torch.autograd.Function):
    """Passes a result on; asking for a gradient through it raises, where torch would go on with a false one."""

    @staticmethod
    def forward(ctx, x: Tensor, result: Tensor) -> Tensor:
        return result.view_as(result)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        raise UserError(
            "gradient: this model's products are packed for inference (as Reader.load, pack and int8 do), and know no "
            "gradient; load one that can be trained: bertqa.load(FOLDER)"
        )


def forward_only(x: Tensor, result: Tensor) -> Tensor:
    """What was made of `x`, which must not be asked for its gradient."""
    if torch.is_grad_enabled() and x.requires_grad:
        return _ForwardOnly.apply(x, result)
    return result
