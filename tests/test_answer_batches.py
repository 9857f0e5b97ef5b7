"""The Reader inside other engines: batches of every kind, bad rows, and the engines themselves where they are installed."""

import pickle
import re
import shutil
import sys

import numpy as np
import pytest
from conftest import ROOT

from bertqa import AnswerBatches, Reader, UserError
from bertqa.answer_batches import COLUMNS, SCHEMA


@pytest.fixture(scope="module")
def rows():
    """60 questions, of which one has no context, and labels that nobody may look at."""
    made = []
    for n in range(60):
        letters = "abcdefgh"[n % 8 :] + "xyz"[: n % 3]
        context = " ".join(letters) if n % 10 else [" ".join(letters), "c d"]
        made.append({"id": f"q{n}", "question": "where is c?", "context": context, "answers": 7})
    made[17]["context"] = None
    return made


@pytest.fixture(scope="module")
def expected(rows, tiny_model):
    pairs = [(row["question"], row["context"]) for row in rows]
    return list(Reader.load(tiny_model, "cpu").answer_many(pairs, on_error="keep"))


def same(columns, expected):
    """The columns say what the Reader said."""
    for n, answer in enumerate(expected):
        assert columns["answer"][n] == answer.answer
        assert (columns["start"][n], columns["end"][n]) == (answer.start, answer.end)
        assert columns["document"][n] == answer.document and columns["error"][n] == answer.error
        assert columns["score"][n] == pytest.approx(answer.score, abs=1e-6)
    assert [bool(error) for error in columns["error"]].count(True) == 1


def columns_of(rows):
    return {name: [row[name] for row in rows] for name in rows[0]}


def test_dictionaries_of_lists(rows, expected, tiny_model):
    batch = columns_of(rows)
    found = AnswerBatches(tiny_model, device="cpu")(batch)
    assert list(found) == ["id", "question", "context", "answers", *COLUMNS]
    assert found["answers"] == [7] * 60 and list(batch) == ["id", "question", "context", "answers"]
    assert all(isinstance(found[name], list) for name in COLUMNS)
    same(found, expected)


def test_dictionaries_of_arrays(rows, expected, tiny_model):
    batch = {"id": np.arange(60)}
    for name in ("question", "context"):
        batch[name] = np.empty(60, object)
        batch[name][:] = [row[name] for row in rows]
    batch["context"][0] = np.array(rows[0]["context"])  # an array of documents
    found = AnswerBatches(tiny_model, device="cpu")(batch)
    assert all(isinstance(found[name], np.ndarray) for name in COLUMNS)
    assert found["score"].dtype == np.float64 and found["start"].dtype.kind == "i"
    same(found, expected)


def test_data_frames(rows, expected, tiny_model):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    frame = pandas.DataFrame(rows, index=range(100, 160))
    answers = AnswerBatches(tiny_model, device="cpu")
    found = answers(frame)
    assert list(found.columns) == [*frame.columns, *COLUMNS] and list(found.index)[0] == 100
    same({name: found[name].tolist() for name in COLUMNS}, expected)
    halves = list(answers.over(iter([frame[:30], frame[30:]])))
    assert [len(half) for half in halves] == [30, 30]
    assert pandas.concat(halves)["answer"].tolist() == found["answer"].tolist()


def test_several_answers_and_other_columns(rows, tiny_model):
    batch = {"q": ["where is c?", "where is c?"], "text": ["a b c", None]}
    answers = AnswerBatches(tiny_model, "q", "text", 3, device="cpu", threshold=0.0)
    found = answers(batch)
    right = Reader.load(tiny_model, "cpu").answer("where is c?", "a b c", 3, threshold=0.0)
    assert found["answer"][0] == [one.answer for one in right] and found["error"][0] == ""
    assert found["answer"][1] == [""] and found["error"][1].startswith("pair 2")
    arrays = {name: np.array(values, object) for name, values in batch.items()}
    assert answers(arrays)["answer"].tolist() == found["answer"]


def test_bad_input_says_what_is_wrong(rows, tiny_model):
    batch = columns_of(rows)
    answers = AnswerBatches(tiny_model, "asked", device="cpu")
    with pytest.raises(UserError, match="no column 'asked'; the columns are 'id', 'question'"):
        answers(batch)
    with pytest.raises(UserError, match="pair 18 is .*None"):
        AnswerBatches(tiny_model, device="cpu", on_error="stop")(batch)
    lists = AnswerBatches(tiny_model, device="cpu")({**batch, "question": [["a"]] * 60})
    assert all("the question is a string" in error for error in lists["error"])
    with pytest.raises(UserError, match="/nowhere/at/all"):
        AnswerBatches("/nowhere/at/all")(batch)  # in the worker, where the first batch comes
    with pytest.raises(UserError, match="top_k is 0"):
        AnswerBatches(tiny_model, top_k=0, device="cpu")(batch)
    empty = AnswerBatches(tiny_model, device="cpu")({"question": [], "context": []})
    assert empty == {"question": [], "context": [], **{name: [] for name in COLUMNS}}


def test_it_travels_without_its_model(rows, expected, tiny_model, monkeypatch):
    monkeypatch.chdir(tiny_model.parent)
    answers = AnswerBatches(tiny_model.name, device="cpu")
    before = pickle.dumps(answers)
    same(answers(columns_of(rows)), expected)
    assert pickle.dumps(answers) == before and len(before) < 1000
    monkeypatch.chdir("/")
    same(pickle.loads(before)(columns_of(rows)), expected)


def test_a_batch_without_rows(tiny_model):
    """The last one of a shard may be empty."""
    made = AnswerBatches(str(tiny_model))
    found = made({"question": np.array([], object), "context": np.array([], object)})
    assert {len(column) for column in found.values()} == {0}
    found = made({"question": [], "context": []})
    assert {len(column) for column in found.values()} == {0}


def test_the_schema_names_the_columns():
    assert [field.split()[0] for field in SCHEMA.split(", ")] == list(COLUMNS)


# ---- the engines: README's line of each, with the bundled reader ----

MODEL = ROOT / "weights" / "minilm-squad2"
README = (ROOT / "README.md").read_text("utf-8")
NAMES = ("answer", "start", "end", "document", "score")

needs_reader = pytest.mark.skipif(
    not (MODEL / "model.safetensors").exists(), reason="the bundled reader is not there"
)


def readmes_line(engine: str, data):
    """What README's line makes of `data`."""
    code = re.search(rf"^- {engine}: `(.*)`$", README, re.MULTILINE)[1]
    return eval(code, {"AnswerBatches": AnswerBatches, "SCHEMA": SCHEMA, "data": data})


@pytest.fixture(scope="module")
def asked():
    """60 questions, of which one has no context."""
    made = []
    for n in range(60):
        context = (
            f"Agnes Holm kept lamp {n} for {n + 3} years. Her brother Nils built the mill. "
            * (n % 4 + 1)
        )
        question = ("Who built the mill?", "How long did Agnes Holm keep the lamp?")[n % 2]
        made.append({"id": f"q{n}", "question": question, "context": context})
    made[17]["context"] = None
    return made


@pytest.fixture(scope="module")
def right(asked):
    pairs = [(row["question"], row["context"]) for row in asked]
    answers = Reader.load(MODEL, "cpu").answer_many(pairs, on_error="keep")
    return {row["id"]: answer for row, answer in zip(asked, answers, strict=True)}


def equal_to_the_bit(found, asked, right):
    """Every column that was added is what the Reader says, and the others are as they were."""
    assert len(found) == 60
    for row in found:
        answer = right[row["id"]]
        assert {name: row[name] for name in NAMES} == {
            name: getattr(answer, name) for name in NAMES
        }
        assert bool(row["error"]) == bool(answer.error) == (row["id"] == "q17")
        (given,) = (one for one in asked if one["id"] == row["id"])
        assert row["question"] == given["question"]
        assert row["context"] == given["context"] or row["error"]  # a null of pandas' is a NaN


@needs_reader
@pytest.mark.slow
def test_datasets(asked, right, monkeypatch):
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    monkeypatch.chdir(ROOT)
    found = readmes_line("datasets", datasets.Dataset.from_list(asked))
    equal_to_the_bit(list(found), asked, right)
    # What was read does not change what the function is: the second time is found in the cache.
    hashed = datasets.fingerprint.Hasher.hash
    answers = AnswerBatches(MODEL)
    before = hashed(answers)
    answers(columns_of(asked))
    assert hashed(answers) == before


@needs_reader
@pytest.mark.slow
def test_ray(asked, right, monkeypatch):
    ray = pytest.importorskip("ray", reason="ray is not installed")
    ray_data = pytest.importorskip("ray.data", reason="ray.data is not installed")
    monkeypatch.chdir(ROOT)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        found = readmes_line("Ray Data", ray_data.from_items(asked)).take_all()
    finally:
        ray.shutdown()
    equal_to_the_bit(found, asked, right)


@needs_reader
@pytest.mark.slow
def test_spark(asked, right, monkeypatch):
    sql = pytest.importorskip("pyspark.sql", reason="pyspark is not installed")
    pytest.importorskip("pandas", reason="pandas is not installed")
    if not shutil.which("java"):
        pytest.skip("Spark needs Java")
    monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)
    monkeypatch.chdir(ROOT)
    spark = sql.SparkSession.builder.master("local[2]").getOrCreate()
    try:
        frame = spark.createDataFrame(asked, "id string, question string, context string")
        found = [row.asDict() for row in readmes_line("Spark", frame).collect()]
    finally:
        spark.stop()
    equal_to_the_bit(found, asked, right)
