"""Models sent by value: numbers that 16 bits hold exactly, as most released weights', travel in 16 bits."""

import copy

import torch
from torch import Tensor, nn


def narrow(tensor: Tensor) -> Tensor:
    """The tensor in float16 or bfloat16 where that loses nothing, else as it is."""
    if tensor.dtype == torch.float32:
        for dtype in (torch.float16, torch.bfloat16):
            short = tensor.to(dtype)
            if torch.equal(short.float(), tensor):
                return short
    return tensor


def slim(model: nn.Module) -> tuple[nn.Module, list[str]]:
    """A copy of a model with its parameters narrowed, and the names of those that were."""
    model = copy.deepcopy(model)
    names = []
    for name, parameter in model.named_parameters():
        short = narrow(parameter.data)
        if short.dtype != parameter.dtype:
            parameter.data = short
            names.append(name)
    return model, names


def widen(model: nn.Module, names: list[str]) -> nn.Module:
    """The model with these parameters in float32 again."""
    for name in names:
        parameter = model.get_parameter(name)
        parameter.data = parameter.data.float()
    return model
