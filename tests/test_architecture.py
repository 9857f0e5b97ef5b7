"""config.json of Hugging Face in both directions: what is taken from it, what is refused, what an export says."""

import json
from pathlib import Path

import pytest
import torch
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
from bertqa.hf.architecture import (
    architecture_of,
    class_labels,
    find_head,
    model_type_of,
    take_settings,
)
from bertqa.hf.convert import convert
from bertqa.hf.export import export
from bertqa.hf.names import dtype_name, fold, listed
from bertqa.model import folder
from bertqa.model.config import BertConfig
from bertqa.model.folder import CLASSES, QA

NAMES = [f"transformer.layer.{i}.x" for i in range(9)]
DISTIL = {"model_type": "distilbert", "dim": 32, "n_heads": 4, "hidden_dim": 64, "vocab_size": 99}


@pytest.fixture
def source(tmp_path) -> Path:
    return write_checkpoint(tmp_path / "bert")


def exported(tmp_path: Path, model, labels=None, vocab=VOCAB) -> dict:
    """config.json of a model's export."""
    write_vocab(tmp_path / "vocabulary", vocab)
    folder.save(tmp_path / "mine", model, tokenizer_from=tmp_path / "vocabulary", labels=labels)
    export(tmp_path / "mine", tmp_path / "theirs")
    return json.loads((tmp_path / "theirs" / "config.json").read_text())


@pytest.mark.parametrize(
    "classes, expected",
    [
        (["BertLMHeadModel"], "bert"),
        (["BertModel"], "bert"),
        (["BertForPreTraining"], "bert"),
        (["DistilBertModel"], "distilbert"),
        ("BertModel", "bert"),
        ([], "bert"),
    ],
)
def test_the_class_tells_the_model(classes, expected):
    assert model_type_of({"architectures": classes}, ()) == expected


def test_distilbert_by_the_common_names():
    common = {
        "model_type": "distilbert",
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "intermediate_size": 64,
        "vocab_size": 99,
    }
    found = architecture_of(common, NAMES, None)
    assert (found.hidden_size, found.num_hidden_layers, found.intermediate_size) == (32, 3, 64)
    both = {**common, "dim": 64}
    assert architecture_of(both, NAMES, None).hidden_size == 64, "its own name goes before"


def test_distilbert_has_no_segments_and_one_epsilon():
    """transformers' class reads neither, whatever a config says."""
    stated = {**DISTIL, "type_vocab_size": 2, "layer_norm_eps": 1e-5}
    found = architecture_of(stated, NAMES, None)
    assert (found.type_vocab_size, found.layer_norm_eps) == (0, 1e-12)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"num_hidden_layers": True}, "num_hidden_layers is True, expected something like 12"),
        ({"hidden_dropout_prob": True}, "hidden_dropout_prob is True"),
        ({"hidden_dropout_prob": "0.1"}, "hidden_dropout_prob is '0.1'"),
        ({"add_cross_attention": True}, "add_cross_attention is True"),
        ({"hidden_size": 10**9}, "hidden_size is 1000000000"),
        ({"vocab_size": 2**63}, "vocab_size is 9223372036854775808"),
        ({"num_hidden_layers": 30_000}, "asks for 30000 layers, but there are only"),
        ({"max_position_embeddings": 0}, "max_position_embeddings is 0, it must be positive"),
        ({"layer_norm_eps": -1}, "layer_norm_eps is -1, it must be a number from 0 to 1"),
        ({"hidden_act": ["gelu"]}, "hidden_act is ['gelu']"),
        ({"architectures": 7, "model_type": 7}, "the architecture is 7"),
    ],
)
def test_refused(source, tmp_path, changes, said):
    edit_json(source / "config.json", **changes)
    assert said in refused(source, tmp_path / "mine")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_none(source, tmp_path, number):
    text = json.dumps({**json.loads((source / "config.json").read_text()), "layer_norm_eps": 0.5})
    (source / "config.json").write_text(text.replace("0.5", number))
    assert "config.json" in refused(source, tmp_path / "mine")


def test_buffers_and_links_to_a_teacher_are_left_out(source, tmp_path):
    more = (
        "bert.embeddings.token_type_ids",
        "bert.embeddings.position_ids",
        "fit_dense.weight",
        "fit_denses.0.bias",
    )
    edit_tensors(source, lambda tensors: tensors.update({name: torch.zeros(2) for name in more}))
    report = convert(source, tmp_path / "mine")
    assert {row.theirs for row in report.rows if row.what == "ignored"} == set(more)


def test_a_named_head_without_tensors(tmp_path):
    """config.json says that there are classes; it is no encoder with nothing on it."""
    source = write_checkpoint(tmp_path / "bare", head=None, pooler=True)
    edit_json(source / "config.json", architectures=["BertForSequenceClassification"])
    said = refused(source, tmp_path / "mine")
    assert "2 missing (classifier.weight, classifier.bias). It has no trained head" in said
    assert find_head({"architectures": ["BertForSequenceClassification"]}, ()) == CLASSES
    assert find_head({"architectures": ["DistilBertForQuestionAnswering"]}, ()) == QA


def test_labels_are_in_the_order_of_their_numbers():
    named = {str(i): f"class {i}" for i in reversed(range(12))}
    assert class_labels({"id2label": named}, 12) == [f"class {i}" for i in range(12)]


@pytest.mark.parametrize("stated", [{}, {"id2label": {}}, {"id2label": {"a": "b"}}])
def test_labels_without_names(stated):
    assert class_labels(stated, 3) == ["LABEL_0", "LABEL_1", "LABEL_2"]
    assert class_labels(stated, None) == ["LABEL_0", "LABEL_1"]


def test_sizes_at_the_limit():
    """The largest size that is accepted, and as many layers as there are tensors."""
    assert architecture_of({"vocab_size": 10_000_000}, ["x"] * 12, None).vocab_size == 10_000_000
    with pytest.raises(UserError, match="vocab_size is 10000001, expected something like 30522"):
        architecture_of({"vocab_size": 10_000_001}, ["x"] * 12, None)
    assert architecture_of({"type_vocab_size": 0}, ["x"] * 12, None).type_vocab_size == 0
    assert architecture_of(DISTIL, NAMES[:6], None).num_hidden_layers == 6
    with pytest.raises(UserError, match="asks for 6 layers, but there are only 5 tensors"):
        architecture_of(DISTIL, NAMES[:5], None)


def test_who_keeps_a_pooler():
    pooler = ["pooler.dense.weight", *"abcdefghijkl"]
    for names, head, keeps in (
        (pooler, None, True),
        (pooler, QA, False),
        (pooler, CLASSES, True),
        (pooler[1:], None, False),
        (pooler[1:], CLASSES, True),
    ):
        assert architecture_of({}, names, head).pooler is keeps
    assert not architecture_of(DISTIL, [*pooler, *NAMES], CLASSES).pooler


@pytest.mark.parametrize(
    "names, folded",
    [
        (["a.0.w", "a.1.w", "a.2.w", "norm.w"], ["a.{0..2}.w", "norm.w"]),
        (["a.0.w", "a.2.w", "a.5.w"], ["a.{0,2,5}.w"]),
        (["a.4.w"], ["a.4.w"]),
        (["a.1.w", "a.0.w", "a.1.w"], ["a.{0..1}.w"]),
        (["a.10.w", "a.9.w"], ["a.{9..10}.w"]),
        ([], []),
    ],
)
def test_names_that_differ_in_the_layer_are_one(names, folded):
    assert fold(names) == folded


def test_a_list_of_names_has_twelve_at_most():
    letters = list("abcdefghijklm")
    assert listed(letters[:12]) == ", ".join(letters[:12])
    assert listed(letters) == ", ".join(letters[:12]) + ", ..."
    assert listed(["a.0.w", "a.1.w", "b", "c"], 2) == "a.{0..1}.w, b, ..."
    assert dtype_name([torch.float32, torch.float16, torch.float32]) == "float16 and float32"
    assert dtype_name([torch.bfloat16]) == "bfloat16"


def sentence_folder(tmp_path: Path, length=None, pooling=None) -> Path:
    """What sentence-transformers writes beside a model."""
    source = tmp_path / "sentences"
    (source / "1_Pooling").mkdir(parents=True, exist_ok=True)
    types = [
        {"type": f"sentence_transformers.models.{name}"} for name in ("Transformer", "Pooling")
    ]
    types[1]["path"] = "1_Pooling"
    (source / "modules.json").write_text(json.dumps(types))
    if length is not None:
        path = source / "sentence_bert_config.json"
        path.write_text(json.dumps({"max_seq_length": length}))
    if pooling is not None:
        (source / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (source / "new").mkdir(exist_ok=True)
    return source


def embed_settings(source: Path) -> list[str]:
    return take_settings(source, source / "new", BertConfig(), None, None)


def test_pooling_that_is_not_said_is_told(tmp_path):
    warning = "warning: its Pooling is neither mean nor cls alone: embed uses its own default"
    assert warning in embed_settings(sentence_folder(tmp_path))  # the file is missing
    for pooling, pool in (
        ({"pooling_mode": "mean"}, "mean"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, None),
        ({"pooling_mode_max_tokens": True}, None),
        ({"pooling_mode": "lasttoken"}, None),
    ):
        remarks = embed_settings(sentence_folder(tmp_path, pooling=pooling))
        assert (warning in remarks) == (pool is None), pooling
        assert f"pool {json.dumps(pool)}" in remarks[-1]


def test_the_longest_text_of_a_sentence_model(tmp_path):
    for length, kept in ((3, 3), (128, 128), (513, 512), (1_000_000, 512)):
        remarks = embed_settings(sentence_folder(tmp_path, length))
        assert remarks[-1].endswith(f"at most {kept} tokens")
    for length in (2, 1_000_001, True, "128", 3.5):
        with pytest.raises(UserError, match="sentence_bert_config.json: max_seq_length is "):
            embed_settings(sentence_folder(tmp_path, length))


def test_export_of_classes(tmp_path):
    labels = ["no", "yes", "maybe"]
    config = exported(tmp_path, random_model(head=CLASSES, labels=labels), labels)
    assert config["id2label"] == {"0": "no", "1": "yes", "2": "maybe"}
    assert config["label2id"] == {"no": 0, "yes": 1, "maybe": 2}


def test_export_of_distilbert(tmp_path):
    """Its positions are learnt, which its config calls false: true would make transformers overwrite them."""
    config = exported(tmp_path, random_model("distilbert"))
    assert config["sinusoidal_pos_embds"] is False
    assert config["dim"] == SIZES["hidden_size"] and "hidden_size" not in config
    assert not {"type_vocab_size", "layer_norm_eps", "position_embedding_type"} & config.keys()


@pytest.mark.parametrize("place", [0, 3])
def test_export_names_the_id_of_padding(tmp_path, place):
    vocab = [token for token in VOCAB if token != "[PAD]"]
    vocab.insert(place, "[PAD]")
    assert exported(tmp_path, random_model(), vocab=vocab)["pad_token_id"] == place


@pytest.mark.parametrize(
    "model_type, changes, said",
    [
        ("distilbert", {"type_vocab_size": 2}, "distilbert has no type_vocab_size 2"),
        ("distilbert", {"layer_norm_eps": 1e-5}, "distilbert has no layer_norm_eps 1e-05"),
        ("bert", {"type_vocab_size": 0}, "bert has no type_vocab_size 0"),
        ("bert", {"position_embedding_type": "none"}, "has no position_embedding_type none"),
    ],
)
def test_what_hugging_face_cannot_express(tmp_path, model_type, changes, said):
    with pytest.raises(UserError, match=said):
        exported(tmp_path, random_model(model_type, **changes))
    assert not (tmp_path / "theirs").exists()


# The typed files of a model folder ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, value, said",
    [
        ("hidden_size", 10**9, "hidden_size is 1000000000, and no model's is over 100,000"),
        ("vocab_size", 2**63, "vocab_size is 9223372036854775808, and no model's is over"),
        ("num_hidden_layers", 30_000, "num_hidden_layers is 30000, and no model's is over 1,000"),
        ("num_hidden_layers", -1, "num_hidden_layers is -1, it must be positive"),
        ("type_vocab_size", -1, "type_vocab_size is -1, it must be 0 or more"),
        ("num_attention_heads", True, "num_attention_heads True; known are"),
        ("layer_norm_eps", -1e-12, "layer_norm_eps is -1e-12, it must be a number from 0 to 1"),
        ("hidden_dropout_prob", 2, "hidden_dropout_prob is 2, it must be a number from 0 to 1"),
        ("hidden_act", "silu", "hidden_act is 'silu', known are"),
        ("pooler", 1, "pooler 1; known are"),
        ("sizes", 1, "sizes 1; known are"),
    ],
)
def test_config_of_a_model_folder(source, name, value, said):
    ours = source.with_name("bert-ours")
    config = json.loads((ours / "config.json").read_text())
    config["architecture"][name] = value
    (ours / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError) as caught:
        folder.load(ours)
    assert said in str(caught.value) and "config.json: " in str(caught.value)


@pytest.mark.parametrize(
    "qa, said",
    [
        ('{"null_threshold": NaN}', "NaN"),
        ('{"null_threshold": 1e999}', "qa.json: "),
        ('{"null_threshold": "1"}', 'null_threshold is "1"; expected a number'),
        ('{"null_threshold": true}', "null_threshold is true; expected a number"),
        ('{"max_length": 384.5}', "max_length is 384.5; expected a whole number"),
        ('{"max_length": 1e9}', "expected a whole number"),
        ('{"max_length": 9223372036854775808}', "expected a number from 0 to 1,000,000"),
        ('{"overlap": -1}', "overlap is -1; expected a number from 0"),
        ('{"text_column": 7}', "text_column is 7; expected text"),
        ('{"tuning": []}', "tuning is []; expected an object"),
        ("[]", "holds a JSON list, expected an object"),
    ],
)
def test_qa_of_a_model_folder(tmp_path, qa, said):
    (tmp_path / "qa.json").write_text(qa)
    with pytest.raises(UserError) as caught:
        folder.read_qa(tmp_path)
    assert said in str(caught.value) and "qa.json: " in str(caught.value)


def test_qa_that_is_fine(tmp_path):
    qa = {"null_threshold": -2, "max_length": 384, "tuning": {}, "of": "others"}
    (tmp_path / "qa.json").write_text(json.dumps({**qa, "overlap": None, "max_question": None}))
    assert folder.read_qa(tmp_path) == qa
    (tmp_path / "qa.json").write_text('{"null_threshold": null}')
    assert folder.read_qa(tmp_path) == {"null_threshold": None}


def test_more_layers_than_tensors(source, tmp_path):
    """Said before a module of so many layers is made."""
    edit_json(source / "config.json", num_hidden_layers=999)
    assert "asks for 999 layers, but there are only 55 tensors" in refused(source, tmp_path / "m")
