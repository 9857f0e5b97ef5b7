"""Signals that stop a run (Ctrl-C, SIGTERM ...): noted at once, obeyed after the step, or within an evaluation."""

import contextlib
import os
import signal
from collections.abc import Iterator

from bertqa.console import logger
from bertqa.distributed import StopEvaluation, World

NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")


class StopRequest:
    """The signals received so far. After the first one the loop finishes its step, saves and returns; a second SIGINT
    raises KeyboardInterrupt at once."""

    def __init__(self, aloud: bool = True):
        self.aloud = aloud
        self.received: list[str] = []
        self.evaluating: World | None = None
        """The processes that share the current evaluation; None while there is none."""

    @contextlib.contextmanager
    def breaking_off(self, world: World) -> Iterator[None]:
        """Raise StopEvaluation inside if a signal comes or has come: nothing but the evaluation is lost."""
        self.evaluating = world
        try:
            if self.received:
                self.break_off()
            yield
        finally:
            self.evaluating = None
            world.leave.clear()

    def break_off(self) -> None:
        """Stop the evaluation: a single process at once; several together, when they next exchange results."""
        if self.evaluating.size > 1:
            # If one rank stopped alone, the others would wait for its results.
            self.evaluating.leave.set()
            return
        self.evaluating = None
        raise StopEvaluation

    def note(self, number: int, frame) -> None:
        """Handle a signal."""
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
        """Say at once what the signal does, in the middle of whatever it has interrupted."""
        again = "; once more stops at once" if self.received[0] == "SIGINT" else ""
        line = f"{self.received[0]}: {doing}{again}"
        try:
            logger.warning("%s", line)
        except RuntimeError:
            # The signal interrupted a print, which cannot be entered twice.
            with contextlib.suppress(OSError):
                os.write(2, f"\n{line}\n".encode())


@contextlib.contextmanager
def stop_signals(aloud: bool = True) -> Iterator[StopRequest]:
    """Note the signals that come inside; afterwards the handlers are as they were.

    A SIGHUP that is ignored (nohup) stays ignored. Outside of the main thread no signal is handled.
    """
    request = StopRequest(aloud)
    before = {}
    for name in NAMES:
        number = getattr(signal, name, None)  # Windows has only SIGINT and SIGTERM
        if number is None or (name == "SIGHUP" and signal.getsignal(number) == signal.SIG_IGN):
            continue
        with contextlib.suppress(ValueError):  # not in the main thread
            before[number] = signal.signal(number, request.note)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
