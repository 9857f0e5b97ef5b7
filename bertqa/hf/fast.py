"""tokenizer.json ("fast" in transformers): make one from a vocabulary, complete its added tokens, and try it.

Added tokens are those that are not in the trained vocabulary. The slow tokenizers of transformers store them elsewhere:

added_tokens.json         {token: id}, until 2023
tokenizer_config.json     "added_tokens_decoder": {id: {"content": token, flags}}, since then
tokenizer_config.json and special_tokens_map.json
                          "additional_special_tokens": [token or {"content": token, flags}], without ids
"""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bertqa.errors import UserError, first_sentence, show
from bertqa.files import read_object

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def read_optional(path: Path) -> dict:
    """Return the object in a JSON file; {} if there is no such file."""
    return read_object(path) if path.exists() else {}


def make_fast(vocab: list[str], lowercase: bool, strip_accents: bool | None, chinese: bool) -> dict:
    """Return the tokenizer.json that does what transformers' BertTokenizer does with a WordPiece vocabulary.

    Args:
        strip_accents: None means the same as lowercase.
        chinese: whether each Chinese character becomes a word.
    """
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
            "handle_chinese_chars": chinese,
            "strip_accents": strip_accents,
            "lowercase": lowercase,
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


def added_token(number: int, content: str, *, special: bool = False, **flags: bool) -> dict:
    """Return an entry of "added_tokens". By default special tokens match the raw text, others the normalised text."""
    usual = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": not special}
    return {"id": number, "content": content, **usual, **flags, "special": special}


def open_fast(path: Path, fast: dict):
    """Load a tokenizer.json into the tokenizers library. Raise UserError if it reads an added token otherwise."""
    from tokenizers import Tokenizer

    with library(path):
        backend = Tokenizer.from_str(json.dumps(fast))
    normalise = normaliser(backend)
    for entry in fast.get("added_tokens") or []:
        # For "\u200d", say, the library would search for "", which is everywhere: wrong tokens, a panic, or no end.
        if entry.get("normalized") and not normalise(entry["content"]):
            raise UserError(
                f"{path}: of the added token {show(entry['content'])} the normaliser leaves nothing, so no text can "
                'hold it; take it out, or give it "normalized": false'
            )
        given = backend.token_to_id(entry["content"])
        # The library ignores the file's ids, and numbers added tokens after the vocabulary.
        if given != entry["id"]:
            raise UserError(
                f"{path}: the added token {show(entry['content'])} has the id {entry['id']} there, but "
                f"{given} where it is read: ids before it are missing"
            )
    return backend


@contextlib.contextmanager
def library(path: Path) -> Iterator[None]:
    """Turn whatever the tokenizers library raises about a file into a UserError."""
    try:
        yield
    except (UserError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library raises Exception; a panic in Rust is no Exception
        raise UserError(
            f"{path}: the tokenizers library cannot use it ({first_sentence(error)}); fetch it again"
        ) from error


def normaliser(backend):
    """Return a tokenizer's normaliser as a function of text."""
    if backend.normalizer is None:
        return lambda text: text
    return backend.normalizer.normalize_str


def segments_given(path: Path, backend) -> bool:
    """Return whether the tokenizer gives the second text of a pair token type 1.

    Raises:
        UserError: if it joins two texts otherwise than as [CLS] A [SEP] B [SEP].
    """
    cls = backend.token_to_id("[CLS]")
    sep = backend.token_to_id("[SEP]")
    with library(path):
        # Any texts will do: only the tokens around them matter.
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


# Added tokens

LISTS = ("additional_special_tokens", "extra_special_tokens")
"""Fields of a config that hold more special tokens than BERT's five; the second since transformers 5."""

NAMES = ("bos_token", "eos_token", "pad_token", "mask_token")
"""Fields of one special token each, numbered before those of LISTS. cls_token and its like must be BERT's own."""


@dataclass
class Added:
    """An added token as one of the files has it."""

    content: str
    where: str
    """The file, for messages."""
    number: int | None = None
    """Its id; None if the file does not state it."""
    flags: dict = field(default_factory=dict)


def complete_added_tokens(source: Path, fast: dict, config: dict) -> list[str]:
    """Put the added tokens that tokenizer.json lacks into it. Return a remark for the report if there are any.

    Raises:
        UserError: if two files give a token different ids, or an entry is not a token.
    """
    vocab = fast["model"]["vocab"]
    entries = list(fast.get("added_tokens") or [])
    ready = {entry["content"]: entry["id"] for entry in entries}
    ids = {**vocab, **ready}
    new = []
    for token in _added_tokens(source, config):
        number = ids.get(token.content, token.number)
        if token.number is not None and token.number != number:
            raise UserError(
                f"{source}: the token {show(token.content)} has the id {token.number} in {token.where}, but "
                f"{number} elsewhere"
            )
        # A token like [MASK] in the vocabulary alone would be split: it must be an added token too.
        if token.content in ready:
            continue
        if number is None:
            number = max(ids.values()) + 1
        ids[token.content] = number
        ready[token.content] = number
        new.append(added_token(number, token.content, **token.flags))
    # sorted by id, because the tokenizers library numbers them by position
    fast["added_tokens"] = sorted(entries + new, key=lambda entry: entry["id"])
    if not new:
        return []
    return [f"{len(new)} added tokens: {', '.join(show(entry['content']) for entry in new[:8])}"]


def _added_tokens(source: Path, config: dict) -> list[Added]:
    """Return the added tokens of all files: those with ids first, so that the others are numbered after them."""
    config_path = source / "tokenizer_config.json"
    map_path = source / "special_tokens_map.json"
    special_map = read_optional(map_path)
    stated = {**special_map, **config}
    without_id = []
    for name in NAMES:
        if stated.get(name):
            token = _token(config_path, stated[name], special=True)
            if token.content not in SPECIAL:
                without_id.append(token)
    without_id += _of_lists(config_path, config)
    without_id += _of_lists(map_path, special_map)

    special = {token.content for token in without_id}
    with_id = _of_decoder(config_path, config)
    added_path = source / "added_tokens.json"
    for content, value in read_optional(added_path).items():
        number = _id(added_path, value)
        with_id.append(_token(added_path, content, number, special=content in special))
    return with_id + without_id


def _of_decoder(path: Path, config: dict) -> list[Added]:
    """Return the tokens of "added_tokens_decoder"."""
    decoder = config.get("added_tokens_decoder") or {}
    if not isinstance(decoder, dict):
        raise UserError(f'{path}: "added_tokens_decoder" is no object of id to token')
    found = []
    for number, token in decoder.items():
        # JSON keys are text: "30522" is an id, and _id refuses what is no number
        number = _id(path, int(number) if number.isdecimal() else number)
        found.append(_token(path, token, number))
    return found


def _of_lists(path: Path, config: dict) -> list[Added]:
    """Return the tokens of the fields LISTS: lists, or since transformers 5 also objects of name to token."""
    found = []
    for name in LISTS:
        tokens = config.get(name) or []
        if isinstance(tokens, dict):
            tokens = list(tokens.values())
        if not isinstance(tokens, list):
            raise UserError(f"{path}: {name} is {show(tokens)}, expected a list of tokens")
        found += [_token(path, token, special=True) for token in tokens]
    return found


def _token(path: Path, token: object, number: int | None = None, **more: bool) -> Added:
    """Read a token from a file: text, or an object with "content" and flags. `more` flags override the file's."""
    given = token if isinstance(token, dict) else {"content": token}
    content = given.get("content")
    if not isinstance(content, str) or not content:
        raise UserError(f"{path}: {show(token)} is no token")
    names = ("single_word", "lstrip", "rstrip", "normalized", "special")
    flags = {name: given[name] for name in names if given.get(name) is not None}
    return Added(content, path.name, number, {**flags, **more})


def _id(path: Path, number: object) -> int:
    """Return the id, or raise UserError if it is none."""
    # not isinstance: True is an int in Python
    if type(number) is not int or number < 0:
        raise UserError(f"{path}: {show(number)} is no id of a token")
    return number
