"""Kernels for NVIDIA's GPUs, in Triton: what lies between the matrix products of a layer, forward and backward.

Triton comes with torch for such GPUs; import this module only where it is. With TRITON_INTERPRET=1 the kernels run on a
CPU, slowly, for tests. Tokens are 16-bit, arithmetic is float32. N tokens, H hidden size, F feed-forward size.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

PROGRAMS = 1056
"""Programs that share the rows of a backward kernel: eight for each multiprocessor of an H100 or H200. Each adds up the
gradients of bias, gain and shift over its rows; their sums are added in a second kernel, always in the same order."""
AT_ONCE = 8
"""Programs that a multiprocessor must have room for: those that find none would begin when all others have ended."""

# The fastest of those that were tried on an H200. Rows of a tile, and warps of a program:
NORM = 2, 2
NORM_BACKWARD = 1, 4
# Rows and columns of a tile, and warps of a program, of all other kernels.
TILE = 2, 1024, 4


def shares_of(tokens: int, rows: int, columns: int) -> int:
    """How many programs share the tiles of so many rows, where so many others work on other columns."""
    return min(triton.cdiv(PROGRAMS, columns), triton.cdiv(tokens, rows))


def room_for(warps: int) -> dict[str, int]:
    """What to launch a backward kernel with: its warps, and the most registers for each of their threads."""
    return {"num_warps": warps, "maxnreg": min(255, 65536 // (AT_ONCE * 32 * warps))}


# ---- bias, dropout, residual, LayerNorm ----


class Normed(NamedTuple):
    """What `norm` gives: y = LayerNorm(z), and what its backward needs."""

    y: Tensor
    """(N, H)."""
    z: Tensor
    """(N, H): residual + dropout(product + bias)."""
    statistics: Tensor
    """(N, 2) float32: mean of z and 1 / its standard deviation."""


def norm(
    product: Tensor,
    bias: Tensor,
    residual: Tensor,
    gain: Tensor,
    shift: Tensor,
    seed: Tensor,
    p: float,
    eps: float,
) -> Normed:
    """LayerNorm(residual + dropout(product + bias)) of (N, H) tokens."""
    tokens, width = product.shape
    rows, warps = NORM
    y = torch.empty_like(residual)
    z = torch.empty_like(residual)
    statistics = torch.empty(tokens, 2, device=y.device)
    _norm[(triton.cdiv(tokens, rows),)](
        product, bias, residual, gain, shift, seed, y, z, statistics, tokens, width, p, eps,
        DROP=p > 0, ROWS=rows, BLOCK=triton.next_power_of_2(width), num_warps=warps,
    )  # fmt: skip
    return Normed(y, z, statistics)


def norm_backward(
    dy: Tensor, z: Tensor, statistics: Tensor, gain: Tensor, seed: Tensor, p: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `norm`: of the residual (N, H), of the product (N, H), and (3, H): of bias, gain and shift."""
    tokens, width = dy.shape
    rows, warps = NORM_BACKWARD
    programs = shares_of(tokens, rows, 1)
    dz = torch.empty_like(dy)
    dproduct = torch.empty_like(dy)
    sums = torch.empty(programs, 3, width, device=dy.device)
    _norm_backward[(programs,)](
        dy, z, statistics, gain, seed, dz, dproduct, sums, tokens, width, p,
        DROP=p > 0, ROWS=rows, BLOCK=triton.next_power_of_2(width), **room_for(warps),
    )  # fmt: skip
    return dz, dproduct, add_up(sums, gain.dtype)


@triton.jit
def _kept(seed, rows, p, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """(ROWS, BLOCK) of what dropout leaves: 1 / (1 - p), or 0. The backward pass draws the same again."""
    # One call of Philox gives four numbers of 32 bits, of which 16 are enough to decide about an element; so `p` is
    # rounded to the nearest 1/65536. Ten rounds are usual; seven pass the same tests (Salmon et al. 2011).
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
    """ROWS tokens."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK)
    is_column = columns < width
    inside = (rows < tokens)[:, None] & is_column[None, :]
    here = rows.to(tl.int64)[:, None] * width + columns[None, :]

    x = tl.load(product + here, inside, 0.0).to(tl.float32)
    x += tl.load(bias + columns, is_column, 0.0).to(tl.float32)[None, :]
    if DROP:
        x *= _kept(tl.load(seed), rows, p, ROWS, BLOCK)
    x += tl.load(residual + here, inside, 0.0).to(tl.float32)
    # The backward pass has z as it is stored, so its statistics are of that.
    stored = x.to(z.dtype.element_ty)
    x = stored.to(tl.float32)

    mean = tl.sum(x, 1) / width  # (ROWS,)
    centred = tl.where(inside, x - mean[:, None], 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred, 1) / width + eps)  # (ROWS,)
    weight = tl.load(gain + columns, is_column, 0.0).to(tl.float32)
    offset = tl.load(shift + columns, is_column, 0.0).to(tl.float32)

    tl.store(z + here, stored, inside)
    tl.store(y + here, centred * scale[:, None] * weight[None, :] + offset[None, :], inside)
    tl.store(statistics + 2 * rows, mean, rows < tokens)
    tl.store(statistics + 2 * rows + 1, scale, rows < tokens)


@triton.jit
def _norm_backward(
    dy, z, statistics, gain, seed, dz, dproduct, sums, tokens, width, p,
    DROP: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Its share of the tiles of ROWS tokens, and the sums over these tokens."""
    program = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    is_column = columns < width
    weight = tl.load(gain + columns, is_column, 0.0).to(tl.float32)
    dbias = tl.zeros((ROWS, BLOCK), tl.float32)
    dgain = tl.zeros((ROWS, BLOCK), tl.float32)
    dshift = tl.zeros((ROWS, BLOCK), tl.float32)

    for tile in range(program, tl.cdiv(tokens, ROWS), tl.num_programs(0)):
        rows = tile * ROWS + tl.arange(0, ROWS)
        is_row = rows < tokens
        inside = is_row[:, None] & is_column[None, :]
        here = rows.to(tl.int64)[:, None] * width + columns[None, :]
        gradient = tl.load(dy + here, inside, 0.0).to(tl.float32)
        x = tl.load(z + here, inside, 0.0).to(tl.float32)
        mean = tl.load(statistics + 2 * rows, is_row, 0.0)
        scale = tl.load(statistics + 2 * rows + 1, is_row, 0.0)
        normed = tl.where(inside, (x - mean[:, None]) * scale[:, None], 0.0)
        dshift += gradient
        dgain += gradient * normed

        # What would move the row's mean or its spread has no effect behind the norm.
        gradient *= weight[None, :]
        both = (
            tl.sum(tl.join(gradient, gradient * normed), 1) / width
        )  # (ROWS, 2): warps wait for each other once
        along_mean, along_spread = tl.split(both)  # (ROWS,)
        gradient -= along_mean[:, None] + normed * along_spread[:, None]
        gradient = tl.where(inside, gradient * scale[:, None], 0.0)
        tl.store(dz + here, gradient, inside)
        if DROP:
            gradient *= _kept(tl.load(seed), rows, p, ROWS, BLOCK)
        dbias += gradient
        tl.store(dproduct + here, gradient, inside)

    mine = sums + program.to(tl.int64) * 3 * width + columns
    tl.store(mine, tl.sum(dbias, 0), is_column)
    tl.store(mine + width, tl.sum(dgain, 0), is_column)
    tl.store(mine + 2 * width, tl.sum(dshift, 0), is_column)


# ---- bias, GELU ----


def gelu(wide: Tensor, bias: Tensor) -> Tensor:
    """GELU(wide + bias) of (N, F)."""
    tokens, width = wide.shape
    rows, block, warps = TILE
    inner = torch.empty_like(wide)
    grid = (triton.cdiv(tokens, rows), triton.cdiv(width, block))
    _gelu[grid](wide, bias, inner, tokens, width, ROWS=rows, BLOCK=block, num_warps=warps)
    return inner


def gelu_backward(dinner: Tensor, wide: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of `gelu`: of `wide` (N, F) and of the bias (F,)."""
    tokens, width = wide.shape
    rows, block, warps = TILE
    blocks = triton.cdiv(width, block)
    programs = shares_of(tokens, rows, blocks)
    dwide = torch.empty_like(wide)
    sums = torch.empty(programs, 1, width, device=wide.device)
    _gelu_backward[(programs, blocks)](
        dinner, wide, bias, dwide, sums, tokens, width, ROWS=rows, BLOCK=block, **room_for(warps)
    )
    return dwide, add_up(sums, bias.dtype)[0]


@triton.jit
def _normal(x):
    """The normal distribution at x, below and at the point, both from one exponential.

    Abramowitz and Stegun 7.1.26: the error function within 1.5e-7, which 16-bit tokens do not see.
    """
    bell = tl.exp2(-0.7213475204444817 * x * x)  # exp(-x^2 / 2)
    t = 1 + 0.3275911 * 0.7071067811865476 * tl.abs(x)
    t = tl.rsqrt(t * t)  # 1 / t, in a quarter of a division's operations
    tail = 0.5307027145 * t - 0.7265760135
    tail = tail * t + 0.7107068705
    tail = tail * t - 0.142248368
    tail = (tail * t + 0.127414796) * t
    above = tail * bell  # what lies beyond |x|
    below = tl.where(x < 0, above, 1 - above)
    return below, 0.3989422804014327 * bell


@triton.jit
def _gelu(wide, bias, inner, tokens, width, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """A tile of ROWS tokens and BLOCK columns."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = (rows < tokens)[:, None] & (columns < width)[None, :]
    here = rows.to(tl.int64)[:, None] * width + columns[None, :]
    x = tl.load(wide + here, inside, 0.0).to(tl.float32)
    x += tl.load(bias + columns, columns < width, 0.0).to(tl.float32)[None, :]
    below, _ = _normal(x)
    tl.store(inner + here, x * below, inside)


@triton.jit
def _gelu_backward(
    dinner, wide, bias, dwide, sums, tokens, width, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    """BLOCK columns of its share of the tiles of rows (program, program + P, program + 2 P, ...), and their sum."""
    program = tl.program_id(0)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    offset = tl.load(bias + columns, columns < width, 0.0).to(tl.float32)
    found = tl.zeros((ROWS, BLOCK), tl.float32)
    for tile in range(program, tl.cdiv(tokens, ROWS), tl.num_programs(0)):
        rows = tile * ROWS + tl.arange(0, ROWS)
        inside = (rows < tokens)[:, None] & (columns < width)[None, :]
        here = rows.to(tl.int64)[:, None] * width + columns[None, :]
        x = tl.load(wide + here, inside, 0.0).to(tl.float32) + offset[None, :]
        below, bell = _normal(x)
        gradient = tl.load(dinner + here, inside, 0.0).to(tl.float32) * (below + x * bell)
        tl.store(dwide + here, gradient, inside)
        found += gradient
    dbias = tl.sum(found, 0)
    tl.store(sums + program.to(tl.int64) * width + columns, dbias, columns < width)


# ---- queries, keys, values ----


def stack(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """(N, A, D) each, A * D = H -> (N, 3H), and its sum over tokens (3H,), added up in float32."""
    tokens = query.shape[0]
    width = query[0].numel()
    rows, block, warps = TILE
    blocks = triton.cdiv(width, block)
    programs = shares_of(tokens, rows, 3 * blocks)
    stacked = torch.empty(tokens, 3 * width, dtype=query.dtype, device=query.device)
    sums = torch.empty(programs, 3, width, device=query.device)
    _stack[(programs, blocks, 3)](
        query, key, value, stacked, sums, tokens, width, ROWS=rows, BLOCK=block, **room_for(warps)
    )
    return stacked, add_up(sums, query.dtype).flatten()


@triton.jit
def _stack(
    query, key, value, stacked, sums, tokens, width, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    """BLOCK columns of its share of the tiles of rows of one of the three, copied, and their sum."""
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
        rows = tile * ROWS + tl.arange(0, ROWS)
        inside = (rows < tokens)[:, None] & (columns < width)[None, :]
        here = rows.to(tl.int64)[:, None] * width + columns[None, :]
        there = (3 * rows + which).to(tl.int64)[:, None] * width + columns[None, :]
        x = tl.load(source + here, inside, 0.0)
        tl.store(stacked + there, x, inside)
        found += x.to(tl.float32)
    mine = sums + (3 * program + which).to(tl.int64) * width + columns
    tl.store(mine, tl.sum(found, 0), columns < width)


# ---- sums ----


def add_up(sums: Tensor, dtype: torch.dtype) -> Tensor:
    """(P, K, W) float32 -> (K, W): the sum over P programs."""
    programs, kinds, width = sums.shape
    total = torch.empty(kinds, width, dtype=dtype, device=sums.device)
    grid = (triton.cdiv(kinds * width, 16),)
    _add_up[grid](sums, total, programs, kinds * width, ROWS=256, BLOCK=16, num_warps=8)
    return total


@triton.jit
def _add_up(sums, total, programs, width, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    columns = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    found = tl.zeros((ROWS, BLOCK), tl.float32)
    for first in range(0, programs, ROWS):
        rows = first + tl.arange(0, ROWS)
        inside = (rows < programs)[:, None] & (columns < width)[None, :]
        here = rows[:, None] * width + columns[None, :]
        found += tl.load(sums + here, inside, 0.0)
    tl.store(total + columns, tl.sum(found, 0), columns < width)
