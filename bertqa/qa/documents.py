"""Rank the answers of a question that has one or more documents.

Several documents are treated as one text, except that no window spans two of them: their spans compete by score, the
null score is the lowest of all windows, and probabilities are over the tokens of all documents.

D documents, each with its own row of spans; Q questions.
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
from bertqa.qa.confidence import Confidence, evidence_of, merge_documents
from bertqa.qa.spans import Spans, SpanSettings
from bertqa.qa.thresholds import abstain


@dataclass(frozen=True)
class Answer:
    """An answer cut from its context; false where it is "".

    `dataclasses.asdict` gives the fields of transformers 4's pipeline, and `document`, `confidence` and `no_answer`.
    """

    answer: str  # "" for no answer
    score: float
    """P(first token) x P(last token), 0 to 1: softmaxes over [CLS] and all tokens, so it falls as texts grow."""
    start: int  # first character of the answer in its document; 0 for no answer
    end: int  # one past its last character
    document: int = 0  # the document it stands in, counted from 0; 0 for no answer
    confidence: float | None = None
    """Probability that this answer is right; for "", that there is none. It never rises along a list of answers. None:
    the model is not calibrated."""
    no_answer: float | None = None
    """Probability that the text has no answer to the question: the same in all answers to it."""

    # Not a field, so that `asdict` does not have it: "" for every answer but an Unanswered.
    error = ""

    def __bool__(self) -> bool:
        return self.answer != ""

    def __repr__(self) -> str:
        """One line, with numbers to three digits, without what is None or zero."""
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
        """Return the text with the answer marked, as HTML for notebooks: `IPython.display.HTML(answer.in_html(text))`.

        Args:
            context: the text that was asked about, or its documents.
            around: characters to show on either side; None shows all.
        """
        documents = [context] if isinstance(context, str) else list(context)
        text = documents[self.document] if documents else ""
        first = 0
        last = len(text)
        if around is not None:
            first = max(0, self.start - around)
            last = self.end + around
        before = html.escape(text[first : self.start])
        after = html.escape(text[self.end : last])
        mark = f"<mark>{html.escape(self.answer)}</mark>" if self else ""
        return f'<p style="white-space: pre-wrap">{before}{mark}{after}</p>'


@dataclass(frozen=True, repr=False)
class Unanswered(Answer):
    """Stands in the place of an answer to a question that could not be read."""

    error: str = ""  # what is wrong with the question


@dataclass
class Ranking:
    """The answers found for a question."""

    answers: list[Answer]  # best first, never empty; texts of one document are distinct
    null_odds: float  # null score - best span's score; the higher, the more speaks for no answer
    entries: list[dict]
    """The spans of these answers as entries of `n_best`, with "document"; the null answer is not among them."""
    null: dict  # the null answer as such an entry
    null_score: float  # its score
    more: bool = False  # whether a search for more spans may find more answers
    error: str = ""  # what is wrong with the question; "" if nothing is


def not_ranked(error: str) -> Ranking:
    """Return what stands in the place of a ranking, for a question that could not be read."""
    return Ranking(
        [Unanswered("", 0.0, 0, 0, error=error)], math.nan, [], {}, math.nan, error=error
    )


@dataclass
class Reading:
    """The model's output for D documents."""

    examples: Sequence[Example]  # one for each document
    spans: Spans
    windows: Windows
    mass: np.ndarray
    """(2, D) log of the sums of exp(start logit) and exp(end logit), over [CLS] and paragraph tokens of all windows."""


def rank(
    reading: Reading,
    sizes: Sequence[int],
    threshold: float | None,
    most: int,
    confidence: Confidence | None = None,
) -> Iterator[Ranking]:
    """Yield the ranked answers of each question.

    Args:
        sizes: number of documents of each question, in the order of the documents.
        threshold: null odds above which "" is the best answer; None gives "" only where no span is valid.
        most: answers to look at.
        confidence: calibration of the model; None leaves the probabilities None.
    """
    spans = reading.spans
    sizes = np.asarray(sizes)
    begins = sizes.cumsum() - sizes  # (Q,) first document of each: sizes 2, 1, 3 begin at 0, 2, 3
    lowest = _lowest_of_each(spans.null_score, begins)  # (Q,) document with the lowest null score
    null_score = spans.null_score[lowest]
    # A question has one null score, which the spans of all its documents compete with.
    spans.null_score = null_score.repeat(sizes)
    odds = np.minimum.reduceat(null_odds(spans), begins)
    silent = abstain(odds, threshold)
    log_sum = np.logaddexp.reduceat(reading.mass, begins, axis=1).sum(axis=0)  # (Q,)
    # A row of spans that is full to its last column may have left spans out.
    full = np.maximum.reduceat(spans.first[:, -1], begins) >= 0
    lists = _n_best_of_questions(reading, sizes, most)
    none, right = _confidences(reading, begins, lists, confidence)
    for q, entries in enumerate(lists):
        null = float(null_score[q])
        answers = _answers_of(entries, right[q], log_sum[q])
        if threshold is not None or not answers:
            # Only the threshold decides whether "" is best. If not, it stands behind all spans that score as much.
            place = 0
            if not silent[q]:
                place = max(1, sum(score_of(entry) >= null for entry in entries))
            answers.insert(place, Answer("", probability(null, log_sum[q]), 0, 0, 0, none[q]))
        if confidence is not None:
            answers = _in_order(answers, none[q])
        yield Ranking(
            answers=answers,
            null_odds=float(odds[q]),
            entries=entries,
            null=null_entry(spans, lowest[q]),
            null_score=null,
            more=bool(full[q]),
        )


def _n_best_of_questions(reading: Reading, sizes: np.ndarray, most: int) -> list[list[dict]]:
    """Return the n-best list of each question over all its documents, each entry with its "document"."""
    found = n_best(reading.spans, reading.windows, reading.examples, no_answer=False, most=most)
    lists = []
    for size in sizes.tolist():
        merged = []
        for document, entries in enumerate(islice(found, size)):
            for entry in entries:
                if entry["text"]:
                    merged.append({**entry, "document": document})
        merged.sort(key=score_of, reverse=True)  # stable: the earlier document wins ties
        lists.append(merged)
    return lists


def _answers_of(entries: list[dict], confidences: list, log_sum: float) -> list[Answer]:
    """Return the entries of an n-best list as answers."""
    answers = []
    for entry, confidence in zip(entries, confidences, strict=True):
        place = (entry["start"], entry["end"], entry["document"])
        score = probability(score_of(entry), log_sum)
        answers.append(Answer(entry["text"], score, *place, confidence))
    return answers


def _confidences(
    reading: Reading, begins: np.ndarray, lists: list[list[dict]], confidence: Confidence | None
) -> tuple[list, list[list]]:
    """Return each question's probability that it has no answer, and each entry's that it is right; None: not known."""
    if confidence is None:
        return [None] * len(lists), [[None] * len(entries) for entries in lists]
    evidence = evidence_of(reading.spans, reading.windows, reading.examples)
    scores = [[score_of(entry) for entry in entries] for entries in lists]
    return confidence.of_answers(merge_documents(evidence, begins), scores)


def _in_order(answers: list[Answer], no_answer: float | None) -> list[Answer]:
    """Set `no_answer`, and lower each confidence to that of the answer before, so that confidences never rise."""
    limit = 1.0
    ordered = []
    for answer in answers:
        confidence = answer.confidence
        if confidence is not None:
            confidence = min(confidence, limit)
            limit = confidence
        ordered.append(replace(answer, confidence=confidence, no_answer=no_answer))
    return ordered


def _lowest_of_each(values: np.ndarray, begins: np.ndarray) -> np.ndarray:
    """Return the index of the lowest value of each group, the first of equals. Groups begin at `begins`."""
    group = np.searchsorted(begins, np.arange(len(values)), side="right") - 1
    order = np.lexsort((values, group))  # by group, then by value; the sort is stable
    return order[begins]


def n_best_list(ranking: Ranking, settings: SpanSettings, *, no_answer: bool) -> list[dict]:
    """Return what `n_best` gives for a question, over all its documents; with several, "document" says which."""
    n = settings.n_best
    several = any(entry["document"] for entry in ranking.entries)
    entries = []
    scores = []
    for entry in ranking.entries[:n]:
        entry = dict(entry)
        if not several:
            del entry["document"]
        entries.append(entry)
        # In the number format in which spans are compared.
        scores.append(float(settings.score_type(score_of(entry))))
    if no_answer or not entries:
        insert_null(entries, scores, dict(ranking.null), ranking.null_score, n)
    add_probabilities(entries, scores)
    return entries


def score_of(entry: dict) -> float:
    """Return the score by which the entries of an n-best list are sorted."""
    return entry["start_logit"] + entry["end_logit"]


def probability(score: float, log_sum: float) -> float:
    """Return P(start) x P(end) of a span with this score; at most 1 in spite of rounding."""
    return float(np.exp(min(0.0, score - log_sum)))


def log_mass(logits: np.ndarray, lengths: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return (S,) the log of the sum of exp(logit) over [CLS] and the paragraph tokens of S windows.

    Args:
        logits: (N,) packed, window after window.
        lengths: (S,) tokens of each window.
        counts: (S,) paragraph tokens of each window; only the last [SEP] follows them.
    """
    logits = logits.astype(np.float64)
    ends = lengths.cumsum(dtype=np.int64)  # (S,) one past each window
    # reduceat sums from each bound to the next. [CLS] q [SEP] x y z [SEP] has the bounds 3 and 6: the sum from 3 is
    # over x y z; the one from 6 goes on to the next window's paragraph, and is dropped.
    bounds = np.stack([ends - 1 - counts, ends - 1], axis=1).ravel()  # (2S,)
    sums = np.logaddexp.reduceat(logits, bounds)  # (2S,)
    paragraph = np.where(counts > 0, sums[::2], -np.inf)
    return np.logaddexp(logits[ends - lengths], paragraph)


def widen(spans: Spans, windows: Windows, continues: np.ndarray) -> None:
    """Widen spans that begin or end inside a word to whole words.

    Args:
        continues: (T,) bool for the tokens of `windows.contexts`: whether a token continues the word of the one before
            (`TokenCache.continues`). "un ##believ ##able story" has False, True, True, False; the first tokens of the
            words are 0, 0, 0, 3, the last ones 2, 2, 2, 3.
    """
    tokens = np.arange(len(continues))
    begins_word = ~continues
    # A text begins a word whatever its first token is: "##able" stays whole where words are split at blanks only.
    has_tokens = windows.contexts.counts > 0
    begins_word[windows.contexts.rows[:-1][has_tokens]] = True
    first_of_word = np.maximum.accumulate(np.where(begins_word, tokens, 0))  # (T,)
    # From right to left: the nearest token, this one or a later one, that ends a word.
    ends_word = np.append(begins_word[1:], True)
    last_of_word = np.where(ends_word, tokens, len(tokens))[::-1]
    last_of_word = np.minimum.accumulate(last_of_word)[::-1]  # (T,)

    base = windows.contexts.rows[windows.question_context][:, None]  # (Q, 1)
    base = np.broadcast_to(base, spans.first.shape)
    exists = spans.first >= 0
    spans.first[exists] = first_of_word[(spans.first + base)[exists]] - base[exists]
    spans.last[exists] = last_of_word[(spans.last + base)[exists]] - base[exists]
