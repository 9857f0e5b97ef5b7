"""Characters and words as readers see them.

A character may have several code points: a letter with its accents and vowel signs, an emoji with those that are joined to
it. A tokenizer may drop some of them, or make a token of each, but an answer must not end between two of them: "Dupré"
written with a combining accent would lose the accent. The rule is that of Unicode's grapheme clusters (UAX 29), without its
rule for pairs of flag letters.
"""

import unicodedata
from collections.abc import Iterator
from functools import lru_cache

JOINERS = "\u200c\u200d"  # zero width non-joiner, zero width joiner
JOINER = "\u200d"
STACKERS = "\u094d\u09cd\u0acd\u0b4d\u0c4d\u0d4d\u1039\u17d2"
"""Signs of Indic and other scripts that join the next consonant to the one before."""
THAI_AM = "\u0e33\u0eb3"  # vowels of Thai and Lao whose Unicode category is letter


@lru_cache(maxsize=1 << 16)
def extends(character: str) -> bool:
    """Return whether a code point always belongs to the character before it."""
    code = ord(character)
    return (
        unicodedata.category(character) in ("Mn", "Mc", "Me")  # accents, vowel signs, selectors
        or character in JOINERS
        or character in THAI_AM
        or 0x1160 <= code <= 0x11FF  # vowels and final consonants of decomposed Korean syllables
        or 0x1F3FB <= code <= 0x1F3FF  # skin tones
        or 0xE0020 <= code <= 0xE007F  # invisible letters that name a flag
    )


def beginnings(text: str) -> list[int]:
    """Return the offsets at which the characters of a text begin, and at which the last one ends.

    Example: for e, combining accent, blank, x they are 0, 2, 3, 4.
    """
    begins = [0]
    for place in range(1, len(text)):
        # A mark that follows a blank is a character of its own, because the blank is no part of an answer.
        is_mark = extends(text[place]) and not text[place - 1].isspace()
        if not is_mark and not joined(text, place):
            begins.append(place)
    if text:
        begins.append(len(text))
    return begins


def joined(text: str, place: int) -> bool:
    """Return whether the code point at `place`, which could stand alone, is joined to the character before it.

    That is so in a family of emoji, by a zero width joiner, and in an Indic conjunct, by a sign that a joiner may follow.
    """
    before = text[place - 1]
    kind = unicodedata.category(text[place])
    if before == JOINER and kind == "So":
        return True
    sign = text[max(0, place - 2)] if before == JOINER else before
    return sign in STACKERS and kind == "Lo"


@lru_cache(maxsize=1 << 16)
def _kind(character: str) -> str:
    """Return "letter" or "digit"; "" for what separates words, and for scripts that do not separate words by blanks."""
    code = ord(character)
    spaceless = (
        0x0E00 <= code <= 0x109F  # Thai, Lao, Tibetan, Burmese
        or 0x1780 <= code <= 0x17FF  # Khmer
        or 0x1100 <= code <= 0x11FF  # Korean, which writes particles without a blank
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
    """Return whether an offset lies between two letters or two digits, or within a number such as 1,000 or 5.25."""
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
    """Yield the offsets in context[low:high] at which the text occurs as whole words; occurrences may overlap."""
    # A long text that repeats itself could be found at every offset, so the work is bounded.
    tries = max(1000, 5_000_000 // len(text))
    start = context.find(text, low, high)
    while start >= 0 and tries:
        if not inside_word(context, start) and not inside_word(context, start + len(text)):
            yield start
        start = context.find(text, start + 1, high)
        tries -= 1


def only_place(context: str, text: str) -> int:
    """Return the only offset at which the text occurs as whole words; -1 if there is none or more than one."""
    places = whole_words(context, text)
    first = next(places, -1)
    second = next(places, -1)
    return first if second < 0 else -1
