"""Products for inference on a CPU: Linear layers whose weights lie as oneDNN multiplies them, in float32, bf16 or int8.

A product replaces a Linear and the activation after it: `product(x, onto=None)` returns activation(x W^T + b), plus the
residual `onto` where one is given. None of them has a backward pass. N tokens.
"""

import functools
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bertqa.errors import UserError
from bertqa.model.encoder import gelu_tanh

FUSED = {
    None: ("none", ""),
    F.gelu: ("gelu", "none"),
    gelu_tanh: ("gelu", "tanh"),
    F.relu: ("relu", ""),
}
"""oneDNN's name and algorithm of each activation that it computes inside a product."""


def has_packed_products() -> bool:
    """Whether this build of torch has oneDNN's packed products (private functions of torch, used by its compiler)."""
    if not torch.backends.mkldnn.is_available():
        return False
    names = ("_reorder_linear_weight", "_linear_pointwise")
    return all(hasattr(torch.ops.mkldnn, name) for name in names)


class PackedLinear(nn.Module):
    """A Linear whose weights are packed once, in oneDNN's blocked layout; as exact as the original.

    torch's own Linear uses MKL in float32, which packs the weights in every call and does not use AVX-512 on AMD's
    processors; in bf16, autocast converts the weights for every batch.
    """

    def __init__(self, weight: Tensor, bias: Tensor, dtype: torch.dtype, activation=None):
        super().__init__()
        self.dtype = dtype
        self.activation = activation
        self.bias = bias.detach().to(dtype)
        # (out, in), in oneDNN's layout
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach().to(dtype), None)

    def forward(self, x: Tensor, onto: Tensor | None = None) -> Tensor:
        """(N, in) -> (N, out), input and result of `self.dtype`."""
        _refuse_compilers()
        product = torch.ops.mkldnn._linear_pointwise
        if onto is not None:
            return product.binary(x, onto, self.weight, self.bias, "add")
        name, kind = FUSED[self.activation]
        return product(x, self.weight, self.bias, name, [], kind)

    def __reduce__(self):
        """Copy and pickle the plain weights, since packed ones cannot be."""
        weight = narrow(self.weight.to_dense())
        return PackedLinear, (weight, narrow(self.bias), self.dtype, self.activation)


def _refuse_compilers() -> None:
    """Raise a UserError in torch.export and old torch.compile; newer ones run a function that raises in plain Python."""
    if torch.compiler.is_compiling():
        raise UserError(
            "this model is packed for inference (as Reader.load, pack and int8 do), and cannot be compiled or exported; "
            "take bertqa.load(FOLDER)"
        )


# ---- int8: y = (x_int8 * x_scale) (W_int8 * row_scale)^T + b ----


class CalibratedLinear(nn.Module):
    """A Linear with int8 weights, one scale per row, and uint8 inputs, whose range was measured beforehand (ranges.py).

    All inputs share one scale, so the result for a token does not depend on the other tokens. A few channels of BERT's
    activations are many times larger than the others; where the range of each channel is known, a factor per channel is
    moved from the inputs to the weights (SmoothQuant, Xiao et al. 2022).

    Args:
        bounds: (2, in) or (2, 1): smallest and largest input, per channel or overall.
        output: type of the result: torch.float32, torch.bfloat16, or the CalibratedLinear that takes it as uint8 inputs.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        bounds: Tensor,
        activation=None,
        output: "torch.dtype | CalibratedLinear" = torch.float32,
    ):
        super().__init__()
        weight = weight.detach().float()  # (out, in)
        self.activation = activation
        self.output = output
        self.bias = bias.detach().float()
        self.shrink = None
        if bounds.shape[1] > 1:
            factor = smoothing(bounds, weight)  # (in,)
            bounds = bounds / factor
            weight = weight * factor
            self.shrink = 1 / factor
        self.scale, self.zero = scale_of(bounds)
        self.row_scale = scale_of_rows(weight)  # (out,)
        rounded = (weight / self.row_scale[:, None]).round().to(torch.int8)
        self.row_zeros = torch.zeros(len(weight), dtype=torch.int32)
        self.plain = rounded
        self.weight = torch.ops.onednn.qlinear_prepack(rounded, None)

    def __getstate__(self) -> dict:
        """Copy and pickle the plain int8 weights, since packed ones cannot be."""
        return {name: value for name, value in vars(self).items() if name != "weight"}

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        self.weight = torch.ops.onednn.qlinear_prepack(self.plain, None)

    def forward(self, x: Tensor, onto: Tensor | None = None) -> Tensor:
        """(N, in) float32, or uint8 from a product whose `output` is this one -> (N, out)."""
        _refuse_compilers()
        if x.dtype != torch.uint8:
            x = self.rounded(x)
        # each with scale and zero point
        quantised = x, self.scale, self.zero, self.weight, self.row_scale, self.row_zeros
        product = torch.ops.onednn.qlinear_pointwise
        if onto is not None:
            # oneDNN adds in place, but `onto` may be a hidden state that the caller keeps.
            onto = onto.clone()
            # result: scale 1, zero point 0, dtype; `onto`: scale 1, zero point 0; then what to do with them
            return product.binary(
                *quantised, onto, self.bias, 1.0, 0, onto.dtype, 1.0, 0, "sum", 1.0, "none", [], ""
            )
        dtype = self.output
        scale = 1.0
        zero = 0
        if isinstance(self.output, CalibratedLinear):
            dtype = torch.uint8
            scale = self.output.scale
            zero = self.output.zero
        name, kind = FUSED[self.activation]
        return product(*quantised, self.bias, scale, zero, dtype, name, [], kind)

    def rounded(self, x: Tensor) -> Tensor:
        """Quantise (N, in) float32 to uint8. Inputs beyond the measured range are clipped to it."""
        if self.shrink is not None:
            x = x * self.shrink
        return to_uint8(x, self.scale, self.zero)


def smoothing(bounds: Tensor, weight: Tensor) -> Tensor:
    """Return SmoothQuant's factors (in,), by which inputs are divided and weights (out, in) multiplied; alpha is 0.5.

    sqrt(largest input / largest weight) of each channel makes the two equally large.
    """
    largest = bounds.abs().amax(0).clamp(min=1e-5)
    return (largest / weight.abs().amax(0).clamp(min=1e-5)).sqrt()


def scale_of_rows(weight: Tensor) -> Tensor:
    """(out, in) -> (out,) scale of each row: divided by it, the row's largest weight becomes 127 or -127."""
    return weight.abs().amax(1).clamp(min=1e-8) / 127


def scale_of(bounds: Tensor) -> tuple[float, int]:
    """Return the scale and the zero point that map the smallest input to 0 and the largest to 255.

    -1 to 4.1 has scale 0.02 and zero point 50: -1 -> 0, 0 -> 50, 4.1 -> 255. An input of 0 is always exact.
    """
    least = min(0.0, float(bounds.min()))
    largest = max(0.0, float(bounds.max()), least + 1e-5)
    scale = (largest - least) / 255
    return scale, round(-least / scale)


def to_uint8(x: Tensor, scale: float, zero: int) -> Tensor:
    """Return x / scale + zero, rounded and clipped to 0 .. 255."""
    if not hasattr(torch, "quantize_per_tensor"):
        return (x / scale + zero).round_().clamp_(0, 255).to(torch.uint8)
    # The only function of torch that does this in one pass. Its quantized tensor type is deprecated, so only the bytes
    # are used, without a copy (`int_repr` copies, which takes six times as long as the rounding).
    quantised = torch.quantize_per_tensor(x, scale, zero, torch.quint8)
    plain = torch.empty(0, dtype=torch.uint8)
    return plain.set_(quantised.untyped_storage(), 0, x.shape, quantised.stride())


@functools.cache
def has_calibrated_products() -> bool:
    """Whether CalibratedLinear is fast and correct with this processor and this build of torch; tried once.

    A processor without VNNI adds pairs of products in 16 bits, which overflow.
    """
    if not torch.backends.mkldnn.is_available() or not torch.cpu._is_vnni_supported():
        return False
    weight = torch.tensor([[127.0, -127.0], [64.0, 127.0]])
    x = torch.tensor([[255.0, 255.0], [255.0, 0.0]])
    with warnings.catch_warnings():
        # torch warns that quantized tensors are deprecated; see to_uint8.
        warnings.simplefilter("ignore")
        try:
            linear = CalibratedLinear(weight, torch.zeros(2), torch.tensor([[0.0], [255.0]]))
            found = linear(x, onto=torch.zeros(2, 2))
        except (AttributeError, NotImplementedError, RuntimeError, TypeError):
            return False
    return torch.allclose(found, x @ weight.T, rtol=1e-5)


class TokenwiseLinear(nn.Module):
    """A Linear with int8 weights, one scale per row, and int8 inputs, one scale per token.

    Needs no measured ranges, but takes twice as long as a CalibratedLinear. torch's dynamic product has a single scale for
    all tokens, which one token with large values would make too coarse for the others. So each token is divided by its
    largest value before the product, and the result multiplied by it.
    """

    def __init__(self, weight: Tensor, bias: Tensor, activation=None):
        super().__init__()
        self.packed = torch.ops.quantized.linear_prepack(_int8_rows(weight.detach().float()), None)
        self.bias = bias.detach().float()
        self.activation = activation
        # Without VNNI pairs of products are added in 16 bits, which overflow unless inputs have 7 bits.
        self.seven_bits = not torch.cpu._is_vnni_supported()

    def forward(self, x: Tensor, onto: Tensor | None = None) -> Tensor:
        """(N, in) -> (N, out), float32."""
        largest = x.abs().amax(1, keepdim=True).clamp(min=1e-8)  # (N, 1)
        # torch computes its scale from all rows; an additional row from -1 to 1 makes it the same for any tokens.
        scaled = x.new_zeros(len(x) + 1, x.shape[1])
        torch.div(x, largest, out=scaled[:-1])
        scaled[-1, 0] = -1
        scaled[-1, -1] = 1
        products = torch.ops.quantized.linear_dynamic(scaled, self.packed, self.seven_bits)[:-1]
        result = torch.addcmul(self.bias, products, largest)
        if self.activation is not None:
            result = self.activation(result)
        return result if onto is None else result + onto


def _int8_rows(weight: Tensor) -> Tensor:
    """Quantise weights (out, in) from float32 to int8, with a scale for each row."""
    scale = scale_of_rows(weight.double())  # (out,)
    zero = torch.zeros(len(weight), dtype=torch.int64)
    with warnings.catch_warnings():
        # torch warns that quantized tensors are deprecated.
        warnings.simplefilter("ignore")
        return torch.quantize_per_channel(weight, scale, zero, 0, torch.qint8)


def narrow(tensor: Tensor) -> Tensor:
    """Return a float32 tensor in float16 or bfloat16 if that is exact, else as it is."""
    if tensor.dtype == torch.float32:
        for dtype in (torch.float16, torch.bfloat16):
            narrowed = tensor.to(dtype)
            if torch.equal(narrowed.float(), tensor):
                return narrowed
    return tensor
