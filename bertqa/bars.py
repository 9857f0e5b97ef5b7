"""Progress bars: five times a second at a terminal, every half minute in a log; TQDM_DISABLE=1 turns all of them off."""

import sys


def progress_bar(
    *, total: int | None = None, desc: str | None, unit: str, shown: bool = True, **more
):
    """A tqdm bar; in a notebook it is a widget. `more` are arguments of tqdm's."""
    from tqdm.auto import tqdm  # here, for what needs no bar starts sooner without it

    # tqdm heeds TQDM_DISABLE only where it is not told whether to be disabled.
    if not shown:
        more["disable"] = True
    often = 0.2 if sys.stderr.isatty() else 30
    return tqdm(total=total, desc=desc, unit=unit, dynamic_ncols=True, mininterval=often, **more)
