"""Files of texts classified and embedded as they are read: what is written stays, bad rows, several files, pipes."""

import bz2
import io
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT
from processes import run_ranks
from tiny_checkpoints import write_checkpoint

from bertqa import UserError
from bertqa.data.texts import text_stream
from bertqa.embed import main as embed
from bertqa.embed_files import append_vectors, finish
from bertqa.hf.convert import convert
from bertqa.model import folder
from bertqa.predict import main as predict


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A random classifier."""
    where = tmp_path_factory.mktemp("classifier")
    source = write_checkpoint(where / "theirs", head=folder.CLASSES, labels=["no", "yes"])
    convert(source, where / "ours")
    return where / "ours"


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """700 texts of some words, a line each; more than the first shares hold."""
    words = "i love paris the quick brown fox jumps over lazy dogs".split()
    lines = []
    for n in range(700):
        lines.append(" ".join(words[(n + k) % len(words)] for k in range(n % 23)))
    path = tmp_path_factory.mktemp("texts") / "texts.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


def rows_in(out):
    return [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def classes(tmp_path_factory, classifier, texts):
    """The classes of a job that nobody stopped, by one thread as those of other processes are: two round otherwise."""
    out = tmp_path_factory.mktemp("classes") / "out"
    ask = ["--model", classifier, "--data", texts, "--out", out, "--threads", 1]
    assert predict(list(map(str, ask))) == 0
    return out


@pytest.mark.parametrize("kept", [0, 5, 8, 699])
def test_classes_end_in_the_same_bytes(tmp_path, classifier, texts, classes, kept, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "job.json").write_bytes((classes / "job.json").read_bytes())
    whole = (classes / "predictions.jsonl").read_bytes()
    lines = whole.splitlines(keepends=True)
    (out / "predictions.jsonl").write_bytes(b"".join(lines[:kept]) + b'{"id": "cut o')
    ask = ["--model", str(classifier), "--data", str(texts), "--out", str(out), "--resume"]
    assert predict(ask) == 0
    assert (out / "predictions.jsonl").read_bytes() == whole
    assert "classes of 700 texts in " in capsys.readouterr().err


def test_two_processes_write_the_classes_that_one_writes(tmp_path, classifier, texts, classes):
    ask = ["predict", "--model", classifier, "--data", texts, "--out", tmp_path / "out"]
    run_ranks(ask, 2, tmp_path / "logs")
    lines = (tmp_path / "out" / "predictions.jsonl").read_bytes()
    assert lines == (classes / "predictions.jsonl").read_bytes()


BAD = [
    {"id": "a", "text": "i love paris"},
    {"id": "b", "text": None},
    {"id": "c", "text": ["a", "list"]},
    {"id": "d", "label": "x"},
    {"id": "e", "text": "the fox"},
]


def test_bad_rows_stand_in_their_place(tmp_path, classifier, capsys):
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in BAD) + '{"id": "f", "te\n')
    ask = ["--model", str(classifier), "--data", str(data)]
    assert predict([*ask, "--out", str(tmp_path / "out")]) == 1
    rows = rows_in(tmp_path / "out")
    assert [row["id"] for row in rows] == ["a", "b", "c", "d", "e", "5"]
    errors = [row.get("error", "").removeprefix(f"{data}: ") for row in rows]
    assert errors[0] == errors[4] == "" and rows[0].keys() == {"id", "label", "probabilities"}
    assert errors[1] == 'line 2: "text" must be text, not null'
    assert errors[2] == 'line 3: "text" must be text, not ["a", "list"]'
    assert errors[3].startswith('line 4 has no column "text"; its columns are "id", "label"')
    assert errors[5].startswith("cut off: the JSON ends early, line 6")
    assert "4 rows could not be read" in capsys.readouterr().err
    with pytest.raises(UserError, match='data.jsonl: line 2: "text" must be text'):
        predict([*ask, "--out", str(tmp_path / "stop"), "--on-error", "stop"])
    assert [row["id"] for row in rows_in(tmp_path / "stop")] == ["a"]


def test_the_first_row_tells_whether_the_columns_are_there(tmp_path, classifier):
    for name, content in (("a.jsonl", '{"review": "x"}\n'), ("a.csv", "review,n\nx,1\n")):
        (tmp_path / name).write_text(content * 3)
        ask = ["--model", str(classifier), "--data", str(tmp_path / name)]
        with pytest.raises(
            UserError, match='no column "text"; its columns are "review".*say which'
        ):
            predict([*ask, "--out", str(tmp_path / "out" / name)])


def test_many_files_are_one_stream(tmp_path, texts, monkeypatch):
    (tmp_path / "1.csv").write_text('text,n\n"a, b",1\nc,2,3\nd,4\n')
    (tmp_path / "2.jsonl.bz2").write_bytes(bz2.compress(b'{"text": "e", "id": "x"}\n'))
    (tmp_path / "3.json").write_text('[{"text": "f"}]')
    (tmp_path / "4.tsv").write_text('text\tn\n"not quoted\t1\nh\t2\n')
    found = list(
        text_stream([tmp_path / name for name in ("1.csv", "2.jsonl.bz2", "3.json", "4.tsv")])
    )
    assert [(text.id, text.text) for text in found if not text.error] == [
        ("0", "a, b"),
        ("2", "d"),
        ("x", "e"),
        ("4", "f"),
        ("5", '"not quoted'),
        ("6", "h"),
    ]
    assert "1.csv: line 3: has 3 cells, the header 2" in found[1].error
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(texts.read_bytes())))
    from_pipe = list(text_stream([type(texts)("-")]))
    assert [text.text for text in from_pipe] == [text.text for text in text_stream([texts])]


def test_vectors_of_files_and_of_a_pipe(tmp_path, tiny_model, texts, monkeypatch, capsys):
    lines = texts.read_text().splitlines(keepends=True)
    for n in range(3):
        (tmp_path / f"part{n}.txt").write_text("".join(lines[100 * n : 100 * n + 100]))
    ask = ["--model", str(tiny_model), "--data"]
    assert embed([*ask, str(tmp_path / "part*.txt"), "--out", str(tmp_path / "files.npy")]) == 0
    assert json.loads((tmp_path / "files.ids.json").read_text()) == [str(n) for n in range(300)]
    assert "300 x 32 float32" in capsys.readouterr().err
    text = "".join(lines[:300])
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert embed([*ask, "-", "--out", str(tmp_path / "pipe.npy")]) == 0
    assert (tmp_path / "pipe.npy").read_bytes() == (tmp_path / "files.npy").read_bytes()
    safe = ["--out", str(tmp_path / "x.safetensors")]
    assert embed([*ask, str(tmp_path / "part0.txt"), *safe]) == 0
    with pytest.raises(UserError, match="x.safetensors: is there already"):
        embed([*ask, str(tmp_path / "part0.txt"), *safe])
    with pytest.raises(UserError, match="--resume goes on with the --out FILE.npy"):
        embed([*ask, str(texts), "--out", str(tmp_path / "y.safetensors"), "--resume"])


def test_a_bad_row_of_a_pipe_keeps_the_vectors_before_it(tmp_path, tiny_model, monkeypatch):
    def piped(rows):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))

    out = tmp_path / "v.npy"
    ask = ["--model", str(tiny_model), "--data", "-", "--out", str(out)]
    good = [{"id": "a", "text": "i love"}, {"id": "b", "text": "paris"}]
    piped([good[0], {"id": "b", "text": 7}])
    with pytest.raises(UserError, match='standard input: line 2: "text" must be text, not 7'):
        embed(ask)
    assert not out.exists()
    piped(good)
    assert embed([*ask, "--resume"]) == 0
    assert np.load(out).shape == (2, 32) and json.loads((tmp_path / "v.ids.json").read_text()) == [
        "a",
        "b",
    ]


def test_vectors_that_are_lost_are_not_made_up(tmp_path):
    """Behind a hole zeros would be read."""
    vectors = np.ones((2, 3), np.float32)
    append_vectors(tmp_path / "v.npy", 0, vectors)
    append_vectors(tmp_path / "v.npy", 2, vectors)
    append_vectors(tmp_path / "v.npy", 1, vectors)
    assert finish(tmp_path / "v.npy", 3) == (3, 3) and np.load(tmp_path / "v.npy").sum() == 9
    with pytest.raises(UserError, match="shorter than the 4 vectors that are told of"):
        append_vectors(tmp_path / "v.npy", 4, vectors)


def test_vectors_of_a_process_that_was_killed(tmp_path, tiny_model, texts):
    """Ends in the bytes of one that was not, whatever it had written."""
    data = tmp_path / "many.txt"
    data.write_text(texts.read_text() * 20)
    ask = ["--threads", 1, "--model", tiny_model, "--data", data, "--out"]
    command = [sys.executable, "-m", "bertqa.embed", *ask, tmp_path / "killed.npy"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(list(map(str, command)), env=environment, stderr=subprocess.DEVNULL)
    lines = tmp_path / "killed.npy.part" / "predictions.jsonl"
    deadline = time.monotonic() + 60
    while not lines.exists() or not lines.stat().st_size:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    assert not (tmp_path / "killed.npy").exists()
    with open(tmp_path / "killed.npy.part" / "vectors.npy", "ab") as file:
        file.write(b"half a vector")
    ask = [str(part) for part in ask]
    assert embed([*ask, str(tmp_path / "killed.npy"), "--resume"]) == 0
    assert embed([*ask, str(tmp_path / "whole.npy")]) == 0
    for name in ("npy", "ids.json"):
        assert (tmp_path / f"killed.{name}").read_bytes() == (
            tmp_path / f"whole.{name}"
        ).read_bytes()
    assert not list(tmp_path.glob("*.part"))
