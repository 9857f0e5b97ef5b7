"""The Reader and the predict verb: files, one question, thresholds, long and odd texts."""

import dataclasses
import io
import json

import pytest

from bertqa import Answer, Reader, UserError
from bertqa.model import folder
from bertqa.predict import main
from bertqa.score import main as score


@pytest.fixture(scope="module")
def reader(tiny_model):
    made = Reader.load(tiny_model)
    made.qa.update(max_length=32, overlap=4, max_question=8)
    return made


def test_answers_are_cut_from_the_text(reader):
    for context in ("a b c d e f", "x " * 500, "Ä É 東京 a b", "a"):
        answer = reader.answer("where is a?", context, allow_no_answer=False)
        assert isinstance(answer, Answer) and answer.answer == context[answer.start : answer.end] != ""
        assert 0 < answer.score <= 1
    assert set(dataclasses.asdict(answer)) == {"answer", "score", "start", "end", "document"}


@pytest.mark.parametrize("context", ["", "   ", "\n\t", "\u200b"])
def test_nothing_to_answer_from(reader, context):
    assert reader.answer("where is a?", context).answer == ""
    assert reader.answer("where is a?", context, allow_no_answer=False).answer == ""


def test_top_k_is_sorted_distinct_and_sums_below_one(reader):
    answers = reader.answer("where is a?", "a b c d e f g", top_k=5, allow_no_answer=False)
    assert len(answers) == 5 == len({a.answer for a in answers})
    scores = [a.score for a in answers]
    assert scores == sorted(scores, reverse=True) and sum(scores) <= 1 + 1e-9


def test_the_threshold_decides(reader):
    assert reader.answer("where is a?", "a b c", threshold=-1e9).answer == ""
    assert reader.answer("where is a?", "a b c", threshold=1e9).answer != ""


def test_many_keep_their_order_and_equal_one_by_one(reader, monkeypatch):
    monkeypatch.setattr("bertqa.reader.CHUNK", 4)
    pairs = [("where is a?", "a " + "b c d " * n) for n in (9, 1, 30, 2, 5, 0, 7)]
    many = list(reader.answer_many(iter(pairs), allow_no_answer=False))
    for (question, context), answer in zip(pairs, many, strict=True):
        alone = reader.answer(question, context, allow_no_answer=False)
        assert (answer.answer, answer.start) == (alone.answer, alone.start)
        assert answer.score == pytest.approx(alone.score, abs=1e-6)


def test_files_in_files_out_and_scored(tmp_path, tiny_model, letters, capsys):
    qa = {"max_length": 32, "overlap": 4, "max_question": 8, "null_threshold": 0.5}
    model = tmp_path / "model"
    folder.save(model, folder.load(tiny_model), tokenizer_from=tiny_model, provenance={}, qa=qa)
    out = tmp_path / "out"
    assert main(["--model", str(model), "--data", str(letters), "--out", str(out)]) == 0
    predictions = json.loads((out / "predictions.json").read_text())
    odds = json.loads((out / "null_odds.json").read_text())
    ranked = json.loads((out / "nbest_predictions.json").read_text())
    assert list(predictions) == [f"q{n}" for n in range(53)] == list(odds) == list(ranked)
    assert all((predictions[q] == "") == (odds[q] > 0.5) for q in odds)
    assert {"text", "probability", "start_logit", "end_logit"} <= ranked["q0"][0].keys()
    capsys.readouterr()
    assert score([str(letters), str(out / "predictions.json"), "--na-prob-file", str(out / "null_odds.json")]) == 0
    assert {"exact", "f1", "total", "best_f1"} <= json.loads(capsys.readouterr().out).keys()
    assert main(["--model", str(model), "--data", str(letters), "--out", str(out), "--threshold", "none"]) == 0
    assert "" not in json.loads((out / "predictions.json").read_text()).values()


def test_one_question_from_arguments_file_and_pipe(tmp_path, tiny_model, capsys, monkeypatch):
    text = tmp_path / "text.txt"
    text.write_text("a b c d")
    monkeypatch.setattr("sys.stdin", io.StringIO("a b c d"))
    said = []
    for source in (["--context", "a b c d"], ["--context-file", str(text)], ["--context-file", "-"]):
        assert main(["--model", str(tiny_model), "--question", "where is a?", *source, "--json", "--threshold", "none",
                     "--top-k", "2"]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] == said[2] and len(said[0].splitlines()) == 2
    assert json.loads(said[0].splitlines()[0])["answer"]


@pytest.mark.parametrize(("argv", "says"), [
    ([], "give either --data"), (["--data", "x.json"], "needs --out"), (["--question", "q"], "needs a text"),
    (["--question", "q", "--context", "c", "--threshold", "low"], "give a number, or none"),
])
def test_mistakes_are_explained(tiny_model, argv, says):
    with pytest.raises(UserError, match=says):
        main(["--model", str(tiny_model), *argv])


def test_an_encoder_cannot_answer(tmp_path, tiny_model):
    folder.save(tmp_path / "bare", folder.load_encoder(tiny_model), tokenizer_from=tiny_model, provenance={})
    with pytest.raises(UserError, match="its head is None"):
        Reader.load(tmp_path / "bare")
