"""What a file counts its offsets in: characters as Python does, or the units of the program that made it.

JavaScript and Java count UTF-16 units (two for an emoji), others UTF-8 bytes; a line end is two
characters on Windows. A unit that gives an answer its own text at the stated offset explains it.
"""

from collections.abc import Callable, Iterable
from functools import lru_cache

import numpy as np

from bertqa.data.gold import Gold

CHARACTERS = "characters"

UNITS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    CHARACTERS: lambda codes: np.ones(len(codes), np.int64),
    "UTF-16 units": lambda codes: 1 + (codes > 0xFFFF),
    "UTF-8 bytes": lambda codes: 1 + (codes > 0x7F) + (codes > 0x7FF) + (codes > 0xFFFF),
    "line ends as two characters": lambda codes: 1 + (codes == 10),
    "line ends as one character": lambda codes: 1 - 1 * (codes == 13),
    "UTF-16 units, line ends as two": lambda codes: 1 + (codes > 0xFFFF) + (codes == 10),
}
"""What a file may count in -> how much each character of a paragraph counts, from its code points."""

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
def _offsets(context: str, unit: str) -> np.ndarray:
    """(c+1,) what a file that counts in `unit` calls each character of the context, rising."""
    codes = np.frombuffer(context.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.int64)
    return np.concatenate([[0], np.cumsum(UNITS[unit](codes))])


def in_characters(context: str, start: int, unit: str) -> int:
    """An offset in `unit` as one in characters; -1 where it lies inside a character, or behind the end.

    Example: "😀 ab" counted in UTF-16 units has its characters at 0, 2, 3, 4: 3 is character 2, and 1 is none.
    """
    if unit == CHARACTERS or start < 0:
        return start
    if unit == FROM_ONE:
        return start - 1
    offsets = _offsets(context, unit)
    place = int(np.searchsorted(offsets, start, side="left"))
    if place < len(offsets) and offsets[place] == start:
        return place
    return -1


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
