"""Checkpoints that are not quite what transformers saves: read right, or refused by the name of what they are."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_checkpoints import bytes_of, edit_json, edit_tensors, refused

from bertqa.hf.convert import convert, resolve_weights
from bertqa.model import folder
from bertqa.model.folder import QA

POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 45144140\n"
)


# Prefixes and containers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bert-qa", "distilbert-qa", "bert-bare"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda name: "module." + name,
        lambda name: "_orig_mod." + name,
        lambda name: "_orig_mod.module." + name,
        lambda name: name.replace("embeddings.", "embeddings._orig_mod.", 1),
        lambda name: "_fsdp_wrapped_module." + name,
    ],
    ids=["DDP", "compile", "both", "inside", "FSDP"],
)
def test_prefixes_of_wrappers(copy, originals, tmp_path, name, wrap):
    source = copy(name)
    edit_tensors(source, lambda tensors: {wrap(key): value for key, value in tensors.items()})
    report = convert(source, tmp_path / "mine")
    assert bytes_of(tmp_path / "mine") == bytes_of(originals / f"{name}-ours")
    assert "names without the prefixes that DataParallel, DDP or torch.compile left" in str(report)
    word = [row for row in report.rows if row.ours and row.ours.endswith("embeddings.word.weight")]
    assert [row.what for row in word] == ["renamed"]
    assert word[0].theirs in load_file(source / "model.safetensors"), "the row names what is stored"


@pytest.mark.parametrize("name", ["bert-qa", "distilbert-qa", "bert-bare"])
@pytest.mark.parametrize("prefix", ["model.", "backbone.", "encoder_q.0."])
def test_other_prefixes_are_named(copy, tmp_path, name, prefix):
    source = copy(name)
    edit_tensors(source, lambda tensors: {prefix + key: value for key, value in tensors.items()})
    said = refused(source, tmp_path / "mine")
    assert f"its tensors stand behind '{prefix}', a prefix that bertqa does not know" in said
    assert "config.json" not in said and len(said) < 300


@pytest.mark.parametrize(
    "name, prefix, said",
    [
        ("bert-qa", "bert.", "'bert.'"),
        ("bert-bare", "model.bert.", "'model.'"),
        ("distilbert-qa", "model.distilbert.", "'model.distilbert.'"),
    ],
)
def test_a_prefix_that_ends_in_the_stem(copy, tmp_path, name, prefix, said):
    source = copy(name)
    edit_tensors(source, lambda tensors: {prefix + key: value for key, value in tensors.items()})
    assert f"its tensors stand behind {said}, a prefix" in refused(source, tmp_path / "mine")


def test_one_tensor_behind_a_prefix_is_no_prefix(copy, tmp_path):
    source = copy()

    def change(tensors):
        name = "encoder.layer.1.output.dense.bias"
        tensors["copy." + name] = tensors.pop("bert." + name)

    edit_tensors(source, change)
    said = refused(source, tmp_path / "mine")
    assert "1 missing (encoder.layer.1.output.dense.bias); 1 unexpected (copy." in said


def test_parts_of_an_encoder_behind_a_prefix_are_no_prefix(copy, tmp_path):
    source = copy()

    def change(tensors):
        return {
            name.replace("bert.", "x." if "layer.1" in name else "y."): tensor
            for name, tensor in tensors.items()
        }

    edit_tensors(source, change)
    assert " missing (" in refused(source, tmp_path / "mine")


def test_a_second_encoder_beside_the_first(copy, originals, tmp_path):
    source = copy()

    def change(tensors):
        return {**tensors, **{"teacher." + name: tensors[name].clone() for name in tensors}}

    edit_tensors(source, change)
    said = refused(source, tmp_path / "mine")
    assert "55 unexpected (teacher." in said and "stand behind" not in said
    encoder = resolve_weights(source, tmp_path / "cache", encoder_only=True)
    assert folder.load(encoder).config == folder.load(originals / "bert-qa-ours").encoder.config


def test_two_towers(copy, tmp_path):
    source = copy("bert-bare")

    def change(tensors):
        return {
            tower + key: value.clone()
            for key, value in tensors.items()
            for tower in ("question.", "text.")
        }

    edit_tensors(source, change)
    assert "stand behind 'question.' and 'text.'" in refused(source, tmp_path / "mine")


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict"])
def test_checkpoint_dictionaries(copy, originals, tmp_path, key):
    source = copy()
    tensors = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    torch.save({key: tensors, "epoch": 3, "lr": 1e-4}, source / "pytorch_model.bin")
    convert(source, tmp_path / "mine")
    assert bytes_of(tmp_path / "mine") == bytes_of(originals / "bert-qa-ours")


# Not the file, or not a model -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["model.safetensors", "pytorch_model.bin", "tokenizer.json", "vocab.txt", "config.json"]
)
def test_git_lfs_pointers(copy, tmp_path, name):
    source = copy()
    if name == "pytorch_model.bin":
        (source / "model.safetensors").unlink()
    (source / name).write_bytes(POINTER)
    said = refused(source, tmp_path / "mine")
    assert f"{name}: is a Git LFS pointer" in said and "git lfs pull" in said


def test_git_lfs_pointer_in_a_model_folder(originals, tmp_path):
    broken = Path(shutil.copytree(originals / "bert-qa-ours", tmp_path / "broken"))
    (broken / "model.safetensors").write_bytes(POINTER)
    with pytest.raises(folder.UserError, match="model.safetensors: is a Git LFS pointer"):
        folder.load(broken)


@pytest.mark.parametrize("config", [True, False], ids=["with config", "alone"])
def test_adapter_folders(copy, tmp_path, config):
    source = copy()
    (source / "model.safetensors").rename(source / "adapter_model.safetensors")
    (source / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    if not config:
        (source / "config.json").unlink()
    said = refused(source, tmp_path / "mine")
    assert "is an adapter (LoRA or its like), not a model: merge it into its base model" in said


def test_unmerged_adapter_in_the_weights(copy, tmp_path):
    source = copy()
    lora = "base_model.model.bert.encoder.layer.0.attention.self.query.lora_A.weight"
    edit_tensors(source, lambda tensors: tensors.update({lora: torch.zeros(4, 32)}))
    assert "is an adapter" in refused(source, tmp_path / "mine")


# Layers of its own, and tied names ------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["linear.weight", "colbert.0.linear.bias", "lstm.weight_ih_l0"])
def test_a_foreign_layer_on_a_whole_encoder(copy, originals, tmp_path, place):
    source = copy("bert-bare")
    edit_tensors(source, lambda tensors: tensors.update({place: torch.zeros(8, 32)}))
    edit_json(source / "config.json", architectures=["HF_ColBERT"])
    said = refused(source, tmp_path / "mine")
    assert f"it holds a layer that bertqa does not have ({place}): --fresh-head takes" in said
    report = convert(source, tmp_path / "fresh", fresh_head="qa")
    assert [row.theirs for row in report.rows if "a layer of its own" in row.why] == [place]
    # as `train --weights SOURCE --fresh-head` takes it
    encoder = resolve_weights(source, tmp_path / "cache", encoder_only=True)
    assert bytes_of(encoder) == bytes_of(originals / "bert-bare-ours")


def test_a_foreign_layer_inside_the_encoder_is_refused(copy, tmp_path):
    """It changes what the encoder computes: a fresh head does not help."""
    source = copy()
    inside = "bert.encoder.layer.1.output.adapter.weight"
    edit_tensors(source, lambda tensors: tensors.update({inside: torch.zeros(8, 32)}))
    for fresh in (None, "qa", "none"):
        said = refused(source, tmp_path / "mine", fresh_head=fresh)
        assert f"1 unexpected ({inside})" in said and "--fresh-head" not in said


@pytest.mark.parametrize(
    "name, stored",
    [
        ("bert-qa", "cls.predictions.decoder.weight"),
        ("distilbert-qa", "vocab_projector.weight"),
    ],
)
def test_a_tensor_under_its_tied_name_only(copy, originals, tmp_path, name, stored):
    source = copy(name)

    def change(tensors):
        word = next(key for key in tensors if key.endswith("word_embeddings.weight"))
        tensors[stored] = tensors.pop(word)

    edit_tensors(source, change)
    convert(source, tmp_path / "mine")
    assert bytes_of(tmp_path / "mine") == bytes_of(originals / f"{name}-ours")


def test_the_own_name_goes_before_the_tied_one(copy, originals, tmp_path):
    source = copy()
    tied = {"cls.predictions.decoder.weight": torch.zeros(99, 32)}
    edit_tensors(source, lambda tensors: tensors.update(tied))
    convert(source, tmp_path / "mine")
    assert bytes_of(tmp_path / "mine") == bytes_of(originals / "bert-qa-ours")


# Index files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "placed", [7, [], {}, None, {"a": 7}, {"a": None}, {"a": ["x"]}, {"a": ""}, {"a": "x" * 300}]
)
def test_absurd_indexes(copy, tmp_path, placed):
    source = copy()
    index = source / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": placed}))
    said = refused(index, tmp_path / "mine")
    assert "not an index of weight shards" in said or "is no name of a weight file" in said
    (source / "model.safetensors").unlink()
    refused(source, tmp_path / "mine")


def test_a_whole_folder_is_still_read_first(copy, originals, tmp_path):
    """The fixture is sound: nothing but what a test changes is wrong with a copy."""
    convert(copy(), tmp_path / "mine")
    assert bytes_of(tmp_path / "mine") == bytes_of(originals / "bert-qa-ours")
    assert folder.read_config(tmp_path / "mine")["head"] == QA
