"""tools/bench.py: the table, the turns, and one small run. No times are checked: they belong to the machine."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ROOT

from bertqa import train
from bertqa.console import silent
from bertqa.data.examples import read_examples
from bertqa.settings import QuestionAnsweringSettings
from bertqa.training.question_answering import QuestionAnswering

sys.path.insert(0, str(ROOT / "tools"))

import baseline  # noqa: E402
import bench  # noqa: E402
import contestants  # noqa: E402


def test_table_of_two_rows(work):
    base = replace(work, label="BERT-base", format="bf16")
    ours = bench.new_row(base, "training", "bertqa", [2.0, 1.0, 4.0], 16)
    theirs = bench.new_row(work, "inference", "others", [20.0, 20.0, 20.0], 16)
    theirs |= {"MFU": "50%", "time, ours = 1": "10", "F1": "71.50"}
    lines = bench.table([ours, theirs]).splitlines()
    assert lines[2] == (
        "| training, 16 windows a step | BERT-base | bf16 | bertqa | 2 | 8.0 |  |  |  |"
    )
    assert lines[3] == "| inference | reader | fp32 | others | 20 | 0.8 | 50% | 10 | 71.50 |"
    assert len({line.count("|") for line in lines}) == 1


def test_contestants_take_turns_and_every_other_round_goes_backwards():
    calls = []
    everyone = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    seconds = bench.take_turns(everyone, 2)
    assert calls == ["a", "b", "b", "a"]
    assert [len(times) for times in seconds.values()] == [2, 2]


def test_operations_of_one_token_are_those_of_the_weights_and_of_attention():
    weights = 6 * (4 * 384 * 384 + 2 * 384 * 1536)
    assert bench.operations(bench.READER, np.array([10, 20])) == 2 * (
        30 * weights + 6 * 2 * (10 * 10 + 20 * 20) * 384
    )


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """The sample's questions for the bundled reader, eight of them to answer."""
    examples = read_examples(ROOT / "bertqa/data/sample/dev.json").examples
    settings = QuestionAnsweringSettings()
    device = torch.device("cpu")
    task = QuestionAnswering(
        examples, examples[:8], bench.READER, settings, seed=0, device=device, say=silent
    )
    return contestants.Work(task, bench.READER, tmp_path_factory.mktemp("bench"))


def test_batches_of_small_data_are_drawn_again_and_dealt_at_random(work):
    one = replace(work, steps=3, batch_size=16)
    assert [len(rows) for rows in one.batches(grouped=True)] == [16, 16, 16]
    means = [one.task.store.lengths[rows].mean() for rows in one.batches(grouped=True)]
    assert means == sorted(means, reverse=True)
    dealt = np.concatenate(one.batches())
    grouped = np.concatenate(one.batches(grouped=True))
    assert sorted(dealt) == sorted(grouped) and list(dealt) != list(grouped)


def test_all_of_inference_answer_the_same(work):
    """F1 of packed logits and of padded ones, through the same threshold."""
    pytest.importorskip("transformers")
    ours = contestants.our_inference(work)()
    theirs = contestants.their_inference(work)()
    padded = contestants.their_inference(work, 384)()
    assert ours[0][1].ndim == 1 and theirs[0][1].ndim == 2 and padded[0][1].shape == (8, 384)
    assert bench.f1_of(work, ours) == bench.f1_of(work, theirs) == bench.f1_of(work, padded) > 50
    backwards = [(rows, -start, -end) for rows, start, end in ours]
    assert bench.f1_of(work, backwards) < 50


def test_rounds_of_training(work):
    pytest.importorskip("transformers")
    small = replace(work, batch_size=2)
    for contestant in (contestants.our_training, contestants.their_training):
        assert contestant(small)() is None
    with pytest.raises(bench.UserError, match="on GPUs only"):
        contestants.our_training(small, capture="off")


SMALL = ["--only", "inference", "--rounds", "1", "--questions"]


def test_small_run_prints_a_table(capsys):
    assert bench.main([*SMALL, "8", "--precision", "int8"]) == 0
    printed = capsys.readouterr()
    ours = next(line for line in printed.out.splitlines() if "| bertqa |" in line)
    assert ours.startswith("| inference | reader | int8 |")
    assert float(ours.split("|")[-2]) > 50
    assert "dev.json, 137 questions" in printed.out
    assert "without transformers, length-sorted: it has no int8 of its own" in printed.err


def test_small_run_of_the_model_in_two_precisions(capsys):
    pytest.importorskip("transformers")
    assert bench.main([*SMALL, "2", "--precision", "fp32,bf16"]) == 0
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if " | " in line]
    assert [row[2] for row in rows if row[3] == "bertqa"] == ["fp32", "bf16"]
    assert sum(row[3] == "transformers, length-sorted" for row in rows) == 2


def test_a_shape_has_random_weights_and_a_name(work):
    assert bench.with_model(work, "reader") is work
    shape = bench.with_model(work, "MiniLM-L6")
    assert shape.label == "MiniLM-L6"
    assert bench.folder.read_config(shape.weights)["architecture"]["hidden_size"] == 384


def test_each_number_of_windows_is_trained_and_a_run_is_of_base_shape(monkeypatch, capsys):
    asked = []

    def note(work, task, rounds):
        asked.append((task, work.label, work.format, work.batch_size))
        return [bench.new_row(work, task, "bertqa", [1.0], 1)]

    def note_run(work, data):
        return note(work, "run", 1)[0]

    monkeypatch.setattr(bench, "measure", note)
    monkeypatch.setattr(bench, "whole_run", note_run)
    flags = ["--models", "MiniLM-L6,BERT-base", "--only", "training,inference,run"]
    assert bench.main([*flags, "--windows", "16,64", "--precision", "fp32,int8"]) == 0
    of_base = [row[0::3] for row in asked if row[1:3] == ("BERT-base", "fp32")]
    assert of_base == [("training", 16), ("training", 64), ("inference", 64), ("run", 64)]
    assert {row[0] for row in asked if row[2] == "int8"} == {"inference"}
    assert [row[1] for row in asked if row[0] == "run"] == ["BERT-base"]
    with pytest.raises(bench.UserError, match="int8 is a format of inference"):
        bench.main(["--only", "training", "--precision", "int8"])


def test_on_a_gpu_one_comes_after_the_other(work, monkeypatch):
    """The graphics memory does not hold all of them: each is gone before the next is loaded."""
    calls = []
    monkeypatch.setattr(bench, "seconds_at_peak", lambda work, task: 1.0)

    def contestant(who):
        def make(work):
            calls.append(f"load {who}")
            return lambda: calls.append(f"play {who}")

        return make

    everyone = {"ours": contestant("ours"), "theirs": contestant("theirs")}
    monkeypatch.setitem(bench.CONTESTANTS, "training", everyone)
    gpu = replace(work)
    gpu.device = torch.device("cuda")
    rows = bench.measure(gpu, "training", 2)
    one = ["load ours", *["play ours"] * 3]
    assert calls == one + [call.replace("ours", "theirs") for call in one]
    assert [row["who"] for row in rows] == ["ours", "theirs"]
    assert rows[0]["time, ours = 1"] == "1"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_measured_on_one():
    with pytest.raises(bench.UserError, match="cuda"):
        bench.main(["--device", "cuda"])


def test_on_a_gpu_more_is_measured():
    args = bench.parse_args(["--device", "cuda", "--windows", "32"])
    assert args.models == list(bench.SHAPES) and args.precision == ["bf16"]
    assert args.windows == [32] and args.questions == 4096


def test_unknown_words_are_refused():
    for flags, message in (
        (["--precision", "fp8"], "--precision fp8: not known; use some of fp32,bf16,int8"),
        (["--only", "speed"], "--only speed: not known; use some of training,inference"),
        (["--windows", "16,0"], "--windows 16,0: use whole numbers, as in 16,64"),
    ):
        with pytest.raises(bench.UserError, match=message):
            bench.main(flags)


# ---- tools/baseline.py ----


def test_grouped_order_is_a_permutation_longest_first():
    lengths = np.random.default_rng(0).integers(10, 384, 250)
    order = baseline.grouped_order(lengths, 2, np.random.default_rng(1))
    assert sorted(order.tolist()) == list(range(250)) and lengths[order[0]] == lengths.max()
    for begin in (0, 100, 200):
        assert (np.diff(lengths[order[begin + 1 : min(begin + 100, 250)]]) <= 0).all()


def test_baseline_does_the_steps_of_ours_and_learns(tmp_path, tiny_model, letters, capsys):
    pytest.importorskip("transformers")
    flags = [
        "--train",
        str(letters),
        "--dev",
        str(letters),
        "--weights",
        str(tiny_model),
        "--max-length",
        "32",
        "--overlap",
        "4",
        "--max-question",
        "8",
        "--batch-size",
        "8",
        "--lr",
        "3e-3",
        "--epochs",
        "10",
        "--dropout",
        "0",
    ]
    assert baseline.main([*flags, "--out", str(tmp_path / "theirs")]) == 0
    assert train.main([*flags, "--out", str(tmp_path / "ours")]) == 0
    ours, theirs = (
        json.loads((tmp_path / who / "summary.json").read_text()) for who in ("ours", "theirs")
    )
    assert theirs["steps"] == ours["steps"] == len(theirs["losses"])
    assert (
        np.mean(theirs["losses"][-7:]) < np.mean(theirs["losses"][:7]) - 0.5
        and 0 < theirs["f1"] <= 100
    )
    with pytest.raises(bench.UserError, match="--ema: transformers' recipe has no such thing"):
        baseline.main([*flags, "--ema", "0.9"])
