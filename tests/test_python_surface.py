"""What one sees of bertqa in Python: types, names, reprs; what a Reader takes, measures and writes."""

import inspect
import json
import re
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

import bertqa
from bertqa import Reader, UserError, load, load_encoder
from bertqa.files import read_json
from bertqa.predict import main as predict
from bertqa.score import main as score

OPTIONS = ("allow_no_answer", "threshold", "max_answer_length", "whole_words")


@pytest.fixture(scope="module")
def reader(tiny_model):
    return Reader.load(tiny_model, "cpu")


# ---- types ----


def test_help_names_every_option():
    for method in (Reader.answer, Reader.answer_many, Reader.submit):
        parameters = inspect.signature(method).parameters
        assert set(OPTIONS) <= parameters.keys()
        assert all(parameters[name].annotation is not inspect.Parameter.empty for name in OPTIONS)


def test_type_checkers_see_every_public_name():
    """bertqa/__init__.py names them twice: once to load them late, once for tools that do not run it."""
    source = (ROOT / "bertqa" / "__init__.py").read_text()
    seen = dict(re.findall(r"^ +from ([\w.]+) import ([^(\n]+|\([^)]+\))$", source, re.MULTILINE))
    names = {}
    for module, listed in seen.items():
        for name, again in re.findall(r"(\w+) as (\w+)", listed):
            assert name == again
            names[name] = module
    assert names == bertqa._PUBLIC


def test_mypy_passes_a_users_script():
    pytest.importorskip("mypy")
    script = ROOT / "tests" / "typed_script.py"
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports", "silent", str(script)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert len(script.read_text().splitlines()) >= 30


@pytest.mark.parametrize("name", ["answer", "answer_many", "submit"])
def test_an_option_that_there_is_not_is_refused_in_the_methods_name(reader, name):
    for option in ("treshold", "mode"):  # `mode` is an option of `how`, which the method calls
        said = rf"^Reader\.{name}\(\) got an unexpected keyword argument '{option}'$"
        with pytest.raises(TypeError, match=said):
            list(getattr(reader, name)([("where is a?", "a b")], 1, **{option: 1}))


# ---- loading ----


def test_the_reader_that_comes_with_it_needs_no_name(monkeypatch, tiny_model):
    monkeypatch.setattr("bertqa.loading.bundled_reader", lambda: str(tiny_model))
    assert Reader.load().loaded.arguments["name"] == str(tiny_model)
    assert load().folder == load_encoder().folder == tiny_model


def test_an_encoder_is_loaded_as_a_reader_is(tiny_model, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tiny_model, run / "best")
    (run / "config.json").write_text("{}")
    encoder = load_encoder(run, device="cpu", dtype="bfloat16")  # a run stands for its best model
    assert next(encoder.parameters()).dtype == torch.bfloat16
    assert load(run, device="auto", dtype="fp16").span.weight.dtype == torch.float16
    with pytest.raises(UserError, match="dtype is 'int4'"):
        load_encoder(tiny_model, dtype="int4")
    with pytest.raises(UserError, match="device is 'tpu'"):
        load(tiny_model, device="tpu")


@pytest.mark.parametrize("name", ["float32", "fp32"])
def test_torchs_names_are_dtypes_too(tiny_model, name):
    assert Reader.load(tiny_model, "cpu", name).dtype == torch.float32


def test_a_reader_says_what_it_is(reader, tiny_model):
    made = repr(reader)
    assert made == f"Reader({str(tiny_model)!r}, cpu, float32, threshold none)"
    own = Reader(load(tiny_model), reader.tokenizer, {"null_threshold": -1.23456})
    assert repr(own) == "Reader('BertForQuestionAnswering', cpu, threshold -1.235)"


# ---- pairs ----


class Frame:
    """As much of a pandas DataFrame as is used."""

    def __init__(self, **columns):
        self.columns = list(columns)
        self.values = columns.values()

    def itertuples(self, index, name):
        assert index is False and name is None
        return zip(*self.values, strict=True)


def test_two_columns_of_a_frame_are_pairs(reader):
    questions, contexts = ["where is a?", "is b?"], ["a b", "b c"]
    found = list(reader.answer_many(Frame(question=questions, context=contexts)))
    assert found == list(reader.answer_many(zip(questions, contexts, strict=True)))
    with pytest.raises(UserError, match=r"the columns are id, question, context; give the two"):
        reader.answer_many(Frame(id=[1, 2], question=questions, context=contexts))


@pytest.mark.parametrize(
    "arguments",
    [
        (["where is a?", "is b?"], ["a b", "b c"]),  # the second is taken for top_k
        ({"question": "where is a?", "context": "a b"},),
        ("where is a?",),
        (7,),
    ],
)
def test_what_is_no_list_of_pairs_is_refused_when_called(reader, arguments):
    with pytest.raises(UserError, match=r"give pairs: answer_many\(zip\(questions, contexts\)\)"):
        reader.answer_many(*arguments)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"top_k": 0}, "top_k is 0"),
        ({"threshold": "none"}, 'threshold is "none"; use a number'),
        ({"max_answer_length": 0}, "max_answer_length is 0"),
        ({"max_answer_length": 1.5}, "max_answer_length is 1.5; use a number of tokens"),
        ({"on_error": "skip"}, "on_error is 'skip'; use stop or keep"),
    ],
)
def test_options_are_checked_when_called(reader, options, says):
    """And not when the first answer is asked for, perhaps in another place."""
    with pytest.raises(UserError, match=says):
        reader.answer_many([("where is a?", "a b")], **options)


def test_a_list_of_two_lists_is_refused_at_its_first_pair(reader):
    lists = [["where is a?", "is b?", "is c?"], ["a", "b", "c"]]
    with pytest.raises(UserError, match=r"pair 1 is .*give pairs: answer_many\(zip"):
        list(reader.answer_many(lists))


# ---- measured and kept ----


def test_evaluate_says_what_score_says(reader, tiny_model, letters, tmp_path, capsys):
    out = tmp_path / "answers"
    predict(["--model", str(tiny_model), "--data", str(letters), "--out", str(out)])
    score([str(letters), str(out / "predictions.json"), "--out-file", str(tmp_path / "scores")])
    expected = read_json(tmp_path / "scores")
    assert reader.evaluate(letters) == expected
    rows = [json.loads(line) for line in letters.read_text().splitlines()]
    assert reader.evaluate(rows) == expected
    answerable = [row for row in rows if row["answers"]["text"]]
    assert set(reader.evaluate(answerable)) <= {"exact_match", "f1", *expected}
    with pytest.raises(UserError, match="record 0 has a label and no question"):
        reader.evaluate([{"text": "good", "label": "yes"}])
    with pytest.raises(UserError, match="of its parts train, test give one"):
        reader.evaluate({"train": rows, "test": rows})


def test_save_keeps_what_was_loaded(tiny_model, tmp_path):
    made = Reader.load(tiny_model, "cpu", "bf16")
    made.qa["null_threshold"] = -1e9
    (tmp_path / "saved").mkdir()
    made.save(tmp_path / "saved")  # in place of what is there
    again = Reader.load(tmp_path / "saved", "cpu")
    assert again.answer("where is a?", "a b").answer == ""
    for name in ("model.safetensors", "config.json", "README.md"):
        assert (tmp_path / "saved" / name).read_bytes() == (tiny_model / name).read_bytes()
    again.save(tmp_path / "saved")  # onto itself
    assert Reader.load(tmp_path / "saved", "cpu").qa == again.qa
    sums = read_json(tmp_path / "saved" / "checksums.json")
    assert {"model.safetensors", "qa.json"} <= sums.keys()


def test_save_of_a_model_of_ones_own(tiny_model, tmp_path, reader):
    model = load(tiny_model)
    with torch.no_grad():
        model.span.bias += 1.0
    made = Reader(model, reader.tokenizer, {**reader.qa, "null_threshold": 3.0})
    made.save(tmp_path / "own")
    again = Reader.load(tmp_path / "own", "cpu")
    assert again.qa["null_threshold"] == 3.0
    asked = ("where is a?", "a b c d")
    assert again.answer(*asked) == made.answer(*asked)
    del model.folder
    with pytest.raises(UserError, match="say where its tokenizer is"):
        made.save(tmp_path / "nowhere")
