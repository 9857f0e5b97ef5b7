"""Copies of a model for inference: its products laid out for this CPU, or in int8; and slim, to be sent elsewhere.

`pack` and `int8` replace every Linear of the copy's encoder. What they put there computes forwards only.
"""

import copy
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from bertqa.errors import UserError


class _ForwardOnly(torch.autograd.Function):
    """Passes a product on; asking for a gradient through it raises, where torch would go on with a false one."""

    @staticmethod
    def forward(ctx, x: Tensor, product: Tensor) -> Tensor:
        return product.view_as(product)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        raise UserError(
            "gradient: this model's products are packed for inference (as Reader.load, pack and int8 do), and know no "
            "gradient; load one that can be trained: bertqa.load(FOLDER)"
        )


def forward_only(x: Tensor, product: Tensor) -> Tensor:
    """The product of an input `x`, which must not be asked for its gradient."""
    if torch.is_grad_enabled() and x.requires_grad:
        return _ForwardOnly.apply(x, product.detach())
    return product


class PackedLinear(nn.Module):
    """A Linear whose weights lie in the blocks that oneDNN multiplies; as exact as the one it is made of."""

    def __init__(self, weight: Tensor, bias: Tensor, dtype: torch.dtype):
        super().__init__()
        self.dtype = dtype
        self.bias = bias.detach().to(dtype)
        # (out, in), in blocks
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach().to(dtype), None)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in) -> (N, out)."""
        product = torch.ops.mkldnn._linear_pointwise(
            x.to(self.dtype), self.weight, self.bias, "none", [], ""
        )
        return forward_only(x, product)

    def __reduce__(self):
        """Copied and pickled by its plain weights: the blocks cannot be."""
        return PackedLinear, (narrow(self.weight.to_dense()), narrow(self.bias), self.dtype)


class Int8Linear(nn.Module):
    """A Linear whose weights are int8 with a scale a row, and so is its input, anew in every call.

    torch's product knows one scale for all of the input, which a single token with large values would make too coarse for
    the others: so each token is divided by its largest value before, and multiplied by it behind. That leaves two fifths of
    the error in the logits of the bundled reader.
    """

    def __init__(self, linear: nn.Linear):
        super().__init__()
        weight = linear.weight.detach().float()  # (out, in)
        self.packed = torch.ops.quantized.linear_prepack(_rounded(weight), None)
        self.bias = linear.bias.detach().float()
        # Without VNNI the processor adds pairs of products in 16 bits, which holds 7-bit inputs only.
        self.seven_bits = not torch.cpu._is_vnni_supported()

    def forward(self, x: Tensor) -> Tensor:
        """(N, in) -> (N, out)."""
        x = x.float()
        largest = x.abs().amax(1, keepdim=True).clamp(min=1e-8)  # (N, 1)
        products = torch.ops.quantized.linear_dynamic(x / largest, self.packed, self.seven_bits)
        return forward_only(x, torch.addcmul(self.bias, products, largest))


def _rounded(weight: Tensor) -> Tensor:
    """(out, in) float32 -> int8, each row divided by a scale of its own that takes its largest value to 127."""
    scale = weight.abs().amax(1).clamp(min=1e-8).double() / 127  # (out,)
    zero = torch.zeros(len(weight), dtype=torch.int64)
    with warnings.catch_warnings():
        # torch plans to move these tensor types elsewhere, and says so every time
        warnings.simplefilter("ignore")
        return torch.quantize_per_channel(weight, scale, zero, 0, torch.qint8)


def pack(model: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A copy of a model for inference with the Linears of its encoder packed; the model itself where that is of no use.

    torch multiplies in float32 by MKL, which packs the weights anew in every call and on AMD's processors does without
    AVX-512; in bf16, autocast converts them anew for every batch. The copy cannot be trained or saved.

    Args:
        dtype: of the products: torch.float32, or torch.bfloat16 for a model that is called under autocast to it.
    """
    on_cpu = next(model.parameters()).device.type == "cpu"
    is_float32 = all(parameter.dtype == torch.float32 for parameter in model.parameters())
    if not on_cpu or not is_float32 or not _is_faster_packed(dtype) or not _has_onednn():
        return model
    return _with_linears(model, lambda linear: PackedLinear(linear.weight, linear.bias, dtype))


def _is_faster_packed(dtype: torch.dtype) -> bool:
    """Whether this processor multiplies packed weights of that type faster than torch does plain ones."""
    if dtype == torch.float32:
        return torch.backends.cpu.get_cpu_capability().startswith("AVX")
    return dtype == torch.bfloat16 and torch.cpu._is_avx512_bf16_supported()


def int8(model: nn.Module) -> nn.Module:
    """A copy of a model for inference on a CPU, with every Linear of its encoder in int8; the head keeps float32.

    The copy cannot be trained or saved. Measure what it costs on your own data before you rely on it.

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
    return _with_linears(model, Int8Linear)


def _with_linears(model: nn.Module, make: Callable[[nn.Linear], nn.Module]) -> nn.Module:
    """A copy of the model in eval mode, with something made of each Linear of its encoder in the place of that."""
    encoder = getattr(model, "encoder", model)
    # deepcopy takes what its memo holds for an object in the place of a copy of it.
    memo = {id(part): make(part) for part in encoder.modules() if type(part) is nn.Linear}
    return copy.deepcopy(model, memo).eval()


def _has_onednn() -> bool:
    """Whether this build of torch has the two functions of oneDNN that its own compiler uses."""
    names = ("_reorder_linear_weight", "_linear_pointwise")
    return torch.backends.mkldnn.is_available() and all(
        hasattr(torch.ops.mkldnn, name) for name in names
    )


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
