"""The tokenizer files of a checkpoint, checked against each other and brought into one form.

Checkpoints hold tokenizer.json, or only vocab.txt (all of those before 2020), or both, with or without a
tokenizer_config.json. A model folder always holds vocab.txt and a tokenizer.json that neither cuts nor pads. Lower-casing
is the classic trap (F1 81.97 in place of 88.52), so the files must agree on it; nothing is ever assumed.
"""

import json
from pathlib import Path

from bertqa.errors import UserError

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CASED_SHARE = 0.02
"""A vocabulary with a larger share of tokens with A-Z in them was made without lower-casing (bert-base-cased: 0.28;
bert-base-uncased: 0)."""
PADDING_ROWS = 128
"""An embedding may have fewer than this many rows more than there are tokens: sizes are rounded up for speed."""


def install(source: Path, dest: Path, vocab_size: int, complete: bool = False) -> list[str]:
    """Write vocab.txt, tokenizer.json and, where there is one, tokenizer_config.json of `source` into `dest`.

    Args:
        vocab_size: rows of the word embedding.
        complete: write a tokenizer_config.json also where the source has none.

    Returns:
        Remarks for the report: casing and where it was read, what was dropped or derived.

    Raises:
        UserError: no vocabulary, another kind than WordPiece, files that contradict each other, special tokens that are
            missing, more tokens than the embedding has rows, or so few that it must be another model's.
    """
    vocab_path, fast_path = source / "vocab.txt", source / "tokenizer.json"
    config = _read_object(source / "tokenizer_config.json") or {}
    vocab, fast = _read_vocab(vocab_path), _read_object(fast_path)
    wrong = [
        f"{name} {config[name]!r}"
        for name in ("do_lower_case", "strip_accents", "tokenize_chinese_chars")
        if not isinstance(config.get(name), bool | None)
    ]
    if wrong:
        raise UserError(
            f"{source}/tokenizer_config.json: {', '.join(wrong)}; expected true, false or null"
        )
    if vocab is None and fast is None:
        raise UserError(
            f"{source}: has no vocab.txt and no tokenizer.json; fetch the tokenizer of this checkpoint too, "
            "for weights are of no use without it"
        )
    remarks = []
    if fast is None:
        lowercase, remark = _casing_without_fast(source, vocab, config)
        fast = make_fast(
            vocab,
            lowercase=lowercase,
            strip_accents=config.get("strip_accents"),
            chinese=config.get("tokenize_chinese_chars", True),
        )
        remarks += [remark, "tokenizer.json made from vocab.txt"]
    else:
        fast_vocab = _fast_vocab(fast_path, fast)
        if vocab is None:
            # Where a vocabulary held a token twice, one of the two ids has none left.
            vocab = [fast_vocab.get(i, f"[none{i}]") for i in range(max(fast_vocab) + 1)]
            remarks.append("vocab.txt made from tokenizer.json")
        at = next((i for i, token in enumerate(vocab) if fast_vocab.get(i, token) != token), None)
        if at is not None:
            raise UserError(
                f"{source}: vocab.txt and tokenizer.json are of different vocabularies: token {at} is "
                f"{vocab[at]!r} in one and {fast_vocab[at]!r} in the other; delete the wrong one"
            )
        remarks.append(_check_fast(source, fast, config))
        dropped = [name for name in ("truncation", "padding") if fast.get(name)]
        if dropped:
            remarks.append(
                f"tokenizer.json: {' and '.join(dropped)} dropped (windows are cut by bertqa)"
            )
        fast = {**fast, "truncation": None, "padding": None}
    tokens = _check_tokens(source, vocab, fast, vocab_size)
    if tokens < vocab_size:
        remarks.append(
            f"{tokens:,} tokens; the last {vocab_size - tokens} of the embedding's {vocab_size:,} rows are unused"
        )
    remarks += _check_capitals(source, vocab, _traits(fast)[0])
    if vocab_path.exists():
        (dest / "vocab.txt").write_bytes(vocab_path.read_bytes())
    else:
        (dest / "vocab.txt").write_text(
            "".join(token + "\n" for token in vocab), encoding="utf-8", newline="\n"
        )
    (dest / "tokenizer.json").write_text(json.dumps(fast, ensure_ascii=False), encoding="utf-8")
    if config:
        (dest / "tokenizer_config.json").write_bytes(
            (source / "tokenizer_config.json").read_bytes()
        )
    elif complete:
        lowercase, strip, chinese = _traits(fast)
        stated = {
            "tokenizer_class": "BertTokenizer",
            "do_lower_case": lowercase,
            "strip_accents": strip,
            "tokenize_chinese_chars": chinese,
        }
        (dest / "tokenizer_config.json").write_text(
            json.dumps(stated, indent=2) + "\n", encoding="utf-8"
        )
    return remarks


def pad_id(folder: Path) -> int:
    """Id of [PAD]; 0 where the vocabulary has none."""
    vocab = _read_vocab(folder / "vocab.txt")
    return vocab.index("[PAD]") if "[PAD]" in vocab else 0


def make_fast(
    vocab: list[str], *, lowercase: bool, strip_accents: bool | None, chinese: bool
) -> dict:
    """The tokenizer.json of a BERT WordPiece vocabulary (what transformers' BertTokenizer has always done)."""
    ids = {token: i for i, token in enumerate(vocab)}
    cls, sep = ({"SpecialToken": {"id": token, "type_id": 0}} for token in ("[CLS]", "[SEP]"))
    first, second = ({"Sequence": {"id": name, "type_id": i}} for i, name in enumerate("AB"))
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": i,
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for i, token in sorted((ids[token], token) for token in SPECIAL if token in ids)
        ],
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
            "pair": [cls, first, sep, second, {"SpecialToken": {"id": "[SEP]", "type_id": 1}}],
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


def _read_vocab(path: Path) -> list[str] | None:
    if not path.exists():
        return None
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 (byte {error.start}); fetch it again") from error
    # Only "\n" ends a token: vocabularies hold U+2028 and its like as tokens, which splitlines() would cut at.
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    return lines[:-1] if lines[-1] == "" else lines


def _read_object(path: Path) -> dict | None:
    if not path.exists():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); fetch it again") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds a JSON {type(value).__name__}, expected an object")
    return value


def _fast_vocab(path: Path, fast: dict) -> dict[int, str]:
    """Tokens by id."""
    model = fast.get("model")
    kind = model.get("type", "WordPiece") if isinstance(model, dict) else "nameless"
    if kind != "WordPiece":
        raise UserError(
            f"{path}: is a {kind} tokenizer; bertqa reads BERT's WordPiece vocabularies only"
        )
    _traits(fast)  # the tokenizers library checks the rest of the file
    return {i: token for token, i in model["vocab"].items()}


def _traits(fast: dict) -> tuple[bool, bool, bool]:
    """(lower-cases, strips accents, splits Chinese characters), as the normaliser really does, however it is spelled."""
    from tokenizers import Tokenizer

    try:
        normalizer = Tokenizer.from_str(json.dumps(fast)).normalizer
    except Exception as error:  # the library raises a bare Exception
        raise UserError(
            f"tokenizer.json: the tokenizers library cannot read it ({error})"
        ) from error
    if normalizer is None:
        return False, False, False
    return (
        normalizer.normalize_str("A") == "a",
        normalizer.normalize_str("é") == "e",
        normalizer.normalize_str("中").strip() != normalizer.normalize_str("中"),
    )


def _check_fast(source: Path, fast: dict, config: dict) -> str:
    """tokenizer_config.json must not say otherwise than tokenizer.json does."""
    lowercase, strip, chinese = _traits(fast)
    stated = {"do_lower_case": lowercase, "strip_accents": strip, "tokenize_chinese_chars": chinese}
    for name, does in stated.items():
        says = config.get(name)
        if says is not None and says != does:
            raise UserError(
                f"{source}: the tokenizer files contradict each other: tokenizer_config.json has {name} "
                f"{json.dumps(says)}, but tokenizer.json {'does' if does else 'does not do'} that; find out "
                "how the model was trained and correct the other file"
            )
    return (
        f"{'uncased' if lowercase else 'cased'}{'' if strip == lowercase else ', accents kept' if lowercase else ''} "
        "(from tokenizer.json)"
    )


def _casing_without_fast(source: Path, vocab: list[str], config: dict) -> tuple[bool, str]:
    if config.get("do_lower_case") is not None:
        lowercase = bool(config["do_lower_case"])
        return lowercase, f"{'uncased' if lowercase else 'cased'} (from tokenizer_config.json)"
    lowercase = _capitals(vocab) <= CASED_SHARE
    return lowercase, (
        f"{'uncased' if lowercase else 'cased'} (no file says so; {_capitals(vocab):.0%} of the tokens of "
        "vocab.txt have capitals)"
    )


def _capitals(vocab: list[str]) -> float:
    """Share of tokens with A-Z in them, special tokens aside."""
    plain = [token for token in vocab if not (token.startswith("[") and token.endswith("]"))]
    return sum(any("A" <= c <= "Z" for c in token) for token in plain) / max(1, len(plain))


def _check_capitals(source: Path, vocab: list[str], lowercase: bool) -> list[str]:
    """Lower-casing text for a vocabulary with capitals loses a part of it: the files contradict each other."""
    share = _capitals(vocab)
    if lowercase and share > CASED_SHARE:
        raise UserError(
            f"{source}: the tokenizer lower-cases, but {share:.0%} of the tokens of its vocabulary have capitals "
            "and could never be used: casing contradicts the vocabulary; set do_lower_case to false in "
            'tokenizer_config.json (and "lowercase" in tokenizer.json), or bring the right vocabulary'
        )
    if not lowercase and share == 0:
        return [
            "warning: the tokenizer keeps capitals, but its vocabulary has none; capitalised words become [UNK]"
        ]
    return []


def _check_tokens(source: Path, vocab: list[str], fast: dict, vocab_size: int) -> int:
    """How many ids there are; they must fit the embedding."""
    last = max([len(vocab) - 1] + [token["id"] for token in fast.get("added_tokens") or []])
    lost = [token for token in ("[UNK]", "[CLS]", "[SEP]") if token not in vocab]
    if lost:
        raise UserError(
            f"{source}: the vocabulary has no {' and no '.join(lost)}; bertqa needs BERT's special tokens"
        )
    if last >= vocab_size:
        raise UserError(
            f"{source}: the vocabulary has {last + 1:,} tokens, but the word embedding only {vocab_size:,} rows; "
            "vocabulary and weights are of different models"
        )
    if last + 1 <= vocab_size - PADDING_ROWS:
        raise UserError(
            f"{source}: the vocabulary has {last + 1:,} tokens, but the word embedding {vocab_size:,} rows: "
            f"{vocab_size - last - 1:,} too many for rounding up; vocabulary and weights are of different models"
        )
    return last + 1
