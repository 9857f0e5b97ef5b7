"""What is asked: pairs of a question and a context, checked, as the examples that the model reads."""

import reprlib
from dataclasses import dataclass, field

from bertqa.data.examples import Example


@dataclass(slots=True)
class Asked:
    """A question with its documents, or what is wrong with it."""

    documents: list[Example] = field(default_factory=list)
    """One Example for each document, at least one where nothing is wrong."""
    error: str = ""
    """What is wrong; "": nothing."""

    @property
    def characters(self) -> int:
        """How long it is to read."""
        return sum(len(example.context) for example in self.documents)


def asked_of(name: int | str, question: str, documents) -> Asked:
    """A question that is known to be text, and texts to find its answer in."""
    examples = [Example(str(name), question, document, (), ()) for document in documents or [""]]
    return Asked(examples)


def asked_of_pair(name: int | str, pair: object) -> Asked:
    """A (question, context) pair, the context a text or a list of texts. What is something else has an `error`."""
    question = context = None
    if isinstance(pair, (tuple, list)) and len(pair) == 2:
        question, context = pair
    documents = list(context) if isinstance(context, (tuple, list)) else [context]
    if all(isinstance(text, str) for text in (question, *documents)):
        return asked_of(name, question, documents)
    return Asked(
        error=f"pair {name} is {reprlib.repr(pair)}; give (question, context), where the question is a "
        "string and the context a string or a list of strings"
    )
