"""Check that the tokenizer files of a model fit its word embedding: a token for each row, a row for each token.

A tokenizer with too few or too many tokens belongs to another model, whose answers would be wrong. Only the files are
read here; the tokenizer itself is data/tokenizer.py.
"""

from pathlib import Path

from bertqa.errors import UserError, show
from bertqa.files import decode, read_bytes, read_object

NEEDED = ("[UNK]", "[CLS]", "[SEP]")
"""Special tokens of BERT that every vocabulary must have."""

PADDING_ROWS = 128
"""An embedding may have up to this many rows without a token (exclusive): sizes are often rounded up for speed."""


def read_vocab(path: Path) -> list[str]:
    """Read the tokens of a vocab.txt in the order of their ids, without blank lines at the end."""
    try:
        text = decode(read_bytes(path))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    # Not splitlines(), which also splits at U+2028 and the like; vocabularies contain these as tokens.
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    while lines and lines[-1] == "":
        lines.pop()
    return lines


def as_line(number: int, token: str | None) -> str:
    """Return the line of vocab.txt for an id: its token, or "[none5]" if id 5 has none or one that no line can hold."""
    if token is None or "\n" in token or token.endswith("\r"):
        return f"[none{number}]"
    return token


def tokens_by_id(path: Path, fast: dict) -> dict[int, str]:
    """Return the tokens of a tokenizer.json by id, including added tokens.

    Raises:
        UserError: if it is no WordPiece tokenizer, or an id has two tokens, or a token two ids.
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
        # type(), because True and False are instances of int.
        if type(number) is not int or number < 0:
            raise UserError(f"{path}: the token {show(content)} has the id {show(number)}")
        if number in found:
            raise UserError(
                f"{path}: the tokens {show(found[number])} and {show(content)} share the id {number}"
            )
        found[number] = content
    return found


def added_tokens(path: Path, fast: dict) -> dict[str, object]:
    """Return the ids of a tokenizer.json's added tokens (special tokens, and tokens beside the vocabulary)."""
    entries = fast.get("added_tokens") or []
    wrong = UserError(f'{path}: "added_tokens" is no list of objects with a "content" and an id')
    if not isinstance(entries, list):
        raise wrong
    ids = {}
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get("content"), str):
            raise wrong
        ids[entry["content"]] = entry.get("id")
    return ids


def with_vocab(where: Path, vocab: list[str], tokens: dict[int, str]) -> dict[int, str]:
    """Complete the tokens of tokenizer.json with those that vocab.txt has twice, of which the last id counts.

    vocab.txt  a b a [none3]  and the tokenizer's  {1: b, 2: a}  are one vocabulary: a has two lines, and tokenizer.json
    has lost the first of its ids; [none3] stands for an id without a token (`as_line`).

    Raises:
        UserError: if the two files have different vocabularies.
    """
    last_id = {token: number for number, token in enumerate(vocab)}
    for number, token in enumerate(vocab):
        is_first_of_two = number not in tokens and last_id[token] > number
        if token != as_line(number, tokens.get(number)) and not is_first_of_two:
            found = tokens.get(number, "missing")
            raise UserError(
                f"{where}: vocab.txt and tokenizer.json are of different vocabularies: token {number} is "
                f"{token!r} in one and {found!r} in the other; delete the wrong one"
            )
    return {**dict(enumerate(vocab)), **tokens}


def check_tokens(where: Path, tokens: dict[int, str], vocab_size: int) -> int:
    """Check that the tokens of the file `where` fit an embedding of `vocab_size` rows.

    Returns:
        The number of ids: one more than the last.

    Raises:
        UserError: if special tokens are missing, an id is beyond the embedding, or so many rows have no token that the
            vocabulary must be damaged or that of another model.
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
    # A few ids without a token are normal: of a token that vocab.txt has twice, tokenizer.json has the last id only.
    holes = count - len(tokens)
    if holes > max(1, count // 100):
        first = next(number for number in range(count) if number not in tokens)
        raise UserError(
            f"{where}: {holes:,} of the {count:,} ids have no token (the first is {first}); a part of the "
            "vocabulary is missing: fetch it again"
        )
    return count


def check_tokenizer(folder: str | Path, vocab_size: int) -> None:
    """Check that the tokenizer files of a folder, if it has any, fit an embedding of `vocab_size` rows.

    Raises:
        UserError: as `check_tokens`, and for files that cannot be read.
    """
    folder = Path(folder)
    fast_file = folder / "tokenizer.json"
    vocab_file = folder / "vocab.txt"
    if fast_file.exists():
        fast = read_object(fast_file)
        tokens = tokens_by_id(fast_file, fast)
        # Without it the tokenizers library raises at the first unknown word, in the middle of a job.
        unknown = fast["model"].get("unk_token", "[UNK]")
        if unknown not in fast["model"]["vocab"]:
            raise UserError(
                f"{fast_file}: its unknown token {show(unknown)} is not in its own vocabulary; copy the file anew"
            )
        if vocab_file.exists():
            tokens = with_vocab(folder, read_vocab(vocab_file), tokens)
        check_tokens(fast_file, tokens, vocab_size)
    elif vocab_file.exists():
        check_tokens(vocab_file, dict(enumerate(read_vocab(vocab_file))), vocab_size)
