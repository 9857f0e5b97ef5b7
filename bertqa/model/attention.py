"""Attention over packed sequences: the only part of the encoder that knows where a sequence begins and ends.

S sequences, N tokens in all of them, L longest sequence, A heads, D head size.

All attention functions have one signature, `attend(query, key, value, layout, dropout) -> mixed`, with tensors of shape
(N, A, D) and `dropout` the probability of dropping an attention weight; their results are equal up to rounding. To try
attention of your own, write such a function and pass it, `BertEncoder(config, attention=my_attention)`, or a list with
one per layer. A function that returns `(mixed, maps)` supports `output_attentions`.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bertqa.errors import UserError
from bertqa.model.cpu_attention import fastest_call, runs


@dataclass(frozen=True)
class Layout:
    """Where S sequences lie in N packed tokens, one after the other without gaps.

    For torch.compile, make the Layout outside the compiled model: then one graph serves all batches of two or more
    sequences. A plain list of lengths becomes a Layout inside, which breaks the graph into three for every batch.
    """

    lengths: tuple[int, ...] | None
    """S lengths on the host, so that slicing by them needs no synchronisation. None in a static layout (CUDA graphs),
    whose lengths only the device knows; some of those may be 0."""
    cu_seqlens: Tensor
    """(S+1,) int32 on the device: sequence s has the tokens cu_seqlens[s] : cu_seqlens[s+1]."""
    positions: Tensor
    """(N,) int64 on the device: position of each token in its sequence."""
    sequence: Tensor
    """(N,) int64 on the device: index of the sequence that each token belongs to."""
    longest: int
    """L, an upper bound of the lengths."""

    @classmethod
    def of_batch(cls, batch) -> "Layout":
        """Return the layout of a Batch of windows (data/batches.py), whose index tensors are on the device already."""
        return cls(batch.lengths, batch.cu_seqlens, batch.positions, batch.sequence, batch.longest)

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device) -> "Layout":
        """Return the layout of sequences with these lengths, its index tensors on `device`.

        Lengths 3 and 2:
            cu_seqlens  0 3 5       start of each sequence, and end of the last
            sequence    0 0 0 1 1   of each token
            positions   0 1 2 0 1

        Raises:
            UserError: if there are no lengths, or one is below 1.
        """
        lengths = tuple(int(length) for length in lengths)
        if not lengths or min(lengths) < 1:
            raise UserError(f"lengths are {list(lengths[:8])}; give at least one, each at least 1")
        on_host = torch.tensor(lengths)  # (S,)
        cu_seqlens = F.pad(on_host.cumsum(0), (1, 0))  # (S+1,)
        sequence = torch.repeat_interleave(on_host)  # (N,)
        positions = torch.arange(len(sequence)) - cu_seqlens[sequence]  # (N,)
        cu_seqlens = cu_seqlens.to(torch.int32)  # the type that the varlen kernel takes
        # Asynchronous: the GPU finishes these copies before any later kernel reads them.
        cu_seqlens = cu_seqlens.to(device, non_blocking=True)
        positions = positions.to(device, non_blocking=True)
        sequence = sequence.to(device, non_blocking=True)
        return cls(lengths, cu_seqlens, positions, sequence, max(lengths))

    @property
    def first_tokens(self) -> Tensor:
        """(S,) index of each sequence's first token, [CLS]; any token for an empty sequence."""
        # An empty sequence after the last token would start at N, out of range.
        return self.cu_seqlens[:-1].long().clamp(max=self.positions.shape[0] - 1)

    def pad(self, packed: Tensor, value: float = 0.0) -> Tensor:
        """(N, ...) -> (S, L, ...), with `value` after the end of each sequence."""
        sequences = self.cu_seqlens.shape[0] - 1
        padded = packed.new_full((sequences, self.longest, *packed.shape[1:]), value)
        return padded.index_put((self.sequence, self.positions), packed)

    def unpad(self, padded: Tensor) -> Tensor:
        """(S, L, ...) -> (N, ...)."""
        return padded[self.sequence, self.positions]

    def mask(self) -> Tensor:
        """(S, L) bool, true on tokens."""
        return self.pad(torch.ones_like(self.positions, dtype=torch.bool), False)


Attention = Callable[[Tensor, Tensor, Tensor, Layout, float], Tensor | tuple[Tensor, Tensor]]
"""`attend(query, key, value, layout, dropout) -> mixed`, or `(mixed, maps)` with attention maps (S, A, L, L)."""


def reference_attention(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, dropout: float = 0.0
) -> Tensor:
    """Compute softmax(Q K^T / sqrt(D)) V (Vaswani et al. 2017, equation 1). Slow and plain: tests compare with it."""
    mixed, _ = reference_attention_with_maps(query, key, value, layout, dropout)
    return mixed


def reference_attention_with_maps(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, dropout: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Compute `reference_attention` and its maps (S, A, L, L): a row per query, zero on padding."""
    query = _padded_rows(query, layout)  # (N, A, D) -> (S, A, L, D)
    key = _padded_rows(key, layout)
    value = _padded_rows(value, layout)
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5  # (S, A, L, L)
    real = layout.mask()  # (S, L)
    # Keys on padding are masked. Queries on padding are not: a row masked everywhere would be a softmax of nothing,
    # NaN. Their rows of the maps are set to zero after the softmax instead.
    scores = scores.masked_fill(~real[:, None, None, :], float("-inf"))
    maps = F.dropout(scores.softmax(-1), dropout) * real[:, None, :, None]  # (S, A, L, L)
    return layout.unpad((maps @ value).transpose(1, 2)), maps  # (N, A, D)


def per_sequence_attention(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, dropout: float = 0.0
) -> Tensor:
    """Compute attention by one call per run of adjacent sequences of equal length, without a mask: fastest on a CPU.

    Lengths 9, 9, 9, 4 take two calls, of 3 sequences and of 1. Batches sorted by length have long runs.
    """
    if layout.lengths is None:
        raise UserError(
            "attention sequence by sequence needs a Layout that knows its lengths on the host; use padded_attention"
        )
    attend = fastest_call(query, dropout)
    equal = runs(layout.lengths)
    # One split, no slices: the gradient of each slice would be a zero tensor of the size of the whole.
    tokens = [length * count for length, count in equal]
    parts = zip(equal, query.split(tokens), key.split(tokens), value.split(tokens), strict=True)

    mixed = []
    for (length, count), q, k, v in parts:
        shape = (count, length)
        q = q.unflatten(0, shape).transpose(1, 2)  # (count * length, A, D) -> (count, A, length, D)
        k = k.unflatten(0, shape).transpose(1, 2)
        v = v.unflatten(0, shape).transpose(1, 2)
        rows = attend(q, k, v, dropout_p=dropout)
        mixed.append(rows.transpose(1, 2).flatten(0, 1))  # back to (count * length, A, D)
    return torch.cat(mixed)  # (N, A, D)


def padded_attention(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, dropout: float = 0.0
) -> Tensor:
    """Compute attention by one fused call over padded rows with a mask, for devices without the varlen kernel."""
    query = _padded_rows(query, layout)  # (N, A, D) -> (S, A, L, D)
    key = _padded_rows(key, layout)
    value = _padded_rows(value, layout)
    # The row of an empty sequence is masked everywhere and comes out as NaN, but unpad reads no token of it.
    keep = layout.mask()[:, None, None, :]  # (S, 1, 1, L)
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=keep, dropout_p=dropout)
    return layout.unpad(mixed.transpose(1, 2))  # (N, A, D)


def _padded_rows(x: Tensor, layout: Layout) -> Tensor:
    """(N, A, D) -> (S, A, L, D), zero on padding."""
    return layout.pad(x).transpose(1, 2)


def varlen_attention(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, dropout: float = 0.0
) -> Tensor:
    """Compute flash attention on the packed tokens, without padding (CUDA, 16-bit, no attention dropout)."""
    assert dropout == 0, "this kernel has no dropout; choose_attention does not choose it then"
    # Imported here, because older versions of torch lack this module and need it for no other function.
    from torch.nn.attention.varlen import varlen_attn

    begins = layout.cu_seqlens
    longest = layout.longest
    return varlen_attn(query, key, value, begins, begins, longest, longest)


@functools.cache
def _has_varlen(device: torch.device) -> bool:
    """Whether this version of torch and this GPU have the varlen kernel."""
    try:
        from torch.nn.attention.varlen import varlen_attn  # noqa: F401
    except ImportError:
        return False
    # The kernel is flash attention 2: Ampere and newer.
    return torch.version.cuda is not None and torch.cuda.get_device_capability(device) >= (8, 0)


def fastest_attention(query: Tensor, layout: Layout, dropout: float) -> Attention:
    """Return the fastest attention function for a layer's tensors and layout (a Layout, or padding.Rows)."""
    # torch.compile would make numbers on the host constants of the graph: a new graph for each batch.
    has_lengths = not torch.compiler.is_compiling() and layout.lengths is not None
    is_packed = isinstance(layout, Layout)
    return choose_attention(query.device, query.dtype, dropout, has_lengths, is_packed)


def choose_attention(
    device: torch.device,
    dtype: torch.dtype,
    dropout: float,
    has_lengths: bool = True,
    is_packed: bool = True,
) -> Attention:
    """Return the fastest attention function. All but `varlen_attention` support dropout.

    Args:
        has_lengths: whether the lengths are known on the host.
        is_packed: whether the N tokens are free of padding.
    """
    if device.type != "cuda":
        return per_sequence_attention if has_lengths else padded_attention
    is_16_bit = dtype in (torch.float16, torch.bfloat16)
    if is_packed and dropout == 0 and is_16_bit and _has_varlen(device):
        return varlen_attention
    return padded_attention


# Attention of the user's own

OURS = (
    reference_attention,
    reference_attention_with_maps,
    per_sequence_attention,
    padded_attention,
    varlen_attention,
)
"""The functions above; all compute BERT's attention."""


def own_name(attention) -> str | None:
    """Return the name of the user's own attention, one function or one per layer; None for BERT's attention (`OURS`).

    A model trained with other attention is another model, so its folder records this name: see model/build.py.
    """
    if attention is None or attention in OURS:
        return None
    if isinstance(attention, Iterable):
        names = [own_name(function) for function in attention]
        own = dict.fromkeys(name for name in names if name)  # without repetitions, in order
        return ", ".join(own) or None
    if isinstance(attention, functools.partial):
        return own_name(attention.func)
    return getattr(attention, "__name__", type(attention).__name__)


def attention_of_layers(
    attention, layers: int, maps: list[Tensor] | None
) -> list[Attention | None]:
    """Return the attention function of each layer; None for a layer that chooses the fastest.

    Args:
        attention: None, one function for all layers, or a list with one per layer.
        maps: a list to which each layer appends its attention maps when it runs; None if no maps are requested.
    """
    functions = [attention] * layers
    if isinstance(attention, Iterable):
        functions = list(attention)
    if len(functions) != layers:
        raise UserError(
            f"attention is a list of {len(functions)}, but there are {layers} layers; give one for each"
        )
    if maps is not None:
        functions = [_recording_maps(function, maps) for function in functions]
    return functions


def _recording_maps(function: Attention | None, maps: list[Tensor]) -> Attention:
    """Return an attention function that gives the result of `function` and appends its maps to the list."""
    # Of ours, only the reference computes maps; the others have the same result.
    if function is None or function in OURS:
        function = reference_attention_with_maps

    def attend(query, key, value, layout, dropout):
        result = function(query, key, value, layout, dropout)
        if not isinstance(result, tuple):
            raise UserError(
                f"output_attentions: the attention {own_name(function)!r} shows no maps; let it return (mixed, maps), maps "
                "of shape (S, A, L, L)"
            )
        mixed, layer_maps = result
        maps.append(layer_maps)
        return mixed

    return attend
