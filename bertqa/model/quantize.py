"""int8 on a CPU: the encoder's matrix products in 8-bit integers, everything else in float32 as before."""

import copy
import warnings

import torch
from torch import Tensor, nn

from bertqa.errors import UserError


class Int8Linear(nn.Module):
    """A Linear whose weights are int8 with a scale a row; its input is scaled to 8 bits anew in every call."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        weight = linear.weight.detach().float()                                    # (out, in)
        scale = weight.abs().amax(1).clamp(min=1e-8).double() / 127                # (out,)
        with warnings.catch_warnings():  # torch plans to move these tensor types elsewhere, and says so every time
            warnings.simplefilter("ignore")
            rounded = torch.quantize_per_channel(weight, scale, torch.zeros(len(weight), dtype=torch.int64), 0, torch.qint8)
        bias = None if linear.bias is None else linear.bias.detach().float()
        self.packed = torch.ops.quantized.linear_prepack(rounded, bias)
        # Without VNNI the processor adds pairs of products in 16 bits, which holds 7-bit inputs only.
        self.seven_bits = not torch.cpu._is_vnni_supported()

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.quantized.linear_dynamic(x.float(), self.packed, self.seven_bits)     # (N, in) -> (N, out)


def int8(model: nn.Module) -> nn.Module:
    """A copy of a model for inference on a CPU, with every Linear of its encoder in int8; the head keeps float32.

    The copy cannot be trained or saved. Measure what it costs on your own data before you rely on it.

    Raises:
        UserError: for a model on another device, and where this build of torch has no int8 products.
    """
    device = next(model.parameters()).device
    if device.type != "cpu":
        raise UserError(f"int8 is for CPUs, but the model is on {device}; use --device cpu, or leave out --int8")
    if torch.backends.quantized.engine == "none":
        raise UserError(f"int8: torch {torch.__version__} was built without int8 products for this processor; "
                        "leave out --int8")
    model = copy.deepcopy(model).eval()
    for parent in [module for module in getattr(model, "encoder", model).modules()]:
        for name, child in parent.named_children():
            if type(child) is nn.Linear:
                setattr(parent, name, Int8Linear(child))
    return model
