"""Check what a Reader is given: pairs of a question and a context, and the options of how to answer them."""

import numbers
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from bertqa.data.examples import Example
from bertqa.errors import UserError, show
from bertqa.qa.search import SpanSettings

MAX_ANSWER_LENGTH = 30
"""Tokens of an answer at most, where the model's qa.json does not say."""

GIVE_PAIRS = "Of two lists, give pairs: answer_many(zip(questions, contexts))"
"""The end of several messages: two lists in place of pairs are the commonest mistake."""


@dataclass(frozen=True)
class How:
    """How to answer questions."""

    top_k: int  # answers to a question
    threshold: float | None  # null odds above which the answer is ""; None: it never is
    spans: SpanSettings
    whole_words: bool = False  # widen answers that begin or end inside a word
    listed: int = 0  # entries of the n-best list that is written beside the answers, if any


@dataclass(slots=True)
class Asked:
    """A question with its documents, or what is wrong with it."""

    documents: list[Example] = field(default_factory=list)
    """One Example for each document; at least one, unless there is an error."""
    error: str = ""  # what is wrong; "" if nothing is

    @property
    def characters(self) -> int:
        """Total length of the documents."""
        return sum(len(example.context) for example in self.documents)


def asked_of(name: int | str, question: str, documents) -> Asked:
    """Return a question, known to be a string, with the texts in which to find its answer."""
    examples = [Example(str(name), question, document, (), ()) for document in documents or [""]]
    return Asked(examples)


def asked_of_pair(name: int | str, pair: object) -> Asked:
    """Return the question of a (question, context) pair, the context a text or a list of texts.

    For anything else the returned Asked has an `error`.
    """
    question = None
    context = None
    if isinstance(pair, (tuple, list)) and len(pair) == 2:
        question, context = pair
    documents = list(context) if isinstance(context, (tuple, list)) else [context]
    if all(isinstance(text, str) for text in (question, *documents)):
        return asked_of(name, question, documents)
    return Asked(
        error=f"pair {name} is {reprlib.repr(pair)}; give (question, context), where the question is a "
        f"string and the context a string or a list of strings. {GIVE_PAIRS}"
    )


def pairs_in(given: object) -> Iterable:
    """Return the (question, context) pairs in an iterable, or in the two columns of a DataFrame.

    Raises UserError for anything else.
    """
    if hasattr(
        given, "itertuples"
    ):  # a DataFrame; iterating over it gives the names of its columns
        names = list(given.columns)
        if len(names) != 2:
            raise UserError(
                f"the columns are {', '.join(map(str, names))}; give the two of questions and contexts: "
                'frame[["question", "context"]]'
            )
        return given.itertuples(index=False, name=None)
    if isinstance(given, (str, Mapping)) or not isinstance(given, Iterable):
        raise UserError(f"{show(given)} is no list of pairs. {GIVE_PAIRS}")
    return given


def how_of(
    qa: dict,
    top_k: int = 1,
    *,
    allow_no_answer: bool | None = None,
    threshold: float | None = None,
    max_answer_length: int | None = None,
    whole_words: bool = False,
    mode: str = "exact",
    max_context: bool = False,
) -> How:
    """Return how to answer, from the options of `Reader.answer_many`; those that are None are taken from qa.json.

    Raises UserError for invalid options.
    """
    if not isinstance(top_k, numbers.Integral):
        raise UserError(f"top_k is {show(top_k)}; use a whole number. {GIVE_PAIRS}")
    if top_k < 1:
        raise UserError(f"top_k is {top_k}; use 1 or more")
    if threshold is not None and not isinstance(threshold, numbers.Real):
        raise UserError(f"threshold is {show(threshold)}; use a number, of null odds")
    if max_answer_length is not None and not isinstance(max_answer_length, numbers.Integral):
        raise UserError(f"max_answer_length is {show(max_answer_length)}; use a number of tokens")
    tuned = qa.get("null_threshold")
    if allow_no_answer is None:
        allow_no_answer = threshold is not None or tuned is not None
    if threshold is None:
        threshold = 0.0 if tuned is None else tuned
    # More spans than answers, since several may have the same text.
    spans = max(20, 3 * top_k)
    length = answer_length(qa, max_answer_length)
    settings = SpanSettings(spans, length, mode, max_context)
    return How(top_k, threshold if allow_no_answer else None, settings, whole_words)


def answer_length(qa: dict, given: int | None) -> int:
    """Return the most tokens of an answer: as given, or else as the model was trained."""
    if given is not None:
        return given
    return qa.get("max_answer_length", MAX_ANSWER_LENGTH)
