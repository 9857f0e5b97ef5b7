"""Servers on this machine that stand in for the network: the Hugging Face Hub, and a mirror of SQuAD's files."""

import contextlib
import hashlib
import os
import re
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from bertqa.data.download import FILES, Official

ROOT = Path(__file__).resolve().parents[1]
COMMITS = {"main": "1" * 40, "v1": "2" * 40, "1" * 40: "1" * 40, "2" * 40: "2" * 40}
MIB = 2**20
LARGE = (".safetensors", ".bin", ".h5")


@contextlib.contextmanager
def serving(handler: type, **state) -> Iterator[ThreadingHTTPServer]:
    """A running server; `state` becomes its attributes, which its handler reads."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        vars(server).update(state)
        thread = threading.Thread(
            target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        )
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def address(server) -> str:
    return f"http://127.0.0.1:{server.server_port}"


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def hub_client(server, home: Path, **more: str) -> dict[str, str]:
    """The environment of a process for which `server` is the Hub; what would lead it elsewhere is left out."""
    inherited = {
        k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()
    }
    return {
        **inherited,
        "HF_ENDPOINT": address(server),
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "PYTHONPATH": str(ROOT),
        "NO_PROXY": "127.0.0.1",
        **more,
    }


# the Hub --------------------------------------------------------------------------------------------------------------


def etag(name: str, content: bytes) -> str:
    """As the Hub: sha256 of large files, git's hash of the others."""
    if name.endswith(LARGE):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Hub(BaseHTTPRequestHandler):
    """HEAD and GET of /org/name/resolve/revision/file, out of `server.repos`: {id: {file: content}}.

    `server.log` lists what was asked; org/gated, org/broken, org/damaged (of which `server.damaged` names the file) and
    org/cut go wrong. `server.hostile` gives the ETags of files, and the "commit", that it states in place of the true ones.
    """

    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.do_GET(head=True)

    def do_GET(self, head: bool = False):
        hub = self.server
        match = re.fullmatch(r"/([\w.-]+/[\w.-]+)/resolve/([\w.]+)/(.+)", self.path)
        if not match:
            return self.refuse(404, None)
        repo, revision, name = match.groups()
        hub.log.append((self.command, repo, revision, name, self.headers.get("Range")))
        if repo not in hub.repos:
            return self.refuse(404, "RepoNotFound")
        if repo == "org/gated" and self.headers.get("Authorization") != "Bearer hf_good":
            return self.refuse(401 if "Authorization" not in self.headers else 403, "GatedRepo")
        if repo == "org/broken":
            return self.refuse(500, None)
        if revision not in COMMITS:
            return self.refuse(404, "RevisionNotFound")
        content = hub.repos[repo].get(name)
        hostile = getattr(hub, "hostile", {})
        commit = hostile.get("commit", COMMITS[revision])
        if content is None:
            return self.refuse(404, "EntryNotFound", commit)
        tag = hostile.get(name, etag(name, content))
        if repo == "org/damaged" and name == hub.damaged:
            content = content[:-1] + bytes([content[-1] ^ 1])
        start = (
            int(re.fullmatch(r"bytes=(\d+)-", self.headers["Range"])[1])
            if "Range" in self.headers
            else 0
        )
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{tag}"')
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if head:
            return None
        if repo == "org/cut" and name.endswith(LARGE) and not start:
            self.wfile.write(content[: 11 * MIB])
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(2)
            return None
        return self.wfile.write(content[start:])

    def refuse(self, status: int, code: str | None, commit: str | None = None):
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        if commit:
            self.send_header("X-Repo-Commit", commit)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args):
        pass


# SQuAD's files --------------------------------------------------------------------------------------------------------


def stand_in(name: str, content: bytes) -> Official:
    """A small file as the official one of that name: `download.FILES` with it expects this content."""
    return Official(FILES[name].name, len(content), hashlib.sha256(content).hexdigest())


class Files(BaseHTTPRequestHandler):
    """GET out of `server.files`: {path: content}. `server.log` lists what was asked; `cuts` holds how many bytes the next
    answers send before the connection ends, `codes` the errors that they are, `ranges` whether parts of files are sent."""

    def do_GET(self):
        self.server.log.append((self.path, self.headers.get("Range")))
        if self.server.codes:
            return self.send_error(self.server.codes.pop(0))
        content = self.server.files.get(self.path)
        if content is None:
            return self.send_error(404)
        start = (
            int(self.headers["Range"][6:-1])
            if "Range" in self.headers and self.server.ranges
            else 0
        )
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start:][: self.server.cuts.pop(0) if self.server.cuts else None])

    def log_message(self, *args):
        pass
