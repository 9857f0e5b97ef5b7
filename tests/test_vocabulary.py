"""The tokenizer files of checkpoints and model folders, held against the word embedding."""

import json
import shutil
from pathlib import Path

import pytest
from tiny_checkpoints import VOCAB, refused, write_checkpoint, write_vocab

from bertqa.data.tokenizer import WordPiece
from bertqa.errors import UserError
from bertqa.hf.convert import convert
from bertqa.model import folder

ROWS = 103
"""Of the word embedding: four more than VOCAB has tokens."""


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("tokenizers") / "bert", vocab_size=ROWS)


@pytest.fixture
def fast(original, tmp_path) -> Path:
    """A copy with all files."""
    return Path(shutil.copytree(original, tmp_path / "bert"))


@pytest.fixture
def slow(fast) -> Path:
    """A copy with vocab.txt alone."""
    (fast / "tokenizer.json").unlink()
    (fast / "tokenizer_config.json").unlink()
    return fast


def edit_fast(source: Path, change) -> Path:
    """Let `change` change the object in tokenizer.json."""
    found = json.loads((source / "tokenizer.json").read_text())
    change(found)
    (source / "tokenizer.json").write_text(json.dumps(found))
    return source


# Against the embedding ------------------------------------------------------------------------------------------------


def drop_half(fast) -> None:
    vocab = fast["model"]["vocab"]
    for token in [token for token, number in vocab.items() if number % 2 and number > 5]:
        del vocab[token]


def keep_half(fast) -> None:
    vocab = fast["model"]["vocab"]
    for token in [token for token, number in vocab.items() if number > 50]:
        del vocab[token]


def move(token: str, number: int):
    return lambda fast: fast["model"]["vocab"].update({token: number})


WRONG = {
    "every other token": (drop_half, "ids have no token"),
    "half of them": (keep_half, "too many for rounding up"),
    "beyond the rows": (move("word3", 103), "has 104 tokens, but the word embedding only 103 rows"),
    "far beyond": (move("word3", 2**40), "1,099,511,627,777 tokens"),
    "two tokens of one id": (move("word3", 7), 'the tokens "c" and "word3" share the id 7'),
    "negative": (move("word3", -1), 'the token "word3" has the id -1'),
    "no number": (move("word3", "x"), 'the token "word3" has the id "x"'),
    "true": (move("word3", True), 'the token "word3" has the id true'),
    "no vocabulary": (lambda fast: fast["model"].update(vocab={}), 'has no "vocab"'),
    "added_tokens": (lambda fast: fast.update(added_tokens=[7]), '"added_tokens" is no list'),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_vocabulary_that_does_not_fit_at_conversion(fast, tmp_path, name):
    change, said = WRONG[name]
    (fast / "vocab.txt").unlink()
    found = refused(edit_fast(fast, change), tmp_path / "mine")
    assert said in found or "have ids up to" in found


@pytest.mark.parametrize("name", WRONG)
def test_a_vocabulary_that_does_not_fit_at_load(original, tmp_path, name):
    change, said = WRONG[name]
    broken = Path(shutil.copytree(original.with_name("bert-ours"), tmp_path / "broken"))
    convert(original, tmp_path / "mine")
    shutil.copy(tmp_path / "mine" / "tokenizer.json", broken)
    (broken / "checksums.json").unlink()
    folder.load(broken)
    (broken / "vocab.txt").unlink()
    edit_fast(broken, change)
    for load in (folder.load, folder.load_encoder):
        with pytest.raises(UserError) as caught:
            load(broken)
        assert said in str(caught.value)
    model = folder.load(original.with_name("bert-ours"))
    with pytest.raises(UserError) as caught:
        folder.save(tmp_path / "saved", model, tokenizer_from=broken)
    assert said in str(caught.value) and not (tmp_path / "saved").exists()


@pytest.mark.parametrize("half", [drop_half, keep_half])
def test_half_a_tokenizer_beside_a_whole_vocabulary(fast, tmp_path, half):
    said = refused(edit_fast(fast, half), tmp_path / "mine")
    assert "vocab.txt and tokenizer.json are of different vocabularies" in said


def test_tokens_that_stand_twice(slow, tmp_path):
    """The last id of each counts; and the folder can be loaded, and is still held against its vocab.txt."""
    twice = [*VOCAB[:90], *VOCAB[10:19]]
    write_vocab(slow, twice)
    convert(slow, tmp_path / "mine")
    folder.load(tmp_path / "mine")
    tokens = WordPiece.load(tmp_path / "mine").encode([VOCAB[12]])
    assert tokens.ids.tolist() == [92]
    write_vocab(tmp_path / "mine", [*twice[:20], *reversed(twice[20:])])
    with pytest.raises(UserError, match="are of different vocabularies: token 20 is"):
        folder.load(tmp_path / "mine")


@pytest.mark.parametrize("token", ["[UNK]", "[CLS]", "[SEP]"])
def test_a_special_token_is_missing(original, tmp_path, token):
    """At load, also in a folder that has vocab.txt alone."""
    broken = Path(shutil.copytree(original.with_name("bert-ours"), tmp_path / "broken"))
    (broken / "checksums.json").unlink()
    write_vocab(broken, [other for other in VOCAB if other != token])
    with pytest.raises(UserError, match=rf"the vocabulary has no \{token[:-1]}\]"):
        folder.load(broken)


def test_an_unknown_token_that_is_not_there(original, tmp_path):
    convert(original, tmp_path / "mine")
    edit_fast(tmp_path / "mine", lambda fast: fast["model"].update(unk_token="<unk>"))
    with pytest.raises(UserError, match='its unknown token "<unk>" is not in its own vocabulary'):
        folder.load(tmp_path / "mine")
    with pytest.raises(UserError, match="the vocabulary has no <unk>"):
        WordPiece.load(tmp_path / "mine")


def test_blank_lines_at_the_end_of_vocab_txt(slow, tmp_path):
    with open(slow / "vocab.txt", "ab") as stream:
        stream.write(b"\n\r\n\n\n\n\n")
    convert(slow, tmp_path / "mine")
    lines = (tmp_path / "mine" / "vocab.txt").read_text(encoding="utf-8").split("\n")
    assert lines == [*VOCAB, ""]
