"""Triton kernels for NVIDIA GPUs: what lies between the matrix products of a layer, forward and backward.

Triton is installed with torch for such GPUs; import this module only there. With TRITON_INTERPRET=1 the kernels run on a
CPU, slowly, for tests. Tokens are in 16 bits, arithmetic is in float32. N tokens, H hidden size, F feed-forward size.
Many programs run a kernel; each computes one or more tiles of (ROWS, BLOCK), rows of tokens and columns of features.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

# The fastest tiles of those tried on an H200. A norm needs whole rows, so its tiles have all columns.
NORM_ROWS = 2
NORM_WARPS = 2
NORM_BACKWARD_ROWS = 1
ROWS = 2
BLOCK = 1024
WARPS = 4
BACKWARD = {"num_warps": WARPS, "maxnreg": 64}
"""Launch options of backward kernels. With 64 registers per thread, eight programs fit on a multiprocessor at once."""
PROGRAMS = 1056
"""Programs that share the rows in a backward kernel: eight per multiprocessor of an H100 or H200. Each sums the gradients
of bias, gain and shift over its rows; a second kernel adds up these sums, always in the same order."""


def shares_of(tokens: int, rows: int, columns: int) -> int:
    """Return how many programs share the tokens, with tiles of `rows` tokens and `columns` programs side by side."""
    return min(triton.cdiv(PROGRAMS, columns), triton.cdiv(tokens, rows))


@triton.jit
def _tile(number, columns, tokens, width, ROWS: tl.constexpr):
    """Return the rows (ROWS,) of a tile, and the offset of each element (ROWS, BLOCK) and whether it exists."""
    rows = number * ROWS + tl.arange(0, ROWS)
    inside = (rows < tokens)[:, None] & (columns < width)[None, :]
    here = rows.to(tl.int64)[:, None] * width + columns[None, :]
    return rows, here, inside


@triton.jit
def _read(pointers, inside):
    """Read elements in float32; 0 for those outside."""
    return tl.load(pointers, inside, 0.0).to(tl.float32)


class Normed(NamedTuple):
    """Result of `norm`: y = LayerNorm(z), and what its backward needs."""

    y: Tensor  # (N, H)
    z: Tensor  # (N, H): residual + dropout(product + bias)
    statistics: Tensor  # (N, 2) float32: mean of z, and 1 / its standard deviation


def norm(
    product: Tensor, bias: Tensor, residual: Tensor, gain: Tensor, shift: Tensor, seed: Tensor,
    p: float, eps: float,
) -> Normed:  # fmt: skip
    """Compute LayerNorm(residual + dropout(product + bias)) of (N, H) tokens."""
    tokens, width = product.shape
    y = torch.empty_like(residual)
    z = torch.empty_like(residual)
    statistics = torch.empty(tokens, 2, device=y.device)
    _norm[(triton.cdiv(tokens, NORM_ROWS),)](
        product, bias, residual, gain, shift, seed, y, z, statistics, tokens, width, p, eps,
        DROP=p > 0, ROWS=NORM_ROWS, BLOCK=triton.next_power_of_2(width), num_warps=NORM_WARPS,
    )  # fmt: skip
    return Normed(y, z, statistics)


def norm_backward(
    dy: Tensor, z: Tensor, statistics: Tensor, gain: Tensor, seed: Tensor, p: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of `norm`: residual (N, H), product (N, H), and bias, gain and shift (3, H)."""
    tokens, width = dy.shape
    programs = shares_of(tokens, NORM_BACKWARD_ROWS, 1)
    dz = torch.empty_like(dy)
    dproduct = torch.empty_like(dy)
    sums = torch.empty(programs, 3, width, device=dy.device)
    _norm_backward[(programs,)](
        dy, z, statistics, gain, seed, dz, dproduct, sums, tokens, width, p,
        DROP=p > 0, ROWS=NORM_BACKWARD_ROWS, BLOCK=triton.next_power_of_2(width), **BACKWARD,
    )  # fmt: skip
    return dz, dproduct, add_up(sums, gain.dtype)


@triton.jit
def _kept(seed, rows, p, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Return the factors (ROWS, BLOCK) of dropout, 1 / (1 - p) or 0. The backward pass draws the same again."""
    # A call of Philox gives four 32-bit numbers, and 16 bits decide about an element, so `p` is rounded to a multiple
    # of 1/65536. Seven rounds instead of the usual ten pass the same statistical tests (Salmon et al. 2011).
    calls = rows[:, None] * (BLOCK // 8) + tl.arange(0, BLOCK // 8)[None, :]
    a, b, c, d = tl.randint4x(seed, calls, 7)
    wide = tl.join(tl.join(a, b), tl.join(c, d))
    numbers = tl.join(wide & 0xFFFF, (wide >> 16) & 0xFFFF).to(tl.int32)
    numbers = tl.reshape(numbers, (ROWS, BLOCK))
    limit = tl.full((1, 1), p * 65536 + 0.5, tl.float32).to(tl.int32)
    return tl.where(numbers >= limit, 1 / (1 - p), 0.0)


@triton.jit
def _norm(
    product, bias, residual, gain, shift, seed, y, z, statistics, tokens, width, p, eps,
    DROP: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """ROWS tokens, all columns."""
    columns = tl.arange(0, BLOCK)
    rows, here, inside = _tile(tl.program_id(0), columns, tokens, width, ROWS)

    x = _read(product + here, inside) + _read(bias + columns, columns < width)[None, :]
    if DROP:
        x *= _kept(tl.load(seed), rows, p, ROWS, BLOCK)
    x += _read(residual + here, inside)
    # The backward pass reads z as it is stored, so the statistics are those of the rounded z.
    stored = x.to(z.dtype.element_ty)
    x = stored.to(tl.float32)

    mean = tl.sum(x, 1) / width  # (ROWS,)
    centred = tl.where(inside, x - mean[:, None], 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred, 1) / width + eps)  # (ROWS,)
    weight = _read(gain + columns, columns < width)
    offset = _read(shift + columns, columns < width)

    tl.store(z + here, stored, inside)
    tl.store(y + here, centred * scale[:, None] * weight[None, :] + offset[None, :], inside)
    tl.store(statistics + 2 * rows, mean, rows < tokens)
    tl.store(statistics + 2 * rows + 1, scale, rows < tokens)


@triton.jit
def _norm_backward(
    dy, z, statistics, gain, seed, dz, dproduct, sums, tokens, width, p,
    DROP: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A program's share of the tiles of ROWS tokens, and the sums of the gradients over these tokens."""
    program = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    weight = _read(gain + columns, columns < width)
    dbias = tl.zeros((ROWS, BLOCK), tl.float32)
    dgain = tl.zeros((ROWS, BLOCK), tl.float32)
    dshift = tl.zeros((ROWS, BLOCK), tl.float32)

    for tile in range(program, tl.cdiv(tokens, ROWS), tl.num_programs(0)):
        rows, here, inside = _tile(tile, columns, tokens, width, ROWS)
        gradient = _read(dy + here, inside)
        x = _read(z + here, inside)
        mean = tl.load(statistics + 2 * rows, rows < tokens, 0.0)
        scale = tl.load(statistics + 2 * rows + 1, rows < tokens, 0.0)
        normed = tl.where(inside, (x - mean[:, None]) * scale[:, None], 0.0)
        dshift += gradient
        dgain += gradient * normed

        # The norm removes a row's mean and spread, so the parts of the gradient along these are zero.
        gradient *= weight[None, :]
        # both sums at once, so that the warps synchronise once
        both = tl.sum(tl.join(gradient, gradient * normed), 1) / width  # (ROWS, 2)
        along_mean, along_spread = tl.split(both)  # (ROWS,)
        gradient -= along_mean[:, None] + normed * along_spread[:, None]
        gradient = tl.where(inside, gradient * scale[:, None], 0.0)
        tl.store(dz + here, gradient, inside)
        if DROP:
            gradient *= _kept(tl.load(seed), rows, p, ROWS, BLOCK)
        dbias += gradient
        tl.store(dproduct + here, gradient, inside)

    mine = sums + program.to(tl.int64) * 3 * width + columns
    tl.store(mine, tl.sum(dbias, 0), columns < width)
    tl.store(mine + width, tl.sum(dgain, 0), columns < width)
    tl.store(mine + 2 * width, tl.sum(dshift, 0), columns < width)


def gelu(wide: Tensor, bias: Tensor) -> Tensor:
    """Compute GELU(wide + bias) of (N, F)."""
    tokens, width = wide.shape
    inner = torch.empty_like(wide)
    grid = (triton.cdiv(tokens, ROWS), triton.cdiv(width, BLOCK))
    _gelu[grid](wide, bias, inner, tokens, width, ROWS=ROWS, BLOCK=BLOCK, num_warps=WARPS)
    return inner


def gelu_backward(dinner: Tensor, wide: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of `gelu`: wide (N, F) and bias (F,)."""
    tokens, width = wide.shape
    blocks = triton.cdiv(width, BLOCK)
    programs = shares_of(tokens, ROWS, blocks)
    dwide = torch.empty_like(wide)
    sums = torch.empty(programs, 1, width, device=wide.device)
    _gelu_backward[(programs, blocks)](
        dinner, wide, bias, dwide, sums, tokens, width, ROWS=ROWS, BLOCK=BLOCK, **BACKWARD
    )
    return dwide, add_up(sums, bias.dtype)[0]


@triton.jit
def _normal(x):
    """Return the normal distribution's cumulative probability and its density at x, both from one exponential.

    Abramowitz and Stegun 7.1.26: an error below 1.5e-7 in erf, which rounding to 16 bits hides.
    """
    bell = tl.exp2(-0.7213475204444817 * x * x)  # exp(-x^2 / 2)
    t = 1 + 0.3275911 * 0.7071067811865476 * tl.abs(x)
    t = tl.rsqrt(t * t)  # 1 / t, in a quarter of a division's operations
    tail = 0.5307027145 * t - 0.7265760135
    tail = tail * t + 0.7107068705
    tail = tail * t - 0.142248368
    tail = (tail * t + 0.127414796) * t
    above = tail * bell  # the probability beyond |x|
    below = tl.where(x < 0, above, 1 - above)
    return below, 0.3989422804014327 * bell


@triton.jit
def _gelu(wide, bias, inner, tokens, width, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """ROWS tokens, BLOCK columns."""
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    _, here, inside = _tile(tl.program_id(0), columns, tokens, width, ROWS)
    x = _read(wide + here, inside) + _read(bias + columns, columns < width)[None, :]
    below, _ = _normal(x)
    tl.store(inner + here, x * below, inside)


@triton.jit
def _gelu_backward(
    dinner, wide, bias, dwide, sums, tokens, width, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    """BLOCK columns of a program's share of the tiles (program, program + P, program + 2 P, ...), and their sum."""
    program = tl.program_id(0)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    offset = _read(bias + columns, columns < width)
    found = tl.zeros((ROWS, BLOCK), tl.float32)
    for tile in range(program, tl.cdiv(tokens, ROWS), tl.num_programs(0)):
        _, here, inside = _tile(tile, columns, tokens, width, ROWS)
        x = _read(wide + here, inside) + offset[None, :]
        below, bell = _normal(x)
        gradient = _read(dinner + here, inside) * (below + x * bell)
        tl.store(dwide + here, gradient, inside)
        found += gradient
    tl.store(sums + program.to(tl.int64) * width + columns, tl.sum(found, 0), columns < width)


def stack(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Stack three (N, A, D), A * D = H, to (N, 3H), and sum them over tokens, (3H,), in float32."""
    tokens = query.shape[0]
    width = query[0].numel()
    blocks = triton.cdiv(width, BLOCK)
    programs = shares_of(tokens, ROWS, 3 * blocks)
    stacked = torch.empty(tokens, 3 * width, dtype=query.dtype, device=query.device)
    sums = torch.empty(programs, 3, width, device=query.device)
    _stack[(programs, blocks, 3)](
        query, key, value, stacked, sums, tokens, width, ROWS=ROWS, BLOCK=BLOCK, **BACKWARD
    )
    return stacked, add_up(sums, query.dtype).flatten()


@triton.jit
def _stack(
    query, key, value, stacked, sums, tokens, width, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    """BLOCK columns of a program's share of the tiles of one of the three, copied, and their sum."""
    program = tl.program_id(0)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    which = tl.program_id(2)
    source = query
    if which == 1:
        source = key
    if which == 2:
        source = value
    found = tl.zeros((ROWS, BLOCK), tl.float32)
    for tile in range(program, tl.cdiv(tokens, ROWS), tl.num_programs(0)):
        rows, here, inside = _tile(tile, columns, tokens, width, ROWS)
        there = (3 * rows + which).to(tl.int64)[:, None] * width + columns[None, :]
        x = tl.load(source + here, inside, 0.0)
        tl.store(stacked + there, x, inside)
        found += x.to(tl.float32)
    mine = sums + (3 * program + which).to(tl.int64) * width + columns
    tl.store(mine, tl.sum(found, 0), columns < width)


def add_up(sums: Tensor, dtype: torch.dtype) -> Tensor:
    """Sum (P, K, W) float32 over the P programs -> (K, W)."""
    programs, kinds, width = sums.shape
    total = torch.empty(kinds, width, dtype=dtype, device=sums.device)
    grid = (triton.cdiv(kinds * width, 16),)
    _add_up[grid](sums, total, programs, kinds * width, ROWS=256, BLOCK=16, num_warps=8)
    return total


@triton.jit
def _add_up(sums, total, programs, width, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """BLOCK columns, all programs."""
    columns = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    found = tl.zeros((ROWS, BLOCK), tl.float32)
    for first in range(0, programs, ROWS):
        rows = first + tl.arange(0, ROWS)
        inside = (rows < programs)[:, None] & (columns < width)[None, :]
        here = rows[:, None] * width + columns[None, :]
        found += tl.load(sums + here, inside, 0.0)
    tl.store(total + columns, tl.sum(found, 0), columns < width)
