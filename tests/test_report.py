"""The report: its numbers, the JSON that the page shows, and what becomes of run folders that lack something."""

import base64
import hashlib
import json
import random
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from bertqa.data.examples import Example
from bertqa.errors import UserError
from bertqa.qa import thresholds
from bertqa.reporting import analysis, curves
from bertqa.reporting.page import write_report

PANDA = "The red panda lives in Nepal. It eats bamboo, and sleeps in trees."
EMOJI = "\U0001f43c\U0001f43c A panda \U0001f38b eats bamboo."
# id, question, context, accepted answers, prediction, null odds, kind
ROWS = [
    ("where", "Where does it live?", PANDA, ["Nepal"], "Nepal", -4.0, "right"),
    ("what", "What does it eat?", PANDA, ["bamboo"], "eats bamboo", -3.0, "boundary"),
    ("sleep", "In which place does it sleep?", PANDA, ["trees"], "bamboo", -2.0, "wrong"),
    ("why", "Why?", PANDA, ["It eats bamboo"], "", 3.0, "false_silence"),
    ("who", "Who hunts it?", PANDA, [], "", 4.0, "right_silent"),
    ("when", "When was it found?", EMOJI, [], "panda", -1.0, "false_answer"),
    ("emoji", "What is eaten?", EMOJI, ["bamboo"], "bamboo", -5.0, "right"),
    ("absent", "How many?", EMOJI, ["A panda", "panda"], None, None, "missing"),
]
TRAIN = [
    {"event": "train", "step": step, "loss": 5.0 - step, "lr": 1e-4, "windows_per_s": 10.0}
    for step in (1, 2, 3)
]
EVAL = {"event": "eval", "step": 3, "exact": 50.0, "f1": 60.0, "loss": 2.0}
END = {
    "event": "end",
    "steps": 3,
    "windows": 48,
    "seconds": 95.0,
    "windows_per_s": 0.5,
    "tokens_per_s": 80.0,
    "peak_memory_mb": 700,
    "finished": True,
}


def write(path: Path, value) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def make_run(
    folder: Path, rows=ROWS, events=(*TRAIN, EVAL, END), threshold=0.5, **settings
) -> Path:
    """A run folder as the trainer leaves it, with these questions, answers and events."""
    records = [
        {
            "id": id,
            "title": "Red_panda",
            "question": question,
            "context": context,
            "answers": [{"text": text, "answer_start": context.find(text)} for text in answers],
        }
        for id, question, context, answers, *_ in rows
    ]
    dev = write(folder / "dev.json", records)
    write(
        folder / "config.json",
        {
            "settings": {
                "train": "train.json",
                "dev": str(dev),
                "weights": "base",
                "limit_dev": None,
                "seed": 0,
                **settings,
            },
            "fingerprints": {"dev file": hashlib.sha256(dev.read_bytes()).hexdigest()[:16]},
            "command": ["train"],
            "versions": {"python": "3.11", "torch": "2.13", "platform": "Linux"},
            "started": "2026-01-01T00:00:00+0000",
        },
    )
    (folder / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    given = [
        (id, context, text, odds) for id, _, context, _, text, odds, _ in rows if text is not None
    ]
    write(folder / "predictions.json", {id: text for id, _, text, _ in given})
    write(folder / "null_odds.json", {id: odds for id, _, _, odds in given})
    nbest = {}
    for id, context, text, _ in given:
        best = text or context[:5]
        span = {
            "text": best,
            "probability": 0.75,
            "start": context.index(best),
            "end": context.index(best) + len(best),
        }
        nbest[id] = [span, {"text": "", "probability": 0.25, "start": 0, "end": 0}]
    write(folder / "nbest_predictions.json", nbest)
    write(
        folder / "best" / "config.json",
        {"architecture": {"model_type": "bert", "num_hidden_layers": 2}},
    )
    write(
        folder / "best" / "qa.json",
        {
            "null_threshold": threshold,
            "no_answer_scale": 1.0,
            "no_answer_bias": 0.0,
            "tuning": {"tuned": {"questions": 8}},
        },
    )
    return folder


@pytest.fixture
def run(tmp_path) -> Path:
    return make_run(tmp_path / "runs" / "base")


class Parts(HTMLParser):
    """The contents of a page's script and style elements, and every tag."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.inside, self.open = [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag in ("script", "style"):
            self.inside.append("")
            self.open = tag

    def handle_endtag(self, tag):
        self.open = None if tag == self.open else self.open

    def handle_data(self, text):
        if self.open:
            self.inside[-1] += text


def read(page: Path) -> dict:
    """What a browser's JSON.parse makes of the page's data."""
    return json.loads(Parts(page.read_text(encoding="utf-8")).inside[1])


# ---- the numbers ----


@pytest.mark.parametrize(
    "text, exact, f1, span, kind",
    [
        ("Nepal", 1, 1.0, (23, 28), "right"),
        ("in Nepal", 0, 0.67, (20, 28), "boundary"),
        ("red", 0, 0.0, (4, 7), "wrong"),
        ("", 0, 0.0, None, "false_silence"),
        (None, 0, 0.0, None, "missing"),
        ("in Nepal", 0, 0.67, None, "boundary"),  # no place known: the words decide
        ("elsewhere", 0, 0.0, None, "wrong"),
        ("in", 0, 0.5, (57, 59), "wrong"),  # a shared word, but another place
    ],
)
def test_kinds_of_an_answerable_question(text, exact, f1, span, kind):
    example = Example("q", "Where?", PANDA, ("Nepal", "in Nepal"), (23, 20))
    assert analysis.kind_of(example, text, exact, f1, span) == kind


def test_kinds_without_answer_or_place():
    impossible = Example("q", "Where?", PANDA, (), ())
    assert analysis.kind_of(impossible, "", 1, 1.0, None) == "right_silent"
    assert analysis.kind_of(impossible, "Nepal", 0, 0.0, (23, 28)) == "false_answer"
    lost = Example("q", "Where?", PANDA, ("Nepal!",), (-1,))
    assert analysis.kind_of(lost, "in Nepal", 0, 0.67, (20, 28)) == "boundary"


@pytest.mark.parametrize(
    "question, word",
    [
        ("In what year?", "what"),
        ("To whom did it go?", "who"),
        ("How much is it?", "how many"),
        ("HOW does it?", "how"),
        ("Name whatever you like", "other"),
        ("Where and when?", "where"),
        ("", "other"),
        ("¿Dónde?", "other"),
    ],
)
def test_question_words(question, word):
    assert analysis.question_word(question) == word


def test_groups_leave_out_what_no_question_has():
    examples = [
        Example("a", "Who?", "one two", ("one",), (0,)),
        Example("b", "Who?", "word " * 100, (), ()),
        Example("c", "Whose?", "one two", ("one two three four",), (-1,)),
    ]
    found = {
        group.name: (group.labels, group.of.tolist())
        for group in analysis.group(examples, np.array([1, 4, 1]))
    }
    assert found == {
        "Words in the answer": (["1", "4–5"], [0, -1, 1]),
        "Words in the context": (["0–79", "80–119"], [0, 1, 0]),
        "Windows": (["1", "4–5"], [0, 1, 0]),
    }  # all are "who", so question words part nothing


def test_group_rows():
    parted = analysis.Group("x", ["few", "many"], np.array([0, 1, 1, -1]))
    rows = analysis.group_rows(parted, [(np.array([1.0, 0, 1, 0]), np.array([1.0, 0.5, 1, 0]))])
    assert rows == [
        {"n": 1, "exact": [100.0], "f1": [100.0], "margin": [0.0]},
        {"n": 2, "exact": [50.0], "f1": [75.0], "margin": [34.6482]},
    ]  # 1.96 * 0.25 / sqrt(2)


@pytest.mark.parametrize(
    "first, second, p, method",
    [
        (0, 0, 1.0, "exact"),
        (3, 3, 1.0, "exact"),
        (5, 1, 0.21875, "exact"),
        (1, 5, 0.21875, "exact"),
        (10, 0, 0.001953125, "exact"),
        (30, 30, 1.0, "χ²"),
        (40, 20, 0.0141714, "χ²"),
    ],
)
def test_mcnemar(first, second, p, method):
    found, how = analysis.mcnemar(first, second)
    assert found == pytest.approx(p, rel=1e-4) and how.startswith(method)


def test_score_table_has_the_intervals_of_the_scorer():
    exact, f1, has = (
        np.array([1.0, 0, 0, 1, 1, 0]),
        np.array([1, 0.5, 0, 1, 1, 0.0]),
        np.array([1, 1, 1, 0, 0, 0], bool),
    )
    rows = analysis.score_table(has, [(exact, f1)])
    assert [(row["label"], row["n"]) for row in rows] == [
        ("All questions", 6),
        ("With an answer", 3),
        ("Without an answer", 3),
    ]
    limits = thresholds.bootstrap(np.stack([exact, f1], 1)) * 100
    assert rows[0]["exact"][0] == pytest.approx([50, *limits[0]], abs=1e-4)
    assert rows[0]["f1"][0] == pytest.approx([350 / 6, *limits[1]], abs=1e-4)
    assert [row["label"] for row in analysis.score_table(np.ones(6, bool), [(exact, f1)])] == [
        "All questions"
    ]


def judge(first, second):
    has = np.ones(len(first), bool)
    table = analysis.score_table(has, [(first, first), (second, second)])
    return analysis.verdict(table[0], [first, second], ["one", "two"])


def test_verdict():
    random = np.random.default_rng(0).random((2, 400))
    first, second = (random < 0.5).astype(float)
    equal = judge(first, second)
    assert equal["better"] is None and equal["text"].startswith(
        "No significant difference: two − one = "
    )
    assert equal["p"] > 0.05 and "not significant" in equal["detail"]

    worse = np.where(np.arange(400) % 4 == 0, 0.0, first)
    lost = int((first > worse).sum())
    for verdict, better in ((judge(first, worse), 0), (judge(worse, first), 1)):
        gap, low, high = map(float, re.findall(r"\d+\.\d+", verdict["text"]))
        assert verdict["better"] == better and verdict["text"].startswith(
            f"{('one', 'two')[better]} is better by "
        )
        assert 0 < low < gap < high and gap == pytest.approx(100 * lost / 400, abs=0.01)
        assert verdict["p"] < 0.001 and sorted(verdict["only"]) == [0, lost]

    same = judge(first, first)
    assert (
        same["text"] == "No significant difference: two − one = +0.00 F1 [+0.00, +0.00]"
        and same["p"] == 1.0
    )


def test_what_kinds_cost_adds_up():
    rows = analysis.kind_rows(
        ["right", "wrong", "boundary", "false_answer"], np.array([1, 0, 0.4, 0])
    )
    assert dict(zip(analysis.KINDS, [(row["n"], row["lost"]) for row in rows], strict=True)) == {
        "right": (1, 0.0),
        "right_silent": (0, 0.0),
        "boundary": (1, 15.0),
        "wrong": (1, 25.0),
        "false_answer": (1, 25.0),
        "false_silence": (0, 0.0),
        "missing": (0, 0.0),
    }


def test_points_for_plots():
    assert curves.thin(2, [1, 2, 3, 4], [0, 1, 0, 2]) == [[1.5, 3.5], [0.5, 1.0]]
    assert curves.thin(9, [1, 2], [0, 1]) == [[1, 2], [0, 1]]
    assert curves.thin(9, []) == [[]]
    assert curves.pick(3, [0, 1, 2, 3, 4]) == [[0, 2, 4]]
    odds, has = np.array([-2.0, -2, 2, 1e4]), np.array([True, True, False, True])
    assert curves.odds_histogram(odds, has, bins=2) == {
        "edges": [-2, 0, 2],
        "has": [2, 1],
        "none": [0, 1],
    }
    found = curves.reliability(
        np.array([0.0, 0, 0, 40]), np.array([True, False, False, False]), 1.0, 0.0
    )
    assert found == {"points": [[0.5, 0.666667, 3], [1.0, 1.0, 1]], "error": 0.125}
    found = curves.risk_and_coverage(np.array([0.7, 0.9, 0.8]), np.array([1.0, 1, 0]))
    assert found["points"] == [[0.333333, 0.666667, 1.0], [0.0, 0.5, 0.333333]]
    assert found["area"] == 0.277778
    assert found["error"] == pytest.approx((0.3 + 0.1 + 0.8) / 3)


# ---- the page's data ----


def test_page_of_a_run(run):
    page = read(write_report(run))
    kinds, questions = [kind[0] for kind in page["kinds"]], page["questions"]
    answers = questions["runs"][0]
    assert [kinds[kind] for kind in answers["kind"]] == [row[-1] for row in ROWS]
    assert questions["contexts"] == [PANDA, EMOJI] and questions["context"] == [
        0,
        0,
        0,
        0,
        0,
        1,
        1,
        1,
    ]
    assert questions["gold"][:2] == [[23, 28], [38, 44]] and answers["answer"][:4] == [
        [23, 28],
        [33, 44],
        [38, 44],
        "",
    ]
    assert answers["answer"][7] is None and answers["odds"][7] is None
    assert answers["best"][0] == [23, 28, 750, 0, 0, 250]
    # JavaScript counts each emoji twice
    assert questions["gold"][6] == answers["answer"][6] == [21, 27] and EMOJI.index("bamboo") == 18

    all_rows, with_answer, without = page["scores"]
    assert [all_rows["n"], with_answer["n"], without["n"]] == [8, 6, 2]
    assert all_rows["exact"][0][0] == 37.5 and without["f1"][0][0] == 50.0
    assert all_rows["f1"][0][0] == pytest.approx(100 * (3 + 2 / 3) / 8, abs=1e-3)
    assert sum(kind["lost"] for kind in page["runs"][0]["kinds"]) == pytest.approx(
        100 - all_rows["f1"][0][0], abs=1e-3
    )
    assert page["runs"][0]["curves"]["loss"] == [[1, 2, 3], [4, 3, 2]]
    assert page["runs"][0]["curves"]["dev"] == {"F1": [[3], [60.0]], "EM": [[3], [50.0]]}
    assert (
        page["gaps"] == {}
        and page["verdict"] is None
        and "Windows" not in [group["name"] for group in page["groups"]]
    )
    assert page["runs"][0]["facts"]["Training time"] == "1 min 35 s for 3 steps, 48 windows"
    assert page["notes"] == [
        "The no-answer threshold was tuned on these same questions, which flatters the scores a little."
    ]
    # one question has no odds, so there is no curve over all of them
    assert (
        page["runs"][0]["sweep"]
        == "null_odds.json and nbest_predictions.json lack 1 of 8 questions."
    )


def test_curves_over_the_odds(tmp_path):
    page = read(write_report(make_run(tmp_path / "run", ROWS[:7])))
    shown = page["runs"][0]
    assert shown["sweep"]["best"] == [-2.5, 66.6667]
    assert sum(shown["histogram"]["has"]) == 5 and sum(shown["histogram"]["none"]) == 2
    assert (
        shown["pr"]["exact"]["points"][0][-1] == 0.4
        and sum(point[2] for point in shown["reliability"]["points"]) == 7
    )
    assert page["beside"] == [
        "With threshold 0 it would have EM 42.86, F1 52.38.",
        "Who never answers has EM and F1 28.57.",
    ]


def test_the_curve_of_risk(tmp_path):
    folder = make_run(tmp_path / "run", ROWS[:7])
    why = "confidence.json lacks 7 of 7 questions."
    assert read(write_report(folder))["runs"][0]["risk"] == why
    write(folder / "confidence.json", {row[0]: 0.1 * n for n, row in enumerate(ROWS[:7])})
    shown = read(write_report(folder))["runs"][0]
    coverage, risk = shown["risk"]["points"]
    assert coverage[-1] == 1.0 and risk[-1] == pytest.approx(1 - 3 / 7, abs=1e-5)


def test_two_runs(tmp_path, run):
    rows = [(*row[:4], *(row[3][0] if row[3] else "", -1.0 if row[3] else 4.0), "") for row in ROWS]
    other = make_run(tmp_path / "runs" / "perfect", rows, seed=1)
    out = write_report(run, other)
    page = read(out)
    assert out.name == "report-perfect.html" and [shown["name"] for shown in page["runs"]] == [
        "base",
        "perfect",
    ]
    assert page["notes"][-1] == "The runs answered different questions; compared are the 7 of both."
    assert page["scores"][0]["n"] == 7 and page["scores"][0]["exact"][1][0] == 100.0
    assert page["verdict"]["better"] == 1 and page["verdict"]["only"] == [0, 4]
    assert len(page["questions"]["runs"]) == 2 and page["groups"][0]["rows"][0]["f1"][1] == 100.0


def test_runs_of_the_same_name_are_told_apart(tmp_path):
    first, second = (make_run(tmp_path / parent / "run") for parent in ("a", "b"))
    assert [shown["name"] for shown in read(write_report(first, second))["runs"]] == [
        "a/run",
        "b/run",
    ]


def test_several_runs_have_mean_and_deviation_of_each_recipe(tmp_path):
    """Seeds 0 and 1 of one recipe, and one run of another; the answers of seed 1 miss one more."""
    worse = [(*row[:4], "" if row[0] == "where" else row[4], *row[5:]) for row in ROWS]
    runs = [
        make_run(tmp_path / "a", lr=1e-4),
        make_run(tmp_path / "b", worse, lr=1e-4, seed=1),
        make_run(tmp_path / "c", lr=2e-4),
    ]
    out = write_report(*runs)
    page = read(out)
    assert out.name == "report-b-c.html" and out.parent.name == "a"
    first, second = page["families"]
    assert (first["name"], first["runs"]) == ("lr 0.0001", [0, 1])
    assert second["name"] == "lr 0.0002" and second["exact"][1] is None
    # of 7 questions 3 and 2 are right: 42.86 and 28.57, mean 35.71, deviation 14.29 / sqrt(2)
    assert first["exact"] == pytest.approx([35.7143, 10.1015, 28.5714, 42.8571], abs=1e-3)
    assert page["verdict"] is None and len(page["scores"][0]["f1"]) == 3
    assert page["gaps"]["questions"].startswith("Single questions are shown")


def test_a_classifiers_page_shows_classes(tmp_path):
    evaluated = {"event": "eval", "step": 3, "accuracy": 50.0, "macro_f1": 50.0, "loss": 0.5}
    run = make_run(tmp_path / "run", events=(*TRAIN, evaluated, END), task="classify")
    lines = [
        {"id": str(i), "label": label, "gold": gold, "probabilities": {label: share, "x": 0.1}}
        for i, (label, gold, share) in enumerate(
            [("good", "good", 0.9), ("bad", "good", 0.6), ("bad", "bad", 0.8), ("good", "bad", 0.7)]
        )
    ]
    (run / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    texts = tmp_path / "texts.csv"
    texts.write_text("text,label\nfine,good\ndull,good\nnever,bad\nwell,bad\n")
    page = read(write_report(run, dev=str(texts)))
    (found,) = page["classes"]
    assert found["labels"] == ["bad", "good"] and found["matrix"] == [[1, 1], [1, 1]]
    assert found["rows"][0] == {"n": 2, "precision": 50.0, "recall": 50.0, "f1": 50.0}
    assert [(error["text"], error["gold"], error["label"]) for error in found["errors"]] == [
        ("well", "bad", "good"),
        ("dull", "good", "bad"),
    ]
    assert page["gaps"] == {} and page["families"] == []
    assert (found["accuracy"], found["macro_f1"]) == (50.0, 50.0)


def test_a_wrong_class_without_probabilities_is_shown(tmp_path):
    run = make_run(tmp_path / "run", task="classify")
    lines = [
        '{"id": "0", "label": "a", "gold": "b", "probabilities": {}}',
        '{"id": "1", "label": "b", "gold": "b", "probabilities": {}}',
    ]
    (run / "predictions.jsonl").write_text("\n".join(lines) + "\n")
    [found] = read(write_report(run))["classes"]
    # "a" is no class of the model or of the data
    assert (found["labels"], found["total"], found["wrong"]) == (["b"], 1, 0)
    lines.append('{"id": "2", "label": "b", "gold": "a", "probabilities": {}}')
    (run / "predictions.jsonl").write_text("\n".join(lines) + "\n")
    [found] = read(write_report(run))["classes"]
    assert [error["probability"] for error in found["errors"]] == [0.0, 0.0]


def test_classifiers_of_a_recipe_have_mean_and_deviation(tmp_path):
    runs = []
    for seed, wrong in enumerate((0, 1)):
        run = make_run(tmp_path / f"run{seed}", task="classify", seed=seed)
        lines = []
        for number, gold in enumerate("aabb"):
            label = "b" if number < wrong else gold
            lines.append(
                {"id": str(number), "label": label, "gold": gold, "probabilities": {label: 0.8}}
            )
        (run / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        runs.append(run)
    page = read(write_report(*runs))
    assert [found["accuracy"] for found in page["classes"]] == [100.0, 75.0]
    # F1 of a is 2/3, of b 4/5
    assert [found["macro_f1"] for found in page["classes"]] == [
        100.0,
        pytest.approx(73.33, abs=0.01),
    ]
    [family] = page["families"]
    assert family["runs"] == [0, 1]
    assert family["exact"] == pytest.approx([87.5, 17.678, 75.0, 100.0], abs=1e-3)
    assert family["f1"][0] == pytest.approx(86.665, abs=1e-2)


@pytest.mark.parametrize("name", ["config.json", "predictions.json", "dev.json"])
def test_what_the_page_is_made_from_is_not_overwritten(run, name):
    before = (run / name).read_bytes()
    with pytest.raises(UserError, match="would overwrite"):
        write_report(run, out=run / name)
    assert (run / name).read_bytes() == before


DAMAGE = {
    "config.json": [
        {"settings": {"dev": 5, "lr": [], "epochs": {}, "limit_dev": "x", "weights": None}},
        {"settings": {}, "versions": {}, "hardware": None, "command": None, "fingerprints": None},
    ],
    "metrics.jsonl": [
        {"event": "end", "seconds": "long", "steps": "many", "windows": None},
        {"event": "train", "step": [], "loss": "nan", "epoch": {}},
        {"event": "eval", "step": 1e400, "f1": None},
    ],
    "best/config.json": [{"architecture": None, "provenance": None}, {"architecture": {}}],
    "best/qa.json": [
        {"null_threshold": "x", "tuning": 3, "no_answer_scale": [], "max_length": -1},
        {"null_threshold": 1.0, "tuning": {"held_out": 1}, "no_answer_scale": "a"},
    ],
    "nbest_predictions.json": [{"where": [{"text": 5}]}, {"where": 3}],
    "null_odds.json": [{"where": True}, {"where": "x"}],
    "predictions.jsonl": [{"id": 1}],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in DAMAGE.items() for value in values]
)
def test_no_damage_ends_in_a_traceback(run, name, value):
    """A page is written, or the file is named: whatever stands in a run folder."""
    (run / name).write_text(json.dumps(value).replace("Infinity", "1e400") + "\n")
    try:
        write_report(run)
    except UserError as error:
        assert name in str(error)


ODD = [None, True, -1, 0, 10**400, 1e308, "x", "", [], {}, [1], {"a": 1}, "\ud800", 3.5, [[]]]


def mutated(value, draw: random.Random):
    """The value with one of its parts, or itself, replaced by something odd, or a part left out."""
    if isinstance(value, dict) and value and draw.random() < 0.8:
        key = draw.choice(list(value))
        if draw.random() < 0.2:
            return {name: part for name, part in value.items() if name != key}
        return {**value, key: mutated(value[key], draw)}
    if isinstance(value, list) and value and draw.random() < 0.8:
        row = draw.randrange(len(value))
        return [*value[:row], mutated(value[row], draw), *value[row + 1 :]]
    return draw.choice(ODD)


@pytest.mark.parametrize("name", [name for name in DAMAGE if name != "predictions.jsonl"])
def test_mutated_files_of_a_run(run, name):
    config = json.loads((run / "config.json").read_text())
    config["moved_ends"] = [{"step": 1, "from": 2, "to": 3}]
    write(run / "config.json", config)
    draw = random.Random(name)
    text = (run / name).read_text()
    for _ in range(30):
        values = [json.loads(line) for line in text.splitlines()]
        row = draw.randrange(len(values))
        values[row] = mutated(values[row], draw)
        (run / name).write_text("".join(json.dumps(value) + "\n" for value in values))
        try:
            write_report(run)
        except UserError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize(
    "content", [b"version https://git-lfs.github.com/spec/v1\n", b"", b"\xff" * 64, b"\0" * 8]
)
def test_weights_that_are_none_do_not_matter(run, content):
    """The first eight bytes of an LFS pointer are a header of 2^63 bytes, if one believes them."""
    (run / "best" / "model.safetensors").write_bytes(content)
    assert "parameters" not in read(write_report(run))["runs"][0]["facts"]["Model"]


def test_a_run_that_started_from_another_names_it(tmp_path):
    run = make_run(tmp_path / "run", weights="/home/ada/runs/base/best")
    assert (
        "layers, started from base/best, trained on" in read(write_report(run))["runs"][0]["lead"]
    )


def test_the_recipe_is_what_ran_and_the_command_can_be_pasted(tmp_path):
    events = (*TRAIN[:2], {**TRAIN[2], "epoch": 0.75}, EVAL, END)
    run = make_run(tmp_path / "run 3", events=events, epochs=2.0, batch_size=4)
    config = json.loads((run / "config.json").read_text())
    config["command"] = ["python", "-m", "bertqa.train", "--out", "out/run 3"]
    config["hardware"] = {"cores": 2, "device": "cpu", "precision": "bf16"}
    write(run / "config.json", config)
    facts = read(write_report(run))["runs"][0]["facts"]
    assert facts["Recipe"].startswith("3 steps (0.75 epochs), batches of 4 windows")
    assert facts["Command"] == "python -m bertqa.train --out 'out/run 3'"
    assert facts["Hardware"].endswith("device cpu, precision bf16")


# ---- hostile text ----

HOSTILE = [
    "</script><script>alert(1)</script>",
    "<!--<script>",
    "\u2028\u2029",
    "NUL \0",
    "{{data}}",
    "lone \ud800",
    "\"quotes' & \\u003c",
    "\u202eright to left",
]


def test_hostile_text_stays_inside_of_the_json(tmp_path):
    rows = [
        (f"<i>{i}", text, text + " answer", ["answer"], text, -1.0, "")
        for i, text in enumerate(HOSTILE)
    ]
    page = write_report(make_run(tmp_path / "run", rows, train=HOSTILE[0], weights=HOSTILE[4]))
    text = page.read_text(encoding="utf-8")
    parts = Parts(text)
    assert [tag for tag, _ in parts.tags].count("script") == 2 and "alert(1)</script>" not in text
    raw = parts.inside[1]
    assert not set(raw) & set("<>&\u2028\u2029\0")
    questions = json.loads(raw)["questions"]
    assert questions["question"] == HOSTILE and questions["contexts"] == [
        text + " answer" for text in HOSTILE
    ]


def test_policy_lets_only_the_pages_own_script_run_and_fetches_nothing(run):
    text = write_report(run).read_text(encoding="utf-8")
    parts = Parts(text)
    style, _, script = parts.inside
    policy = next(
        attributes["content"] for tag, attributes in parts.tags if "http-equiv" in attributes
    )
    for content in (style, script):
        assert (
            f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
            in policy
        )
    assert policy.startswith("default-src 'none';") and "unsafe" not in policy
    assert not any(
        {"src", "srcset"} & attributes.keys() or tag == "link" for tag, attributes in parts.tags
    )
    assert "innerHTML" not in script and re.findall(r"https?://[^\"]*", text) == [
        "http://www.w3.org/2000/svg"
    ]


# ---- what may be missing ----


def test_a_run_without_evaluation(tmp_path):
    run = make_run(tmp_path / "run", events=(*TRAIN, {**END, "finished": False}))
    for name in (
        "predictions.json",
        "nbest_predictions.json",
        "null_odds.json",
        "best/qa.json",
        "best/config.json",
    ):
        (run / name).unlink()
    page = read(write_report(run))
    assert set(page["gaps"]) == {"scores", "answers", "failures", "questions"}
    assert page["gaps"]["scores"].startswith("There is no predictions.json in run")
    assert page["notes"][0].startswith(
        "The run was stopped at step 3, before its end; python -m bertqa.train --resume"
    )
    assert page["runs"][0]["curves"]["loss"][1] == [4, 3, 2]


def test_a_run_that_goes_on_or_was_killed(tmp_path):
    events = [{**TRAIN[0], "loss": "nan"}, *TRAIN[1:]]
    page = read(write_report(make_run(tmp_path / "run", events=events)))
    assert page["notes"][0].startswith("The run has not ended") and page["runs"][0]["curves"][
        "loss"
    ] == [[2, 3], [3, 2]]


def test_a_run_folder_with_nothing_but_its_settings(tmp_path):
    write(tmp_path / "run" / "config.json", {"settings": {}})
    page = read(write_report(tmp_path / "run"))
    assert page["gaps"]["training"] == "There are no curves: metrics.jsonl is missing or empty."


def test_answerable_data_without_odds(tmp_path):
    rows = [row for row in ROWS if row[3] and row[4] is not None]
    run = make_run(tmp_path / "run", rows, threshold=None)
    page = read(write_report(run))
    assert [row["label"] for row in page["scores"]] == ["All questions"] and page[
        "notes"
    ] == [] == page["beside"]
    assert page["runs"][0]["sweep"] == "Every question has an answer: there is nothing to tune."
    (run / "null_odds.json").unlink()
    page = read(write_report(run))
    assert (
        page["runs"][0]["pr"] == "null_odds.json and nbest_predictions.json lack 5 of 5 questions."
    )
    assert page["questions"]["runs"][0]["odds"] == [None] * 5


def test_held_out_numbers_are_named(run):
    part = {"questions": 4, "exact": 50.0, "f1": 61.234}
    write(
        run / "best" / "qa.json",
        {"null_threshold": 0.5, "tuning": {"tuned": part, "held_out": part}},
    )
    assert "On the 4 held out it gives EM 50.00, F1 61.23" in read(write_report(run))["notes"][0]


def test_dev_file_moved_or_changed(tmp_path, run):
    config = json.loads((run / "config.json").read_text())
    config["settings"]["dev"] = "data/dev.json"
    write(run / "config.json", config)
    (run / "dev.json").rename(tmp_path / "dev.json")
    page = read(write_report(run))
    assert page["gaps"]["questions"] == (
        "The questions are not where they were (data/dev.json); say where they are with --dev FILE."
    )
    assert page["runs"][0]["curves"]["loss"][1] == [4, 3, 2]
    assert read(write_report(run, dev=str(tmp_path / "dev.json")))["gaps"] == {}
    # as a trainer started in tmp_path with --dev data/dev.json --out runs/base left it
    write(tmp_path / "data" / "dev.json", json.loads((tmp_path / "dev.json").read_text())[:5])
    page = read(write_report(run))
    assert page["scores"][0]["n"] == 5 and "its content differs" in page["notes"][-1]
    with pytest.raises(UserError, match="nowhere.json"):
        write_report(run, dev=str(tmp_path / "nowhere.json"))


def test_a_run_that_classifies(tmp_path):
    evaluated = {"event": "eval", "step": 3, "accuracy": 90.0, "macro_f1": 80.0, "loss": 0.5}
    run = make_run(tmp_path / "run", events=(*TRAIN, evaluated, END), task="classify")
    page = read(write_report(run))
    assert page["gaps"]["scores"].endswith("this run learned classes of texts.")
    assert page["runs"][0]["curves"]["dev"] == {
        "macro-F1": [[3], [80.0]],
        "accuracy": [[3], [90.0]],
    }
    assert page["runs"][0]["facts"]["Best weights"] == "step 3, macro_f1 80.00"


@pytest.mark.parametrize(
    "name, content, says",
    [
        ("config.json", "{", "cannot be read"),
        ("config.json", "[]", "cannot be read (it holds a list"),
        ("config.json", "{}", "not a run"),
        ("predictions.json", '{"a": 1}', "it holds 1 for 'a'"),
        ("null_odds.json", '{"a": NaN}', "it holds NaN"),
        ("metrics.jsonl", "{\n{}\n", "line 1 is not JSON"),
        ("best/qa.json", "\x00", "cannot be read"),
    ],
)
def test_damaged_files_are_named(run, name, content, says):
    (run / name).write_text(content)
    with pytest.raises(UserError) as error:
        write_report(run)
    assert says in str(error.value) and (name in str(error.value) or says == "not a run")


def test_runs_that_cannot_be_compared(tmp_path, run):
    with pytest.raises(UserError, match="there is no such folder"):
        write_report(run, tmp_path / "none")
    stranger = make_run(tmp_path / "stranger", [("x", *ROWS[0][1:])])
    with pytest.raises(UserError, match="have no question of .* in common"):
        write_report(run, stranger)
    (stranger / "predictions.json").unlink()
    with pytest.raises(
        UserError, match="cannot be compared: There is no predictions.json in stranger"
    ):
        write_report(run, stranger)


# ---- the command ----


def test_command_without_torch(run, tmp_path):
    code = (
        "import sys; sys.modules['torch'] = sys.modules['matplotlib'] = None\n"
        "from bertqa.flags import run_verb\nfrom bertqa.report import main\nraise SystemExit(run_verb(main))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(run), "-o", str(tmp_path / "page.html")],
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert done.returncode == 0 and done.stdout.strip() == str(tmp_path / "page.html"), done.stderr
    assert done.stderr.startswith("The no-answer threshold was tuned")
    assert read(tmp_path / "page.html")["runs"][0]["name"] == "base"
    failed = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True
    )
    assert failed.returncode == 2 and failed.stderr.startswith(
        f"error: {tmp_path}: not a run: it has no config.json"
    )


@pytest.mark.slow
def test_the_page_keeps_its_size(shared, tmp_path):
    """All of dev-v2.0, with every n-best list full: contexts are stored once."""
    from bertqa.data.examples import read_examples

    dev = shared / "data" / "dev-v2.0.json.gz"
    run = fill_with(dev, read_examples(dev).examples, tmp_path / "run")
    page = write_report(run)
    assert 2e6 < page.stat().st_size < 5e6 and len(read(page)["questions"]["id"]) == 11873


def fill_with(dev: Path, examples, folder: Path) -> Path:
    """A run folder with made-up predictions for these examples: the first words of each context."""
    write(folder / "config.json", {"settings": {"dev": str(dev)}})
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps(event) + "\n" for event in (*TRAIN, EVAL, END))
    )
    entries = {
        example.id: [
            {"text": example.context[k:9], "probability": 0.2, "start": k, "end": 9}
            for k in range(5)
        ]
        for example in examples
    }
    write(folder / "nbest_predictions.json", entries)
    write(
        folder / "predictions.json",
        {id: found[0]["text"] * (i % 2) for i, (id, found) in enumerate(entries.items())},
    )
    write(folder / "null_odds.json", {id: 0.5 - i % 2 + i / 1e5 for i, id in enumerate(entries)})
    write(
        folder / "best" / "qa.json",
        {"null_threshold": 0.0, "no_answer_scale": 1.0, "no_answer_bias": 0.0},
    )
    return folder
