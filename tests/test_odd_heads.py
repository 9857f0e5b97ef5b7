"""Heads that are no softmax, and models that know one segment only."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_checkpoints import bytes_of, edit_json, edit_tensors, refused

from bertqa.hf.convert import convert
from bertqa.hf.export import export
from bertqa.model import folder
from bertqa.model.folder import CLASSES

# Heads ----------------------------------------------------------------------------------------------------------------


def set_classes(source: Path, count: int, **config) -> Path:
    def change(tensors):
        tensors["classifier.weight"] = torch.ones(count, 32)
        tensors["classifier.bias"] = torch.zeros(count)

    edit_tensors(source, change)
    named = {str(i): f"LABEL_{i}" for i in range(count)}
    edit_json(source / "config.json", id2label=named, label2id=..., **config)
    return source


@pytest.mark.parametrize(
    "count, config, said",
    [
        (1, {}, "its head has one output (a regression, or a cross-encoder's score)"),
        (1, {"id2label": ...}, "its head has one output"),
        (1, {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}, "its head has one output"),
        (1, {"problem_type": "regression"}, "its head is for regression"),
        (3, {"problem_type": "regression"}, "its head is for regression"),
        (3, {"problem_type": "multi_label_classification"}, "for multi label classification"),
    ],
)
def test_heads_that_are_no_softmax(copy, tmp_path, count, config, said):
    source = set_classes(copy("bert-classes"), count)
    edit_json(source / "config.json", **config)
    assert said in refused(source, tmp_path / "mine")
    convert(source, tmp_path / "fresh", fresh_head="qa")
    assert folder.load(tmp_path / "fresh").encoder is not None


@pytest.mark.parametrize(
    "named", [{"1": "a", "2": "b", "3": "c"}, {"0": "a", "2": "b"}, {"0": "a", "1": "a", "2": "b"}]
)
def test_classes_that_are_numbered_or_named_otherwise(copy, tmp_path, named):
    source = set_classes(copy("bert-classes"), len(named))
    edit_json(source / "config.json", id2label=named)
    said = refused(source, tmp_path / "mine")
    assert "id2label is {" in said and "must number the classes from 0 on, each with a name" in said


def test_single_label_is_a_softmax(copy, tmp_path):
    source = set_classes(copy("bert-classes"), 3, problem_type="single_label_classification")
    assert convert(source, tmp_path / "mine").head == CLASSES


@pytest.mark.parametrize("name", ["ForTokenClassification", "ForMultipleChoice"])
def test_other_heads_over_a_classifier(copy, tmp_path, name):
    source = copy("bert-classes")
    edit_json(source / "config.json", architectures=[f"Bert{name}"])
    assert f"its head is Bert{name}, which bertqa does not have" in refused(
        source, tmp_path / "mine"
    )


def test_a_head_of_several_layers(copy, tmp_path):
    source = copy("bert-classes")

    def change(tensors):
        tensors["classifier.0.weight"] = tensors.pop("classifier.weight")
        tensors["classifier.0.bias"] = tensors.pop("classifier.bias")

    edit_tensors(source, change)
    said = refused(source, tmp_path / "mine")
    assert "classifier.0.weight" in said and "--fresh-head takes the encoder without it" in said
    convert(source, tmp_path / "fresh", fresh_head="qa")


# Segments -------------------------------------------------------------------------------------------------------------


def answers_without_token_types(source: Path, mine: Path) -> float:
    """The largest difference from transformers' logits where it is given no token types."""
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForQuestionAnswering.from_pretrained(source).eval()
    ids = torch.tensor([[2, 7, 8, 3, 9, 10, 11, 3]])
    segments = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1]])
    with torch.no_grad():
        there = theirs(ids)
        here = folder.load(mine)(ids, token_type_ids=segments)
    return max(
        (there.start_logits - here.start).abs().max().item(),
        (there.end_logits - here.end).abs().max().item(),
    )


SEGMENTS = "bert.embeddings.token_type_embeddings.weight"


def test_one_segment(copy, tmp_path):
    source = copy()
    edit_tensors(source, lambda t: t.update({SEGMENTS: t[SEGMENTS][:1].clone()}))
    edit_json(source / "config.json", type_vocab_size=1)
    report = convert(source, tmp_path / "mine")
    assert "it knows one segment only: its row stands for both" in report.remarks
    assert answers_without_token_types(source, tmp_path / "mine") < 1e-5
    export(tmp_path / "mine", tmp_path / "back")
    convert(tmp_path / "back", tmp_path / "again")
    assert bytes_of(tmp_path / "mine") == bytes_of(tmp_path / "again")


def zero_types(source: Path) -> None:
    """tokenizer.json gives the second text the type of the first."""
    fast = json.loads((source / "tokenizer.json").read_text())
    for part in fast["post_processor"]["pair"]:
        next(iter(part.values()))["type_id"] = 0
    edit_json(source / "tokenizer.json", **fast)


@pytest.mark.parametrize("how", ["model_input_names", "post_processor"])
def test_a_tokenizer_that_feeds_no_token_types(copy, originals, tmp_path, how):
    source = copy()
    if how == "model_input_names":
        names = ["input_ids", "attention_mask"]
        edit_json(source / "tokenizer_config.json", model_input_names=names)
    else:
        zero_types(source)
    report = convert(source, tmp_path / "mine")
    assert "gives no token types: the row of the first segment stands for both" in str(report)
    assert answers_without_token_types(source, tmp_path / "mine") < 1e-5
    # a head that is still to be trained is trained with both
    convert(source, tmp_path / "fresh", fresh_head="qa")
    segment = load_file(tmp_path / "fresh" / "model.safetensors")[
        "encoder.embeddings.segment.weight"
    ]
    assert not torch.equal(segment[0], segment[1])


def test_distilbert_never_had_token_types(copy, originals, tmp_path):
    source = copy("distilbert-qa")
    names = ["input_ids", "attention_mask"]
    edit_json(source / "tokenizer_config.json", model_input_names=names)
    convert(source, tmp_path / "mine")
    assert bytes_of(tmp_path / "mine") == bytes_of(originals / "distilbert-qa-ours")
