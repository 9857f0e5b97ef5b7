"""A layer but for its attention, as kernels of our own for NVIDIA's GPUs: forward and backward in one function.

torch runs it as some thirty kernels, each of which reads and writes all tokens, and that traffic takes longer than half of
the matrix products. Here it is four products (cuBLAS) and what lies between them: bias, dropout, residual and LayerNorm are
one kernel, bias and GELU another, and the gradients of bias, gain and shift are added up where those of the tokens are made.

Import it only where Triton is (kernels.py). N tokens, H hidden size, F feed-forward size; tokens are 16-bit.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bertqa.model.kernels import gelu, gelu_backward, norm, norm_backward, stack


def _gradient_of(weight: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """left^T right, the gradient of a weight, written to the weight's `grad_home` where it has one."""
    home = getattr(weight, "grad_home", None)
    if home is None:
        return left.t() @ right
    torch.mm(left.t(), right, out=home)
    # Under a name of its own: autograd copies a gradient that somebody else holds too.
    return home.view_as(home)


def before_attention(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`layer.before_attention(x)`: (N, H) -> queries, keys, values, (N, A, D) each, and x, for the residual."""
    return _BeforeAttention.apply(x, layer.heads, layer.qkv.weight, layer.qkv.bias)


class _BeforeAttention(torch.autograd.Function):
    """The residual's gradient comes back through here, so that it is added inside of the product's kernel; and the three
    of queries, keys and values, so that they are stacked and added up for the bias at once."""

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
        # `behind_attention` made the residual's gradient for this place alone.
        dx = dresidual.addmm_(dqkv, weight) if ctx.needs_input_grad[0] else None
        # Each by itself: some train biases alone.
        dweight = _gradient_of(weight, dqkv, x) if ctx.needs_input_grad[2] else None
        return dx, None, dweight, dbias if ctx.needs_input_grad[3] else None


def behind_attention(layer: nn.Module, x: Tensor, mixed: Tensor, seeds: Tensor) -> Tensor:
    """`layer.behind_attention(x, mixed)`: (N, H), (N, A, D) -> (N, H), for a layer in training whose activation is GELU.

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

        # Of a frozen layer no product is made for nothing.
        wanted = ctx.needs_input_grad[5:]
        dout = _gradient_of(out, dproduct1, mixed) if wanted[0] else None
        dwide_in = _gradient_of(wide_in, dwide, y1) if wanted[4] else None
        dwide_out = _gradient_of(wide_out, dproduct2, inner) if wanted[6] else None
        first = (dout, *sums1)
        second = (dwide_in, dwide_bias, dwide_out, *sums2)
        return (dz1, dproduct1 @ out, None, None, None, *first, *second)
