"""Where the gradients of a static step lie: at addresses that a CUDA graph finds again."""

from collections import defaultdict

import torch
from torch import Tensor, nn


class Gradients:
    """The gradients of a step: those of its micro-batches added up in float32, or, with `make_homes`, those of its only
    one as the backward pass wrote them."""

    def __init__(self, weights: list[nn.Parameter], leaves: list[nn.Parameter]):
        """`leaves` are what the backward pass finds: the weights, or 16-bit copies of them."""
        self.weights = weights
        self.leaves = leaves
        self.flat, self.parts = memory_for(weights, torch.float32)
        self.homes: list[Tensor] = []
        self.home_flats: list[Tensor] = []
        self.at_home = False

    def make_homes(self) -> None:
        """Give each leaf a `grad_home`, memory in its own format for its gradient. Who makes gradients may write them
        there (model/fused.py); then nobody copies them."""
        for dtype in dict.fromkeys(leaf.dtype for leaf in self.leaves):
            members = [leaf for leaf in self.leaves if leaf.dtype == dtype]
            flat, parts = memory_for(members, dtype)
            self.home_flats.append(flat)
            for leaf, part in zip(members, parts, strict=True):
                leaf.grad_home = part
        self.homes = [leaf.grad_home for leaf in self.leaves]

    def begin(self, micro_batches: int) -> None:
        """A step of so many micro-batches begins. The gradients of one alone stay at home: there is nothing to add."""
        self.at_home = bool(self.homes) and micro_batches == 1

    @torch.no_grad()
    def collect(self, is_first: bool) -> None:
        """Take what a backward pass has left at the leaves: in place of what there was, or in addition to it."""
        places = self.homes if self.at_home else self.parts
        # By format: torch copies a list of mixed formats tensor by tensor, which takes three times as long.
        found: dict[torch.dtype, list[Tensor]] = defaultdict(list)
        parts: dict[torch.dtype, list[Tensor]] = defaultdict(list)
        for leaf, part in zip(self.leaves, places, strict=True):
            gradient = leaf.grad
            leaf.grad = None
            if gradient is None or gradient.data_ptr() == part.data_ptr():
                continue
            found[gradient.dtype].append(gradient)
            parts[gradient.dtype].append(part)
        for dtype, gradients in found.items():
            if is_first:
                torch._foreach_copy_(parts[dtype], gradients)
            else:
                torch._foreach_add_(parts[dtype], in_float32(gradients))

    def norm(self) -> Tensor:
        """Of all gradients of the step as one vector, in float32."""
        flats = self.home_flats if self.at_home else [self.flat]
        norms = [torch.linalg.vector_norm(flat, dtype=torch.float32) for flat in flats]
        return torch.linalg.vector_norm(torch.stack(norms))

    def show(self) -> None:
        """Put them where the optimizer looks."""
        assert not self.at_home
        for weight, part in zip(self.weights, self.parts, strict=True):
            weight.grad = part


def memory_for(weights: list[nn.Parameter], dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    """Zeros in one piece, and a part of them for each weight, of its shape."""
    # Each begins at a multiple of 128 bytes, or the optimizer would read it number by number.
    sizes = [-(-weight.numel() // 64) * 64 for weight in weights]
    flat = torch.zeros(sum(sizes), dtype=dtype, device=weights[0].device)
    parts = []
    for weight, part in zip(weights, flat.split(sizes), strict=True):
        parts.append(part[: weight.numel()].view_as(weight))
    return flat, parts


def in_float32(tensors: list[Tensor]) -> list[Tensor]:
    """Tensors of one format, in float32: themselves where they are."""
    if tensors[0].dtype == torch.float32:
        return tensors
    cast = [torch.empty_like(tensor, dtype=torch.float32) for tensor in tensors]
    torch._foreach_copy_(cast, tensors)
    return cast
