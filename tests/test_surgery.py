"""Other shapes of a trained encoder: what stays is the same, what is lost is said, and the result is a model folder."""

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.processors import BertProcessing, TemplateProcessing

from bertqa import UserError
from bertqa.data.tokenizer import WordPiece
from bertqa.model import folder
from bertqa.model.surgery import keep_layers, resize_positions, resize_vocabulary, vocabulary

IDS = torch.arange(10, 20)


@pytest.fixture
def said():
    return []


@pytest.fixture(params=["TemplateProcessing", "BertProcessing", "vocab.txt alone"])
def reader(tiny_model, tmp_path, request):
    """The tiny reader with a tokenizer.json of either kind, as the Hub has them, and without one."""
    where = tmp_path / "reader"
    folder.save(where, folder.load(tiny_model))
    fast = WordPiece.load(tiny_model).backend
    if request.param == "TemplateProcessing":
        around = [("[CLS]", 2), ("[SEP]", 3)]
        fast.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=around)
    elif request.param == "BertProcessing":
        fast.post_processor = BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    if request.param != "vocab.txt alone":
        fast.save(str(where / "tokenizer.json"))
    return where


def test_kept_layers_are_those_of_the_model(tiny_model, tmp_path, said):
    whole = folder.load(tiny_model)
    want = whole.encoder(IDS, lengths=[10], output_hidden_states=True).hidden_states[1]
    model = folder.load(tiny_model, attention=[None, None])
    keep_layers(model, [0], say=said.append)
    assert model.config.num_hidden_layers == 1 and model.encoder.attention == [None]
    assert said == ["layers [1] of 2 are gone, 7,504 parameters"]
    assert torch.equal(model.encoder(IDS, lengths=[10]).last_hidden_state, want)
    folder.save(tmp_path / "half", model)
    again = folder.load(tmp_path / "half").encoder(IDS, lengths=[10]).last_hidden_state
    assert torch.equal(again, want)


def test_layers_can_change_places(tiny_model, said):
    model, order = folder.load(tiny_model), folder.load(tiny_model)
    keep_layers(model, [1, 0], say=said.append)
    order.encoder.layers = order.encoder.layers[::-1]
    assert torch.equal(model(IDS, lengths=[10]).start, order(IDS, lengths=[10]).start)


@pytest.mark.parametrize("layers", [[], [2], [-1], [0, 0]])
def test_layers_that_are_not_there(tiny_model, layers):
    with pytest.raises(UserError, match=r"layers to keep are .*; give each once, of 0 to 1"):
        keep_layers(folder.load(tiny_model), layers)


def test_positions_are_cut_or_copied(tiny_model, tmp_path, said):
    whole = folder.load(tiny_model)
    table = whole.encoder.embeddings.position.weight
    for count in (12, 150):
        model = folder.load(tiny_model)
        resize_positions(model, count, say=said.append)
        assert torch.equal(model(IDS, lengths=[10]).start, whole(IDS, lengths=[10]).start)
        folder.save(tmp_path / str(count), model)
        again = folder.load(tmp_path / str(count))
        assert again.config.max_position_embeddings == count
    assert said == [
        "positions 64 -> 12: 52 lost, 0 copied",
        "positions 64 -> 150: 0 lost, 86 copied",
    ]
    grown = again.encoder.embeddings.position.weight
    assert torch.equal(grown[64:128], table) and torch.equal(grown[128:], table[:22])
    ids = torch.arange(150) % 36
    assert again(ids, lengths=[150]).start.isfinite().all()


def ids_of(where, text: str) -> list[int]:
    return WordPiece.load(where).encode([text]).ids.tolist()


def test_new_tokens_have_ids_and_vectors_of_their_own(reader, tmp_path, said):
    torch.manual_seed(0)
    model = folder.load(reader)
    before = model.encoder.embeddings.word.weight.detach().clone()
    tokens = [*vocabulary(reader), "lamp"]
    resize_vocabulary(model, tokens, reader, tmp_path / "tokenizer", say=said.append)
    assert said == ["vocabulary 36 -> 37: 0 lost, 1 drawn at random"]
    word = model.encoder.embeddings.word.weight
    assert torch.equal(word[:36], before)
    assert 0.05 < word[36:].std() < 0.15 and word.requires_grad
    folder.save(tmp_path / "new", model, tokenizer_from=tmp_path / "tokenizer")
    assert folder.load(tmp_path / "new").config.vocab_size == 37
    assert ids_of(tmp_path / "new", "is the lamp") == [8, 9, 36]
    assert ids_of(reader, "a b") == ids_of(tmp_path / "new", "a b")


def test_new_tokens_in_brackets_are_never_taken_apart(reader, tmp_path):
    model = folder.load(reader)
    tokens = [*vocabulary(reader), "[PLACE]"]
    if not (reader / "tokenizer.json").exists():
        with pytest.raises(UserError, match="has no tokenizer.json, which .*PLACE.* needs"):
            resize_vocabulary(model, tokens, reader, tmp_path / "tokenizer")
        return
    resize_vocabulary(model, tokens, reader, tmp_path / "tokenizer")
    assert ids_of(tmp_path / "tokenizer", "is [PLACE] the") == [8, 36, 9]


def test_a_smaller_vocabulary_keeps_the_vectors_of_its_tokens(reader, tmp_path, said):
    """In another order: the special tokens have other ids, in the files too."""
    model = folder.load(reader)
    tokens = ["a", "b", "[SEP]", "[CLS]", "[PAD]", "[UNK]", "[MASK]", "?"]
    old = {token: row for row, token in enumerate(vocabulary(reader))}
    want = model.encoder.embeddings.word.weight[[old[token] for token in tokens]].clone()
    resize_vocabulary(model, tokens, reader, tmp_path / "tokenizer", say=said.append)
    assert said == ["vocabulary 36 -> 8: 28 lost, 0 drawn at random"]
    assert torch.equal(model.encoder.embeddings.word.weight, want)
    folder.save(tmp_path / "new", model, tokenizer_from=tmp_path / "tokenizer")
    tokenizer = WordPiece.load(tmp_path / "new")
    assert (tokenizer.cls_id, tokenizer.sep_id) == (3, 2)
    assert ids_of(tmp_path / "new", "b a?") == [1, 0, 7]
    if (reader / "tokenizer.json").exists():
        fast = Tokenizer.from_file(str(tmp_path / "new" / "tokenizer.json"))
        assert fast.encode("b a?").ids == [3, 1, 0, 7, 2]


def test_vocabularies_that_cannot_be(tiny_model, tmp_path):
    model = folder.load(tiny_model)
    tokens = vocabulary(tiny_model)
    with pytest.raises(UserError, match="'a' stands twice"):
        resize_vocabulary(model, [*tokens, "a"], tiny_model, tmp_path / "out")
    with pytest.raises(UserError, match=r"no \[UNK\]"):
        resize_vocabulary(model, tokens[2:], tiny_model, tmp_path / "out")
    assert model.config.vocab_size == len(tokens) and not (tmp_path / "out").exists()
