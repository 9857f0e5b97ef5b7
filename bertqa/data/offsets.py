"""Where an answer stands in its paragraph, given its text and the offset that a file states, if any.

Files count in characters as Python does, or in the units of what made them (UTF-16 in JavaScript,
UTF-8 bytes, two for a line end on Windows). Their texts may differ from the paragraph's own in
blanks, case, accents or quotation marks. In this order:

    1. the text stands at the offset
    2. its letters and digits stand there, in another form: the paragraph's own characters are the answer
    3. the offset means another place in another unit, and the text stands there
    4. the text stands once as a whole word, anywhere; or clearly nearest to the offset

What stands only inside other words ("5" in 1952) is left without a place, and so is what cannot be told.
"""

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from bertqa.data.characters import extends
from bertqa.data.gold import Gold
from bertqa.data.units import CHARACTERS, UNITS, exact_place, in_characters
from bertqa.files import show

NEARBY = 20  # characters; offsets slip by a few through stripped blanks and byte order marks

MARKS = 3  # hyphens, quotation marks, zero width spaces: most of them in a row that a text may lack


@dataclass(slots=True)
class Placed:
    """An answer in its paragraph."""

    text: str
    """The paragraph's own characters; the text as given where start is -1."""
    start: int
    """-1: it could not be placed."""
    repaired: bool = False
    """Whether an offset was stated, and it or the text had to be mended."""


def place(context: str, gold: Gold, unit: str = CHARACTERS) -> Placed:
    """Find an answer in its paragraph; `unit` is what its file seems to count in."""
    text = gold.text.strip()
    if not text:
        return Placed("", -1)
    if gold.start < 0:
        return Placed(text, only_place(context, text))
    found = _at_span(context, text, gold)
    if found:
        return found
    units = [unit] if unit == CHARACTERS else [unit, CHARACTERS]
    for name in units:
        start = exact_place(context, gold, name)
        if start >= 0:
            return Placed(text, start, repaired=name != CHARACTERS)
    for name in units:
        own = other_form(context, text, in_characters(context, gold.start, name))
        if own:
            return Placed(own.text, own.start, repaired=True)
    for name in UNITS:
        start = exact_place(context, gold, name)
        if start >= 0:
            return Placed(text, start, repaired=True)
    start = only_place(context, text)
    if start < 0:
        start = clearly_nearest(context, text, gold.start)
    return Placed(text, start, repaired=start >= 0)


def _at_span(context: str, text: str, gold: Gold) -> Placed | None:
    """A span that is given to the character is worth more than its text, if their letters agree."""
    if gold.end < 0 or context.startswith(text, gold.start):
        return None
    piece = context[gold.start : gold.end]
    own = piece.strip()
    if not own or _letters_of(own) != _letters_of(text):
        return None
    return Placed(own, gold.start + piece.index(own))


# Another form of the same letters


@lru_cache(maxsize=1 << 16)
def _letters(character: str) -> str:
    """What makes a character the same in another form: its letters and digits, without case and accents."""
    plain = unicodedata.normalize("NFKD", character.casefold())
    kept = []
    for part in plain:
        vowel_sign = unicodedata.category(part)[0] == "M" and not unicodedata.combining(part)
        if (part.isalnum() or vowel_sign) and not 0xFE00 <= ord(part) <= 0xFE0F:
            kept.append(part)
    return "".join(kept)


def _letters_of(text: str) -> str:
    return "".join(map(_letters, text))


def other_form(context: str, text: str, start: int) -> Placed | None:
    """The paragraph's own characters from `start` on, where they have the letters of the text and end with a word.

    Blanks and quotation marks before the first letter are passed over, as far as the text has none.
    """
    wanted = _letters_of(text)
    if not wanted or not 0 <= start < len(context):
        return None
    begin = start
    while begin < min(start + MARKS, len(context)) and _passed_over(context[begin], text[0]):
        begin += 1
    if begin == len(context) or bool(_letters(context[begin])) != bool(_letters(text[0])):
        return None
    at, end, marks = 0, begin, 0
    while end < len(context) and at < len(wanted):
        letters = _letters(context[end])
        marks = 0 if letters or context[end].isspace() else marks + 1
        if marks > MARKS or not wanted.startswith(letters, at):
            return None
        at += len(letters)
        end += 1
    if at < len(wanted):
        return None
    while end < len(context) and extends(context[end]):
        end += 1
    # A full stop or a closing quotation mark belongs to the answer where its text has one.
    for mark in text[len(text.rstrip(_marks_of(text))) :]:
        if end < len(context) and _looks_like(context[end], mark):
            end += 1
    if inside_word(context, begin) or inside_word(context, end):
        return None
    return Placed(context[begin:end], begin, repaired=True)


def _passed_over(character: str, first: str) -> bool:
    """Whether a character of the paragraph is none of the answer's, whose text begins with `first`."""
    if character.isspace() or unicodedata.category(character) == "Cf":
        return True
    return not _letters(character) and bool(_letters(first))


def _marks_of(text: str) -> str:
    """The characters of the text that are no letters."""
    return "".join({character for character in text if not _letters(character)})


def _looks_like(character: str, mark: str) -> bool:
    """Whether both are the same mark, or quotation marks and dashes of any form."""
    return character == mark or (not _letters(character) and not character.isspace())


# Whole words


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
    """Whether an offset lies between two letters, or two digits, of one word."""
    if not 0 < place < len(context):
        return False
    kind = _kind(context[place])
    return bool(kind) and kind == _kind(context[place - 1])


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
    first, second = next(places, -1), next(places, -1)
    return first if second < 0 else -1


def clearly_nearest(context: str, text: str, start: int) -> int:
    """Where the text stands near to `start`, with the next place at least twice as far; else -1.

    Example: "cat" at 0, 5 and 10. From 6 it is 1 and 4 to the next ones, so 5; from 7 it is 2 and 3: not clear.
    """
    reach = 2 * NEARBY + 1
    low = max(0, start - reach)
    places = list(whole_words(context, text, low, max(0, start) + reach + len(text)))
    places.sort(key=lambda place: abs(place - start))
    if not places:
        return -1
    nearest = abs(places[0] - start)
    second = abs(places[1] - start) if len(places) > 1 else 2 * nearest
    if nearest <= NEARBY and 2 * nearest <= second:
        return places[0]
    return -1


def why_unplaced(context: str, gold: Gold) -> str:
    """Why an answer could not be placed, for people."""
    text = gold.text.strip()
    if not text:
        return "the answer text is empty"
    if text not in context:
        return f"the answer {show(text)} does not occur in the context"
    if next(whole_words(context, text), -1) < 0:
        return f"the answer {show(text)} occurs only inside other words"
    if gold.start >= 0:
        return (
            f"the answer {show(text)} occurs more than once, and answer_start is not clearly nearest "
            "to one of them"
        )
    more = f"; its keys are {show(list(gold.keys))}" if len(gold.keys) > 1 else ""
    return f"the answer {show(text)} occurs more than once, and no offset says which one is meant{more}"
