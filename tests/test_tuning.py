"""bertqa.fine_tune: files and records in, a Reader out."""

import json
import logging
import os
import signal

import numpy as np
import pytest
from conftest import ROOT

import bertqa
from bertqa import UserError
from bertqa.data.writing import examples_of, plain
from bertqa.train import main
from bertqa.training import step as taken

SETTINGS = dict(max_length=32, overlap=4, max_question=8, batch_size=8, lr=1e-3, seed=1, threads=1)


@pytest.fixture
def records(letters):
    return [json.loads(line) for line in letters.read_text().splitlines()]


class Frame:
    """As much of a pandas DataFrame as is used."""

    columns = ["question", "context", "answers"]

    def __init__(self, records):
        self.records = records

    def to_dict(self, orient):
        assert orient == "records"
        return self.records


class Rows:
    """As much of a datasets.Dataset as is used: rows, one after another; it has to_dict too, which gives columns."""

    def __init__(self, records):
        self.records = records

    def to_dict(self):
        raise AssertionError("columns are no rows")

    def __iter__(self):
        return iter(self.records)


class Polars:
    """As much of a polars DataFrame as is used."""

    columns = Frame.columns

    def __init__(self, records):
        self.records = records

    def to_dicts(self):
        return self.records


def test_rows_of_every_kind_are_read_alike(letters, records):
    expected = examples_of(letters).examples
    for data in (records, tuple(records), Frame(records), Rows(records), Polars(records)):
        assert examples_of(data).examples == expected
    assert examples_of(str(letters)).examples == expected


def test_a_classifiers_file_is_refused_by_name(tmp_path, tiny_model):
    reviews = ROOT / "bertqa" / "data" / "sample" / "reviews.csv"
    with pytest.raises(UserError, match="--task classify"):
        bertqa.fine_tune(reviews, weights=tiny_model, out=tmp_path / "run", **SETTINGS)


def test_records_files_and_frames_train_alike(tmp_path, tiny_model, letters, records, caplog):
    """Without --dev articles are held out; what is said goes to the logger."""
    arrays = [
        {**row, "answers": {name: np.array(values) for name, values in row["answers"].items()}}
        for row in records
    ]
    scores = []
    with caplog.at_level(logging.INFO, "bertqa"):
        for name, data in (("file", letters), ("list", records), ("frame", Frame(arrays))):
            reader = bertqa.fine_tune(
                data, weights=tiny_model, out=tmp_path / name, max_steps=3, **SETTINGS
            )
            scores.append(reader.training.outcome.last)
            assert reader.training.run == tmp_path / name and reader.training.outcome.finished
            assert isinstance(reader.answer("where is a?", "a b c").answer, str)
    assert scores[0] == scores[1] == scores[2]
    assert "3 steps of 8 windows" in caplog.text and "are held out" in caplog.text
    assert main(["--resume", str(tmp_path / "list"), "--max-steps", "4"]) == 0


def test_a_dev_set_and_a_preset(tmp_path, tiny_model, records):
    settings = {**SETTINGS, "overlap": None, "step": 9}
    reader = bertqa.fine_tune(
        records[:30],
        records[30:],
        weights=tiny_model,
        out=tmp_path / "run",
        preset="google",
        max_steps=1,
        **settings,
    )
    config = json.loads((tmp_path / "run" / "config.json").read_text())["settings"]
    assert config["bias_correction"] is False and config["step"] == 9 and config["overlap"] is None
    assert reader.training.outcome.last["total"] == 23


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"train": [{"text": "good", "label": "yes"}]},
            "record 0 has a label and no question: that",
        ),
        ({"train": []}, "there is not one record"),
        ({"train": [["a", "b"]]}, "record 0: it is .*, it must be a dictionary"),
        ({"train": {"question": "?"}}, "give a file, or a list of dictionaries"),
        ({"train": 7}, "7: give a file"),
        ({"learning_rate": 1}, "fine_tune: unknown 'learning_rate'"),
        ({"batch_size": "many"}, 'batch_size is "many", it must be a whole number'),
        ({"task": "classify"}, "python -m bertqa.train --task classify"),
        ({"preset": "fastest"}, "preset is 'fastest', it must be one of google, hf, fast"),
        ({"train": [{"question": "?", "context": "c"}]}, 'has neither "answers" nor'),
    ],
)
def test_mistakes_are_explained(tmp_path, tiny_model, letters, change, says):
    given = {"train": letters, "weights": tiny_model, "out": tmp_path / "run", **SETTINGS, **change}
    with pytest.raises(UserError, match=says):
        bertqa.fine_tune(given.pop("train"), **given)


def signal_at_step(monkeypatch, step: int, number: int) -> None:
    """This process gets the signal at a step of the training that comes."""
    update, calls = taken.set_lr, []

    def interrupt(*args):
        calls.append(None)
        if len(calls) == step:
            os.kill(os.getpid(), number)
        return update(*args)

    monkeypatch.setattr(taken, "set_lr", interrupt)


def test_an_interrupt_saves_and_stops_the_cell(tmp_path, tiny_model, letters, monkeypatch):
    signal_at_step(monkeypatch, 2, signal.SIGINT)
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt, match=f"saved in {out}"):
        bertqa.fine_tune(letters, letters, weights=tiny_model, out=out, max_steps=4, **SETTINGS)
    assert main(["--resume", str(out)]) == 0
    with pytest.raises(UserError, match="already holds a run"):
        bertqa.fine_tune(letters, letters, weights=tiny_model, out=out, **SETTINGS)


def test_sigterm_saves_and_reaches_whoever_handles_it(tmp_path, tiny_model, letters, monkeypatch):
    heard = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    signal_at_step(monkeypatch, 2, signal.SIGTERM)
    try:
        reader = bertqa.fine_tune(
            letters, letters, weights=tiny_model, out=tmp_path / "run", max_steps=4, **SETTINGS
        )
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [signal.SIGTERM] and reader.training.outcome.progress.step == 2


def test_from_python_everything_can_be_silenced(tmp_path, tiny_model, letters, monkeypatch, capfd):
    """Warnings, too (train and dev are one file here); what the verb says of the same training, it says."""
    monkeypatch.setenv("TQDM_DISABLE", "1")
    bertqa_logger = logging.getLogger("bertqa")
    level = bertqa_logger.level
    bertqa_logger.setLevel(logging.ERROR)
    try:
        reader = bertqa.fine_tune(
            letters, letters, weights=tiny_model, out=tmp_path / "run", max_steps=1, **SETTINGS
        )
        reader.answer("where is a?", "a b c")
    finally:
        bertqa_logger.setLevel(level)
    assert capfd.readouterr() == ("", "")
    bertqa.fine_tune(
        letters, letters, weights=tiny_model, out=tmp_path / "again", max_steps=1, **SETTINGS
    )
    assert main(["--resume", str(tmp_path / "run"), "--max-steps", "2"]) == 0
    said = capfd.readouterr().err
    assert said.count("warning: train and dev are the same file") == 1
    assert "2 steps of 8 windows" in said and "1 steps of 8 windows" not in said


def test_plain_values():
    value = {"a": np.array([1, 2]), "b": (np.float32(0.5), float("nan")), 3: [np.str_("x"), None]}
    assert plain(value) == {"a": [1, 2], "b": [0.5, None], "3": ["x", None]}
