"""Models of one's own: other attention, other heads, more parameters; saved, refused by a plain load, loaded again."""

import functools
import json

import pytest
import torch

from bertqa import (
    BertForQuestionAnswering,
    BertForSequenceClassification,
    Reader,
    UserError,
    train,
)
from bertqa.hf.export import export
from bertqa.model import folder
from bertqa.model.attention import own_name, padded_attention, per_sequence_attention
from bertqa.model.folder import load_into

IDS = torch.arange(10, 20)
LENGTHS = [6, 4]


def sharper(query, key, value, layout, dropout, by=2.0):
    return per_sequence_attention(by * query, key, value, layout, dropout)


def with_maps(query, key, value, layout, dropout):
    """Every token looks at the first of its sequence only."""
    mixed = value[layout.first_tokens][layout.sequence]
    maps = torch.zeros(len(layout.lengths), query.shape[1], layout.longest, layout.longest)
    maps[..., 0] = 1
    return mixed, maps


class Verifier(BertForQuestionAnswering):
    """A span reader that also says, from [CLS], whether there is an answer."""

    def __init__(self, config, attention=None):
        super().__init__(config, attention)
        self.verifier = torch.nn.Linear(config.hidden_size, 1)


def start(model):
    with torch.no_grad():
        return model(IDS, lengths=LENGTHS).start


# Maps of attention of one's own --------------------------------------------------------------------------------------


def test_own_maps_are_shown_and_change_nothing(tiny_model):
    model = folder.load(tiny_model, attention=with_maps)
    plain = model(IDS, lengths=LENGTHS)
    shown = model(IDS, lengths=LENGTHS, output_attentions=True)
    assert torch.equal(plain.start, shown.start)
    assert shown.attentions[1].shape == (2, 4, 6, 6) and (shown.attentions[1][..., 0] == 1).all()


def test_attention_without_maps_cannot_show_any(tiny_model):
    model = folder.load(tiny_model, attention=sharper)
    with pytest.raises(UserError, match="attention 'sharper' shows no maps; let it return"):
        model(IDS, lengths=LENGTHS, output_attentions=True)


def test_our_bodies_show_the_maps_of_the_reference(tiny_model):
    want = folder.load(tiny_model)(IDS, lengths=LENGTHS, output_attentions=True).attentions
    model = folder.load(tiny_model, attention=padded_attention)
    got = model(IDS, lengths=LENGTHS, output_attentions=True).attentions
    assert all(map(torch.equal, got, want))


def test_each_layer_can_have_its_own_attention(tiny_model):
    alike = folder.load(tiny_model, attention=[sharper, sharper])
    mixed = folder.load(tiny_model, attention=[None, sharper])
    assert torch.equal(start(alike), start(folder.load(tiny_model, attention=sharper)))
    assert not torch.allclose(start(alike), start(mixed))
    alike.encoder.attention = [sharper]
    with pytest.raises(UserError, match="a list of 1, but there are 2 layers"):
        start(alike)


@pytest.mark.parametrize(
    ("attention", "name"),
    [
        (None, None),
        (padded_attention, None),
        ([None, padded_attention], None),
        (sharper, "sharper"),
        (functools.partial(sharper, by=3.0), "sharper"),
        ([sharper, None, with_maps, sharper], "sharper, with_maps"),
        (torch.nn.ModuleList([torch.nn.Bilinear(1, 1, 1)]), "Bilinear"),
    ],
)
def test_names_of_attention(attention, name):
    assert own_name(attention) == name


# On disk --------------------------------------------------------------------------------------------------------------


def test_own_attention_must_be_given_again(tiny_model, tmp_path):
    model = folder.load(tiny_model, attention=sharper)
    folder.save(tmp_path / "sharp", model)
    assert json.loads((tmp_path / "sharp/config.json").read_text())["attention"] == "sharper"
    for load in (folder.load, folder.load_encoder):
        with pytest.raises(UserError, match="its own attention, 'sharper'.*: attention=sharper"):
            load(tmp_path / "sharp")
    with pytest.raises(UserError, match="its own attention, 'sharper'"):
        folder.load(tmp_path / "sharp", attention=padded_attention)  # the plain numbers again
    again = folder.load(tmp_path / "sharp", attention=sharper)
    assert torch.equal(start(again), start(model))
    assert not torch.allclose(start(again), start(folder.load(tiny_model)))
    encoder = folder.load_encoder(tmp_path / "sharp", attention=sharper)
    assert encoder.attention is sharper
    with pytest.raises(UserError, match="attention is its own, 'sharper', which transformers"):
        export(tmp_path / "sharp", tmp_path / "exported")


def test_one_of_our_bodies_is_no_attention_of_ones_own(tiny_model, tmp_path):
    folder.save(tmp_path / "plain", folder.load(tiny_model, attention=padded_attention))
    assert (tmp_path / "plain/config.json").read_bytes() == (
        tiny_model / "config.json"
    ).read_bytes()


def test_a_model_of_ones_own_is_filled_and_not_loaded(tiny_model, tmp_path):
    plain = folder.load(tiny_model)
    model = Verifier(plain.config)
    assert load_into(model, tiny_model) == ["verifier.weight", "verifier.bias"]
    assert torch.equal(start(model.eval()), start(plain))
    folder.save(tmp_path / "mine", model)
    with pytest.raises(
        UserError, match=r"holds a model of its own, 'Verifier'.*load_into\(Verifier"
    ):
        folder.load(tmp_path / "mine")
    again = Verifier(plain.config).eval()
    assert load_into(again, tmp_path / "mine") == []
    assert torch.equal(again.verifier.weight, model.verifier.weight)
    assert torch.equal(start(again), start(model))
    encoder = folder.load_encoder(tmp_path / "mine")
    assert torch.equal(encoder.layers[1].qkv.weight, plain.encoder.layers[1].qkv.weight)
    with pytest.raises(UserError, match="model is its own, 'Verifier', which transformers"):
        export(tmp_path / "mine", tmp_path / "exported")


def test_an_encoder_takes_the_encoder_of_any_folder(tiny_model, tmp_path):
    class Tagger(torch.nn.Module):
        def __init__(self, config):
            super().__init__()
            self.encoder = folder.build(config, None)
            self.tags = torch.nn.Linear(config.hidden_size, 3)

    config = folder.load(tiny_model).config
    tagger = Tagger(config)
    assert load_into(tagger.encoder, tiny_model) == []
    folder.save(tmp_path / "tags", tagger, tokenizer_from=tiny_model, labels=["B", "I", "O"])
    assert folder.read_config(tmp_path / "tags")["labels"] == ["B", "I", "O"]
    again = Tagger(config)
    assert load_into(again, tmp_path / "tags") == []
    assert torch.equal(again.tags.weight, tagger.tags.weight)
    with pytest.raises(UserError, match="span.weight has no place in this Tagger"):
        load_into(Tagger(config), tiny_model)


def test_load_into_fills_a_pooler(tiny_model, tmp_path):
    config = folder.load(tiny_model).config
    torch.manual_seed(0)
    known = BertForSequenceClassification(config, 3)
    folder.save(tmp_path / "classes", known, tokenizer_from=tiny_model, labels=["a", "b", "c"])
    again = BertForSequenceClassification(config, 3)
    assert load_into(again, tmp_path / "classes") == []
    assert torch.equal(again.encoder.pooler.weight, known.encoder.pooler.weight)
    # A reader has no place for one, and is not told so.
    reader = folder.build(config, None)
    assert load_into(reader, tmp_path / "classes") == []


@pytest.mark.parametrize(
    ("changes", "faults"),
    [
        (dict(intermediate_size=64), 6),
        (dict(intermediate_size=64, vocab_size=99, max_position_embeddings=50), 8),
        (
            dict(
                intermediate_size=64, vocab_size=99, max_position_embeddings=50, type_vocab_size=3
            ),
            9,
        ),
        (dict(num_hidden_layers=1), 12),
    ],
)
def test_load_into_lists_eight_faults_and_counts_the_rest(tiny_model, changes, faults):
    config = folder.load(tiny_model).config
    with pytest.raises(UserError) as refused:
        load_into(BertForQuestionAnswering(config.replace(**changes)), tiny_model)
    listed = str(refused.value).split("does not fit the model: ")[1].split("; ")
    assert len(listed) == min(faults, 9)
    assert listed[8:] == ([f"and {faults - 8} more"] if faults > 8 else [])


def test_load_into_names_what_does_not_fit(tiny_model):
    config = folder.load(tiny_model).config
    with pytest.raises(
        UserError, match=r"ffn_in.weight has shape \(48, 32\), the model \(64, 32\)"
    ):
        load_into(BertForQuestionAnswering(config.replace(intermediate_size=64)), tiny_model)


# Saving refuses what loading refuses ----------------------------------------------------------------------------------


def dropped_layer(model):
    model.encoder.layers = model.encoder.layers[:1]


def larger_vocabulary(model):
    model.encoder.embeddings.word = torch.nn.Embedding(50, 32)


def third_output(model):
    model.span = torch.nn.Linear(32, 3)


def narrower(model):
    model.encoder.layers[0].ffn_in = torch.nn.Linear(32, 7)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (dropped_layer, "num_hidden_layers is 1, the config says 2"),
        (larger_vocabulary, "vocab_size is 50, the config says 36"),
        (third_output, r"span.weight has shape \(3, 32\), its config says \(2, 32\)"),
        (narrower, r"ffn_in.weight has shape \(7, 32\)"),
    ],
)
def test_a_model_that_its_config_does_not_describe_is_not_saved(tiny_model, tmp_path, change, says):
    model = folder.load(tiny_model)
    change(model)
    with pytest.raises(UserError, match=says):
        folder.save(tmp_path / "lost", model)
    assert list(tmp_path.iterdir()) == []


def test_labels_that_would_be_lost_are_refused(tiny_model, tmp_path):
    model = folder.load(tiny_model)
    with pytest.raises(UserError, match="labels .* are of no use"):
        folder.save(tmp_path / "lost", model, labels=["yes", "no"])
    classes = folder.build(model.config, folder.CLASSES, ["yes", "no"])
    with pytest.raises(UserError, match="3 labels for a model of 2 classes"):
        folder.save(tmp_path / "lost", classes, tokenizer_from=tiny_model, labels=["a", "b", "c"])
    assert list(tmp_path.iterdir()) == []


def test_a_rebuilt_model_keeps_its_threshold(tiny_model, tmp_path):
    folder.save(tmp_path / "tuned", folder.load(tiny_model), qa={"null_threshold": 1.5})
    trained = folder.load(tmp_path / "tuned")
    rebuilt = BertForQuestionAnswering(trained.config)
    rebuilt.load_state_dict(trained.state_dict())
    folder.save(tmp_path / "again", rebuilt, tokenizer_from=tmp_path / "tuned")
    assert folder.read_qa(tmp_path / "again") == {"null_threshold": 1.5}
    provenance = folder.read_config(tmp_path / "again")["provenance"]
    assert provenance == folder.read_config(tiny_model)["provenance"]
    # Another head has no use for it.
    folder.save(tmp_path / "bare", trained.encoder, tokenizer_from=tmp_path / "tuned")
    assert folder.read_qa(tmp_path / "bare") == {}


def test_without_positions_the_verbs_take_any_length(tiny_model, letters, tmp_path):
    """Training, answering and embedding go by what they are told, and not by positions that are not there."""
    plain = folder.load(tiny_model)
    mine = BertForQuestionAnswering(plain.config.replace(position_embedding_type="none"))
    folder.save(tmp_path / "mine", mine, tokenizer_from=tiny_model)
    files = ["--train", str(letters), "--dev", str(letters), "--weights", str(tmp_path / "mine")]
    long = ["--max-length", "100", "--overlap", "10", "--max-question", "8"]
    assert train.main([*files, *long, "--max-steps", "1", "--out", str(tmp_path / "run")]) == 0
    reader = Reader.load(tmp_path / "run")
    assert reader.qa["max_length"] == 100
    assert reader.answer("where is a?", "b c " * 60) is not None
    with pytest.raises(UserError, match="max_length is 100, but the model has 64 positions"):
        train.main([*files[:-1], str(tiny_model), *long, "--out", str(tmp_path / "other")])
