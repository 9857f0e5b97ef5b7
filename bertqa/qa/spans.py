"""Decode start and end logits into the n best answer spans of each question, and its null score.

A span is a first and a last paragraph token of one window, at most `max_answer_length` tokens long. Its score is the
start logit of the first token plus the end logit of the last. The null score of a window stands for "no answer": the
same sum at its [CLS]. The null score of a question is the lowest of its windows, for all must agree on no answer.

`SpanSettings.mode` says which spans compete (search.py finds them):

    exact   all of them. Equal scores are ordered by first token, then by last token. A span that several windows see
            counts once, with its highest score.
    hf      the candidates of transformers' run_qa (postprocess_qa_predictions): the 20 best starts x the 20 best
            ends of each window, in its order and with its repeats
    google  those of google-research/bert's run_squad (write_predictions), which also asks for maximum context

Two things differ from these scripts on purpose. Text is cut from the raw paragraph by character offset, never joined
from word pieces. And where no span is valid they answer with the literal text "empty", here the answer is "". Logits
are those of a window's own tokens: the scripts may also rank padding, which does not exist here.

W windows, S of them in a call with N tokens; Q questions, n spans kept of each.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from bertqa.data.windows import Windows
from bertqa.errors import UserError
from bertqa.qa.search import Block, Found, SpanSettings, find_candidates, find_exact

BLOCK = 1 << 18
"""Candidates scored in one go, by measurement: fewer waste calls of numpy, more leave the processor's cache."""

BUFFER = 1 << 17  # tokens gathered before they are searched, so that small batches cost no more
LARGEST_LOGIT = 1e30  # beyond it a model has diverged, and the sum of two could overflow float32


@dataclass
class Spans:
    """The n best spans of Q questions, best first. Where a question has fewer, score is -inf, first and last -1."""

    settings: SpanSettings
    first: np.ndarray  # (Q, n) int32, first token of the span, counted within its paragraph
    last: np.ndarray  # (Q, n) int32, last token, inclusive
    start: np.ndarray  # (Q, n) float32, start logit of the first token
    end: np.ndarray  # (Q, n) float32, end logit of the last token
    score: np.ndarray  # (Q, n) start + end, float32; float64 in google mode, as Google sums them
    null_start: np.ndarray
    """(Q,) float32, start logit of [CLS] in the window with the lowest null score, the first of equals."""
    null_end: np.ndarray  # (Q,) float32, its end logit
    null_score: np.ndarray  # (Q,) their sum, plus a verifier's score; of the type of `score`


class SpanDecoder:
    """Turns the logits of windows, batch by batch, into the best spans of each question.

    The result does not depend on the order of the windows, nor on how they are batched. Logits are not kept. With n = 20
    it takes 560 bytes of memory for each question (four times that in google mode), 17 for each window, and some ten MB
    for buffer and block.
    """

    def __init__(self, windows: Windows, settings: SpanSettings = SpanSettings()):
        self.windows = windows
        self.settings = settings
        self.lengths = windows.lengths  # (W,)
        questions = len(windows.question_context)
        self.window_counts = np.bincount(windows.question, minlength=questions)  # (Q,)
        self.best = empty_spans((questions, settings.kept), settings)  # (Q, n) records
        self.missing = np.ones(len(windows), bool)  # (W,) windows without logits so far
        # Logits of each window's [CLS], and its null score.
        self.null_start = np.zeros(len(windows), np.float32)
        self.null_end = np.zeros(len(windows), np.float32)
        self.null_score = np.zeros(len(windows), settings.score_type)
        self.buffer: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []  # rows, logits
        self.buffered = 0  # tokens in it

    def add(
        self,
        rows: np.ndarray,
        start_logits: np.ndarray,
        end_logits: np.ndarray,
        null: np.ndarray | None = None,
    ) -> None:
        """Take the logits of S whole windows.

        Args:
            rows: (S,) rows of `windows`; each row is added exactly once.
            start_logits, end_logits: (N,) float32, packed in the order of `rows`: of each window all tokens, from
                [CLS] to the last [SEP] (`windows.lengths` of them). They are copied.
            null: (S,) scores of a verifier head, which are added to the null scores.

        Raises:
            UserError: for logits that are not finite; it names the question.
        """
        # Copies: they wait in the buffer, and the caller may reuse its arrays.
        rows = np.array(rows, np.int64)
        start = np.array(start_logits, np.float32)
        end = np.array(end_logits, np.float32)
        if null is None:
            null = np.zeros(len(rows))
        null = np.asarray(null, np.float32)
        lengths = self.lengths[rows]
        tokens = int(lengths.sum())
        shapes = f"{start.shape} and {end.shape} logits for {tokens} tokens"
        assert start.shape == end.shape == (tokens,), shapes
        assert null.shape == rows.shape, f"{null.shape} null scores for {len(rows)} windows"
        once = self.missing[rows].all() and len(np.unique(rows)) == len(rows)
        assert once, "a window was added twice"
        self._check_finite(rows, start, end, null)

        self.missing[rows] = False
        cls = lengths.cumsum() - lengths  # windows of 5, 4 and 7 tokens have [CLS] at 0, 5 and 9
        null_start = start[cls]
        null_end = end[cls]
        self.null_start[rows] = null_start
        self.null_end[rows] = null_end
        self.null_score[rows] = null_start.astype(self.settings.score_type) + null_end + null
        self.buffer.append((rows, start, end))
        self.buffered += tokens
        if self.buffered >= BUFFER:
            self._search()

    def finish(self) -> Spans:
        """Return the spans, once every window has been added."""
        missing = f"{self.missing.sum()} windows never added, e.g. row {self.missing.argmax()}"
        assert not self.missing.any(), missing
        self._search()
        # By question, the lowest null score first. The sort is stable: of equals the first window comes first.
        order = np.lexsort((self.null_score, self.windows.question))
        lowest = order[_is_first(self.windows.question[order])]  # (Q,) rows of windows
        assert len(lowest) == len(self.best), "every question needs a window"
        return Spans(
            settings=self.settings,
            first=self.best["first"],
            last=self.best["last"],
            start=self.best["start"],
            end=self.best["end"],
            score=self.best["score"],
            null_start=self.null_start[lowest],
            null_end=self.null_end[lowest],
            null_score=self.null_score[lowest],
        )

    def _search(self):
        """Search the windows in the buffer, and empty it."""
        if not self.buffer:
            return
        rows, start_logits, end_logits = zip(*self.buffer, strict=True)
        rows = np.concatenate(rows)
        start_logits = np.concatenate(start_logits)
        end_logits = np.concatenate(end_logits)
        self.buffer = []
        self.buffered = 0
        cls = self.lengths[rows].cumsum() - self.lengths[rows]  # (S,)
        find = find_exact if self.settings.mode == "exact" else find_candidates
        for part in _blocks_of_similar_length(self.windows.count[rows], self.settings):
            block = Block(self.windows, rows[part], cls[part], start_logits, end_logits)
            spans = records_of(find(block, self.settings), self.settings)
            self._keep_best(self.windows.question[block.rows], spans)

    def _keep_best(self, questions: np.ndarray, spans: np.ndarray) -> None:
        """Take the spans (B, n) of B windows, whose questions (B,) may repeat, and keep the n best of each question."""
        # Most questions have only one window, whose spans compete with no others.
        alone = self.window_counts[questions] == 1  # (B,)
        self.best[questions[alone]] = spans[alone]
        if not alone.all():
            self._merge(questions[~alone], spans[~alone])

    def _merge(self, questions: np.ndarray, spans: np.ndarray) -> None:
        """Merge the spans (B, n) of B windows into the n best of their questions (B,).

        With n = 2, question 7 has the spans a (score 5) and b (1) so far. One of its windows brings c (4) and a (5),
        another d (3):

            pool             5a 1b | 4c 5a | 3d      all that compete
            distinct         5a 1b 4c 3d             a was seen by two windows
            the n best       5a 4c                   what is kept
        """
        changed = np.unique(questions)
        pool = np.concatenate([self.best[changed], spans]).ravel()  # (P,) spans
        question = np.concatenate([changed, questions]).repeat(self.settings.kept)  # (P,)
        chosen = np.flatnonzero(pool["score"] > -np.inf)  # indices into the pool
        # In the other modes a span stays once for each window, as in the old scripts.
        if self.settings.mode == "exact":
            chosen = _distinct(chosen, pool, question)
        chosen = _sorted(chosen, question, -pool["score"], pool["order"])

        # Questions 0 0 0 2 2 begin at 0 0 0 3 3, so the ranks are 0 1 2 0 1.
        question = question[chosen]
        rank = np.arange(len(chosen)) - np.searchsorted(question, question)
        keep = rank < self.settings.kept
        self.best[changed] = empty_spans((), self.settings)
        self.best[question[keep], rank[keep]] = pool[chosen[keep]]

    def _check_finite(self, rows, start, end, null):
        """Raise UserError for logits (N,) or verifier scores (S,) that are not finite."""
        # Comparisons with NaN are False.
        finite = (np.abs(start) < LARGEST_LOGIT) & (np.abs(end) < LARGEST_LOGIT)  # (N,)
        if not finite.all():
            token = int(finite.argmin())  # the first that is not
            # Windows of 5 and 4 tokens end at 5 and 9: token 4 is in the first, token 5 in the second.
            nth = np.searchsorted(self.lengths[rows].cumsum(), token, side="right")
            raise UserError(
                f"question {self.windows.question[rows[nth]]} (counted from 0): the model gave start logit "
                f"{start[token]} and end logit {end[token]}; logits must be finite, so its weights are damaged, or "
                "training diverged, or half precision overflowed: try float32"
            )
        finite = np.abs(null) < LARGEST_LOGIT  # (S,)
        if not finite.all():
            nth = int(finite.argmin())
            raise UserError(
                f"question {self.windows.question[rows[nth]]} (counted from 0): the model gave null score {null[nth]}; "
                "scores must be finite, so its weights are damaged, or training diverged"
            )


def empty_spans(shape: tuple[int, ...], settings: SpanSettings) -> np.ndarray:
    """Return records without a span: score -inf, first and last token -1. `Found` says what each field holds."""
    fields = [
        ("score", settings.score_type),
        ("order", np.int64),
        ("first", np.int32),
        ("last", np.int32),
        ("start", np.float32),
        ("end", np.float32),
    ]
    spans = np.zeros(shape, fields)
    spans["score"] = -np.inf
    spans["first"] = -1
    spans["last"] = -1
    return spans


def records_of(found: Found, settings: SpanSettings) -> np.ndarray:
    """Return the spans of B windows as records (B, n)."""
    windows, width = found.score.shape
    spans = empty_spans((windows, settings.kept), settings)
    filled = spans[:, :width]
    for name in spans.dtype.names:
        filled[name] = getattr(found, name)
    filled[found.score == -np.inf] = empty_spans((), settings)
    return spans


def _blocks_of_similar_length(counts: np.ndarray, settings: SpanSettings) -> Iterator[np.ndarray]:
    """Yield the windows of each block, as indices into their paragraph tokens `counts` (S,), longest first.

    A block is as wide as its longest window, so windows of one length waste none of it. With room for two windows of
    300 tokens or for three of 200, counts 200 300 200 100 300 give [1, 4], [0, 2, 3].
    """
    order = np.argsort(-counts, kind="stable")
    begin = 0
    while begin < len(order):
        longest = int(counts[order[begin]])
        ends_per_start = settings.n_best
        if settings.mode == "exact":
            ends_per_start = min(settings.max_answer_length, longest)
        candidates = longest + settings.n_best * ends_per_start + 1  # of a window
        stop = begin + max(1, BLOCK // candidates)
        yield order[begin:stop]
        begin = stop


def _distinct(chosen: np.ndarray, pool: np.ndarray, question: np.ndarray) -> np.ndarray:
    """Of the chosen indices of equal spans, return that with the highest score, then with the highest start logit."""
    order = pool["order"]
    chosen = _sorted(chosen, question, order, -pool["score"], -pool["start"], -pool["end"])
    return chosen[_is_first(question[chosen], order[chosen])]


def _sorted(chosen: np.ndarray, *keys: np.ndarray) -> np.ndarray:
    """Return indices sorted by the first key, then by the second, ...; the sort is stable."""
    return chosen[np.lexsort([key[chosen] for key in reversed(keys)])]


def _is_first(*keys: np.ndarray) -> np.ndarray:
    """Return a bool array, True where sorted keys change: [4, 4, 6] -> [True, False, True]."""
    changed = np.ones(len(keys[0]), bool)
    changed[1:] = np.logical_or.reduce([key[1:] != key[:-1] for key in keys])
    return changed
