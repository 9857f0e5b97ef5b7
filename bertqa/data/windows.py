"""Lay overlapping windows over paragraphs, as flat arrays: no object per window, no padding, no copies of tokens.

A window is the token sequence  [CLS] question [SEP] part of the paragraph [SEP].  A paragraph longer than the room that
the question leaves is covered by several windows. How far apart they start can be set in two ways (the field calls both
`doc_stride`):

    overlap  tokens that neighbouring windows share; the step depends on the question's length (run_qa, pipelines)
    step     tokens from one window's start to the next one's; the overlap depends on it (Google's run_squad, its ports)

Example: 12 paragraph tokens, room for 6. With overlap 2 windows start at 0, 4, 8: [0..5] [4..9] [8..11]. With step 3 they
start at 0, 3, 6.

text_windows.py does the same for texts to classify or embed, one window a text.

Shapes: Q questions, W windows, T tokens of all distinct paragraphs.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bertqa.data.examples import Example
from bertqa.data.tokenizer import WordPiece
from bertqa.data.tokens import Tokens, running_sum
from bertqa.errors import UserError

SPECIAL_TOKENS = 3  # in each window: [CLS] and two [SEP]
MAX_LENGTH = 1_000_000  # tokens of the largest window that can be asked for


@dataclass
class TokenSequences:
    """W token sequences, each  [CLS] first [SEP]  or  [CLS] first [SEP] second [SEP],  from which batches are gathered."""

    ids: np.ndarray
    """(all tokens,) int32: the ids of [CLS] and [SEP], then the tokens of all first texts, then those of all second texts."""
    table: np.ndarray
    """(W, 5) int64: index in `ids` of the first text, its token count, index of the second text, and two labels."""
    lengths: np.ndarray  # (W,) int32, tokens of each sequence


@dataclass
class Windows:
    """W windows over Q questions, sorted by question, then by `first`. Every question has at least one window."""

    questions: Tokens  # one row a question, cut to max_question tokens
    contexts: Tokens  # one row for each distinct paragraph
    question_context: np.ndarray  # (Q,) int32, row in `contexts` of each question's paragraph
    question: np.ndarray  # (W,) int32, row in `questions` of each window's question
    first: np.ndarray
    """(W,) int32, index within its paragraph of the window's first paragraph token."""
    count: np.ndarray
    """(W,) int32, number of paragraph tokens in the window; 0 only if the paragraph has no tokens."""
    start_label: np.ndarray
    """(W,) int32, position in the sequence of the answer's first token; 0 ([CLS]) unless the window has the whole answer."""
    end_label: np.ndarray  # (W,) int32, position of the answer's last token, inclusive; 0 likewise
    cls_id: int
    sep_id: int
    cut_questions: int = 0  # number of questions that were cut to max_question tokens
    unlabelled: tuple[int, ...] = ()
    """Rows of answerable questions that no window labels: the answer is longer than a window, or has no token."""

    def __len__(self) -> int:
        return len(self.question)

    @property
    def lengths(self) -> np.ndarray:
        """(W,) int32, tokens of each sequence."""
        return (self.questions.counts[self.question] + self.count + SPECIAL_TOKENS).astype(np.int32)

    def select(self, keep: np.ndarray) -> "Windows":
        """Return only the windows that `keep` selects, (W,) bool or row numbers; all questions and paragraphs stay."""
        return replace(
            self,
            question=self.question[keep],
            first=self.first[keep],
            count=self.count[keep],
            start_label=self.start_label[keep],
            end_label=self.end_label[keep],
        )

    def sequences(self) -> TokenSequences:
        """Return the windows as token sequences, for `WindowStore`."""
        paragraph = self.question_context[self.question]  # (W,)
        # `ids` holds [CLS], [SEP], all questions, all paragraphs. If all questions together have 9 tokens, a window that
        # begins at token 4 of a paragraph that begins at token 20 of `contexts` is found at 2 + 9 + 20 + 4.
        question_at = 2 + self.questions.rows[self.question]
        context_at = 2 + len(self.questions.ids) + self.contexts.rows[paragraph] + self.first
        count = self.questions.counts[self.question]
        columns = [question_at, count, context_at, self.start_label, self.end_label]
        special = np.array([self.cls_id, self.sep_id], np.int32)
        return TokenSequences(
            ids=np.concatenate([special, self.questions.ids, self.contexts.ids]),
            table=np.stack(columns, axis=1).astype(np.int64),
            lengths=self.lengths,
        )

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits that depend on the tokens, the window layout and the labels, and nothing else."""
        questions = [self.questions.ids, self.questions.rows]
        contexts = [self.contexts.ids, self.contexts.rows]
        layout = [self.question_context, self.question, self.first, self.count]
        labels = [self.start_label, self.end_label]
        return fingerprint([*questions, *contexts, *layout, *labels])


def fingerprint(arrays: Iterable[np.ndarray]) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of the arrays' bytes, concatenated."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]


def check_window_settings(
    max_length: int,
    overlap: int | None,
    step: int | None,
    max_question: int,
    max_positions: int | None = None,
) -> None:
    """Raise UserError, naming every problem, if windows with these settings would skip tokens or never advance.

    Args:
        max_positions: the model's position embeddings; None if they are not known.
    """
    # paragraph tokens in a window with the longest question
    room = max_length - SPECIAL_TOKENS - max_question
    beside = f"a question of {max_question} tokens leaves a window of {room} paragraph tokens"
    problems = []
    if overlap is None and step is None:
        problems.append("give either overlap or step, not neither (overlap=None, step=None)")
    if overlap is not None and step is not None:
        problems.append(f"give either overlap or step, not both (overlap={overlap}, step={step})")
    if max_length > MAX_LENGTH:
        problems.append(f"max_length is {max_length}; use at most {MAX_LENGTH:,}")
    if max_question < 1:
        problems.append(f"max_question is {max_question}; a question needs at least 1 token")
    if max_positions is not None and max_length > max_positions:
        problems.append(
            f"max_length is {max_length}, but the model has {max_positions} positions; use at most that"
        )
    if room < 1:
        problems.append(
            f"max_length {max_length} leaves no room for the paragraph beside a question of {max_question} "
            f"tokens and {SPECIAL_TOKENS} special ones; use at least {max_question + SPECIAL_TOKENS + 1}"
        )
    elif overlap is not None and not 0 <= overlap < room:
        problems.append(
            f"overlap is {overlap}, but {beside}, so windows could not advance; use 0 to {room - 1}"
        )
    elif step is not None and not 1 <= step <= room:
        harm = "skipped" if step > room else "read for ever"
        problems.append(f"step is {step}, but {beside}, so tokens would be {harm}; use 1 to {room}")
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

    The overlap is 128 if neither `overlap` nor `step` is given. Labels are those of each example's first located answer.
    `progress` names progress bars; None shows none. Raises UserError if windows with these settings could not advance.
    """
    if overlap is None and step is None:
        overlap = 128
    check_window_settings(max_length, overlap, step, max_question)

    # In SQuAD about six questions share a paragraph.
    paragraphs = list(dict.fromkeys(example.context for example in examples))
    row = {text: number for number, text in enumerate(paragraphs)}
    question_context = np.array([row[example.context] for example in examples], np.int32)  # (Q,)
    contexts = tokenizer.encode(paragraphs, _bar_name(progress, "paragraphs"))
    asked = [example.question for example in examples]
    uncut = tokenizer.encode(asked, _bar_name(progress, "questions"))
    questions = uncut.cut(max_question)

    # A short question leaves more room for the paragraph, so windows differ from question to question.
    room = max_length - SPECIAL_TOKENS - questions.counts  # (Q,) paragraph tokens that fit
    total = contexts.counts[question_context]  # (Q,) tokens of the question's paragraph
    advance = np.full_like(room, step) if overlap is None else room - overlap  # (Q,)
    question, first = _window_starts(total, room, advance)  # 2 x (W,)
    windows = Windows(
        questions=questions,
        contexts=contexts,
        question_context=question_context,
        question=question,
        first=first,
        count=np.minimum(room[question], total[question] - first).astype(np.int32),
        start_label=np.zeros(len(question), np.int32),
        end_label=np.zeros(len(question), np.int32),
        cls_id=tokenizer.cls_id,
        sep_id=tokenizer.sep_id,
        cut_questions=int((uncut.counts > max_question).sum()),
    )
    _set_labels(windows, examples, paragraphs)
    return windows


def _bar_name(progress: str | None, what: str) -> str | None:
    return None if progress is None else f"{progress}: {what}"


def _window_starts(
    total: np.ndarray, room: np.ndarray, advance: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return `Windows.question` and `Windows.first`, each (W,) int32.

    Args:
        total: (Q,) tokens of each question's paragraph.
        room: (Q,) paragraph tokens that fit into a window.
        advance: (Q,) tokens from one window's start to the next one's.

    Example: paragraphs of 12 and 5 tokens, room for 6, advance 4:
        beyond        6 0        tokens that the first window does not reach
        windows       3 1        the first window, and 6 / 4 rounded up
        question      0 0 0 1
        nth           0 1 2 0    number of the window among its question's
        first         0 4 8 0
    """
    beyond = np.maximum(0, total - room)  # (Q,)
    windows = 1 + -(-beyond // advance)  # (Q,)
    question = np.repeat(np.arange(len(total), dtype=np.int32), windows)  # (W,)
    before = running_sum(windows)[:-1]  # (Q,) windows of all questions before
    nth = np.arange(len(question)) - np.repeat(before, windows)  # (W,)
    first = nth * advance[question]
    return question, first.astype(np.int32)


def _set_labels(windows: Windows, examples: Sequence[Example], paragraphs: list[str]) -> None:
    """Label the windows that hold the whole answer of their question. The others keep 0, 0, the position of [CLS]."""
    start_token, end_token = _answer_tokens(
        examples, windows.contexts, paragraphs, windows.question_context
    )
    start = start_token[windows.question]  # (W,) index in the paragraph
    end = end_token[windows.question]  # (W,)
    held = (start >= windows.first) & (end < windows.first + windows.count)  # (W,)
    # The paragraph follows [CLS] question [SEP], so its token `first` is at position 2 + question tokens. With a question
    # of 5 tokens and a window from paragraph token 40 on, token 43 is at 43 + 2 + 5 - 40 = 10.
    shift = 2 + windows.questions.counts[windows.question] - windows.first  # (W,)
    windows.start_label[held] = (start + shift)[held]
    windows.end_label[held] = (end + shift)[held]

    missing = np.array([example.answer_texts != () for example in examples], bool)  # (Q,)
    missing[windows.question[held]] = False
    windows.unlabelled = tuple(np.flatnonzero(missing).tolist())


def _answer_tokens(
    examples: Sequence[Example], contexts: Tokens, texts: list[str], question_context: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the first and last token of each example's first located answer, each (Q,); -1 if there is none.

    They are indices within the paragraph. The tokens are the fewest that cover the answer's characters, so a token that is
    only partly in the answer counts as in it.

    Example: the answer is characters 2 to 4 ("bc") of a paragraph whose tokens span 0-1, 2-3 and 3-5:
        first  the first token whose end is greater than 2:      ends   1 3 5  -> token 1
        last   the last token whose start is less than 4:        starts 0 2 3  -> token 2
    """
    start_char, end_char = _answer_characters(examples)
    # All paragraphs are put on one axis, so that one binary search serves every question. With paragraphs of 5 and 4
    # characters, token ends 1 3 5 | 2 4 become 1 3 5 7 9, and character 2 of the second paragraph becomes 7.
    begins = running_sum([len(text) for text in texts])  # (paragraphs+1,)
    shift = np.repeat(begins[:-1], contexts.counts)  # (T,)
    own = begins[question_context]  # (Q,)
    first = np.searchsorted(contexts.ends + shift, start_char + own, side="right")  # (Q,)
    last = np.searchsorted(contexts.starts + shift, end_char + own, side="left") - 1  # (Q,)
    found = (start_char >= 0) & (first <= last)
    paragraph_at = contexts.rows[question_context]  # (Q,)
    return np.where(found, first - paragraph_at, -1), np.where(found, last - paragraph_at, -1)


def _answer_characters(examples: Sequence[Example]) -> tuple[np.ndarray, np.ndarray]:
    """Return the start and end character of each example's first located answer, each (Q,) int64; -1 if there is none."""
    start_char = np.full(len(examples), -1, np.int64)
    end_char = np.full(len(examples), -1, np.int64)
    for row, example in enumerate(examples):
        for text, start in zip(example.answer_texts, example.answer_starts, strict=True):
            if start >= 0 and text:
                start_char[row] = start
                end_char[row] = start + len(text)
                break
    return start_char, end_char
