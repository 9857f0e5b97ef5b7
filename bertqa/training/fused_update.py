"""Clipping, AdamW and the 16-bit copies of the weights in one kernel, for captured steps on NVIDIA's GPUs.

What an update costs is memory traffic, so here each number is read once and written once. The numbers are those of
torch.optim.AdamW, whose moments these are: a checkpoint knows no difference. Needs Triton, as model/fused.py does.
"""

import math

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from bertqa.model.copies import WeightCopies
from bertqa.training.gradients import Gradients

BLOCK = 1024
"""Numbers of a weight that a program updates."""


class FusedUpdate:
    """Updates the weights of an optimizer from the gradients of a step, at addresses that must not change."""

    def __init__(
        self,
        optimizer: torch.optim.AdamW,
        gradients: Gradients,
        copies: WeightCopies,
        clip: float,
    ):
        """`optimizer` has made its moments; `clip` is the largest norm of the gradients, 0 for any."""
        self.groups = optimizer.param_groups
        self.gradients = gradients
        self.clip = clip or math.inf
        self.steps = [state["step"] for state in optimizer.state.values()]
        device = gradients.flat.device
        self.decays = torch.tensor([group["decay"] for group in self.groups], device=device)
        table = addresses(optimizer, gradients, copies)
        self.table = torch.from_numpy(table).to(device)
        # Compiled and loaded here, with nothing to do: while a graph is captured it is too late.
        nothing = self.table[:1].clone()
        nothing[0, COUNT] = 0
        self._run(nothing, self.gradients.flat.new_ones(3))

    @torch.no_grad()
    def __call__(self) -> Tensor:
        """One update. Returns the norm of the gradients before they were clipped."""
        norm = torch.linalg.vector_norm(self.gradients.flat)
        torch._foreach_add_(self.steps, 1)
        beta1, beta2 = self.groups[0]["betas"]
        steps = self.steps[0].double()
        scalars = torch.stack(
            [
                (self.clip / (norm + 1e-6)).clamp(max=1).double(),
                1 - beta1**steps,
                (1 - beta2**steps).sqrt(),
            ]
        )
        self._run(self.table, scalars.float())
        return norm

    def _run(self, table: Tensor, scalars: Tensor) -> None:
        beta1, beta2 = self.groups[0]["betas"]
        rates = torch.stack([group["lr"] for group in self.groups])
        _adamw[(len(table),)](
            table, rates, self.decays, scalars,
            beta1, 1 - beta1, beta2, 1 - beta2, self.groups[0]["eps"],
            COLUMNS=COLUMNS, BLOCK=BLOCK, num_warps=4,
        )  # fmt: skip


COLUMNS = 7
COUNT, GROUP = 5, 6


def addresses(
    optimizer: torch.optim.AdamW, gradients: Gradients, copies: WeightCopies
) -> np.ndarray:
    """A row for each block of each weight: the addresses of weight, moments, gradient and copy (0: none), how many
    numbers the block has, and the weight's group."""
    group_of = {}
    for number, group in enumerate(optimizer.param_groups):
        for weight in group["params"]:
            group_of[id(weight)] = number
    copy_of = dict(zip(map(id, copies.masters), copies.copies, strict=True))

    tables = []
    for weight, gradient in zip(gradients.weights, gradients.parts, strict=True):
        state = optimizer.state[weight]
        parts = [weight, state["exp_avg"], state["exp_avg_sq"], gradient, copy_of.get(id(weight))]
        begins = np.arange(0, weight.numel(), BLOCK)
        table = np.zeros((len(begins), COLUMNS), np.int64)
        for column, part in enumerate(parts):
            if part is not None:
                assert part.is_contiguous() and part.data_ptr() % 16 == 0
                table[:, column] = part.data_ptr() + part.element_size() * begins
        table[:, COUNT] = np.minimum(BLOCK, weight.numel() - begins)
        table[:, GROUP] = group_of[id(weight)]
        tables.append(table)
    return np.concatenate(tables)


@triton.jit
def _adamw(
    table, rates, decays, scalars, beta1, new1, beta2, new2, eps,
    COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A row of the table."""
    row = table + tl.program_id(0) * COLUMNS
    weights = tl.multiple_of(tl.load(row).to(tl.pointer_type(tl.float32)), 16)
    firsts = tl.multiple_of(tl.load(row + 1).to(tl.pointer_type(tl.float32)), 16)
    seconds = tl.multiple_of(tl.load(row + 2).to(tl.pointer_type(tl.float32)), 16)
    gradients = tl.multiple_of(tl.load(row + 3).to(tl.pointer_type(tl.float32)), 16)
    copy = tl.load(row + 4)
    copies = tl.multiple_of(copy.to(tl.pointer_type(tl.bfloat16)), 16)
    count = tl.load(row + 5)
    group = tl.load(row + 6)

    here = tl.arange(0, BLOCK)
    inside = here < count
    rate = tl.load(rates + group)
    decay = tl.load(decays + group)
    clipping = tl.load(scalars)
    correction1 = tl.load(scalars + 1)
    correction2 = tl.load(scalars + 2)

    gradient = clipping * tl.load(gradients + here, inside, 0.0)
    first = beta1 * tl.load(firsts + here, inside, 0.0) + new1 * gradient
    second = beta2 * tl.load(seconds + here, inside, 0.0) + new2 * gradient * gradient
    weight = tl.load(weights + here, inside, 0.0)
    weight -= rate * decay * weight
    weight -= rate / correction1 * first / (tl.sqrt(second) / correction2 + eps)

    tl.store(firsts + here, first, inside)
    tl.store(seconds + here, second, inside)
    tl.store(weights + here, weight, inside)
    tl.store(copies + here, weight.to(tl.bfloat16), inside & (copy != 0))
