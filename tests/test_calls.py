"""What the encoder and its heads can be called with: nothing that is given is ignored, padding stands anywhere."""

import pickle

import pytest
import torch

from bertqa import (
    BertConfig,
    BertEncoder,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    UserError,
)
from bertqa.model.attention import Layout

TINY = BertConfig(
    vocab_size=99,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=37,
    max_position_embeddings=40,
)
IDS = torch.arange(10).view(2, 5)
ONES = torch.ones_like(IDS)
LEFT = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
HOLES = torch.tensor([[0, 1, 0, 1, 1], [1, 0, 1, 0, 0]])


@pytest.mark.parametrize("lengths", [[], [3, 0], [-1]])
def test_a_layout_has_a_token_in_each_sequence(lengths):
    with pytest.raises(UserError, match="give at least one, each at least 1"):
        Layout.of(lengths, "cpu")


@pytest.fixture
def model():
    torch.manual_seed(0)
    return BertForQuestionAnswering(TINY).eval()


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (dict(input_ids=IDS, lengths=[5, 5]), "lengths= is for packed tokens"),
        (dict(input_ids=IDS[0], attention_mask=ONES[0], lengths=[5]), "is for padded"),
        (dict(input_ids=IDS[0], lengths=[5, 0]), "a length of 0"),
        (dict(input_ids=IDS[0], lengths=[]), "got none"),
        (dict(input_ids=IDS[0, :0], lengths=[]), "packed input of 0 tokens needs lengths"),
        (dict(input_ids=IDS[:0]), "the batch has no row"),
        (dict(input_ids=IDS, attention_mask=ONES * torch.tensor([[1], [0]])), "row 1 .* no token"),
        (dict(input_ids=IDS, token_type_ids=ONES[:, :4]), r"token_type_ids has shape \(2, 4\)"),
        (dict(input_ids=IDS[0], token_type_ids=ONES[0, :1], lengths=[5]), "token_type_ids has"),
        (dict(input_ids=IDS, token_type_ids=ONES * 2), "token_type_ids has 2; .* 0 to 1"),
        (dict(input_ids=IDS + 90), "input_ids has 99; .* 0 to 98"),
        (dict(input_ids=IDS - 1), "input_ids has -1"),
        (dict(), "give either input_ids or inputs_embeds"),
        (dict(input_ids=IDS, inputs_embeds=torch.zeros(2, 5, 32)), "give either"),
        (dict(input_ids=IDS[0], lengths=Layout.of([4], "cpu")), "Layout is of 4 tokens"),
        (
            dict(input_ids=torch.zeros(41, dtype=torch.long), lengths=Layout.of([41], "cpu")),
            "41 tokens, but this model has 40 positions",
        ),
        (dict(input_ids=torch.zeros(1, 41, dtype=torch.long)), "41 tokens, but this model has 40"),
        (
            dict(input_ids=IDS[None]),
            r"the batch has shape \(1, 2, 5\); expected \(B, L\) padded or",
        ),
    ],
)
@pytest.mark.parametrize("classes", [False, True])
def test_what_does_not_fit_is_refused(model, call, says, classes):
    if classes:
        model = BertForSequenceClassification(TINY.replace(model_type="distilbert"), 3)
    with pytest.raises(UserError, match=says):
        model(**call)


@pytest.mark.parametrize("mask", [ONES, LEFT, HOLES], ids=["right", "left", "holes"])
@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_classes_do_not_depend_on_where_padding_stands(kind, mask):
    torch.manual_seed(0)
    classifier = BertForSequenceClassification(TINY.replace(model_type=kind), 3).eval()
    got = classifier(IDS, mask)
    for row in range(2):
        alone = IDS[row][mask[row].bool()]
        assert torch.allclose(got[row], classifier(alone, lengths=[len(alone)])[0], atol=1e-6)


@pytest.mark.parametrize("mask", [ONES, LEFT, HOLES], ids=["right", "left", "holes"])
def test_maps_and_hidden_states_stand_in_the_columns_of_a_padded_call(model, mask):
    out = model.encoder(IDS, mask, output_attentions=True, output_hidden_states=True)
    keep = mask.bool()
    for row in range(2):
        alone = IDS[row][keep[row]]
        want = model.encoder(
            alone, lengths=[len(alone)], output_attentions=True, output_hidden_states=True
        )
        for got_map, want_map in zip(out.attentions, want.attentions, strict=True):
            inside = got_map[row][:, keep[row]][:, :, keep[row]]
            assert torch.allclose(inside, want_map[0], atol=1e-6)
            assert torch.allclose(got_map[row].sum(), want_map[0].sum(), atol=1e-4)
        for got_state, want_state in zip(out.hidden_states, want.hidden_states, strict=True):
            assert torch.allclose(got_state[row][keep[row]], want_state, atol=1e-6)
            assert (got_state[row][~keep[row]] == 0).all()


@pytest.mark.parametrize("padded", [True, False])
def test_vectors_in_the_place_of_ids(model, padded):
    ids, where = (IDS, {}) if padded else (IDS.flatten(), {"lengths": [5, 5]})
    vectors = model.encoder.embeddings.word(ids).detach().requires_grad_()
    got = model(inputs_embeds=vectors, **where)
    assert torch.equal(got.start, model(ids, **where).start)
    got.start.sum().backward()
    assert vectors.grad.abs().sum() > 0


def test_heads_pass_on_what_the_encoder_shows(model):
    classifier = BertForSequenceClassification(TINY, 3).eval()
    for either in (model, classifier):
        out = either(IDS, LEFT, output_hidden_states=True, output_attentions=True)
        plain = either.encoder(IDS, LEFT, output_hidden_states=True, output_attentions=True)
        for got, want in (
            (out.hidden_states, plain.hidden_states),
            (out.attentions, plain.attentions),
        ):
            assert len(got) and all(map(torch.equal, got, want))
        alone = either(IDS, LEFT)
        logits = alone.start if either is model else alone
        # The maps come from the reference attention, which rounds otherwise.
        assert torch.allclose(out[0], logits, atol=1e-6)


def test_hooks_fire_once_in_a_padded_call(model):
    calls = []
    model.encoder.register_forward_hook(lambda *_: calls.append("encoder"))
    model.encoder.layers[0].register_forward_hook(lambda _, __, out: calls.append(out.shape))
    model(IDS, LEFT)
    assert calls == [(8, 32), "encoder"]


def test_without_positions_order_does_not_matter_and_no_length_is_too_long():
    torch.manual_seed(0)
    encoder = BertEncoder(TINY.replace(position_embedding_type="none")).eval()
    assert "embeddings.position.weight" not in encoder.state_dict()
    ids = torch.randint(0, 99, (600,))
    forwards = encoder(ids, lengths=[600]).last_hidden_state
    backwards = encoder(ids.flip(0), lengths=[600]).last_hidden_state
    assert torch.allclose(forwards, backwards.flip(0), atol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_float64_stays_float64(kind):
    for make in (BertForQuestionAnswering, lambda config: BertForSequenceClassification(config, 3)):
        model = make(TINY.replace(model_type=kind)).double().eval()
        vectors = torch.randn(1, 3, 32, dtype=torch.float64, requires_grad=True)

        def scores(x, model=model):
            out = model(inputs_embeds=x)
            return out if isinstance(out, torch.Tensor) else out.start

        assert scores(vectors).dtype == torch.float64
        assert torch.autograd.gradcheck(scores, (vectors,), fast_mode=True)


def test_models_can_be_pickled_whatever_their_activation():
    for act in ("gelu", "gelu_tanh", "relu"):
        model = BertForQuestionAnswering(TINY.replace(hidden_act=act)).eval()
        again = pickle.loads(pickle.dumps(model))
        assert torch.equal(model(IDS).start, again(IDS).start)
