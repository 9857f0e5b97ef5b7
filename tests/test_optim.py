"""The knobs that decide an update, against values computed by hand."""

import math

import pytest
import torch
import torch.nn.functional as F

from bertqa.errors import UserError
from bertqa.model import folder
from bertqa.model.attention import Layout
from bertqa.model.heads import BertForSequenceClassification, SpanLogits, span_loss
from bertqa.settings import OptimSettings, broken
from bertqa.training.optim import Average, depth_of, freeze, lr_at, make_optimizer, set_lr

CPU = torch.device("cpu")


class Pair(torch.nn.Module):
    """One weight that is trained and one that is not."""

    def __init__(self):
        super().__init__()
        self.moving, self.frozen = (
            torch.nn.Parameter(torch.tensor([1.0])),
            torch.nn.Parameter(torch.tensor([5.0]), False),
        )


def test_average_by_hand():
    """Weights 1, 3, 7 with decay 0.75: the average goes 1, 1.5, 2.875; it is lent to the model and taken back."""
    model = Pair()
    average = Average(model, 0.75)
    for value, expected in ((3.0, 1.5), (7.0, 2.875)):
        model.moving.data.fill_(value)
        average.update()
        assert average.averages[0].item() == expected
    with average.in_place():
        assert (model.moving.item(), model.frozen.item()) == (2.875, 5.0)
    assert model.moving.item() == 7.0 and len(average.averages) == 1

    other = Average(Pair(), 0.75)
    other.load_state_dict(average.state_dict())
    assert other.averages[0].item() == 2.875


def test_the_average_comes_back_after_an_error():
    model = Pair()
    average = Average(model, 0.5)
    model.moving.data.fill_(3.0)
    with pytest.raises(KeyError), average.in_place():
        raise KeyError
    assert model.moving.item() == 3.0 and average.averages[0].item() == 1.0


def test_no_average():
    model = Pair()
    average = Average(model, 0.0)
    average.update()
    with average.in_place():
        assert model.moving.item() == 1.0
    assert average.state_dict() == {"averages": []}


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (2.0, 0.0, 0.5)])
def test_span_loss_is_torchs_window_by_window(weights):
    """Each window is a softmax over its own tokens, and counts by its weight."""
    draw = torch.Generator().manual_seed(0)
    lengths = (3, 7, 1)
    starts = torch.tensor([1, 6, 0])
    ends = torch.tensor([2, 0, 0])
    start, end = torch.randn(2, 11, generator=draw, dtype=torch.float64)
    expected = 0.0
    for side, labels in ((start, starts), (end, ends)):
        for part, label, weight in zip(side.split(lengths), labels, weights, strict=True):
            expected += weight * F.cross_entropy(part[None], label[None]).item() / 2
    layout = Layout.of(lengths, CPU)
    found = span_loss(SpanLogits(start, end), layout, starts, ends, torch.tensor(weights))
    assert found.item() == pytest.approx(expected, abs=1e-12)


def test_span_loss_by_hand():
    """Two tokens, logits log 3 and 0: probabilities 3/4 and 1/4."""
    logits = torch.tensor([math.log(3), 0.0])
    label = torch.tensor([0])
    found = span_loss(SpanLogits(logits, logits), Layout.of((2,), CPU), label, label)
    assert found.item() == pytest.approx(-math.log(0.75), abs=1e-6)


def test_layer_decay_by_hand(tiny_model):
    """Adam's first update is lr * sign(gradient): what each depth moves is its own learning rate."""
    model = folder.load(tiny_model)
    settings = OptimSettings(lr=0.01, layer_decay=0.5, weight_decay=0.0, eps=1e-12)
    optimizer = make_optimizer(model, settings, CPU)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    set_lr(optimizer, 0.01, 0, settings)
    optimizer.step()
    for name, parameter in model.named_parameters():
        depth = (
            3
            if name.startswith("span")
            else 0
            if "embeddings" in name
            else 1 + int(name.split(".")[2])
        )
        assert torch.allclose(
            before[name] - parameter, torch.tensor(0.01 * 0.5 ** (3 - depth)), atol=1e-6
        ), name


@pytest.mark.parametrize(
    ("what", "left"), [("none", 3), ("embeddings", 3), ("0", 3), ("1", 2), ("2", 1), ("encoder", 1)]
)
def test_freezing_by_depth(tiny_model, what, left):
    """What stays trainable: the top `left` of two layers and the head; embeddings only with none."""
    model = folder.load(tiny_model)
    freeze(model, what)
    trained = {
        "span"
        if name.startswith("span")
        else name.split(".")[1] + name.split(".")[2] * ("layers" in name)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    assert trained == {"span", *["layers1", "layers0"][: left - 1]} | (
        {"embeddings"} if what == "none" else set()
    )


def test_cosine_and_constant_by_hand():
    """Ten steps, two of warm-up: 1/2 and 1, then (1 + cos(pi k / 8)) / 2 for k = 0..7; constant stays at the peak."""
    cosine = OptimSettings(lr=2.0, warmup=0.2, schedule="cosine")
    expected = [1.0, 2.0] + [1 + math.cos(math.pi * k / 8) for k in range(8)]
    assert [lr_at(step, 10, cosine) for step in range(10)] == pytest.approx(expected)
    constant = OptimSettings(lr=2.0, warmup=3, schedule="constant")
    assert [lr_at(step, 5, constant) for step in range(5)] == pytest.approx([2 / 3, 4 / 3, 2, 2, 2])


def test_warm_up_that_outlasts_the_run_never_peaks_beyond_lr():
    settings = OptimSettings(lr=1.0, warmup=100)
    assert [lr_at(step, 4, settings) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]


def test_warm_up_is_rounded_up():
    """A quarter of ten steps is three steps of warm-up; 1 is one step, not the whole run."""
    quarter = OptimSettings(lr=3.0, warmup=0.25)
    assert [lr_at(step, 10, quarter) for step in range(4)] == pytest.approx([1, 2, 3, 3])
    one = OptimSettings(lr=2.0, warmup=1)
    assert [lr_at(step, 5, one) for step in range(3)] == pytest.approx([2, 2, 1.5])


def test_the_last_steps_of_a_run_that_warms_up_to_its_end():
    linear = OptimSettings(lr=2.0, warmup=3)
    assert lr_at(3, 4, linear) == 2.0  # the only step behind the warm-up is at the peak
    assert lr_at(4, 4, linear) == 0.0  # and one behind the end would not move
    assert lr_at(3, 3, linear) == 0.0


@pytest.mark.parametrize(
    ("name", "depth"),
    [
        ("encoder.embeddings.word.weight", 0),
        ("embeddings.norm.bias", 0),
        ("encoder.layers.0.qkv.weight", 1),
        ("layers.11.qkv.weight", 12),
        ("encoder.pooler.weight", 13),
        ("pooler.weight", 13),
        ("span.weight", 13),
        ("my_embeddings_and.layers_of.weight", 13),
    ],
)
def test_depth_by_name(name, depth):
    """Of a model of 12 layers, or of its encoder alone."""
    assert depth_of(name, 12) == depth


def test_the_pooler_is_no_head(tiny_model):
    """It has the encoder's rate, undecayed, also in an encoder that is trained by itself."""
    config = folder.load(tiny_model).config
    settings = OptimSettings(lr=1e-4, head_lr=2e-3, layer_decay=0.5)
    classifier = BertForSequenceClassification(config, 3)
    for model, pooler in (
        (classifier, classifier.encoder.pooler),
        (classifier.encoder, classifier.encoder.pooler),
    ):
        scales = {}
        for group in make_optimizer(model, settings, CPU).param_groups:
            scales |= {id(parameter): group["lr_scale"] for parameter in group["params"]}
        assert scales[id(pooler.weight)] == 1
        assert scales[id(classifier.encoder.layers[1].qkv.weight)] == 0.5
        assert scales.get(id(classifier.classifier.weight), 20) == pytest.approx(20)


def test_factors_of_one_name_multiply(tiny_model):
    model = folder.load(tiny_model)
    factors = {"span.": 2, "span.bias": 3}
    scales = {}
    for group in make_optimizer(model, OptimSettings(), CPU, lr_factors=factors).param_groups:
        scales |= {id(parameter): group["lr_scale"] for parameter in group["params"]}
    assert (scales[id(model.span.weight)], scales[id(model.span.bias)]) == (2, 6)


def test_what_its_maker_has_frozen_stays_frozen(tiny_model):
    model = folder.load(tiny_model)
    model.span.bias.requires_grad_(False)
    freeze(model, "embeddings")
    assert not model.span.bias.requires_grad and model.span.weight.requires_grad
    optimizer = make_optimizer(model, OptimSettings(), CPU)
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert trained == {id(p) for p in model.parameters() if p.requires_grad}


def test_betas_reach_the_optimizer(tiny_model):
    settings = OptimSettings(beta1=0.5, beta2=0.25)
    optimizer = make_optimizer(folder.load(tiny_model), settings, CPU)
    assert {group["betas"] for group in optimizer.param_groups} == {(0.5, 0.25)}


@pytest.mark.parametrize(
    ("name", "bad", "good"),
    [
        ("clip", -1.0, 0.0),
        ("beta1", 1.0, 0.0),
        ("beta2", 1.0, 0.5),
        ("layer_decay", 0.0, 1.0),
        ("layer_decay", 1.5, 0.5),
    ],
)
def test_values_out_of_range_are_named(name, bad, good):
    [problem] = broken(OptimSettings(**{name: bad}))
    assert problem.startswith(f"{name} is {bad}, it must ")
    assert broken(OptimSettings(**{name: good})) == []


def test_the_rate_of_the_head_is_absolute(tiny_model):
    """Whatever the rate and the decay of the encoder's; a factor by name counts beside it."""
    model = folder.load(tiny_model)
    settings = OptimSettings(lr=1e-4, head_lr=2e-3, layer_decay=0.5)
    optimizer = make_optimizer(model, settings, CPU, lr_factors={"span.bias": 0.5})
    set_lr(optimizer, 1e-4, 0, settings)
    rates = {}
    for group in optimizer.param_groups:
        rates |= {id(parameter): group["lr"] for parameter in group["params"]}
    assert rates[id(model.span.weight)] == pytest.approx(2e-3)
    assert rates[id(model.span.bias)] == pytest.approx(1e-3)
    assert rates[id(model.encoder.layers[1].ffn_out.weight)] == pytest.approx(0.5e-4)


def test_factors_of_the_learning_rate_by_name(tiny_model):
    """They multiply the depth's factor; a name that nothing has is refused."""
    model = folder.load(tiny_model)
    settings = OptimSettings(layer_decay=0.5)
    factors = {"span.": 10, "encoder.layers.0.": 0.1}
    optimizer = make_optimizer(model, settings, CPU, lr_factors=factors)
    scales = {}
    for group in optimizer.param_groups:
        scales |= {id(parameter): group["lr_scale"] for parameter in group["params"]}
    plain = {}
    for group in make_optimizer(model, settings, CPU).param_groups:
        plain |= {id(parameter): group["lr_scale"] for parameter in group["params"]}
    for name, parameter in model.named_parameters():
        factor = next((factors[start] for start in factors if name.startswith(start)), 1)
        assert scales[id(parameter)] == pytest.approx(factor * plain[id(parameter)])
    with pytest.raises(UserError, match="no parameter's name begins with 'verifier.'"):
        make_optimizer(model, settings, CPU, lr_factors={"verifier.": 10})
