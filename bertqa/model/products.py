"""Products of a layer for inference on a CPU: weights laid out as oneDNN multiplies them, in float32, bf16 or int8.

Each stands in the place of a Linear and its activation, is called `product(x, onto=None)`, and returns
activation(x W^T + b) + onto. Forwards only. N tokens.
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
"""oneDNN's names of the activations that it computes inside of a product, and the kind of each."""


def has_packed_products() -> bool:
    """Whether this build of torch has the functions of oneDNN that its own compiler uses."""
    names = ("_reorder_linear_weight", "_linear_pointwise")
    return torch.backends.mkldnn.is_available() and all(
        hasattr(torch.ops.mkldnn, name) for name in names
    )


class PackedLinear(nn.Module):
    """A Linear whose weights lie in the blocks that oneDNN multiplies; as exact as the one it is made of.

    torch multiplies in float32 by MKL, which packs the weights anew in every call and on AMD's processors does without
    AVX-512; in bf16, autocast converts them anew for every batch.
    """

    def __init__(self, weight: Tensor, bias: Tensor, dtype: torch.dtype, activation=None):
        super().__init__()
        self.dtype = dtype
        self.activation = activation
        self.bias = bias.detach().to(dtype)
        # (out, in), in blocks
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach().to(dtype), None)

    def forward(self, x: Tensor, onto: Tensor | None = None) -> Tensor:
        """(N, in) -> (N, out), all of `dtype`."""
        _refuse_compilers()
        product = torch.ops.mkldnn._linear_pointwise
        if onto is not None:
            return product.binary(x, onto, self.weight, self.bias, "add")
        name, kind = FUSED[self.activation]
        return product(x, self.weight, self.bias, name, [], kind)

    def __reduce__(self):
        """Copied and pickled by its plain weights: the blocks cannot be."""
        weight = narrow(self.weight.to_dense())
        return PackedLinear, (weight, narrow(self.bias), self.dtype, self.activation)


def _refuse_compilers() -> None:
    """Raises UserError in torch.export and old versions of torch.compile; new ones leave to Python what raises."""
    if torch.compiler.is_compiling():
        raise UserError(
            "this model is packed for inference (as Reader.load, pack and int8 do), and cannot be compiled or exported; "
            "take bertqa.load(FOLDER)"
        )


# ---- int8 ----


class CalibratedLinear(nn.Module):
    """A Linear of int8 weights, a scale for each row, and uint8 inputs of a range that was measured before (ranges.py).

    One scale serves all inputs, so what comes out for a token does not depend on the tokens beside it. A few channels
    of BERT are many times as large as the others; a factor for each channel is moved from the inputs into the weights
    (SmoothQuant, Xiao et al. 2022), where the range is known for each.

    Args:
        reach: (2, in) or (2, 1): least and largest input, of each channel or of all.
        output: what it writes: torch.float32, torch.bfloat16, or the CalibratedLinear whose uint8 inputs these are.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        reach: Tensor,
        activation=None,
        output: "torch.dtype | CalibratedLinear" = torch.float32,
    ):
        super().__init__()
        weight = weight.detach().float()  # (out, in)
        self.activation = activation
        self.output = output
        self.bias = bias.detach().float()
        self.shrink = None
        if reach.shape[1] > 1:
            factor = smoothing(reach, weight)  # (in,)
            reach = reach / factor
            weight = weight * factor
            self.shrink = 1 / factor
        self.scale, self.zero = scale_of(reach)
        self.row_scale = scale_of_rows(weight)  # (out,)
        rounded = (weight / self.row_scale[:, None]).round().to(torch.int8)
        self.no_zeros = torch.zeros(len(weight), dtype=torch.int32)
        self.plain = rounded
        self.weight = torch.ops.onednn.qlinear_prepack(rounded, None)

    def __getstate__(self) -> dict:
        """Copied and pickled by its plain weights: the blocks cannot be."""
        return {name: value for name, value in vars(self).items() if name != "weight"}

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        self.weight = torch.ops.onednn.qlinear_prepack(self.plain, None)

    def forward(self, x: Tensor, onto: Tensor | None = None) -> Tensor:
        """(N, in) float32, or uint8 as the product before has written it -> (N, out)."""
        _refuse_compilers()
        if x.dtype != torch.uint8:
            x = self.rounded(x)
        quantised = x, self.scale, self.zero, self.weight, self.row_scale, self.no_zeros
        product = torch.ops.onednn.qlinear_pointwise
        if onto is not None:
            # It adds in place, to a tensor that may be kept: a hidden state.
            onto = onto.clone()
            return product.binary(
                *quantised, onto, self.bias, 1.0, 0, onto.dtype, 1.0, 0, "sum", 1.0, "none", [], ""
            )
        dtype, scale, zero = self.output, 1.0, 0
        if isinstance(self.output, CalibratedLinear):
            dtype, scale, zero = torch.uint8, self.output.scale, self.output.zero
        name, kind = FUSED[self.activation]
        return product(*quantised, self.bias, scale, zero, dtype, name, [], kind)

    def rounded(self, x: Tensor) -> Tensor:
        """(N, in) float32 -> uint8. What is beyond the measured range becomes its end."""
        if self.shrink is not None:
            x = x * self.shrink
        return to_uint8(x, self.scale, self.zero)


def smoothing(reach: Tensor, weight: Tensor) -> Tensor:
    """(2, in), (out, in) -> (in,) what to divide each input channel by, and to multiply its weights by.

    Half of the way, on a scale of powers, to inputs that all reach equally far (alpha 0.5 of the paper).
    """
    largest = reach.abs().amax(0).clamp(min=1e-5)
    return (largest / weight.abs().amax(0).clamp(min=1e-5)).sqrt()


def scale_of_rows(weight: Tensor) -> Tensor:
    """(out, in) -> (out,) what to divide each row by, so that its largest value becomes 127 or -127."""
    return weight.abs().amax(1).clamp(min=1e-8) / 127


def scale_of(reach: Tensor) -> tuple[float, int]:
    """Scale and zero point that take least and largest input to 0 and 255; 0 is always a whole step.

    -1 to 4.1 has a scale of 0.02 and a zero point of 50: -1 -> 0, 0 -> 50, 4.1 -> 255.
    """
    least = min(0.0, float(reach.min()))
    largest = max(0.0, float(reach.max()), least + 1e-5)
    scale = (largest - least) / 255
    return scale, round(-least / scale)


def to_uint8(x: Tensor, scale: float, zero: int) -> Tensor:
    """x / scale + zero, rounded, within 0 and 255."""
    if not hasattr(torch, "quantize_per_tensor"):
        return (x / scale + zero).round_().clamp_(0, 255).to(torch.uint8)
    # The one function of torch that does all of it in a pass. Its kind of tensor is on its way out; only the bytes are
    # taken, where they lie (its own `int_repr` would take six times as long as the rounding).
    rounded = torch.quantize_per_tensor(x, scale, zero, torch.quint8)
    bytes_alone = torch.empty(0, dtype=torch.uint8)
    return bytes_alone.set_(rounded.untyped_storage(), 0, x.shape, rounded.stride())


@functools.cache
def has_calibrated_products() -> bool:
    """Whether this processor and this build of torch multiply uint8 by int8 at full speed, and right: tried once.

    Without VNNI the processor adds pairs of products in 16 bits, which overflow.
    """
    if not torch.backends.mkldnn.is_available() or not torch.cpu._is_vnni_supported():
        return False
    weight = torch.tensor([[127.0, -127.0], [64.0, 127.0]])
    x = torch.tensor([[255.0, 255.0], [255.0, 0.0]])
    with warnings.catch_warnings():
        # torch says once that quantized tensors will go; see to_uint8
        warnings.simplefilter("ignore")
        try:
            linear = CalibratedLinear(weight, torch.zeros(2), torch.tensor([[0.0], [255.0]]))
            found = linear(x, onto=torch.zeros(2, 2))
        except (AttributeError, NotImplementedError, RuntimeError, TypeError):
            return False
    return torch.allclose(found, x @ weight.T, rtol=1e-5)


class TokenwiseLinear(nn.Module):
    """A Linear of int8 weights, a scale for each row, whose inputs have a scale for each token: nothing to be measured
    before, for twice the time of a CalibratedLinear.

    torch's product knows one scale for all of its input, which a single token with large values would make too coarse
    for the others: so each token is divided by its largest value before, and multiplied by it behind.
    """

    def __init__(self, weight: Tensor, bias: Tensor, activation=None):
        super().__init__()
        self.packed = torch.ops.quantized.linear_prepack(_rounded(weight.detach().float()), None)
        self.bias = bias.detach().float()
        self.activation = activation
        # Without VNNI the processor adds pairs of products in 16 bits, which holds 7-bit inputs only.
        self.seven_bits = not torch.cpu._is_vnni_supported()

    def forward(self, x: Tensor, onto: Tensor | None = None) -> Tensor:
        """(N, in) -> (N, out), float32."""
        largest = x.abs().amax(1, keepdim=True).clamp(min=1e-8)  # (N, 1)
        # A last row that reaches from -1 to 1, whatever the tokens are: torch takes its scale from all rows.
        scaled = x.new_zeros(len(x) + 1, x.shape[1])
        torch.div(x, largest, out=scaled[:-1])
        scaled[-1, 0] = -1
        scaled[-1, -1] = 1
        products = torch.ops.quantized.linear_dynamic(scaled, self.packed, self.seven_bits)[:-1]
        product = torch.addcmul(self.bias, products, largest)
        if self.activation is not None:
            product = self.activation(product)
        return product if onto is None else product + onto


def _rounded(weight: Tensor) -> Tensor:
    """(out, in) float32 -> int8, each row divided by a scale of its own."""
    scale = scale_of_rows(weight.double())  # (out,)
    zero = torch.zeros(len(weight), dtype=torch.int64)
    with warnings.catch_warnings():
        # torch plans to move these tensor types elsewhere, and says so every time
        warnings.simplefilter("ignore")
        return torch.quantize_per_channel(weight, scale, zero, 0, torch.qint8)


def narrow(tensor: Tensor) -> Tensor:
    """The tensor in float16 or bfloat16 where that loses nothing, else as it is."""
    if tensor.dtype == torch.float32:
        for dtype in (torch.float16, torch.bfloat16):
            short = tensor.to(dtype)
            if torch.equal(short.float(), tensor):
                return short
    return tensor
