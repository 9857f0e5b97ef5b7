"""tokenizer.json: made for a vocab.txt, given the tokens that were added later, and tried.

The slow tokenizers of transformers keep such tokens in files of their own:

added_tokens.json               {token: id}, until 2023
tokenizer_config.json           "added_tokens_decoder": {id: {"content": token, flags}}, since then
either, special_tokens_map.json "additional_special_tokens": [token or {"content": token, flags}], ids where none says
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
    """The object that a JSON file holds; {} where there is none."""
    return read_object(path) if path.exists() else {}


def make_fast(vocab: list[str], lowercase: bool, strip_accents: bool | None, chinese: bool) -> dict:
    """The tokenizer.json of a BERT WordPiece vocabulary (what transformers' BertTokenizer has always done).

    Args:
        strip_accents: None: as lowercase.
        chinese: whether Chinese characters are set apart from each other.
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
    """An entry of "added_tokens"; where not said, special ones are looked for in the raw text, others in the normalised."""
    usual = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": not special}
    return {"id": number, "content": content, **usual, **flags, "special": special}


def open_fast(path: Path, fast: dict):
    """The tokenizers library's object of a tokenizer.json, every added token of which has the id that the file states."""
    from tokenizers import Tokenizer

    with library(path):
        backend = Tokenizer.from_str(json.dumps(fast))
    normalise = normaliser(backend)
    for entry in fast.get("added_tokens") or []:
        # "\u200d", say. The library then finds nothing everywhere: wrong tokens, a panic, or no end.
        if entry.get("normalized") and not normalise(entry["content"]):
            raise UserError(
                f"{path}: of the added token {show(entry['content'])} the normaliser leaves nothing, so no text can "
                'hold it; take it out, or give it "normalized": false'
            )
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


# Tokens that were added later

LISTS = ("additional_special_tokens", "extra_special_tokens")
"""Fields of a config that hold special tokens besides BERT's five; the second since transformers 5."""

NAMES = ("bos_token", "eos_token", "pad_token", "mask_token")
"""Fields for one such token each. They are numbered before those of the lists; the others must be BERT's own."""


@dataclass
class Later:
    """A token as one of the files gives it."""

    content: str
    where: str
    """The file, for messages."""
    number: int | None = None
    """Its id; None where the file does not say."""
    flags: dict = field(default_factory=dict)


def add_later_tokens(source: Path, fast: dict, config: dict) -> list[str]:
    """Give a tokenizer.json the added tokens that it lacks; returns a remark for the report where there are any.

    Raises:
        UserError: where files give one token two ids, and for what is no token.
    """
    vocab = fast["model"]["vocab"]
    entries = list(fast.get("added_tokens") or [])
    ready = {entry["content"]: entry["id"] for entry in entries}
    ids = {**vocab, **ready}
    new = []
    for token in _later_tokens(source, config):
        known = ids.get(token.content)
        if None not in (known, token.number) and known != token.number:
            raise UserError(
                f"{source}: the token {show(token.content)} has the id {token.number} in {token.where}, but "
                f"{known} elsewhere"
            )
        # Only in the vocabulary, a token like [MASK] would be taken apart: it must be an added token too.
        if token.content in ready:
            continue
        number = ids.get(token.content, token.number)
        if number is None:
            number = max(ids.values()) + 1
        ids[token.content] = number
        ready[token.content] = number
        new.append(added_token(number, token.content, **token.flags))
    # in the order of ids, for the tokenizers library numbers them by their place
    fast["added_tokens"] = sorted(entries + new, key=lambda entry: entry["id"])
    if not new:
        return []
    return [f"{len(new)} added tokens: {', '.join(show(entry['content']) for entry in new[:8])}"]


def _later_tokens(source: Path, config: dict) -> list[Later]:
    """All of them; those with ids first, so that the others are numbered behind these."""
    path = source / "tokenizer_config.json"
    special_map = source / "special_tokens_map.json"
    more = read_optional(special_map)
    listed = []
    stated = {**more, **config}
    for name in NAMES:
        if stated.get(name):
            token = _later(path, stated[name], special=True)
            if token.content not in SPECIAL:
                listed.append(token)
    listed += _of_lists(path, config)
    listed += _of_lists(special_map, more)

    special = {token.content for token in listed}
    numbered = _of_decoder(path, config)
    added = source / "added_tokens.json"
    for content, number in read_optional(added).items():
        numbered.append(_later(added, content, _id(added, number), special=content in special))
    return numbered + listed


def _of_decoder(path: Path, config: dict) -> list[Later]:
    """Those of "added_tokens_decoder"."""
    decoder = config.get("added_tokens_decoder") or {}
    if not isinstance(decoder, dict):
        raise UserError(f'{path}: "added_tokens_decoder" is no object of id to token')
    found = []
    for number, token in decoder.items():
        # a key of JSON is text: "30522" is an id, and what is no number is refused as it stands
        number = _id(path, int(number) if number.isdecimal() else number)
        found.append(_later(path, token, number))
    return found


def _of_lists(path: Path, config: dict) -> list[Later]:
    """Those of the LISTS; transformers 5 writes objects of name to token."""
    found = []
    for name in LISTS:
        tokens = config.get(name) or []
        if isinstance(tokens, dict):
            tokens = list(tokens.values())
        if not isinstance(tokens, list):
            raise UserError(f"{path}: {name} is {show(tokens)}, expected a list of tokens")
        found += [_later(path, token, special=True) for token in tokens]
    return found


def _later(path: Path, token: object, number: int | None = None, **more: bool) -> Later:
    """A token as a file has it: its text, or an object with that and flags, to which `more` are added."""
    given = token if isinstance(token, dict) else {"content": token}
    content = given.get("content")
    if not isinstance(content, str) or not content:
        raise UserError(f"{path}: {show(token)} is no token")
    names = ("single_word", "lstrip", "rstrip", "normalized", "special")
    flags = {name: given[name] for name in names if given.get(name) is not None}
    return Later(content, path.name, number, {**flags, **more})


def _id(path: Path, number: object) -> int:
    # bool is an int to Python, and no id
    if type(number) is not int or number < 0:
        raise UserError(f"{path}: {show(number)} is no id of a token")
    return number
