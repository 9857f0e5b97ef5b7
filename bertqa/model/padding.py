"""From what the encoder is called with to N tokens in a row, and back again. Packed tokens stay as they are.

S sequences, N tokens, B = S rows and L columns of a padded batch. Padding may stand anywhere: right, left, in holes.

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
class Rows:
    """What a Layout is for packed tokens, for B rows of L places, padding among them.

    While torch compiles or exports a model, the number of tokens must not depend on what stands in the mask. So nothing is
    taken out: all N = B * L places go through the layers, and attention looks at the real ones only.
    """

    keep: Tensor
    """(B, L) bool, true on tokens."""

    lengths = None
    """Not numbers that are known here, so attention of one's own must do with `pad`, `unpad` and `mask`."""

    @property
    def longest(self) -> int:
        """L."""
        return self.keep.shape[1]

    @property
    def positions(self) -> Tensor:
        """(N,) position of each token among those of its row."""
        return _places(self.keep).flatten()

    @property
    def first_tokens(self) -> Tensor:
        """(B,) index of each row's first token, [CLS]."""
        rows = torch.arange(self.keep.shape[0], device=self.keep.device)
        return rows * self.keep.shape[1] + first_columns(self.keep)

    def pad(self, packed: Tensor, value: float = 0.0) -> Tensor:
        """(N, ...) -> (B, L, ...), `value` on padding."""
        rows = packed.unflatten(0, self.keep.shape)
        keep = self.keep.reshape(*self.keep.shape, *[1] * (rows.dim() - 2))  # (B, L, 1, ...)
        return rows.masked_fill(~keep, value)

    def unpad(self, padded: Tensor) -> Tensor:
        """(B, L, ...) -> (N, ...)."""
        return padded.flatten(0, 1)

    def mask(self) -> Tensor:
        """(B, L) bool, true on tokens."""
        return self.keep


@dataclass(frozen=True)
class Packing:
    """The N tokens of a call: as they came where it was packed, out of their padding where it was padded."""

    layout: Layout | Rows
    shape: torch.Size
    """(N,) packed or (B, L) padded."""
    keep: Tensor | None = None
    """(B, L) bool, true on tokens; None after a packed call."""
    places: Tensor | None = None
    """(N,) which of the B * L places each token has; None where all of them are taken."""

    def take(self, given: Tensor, name: str = "the batch") -> Tensor:
        """(B, L, ...) or (N, ...), as the call gives it -> (N, ...)."""
        if given.shape[: len(self.shape)] != self.shape:
            raise UserError(
                f"{name} has shape {tuple(given.shape)}, the batch {tuple(self.shape)}; they must be the same"
            )
        if self.keep is None:
            return given
        flat = given.flatten(0, 1)
        return flat if self.places is None else flat[self.places]

    def back(self, tokens: Tensor) -> Tensor:
        """(N, ...) -> (B, L, ...), zero on padding; as it is after a packed call."""
        if self.keep is None:
            return tokens
        if self.places is None:
            return self.layout.pad(tokens)
        # Written into a tensor of its own, so that a gradient flows back to the tokens and to no padding.
        flat = tokens.new_zeros(self.keep.numel(), *tokens.shape[1:])
        return flat.index_put((self.places,), tokens).unflatten(0, self.shape)

    def maps_back(self, maps: Tensor) -> Tensor:
        """Attention maps over tokens without padding (S, A, L', L') -> over the columns of a padded call (B, A, L, L)."""
        if self.places is None:
            return maps
        # Each column takes the row of the map, then the place in it, that belongs to its token; padding some other's.
        place = _places(self.keep)  # (B, L)
        heads = maps.shape[1]
        columns = place.shape[1]
        asking = place[:, None, :, None].expand(-1, heads, -1, maps.shape[3])
        maps = maps.gather(2, asking)  # (B, A, L, L')
        asked = place[:, None, None, :].expand(-1, heads, columns, -1)
        maps = maps.gather(3, asked)  # (B, A, L, L)
        # padding asks nothing and is asked nothing
        return maps * self.keep[:, None, :, None] * self.keep[:, None, None, :]


def packing_of(shape: torch.Size, device: torch.device, attention_mask, lengths) -> Packing:
    """The tokens of a call of this shape: packed (N,) with lengths, or padded (B, L), perhaps with a mask.

    Raises:
        UserError: for a mask or lengths that do not fit, or that belong to the other kind of call.
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
    return _out_of_padding(shape, device, attention_mask)


def _out_of_padding(shape: torch.Size, device: torch.device, mask: Tensor | None) -> Packing:
    """The tokens of a padded call."""
    if mask is None:
        mask = torch.ones(shape, dtype=torch.bool, device=device)
    if mask.shape != shape:
        raise UserError(
            f"attention_mask has shape {tuple(mask.shape)}, the batch {tuple(shape)}; "
            "they must be the same, nonzero on tokens and zero on padding"
        )
    keep = mask.bool()
    # The number of tokens would be a shape that depends on data, which a compiled graph cannot have.
    if torch.compiler.is_compiling():
        return Packing(Rows(keep), shape, keep)
    # A GPU is waited for here, once in a call: the number of tokens is the shape of all that follows.
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
    """The Layout of `count` packed tokens with these lengths; a Layout stays as it is.

    Raises:
        UserError: for lengths below 1, or that do not sum to `count`.
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
            f"got {_describe(lengths)}"
        )
    return Layout.of(lengths, device)


def _describe(lengths) -> str:
    """What is wrong with the lengths of a packed call, for its message."""
    if lengths is None or not len(lengths):
        return "none"
    if min(lengths) < 1:
        return f"a length of {min(lengths)}"
    return f"a sum of {sum(lengths)}"


def first_columns(keep: Tensor) -> Tensor:
    """(B, L) bool -> (B,) the column of each row's first token, which is [CLS], wherever the padding stands."""
    return keep.int().argmax(1)


def _places(keep: Tensor) -> Tensor:
    """(B, L) bool -> (B, L) int64: how many tokens of the row stand before each place; [0, 1, 0, 1] -> [0, 0, 0, 1]."""
    return (keep.cumsum(1) - 1).clamp(min=0)
