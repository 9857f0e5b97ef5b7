"""One answer against another: normalisation and F1, as SQuAD's official scripts define them, and F1 over characters."""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence

# ASCII only, as the official scripts have it.
NO_PUNCTUATION = str.maketrans("", "", string.punctuation)

ARTICLES = re.compile(r"\b(a|an|the)\b")

# Thai to Myanmar, Khmer, kana, ideographs: scripts without spaces between words. Hangul has them.
UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
)
CHARACTERS = re.compile(f"[{UNSPACED}]|[^\\s{UNSPACED}]+")


def normalise_answer(text: str) -> str:
    """Lower case, no ASCII punctuation, no a/an/the, single spaces: in that order, as both official scripts have it."""
    plain = text.lower().translate(NO_PUNCTUATION)
    return " ".join(ARTICLES.sub(" ", plain).split())


def char_tokens(normalised: str) -> list[str]:
    """Cut a normalised answer for `char_f1`: each character of a script without spaces alone, other words whole.

    Punctuation of every script goes, not only ASCII's. Text in a language with spaces gives its words, so its ordinary
    F1 but for such punctuation.
    """
    if not normalised.isascii():
        normalised = "".join(" " if unicodedata.category(c)[0] == "P" else c for c in normalised)
    return CHARACTERS.findall(normalised)


def token_f1(gold: Sequence[str], guess: Sequence[str], v1: bool = False) -> float:
    """Harmonic mean of precision and recall of the tokens, counted as multisets.

    Of "big old mill", 2 tokens of 3 are in "old mill town", and 2 of its 3 are found: F1 is 2/3. With no tokens on either
    side it is 1 when both are empty, else 0; v1.1 has no such rule and gives 0 for both.
    """
    if not gold or not guess:
        return 0 if v1 else int(gold == guess)
    # Most pairs have no word in common, and to see that is much faster than counting.
    if set(gold).isdisjoint(guess):
        return 0
    same = sum((Counter(gold) & Counter(guess)).values())
    precision = same / len(guess)
    recall = same / len(gold)
    return (2 * precision * recall) / (precision + recall)
