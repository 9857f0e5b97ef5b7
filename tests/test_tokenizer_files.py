"""The tokenizer files of checkpoints and model folders: tokens added later, other kinds, vocabularies that do not fit the
word embedding, casing in every script."""

import json
import shutil
from pathlib import Path

import pytest
from tiny_checkpoints import VOCAB, edit_json, refused, write_checkpoint, write_vocab
from tokenizers import Tokenizer

from bertqa.data.tokenizer import WordPiece
from bertqa.errors import UserError
from bertqa.hf.convert import convert
from bertqa.hf.export import export
from bertqa.model import folder
from bertqa.model.vocabulary import check_tokens

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


def tokens_of(where: Path, text: str) -> list[str]:
    backend = Tokenizer.from_file(str(where / "tokenizer.json"))
    return backend.encode(text, add_special_tokens=False).tokens


def edit_fast(source: Path, change) -> Path:
    """Let `change` change the object in tokenizer.json."""
    found = json.loads((source / "tokenizer.json").read_text())
    change(found)
    (source / "tokenizer.json").write_text(json.dumps(found))
    return source


# Tokens that were added later -----------------------------------------------------------------------------------------


def decoder(*tokens) -> dict:
    """As tokenizer_config.json has it: {id: token with its flags}."""
    usual = {"lstrip": False, "rstrip": False, "normalized": True, "single_word": False}
    numbered = enumerate(tokens, len(VOCAB))
    return {
        str(number): {**usual, "special": False, "content": content, **flags}
        for number, (content, flags) in numbered
    }


LATER = {
    "added_tokens.json": {"added_tokens.json": {"[table]": 100, "covid19": 99}},
    "decoder": {
        "tokenizer_config.json": {
            "added_tokens_decoder": decoder(
                ("covid19", {"single_word": True}),
                ("[table]", {"special": True, "normalized": False}),
                ("<e1>", {"lstrip": True, "normalized": False}),
            )
        }
    },
    "names without ids": {
        "tokenizer_config.json": {"additional_special_tokens": ["<e1>"], "eos_token": "<eos>"},
        "special_tokens_map.json": {"bos_token": {"content": "<bos>"}, "mask_token": "[MASK]"},
    },
    "list without ids": {
        "tokenizer_config.json": {"additional_special_tokens": ["[E1]", "<e1>", "word3"]}
    },
    "both": {
        "added_tokens.json": {"covid19": 99, "<e1>": 100},
        "tokenizer_config.json": {"additional_special_tokens": ["<e1>"]},
    },
}


@pytest.mark.parametrize("ready", [False, True], ids=["vocab.txt", "tokenizer.json"])
@pytest.mark.parametrize("name", LATER)
def test_added_tokens_are_those_of_transformers(request, original, tmp_path, name, ready):
    transformers = pytest.importorskip("transformers")
    source = request.getfixturevalue("fast" if ready else "slow")
    for file, content in LATER[name].items():
        edit_json(source / file, **content)
    edit_json(source / "tokenizer_config.json", do_lower_case=True)
    theirs = transformers.AutoTokenizer.from_pretrained(source)
    report = convert(source, tmp_path / "mine")
    ours = Tokenizer.from_file(str(tmp_path / "mine" / "tokenizer.json"))
    assert "added tokens: " in str(report)
    special = {token.content for token in theirs.added_tokens_decoder.values() if token.special}
    entries = json.loads((tmp_path / "mine" / "tokenizer.json").read_text())["added_tokens"]
    assert {entry["content"] for entry in entries if entry["special"]} == special
    for text in (
        "word1 covid19 [table] York",
        "a COVID19 b covid19s",
        "[TABLE] x [table]. Covid19",
        "<e1>a<e1> b  <e1> [E1] [MASK] word3",
        "<bos>a <eos> [PAD]",
    ):
        assert ours.encode(text).ids == theirs(text).input_ids, text
    export(tmp_path / "mine", tmp_path / "back")
    convert(tmp_path / "back", tmp_path / "again")
    again = (tmp_path / "again" / "tokenizer.json").read_bytes()
    assert again == (tmp_path / "mine" / "tokenizer.json").read_bytes()


def test_padding_of_another_name_is_numbered_first(slow, tmp_path):
    """No file gives ids: transformers numbers the token for padding before the others."""
    named = {"pad_token": "<pad>", "additional_special_tokens": ["<e1>"]}
    edit_json(slow / "special_tokens_map.json", **named)
    convert(slow, tmp_path / "mine")
    ids = WordPiece.load(tmp_path / "mine").encode(["a <e1> <pad>"]).ids
    assert ids.tolist() == [VOCAB.index("a"), 100, 99]


def test_added_tokens_reach_the_model(slow, tmp_path):
    (slow / "added_tokens.json").write_text('{"covid19": 99, "[table]": 100}')
    convert(slow, tmp_path / "mine")
    assert tokens_of(tmp_path / "mine", "a covid19 [table]") == ["a", "covid19", "[table]"]
    tokens = WordPiece.load(tmp_path / "mine").encode(["covid19 a"])
    assert tokens.ids.tolist() == [99, VOCAB.index("a")]


@pytest.mark.parametrize(
    "file, content, said",
    [
        ("added_tokens.json", {"covid19": 103}, "has 104 tokens, but the word embedding only 103"),
        ("added_tokens.json", {"covid19": 100}, "the id 100 there, but 99 where it is read"),
        ("added_tokens.json", {"covid19": "x"}, 'added_tokens.json: "x" is no id of a token'),
        ("added_tokens.json", {"covid19": -1}, "added_tokens.json: -1 is no id of a token"),
        ("added_tokens.json", {"covid19": True}, "added_tokens.json: true is no id of a token"),
        ("added_tokens.json", {"word3": 99}, '"word3" has the id 99 in added_tokens.json, but '),
        ("added_tokens.json", {"covid19": 5}, 'the tokens "a" and "covid19" share the id 5'),
        ("added_tokens.json", {"covid19": 10**12}, "has 1,000,000,000,001 tokens, but"),
        ("tokenizer_config.json", {"added_tokens_decoder": [1]}, "is no object of id to token"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"99": 7}}, "7 is no token"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": "a"}}, '"x" is no id of a token'),
        ("tokenizer_config.json", {"additional_special_tokens": 7}, "expected a list of tokens"),
        ("special_tokens_map.json", {"additional_special_tokens": [None]}, "null is no token"),
        # The normaliser takes them off, and the library would find them everywhere.
        ("added_tokens.json", {"\u200d": 99}, "normaliser leaves nothing, so no text can hold it"),
        ("added_tokens.json", {"\u0301": 99}, "normaliser leaves nothing, so no text can hold it"),
    ],
)
def test_added_tokens_that_cannot_be(slow, tmp_path, file, content, said):
    edit_json(slow / file, **content)
    assert said in refused(slow, tmp_path / "mine")


def test_a_joiner_as_an_added_token_that_is_looked_for_in_the_raw_text(slow, tmp_path):
    """The same token is fine where no normaliser touches it."""
    token = decoder(("\u200d", {"normalized": False}))
    edit_json(slow / "tokenizer_config.json", added_tokens_decoder=token)
    convert(slow, tmp_path / "mine")
    assert tokens_of(tmp_path / "mine", "a\u200db word3") == ["a", "\u200d", "b", "word3"]


# Other kinds ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "file, stated, said",
    [
        ("tokenizer_config.json", {"tokenizer_class": "BertJapaneseTokenizer"}, "tokenizer_class"),
        ("config.json", {"tokenizer_class": "BertJapaneseTokenizer"}, '"BertJapaneseTokenizer"'),
        ("tokenizer_config.json", {"tokenizer_class": "TapasTokenizer"}, '"TapasTokenizer"'),
        ("tokenizer_config.json", {"tokenizer_class": ["BertTokenizer"]}, "tokenizer_class"),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["a.B", None]}}, "auto_map, code"),
        (
            "tokenizer_config.json",
            {"model_input_names": ["input_ids", "attention_mask", "bbox"]},
            "model_input_names",
        ),
        ("tokenizer_config.json", {"word_tokenizer_type": "mecab"}, 'word_tokenizer_type "mecab"'),
        ("tokenizer_config.json", {"cls_token": "<s>"}, 'cls_token "<s>" in place of [CLS]'),
        ("special_tokens_map.json", {"sep_token": {"content": "</s>"}}, 'sep_token "</s>" in pla'),
        ("tokenizer_config.json", {"do_basic_tokenize": False}, "do_basic_tokenize false"),
        ("tokenizer_config.json", {"never_split": ["@user"]}, "never_split"),
    ],
)
def test_tokenizers_that_do_more_than_wordpiece(slow, tmp_path, file, stated, said):
    edit_json(slow / file, **stated)
    said_all = refused(slow, tmp_path / "mine")
    assert said in said_all and "needs more than BERT's WordPiece" in said_all


@pytest.mark.parametrize("name", ["BertTokenizer", "DistilBertTokenizerFast", "ElectraTokenizer"])
def test_tokenizers_that_are_wordpiece(fast, tmp_path, name):
    edit_json(fast / "tokenizer_config.json", tokenizer_class=name)
    convert(fast, tmp_path / "mine")


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda fast: fast.update(post_processor=None), "it puts two texts together as "),
        (
            lambda fast: fast["post_processor"].update(special_tokens={}),
            "the tokenizers library cannot use it",
        ),
        (lambda fast: fast["post_processor"]["pair"].pop(2), "it puts two texts together as [CLS]"),
        (lambda fast: fast["post_processor"]["pair"].reverse(), "it puts two texts together as"),
        (
            lambda fast: fast["post_processor"]["pair"][1]["Sequence"].update(type_id=1),
            "it gives two texts the token types [0, 1, 0, 1, 1, 1]",
        ),
    ],
)
def test_tokenizers_that_put_texts_together_otherwise(fast, tmp_path, change, said):
    assert said in refused(edit_fast(fast, change), tmp_path / "mine")


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


@pytest.mark.parametrize("odd", ["la\nmp", "lamp\r", "\n", ""])
def test_tokens_that_no_line_of_a_vocabulary_can_hold(original, tmp_path, odd):
    """They stand in tokenizer.json alone; what was converted can be loaded."""
    source = Path(shutil.copytree(original, tmp_path / "bert"))
    (source / "vocab.txt").unlink()
    last = VOCAB[-1]

    def rename(fast):
        fast["model"]["vocab"][odd] = fast["model"]["vocab"].pop(last)

    edit_fast(source, rename)
    convert(source, tmp_path / "mine")
    folder.load(tmp_path / "mine")
    assert WordPiece.load(tmp_path / "mine").backend.token_to_id(odd) == VOCAB.index(last)


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


# ---- ids and rows of the embedding, at the limits ----


def numbered(count, *holes):
    """So many ids, but for these, each with a token."""
    tokens = {number: f"t{number}" for number in range(count)}
    tokens |= enumerate(("[UNK]", "[CLS]", "[SEP]"))
    return {number: token for number, token in tokens.items() if number not in holes}


@pytest.mark.parametrize(
    ("tokens", "rows"),
    [
        (numbered(40), 40),
        (numbered(40), 60),  # a third of the rows may be without a token
        (numbered(1000), 1127),
        (numbered(40, 10), 40),
        (numbered(1000, *range(10, 20)), 1000),  # one id of a hundred
    ],
)
def test_rows_and_ids_that_may_be_without_a_token(tokens, rows):
    assert check_tokens(Path("vocab.txt"), tokens, rows) == max(tokens) + 1


@pytest.mark.parametrize(
    ("tokens", "rows", "says"),
    [
        (numbered(40), 39, "has 40 tokens, but the word embedding only 39 rows"),
        (numbered(40), 61, "the word embedding 61 rows: 21 too many for rounding up"),
        (numbered(1000), 1128, "the word embedding 1,128 rows: 128 too many"),
        (numbered(40, 12, 10), 40, "2 of the 40 ids have no token \\(the first is 10\\)"),
        (numbered(1000, *range(10, 21)), 1000, "11 of the 1,000 ids have no token"),
        (numbered(40, 0, 2), 40, "the vocabulary has no \\[UNK\\] and no \\[SEP\\];"),
    ],
)
def test_vocabularies_of_another_model(tokens, rows, says):
    with pytest.raises(UserError, match=f"vocab.txt: .*{says}"):
        check_tokens(Path("vocab.txt"), tokens, rows)
