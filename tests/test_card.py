"""Model cards: what the Hub reads in them, where weights come from, and nothing of the machine they were made on."""

from pathlib import Path

import pytest

from bertqa.model.card import eval_results, exported_card, fine_tuned, model_card

METRICS = {"exact": 65.0, "f1": 67.469, "total": 60, "loss": 1.39}
SETTINGS = {
    "train": "/home/ada/data/train.json",
    "dev": "/home/ada/data/dev-v2.0.json.gz",
    "weights": "/home/ada/weights/base",
    "out": "/home/ada/runs/first",
    "lr": 5e-5,
    "limit_dev": None,
}
HUB = {"source": "org/base", "license": "mit"}


def card_of(provenance=HUB, qa=None, **settings) -> str:
    return model_card(
        Path("/home/ada/runs/first/best"), provenance, {**SETTINGS, **settings}, METRICS, qa or {}
    )


def test_nothing_of_the_machine():
    card = card_of()
    assert "/home" not in card and "- dev: dev-v2.0.json.gz" in card and "- weights: base" in card
    assert "out:" not in card and "- lr: 5e-05" in card


def test_the_hub_reads_the_scores(tmp_path):
    hub = pytest.importorskip("huggingface_hub")
    pytest.importorskip("yaml")
    data = hub.ModelCard(card_of()).data
    assert (data.license, data.base_model, data.pipeline_tag) == (
        "mit",
        "org/base",
        "question-answering",
    )
    found = {result.metric_type: result for result in data.eval_results}
    assert found["exact_match"].metric_value == 65.0 and found["f1"].metric_value == 67.47
    assert found["f1"].dataset_type == "rajpurkar/squad_v2"
    part = hub.ModelCard(card_of(limit_dev=50)).data.eval_results[0]
    assert part.dataset_type == "dev-v2.0.json.gz" and part.dataset_name.endswith("its first 50")
    own = hub.ModelCard(card_of(dev='my "own": dev.json')).data.eval_results[0]
    assert own.dataset_type == 'my "own": dev.json'
    # and what export makes of it for transformers
    (tmp_path / "README.md").write_text(card_of())
    exported = hub.ModelCard(exported_card(tmp_path, "bert", "question-answering", HUB)).data
    assert exported.library_name == "transformers" and len(exported.eval_results) == 2


def test_lineage_has_every_step(tmp_path):
    first = fine_tuned({**HUB, "lineage": "a -> org/base"}, tmp_path / "base", "one.json")
    assert first["lineage"] == "a -> org/base" and first["fine_tuned_on"] == "one.json"
    second = fine_tuned(first, tmp_path / "reader", "two.json")
    assert second["lineage"] == "a -> org/base -> reader (fine-tuned on one.json)"
    third = fine_tuned(second, tmp_path / "again", "three.json")
    assert third["lineage"].endswith("-> again (fine-tuned on two.json)")
    assert "- fine tuned on: three.json" in card_of(third)
    assert "- lineage: a -> org/base -> reader (fine-tuned on one.json)" in card_of(third)


def test_the_threshold_is_explained():
    assert "null odds exceed 1.2500, tuned on the same dev set" in card_of(
        qa={"null_threshold": 1.25}
    )
    assert "Every question gets an answer" in card_of()


def test_what_taught_the_weights_of_the_start_is_a_step_of_their_past(tmp_path):
    taught = {**HUB, "fine_tuned_on": "one.json", "taught_by": "two teachers"}
    later = fine_tuned(taught, tmp_path / "student" / "best", "two.json")
    assert "taught_by" not in later
    step = "org/base -> student/best (fine-tuned on one.json; taught by two teachers)"
    assert later["lineage"] == step


def test_data_of_the_hub_are_named_where_they_are_those():
    assert "datasets: [rajpurkar/squad_v2]" in card_of(train="squad2")
    assert "datasets: [rajpurkar/squad]" in card_of(train="/data/train-v1.1.json.gz")
    assert "datasets:" not in card_of() + card_of(train="squad2-dev") + card_of(
        train="dev-v2.0.json"
    )
    held_out = card_of(train="squad2", dev=None)
    assert 'dataset: {name: "squad2, held out", type: "squad2", split: validation}' in held_out
    teacher = card_of(teacher=["/home/ada/runs/big/best", "org/other"])
    assert "- teacher: big/best, org/other" in teacher


def test_eval_results_for_the_hub():
    hub = pytest.importorskip("huggingface_hub")
    yaml = pytest.importorskip("yaml")
    if not hasattr(hub, "parse_eval_result_entries"):
        pytest.skip("this huggingface_hub is older than .eval_results")
    [(name, text)] = eval_results(card_of()).items()
    assert name == "squad_v2.yaml"
    found = {}
    for entry in hub.parse_eval_result_entries(yaml.safe_load(text)):
        assert entry.dataset_id == "rajpurkar/squad_v2"
        found[entry.task_id] = entry.value
    assert found == {"exact_match": 65.0, "f1": 67.47}
    for own in (card_of(dev="mine.json"), card_of(limit_dev=50), card_of(train="squad2", dev=None)):
        assert eval_results(own) == {}
    assert eval_results("# a card of other people\n\n    dataset: yes\n") == {}
