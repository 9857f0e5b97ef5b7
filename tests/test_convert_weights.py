"""tools/convert_weights.py as a person runs it: what it prints, what it refuses, and what it leaves behind."""

import functools
import importlib.util
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_checkpoints import (
    SIZES,
    VOCAB,
    edit_json,
    edit_tensors,
    random_model,
    refused,
    write_checkpoint,
    write_vocab,
)

from bertqa.errors import UserError
from bertqa.hf import weights as weight_files
from bertqa.hf.architecture import architecture_of
from bertqa.hf.convert import convert
from bertqa.hf.export import export
from bertqa.hf.names import plain_name, their_names
from bertqa.model import folder
from bertqa.model.card import model_card
from bertqa.model.config import BertConfig
from bertqa.model.folder import QA

TOOL = Path(__file__).resolve().parents[1] / "tools" / "convert_weights.py"
CAPITALS = [token.title() if token.startswith("word") else token for token in VOCAB]


@functools.cache
def tool():
    spec = importlib.util.spec_from_file_location("convert_weights", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# The table of names ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ours, model_type, theirs",
    [
        ("encoder.embeddings.word.weight", "bert", ["embeddings.word_embeddings.weight"]),
        ("embeddings.norm.bias", "distilbert", ["embeddings.LayerNorm.bias"]),
        (
            "encoder.layers.11.qkv.bias",
            "bert",
            [
                "encoder.layer.11.attention.self.query.bias",
                "encoder.layer.11.attention.self.key.bias",
                "encoder.layer.11.attention.self.value.bias",
            ],
        ),
        (
            "layers.0.qkv.weight",
            "distilbert",
            [
                "transformer.layer.0.attention.q_lin.weight",
                "transformer.layer.0.attention.k_lin.weight",
                "transformer.layer.0.attention.v_lin.weight",
            ],
        ),
        (
            "layers.2.attention_norm.weight",
            "distilbert",
            ["transformer.layer.2.sa_layer_norm.weight"],
        ),
        (
            "layers.2.attention_norm.weight",
            "bert",
            ["encoder.layer.2.attention.output.LayerNorm.weight"],
        ),
        ("layers.2.ffn_norm.weight", "bert", ["encoder.layer.2.output.LayerNorm.weight"]),
        ("span.weight", "bert", ["qa_outputs.weight"]),
        ("pre_classifier.bias", "distilbert", ["pre_classifier.bias"]),
    ],
)
def test_names(ours, model_type, theirs):
    assert their_names(ours, model_type) == theirs


@pytest.mark.parametrize(
    "stored, plain",
    [
        ("bert.encoder.layer.0.output.LayerNorm.gamma", "encoder.layer.0.output.LayerNorm.weight"),
        ("embeddings.LayerNorm.beta", "embeddings.LayerNorm.bias"),
        (
            "distilbert.transformer.layer.0.sa_layer_norm.gamma",
            "transformer.layer.0.sa_layer_norm.weight",
        ),
        (
            "bert.encoder.layer.0.intermediate.dense_act.bias",
            "encoder.layer.0.intermediate.dense.bias",
        ),
        ("cls.predictions.transform.LayerNorm.gamma", "cls.predictions.transform.LayerNorm.weight"),
    ],
)
def test_old_spellings(stored, plain):
    assert plain_name(stored) == plain


# What works -----------------------------------------------------------------------------------------------------------


def test_command(originals, tmp_path):
    """As the README gives it, in a process of its own: table, counts, sums; and status 0."""
    run = subprocess.run(
        [sys.executable, TOOL, originals / "bert-bare", tmp_path / "mine", "--fresh-head"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert [
        "renamed",
        "encoder.layer.{0..2}.attention.self.key.weight",
        "encoder.layers.{0..2}.qkv.weight[32:64]",
        "32x32",
    ] in [line.split() for line in lines]
    assert ["fresh", "-", "span.weight", "2x32"] in [line.split() for line in lines]
    assert [line for line in lines if line.startswith("ignored")][1].split() == [
        "ignored",
        "pooler.dense.weight",
        "(question",
        "answering",
        "has",
        "no",
        "use",
        "for",
        "it)",
        "32x32",
    ]
    assert "tensors: 53 renamed, 2 ignored, 2 fresh, 0 missing, 0 unexpected" in lines
    assert "model: bert, question-answering, 40,113 parameters, float32" in lines
    assert lines[-2].split()[-1] == weight_files.open_weights(originals / "bert-bare").sha256()
    assert lines[-1].split()[-1] == weight_files.open_weights(tmp_path / "mine").sha256()
    assert sorted(p.name for p in (tmp_path / "mine").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.txt",
    ]
    config = folder.read_config(tmp_path / "mine")
    assert config["provenance"] == {
        "source": "bert-bare",
        "revision": None,
        "license": "cc0-1.0",
        "sha256": lines[-2].split()[-1],
        "fresh_head": 0,
    }


def test_error_is_one_line(tmp_path):
    run = subprocess.run(
        [sys.executable, TOOL, "no/such", tmp_path / "mine"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub"), "PATH": ""},
    )
    assert run.returncode == 2
    assert (
        run.stderr.startswith("error: no/such: config.json is not in the cache")
        and run.stderr.count("\n") == 1
    )


def test_json_report(originals, tmp_path, capsys):
    assert tool().main([str(originals / "distilbert-qa"), str(tmp_path / "mine"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (
        report["model_type"] == "distilbert" and report["head"] == QA and len(report["rows"]) == 54
    )
    assert report["parameters"] == sum(p.numel() for p in random_model("distilbert").parameters())
    assert {
        "what": "renamed",
        "theirs": "distilbert.transformer.layer.1.attention.k_lin.bias",
        "ours": "encoder.layers.1.qkv.bias[32:64]",
        "shape": [32],
        "why": "",
    } in report["rows"]


@pytest.mark.parametrize("name", ["bert-qa", "bert-bare", "bert-classes", "distilbert-qa"])
def test_round_trip_through_the_command(originals, tmp_path, name):
    """model folder -> Hugging Face -> model folder: the same file of weights, bit for bit."""
    back = tmp_path / "back"
    assert tool().main([str(originals / name), str(back)]) == 0
    ours = originals / f"{name}-ours"
    assert (back / "model.safetensors").read_bytes() == (ours / "model.safetensors").read_bytes()
    one, two = (folder.read_config(where) for where in (ours, back))
    assert {**one, "provenance": 0} == {**two, "provenance": 0}


def test_one_file_and_index(copy, tmp_path):
    """SRC may be a file: here the one that a folder of several would not choose."""
    source = copy()
    tensors = load_file(source / "model.safetensors")
    torch.save({name: tensor + 1 for name, tensor in tensors.items()}, source / "other.bin")
    plain, other = (
        convert(source, tmp_path / "a"),
        convert(source / "other.bin", tmp_path / "b"),
    )
    a, b = (
        load_file(tmp_path / "a" / "model.safetensors"),
        load_file(tmp_path / "b" / "model.safetensors"),
    )
    assert all(torch.equal(a[name] + 1, b[name]) for name in a)
    assert plain.sha256 != other.sha256


def test_16_bit_stays_16_bit(copy, tmp_path):
    source = copy()
    edit_tensors(source, lambda tensors: tensors.update({k: v.half() for k, v in tensors.items()}))
    assert convert(source, tmp_path / "mine").dtype == "float16"
    assert {t.dtype for t in load_file(tmp_path / "mine" / "model.safetensors").values()} == {
        torch.float16
    }
    assert {p.dtype for p in folder.load(tmp_path / "mine").parameters()} == {torch.float32}
    assert {p.dtype for p in folder.load(tmp_path / "mine", dtype=torch.bfloat16).parameters()} == {
        torch.bfloat16
    }


def test_fresh_head(originals, tmp_path):
    """Drawn as BERT draws, the same for the same seed, and in place of a head that is there."""
    heads = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        report = convert(originals / "bert-qa", tmp_path / name, fresh_head="qa", seed=seed)
        heads.append(folder.load(tmp_path / name).span)
    assert torch.equal(heads[0].weight, heads[1].weight) and not torch.equal(
        heads[0].weight, heads[2].weight
    )
    assert torch.count_nonzero(heads[0].bias) == 0 and 0.01 < heads[0].weight.std() < 0.03
    assert [row.theirs for row in report.rows if row.why == "a fresh head was asked for"] == [
        "qa_outputs.bias",
        "qa_outputs.weight",
    ]


@pytest.mark.parametrize("name, fresh", [("bert-qa", 4), ("bert-bare", 2), ("distilbert-qa", 4)])
def test_fresh_classes(originals, tmp_path, name, fresh):
    """BERT's pooler is a part of that head: kept where there is one, else drawn; DistilBERT's dense layer always is."""
    report = convert(
        originals / name, tmp_path / "mine", fresh_head=("classification", ["a", "b", "c"])
    )
    assert sum(row.what == "fresh" for row in report.rows) == fresh
    model = folder.load(tmp_path / "mine")
    assert model(torch.tensor([[2, 7, 3]])).shape == (1, 3)
    assert folder.read_config(tmp_path / "mine")["labels"] == ["a", "b", "c"]


def test_load_encoder_of_any_head(originals):
    ids = torch.tensor([[2, 7, 8, 3]])
    with torch.no_grad():
        for name in ("bert-qa-ours", "bert-bare-ours", "bert-classes-ours", "distilbert-qa-ours"):
            whole, encoder = folder.load(originals / name), folder.load_encoder(originals / name)
            inside = getattr(whole, "encoder", whole)
            assert torch.equal(inside(ids).last_hidden_state, encoder(ids).last_hidden_state)
            assert (encoder(ids).pooled is None) == (
                name not in ("bert-bare-ours", "bert-classes-ours")
            )
            assert not encoder.training


def test_loaded_model_trains(originals):
    """Every parameter is a real one, that gets a gradient and can be stepped."""
    model = folder.load(originals / "bert-qa-ours").train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    logits = model(torch.tensor([[2, 7, 8, 9, 3]]))
    (logits.start.square().sum() + logits.end[:, 1:].sum()).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 0.1 * parameter.grad
    used = ("position", "segment", "word")
    assert all(
        not torch.equal(before[name], p)
        or any(word in name for word in used)
        or name.endswith("qkv.bias")
        for name, p in model.named_parameters()
    )
    assert torch.equal(
        before["span.weight"], folder.load(originals / "bert-qa-ours").span.weight
    ), "the file has changed"


def test_save_replaces_whole_folder(originals, tmp_path):
    source = originals / "bert-qa-ours"
    for threshold in (1.5, None):
        folder.save(
            tmp_path / "best",
            folder.load(source),
            tokenizer_from=source,
            provenance={"source": "x"},
            qa={"null_threshold": threshold} if threshold else None,
            dtype=torch.float16,
        )
        assert folder.read_qa(tmp_path / "best") == ({"null_threshold": 1.5} if threshold else {})
    assert [p.name for p in tmp_path.iterdir()] == ["best"]
    again = folder.load(tmp_path / "best")
    assert torch.equal(again.span.weight, folder.load(source).span.weight.half().float())


def test_resave_keeps_everything(originals, tmp_path):
    """A model that came from a folder needs no more than a new name; one that did not must say where its tokenizer is."""
    first, second = tmp_path / "first", tmp_path / "second"
    folder.save(
        first,
        random_model(),
        tokenizer_from=originals / "bert-qa-ours",
        provenance={"source": "x"},
        qa={"a": 1},
    )
    folder.save(second, folder.load(first))
    assert {p.name: p.read_bytes() for p in first.iterdir()} == {
        p.name: p.read_bytes() for p in second.iterdir()
    }
    classes = folder.load(originals / "bert-classes-ours")
    folder.save(tmp_path / "classes", classes)
    assert folder.read_config(tmp_path / "classes")["labels"] == ["no", "yes", "maybe"]
    with pytest.raises(
        UserError, match="was not loaded from a folder, so say where its tokenizer is"
    ):
        folder.save(tmp_path / "third", random_model())
    with pytest.raises(TypeError, match="a Linear is none of our models"):
        folder.save(tmp_path / "third", torch.nn.Linear(2, 2))


def test_a_head_is_loaded_and_saved_as_it_was(originals, tmp_path):
    from bertqa import BertForQuestionAnswering

    model = folder.load(originals / "bert-qa-ours", dtype=torch.float64)
    assert type(model) is BertForQuestionAnswering and model.span.weight.dtype == torch.float64
    folder.save(tmp_path / "qa", model.float())
    folder.save(tmp_path / "classes", folder.load(originals / "bert-classes-ours"))
    for name in ("qa", "classes"):
        one, two = (
            where / "model.safetensors"
            for where in (originals / f"bert-{name}-ours", tmp_path / name)
        )
        assert one.read_bytes() == two.read_bytes()


@pytest.mark.gpu
def test_load_on_a_gpu(originals):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    ids, model = (
        torch.tensor([[2, 7, 8, 9, 3]]),
        folder.load(originals / "bert-qa-ours", device="cuda"),
    )
    assert {p.device.type for p in model.parameters()} == {"cuda"}
    with torch.no_grad():
        here, there = folder.load(originals / "bert-qa-ours")(ids), model(ids.cuda())
    assert (here.start - there.start.cpu()).abs().max() < 1e-4


def test_failed_save_leaves_the_old_folder(originals, tmp_path):
    source = originals / "bert-qa-ours"
    folder.save(
        tmp_path / "best", folder.load(source), tokenizer_from=source, provenance={"source": "old"}
    )
    with pytest.raises(TypeError):
        folder.save(
            tmp_path / "best",
            folder.load(source),
            tokenizer_from=source,
            provenance={"source": object()},
        )
    assert folder.read_config(tmp_path / "best")["provenance"] == {"source": "old"}
    assert [p.name for p in tmp_path.iterdir()] == ["best"]


def test_exported_card_names_only_files_that_are_there(originals, tmp_path):
    """What the bundled reader's card says of int8_ranges.safetensors stays behind with the file, and the report says so."""
    card = (Path(__file__).parent.parent / "weights" / "minilm-squad2" / "README.md").read_text()
    card += "\n- `config.json` is there,\n  `checksums.json` is not\n- checksums.json as a word\n"
    card += "\n| file | size |\n|---|---|\n| [sums](checksums.json) | small |\n| `config.json` | small |\n"
    ours = originals / "bert-qa-ours"
    folder.save(tmp_path / "mine", random_model(), tokenizer_from=ours, card=card, provenance={})
    (tmp_path / "mine" / "int8_ranges.safetensors").touch()
    report = export(tmp_path / "mine", tmp_path / "theirs")
    assert "files that are not exported: checksums.json, int8_ranges.safetensors" in str(report)
    exported = (tmp_path / "theirs" / "README.md").read_text()
    body = card.split("---\n")[2]
    start = body.index("`int8_ranges.safetensors`, by which")
    lost = body[start : body.index("In float32 but for the row")]
    expected = body.replace(lost, "")
    expected = expected.replace("- `config.json` is there,\n  `checksums.json` is not\n", "")
    expected = expected.replace("| [sums](checksums.json) | small |\n", "")
    assert exported.split("---\n")[2].strip() == expected.strip()


def test_exported_card_and_settings(originals, tmp_path):
    """The card keeps what its metadata says and gains what is missing; the tuned threshold survives the journey."""
    card = "---\nlibrary_name: bertqa\npipeline_tag: x\ntags: [a, b]\nlicense: mit\n---\n\n# Mine\n\n--- a rule ---\n"
    folder.save(
        tmp_path / "mine",
        random_model(),
        tokenizer_from=originals / "bert-qa-ours",
        card=card,
        provenance={"source": "google-bert/bert-base-uncased", "license": "apache-2.0"},
        qa={"null_threshold": 1.5},
    )
    export(tmp_path / "mine", tmp_path / "theirs")
    assert (tmp_path / "theirs" / "README.md").read_text() == (
        "---\nlibrary_name: transformers\npipeline_tag: question-answering\nbase_model: google-bert/bert-base-uncased\n"
        "tags: [a, b]\nlicense: mit\n---\n\n# Mine\n\n--- a rule ---\n"
    )
    assert not (tmp_path / "theirs" / ".eval_results").exists()
    convert(tmp_path / "theirs", tmp_path / "back")
    assert folder.read_qa(tmp_path / "back") == {"null_threshold": 1.5}
    assert folder.read_config(tmp_path / "back")["provenance"]["license"] == "mit"
    convert(tmp_path / "theirs", tmp_path / "fresh", fresh_head="qa")
    assert folder.read_qa(tmp_path / "fresh") == {}, (
        "a threshold belongs to the head that it was tuned for"
    )


def test_scores_on_official_data_travel_to_the_hub(originals, tmp_path):
    ours = originals / "bert-qa-ours"
    card = model_card(
        tmp_path / "run" / "best", {}, {"dev": "squad2"}, {"exact": 65.0, "f1": 67.5}, {}
    )
    folder.save(tmp_path / "mine", random_model(), tokenizer_from=ours, card=card, provenance={})
    export(tmp_path / "mine", tmp_path / "theirs")
    found = (tmp_path / "theirs" / ".eval_results" / "squad_v2.yaml").read_text()
    assert "- dataset: {id: rajpurkar/squad_v2, task_id: f1}\n  value: 67.50\n" in found


def test_mixed_precision_export(copy, tmp_path):
    """A float32 head on a float16 encoder: transformers is told to open all of it as float32."""
    source = copy("bert-bare")
    edit_tensors(source, lambda tensors: tensors.update({k: v.half() for k, v in tensors.items()}))
    assert convert(source, tmp_path / "mine", fresh_head="qa").dtype == "float16 and float32"
    export(tmp_path / "mine", tmp_path / "back")
    assert json.loads((tmp_path / "back" / "config.json").read_text())["torch_dtype"] == "float32"


# Configs --------------------------------------------------------------------------------------------------------------


def test_historical_defaults():
    """What configs of 2018 leave out, and DistilBERT's own names."""
    old = {
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "intermediate_size": 64,
        "vocab_size": 99,
    }
    names = [f"encoder.layer.{i}.x" for i in range(9)]
    assert architecture_of(old, names, QA) == BertConfig(**old)
    distil = {
        "model_type": "distilbert",
        "dim": 32,
        "n_heads": 4,
        "hidden_dim": 64,
        "vocab_size": 99,
        "activation": "relu",
        "dropout": 0.2,
        "attention_dropout": 0.3,
        "sinusoidal_pos_embds": True,
        "tie_weights_": True,
    }
    assert architecture_of(distil, names, None) == BertConfig(
        model_type="distilbert",
        vocab_size=99,
        hidden_size=32,
        num_hidden_layers=6,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=512,
        type_vocab_size=0,
        hidden_act="relu",
        layer_norm_eps=1e-12,
        hidden_dropout_prob=0.2,
        attention_probs_dropout_prob=0.3,
    )
    assert (
        architecture_of({"architectures": ["DistilBertForMaskedLM"]}, names, None).model_type
        == "distilbert"
    )
    assert architecture_of({}, ["transformer.layer.0.x"] * 6, None).model_type == "distilbert"


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"model_type": "roberta"}, "the architecture is roberta; supported are bert (any size"),
        ({"model_type": "albert"}, "the architecture is albert; supported"),
        ({"model_type": "modernbert"}, "the architecture is modernbert; supported"),
        (
            {"model_type": ..., "architectures": ["ElectraForQuestionAnswering"]},
            "the architecture is Electra",
        ),
        (
            {"position_embedding_type": "relative_key_query"},
            "position_embedding_type is 'relative_key_query' (supported: 'abs",
        ),
        ({"hidden_act": "silu"}, "hidden_act is 'silu' (supported: gelu, gelu_python, gelu_new"),
        ({"is_decoder": True}, "is_decoder is True"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads is {'0': [1]}"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is {'bits': 4}"),
        ({"auto_map": {"AutoModel": "own.Bert"}}, "auto_map is {'AutoModel': 'own.Bert'}"),
        ({"hidden_size": "32"}, "config.json: hidden_size is '32', expected something like 768"),
        ({"hidden_size": -1}, "config.json: hidden_size is -1"),
        ({"vocab_size": 10**12}, "config.json: vocab_size is 1000000000000"),
        ({"num_hidden_layers": 10**6}, "asks for 1000000 layers, but there are only 55 tensors"),
        ({"num_attention_heads": 5}, "hidden_size 32 is not a multiple of num_attention_heads 5"),
        (
            {"num_hidden_layers": 2},
            "unexpected (bert.encoder.layer.2.attention.output.LayerNorm.bias",
        ),
        ({"num_hidden_layers": 4}, "16 missing (encoder.layer.3.attention.self.query.weight"),
        (
            {"intermediate_size": 38},
            "9 of the wrong shape or type (bert.encoder.layer.{0..2}.intermediate.dense.weight is "
            "(37, 32), config.json asks for (38, 32)",
        ),
        (
            {"vocab_size": 98},
            "bert.embeddings.word_embeddings.weight is (99, 32), config.json asks for (98, 32)",
        ),
        ({"architectures": ["BertForTokenClassification"], "id2label": {"0": "a"}}, None),
    ],
)
def test_refused_configs(copy, tmp_path, changes, said):
    source = copy("bert-classes" if said is None else "bert-qa")
    edit_json(source / "config.json", **changes)
    assert (
        said
        or "its head is BertForTokenClassification, which bertqa does not have; --fresh-head takes the encoder"
    ) in refused(source, tmp_path / "mine")


def test_missing_head_must_be_asked_for(copy, tmp_path):
    source = copy("bert-bare")
    edit_json(source / "config.json", architectures=["BertForQuestionAnswering"])
    assert refused(source, tmp_path / "mine").endswith(
        "2 missing (qa_outputs.weight, qa_outputs.bias). It has no trained head: --fresh-head draws a new one"
    )


def test_missing_and_unexpected_are_both_listed(copy, tmp_path):
    source = copy()

    def change(tensors):
        del tensors["bert.encoder.layer.1.output.dense.bias"]
        tensors["bert.encoder.layer.1.output.adapter.bias"] = torch.zeros(3)

    edit_tensors(source, change)
    said = refused(source, tmp_path / "mine")
    assert (
        "1 missing (encoder.layer.1.output.dense.bias); 1 unexpected (bert.encoder.layer.1.output.adapter.bias)"
        in said
    )


# Tokenizers -----------------------------------------------------------------------------------------------------------


def ids_of(where: Path, text: str) -> list[int]:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(where / "tokenizer.json")).encode(text).ids


def only_vocab(source: Path, tokens=VOCAB, **config) -> Path:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (source / name).unlink()
    write_vocab(source, tokens)
    if config:
        (source / "tokenizer_config.json").write_text(json.dumps(config))
    return source


@pytest.mark.parametrize(
    "tokens, config, remark, text, expected",
    [
        (
            VOCAB,
            {},
            "uncased (no file says so; 0% of the tokens of vocab.txt have capitals)",
            "AB é中",
            "a ##b e 中",
        ),
        (
            VOCAB,
            {"do_lower_case": True},
            "uncased (from tokenizer_config.json)",
            "AB é中",
            "a ##b e 中",
        ),
        (
            VOCAB,
            {"do_lower_case": True, "strip_accents": False},
            "uncased (from tokenizer_config.json)",
            "AB é",
            "a ##b é",
        ),
        (
            VOCAB,
            {"do_lower_case": True, "tokenize_chinese_chars": False},
            "uncased (from tokenizer_config.json)",
            "b中 中",
            "[UNK] 中",
        ),
        (
            VOCAB,
            {"do_lower_case": False},
            "cased (from tokenizer_config.json)",
            "AB ab é",
            "[UNK] a ##b é",
        ),
        (
            CAPITALS,
            {},
            "cased (no file says so; 20% of the tokens of vocab.txt have capitals)",
            "Word1 ab",
            "Word1 a ##b",
        ),
        (
            CAPITALS,
            {"do_lower_case": False},
            "cased (from tokenizer_config.json)",
            "Word1 ab",
            "Word1 a ##b",
        ),
    ],
)
def test_tokenizer_from_vocab(copy, tmp_path, tokens, config, remark, text, expected):
    report = convert(only_vocab(copy(), tokens, **config), tmp_path / "mine")
    assert remark in report.remarks and "tokenizer.json made from vocab.txt" in report.remarks
    assert ids_of(tmp_path / "mine", text) == [
        2,
        *(tokens.index(token) for token in expected.split()),
        3,
    ]
    assert (tmp_path / "mine" / "vocab.txt").read_bytes() == "".join(
        t + "\n" for t in tokens
    ).encode()


def test_line_separators_are_tokens():
    """U+2028 stands in vocabularies of many languages; read by splitlines() it would shift all that follows."""
    assert "\u2028" in VOCAB and VOCAB.index("\u2028") < VOCAB.index("word0")


def test_vocab_from_tokenizer_json(copy, tmp_path):
    """transformers 5 saves no vocab.txt."""
    source = copy()
    (source / "vocab.txt").unlink()
    edit_json(
        source / "tokenizer.json",
        truncation={"max_length": 3, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
        padding={
            "strategy": {"Fixed": 9},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "[PAD]",
        },
    )
    assert len(ids_of(source, "a b c d")) == 9
    report = convert(source, tmp_path / "mine")
    assert (
        "tokenizer.json: truncation and padding dropped (windows are cut by bertqa)"
        in report.remarks
    )
    assert ids_of(tmp_path / "mine", "a b c d") == [2, 5, 6, 7, 8, 3]
    assert (tmp_path / "mine" / "vocab.txt").read_text(encoding="utf-8").split("\n") == [*VOCAB, ""]


@pytest.mark.parametrize(
    "setting, said",
    [
        (
            {"do_lower_case": False},
            "tokenizer_config.json has do_lower_case false, but tokenizer.json does that",
        ),
        (
            {"strip_accents": False},
            "tokenizer_config.json has strip_accents false, but tokenizer.json does that",
        ),
        (
            {"tokenize_chinese_chars": False},
            "tokenizer_config.json has tokenize_chinese_chars false, but tokenizer.json does",
        ),
    ],
)
def test_contradicting_tokenizer_files(copy, tmp_path, setting, said):
    source = copy()
    edit_json(source / "tokenizer_config.json", **setting)
    assert said in refused(source, tmp_path / "mine")


def test_nonsense_in_tokenizer_config(copy, tmp_path):
    said = refused(only_vocab(copy(), VOCAB, do_lower_case="false"), tmp_path / "mine")
    assert "tokenizer_config.json: do_lower_case 'false'; expected true, false or null" in said


@pytest.mark.parametrize(
    "model", [[], {"type": "WordPiece"}, {"type": "WordPiece", "vocab": {"a": "b"}}]
)
def test_nonsense_in_tokenizer_json(copy, tmp_path, model):
    source = copy()
    edit_json(source / "tokenizer.json", model=model)
    assert "tokenizer.json" in refused(source, tmp_path / "mine")


def test_a_token_twice(copy, tmp_path):
    """Vocabularies like that exist: the second line counts, the first id has no token; and it goes there and back."""
    source = only_vocab(copy(), [*VOCAB[:95], "a", *VOCAB[96:]])
    convert(source, tmp_path / "mine")
    assert ids_of(tmp_path / "mine", "a b") == [2, 95, 6, 3]
    export(tmp_path / "mine", tmp_path / "theirs")
    (tmp_path / "theirs" / "vocab.txt").unlink()
    convert(tmp_path / "theirs", tmp_path / "back")
    lines = (tmp_path / "back" / "vocab.txt").read_text(encoding="utf-8").split("\n")
    assert lines[5] == "[none5]" and lines[95] == "a" and len(lines) == 100


def test_lower_casing_with_a_cased_vocabulary(copy, tmp_path):
    said = refused(only_vocab(copy(), CAPITALS, do_lower_case=True), tmp_path / "mine")
    assert (
        "the tokenizer lower-cases, but 20% of the tokens of its vocabulary have capitals" in said
    )


@pytest.mark.parametrize(
    "tokens, said",
    [
        (
            [*VOCAB, "one", "more"],
            "the vocabulary has 101 tokens, but the word embedding only 99 rows",
        ),
        (
            [token for token in VOCAB if token != "[SEP]"],
            "the vocabulary has no [SEP]; bertqa needs BERT's special tokens",
        ),
        ([b"\xff"], "vocab.txt: not UTF-8: byte 0xff at offset 0"),
    ],
)
def test_vocabulary_does_not_fit(copy, tmp_path, tokens, said):
    source = only_vocab(copy(), VOCAB)
    (source / "vocab.txt").write_bytes(
        b"\n".join(t if isinstance(t, bytes) else t.encode() for t in tokens) + b"\n"
    )
    assert said in refused(source, tmp_path / "mine")


def test_vocabulary_much_too_small(tmp_path):
    source = write_checkpoint(tmp_path / "big", vocab_size=128)
    edit_json(source / "config.json", vocab_size=300)
    edit_tensors(
        source,
        lambda tensors: tensors.update(
            {"bert.embeddings.word_embeddings.weight": torch.ones(300, 32)}
        ),
    )
    said = refused(source, tmp_path / "mine")
    assert "has 99 tokens, but the word embedding 300 rows: 201 too many for rounding up" in said


def test_two_vocabularies(copy, tmp_path):
    source = copy()
    write_vocab(source, [*VOCAB[:50], *reversed(VOCAB[50:])])
    assert "vocab.txt and tokenizer.json are of different vocabularies: token 50 is" in refused(
        source, tmp_path / "mine"
    )


def test_no_tokenizer(copy, tmp_path):
    source = copy()
    for name in ("vocab.txt", "tokenizer.json", "tokenizer_config.json"):
        (source / name).unlink()
    assert "has no vocab.txt and no tokenizer.json" in refused(source, tmp_path / "mine")


def test_other_kind_of_tokenizer(copy, tmp_path):
    source = copy()
    edit_json(source / "tokenizer.json", model={"type": "BPE", "vocab": {}, "merges": []})
    assert "is a BPE tokenizer; bertqa reads BERT's WordPiece vocabularies only" in refused(
        source, tmp_path / "mine"
    )


# Hostile and damaged files --------------------------------------------------------------------------------------------


class Attack:
    """Unpickled in full, this would create the file `pwned`."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return (os.system, (f"echo > {self.target}",))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_malicious_pickle_runs_nothing(copy, tmp_path, zipped):
    source = copy()
    tensors = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    torch.save(
        {**tensors, "x": Attack(tmp_path / "pwned")},
        source / "pytorch_model.bin",
        _use_new_zipfile_serialization=zipped,
    )
    said = refused(source, tmp_path / "mine")
    assert (
        f"pytorch_model.bin: refused: besides tensors its pickle asks for {os.system.__module__}.system"
        in said
    )
    assert not (tmp_path / "pwned").exists()
    torch.load(source / "pytorch_model.bin", weights_only=False)  # the attack is a real one
    assert (tmp_path / "pwned").exists()


def test_bare_malicious_pickle(copy, tmp_path):
    """Not even a file of torch: a pickle by itself."""
    source = copy()
    (source / "model.safetensors").unlink()
    (source / "pytorch_model.bin").write_bytes(pickle.dumps(Attack(tmp_path / "pwned")))
    assert (
        "pytorch_model.bin: " in (said := refused(source, tmp_path / "mine"))
        and "arbitrary code" not in said
    )
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("keep", [0, 4, 100, 20_000, -1])
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "old.bin"])
def test_cut_off(copy, tmp_path, name, keep):
    source = copy()
    if name != "model.safetensors":
        tensors = load_file(source / "model.safetensors")
        torch.save(tensors, source / name, _use_new_zipfile_serialization=name != "old.bin")
    whole = (source / name).read_bytes()
    (source / name).write_bytes(whole[:keep])
    said = refused(source / name, tmp_path / "mine")
    assert f"{name}: not a whole" in said and said.endswith(
        "; it was cut off or damaged on its way: fetch it again"
    )
    assert len(said.split(name)[-1]) < 200 and "weights_only" not in said


def test_lying_safetensors_header(copy, tmp_path):
    source = copy()
    for header in (
        b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}',
        b"not json",
        b'{"a":{"dtype":"F32"}}',
    ):
        (source / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
        assert "not a whole safetensors file" in refused(source, tmp_path / "mine")
    (source / "model.safetensors").write_bytes(struct.pack("<Q", 2**60) + b"{}")
    assert "not a whole safetensors file" in refused(source, tmp_path / "mine")


def test_not_a_number_is_named(copy, tmp_path):
    source = copy()

    def change(tensors):
        tensors["bert.encoder.layer.1.attention.self.key.weight"][3, 4] = float("nan")
        tensors["bert.encoder.layer.2.attention.self.key.weight"][0, 0] = float("inf")
        tensors["qa_outputs.bias"][0] = float("nan")

    edit_tensors(source, change)
    assert (
        "3 of its tensors hold NaN or infinite numbers: bert.encoder.layer.{1..2}.attention.self.key.weight, "
        "qa_outputs.bias" in refused(source, tmp_path / "mine")
    )


def test_quantised_weights(copy, tmp_path):
    source = copy()
    edit_tensors(
        source,
        lambda tensors: tensors.update(
            {"bert.encoder.layer.0.output.dense.weight": torch.zeros(32, 37, dtype=torch.int8)}
        ),
    )
    assert "bert.encoder.layer.0.output.dense.weight is stored as I8" in refused(
        source, tmp_path / "mine"
    )


@pytest.mark.parametrize(
    "value, said",
    [
        ([torch.zeros(2)], "holds a list, expected a dictionary of tensors by name"),
        (
            {"model": {"a": torch.zeros(2)}, "epoch": 3},
            "holds more than tensors by name (model, epoch)",
        ),
        ({}, "holds no tensor at all"),
    ],
)
def test_bin_of_something_else(copy, tmp_path, value, said):
    source = copy()
    torch.save(value, source / "other.bin")
    assert said in refused(source / "other.bin", tmp_path / "mine")


@pytest.mark.parametrize(
    "index, said",
    [
        ("{}", 'not an index of weight shards: it has no "weight_map" of tensor name to file name'),
        ("[", "model.safetensors.index.json: cut off: the JSON ends early"),
        (
            '{"weight_map": {"a": "model-1.safetensors"}}',
            "1 of its 1 shards are not beside it: model-1.safetensors",
        ),
        (
            '{"weight_map": {"a": "../bert-qa/model.safetensors"}}',
            '"a" is said to be in "../bert-qa/model.safetensors", which is no name of a weight file',
        ),
        (
            '{"weight_map": {"a": "model.safetensors"}}',
            "1 tensors are not in the shards it names (a not in model.safetensors)",
        ),
    ],
)
def test_bad_index(copy, tmp_path, index, said):
    source = copy()
    (source / "model.safetensors.index.json").write_text(index)
    assert said in refused(source / "model.safetensors.index.json", tmp_path / "mine")


def test_no_weights(copy, tmp_path):
    source = copy()
    (source / "model.safetensors").rename(source / "tf_model.h5")
    assert (
        "holds none of model.safetensors, model.safetensors.index.json, pytorch_model.bin, "
        "pytorch_model.bin.index.json, but tf_model.h5; save it as safetensors"
        in refused(source, tmp_path / "mine")
    )


@pytest.mark.parametrize(
    "text, said",
    [
        (None, "has no config.json"),
        ("{", "cut off: the JSON ends early"),
        ("[]", "holds a JSON list, expected an object"),
    ],
)
def test_bad_config_file(copy, tmp_path, text, said):
    source = copy()
    (source / "config.json").unlink()
    if text:
        (source / "config.json").write_text(text)
    assert said in refused(source, tmp_path / "mine")


def test_two_tensors_for_one_place(copy, tmp_path):
    source = copy()
    edit_tensors(
        source,
        lambda tensors: tensors.update(
            {"embeddings.LayerNorm.gamma": tensors["bert.embeddings.LayerNorm.weight"] + 1}
        ),
    )
    assert "embeddings.LayerNorm.gamma are two tensors for one place" in refused(
        source, tmp_path / "mine"
    )


def test_wrong_folders(originals, tmp_path):
    with pytest.raises(
        UserError, match="is a model folder of bertqa already; use it as it is, or add --to-hf"
    ):
        convert(originals / "bert-qa-ours", tmp_path / "mine")
    with pytest.raises(
        UserError,
        match="is a Hugging Face folder; convert it first: python tools/convert_weights.py",
    ):
        export(originals / "bert-qa", tmp_path / "mine")
    with pytest.raises(UserError, match="there is no such folder; expected a model folder"):
        folder.load(tmp_path / "nothing")
    with pytest.raises(UserError, match="exists and is not an empty folder"):
        convert(originals / "bert-qa", originals / "bert-bare")
    assert not (tmp_path / "mine").exists()


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"architecture": None}, "does not describe a BERT: it is no object"),
        (
            {"architecture": {"hidden_sizes": 3}},
            "does not describe a BERT: hidden_sizes 3; known are model_type",
        ),
        ({"architecture": {"hidden_size": "32"}}, "does not describe a BERT: hidden_size '32'"),
        (
            {"head": "poetry"},
            "head is 'poetry' with labels None; known are null, 'question-answering'",
        ),
        ({"head": "sequence-classification"}, "with labels None"),
        (
            {"architecture": {**SIZES, "num_hidden_layers": 4}},
            "encoder.layers.3.qkv.weight is missing",
        ),
        (
            {"architecture": {**SIZES, "num_hidden_layers": 2}},
            "encoder.layers.2.attention_norm.bias is not of this archit",
        ),
        (
            {"architecture": {**SIZES, "intermediate_size": 9}},
            "encoder.layers.0.ffn_in.weight has shape (37, 32), config.json asks for (9, 32)",
        ),
    ],
)
def test_damaged_model_folder(originals, tmp_path, changes, said):
    broken = Path(shutil.copytree(originals / "bert-qa-ours", tmp_path / "broken"))
    edit_json(broken / "config.json", **changes)
    with pytest.raises(UserError) as caught:
        folder.load(broken)
    assert said in str(caught.value)


def test_model_folder_without_weights(originals, tmp_path):
    broken = Path(shutil.copytree(originals / "bert-qa-ours", tmp_path / "broken"))
    (broken / "model.safetensors").unlink()
    with pytest.raises(
        UserError, match="model.safetensors is missing, so this is only half a model folder"
    ):
        folder.load(broken)


# A large one ----------------------------------------------------------------------------------------------------------

MEASURED = """
import json, resource, sys, time
from pathlib import Path
{imports}
begin, cpu = time.perf_counter(), time.process_time()
{work}
print(json.dumps({{"seconds": time.perf_counter() - begin, "cpu": time.process_time() - cpu,
                  "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}}))
"""


def measured(imports: str, work: str) -> dict:
    """Seconds and processor seconds without the imports, and peak memory with them, of some lines in a new process."""
    run = subprocess.run(
        [sys.executable, "-c", MEASURED.format(imports=imports, work=work)],
        cwd=TOOL.parents[1],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.slow
def test_bert_large(tmp_path, capsys):
    """335M parameters convert and load in 30 s on two cores, with less memory than 1.5 times their size."""
    pytest.importorskip(
        "transformers", reason="the reference implementation comes with the extra `test`"
    )
    source, dest = tmp_path / "theirs", tmp_path / "ours"
    measured(
        "import torch, transformers",
        f"""
torch.manual_seed(0)
config = transformers.BertConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)
model = transformers.BertForQuestionAnswering(config).eval()
model.save_pretrained({str(source)!r})
ids = torch.arange(1000, 1020)[None]
with torch.no_grad():
    out = model(ids)
torch.save([out.start_logits, out.end_logits], {str(tmp_path / "expected.pt")!r})
""",
    )
    write_vocab(source, [*VOCAB, *(f"filler{i}" for i in range(30522 - len(VOCAB)))])
    both = measured(
        "from bertqa.model import folder; from bertqa.hf.convert import convert",
        f"""
convert({str(source)!r}, {str(dest)!r})
model = folder.load({str(dest)!r})
""",
    )
    size = (source / "model.safetensors").stat().st_size
    model, ids = folder.load(dest), torch.arange(1000, 1020)[None]
    with torch.no_grad():
        ours = model(ids)
    worst = max(
        (a - b).abs().max().item()
        for a, b in zip(ours, torch.load(tmp_path / "expected.pt"), strict=True)
    )
    with capsys.disabled():
        print(
            f"\n335M: {size / 2**30:.2f} GiB converted and loaded in {both['seconds']:.1f} s ({both['cpu']:.1f} s of "
            f"processor time), peak memory {both['peak'] / 2**30:.2f} GiB = {both['peak'] / size:.2f} x its size, "
            f"logits differ by {worst:.1e}"
        )
    # Processor time, for it does not depend on who else is using the machine; alone on it, it is the time on the clock.
    assert size > 1.3e9 and both["cpu"] < 30 and both["peak"] < 1.5 * size and worst < 1e-5
