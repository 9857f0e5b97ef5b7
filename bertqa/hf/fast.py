"""tokenizer.json: made for a vocab.txt, given the tokens that were added later, and tried."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bertqa.errors import UserError, first_sentence
from bertqa.files import show

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@dataclass
class Casing:
    """What BERT's normaliser is told, as tokenizer_config.json names it."""

    do_lower_case: bool
    strip_accents: bool | None = None
    """None: as do_lower_case."""
    tokenize_chinese_chars: bool = True


def make_fast(vocab: list[str], casing: Casing) -> dict:
    """The tokenizer.json of a BERT WordPiece vocabulary (what transformers' BertTokenizer has always done)."""
    ids = {token: i for i, token in enumerate(vocab)}
    known = [token for token in SPECIAL if token in ids]
    known.sort(key=ids.get)
    cls = {"SpecialToken": {"id": "[CLS]", "type_id": 0}}
    sep = {"SpecialToken": {"id": "[SEP]", "type_id": 0}}
    first = {"Sequence": {"id": "A", "type_id": 0}}
    second = {"Sequence": {"id": "B", "type_id": 1}}
    end = {"SpecialToken": {"id": "[SEP]", "type_id": 1}}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [added_token(ids[token], token, special=True) for token in known],
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": casing.tokenize_chinese_chars,
            "strip_accents": casing.strip_accents,
            "lowercase": casing.do_lower_case,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [cls, first, sep],
            "pair": [cls, first, sep, second, end],
            "special_tokens": {
                token: {"id": token, "ids": [ids.get(token, 0)], "tokens": [token]}
                for token in ("[CLS]", "[SEP]")
            },
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": ids,
        },
    }


def added_token(
    number: int,
    content: str,
    *,
    special: bool = False,
    normalized: bool | None = None,
    single_word: bool = False,
    lstrip: bool = False,
    rstrip: bool = False,
) -> dict:
    """An entry of "added_tokens"; where not said, special ones are looked for in the raw text, others in the normalised."""
    return {
        "id": number,
        "content": content,
        "single_word": single_word,
        "lstrip": lstrip,
        "rstrip": rstrip,
        "normalized": not special if normalized is None else normalized,
        "special": special,
    }


def open_fast(path: Path, fast: dict):
    """The tokenizers library's object of a tokenizer.json, every added token of which has the id that the file states."""
    from tokenizers import Tokenizer

    with library(path):
        backend = Tokenizer.from_str(json.dumps(fast))
    for entry in fast.get("added_tokens") or []:
        given = backend.token_to_id(entry["content"])
        # the library numbers them itself, on from the vocabulary, and passes over what a file says
        if given != entry["id"]:
            raise UserError(
                f"{path}: the added token {show(entry['content'])} has the id {entry['id']} there, but "
                f"{given} where it is read: ids before it are missing"
            )
    return backend


@contextlib.contextmanager
def library(path: Path) -> Iterator[None]:
    """Turns whatever the tokenizers library raises over a file into a UserError."""
    try:
        yield
    except (UserError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a bare Exception, or a panic of Rust, which is not even that
        raise UserError(
            f"{path}: the tokenizers library cannot use it ({first_sentence(error)}); fetch it again"
        ) from error


def normaliser(backend):
    """A tokenizer's normaliser as a function of text."""
    if backend.normalizer is None:
        return lambda text: text
    return backend.normalizer.normalize_str


def segments_given(path: Path, backend) -> bool:
    """Whether this tokenizer tells the second text from the first by its token types.

    Raises:
        UserError: where it puts two texts together otherwise than [CLS] A [SEP] B [SEP], as bertqa does.
    """
    cls, sep = backend.token_to_id("[CLS]"), backend.token_to_id("[SEP]")
    with library(path):
        # Any tokens will do, for only what stands around them is looked at.
        first = backend.encode("a", add_special_tokens=False).ids
        second = backend.encode("b b", add_special_tokens=False).ids
        made = backend.encode("a", "b b")
    if made.ids != [cls, *first, sep, *second, sep]:
        raise UserError(
            f"{path}: it puts two texts together as {' '.join(made.tokens)}, and BERT's models are fed "
            "[CLS] a [SEP] b b [SEP]; bertqa does not have that form"
        )
    if not any(made.type_ids):
        return False
    if made.type_ids != [0] * (len(first) + 2) + [1] * (len(second) + 1):
        raise UserError(
            f"{path}: it gives two texts the token types {made.type_ids}, and bertqa 0 to the first, 1 to the second"
        )
    return True
