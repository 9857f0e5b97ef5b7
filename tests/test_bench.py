"""tools/bench.py: the table, the turns, and one small run. No times are checked: they belong to the machine."""

import json
import sys

import numpy as np
import pytest
from conftest import ROOT
from reference_features import run_qa_features

from bertqa import train

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
        bench.Row("training", "others", [20.0, 20.0, 20.0], questions=16, ratio=10.0),
    ]
    lines = bench.table(rows).splitlines()
    assert lines[2] == "| training | bertqa | 2 | 8.0 | 1,500 | 50% | 1 | 512 |"
    assert lines[3] == "| training | others | 20 | 0.8 |  |  | 10 |  |"
    assert len({line.count("|") for line in lines}) == 1


def test_contestants_take_turns_and_every_other_round_goes_backwards():
    calls = []
    everyone = {
        "a": [lambda: calls.append("a1"), lambda: calls.append("a2")],
        "b": [lambda: calls.append("b")],
    }
    seconds = bench.take_turns(everyone, 2)
    assert calls == ["a1", "b", "a1", "a2", "b", "b", "a1", "a2"]  # warm-up, round, round
    assert [len(times) for times in seconds.values()] == [2, 2]


def test_operations_of_one_token_are_those_of_the_weights_and_of_attention():
    minilm = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6}
    weights = 6 * (4 * 384 * 384 + 2 * 384 * 1536)
    assert bench.operations(minilm, np.array([10, 20])) == 2 * (
        30 * weights + 6 * 2 * (10 * 10 + 20 * 20) * 384
    )


def test_run_qa_features_label_the_answer_tokens():
    pytest.importorskip("transformers")
    one = contestants.Bench(
        str(ROOT / "bertqa/data/sample/dev.json"), str(ROOT / "weights/minilm-squad2"), ""
    )
    record = {
        "question": "Who came?",
        "context": "At noon Ada Lovelace came.",
        "answers": ("Ada Lovelace",),
        "starts": (8,),
    }
    tokenizer = one.their_tokenizer()
    [feature] = run_qa_features(tokenizer, [record])
    answer = feature["input_ids"][feature["start_positions"] : feature["end_positions"] + 1]
    assert tokenizer.decode(answer) == "ada lovelace" and len(feature["input_ids"]) == 384


def test_quick_run_prints_a_table_and_writes_json(tmp_path, capsys):
    out = tmp_path / "bench.json"
    assert bench.main(["--quick", "--only", "decoding,scoring", "--json", str(out)]) == 0
    printed, content = capsys.readouterr().out, json.loads(out.read_text())
    assert [row["who"] for row in content["rows"]] == [
        "bertqa, exact",
        "bertqa, hf",
        "run_qa's Python loop",
        "bertqa.score",
        "evaluate-v2.0, written anew",
    ]
    assert (
        "| decoding | bertqa, exact |" in printed
        and content["machine"]["data"] == "dev.json, 137 questions"
    )


def test_quick_run_of_the_model_in_two_precisions(capsys):
    pytest.importorskip("transformers")
    assert bench.main(["--quick", "--only", "embedding", "--precision", "fp32,bf16"]) == 0
    rows = [
        line.split(" | ")[:2]
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("| ")
    ]
    tasks = [task.removeprefix("| ") for task, who in rows if who == "bertqa"]
    assert tasks == ["embedding", "embedding (bf16)"]
    assert sum(who == "transformers, batches of 32" for _, who in rows) == 2


def test_both_embed_alike(tmp_path):
    pytest.importorskip("transformers")
    one = contestants.Bench(
        str(ROOT / "bertqa/data/sample/dev.json"),
        str(ROOT / "weights/minilm-squad2"),
        str(tmp_path),
        quick=True,
        others=("transformers",),
    )
    ours, theirs = (make()[0]() for make in contestants.embedding(one).values())
    assert np.abs(ours.vectors - theirs).max() < 1e-5


def test_unknown_words_are_refused():
    with pytest.raises(
        bench.UserError,
        match="--precision fp8: there is no such format; use some of fp32,bf16,fp16",
    ):
        bench.main(["--precision", "fp8"])
    with pytest.raises(
        bench.UserError, match="--only speed: there is no such task; use some of features,training"
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
