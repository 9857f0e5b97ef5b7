"""Make new pairs of question and paragraph, on which no teacher has learned an answer.

The logits of a teacher on its own training windows are little more than their labels. On new pairs they are what the
teacher believes, so students learn more from them. Two kinds:

    swap  the question with another paragraph of its article
    edit  the paragraph with a question in which one word is replaced by one of another question about the article: a name by
          a name, a number by a number, a long word by a long word; many unanswerable questions of SQuAD 2.0 are like that

Nobody has labelled them. They are written as unanswerable: nearly always true of a swap, which is left out where the other
paragraph holds the answer's text, and often true of an edit. The soft loss outweighs this hard label.
"""

import random
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from bertqa.data.examples import Example

KINDS = (
    re.compile(r"\b[A-Z][\w'-]+\b"),
    re.compile(r"\b\d[\d,.]*\b"),
    re.compile(r"\b[a-z]{5,}\b"),
)
"""Names, numbers, and long words. The first word of a question is never replaced."""


def new_pairs(examples: Sequence[Example], swaps: float, edits: float, seed: int) -> list[Example]:
    """Return swaps of a share of the questions and edits of a share of them, drawn by seed.

    They are somewhat fewer than asked for: an article may have one paragraph only, a question no word to replace.
    """
    articles = defaultdict(list)
    for example in examples:
        articles[example.title].append(example)
    rng = random.Random(seed)
    made = []
    for article in articles.values():
        paragraphs = sorted({example.context for example in article})
        for example in article:
            if rng.random() < swaps:
                made += swap(example, paragraphs, rng)
            if rng.random() < edits:
                made += edit(example, article, rng)
    return made


def swap(example: Example, paragraphs: Sequence[str], rng: random.Random) -> list[Example]:
    """Return the question with one of these paragraphs; [] where it is its own or holds the answer's text."""
    context = rng.choice(paragraphs)
    if context == example.context:
        return []
    if any(text.lower() in context.lower() for text in example.answer_texts):
        return []
    return [unlabelled(example, "swap", context=context)]


def edit(example: Example, article: Sequence[Example], rng: random.Random) -> list[Example]:
    """Return the question with one word replaced by a word of another question of the article; [] where none fits.

    "Who led Rome in 44?" and a donor "When did Gaul fall to 50 legions?" may become "Who led Gaul in 44?".
    """
    donor = rng.choice(article).question
    kinds = [kind for kind in KINDS if places(kind, example.question) and places(kind, donor)]
    if not kinds:
        return []
    kind = rng.choice(kinds)
    old = rng.choice(places(kind, example.question))
    new = rng.choice(places(kind, donor)).group()
    if new in example.question:
        return []
    question = example.question[: old.start()] + new + example.question[old.end() :]
    return [unlabelled(example, "edit", question=question)]


def places(kind: re.Pattern, question: str) -> list[re.Match]:
    """Return the words of a kind in a question, but for its first word."""
    return [found for found in kind.finditer(question) if found.start() > 0]


def unlabelled(example: Example, kind: str, **changes: str) -> Example:
    """Return a changed copy of the example, without an answer."""
    return replace(example, id=f"{kind}:{example.id}", answer_texts=(), answer_starts=(), **changes)
