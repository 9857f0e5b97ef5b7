"""Measure what a tokenizer's normaliser does to the letters of each script, and which tokens it makes unreachable.

Wrong lower-casing is a classic mistake (F1 81.97 in place of 88.52), so files that contradict each other or the vocabulary
are refused. Each script is tried, because a normaliser may treat them differently.
"""

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bertqa.errors import UserError, show

CASED_SHARE = 0.02
"""A vocabulary whose tokens with capitals are a larger share was made without lower-casing (bert-base-cased: 0.28;
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
"""Letters that stripping accents changes: those with an accent, and vowel signs."""


@dataclass
class Traits:
    """What a normaliser does, for each script."""

    lowers: dict[str, bool]
    """Whether it lower-cases all capitals of the script."""
    strips: dict[str, bool]
    """Whether it strips an accent of any letter of the script."""
    chinese: bool
    """Whether it puts spaces around Chinese characters."""

    @property
    def lowercase(self) -> bool:
        """Whether it lower-cases every script."""
        return all(self.lowers.values())

    @property
    def strip_accents(self) -> bool:
        """Whether it strips accents in every script."""
        return all(self.strips.values())

    def describe(self) -> str:
        """Say in a few words how it treats capitals, and accents if that does not follow: "uncased", "cased", ..."""
        case = _in_words(self.lowers, "uncased", "cased", "capitals kept in")
        # BERT's normaliser strips accents where it lower-cases, unless told otherwise: then the case says it all.
        if set(self.strips.values()) == set(self.lowers.values()):
            return case
        accents = _in_words(self.strips, "accents taken off", "accents kept", "but kept in")
        return f"{case}, {accents}"


def _in_words(changes: dict[str, bool], all_changed: str, none_changed: str, but: str) -> str:
    """Word a trait: "uncased", "cased", or "uncased, capitals kept in Greek"."""
    kept = [script for script, is_changed in changes.items() if not is_changed]
    if not kept:
        return all_changed
    if len(kept) == len(changes):
        return none_changed
    return f"{all_changed}, {but} {' and '.join(kept)}"


def measure(normalise: Callable[[str], str]) -> Traits:
    """Try a normaliser on the letters of every script."""
    lowers = {}
    for script, letters in CAPITALS.items():
        lowers[script] = not any(made.isupper() for made in normalise(letters))
    strips = {}
    for script, letters in ACCENTED.items():
        # NFC, because a normaliser that writes é as e and a combining accent has not stripped it
        kept = [unicodedata.normalize("NFC", normalise("x" + c)) == "x" + c for c in letters]
        strips[script] = not all(kept)
    return Traits(lowers, strips, chinese=normalise("中").strip() != normalise("中"))


def unreachable(tokens: list[str], normalise: Callable[[str], str]) -> list[str]:
    """Return the tokens that no text can give, because the normaliser changes their letters."""
    lost = []
    for token in tokens:
        body = token.removeprefix("##")
        # spaces around Chinese characters do not count as a change
        if normalise(body).replace(" ", "") != body.replace(" ", ""):
            lost.append(token)
    return lost


def plain_tokens(vocab: list[str]) -> list[str]:
    """Return the tokens of text: all but [CLS], [unused7] and the like, which do not pass through the normaliser."""
    return [token for token in vocab if not (token.startswith("[") and token.endswith("]"))]


def share_of_capitals(vocab: list[str]) -> float:
    """Return the share of the tokens of text that hold a capital letter of any script."""
    plain = plain_tokens(vocab)
    return sum(any(c.isupper() for c in token) for token in plain) / max(1, len(plain))


def check_stated(source: Path, traits: Traits, config: dict) -> str:
    """Raise UserError if tokenizer_config.json contradicts what tokenizer.json does. Return the remark for the report."""
    measured = {
        "do_lower_case": set(traits.lowers.values()),
        "strip_accents": set(traits.strips.values()),
        "tokenize_chinese_chars": {traits.chinese},
    }
    # For a tokenizer that lower-cases some scripts only, true and false are both accepted.
    for name, values in measured.items():
        stated = config.get(name)
        if stated is not None and stated not in values:
            does = "does not do" if stated else "does"
            raise UserError(
                f"{source}: the tokenizer files contradict each other: tokenizer_config.json has {name} "
                f"{show(stated)}, but tokenizer.json {does} that; find out how the model was trained and "
                "correct the other file"
            )
    return f"{traits.describe()} (from tokenizer.json)"


def check_vocabulary(
    source: Path, vocab: list[str], traits: Traits, normalise: Callable[[str], str]
) -> list[str]:
    """Return remarks on the tokens that the normaliser makes unreachable.

    Raises:
        UserError: if the normaliser lower-cases text and the vocabulary has capitals.
    """
    plain = plain_tokens(vocab)
    lost = unreachable(plain, normalise)
    lowers = any(traits.lowers.values())
    share = share_of_capitals(vocab)
    # The lost tokens are counted too: a tokenizer may keep Latin capitals and lower-case the vocabulary's few Greek ones.
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
    # Not `share`: an uncased vocabulary may hold "ℝ", a capital that lower-casing does not change.
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
