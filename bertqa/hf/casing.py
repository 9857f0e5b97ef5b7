"""What a tokenizer's normaliser does to letters, measured on every script, and which tokens it makes unreachable.

Lower-casing is the classic trap (F1 81.97 in place of 88.52), so files that contradict each other or the vocabulary are
refused; nothing is ever assumed of a script that was not tried.
"""

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bertqa.errors import UserError, show

CASED_SHARE = 0.02
"""A vocabulary with a larger share of tokens with capitals in them was made without lower-casing (bert-base-cased: 0.28;
bert-base-uncased: 0)."""

CAPITALS = {"Latin": "ABCXYZÀÉÑÖŠŽ", "Greek": "ΑΒΓΔΣΩΆ", "Cyrillic": "АБВГДЯЙЎ", "Armenian": "ԱԲԳԴ"}
"""Capital letters of the scripts that have them."""

ACCENTED = {
    "Latin": "éàñöšž",
    "Greek": "άέή",
    "Cyrillic": "йёў",
    "Hindi": "\u0941\u0947\u094d",
    "Arabic": "\u064b\u064e\u0650",
    "Hebrew": "\u05b0\u05b4\u05b5",
    "Thai": "\u0e31\u0e34\u0e35",
    "Japanese": "がぱ",
}
"""Letters that taking accents off changes: those with an accent, and vowel signs."""


@dataclass
class Traits:
    """What a normaliser does, script by script."""

    lowers: dict[str, bool]
    """Whether no capital of the script is left."""
    strips: dict[str, bool]
    """Whether a letter of the script loses its accent."""
    chinese: bool
    """Whether Chinese characters are set apart from each other."""

    @property
    def lowercase(self) -> bool:
        return all(self.lowers.values())

    @property
    def strip_accents(self) -> bool:
        return all(self.strips.values())

    def describe(self) -> str:
        """cased or uncased, in a few words."""
        case = _in_words(self.lowers, "uncased", "cased", "capitals kept in")
        if set(self.strips.values()) == set(self.lowers.values()):
            return case  # accents go with the capitals, as BERT's normaliser has it
        accents = _in_words(self.strips, "accents taken off", "accents kept", "but kept in")
        return f"{case}, {accents}"


def _in_words(does: dict[str, bool], all_of_them: str, none: str, but: str) -> str:
    kept = [script for script, done in does.items() if not done]
    if not kept:
        return all_of_them
    if len(kept) == len(does):
        return none
    return f"{all_of_them}, {but} {' and '.join(kept)}"


def measure(normalise: Callable[[str], str]) -> Traits:
    """Try a normaliser on letters of every script."""
    lowers = {}
    for script, letters in CAPITALS.items():
        lowers[script] = not any(made.isupper() for made in normalise(letters))
    strips = {}
    for script, letters in ACCENTED.items():
        # composed again: to write é as e and an accent is not to lose it
        kept = [unicodedata.normalize("NFC", normalise("x" + c)) == "x" + c for c in letters]
        strips[script] = not all(kept)
    return Traits(lowers, strips, chinese=normalise("中").strip() != normalise("中"))


def unreachable(tokens: list[str], normalise: Callable[[str], str]) -> list[str]:
    """The tokens that no text can give, because the normaliser changes their letters."""
    lost = []
    for token in tokens:
        body = token.removeprefix("##")
        # Chinese characters get spaces around them, and stay themselves
        if normalise(body).replace(" ", "") != body.replace(" ", ""):
            lost.append(token)
    return lost


def plain_tokens(vocab: list[str]) -> list[str]:
    """The tokens that stand for text: not [CLS], [unused7] and their like, which no normaliser sees."""
    return [token for token in vocab if not (token.startswith("[") and token.endswith("]"))]


def capitals(vocab: list[str]) -> float:
    """Share of the tokens with a capital letter of any script in them."""
    plain = plain_tokens(vocab)
    return sum(any(c.isupper() for c in token) for token in plain) / max(1, len(plain))


def check_stated(source: Path, traits: Traits, config: dict) -> str:
    """tokenizer_config.json must not say otherwise than tokenizer.json does; returns the remark for the report."""
    does = {
        "do_lower_case": set(traits.lowers.values()),
        "strip_accents": set(traits.strips.values()),
        "tokenize_chinese_chars": {traits.chinese},
    }
    # Of a tokenizer that lowers some scripts, true and false are both right.
    for name, measured in does.items():
        says = config.get(name)
        if says is not None and says not in measured:
            done = "does not do" if says else "does"
            raise UserError(
                f"{source}: the tokenizer files contradict each other: tokenizer_config.json has {name} "
                f"{show(says)}, but tokenizer.json {done} that; find out how the model was trained and "
                "correct the other file"
            )
    return f"{traits.describe()} (from tokenizer.json)"


def check_vocabulary(
    source: Path, vocab: list[str], traits: Traits, normalise: Callable[[str], str]
) -> list[str]:
    """Remarks on the tokens that the normaliser makes unreachable.

    Raises:
        UserError: text is lower-cased for a vocabulary with capitals: the files contradict each other.
    """
    plain = plain_tokens(vocab)
    lost = unreachable(plain, normalise)
    lowers = any(traits.lowers.values())
    share = capitals(vocab)
    # Of some scripts only: a tokenizer that keeps Latin capitals may lower the few Greek ones of its vocabulary.
    lost_capitals = sum(token.lower() != token for token in lost)
    if lowers and share > CASED_SHARE and lost_capitals > CASED_SHARE * len(plain):
        raise UserError(
            f"{source}: the tokenizer lower-cases, but {share:.0%} of the tokens of its vocabulary have capitals "
            "and could never be used: casing contradicts the vocabulary; set do_lower_case to false in "
            'tokenizer_config.json (and "lowercase" in tokenizer.json), or bring the right vocabulary'
        )
    remarks = []
    letters = "".join(CAPITALS.values())
    known = set(vocab)
    has_small = not known.isdisjoint(letters.lower())
    # Not the share: an uncased vocabulary may hold "ℝ", which lower-casing leaves as it is.
    if not lowers and has_small and known.isdisjoint(letters):
        remarks.append(
            "warning: the tokenizer keeps capitals, but its vocabulary has none; capitalised words become [UNK]"
        )
    if lost:
        remarks.append(
            f"{len(lost):,} tokens of the vocabulary ({len(lost) / len(vocab):.1%}) can never be made, for the "
            f"tokenizer changes their letters: {', '.join(map(show, lost[:5]))}"
        )
    return remarks
