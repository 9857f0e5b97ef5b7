"""Questions and paragraphs to overlapping windows, as flat arrays: no object per window, no padding, no copy.

A window is the sequence  [CLS] question [SEP] part of the paragraph [SEP].  Paragraphs longer than the room that the
question leaves are cut into several windows. How far the next one starts behind the last is said in one of two ways,
because the field's `doc_stride` means both:

    overlap  tokens shared by neighbours; the step depends on the question's length (run_qa, fast tokenizers, pipelines)
    step     tokens from one window's start to the next one's; the overlap varies (Google's run_squad and its ports)

Example: 12 paragraph tokens, room for 6. Overlap 2 starts windows at 0, 4, 8 -> [0..5] [4..9] [8..11]; step 3 at 0, 3, 6.

Texts to classify or embed are laid out likewise, one window a text (`text_windows`).
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bertqa.data.examples import Example
from bertqa.data.tokenizer import Tokens, WordPiece
from bertqa.errors import UserError

SPECIAL = 3
"""[CLS] and two [SEP]."""


@dataclass
class Windows:
    """W windows over Q questions. A window is ordered by question, then by `first`; every question has at least one."""

    questions: Tokens
    """One row a question, already cut to max_question."""
    contexts: Tokens
    """One row for each distinct paragraph."""
    question_context: np.ndarray
    """(Q,) int32, paragraph row of each question."""
    question: np.ndarray
    """(W,) int32, question row of each window."""
    first: np.ndarray
    """(W,) int32, first paragraph token of the window, counted within its paragraph."""
    count: np.ndarray
    """(W,) int32, paragraph tokens in the window; 0 only where the paragraph has none."""
    start_label: np.ndarray
    """(W,) int32, position of the answer's first token in the sequence; 0 ([CLS]): the window does not hold it whole."""
    end_label: np.ndarray
    """(W,) int32, position of its last token, inclusive."""
    cls_id: int
    sep_id: int
    cut_questions: int = 0
    """Questions that lost tokens to max_question."""
    unlabelled: tuple[int, ...] = ()
    """Rows of answerable questions that no window holds: the answer is longer than a window, or has no token at all."""
    special: int = SPECIAL
    """Special tokens in a sequence; 2 for single texts:  [CLS] text [SEP]  with the text in the question's place."""

    def __len__(self) -> int:
        return len(self.question)

    @property
    def lengths(self) -> np.ndarray:
        """(W,) int32, tokens of each sequence."""
        return (self.questions.counts[self.question] + self.count + self.special).astype(np.int32)

    @property
    def nbytes(self) -> int:
        """Bytes of every array."""
        own = (
            self.question_context,
            self.question,
            self.first,
            self.count,
            self.start_label,
            self.end_label,
        )
        return self.questions.nbytes + self.contexts.nbytes + sum(array.nbytes for array in own)

    def select(self, keep: np.ndarray) -> "Windows":
        """The windows at these rows (W,) bool or int; questions and paragraphs stay."""
        from dataclasses import replace

        return replace(
            self,
            **{
                name: getattr(self, name)[keep]
                for name in ("question", "first", "count", "start_label", "end_label")
            },
        )

    def fingerprint(self) -> str:
        """sha256 over what the model sees: the same data, vocabulary and window settings give the same 16 digits."""
        digest = hashlib.sha256()
        for array in (
            self.questions.ids,
            self.questions.rows,
            self.contexts.ids,
            self.contexts.rows,
            self.question_context,
            self.question,
            self.first,
            self.count,
            self.start_label,
            self.end_label,
        ):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()[:16]


def check_window_settings(
    max_length: int,
    overlap: int | None,
    step: int | None,
    max_question: int,
    max_positions: int | None = None,
) -> None:
    """Refuse settings under which windows would skip tokens or never move, before anything is tokenised.

    Raises:
        UserError: naming every problem at once.
    """
    room = max_length - SPECIAL - max_question  # paragraph tokens beside the longest question
    problems = []
    if (overlap is None) == (step is None):
        problems.append(
            f"give either overlap or step, not {'both' if step is not None else 'neither'} "
            f"(overlap={overlap}, step={step})"
        )
    if max_question < 1:
        problems.append(f"max_question is {max_question}; a question needs at least 1 token")
    if max_positions is not None and max_length > max_positions:
        problems.append(
            f"max_length is {max_length}, but the model has {max_positions} positions; use at most that"
        )
    if room < 1:
        problems.append(
            f"max_length {max_length} leaves no room for the paragraph beside a question of {max_question} "
            f"tokens and {SPECIAL} special ones; use at least {max_question + SPECIAL + 1}"
        )
    elif overlap is not None and not 0 <= overlap < room:
        problems.append(
            f"overlap is {overlap}, but a question of {max_question} tokens leaves a window of {room} "
            f"paragraph tokens, so windows could not advance; use 0 to {room - 1}"
        )
    elif step is not None and not 1 <= step <= room:
        problems.append(
            f"step is {step}, but a question of {max_question} tokens leaves a window of {room} paragraph "
            f"tokens, so tokens would be {'skipped' if step > room else 'read for ever'}; use 1 to {room}"
        )
    if problems:
        raise UserError("windows: " + "; ".join(problems))


def build_windows(
    examples: Sequence[Example],
    tokenizer: WordPiece,
    *,
    max_length: int = 384,
    overlap: int | None = None,
    step: int | None = None,
    max_question: int = 64,
    progress: str | None = None,
) -> Windows:
    """Tokenise each distinct paragraph once and lay windows of at most `max_length` tokens over it for each question.

    Overlap is 128 where neither `overlap` nor `step` is given. The label is the first accepted answer of each example.

    Raises:
        UserError: for settings under which a window could not advance.
    """
    if overlap is None and step is None:
        overlap = 128
    check_window_settings(max_length, overlap, step, max_question)
    rows: dict[str, int] = {}
    question_context = np.array(
        [rows.setdefault(example.context, len(rows)) for example in examples], np.int32
    )
    contexts = tokenizer.encode(list(rows), progress and f"{progress}: paragraphs")
    whole = tokenizer.encode(
        [example.question for example in examples], progress and f"{progress}: questions"
    )
    questions = whole.cut(max_question)

    room = max_length - SPECIAL - questions.counts  # (Q,) paragraph tokens a window
    total = contexts.counts[question_context]  # (Q,)
    advance = room - overlap if overlap is not None else np.full_like(room, step)  # (Q,)
    per_question = 1 + np.maximum(0, -(-(total - room) // advance))  # (Q,) windows
    question = np.repeat(np.arange(len(examples), dtype=np.int32), per_question)  # (W,)
    nth = np.arange(len(question)) - np.repeat(per_question.cumsum() - per_question, per_question)
    first = (nth * advance[question]).astype(np.int32)
    count = np.minimum(room[question], total[question] - first).astype(np.int32)

    start_token, end_token = _answer_tokens(
        examples, contexts, list(rows), question_context
    )  # (Q,), -1 = no answer
    held = (start_token[question] >= first) & (end_token[question] < first + count)  # (W,)
    prefix = 2 + questions.counts[question] - first  # (W,) [CLS] question [SEP]
    start_label = np.where(held, prefix + start_token[question], 0).astype(np.int32)
    end_label = np.where(held, prefix + end_token[question], 0).astype(np.int32)

    answerable = np.array([bool(example.answer_texts) for example in examples], bool)
    held_somewhere = np.zeros(len(examples), bool)
    held_somewhere[question[held]] = True
    return Windows(
        questions,
        contexts,
        question_context,
        question,
        first,
        count,
        start_label,
        end_label,
        tokenizer.cls_id,
        tokenizer.sep_id,
        int((whole.counts > max_question).sum()),
        tuple(np.flatnonzero(answerable & ~held_somewhere).tolist()),
    )


def text_windows(
    texts: Sequence[str],
    tokenizer: WordPiece,
    *,
    pairs: Sequence[str] | None = None,
    labels: np.ndarray | None = None,
    max_length: int = 512,
    progress: str | None = None,
) -> Windows:
    """One window a text:  [CLS] text [SEP],  or with `pairs`  [CLS] text [SEP] second text [SEP].

    What is longer than `max_length` tokens loses its end, a pair from the longer of its two first; `cut_questions`
    counts them. `start_label` holds the class: `labels` (W,), or 0.
    """
    special = SPECIAL - (pairs is None)
    room = max_length - special
    whole = tokenizer.encode(texts, progress)
    none, rows = np.zeros(0, np.int32), np.arange(len(texts), dtype=np.int32)
    contexts = (
        Tokens(none, none, none, np.zeros(1, np.int64))
        if pairs is None
        else tokenizer.encode(pairs, progress)
    )
    second = np.zeros_like(whole.counts) if pairs is None else contexts.counts
    kept = np.minimum(whole.counts, np.maximum(room - second, (room + 1) // 2))  # (W,)
    count = np.minimum(second, room - kept)  # (W,)
    zeros = np.zeros_like(rows)
    return Windows(
        whole.cut(kept),
        contexts,
        zeros if pairs is None else rows,
        rows,
        zeros,
        count.astype(np.int32),
        zeros if labels is None else labels.astype(np.int32),
        zeros,
        tokenizer.cls_id,
        tokenizer.sep_id,
        int((kept + count < whole.counts + second).sum()),
        special=special,
    )


def _answer_tokens(
    examples: Sequence[Example], contexts: Tokens, texts: list[str], question_context: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(Q,) first and last token, within its paragraph, of each example's first located answer; -1 where there is none.

    The tokens are the fewest that cover the answer's characters, so an answer that ends inside a token takes it whole.
    """
    start_char, end_char = np.full((2, len(examples)), -1, np.int64)
    for row, example in enumerate(examples):
        for text, start in zip(example.answer_texts, example.answer_starts, strict=True):
            if start >= 0 and text:
                # Spaces around an answer have no token: without them the covering tokens are the same.
                start_char[row] = start + len(text) - len(text.lstrip())
                end_char[row] = start + len(text.rstrip())
                break
    # All paragraphs on one line, a free character between them: one sorted search serves every question.
    base = np.concatenate([[0], np.cumsum([len(text) + 1 for text in texts], dtype=np.int64)])
    shift = np.repeat(base[:-1], contexts.counts)  # (T,)
    own = base[question_context]  # (Q,)
    first = np.searchsorted(
        contexts.ends + shift, start_char + own, side="right"
    )  # first token ending behind it
    last = (
        np.searchsorted(contexts.starts + shift, end_char + own, side="left") - 1
    )  # last token starting before
    origin = contexts.rows[question_context]
    found = (start_char >= 0) & (first <= last)
    return np.where(found, first - origin, -1), np.where(found, last - origin, -1)
