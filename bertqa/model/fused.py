"""A layer except its attention for training on NVIDIA GPUs, with fused kernels in the forward and the backward pass.

torch runs it as some thirty kernels that each read and write all tokens, and this memory traffic takes more than half the
time of the matrix products. Here it is four products (cuBLAS) with fused kernels between them (kernels.py): bias, dropout,
residual and LayerNorm are one, bias and GELU another; the backward kernels also sum the gradients of bias, gain and shift.

Needs Triton. N tokens, H hidden size, F feed-forward size; tokens are in 16 bits. `dx` is the gradient of x.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bertqa.model.kernels import gelu, gelu_backward, norm, norm_backward, stack


def _gradient_of(weight: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Return left^T right, a weight's gradient; written to the weight's `grad_home` if it has one (gradients.py)."""
    home = getattr(weight, "grad_home", None)
    if home is None:
        return left.t() @ right
    torch.mm(left.t(), right, out=home)
    # A new view: autograd would copy a gradient tensor to which there are other references.
    return home.view_as(home)


def before_attention(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute `layer.before_attention(x)`: (N, H) -> query, key, value (N, A, D) each, and x for the residual."""
    return _BeforeAttention.apply(x, layer.heads, layer.qkv.weight, layer.qkv.bias)


class _BeforeAttention(torch.autograd.Function):
    """The residual passes through here too, so that the product's kernel adds its gradient in the backward pass. The
    gradients of query, key and value are stacked, and summed for the bias, by one kernel."""

    @staticmethod
    def forward(ctx, x, heads, weight, bias):
        ctx.save_for_backward(x, weight)
        qkv = F.linear(x, weight, bias).view(x.shape[0], 3, heads, -1)  # (N, 3, A, D)
        query, key, value = qkv.unbind(1)
        return query, key, value, x.view_as(x)

    @staticmethod
    def backward(ctx, dquery, dkey, dvalue, dresidual):
        x, weight = ctx.saved_tensors
        dqkv, dbias = stack(dquery.contiguous(), dkey.contiguous(), dvalue.contiguous())
        needs_x, _, needs_weight, needs_bias = ctx.needs_input_grad
        # In place: `behind_attention` has made the residual's gradient for this use only.
        dx = dresidual.addmm_(dqkv, weight) if needs_x else None
        dweight = _gradient_of(weight, dqkv, x) if needs_weight else None
        return dx, None, dweight, dbias if needs_bias else None


def behind_attention(layer: nn.Module, x: Tensor, mixed: Tensor, seeds: Tensor) -> Tensor:
    """Compute `layer.behind_attention(x, mixed)`: (N, H), (N, A, D) -> (N, H). Training only; the activation is GELU.

    Args:
        seeds: (2,) int32, one for each dropout of the layer.
    """
    return _BehindAttention.apply(
        x,
        mixed.reshape(x.shape),
        seeds,
        layer.dropout,
        layer.attention_norm.eps,
        layer.attention_out.weight,
        layer.attention_out.bias,
        layer.attention_norm.weight,
        layer.attention_norm.bias,
        layer.ffn_in.weight,
        layer.ffn_in.bias,
        layer.ffn_out.weight,
        layer.ffn_out.bias,
        layer.ffn_norm.weight,
        layer.ffn_norm.bias,
    )


class _BehindAttention(torch.autograd.Function):
    """1: attention_out and its norm. 2: feed-forward and its norm. `wide` tensors have F columns."""

    @staticmethod
    def forward(ctx, x, mixed, seeds, p, eps, *weights):
        out, out_bias, gain1, shift1, wide_in, wide_bias, wide_out, back_bias, gain2, shift2 = (
            weights
        )
        first = norm(mixed @ out.t(), out_bias, x, gain1, shift1, seeds[0:1], p, eps)
        wide = first.y @ wide_in.t()  # (N, F), its bias not yet added
        inner = gelu(wide, wide_bias)
        second = norm(inner @ wide_out.t(), back_bias, first.y, gain2, shift2, seeds[1:2], p, eps)
        ctx.save_for_backward(mixed, seeds, *first, wide, inner, *second[1:], *weights)
        ctx.p = p
        return second.y

    @staticmethod
    def backward(ctx, dy):
        mixed, seeds, y1, z1, stats1, wide, inner, z2, stats2, *weights = ctx.saved_tensors
        out, _, gain1, _, wide_in, wide_bias, wide_out, _, gain2, _ = weights
        p = ctx.p

        dy = dy.contiguous()
        dz2, dproduct2, sums2 = norm_backward(dy, z2, stats2, gain2, seeds[1:2], p)
        dinner = dproduct2 @ wide_out
        dwide, dwide_bias = gelu_backward(dinner, wide, wide_bias)
        dy1 = dz2.addmm_(dwide, wide_in)  # through the feed-forward and through the residual
        dz1, dproduct1, sums1 = norm_backward(dy1, z1, stats1, gain1, seeds[0:1], p)

        # No product for the gradient of a frozen weight.
        wanted = ctx.needs_input_grad[5:]
        dout = _gradient_of(out, dproduct1, mixed) if wanted[0] else None
        dwide_in = _gradient_of(wide_in, dwide, y1) if wanted[4] else None
        dwide_out = _gradient_of(wide_out, dproduct2, inner) if wanted[6] else None
        first = (dout, *sums1)
        second = (dwide_in, dwide_bias, dwide_out, *sums2)
        return (dz1, dproduct1 @ out, None, None, None, *first, *second)
