"""The fused kernels beside the layer that they stand for: on a GPU, or, where Triton is installed, in its interpreter:

TRITON_INTERPRET=1 python -m pytest tests/test_fused.py
"""

import os

import pytest
import torch
import torch.nn.functional as F

from bertqa.model.config import BertConfig
from bertqa.model.encoder import Layer

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu" and "TRITON_INTERPRET" not in os.environ:
    pytest.skip("there is no NVIDIA GPU, and no TRITON_INTERPRET", allow_module_level=True)

from bertqa.model import fused  # noqa: E402

pytestmark = [pytest.mark.gpu] if DEVICE == "cuda" else []

WIDTHS = [48, 384, 768, 1024] if DEVICE == "cuda" else [48]
TOKENS = 1029 if DEVICE == "cuda" else 37


def relative(found, expected) -> float:
    found, expected = found.detach().double().cpu(), expected.detach().double().cpu()
    return float((found - expected).norm() / expected.norm())


def layer_of(width, dtype):
    """A layer with random weights, and the same one in float64 on the CPU."""
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=width,
        num_attention_heads=4,
        intermediate_size=2 * width,
        num_hidden_layers=1,
        hidden_dropout_prob=0.0,
    )
    layer = Layer(config)
    for weight in layer.parameters():
        weight.data.normal_(std=2 / width**0.5)
    exact = Layer(config).double()
    layer = layer.to(DEVICE, dtype)
    exact.load_state_dict(layer.state_dict())
    return layer, exact


def run(behind_attention, like, *tensors):
    """What it returns of copies of the tensors, and the gradients of the copies; the last tensor is the gradient of the result."""
    device, dtype = like.device, like.dtype
    x, mixed, pull = (tensor.to(device, dtype) for tensor in tensors)
    x.requires_grad_()
    mixed.requires_grad_()
    y = behind_attention(x, mixed)
    y.backward(pull)
    return y, x.grad, mixed.grad


@pytest.mark.parametrize(
    ("dtype", "most"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)], ids=["fp32", "bf16"]
)
@pytest.mark.parametrize("width", WIDTHS)
def test_a_layer_equals_float64(width, dtype, most):
    layer, exact = layer_of(width, dtype)
    tensors = [torch.randn(TOKENS, width), torch.randn(TOKENS, 4, width // 4)]
    tensors = [tensor.to(dtype) for tensor in [*tensors, torch.randn(TOKENS, width)]]
    seeds = torch.tensor([1, 2], dtype=torch.int32, device=DEVICE)

    expected = run(exact.behind_attention, exact.ffn_in.weight, *tensors)
    found = run(
        lambda x, mixed: fused.behind_attention(layer, x, mixed, seeds),
        layer.ffn_in.weight,
        *tensors,
    )
    for one, two in zip(found, expected, strict=True):
        assert relative(one, two) < most
    for (name, one), (_, two) in zip(
        layer.named_parameters(), exact.named_parameters(), strict=True
    ):
        if not name.startswith("qkv"):
            assert relative(one.grad, two.grad) < most, name


def test_a_frozen_layer_passes_gradients_on():
    layer, exact = layer_of(48, torch.float32)
    layer.requires_grad_(False)
    tensors = [torch.randn(TOKENS, 48), torch.randn(TOKENS, 4, 12), torch.randn(TOKENS, 48)]
    seeds = torch.tensor([1, 2], dtype=torch.int32, device=DEVICE)
    expected = run(exact.behind_attention, exact.ffn_in.weight, *tensors)
    found = run(
        lambda x, mixed: fused.behind_attention(layer, x, mixed, seeds),
        layer.ffn_in.weight,
        *tensors,
    )
    assert relative(found[1], expected[1]) < 1e-5
    assert all(weight.grad is None for weight in layer.parameters())


def test_dropout_is_the_same_in_both_directions():
    p, width = 0.3, 48
    tensors = [torch.randn(301, width, device=DEVICE) for _ in range(3)]
    product, residual, pull = tensors
    bias, gain, shift = torch.randn(3, width, device=DEVICE)
    seed = torch.tensor([7], dtype=torch.int32, device=DEVICE)
    out = fused.norm(product, bias, residual, gain, shift, seed, p, 1e-5)

    # What it kept, read off its sum; the reference keeps the same.
    kept = (out.z - residual) / (product + bias) > 0.5
    assert abs(float(kept.float().mean()) - (1 - p)) < 0.02
    exact = [x.double().requires_grad_() for x in (product, bias, residual, gain, shift)]
    dropped = (exact[0] + exact[1]) * kept / (1 - p)
    y = F.layer_norm(exact[2] + dropped, (width,), exact[3], exact[4], 1e-5)
    y.backward(pull.double())

    assert relative(out.y, y) < 1e-5
    dz, dproduct, sums = fused.norm_backward(pull, out.z, out.statistics, gain, seed, p)
    assert relative(dz, exact[2].grad) < 1e-5
    assert relative(dproduct, exact[0].grad) < 1e-5
    for found, expected in zip(sums, (exact[1], exact[3], exact[4]), strict=True):
        assert relative(found, expected.grad) < 1e-5


def test_another_seed_keeps_others():
    def kept(seed):
        seed = torch.tensor([seed], dtype=torch.int32, device=DEVICE)
        out = fused.norm(ones, zeros, torch.zeros_like(ones), zeros, zeros, seed, 0.5, 1e-5)
        return (out.z > 0).flatten()

    ones = torch.ones(200, 48, device=DEVICE)
    zeros = torch.zeros(48, device=DEVICE)
    one, two = kept(1), kept(2)
    assert 0.45 < float((one == two).float().mean()) < 0.55
    rows = one.view(200, 48)
    assert 0.45 < float((rows[1:] == rows[:-1]).float().mean()) < 0.55
