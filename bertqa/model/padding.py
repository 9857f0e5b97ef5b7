"""Packing: from the arguments of a call to N tokens in a row, and back. Packed calls pass through unchanged.

S sequences, N tokens, B = S rows and L columns of a padded batch. Padding may be anywhere: right, left, in between.

    input_ids [[5, 6, 0],     mask [[1, 1, 0],     take -> [5, 6, 7, 8]     back of [a, b, c, d] -> [[a, b, 0],
               [0, 7, 8]]           [0, 1, 1]]                                                       [0, c, d]]
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bertqa.errors import UserError
from bertqa.model.attention import Layout


@dataclass(frozen=True)
class Packing:
    """How the tensors of one call become N tokens in a row, and how results get the shape of the call again."""

    layout: "Layout | Rows"
    shape: torch.Size
    """(N,) packed or (B, L) padded."""
    keep: Tensor | None = None
    """(B, L) bool, true on tokens; None for a packed call."""
    places: Tensor | None = None
    """(N,) index of each token among the B * L places; None where nothing is taken out (packed calls, Rows)."""

    def take(self, given: Tensor, name: str = "the batch") -> Tensor:
        """Return the tokens of an argument: (B, L, ...) or (N, ...) -> (N, ...)."""
        if given.shape[: len(self.shape)] != self.shape:
            raise UserError(
                f"{name} has shape {tuple(given.shape)}, the batch {tuple(self.shape)}; they must be the same"
            )
        if self.keep is None:
            return given
        flat = given.flatten(0, 1)
        return flat if self.places is None else flat[self.places]

    def back(self, tokens: Tensor) -> Tensor:
        """(N, ...) -> (B, L, ...), zero on padding; unchanged for a packed call."""
        if self.keep is None:
            return tokens
        if self.places is None:
            return self.layout.pad(tokens)
        # Not in place, so that gradients flow to the tokens and not to the padding.
        flat = tokens.new_zeros(self.keep.numel(), *tokens.shape[1:])
        return flat.index_put((self.places,), tokens).unflatten(0, self.shape)

    def maps_back(self, maps: Tensor) -> Tensor:
        """Attention maps over packed sequences (S, A, L', L') -> over the columns of a padded call (B, A, L, L)."""
        if self.places is None:
            return maps
        # The map of a row counts its tokens without padding: look up each column's query, then its key.
        position = _positions(self.keep)  # (B, L)
        heads = maps.shape[1]
        columns = position.shape[1]
        query = position[:, None, :, None].expand(-1, heads, -1, maps.shape[3])
        maps = maps.gather(2, query)  # (B, A, L, L')
        key = position[:, None, None, :].expand(-1, heads, columns, -1)
        maps = maps.gather(3, key)  # (B, A, L, L)
        # Columns of padding have looked up some token's values: zero.
        return maps * self.keep[:, None, :, None] * self.keep[:, None, None, :]


def packing_of(shape: torch.Size, device: torch.device, attention_mask, lengths) -> Packing:
    """Return the Packing of a call whose batch has this shape: (N,) with lengths, or (B, L) with or without a mask.

    Raises:
        UserError: if the mask or the lengths do not fit the shape, or belong to the other kind of call.
    """
    if len(shape) == 1:
        if attention_mask is not None:
            raise UserError(
                "attention_mask is for padded (B, L) batches; packed tokens have lengths=, and none of them is padding"
            )
        return Packing(layout_of(lengths, shape[0], device), shape)
    if len(shape) != 2:
        raise UserError(
            f"the batch has shape {tuple(shape)}; expected (B, L) padded or (N,) packed"
        )
    if lengths is not None:
        raise UserError(
            "lengths= is for packed tokens (N,); a padded (B, L) batch has attention_mask"
        )
    return _padded_packing(shape, device, attention_mask)


def _padded_packing(shape: torch.Size, device: torch.device, mask: Tensor | None) -> Packing:
    """Return the Packing of a padded call."""
    if mask is None:
        mask = torch.ones(shape, dtype=torch.bool, device=device)
    if mask.shape != shape:
        raise UserError(
            f"attention_mask has shape {tuple(mask.shape)}, the batch {tuple(shape)}; "
            "they must be the same, nonzero on tokens and zero on padding"
        )
    keep = mask.bool()
    # A compiled graph cannot have a number of tokens that depends on the values of the mask.
    if torch.compiler.is_compiling():
        return Packing(Rows(keep), shape, keep)
    # The one synchronisation with a GPU in a call: the shapes of all that follows depend on these numbers.
    lengths = keep.sum(1).tolist()
    if not lengths:
        raise UserError("the batch has no row; leave out empty batches")
    if 0 in lengths:
        raise UserError(
            f"row {lengths.index(0)} (counted from 0) of attention_mask has no token; leave that row out"
        )
    places = keep.flatten().nonzero()[:, 0]  # (N,)
    return Packing(Layout.of(lengths, device), shape, keep, places)


def layout_of(lengths: Sequence[int] | Layout | None, count: int, device: torch.device) -> Layout:
    """Return the Layout of `count` packed tokens with these lengths; a Layout is returned as it is.

    Raises:
        UserError: if a length is below 1, or they do not sum to `count`.
    """
    if isinstance(lengths, Layout):
        if lengths.positions.shape[0] != count:
            raise UserError(
                f"this Layout is of {lengths.positions.shape[0]} tokens, but the packed input has {count}"
            )
        return lengths
    fits = lengths is not None and len(lengths) and sum(lengths) == count and min(lengths) > 0
    if not fits:
        raise UserError(
            f"packed input of {count} tokens needs lengths=[...], each at least 1, that sum to {count}; "
            f"got {_wrong_lengths(lengths)}"
        )
    return Layout.of(lengths, device)


def _wrong_lengths(lengths) -> str:
    """Describe the lengths of a packed call that do not fit."""
    if lengths is None or not len(lengths):
        return "none"
    if min(lengths) < 1:
        return f"a length of {min(lengths)}"
    return f"a sum of {sum(lengths)}"


def first_columns(keep: Tensor) -> Tensor:
    """(B, L) bool -> (B,) column of each row's first token, [CLS]; padding may stand before it."""
    return keep.int().argmax(1)


def _positions(keep: Tensor) -> Tensor:
    """(B, L) bool -> (B, L) int64, number of tokens before each column of a row: [0, 1, 0, 1] -> [0, 0, 0, 1]."""
    return (keep.cumsum(1) - 1).clamp(min=0)


@dataclass(frozen=True)
class Rows:
    """The layout of a padded batch under torch.compile and torch.export: B rows of L places, padding included.

    There the number of tokens must not depend on the values of the mask, so nothing is packed: all N = B * L places go
    through the layers, and attention masks the padding. Has what attention needs of a Layout.
    """

    keep: Tensor
    """(B, L) bool, true on tokens."""

    lengths = None
    """Unknown on the host: attention functions must use `pad`, `unpad` and `mask`."""

    @property
    def longest(self) -> int:
        """L."""
        return self.keep.shape[1]

    @property
    def positions(self) -> Tensor:
        """(N,) position of each token in its sequence."""
        return _positions(self.keep).flatten()

    @property
    def first_tokens(self) -> Tensor:
        """(B,) index of each sequence's first token, [CLS]."""
        rows = torch.arange(self.keep.shape[0], device=self.keep.device)
        return rows * self.keep.shape[1] + first_columns(self.keep)

    def pad(self, packed: Tensor, value: float = 0.0) -> Tensor:
        """(N, ...) -> (B, L, ...), with `value` on padding."""
        rows = packed.unflatten(0, self.keep.shape)
        keep = self.keep.reshape(*self.keep.shape, *[1] * (rows.dim() - 2))  # (B, L, 1, ...)
        return rows.masked_fill(~keep, value)

    def unpad(self, padded: Tensor) -> Tensor:
        """(B, L, ...) -> (N, ...)."""
        return padded.flatten(0, 1)

    def mask(self) -> Tensor:
        """(B, L) bool, true on tokens."""
        return self.keep
