"""Questions of many threads, answered together: what is asked while the model is busy is its next batch."""

import queue
import threading
from concurrent.futures import Future
from dataclasses import dataclass

from bertqa.errors import UserError
from bertqa.qa.asked import Asked, How

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
            if self.waiting.empty():
                return
            self._start()  # one came in at the last moment
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
                answers = ranking.answers[: how.top_k]
                request.future.set_result(answers[0] if how.top_k == 1 else answers)
