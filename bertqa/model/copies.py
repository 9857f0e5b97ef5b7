"""16-bit copies of an encoder's weights, to compute with in place of autocast.

Autocast casts each weight anew wherever it is used and keeps what flows between the layers in float32: on a GPU these
casts and the doubled traffic cost more time than half of the matrix products. With copies everything inside the encoder
has 16 bits, but for what torch's kernels keep in float32 themselves (the statistics of LayerNorm, the sums of a product
and of a softmax). Heads stay in float32 (heads.in_float32).
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn


class WeightCopies:
    """A copy of each weight of an encoder, in another format. The weights themselves stay what is saved and updated."""

    def __init__(self, encoder: nn.Module, dtype: torch.dtype):
        self.homes: list[tuple[nn.Module, str]] = []
        self.masters: list[nn.Parameter] = []
        self.copies: list[nn.Parameter] = []
        for module in encoder.modules():
            for name, master in module.named_parameters(recurse=False):
                self.homes.append((module, name))
                self.masters.append(master)
                self.copies.append(nn.Parameter(master.detach().to(dtype), master.requires_grad))

    @torch.no_grad()
    def refresh(self) -> None:
        """Make the copies equal to the weights again."""
        torch._foreach_copy_(self.copies, self.masters)

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Inside, the encoder computes with the copies; gradients go to them."""
        self._put(self.copies)
        try:
            yield
        finally:
            self._put(self.masters)

    def _put(self, weights: list[nn.Parameter]) -> None:
        for (module, name), weight in zip(self.homes, weights, strict=True):
            module._parameters[name] = weight

    def of(self, weights: list[nn.Parameter]) -> list[nn.Parameter]:
        """What takes gradients while the copies are lent: for each weight its copy, or itself where it has none."""
        copy_of = {id(master): copy for master, copy in zip(self.masters, self.copies, strict=True)}
        return [copy_of.get(id(weight), weight) for weight in weights]


@contextmanager
def computing_in_16_bits(model: nn.Module, autocast) -> Iterator:
    """For inference on a GPU: inside, the weights of an encoder of ours (of each, in an Ensemble) are cast once, and not
    for every batch.

    Yields the autocast that is still needed: none where the copies take its place.
    """
    encoders = [getattr(member, "encoder", None) for member in getattr(model, "members", [model])]
    wanted = autocast is not None and autocast._enabled and autocast.device == "cuda"
    # fp16 would overflow where activations are large and the residual stream is not float32.
    if not wanted or autocast.fast_dtype != torch.bfloat16 or None in encoders or foreign(model):
        yield autocast
        return
    with ExitStack() as lent:
        for encoder in encoders:
            lent.enter_context(WeightCopies(encoder, autocast.fast_dtype).lent())
        yield None


def foreign(model: nn.Module) -> str:
    """The name of a class among a model's modules that is neither torch's nor ours, or "a hook"; "" where there is none.

    What is not ours may do anything: ask for the host, draw from Python's random, expect float32.
    """
    for module in model.modules():
        home = type(module).__module__
        if not home.startswith(("torch.nn.", "bertqa.model.")):
            return type(module).__name__
        if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
            return "a hook"
    return ""
