"""What a Reader does with questions: their options, the model run over their windows, spans ranked to answers; and a
queue that answers the questions of many threads together, those that came while the model was busy as its next batch.
"""

import copy
import functools
import inspect
import operator
import os
import queue
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import TypedDict, TypeVar

from bertqa.data.examples import Example
from bertqa.data.sources import FIRST_QUESTIONS, QUESTIONS_AT_ONCE, chunks
from bertqa.data.windows import build_windows
from bertqa.errors import UserError
from bertqa.qa.asked import Asked, How, asked_of_pair, how_of
from bertqa.qa.confidence import read_confidence
from bertqa.qa.documents import Answer, Ranking, Reading, not_ranked, rank, widen
from bertqa.qa.search import SpanSettings

Text = str | Sequence[str]
"""A text to find the answer in, or documents."""

Pairs = Iterable[tuple[str, Text]]
"""Questions, each with what to find its answer in."""

Method = TypeVar("Method", bound=Callable)


class Options(TypedDict, total=False):
    """How to answer; what each means stands with `Reader.answer_many`."""

    allow_no_answer: bool | None
    threshold: float | None
    max_answer_length: int | None
    whole_words: bool


def with_options(method: Method) -> Method:
    """Have help() and notebooks show a method's `**options` as what they are: each by its name, type and default; others
    are refused in the method's name."""
    # Written out in every method they would be three lists of the same; as a dictionary they would be hidden.
    signature = inspect.signature(method)
    known = inspect.signature(how_of).parameters
    named = [known[name] for name in Options.__annotations__]
    others = list(signature.parameters.values())[:-1]  # all but **options
    shown = signature.replace(parameters=[*others, *named])

    @functools.wraps(method)
    def checked(*given, **options):
        for name in options.keys() - shown.parameters.keys():
            # Python's own words: `how_of`, which would say them, is no function that the caller knows.
            raise TypeError(f"{method.__qualname__}() got an unexpected keyword argument {name!r}")
        return method(*given, **options)

    checked.__signature__ = shown
    return checked


def answer_pairs(reader, pairs: Iterable, how: How, on_error: str) -> Iterator:
    """The Answer to each pair, or the list of `how.top_k` where that is over 1; `on_error` as in `Reader.answer_many`."""
    asked = (asked_of_pair(number, pair) for number, pair in enumerate(pairs, 1))
    weigh = operator.attrgetter("characters")
    # A small chunk first, so that the first answer comes soon; large ones after it, to be sorted by length.
    for chunk in chunks(asked, QUESTIONS_AT_ONCE, weigh, first=FIRST_QUESTIONS):
        for ranking in reader.rank(chunk, how):
            if ranking.error and on_error == "stop":
                raise UserError(ranking.error)
            yield wanted(ranking, how)


def wanted(ranking: Ranking, how: How) -> Answer | list[Answer]:
    """Of what was found, what was asked for."""
    if how.top_k == 1:
        return ranking.answers[0]
    return ranking.answers[: how.top_k]


def rank_chunk(
    reader, chunk: Sequence[Asked], how: How, done: Callable[[float], None] | None
) -> list[Ranking]:
    """What `Reader.rank` returns."""
    # The model reads the good ones together; the others only take their place in the list again.
    good = [asked for asked in chunk if not asked.error]
    found = iter(_rank(reader, good, how, how.spans, done))
    rankings = []
    for asked in chunk:
        ranking = not_ranked(asked.error) if asked.error else next(found)
        # Where texts repeat, the n best spans hold fewer answers than are asked for: look at more.
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
    # Not before: torch takes seconds, and a Reader that was never asked does not need it.
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
        # Python shows a warning of the same words once, however many questions come.
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
"""Questions that may wait; who asks another one waits until there is room."""

AT_ONCE = 64
"""Questions answered together: enough to fill batches, few enough that nobody waits for long."""

IDLE = 0.2
"""Seconds without a question after which the thread ends; the next question starts another. So a program can end, and
a Reader that nobody uses is freed."""


@dataclass
class Request:
    asked: Asked
    how: How
    future: Future


class Requests:
    """The queue before a Reader, and the one thread that answers what is in it."""

    def __init__(self, reader):
        self.reader = reader
        self.process = os.getpid()
        self.waiting: queue.Queue[Request] = queue.Queue(WAITING)
        self.lock = threading.Lock()
        self.running = False

    def put(self, asked: Asked, how: How) -> Future:
        """The answer to come: an Answer, or the list of `how.top_k` where that is over 1."""
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
            # Who put a question before that line saw a thread running, and started none.
            if not self.waiting.empty():
                self._start()
            return

    def _next_lot(self) -> list[Request]:
        """What has come in, at least one; nothing after some time without any."""
        lot = []
        try:
            lot.append(self.waiting.get(timeout=IDLE))
            while len(lot) < AT_ONCE:
                lot.append(self.waiting.get_nowait())
        except queue.Empty:
            pass
        # False for a Future that was cancelled while it waited.
        return [request for request in lot if request.future.set_running_or_notify_cancel()]

    def _answer(self, lot: list[Request]) -> None:
        """Those that ask for the same are one batch."""
        groups: dict[How, list[Request]] = {}
        for request in lot:
            groups.setdefault(request.how, []).append(request)
        for how, group in groups.items():
            try:
                rankings = self.reader.rank([request.asked for request in group], how)
            except BaseException as error:  # it is theirs who asked; this thread goes on
                for request in group:
                    request.future.set_exception(error)
                continue
            for request, ranking in zip(group, rankings, strict=True):
                request.future.set_result(wanted(ranking, how))


def notice_fork(reader) -> None:
    """In a forked child: none of the threads that the parent had is there, nor anybody who would open its locks."""
    if reader.requests.process == os.getpid():
        return
    from bertqa.device import after_fork

    after_fork(reader.device)
    # The locks in these may have been held by a thread at the moment of the fork.
    reader.tokenizer = copy.copy(reader.tokenizer)
    reader.requests = Requests(reader)
