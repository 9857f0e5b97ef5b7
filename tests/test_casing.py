"""What is said of a vocabulary's casing is measured on the letters of every script, and what it cannot reach is said."""

import json
from pathlib import Path

import pytest
from tiny_checkpoints import VOCAB, edit_json, refused, write_checkpoint, write_vocab
from tokenizers import Tokenizer

from bertqa.hf.casing import measure
from bertqa.hf.convert import convert

PLAIN = [token for token in VOCAB if not token.startswith("word")]
SPARE = len(VOCAB) - len(PLAIN)
"""Tokens that a test may choose."""


@pytest.fixture
def source(tmp_path) -> Path:
    """A checkpoint with vocab.txt alone; `with_tokens` puts words into it."""
    where = write_checkpoint(tmp_path / "bert")
    (where / "tokenizer.json").unlink()
    (where / "tokenizer_config.json").unlink()
    return where


def with_tokens(source: Path, *tokens: str) -> Path:
    rest = [f"word{i}" for i in range(SPARE - len(tokens))]
    write_vocab(source, [*PLAIN, *tokens, *rest])
    return source


def normaliser_of(where: Path) -> dict:
    return json.loads((where / "tokenizer.json").read_text())["normalizer"]


def tokens_of(where: Path, text: str) -> list[str]:
    backend = Tokenizer.from_file(str(where / "tokenizer.json"))
    return backend.encode(text, add_special_tokens=False).tokens


GREEK = ["Αθήνα", "Ελλάδα", "Ομηρος"]
CYRILLIC = ["Москва", "Россия", "Волга"]
ARMENIAN = ["Երևան", "Արա", "Վան"]
KOREAN = ["한국", "서울", "부산", "사람"]
HINDI = ["कुल", "मेरे", "हिन्दी"]


@pytest.mark.parametrize(
    "words", [GREEK, CYRILLIC, ARMENIAN], ids=["Greek", "Cyrillic", "Armenian"]
)
def test_capitals_of_every_script_make_a_vocabulary_cased(source, tmp_path, words):
    report = convert(with_tokens(source, *words), tmp_path / "mine")
    assert any(remark.startswith("cased (no file says so; 3%") for remark in report.remarks)
    assert tokens_of(tmp_path / "mine", words[0]) == [words[0]]


@pytest.mark.parametrize(
    "words", [GREEK, CYRILLIC, ARMENIAN], ids=["Greek", "Cyrillic", "Armenian"]
)
def test_lower_casing_that_a_vocabulary_of_another_script_contradicts(source, tmp_path, words):
    edit_json(source / "tokenizer_config.json", do_lower_case=True)
    said = refused(with_tokens(source, *words), tmp_path / "mine")
    assert "the tokenizer lower-cases, but 3% of the tokens of its vocabulary have capitals" in said


@pytest.mark.parametrize("words", [KOREAN, HINDI], ids=["Korean", "Hindi"])
def test_accents_stay_where_no_file_asks_for_taking_them_off(source, tmp_path, words):
    """BERT's normaliser would take Korean syllables apart, and the vowel signs of Hindi off."""
    report = convert(with_tokens(source, *words), tmp_path / "mine")
    assert "uncased, accents kept, for the vocabulary has them (no file says so; 0%" in str(report)
    assert normaliser_of(tmp_path / "mine")["strip_accents"] is False
    assert tokens_of(tmp_path / "mine", " ".join(words)) == words


@pytest.mark.parametrize("words", [KOREAN, HINDI], ids=["Korean", "Hindi"])
def test_unreachable_tokens_are_said_where_a_file_asks_for_it(source, tmp_path, words):
    edit_json(source / "tokenizer_config.json", do_lower_case=True)
    report = convert(with_tokens(source, *words), tmp_path / "mine")
    assert normaliser_of(tmp_path / "mine")["strip_accents"] is None
    lost = len(words) + 2  # and é and U+2028 of VOCAB
    assert f"{lost} tokens of the vocabulary ({lost / 99:.1%}) can never be made" in str(report)


def test_capitals_kept_for_a_vocabulary_without_them(source, tmp_path):
    """bert-base-uncased holds two tokens that count as capitals: lower-casing leaves "\u211d" as it is."""
    edit_json(source / "tokenizer_config.json", do_lower_case=False)
    warning = "warning: the tokenizer keeps capitals, but its vocabulary has none"
    said = str(convert(with_tokens(source, "\u211d", "##\u211d"), tmp_path / "uncased"))
    assert warning in said
    assert warning not in str(convert(with_tokens(source, "A", "B"), tmp_path / "cased"))
    no_letters = [token for token in VOCAB if not token.removeprefix("##").isalpha()]
    write_vocab(
        source, no_letters + [f"{chr(0xAC00 + i)}" for i in range(len(VOCAB) - len(no_letters))]
    )
    assert warning not in str(convert(source, tmp_path / "korean"))


def test_all_reachable_is_not_said(source, tmp_path):
    edit_json(source / "tokenizer_config.json", do_lower_case=False)
    words = [token for token in VOCAB if token != "\u2028"] + ["word0x"]
    write_vocab(source, words)
    assert "can never be made" not in str(convert(source, tmp_path / "mine"))


def with_normaliser(source: Path, tmp_path: Path, normaliser) -> Path:
    """The checkpoint with a tokenizer.json of this normaliser."""
    edit_json(source / "tokenizer_config.json", do_lower_case=False)
    convert(source, tmp_path / "plain")
    fast = json.loads((tmp_path / "plain" / "tokenizer.json").read_text())
    (source / "tokenizer.json").write_text(json.dumps({**fast, "normalizer": normaliser}))
    (source / "tokenizer_config.json").unlink()
    return source


LATIN_ONLY = {
    "type": "Sequence",
    "normalizers": [
        {"type": "Replace", "pattern": {"String": capital}, "content": capital.lower()}
        for capital in "ABCDEFGHIJKLMNOPQRSTUVWXYZÀÉÑÖŠŽ"
    ],
}


def test_a_normaliser_that_lowers_latin_only(source, tmp_path):
    """What it does not touch may be capital in the vocabulary; what it lowers may not."""
    greek = with_normaliser(with_tokens(source, *GREEK), tmp_path, LATIN_ONLY)
    report = convert(greek, tmp_path / "mine")
    assert "uncased, capitals kept in Greek and Cyrillic and Armenian, accents kept" in str(report)


def test_a_normaliser_that_lowers_latin_only_for_latin_capitals(source, tmp_path):
    latin = with_normaliser(with_tokens(source, "Leeds", "Ada", "Mill"), tmp_path, LATIN_ONLY)
    assert "the tokenizer lower-cases, but 3% of the tokens" in refused(latin, tmp_path / "mine")


@pytest.mark.parametrize(
    "normaliser, said",
    [
        (None, "cased (from tokenizer.json)"),
        ({"type": "NFD"}, "cased (from tokenizer.json)"),
        ({"type": "NFC"}, "cased (from tokenizer.json)"),
        ({"type": "Lowercase"}, "uncased, accents kept (from tokenizer.json)"),
        (
            {
                "type": "Sequence",
                "normalizers": [{"type": "NFD"}, {"type": "StripAccents"}, {"type": "Lowercase"}],
            },
            "uncased",
        ),
    ],
)
def test_normalisers_of_other_kinds(source, tmp_path, normaliser, said):
    report = convert(with_normaliser(source, tmp_path, normaliser), tmp_path / "mine")
    assert report.remarks[0].startswith(said)


def test_measure_on_plain_functions():
    assert measure(str.lower).lowercase and not measure(str.lower).strip_accents
    assert not any(measure(str).lowers.values()) and not measure(str).chinese
    assert measure(lambda text: text.replace("中", " 中 ")).chinese
