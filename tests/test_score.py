"""`python -m bertqa.score` as a program: what it prints, writes and refuses, on small files and on SQuAD's own."""

import gzip
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import official_squad as official
import pytest

from bertqa import score
from bertqa.errors import UserError
from bertqa.qa.predictions import read_odds, read_predictions

ROOT = Path(__file__).resolve().parents[1]
CONTEXT = "The red panda lives in Nepal. It eats bamboo."
DATA = {
    "version": "v2.0",
    "data": [
        {
            "title": "Red panda",
            "paragraphs": [
                {
                    "context": CONTEXT,
                    "qas": [
                        {
                            "id": "where",
                            "question": "Where does it live?",
                            "is_impossible": False,
                            "answers": [
                                {"text": "Nepal", "answer_start": 23},
                                {"text": "in Nepal", "answer_start": 20},
                            ],
                        },
                        {
                            "id": "what",
                            "question": "What does it eat?",
                            "is_impossible": False,
                            "answers": [{"text": "bamboo", "answer_start": 38}],
                        },
                        {
                            "id": "who",
                            "question": "Who eats it?",
                            "is_impossible": True,
                            "answers": [],
                        },
                        {
                            "id": "when",
                            "question": "When does it sleep?",
                            "is_impossible": True,
                            "answers": [],
                        },
                    ],
                }
            ],
        }
    ],
}
PREDICTIONS = {"where": "in Nepal", "what": "It eats bamboo", "who": "", "when": "bamboo"}
NA_PROBS = {"where": 0.1, "what": 0.2, "who": 0.9, "when": 0.6}


@pytest.fixture
def files(tmp_path) -> Path:
    write(tmp_path / "data.json", DATA)
    write(tmp_path / "pred.json", PREDICTIONS)
    write(tmp_path / "odds.json", NA_PROBS)
    return tmp_path


def write(path: Path, value) -> Path:
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def run(capsys, *argv) -> tuple[str, str]:
    assert score.main([str(arg) for arg in argv]) == 0
    return capsys.readouterr()


def without_impossible() -> dict:
    """The same data as a v1.1 file: answerable questions, no `is_impossible`."""
    data = json.loads(json.dumps(DATA))
    paragraph = data["data"][0]["paragraphs"][0]
    paragraph["qas"] = [
        {k: v for k, v in q.items() if k != "is_impossible"}
        for q in paragraph["qas"]
        if q["answers"]
    ]
    return data


# ---- the official output ----


def test_prints_what_the_official_script_prints(files, capsys):
    out, err = run(capsys, files / "data.json", files / "pred.json")
    assert out == json.dumps(official.evaluate_v2(DATA, PREDICTIONS), indent=2) + "\n"
    assert json.loads(out)["f1"] == 62.5 and err == ""
    out, _ = run(
        capsys, files / "data.json", files / "pred.json", "-n", files / "odds.json", "-t", "0.5"
    )
    assert (
        out == json.dumps(official.evaluate_v2(DATA, PREDICTIONS, NA_PROBS, 0.5), indent=2) + "\n"
    )
    out, _ = run(capsys, files / "data.json", files / "pred.json", "--na-prob-thresh", "-1")
    assert out == json.dumps(official.evaluate_v2(DATA, PREDICTIONS, threshold=-1), indent=2) + "\n"


def test_writes_to_a_file_instead(files, capsys):
    out, _ = run(capsys, files / "data.json", files / "pred.json", "-o", files / "out.json")
    assert out == ""
    assert (files / "out.json").read_text() == json.dumps(official.evaluate_v2(DATA, PREDICTIONS))
    assert sorted(path.name for path in files.iterdir()) == [
        "data.json",
        "odds.json",
        "out.json",
        "pred.json",
    ]


def test_reads_gzip_and_a_byte_order_mark(files, capsys):
    (files / "data.gz").write_bytes(gzip.compress(json.dumps(DATA).encode("utf-8-sig")))
    (files / "pred.gz").write_bytes(gzip.compress(json.dumps(PREDICTIONS).encode("utf-8-sig")))
    plain = run(capsys, files / "data.json", files / "pred.json")
    assert run(capsys, files / "data.gz", files / "pred.gz") == plain


def test_v1_data_is_scored_as_v1(files, capsys):
    data = without_impossible()
    path = write(files / "v1.json", data)
    theirs = json.dumps(official.evaluate_v1(data, PREDICTIONS)) + "\n"
    assert run(capsys, path, files / "pred.json")[0] == theirs
    assert (
        run(capsys, path, files / "pred.json", "--v2")[0]
        == json.dumps(official.evaluate_v2(data, PREDICTIONS), indent=2) + "\n"
    )
    known = {"where": 0.1, "what": 0.2}
    assert json.loads(
        run(capsys, path, files / "pred.json", "-n", files / "odds.json")[0]
    ) == official.evaluate_v2(data, PREDICTIONS, known)  # a no-answer file asks for v2
    for question in data["data"][0]["paragraphs"][0]["qas"]:
        question["is_impossible"] = False  # a part of a v2 file is still v2
    write(path, data)
    assert "HasAns_exact" in run(capsys, path, files / "pred.json")[0]
    assert run(capsys, path, files / "pred.json", "--v1")[0] == theirs


def synthetic(dataset: dict, seed: int) -> dict[str, dict[str, str]]:
    """Predictions of several kinds for every question; "mixed" draws from the others and from odd characters."""
    rng = random.Random(seed)
    kinds: dict[str, dict[str, str]] = {"short": {}, "span": {}, "empty": {}, "mixed": {}}
    for article in dataset["data"]:
        for paragraph in article["paragraphs"]:
            words = paragraph["context"].split()
            for q in paragraph["qas"]:
                gold, start = (
                    rng.choice(q["answers"])["text"] if q["answers"] else "",
                    rng.randrange(len(words)),
                )
                span = " ".join(words[start : start + rng.randint(1, 9)])
                made = [gold[: len(gold) // 2], span, ""]
                made.append(
                    rng.choice([*made, gold, f"The {gold.upper()}!", "。", "the", " ", "!?", "İ"])
                )
                for kind, text in zip(kinds, made, strict=True):
                    kinds[kind][q["id"]] = text
    return kinds


def test_every_key_on_dev_v2(shared, tmp_path, capsys):
    path = shared / "data" / "dev-v2.0.json.gz"
    dataset = json.loads(gzip.decompress(path.read_bytes()))
    rng = random.Random(1)
    for kind, predictions in synthetic(dataset, seed=0).items():
        odds = {id: round(rng.gauss(0, 3), rng.choice([1, 15])) for id in predictions}
        files = (
            write(tmp_path / "pred.json", predictions),
            "-n",
            write(tmp_path / "odds.json", odds),
            "-t",
            "0.5",
        )
        out, _ = run(capsys, path, *files)
        assert (
            out
            == json.dumps(official.evaluate_v2(dataset, predictions, odds, 0.5), indent=2) + "\n"
        ), kind
        assert json.loads(out)["total"] == 11873


def test_every_key_on_dev_v1(shared, tmp_path, capsys):
    path = shared / "data" / "dev-v1.1.json.gz"
    dataset = json.loads(gzip.decompress(path.read_bytes()))
    predictions = dict(list(synthetic(dataset, seed=0)["mixed"].items())[100:])
    out, err = run(capsys, path, write(tmp_path / "pred.json", predictions))
    assert out == json.dumps(official.evaluate_v1(dataset, predictions)) + "\n"
    assert err.startswith("warning: 100 of 10570 questions have no prediction and count as wrong")


# ---- beyond it ----


def test_missing_and_extra_predictions_are_told_loudly(files, capsys):
    some = write(files / "some.json", {"where": "Nepal", "who": "", "nobody": "x"})
    out, err = run(capsys, files / "data.json", some)
    assert (json.loads(out)["exact"], json.loads(out)["total"]) == (50.0, 4)
    assert (
        "warning: 2 of 4 questions have no prediction and count as wrong" in err
        and "what, when" in err
    )
    assert "1 of 3 predictions belong to no question: nobody" in err
    out, err = run(capsys, files / "data.json", some, "--missing", "skip")
    assert (json.loads(out)["exact"], json.loads(out)["total"]) == (100.0, 2)
    assert "warning: 2 of 4 questions have no prediction and are left out" in err


def test_notes_about_no_answer_odds(files, capsys):
    _, err = run(capsys, files / "data.json", files / "pred.json", "-n", files / "odds.json")
    assert (
        "note: 1 predictions are empty; best_* and pr_* are right only for raw best non-null answers"
        in err
    )
    assert "threshold is still 1.0" not in err
    write(files / "odds.json", {**NA_PROBS, "who": 7})
    _, err = run(capsys, files / "data.json", files / "pred.json", "-n", files / "odds.json")
    assert "note: the no-answer odds are no probabilities, and the threshold is still 1.0" in err
    _, err = run(capsys, files / "data.json", files / "pred.json", "-p", files / "images", "-v")
    assert (
        "--out-image-dir plots no-answer odds and needs --na-prob-file" in err
        and not (files / "images").exists()
    )
    assert (
        "4 examples, 2 impossible" in err
        and "answers 4 of 4 questions" in err
        and "rules of SQuAD v2.0" in err
    )


def test_extra_keys_stand_beside_the_official_ones(files, capsys):
    argv = files / "data.json", files / "pred.json", "-n", files / "odds.json", "-t", "0.5"
    plain = json.loads(run(capsys, *argv)[0])
    more = json.loads(run(capsys, *argv, "--avna", "--char-f1", "--confidence", "200")[0])
    added = {key: more.pop(key) for key in list(more) if key not in plain}
    assert more == plain
    assert list(added) == ["avna", "char_f1", "exact_ci95", "f1_ci95", "char_f1_ci95"]
    assert added["avna"] == 100.0 and added["char_f1"] == plain["f1"]
    low, high = added["exact_ci95"]
    assert 0 <= low < plain["exact"] < high <= 100
    path = write(files / "v1.json", without_impossible())
    assert "exact_match_ci95" in json.loads(
        run(capsys, path, files / "pred.json", "--confidence", "10")[0]
    )


def test_details_as_jsonl(files, capsys):
    write(
        files / "pred.json",
        {"where": 'near "Nepal",\nor \ud800', "what": "bamboo", "when": "bamboo"},
    )
    argv = files / "data.json", files / "pred.json", "-n", files / "odds.json", "-t", "0.5"
    run(capsys, *argv, "--char-f1", "--details", files / "rows.jsonl")
    rows = [json.loads(line) for line in (files / "rows.jsonl").read_text().splitlines()]
    assert rows[0] == {
        "id": "where",
        "title": "Red panda",
        "question": "Where does it live?",
        "answers": ["Nepal", "in Nepal"],
        "prediction": 'near "Nepal",\nor \ud800',
        "answered": True,
        "exact": 0,
        "f1": 0.4,
        "char_f1": 0.4,
        "na_prob": 0.1,
    }
    assert [row["id"] for row in rows] == ["where", "what", "who", "when"]
    assert [row["answered"] for row in rows] == [
        True,
        True,
        None,
        False,
    ]  # missing; odds above the threshold
    assert [row["exact"] for row in rows] == [0, 1, 0, 1]


def test_details_as_csv(files, capsys):
    write(
        files / "pred.json",
        {"where": 'near "Nepal",\nor \ud800', "what": "bamboo", "when": "bamboo"},
    )
    run(capsys, files / "data.json", files / "pred.json", "--details", files / "rows.csv")
    assert (files / "rows.csv").read_text(encoding="utf-8") == (
        "id,title,question,prediction,answers,answered,exact,f1\n"
        'where,Red panda,Where does it live?,"near ""Nepal"",\nor \\ud800","[""Nepal"", ""in Nepal""]",True,0,0.4\n'
        'what,Red panda,What does it eat?,bamboo,"[""bamboo""]",True,1,1.0\n'
        "who,Red panda,Who eats it?,,[],,0,0\n"
        "when,Red panda,When does it sleep?,bamboo,[],True,0,0\n"
    )


def test_plots(files, capsys):
    pytest.importorskip("matplotlib")
    argv = (
        files / "data.json",
        files / "pred.json",
        "-n",
        files / "odds.json",
        "-p",
        files / "new" / "images",
    )
    out, _ = run(capsys, *argv)
    assert (
        out
        == json.dumps(official.evaluate_v2(DATA, PREDICTIONS, NA_PROBS, curves=True), indent=2)
        + "\n"
    )
    names = [
        "na_prob_hist_hasAns.png",
        "na_prob_hist_noAns.png",
        "pr_exact.png",
        "pr_f1.png",
        "pr_oracle.png",
    ]
    assert sorted(path.name for path in (files / "new" / "images").iterdir()) == names
    assert all(
        path.read_bytes().startswith(b"\x89PNG") for path in (files / "new" / "images").iterdir()
    )


RECORDS = [{"id": id, "prediction_text": text} for id, text in PREDICTIONS.items()]


@pytest.mark.parametrize(
    "content",
    [
        json.dumps(RECORDS),
        json.dumps({**PREDICTIONS, "who": None}),
        json.dumps(
            [{"question_id": r["id"], "answer": r["prediction_text"] or None} for r in RECORDS]
        ),
        "".join(json.dumps(record) + "\n" for record in RECORDS),
        "id,prediction_text\n" + "".join(f'{id},"{text}"\n' for id, text in PREDICTIONS.items()),
        "\ufeffid;text\r\n" + "".join(f"{id};{text}\r\n" for id, text in PREDICTIONS.items()),
    ],
    ids=["list", "null", "own names", "jsonl", "csv", "excel"],
)
def test_predictions_as_other_programs_write_them(files, capsys, content):
    plain = run(capsys, files / "data.json", files / "pred.json")
    (files / "other").write_text(content, encoding="utf-8", newline="")
    assert run(capsys, files / "data.json", files / "other") == plain


@pytest.mark.parametrize("csv", [False, True])
def test_odds_beside_the_predictions_are_used(files, capsys, csv):
    expected = run(capsys, files / "data.json", files / "pred.json", "-n", files / "odds.json")[0]
    if csv:
        rows = [f"{id},{text},{NA_PROBS[id]}" for id, text in PREDICTIONS.items()]
        text = "\n".join(["id,prediction_text,no_answer_probability", *rows])
    else:
        text = json.dumps([{**r, "no_answer_probability": NA_PROBS[r["id"]]} for r in RECORDS])
    (files / "other").write_text(text)
    out, err = run(capsys, files / "data.json", files / "other", "-v")
    assert out == expected and "has no-answer odds too" in err


def test_log_odds_beside_the_predictions_change_no_score(files, capsys):
    """predict's own predictions.jsonl scores as its predictions.json, whatever its null_odds are."""
    plain = json.loads(run(capsys, files / "data.json", files / "pred.json")[0])
    rows = [{"id": id, "answer": text, "null_odds": 5.0} for id, text in PREDICTIONS.items()]
    (files / "lines").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out, err = run(capsys, files / "data.json", files / "lines")
    assert json.loads(out).items() >= plain.items()
    assert "no probabilities, so that no threshold is applied" in err
    silent, _ = run(capsys, files / "data.json", files / "lines", "-t", "1.0")
    assert json.loads(silent)["NoAns_exact"] > plain["NoAns_exact"]


def test_a_question_that_predict_could_not_read_has_no_prediction(files, capsys):
    rows = [{"id": id, "answer": text} for id, text in PREDICTIONS.items()]
    rows.append({"id": "unread", "error": 'line 7: "question" must be text, not null'})
    (files / "lines").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plain = run(capsys, files / "data.json", files / "pred.json")
    assert run(capsys, files / "data.json", files / "lines") == plain


def test_odds_beside_the_predictions_do_not_change_the_rules(files, capsys):
    write(files / "data.json", without_impossible())
    rows = [{"id": id, "answer": text, "null_odds": -5.0} for id, text in PREDICTIONS.items()]
    (files / "lines").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plain = run(capsys, files / "data.json", files / "pred.json")
    assert run(capsys, files / "data.json", files / "lines") == plain and "exact_match" in plain[0]


def test_a_pipe_is_read_once(files):
    """`score <(cat v2.json) <(cat pred.json)`, of data whose rules are told by a key alone."""
    data = without_impossible()
    data["data"][0]["paragraphs"][0]["qas"][0]["is_impossible"] = False
    write(files / "data.json", data)
    command = f"{sys.executable} -m bertqa.score <(cat data.json) <(cat pred.json)"
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=files,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert "HasAns_exact" in done.stdout


def test_the_note_names_the_threshold_to_give(files, capsys):
    """Odds are no probabilities: with the threshold that the note names, thresholded answers keep their scores."""
    plain = json.loads(run(capsys, files / "data.json", files / "pred.json")[0])
    odds = {"where": -3.0, "what": 2.0, "who": 5.0, "when": 1.5}
    argv = (files / "data.json", files / "pred.json", "-n", write(files / "odds.json", odds))
    out, err = run(capsys, *argv)
    assert json.loads(out)["exact"] != plain["exact"]  # the official keys, at the official 1.0
    assert "the threshold is still 1.0; give --na-prob-thresh 3.5, at which" in err
    again = json.loads(run(capsys, *argv, "-t", "3.5")[0])
    assert {key: again[key] for key in plain} == plain
    write(files / "odds.json", {**odds, "who": 1.0})
    assert "give --na-prob-thresh 0, above which" in run(capsys, *argv)[1]


def test_who_gives_a_threshold_is_not_told_of_one(files, capsys):
    odds = write(files / "odds.json", {"where": -3.0, "what": 2.0, "who": 5.0, "when": 1.5})
    for threshold in ("3.5", "1.0"):
        argv = (files / "data.json", files / "pred.json", "-n", odds, "-t", threshold)
        assert "are no probabilities" not in run(capsys, *argv)[1]


@pytest.mark.parametrize("flag", ["-o", "--details"])
def test_nothing_that_is_read_is_overwritten(files, flag):
    (files / "data.jsonl").symlink_to(files / "data.json")
    name = "pred.json" if flag == "-o" else "data.jsonl"
    with pytest.raises(UserError, match="would overwrite"):
        score.main([str(files / "data.json"), str(files / "pred.json"), flag, str(files / name)])
    assert json.loads((files / "pred.json").read_text()) == PREDICTIONS


# ---- refusals ----


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            ["where", "what"],
            r"pred.json: holds a JSON list; it must hold one object {question id: answer text}",
        ),
        (
            {"where": [{"text": "Nepal"}]},
            "question 'where' has .*looks like an n-best file: give predictions.json",
        ),
        ({"where": ["Nepal"]}, "question 'where' has .*; give each question one text, not a list"),
        ([{"id": "where"}], 'entry 1: has no "prediction_text", its keys are'),
        ([{"answer": "Nepal"}], 'entry 1: has no "id", its keys are'),
        ([{"id": 1, "answer": "a"}, 3], "entry 2: must be an object, not 3"),
        (
            [{"id": "where", "text": "a"}, {"id": "where", "text": "b"}],
            "entry 2: question 'where' is answered a second time",
        ),
        ({"where": float("nan")}, "question 'where' has NaN"),
        ({"nowhere": "Nepal"}, "none of the 1 predictions belongs to one of the 4 questions"),
        ({}, "none of the 0 predictions"),
    ],
)
def test_refuses_other_predictions(files, value, message):
    write(files / "pred.json", value)
    with pytest.raises(UserError, match=message):
        score.main([str(files / "data.json"), str(files / "pred.json")])


@pytest.mark.parametrize(
    "content", [b"", b"{'where': 1}", b'{"a": "\xff"}', b"\x1f\x8bbroken", b"[" * 10**5]
)
def test_refuses_files_that_are_not_json(files, content):
    (files / "pred.json").write_bytes(content)
    with pytest.raises(UserError, match="pred.json: not a JSON file"):
        score.main([str(files / "data.json"), str(files / "pred.json")])


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ('{"id": "where", "text": "a"}\n\n{"id": "who", "txt": "b"}\n', "line 3: has no"),
        ('id,prediction_text\nwhere,"a\nb"\nwhere,c\n', "line 4: question 'where' is answered"),
    ],
    ids=["jsonl", "csv"],
)
def test_a_line_is_named_as_an_editor_counts_it(files, content, place):
    (files / "pred.json").write_text(content)
    with pytest.raises(UserError, match=f"pred.json: {place}"):
        read_predictions(files / "pred.json")


WHOLE = [
    json.dumps(PREDICTIONS),
    json.dumps([{**r, "no_answer_probability": 0.5} for r in RECORDS]),
    "".join(json.dumps(record) + "\n" for record in RECORDS),
    'id,prediction_text\nwhere,"in, Nepal"\nwho,\n',
    "id;text;na_prob\nwhere;Nepal;0.4\n",
    json.dumps(NA_PROBS),
]
PIECES = [
    '"',
    "{",
    "[",
    ",",
    "\n",
    "NaN",
    "null",
    "1e999",
    "[]",
    ";",
    "\t",
    '{"a":',
    "\ufeff",
    "id",
]


@pytest.mark.parametrize("content", WHOLE, ids=["object", "list", "jsonl", "csv", "excel", "odds"])
def test_mutated_files_are_read_or_refused_in_one_line(tmp_path, content):
    draw = random.Random(content)
    path = tmp_path / "mutated"
    for _ in range(200):
        mutated = bytearray(content.encode())
        for _ in range(draw.randint(1, 5)):
            place = draw.randrange(len(mutated) + 1)
            if draw.random() < 0.5:
                mutated[place:place] = draw.choice(PIECES).encode()
            elif draw.random() < 0.5:
                del mutated[place : place + draw.randint(1, 6)]
            else:
                mutated[place : place + 1] = bytes([draw.randrange(256)])
        path.write_bytes(bytes(mutated))
        for read in (read_predictions, read_odds):
            try:
                read(path)
            except UserError as error:
                assert "\n" not in str(error)


def test_refuses_bad_odds_and_flags(files, monkeypatch):
    argv = [str(files / "data.json"), str(files / "pred.json")]
    odds = ["-n", str(files / "odds.json")]
    for value, message in (
        (float("nan"), "'when' has NaN"),
        ("0.5", "'when' has \"0.5\""),
        (True, "'when' has true"),
        (10**400, "'when' has 1000000"),
    ):
        write(files / "odds.json", {**NA_PROBS, "when": value})
        with pytest.raises(UserError, match=message):
            score.main([*argv, *odds])
    write(files / "odds.json", {"where": 0.5})
    with pytest.raises(
        UserError, match="3 of 4 questions have no no-answer probability, e.g. 'what'"
    ):
        score.main([*argv, *odds])
    with pytest.raises(UserError, match="--v1 has no no-answer threshold"):
        score.main([*argv, *odds, "--v1"])
    with pytest.raises(UserError, match="must end in .csv or .jsonl"):
        score.main([*argv, "--details", "rows.txt"])
    with pytest.raises(UserError, match="--out-file and --details are both rows.csv"):
        score.main([*argv, "--details", "rows.csv", "-o", "rows.csv"])
    with pytest.raises(UserError, match="there is no folder nowhere"):
        score.main([*argv, "-o", "nowhere/scores.json"])
    with pytest.raises(UserError, match="is a folder; give the name of a file"):
        score.main([*argv, "-o", str(files)])
    with pytest.raises(UserError, match="--confidence 1: "):
        score.main([*argv, "--confidence", "1"])
    with pytest.raises(UserError, match="'who' has no answers"):
        score.main([*argv, "--v1"])
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r"pip install 'bertqa\[plots\]'"):
        score.main([*argv, *odds, "-p", "images"])


def test_runs_as_a_command_without_torch_or_numpy(files):
    code = (
        "import sys; from bertqa.score import main; main(sys.argv[1:]);"
        "assert not {'torch', 'numpy', 'matplotlib'} & set(sys.modules)"
    )
    argv = [
        str(files / "data.json"),
        str(files / "pred.json"),
        "-n",
        str(files / "odds.json"),
        "--details",
    ]
    subprocess.run(
        [sys.executable, "-c", code, *argv, str(files / "rows.csv")],
        check=True,
        capture_output=True,
    )
    write(files / "pred.json", [])
    command = [sys.executable, "-m", "bertqa.score", *argv[:2]]
    failed = subprocess.run(command, check=False, capture_output=True, text=True)
    assert failed.returncode == 2
    assert (
        failed.stderr.startswith("error: ")
        and "holds a JSON list" in failed.stderr
        and failed.stdout == ""
    )
