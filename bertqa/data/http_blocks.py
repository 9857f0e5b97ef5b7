"""Receive a file from an HTTP server in blocks, from any byte on, until a deadline.

urllib is imported only where it is needed, because it takes long to import.
"""

import base64
import queue
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

BLOCK = 1 << 16  # bytes that are read at a time
SILENCE = 30  # seconds without a byte after which a connection is closed


def without_password(url: str) -> str:
    """Return an address without name and password: http://ada:secret@host/squad becomes http://host/squad."""
    scheme, mark, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    return scheme + mark + host.rpartition("@")[2] + slash + path


def request_of(url: str, start: int):
    """Return the request for a file from byte `start` on; name and password of its address go into a header."""
    from urllib.parse import unquote, urlsplit
    from urllib.request import Request

    request = Request(without_password(url), headers={"User-Agent": "bertqa"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    parts = urlsplit(url)
    if parts.username is not None:
        secret = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        token = base64.b64encode(secret.encode()).decode()
        # unredirected: not sent to another server to which this one redirects
        request.add_unredirected_header("Authorization", f"Basic {token}")
    return request


@dataclass(frozen=True)
class ContentRange:
    """What a server sends of a file: `length` bytes from byte `start` on."""

    start: int
    length: int


def blocks_of(request, start: int, size: int, deadline: float) -> Iterator:
    """Yield the `ContentRange` of a server's answer, then blocks of its bytes, at most `size - start` in all.

    A socket's timeout begins anew with each byte, so a slow server could hold a reader for days. That is why the answer is
    received in another thread.

    Args:
        start: first byte that is missing.
        size: bytes of the whole file.
        deadline: by time.monotonic().

    Raises TimeoutError at the deadline, and OSError, HTTPException or ValueError as urllib does.
    """
    received: queue.Queue = queue.Queue(maxsize=8)
    stop = threading.Event()  # set when nobody reads from the queue any more
    arguments = (request, start, size, received, stop)
    threading.Thread(target=_receive, args=arguments, daemon=True).start()
    try:
        while True:
            try:
                item = received.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise TimeoutError("the server takes too long") from None
            if isinstance(item, Exception):
                raise item
            if item is None:
                return
            yield item
    finally:
        stop.set()


def _receive(request, start: int, size: int, received: queue.Queue, stop: threading.Event) -> None:
    """Put what `blocks_of` yields into a queue, then None, or the exception that ended it."""
    from urllib.request import urlopen

    try:
        with urlopen(request, timeout=SILENCE) as answer:
            start = start if answer.status == 206 else 0
            announced = answer.headers["Content-Length"] or str(size - start)
            if not (announced.isascii() and announced.isdigit()):
                raise ValueError(f"the server's Content-Length is {announced[:30]!r}")
            _put(ContentRange(start, int(announced[:18])), received, stop)
            left = size - start  # a server may send more than the file
            while left > 0 and not stop.is_set():
                block = answer.read(min(BLOCK, left))
                if not block:
                    break
                left -= len(block)
                _put(block, received, stop)
        _put(None, received, stop)
    except Exception as error:  # raised again by the other thread
        _put(error, received, stop)


def _put(item: object, received: queue.Queue, stop: threading.Event) -> None:
    """Put an item into a queue when there is room for it, unless `stop` is set before."""
    while not stop.is_set():
        with suppress(queue.Full):
            received.put(item, timeout=0.5)
            return
