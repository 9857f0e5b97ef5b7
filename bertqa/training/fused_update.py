"""Clipping, AdamW and the 16-bit copies of the weights in one Triton kernel, for captured steps on NVIDIA GPUs.

The cost of an update is memory traffic, so each number is read once and written once. The moments are those of
torch.optim.AdamW, and so are the results: checkpoints are the same with and without this kernel.
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
"""How many numbers of a weight one program of the kernel updates."""
WARPS = 8
"""Of each program: 256 threads of four numbers each, 16 bytes, the most that a thread reads at once."""

COLUMNS = 8
COUNT, GROUP, IS_16_BIT = 5, 6, 7
"""Columns of the table that `addresses` makes; columns 0 to 4 are addresses."""


class FusedUpdate:
    """Updates the weights from the gradients of a step. No tensor that takes part may move."""

    def __init__(
        self,
        optimizer: torch.optim.AdamW,
        gradients: Gradients,
        copies: WeightCopies,
        clip: float,
    ):
        """Make the table of addresses and compile the kernel.

        Args:
            optimizer: must have made its moments.
            clip: the largest gradient norm; 0 = no clipping.
        """
        self.groups = optimizer.param_groups
        self.gradients = gradients
        self.clip = clip or math.inf
        self.steps = [state["step"] for state in optimizer.state.values()]
        device = gradients.flat.device
        self.decays = torch.tensor([group["decay"] for group in self.groups], device=device)
        self.tables = {
            False: Table(addresses(optimizer, gradients.parts, gradients, copies), device)
        }
        if gradients.homes:
            at_home = addresses(optimizer, gradients.homes, gradients, copies)
            self.tables[True] = Table(at_home, device)
        # Run once on zeros, to compile and load the kernel: during the capture of a graph that is forbidden.
        zeros = torch.zeros(BLOCK, device=device)
        self._run(Table(rows_for_nothing(zeros), device), zeros.new_ones(3))

    @torch.no_grad()
    def __call__(self) -> Tensor:
        """Update all weights. Returns the gradient norm before clipping, ()."""
        norm = self.gradients.norm()
        torch._foreach_add_(self.steps, 1)
        beta1, beta2 = self.groups[0]["betas"]
        steps = self.steps[0].double()
        scalars = torch.stack(
            [
                (self.clip / (norm + 1e-6)).clamp(max=1).double(),  # as torch's clip_grad_norm_
                1 - beta1**steps,
                (1 - beta2**steps).sqrt(),
            ]
        )
        self._run(self.tables[self.gradients.at_home], scalars.float())
        return norm

    def _run(self, table: "Table", scalars: Tensor) -> None:
        beta1, beta2 = self.groups[0]["betas"]
        rates = torch.stack([group["lr"] for group in self.groups])
        for rows, is_whole in ((table.whole, True), (table.rest, False)):
            if not len(rows):
                continue
            _adamw[(len(rows),)](
                rows, rates, self.decays, scalars,
                beta1, 1 - beta1, beta2, 1 - beta2, self.groups[0]["eps"],
                COLUMNS=COLUMNS, BLOCK=BLOCK, WHOLE=is_whole, num_warps=WARPS,
            )  # fmt: skip


class Table:
    """The rows of `addresses` on the device, in two parts: whole blocks, and the last block of each weight.

    Whole blocks need no mask; with a mask each number would be read by itself.
    """

    def __init__(self, rows: np.ndarray, device: torch.device):
        is_whole = rows[:, COUNT] == BLOCK
        self.whole = torch.from_numpy(rows[is_whole]).to(device)
        self.rest = torch.from_numpy(rows[~is_whole]).to(device)


def addresses(
    optimizer: torch.optim.AdamW,
    places: list[Tensor],
    gradients: Gradients,
    copies: WeightCopies,
) -> np.ndarray:
    """Return an int64 table with a row of COLUMNS for each block of BLOCK numbers of each weight.

    The columns: addresses of the weight, its first and second moment, its gradient (which is in `places`) and its 16-bit
    copy (0 = none); how many numbers the block has; the weight's group; whether the gradient has 16 bits.
    """
    group_of = {}
    for number, group in enumerate(optimizer.param_groups):
        for weight in group["params"]:
            group_of[id(weight)] = number
    copy_of = dict(zip(map(id, copies.masters), copies.copies, strict=True))

    tables = []
    for weight, gradient in zip(gradients.weights, places, strict=True):
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
        table[:, IS_16_BIT] = gradient.dtype == torch.bfloat16
        tables.append(table)
    return np.concatenate(tables)


def rows_for_nothing(zeros: Tensor) -> np.ndarray:
    """Return the rows of a whole block and of a block of one number, all of whose tensors are (BLOCK,) zeros."""
    rows = np.zeros((2, COLUMNS), np.int64)
    rows[:, :4] = zeros.data_ptr()
    rows[:, COUNT] = BLOCK, 1
    return rows


@triton.jit
def _adamw(
    table, rates, decays, scalars, beta1, new1, beta2, new2, eps,
    COLUMNS: tl.constexpr, BLOCK: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """Process one row of the table: clip the gradient, update both moments and the weight, write its copy.

    `scalars` are the factor of clipping and the bias corrections of both moments, as `FusedUpdate.__call__` makes them.
    """
    row = table + tl.program_id(0).to(tl.int64) * COLUMNS
    weights = tl.multiple_of(tl.load(row).to(tl.pointer_type(tl.float32)), 16)
    firsts = tl.multiple_of(tl.load(row + 1).to(tl.pointer_type(tl.float32)), 16)
    seconds = tl.multiple_of(tl.load(row + 2).to(tl.pointer_type(tl.float32)), 16)
    found = tl.load(row + 3)
    copy = tl.load(row + 4)
    group = tl.load(row + 6)
    is_16_bit = tl.load(row + 7)

    here = tl.arange(0, BLOCK)
    inside = None
    if not WHOLE:
        inside = here < tl.load(row + 5)
    if is_16_bit != 0:
        halves = tl.multiple_of(found.to(tl.pointer_type(tl.bfloat16)), 16)
        gradient = tl.load(halves + here, inside).to(tl.float32)
    else:
        floats = tl.multiple_of(found.to(tl.pointer_type(tl.float32)), 16)
        gradient = tl.load(floats + here, inside)
    first = tl.load(firsts + here, inside)
    second = tl.load(seconds + here, inside)
    weight = tl.load(weights + here, inside)
    rate = tl.load(rates + group)
    decay = tl.load(decays + group)
    clipping = tl.load(scalars)
    correction1 = tl.load(scalars + 1)
    correction2 = tl.load(scalars + 2)

    gradient *= clipping
    first = beta1 * first + new1 * gradient
    second = beta2 * second + new2 * gradient * gradient
    weight -= rate * decay * weight
    weight -= rate / correction1 * first / (tl.sqrt(second) / correction2 + eps)

    tl.store(firsts + here, first, inside)
    tl.store(seconds + here, second, inside)
    tl.store(weights + here, weight, inside)
    if copy != 0:
        copies = tl.multiple_of(copy.to(tl.pointer_type(tl.bfloat16)), 16)
        tl.store(copies + here, weight.to(tl.bfloat16), inside)
