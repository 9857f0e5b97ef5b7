"""Copies of a model for inference on a CPU, whose layers are made of faster products in float32, bf16 or int8.

"Product" is short for a Linear, its bias and the activation after it. Also: narrow copies to send to other processes.
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
    """Return a copy of a model for inference with the products of its layers packed; the model itself if that gains nothing.

    The copy cannot be trained or saved. Layers of the user's own, or with hooks, are not packed.

    Args:
        dtype: of the products: torch.float32, or torch.bfloat16 for a model that is called under autocast to bf16.
    """
    on_cpu = next(model.parameters()).device.type == "cpu"
    is_float32 = all(parameter.dtype == torch.float32 for parameter in model.parameters())
    if not on_cpu or not is_float32 or not _is_faster_packed(dtype) or not has_packed_products():
        return model

    def make_product(linear: nn.Linear, activation) -> PackedLinear:
        return PackedLinear(linear.weight, linear.bias, dtype, activation)

    def make_layer(layer: Layer, name: str) -> CpuLayer:
        return CpuLayer(layer, _products(layer, make_product), dtype)

    return _with_layers(model, make_layer)


def _is_faster_packed(dtype: torch.dtype) -> bool:
    """Whether this processor multiplies packed weights of this dtype faster than plain ones."""
    if dtype == torch.float32:
        return torch.backends.cpu.get_cpu_capability().startswith("AVX")
    return dtype == torch.bfloat16 and torch.cpu._is_avx512_bf16_supported()


def int8(model: nn.Module, ranges: Ranges | None = None) -> nn.Module:
    """Return a copy of a model for inference on a CPU with the products of its layers in int8; the head stays in float32.

    The copy cannot be trained or saved. Measure the loss of accuracy on your own data before you rely on it. The result
    for a text does not depend on the other texts in its batch, bit for bit.

    Args:
        ranges: of the products' inputs (ranges.py). Without them, or on a processor without VNNI, each token is scaled
            by itself in every product, which takes about twice as long.

    Raises:
        UserError: if the model is not on the CPU, this build of torch has no int8 products, or the weights of a layer are
            not finite float32 numbers.
    """
    _refuse_without_int8(next(model.parameters()).device)
    is_calibrated = ranges is not None and has_calibrated_products()

    def make_layer(layer: Layer, name: str) -> CpuLayer:
        _refuse_weights(layer, name)
        if is_calibrated:
            bounds = {product: ranges[f"{name}.{product}"] for product in PRODUCTS}
            return _calibrated(layer, bounds)
        return CpuLayer(layer, _products(layer, _tokenwise), torch.float32)

    copied = _with_layers(model, make_layer)
    left = sum(isinstance(module, Layer) for module in copied.modules())
    if left:
        warnings.warn(
            f"int8: {left} layers are of one's own, or have a hook; they stay in float32",
            stacklevel=2,
        )
    return copied


def _refuse_without_int8(device: torch.device) -> None:
    """Raise a UserError for a device or a build of torch that has no int8 products."""
    if device.type != "cpu":
        raise UserError(
            f"int8 is for CPUs, but the model is on {device}; use --device cpu, or leave out --int8"
        )
    if torch.backends.quantized.engine == "none":
        raise UserError(
            f"int8: torch {torch.__version__} was built without int8 products for this processor; "
            "leave out --int8"
        )


def _refuse_weights(layer: Layer, layer_name: str) -> None:
    """Raise a UserError for a layer with a parameter that is not float32, or NaN or infinite somewhere."""
    for name, parameter in layer.named_parameters():
        where = f"{layer_name}.{name}"
        if parameter.dtype != torch.float32:
            dtype = str(parameter.dtype).removeprefix("torch.")
            raise UserError(
                f"int8 is made of float32 weights, but {where} is {dtype}; convert the model first: model.float(), for "
                'a folder save("NEW", load("FOLDER", dtype="fp32"))'
            )
        if not parameter.isfinite().all():
            raise UserError(
                f"int8: {where} has NaN or infinite numbers, so the model is of no use: train or convert it again"
            )


def _tokenwise(linear: nn.Linear, activation) -> TokenwiseLinear:
    """Return the int8 product of a Linear that scales each token by itself."""
    return TokenwiseLinear(linear.weight, linear.bias, activation)


def _products(layer: Layer, make: Callable[..., nn.Module]) -> dict[str, nn.Module]:
    """Return the products of a layer by name, each made by `make(linear, activation)`."""
    activations = {"ffn_in": layer.activation}
    return {name: make(getattr(layer, name), activations.get(name)) for name in PRODUCTS}


def _calibrated(layer: Layer, bounds: Ranges) -> CpuLayer:
    """Return the layer in int8 by measured ranges; `bounds` has that of each product."""
    qkv_dtype = torch.float32
    if torch.cpu._is_avx512_bf16_supported():
        qkv_dtype = torch.bfloat16  # so that attention computes in bf16

    def product(name: str, activation=None, output=torch.float32) -> CalibratedLinear:
        linear = getattr(layer, name)
        return CalibratedLinear(linear.weight, linear.bias, bounds[name], activation, output)

    ffn_out = product("ffn_out")
    products = {
        "qkv": product("qkv", output=qkv_dtype),
        "attention_out": product("attention_out"),
        # Its result is rounded inside the kernel to the uint8 inputs of the next product.
        "ffn_in": product("ffn_in", layer.activation, output=ffn_out),
        "ffn_out": ffn_out,
    }
    return CpuLayer(layer, products, torch.float32)


def _with_layers(model: nn.Module, make: Callable[[Layer, str], CpuLayer]) -> nn.Module:
    """Return a copy of the model in eval mode, each plain layer of its encoders replaced by `make(layer, "layers.0")`."""
    # deepcopy takes an object's entry in its memo, if there is one, for the copy of that object.
    memo = {}
    for module in model.modules():
        if isinstance(module, BertEncoder):
            for number, layer in enumerate(module.layers):
                if _is_plain(layer):
                    memo[id(layer)] = make(layer, f"layers.{number}")
    return copy.deepcopy(model, memo).eval()


def _is_plain(layer: nn.Module) -> bool:
    """Whether a layer computes what encoder.Layer does: not a class of the user's, no hooks, no replaced methods."""
    linears = [getattr(layer, name, None) for name in PRODUCTS]
    return (
        type(layer) is Layer
        and layer.activation in FUSED
        and all(type(linear) is nn.Linear and linear.bias is not None for linear in linears)
        and not foreign(layer)
        and not {"before_attention", "behind_attention"} & vars(layer).keys()
    )


def can_be_shared(model: nn.Module | None) -> bool:
    """Whether several threads may call a model at once: all of its layers are packed, and no code is the user's."""
    # Without OpenMP torch.set_num_threads is not per thread.
    if model is None or not torch.backends.openmp.is_available():
        return False
    encoders = [module for module in model.modules() if isinstance(module, BertEncoder)]
    layers = [layer for encoder in encoders for layer in encoder.layers]
    return (
        bool(layers)
        and all(type(layer) is CpuLayer for layer in layers)
        and all(encoder.attention is None for encoder in encoders)
        and not foreign(model)
    )


def slim(model: nn.Module) -> tuple[nn.Module, list[str]]:
    """Return a copy of a model whose parameters are stored in 16 bits where that is exact, and their names."""
    model = copy.deepcopy(model)
    names = []
    for name, parameter in model.named_parameters():
        narrowed = narrow(parameter.data)
        if narrowed.dtype != parameter.dtype:
            parameter.data = narrowed
            names.append(name)
    return model, names


def widen(model: nn.Module, names: list[str]) -> nn.Module:
    """Convert these parameters of a model to float32 again, and return the model."""
    for name in names:
        parameter = model.get_parameter(name)
        parameter.data = parameter.data.float()
    return model
