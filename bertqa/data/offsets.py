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
from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

from bertqa.data.characters import extends, inside_word, only_place, whole_words
from bertqa.data.questions import Gold
from bertqa.errors import show

NEARBY = 20  # characters; offsets slip by a few through stripped blanks and byte order marks
MARKS = 3  # hyphens, quotation marks, zero width spaces: most of them in a row that a text may lack
CHARACTERS = "characters"


def utf16_units(character: str) -> int:
    return 1 + (character > "\uffff")


def utf8_bytes(character: str) -> int:
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
"""What a file may count in -> how much a character counts."""

FROM_ONE = "characters from 1"


@dataclass(slots=True)
class Placed:
    """An answer in its paragraph."""

    text: str  # the paragraph's own characters; the text as given where start is -1
    start: int  # -1: it could not be placed
    repaired: bool = False  # whether an offset was stated, and it or the text had to be mended


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
    # The file's unit comes first; one answer of many may be in characters all the same.
    units = [unit] if unit == CHARACTERS else [unit, CHARACTERS]
    for name in units:
        start = exact_place(context, gold, name)
        if start >= 0:
            return Placed(text, start, repaired=name != CHARACTERS)
    for name in units:
        own = other_form(context, text, in_characters(context, gold.start, name))
        if own:
            return Placed(own.text, own.start, repaired=True)
    # Any exact conversion before the nearest match, which may be another occurrence.
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


# What a file counts in: a unit that gives an answer its own text at the stated offset explains it


def exact_place(context: str, gold: Gold, unit: str = CHARACTERS) -> int:
    """Where the text stands at its stated offset; -1 where it does not."""
    text = gold.text.strip()
    lead = gold.text.index(text)
    start = in_characters(context, gold.start, unit)
    # Of " mill" at 7 the letter m is at 8; where the file stripped its text before it counted, at 7.
    for offset in (start + lead, start):
        if start >= 0 and context.startswith(text, offset):
            return offset
    return -1


@lru_cache(maxsize=8)
def _offsets(context: str, unit: str) -> list[int]:
    """What a file that counts in `unit` calls each character of the context, and its end, rising."""
    return list(accumulate(map(UNITS[unit], context), initial=0))


def in_characters(context: str, start: int, unit: str) -> int:
    """An offset in `unit` as one in characters; -1 where it lies inside a character, or behind the end.

    Example: "😀 ab" counted in UTF-16 units has its characters at 0, 2, 3, 4: 3 is character 2, and 1 is none.
    """
    if unit == CHARACTERS or start < 0:
        return start
    if unit == FROM_ONE:
        return start - 1
    offsets = _offsets(context, unit)
    # The last of equals: those before it count nothing, such as an accent in NFC.
    place = bisect_right(offsets, start) - 1
    return place if offsets[place] == start else -1


def unit_of(answers: Iterable[tuple[str, Gold]]) -> str:
    """The unit in which most of these (paragraph, answer) have their text at the stated offset; characters if equal."""
    answers = [pair for pair in answers if _states_a_place(pair[1])]
    missed = [pair for pair in answers if exact_place(*pair) < 0]
    # Another unit must explain more answers than characters do, for most of a text in English is the same in all units.
    best = CHARACTERS
    most = len(answers) - len(missed)
    for unit in (*UNITS, FROM_ONE):
        # Most units explain nothing of what characters do not: they need not be tried on all.
        if not any(exact_place(context, gold, unit) >= 0 for context, gold in missed):
            continue
        hits = sum(exact_place(context, gold, unit) >= 0 for context, gold in answers)
        if unit == FROM_ONE and (hits < len(answers) or hits < 3):
            continue  # one off happens by mistake too
        if hits > most:
            best = unit
            most = hits
    return best


def _states_a_place(gold: Gold) -> bool:
    return gold.start >= 0 and bool(gold.text.strip())


def unit_of_paragraph(context: str, golds: list[Gold], unit: str) -> str:
    """The unit that explains all stated offsets of one paragraph: the file's own `unit` before others."""
    stated = list(filter(_states_a_place, golds))
    for name in dict.fromkeys([unit, *UNITS]):
        if all(exact_place(context, gold, name) >= 0 for gold in stated):
            return name
    return unit


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

    Blanks and quotation marks before the first letter are passed over, as far as the text has none. Example: "elin-varga"
    is elinvarga; in “Elin Varga” the mark is passed over, the blank has no letters, and the answer is Elin Varga.
    """
    wanted = _letters_of(text)
    if not wanted or not 0 <= start < len(context):
        return None
    begin = start
    limit = min(start + MARKS, len(context))
    while begin < limit and _passed_over(context[begin], text[0]):
        begin += 1
    if begin == len(context) or bool(_letters(context[begin])) != bool(_letters(text[0])):
        return None
    end = _end_of_letters(context, begin, wanted)
    if end < 0:
        return None
    # A full stop or a closing quotation mark belongs to the answer where its text has one, in any form of it.
    marks = "".join({character for character in text if not _letters(character)})
    for mark in text[len(text.rstrip(marks)) :]:
        here = context[end : end + 1]
        if here == mark or (here and not _letters(here) and not here.isspace()):
            end += 1
    if inside_word(context, begin) or inside_word(context, end):
        return None
    return Placed(context[begin:end], begin, repaired=True)


def _end_of_letters(context: str, begin: int, wanted: str) -> int:
    """Where the letters `wanted` end that begin at `begin`, accents on the last one included; -1 where others stand."""
    found = 0  # of the letters wanted
    marks = 0  # in a row
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


def _passed_over(character: str, first: str) -> bool:
    """Whether a character of the paragraph is none of the answer's, whose text begins with `first`."""
    if character.isspace() or unicodedata.category(character) == "Cf":
        return True
    return not _letters(character) and bool(_letters(first))


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
