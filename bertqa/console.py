"""What people see while they wait: progress bars, and streams that can print everything."""

import os
import sys


def progress_bar(
    *, total: int | None = None, desc: str | None, unit: str, shown: bool = True, **more
):
    """A tqdm bar: new five times a second at a terminal, every half minute in a log, a widget in a notebook.

    TQDM_DISABLE=1 turns all bars off. `more` are arguments of tqdm's.
    """
    from tqdm.auto import tqdm  # here, for what needs no bar starts sooner without it

    # tqdm heeds TQDM_DISABLE only where it is not told whether to be disabled.
    if not shown:
        more["disable"] = True
    often = 0.2 if sys.stderr.isatty() else 30
    return tqdm(total=total, desc=desc, unit=unit, dynamic_ncols=True, mininterval=often, **more)


def prepare_streams() -> None:
    """Make every answer printable, and a stream that is closed (`<&-`) look empty.

    Answers may hold characters that the encoding of stdout lacks, or half a surrogate pair. Into a
    pipe or a file goes UTF-8, whatever the locale says; a terminal shows what it lacks as \\u0141.
    """
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
