"""tools/bench.py: the table, the turns, and one small run. No times are checked: they belong to the machine."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
from conftest import ROOT

from bertqa import train
from bertqa.data.examples import read_examples

sys.path.insert(0, str(ROOT / "tools"))

import baseline  # noqa: E402
import bench  # noqa: E402
import contestants  # noqa: E402


def test_table_of_two_rows():
    rows = [
        bench.Row(
            "training",
            "bertqa",
            [2.0, 1.0, 4.0],
            questions=16,
            tokens=3000,
            flops=1e11,
            peak=1e11,
            memory=2**29,
        ),
        bench.Row("training", "others", [20.0, 20.0, 20.0], questions=16, ratio=10.0, f1=71.5),
    ]
    lines = bench.table(rows).splitlines()
    assert lines[2] == "| training | bertqa | 2 | 8.0 | 1,500 | 50% | 1 | 512 |  |"
    assert lines[3] == "| training | others | 20 | 0.8 |  |  | 10 |  | 71.50 |"
    assert len({line.count("|") for line in lines}) == 1


def test_contestants_take_turns_and_every_other_round_goes_backwards():
    calls = []
    everyone = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    seconds = bench.take_turns(everyone, 2)
    assert calls == ["a", "b", "b", "a"]
    assert [len(times) for times in seconds.values()] == [2, 2]


def test_operations_of_one_token_are_those_of_the_weights_and_of_attention():
    minilm = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6}
    weights = 6 * (4 * 384 * 384 + 2 * 384 * 1536)
    assert bench.operations(minilm, np.array([10, 20])) == 2 * (
        30 * weights + 6 * 2 * (10 * 10 + 20 * 20) * 384
    )


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Eight questions of the sample for the bundled reader."""
    return contestants.Work(
        ROOT / "weights/minilm-squad2",
        read_examples(ROOT / "bertqa/data/sample/dev.json"),
        tmp_path_factory.mktemp("bench"),
    )


def test_batches_of_small_data_are_drawn_again_and_dealt_at_random(work):
    one = replace(work, steps=3, batch_size=16)
    assert [len(rows) for rows in one.grouped_batches] == [16, 16, 16]
    means = [one.store.lengths[rows].mean() for rows in one.grouped_batches]
    assert means == sorted(means, reverse=True)
    dealt = np.concatenate(one.random_batches)
    grouped = np.concatenate(one.grouped_batches)
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
    with pytest.raises(contestants.LeftOut, match="on GPUs only"):
        contestants.our_training(small, capture="off")


def test_quick_run_prints_a_table_and_writes_json(tmp_path, capsys):
    out = tmp_path / "bench.json"
    flags = ["--quick", "--only", "inference", "--precision", "int8"]
    assert bench.main([*flags, "--json", str(out)]) == 0
    printed, content = capsys.readouterr(), json.loads(out.read_text())
    assert content["rows"][0]["who"] == "bertqa" and content["rows"][0]["f1"] > 50
    assert "| inference (int8) | bertqa |" in printed.out
    assert content["machine"]["data"] == "dev.json, 137 questions"
    assert "without transformers, length-sorted: it has no int8 of its own" in printed.err


def test_quick_run_of_the_model_in_two_precisions(capsys):
    pytest.importorskip("transformers")
    assert (
        bench.main(
            ["--quick", "--questions", "2", "--only", "inference", "--precision", "fp32,bf16"]
        )
        == 0
    )
    rows = [
        line.split(" | ")[:2]
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("| ")
    ]
    tasks = [task.removeprefix("| ") for task, who in rows if who == "bertqa"]
    assert tasks == ["inference", "inference (bf16)"]
    assert sum(who == "transformers, length-sorted" for _, who in rows) == 2


def test_a_shape_has_random_weights_and_a_name(work):
    [reader, shape] = bench.models(work, ["reader", "MiniLM-L6"])
    assert reader is work and shape.config["hidden_size"] == 384
    assert bench.name_of(replace(shape, format="bf16"), "training") == (
        "training (MiniLM-L6, bf16, 16 windows a step)"
    )
    assert bench.variants(shape, "run", [16]) == []
    assert [one.batch_size for one in bench.variants(shape, "training", [16, 64])] == [16, 64]


def test_on_a_gpu_one_comes_after_the_other_with_a_peak_of_its_own(work, monkeypatch):
    """The graphics memory does not hold all of them: each is gone before the next is loaded."""
    calls = []
    for name in ("reset_peak_memory_stats", "empty_cache"):
        monkeypatch.setattr(bench.torch.cuda, name, lambda name=name: calls.append(name))
    monkeypatch.setattr(bench.torch.cuda, "max_memory_allocated", lambda: len(calls))
    monkeypatch.setattr(bench, "amounts", lambda work, task: {"questions": 4})

    def contestant(who):
        def make(work):
            calls.append(f"load {who}")
            return lambda: calls.append(f"play {who}")

        return make

    everyone = {"ours": contestant("ours"), "theirs": contestant("theirs")}
    monkeypatch.setitem(bench.TASKS, "training", everyone)
    gpu = replace(work, device=bench.torch.device("cuda"))
    rows = bench.run_task(gpu, "training", 2)
    one = ["reset_peak_memory_stats", "load ours", *["play ours"] * 3, "empty_cache"]
    assert calls == one + [call.replace("ours", "theirs") for call in one]
    assert [(row.who, row.memory) for row in rows] == [("ours", 5), ("theirs", 11)]
    assert rows[0].ratio == 1


def test_unknown_words_are_refused():
    with pytest.raises(
        bench.UserError,
        match="--precision fp8: there is no such format; use some of fp32,bf16,fp16",
    ):
        bench.main(["--precision", "fp8"])
    with pytest.raises(
        bench.UserError, match="--only speed: there is no such task; use some of training,inference"
    ):
        bench.main(["--only", "speed"])


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
