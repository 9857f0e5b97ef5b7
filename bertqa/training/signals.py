"""Being told to stop: signals are noted, and obeyed between two steps."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def stop_signals() -> Iterator[list[str]]:
    """A list that is empty until SIGINT, SIGTERM or SIGUSR1 asks to stop, then holds its name.

    The loop finishes its step, saves and returns. A second SIGINT interrupts at once.
    """
    received: list[str] = []

    def ask(number, frame):
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(signal.Signals(number).name)

    names = [name for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]
    try:
        before = {name: signal.signal(getattr(signal, name), ask) for name in names}
    except ValueError:  # not in the main thread: signals are somebody else's
        before = {}
    try:
        yield received
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)
