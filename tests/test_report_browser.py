"""The report page in a real browser: what a reader sees and clicks. Chromium is driven by chromedriver's HTTP protocol."""

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--hide-scrollbars")


class Browser:
    """Chromium behind chromedriver: the few W3C WebDriver calls that these tests need."""

    def __init__(self, driver: str, chromium: str, profile: Path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.process = subprocess.Popen([driver, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.base = f"http://127.0.0.1:{port}/session"
        options = {"binary": chromium, "args": [*FLAGS, f"--user-data-dir={profile}"]}
        wanted = {"capabilities": {"alwaysMatch": {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}}}
        for attempt in range(100):
            try:
                self.base += "/" + self.call("", wanted)["sessionId"]
                return
            except (ConnectionError, urllib.error.URLError):
                time.sleep(0.1)
        self.process.kill()
        raise RuntimeError("chromedriver did not answer within 10 s")

    def call(self, path: str, body: dict | None = None, method: str | None = None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.base + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:  # the browser's own words are in the body
            raise AssertionError(f"{path}: {json.load(error)['value']['message'][:500]}") from None

    def close(self) -> None:
        self.call("", method="DELETE")
        self.process.terminate()
        self.process.wait(10)

    def cdp(self, command: str, **params):
        return self.call("/goog/cdp/execute", {"cmd": command, "params": params})

    def view(self, width: int, height: int, dark: bool = False) -> None:
        self.cdp("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        features = {"prefers-color-scheme": "dark" if dark else "light", "prefers-reduced-motion": "reduce"}
        self.cdp("Emulation.setEmulatedMedia", media="", features=[
            {"name": name, "value": value} for name, value in features.items()])

    def open(self, page: Path, fragment: str = "") -> None:
        self.call("/url", {"url": "about:blank"})
        self.call("/url", {"url": page.as_uri() + fragment})

    def js(self, code: str):
        return self.call("/execute/sync", {"script": f"return {code}", "args": []})

    def click(self, css: str) -> None:
        """A real click: scrolled into view, and refused where something covers the element."""
        found = self.call("/element", {"using": "css selector", "value": css})
        self.call(f"/element/{next(iter(found.values()))}/click", {})

    def type(self, css: str, text: str) -> None:
        found = self.call("/element", {"using": "css selector", "value": css})
        self.call(f"/element/{next(iter(found.values()))}/value", {"text": text})

    def complaints(self) -> list[str]:
        return [entry["message"] for entry in self.call("/se/log", {"type": "browser"})]
