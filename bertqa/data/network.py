"""What a server sends, received within a bound of time and of trust."""

import base64
import queue
import threading
import time
from collections.abc import Iterator

BLOCK = 1 << 16
"""Bytes that are read at once."""

SILENCE = 30
"""Seconds without a byte after which a connection is given up."""


def without_password(url: str) -> str:
    """An address as it may be shown: http://ada:secret@host/squad is http://host/squad."""
    scheme, mark, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    return scheme + mark + host.rpartition("@")[2] + slash + path


def request_of(url: str, start: int):
    """What is asked of a server: the file at this address, from byte `start` on.

    A name and password in the address are sent as such, to this server alone.
    """
    from urllib.parse import unquote, urlsplit
    from urllib.request import Request

    request = Request(without_password(url), headers={"User-Agent": "bertqa"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    parts = urlsplit(url)
    if parts.username is not None:
        secret = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        token = base64.b64encode(secret.encode()).decode()
        # unredirected: another server that this one points to is not told
        request.add_unredirected_header("Authorization", f"Basic {token}")
    return request


class Answer:
    """A server's answer, received in a thread of its own: waiting for it can be given up at any time.

    A socket's timeout begins anew with each byte, so a server that drips could hold a reader for days.
    """

    def __init__(self, request, start: int, size: int):
        """Ask for the bytes from `start` on of a file of `size` bytes; no more than these are taken."""
        self.request = request
        self.start = start
        self.size = size
        self.stop = threading.Event()
        """Set when nobody waits for what comes any more."""
        self.came: queue.Queue = queue.Queue(maxsize=8)

    def blocks(self, end: float) -> Iterator:
        """(where the answer begins in the file, its length), then its bytes.

        Raises:
            TimeoutError: at `end`, by time.monotonic().
            OSError, HTTPException, ValueError: as urllib raises them.
        """
        threading.Thread(target=self._read, daemon=True).start()
        while True:
            try:
                item = self.came.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                raise TimeoutError("the server takes too long") from None
            if isinstance(item, Exception):
                raise item
            if item is None:
                return
            yield item

    def _read(self) -> None:
        try:
            self._hand_over_all()
            self._hand_over(None)
        except Exception as error:  # what happens in this thread must be said in the other
            self._hand_over(error)

    def _hand_over_all(self) -> None:
        from urllib.request import urlopen

        with urlopen(self.request, timeout=SILENCE) as answer:
            start = self.start if answer.status == 206 else 0
            announced = answer.headers["Content-Length"] or str(self.size - start)
            if not (announced.isascii() and announced.isdigit()):
                raise ValueError(f"the server's Content-Length is {announced[:30]!r}")
            self._hand_over((start, int(announced[:18])))
            left = self.size - start
            while left > 0 and not self.stop.is_set():
                block = answer.read(min(BLOCK, left))
                if not block:
                    return
                left -= len(block)
                self._hand_over(block)

    def _hand_over(self, item) -> None:
        """Wait until there is room for an item, as long as somebody waits for it."""
        while not self.stop.is_set():
            try:
                self.came.put(item, timeout=0.5)
                return
            except queue.Full:
                continue
