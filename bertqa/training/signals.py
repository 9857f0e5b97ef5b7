"""Being told to stop: signals are noted, and obeyed between two steps, or in the middle of an evaluation."""

import contextlib
import os
import signal
from collections.abc import Iterator

from bertqa.console import logger
from bertqa.distributed import StopEvaluation, World

NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")


class StopRequest:
    """Which signals have come. The loop finishes its step, saves and returns; a second SIGINT interrupts at once."""

    def __init__(self, aloud: bool = True):
        self.aloud = aloud
        self.received: list[str] = []
        self.evaluating: World | None = None
        """The processes that share the evaluation which is being made."""

    @contextlib.contextmanager
    def breaking_off(self, world: World) -> Iterator[None]:
        """A signal that comes inside, or has come, raises StopEvaluation: there is nothing to lose but the evaluation."""
        self.evaluating = world
        try:
            if self.received:
                self.break_off()
            yield
        finally:
            self.evaluating = None
            world.leave.clear()

    def break_off(self) -> None:
        """Leave the evaluation: a single process at once, several where they next meet, between two batches."""
        if self.evaluating.size > 1:
            # A rank that left alone would have the others wait for its share of the evaluation.
            self.evaluating.leave.set()
            return
        self.evaluating = None
        raise StopEvaluation

    def note(self, number: int, frame) -> None:
        """The handler of all these signals."""
        # Whoever presses Ctrl-C twice does not want to wait for the end of the step.
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received.append(signal.Signals(number).name)
        if self.aloud and len(self.received) == 1:
            when = "in this evaluation" if self.evaluating else "after this step"
            self.say(f"stopping {when} and saving")
        if self.evaluating:
            self.break_off()

    def say(self, doing: str) -> None:
        """Tell people at once, in the middle of whatever the signal has interrupted."""
        again = "; once more stops at once" if self.received[0] == "SIGINT" else ""
        line = f"{self.received[0]}: {doing}{again}"
        try:
            logger.warning("%s", line)
        except RuntimeError:
            # The signal came in the middle of a print, which cannot be entered twice.
            with contextlib.suppress(OSError):
                os.write(2, f"\n{line}\n".encode())


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
