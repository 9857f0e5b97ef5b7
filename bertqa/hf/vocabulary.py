"""The tokenizer files of a checkpoint, checked against each other and brought into one form.

Checkpoints hold tokenizer.json, or only vocab.txt (all of those before 2020), or both, with or without a
tokenizer_config.json and the tokens that were added later. A model folder always holds vocab.txt and a tokenizer.json
that neither cuts nor pads. The files must agree; nothing is ever assumed.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

from bertqa.errors import UserError, show
from bertqa.files import read_object, to_json, write_json, write_text
from bertqa.hf import casing
from bertqa.hf.fast import (
    add_later_tokens,
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
"""Tokenizer classes of transformers that do what vocab.txt and tokenizer.json say, and no more."""

SPECIAL_NAMES = {"cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
"""What configs call the special tokens that bertqa uses, and what they must be."""

INPUTS = {"input_ids", "attention_mask", "token_type_ids"}
"""What BERT is fed."""


@dataclass
class Installed:
    """What was found out about a tokenizer."""

    remarks: list[str] = field(default_factory=list)
    """For the report: casing and where it was read, what was dropped or derived."""
    segments: bool = True
    """Whether the checkpoint's own stack feeds token types; where not, all tokens are of the first segment."""


def install(source: Path, dest: Path, vocab_size: int, complete: bool = False) -> Installed:
    """Write vocab.txt, tokenizer.json and, where there is one, tokenizer_config.json of `source` into `dest`.

    Args:
        vocab_size: rows of the word embedding.
        complete: write a tokenizer_config.json also where the source has none.

    Raises:
        UserError: no vocabulary, another kind than WordPiece, files that contradict each other, special tokens that are
            missing, more tokens than the embedding has rows, or so few that it must be another model's.
    """
    done = Installed()
    fast_path = source / "tokenizer.json"
    vocab = read_vocab(source / "vocab.txt") if (source / "vocab.txt").exists() else None
    config = read_optional(source / "tokenizer_config.json")
    _check_config(source, config)
    # tokenizer.json is what transformers itself opens where there is one, so it counts, and vocab.txt must agree
    if fast_path.exists():
        fast, vocab = _ready(source, vocab, done.remarks)
    elif vocab is not None:
        fast = _made(source, vocab, config, done.remarks)
    else:
        raise UserError(
            f"{source}: has no vocab.txt and no tokenizer.json; fetch the tokenizer of this checkpoint too, "
            "for weights are of no use without it"
        )
    done.remarks += add_later_tokens(source, fast, config)
    tokens = tokens_by_id(fast_path, fast)
    if (source / "vocab.txt").exists():
        tokens = with_vocab(source, vocab, tokens)
    count = check_tokens(source, tokens, vocab_size)
    # Measured and not read: what a normaliser does to letters is what counts, whatever a field says of it.
    backend = open_fast(fast_path, fast)
    traits = casing.measure(normaliser(backend))
    if fast_path.exists():
        done.remarks.insert(0, casing.check_stated(source, traits, config))
    if count < vocab_size:
        done.remarks.append(
            f"{count:,} tokens; the last {vocab_size - count} of the embedding's {vocab_size:,} rows are unused"
        )
    done.remarks += casing.check_vocabulary(source, vocab, traits, normaliser(backend))
    # A model that was never fed token types has learned its first row only, whatever the tokenizer could say.
    fed = config.get("model_input_names")
    done.segments = segments_given(fast_path, backend) and (not fed or "token_type_ids" in fed)
    _write(dest, vocab, fast, config, traits, complete)
    return done


def _ready(source: Path, vocab: list[str] | None, remarks: list[str]) -> tuple[dict, list[str]]:
    """The tokenizer.json of a checkpoint, that neither cuts nor pads, and its vocabulary."""
    path = source / "tokenizer.json"
    fast = read_object(path)
    tokens = tokens_by_id(path, fast)
    if vocab is None:
        # Where a vocabulary held a token twice, one of the two ids has none left.
        plain = {number: token for token, number in fast["model"]["vocab"].items()}
        if max(plain) > 2 * len(plain):
            raise UserError(f"{path}: {len(plain):,} tokens have ids up to {max(plain):,}")
        vocab = [as_line(i, plain.get(i)) for i in range(max(plain) + 1)]
        remarks.append("vocab.txt made from tokenizer.json")
    with_vocab(source, vocab, tokens)
    # left by whoever saved it; every text would be cut and padded, unseen
    dropped = [name for name in ("truncation", "padding") if fast.get(name)]
    if dropped:
        remarks.append(
            f"tokenizer.json: {' and '.join(dropped)} dropped (windows are cut by bertqa)"
        )
    fast["truncation"] = None
    fast["padding"] = None
    return fast, vocab


def _made(source: Path, vocab: list[str], config: dict, remarks: list[str]) -> dict:
    """A tokenizer.json for a vocab.txt, cased or uncased as tokenizer_config.json says, or else as the vocabulary shows."""
    lowercase = config.get("do_lower_case")
    strip_accents = config.get("strip_accents")  # None: as lowercase
    why = "from tokenizer_config.json"
    accents = ""
    if lowercase is None:
        share = casing.capitals(vocab)
        lowercase = share <= casing.CASED_SHARE
        why = f"no file says so; {share:.0%} of the tokens of vocab.txt have capitals"
        if lowercase and strip_accents is None and _needs_accents(vocab):
            strip_accents = False
            accents = ", accents kept, for the vocabulary has them"
    remarks.append(f"{'uncased' if lowercase else 'cased'}{accents} ({why})")
    remarks.append("tokenizer.json made from vocab.txt")
    chinese = config.get("tokenize_chinese_chars") is not False
    return make_fast(vocab, lowercase, strip_accents, chinese)


def _needs_accents(vocab: list[str]) -> bool:
    """Whether taking accents off would make a part of the vocabulary unreachable: Korean is taken apart by it."""
    from tokenizers.normalizers import BertNormalizer

    strip = BertNormalizer(strip_accents=True).normalize_str
    keep = BertNormalizer(strip_accents=False).normalize_str
    plain = casing.plain_tokens(vocab)
    lost = len(casing.unreachable(plain, strip)) - len(casing.unreachable(plain, keep))
    return lost > casing.CASED_SHARE * len(plain)


def _check_config(source: Path, config: dict) -> None:
    """Refuse, by name, a tokenizer that does more than WordPiece or feeds more than BERT takes."""
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
    """What a tokenizer without tokenizer.json may be told and ours is not."""
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
    write_text(dest / "vocab.txt", "".join(token + "\n" for token in vocab))
    write_text(dest / "tokenizer.json", to_json(fast))
    if config:
        # tokenizer.json has the added tokens now; in two places they would come to differ
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
    """Id of [PAD]; 0 where the vocabulary has none."""
    vocab = read_vocab(folder / "vocab.txt")
    return vocab.index("[PAD]") if "[PAD]" in vocab else 0
