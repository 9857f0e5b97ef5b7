"""The gradients of a static step, at addresses that do not change, so that CUDA graphs find them."""

from collections import defaultdict

import torch
from torch import Tensor, nn


class Gradients:
    """The gradients of a step.

    In general those of the micro-batches are added up in float32, in `parts`. With `make_homes`, a step of a single
    micro-batch has nothing to add: its gradients stay where the backward pass wrote them, in `homes`, and `at_home` is
    true.
    """

    def __init__(self, weights: list[nn.Parameter], leaves: list[nn.Parameter]):
        """Allocate memory for the gradients of `weights`.

        Args:
            leaves: the tensors that the backward pass leaves gradients at: the weights, or their 16-bit copies.
        """
        self.weights = weights
        self.leaves = leaves
        self.flat, self.parts = memory_for(weights, torch.float32)
        self.homes: list[Tensor] = []
        self.home_flats: list[Tensor] = []
        self.at_home = False

    def make_homes(self) -> None:
        """Give each leaf a `grad_home`: memory in its own format, into which model/fused.py writes its gradient."""
        for dtype in dict.fromkeys(leaf.dtype for leaf in self.leaves):
            members = [leaf for leaf in self.leaves if leaf.dtype == dtype]
            flat, parts = memory_for(members, dtype)
            self.home_flats.append(flat)
            for leaf, part in zip(members, parts, strict=True):
                leaf.grad_home = part
        self.homes = [leaf.grad_home for leaf in self.leaves]

    def begin(self, micro_batches: int) -> None:
        """Begin a step of so many micro-batches."""
        self.at_home = bool(self.homes) and micro_batches == 1

    @torch.no_grad()
    def collect(self, is_first: bool) -> None:
        """Collect the gradients that a backward pass has left at the leaves: replace those of the step before if it
        `is_first`, else add to the step's."""
        places = self.homes if self.at_home else self.parts
        # Sorted by format, since torch copies a list of mixed formats tensor by tensor, three times as slowly.
        found: dict[torch.dtype, list[Tensor]] = defaultdict(list)
        parts: dict[torch.dtype, list[Tensor]] = defaultdict(list)
        for leaf, part in zip(self.leaves, places, strict=True):
            gradient = leaf.grad
            leaf.grad = None
            # An unused weight has none; one that was written at home is in its place already.
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
        """Return the norm of all gradients of the step as one vector, (), float32."""
        flats = self.home_flats if self.at_home else [self.flat]
        norms = [torch.linalg.vector_norm(flat, dtype=torch.float32) for flat in flats]
        return torch.linalg.vector_norm(torch.stack(norms))

    def show(self) -> None:
        """Set `grad` of each weight, where the optimizer looks."""
        assert not self.at_home
        for weight, part in zip(self.weights, self.parts, strict=True):
            weight.grad = part


def memory_for(weights: list[nn.Parameter], dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    """Return zeros in one piece, and a view into them for each weight, of its shape."""
    # Each view begins at a multiple of 64 numbers, so that kernels can read several numbers at once.
    sizes = [-(-weight.numel() // 64) * 64 for weight in weights]
    flat = torch.zeros(sum(sizes), dtype=dtype, device=weights[0].device)
    parts = []
    for weight, part in zip(weights, flat.split(sizes), strict=True):
        parts.append(part[: weight.numel()].view_as(weight))
    return flat, parts


def in_float32(tensors: list[Tensor]) -> list[Tensor]:
    """Return tensors, all of one format, in float32; the tensors themselves if they are."""
    if tensors[0].dtype == torch.float32:
        return tensors
    cast = [torch.empty_like(tensor, dtype=torch.float32) for tensor in tensors]
    torch._foreach_copy_(cast, tensors)
    return cast
