"""Text classification: files, labels, splits, scores; training, resuming, predicting, exporting; every bad input."""

import csv
import gzip
import json
import os
import random
import signal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from bertqa import UserError
from bertqa.data.batches import WindowStore
from bertqa.data.labelled_texts import Texts, label_names, label_rows, read_texts, split
from bertqa.data.text_windows import text_windows
from bertqa.data.tokenizer import WordPiece
from bertqa.hf.convert import convert
from bertqa.hf.export import export
from bertqa.inference import probabilities
from bertqa.model import folder
from bertqa.predict import main as predict
from bertqa.reporting.run_folder import read_journal
from bertqa.settings import ClassificationSettings
from bertqa.train import main
from bertqa.training.classification import (
    Classification,
    balanced_weights,
    confusion,
    scores,
    table,
)

SHORT = [
    "--task",
    "classify",
    "--max-length",
    "24",
    "--batch-size",
    "8",
    "--lr",
    "3e-3",
    "--threads",
    "1",
    "--dropout",
    "0",
]
TIMES = ("time", "seconds", "windows_per_s", "tokens_per_s", "peak_memory_mb")


@pytest.fixture(scope="session")
def words(tmp_path_factory):
    """60 texts of letters in three classes, told by their first letter; commas, quotes and line breaks in them."""
    draw, path = random.Random(0), tmp_path_factory.mktemp("texts") / "words.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(["id", "text", "label", "second"])
        for number in range(60):
            first, label, second = [("x", "ex", "a"), ("y", "why", "b"), ("z", "zed", "c")][
                number % 3
            ]
            rest = draw.choices('abcdefghijklm,"\n', k=draw.randint(2, 9))
            out.writerow([f"r{number}", " ".join([first, *rest]), label, second])
    return path


def run(out, tiny_model, words, *more, status=0):
    assert (
        main(
            ["--weights", str(tiny_model), "--train", str(words), "--out", str(out), *SHORT, *more]
        )
        == status
    )
    return out


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_model, words):
    """A run of 48 steps, evaluated at every epoch of 6."""
    return run(
        tmp_path_factory.mktemp("classify") / "run",
        tiny_model,
        words,
        "--epochs",
        "8",
        "--split",
        "0.25",
    )


def events(where, kind):
    return [
        {key: value for key, value in record.items() if key not in TIMES}
        for record in read_journal(where / "metrics.jsonl")
        if record["event"] == kind
    ]


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def same(a, b):
    a, b = (load_file(x / "model.safetensors") for x in (a, b))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# ---- a run ----


def test_it_learns_and_leaves_a_whole_folder(trained, words):
    evals = events(trained, "eval")
    assert [record["step"] for record in evals] == list(range(6, 49, 6))
    assert (
        evals[-1]["accuracy"] == evals[-1]["macro_f1"] == 100
        and evals[-1]["loss"] < evals[0]["loss"] / 3
    )
    assert np.trace(evals[-1]["confusion"]) == 15 == np.sum(evals[-1]["confusion"])
    assert {path.name for path in trained.iterdir()} >= {
        "config.json",
        "metrics.jsonl",
        "best",
        "last",
        "previous",
        "predictions.jsonl",
        "rejected.jsonl",
        "summary.json",
    }
    config = folder.read_config(trained / "best")
    assert config["head"] == folder.CLASSES and config["labels"] == ["ex", "why", "zed"]
    assert json.loads((trained / "config.json").read_text())["settings"]["task"] == "classify"
    card = (trained / "best" / "README.md").read_text()
    assert (
        f"# {trained.name}\n" in card
    )  # the run's name, not that of best/ or of a temporary folder
    assert "pipeline_tag: text-classification" in card and "its classes are ex, why, zed" in card
    found = lines(trained / "predictions.jsonl")
    gold = {
        row["id"]: row["label"] for row in csv.DictReader(open(words, newline="", encoding="utf-8"))
    }
    assert len(found) == 15 and all(gold[row["id"]] == row["gold"] for row in found)
    assert all(abs(sum(row["probabilities"].values()) - 1) < 1e-9 for row in found)


def test_confusion_is_printed(tmp_path, tiny_model, words, capsys):
    run(tmp_path / "run", tiny_model, words, "--max-steps", "1")
    said = capsys.readouterr().err
    assert "a head for sequence-classification is drawn at random" in said
    assert (
        "60 texts" not in said
        and "train: " + str(words) + ": 42 texts (14 ex, 14 why, 14 zed)" in said
    )
    assert "right \\ predicted  ex  why  zed\n" in said and "last evaluation: accuracy " in said


@pytest.mark.parametrize("stop_at", [1, 9])
def test_stopped_and_resumed_equals_never_stopped(
    tmp_path, trained, tiny_model, words, stop_at, monkeypatch
):
    from bertqa.training import step

    update, calls = step.set_lr, []

    def counted(*args):
        calls.append(args)
        if len(calls) == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return update(*args)

    monkeypatch.setattr(step, "set_lr", counted)
    out = run(tmp_path / "run", tiny_model, words, "--epochs", "8", "--split", "0.25", status=130)
    assert main(["--resume", str(out)]) == 0
    assert same(out / "last", trained / "last") and same(out / "best", trained / "best")
    assert events(out, "train") == events(trained, "train") and events(out, "eval") == events(
        trained, "eval"
    )
    assert (out / "predictions.jsonl").read_bytes() == (trained / "predictions.jsonl").read_bytes()


def test_resume_refuses_other_data(tmp_path, tiny_model, words):
    data = tmp_path / "data.csv"
    data.write_bytes(words.read_bytes())
    out = run(tmp_path / "run", tiny_model, data, "--max-minutes", "1e-9")
    data.write_bytes(words.read_bytes().replace(b"zed", b"zet"))
    with pytest.raises(
        UserError, match="cannot resume, because .*labels was 'ex, why, zed', now 'ex, why, zet'"
    ):
        main(["--resume", str(out)])


def test_frozen_encoder_is_a_feature_extractor(tmp_path, tiny_model, words):
    out = run(tmp_path / "run", tiny_model, words, "--max-steps", "3", "--freeze", "encoder")
    before, after = (
        load_file(tiny_model / "model.safetensors"),
        load_file(out / "last" / "model.safetensors"),
    )
    assert all(
        torch.equal(after[name], before[name]) for name in before if name.startswith("encoder.")
    )
    assert set(after) - set(before) == {
        "encoder.pooler.weight",
        "encoder.pooler.bias",
        "classifier.weight",
        "classifier.bias",
    }


def test_a_classifier_is_trained_further(tmp_path, trained, tiny_model, words):
    """From a class head: evaluated before the first step; other classes are refused, unless a new head is asked for."""
    out = run(tmp_path / "more", trained / "best", words, "--split", "0.25", "--max-steps", "1")
    assert events(out, "eval")[0]["step"] == 0 and events(out, "eval")[0]["accuracy"] == 100
    other = tmp_path / "other.csv"
    other.write_bytes(words.read_bytes().replace(b"zed", b"zet"))
    with pytest.raises(
        UserError,
        match="its head knows the classes ex, why, zed, the training data has ex, why, zet; name",
    ):
        run(tmp_path / "refused", trained / "best", other)
    run(tmp_path / "fresh", trained / "best", other, "--fresh-head", "--max-steps", "1")
    assert folder.read_config(tmp_path / "fresh" / "best")["labels"] == ["ex", "why", "zet"]


def test_accumulation_keeps_class_weights_exact(tmp_path, tiny_model, words):
    # eps: the gradient of the keys' bias is nothing but rounding, which Adam would blow up to whole steps
    more = [
        "--max-steps",
        "8",
        "--class-weights",
        "balanced",
        "--limit-train",
        "50",
        "--eps",
        "1e-4",
    ]
    whole = load_file(
        run(tmp_path / "whole", tiny_model, words, *more) / "last" / "model.safetensors"
    )
    cut = load_file(
        run(tmp_path / "cut", tiny_model, words, *more, "--micro-tokens", "40")
        / "last"
        / "model.safetensors"
    )
    assert max(float((whole[name] - cut[name]).abs().max()) for name in whole) < 1e-5


def test_balanced_weights_by_hand(tmp_path, tiny_model):
    """3 texts of a, 1 of b (one of each class is held out): N / (C n) = 4 / (2 * 3) and 4 / (2 * 1)."""
    data = tmp_path / "few.csv"
    data.write_text("text,label\n" + "x,a\n" * 4 + "y,b\n" * 2)
    task = Classification(
        str(data),
        None,
        tiny_model,
        ClassificationSettings(class_weights="balanced", split=0.1),
        seed=0,
        device=torch.device("cpu"),
        say=lambda line: None,
        progress=False,
    )
    assert task.weight.tolist() == pytest.approx([4 / 6, 2])

    class Fixed(torch.nn.Module):
        def forward(self, ids, token_type_ids, lengths):
            return torch.zeros(len(lengths.lengths), 2)

    from bertqa.model.attention import Layout

    batch = task.store.batch(np.arange(4))
    loss = task.loss(Fixed(), batch, Layout.of(batch.lengths, torch.device("cpu")))
    assert float(loss) == pytest.approx((3 * 4 / 6 + 2) * np.log(2))


# ---- predicting ----


def test_predict_repeats_the_evaluation(tmp_path, trained, words, capsys):
    assert (
        predict(
            ["--model", str(trained / "best"), "--data", str(words), "--out", str(tmp_path / "p")]
        )
        == 0
    )
    found = {row["id"]: row for row in lines(tmp_path / "p" / "predictions.jsonl")}
    assert list(found) == [f"r{n}" for n in range(60)]
    for row in lines(trained / "predictions.jsonl"):
        assert found[row["id"]]["label"] == row["label"] and "gold" not in found[row["id"]]
        assert found[row["id"]]["probabilities"] == pytest.approx(row["probabilities"], abs=1e-6)


def test_predict_one_text(trained, capsys):
    assert predict(["--model", str(trained / "best"), "--text", "y a b"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 3 and said[0].startswith("why   [probability 0.")
    assert predict(["--model", str(trained / "best"), "--text", "x " * 99, "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["label"] == "ex" and "1 of 1 texts cut to 24 tokens" in shown.err


def test_predict_reads_plain_lines(tmp_path, trained):
    (tmp_path / "new.txt").write_text("z a\n\nx a\n")
    assert (
        predict(
            [
                "--model",
                str(trained / "best"),
                "--data",
                str(tmp_path / "new.txt"),
                "--out",
                str(tmp_path),
            ]
        )
        == 0
    )
    found = lines(tmp_path / "predictions.jsonl")
    assert (
        [row["id"] for row in found] == ["0", "1", "2"]
        and found[0]["label"] == "zed"
        and found[2]["label"] == "ex"
    )


def test_predict_mistakes(tmp_path, trained, tiny_model):
    with pytest.raises(
        UserError, match="its head is 'question-answering', but --text needs a classifier"
    ):
        predict(["--model", str(tiny_model), "--text", "a"])
    with pytest.raises(UserError, match="give either --data"):
        predict(["--model", str(trained / "best"), "--text", "a", "--data", "x"])
    (tmp_path / "x.csv").write_text("review\na\n")
    with pytest.raises(UserError, match='no column "text"; its columns are "review"'):
        predict(
            [
                "--model",
                str(trained / "best"),
                "--data",
                str(tmp_path / "x.csv"),
                "--out",
                str(tmp_path),
            ]
        )


@pytest.mark.parametrize("model_type", ["bert", "distilbert"])
def test_exported_logits_are_the_same_in_transformers(tmp_path, model_type, words):
    transformers = pytest.importorskip("transformers")
    from tiny_checkpoints import write_checkpoint

    write_checkpoint(tmp_path / "hf", model_type, head=None)
    convert(tmp_path / "hf", tmp_path / "start")
    out = run(tmp_path / "run", tmp_path / "start", words, "--max-steps", "3")
    export(out / "best", tmp_path / "exported")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "exported"
    ).eval()
    assert theirs.config.id2label == {0: "ex", 1: "why", 2: "zed"}
    texts = ["x a b c", "z", "y a , b"]
    batch = transformers.AutoTokenizer.from_pretrained(tmp_path / "exported")(
        texts, padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        expected = theirs(**batch).logits
        windows = text_windows(texts, WordPiece.load(out / "best"))
        packed = WindowStore(windows).batch(np.arange(3))
        ours = folder.load(out / "best")(
            packed.input_ids, token_type_ids=packed.token_type_ids, lengths=packed.lengths
        )
    assert (ours - expected).abs().max() < 1e-5
    convert(tmp_path / "exported", tmp_path / "again")
    assert same(tmp_path / "again", out / "best") and folder.read_config(tmp_path / "again")[
        "labels"
    ] == ["ex", "why", "zed"]


# ---- sequences ----


def sequences(windows):
    """(ids, segments) of every window."""
    batch = WindowStore(windows).batch(np.arange(len(windows)))
    return [
        tuple(part.tolist() for part in parts)
        for parts in zip(
            batch.input_ids.split(batch.lengths),
            batch.token_type_ids.split(batch.lengths),
            strict=True,
        )
    ]


def test_sequences_by_hand(tiny_model):
    wordpiece = WordPiece.load(tiny_model)
    a, b = wordpiece.encode(["a b"]).ids
    single = text_windows(
        ["a b", "", "a b a b"], wordpiece, labels=np.array([2, 0, 1]), max_length=5
    )
    assert sequences(single) == [
        ([2, a, b, 3], [0] * 4),
        ([2, 3], [0] * 2),
        ([2, a, b, a, 3], [0] * 5),
    ]
    assert single.classes.tolist() == [2, 0, 1] and single.cut == 1
    pairs = text_windows(["a b", "", "a"], wordpiece, pairs=["b", "a", ""], max_length=9)
    assert sequences(pairs) == [
        ([2, a, b, 3, b, 3], [0, 0, 0, 0, 1, 1]),
        ([2, 3, a, 3], [0, 0, 1, 1]),
        ([2, a, 3, 3], [0, 0, 0, 1]),
    ]


@pytest.mark.parametrize(
    ("first", "second", "kept"),
    [(9, 1, (6, 1)), (1, 9, (1, 6)), (9, 9, (4, 3)), (3, 4, (3, 4)), (4, 4, (4, 3))],
)
def test_of_a_pair_the_longer_is_cut(tiny_model, first, second, kept):
    windows = text_windows(
        ["a " * first], WordPiece.load(tiny_model), pairs=["b " * second], max_length=10
    )
    assert (windows.texts.counts[0], windows.seconds.counts[0]) == kept
    assert windows.cut == (first + second > 7)


def test_pairs_are_trained_and_predicted(tmp_path, tiny_model, words, capsys):
    out = run(tmp_path / "run", tiny_model, words, "--pair-column", "second", "--epochs", "6")
    assert events(out, "eval")[-1]["accuracy"] > 90
    assert (
        predict(
            [
                "--model",
                str(out / "best"),
                "--data",
                str(words),
                "--out",
                str(tmp_path),
                "--limit",
                "4",
            ]
        )
        == 0
    )
    assert len(lines(tmp_path / "predictions.jsonl")) == 4
    assert predict(["--model", str(out / "best"), "--text", "x a", "--pair", "a"]) == 0
    with pytest.raises(UserError, match=r"classifies pairs \(text, second\); give --pair TEXT too"):
        predict(["--model", str(out / "best"), "--text", "x a"])


# ---- files ----


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("plain.csv", 'text,label\n"say ""hi"",\nthen go",1\nb,0\n'),
        ("bom.csv", '\ufefftext,label\n"say ""hi"",\nthen go",1\nb,0\n'),
        ("windows.csv", 'text,label\r\n"say ""hi"",\nthen go",1\r\nb,0\r\n\r\n,\r\n'),
        ("semicolon.csv", 'n;text;label\n0;"say ""hi"",\nthen go";1\n1;b;0\n'),
        ("order.csv", 'label,other,text\n1,,"say ""hi"",\nthen go"\n0,,b\n'),
        ("quoted.tsv", 'text\tlabel\n"say ""hi"",\nthen go"\t1\nb\t0\n'),
        (
            "objects.jsonl",
            '{"text": "say \\"hi\\",\\nthen go", "label": 1}\n\n{"text": "b", "label": "0"}\n',
        ),
        (
            "pandas.jsonl",
            '{"text": "say \\"hi\\",\\nthen go", "label": 1.0}\n{"text": "b", "label": 0.0}\n',
        ),
        (
            "list.json",
            '[{"text": "say \\"hi\\",\\nthen go", "label": 1},\n {"text": "b", "label": 0}]',
        ),
    ],
)
def test_every_form_is_read_alike(tmp_path, name, content):
    (tmp_path / name).write_bytes(
        gzip.compress(content.encode()) if name.startswith("plain") else content.encode()
    )
    found = read_texts(tmp_path / name, "text", label_column="label")
    assert found.texts == ['say "hi",\nthen go', "b"] and found.labels == ["1", "0"]
    assert label_names(found.labels) == ["0", "1"] and label_rows(found, ["0", "1"]).tolist() == [
        1,
        0,
    ]


def test_a_tsv_without_quoting(tmp_path):
    (tmp_path / "glue.tsv").write_text('text\tlabel\n"Oh\tneg\nsaid she" and\tpos\n5" disk\tneg\n')
    found = read_texts(tmp_path / "glue.tsv", "text", label_column="label")
    assert found.texts == ['"Oh', 'said she" and', '5" disk'] and found.where == [
        "line 2",
        "line 3",
        "line 4",
    ]


def test_label_order():
    assert label_names(["10", "2", "-1", "2"]) == ["-1", "2", "10"]
    assert label_names(["10", "two"]) == ["10", "two"]


def rows_of(labels):
    return Texts(
        "x",
        "",
        [f"line {n}" for n in range(len(labels))],
        [str(n) for n in range(len(labels))],
        list(labels),
        labels=list(labels),
    )


def test_split_is_stratified_by_seed():
    texts = rows_of("a" * 70 + "b" * 20 + "c" * 2 + "d")
    kept, held = split(texts, 0.3, seed=0)
    assert {name: held.labels.count(name) for name in "abcd"} == {"a": 21, "b": 6, "c": 1, "d": 0}
    assert sorted([*kept.ids, *held.ids], key=int) == texts.ids and held.ids == sorted(
        held.ids, key=int
    )
    assert split(texts, 0.3, seed=0)[1].ids == held.ids != split(texts, 0.3, seed=1)[1].ids
    assert split(rows_of("aabb"), 0.99, seed=0)[0].labels == ["a", "b"]


def test_weights_of_classes_by_hand():
    """30 and 10 texts: 40 / (2 * 30) and 40 / (2 * 10); a class without any text divides by nothing."""
    assert balanced_weights(np.array([30, 10])) == pytest.approx([2 / 3, 2])
    assert balanced_weights(np.array([3, 0, 1])) == pytest.approx([4 / 9, 4 / 3, 4 / 3])


def test_probabilities_are_in_their_order_and_sum_to_one():
    logits = np.log(np.array([[1.0, 6.0, 3.0], [2.0, 2.0, 2.0]], np.float32))
    first, equal = probabilities(logits, ["a", "b", "c"])
    assert list(first) == ["b", "c", "a"] and list(equal) == ["a", "b", "c"]
    assert list(first.values()) == pytest.approx([0.6, 0.3, 0.1])
    assert sum(equal.values()) == pytest.approx(1)


def test_scores_by_hand():
    matrix = confusion(np.array([0, 0, 1, 2, 2, 2]), np.array([0, 1, 1, 2, 2, 0]), 4)
    assert matrix.tolist() == [[1, 1, 0, 0], [0, 1, 0, 0], [1, 0, 2, 0], [0, 0, 0, 0]]
    # F1 of the classes: 2*1/(2+2), 2*1/(1+2), 2*2/(3+2); the fourth occurs nowhere and does not count
    assert scores(matrix) == pytest.approx(
        {"accuracy": 100 * 4 / 6, "macro_f1": 100 * (1 / 2 + 2 / 3 + 4 / 5) / 3}
    )
    assert table([[10, 2], [0, 3]], ["no", "perhaps"]) == (
        "right \\ predicted  no  perhaps\nno                 10        2\nperhaps             0        3"
    )
    found = probabilities(np.log(np.array([[1.0, 3.0]])) + 900, ["a", "b"])[0]
    assert list(found) == ["b", "a"] and found == pytest.approx({"a": 0.25, "b": 0.75})


# ---- bad input ----

LABELLED = "text,label\n" + "a,x\nb,y\n" * 4


@pytest.mark.parametrize(
    ("content", "flags", "says"),
    [
        (
            LABELLED.replace("label", "stars"),
            [],
            r'the header has no column "label"; its columns are "text", "stars"; say '
            "which with --text-column, --label-column",
        ),
        (
            LABELLED,
            ["--text-column", "review"],
            'the header has no column "review"; its columns are "text", "label"',
        ),
        (LABELLED, ["--pair-column", "other"], 'the header has no column "other"'),
        (
            LABELLED.replace(",y", ",x"),
            [],
            "data.csv: all 6 labels are 'x'; a classifier needs at least two",
        ),
        (
            LABELLED.replace("a,x", "a,", 1),
            [],
            r'line 2: the label "label" is ""; it must be a name or a whole number',
        ),
        ('{"text": "a", "label": null}\n' * 2, [], 'line 1: the label "label" is null'),
        ('{"text": "a", "label": 0.5}\n' * 2, [], 'line 1: the label "label" is 0.5'),
        ("text,label\na,x\nb,y\n", [], "data.csv: no text is left for dev; give more texts"),
        (
            LABELLED.replace("a,x\n", 'a "b,x\n').replace("b,y\n", '"b,y\n', 1),
            [],
            "data.csv: .*row that begins on line 3",
        ),
        (LABELLED + "a,b,x\n", [], "line 10: has 3 cells, the header 2"),
        ("text,label\n,x\n,y\n" * 1 + ",x\n,y\n", [], "data.csv: no text is left for train"),
        (LABELLED, ["--split", "1"], "split is 1.0, it must lie in"),
        (
            LABELLED,
            ["--max-length", "65"],
            "max_length is 65, it must be at least 4 and at most the model's 64 positions",
        ),
        (LABELLED, ["--limit-train", "0"], "limit_train is 0"),
    ],
)
def test_mistakes_are_explained(tmp_path, tiny_model, content, flags, says):
    (tmp_path / "data.csv").write_text(content)
    with pytest.raises(UserError, match=says):
        run(tmp_path / "run", tiny_model, tmp_path / "data.csv", *flags)
    assert not (tmp_path / "run").exists()


def test_dev_labels_must_be_known(tmp_path, tiny_model, words):
    (tmp_path / "dev.csv").write_text("text,label\nx,ex\ny,Why\nz,zed\nz,Zed\n")
    with pytest.raises(
        UserError,
        match=r'dev.csv: 2 of 4 labels were not seen in training: "Why" \(first: line 3\), "Zed" '
        r'\(first: line 5\); known are "ex", "why", "zed"',
    ):
        run(tmp_path / "run", tiny_model, words, "--dev", str(tmp_path / "dev.csv"))
    with pytest.raises(UserError, match="--split cuts a dev set .* leave one out"):
        run(tmp_path / "run", tiny_model, words, "--dev", str(words), "--split", "0.2")


def test_empty_texts_are_left_out_of_training_only(tmp_path, tiny_model, capsys):
    (tmp_path / "train.csv").write_text(LABELLED + '"",x\n" \n",y\n')
    (tmp_path / "dev.csv").write_text('text,label\n"",x\nb,y\n')
    out = run(
        tmp_path / "run",
        tiny_model,
        tmp_path / "train.csv",
        "--dev",
        str(tmp_path / "dev.csv"),
        "--max-steps",
        "1",
    )
    said = capsys.readouterr().err
    assert "8 texts (4 x, 4 y)" in said and "2 empty ones left out (-> rejected.jsonl)" in said
    assert "2 texts (1 x, 1 y)" in said and "1 of them empty" in said
    assert lines(out / "rejected.jsonl") == [
        {"where": f"line {n}", "reason": "the text is empty"} for n in (10, 11)
    ]
    assert len(lines(out / "predictions.jsonl")) == 2


# ---- the command line ----


def test_help_shows_the_flags_of_the_task(capsys):
    for task, shown, hidden in (
        ("classify", "--label-column", "--overlap"),
        ("qa", "--overlap", "--label-column"),
    ):
        with pytest.raises(SystemExit):
            main(["--task", task, "--help"])
        said = capsys.readouterr().out
        assert shown in said and hidden not in said


def test_a_preset_gives_what_the_task_has(tmp_path, tiny_model, words, capsys):
    run(tmp_path / "run", tiny_model, words, "--preset", "google", "--max-steps", "1")
    assert "preset google: max_length 384, batch_size 12, lr 3e-05" in capsys.readouterr().err
    with pytest.raises(UserError, match="unknown 'overlap'"):
        (tmp_path / "c.json").write_text('{"task": "classify", "overlap": 4}')
        main(["--config", str(tmp_path / "c.json")])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("freeze", "flags", "least"),
    [
        ("none", ["--epochs", "3", "--lr", "1e-4"], 75),
        ("encoder", ["--epochs", "10", "--lr", "3e-3"], 70),
    ],
)
def test_the_sample_is_learnt(shared, tmp_path, freeze, flags, least):
    """all-MiniLM-L6-v2 on the bundled reviews, with the encoder trained and frozen: clearly above chance."""
    weights = shared / "weights" / "all-MiniLM-L6-v2"
    if not weights.is_dir():
        pytest.skip("all-MiniLM-L6-v2 is missing")
    convert(weights, tmp_path / "minilm")
    assert (
        main(
            [
                "--task",
                "classify",
                "--weights",
                str(tmp_path / "minilm"),
                "--out",
                str(tmp_path / "run"),
                "--freeze",
                freeze,
                *flags,
            ]
        )
        == 0
    )
    assert max(record["accuracy"] for record in events(tmp_path / "run", "eval")) > least
