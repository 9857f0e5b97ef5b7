"""Being told to stop: signals are noted, and obeyed between two steps, or in the middle of an evaluation."""

import contextlib
import os
import signal
from collections.abc import Iterator

NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")


class StopEvaluation(BaseException):
    """Raised inside of an evaluation by a signal. No Exception: no task that evaluates should catch it."""


class StopRequest:
    """Which signals have come. The loop finishes its step, saves and returns; a second SIGINT interrupts at once."""

    def __init__(self, aloud: bool = True):
        self.aloud = aloud
        self.received: list[str] = []
        self.evaluating = False

    @contextlib.contextmanager
    def breaking_off(self) -> Iterator[None]:
        """A signal that comes inside, or has come, raises StopEvaluation: there is nothing to lose but the evaluation."""
        self.evaluating = True
        try:
            if self.received:
                raise StopEvaluation
            yield
        finally:
            self.evaluating = False

    def note(self, number: int, frame) -> None:
        """The handler of all these signals."""
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received.append(signal.Signals(number).name)
        if self.aloud and len(self.received) == 1:
            when = "in this evaluation" if self.evaluating else "after this step"
            self.say(f"stopping {when} and saving")
        if self.evaluating:
            self.evaluating = False
            raise StopEvaluation

    def say(self, doing: str) -> None:
        """One line on stderr; not by print, which the signal may have interrupted."""
        again = "; once more stops at once" if self.received[0] == "SIGINT" else ""
        with contextlib.suppress(OSError):
            os.write(2, f"\n{self.received[0]}: {doing}{again}\n".encode())


@contextlib.contextmanager
def stop_signals(aloud: bool = True) -> Iterator[StopRequest]:
    """What has asked to stop, noted inside; the signals' own handlers are back afterwards.

    SIGHUP that is ignored (nohup) stays so. In another thread than the main one signals are somebody else's.
    """
    request = StopRequest(aloud)
    before = {}
    for name in NAMES:
        number = getattr(signal, name, None)  # Windows has two of them
        if number is None or (name == "SIGHUP" and signal.getsignal(number) == signal.SIG_IGN):
            continue
        with contextlib.suppress(ValueError):  # not in the main thread
            before[number] = signal.signal(number, request.note)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
