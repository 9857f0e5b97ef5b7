"""Which torch quickstart.py installs: with a package index on this machine, and a real pip."""

import contextlib
import io
import subprocess
import sys
import time
import zipfile
from http.server import BaseHTTPRequestHandler

import pytest
from servers import ROOT, address, serving

sys.path.insert(0, str(ROOT / "tools"))
import quickstart

VERSION = next(
    line.removeprefix("torch==")
    for line in quickstart.CONSTRAINTS.read_text().splitlines()
    if line.startswith("torch==")
)
WHEEL = f"torch-{VERSION}+cpu-py3-none-any.whl"


class Index(BaseHTTPRequestHandler):
    """A package index with one wheel; `server.delay` is what it takes to answer, `server.asked` what it was asked."""

    def do_GET(self):
        self.server.asked.append(self.path)
        time.sleep(self.server.delay)
        pages = {
            "/torch/": f'<a href="{WHEEL.replace("+", "%2B")}">{WHEEL}</a>'.encode(),
            "/torch/" + WHEEL.replace("+", "%2B"): wheel(),
        }
        content = pages.get(self.path)
        self.send_response(200 if content else 404)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        with contextlib.suppress(BrokenPipeError):  # the client did not wait
            self.wfile.write(content or b"")

    def log_message(self, *_):
        pass


def wheel() -> bytes:
    """A package torch with no content, and a dependency that no index has."""
    info = f"torch-{VERSION}+cpu.dist-info"
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as files:
        files.writestr("torch/__init__.py", "")
        files.writestr(
            f"{info}/METADATA",
            f"Metadata-Version: 2.1\nName: torch\nVersion: {VERSION}+cpu\nRequires-Dist: nothing-has-this\n",
        )
        files.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        files.writestr(f"{info}/RECORD", "")
    return packed.getvalue()


@pytest.fixture
def linux(monkeypatch):
    """A Linux computer without an NVIDIA driver."""
    monkeypatch.setattr(quickstart.sys, "platform", "linux")
    monkeypatch.setattr(quickstart, "has_nvidia_driver", lambda: False)


@pytest.mark.slow
def test_the_cpu_build_comes_from_its_own_index(tmp_path, monkeypatch, linux, capfd):
    quickstart.venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    for name in ("PIP_NO_INDEX", "PIP_FIND_LINKS", "PIP_CONSTRAINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    with serving(Index, delay=0, asked=[]) as server:
        monkeypatch.setattr(quickstart, "CPU_INDEX", address(server))
        quickstart.install_torch(python)
    listed = subprocess.run([python, "-m", "pip", "list"], capture_output=True, text=True).stdout
    assert f"{VERSION}+cpu" in listed
    assert f"torch: for CPUs, from {address(server)}; some 200 MB" in capfd.readouterr().out


@pytest.mark.parametrize("why", ["driver", "silent", "absent", "other system"])
def test_else_the_plain_index_is_used_and_that_is_said(monkeypatch, linux, capsys, why):
    monkeypatch.setattr(quickstart.subprocess, "run", lambda command: pytest.fail("it installs"))
    said = {
        "driver": "torch: with CUDA, for there is an NVIDIA driver; some 4.7 GB",
        "silent": "does not answer, so the one with CUDA; some 4.7 GB",
        "absent": "does not answer, so the one with CUDA; some 4.7 GB",
        "other system": "torch: the package index's own for this system, some 200 MB",
    }
    if why == "driver":
        monkeypatch.setattr(quickstart, "has_nvidia_driver", lambda: True)
    if why == "other system":
        monkeypatch.setattr(quickstart.sys, "platform", "darwin")
    usual = quickstart.urllib.request.urlopen
    monkeypatch.setattr(
        quickstart.urllib.request, "urlopen", lambda url, timeout: usual(url, timeout=timeout / 20)
    )
    with serving(Index, delay=1 if why == "silent" else 0, asked=[]) as server:
        path = "/none" if why == "absent" else ""
        monkeypatch.setattr(quickstart, "CPU_INDEX", address(server) + path)
        quickstart.install_torch("python")
        assert bool(server.asked) == (why in ("silent", "absent"))
    assert said[why] in capsys.readouterr().out


def test_a_failed_download_leads_to_the_plain_index(tmp_path, monkeypatch, linux, capfd):
    with serving(Index, delay=0, asked=[]) as server:
        monkeypatch.setattr(quickstart, "CPU_INDEX", address(server))
        python = tmp_path / "python"
        python.write_text("#!/bin/sh\nexit 1\n")
        python.chmod(0o755)
        quickstart.install_torch(python)
    assert "torch: that failed, so the one with CUDA" in capfd.readouterr().out
