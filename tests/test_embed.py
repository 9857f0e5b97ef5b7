"""Vectors of texts: those of transformers and of sentence-transformers, in the order of the input, whatever the batches."""

import gzip
import json
import os
import threading

import numpy as np
import pytest
import torch
from safetensors import safe_open
from tiny_checkpoints import write_checkpoint

from bertqa import UserError, load_encoder, vectors
from bertqa.data.tokenizer import WordPiece
from bertqa.embed import main
from bertqa.hf.convert import convert
from bertqa.model import folder, prepack
from bertqa.vectors import embed_texts

TEXTS = [
    "i love paris",
    "",
    "a",
    "word1 é 中 x1",
    "the quick brown fox jumps over 123 lazy dogs",
    "b c",
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A random BERT with a pooler, in Hugging Face's form."""
    return write_checkpoint(tmp_path_factory.mktemp("embed") / "bert", head=None, pooler=True)


@pytest.fixture(scope="module")
def ours(checkpoint):
    return converted(checkpoint)


def converted(checkpoint):
    """(encoder, tokenizer, model folder) of a Hugging Face folder."""
    where = checkpoint.with_name(checkpoint.name + "-converted")
    convert(checkpoint, where)
    return load_encoder(where), WordPiece.load(where), where


def theirs(checkpoint, texts):
    """transformers on a padded batch: its output, and the mask (B, L)."""
    transformers = pytest.importorskip("transformers")
    batch = transformers.AutoTokenizer.from_pretrained(checkpoint)(
        texts, padding=True, truncation=True, max_length=256, return_tensors="pt"
    )
    model = transformers.AutoModel.from_pretrained(checkpoint).eval()
    with torch.no_grad():
        return model(**batch, output_hidden_states=True), batch["attention_mask"].bool()


def test_every_state_is_that_of_transformers(checkpoint, ours):
    out, mask = theirs(checkpoint, TEXTS)
    tokens = embed_texts(*ours[:2], TEXTS, pool="none")
    assert np.abs(tokens.vectors - out.last_hidden_state[mask].numpy()).max() < 1e-5
    assert np.diff(tokens.rows).tolist() == mask.sum(1).tolist()
    layers = embed_texts(*ours[:2], TEXTS, pool="none", layer="all").vectors  # (N, layers + 1, H)
    assert layers.shape[1:] == (4, 32)
    assert np.abs(layers - torch.stack(out.hidden_states, 2)[mask].numpy()).max() < 1e-5
    pooler = embed_texts(*ours[:2], TEXTS, pool="pooler").vectors
    assert np.abs(pooler - out.pooler_output.numpy()).max() < 1e-5
    first = embed_texts(*ours[:2], TEXTS, pool="cls", layer=2).vectors
    assert np.abs(first - out.hidden_states[2][:, 0].numpy()).max() < 1e-5


def test_distilbert_too(tmp_path):
    where = write_checkpoint(tmp_path / "distil", "distilbert", head=None)
    out, mask = theirs(where, TEXTS)
    encoder, tokenizer, _ = converted(where)
    found = embed_texts(encoder, tokenizer, TEXTS, pool="none", layer="all").vectors
    assert np.abs(found - torch.stack(out.hidden_states, 2)[mask].numpy()).max() < 1e-5
    with pytest.raises(UserError, match="no pooler .*DistilBERT"):
        embed_texts(encoder, tokenizer, TEXTS, pool="pooler")


def test_sentence_vectors_of_minilm(shared, tmp_path):
    """What the model card of all-MiniLM-L6-v2 tells to do with transformers: mean over the mask, then length 1."""
    if not (shared / "weights" / "all-MiniLM-L6-v2").is_dir():
        pytest.skip("all-MiniLM-L6-v2 is missing")
    articles = json.loads(
        gzip.decompress((shared / "data" / "squad2-dev-2k.json.gz").read_bytes())
    )["data"]
    paragraphs = [paragraph for article in articles for paragraph in article["paragraphs"]]
    texts = [paragraph["qas"][0]["question"] for paragraph in paragraphs[:45]] + [
        p["context"] for p in paragraphs[:5]
    ]
    out, mask = theirs(shared / "weights" / "all-MiniLM-L6-v2", texts)
    weight = mask[..., None].float()
    expected = torch.nn.functional.normalize(
        (out.last_hidden_state * weight).sum(1) / weight.sum(1), p=2, dim=1
    )
    convert(shared / "weights" / "all-MiniLM-L6-v2", tmp_path / "minilm")
    found = embed_texts(
        load_encoder(tmp_path / "minilm"),
        WordPiece.load(tmp_path / "minilm"),
        texts,
        normalize=True,
        max_length=256,
    )
    assert (
        found.vectors.shape == (50, 384) and np.abs(found.vectors - expected.numpy()).max() < 1e-5
    )
    assert np.abs(np.linalg.norm(found.vectors, axis=1) - 1).max() < 1e-6


def test_batches_change_nothing_and_order_is_kept(ours, monkeypatch):
    alone = np.concatenate([embed_texts(*ours[:2], [text]).vectors for text in TEXTS])
    for budget in (1, 12, 4096):
        monkeypatch.setattr("bertqa.inference.TOKENS", {"cpu": budget})
        assert np.abs(embed_texts(*ours[:2], TEXTS).vectors - alone).max() < 1e-6
        rows = embed_texts(*ours[:2], TEXTS, pool="none")
        means = [
            rows.vectors[a:b].mean(0) for a, b in zip(rows.rows[:-1], rows.rows[1:], strict=True)
        ]
        assert np.abs(np.stack(means) - alone).max() < 1e-6


def test_spans_say_which_characters_a_vector_is_of(ours):
    found = embed_texts(*ours[:2], TEXTS, pool="none")
    pieces = [
        TEXTS[row][a:b]
        for row in range(len(TEXTS))
        for a, b in found.spans[found.rows[row] + 1 : found.rows[row + 1] - 1]
    ]
    assert "".join(pieces) == "".join(TEXTS).replace(" ", "")
    assert (found.spans[found.rows[:-1]] == -1).all() and (
        found.spans[found.rows[1:] - 1] == -1
    ).all()


def test_long_texts_are_cut_and_counted(ours):
    texts = ["a " * 600, "a " * 510, "b"]
    found = embed_texts(*ours[:2], texts)
    assert found.cut == 1 and found.tokens == 512 + 512 + 3
    assert (
        np.abs(found.vectors[0] - found.vectors[1]).max() < 1e-6
    )  # what is left of it is the same
    assert embed_texts(*ours[:2], texts, max_length=3).cut == 2


# ---- the verb ----


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("lines.txt", "i love paris\n\na, b\n"),
        ("windows.txt", "\ufeffi love paris\r\n\r\na, b\r\n"),
        ("table.csv", 'id,text\nx,i love paris\ny,""\nz,"a, b"\n'),
        ("one.csv", 'text\ni love paris\n""\n"a, b"\n'),
        ("table.tsv", "id\ttext\nx\ti love paris\ny\t\nz\ta, b\n"),
        (
            "table.jsonl",
            '{"id": 1, "text": "i love paris"}\n{"id": 2, "text": ""}\n{"id": 3, "text": "a, b"}\n',
        ),
    ],
)
def test_files_in_vectors_out(tmp_path, ours, name, content, capsys):
    # The verb's products are packed; on some versions of torch their last bit is another than of plain ones.
    encoder = prepack.pack(ours[0], torch.float32)
    expected = embed_texts(encoder, ours[1], ["i love paris", "", "a, b"], normalize=True).vectors
    path = tmp_path / (name + ".gz")
    path.write_bytes(gzip.compress(content.encode()))
    out = tmp_path / "vectors.npy"
    assert (
        main(["--model", str(ours[2]), "--data", str(path), "--out", str(out), "--normalize"]) == 0
    )
    found = np.load(out)
    assert found.dtype == np.float32 and np.array_equal(found, expected)
    ids = json.loads((tmp_path / "vectors.ids.json").read_text())
    assert ids == {
        "table.csv": ["x", "y", "z"],
        "table.tsv": ["x", "y", "z"],
        "table.jsonl": ["1", "2", "3"],
    }.get(name, ["0", "1", "2"])
    assert "3 texts, 1 of them empty, " in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {
        name + ".gz",
        "vectors.npy",
        "vectors.ids.json",
    }


def test_what_was_stopped_goes_on_and_ends_in_the_same_bytes(tmp_path, ours, monkeypatch):
    monkeypatch.setattr("bertqa.embed_files.SHARE", 2)
    (tmp_path / "texts.txt").write_text("\n".join(["a b c", "d", "e f", "g h i j", "k"]))
    ask = ["--model", str(ours[2]), "--data", str(tmp_path / "texts.txt"), "--out"]
    assert main([*ask, str(tmp_path / "whole.npy")]) == 0
    with pytest.raises(UserError, match="whole.npy: is there already"):
        main([*ask, str(tmp_path / "whole.npy"), "--resume"])

    class Stopped(Exception):
        pass

    calls, compute = [], vectors.embed_texts

    def stopping(encoder, tokenizer, texts, **settings):
        calls.append(len(texts))
        if len(calls) == 2:
            raise Stopped
        return compute(encoder, tokenizer, texts, **settings)

    out = tmp_path / "stopped.npy"
    monkeypatch.setattr(vectors, "embed_texts", stopping)
    with pytest.raises(Stopped):
        main([*ask, str(out)])
    assert not out.exists() and (tmp_path / "stopped.npy.part").exists()
    with pytest.raises(UserError, match="begun with something else: normalize was False"):
        main([*ask, str(out), "--resume", "--normalize"])
    assert main([*ask, str(out), "--resume"]) == 0
    assert calls == [2, 2, 2, 1]  # the first two texts were not embedded again
    assert out.read_bytes() == (tmp_path / "whole.npy").read_bytes()
    assert not list(tmp_path.glob("*.part*")) and (tmp_path / "stopped.ids.json").exists()


def test_safetensors_hold_tokens_and_ids(tmp_path, ours):
    path, out = tmp_path / "texts.csv", tmp_path / "tokens.safetensors"
    path.write_text("note\na b\nc\n")
    assert (
        main(
            [
                "--model",
                str(ours[2]),
                "--data",
                str(path),
                "--text-column",
                "note",
                "--out",
                str(out),
                "--pool",
                "none",
                "--layer",
                "all",
            ]
        )
        == 0
    )
    with safe_open(out, "np") as file:
        assert file.get_tensor("vectors").shape == (7, 4, 32) and file.get_tensor(
            "rows"
        ).tolist() == [0, 4, 7]
        assert file.get_tensor("spans").tolist() == [
            [-1, -1],
            [0, 1],
            [2, 3],
            [-1, -1],
            [-1, -1],
            [0, 1],
            [-1, -1],
        ]
        assert json.loads(file.metadata()["ids"]) == ["0", "1"]
        assert json.loads(file.metadata()["settings"])["layer"] == "all"


def test_one_text_is_printed(ours, capsys):
    assert main(["--model", str(ours[2]), "--text", "i love paris", "--pool", "cls"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert np.allclose(
        shown, embed_texts(*ours[:2], ["i love paris"], pool="cls").vectors[0], atol=1e-7
    )


def test_any_folder_will_do(tmp_path, checkpoint, tiny_model, monkeypatch, capsys):
    """A Hugging Face folder, and a folder with a head, whose encoder has lost its pooler."""
    monkeypatch.chdir(tmp_path)
    assert main(["--model", str(checkpoint), "--text", "a"]) == 0
    assert main(["--model", str(tiny_model), "--text", "a"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    with pytest.raises(UserError, match="this encoder has no pooler .*use pool cls or mean"):
        main(["--model", str(tiny_model), "--text", "a", "--pool", "pooler"])


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ([], "give either --text TEXT, or --data"),
        (["--data", "x.txt"], "--data needs --out"),
        (
            ["--data", "x.txt", "--out", "v.csv"],
            r"v.csv: vectors are written as .npy or .safetensors",
        ),
        (
            ["--data", "x.txt", "--out", "v.npy", "--pool", "none"],
            "cannot say which text a token belongs to",
        ),
        (["--data", "/nowhere.txt", "--out", "v.npy"], "/nowhere.txt: there is no such file"),
        (["--text", "a", "--layer", "last"], "--layer last: give a number"),
        (["--text", "a", "--layer", "9"], "layer is 9, but this encoder has layers 1 to 2"),
        (["--text", "a", "--max-length", "65"], "max_length is 65, use 3 to 64"),
        (["--text", "a", "--model", "/nowhere/at/all"], "/nowhere/at/all"),
    ],
)
def test_mistakes_are_explained(tmp_path, tiny_model, monkeypatch, flags, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.txt").write_text("a\n")
    with pytest.raises(UserError, match=says):
        main(["--model", str(tiny_model), *flags])
    assert [path.name for path in tmp_path.iterdir()] == ["x.txt"]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        (
            "a.csv",
            b"review,stars\nx,1\n",
            r'a.csv: the header has no column "text"; its columns are "review", "stars"; say which '
            "with --text-column",
        ),
        (
            "a.jsonl",
            b'{"text": "a"}\n{"txet": "a"}\n',
            r'line 2 has no column "text"; its columns are "txet"',
        ),
        ("a.jsonl", b'{"text": "a"}\n{"text": 5}\n', r'line 2: "text" must be text, not 5'),
        ("a.jsonl", b'{"text": "a"}\n{"te', "line 2"),
        ("a.csv", b'text,label\n"a,1\n', "cut off: the CSV row that begins on line 2"),
        ("a.csv", b"text,label\na,1,2\n", "line 2: has 3 cells, the header 2"),
        ("a.csv", b"text,label\n", "a.csv: has a header, but no rows"),
        ("a.txt", b"", "a.txt: is empty"),
        ("a.txt", b"caf\xe9\n", "not UTF-8: byte 0xe9 at offset 3"),
    ],
)
def test_bad_files(tmp_path, tiny_model, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=says):
        main(
            [
                "--model",
                str(tiny_model),
                "--data",
                str(tmp_path / name),
                "--out",
                str(tmp_path / "v.npy"),
            ]
        )
    assert not list(tmp_path.glob("v.*"))


def test_heads_of_every_kind(tmp_path):
    for head, labels in ((folder.QA, None), (folder.CLASSES, ["a", "b"])):
        encoder, tokenizer, where = converted(
            write_checkpoint(tmp_path / head, head=head, labels=labels)
        )
        model, ids = folder.load(where), tokenizer.encode(["i love paris"]).ids
        packed = torch.tensor([2, *ids.tolist(), 3])
        expected = model.encoder(packed, lengths=[len(packed)]).last_hidden_state[0]
        found = embed_texts(encoder, tokenizer, ["i love paris"], pool="cls").vectors[0]
        assert np.allclose(found, expected.detach().numpy(), atol=1e-6)


def test_more_threads_than_any_machine_has_are_refused(ours):
    """OpenMP would end the process by a segmentation fault."""
    with pytest.raises(UserError, match="--threads 100000: give 1 to"):
        main(["--model", str(ours[2]), "--text", "a", "--threads", "100000"])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_texts_from_a_pipe_with_a_name(ours, tmp_path):
    """--data <(cat texts.txt): it can be read once."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    threading.Thread(target=pipe.write_text, args=["a\nb c\n"], daemon=True).start()
    out = tmp_path / "vectors.npy"
    assert main(["--model", str(ours[2]), "--data", str(pipe), "--out", str(out)]) == 0
    assert np.load(out).shape[0] == 2
