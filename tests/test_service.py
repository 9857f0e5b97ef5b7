"""A service as README has it, with many clients; and what it needs of memory."""

import runpy
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import ROOT

from bertqa import Reader

MODEL = ROOT / "weights" / "minilm-squad2"

needs_reader = pytest.mark.skipif(
    not (MODEL / "model.safetensors").exists(), reason="the bundled reader is not there"
)


@needs_reader
def test_readmes_service_answers_sixteen_clients(monkeypatch):
    pytest.importorskip("fastapi", reason="fastapi is not installed")
    pytest.importorskip("httpx", reason="httpx, FastAPI's test client, is not installed")
    from fastapi.testclient import TestClient

    monkeypatch.chdir(ROOT)
    names = runpy.run_path(str(ROOT / "tests" / "app_fastapi.py"))
    names["Question"].model_rebuild(_types_namespace=names)
    client = TestClient(names["app"])
    text = "Agnes Holm kept the lamp for thirty years. Her brother Nils built the mill in {}."
    asked = [
        {"question": "When was the mill built?", "context": text.format(year)}
        for year in range(1800, 1880)
    ]
    asked += [{"question": "Who kept the lamp?", "context": ["Nobody.", text]}] * 16
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda row: client.post("/answer", json=row), asked))
    assert {response.status_code for response in found} == {200}
    expected = Reader.load(MODEL, "cpu").answer_many((r["question"], r["context"]) for r in asked)
    for response, answer in zip(found, expected, strict=True):
        told = response.json()
        assert told["answer"] == answer.answer and told["document"] == answer.document
        assert told["score"] == pytest.approx(answer.score, abs=1e-5)
    assert client.post("/answer", json={"question": "q"}).status_code == 422


def test_a_reader_bounds_what_oneDNN_keeps(tiny_model):
    """Otherwise each thread that asks keeps a thousand kernels, of up to a megabyte."""
    code = (
        "import os; from bertqa import Reader; Reader.load({!r}, 'cpu'); "
        "print(os.environ['LRU_CACHE_CAPACITY'], os.environ['ONEDNN_PRIMITIVE_CACHE_CAPACITY'])"
    )
    environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
    for more, expected in (({}, "8 128"), ({"LRU_CACHE_CAPACITY": "99"}, "99 128")):
        said = subprocess.run(
            [sys.executable, "-c", code.format(str(tiny_model))],
            env={**environment, **more},
            capture_output=True,
            text=True,
        )
        assert said.stdout.strip() == expected, said.stderr


GROWTH = """
import random, sys, threading
from bertqa import Reader

reader = Reader.load({model!r}, "cpu")
draw = random.Random(0)


def resident():
    return int(open("/proc/self/status").read().partition("VmRSS:")[2].split()[0]) // 1024


def work(requests):
    for _ in range(requests):
        context = " ".join(draw.choices(["mill", "lamp", "river", "Agnes Holm", "1850"], k=draw.randint(5, 120)))
        reader.{how}


for requests in (30, 40):
    threads = [threading.Thread(target=work, args=(requests,)) for _ in range(16)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    print(resident())
"""


@needs_reader
@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(
    "how", ['answer("Who?", context)', 'submit("Who?", context).result()'], ids=["answer", "submit"]
)
def test_memory_of_a_service_is_bounded(how):
    """640 requests more, of all lengths and from 16 other threads, after the first 480."""
    said = subprocess.run(
        [sys.executable, "-c", GROWTH.format(model=str(MODEL), how=how)],
        env={"PYTHONPATH": str(ROOT), "PATH": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    before, after = map(int, said.stdout.split())
    assert after - before < 100, (before, after)
