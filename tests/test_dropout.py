"""Dropout is where BERT has it: on the embeddings, behind both halves of a layer, on attention, before the heads."""

import pytest
import torch

from bertqa import (
    BertConfig,
    BertEncoder,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    UserError,
)
from bertqa.model import attention
from bertqa.model.attention import Layout
from bertqa.model.encoder import Layer

NONE = BertConfig(
    vocab_size=99,
    hidden_size=32,
    num_hidden_layers=1,
    num_attention_heads=4,
    intermediate_size=37,
    max_position_embeddings=40,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)
HIDDEN = NONE.replace(hidden_dropout_prob=0.5)
LENGTHS = [7, 13, 1]
IDS = torch.arange(21)


def varies(compute) -> bool:
    """Whether a computation gives other numbers with another seed."""
    results = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        results.append(compute())
    return not torch.equal(*results)


@pytest.fixture
def layout():
    return Layout.of(LENGTHS, IDS.device)


def test_embeddings_drop(layout):
    embeddings = BertEncoder(HIDDEN).embeddings.train()
    out = embeddings(IDS, None, layout.positions)
    assert varies(lambda: embeddings(IDS, None, layout.positions))
    assert 0.4 < (out == 0).float().mean() < 0.6
    assert not varies(lambda: embeddings.eval()(IDS, None, layout.positions))


@pytest.mark.parametrize("silent", ["attention_out", "ffn_out"])
def test_both_halves_of_a_layer_drop(silent, layout):
    """With the other half silent: its weights and biases are zero, so dropping them changes nothing."""
    torch.manual_seed(0)
    layer = Layer(HIDDEN).train()
    for parameter in getattr(layer, silent).parameters():
        parameter.data.zero_()
    x = torch.randn(21, 32)
    assert varies(lambda: layer(x, layout))
    assert not varies(lambda: layer.eval()(x, layout))


def test_attention_drops_in_training_only(layout):
    torch.manual_seed(0)
    layer = Layer(NONE.replace(attention_probs_dropout_prob=0.5)).train()
    x = torch.randn(21, 32)
    assert varies(lambda: layer(x, layout))
    assert not varies(lambda: layer.eval()(x, layout))


@pytest.mark.parametrize(
    "body",
    [
        attention.reference_attention,
        attention.per_sequence_attention,
        attention.padded_attention,
    ],
)
def test_bodies_drop_half_of_the_weights_and_double_the_rest(body):
    """Over values of 1 the weights that are kept sum to 1 only on average."""
    torch.manual_seed(0)
    layout = Layout.of([100, 30], torch.device("cpu"))
    query, key = torch.randn(2, 130, 4, 8)
    ones = torch.ones(130, 4, 8)
    mixed = body(query, key, ones, layout, 0.5)
    assert mixed.std() > 0.05 and abs(mixed.mean() - 1) < 0.05
    assert torch.allclose(body(query, key, ones, layout, 0.0), ones, atol=1e-5)


def test_only_distilbert_drops_before_the_span_head():
    for kind, drops in (("bert", False), ("distilbert", True)):
        model = BertForQuestionAnswering(HIDDEN.replace(model_type=kind)).train()
        model.encoder.eval()
        assert varies(lambda model=model: model(IDS, lengths=LENGTHS).start) == drops


def test_both_classifiers_drop_before_the_classes():
    for kind in ("bert", "distilbert"):
        model = BertForSequenceClassification(HIDDEN.replace(model_type=kind), 3).train()
        model.encoder.eval()
        assert varies(lambda model=model: model(IDS, lengths=LENGTHS))
        assert not varies(lambda model=model: model.eval()(IDS, lengths=LENGTHS))


@pytest.mark.parametrize("name", ["hidden_dropout_prob", "attention_probs_dropout_prob"])
def test_dropout_of_a_new_config_holds_at_once(name):
    model = BertForQuestionAnswering(NONE).train()
    assert not varies(lambda: model(IDS, lengths=LENGTHS).start)
    model.config = model.config.replace(**{name: 0.5})
    assert model.encoder.config is model.config
    assert varies(lambda: model(IDS, lengths=LENGTHS).start)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (dict(num_hidden_layers=2), "num_hidden_layers is 1, the config says 2"),
        (dict(vocab_size=100), "vocab_size is 99, the config says 100"),
        (dict(max_position_embeddings=41), "max_position_embeddings is 40, the config says 41"),
        (dict(type_vocab_size=0), "type_vocab_size is 2, the config says 0"),
        (dict(hidden_act="relu"), "hidden_act is 'gelu', the config says 'relu'"),
        (dict(position_embedding_type="none"), "position_embedding_type is 'absolute'"),
        (dict(layer_norm_eps=1e-6), "layer_norm_eps is 1e-12, the config says 1e-06"),
    ],
)
def test_a_config_that_would_change_nothing_is_refused(change, says):
    model = BertForQuestionAnswering(NONE)
    with pytest.raises(UserError, match=says):
        model.config = model.config.replace(**change)
    assert model.config == NONE


def test_without_positions_the_longest_sequence_may_be_another():
    """It is then no property of the parameters, but what the verbs go by."""
    model = BertForQuestionAnswering(NONE.replace(position_embedding_type="none"))
    model.config = model.config.replace(max_position_embeddings=4096)
    assert model.encoder.config.max_position_embeddings == 4096
    with pytest.raises(UserError, match="position_embedding_type is 'none'"):
        model.config = model.config.replace(position_embedding_type="absolute")
