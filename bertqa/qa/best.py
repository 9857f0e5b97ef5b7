"""The n best spans of each question so far: a table that takes the spans of window after window."""

import numpy as np

from bertqa.qa.search import Found


class BestSpans:
    """Q questions, the n best spans of each.

    `rows` is (Q,) records; each field of a record is n wide: score, order, first, last, start, end
    (see `Found`). Where there are fewer spans, score is -inf, first and last are -1.
    """

    def __init__(self, windows_of: np.ndarray, kept: int, score_type: type, once: bool):
        """windows_of (Q,): how many windows each question has. once: a span that several windows see counts once."""
        self.kept = kept
        self.once = once
        self.alone = windows_of == 1  # (Q,)
        self.blank = np.zeros(
            (),
            [
                ("score", score_type, (kept,)),
                ("order", np.int64, (kept,)),
                ("first", np.int32, (kept,)),
                ("last", np.int32, (kept,)),
                ("start", np.float32, (kept,)),
                ("end", np.float32, (kept,)),
            ],
        )
        self.blank["score"] = -np.inf
        self.blank["first"] = -1
        self.blank["last"] = -1
        self.rows = np.full(len(windows_of), self.blank)

    def add(self, questions: np.ndarray, found: Found) -> None:
        """Take the spans of B windows; `questions` (B,) may repeat."""
        records = self._records(found)
        alone = self.alone[questions]
        # A question's only window has nothing to be compared with, and most have only one.
        self.rows[questions[alone]] = records[alone]
        if not alone.all():
            self._merge(questions[~alone], records[~alone])

    def _records(self, found: Found) -> np.ndarray:
        """(B,) records of spans (B, n'), n' <= n; what is no valid span is blank."""
        records = np.full(len(found.score), self.blank)
        valid = found.score > -np.inf
        width = valid.shape[1]
        for name in records.dtype.names:
            values = getattr(found, name)
            np.copyto(records[name][:, :width], values, where=valid, casting="same_kind")
        return records

    def _merge(self, questions: np.ndarray, records: np.ndarray) -> None:
        """Keep the n best of what the table has and of (B,) new records, whose questions may repeat.

        With n = 2, question 7 has spans a (score 5) and b (1) in the table, and two windows bring
        c (4), a (5) and d (3):

            pool             5a 1b | 4c 5a | 3d      every span that may stay
            one of each      5a 1b 4c 3d             a was seen by two windows
            the n best       5a 4c                   back into the table
        """
        own = np.unique(questions)  # (R,) each question once
        pool = np.concatenate([self.rows[own], records])  # (R + B,)
        line = np.searchsorted(own, np.concatenate([own, questions]))
        line = line.repeat(self.kept)  # whose each span is: a row of `own`
        field = {name: pool[name].ravel() for name in pool.dtype.names}  # a value a span
        spans = np.flatnonzero(field["score"] > -np.inf)
        if self.once:
            spans = _one_of_each(spans, line, field)
        spans, rank = _best_of_each_question(spans, line, field, self.kept)

        merged = np.full(len(own), self.blank)
        for name, values in field.items():
            merged[name][line[spans], rank] = values[spans]
        self.rows[own] = merged


def _one_of_each(spans: np.ndarray, line: np.ndarray, field: dict) -> np.ndarray:
    """Of the same span in several windows the one with the highest score; of equals that with the highest start."""
    keys = (-field["end"], -field["start"], -field["score"], field["order"], line)
    spans = spans[np.lexsort([key[spans] for key in keys])]  # the last key sorts first
    return spans[first_of_each(line[spans], field["order"][spans])]


def _best_of_each_question(
    spans: np.ndarray, line: np.ndarray, field: dict, n: int
) -> tuple[np.ndarray, np.ndarray]:
    """The n best spans of each question, and their rank in it, 0 the best."""
    keys = (field["order"], -field["score"], line)
    spans = spans[np.lexsort([key[spans] for key in keys])]
    begins = np.searchsorted(line[spans], line[spans])  # where the question's spans begin
    rank = np.arange(len(spans)) - begins
    return spans[rank < n], rank[rank < n]


def first_of_each(*keys: np.ndarray) -> np.ndarray:
    """Bool, True where sorted keys change: [4, 4, 6] -> [True, False, True]."""
    changed = np.ones(len(keys[0]), bool)
    changed[1:] = np.logical_or.reduce([key[1:] != key[:-1] for key in keys])
    return changed
