"""Ranges for int8: the smallest and largest input of each product of an encoder, measured once on texts.

A range is a tensor (2, C): smallest and largest value of each of C channels for products that are smoothed, else of all
channels together (C = 1). Their names are layers.0.qkv, layers.0.attention_out, layers.0.ffn_in, layers.0.ffn_out,
layers.1.qkv, ...

A model folder stores them in int8_ranges.safetensors; its metadata has the checksum of the weights.
"""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from bertqa.errors import UserError
from bertqa.files import replacing
from bertqa.model.disk import (
    RANGES,
    WEIGHTS,
    Weights,
    is_damaged,
    open_safetensors,
    rewritten,
    sha256_of,
    write_safetensors,
)
from bertqa.model.encoder import BertEncoder, Layer

PRODUCTS = ("qkv", "attention_out", "ffn_in", "ffn_out")
SMOOTHED = ("qkv", "ffn_in")
"""Products whose inputs come from a LayerNorm, where a few channels are much larger than the others."""

Ranges = dict[str, Tensor]

ABOUT = {"content": "bertqa int8 ranges", "version": "1"}
"""Metadata of every file of ranges, beside "windows", the number measured on, and "weights", the sha256 of
model.safetensors."""


def is_smoothed(name: str) -> bool:
    """Whether a product, such as "layers.0.qkv", has a range per channel."""
    return name.rpartition(".")[2] in SMOOTHED


def products_of(encoder: BertEncoder) -> Iterator[tuple[str, nn.Linear]]:
    """Yield the name and the Linear of each product in the encoder's layers."""
    for number, layer in enumerate(encoder.layers):
        if isinstance(layer, Layer):
            for name in PRODUCTS:
                yield f"layers.{number}.{name}", getattr(layer, name)


@contextmanager
def watched(encoder: BertEncoder) -> Iterator[Ranges]:
    """Yield ranges that are widened by all inputs that the encoder's products get inside this context."""
    ranges: Ranges = {}
    hooks = []
    for name, linear in products_of(encoder):
        hooks.append(linear.register_forward_pre_hook(partial(_widen, ranges, name)))
    try:
        yield ranges
    finally:
        for hook in hooks:
            hook.remove()


def _widen(ranges: Ranges, name: str, linear: nn.Linear, inputs: tuple) -> None:
    """Widen the range of a product to hold its inputs; called before its Linear."""
    bounds = _bounds_of(inputs[0], is_smoothed(name))
    if name in ranges:
        before = ranges[name]
        bounds[0] = torch.minimum(bounds[0], before[0])
        bounds[1] = torch.maximum(bounds[1], before[1])
    ranges[name] = bounds


def _bounds_of(x: Tensor, each_channel: bool) -> Tensor:
    """(..., C) -> (2, C) smallest and largest value of each channel, or (2, 1) of all."""
    x = x.detach().float().flatten(0, -2)  # (N, C)
    bounds = torch.stack([x.amin(0), x.amax(0)]).cpu()  # (2, C)
    if each_channel:
        return bounds
    return torch.stack([bounds[0].min(), bounds[1].max()])[:, None]  # (2, 1)


def misfit(ranges: Ranges, encoder: BertEncoder) -> str | None:
    """Return why ranges do not fit an encoder, by their names, shapes and values; None if they do."""
    wanted = {}
    for name, linear in products_of(encoder):
        channels = linear.in_features if is_smoothed(name) else 1
        wanted[name] = (2, channels)
    for name in sorted(wanted.keys() ^ ranges.keys()):
        return f"{name} is {'missing' if name in wanted else 'of no layer of this model'}"
    for name, shape in wanted.items():
        bounds = ranges[name]
        if tuple(bounds.shape) != shape:
            return f"{name} has shape {tuple(bounds.shape)}, this model needs {shape}"
        if not torch.isfinite(bounds).all() or (bounds[0] > bounds[1]).any():
            return f"{name} is no least and largest value"
    return None


# ---- in a model folder ----


def write_ranges(folder: str | Path, ranges: Ranges, windows: int) -> None:
    """Write or replace int8_ranges.safetensors of a model folder; `windows`: the number they were measured on."""
    folder = Path(folder)
    about = {**ABOUT, "windows": str(windows), "weights": sha256_of(folder / WEIGHTS)}
    with rewritten(folder, RANGES), replacing(folder / RANGES) as fresh:
        write_safetensors(fresh, ranges, ranges.__getitem__, about)


def read_ranges(folder: str | Path, encoder: BertEncoder) -> Ranges | None:
    """Read the ranges in a model folder; None if it has none.

    Raises:
        UserError: if they are damaged, were measured with other weights, or do not fit the encoder.
    """
    folder = Path(folder)
    path = folder / RANGES
    if not path.exists():
        return None
    try:
        if is_damaged(folder, RANGES):
            raise UserError(f"{path}: is damaged (its checksum differs)")
        stored = open_safetensors(path, "cpu")
        ranges = {name: stored.get(name) for name in stored.shapes}
        problem = _not_of(stored, sha256_of(folder / WEIGHTS)) or misfit(ranges, encoder)
        if problem:
            raise UserError(f"{path}: {problem}")
    except UserError as error:
        raise UserError(
            f"{error}; measure anew: {command(folder)}, or delete the file (int8 then takes twice as long)"
        ) from None
    return ranges


def _not_of(stored: Weights, weights: str) -> str | None:
    """Return why a file has no ranges for weights with this sha256; None if it has."""
    about = stored.metadata
    if about.get("content") != ABOUT["content"]:
        return "holds no int8 ranges"
    if about.get("version") != ABOUT["version"]:
        return f"is of version {about.get('version')}, and only {ABOUT['version']} is known here"
    if about.get("weights") != weights:
        return f"was measured on other weights (sha256 {str(about.get('weights'))[:16]}) than {WEIGHTS} ({weights[:16]})"
    return None


def weights_of_ranges(folder: Path) -> str | None:
    """Return the sha256 of the weights that a folder's ranges were measured with; None without readable ranges."""
    path = folder / RANGES
    try:
        if path.exists() and not is_damaged(folder, RANGES):
            return open_safetensors(path, "cpu").metadata.get("weights")
    except UserError:
        pass  # treated as missing: they can be measured again
    return None


def command(folder: str | Path) -> str:
    """Return the command that measures the ranges of a model folder."""
    return f"python -m bertqa.calibrate {shlex.quote(str(folder))} DATA"
