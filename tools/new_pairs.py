"""New pairs of question and paragraph, out of those that there are: inputs on which no teacher has seen an answer.

Teachers say about a window that they have learned little more than its label. About these pairs they say what they
believe, and a student learns that: it has more to learn from than the questions that people wrote. Two kinds:

    swap  the question, with another paragraph of its article
    edit  the paragraph, with a question in which one word is another: a name for a name, a number for a
          number, a long word for a long word, out of another question about the article; as the unanswerable ones of SQuAD 2.0 often are

Nobody has labelled them. They are written as questions without an answer: nearly always true of a swap, as pairs
are left out where the answer's text stands in the other paragraph, and often of an edit. The soft loss outweighs it.
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
"""Names, numbers, and words that mean something, mostly. The first word of a question is left alone."""


def new_pairs(examples: Sequence[Example], swaps: float, edits: float, seed: int) -> list[Example]:
    """Swaps of a share of the questions, and edits of a share of them, drawn by seed.

    There are some fewer than asked for: an article may have one paragraph, a question no word to replace.
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
    """The question with another of these paragraphs; [] where that is not to be had, or may hold the answer."""
    context = rng.choice(paragraphs)
    if context == example.context:
        return []
    if any(text.lower() in context.lower() for text in example.answer_texts):
        return []
    return [unlabelled(example, "swap", context=context)]


def edit(example: Example, article: Sequence[Example], rng: random.Random) -> list[Example]:
    """The question with a word out of another question of the article in place of one of its own; [] where none fits.

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
    """Where a question has words of a kind, its first word left out."""
    return [found for found in kind.finditer(question) if found.start() > 0]


def unlabelled(example: Example, kind: str, **changes: str) -> Example:
    """The changed example, without an answer."""
    return replace(example, id=f"{kind}:{example.id}", answer_texts=(), answer_starts=(), **changes)
