"""How a Reader answers: options are checked, the model reads windows, and spans are ranked to answers.

And a queue for the questions of many threads, whose next batch is what came while the model was busy.
"""

import copy
import functools
import inspect
import operator
import os
import queue
import threading
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import TypedDict, TypeVar

from bertqa.data.examples import Example
from bertqa.data.sources import FIRST_QUESTIONS, QUESTIONS_AT_ONCE, Shared, chunks
from bertqa.data.windows import build_windows
from bertqa.errors import UserError
from bertqa.qa.asked import Asked, How, asked_of_pair, how_of
from bertqa.qa.confidence import read_confidence
from bertqa.qa.documents import Answer, Ranking, Reading, not_ranked, rank, widen
from bertqa.qa.search import SpanSettings

Text = str | Sequence[str]
"""A context: a text, or several documents."""

Pairs = Iterable[tuple[str, Text]]
"""(question, context) pairs."""

Method = TypeVar("Method", bound=Callable)


class Options(TypedDict, total=False):
    """How to answer; `Reader.answer_many` explains each."""

    allow_no_answer: bool | None
    threshold: float | None
    max_answer_length: int | None
    whole_words: bool


def with_options(method: Method) -> Method:
    """Decorate a method so that help() and notebooks show the Options, with defaults, in the place of its `**options`.

    Three methods share the options, which so stand in one place. Other names raise TypeError.
    """
    signature = inspect.signature(method)
    known = inspect.signature(how_of).parameters
    named = [known[name] for name in Options.__annotations__]
    others = list(signature.parameters.values())[:-1]  # all but **options
    shown = signature.replace(parameters=[*others, *named])

    @functools.wraps(method)
    def checked(*given, **options):
        for name in options.keys() - shown.parameters.keys():
            # Python itself would name `how_of`, which the caller does not know.
            raise TypeError(f"{method.__qualname__}() got an unexpected keyword argument {name!r}")
        return method(*given, **options)

    checked.__signature__ = shown
    return checked


def answer_pairs(reader, pairs: Iterable, how: How, on_error: str = "stop") -> Iterator:
    """Return an iterator of the Answer to each pair, or of lists of them where `how.top_k` is over 1.

    Threads may share it. `on_error` is that of `Reader.answer_many`.
    """
    if on_error not in ("stop", "keep"):
        raise UserError(f"on_error is {on_error!r}; use stop or keep")
    return Shared(_answers(reader, pairs, how, on_error))


def _answers(reader, pairs: Iterable, how: How, on_error: str) -> Iterator:
    asked = (asked_of_pair(number, pair) for number, pair in enumerate(pairs, 1))
    weigh = operator.attrgetter("characters")
    # A small chunk first, so that the first answer comes soon; then large ones, whose windows are sorted by length.
    for chunk in chunks(asked, QUESTIONS_AT_ONCE, weigh, first=FIRST_QUESTIONS):
        for ranking in reader.rank(chunk, how):
            if ranking.error and on_error == "stop":
                raise UserError(ranking.error)
            yield wanted(ranking, how)


def wanted(ranking: Ranking, how: How) -> Answer | list[Answer]:
    """Return the best answer, or the `how.top_k` best where more than one was asked for."""
    if how.top_k == 1:
        return ranking.answers[0]
    return ranking.answers[: how.top_k]


def rank_chunk(
    reader, chunk: Sequence[Asked], how: How, done: Callable[[float], None] | None
) -> list[Ranking]:
    """Return what `Reader.rank` does."""
    good = [asked for asked in chunk if not asked.error]
    found = iter(_rank(reader, good, how, how.spans, done))
    rankings = []
    for asked in chunk:
        if asked.error:
            rankings.append(not_ranked(asked.error))
            continue
        ranking = next(found)
        # Where spans have the same text, the n best are fewer answers than asked for: search for more spans.
        wider = how.spans
        while len(ranking.answers) < how.top_k and ranking.more and wider.mode == "exact":
            wider = replace(wider, n_best=8 * wider.n_best)
            (ranking,) = _rank(reader, [asked], how, wider)
        rankings.append(ranking)
    return rankings


def _rank(
    reader, chunk: Sequence[Asked], how: How, settings: SpanSettings, done=None
) -> list[Ranking]:
    if not chunk:
        return []
    documents = []
    for asked in chunk:
        documents += asked.documents
    reading = read_documents(reader, documents, settings, done=done)
    if how.whole_words:
        windows = reading.windows
        widen(reading.spans, windows, reader.tokenizer.continues(windows.contexts.ids))
    sizes = [len(asked.documents) for asked in chunk]
    most = max(how.top_k, how.listed)
    return list(rank(reading, sizes, how.threshold, most, read_confidence(reader.qa)))


def read_documents(
    reader,
    documents: Sequence[Example],
    settings: SpanSettings,
    *,
    progress: str | None = None,
    done: Callable[[float], None] | None = None,
) -> Reading:
    """Run the model over all windows of the documents."""
    notice_fork(reader)
    # Here and not at the top: they import torch, which takes a second, and the verbs check their flags before.
    from bertqa.device import autocast
    from bertqa.inference import read_windows

    qa = reader.qa
    windows = build_windows(
        documents,
        reader.tokenizer,
        max_length=qa["max_length"],
        overlap=qa.get("overlap"),
        step=qa.get("step"),
        max_question=qa["max_question"],
    )
    if windows.cut_questions:
        # The words are the same for every question, so that Python shows the warning once.
        limit = qa["max_question"]
        warnings.warn(
            f"a question has more than {limit} tokens, and is read without its end (max_question in qa.json)",
            stacklevel=2,
        )
    cast = None
    if reader.dtype is not None:
        cast = autocast(reader.device, reader.dtype)
    return read_windows(
        reader.model,
        windows,
        documents,
        reader.device,
        settings,
        autocast=cast,
        progress=progress,
        done=done,
    )


# Questions of many threads

WAITING = 1024
"""Most questions in the queue; `put` blocks while it is full."""

AT_ONCE = 64
"""Most questions answered together: enough to fill batches, few enough that nobody waits for long."""

IDLE = 0.2
"""Seconds without a question after which the thread ends, so that the program can end and an unused Reader is freed. The
next question starts another thread."""


@dataclass
class Request:
    asked: Asked
    how: How
    future: Future


class Requests:
    """The queue of a Reader, and the thread that answers what is in it."""

    def __init__(self, reader):
        self.reader = reader
        self.process = os.getpid()
        self.waiting: queue.Queue[Request] = queue.Queue(WAITING)
        self.lock = threading.Lock()
        self.running = False

    def put(self, asked: Asked, how: How) -> Future:
        """Return a Future of the Answer, or of a list of them where `how.top_k` is over 1."""
        future: Future = Future()
        if asked.error:
            future.set_exception(UserError(asked.error))
            return future
        self.waiting.put(Request(asked, how, future))
        self._start()
        return future

    def _start(self) -> None:
        with self.lock:
            if not self.running:
                self.running = True
                threading.Thread(target=self._work, name="bertqa requests").start()

    def _work(self) -> None:
        while True:
            lot = self._next_lot()
            if lot:
                self._answer(lot)
                continue
            with self.lock:
                self.running = False
            # A question that was put just before saw `running` and started no thread.
            if not self.waiting.empty():
                self._start()
            return

    def _next_lot(self) -> list[Request]:
        """Wait for questions and return what has come in; an empty list after IDLE seconds without any."""
        lot = []
        try:
            lot.append(self.waiting.get(timeout=IDLE))
            while len(lot) < AT_ONCE:
                lot.append(self.waiting.get_nowait())
        except queue.Empty:
            pass
        # set_running_or_notify_cancel is False for a Future that was cancelled while it waited.
        return [request for request in lot if request.future.set_running_or_notify_cancel()]

    def _answer(self, lot: list[Request]) -> None:
        """Answer requests; those with the same options are one batch."""
        groups: dict[How, list[Request]] = defaultdict(list)
        for request in lot:
            groups[request.how].append(request)
        for how, group in groups.items():
            try:
                rankings = self.reader.rank([request.asked for request in group], how)
            except BaseException as error:
                # Raised where the answer is awaited; this thread goes on.
                for request in group:
                    request.future.set_exception(error)
                continue
            for request, ranking in zip(group, rankings, strict=True):
                request.future.set_result(wanted(ranking, how))


def notice_fork(reader) -> None:
    """Replace the queue and the locks of a Reader in a forked child.

    The parent's threads do not exist there, so that a lock that one of them held would never be released.
    """
    if reader.requests.process == os.getpid():
        return
    from bertqa.device import after_fork

    after_fork(reader.device)
    reader.tokenizer = copy.copy(reader.tokenizer)  # copied with a new lock
    reader.requests = Requests(reader)
