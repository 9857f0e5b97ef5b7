"""From the spans of single documents to the answers of a question, which may have several documents.

The documents of a question are read as one text, except that no window spans two of them: their spans compete by score,
the null score is the least of all windows of all documents, and probabilities are over all their tokens.
"""

import html
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from bertqa.data.examples import Example
from bertqa.data.windows import Windows
from bertqa.qa.answers import add_probabilities, insert_null, n_best, null_entry, null_odds
from bertqa.qa.confidence import Confidence, evidence_of, of_questions
from bertqa.qa.spans import Spans, SpanSettings
from bertqa.qa.thresholds import abstain


@dataclass(frozen=True)
class Answer:
    """An answer cut from its context; false where it is "". `dataclasses.asdict` gives what transformers 4's pipeline
    returned, and `document`, `confidence` and `no_answer`."""

    answer: str  # "" where the context has no answer
    score: float
    """P(first token) x P(last token), in [0, 1], each a softmax over every token that was read and [CLS]. It falls as texts
    grow: `confidence` says how far to trust an answer."""
    start: int  # first character of the answer in its document; 0 where there is none
    end: int  # one past its last character
    document: int = 0
    """Which of the documents it stands in, counted from 0; 0 where there is no answer."""
    confidence: float | None = None
    """Probability that this answer is right; of "" that there is none. It never rises along a list of answers. None where
    the model does not know: it was trained before there were such, or elsewhere."""
    no_answer: float | None = None
    """Probability that the text has no answer to the question: the same in every answer to it."""

    # Not a field, so that `asdict` stays as it was: "" for every answer but an Unanswered.
    error = ""

    def __bool__(self) -> bool:
        return self.answer != ""

    def __repr__(self) -> str:
        """On a line: numbers to three digits, and what is not known left out."""
        parts = [repr(self.answer)]
        for name in ("confidence", "score", "no_answer"):
            value = getattr(self, name)
            if value is not None:
                parts.append(f"{name}={value:.3g}")
        if self.answer:
            parts += [f"start={self.start}", f"end={self.end}"]
        if self.document:
            parts.append(f"document={self.document}")
        if self.error:
            parts.append(f"error={self.error!r}")
        return f"{type(self).__name__}({', '.join(parts)})"

    def in_html(self, context: str | Sequence[str], around: int | None = None) -> str:
        """The answer marked in its text, as HTML that a notebook shows: `IPython.display.HTML(answer.in_html(text))`.

        Args:
            context: what was asked about, a text or documents.
            around: characters to show on either side; all where None.
        """
        text = context if isinstance(context, str) else [*context, ""][self.document]
        first = 0 if around is None else max(0, self.start - around)
        last = len(text) if around is None else self.end + around
        before = html.escape(text[first : self.start])
        after = html.escape(text[self.end : last])
        mark = f"<mark>{html.escape(self.answer)}</mark>" if self else ""
        return f'<p style="white-space: pre-wrap">{before}{mark}{after}</p>'


@dataclass(frozen=True, repr=False)
class Unanswered(Answer):
    """What stands in the place of an answer where the question could not be read."""

    error: str = ""  # what is wrong with the question


@dataclass
class Ranking:
    """What was found for a question."""

    answers: list[Answer]  # best first, with distinct texts in a document; never empty
    null_odds: float  # null score - the best span's score: the higher, the less there is an answer
    entries: list[dict]
    """The spans that the answers are made of, as `n_best` gives them, with "document"; "" is not among them."""
    null: dict  # the null answer as such an entry
    null_score: float  # what it is compared by
    more: bool = False
    """Whether there may be further answers, which a search for more spans would find."""
    error: str = ""  # what is wrong with the question; "": nothing


def not_ranked(error: str) -> Ranking:
    """In the place of a ranking, for a question that could not be read."""
    return Ranking(
        [Unanswered("", 0.0, 0, 0, error=error)], math.nan, [], {}, math.nan, error=error
    )


@dataclass
class Reading:
    """What the model made of D documents."""

    examples: Sequence[Example]  # one a document
    spans: Spans
    windows: Windows
    mass: np.ndarray
    """(2, D) log of what exp(start logit), exp(end logit) sum to over all windows of a document, at [CLS] and its tokens."""


def rank(
    reading: Reading,
    sizes: Sequence[int],
    threshold: float | None,
    most: int,
    confidence: Confidence | None = None,
) -> Iterator[Ranking]:
    """The answers of each question.

    Args:
        sizes: how many of the documents are those of each question.
        threshold: null odds above which the answer is ""; where None, "" only stands where nothing else does.
        most: answers that are looked at.
        confidence: what makes probabilities of their scores; None leaves these open.
    """
    spans = reading.spans
    sizes = np.asarray(sizes)
    # Where the documents of each question begin: sizes 2, 1, 3 make 0, 2, 3.
    begins = sizes.cumsum() - sizes
    least = _place_of_least(spans.null_score, begins)  # (questions,) the document with the least
    null_score = spans.null_score[least]
    # Read as one text, a question has one null score, which all its documents are held against.
    spans.null_score = null_score.repeat(sizes)
    odds = np.minimum.reduceat(null_odds(spans), begins)
    silent = abstain(odds, threshold)
    log_sum = np.logaddexp.reduceat(reading.mass, begins, axis=1).sum(axis=0)
    # A table that is full to its last column may have left spans out.
    full = np.maximum.reduceat(spans.first[:, -1], begins) >= 0
    every = n_best(spans, reading.windows, reading.examples, no_answer=False, most=most)
    lists = []
    for size in sizes.tolist():
        lists.append(best_of_documents(list(islice(every, size))))
    none, right = _chances(reading, begins, lists, confidence)
    for question, entries in enumerate(lists):
        answers = _answers_of(entries, right[question], log_sum[question])
        if threshold is not None or not answers:
            null = float(null_score[question])
            # The threshold decides whether "" comes first; if not, it stands behind those that score no less.
            place = 0
            if not silent[question]:
                place = max(1, sum(score_of(entry) >= null for entry in entries))
            silence = Answer("", probability(null, log_sum[question]), 0, 0, 0, none[question])
            answers.insert(place, silence)
        if confidence is not None:
            answers = _in_order(answers, none[question])
        yield Ranking(
            answers=answers,
            null_odds=float(odds[question]),
            entries=entries,
            null=null_entry(spans, least[question]),
            null_score=float(null_score[question]),
            more=bool(full[question]),
        )


def _answers_of(entries: list[dict], chances: list, log_sum: float) -> list[Answer]:
    """The answers that these entries are, each with its probabilities."""
    answers = []
    for entry, chance in zip(entries, chances, strict=True):
        share = probability(score_of(entry), log_sum)
        place = (entry["start"], entry["end"], entry["document"])
        answers.append(Answer(entry["text"], share, *place, chance))
    return answers


def _chances(
    reading: Reading, begins: np.ndarray, lists: list[list[dict]], confidence: Confidence | None
) -> tuple[list, list[list]]:
    """Of each question the probability that it has no answer, and of each of its answers that it is right; None: not known."""
    if confidence is None:
        return [None] * len(lists), [[None] * len(entries) for entries in lists]
    evidence = evidence_of(reading.spans, reading.windows, reading.examples)
    scores = [[score_of(entry) for entry in entries] for entries in lists]
    return confidence.of_lists(of_questions(evidence, begins), scores)


def _in_order(answers: list[Answer], no_answer: float | None) -> list[Answer]:
    """The answers with what is known of the question; none is held for likelier than one before it."""
    least = 1.0
    ordered = []
    for answer in answers:
        sure = answer.confidence
        if sure is not None:
            least = sure = min(sure, least)
        ordered.append(replace(answer, confidence=sure, no_answer=no_answer))
    return ordered


def _place_of_least(values: np.ndarray, begins: np.ndarray) -> np.ndarray:
    """(groups,) where the least value of each group stands, the first of equals. Groups begin at `begins`."""
    group = np.searchsorted(begins, np.arange(len(values)), side="right") - 1
    order = np.lexsort((values, group))  # by group, the least first; a stable sort
    return order[begins]


def best_of_documents(lists: list[list[dict]]) -> list[dict]:
    """The n-best lists of a question's documents as one, best first, each entry with its "document"."""
    found = []
    for document, entries in enumerate(lists):
        for entry in entries:
            if entry["text"]:
                found.append({**entry, "document": document})
    if len(lists) > 1:
        # A stable sort: of equals the earlier document's comes first.
        found.sort(key=score_of, reverse=True)
    return found


def n_best_list(ranking: Ranking, settings: SpanSettings, *, no_answer: bool) -> list[dict]:
    """What `n_best` gives for a question, over all its documents; "document" says which, where there are several."""
    n = settings.n_best
    several = any(entry["document"] for entry in ranking.entries)
    entries = []
    scores = []
    for entry in ranking.entries[:n]:
        entry = dict(entry)
        if not several:
            del entry["document"]
        entries.append(entry)
        # Added up in the type in which spans are compared.
        scores.append(float(settings.score_type(score_of(entry))))
    if no_answer or not entries:
        insert_null(entries, scores, dict(ranking.null), ranking.null_score, n)
    add_probabilities(entries, scores)
    return entries


def score_of(entry: dict) -> float:
    """What the spans of an n-best list are compared by."""
    return entry["start_logit"] + entry["end_logit"]


def probability(score: float, log_sum: float) -> float:
    """P(start) x P(end) of a span with this score; at most 1, whatever rounding says."""
    return float(np.exp(min(0.0, score - log_sum)))


def log_mass(logits: np.ndarray, lengths: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(S,) log of the sum of exp(logit) over [CLS] and the paragraph's tokens of S windows.

    Args:
        logits: (N,) window after window.
        lengths, counts: (S,) tokens of each window, and how many of them, before the last [SEP], are the paragraph's.
    """
    logits = logits.astype(np.float64)
    ends = lengths.cumsum(dtype=np.int64)  # (S,) one past each window
    # A window of 7 tokens, 3 of them the paragraph's, [CLS] q [SEP] x y z [SEP]: bounds 3 and 6, so that the first sum is
    # over x y z and the second, which nobody wants, over [SEP] and what stands before the next paragraph.
    bounds = np.stack([ends - 1 - counts, ends - 1], axis=1).ravel()  # (2S,)
    sums = np.logaddexp.reduceat(logits, bounds)  # (2S,)
    paragraph = np.where(counts > 0, sums[::2], -np.inf)
    return np.logaddexp(logits[ends - lengths], paragraph)


def widen(spans: Spans, windows: Windows, continues: np.ndarray) -> None:
    """Move the ends of spans that lie inside a word to its first and its last token.

    Args:
        continues: (T,) bool for the tokens of `windows.contexts`, see `TokenCache.continues`:
            "un ##believ ##able story" has False, True, True, False. There, the first tokens of the words are
            0, 0, 0, 3 and their last ones 2, 2, 2, 3.
    """
    tokens = np.arange(len(continues))
    begins_word = ~continues
    first_of_word = np.maximum.accumulate(np.where(begins_word, tokens, 0))  # (T,)
    # The nearest end of a word at or behind each token: the same from the right, where the least so far is the nearest.
    ends_word = np.append(begins_word[1:], True)
    last_of_word = np.where(ends_word, tokens, len(tokens))[::-1]
    last_of_word = np.minimum.accumulate(last_of_word)[::-1]  # (T,)

    base = windows.contexts.rows[windows.question_context][:, None]  # (Q, 1)
    base = np.broadcast_to(base, spans.first.shape)
    found = spans.first >= 0
    spans.first[found] = first_of_word[(spans.first + base)[found]] - base[found]
    spans.last[found] = last_of_word[(spans.last + base)[found]] - base[found]
