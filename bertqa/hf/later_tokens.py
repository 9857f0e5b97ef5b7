"""Tokens that were added to a vocabulary later, from the files in which the slow tokenizers of transformers keep them.

added_tokens.json               {token: id}, until 2023
tokenizer_config.json           "added_tokens_decoder": {id: {"content": token, flags}}, since then
either, special_tokens_map.json "additional_special_tokens": [token or {"content": token, flags}], ids where none says
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bertqa.errors import UserError
from bertqa.files import read_object, show
from bertqa.hf.fast import added_token

LISTS = ("additional_special_tokens", "extra_special_tokens")
"""Fields of a config that hold special tokens besides BERT's five; the second since transformers 5."""


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
    ids = {**vocab, **{entry["content"]: entry["id"] for entry in entries}}
    ready = {entry["content"] for entry in entries}
    new = []
    for token in _later_tokens(source, config):
        known = ids.get(token.content)
        if None not in (known, token.number) and known != token.number:
            raise UserError(
                f"{source}: the token {show(token.content)} has the id {token.number} in {token.where}, but "
                f"{known} elsewhere"
            )
        if token.content in ready:
            continue
        number = known if known is not None else token.number
        if number is None:
            number = max(ids.values()) + 1
        ids[token.content] = number
        ready.add(token.content)
        new.append(added_token(number, token.content, **token.flags))
    # in the order of ids, for the tokenizers library numbers them by their place
    fast["added_tokens"] = sorted(entries + new, key=lambda entry: entry["id"])
    if not new:
        return []
    return [f"{len(new)} added tokens: {', '.join(show(entry['content']) for entry in new[:8])}"]


def _later_tokens(source: Path, config: dict) -> list[Later]:
    """All of them; those with ids first, so that the others are numbered behind these."""
    special_map = source / "special_tokens_map.json"
    more = read_object(special_map) if special_map.exists() else {}
    listed = [
        *_of_lists(source / "tokenizer_config.json", config),
        *_of_lists(special_map, more),
    ]
    special = {token.content for token in listed}
    return [
        *_of_decoder(source / "tokenizer_config.json", config),
        *_of_added_tokens(source / "added_tokens.json", special),
        *listed,
    ]


def _of_added_tokens(path: Path, special: set[str]) -> Iterator[Later]:
    if not path.exists():
        return
    for content, number in read_object(path).items():
        yield Later(content, path.name, _id(path, number), {"special": content in special})


def _of_decoder(path: Path, config: dict) -> Iterator[Later]:
    decoder = config.get("added_tokens_decoder") or {}
    if not isinstance(decoder, dict):
        raise UserError(f'{path}: "added_tokens_decoder" is no object of id to token')
    for number, token in decoder.items():
        number = _id(path, int(number) if number.isdecimal() else number)
        content, flags = _content_and_flags(path, token)
        yield Later(content, path.name, number, flags=flags)


def _of_lists(path: Path, config: dict) -> Iterator[Later]:
    for name in LISTS:
        tokens = config.get(name) or []
        if isinstance(tokens, dict):
            tokens = list(tokens.values())
        if not isinstance(tokens, list):
            raise UserError(f"{path}: {name} is {show(tokens)}, expected a list of tokens")
        for token in tokens:
            content, flags = _content_and_flags(path, token)
            yield Later(content, path.name, flags={**flags, "special": True})


def _content_and_flags(path: Path, token: object) -> tuple[str, dict]:
    flags = token if isinstance(token, dict) else {"content": token}
    content = flags.get("content")
    if not isinstance(content, str) or not content:
        raise UserError(f"{path}: {show(token)} is no token")
    names = ("single_word", "lstrip", "rstrip", "normalized", "special")
    return content, {name: flags[name] for name in names if name in flags}


def _id(path: Path, number: object) -> int:
    # bool is an int to Python, and no id
    if type(number) is not int or number < 0:
        raise UserError(f"{path}: {show(number)} is no id of a token")
    return number
