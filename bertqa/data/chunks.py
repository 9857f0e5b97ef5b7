"""A stream in pieces that suit the model: lists of questions, small ones first so that answers come soon."""

import threading
from collections.abc import Callable, Iterable, Iterator

QUESTIONS_AT_ONCE = 2048
"""Questions whose windows are laid and sorted by length together: memory is bounded by it, not by the file."""

FIRST_QUESTIONS = 32
"""Questions in the first chunk of `answer_many`, so that answers come soon; each next one is twice as large."""

CHARACTERS = 1 << 21
"""Characters to read in a chunk: where texts are long, it holds fewer items."""


def chunks(
    items: Iterable, size: int, weigh: Callable = lambda item: 0, first: int | None = None
) -> Iterator[list]:
    """Consecutive lists of `size` items, or fewer where they weigh over CHARACTERS; the last one is shorter.

    With `first` the lists grow from that many items, doubling.
    """
    chunk: list = []
    now = min(first or size, size)
    weight = 0
    for item in items:
        chunk.append(item)
        weight += weigh(item)
        if len(chunk) >= now or weight > CHARACTERS:
            yield chunk
            chunk = []
            now = min(2 * now, size)
            weight = 0
    if chunk:
        yield chunk


class Shared:
    """An iterator that threads may share: each item goes to one of them."""

    def __init__(self, items: Iterator):
        self.items = items
        self.lock = threading.Lock()

    def __iter__(self) -> "Shared":
        return self

    def __next__(self):
        with self.lock:
            return next(self.items)
