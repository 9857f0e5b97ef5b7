"""Compare two answers: SQuAD's normalisation and F1, and an F1 over characters for languages without spaces."""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence

# ASCII punctuation only, as in the official scripts.
NO_PUNCTUATION = str.maketrans("", "", string.punctuation)

ARTICLES = re.compile(r"\b(a|an|the)\b")

# Scripts without spaces between words: Thai, Lao, Tibetan, Myanmar, Khmer, kana, Chinese characters. Hangul has spaces.
UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
)
CHARACTERS = re.compile(f"[{UNSPACED}]|[^\\s{UNSPACED}]+")


def normalise_answer(text: str) -> str:
    """Normalise as both official scripts do: lower case, then no ASCII punctuation, no a/an/the, single spaces."""
    plain = text.lower().translate(NO_PUNCTUATION)
    return " ".join(ARTICLES.sub(" ", plain).split())


def char_tokens(normalised: str) -> list[str]:
    """Split a normalised answer for `char_f1`: scripts without spaces into characters, everything else into words.

    Punctuation of all scripts is removed, not only ASCII's. That apart, text in a language with spaces gives its words,
    and so the ordinary F1.
    """
    if not normalised.isascii():
        normalised = "".join(" " if unicodedata.category(c)[0] == "P" else c for c in normalised)
    return CHARACTERS.findall(normalised)


def token_f1(gold: Sequence[str], guess: Sequence[str], v1: bool = False) -> float:
    """Return the harmonic mean of precision and recall of the guess's tokens, counted as multisets.

    The guess "big old mill" has 2 of its 3 tokens in "old mill town", and finds 2 of its 3: F1 is 2/3. If either has no
    tokens, F1 is 1 where both have none, else 0; by v1.1's rules always 0.
    """
    if not gold or not guess:
        return 0 if v1 else int(gold == guess)
    # Most pairs share no token, and seeing that is much faster than counting.
    if set(gold).isdisjoint(guess):
        return 0
    same = sum((Counter(gold) & Counter(guess)).values())
    precision = same / len(guess)
    recall = same / len(gold)
    return (2 * precision * recall) / (precision + recall)
