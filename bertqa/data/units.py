"""What a file counts its offsets in: characters as Python does, or the units of the program that made it.

JavaScript and Java count UTF-16 units (two for an emoji), others UTF-8 bytes; a line end is two
characters on Windows, an accented letter one or two by its form (NFC, NFD). A unit that gives an
answer its own text at the stated offset explains it.
"""

import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Iterable
from functools import lru_cache
from itertools import accumulate

from bertqa.data.gold import Gold

CHARACTERS = "characters"

UNITS: dict[str, Callable[[str], int]] = {
    CHARACTERS: lambda character: 1,
    "UTF-16 units": lambda character: 1 + (character > "\uffff"),
    "UTF-8 bytes": lambda character: len(character.encode("utf-8", "surrogatepass")),
    "characters, line ends as two": lambda character: 1 + (character == "\n"),
    "characters, line ends as one": lambda character: 1 - (character == "\r"),
    "characters in NFC": lambda character: int(not unicodedata.combining(character)),
    "characters in NFD": lambda character: len(unicodedata.normalize("NFD", character)),
    "UTF-16 units, line ends as two": lambda character: (
        1 + (character > "\uffff") + (character == "\n")
    ),
}
"""What a file may count in -> how much a character counts."""

FROM_ONE = "characters from 1"


def exact_place(context: str, gold: Gold, unit: str = CHARACTERS) -> int:
    """Where the text stands at its stated offset; -1 where it does not."""
    text = gold.text.strip()
    lead = gold.text.index(text)
    start = in_characters(context, gold.start, unit)
    for offset in (start + lead, start):  # files strip the text after counting, or never
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
    answers = [
        (context, gold) for context, gold in answers if gold.start >= 0 and gold.text.strip()
    ]
    missed = [pair for pair in answers if exact_place(*pair) < 0]
    best, most = CHARACTERS, len(answers) - len(missed)
    for unit in (*UNITS, FROM_ONE):
        # Most units explain nothing of what characters do not: they need not be tried on all.
        if not any(exact_place(context, gold, unit) >= 0 for context, gold in missed):
            continue
        hits = sum(exact_place(context, gold, unit) >= 0 for context, gold in answers)
        if unit == FROM_ONE and (hits < len(answers) or hits < 3):
            continue  # one off happens by mistake too
        if hits > most:
            best, most = unit, hits
    return best


def unit_of_paragraph(context: str, golds: list[Gold], unit: str) -> str:
    """The unit that explains all stated offsets of one paragraph: the file's own `unit` before others."""
    stated = [gold for gold in golds if gold.start >= 0 and gold.text.strip()]
    for name in dict.fromkeys([unit, *UNITS]):
        if all(exact_place(context, gold, name) >= 0 for gold in stated):
            return name
    return unit
