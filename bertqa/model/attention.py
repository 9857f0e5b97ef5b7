"""Attention over packed sequences: the one place that knows where a sequence begins and ends.

S sequences, N tokens in all of them, L longest sequence, A heads, D head size.

Every body has the same signature, `body(query, key, value, layout, dropout) -> mixed`, all of shape (N, A, D), and the
same result up to rounding; `dropout` is the probability of dropping an attention weight. To try another kind of
attention, write such a function and pass it: `BertEncoder(config, attention=my_attention)`; or a list of them, one for
each layer. A body that also has maps to show returns `(mixed, maps)`.
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
    """Where S sequences lie in N packed tokens, one behind the other, nothing between them.

    To a compiled model pass a Layout that was made outside of it: one graph serves all batches of two sequences or more. A
    list of lengths is made into one inside, where torch.compile breaks the graph in three for every batch.
    """

    lengths: tuple[int, ...] | None
    """S lengths, on the host: slicing by them needs no synchronisation with the device. None in a static layout, whose
    lengths only the device knows; some of them may be 0."""
    cu_seqlens: Tensor
    """(S+1,) int32 on the device: sequence s owns tokens cu_seqlens[s] : cu_seqlens[s+1]."""
    positions: Tensor
    """(N,) int64 on the device: position of each token in its own sequence."""
    sequence: Tensor
    """(N,) int64 on the device: the sequence of each token."""
    longest: int
    """L: no sequence is longer."""

    @classmethod
    def of_batch(cls, batch) -> "Layout":
        """The layout of a Batch of windows (data/batches.py), whose index tensors are on the device already."""
        return cls(batch.lengths, batch.cu_seqlens, batch.positions, batch.sequence, batch.longest)

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device) -> "Layout":
        """The layout of sequences with these lengths, its index tensors on `device`.

        Lengths 3 and 2:
            cu_seqlens  0 3 5       where each begins, and where the last ends
            sequence    0 0 0 1 1   of each token
            positions   0 1 2 0 1

        Raises:
            UserError: for no lengths at all, and for one below 1.
        """
        lengths = tuple(int(length) for length in lengths)
        if not lengths or min(lengths) < 1:
            raise UserError(f"lengths are {list(lengths[:8])}; give at least one, each at least 1")
        on_host = torch.tensor(lengths)  # (S,)
        cu_seqlens = F.pad(on_host.cumsum(0), (1, 0))  # (S+1,)
        sequence = torch.repeat_interleave(on_host)  # (N,)
        positions = torch.arange(len(sequence)) - cu_seqlens[sequence]  # (N,)
        # What the host does next need not wait for these copies: a GPU does its work in order.
        move = functools.partial(torch.Tensor.to, device=device, non_blocking=True)
        cu_seqlens = move(cu_seqlens.to(torch.int32))  # what the variable-length kernel takes
        return cls(lengths, cu_seqlens, move(positions), move(sequence), max(lengths))

    @property
    def first_tokens(self) -> Tensor:
        """(S,) index of each sequence's first token, [CLS]; of some token where a sequence has none."""
        # An empty sequence behind the last token begins at N, where nothing is.
        return self.cu_seqlens[:-1].long().clamp(max=self.positions.shape[0] - 1)

    def pad(self, packed: Tensor, value: float = 0.0) -> Tensor:
        """(N, ...) -> (S, L, ...), `value` behind the end of each sequence."""
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
"""`body(query, key, value, layout, dropout) -> mixed`, or `(mixed, maps)` from a body that shows its maps (S, A, L, L)."""


def reference_attention(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, dropout: float = 0.0
) -> Tensor:
    """softmax(Q K^T / sqrt(D)) V written out (Vaswani et al. 2017, equation 1): slow, plain, what the others must equal."""
    mixed, _ = reference_attention_with_maps(query, key, value, layout, dropout)
    return mixed


def reference_attention_with_maps(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, dropout: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Like `reference_attention`, and the attention maps (S, A, L, L): row = asking token, zero outside the sequence."""
    query = _padded_rows(query, layout)  # (N, A, D) -> (S, A, L, D)
    key = _padded_rows(key, layout)
    value = _padded_rows(value, layout)
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5  # (S, A, L, L)
    real = layout.mask()  # (S, L)
    # Nobody may look at padding. Padding itself still looks at the sequence: a row with everything masked would be a
    # softmax of nothing, NaN. Its maps are zeroed behind the softmax instead.
    scores = scores.masked_fill(~real[:, None, None, :], float("-inf"))
    maps = F.dropout(scores.softmax(-1), dropout) * real[:, None, :, None]  # (S, A, L, L)
    return layout.unpad((maps @ value).transpose(1, 2)), maps  # (N, A, D)


def per_sequence_attention(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, dropout: float = 0.0
) -> Tensor:
    """One attention call for each run of neighbours of equal length, no mask at all: the fastest way on a CPU.

    Lengths 9, 9, 9, 4 are two calls: one of 3 sequences, one of 1. In batches sorted by length a run is many sequences;
    otherwise it is mostly one, and a call costs little.
    """
    if layout.lengths is None:
        raise UserError(
            "attention sequence by sequence needs a Layout that knows its lengths on the host; use padded_attention"
        )
    attend = fastest_call(query, dropout)
    equal = runs(layout.lengths)
    # Split at once: a slice of each would have its gradient as a whole tensor of zeros around it.
    tokens = [length * count for length, count in equal]
    parts = zip(equal, query.split(tokens), key.split(tokens), value.split(tokens), strict=True)

    mixed = []
    for (length, count), *qkv in parts:
        # (count * length, A, D) -> (count, A, length, D): what torch's attention takes
        q, k, v = (x.unflatten(0, (count, length)).transpose(1, 2) for x in qkv)
        rows = attend(q, k, v, dropout_p=dropout)
        mixed.append(rows.transpose(1, 2).flatten(0, 1))  # back to (count * length, A, D)
    return torch.cat(mixed)  # (N, A, D)


def padded_attention(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, dropout: float = 0.0
) -> Tensor:
    """One fused attention call over padded rows with a mask: for devices without the variable-length kernel."""
    query = _padded_rows(query, layout)  # (N, A, D) -> (S, A, L, D)
    key = _padded_rows(key, layout)
    value = _padded_rows(value, layout)
    # Of an empty sequence nothing is kept, so its row comes out as NaN; but no token is read from there.
    keep = layout.mask()[:, None, None, :]  # (S, 1, 1, L)
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=keep, dropout_p=dropout)
    return layout.unpad(mixed.transpose(1, 2))  # (N, A, D)


def _padded_rows(x: Tensor, layout: Layout) -> Tensor:
    """(N, A, D) -> (S, A, L, D): sequences as rows, heads before tokens, zero on padding."""
    return layout.pad(x).transpose(1, 2)


def varlen_attention(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, dropout: float = 0.0
) -> Tensor:
    """Flash attention over the packed tokens themselves (CUDA, 16-bit, no attention dropout)."""
    assert dropout == 0, "this kernel has no dropout; choose_attention sends none here"
    # Here and not above: older versions of torch lack this module, and need it for no other body.
    from torch.nn.attention.varlen import varlen_attn

    begins = layout.cu_seqlens
    longest = layout.longest
    return varlen_attn(query, key, value, begins, begins, longest, longest)


@functools.cache
def _has_varlen(device: torch.device) -> bool:
    """Whether torch is new enough to have the kernel, and the GPU is of a kind that it runs on."""
    try:
        from torch.nn.attention.varlen import varlen_attn  # noqa: F401
    except ImportError:
        return False
    # The kernel is flash attention 2: Ampere and newer.
    return torch.version.cuda is not None and torch.cuda.get_device_capability(device) >= (8, 0)


def choose_attention(
    device: torch.device,
    dtype: torch.dtype,
    dropout: float,
    has_lengths: bool = True,
    is_packed: bool = True,
) -> Attention:
    """The fastest body for these tensors. All bodies but the variable-length one can drop attention weights.

    Args:
        has_lengths: whether the layout knows its lengths as numbers on the host.
        is_packed: whether there are nothing but tokens, no padding between them.
    """
    if device.type != "cuda":
        return per_sequence_attention if has_lengths else padded_attention
    is_16_bit = dtype in (torch.float16, torch.bfloat16)
    if is_packed and dropout == 0 and is_16_bit and _has_varlen(device):
        return varlen_attention
    return padded_attention


OURS = (
    reference_attention,
    reference_attention_with_maps,
    per_sequence_attention,
    padded_attention,
    varlen_attention,
)
"""The bodies that all give the numbers of `reference_attention`."""


def own_name(attention) -> str | None:
    """What to call attention of one's own, a body or one for each layer; None for ours, which all give the same numbers.

    Training with another attention makes another model, so a model folder keeps this name: see model/folder.py.
    """
    if attention is None or attention in OURS:
        return None
    if isinstance(attention, Iterable):
        names = [own_name(body) for body in attention]
        own = dict.fromkeys(name for name in names if name)  # each once, in order
        return ", ".join(own) or None
    if isinstance(attention, functools.partial):
        return own_name(attention.func)
    return getattr(attention, "__name__", type(attention).__name__)


def bodies_of(attention, layers: int, maps: list[Tensor] | None) -> list[Attention | None]:
    """The body of each layer; None where the layer is to choose the fastest.

    Args:
        attention: one body for all layers, or a list with one for each.
        maps: a list to which each layer's attention maps are to be added, once it has run; None where none are wanted.
    """
    bodies = [attention] * layers
    if isinstance(attention, Iterable):
        bodies = list(attention)
    if len(bodies) != layers:
        raise UserError(
            f"attention is a list of {len(bodies)}, but there are {layers} layers; give one for each"
        )
    if maps is not None:
        bodies = [_keeping_maps(body, maps) for body in bodies]
    return bodies


def _keeping_maps(body: Attention | None, maps: list[Tensor]) -> Attention:
    """A body that gives what `body` gives and adds its attention maps to a list."""
    # Ours all give the same numbers, but only the reference makes maps.
    if body is None or body in OURS:
        body = reference_attention_with_maps

    def attend(query, key, value, layout, dropout):
        found = body(query, key, value, layout, dropout)
        if not isinstance(found, tuple):
            raise UserError(
                f"output_attentions: the attention {own_name(body)!r} shows no maps; let it return (mixed, maps), maps "
                "of shape (S, A, L, L)"
            )
        mixed, found_maps = found
        maps.append(found_maps)
        return mixed

    return attend
