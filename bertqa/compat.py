"""transformers 4's `pipeline("question-answering")` over a `Reader`: old code only needs another import.

    from bertqa.compat import pipeline

    ask = pipeline("question-answering", model="weights/minilm-squad2")
    ask(question="Who kept the lamp?", context="Agnes Holm kept the lamp.")
    # {'score': ..., 'start': 0, 'end': 10, 'answer': 'Agnes Holm'}

README says where its answers differ from the old ones, and why. Arguments that have no effect here give a warning.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path

from bertqa.errors import UserError
from bertqa.qa.documents import Answer
from bertqa.reader import Reader

TASK = "question-answering"
WINDOW_OPTIONS = ("max_seq_len", "doc_stride", "max_question_len")
"""Ignored, since a model answers best with the windows that it was trained on."""
WITHOUT_MEANING = ("padding", "batch_size", "num_workers", "framework", "binary_output")


class QuestionAnsweringPipeline:
    """What `pipeline` returns: a function from questions and contexts to dictionaries."""

    def __init__(self, reader: Reader, **options):
        self.reader = reader
        self.options = options

    @property
    def model(self):
        return self.reader.model

    @property
    def tokenizer(self):
        return self.reader.tokenizer

    def __call__(self, *args, **named) -> dict | list:
        """Answer one question, or several.

        Args:
            args: a dictionary with question and context, or a list of them.
            question, context: texts, or lists of texts of one length; one context serves several questions.
            top_k: answers wanted; more than 1 gives a list of dictionaries for each question.
            handle_impossible_answer: whether "" may be the answer (False).
            max_answer_len: most tokens of an answer (15).
            align_to_words: widen answers to whole words (True).

        Returns:
            {"score", "start", "end", "answer"}, or a list of these where top_k > 1; for several questions a list of either.
        """
        options = {**self.options, **named}
        pairs = pairs_of(args, options)
        drop_without_meaning(options)
        top_k = options.pop("top_k", 1)
        no_answer = options.pop("handle_impossible_answer", False)
        longest = options.pop("max_answer_len", 15)
        words = options.pop("align_to_words", True)
        if options:
            raise TypeError(f"unknown arguments: {', '.join(options)}")
        answers = self.reader.answer_many(
            pairs,
            top_k,
            allow_no_answer=bool(no_answer),
            threshold=0.0 if no_answer else None,
            max_answer_length=longest,
            whole_words=words,
        )
        found = [as_dictionaries(answer) for answer in answers]
        return found[0] if len(found) == 1 else found


def pipeline(
    task: str = TASK,
    model: str | Path | Reader | None = None,
    *,
    tokenizer: object = None,
    device: object = None,
    dtype: object = None,
    torch_dtype: object = None,
    **options,
) -> QuestionAnsweringPipeline:
    """Make a question-answering pipeline.

    Args:
        task: "question-answering", the only one.
        model: a Reader, or what `Reader.load` takes; None is the reader that comes with bertqa.
        tokenizer: not needed; the model's own is taken.
        device: -1 for the CPU, 0 for the first GPU, or as for `Reader.load`.
        dtype, torch_dtype: as for `Reader.load`.
        options: defaults for those of each call.

    Raises:
        UserError: for another task, and where there is no such model.
    """
    if task != TASK:
        raise UserError(f"{task!r} is not a task of bertqa; it has {TASK!r}")
    if tokenizer is not None and str(tokenizer) != str(model):
        warnings.warn("tokenizer is left aside: the model's own is taken", stacklevel=2)
    if isinstance(model, Reader):
        return QuestionAnsweringPipeline(model, **options)
    if isinstance(device, int):
        device = "cpu" if device < 0 else f"cuda:{device}"
    reader = Reader.load(model, device=device, dtype=dtype or torch_dtype)
    return QuestionAnsweringPipeline(reader, **options)


def pairs_of(args: tuple, options: dict) -> list[tuple[str, str]]:
    """Return the (question, context) pairs of a call, and remove them from its options."""
    # transformers 4 took a dictionary, a list of dictionaries, several dictionaries, or question= and context=.
    given = args[0] if len(args) == 1 else list(args)
    for name in ("data", "X"):  # older names of the first argument
        if name in options:
            given = options.pop(name)
    if not given:
        questions = options.pop("question", None)
        contexts = options.pop("context", None)
        if questions is None or contexts is None:
            raise TypeError("give question= and context=, or dictionaries that have both")
        given = with_contexts(questions, contexts)
    records = [given] if isinstance(given, dict) else list(given)
    for record in records:
        if not isinstance(record, dict) or not {"question", "context"} <= record.keys():
            raise TypeError('each question must be {"question": ..., "context": ...}')
    return [(record["question"], record["context"]) for record in records]


def with_contexts(questions: str | Sequence[str], contexts: str | Sequence[str]) -> list[dict]:
    """Return {"question", "context"} for each question; a single context serves all of them."""
    if isinstance(questions, str):
        questions = [questions]
    if isinstance(contexts, str):
        contexts = [contexts] * len(questions)
    if len(questions) != len(contexts):
        raise ValueError(f"there are {len(questions)} questions, but {len(contexts)} contexts")
    records = []
    for question, context in zip(questions, contexts, strict=True):
        records.append({"question": question, "context": context})
    return records


def drop_without_meaning(options: dict) -> None:
    """Remove the arguments that have no effect here, with a warning, and give `topk` its present name."""
    if "topk" in options:
        options["top_k"] = options.pop("topk")
    windows = taken_out(options, WINDOW_OPTIONS)
    if windows:
        said = f"{', '.join(windows)}: taken as the model was trained, see reader.qa"
        warnings.warn(said, stacklevel=3)
    others = taken_out(options, WITHOUT_MEANING)
    if others:
        warnings.warn(f"{', '.join(others)}: means nothing here", stacklevel=3)


def taken_out(options: dict, names: Sequence[str]) -> list[str]:
    """Remove these options. Returns the names of those that were given."""
    given = []
    for name in names:
        if options.pop(name, None) is not None:
            given.append(name)
    return given


def as_dictionaries(answer: Answer | list[Answer]) -> dict | list[dict]:
    """Return an answer as the pipeline did."""
    if isinstance(answer, list):
        return [as_dictionaries(each) for each in answer]
    return {
        "score": answer.score,
        "start": answer.start,
        "end": answer.end,
        "answer": answer.answer,
    }
