"""Messages, progress bars, and standard streams that can print any text.

The library writes its messages to logging's logger "bertqa". From Python they follow the caller's logging configuration,
by default warnings only; the verbs show all of them on stderr.
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
"""Speed compared with float32 on CPUs that have units for the format, from README's table of speeds."""


def say(line: str) -> None:
    """Log a line: at level WARNING if it begins with "warning: ", else at INFO."""
    level = logging.INFO
    if line.startswith("warning: "):
        level = logging.WARNING
    logger.log(level, "%s", line)


def silent(line: str) -> None:
    """Do nothing; passed instead of `say`."""


class OnStderr(logging.Handler):
    """Writes to the current sys.stderr, above any progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        line = record.getMessage()
        # If tqdm is not imported, there is no bar.
        if "tqdm" in sys.modules:
            from tqdm.auto import tqdm

            tqdm.write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr, flush=True)


@contextmanager
def said_on_stderr() -> Iterator[None]:
    """Show the library's messages on stderr inside the block."""
    # run_verb and the verb's own main both call this, and a verb may call another: one handler is enough.
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
    """Return a tqdm bar, redrawn five times a second at a terminal and every 30 s in a log; a widget in a notebook.

    TQDM_DISABLE=1 turns all bars off. `more` is passed to tqdm.
    """
    from tqdm.auto import tqdm  # here, so that what shows no bar starts sooner

    # tqdm reads TQDM_DISABLE once, when it is imported; a notebook may set it later.
    if not shown or os.environ.get("TQDM_DISABLE", "0") not in ("", "0"):
        more["disable"] = True
    often = 0.2 if sys.stderr.isatty() else 30
    return tqdm(total=total, desc=desc, unit=unit, dynamic_ncols=True, mininterval=often, **more)


def prepare_streams() -> None:
    """Make stdout and stderr able to print any answer, and replace closed streams (`<&-`) by empty ones.

    An answer may hold lone surrogates, or characters that the encoding of stdout lacks. Pipes and files get UTF-8,
    whatever the locale; a terminal shows characters that it lacks as escapes.
    """
    # A closed stream is None in Python, and the first call of isatty() would end in a traceback.
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
    """Make SIGTERM and SIGHUP raise KeyboardInterrupt, as Ctrl-C does, so that the process ends in order."""

    def interrupt(number, frame):
        raise KeyboardInterrupt

    # Only the main thread may set signal handlers.
    if threading.current_thread() is threading.main_thread() and os.name == "posix":
        signal.signal(signal.SIGTERM, interrupt)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
            signal.signal(signal.SIGHUP, interrupt)
