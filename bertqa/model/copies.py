"""16-bit copies of an encoder's weights, used instead of autocast.

Autocast casts each weight at every use and keeps the activations between layers in float32: on a GPU these casts and the
doubled memory traffic take more than half the time of the matrix products. With copies the whole encoder computes in
16 bits, except for what torch's kernels keep in float32 (statistics of LayerNorm, sums in products and softmax). Heads
stay in float32 (heads.in_float32).
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn


class WeightCopies:
    """A copy of each weight of an encoder in another dtype. Saved and updated are the weights themselves, the masters."""

    def __init__(self, encoder: nn.Module, dtype: torch.dtype):
        self.homes: list[tuple[nn.Module, str]] = []  # module and parameter name of each weight
        self.masters: list[nn.Parameter] = []
        self.copies: list[nn.Parameter] = []
        for module in encoder.modules():
            for name, master in module.named_parameters(recurse=False):
                self.homes.append((module, name))
                self.masters.append(master)
                self.copies.append(nn.Parameter(master.detach().to(dtype), master.requires_grad))

    @torch.no_grad()
    def refresh(self) -> None:
        """Update the copies from the weights."""
        torch._foreach_copy_(self.copies, self.masters)

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Make the encoder compute with the copies inside this context; gradients go to them."""
        self._put(self.copies)
        try:
            yield
        finally:
            self._put(self.masters)

    def _put(self, weights: list[nn.Parameter]) -> None:
        """Make these the encoder's parameters."""
        for (module, name), weight in zip(self.homes, weights, strict=True):
            module._parameters[name] = weight

    def of(self, weights: list[nn.Parameter]) -> list[nn.Parameter]:
        """Return the parameters that take gradients while the copies are in use: each weight's copy, or itself."""
        copy_of = {id(master): copy for master, copy in zip(self.masters, self.copies, strict=True)}
        return [copy_of.get(id(weight), weight) for weight in weights]


@contextmanager
def computing_in_16_bits(model: nn.Module, autocast) -> Iterator:
    """Cast the weights of a model's encoder once instead of for every batch, for inference in bf16 on a GPU.

    Yields the autocast to use inside: None if copies replace it, else `autocast` itself. The members of an Ensemble are
    treated alike.
    """
    members = getattr(model, "members", [model])
    encoders = [getattr(member, "encoder", None) for member in members]
    on_gpu = autocast is not None and autocast._enabled and autocast.device == "cuda"
    # Not in fp16: large activations would overflow in the residual stream, which autocast keeps in float32.
    in_bf16 = on_gpu and autocast.fast_dtype == torch.bfloat16
    if not in_bf16 or None in encoders or foreign(model):
        yield autocast
        return
    with ExitStack() as lent:
        for encoder in encoders:
            lent.enter_context(WeightCopies(encoder, autocast.fast_dtype).lent())
        yield None


def foreign(model: nn.Module) -> str:
    """Return the first class among a model's modules that is neither torch's nor ours, or "a hook"; "" if none.

    Foreign code may do anything: synchronise with the host, draw from Python's random, expect float32.
    """
    for module in model.modules():
        home = type(module).__module__
        if not home.startswith(("torch.nn.", "bertqa.model.")):
            return type(module).__name__
        if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
            return "a hook"
    return ""
