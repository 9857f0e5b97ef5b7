"""Characters as readers see them: a letter with its accents and vowel signs, an emoji with what is joined to it.

A tokenizer may drop an accent or a variation selector, or make a token of it. An answer must not
end between the two all the same: "Dupré" written with a combining accent would lose the accent.
This is the rule of Unicode's grapheme clusters (UAX 29), without its tables for flags.
"""

import unicodedata
from functools import lru_cache

JOINERS = "\u200c\u200d"  # zero width non-joiner, zero width joiner
JOINER = "\u200d"
STACKERS = "\u094d\u09cd\u0acd\u0b4d\u0c4d\u0d4d\u1039\u17d2"
"""Signs of Indic scripts that write the next consonant under or into the one before."""
THAI_AM = "\u0e33\u0eb3"  # vowels of Thai and Lao that count as letters


@lru_cache(maxsize=1 << 16)
def extends(character: str) -> bool:
    """Whether a code point belongs to the character before it."""
    code = ord(character)
    return (
        unicodedata.category(character) in ("Mn", "Mc", "Me")  # accents, vowel signs, selectors
        or character in JOINERS
        or character in THAI_AM
        or 0x1160 <= code <= 0x11FF  # vowels and finals of Korean syllables in pieces
        or 0x1F3FB <= code <= 0x1F3FF  # skin tones
        or 0xE0020 <= code <= 0xE007F  # the letters of a flag, invisible
    )


def beginnings(text: str) -> list[int]:
    """The offsets at which a character of `text` begins, and its length.

    Example: e, combining accent, blank, x: 0, 2, 3, 4.
    """
    begins = [0]
    for place in range(1, len(text)):
        before, character = text[place - 1], text[place]
        # A mark behind a blank stands for itself: the blank is no part of an answer.
        marks_it = extends(character) and not before.isspace()
        if not marks_it and not joined(before, character):
            begins.append(place)
    if text:
        begins.append(len(text))
    return begins


def joined(before: str, character: str) -> bool:
    """Whether two code points that could stand alone are one character: a family of emoji, an Indic conjunct."""
    if before == JOINER:
        return unicodedata.category(character) == "So"
    return before in STACKERS and unicodedata.category(character) == "Lo"
