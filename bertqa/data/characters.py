"""Characters and words as readers see them. A character: a letter with its accents and vowel signs, an emoji with what is joined to it.

A tokenizer may drop an accent or a variation selector, or make a token of it. An answer must not
end between the two all the same: "Dupré" written with a combining accent would lose the accent.
This is the rule of Unicode's grapheme clusters (UAX 29), without its tables for flags.
"""

import unicodedata
from collections.abc import Iterator
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
        # A mark behind a blank stands for itself: the blank is no part of an answer.
        marks = extends(text[place]) and not text[place - 1].isspace()
        if not marks and not joined(text, place):
            begins.append(place)
    if text:
        begins.append(len(text))
    return begins


def joined(text: str, place: int) -> bool:
    """Whether a code point that could stand alone is one character with those before it.

    A family of emoji, tied by joiners; an Indic conjunct, tied by a sign, with a joiner behind it or without.
    """
    before = text[place - 1]
    kind = unicodedata.category(text[place])
    if before == JOINER and kind == "So":
        return True
    sign = text[max(0, place - 2)] if before == JOINER else before
    return sign in STACKERS and kind == "Lo"


@lru_cache(maxsize=1 << 16)
def _kind(character: str) -> str:
    """ "letter" or "digit"; "" for what parts words, and for scripts that write words without blanks between."""
    code = ord(character)
    spaceless = (
        0x0E00 <= code <= 0x109F  # Thai, Lao, Tibetan, Burmese
        or 0x1780 <= code <= 0x17FF  # Khmer
        or 0x1100 <= code <= 0x11FF  # Korean, whose particles join the word
        or 0xAC00 <= code <= 0xD7FF
        or 0x3040 <= code <= 0x9FFF  # Japanese, Chinese
        or 0xF900 <= code <= 0xFAFF
        or 0xFF66 <= code <= 0xFF9F
        or 0x20000 <= code <= 0x3FFFF
    )
    if spaceless:
        return ""
    if character.isdigit():
        return "digit"
    return "letter" if character.isalpha() or extends(character) else ""


def inside_word(context: str, place: int) -> bool:
    """Whether an offset lies between two letters, or two digits, of one word, or within a number such as 1,000 or 5.25."""
    if not 0 < place < len(context):
        return False
    before = context[place - 1]
    after = context[place]
    kind = _kind(after)
    if kind and kind == _kind(before):
        return True
    if after in ".,":
        return before.isdigit() and context[place + 1 : place + 2].isdigit()
    if before in ".,":
        return after.isdigit() and context[max(0, place - 2)].isdigit()
    return False


def whole_words(context: str, text: str, low: int = 0, high: int | None = None) -> Iterator[int]:
    """Where the text stands in context[low:high] without cutting a word; places may overlap."""
    # A long text that repeats itself could be found at every offset: the work is bounded.
    tries = max(1000, 5_000_000 // len(text))
    start = context.find(text, low, high)
    while start >= 0 and tries:
        if not inside_word(context, start) and not inside_word(context, start + len(text)):
            yield start
        start = context.find(text, start + 1, high)
        tries -= 1


def only_place(context: str, text: str) -> int:
    """Where the text stands as a whole word, if that is one place; else -1."""
    places = whole_words(context, text)
    first = next(places, -1)
    second = next(places, -1)
    return first if second < 0 else -1
