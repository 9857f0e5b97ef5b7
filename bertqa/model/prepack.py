"""Copies of a model for inference on a CPU: their layers made of faster products, in float32, bf16 or int8.

And slim copies, to be sent to other processes.
"""

import copy
import warnings
from collections.abc import Callable

import torch
from torch import nn

from bertqa.errors import UserError
from bertqa.model.copies import foreign
from bertqa.model.cpu_layer import CpuLayer
from bertqa.model.encoder import BertEncoder, Layer
from bertqa.model.products import (
    FUSED,
    CalibratedLinear,
    PackedLinear,
    TokenwiseLinear,
    has_calibrated_products,
    has_packed_products,
    narrow,
)
from bertqa.model.ranges import PRODUCTS, Ranges


def pack(model: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A copy of a model for inference with the products of its layers packed; the model itself where that is of no use.

    The copy cannot be trained or saved. A layer of one's own, or with a hook, stays as it is.

    Args:
        dtype: of the products: torch.float32, or torch.bfloat16 for a model that is called under autocast to it.
    """
    on_cpu = next(model.parameters()).device.type == "cpu"
    is_float32 = all(parameter.dtype == torch.float32 for parameter in model.parameters())
    if not on_cpu or not is_float32 or not _is_faster_packed(dtype) or not has_packed_products():
        return model

    def pack_one(linear: nn.Linear, activation) -> PackedLinear:
        return PackedLinear(linear.weight, linear.bias, dtype, activation)

    return _with_layers(
        model, lambda layer, number: CpuLayer(layer, _products(layer, pack_one), dtype)
    )


def _is_faster_packed(dtype: torch.dtype) -> bool:
    """Whether this processor multiplies packed weights of that type faster than torch does plain ones."""
    if dtype == torch.float32:
        return torch.backends.cpu.get_cpu_capability().startswith("AVX")
    return dtype == torch.bfloat16 and torch.cpu._is_avx512_bf16_supported()


def int8(model: nn.Module, ranges: Ranges | None = None) -> nn.Module:
    """A copy of a model for inference on a CPU, with the products of its layers in int8; the head keeps float32.

    The copy cannot be trained or saved. Measure what it costs on your own data before you rely on it. What a text gets
    does not depend on the texts beside it, to the last bit.

    Args:
        ranges: of the products' inputs (ranges.py). Without them, or on a processor without VNNI, each token has a scale
            of its own, found anew in each product: about half as fast.

    Raises:
        UserError: for a model on another device, and where this build of torch has no int8 products.
    """
    device = next(model.parameters()).device
    if device.type != "cpu":
        raise UserError(
            f"int8 is for CPUs, but the model is on {device}; use --device cpu, or leave out --int8"
        )
    if torch.backends.quantized.engine == "none":
        raise UserError(
            f"int8: torch {torch.__version__} was built without int8 products for this processor; "
            "leave out --int8"
        )
    is_calibrated = ranges is not None and has_calibrated_products()

    def make(layer: Layer, number: int) -> CpuLayer:
        if is_calibrated:
            return _calibrated(
                layer, {name: ranges[f"layers.{number}.{name}"] for name in PRODUCTS}
            )
        return CpuLayer(layer, _products(layer, round_one), torch.float32)

    def round_one(linear: nn.Linear, activation) -> TokenwiseLinear:
        return TokenwiseLinear(linear.weight, linear.bias, activation)

    copied = _with_layers(model, make)
    left = sum(isinstance(module, Layer) for module in copied.modules())
    if left:
        warnings.warn(
            f"int8: {left} layers are of one's own, or have a hook; they stay in float32",
            stacklevel=2,
        )
    return copied


def _products(layer: Layer, make: Callable[..., nn.Module]) -> dict[str, nn.Module]:
    """What `make` makes of each Linear of a layer and the activation behind it, by the Linear's name."""
    activations = {"ffn_in": layer.activation}
    return {name: make(getattr(layer, name), activations.get(name)) for name in PRODUCTS}


def _calibrated(layer: Layer, reach: Ranges) -> CpuLayer:
    """The layer in int8, with a product's range by its name."""
    attention = torch.float32
    if torch.cpu._is_avx512_bf16_supported():
        attention = torch.bfloat16

    def product(name: str, activation=None, output=torch.float32) -> CalibratedLinear:
        linear = getattr(layer, name)
        return CalibratedLinear(linear.weight, linear.bias, reach[name], activation, output)

    ffn_out = product("ffn_out")
    products = {
        "qkv": product("qkv", output=attention),
        "attention_out": product("attention_out"),
        # Its activations are rounded inside of the product, to what the next one takes.
        "ffn_in": product("ffn_in", layer.activation, output=ffn_out),
        "ffn_out": ffn_out,
    }
    return CpuLayer(layer, products, torch.float32)


def _with_layers(model: nn.Module, make: Callable[[Layer, int], CpuLayer]) -> nn.Module:
    """A copy of the model in eval mode, with what is made of each layer of its encoders in the place of that."""
    # deepcopy takes what its memo holds for an object in the place of a copy of it.
    memo = {}
    for module in model.modules():
        if isinstance(module, BertEncoder):
            for number, layer in enumerate(module.layers):
                if _is_plain(layer):
                    memo[id(layer)] = make(layer, number)
    return copy.deepcopy(model, memo).eval()


def _is_plain(layer: nn.Module) -> bool:
    """Whether a layer computes what encoder.Layer does, and nobody watches it."""
    linears = [getattr(layer, name, None) for name in PRODUCTS]
    return (
        type(layer) is Layer
        and layer.activation in FUSED
        and all(type(linear) is nn.Linear and linear.bias is not None for linear in linears)
        and not foreign(layer)
        and not {"before_attention", "behind_attention"} & vars(layer).keys()
    )


def can_be_shared(model: nn.Module | None) -> bool:
    """Whether threads may call a model at the same time: all of its layers are of ours and packed, nobody watches."""
    if model is None or not torch.backends.openmp.is_available():
        return False  # other pools of threads have one size for all who use them
    encoders = [module for module in model.modules() if isinstance(module, BertEncoder)]
    layers = [layer for encoder in encoders for layer in encoder.layers]
    return (
        bool(layers)
        and all(type(layer) is CpuLayer for layer in layers)
        and all(encoder.attention is None for encoder in encoders)
        and not foreign(model)
    )


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
