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
from test_report import HOSTILE, ROWS, TRAIN, fill_with, make_run

from bertqa.data.examples import read_examples
from bertqa.reporting.page import write_report

pytestmark = pytest.mark.slow

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)


class Browser:
    """Chromium behind chromedriver: the few W3C WebDriver calls that these tests need."""

    def __init__(self, driver: str, chromium: str, profile: Path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.process = subprocess.Popen(
            [driver, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self.base = f"http://127.0.0.1:{port}/session"
        options = {"binary": chromium, "args": [*FLAGS, f"--user-data-dir={profile}"]}
        wanted = {
            "capabilities": {
                "alwaysMatch": {
                    "goog:chromeOptions": options,
                    "goog:loggingPrefs": {"browser": "ALL"},
                }
            }
        }
        for _ in range(100):
            try:
                self.base += "/" + self.call("", wanted)["sessionId"]
                return
            except (ConnectionError, urllib.error.URLError):
                time.sleep(0.1)
        self.process.kill()
        raise RuntimeError("chromedriver did not answer within 10 s")

    def call(self, path: str, body: dict | None = None, method: str | None = None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.base + path, data, {"Content-Type": "application/json"}, method=method
        )
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
        self.cdp(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        features = {
            "prefers-color-scheme": "dark" if dark else "light",
            "prefers-reduced-motion": "reduce",
        }
        self.cdp(
            "Emulation.setEmulatedMedia",
            media="",
            features=[{"name": name, "value": value} for name, value in features.items()],
        )

    def open(self, page: Path, fragment: str = "") -> None:
        self.call("/url", {"url": "about:blank"})
        self.call("/url", {"url": page.as_uri() + fragment})

    def js(self, code: str):
        return self.call("/execute/sync", {"script": f"return {code}", "args": []})

    def click(self, css: str) -> None:
        """A real click: refused where something covers the element, so it is scrolled clear of the navigation first."""
        found = self.call("/element", {"using": "css selector", "value": css})
        self.call(
            "/execute/sync",
            {"script": "arguments[0].scrollIntoView({block: 'center'})", "args": [found]},
        )
        self.call(f"/element/{next(iter(found.values()))}/click", {})

    def type(self, css: str, text: str) -> None:
        found = self.call("/element", {"using": "css selector", "value": css})
        self.call(f"/element/{next(iter(found.values()))}/value", {"text": text})

    def complaints(self) -> list[str]:
        return [entry["message"] for entry in self.call("/se/log", {"type": "browser"})]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    chromium = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    driver = shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip(
            "no Chromium with chromedriver on the PATH (Debian: packages chromium and chromium-driver)"
        )
    started = Browser(driver, chromium, tmp_path_factory.mktemp("profile"))
    yield started
    started.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    """A run of 120 questions: each kind of `ROWS` fifteen times."""
    rows = [(f"{row[0]}-{i}", f"{row[1]} ({i})", *row[2:]) for i in range(15) for row in ROWS]
    return write_report(make_run(tmp_path_factory.mktemp("runs") / "base", rows))


def status(browser) -> str:
    return browser.js("document.getElementById('status').textContent")


def listed(browser) -> list[str]:
    return browser.js(
        "[...document.querySelectorAll('#list li > button')].map((row) => row.innerText)"
    )


def detail(browser) -> str:
    return browser.js("document.getElementById('detail').innerText")


CUT_OFF = "[...document.querySelectorAll('.scroll')].filter((each) => each.scrollWidth > each.clientWidth).length"
"""Tables that are wider than the screen."""


def chip(text: str) -> str:
    """The button of a filter, as a CSS selector: the buttons stand in a fixed order."""
    order = [
        "All",
        "All misses",
        "Right answer",
        "Rightly silent",
        "Boundary",
        "Wrong span",
        "False answer",
        "False no-answer",
        "No prediction",
    ]
    return f"#questions .controls button:nth-child({order.index(text) + 1})"


def test_filters_and_the_list(browser, page):
    browser.view(1280, 900)
    browser.open(page)
    assert status(browser) == "1 to 50 of 75 questions"  # misses first
    browser.click(chip("Wrong span"))
    assert status(browser) == "1 to 15 of 15 questions"
    assert listed(browser)[0] == "In which place does it sleep? (0)\nWrong span: bamboo"
    assert browser.js("document.querySelector('[aria-pressed=true]').innerText") == "Wrong span15"

    browser.click("#list li:nth-child(3) button")
    assert "In which place does it sleep? (2)" in detail(browser) and "Wrong span, F1 0" in detail(
        browser
    )
    marks = browser.js(
        "[...document.querySelectorAll('.context mark')].map((mark) => [mark.className, mark.textContent])"
    )
    assert marks == [["a", "bamboo"], ["gold", "trees"]]
    assert browser.js("location.hash") == "#q=sleep-2"
    browser.type("#list li:nth-child(3) button", "\ue015")  # arrow down
    assert "(3)" in detail(browser) and browser.js("document.activeElement.dataset.row") == "26"

    browser.click(chip("Boundary"))
    browser.click("#list li:nth-child(1) button")
    marks = browser.js(
        "[...document.querySelectorAll('.context mark')].map((mark) => [mark.className, mark.textContent])"
    )
    assert marks == [["a", "eats "], ["gold a", "bamboo"]]

    browser.click(chip("All"))
    browser.type("#search", "eaten 11")
    assert status(browser) == "1 to 1 of 1 questions" and listed(browser) == [
        "What is eaten? (11)\nRight answer: bamboo"
    ]
    browser.type("#search", " nowhere")
    assert status(browser) == "No question fits these filters." and listed(browser) == []
    assert browser.js("document.getElementById('detail').hidden")
    assert browser.complaints() == []


def test_pages_order_and_groups(browser, page):
    browser.view(1280, 900)
    browser.open(page)
    browser.click(chip("All"))
    browser.click("[data-turn='1']")
    browser.click("[data-turn='1']")
    assert status(browser) == "101 to 120 of 120 questions" and len(listed(browser)) == 20
    assert browser.js("document.querySelector(\"[data-turn='1']\").disabled")
    browser.type("#order", "Surest")
    assert listed(browser)[0].startswith("What is eaten? (0)")  # null odds -5, threshold 0.5
    browser.click("#failures .groups table:first-of-type tbody tr:nth-child(3) button")
    assert status(browser) == "1 to 15 of 15 questions" and listed(browser)[0].startswith(
        "When was it found?"
    )
    assert (
        browser.js("document.getElementById('group').selectedOptions[0].text")
        == "question word: when"
    )
    browser.click("#failures table tbody tr:nth-child(1) button")
    assert (
        status(browser) == "1 to 30 of 30 questions"
        and browser.js("document.getElementById('group').value") == ""
    )


def test_a_link_to_a_question(browser, page):
    browser.view(1280, 900)
    browser.open(page, "#q=emoji-14")
    assert (
        "What is eaten? (14)" in detail(browser)
        and status(browser) == "101 to 120 of 120 questions"
    )
    assert (
        browser.js("document.querySelector('.context mark').textContent") == "bamboo"
    )  # behind three emoji


def in_view(browser, css: str) -> bool:
    """Whether the top of an element is on the screen."""
    return browser.js(
        f"((box) => box.top >= -1 && box.top < innerHeight)"
        f"(document.querySelector({json.dumps(css)}).getBoundingClientRect())"
    )


def settle(browser, test: str) -> bool:
    """Wait up to 3 s until a JavaScript expression is true."""
    for _ in range(60):
        if browser.js(test):
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("width", [1280, 390])
def test_a_link_arrives_at_its_question(browser, page, width):
    browser.view(width, 900)
    browser.open(page, "#q=emoji-14")
    time.sleep(0.6)  # the charts have been drawn, and have pushed everything down
    assert in_view(browser, "#detail h3") and "What is eaten? (14)" in detail(browser)
    # another one, typed into the address bar; it fits the filters that are set, which stay
    browser.click(chip("Wrong span"))
    browser.js("void (location.hash = '#q=sleep-3')")
    assert settle(browser, "document.getElementById('detail').innerText.includes('(3)')")
    assert status(browser) == "1 to 15 of 15 questions" and in_view(browser, "#detail h3")
    # and one that does not, for which they go
    browser.js("void (location.hash = '#q=where-7')")
    assert settle(browser, "document.getElementById('detail').innerText.includes('(7)')")
    assert status(browser).endswith("of 120 questions")
    assert browser.complaints() == []


def test_a_link_can_be_copied(browser, page):
    browser.view(1280, 900)
    browser.open(page)
    browser.click(chip("Wrong span"))
    browser.click("#list li:nth-child(2) button")
    assert browser.js("document.querySelector('.permalink').getAttribute('href')") == "#q=sleep-1"
    browser.click(".permalink")
    assert settle(
        browser, "document.querySelector('.permalink').textContent !== 'Link to this question'"
    )
    assert browser.js("location.hash") == "#q=sleep-1"


def test_search_in_paragraphs_and_clear_filters(browser, page):
    browser.view(1280, 900)
    browser.open(page)
    assert not browser.js("document.getElementById('clear').disabled")  # only misses are listed
    browser.type("#search", "red panda lives")
    assert status(browser) == "No question fits these filters."
    browser.click("#inside")
    assert status(browser) == "1 to 45 of 45 questions"
    browser.click("#clear")
    assert status(browser) == "1 to 50 of 120 questions"
    assert browser.js("document.getElementById('clear').disabled")
    assert not browser.js("document.getElementById('inside').checked")


def test_sorting_by_f1(browser, page):
    browser.view(1280, 900)
    browser.open(page)
    browser.type("#order", "Highest F1")
    assert listed(browser)[0].startswith("What does it eat? (0)")  # among misses, F1 67
    browser.open(page)  # else the browser takes both for one word typed
    browser.type("#order", "Lowest F1")
    assert listed(browser)[0].startswith("In which place does it sleep? (0)")


def test_the_list_can_be_saved(browser, page, tmp_path):
    browser.view(1280, 900)
    browser.cdp("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    browser.open(page)
    browser.click(chip("Wrong span"))
    browser.click("#save")
    saved = tmp_path / "base-questions.jsonl"
    for _ in range(60):
        if saved.exists():
            break
        time.sleep(0.05)
    rows = [json.loads(line) for line in saved.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 15
    assert rows[0] == {
        "id": "sleep-0",
        "title": "Red_panda",
        "question": "In which place does it sleep? (0)",
        "answers": ["trees"],
        "predictions": {
            "base": {"answer": "bamboo", "kind": "wrong", "f1": 0, "null_odds": -2},
        },
    }
    assert browser.complaints() == []


def test_hovering_shows_what_was_measured_there(browser, tmp_path):
    """An evaluation at step 40 says nothing about step 10, and a smoothed line shows the loss itself."""
    events = [
        {"event": "train", "step": step, "loss": 5.0 + step % 2, "lr": 2.5e-5, "windows_per_s": 1.0}
        for step in range(1, 41)
    ]
    run = make_run(tmp_path / "run", events=(*events, {"event": "eval", "step": 40, "loss": 2.0}))
    browser.view(1280, 900)
    browser.open(write_report(run))
    browser.js("void document.getElementById('training').scrollIntoView({behavior: 'instant'})")
    assert settle(browser, "document.querySelectorAll('#training svg').length > 0")

    def hover(step: int) -> str:
        browser.js(
            "((svg) => { const box = svg.getBoundingClientRect(); const width = svg.clientWidth;"
            f"const at = 44 + (width - 54) * {step} / 40;"
            "svg.dispatchEvent(new PointerEvent('pointermove', {clientX: box.left + at, clientY: box.top + 50})) })"
            "(document.querySelector('#training svg'))"
        )
        return browser.js("document.querySelector('#training .tip').innerText")

    assert hover(11).split("\n") == ["step 11", "training, smoothed: 6.00"]
    assert hover(40).split("\n") == ["step 40", "training, smoothed: 5.00", "dev: 2.00"]
    ticks = browser.js(
        "[...document.querySelectorAll('#training figure:nth-child(3) svg text')].map((each) => each.textContent)"
    )
    assert "2.5e−5" in ticks


def test_steps_are_whole_numbers(browser, page):
    """Ticks at steps 0.5 and 1.5 would be shown as 1 and 2, beside the real ones."""
    browser.view(1280, 900)
    browser.open(page)
    browser.js("void document.getElementById('training').scrollIntoView({behavior: 'instant'})")
    assert settle(browser, "document.querySelectorAll('#training svg').length > 0")
    steps = browser.js(
        "[...document.querySelectorAll('#training svg:first-of-type text[text-anchor=middle]')]"
        ".slice(0, 4).map((each) => each.textContent)"
    )
    assert steps == ["0", "1", "2", "3"]


@pytest.mark.parametrize("width", [1280, 390])
def test_a_classifier_and_several_runs(browser, tmp_path, width):
    evaluated = {"event": "eval", "step": 3, "accuracy": 50.0, "macro_f1": 50.0, "loss": 0.5}
    classes = make_run(tmp_path / "classes", events=(*TRAIN, evaluated), task="classify")
    lines = [
        {"id": str(i), "label": label, "gold": gold, "probabilities": {label: 0.8}}
        for i, (label, gold) in enumerate([("<b>", "<b>"), ("no", "<b>"), ("no", "no")])
    ]
    (classes / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    browser.view(width, 900)
    browser.open(write_report(classes))
    assert browser.js("document.querySelectorAll('.matrix td').length") == 4
    assert browser.js("document.querySelectorAll('.errors tbody tr').length") == 1
    assert browser.js("document.getElementById('questions')") is None
    assert browser.js("document.documentElement.scrollWidth") == width
    assert "Macro-F1, the mean over the classes, is 66.7" in browser.js(
        "document.getElementById('scores').innerText"
    )
    browser.open(write_report(classes, classes))
    assert "Macro-F1" in browser.js("document.querySelector('.families thead').innerText")

    runs = [make_run(tmp_path / name, seed=seed) for seed, name in enumerate("abc")]
    browser.open(write_report(*runs))
    assert "± 0.00" in browser.js("document.querySelector('.families').innerText")
    assert browser.js("document.querySelectorAll('#failures .stack').length") == 3
    assert browser.js("document.documentElement.scrollWidth") == width
    assert browser.complaints() == []


@pytest.mark.parametrize(
    "width, dark", [(1280, False), (1280, True), (390, False), (390, True), (320, False)]
)
def test_every_screen(browser, page, width, dark):
    browser.view(width, 844, dark)
    browser.open(page)
    assert browser.js("document.documentElement.scrollWidth") == width
    assert (
        width < 390 or browser.js(CUT_OFF) == 0
    )  # on the smallest screens tables scroll in themselves
    colour = browser.js("getComputedStyle(document.body).backgroundColor")
    assert colour == ("rgb(23, 22, 19)" if dark else "rgb(251, 250, 247)")
    drawn = browser.js(
        "[...document.querySelectorAll('figure svg')].map((svg) => svg.getAttribute('aria-label'))"
    )
    assert len(drawn) == 4 and drawn[0].startswith("Loss. training, smoothed: from 4 to 2")
    assert browser.complaints() == []


def test_on_a_phone_a_question_opens_under_its_line(browser, page):
    browser.view(390, 844)
    browser.open(page)
    assert browser.js("document.getElementById('detail').hidden") and len(listed(browser)) == 20
    browser.click("#list li:nth-child(2) button")
    assert browser.js("document.querySelector('#list li:nth-child(2) #detail').hidden") is False
    assert "In which place does it sleep? (0)" in detail(browser)
    browser.click("#list li:nth-child(2) button")
    assert browser.js("document.getElementById('detail').hidden")


def test_hostile_text_is_shown_as_text(browser, tmp_path):
    # chromedriver cannot hand a lone surrogate back, and an id must not be blank
    attacks = [
        text.replace("alert(1)", "window.hacked = 1")
        for text in HOSTILE
        if "\ud800" not in text and text.strip()
    ]
    attacks += [
        "<img src=x onerror='window.hacked = 2'>",
        "</title></textarea><svg onload='window.hacked = 3'>",
    ]
    rows = [(text, text, f"{text} then {text}", [text], text, -1.0, "") for text in attacks]
    run = make_run(
        tmp_path / "<script>window.hacked = 4<script>", rows, train=attacks[0], weights=attacks[-1]
    )
    browser.view(1280, 900)
    browser.open(write_report(run))
    browser.click("#questions .controls button:nth-child(1)")
    for i, text in enumerate(attacks, 1):
        shown = text.replace("\0", "\u2400")
        browser.click(f"#list li:nth-child({i}) button")
        assert (
            browser.js("document.querySelector('.context').textContent") == f"{shown} then {shown}"
        )
        assert browser.js("document.querySelector('#detail h3').textContent") == shown
    assert browser.js(
        "[window.hacked, document.scripts.length, document.images.length, document.title]"
    ) == [None, 2, 0, "<script>window.hacked = 4<script> · bertqa report"]
    assert browser.complaints() == []


def test_two_runs_side_by_side(browser, tmp_path):
    worse = [(*row[:4], "" if row[4] else row[4], row[5], "") for row in ROWS[:7]]
    page = write_report(make_run(tmp_path / "base", ROWS[:7]), make_run(tmp_path / "silent", worse))
    browser.view(1280, 900)
    browser.open(page)
    assert browser.js("document.getElementById('verdict').textContent").startswith(
        "No significant difference: silent − base"
    )
    chips = browser.js(
        "[...document.querySelectorAll('#questions .controls button')].map((each) => each.innerText)"
    )
    assert chips == [
        "All7",
        "Flipped3",
        "Only base is right2",
        "Only silent is right1",
        "Both right1",
        "Both wrong3",
    ]
    assert status(browser) == "1 to 3 of 3 questions"
    assert (
        listed(browser)[0]
        == "Where does it live?\nbase Right answer: Nepal\nsilent False no-answer"
    )
    browser.click("#questions .controls button:nth-child(1)")
    browser.type("#order", "Largest")
    assert listed(browser)[0].startswith("Where does it live?")  # 100 and 0
    assert listed(browser)[1].startswith("When was it found?")  # 0 and 100
    browser.click("#questions .controls button:nth-child(4)")
    assert [row.split("\n")[0] for row in listed(browser)] == ["When was it found?"]
    browser.view(390, 844)
    assert browser.js("document.documentElement.scrollWidth") == 390 and browser.js(CUT_OFF) == 0
    assert browser.complaints() == []


def test_a_run_without_evaluation_says_so(browser, tmp_path):
    run = make_run(tmp_path / "young")
    (run / "predictions.json").unlink()
    browser.view(390, 844)
    browser.open(write_report(run))
    for section in ("scores", "answers", "failures", "questions"):
        assert "There is no predictions.json in young" in browser.js(
            f"document.getElementById('{section}').innerText"
        )
    assert (
        browser.js("document.querySelectorAll('#training svg').length") == 4
        and browser.complaints() == []
    )


def test_all_of_dev_loads_at_once(browser, shared, tmp_path):
    """11,873 questions: under 25 MB, and under 3 s, counted as the page's own processor time: a busy machine adds none."""
    dev = shared / "data" / "dev-v2.0.json.gz"
    page = write_report(fill_with(dev, read_examples(dev).examples, tmp_path / "run"))
    assert page.stat().st_size < 25e6
    browser.view(1280, 900)
    browser.cdp("Performance.enable", timeDomain="threadTicks")
    browser.open(page)
    took = {
        metric["name"]: metric["value"]
        for metric in browser.cdp("Performance.getMetrics")["metrics"]
    }
    assert 0.01 < took["TaskDuration"] < 3, took
    browser.click("#questions .controls button:nth-child(1)")
    assert status(browser) == "1 to 50 of 11,873 questions"
    browser.type("#search", "normandy")
    assert status(browser).endswith(" questions") and "normandy" in listed(browser)[0].lower()
