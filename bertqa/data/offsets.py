"""Place a gold answer in its paragraph, given its text and the offset that its file states, if any.

Files count offsets in characters as Python does, or in the units of the tool that wrote them (UTF-16 units in JavaScript,
UTF-8 bytes, two for a line end on Windows). Answer texts may differ from the paragraph in blanks, case, accents or quotation
marks. These are tried in order:

    1. The text is at the offset.
    2. Its letters and digits are there in another form: the paragraph's own characters become the answer.
    3. The text is where the offset points in another unit.
    4. The text occurs only once in the paragraph as a whole word, or one occurrence is clearly nearest to the offset.

A text that occurs only inside other words ("5" in 1952), or whose place is ambiguous, is not placed.
"""

import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

from bertqa.data.characters import extends, inside_word, only_place, whole_words
from bertqa.data.questions import Gold
from bertqa.errors import show

NEARBY = (
    20  # characters by which an offset may be off, through stripped blanks or a byte order mark
)
MARKS = 3  # hyphens, quotation marks or zero width spaces in a row that an answer's text may lack
CHARACTERS = "characters"


def utf16_units(character: str) -> int:
    """Return how many UTF-16 code units a character takes."""
    return 1 + (character > "\uffff")


def utf8_bytes(character: str) -> int:
    """Return how many UTF-8 bytes a character takes."""
    return len(character.encode("utf-8", "surrogatepass"))


UNITS: dict[str, Callable[[str], int]] = {
    CHARACTERS: lambda character: 1,
    "UTF-16 units": utf16_units,
    "UTF-8 bytes": utf8_bytes,
    "characters, line ends as two": lambda character: 1 + (character == "\n"),
    "characters, line ends as one": lambda character: 1 - (character == "\r"),
    "characters in NFC": lambda character: int(not unicodedata.combining(character)),
    "characters in NFD": lambda character: len(unicodedata.normalize("NFD", character)),
    "UTF-16 units, line ends as two": lambda c: utf16_units(c) + (c == "\n"),
    "UTF-8 bytes, line ends as two": lambda c: utf8_bytes(c) + (c == "\n"),
}
"""What a file's offsets may count -> how much one character counts."""

FROM_ONE = "characters from 1"
"""Offsets in characters of which the first is 1."""


@dataclass(slots=True)
class Placed:
    """An answer in its paragraph."""

    text: str  # the paragraph's own characters; the stated text if start is -1
    start: int  # offset in characters; -1: not placed
    repaired: bool = False  # whether an offset was stated, and it or the text had to be changed


def place(context: str, gold: Gold, unit: str = CHARACTERS) -> Placed:
    """Place an answer in its paragraph; `unit`, a key of UNITS, is what its file probably counts."""
    text = gold.text.strip()
    if not text:
        return Placed("", -1)
    if gold.start < 0:
        return Placed(text, only_place(context, text))
    found = _at_span(context, text, gold)
    if found:
        return found
    # The file's unit comes first, but a single answer may still be counted in characters.
    likely = [unit] if unit == CHARACTERS else [unit, CHARACTERS]
    found = _at_offset(context, gold, likely)
    if found:
        return found
    for name in likely:
        found = other_form(context, text, in_characters(context, gold.start, name))
        if found:
            return found
    # Other units come before the nearest match, which may be another occurrence of the text.
    found = _at_offset(context, gold, UNITS)
    if found:
        return found
    start = only_place(context, text)
    if start < 0:
        start = clearly_nearest(context, text, gold.start)
    return Placed(text, start, repaired=start >= 0)


def _at_offset(context: str, gold: Gold, units: Iterable[str]) -> Placed | None:
    """Place an answer whose text is at its offset, counted in the first of these units for which that is so; else None."""
    for unit in units:
        start = exact_place(context, gold, unit)
        if start >= 0:
            return Placed(gold.text.strip(), start, repaired=unit != CHARACTERS)
    return None


def _at_span(context: str, text: str, gold: Gold) -> Placed | None:
    """Return the span that a file states with start and end, if it has the letters of the text, else None."""
    if gold.end < 0 or context.startswith(text, gold.start):
        return None
    piece = context[gold.start : gold.end]
    own = piece.strip()
    if not own or _letters_of(own) != _letters_of(text):
        return None
    return Placed(own, gold.start + piece.index(own))


# Units. A unit explains an answer if the answer's text is at its offset, counted in that unit


def exact_place(context: str, gold: Gold, unit: str = CHARACTERS) -> int:
    """Return the offset in characters of the stripped text, if it is at the stated offset in `unit`; else -1."""
    text = gold.text.strip()
    lead = gold.text.index(text)
    start = in_characters(context, gold.start, unit)
    # If " mill" is stated at 7, the letter m is at 8, or at 7 if the file counted after stripping.
    for offset in (start + lead, start):
        if start >= 0 and context.startswith(text, offset):
            return offset
    return -1


@lru_cache(maxsize=8)
def _offsets(context: str, unit: str) -> list[int]:
    """Return the offset, counted in `unit`, of each character of the context, and of its end; they never fall."""
    sizes = map(UNITS[unit], context)
    return list(accumulate(sizes, initial=0))


def in_characters(context: str, start: int, unit: str) -> int:
    """Convert an offset from `unit` to characters; -1 if it lies inside a character or beyond the end.

    Example: the characters of "😀 ab" are at 0, 2, 3, 4 in UTF-16 units. So 3 becomes 2, and 1 becomes -1.
    """
    if unit == CHARACTERS or start < 0:
        return start
    if unit == FROM_ONE:
        return start - 1
    offsets = _offsets(context, unit)
    # The last of equal offsets, because characters before it count 0 (a combining accent in NFC).
    place = bisect_right(offsets, start) - 1
    return place if offsets[place] == start else -1


def unit_of(answers: Iterable[tuple[str, Gold]]) -> str:
    """Return the unit that explains most of these pairs of paragraph and answer; characters if no unit explains more."""
    stated = [(context, gold) for context, gold in answers if _has_offset(gold)]
    missed = [(context, gold) for context, gold in stated if exact_place(context, gold) < 0]
    best = CHARACTERS
    most = len(stated) - len(missed)
    for unit in (*UNITS, FROM_ONE):
        # Skip early a unit that explains none of the answers that characters do not explain.
        if not any(exact_place(context, gold, unit) >= 0 for context, gold in missed):
            continue
        explained = sum(exact_place(context, gold, unit) >= 0 for context, gold in stated)
        # Being off by one is also a common mistake: only a file that is so throughout counts from 1.
        if unit == FROM_ONE and (explained < len(stated) or explained < 3):
            continue
        if explained > most:
            best = unit
            most = explained
    return best


def _has_offset(gold: Gold) -> bool:
    return gold.start >= 0 and bool(gold.text.strip())


def unit_of_paragraph(context: str, golds: list[Gold], unit: str) -> str:
    """Return a unit that explains all answers of a paragraph, first of all the file's `unit`; `unit` if there is none."""
    stated = [gold for gold in golds if _has_offset(gold)]
    for name in dict.fromkeys([unit, *UNITS]):
        if all(exact_place(context, gold, name) >= 0 for gold in stated):
            return name
    return unit


# The same letters in another form


@lru_cache(maxsize=1 << 16)
def _letters(character: str) -> str:
    """Return the letters and digits of a character, without case and accents: "" for a mark or a blank."""
    plain = unicodedata.normalize("NFKD", character.casefold())
    kept = []
    for part in plain:
        vowel_sign = unicodedata.category(part)[0] == "M" and not unicodedata.combining(part)
        variation_selector = 0xFE00 <= ord(part) <= 0xFE0F
        if (part.isalnum() or vowel_sign) and not variation_selector:
            kept.append(part)
    return "".join(kept)


def _letters_of(text: str) -> str:
    return "".join(_letters(character) for character in text)


def other_form(context: str, text: str, start: int) -> Placed | None:
    """Return the paragraph's characters from `start` on that have the letters of the text, if they are whole words.

    Blanks and quotation marks that the text does not begin with are skipped first. Example: the text "elin-varga" has the
    letters elinvarga. In the paragraph “Elin Varga” the quotation mark is skipped, and the answer is Elin Varga.
    """
    wanted = _letters_of(text)
    if not wanted or not 0 <= start < len(context):
        return None
    begin = start
    limit = min(start + MARKS, len(context))
    while begin < limit and _is_skipped(context[begin], text[0]):
        begin += 1
    if begin == len(context):
        return None
    # The answer begins with a letter if the text does, and with a mark if the text does.
    if (_letters(context[begin]) == "") != (_letters(text[0]) == ""):
        return None
    end = _end_of_letters(context, begin, wanted)
    if end < 0:
        return None
    # For each mark at the end of the text, such as a full stop or a quotation mark, take one mark more, of any form.
    marks = "".join({character for character in text if not _letters(character)})
    for mark in text[len(text.rstrip(marks)) :]:
        here = context[end : end + 1]
        if here == mark or (here and not _letters(here) and not here.isspace()):
            end += 1
    if inside_word(context, begin) or inside_word(context, end):
        return None
    return Placed(context[begin:end], begin, repaired=True)


def _end_of_letters(context: str, begin: int, wanted: str) -> int:
    """Return where the letters `wanted`, with their accents, end if they begin at `begin`; -1 if other letters are there."""
    found = 0  # letters of `wanted` found so far
    marks = 0  # marks in a row
    end = begin
    while found < len(wanted):
        if end == len(context):
            return -1
        letters = _letters(context[end])
        marks += 1
        if letters or context[end].isspace():
            marks = 0
        if marks > MARKS or not wanted.startswith(letters, found):
            return -1
        found += len(letters)
        end += 1
    while end < len(context) and extends(context[end]):
        end += 1
    return end


def _is_skipped(character: str, first: str) -> bool:
    """Return whether to skip a character in search of an answer whose text begins with the character `first`."""
    if character.isspace() or unicodedata.category(character) == "Cf":
        return True
    return not _letters(character) and bool(_letters(first))


def clearly_nearest(context: str, text: str, start: int) -> int:
    """Return the place of the text that is at most NEARBY from `start`, if any other is at least twice as far; else -1.

    Example: "cat" occurs at 0, 5 and 10. From 6 the distances are 1 and 4, so 5. From 7 they are 2 and 3, so -1.
    """
    reach = 2 * NEARBY + 1  # an occurrence beyond is more than twice as far as the nearest may be
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
    """Word the reason why an answer could not be placed."""
    text = gold.text.strip()
    if not text:
        return "the answer text is empty"
    if text not in context:
        return f"the answer {show(text)} does not occur in the context"
    if next(whole_words(context, text), -1) < 0:
        return f"the answer {show(text)} occurs only inside other words"
    several = f"the answer {show(text)} occurs more than once, and"
    if gold.start >= 0:
        return f"{several} answer_start is not clearly nearest to one of them"
    keys = f"; its keys are {show(list(gold.keys))}" if len(gold.keys) > 1 else ""
    return f"{several} no offset says which one is meant{keys}"
