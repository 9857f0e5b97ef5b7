"""Where the gradients of a static step are added up: in float32, at addresses that a CUDA graph finds again."""

from collections import defaultdict

import torch
from torch import Tensor, nn


class Gradients:
    """The gradients of a step: float32, in one piece of memory that stays where it is."""

    def __init__(self, weights: list[nn.Parameter], leaves: list[nn.Parameter]):
        """`leaves` are what the backward pass finds: the weights, or 16-bit copies of them."""
        self.weights = weights
        self.leaves = leaves
        # Each begins at a multiple of 128 bytes, or the optimizer would read it number by number.
        sizes = [-(-weight.numel() // 32) * 32 for weight in weights]
        self.flat = torch.zeros(sum(sizes), device=weights[0].device)
        self.parts = [
            part[: weight.numel()].view_as(weight)
            for weight, part in zip(weights, self.flat.split(sizes), strict=True)
        ]

    @torch.no_grad()
    def collect(self, is_first: bool) -> None:
        """Take what a backward pass has left at the leaves: in place of what there was, or in addition to it."""
        # By format: torch copies a list of mixed formats tensor by tensor, which takes three times as long.
        found: dict[torch.dtype, list[Tensor]] = defaultdict(list)
        parts: dict[torch.dtype, list[Tensor]] = defaultdict(list)
        for leaf, part in zip(self.leaves, self.parts, strict=True):
            if leaf.grad is not None:
                found[leaf.grad.dtype].append(leaf.grad)
                parts[leaf.grad.dtype].append(part)
                leaf.grad = None
        for dtype, gradients in found.items():
            if is_first:
                torch._foreach_copy_(parts[dtype], gradients)
            else:
                torch._foreach_add_(parts[dtype], in_float32(gradients))

    def show(self) -> None:
        """Put them where the optimizer looks."""
        for weight, part in zip(self.weights, self.parts, strict=True):
            weight.grad = part


def in_float32(tensors: list[Tensor]) -> list[Tensor]:
    """Tensors of one format, in float32: themselves where they are."""
    if tensors[0].dtype == torch.float32:
        return tensors
    cast = [torch.empty_like(tensor, dtype=torch.float32) for tensor in tensors]
    torch._foreach_copy_(cast, tensors)
    return cast
