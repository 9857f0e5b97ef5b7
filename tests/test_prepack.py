"""Packed weights make a CPU faster and must change no answer."""

import contextlib
import copy
import pickle

import pytest
import torch

from bertqa import BertConfig, BertEncoder, BertForQuestionAnswering, Reader, UserError
from bertqa.model import prepack
from bertqa.model.attention import Layout
from bertqa.model.encoder import Layer
from bertqa.model.products import PackedLinear, TokenwiseLinear, has_packed_products, narrow

SHAPE = BertConfig(
    vocab_size=99,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=37,
    max_position_embeddings=40,
    attention_probs_dropout_prob=0.0,
    pooler=True,
)
LENGTHS = (7, 13, 1)
needs_packing = pytest.mark.skipif(
    not (has_packed_products() and torch.backends.cpu.get_cpu_capability().startswith("AVX")),
    reason="this processor or this build of torch has no packed products; prepack.pack returns the model itself",
)


@pytest.fixture
def ids():
    return torch.randint(0, 99, (sum(LENGTHS),), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return BertEncoder(SHAPE)


@needs_packing
def test_packed_weights_give_the_same_numbers(encoder, ids):
    packed = prepack.pack(encoder)
    assert sum(isinstance(module, PackedLinear) for module in packed.modules()) == 4 * 2
    with torch.inference_mode():
        for lengths in (LENGTHS, (21,), (1,) * 21):
            want, got = (
                model(ids, lengths=Layout.of(lengths, ids.device))
                for model in (encoder.eval(), packed)
            )
            assert torch.allclose(got.last_hidden_state, want.last_hidden_state, atol=1e-5)
            assert torch.allclose(got.pooled, want.pooled, atol=1e-5)


@needs_packing
def test_packing_leaves_the_model_alone(encoder, ids):
    encoder.train()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    packed = prepack.pack(encoder)
    assert encoder.training and not packed.training and before.keys() == encoder.state_dict().keys()
    with torch.no_grad():
        encoder.layers[0].qkv.weight.zero_()
        encoder.embeddings.word.weight.zero_()
        again = packed(ids, lengths=LENGTHS).last_hidden_state
        encoder.load_state_dict(before)
        assert torch.allclose(
            again, encoder.eval()(ids, lengths=LENGTHS).last_hidden_state, atol=1e-5
        )


@needs_packing
@pytest.mark.parametrize(
    "again",
    [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))],
    ids=["copy", "pickle"],
)
def test_packed_models_can_be_copied_and_sent_to_other_processes(encoder, ids, again):
    packed = prepack.pack(encoder)
    with torch.inference_mode():
        assert torch.equal(
            *(model(ids, lengths=LENGTHS).last_hidden_state for model in (packed, again(packed)))
        )


@needs_packing
@pytest.mark.skipif(
    not torch.cpu._is_avx512_bf16_supported(), reason="this processor has no bf16 units"
)
def test_packed_in_bf16_is_as_near_as_its_eight_bits(encoder, ids):
    packed = prepack.pack(encoder.eval(), torch.bfloat16)
    with torch.inference_mode():
        exact = encoder(ids, lengths=LENGTHS).last_hidden_state
        got = packed(ids, lengths=LENGTHS).last_hidden_state
    assert packed is not encoder and got.dtype == torch.float32
    # values of up to 3, rounded to eight bits behind each sum
    assert 0 < (got - exact).abs().max() < 0.03


def in_two_formats(query, key, value, layout, dropout):
    """Attention whose softmax is in float32, and which leaves a product of two formats to autocast."""
    rows = [layout.pad(x).transpose(1, 2) for x in (query, key, value)]  # (S, A, L, D) each
    scores = (rows[0] @ rows[1].transpose(-1, -2)).float()
    scores = scores.masked_fill(~layout.mask()[:, None, None], float("-inf"))
    return layout.unpad((scores.softmax(-1) @ rows[2]).transpose(1, 2)).float()


@needs_packing
@pytest.mark.skipif(
    not torch.cpu._is_avx512_bf16_supported(), reason="this processor has no bf16 units"
)
def test_attention_of_ones_own_may_mix_formats_in_bf16(ids):
    torch.manual_seed(0)
    encoder = BertEncoder(SHAPE, attention=in_two_formats).eval()
    packed = prepack.pack(encoder, torch.bfloat16)
    with torch.inference_mode():
        exact = encoder(ids, lengths=LENGTHS).last_hidden_state
        got = packed(ids, lengths=LENGTHS).last_hidden_state
    assert 0 < (got - exact).abs().max() < 0.03


@pytest.mark.slow
@needs_packing
def test_packed_products_are_compiled_as_plain_calls_and_not_exported():
    product = PackedLinear(torch.randn(4, 8), torch.randn(4), torch.float32)
    x = torch.randn(3, 8)
    # torch 2.6 refuses it by the same words
    with torch.no_grad(), contextlib.suppress(UserError):
        assert torch.equal(torch.compile(product)(x), product(x))
    with pytest.raises(UserError, match=r"compiled or exported; take bertqa.load\(FOLDER\)"):
        torch.export.export(product, (x,), strict=False)


def test_int8_scales_each_token_by_itself():
    """A token of large values leaves the others what they are alone."""
    torch.manual_seed(0)
    linear, x = torch.nn.Linear(64, 32), torch.randn(5, 64)
    x[2] *= 1000
    rounded = TokenwiseLinear(linear.weight, linear.bias)
    exact, near, alone = linear(x), rounded(x), rounded(x[:2])
    error = (near - exact).abs().amax(1) / exact.abs().amax(1)
    assert error.max() < 0.03 and torch.equal(near[:2], alone)
    assert torch.isfinite(rounded(torch.zeros(1, 64))).all()


@pytest.mark.parametrize(
    "model,dtype",
    [
        (BertEncoder(SHAPE).bfloat16(), torch.float32),
        (BertEncoder(SHAPE), torch.float16),
        (BertEncoder(SHAPE).to("meta"), torch.float32),
    ],
)
def test_what_cannot_be_packed_stays_as_it_is(model, dtype):
    assert prepack.pack(model, dtype) is model


def test_int8_is_refused_where_there_is_none():
    with pytest.raises(
        UserError, match="int8 is for CPUs, but the model is on meta; use --device cpu"
    ):
        prepack.int8(BertEncoder(SHAPE).to("meta"))


@pytest.mark.parametrize(
    ("dtype", "capability", "bf16_units", "packs"),
    [
        (torch.float32, "AVX2", False, True),
        (torch.float32, "AVX512", True, True),
        (torch.float32, "DEFAULT", True, False),
        (torch.bfloat16, "AVX512", True, True),
        (torch.bfloat16, "AVX512", False, False),
        (torch.float16, "AVX512", True, False),
    ],
)
@needs_packing
def test_weights_are_packed_where_that_is_faster(
    encoder, monkeypatch, dtype, capability, bf16_units, packs
):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16_units)
    assert (prepack.pack(encoder, dtype) is not encoder) == packs


def other_activation(layer):
    layer.activation = torch.tanh


def no_bias(layer):
    layer.ffn_out = torch.nn.Linear(37, 32, bias=False)


def another_product(layer):
    layer.qkv = torch.nn.Sequential(layer.qkv)


def a_hook(layer):
    layer.attention_norm.register_forward_hook(lambda *_: None)


def another_beginning(layer):
    layer.before_attention = layer.before_attention


def another_end(layer):
    layer.behind_attention = layer.behind_attention


def another_class(layer):
    layer.__class__ = type("Mine", (Layer,), {})


@pytest.mark.parametrize(
    "change",
    [
        other_activation,
        no_bias,
        another_product,
        a_hook,
        another_beginning,
        another_end,
        another_class,
    ],
)
def test_a_layer_that_was_changed_stays_as_it_is(encoder, change):
    """Our own kernels would leave out what is new in it."""
    change(encoder.layers[1])
    with pytest.warns(
        UserWarning, match="int8: 1 layers are of one's own, or have a hook; they stay"
    ):
        made = prepack.int8(encoder)
    assert [isinstance(layer, Layer) for layer in made.layers] == [False, True]


def test_without_onednn_nothing_is_packed(encoder, monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert prepack.pack(encoder) is encoder


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (0.5, torch.float16),
        (2.0**100, torch.bfloat16),  # beyond float16
        (1 + 2.0**-10, torch.float16),  # too fine for bfloat16
        (1 + 2.0**-20, torch.float32),
    ],
)
def test_a_tensor_is_narrowed_where_nothing_is_lost(value, dtype):
    tensor = torch.full((2,), value)
    narrowed = narrow(tensor)
    assert narrowed.dtype == dtype and torch.equal(narrowed.float(), tensor)
    for other in (torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.int64)):
        assert narrow(other) is other


@needs_packing
def test_the_head_is_not_packed_and_the_reader_is(tiny_model):
    model = prepack.pack(BertForQuestionAnswering(SHAPE))
    assert [name for name, module in model.named_modules() if type(module) is torch.nn.Linear] == [
        "span"
    ]
    assert any(
        isinstance(module, PackedLinear)
        for module in Reader.load(tiny_model, device="cpu").model.modules()
    )


@pytest.mark.parametrize("pack", [pytest.param(prepack.pack, marks=needs_packing), prepack.int8])
@pytest.mark.parametrize("of", ["vectors", "weights"])
def test_gradients_through_packed_products_are_refused(encoder, ids, pack, of):
    """They would be false; forwards, and gradients of what stands behind, go on as ever."""
    packed = pack(encoder.eval())
    vectors = encoder.embeddings.word(ids).detach().requires_grad_()
    with torch.no_grad():
        want = packed(ids, lengths=LENGTHS).last_hidden_state
    given = {"inputs_embeds": vectors} if of == "vectors" else {"input_ids": ids}
    out = packed(**given, lengths=LENGTHS).last_hidden_state
    assert torch.allclose(out, want, atol=1e-5)
    with pytest.raises(
        UserError, match=r"know no gradient; load one that can be trained: bertqa.load"
    ):
        out.sum().backward()
    head = torch.nn.Linear(32, 1)
    head(out.detach()).sum().backward()
    assert head.weight.grad.abs().sum() > 0


def test_gradients_through_the_model_of_a_reader(tiny_model):
    from bertqa.model import folder

    reader = Reader.load(tiny_model, device="cpu", int8=True)
    ids = torch.arange(10, 20)
    with pytest.raises(UserError, match="gradient"):
        reader.model(ids, lengths=[10]).start.sum().backward()
    folder.load(tiny_model)(ids, lengths=[10]).start.sum().backward()
