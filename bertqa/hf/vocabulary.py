"""Check a checkpoint's tokenizer files against each other, and write them in one form.

Checkpoints hold tokenizer.json, or only vocab.txt (all before 2020), or both, with or without tokenizer_config.json and
files of added tokens. A model folder always holds vocab.txt and a tokenizer.json that neither truncates nor pads. Files that
contradict each other are refused.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from bertqa.errors import UserError, show
from bertqa.files import read_object, to_json, write_json, write_text
from bertqa.hf import casing
from bertqa.hf.fast import (
    complete_added_tokens,
    make_fast,
    normaliser,
    open_fast,
    read_optional,
    segments_given,
)
from bertqa.model.vocabulary import as_line, check_tokens, read_vocab, tokens_by_id, with_vocab

CLASSES = re.compile(
    "PreTrainedTokenizerFast|TokenizersBackend|"
    "(Bert|DistilBert|Electra|MobileBert|RetriBert|ConvBert|Lxmert|LayoutLM|SqueezeBert)Tokenizer(Fast)?|"
    "DPR(Reader|QuestionEncoder|ContextEncoder)Tokenizer(Fast)?"
)
"""Tokenizer classes of transformers whose tokens follow from vocab.txt and tokenizer.json alone."""

SPECIAL_NAMES = {"cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
"""Field of a config -> the special token that it must name."""

INPUTS = {"input_ids", "attention_mask", "token_type_ids"}
"""Names of the tensors that BERT takes."""


@dataclass
class Installed:
    """What `install` found out about a tokenizer."""

    remarks: list[str]
    """For the report: casing and which file says so, and what was dropped or derived."""
    segments: bool
    """Whether the checkpoint's own tokenizer gives token types; if not, the model was trained with segment 0 alone."""


def install(source: Path, dest: Path, vocab_size: int, complete: bool = False) -> Installed:
    """Write the tokenizer of `source` into `dest`: vocab.txt, tokenizer.json, and tokenizer_config.json if `source` has one.

    Args:
        vocab_size: rows of the word embedding.
        complete: write tokenizer_config.json in any case.

    Raises:
        UserError: if there is no vocabulary, it is not WordPiece, files contradict each other, special tokens are missing,
            or there are more tokens than embedding rows, or so few that the vocabulary must be another model's.
    """
    remarks: list[str] = []
    fast_path = source / "tokenizer.json"
    vocab = read_vocab(source / "vocab.txt") if (source / "vocab.txt").exists() else None
    config = read_optional(source / "tokenizer_config.json")
    _check_config(source, config)
    # transformers opens tokenizer.json if there is one, so vocab.txt must agree with it
    if fast_path.exists():
        fast, vocab = _read_fast(source, vocab, remarks)
    elif vocab is not None:
        fast = _make_from_vocab(source, vocab, config, remarks)
    else:
        raise UserError(
            f"{source}: has no vocab.txt and no tokenizer.json; fetch the tokenizer of this checkpoint too, "
            "for weights are of no use without it"
        )
    remarks += complete_added_tokens(source, fast, config)
    tokens = tokens_by_id(fast_path, fast)
    if (source / "vocab.txt").exists():
        tokens = with_vocab(source, vocab, tokens)
    count = check_tokens(source, tokens, vocab_size)
    # Casing is measured: several fields and normalisers can change letters, and only the result counts.
    backend = open_fast(fast_path, fast)
    traits = casing.measure(normaliser(backend))
    if fast_path.exists():
        remarks.insert(0, casing.check_stated(source, traits, config))
    if count < vocab_size:
        remarks.append(
            f"{count:,} tokens; the last {vocab_size - count} of the embedding's {vocab_size:,} rows are unused"
        )
    remarks += casing.check_vocabulary(source, vocab, traits, normaliser(backend))
    # A model trained without token types has learned the embedding of segment 0 only, even if its tokenizer gives them.
    inputs = config.get("model_input_names") or INPUTS
    gives_segments = segments_given(fast_path, backend)
    _write(dest, vocab, fast, config, traits, complete)
    return Installed(remarks, segments=gives_segments and "token_type_ids" in inputs)


def _read_fast(source: Path, vocab: list[str] | None, remarks: list[str]) -> tuple[dict, list[str]]:
    """Return a checkpoint's tokenizer.json without truncation and padding, and its vocabulary in the order of ids.

    Args:
        vocab: of vocab.txt, which must agree; None if there is none.
    """
    path = source / "tokenizer.json"
    fast = read_object(path)
    tokens = tokens_by_id(path, fast)
    if vocab is None:
        # An id may lack a token: a vocabulary that held a token twice keeps one of its ids only.
        plain = {number: token for token, number in fast["model"]["vocab"].items()}
        if max(plain) > 2 * len(plain):
            raise UserError(f"{path}: {len(plain):,} tokens have ids up to {max(plain):,}")
        vocab = [as_line(i, plain.get(i)) for i in range(max(plain) + 1)]
        remarks.append("vocab.txt made from tokenizer.json")
    with_vocab(source, vocab, tokens)
    # Settings of the process that saved the file: every text would silently be cut or padded.
    dropped = [name for name in ("truncation", "padding") if fast.get(name)]
    if dropped:
        remarks.append(
            f"tokenizer.json: {' and '.join(dropped)} dropped (windows are cut by bertqa)"
        )
    fast["truncation"] = None
    fast["padding"] = None
    return fast, vocab


def _make_from_vocab(source: Path, vocab: list[str], config: dict, remarks: list[str]) -> dict:
    """Make a tokenizer.json for a vocab.txt. If tokenizer_config.json does not state the casing, the vocabulary decides."""
    lowercase = config.get("do_lower_case")
    strip_accents = config.get("strip_accents")  # None: the same as lowercase
    why = "from tokenizer_config.json"
    accents = ""
    if lowercase is None:
        share = casing.share_of_capitals(vocab)
        lowercase = share <= casing.CASED_SHARE
        why = f"no file says so; {share:.0%} of the tokens of vocab.txt have capitals"
        if lowercase and strip_accents is None and _needs_accents(vocab):
            strip_accents = False
            accents = ", accents kept, for the vocabulary has them"
    case = "uncased" if lowercase else "cased"
    remarks.append(f"{case}{accents} ({why})")
    remarks.append("tokenizer.json made from vocab.txt")
    chinese = config.get("tokenize_chinese_chars") is not False
    return make_fast(vocab, lowercase, strip_accents, chinese)


def _needs_accents(vocab: list[str]) -> bool:
    """Return whether stripping accents would make a part of the vocabulary unreachable, as it does with Korean."""
    from tokenizers.normalizers import BertNormalizer

    strip = BertNormalizer(strip_accents=True).normalize_str
    keep = BertNormalizer(strip_accents=False).normalize_str
    plain = casing.plain_tokens(vocab)
    lost = len(casing.unreachable(plain, strip)) - len(casing.unreachable(plain, keep))
    return lost > casing.CASED_SHARE * len(plain)


def _check_config(source: Path, config: dict) -> None:
    """Raise UserError for a tokenizer that does more than BERT's WordPiece, or gives other inputs than INPUTS."""
    path = source / "tokenizer_config.json"
    wrong = []
    for name in ("do_lower_case", "strip_accents", "tokenize_chinese_chars"):
        if not isinstance(config.get(name), bool | None):
            wrong.append(f"{name} {config[name]!r}")
    if wrong:
        raise UserError(f"{path}: {', '.join(wrong)}; expected true, false or null")
    model_config = read_optional(source / "config.json")
    kind = config.get("tokenizer_class") or model_config.get("tokenizer_class")
    problems = []
    if kind is not None and not CLASSES.fullmatch(str(kind)):
        problems.append(f"tokenizer_class {show(kind)}")
    if config.get("auto_map"):
        problems.append("auto_map, code of its own")
    inputs = config.get("model_input_names") or []
    if not isinstance(inputs, list) or set(map(str, inputs)) - INPUTS:
        problems.append(f"model_input_names {show(inputs)}")
    for name, usual in (("word_tokenizer_type", "basic"), ("subword_tokenizer_type", "wordpiece")):
        if config.get(name) not in (None, usual):
            problems.append(f"{name} {show(config[name])}")
    if not (source / "tokenizer.json").exists():
        problems += _slow_problems(config)
    stated = {**read_optional(source / "special_tokens_map.json"), **config}
    for name, usual in SPECIAL_NAMES.items():
        token = stated.get(name)
        content = token.get("content") if isinstance(token, dict) else token
        if content not in (None, usual):
            problems.append(f"{name} {show(content)} in place of {usual}")
    if problems:
        raise UserError(
            f"{path}: the tokenizer needs more than BERT's WordPiece: {'; '.join(problems)}; bertqa does not "
            "have that, and other tokens would be other answers"
        )


def _slow_problems(config: dict) -> list[str]:
    """Return the options of a slow tokenizer (one without tokenizer.json) that bertqa does not have."""
    problems = []
    if config.get("do_basic_tokenize") is False:
        problems.append("do_basic_tokenize false")
    if config.get("never_split"):
        problems.append(f"never_split {show(config['never_split'])}")
    if config.get("wordpieces_prefix", "##") != "##":
        problems.append(f"wordpieces_prefix {show(config['wordpieces_prefix'])}")
    return problems


def _write(
    dest: Path, vocab, fast: dict, config: dict, traits: casing.Traits, complete: bool
) -> None:
    """Write the files of `install`."""
    write_text(dest / "vocab.txt", "".join(token + "\n" for token in vocab))
    write_text(dest / "tokenizer.json", to_json(fast))
    if config:
        # tokenizer.json holds the added tokens now; a second copy could come to differ
        kept = {name: value for name, value in config.items() if name != "added_tokens_decoder"}
        write_json(dest / "tokenizer_config.json", kept)
    elif complete:
        stated = {
            "tokenizer_class": "BertTokenizer",
            "do_lower_case": traits.lowercase,
            "strip_accents": traits.strip_accents,
            "tokenize_chinese_chars": traits.chinese,
        }
        write_json(dest / "tokenizer_config.json", stated)


def pad_id(folder: Path) -> int:
    """Return the id of [PAD]; 0 if the vocabulary has none."""
    vocab = read_vocab(folder / "vocab.txt")
    return vocab.index("[PAD]") if "[PAD]" in vocab else 0
