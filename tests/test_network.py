"""Servers that drip, lie and point elsewhere: a fetch ends in one line, within a bound of time, and harms nothing."""

import contextlib
import socket
import threading
import time

import pytest
from servers import stand_in

from bertqa.data import download
from bertqa.data.download import FILES, locate
from bertqa.data.http_blocks import request_of, without_password
from bertqa.errors import UserError

DEV = b'{"data": []}' * 1000


@contextlib.contextmanager
def talking(*scripts):
    """A server that answers each connection with the next script, a list of bytes to send and seconds to wait."""
    listener = socket.create_server(("127.0.0.1", 0))
    heard: list[bytes] = []
    over = threading.Event()
    left = list(scripts)

    def say(connection, script):
        with contextlib.suppress(OSError), connection:
            heard.append(connection.recv(65536))
            for part in script:
                if isinstance(part, bytes):
                    connection.sendall(part)
                elif over.wait(part):
                    return

    def serve():
        with contextlib.suppress(OSError):
            while not over.is_set():
                connection, _ = listener.accept()
                script = left.pop(0) if len(left) > 1 else left[0]
                threading.Thread(target=say, args=[connection, script], daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}", heard
    finally:
        over.set()
        listener.close()


def answer(content, *headers, status="200 OK", length=None):
    lines = [f"HTTP/1.0 {status}", *headers]
    if length != "":
        lines.append(f"Content-Length: {len(content) if length is None else length}")
    return [("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"), content]


@pytest.fixture
def fetch(tmp_path, monkeypatch):
    """Fetches the file from an address, within half a second and few attempts; says how it failed, and in what time."""
    monkeypatch.setitem(FILES, "squad2-dev", stand_in("squad2-dev", DEV))
    monkeypatch.setattr(download, "PAUSES", (0.001, 0.001))
    monkeypatch.setattr(download, "LEAST_TIME", 0.5)
    monkeypatch.setattr(download, "LEAST_RATE", 10**9)
    monkeypatch.setattr(download, "ATTEMPTS", 8)
    monkeypatch.setenv("BERTQA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.chdir(tmp_path)

    def fetch(host, before="http://"):
        monkeypatch.setenv("BERTQA_SQUAD_URL", f"{before}{host}")
        began = time.monotonic()
        with pytest.raises(UserError) as caught:
            locate("squad2")
        assert time.monotonic() - began < 5
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return fetch


DRIP = [item for byte in DEV[:200] for item in (bytes([byte]), 0.05)]


@pytest.mark.parametrize(
    "script",
    [
        [60.0],
        [b"HTTP/1.0 200 OK\r\nX-Slow: ", *DRIP],
        [answer(DEV)[0], *DRIP],
        [answer(DEV)[0], DEV[:5000], 60.0],
    ],
    ids=["silent", "dripping headers", "dripping body", "stalled"],
)
def test_a_server_that_is_too_slow(fetch, script):
    with talking(script) as (host, _):
        error = fetch(host)
    assert "takes too long, slower than 1,000,000,000 bytes a second" in error
    assert "run the same command again to go on" in error


def test_a_byte_for_each_connection(fetch, tmp_path):
    """Progress alone keeps nobody here for ever."""
    scripts = [
        answer(DEV[n : n + 1], status="206 Partial Content" if n else "200 OK", length=len(DEV) - n)
        for n in range(9)
    ]
    with talking(*scripts) as (host, heard):
        assert f"8 of {len(DEV):,} bytes are here" in fetch(host)
    assert len(heard) == 8


@pytest.mark.parametrize(
    ("script", "says"),
    [
        (answer(DEV, length="many"), "the server's Content-Length is 'many'"),
        (answer(DEV, length="-7"), "the server's Content-Length is '-7'"),
        (answer(DEV, length="1" + "0" * 5000), "the server has 100,000,000,000,000,000 bytes"),
        (answer(b"", "Location: http://[bad/x", status="302 Found"), "cannot be fetched ("),
        (answer(b"", "Location: file:///etc/passwd", status="302 Found"), "not allowed"),
        (answer(b"", "Location: http://\x80.\xff/", status="302 Found"), "cannot be fetched ("),
        (
            answer(b"", status="302 Found"),
            "HTTP Error 302: Found; see whether that address is right",
        ),
        ([b"hello\r\n\r\n"], "cannot be fetched (hello"),
        ([b""], "cannot be fetched ("),
        (
            [b"HTTP/1.0 200 OK\r\n" + b"X: y\r\n" * 500],
            "cannot be fetched (got more than 100 headers",
        ),
        (answer(DEV, status="206 Partial Content")[:1], "cannot be fetched ("),
    ],
)
def test_a_server_that_makes_no_sense(fetch, script, says):
    with talking(script) as (host, _):
        assert says in fetch(host)


def test_more_than_was_announced_is_not_taken(fetch, tmp_path):
    with talking(answer(DEV + b"more" * 99999, length=len(DEV))) as (host, _):
        with pytest.raises(pytest.fail.Exception):
            fetch(host)  # nothing is wrong with the file itself
    assert (tmp_path / "cache" / "dev-v2.0.json").read_bytes() == DEV


def test_a_part_that_the_server_knows_nothing_of(fetch, tmp_path):
    """416 to the rest of an old part of something else: begun anew."""
    (tmp_path / "cache").mkdir()
    part = tmp_path / "cache" / "dev-v2.0.json.part"
    part.write_bytes(b"x" * 500)
    with talking(answer(b"", status="416 Range Not Satisfiable"), answer(DEV)) as (host, heard):
        with pytest.raises(pytest.fail.Exception):
            fetch(host)
    assert (tmp_path / "cache" / "dev-v2.0.json").read_bytes() == DEV and not part.exists()
    assert b"Range: bytes=500-" in heard[0] and b"Range" not in heard[1]
    (tmp_path / "cache" / "dev-v2.0.json").unlink()
    part.write_bytes(b"x" * 500)
    with talking(answer(b"", status="416 Range Not Satisfiable")) as (host, _):
        assert "HTTP Error 416" in fetch(host)


def test_a_part_that_is_a_link(fetch, tmp_path):
    (tmp_path / "cache").mkdir()
    mine = tmp_path / "mine.txt"
    mine.write_bytes(b"my own")
    (tmp_path / "cache" / "dev-v2.0.json.part").symlink_to(mine)
    with talking(answer(DEV)) as (host, heard):
        assert "dev-v2.0.json.part is a link, to another file perhaps; delete it" in fetch(host)
    assert mine.read_bytes() == b"my own" and heard == []


def test_passwords_are_sent_and_never_shown(fetch):
    with (
        talking(answer(b"", status="404 Not Found")) as (second, other),
        talking(answer(b"", f"Location: http://{second}/x", status="302 Found")) as (host, heard),
    ):
        error = fetch(f"ada:se%40cret@{host}/squad")
    assert error.startswith(f"http://{host}/squad/dev-v2.0.json: HTTP Error 404")
    assert "cret" not in error and "ada" not in error
    assert b"Authorization: Basic YWRhOnNlQGNyZXQ=" in heard[0]  # ada:se@cret
    assert b"Authorization" not in other[0]
    error = fetch("ada:secret@host/squad", before="ftp://")
    assert error == "BERTQA_SQUAD_URL is 'ftp://host/squad'; it must start with http:// or https://"
    assert without_password("http://a:b@c:d@host:80/x@y") == "http://host:80/x@y"
    assert request_of("http://host/x", 0).get_header("Authorization") is None
