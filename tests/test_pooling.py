"""Encoders of sentence-transformers: their pooling, length and normalisation are what `embed` does where no flag says."""

import json
import shutil
from pathlib import Path

import pytest
from tiny_checkpoints import refused, write_checkpoint

from bertqa import embed
from bertqa.hf.convert import convert, resolve_weights
from bertqa.model import folder
from bertqa.model.record import Embedding, read_embed

TRANSFORMER = {"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"}
POOLING = {"idx": 1, "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}
NORMALIZE = {"idx": 2, "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"}
DENSE = {"idx": 2, "path": "2_Dense", "type": "sentence_transformers.models.Dense"}


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    where = tmp_path_factory.mktemp("sentences") / "bert"
    return write_checkpoint(where, head=None, pooler=True)


@pytest.fixture
def source(original, tmp_path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "bert"))


def make(source: Path, *modules: dict, pooling: dict | None = None, **settings) -> Path:
    """Put the files of sentence-transformers beside a checkpoint."""
    (source / "modules.json").write_text(json.dumps([TRANSFORMER, *modules]))
    (source / "sentence_bert_config.json").write_text(json.dumps(settings))
    (source / "1_Pooling").mkdir()
    (source / "1_Pooling" / "config.json").write_text(json.dumps(pooling or {}))
    return source


def test_pooling_of_another_folder(source, tmp_path):
    """The number in its name is the module's place: it is read where it is, and a change of it is noticed."""
    make(source, {**POOLING, "path": "2_Pooling"})
    (source / "1_Pooling").rename(source / "2_Pooling")
    settings = source / "2_Pooling" / "config.json"
    settings.write_text(json.dumps(CLS))
    first = resolve_weights(source, tmp_path / "cache")
    assert read_embed(first).pool == "cls"
    settings.write_text(json.dumps(MEAN))
    second = resolve_weights(source, tmp_path / "cache")
    assert read_embed(second).pool == "mean" and second != first


CLS = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
MEAN = {"word_embedding_dimension": 32, "pooling_mode_cls_token": False} | {
    "pooling_mode_mean_tokens": True
}


@pytest.mark.parametrize(
    "modules, pooling, settings, expected",
    [
        ([POOLING, NORMALIZE], MEAN, {"max_seq_length": 16}, Embedding("mean", True, 16)),
        ([POOLING], CLS, {"max_seq_length": 9999}, Embedding("cls", False, 512)),
        ([POOLING], CLS, {"max_seq_length": None}, Embedding("cls", False, None)),
        ([POOLING], {"pooling_mode": "cls"}, {}, Embedding("cls", False, None)),
        ([POOLING], {**MEAN, "pooling_mode_cls_token": True}, {}, Embedding(None, False, None)),
        ([POOLING], {"pooling_mode_max_tokens": True}, {}, Embedding(None, False, None)),
        ([], {}, {}, Embedding(None, False, None)),
    ],
)
def test_what_is_taken_over(source, tmp_path, modules, pooling, settings, expected):
    report = convert(make(source, *modules, pooling=pooling, **settings), tmp_path / "mine")
    assert read_embed(tmp_path / "mine") == expected
    assert "embed's defaults are those of sentence-transformers" in str(report)
    unknown = "warning: its Pooling is neither mean nor cls alone" in str(report)
    assert unknown == (expected.pool is None and POOLING in modules)
    # and it stays with the encoder
    folder.save(tmp_path / "saved", folder.load(tmp_path / "mine"))
    assert read_embed(tmp_path / "saved") == expected


def test_what_embed_does_not_compute_is_said(source, tmp_path):
    made = make(source, POOLING, DENSE, pooling=MEAN, do_lower_case=True)
    report = str(convert(made, tmp_path / "mine"))
    assert "warning: embed does not compute its Dense; its vectors will differ" in report
    assert "has do_lower_case true: sentence-transformers lower-cases texts first" in report


def test_a_plain_checkpoint_has_none(source, tmp_path):
    report = convert(source, tmp_path / "mine")
    assert not (tmp_path / "mine" / "embed.json").exists()
    assert read_embed(tmp_path / "mine") == Embedding(None, None, None)
    assert "sentence-transformers" not in str(report)


def test_a_head_has_no_use_for_it(source, tmp_path):
    made = make(source, POOLING, NORMALIZE, pooling=MEAN)
    convert(made, tmp_path / "mine", fresh_head="qa")
    assert not (tmp_path / "mine" / "embed.json").exists()


def vector(capsys, model: Path, *flags: str) -> list[float]:
    assert embed.main(["--model", str(model), "--text", "a b c d e f", *flags]) == 0
    return json.loads(capsys.readouterr().out)


def test_embed_goes_by_it_where_no_flag_says(source, original, tmp_path, capsys):
    made = make(source, POOLING, NORMALIZE, pooling=CLS, max_seq_length=5)
    convert(made, tmp_path / "made")
    convert(original, tmp_path / "plain")
    stated = ["--pool", "cls", "--normalize", "--max-length", "5"]
    assert vector(capsys, tmp_path / "made") == vector(capsys, tmp_path / "plain", *stated)
    assert vector(capsys, tmp_path / "made") != vector(capsys, tmp_path / "plain")
    flags = ["--pool", "mean", "--no-normalize", "--max-length", "512"]
    assert vector(capsys, tmp_path / "made", *flags) == vector(capsys, tmp_path / "plain")


@pytest.mark.parametrize(
    "file, content, said",
    [
        ("modules.json", "{}", "expected a list of modules"),
        ("modules.json", "[7]", "expected a list of modules"),
        ("sentence_bert_config.json", '{"max_seq_length": "16"}', 'max_seq_length is "16"'),
        ("sentence_bert_config.json", '{"max_seq_length": 0}', "max_seq_length is 0"),
        ("1_Pooling/config.json", "[]", "expected an object"),
    ],
)
def test_files_that_it_does_not_write(source, tmp_path, file, content, said):
    made = make(source, POOLING, pooling=MEAN)
    (made / file).write_text(content)
    assert said in refused(made, tmp_path / "mine")


@pytest.mark.parametrize("path", ["../elsewhere", "/etc", "a/b"])
def test_a_path_that_leads_elsewhere_is_not_read(source, tmp_path, path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "config.json").write_text(json.dumps(CLS))
    made = make(source, {**POOLING, "path": path}, pooling=MEAN)
    convert(made, tmp_path / "mine")
    assert read_embed(tmp_path / "mine").pool is None


@pytest.mark.parametrize(
    "content, said",
    [
        ('{"pool": 7}', "pool is 7; expected text"),
        ('{"normalize": 1}', "normalize is 1; expected true or false"),
        ('{"max_length": true}', "max_length is true; expected a whole number"),
    ],
)
def test_embed_json_is_checked(tmp_path, content, said):
    (tmp_path / "embed.json").write_text(content)
    with pytest.raises(folder.UserError, match=said):
        read_embed(tmp_path)
