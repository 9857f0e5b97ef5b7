"""The fused kernels beside the layer that they stand for: on a GPU, or, where Triton is installed, in its interpreter:

TRITON_INTERPRET=1 python -m pytest tests/test_fused.py
"""

import os
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bertqa.data.batches import WindowStore
from bertqa.data.examples import read_examples
from bertqa.data.tokenizer import WordPiece
from bertqa.data.windows import build_windows
from bertqa.model.config import BertConfig
from bertqa.model.encoder import Layer
from bertqa.model.heads import BertForQuestionAnswering, span_loss
from bertqa.settings import LoopSettings, OptimSettings
from bertqa.training.capture import Plan
from bertqa.training.job import Job
from bertqa.training.progress import Progress
from bertqa.training.step import Step

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu" and "TRITON_INTERPRET" not in os.environ:
    pytest.skip("there is no NVIDIA GPU, and no TRITON_INTERPRET", allow_module_level=True)

from bertqa.model import fused, kernels  # noqa: E402
from bertqa.model.copies import WeightCopies  # noqa: E402
from bertqa.training.fused_update import FusedUpdate  # noqa: E402
from bertqa.training.gradients import Gradients  # noqa: E402

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


SEEDS = torch.tensor([1, 2], dtype=torch.int32, device=DEVICE)


def plain(layer):
    return layer.before_attention, layer.behind_attention


def fusing(layer):
    return partial(fused.before_attention, layer), partial(
        fused.behind_attention, layer, seeds=SEEDS
    )


def run(before, behind, like, *tensors):
    """Queries, keys and values, the layer's output, and the gradients of what goes in; the last two tensors are the
    gradients of these results."""
    x, mixed, pull, pull_qkv = (tensor.to(like.device, like.dtype) for tensor in tensors)
    x.requires_grad_()
    mixed.requires_grad_()
    *qkv, residual = before(x)
    y = behind(residual, mixed)
    torch.autograd.backward(
        [y, *qkv], [pull, *pull_qkv.unflatten(1, (3, *mixed.shape[1:])).unbind(1)]
    )
    return torch.stack(qkv, 1).flatten(1), y, x.grad, mixed.grad


def draw(width, dtype):
    shapes = [(width,), (4, width // 4), (width,), (3 * width,)]
    return [torch.randn(TOKENS, *shape).to(dtype) for shape in shapes]


@pytest.mark.parametrize(
    ("dtype", "most"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)], ids=["fp32", "bf16"]
)
@pytest.mark.parametrize("width", WIDTHS)
def test_a_layer_equals_float64(width, dtype, most):
    layer, exact = layer_of(width, dtype)
    tensors = draw(width, dtype)
    expected = run(*plain(exact), exact.qkv.weight, *tensors)
    found = run(*fusing(layer), layer.qkv.weight, *tensors)
    for one, two in zip(found, expected, strict=True):
        assert relative(one, two) < most
    for (name, one), two in zip(layer.named_parameters(), exact.parameters(), strict=True):
        assert relative(one.grad, two.grad) < most, name


def test_a_frozen_layer_passes_gradients_on():
    layer, exact = layer_of(48, torch.float32)
    layer.requires_grad_(False)
    tensors = draw(48, torch.float32)
    expected = run(*plain(exact), exact.qkv.weight, *tensors)
    found = run(*fusing(layer), layer.qkv.weight, *tensors)
    assert relative(found[2], expected[2]) < 1e-5
    assert all(weight.grad is None for weight in layer.parameters())


def test_biases_train_alone():
    layer, exact = layer_of(48, torch.float32)
    for name, weight in layer.named_parameters():
        weight.requires_grad_(name.endswith("bias"))
    tensors = draw(48, torch.float32)
    run(*plain(exact), exact.qkv.weight, *tensors)
    run(*fusing(layer), layer.qkv.weight, *tensors)
    for (name, one), two in zip(layer.named_parameters(), exact.parameters(), strict=True):
        if name.endswith("bias"):
            assert relative(one.grad, two.grad) < 1e-5, name
        else:
            assert one.grad is None, name


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_gradients_are_written_where_the_weights_want_them(micro_batches):
    """Autograd makes no copies of them, and what stays at home is not copied either."""
    layer, _ = layer_of(48, torch.bfloat16)
    weights = list(layer.parameters())
    gradients = Gradients([torch.nn.Parameter(weight.float()) for weight in weights], weights)
    gradients.make_homes()
    gradients.begin(micro_batches)
    run(*fusing(layer), layer.qkv.weight, *[tensor[:7] for tensor in draw(48, torch.bfloat16)])
    for weight in weights:
        is_there = weight.grad.data_ptr() == weight.grad_home.data_ptr()
        assert is_there == (weight.dim() == 2)
    expected = [weight.grad.clone() for weight in weights]
    gradients.collect(is_first=True)
    places = gradients.homes if micro_batches == 1 else gradients.parts
    for weight, place, found in zip(weights, places, expected, strict=True):
        assert weight.grad is None
        assert torch.equal(place, found.to(place.dtype)) and found.any()
    norm = torch.cat([found.flatten().float() for found in expected]).norm()
    assert relative(gradients.norm(), norm) < 1e-6


def test_stacked_queries_keys_values_and_their_sum():
    parts = torch.randn(3, TOKENS, 4, 12).to(torch.bfloat16)
    stacked, total = kernels.stack(*parts.to(DEVICE))
    expected = torch.cat([part.flatten(1) for part in parts], 1)
    assert torch.equal(stacked.cpu(), expected)
    assert total.dtype == torch.bfloat16
    assert relative(total, expected.double().sum(0)) < 5e-3  # rounded to 16 bits once


def test_dropout_is_the_same_in_both_directions():
    p, width = 0.3, 48
    tensors = [torch.randn(301, width, device=DEVICE) for _ in range(3)]
    product, residual, pull = tensors
    bias, gain, shift = torch.randn(3, width, device=DEVICE)
    seed = torch.tensor([7], dtype=torch.int32, device=DEVICE)
    out = kernels.norm(product, bias, residual, gain, shift, seed, p, 1e-5)

    # What it kept, read off its sum; the reference keeps the same.
    kept = (out.z - residual) / (product + bias) > 0.5
    assert abs(float(kept.float().mean()) - (1 - p)) < 0.02
    exact = [x.double().requires_grad_() for x in (product, bias, residual, gain, shift)]
    dropped = (exact[0] + exact[1]) * kept / (1 - p)
    y = F.layer_norm(exact[2] + dropped, (width,), exact[3], exact[4], 1e-5)
    y.backward(pull.double())

    assert relative(out.y, y) < 1e-5
    dz, dproduct, sums = kernels.norm_backward(pull, out.z, out.statistics, gain, seed, p)
    assert relative(dz, exact[2].grad) < 1e-5
    assert relative(dproduct, exact[0].grad) < 1e-5
    for found, expected in zip(sums, (exact[1], exact[3], exact[4]), strict=True):
        assert relative(found, expected.grad) < 1e-5


def test_another_seed_keeps_others():
    def kept(seed):
        seed = torch.tensor([seed], dtype=torch.int32, device=DEVICE)
        out = kernels.norm(ones, zeros, torch.zeros_like(ones), zeros, zeros, seed, 0.5, 1e-5)
        return (out.z > 0).flatten()

    ones = torch.ones(200, 48, device=DEVICE)
    zeros = torch.zeros(48, device=DEVICE)
    one, two = kept(1), kept(2)
    assert 0.45 < float((one == two).float().mean()) < 0.55
    rows = one.view(200, 48)
    assert 0.45 < float((rows[1:] == rows[:-1]).float().mean()) < 0.55


@pytest.mark.parametrize("at_home", [False, True])
def test_updates_are_those_of_adamw(at_home):
    """Clipped, with two groups, a weight without a copy, sizes that fill no block, a block or several; from gradients in
    float32, or where and as the backward pass wrote them."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(40, 30), torch.nn.LayerNorm(30)).to(DEVICE)
    extra = torch.nn.Parameter(torch.randn(3, 800, device=DEVICE))
    weights = [*module.parameters(), extra]
    exact = [torch.nn.Parameter(weight.detach().clone()) for weight in weights]

    def optimizer_of(weights, **more):
        matrices = [weight for weight in weights if weight.dim() > 1]
        vectors = [weight for weight in weights if weight.dim() == 1]
        groups = [
            {"params": matrices, "weight_decay": 0.1, "decay": 0.1},
            {"params": vectors, "weight_decay": 0.0, "decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.99), eps=1e-6, **more)

    optimizer = optimizer_of(weights)
    for group, rate in zip(optimizer.param_groups, (1e-2, 2e-2), strict=True):
        group["lr"] = torch.tensor(rate, device=DEVICE)
    for weight in weights:
        optimizer.state[weight] = {
            "step": torch.zeros((), device=DEVICE),
            "exp_avg": torch.zeros_like(weight),
            "exp_avg_sq": torch.zeros_like(weight),
        }
    expected = optimizer_of(exact)
    expected.param_groups[1]["lr"] = 2e-2

    copies = WeightCopies(module, torch.bfloat16)
    gradients = Gradients(weights, copies.of(weights))
    gradients.make_homes()
    gradients.begin(1 if at_home else 2)
    update = FusedUpdate(optimizer, gradients, copies, clip=1.0)
    for _ in range(3):
        places = gradients.homes if at_home else gradients.parts
        for weight, place in zip(exact, places, strict=True):
            place.copy_(torch.randn_like(weight))
            weight.grad = place.to(torch.float32, copy=True)
        norm = torch.nn.utils.clip_grad_norm_(exact, 1.0)
        expected.step()
        assert relative(update(), norm) < 1e-6
    for one, two in zip(weights, exact, strict=True):
        assert relative(one, two) < 1e-6
        assert (
            relative(optimizer.state[one]["exp_avg_sq"], expected.state[two]["exp_avg_sq"]) < 1e-5
        )
        assert optimizer.state[one]["step"] == 3
    for master, copy in zip(copies.masters, copies.copies, strict=True):
        rounded = master.to(torch.bfloat16)
        # The interpreter cuts where a GPU rounds.
        assert torch.equal(copy, rounded) if DEVICE == "cuda" else relative(copy, rounded) < 1e-2


class Asked:
    """In place of capture.Graphs: does the work each time, and keeps what it was known by."""

    def __init__(self, device, ranks):
        self.keys = []

    def run(self, key, work, keep=(), warm_up=True):
        self.keys.append(key)
        work()


def loss(model, batch, layout):
    logits = model(batch.input_ids, token_type_ids=batch.token_type_ids, lengths=layout)
    labels = batch.start_labels, batch.end_labels
    return span_loss(logits, layout, *labels, weights=batch.weights)


@pytest.fixture(scope="module")
def store(letters, tiny_model):
    examples = read_examples(letters).trainable()
    tokenizer = WordPiece.load(tiny_model)
    windows = build_windows(examples, tokenizer, max_length=32, overlap=4, max_question=8)
    return WindowStore(windows, DEVICE)


def two_steps(store, run, plan, micro_tokens):
    """(numbers (2, 2), AdamW's mean gradients in a row, the step) of two steps of two windows, one layer, no dropout."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=36,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=64,
        initializer_range=0.1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = BertForQuestionAnswering(config).to(DEVICE).train()
    task = SimpleNamespace(store=store, loss=loss, static_shapes=True)
    how = LoopSettings(batch_size=2, micro_tokens=micro_tokens), OptimSettings()
    job = Job(model, task, *how, run=run, device=torch.device(DEVICE), dtype=torch.bfloat16)
    step = Step(job, plan)
    numbers = []
    for rows in (np.array([0, 1]), np.array([2, 3])):
        numbers.append(step(rows, 1e-3, Progress()).numbers.read())
    means = [step.optimizer.state[weight]["exp_avg"].flatten() for weight in model.parameters()]
    return np.stack(numbers), torch.cat(means), step


@pytest.mark.parametrize("micro_tokens", [512, 32])
def test_fused_steps_are_the_plain_ones(monkeypatch, tmp_path, store, micro_tokens):
    """Of one micro-batch, whose gradients stay where they are, and of several."""
    monkeypatch.setattr("bertqa.training.step.Graphs", Asked)
    plain = Plan(static=True, copies=True)
    fused = Plan(static=True, captured=True, copies=True, fused=True)
    numbers, means, _ = two_steps(store, tmp_path, plain, micro_tokens)
    found, fused_means, step = two_steps(store, tmp_path, fused, micro_tokens)
    assert np.abs(found / numbers - 1).max() < 2e-2
    # Not the weights: where a gradient is rounding noise, as of key biases, AdamW makes whole steps of it.
    assert relative(fused_means, means) < 4e-2
    assert {key[-1] for key in step.graphs.keys} == {micro_tokens == 512}
    assert len(step.graphs.keys) == (
        4 if micro_tokens == 512 else 6
    )  # two steps, and their updates
    for master, copy in zip(step.copies.masters, step.copies.copies, strict=True):
        assert relative(copy, master) < 1e-2
