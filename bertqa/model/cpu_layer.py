"""An encoder layer for inference on a CPU: the arithmetic of encoder.Layer with faster products (products.py).

N tokens, H hidden size, A heads, D head size.
"""

import copy

import torch
from torch import Tensor, nn

from bertqa.device import autocast
from bertqa.errors import UserError
from bertqa.model.attention import Attention, Layout, fastest_attention
from bertqa.model.cpu_attention import forward_in_16_bits
from bertqa.model.encoder import Layer


class CpuLayer(nn.Module):
    """An encoder layer without a backward pass, made of products.

    Args:
        products: qkv, attention_out, ffn_in (with the activation) and ffn_out.
        dtype: of the activations between products: torch.bfloat16, or torch.float32, also for int8 products.
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
        """(N, H) -> (N, H) as in encoder.Layer, float32 both."""
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            out = self._forward(x.to(self.dtype), layout, attention)
        return forward_only(x, out)

    def _forward(self, x: Tensor, layout: Layout, attention: Attention | None) -> Tensor:
        mixed = self._attend(self.qkv(x), layout, attention)
        x = self.attention_norm(self.attention_out(mixed, onto=x))
        x = self.ffn_out(self.ffn_in(x), onto=x)
        return self.ffn_norm(x.float())

    def _attend(self, qkv: Tensor, layout: Layout, attention: Attention | None) -> Tensor:
        """(N, 3H) -> (N, H). Where `attention` is None, the fastest function is used."""
        qkv = qkv.unflatten(1, (3, self.heads, -1))  # (N, 3, A, D)
        if attention is None and layout.lengths is not None and qkv.dtype == torch.bfloat16:
            return forward_in_16_bits(qkv, layout.lengths, self.dtype).flatten(1)
        attend = attention or fastest_attention(qkv, layout, 0.0)
        # Under autocast, because a function of the user's may mix dtypes, as it may in training.
        with autocast(qkv.device, self.dtype):
            mixed = attend(*qkv.to(self.dtype).unbind(1), layout, 0.0)  # (N, A, D)
        if isinstance(mixed, tuple):
            mixed, _ = mixed  # attention maps, which were not requested
        return mixed.flatten(1).to(self.dtype)


class _ForwardOnly(torch.autograd.Function):
    """Pass a result on, but raise an error in the backward pass, where torch would return wrong gradients."""

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
    """Return `result`, computed from `x` without gradients, so that a backward pass through it raises a UserError."""
    if torch.is_grad_enabled() and x.requires_grad:
        return _ForwardOnly.apply(x, result)
    return result
