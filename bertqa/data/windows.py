"""Questions and paragraphs to overlapping windows, as flat arrays: no object per window, no padding, no copy.

A window is the sequence  [CLS] question [SEP] part of the paragraph [SEP].  Paragraphs longer than the room that the
question leaves are cut into several windows. How far the next one starts behind the last is said in one of two ways,
because the field's `doc_stride` means both:

    overlap  tokens shared by neighbours; the step depends on the question's length (run_qa, fast tokenizers, pipelines)
    step     tokens from one window's start to the next one's; the overlap varies (Google's run_squad and its ports)

Example: 12 paragraph tokens, room for 6. Overlap 2 starts windows at 0, 4, 8 -> [0..5] [4..9] [8..11]; step 3 at 0, 3, 6.

Texts to classify or embed are laid out by text_windows.py, one window a text.

Q questions, W windows, T tokens of all distinct paragraphs.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bertqa.data.examples import Example
from bertqa.data.tokenizer import WordPiece
from bertqa.data.tokens import Tokens, running_sum
from bertqa.errors import UserError

SPECIAL = 3
"""[CLS] and two [SEP]."""

LARGEST = 1_000_000
"""No window has more tokens."""


@dataclass
class Sequences:
    """W token sequences  [CLS] first [SEP]  or  [CLS] first [SEP] second [SEP]:  what batches are gathered from."""

    ids: np.ndarray
    """All tokens there are, int32: [CLS], [SEP], those of all first texts, those of all second ones."""
    table: np.ndarray
    """(W, 5) int64: where in `ids` the first text begins, its tokens, where the second begins, and two labels."""
    lengths: np.ndarray  # (W,) int32, tokens of each sequence


@dataclass
class Windows:
    """W windows over Q questions. A window is ordered by question, then by `first`; every question has at least one."""

    questions: Tokens  # one row a question, already cut to max_question
    contexts: Tokens  # one row for each distinct paragraph
    question_context: np.ndarray  # (Q,) int32, paragraph row of each question
    question: np.ndarray  # (W,) int32, question row of each window
    first: np.ndarray
    """(W,) int32, first paragraph token of the window, counted within its paragraph."""
    count: np.ndarray
    """(W,) int32, paragraph tokens in the window; 0 only where the paragraph has none."""
    start_label: np.ndarray
    """(W,) int32, position of the answer's first token in the sequence; 0 ([CLS]): the window does not hold it whole."""
    end_label: np.ndarray  # (W,) int32, position of its last token, inclusive
    cls_id: int
    sep_id: int
    cut_questions: int = 0  # questions that lost tokens to max_question
    unlabelled: tuple[int, ...] = ()
    """Rows of answerable questions that no window holds: the answer is longer than a window, or has no token at all."""

    def __len__(self) -> int:
        return len(self.question)

    @property
    def lengths(self) -> np.ndarray:
        """(W,) int32, tokens of each sequence."""
        return (self.questions.counts[self.question] + self.count + SPECIAL).astype(np.int32)

    def _arrays(self) -> list[np.ndarray]:
        """Which windows there are, and their labels."""
        asked = [self.question_context, self.question]
        return [*asked, self.first, self.count, self.start_label, self.end_label]

    def select(self, keep: np.ndarray) -> "Windows":
        """The windows at these rows (W,) bool or int; questions and paragraphs stay."""
        names = ("question", "first", "count", "start_label", "end_label")
        return replace(self, **{name: getattr(self, name)[keep] for name in names})

    def sequences(self) -> Sequences:
        """The windows as a model reads them."""
        paragraph = self.question_context[self.question]  # (W,)
        # All tokens lie one behind the other: [CLS] and [SEP], those of all questions, those of all paragraphs. With 9
        # tokens of questions in all, a window that begins at a paragraph's token 4, the paragraph at 20, is at 2 + 9 + 24.
        question_at = 2 + self.questions.rows[self.question]
        context_at = 2 + len(self.questions.ids) + self.contexts.rows[paragraph] + self.first
        count = self.questions.counts[self.question]
        columns = [question_at, count, context_at, self.start_label, self.end_label]
        special = np.array([self.cls_id, self.sep_id], np.int32)
        return Sequences(
            ids=np.concatenate([special, self.questions.ids, self.contexts.ids]),
            table=np.stack(columns, axis=1).astype(np.int64),
            lengths=self.lengths,
        )

    def fingerprint(self) -> str:
        """Of what the model sees: the same data, vocabulary and window settings give the same 16 digits."""
        questions = [self.questions.ids, self.questions.rows]
        contexts = [self.contexts.ids, self.contexts.rows]
        return fingerprint([*questions, *contexts, *self._arrays()])


def fingerprint(arrays: Iterable[np.ndarray]) -> str:
    """The first 16 digits of the sha256 of these arrays, one behind the other."""
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
    """Refuse settings under which windows would skip tokens or never move, before anything is tokenised.

    Raises UserError naming every problem at once.
    """
    room = max_length - SPECIAL - max_question  # paragraph tokens beside the longest question
    beside = f"a question of {max_question} tokens leaves a window of {room} paragraph tokens"
    problems = []
    if overlap is None and step is None:
        problems.append("give either overlap or step, not neither (overlap=None, step=None)")
    if overlap is not None and step is not None:
        problems.append(f"give either overlap or step, not both (overlap={overlap}, step={step})")
    if max_length > LARGEST:
        problems.append(f"max_length is {max_length}; use at most {LARGEST:,}")
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

    Overlap is 128 where neither `overlap` nor `step` is given. The label is the first accepted answer of each example.
    Raises UserError for settings under which a window could not advance.
    """
    if overlap is None and step is None:
        overlap = 128
    check_window_settings(max_length, overlap, step, max_question)

    # Six questions share a paragraph in SQuAD: it is tokenised and stored once.
    paragraphs = list(dict.fromkeys(example.context for example in examples))
    row = {text: number for number, text in enumerate(paragraphs)}
    question_context = np.array([row[example.context] for example in examples], np.int32)  # (Q,)
    contexts = tokenizer.encode(paragraphs, progress and f"{progress}: paragraphs")
    asked = [example.question for example in examples]
    whole = tokenizer.encode(asked, progress and f"{progress}: questions")
    questions = whole.cut(max_question)

    # A short question leaves more room for the paragraph, so windows differ from question to question.
    room = max_length - SPECIAL - questions.counts  # (Q,) paragraph tokens a window
    total = contexts.counts[question_context]  # (Q,)
    advance = np.full_like(room, step) if overlap is None else room - overlap  # (Q,)
    question, first = _first_tokens(total, room, advance)  # 2 x (W,)
    count = np.minimum(room[question], total[question] - first).astype(np.int32)  # (W,)

    start_token, end_token = _answer_tokens(examples, contexts, paragraphs, question_context)
    # A window that does not hold the answer whole is labelled 0, 0: its answer is [CLS].
    held = (start_token[question] >= first) & (end_token[question] < first + count)  # (W,)
    # Behind [CLS] question [SEP] the paragraph's token `first` has position 2 + question tokens: of a question of 5
    # tokens and a window from token 40 on, token 43 is at 10.
    shift = 2 + questions.counts[question] - first  # (W,)
    return Windows(
        questions=questions,
        contexts=contexts,
        question_context=question_context,
        question=question,
        first=first,
        count=count,
        start_label=np.where(held, start_token[question] + shift, 0).astype(np.int32),
        end_label=np.where(held, end_token[question] + shift, 0).astype(np.int32),
        cls_id=tokenizer.cls_id,
        sep_id=tokenizer.sep_id,
        cut_questions=int((whole.counts > max_question).sum()),
        unlabelled=_not_among(question[held], examples),
    )


def _not_among(held: np.ndarray, examples: Sequence[Example]) -> tuple[int, ...]:
    """The rows of answerable examples that are not among the rows `held`: no window of theirs has the answer whole."""
    missing = np.array([example.answer_texts != () for example in examples], bool)  # (Q,)
    missing[held] = False
    return tuple(np.flatnonzero(missing).tolist())


def _first_tokens(
    total: np.ndarray, room: np.ndarray, advance: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(W,) int32 which question each window asks, and the first paragraph token that it shows.

    Args:
        total, room, advance: (Q,) paragraph tokens of each question, how many a window holds, and from
            one window's start to the next one's.

    Example: paragraphs of 12 and 5 tokens, room for 6, advance 4:
        beyond        6 0        tokens that the first window does not reach
        windows       3 1        the first one, and 6 / 4 rounded up more
        question      0 0 0 1
        nth           0 1 2 0    its place among the question's windows
        first         0 4 8 0
    """
    beyond = np.maximum(0, total - room)  # (Q,)
    windows = 1 + -(-beyond // advance)  # (Q,)
    question = np.repeat(np.arange(len(total), dtype=np.int32), windows)  # (W,)
    before = running_sum(windows)[:-1]  # (Q,) windows of the questions before each
    nth = np.arange(len(question)) - np.repeat(before, windows)  # (W,)
    first = nth * advance[question]
    return question, first.astype(np.int32)


def _answer_tokens(
    examples: Sequence[Example], contexts: Tokens, texts: list[str], question_context: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(Q,) first and last token, within its paragraph, of each example's first located answer; -1 where there is none.

    The tokens are the fewest that cover the answer's characters, so an answer that ends inside a token takes it whole.

    Example: the answer is characters 2 to 4 ("bc") of a paragraph whose tokens stand at 0-1, 2-3, 3-5:
        first  the first token that ends behind 2:      ends   1 3 5  -> token 1
        last   the last one that begins before 4:       starts 0 2 3  -> token 2
    """
    start_char = np.full(len(examples), -1, np.int64)  # (Q,)
    end_char = np.full(len(examples), -1, np.int64)  # (Q,)
    for row, example in enumerate(examples):
        for text, start in zip(example.answer_texts, example.answer_starts, strict=True):
            if start >= 0 and text:
                start_char[row] = start
                end_char[row] = start + len(text)
                break
    # All paragraphs on one line, one behind the other: one sorted search serves every question. With
    # paragraphs of 5 and 4 characters, token ends 1 3 5 and 2 4 become 1 3 5 7 9, and character 2 of the
    # second paragraph is 7. A token that ends where an answer begins is before it.
    begins = running_sum([len(text) for text in texts])  # (paragraphs+1,)
    shift = np.repeat(begins[:-1], contexts.counts)  # (T,)
    own = begins[question_context]  # (Q,)
    first = np.searchsorted(contexts.ends + shift, start_char + own, side="right")  # (Q,)
    last = np.searchsorted(contexts.starts + shift, end_char + own, side="left") - 1  # (Q,)
    found = (start_char >= 0) & (first <= last)
    origin = contexts.rows[question_context]  # (Q,)
    return np.where(found, first - origin, -1), np.where(found, last - origin, -1)
