"""How far the inputs of an encoder's products reach: measured on texts, once, and kept beside the weights for int8.

A range is (2, C): least and largest value; of each of C channels where the product can be smoothed, else of all of them
(C = 1). By name: layers.0.qkv, layers.0.attention_out, layers.0.ffn_in, layers.0.ffn_out, layers.1.qkv, ...
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from bertqa.model.encoder import BertEncoder, Layer

PRODUCTS = ("qkv", "attention_out", "ffn_in", "ffn_out")
SMOOTHED = ("qkv", "ffn_in")
"""The products whose inputs come out of a LayerNorm, where a few channels are much larger than the others."""
Ranges = dict[str, Tensor]


def products_of(encoder: BertEncoder) -> Iterator[tuple[str, nn.Linear]]:
    """Each product of the encoder's layers and its name."""
    for number, layer in enumerate(encoder.layers):
        if isinstance(layer, Layer):
            for name in PRODUCTS:
                yield f"layers.{number}.{name}", getattr(layer, name)


@contextmanager
def watched(encoder: BertEncoder) -> Iterator[Ranges]:
    """Inside, the ranges grow with all that the encoder reads."""
    ranges: Ranges = {}

    def watch(name: str, linear: nn.Linear):
        def widen(module, inputs: tuple) -> None:
            x = inputs[0].detach().float().flatten(0, -2)  # (N, C)
            reach = torch.stack([x.amin(0), x.amax(0)]).cpu()  # (2, C)
            if name.rpartition(".")[2] not in SMOOTHED:
                reach = torch.stack([reach[0].min(), reach[1].max()])[:, None]  # (2, 1)
            if name in ranges:
                before = ranges[name]
                reach[0] = torch.minimum(reach[0], before[0])
                reach[1] = torch.maximum(reach[1], before[1])
            ranges[name] = reach

        return linear.register_forward_pre_hook(widen)

    hooks = [watch(name, linear) for name, linear in products_of(encoder)]
    try:
        yield ranges
    finally:
        for hook in hooks:
            hook.remove()


def misfit(ranges: Ranges, encoder: BertEncoder) -> str | None:
    """Why these are not the ranges of such an encoder; None where they may be."""
    wanted = {}
    for name, linear in products_of(encoder):
        channels = linear.in_features if name.rpartition(".")[2] in SMOOTHED else 1
        wanted[name] = (2, channels)
    for name in sorted(wanted.keys() ^ ranges.keys()):
        return f"{name} is {'missing' if name in wanted else 'of no layer of this model'}"
    for name, shape in wanted.items():
        reach = ranges[name]
        if tuple(reach.shape) != shape:
            return f"{name} has shape {tuple(reach.shape)}, this model needs {shape}"
        if not torch.isfinite(reach).all() or (reach[0] > reach[1]).any():
            return f"{name} is no least and largest value"
    return None
