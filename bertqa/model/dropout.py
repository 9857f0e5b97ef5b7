"""Dropout that is cheap on a CPU, where torch's own takes a fifth of a training step: one random draw per element."""

import torch
import torch.nn.functional as F
from torch import Tensor


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """Zero each element of `x` with probability `p` and scale the rest by 1 / (1 - p); return `x` when not training.

    On a CPU each random int64 decides about four elements, by 16 bits each, so `p` is rounded to a multiple of 1/65536.
    """
    if not training or p == 0:
        return x
    # Compiled code draws inside its fused kernel.
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(x, p)
    draws = torch.empty((x.numel() + 3) // 4, dtype=torch.int64)
    draws.random_(torch.iinfo(torch.int64).min, None)  # the whole range, all 64 bits
    # uniform in -32768 .. 32767
    uniform = draws.view(torch.int16)[: x.numel()].view(x.shape)
    keep = uniform >= round(p * 65536) - 32768
    return x * keep.to(x.dtype).mul_(1 / (1 - p))
