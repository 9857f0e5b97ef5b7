"""Files of questions answered as they are read: what is written stays, and a later start ends in the same bytes."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from conftest import ROOT
from processes import run, run_ranks, start

from bertqa import Reader, UserError, jobs
from bertqa.jobs import Job
from bertqa.predict import main
from bertqa.qa.thresholds import no_answer_probability
from bertqa.score import main as score

FILES = ("predictions.jsonl", "predictions.json", "null_odds.json", "na_prob.json")


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    """400 questions over 100 contexts of letters, JSONL."""
    draw = random.Random(1)
    path = tmp_path_factory.mktemp("many") / "questions.jsonl"
    lines = []
    for n in range(400):
        context = " ".join(draw.choices("abcdefghijklmnop", k=draw.randint(1, 40)))
        row = {"id": f"q{n}", "question": f"where is {context[0]}?", "context": context}
        lines.append(json.dumps(row) + "\n")
    path.write_text("".join(lines))
    return path


def answers_in(folder):
    return {name: (folder / name).read_bytes() for name in FILES}


def rows_in(folder):
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_model, questions):
    """The answers of a job that nobody stopped, by one thread as those of other processes are: two round otherwise."""
    out = tmp_path_factory.mktemp("whole") / "out"
    ask = ["--model", tiny_model, "--data", questions, "--out", out, "--threads", 1]
    assert main(list(map(str, ask))) == 0
    return out


def test_the_answers_are_those_of_the_reader(whole, questions, tiny_model):
    asked = [json.loads(line) for line in questions.read_text().splitlines()]
    expected = Reader.load(tiny_model).answer_many((r["question"], r["context"]) for r in asked)
    rows = rows_in(whole)
    for row, question, answer in zip(rows, asked, expected, strict=True):
        assert row["id"] == question["id"] and row["answer"] == answer.answer
        assert row["score"] == pytest.approx(answer.score, abs=1e-6)
        assert (row["start"], row["end"], row["document"]) == (answer.start, answer.end, 0)
    texts = json.loads((whole / "predictions.json").read_text())
    assert texts == {row["id"]: row["answer"] for row in rows} and len(texts) == 400
    odds = json.loads((whole / "null_odds.json").read_text())
    assert odds == {row["id"]: row["null_odds"] for row in rows}
    chances = json.loads((whole / "na_prob.json").read_text())
    assert list(chances.values()) == pytest.approx(no_answer_probability(list(odds.values()), 1, 0))


def records(*characters):
    return [SimpleNamespace(characters=count) for count in characters]


def test_shares_grow_and_long_records_make_them_short():
    """Eight of 8 records, eight of 64, then as many as a share may have; where each begins is counted."""
    many = records(*[1] * 1200)
    shares = list(jobs.shares_of(many, 256, "cpu"))
    assert [len(share.records) for share in shares] == [8] * 8 + [64] * 8 + [256, 256, 112]
    assert [share.start for share in shares[:10]] == [0, 8, 16, 24, 32, 40, 48, 56, 64, 128]
    assert [record for share in shares for record in share.records] == many
    assert [len(share.records) for share in jobs.shares_of(many[:20], 5, "cpu")] == [5] * 4
    # The record that goes beyond the limit is the last of its share.
    half = records(*[1 << 16] * 9)
    assert [len(share.records) for share in jobs.shares_of(half, 8, "cpu")] == [3, 3, 3]
    assert [len(share.records) for share in jobs.shares_of(half, 8, "cuda")] == [8, 1]
    assert [share.start for share in jobs.shares_of(half, 8, "cpu")] == [0, 3, 6]
    whole = records(*[1 << 21] * 4)
    assert [len(share.records) for share in jobs.shares_of(whole, 8, "cuda")] == [2, 2]
    assert list(jobs.shares_of([], 8, "cpu")) == []


def test_progress_within_a_share_and_the_estimated_end():
    class Bar:
        total, n = None, 100

        def update(self, more):
            self.n += more

    bar = Bar()
    share = jobs.Share(100, records(*[1] * 10))
    stream = SimpleNamespace(share_read=0.25, count=150)
    told = jobs.ShareProgress(bar, stream, None, share)
    assert bar.total == 600
    for fraction, at in ((0.25, 102), (0.25, 105), (0.5, 110)):
        told(fraction)
        assert bar.n == at
    for limit, total in ((300, 300), (900, 600)):
        jobs.ShareProgress(bar, stream, limit, share)
        assert bar.total == total
    jobs.ShareProgress(bar, SimpleNamespace(share_read=0.0, count=1), None, share)
    assert bar.total == 600  # of a pipe nobody knows


def test_what_is_said_at_the_end():
    job = SimpleNamespace(answered=0, took=0.0)
    assert Job.summary(job, "question", 0, "records") == ""
    job.answered, job.took = 3000, 1.5
    said = "; 3,000 questions in 1.5 s, 2,000.0 questions/s"
    assert Job.summary(job, "question", 0, "records") == said
    failed = '; 1,200 records could not be read: see "error" in predictions.jsonl'
    assert Job.summary(job, "question", 1200, "records") == said + failed


def test_what_answers_depend_on_of_a_model_folder(tiny_model, tmp_path):
    model = shutil.copytree(tiny_model, tmp_path / "model")
    found = {name: [] for name in ("plain", "int8")}

    def note():
        found["plain"].append(jobs.model_fingerprint(model, False))
        found["int8"].append(jobs.model_fingerprint(model, True))

    note()
    (model / "README.md").write_text("another card")
    note()
    (model / "int8_ranges.safetensors").write_bytes(b"ranges")
    note()
    names = ["model.safetensors", "config.json", "qa.json", "vocab.txt", "tokenizer.json"]
    for name in names:
        (model / name).write_bytes(b"another")
        note()
    assert found["plain"][0] == found["plain"][1] == found["plain"][2]
    assert found["int8"][0] == found["int8"][1] != found["int8"][2]
    assert len(set(found["plain"])) == 1 + len(names) and len(set(found["int8"])) == 2 + len(names)
    assert {len(digits) for digits in found["plain"]} == {16}


def test_what_is_there_is_neither_replaced_nor_mixed(whole, questions, tiny_model, tmp_path):
    before = answers_in(whole)
    ask = ["--model", str(tiny_model), "--data", str(questions), "--out", str(whole)]
    with pytest.raises(UserError, match="already holds job.json; give another --out, or --resume"):
        main(ask)
    with pytest.raises(UserError, match="threshold was None and is 3.0"):
        main([*ask, "--resume", "--threshold", "3"])
    other = tmp_path / "questions.jsonl"
    other.write_text(questions.read_text().replace("where", "who"))
    with pytest.raises(UserError, match="was begun with something else: data was"):
        main([*ask[:2], "--data", str(other), *ask[4:], "--resume"])
    assert main([*ask, "--resume"]) == 0  # nothing is left to do
    assert answers_in(whole) == before
    run = tmp_path / "run"
    run.mkdir()
    (run / "predictions.json").write_text("{}")  # a run folder of train
    with pytest.raises(UserError, match="already holds predictions.json"):
        main([*ask[:4], "--out", str(run)])
    with pytest.raises(UserError, match="has no job.json"):
        main([*ask[:4], "--out", str(run), "--resume"])


def test_a_start_that_found_nothing_to_answer_is_no_job(questions, tiny_model, tmp_path):
    nothing = tmp_path / "nothing.jsonl"
    nothing.write_text("\n")
    out = tmp_path / "out"
    ask = ["--model", str(tiny_model), "--limit", "3", "--out", str(out), "--data"]
    for _ in range(2):
        with pytest.raises(UserError, match="nothing.jsonl"):
            main([*ask, str(nothing)])
    assert main([*ask, str(questions)]) == 0
    assert len(rows_in(out)) == 3
    about = json.loads((out / "job.json").read_text())
    assert about["data"][0]["file"] == questions.name


def test_a_start_that_answered_nothing_is_no_job(questions, tiny_model, tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"id": 0, "question": null, "context": "a"}\n' + questions.read_text())
    out = tmp_path / "out"
    ask = ["--model", str(tiny_model), "--limit", "3", "--out", str(out), "--data"]
    for _ in range(2):
        with pytest.raises(UserError, match='line 1: "question" must be text'):
            main([*ask, str(bad), "--on-error", "stop"])
    assert (out / "predictions.jsonl").stat().st_size == 0
    (out / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="already holds job.json"):
        main([*ask, str(questions)])
    (out / "notes.txt").unlink()
    assert main([*ask, str(questions)]) == 0
    assert len(rows_in(out)) == 3


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 9, 300, 399])
@pytest.mark.parametrize("tail", [b"", b'{"id": "cut o'])
def test_a_job_that_was_stopped_ends_in_the_same_bytes(
    whole, questions, tiny_model, tmp_path, kept, tail
):
    out = tmp_path / "out"
    out.mkdir()
    (out / "job.json").write_bytes((whole / "job.json").read_bytes())
    lines = (whole / "predictions.jsonl").read_bytes().splitlines(keepends=True)
    (out / "predictions.jsonl").write_bytes(b"".join(lines[:kept]) + tail)
    ask = ["--model", str(tiny_model), "--data", str(questions), "--out", str(out), "--resume"]
    assert main(ask) == 0
    assert answers_in(out) == answers_in(whole)


def test_answers_to_other_questions_are_refused(whole, tiny_model, tmp_path, monkeypatch):
    """From a pipe nobody knows the data; but the ids of what is answered are there."""
    out = tmp_path / "out"
    rows = [{"id": n, "question": "where is a?", "context": "a b"} for n in range(20)]
    ask = ["--model", str(tiny_model), "--data", "-", "--out", str(out)]
    piped(monkeypatch, rows)
    assert main(ask) == 0
    before = answers_in(out)
    piped(monkeypatch, rows)
    assert main([*ask, "--resume"]) == 0 and answers_in(out) == before
    piped(monkeypatch, [{**row, "id": row["id"] + 100} for row in rows])
    with pytest.raises(UserError, match="line 1: its id is '100', but the answer in its place"):
        main([*ask, "--resume"])


def piped(monkeypatch, rows):
    import io

    text = "".join(json.dumps(row) + "\n" for row in rows)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_process_that_is_stopped(tiny_model, questions, tmp_path, how):
    many = tmp_path / "many.jsonl"
    text = questions.read_text()
    many.write_text("".join(text.replace('"id": "q', f'"id": "{n}q') for n in range(10)))  # 4,000
    ask = ["predict", "--model", tiny_model, "--data", many, "--out", tmp_path / "out"]
    process = start(ask, tmp_path / "log")
    lines = tmp_path / "out" / "predictions.jsonl"
    deadline = time.monotonic() + 60
    while not lines.exists() or lines.stat().st_size < 30_000:
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, how)
    process.join(60)
    said = (tmp_path / "log").read_text()
    assert process.exitcode == (-9 if how == signal.SIGKILL else 130)
    assert "Traceback" not in said
    if how != signal.SIGKILL:
        assert "answers are in" in said and "--resume goes on" in said
    left = len(lines.read_bytes().splitlines())
    assert 0 < left < 4_000
    said = run([*ask, "--resume"], tmp_path / "again")
    answered = int(re.search(r"; ([\d,]+) questions in", said)[1].replace(",", ""))
    assert 4_000 - left <= answered < 4_000
    rows = rows_in(tmp_path / "out")
    assert [row["id"] for row in rows] == [f"{n}q{k}" for n in range(10) for k in range(400)]
    if how == signal.SIGKILL:
        assert main([*map(str, ask[1:5]), "--out", str(tmp_path / "unbroken")]) == 0
        assert answers_in(tmp_path / "unbroken") == answers_in(tmp_path / "out")


def test_a_full_disk_keeps_what_is_answered(tiny_model, questions, tmp_path, monkeypatch, capsys):
    append, written = Job.append, []

    def full(job, rows):
        if len(written) == 2:
            raise OSError(28, "No space left on device", str(job.lines))
        written.append(rows)
        append(job, rows)

    monkeypatch.setattr(Job, "append", full)
    ask = ["--model", str(tiny_model), "--data", str(questions), "--out", str(tmp_path / "out")]
    with pytest.raises(OSError, match="No space left"):
        main(ask)
    assert "16 answers are in" in capsys.readouterr().err
    assert len(rows_in(tmp_path / "out")) == 16


def test_bad_records_are_written_in_their_place(tiny_model, tmp_path, capsys):
    lines = [json.dumps({"id": n, "question": "where is a?", "context": "a b"}) for n in range(7)]
    lines[3] = '{"id": 3, "question": null, "context": "a"}'
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join([*lines, lines[0]]))
    ask = ["--model", str(tiny_model), "--data", str(data)]
    assert main([*ask, "--out", str(tmp_path / "out")]) == 1
    rows = rows_in(tmp_path / "out")
    assert [row["id"] for row in rows] == [*"0123456", "0"]
    assert rows[3].keys() == rows[7].keys() == {"id", "error"}
    assert rows[3]["error"] == f'{data}: line 4: "question" must be text, not null'
    assert "used before" in rows[7]["error"]
    assert list(json.loads((tmp_path / "out" / "predictions.json").read_text())) == [*"012456"]
    said = capsys.readouterr().err
    assert "2 records could not be read" in said
    assert "unlabelled: 8 of 8 records do not say what is right" in said
    with pytest.raises(UserError, match='data.jsonl: line 4: "question" must be text'):
        main([*ask, "--out", str(tmp_path / "stop"), "--on-error", "stop"])
    assert [row["id"] for row in rows_in(tmp_path / "stop")] == [*"012"]


def test_documents_and_n_best_lists(tiny_model, tmp_path):
    row = {"id": 1, "question": "where is a?", "context": ["a b", "c d e"]}
    (tmp_path / "data").write_text(json.dumps(row))
    ask = ["--model", str(tiny_model), "--data", str(tmp_path / "data"), "--threshold", "0"]
    assert main([*ask, "--out", str(tmp_path / "out"), "--n-best", "4"]) == 0
    (found,) = json.loads((tmp_path / "out" / "nbest_predictions.json").read_text()).values()
    texts = [one["text"] for one in found]
    assert len(texts) in (4, 5) and texts.count("") == 1
    assert sum(one["probability"] for one in found) == pytest.approx(1)
    for one in found:
        if one["text"]:
            assert row["context"][one["document"]][one["start"] : one["end"]] == one["text"]
    (answer,) = rows_in(tmp_path / "out")
    assert answer["answer"] == ("" if answer["null_odds"] > 0 else texts[0] or texts[1])


def test_readmes_recipe_scores_what_was_predicted(tiny_model, letters, tmp_path, capsys):
    ask = ["--model", str(tiny_model), "--data", str(letters), "--threshold", "0.3"]
    assert main([*ask, "--out", str(tmp_path / "out")]) == 0
    capsys.readouterr()
    scores = []
    for more in ([], ["--na-prob-file", str(tmp_path / "out" / "na_prob.json")]):
        assert score([str(letters), str(tmp_path / "out" / "predictions.json"), *more]) == 0
        found = json.loads(capsys.readouterr().out)
        scores.append((found["exact"], found["f1"]))
    assert scores[0] == scores[1]


def test_two_processes_write_what_one_writes(tiny_model, questions, whole, tmp_path):
    out = tmp_path / "out"
    ask = ["predict", "--model", tiny_model, "--data", questions, "--out", out]
    run_ranks(ask, 2, tmp_path / "logs")
    assert answers_in(out) == answers_in(whole)


def test_the_first_answers_come_before_the_rest_is_read(tiny_model, tmp_path):
    """From a pipe that goes on and on."""
    process = subprocess.Popen(
        [sys.executable, "-m", "bertqa.predict", "--model", tiny_model, "--data", "-"]
        + ["--out", tmp_path / "out"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    lines = tmp_path / "out" / "predictions.jsonl"
    row = {"question": "where is a?", "context": "a b c"}
    process.stdin.write(json.dumps(row).encode() + b"\n")
    for _ in range(jobs.FIRST[0] + 2):
        process.stdin.write(json.dumps(row).encode() + b"\n")
    process.stdin.flush()
    deadline = time.monotonic() + 60
    while not lines.exists() or not lines.stat().st_size:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    assert len(rows_in(tmp_path / "out")) == jobs.FIRST[0]
    process.stdin.close()
    assert process.wait(60) == 0
    assert [row["id"] for row in rows_in(tmp_path / "out")] == list(range(jobs.FIRST[0] + 3))


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--limit", "0"], "--limit 0: give 1 or more"),
        (["--n-best", "-1"], "--n-best -1: give 1 or more"),
        (["--max-answer-length", "0"], "--max-answer-length 0: give 1 or more"),
        (["--threads", "100000"], "--threads 100000: give 1 to"),
    ],
)
def test_numbers_without_meaning(tiny_model, questions, tmp_path, flags, says):
    ask = ["--model", str(tiny_model), "--data", str(questions), "--out", str(tmp_path / "out")]
    with pytest.raises(UserError, match=says):
        main([*ask, *flags])
    assert not (tmp_path / "out").exists()
