"""Dropout that costs little on a CPU, where drawing one Bernoulli number per element is a fifth of a training step."""

import torch
import torch.nn.functional as F
from torch import Tensor


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """Zero each element of `x` with probability `p` and scale the rest by 1 / (1 - p); `x` itself when not training.

    On a CPU each 64-bit random number serves four elements, 16 bits each, so `p` is rounded to the nearest 1/65536.
    """
    if not training or p == 0:
        return x
    # What is compiled draws inside of its kernel.
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(x, p)
    draws = torch.empty((x.numel() + 3) // 4, dtype=torch.int64)
    draws.random_(torch.iinfo(torch.int64).min, None)  # all 64 bits
    # -32768 .. 32767, all equally likely
    uniform = draws.view(torch.int16)[: x.numel()].view(x.shape)
    keep = uniform >= round(p * 65536) - 32768
    return x * keep.to(x.dtype).mul_(1 / (1 - p))
