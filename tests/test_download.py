"""SQuAD by name, tried against a server on this machine that can cut, damage, refuse and ignore."""

import hashlib
import json
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from servers import ROOT, Files, address, serving, stand_in

from bertqa import doctor, predict, score
from bertqa.data import download
from bertqa.data.download import FILES, locate
from bertqa.data.examples import read_examples
from bertqa.errors import UserError
from bertqa.reporting.run_folder import find_dev, read_run

QUESTIONS = [
    {
        "id": f"{number}",
        "question": "where is a?",
        "answers": {"text": ["b"], "answer_start": [2]},
        "context": "a b c " + "d " * number,
    }
    for number in range(400)
]
DEV = json.dumps({"data": QUESTIONS}).encode()
TRAIN = json.dumps({"data": QUESTIONS[:7]}).encode()


@pytest.fixture(scope="module")
def mirror():
    with serving(Files) as server:
        yield server


@pytest.fixture
def server(mirror, tmp_path, monkeypatch):
    """The server with small files in the place of the official ones, an empty cache, and a working directory of its own."""
    mirror.log, mirror.cuts, mirror.codes, mirror.ranges = [], [], [], True
    mirror.files = {"/squad/dev-v2.0.json": DEV, "/squad/train-v2.0.json": TRAIN}
    for name, content in (("squad2-dev", DEV), ("squad2-train", TRAIN)):
        monkeypatch.setitem(FILES, name, stand_in(name, content))
    monkeypatch.setattr(download, "PAUSES", (0.001, 0.001))
    monkeypatch.setenv("BERTQA_SQUAD_URL", f"{address(mirror)}/squad/")
    monkeypatch.setenv("BERTQA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.chdir(tmp_path)
    return mirror


def kept(tmp_path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (tmp_path / "cache").iterdir()}


def refusal(name: str) -> str:
    with pytest.raises(UserError) as caught:
        locate(name)
    return str(caught.value)


# names ----------------------------------------------------------------------------------------------------------------


def test_the_official_files_are_those_of_the_data_notes(shared):
    notes = (shared / "data" / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\S+\.json) \| (\d+) \| ([0-9a-f]{64}) \|$", notes, re.MULTILINE)
    assert {(file.name, str(file.size), file.sha256) for file in FILES.values()} == set(
        rows
    ) and len(rows) == 4


@pytest.mark.parametrize(
    "name, split, expected",
    [
        ("squad2", "dev", "dev-v2.0.json"),
        ("squad2", "train", "train-v2.0.json"),
        ("squad1", "dev", "dev-v1.1.json"),
        ("squad1", "train", "train-v1.1.json"),
        ("squad2-dev", "train", "dev-v2.0.json"),
        ("squad2-train", "dev", "train-v2.0.json"),
        (Path("squad1-train"), "dev", "train-v1.1.json"),
        ("squad1-dev", "dev", "dev-v1.1.json"),
    ],
)
def test_what_names_stand_for(name, split, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert download.official(name, split).name == expected


@pytest.mark.parametrize(
    "name", ["squad", "squad2.json", "data/squad2", "./x/squad2", "squad3", "SQUAD2", ""]
)
def test_other_names_are_paths(name, server):
    assert locate(name) == Path(name) and server.log == []


def test_local_files_and_folders_win(server, tmp_path):
    (tmp_path / "squad2").write_bytes(TRAIN)
    (tmp_path / "squad1").mkdir()
    assert (
        len(read_examples("squad2").examples) == 7
        and locate("squad1") == Path("squad1")
        and server.log == []
    )


def test_where_files_are_kept(monkeypatch):
    for variable in ("BERTQA_CACHE", "XDG_CACHE_HOME", "BERTQA_SQUAD_URL"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", "/home/ada")
    file = FILES["squad2-dev"]
    assert file.path == Path("/home/ada/.cache/bertqa/dev-v2.0.json")
    assert file.url == "https://rajpurkar.github.io/SQuAD-explorer/dataset/dev-v2.0.json"
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache")
    assert file.path == Path("/var/cache/bertqa/dev-v2.0.json")
    monkeypatch.setenv("BERTQA_CACHE", "~/squad")
    assert file.path == Path("/home/ada/squad/dev-v2.0.json")
    monkeypatch.setenv("BERTQA_SQUAD_URL", "mirror/squad")
    assert "BERTQA_SQUAD_URL is 'mirror/squad'; it must start with http" in refusal("squad2")


# fetching -------------------------------------------------------------------------------------------------------------


def test_fetched_once(server, tmp_path, capfd):
    path = locate("squad2")
    assert path == tmp_path / "cache" / "dev-v2.0.json" and kept(tmp_path) == {"dev-v2.0.json": DEV}
    assert server.log == [("/squad/dev-v2.0.json", None)]
    assert "dev-v2.0.json: 100%" in capfd.readouterr().err
    assert locate("squad2-dev") == path and len(server.log) == 1 and capfd.readouterr().err == ""
    assert len(read_examples("squad2").examples) == 400 and len(server.log) == 1


def test_goes_on_after_a_cut(server, tmp_path, capfd, aloud):
    """Also more often than there are pauses, as long as something comes each time."""
    server.cuts = [70_000, 1, 1, 1, 1]
    assert locate("squad2").read_bytes() == DEV and kept(tmp_path) == {"dev-v2.0.json": DEV}
    assert [asked for _, asked in server.log] == [
        None,
        *(f"bytes={70_000 + number}-" for number in range(5)),
    ]
    assert (
        "dev-v2.0.json: the connection ended after 70,000 bytes; trying again"
        in capfd.readouterr().err
    )


def test_the_next_command_goes_on(server, tmp_path):
    server.cuts = [70_000, 0, 0]
    error = refusal("squad2")
    assert (
        f"/squad/dev-v2.0.json: cannot be fetched (the connection ended after 70,000 bytes), 70,000 of {len(DEV):,} "
        "bytes are here; run the same command again to go on; or " in error
    )
    assert kept(tmp_path) == {"dev-v2.0.json.part": DEV[:70_000]}
    server.log.clear()
    locate("squad2")
    assert kept(tmp_path) == {"dev-v2.0.json": DEV} and server.log == [
        ("/squad/dev-v2.0.json", "bytes=70000-")
    ]


def test_server_without_range(server, tmp_path):
    server.ranges, server.cuts = False, [70_000]
    locate("squad2")
    assert kept(tmp_path) == {"dev-v2.0.json": DEV}
    assert server.log == [("/squad/dev-v2.0.json", None), ("/squad/dev-v2.0.json", "bytes=70000-")]


def test_a_busy_server_is_asked_again(server, tmp_path):
    server.codes = [503, 429]
    locate("squad2")
    assert kept(tmp_path) == {"dev-v2.0.json": DEV} and len(server.log) == 3
    (tmp_path / "cache" / "dev-v2.0.json").unlink()
    server.codes = [503] * 9
    assert (
        "cannot be fetched (HTTP Error 503: Service Unavailable)" in refusal("squad2")
        and len(server.log) == 6
    )


def test_two_at_once_fetch_once(server, tmp_path):
    pytest.importorskip("fcntl")
    threads = [threading.Thread(target=locate, args=["squad2"]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.log) == 1 and kept(tmp_path) == {"dev-v2.0.json": DEV}


# what goes wrong ------------------------------------------------------------------------------------------------------


def test_wrong_checksum(server, tmp_path):
    server.files["/squad/dev-v2.0.json"] = wrong = DEV.replace(b"where", b"Where", 1)
    error = refusal("squad2")
    assert (
        f"what came is not the official dev-v2.0.json: its sha256 is {hashlib.sha256(wrong).hexdigest()}, not "
        f"{hashlib.sha256(DEV).hexdigest()}; it was deleted, run the same command again" in error
    )
    assert kept(tmp_path) == {}


def test_a_part_of_something_else(server, tmp_path):
    (tmp_path / "cache").mkdir()
    for content in (b"x" * 99, b"x" * len(DEV), b"x" * (len(DEV) + 1)):
        (tmp_path / "cache" / "dev-v2.0.json.part").write_bytes(content)
        assert (
            "it was deleted, run the same command again" in refusal("squad2")
            and kept(tmp_path) == {}
        )
    locate("squad2")


def test_wrong_size(server, tmp_path):
    """The login page of a hotel: told from its length, before what is here already is touched."""
    server.files["/squad/dev-v2.0.json"], server.ranges = b"<html>", False
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "dev-v2.0.json.part").write_bytes(DEV[:99])
    assert f"the server has 6 bytes under that name, not the official {len(DEV):,}" in refusal(
        "squad2"
    )
    assert kept(tmp_path) == {"dev-v2.0.json.part": DEV[:99]} and len(server.log) == 1


def test_damaged_in_the_cache(server, tmp_path):
    locate("squad2").write_bytes(DEV[:-1] + b" ")
    assert re.search(
        r"cache/dev-v2\.0\.json: this is not the official dev-v2\.0\.json: its sha256 is \w{64}, not \w{64}; "
        "delete it, and it is fetched again$",
        refusal("squad2"),
    )
    assert len(server.log) == 1


def test_not_on_the_server(server, tmp_path):
    del server.files["/squad/dev-v2.0.json"]
    where = f"http://127.0.0.1:{server.server_port}/squad/dev-v2.0.json"
    assert refusal("squad2") == (
        f"{where}: HTTP Error 404: Not Found; see whether that address is right; or set BERTQA_SQUAD_URL to a mirror, or put "
        f"the official file at {tmp_path / 'cache' / 'dev-v2.0.json'} yourself (sha256 {hashlib.sha256(DEV).hexdigest()})"
    )
    assert len(server.log) == 1


def test_offline(server, tmp_path, monkeypatch):
    monkeypatch.setenv("BERTQA_SQUAD_URL", "http://127.0.0.1:9")
    error = refusal("squad2")
    assert re.match(
        r"http://127\.0\.0\.1:9/dev-v2\.0\.json: cannot be fetched \(.*refused\), 0 of \d", error
    )
    assert (
        error.endswith(
            f"put the official file at {tmp_path / 'cache' / 'dev-v2.0.json'} yourself "
            f"(sha256 {hashlib.sha256(DEV).hexdigest()})"
        )
        and "\n" not in error
    )
    (tmp_path / "cache" / "dev-v2.0.json").write_bytes(DEV)  # its folder is there already
    assert locate("squad2").read_bytes() == DEV


# the verbs ------------------------------------------------------------------------------------------------------------


def test_train_reads_both_by_one_name(server, tiny_model):
    import torch

    from bertqa.settings import QuestionAnsweringSettings
    from bertqa.training.question_answering import QuestionAnswering

    settings = QuestionAnsweringSettings(max_length=48, overlap=8, max_question=8, limit_dev=3)
    task = QuestionAnswering(
        "squad2", "squad2", tiny_model, settings, seed=0, device=torch.device("cpu"), progress=False
    )
    assert (len(task.train.examples), len(task.dev.examples)) == (7, 3)
    assert [Path(data.path).name for data in (task.train, task.dev)] == [
        "train-v2.0.json",
        "dev-v2.0.json",
    ]


def test_report_finds_the_questions_of_such_a_run(server, tmp_path):
    """Where they were fetched to; it fetches nothing itself."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text('{"settings": {"dev": "squad2"}}')
    run = read_run(tmp_path / "run")
    assert find_dev(run) is None and server.log == []
    assert locate("squad2") == find_dev(run) == tmp_path / "cache" / "dev-v2.0.json"


def test_predict_then_score(server, tiny_model, tmp_path, capsys):
    """Data of seven questions, under the dev file's name; no flag asks for v1 rules, so the cached file is looked at."""
    server.files["/squad/dev-v2.0.json"] = TRAIN
    FILES["squad2-dev"] = stand_in("squad2-dev", TRAIN)
    (tmp_path / "model").mkdir()
    for path in tiny_model.iterdir():
        (tmp_path / "model" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "model" / "qa.json").write_text(
        '{"max_length": 48, "overlap": 8, "max_question": 8}'
    )
    assert (
        predict.main(["--model", "model", "--device", "cpu", "--data", "squad2", "--out", "p"]) == 0
    )
    assert len(json.loads(Path("p/predictions.json").read_text())) == 7
    assert (
        score.main(["squad2", "p/predictions.json", "--v2"]) == 0
        and '"total": 7' in capsys.readouterr().out
    )
    assert (
        score.main(["squad2-train", "p/predictions.json"]) == 0
        and "exact_match" in capsys.readouterr().out
    )


def test_doctor_compares_the_two(server, tiny_model, capsys):
    argv = [
        "squad2",
        "squad2-train",
        "--weights",
        str(tiny_model),
        "--max-length",
        "48",
        "--overlap",
        "8",
        "--json",
    ]
    assert doctor.main([*argv, "--max-question", "8"]) == 0
    assert {asked for asked, _ in server.log} == {"/squad/dev-v2.0.json", "/squad/train-v2.0.json"}
    assert "dev-v2.0.json" in capsys.readouterr().out


def test_nothing_is_imported_for_other_files():
    code = "import sys, bertqa.score; sys.exit(bool({'urllib.request', 'http.client', 'tqdm'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
