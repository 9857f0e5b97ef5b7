"""The tokenizer files of a model, held against its word embedding: an id for each row, a row for each id.

A tokenizer that lacks tokens, or has more than there are rows, belongs to another model: it would answer wrongly or not
at all. Only the files are read here; data/tokenizer.py puts them to use.
"""

from pathlib import Path

from bertqa.errors import UserError, show
from bertqa.files import decode, read_bytes, read_object

NEEDED = ("[UNK]", "[CLS]", "[SEP]")
"""BERT's special tokens that bertqa puts into every text."""

PADDING_ROWS = 128
"""An embedding may have fewer than this many rows more than there are tokens: sizes are rounded up for speed."""


def read_vocab(path: Path) -> list[str]:
    """The tokens of vocab.txt in the order of their ids, without the blank lines at its end."""
    try:
        text = decode(read_bytes(path))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    # Only "\n" ends a token: vocabularies hold U+2028 and its like as tokens, which splitlines() would cut at.
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    while lines and lines[-1] == "":
        lines.pop()
    return lines


def as_line(number: int, token: str | None) -> str:
    """How vocab.txt writes the token with this id: "[none5]" for an id without one, and for what no line can hold."""
    fits = token is not None and "\n" not in token and not token.endswith("\r")
    return token if fits else f"[none{number}]"


def tokens_by_id(path: Path, fast: dict) -> dict[int, str]:
    """The tokens of a tokenizer.json, those that were added included.

    Raises:
        UserError: it is no WordPiece tokenizer, or one id has two tokens, or one token two ids.
    """
    model = fast.get("model")
    kind = model.get("type", "WordPiece") if isinstance(model, dict) else "nameless"
    if kind != "WordPiece":
        raise UserError(
            f"{path}: is a {kind} tokenizer; bertqa reads BERT's WordPiece vocabularies only"
        )
    vocab = model.get("vocab")
    if not isinstance(vocab, dict) or not vocab:
        raise UserError(f'{path}: has no "vocab" of token to id')
    ids = dict(vocab)
    for content, number in added_tokens(path, fast).items():
        if ids.setdefault(content, number) != number:
            raise UserError(
                f"{path}: the token {show(content)} has two ids, {ids[content]} and {number}"
            )
    found: dict[int, str] = {}
    for content, number in ids.items():
        # bool is an int to Python, and no id
        if type(number) is not int or number < 0:
            raise UserError(f"{path}: the token {show(content)} has the id {show(number)}")
        if number in found:
            raise UserError(
                f"{path}: the tokens {show(found[number])} and {show(content)} share the id {number}"
            )
        found[number] = content
    return found


def added_tokens(path: Path, fast: dict) -> dict[str, object]:
    """Content -> id of the tokens that stand beside the vocabulary of a tokenizer.json."""
    entries = fast.get("added_tokens") or []
    fine = isinstance(entries, list) and all(
        isinstance(entry, dict) and isinstance(entry.get("content"), str) for entry in entries
    )
    if not fine:
        raise UserError(f'{path}: "added_tokens" is no list of objects with a "content" and an id')
    return {entry["content"]: entry.get("id") for entry in entries}


def with_vocab(where: Path, vocab: list[str], tokens: dict[int, str]) -> dict[int, str]:
    """The tokens of tokenizer.json, completed by those that vocab.txt holds twice: of these the last id counts.

    vocab.txt  a b a [none3]  and the tokenizer's  {1: b, 2: a}  are one vocabulary: a stands twice, and its first id is lost
    in tokenizer.json; [none3] was made by us (`as_line`).

    Raises:
        UserError: the two files are of different vocabularies.
    """
    last = {
        token: number for number, token in enumerate(vocab)
    }  # of a token that stands twice, its last id
    for number, token in enumerate(vocab):
        stands_twice = number not in tokens and last[token] > number
        if token != as_line(number, tokens.get(number)) and not stands_twice:
            found = tokens.get(number, "missing")
            raise UserError(
                f"{where}: vocab.txt and tokenizer.json are of different vocabularies: token {number} is "
                f"{token!r} in one and {found!r} in the other; delete the wrong one"
            )
    return {**dict(enumerate(vocab)), **tokens}


def check_tokens(where: Path, tokens: dict[int, str], vocab_size: int) -> int:
    """Hold the tokens of `where` against an embedding of `vocab_size` rows.

    Returns:
        The number of ids: one more than the last.

    Raises:
        UserError: special tokens are missing, ids lie beyond the embedding, or so many rows have no token that the
            vocabulary must be of another model, or damaged.
    """
    count = max(tokens) + 1
    known = set(tokens.values())
    lost = [token for token in NEEDED if token not in known]
    if lost:
        raise UserError(
            f"{where}: the vocabulary has no {' and no '.join(lost)}; bertqa needs BERT's special tokens"
        )
    if count > vocab_size:
        raise UserError(
            f"{where}: the vocabulary has {count:,} tokens, but the word embedding only {vocab_size:,} rows; "
            "vocabulary and weights are of different models"
        )
    unused = vocab_size - count
    if unused >= PADDING_ROWS or 3 * unused > vocab_size:
        raise UserError(
            f"{where}: the vocabulary has {count:,} tokens, but the word embedding {vocab_size:,} rows: "
            f"{unused:,} too many for rounding up; vocabulary and weights are of different models"
        )
    # Vocabularies that hold a token twice exist: without vocab.txt, the first of its two ids is left without one.
    holes = count - len(tokens)
    if holes > max(1, count // 100):
        first = next(number for number in range(count) if number not in tokens)
        raise UserError(
            f"{where}: {holes:,} of the {count:,} ids have no token (the first is {first}); a part of the "
            "vocabulary is missing: fetch it again"
        )
    return count


def check_tokenizer(folder: str | Path, vocab_size: int) -> None:
    """Hold the tokenizer files of a model folder against its embedding; nothing to do where it has none.

    Raises:
        UserError: as `check_tokens`, and for files that cannot be read.
    """
    folder = Path(folder)
    ready, plain = folder / "tokenizer.json", folder / "vocab.txt"
    if ready.exists():
        fast = read_object(ready)
        tokens = tokens_by_id(ready, fast)
        # the tokenizers library would raise at the first word that it does not know, in the middle of a job
        unknown = fast["model"].get("unk_token", "[UNK]")
        if unknown not in fast["model"]["vocab"]:
            raise UserError(
                f"{ready}: its unknown token {show(unknown)} is not in its own vocabulary; copy the file anew"
            )
        if plain.exists():
            tokens = with_vocab(folder, read_vocab(plain), tokens)
        check_tokens(ready, tokens, vocab_size)
    elif plain.exists():
        check_tokens(plain, dict(enumerate(read_vocab(plain))), vocab_size)
