"""What people see while they wait: messages, progress bars, and streams that can print everything.

The library says what it does to logging's logger "bertqa": from Python that is silent, warnings apart, or as the caller's
own logging has it. The verbs show it on stderr.
"""

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger("bertqa")

BF16_TRAINS = "about 1.8 times"
BF16_ANSWERS = "about 1.7 times"
INT8_ANSWERS = "about 2.3 times"
"""As fast as float32, on CPUs with units for these formats: README's table of speeds, in words."""


def say(line: str) -> None:
    """Tell people who wait. A line that begins with "warning: " is a warning, any other information."""
    level = logging.INFO
    if line.startswith("warning: "):
        level = logging.WARNING
    logger.log(level, "%s", line)


def silent(line: str) -> None:
    """In the place of `say`: nothing."""


class OnStderr(logging.Handler):
    """Writes to what sys.stderr is at that moment, above the progress bars that are shown."""

    def emit(self, record: logging.LogRecord) -> None:
        line = record.getMessage()
        # Where nobody has imported tqdm there is no bar.
        if "tqdm" in sys.modules:
            from tqdm.auto import tqdm

            tqdm.write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr, flush=True)


@contextmanager
def said_on_stderr() -> Iterator[None]:
    """Inside, everything that the library says is shown."""
    # A verb's main inside of run_verb, or a verb that calls another: once is enough.
    if any(isinstance(handler, OnStderr) for handler in logger.handlers):
        yield
        return
    handler = OnStderr()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def progress_bar(
    *, total: int | None = None, desc: str | None, unit: str, shown: bool = True, **more
):
    """A tqdm bar: new five times a second at a terminal, every half minute in a log, a widget in a notebook.

    TQDM_DISABLE=1 turns all bars off. `more` are arguments of tqdm's.
    """
    from tqdm.auto import tqdm  # here, for what needs no bar starts sooner without it

    # tqdm itself looks at the environment once, when it is imported; a notebook may say so later.
    if not shown or os.environ.get("TQDM_DISABLE", "0") not in ("", "0"):
        more["disable"] = True
    often = 0.2 if sys.stderr.isatty() else 30
    return tqdm(total=total, desc=desc, unit=unit, dynamic_ncols=True, mininterval=often, **more)


def prepare_streams() -> None:
    """Make every answer printable, and a stream that is closed (`<&-`) look empty.

    Answers may hold characters that the encoding of stdout lacks, or half a surrogate pair. Into a
    pipe or a file goes UTF-8, whatever the locale says; a terminal shows what it lacks as \\u0141.
    """
    # Python has None in the place of a stream that is closed, and the first isatty() would be a traceback.
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif not stream.isatty():
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
        else:
            stream.reconfigure(errors="backslashreplace")


def stop_on_sigterm() -> None:
    """SIGTERM and SIGHUP end this process as Ctrl-C does, in order, and not in the middle of a line."""

    def interrupt(number, frame):
        raise KeyboardInterrupt

    # Python lets only the main thread set handlers; from another, signals are somebody else's.
    if threading.current_thread() is threading.main_thread() and os.name == "posix":
        signal.signal(signal.SIGTERM, interrupt)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
            signal.signal(signal.SIGHUP, interrupt)
