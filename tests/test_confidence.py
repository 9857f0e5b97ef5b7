"""How sure an answer is: what it is made of, that it means what it says, and that it agrees with the ranking."""

import json
import re
from dataclasses import asdict, replace

import numpy as np
import pytest
from conftest import ROOT

from bertqa import Answer, Reader, UserError
from bertqa.data.examples import Example
from bertqa.files import write_json
from bertqa.predict import main
from bertqa.qa.confidence import (
    NAMES,
    Confidence,
    Evidence,
    Marks,
    calibration_errors,
    evidence_of,
    fit_confidence,
    how_right,
    inputs_of,
    merge_documents,
    read_confidence,
)
from bertqa.qa.thresholds import fit_logistic, gap_of_equal_bins
from bertqa.train import main as train

BUNDLED = ROOT / "weights" / "minilm-squad2"
FITTED = {
    "ranges": {"best": [-5.0, 0.0, 5.0], "null": [-5.0, 0.0, 5.0], "margin": [0.0, 0.5, 2.0]},
    "no_answer": [-3.0, -1.0, 1.0, 1.0, -0.5, 0.0, 1.0],
    "right": [3.0, 1.0, -1.0, -1.0, 2.0, 0.5, -2.0],
}


def simulated(count: int, seed: int):
    """Questions whose evidence says how likely each outcome is."""
    rng = np.random.default_rng(seed)
    best = rng.normal(8, 5, count)
    null = rng.normal(5, 5, count)
    margin = rng.exponential(4, count)
    has_answer = rng.random(count) < 1 / (1 + np.exp(-0.4 * (best - 8) + 0.1 * (null - 5)))
    found = rng.random(count) < 1 / (1 + np.exp(-0.5 * (margin - 2)))
    return Evidence(best, null, margin), has_answer & found, has_answer


def test_what_is_fitted_holds_for_other_questions():
    confidence = fit_confidence(*simulated(8000, seed=1))
    evidence, right, has_answer = simulated(8000, seed=2)
    none = confidence.chance_of_none(evidence)
    sure = confidence.chance_of_right(evidence)
    assert gap_of_equal_bins(none, ~has_answer) < 0.02
    assert gap_of_equal_bins(sure, right) < 0.03
    # and it tells right from wrong: of the surest tenth nearly all are right, of the other end nearly none
    order = np.argsort(sure)
    assert right[order[-800:]].mean() > 0.7 and right[order[:800]].mean() < 0.1


def test_inputs_by_hand():
    """The place in the range, and how far above the median; both stop at the ends of the range."""
    ranges = {"best": [2.0, 10.0, 16.0], "null": [0.0, 0.0, 0.0], "margin": [0.0, 1.0, 4.0]}
    evidence = Evidence(
        np.array([12.5, 1.0, 99.0]), np.array([7.0] * 3), np.array([1.0, 2.0, -1.0])
    )
    assert inputs_of(evidence, ranges).tolist() == [
        [10.5 / 14, 0.0, 1.0],
        [2.5 / 14, 0.0, 6 / 14],
        [0.0] * 3,
        [0.0] * 3,
        [0.25, 0.5, 0.0],
        [0.0, 0.25, 0.0],
        [1.0] * 3,
    ]


def test_how_the_regressions_are_fitted():
    """Ranges leave out a hundredth at each end; the L2 penalty has the strength 1; what has no span is left out."""
    evidence, right, has_answer = simulated(300, seed=3)
    confidence = fit_confidence(evidence, right, has_answer)
    for name in NAMES:
        expected = np.quantile(getattr(evidence, name), [0.01, 0.5, 0.99])
        assert confidence.ranges[name] == pytest.approx(expected)
    inputs = inputs_of(evidence, confidence.ranges)
    for weights, target in (
        (confidence.no_answer, 1.0 - has_answer),
        (confidence.right, right + 0.0),
    ):
        assert weights == pytest.approx(fit_logistic(inputs, target, np.zeros(7), strength=1.0))
    more = Evidence(
        *(
            np.append(getattr(evidence, name), far)
            for name, far in zip(NAMES, (-np.inf, 9, 0), strict=True)
        )
    )
    again = fit_confidence(more, np.append(right, False), np.append(has_answer, False))
    assert asdict(again) == asdict(confidence)


def test_what_was_not_fitted_is_nan():
    confidence = Confidence({name: [0.0, 0.5, 1.0] for name in NAMES}, None, [0.0] * 7)
    evidence = Evidence(np.zeros(2), np.zeros(2), np.zeros(2))
    given = confidence.chance_of_given(evidence, np.array([True, False]))
    assert np.isnan(given[0]) and given[1] == 0.5
    only_none = replace(confidence, no_answer=[0.0] * 7, right=None)
    given = only_none.chance_of_given(evidence, np.array([True, False]))
    assert given[0] == 0.5 and np.isnan(given[1])
    assert confidence.of_answers(evidence, [[1.0, 0.5], []]) == ([None] * 2, [[0.5, 0.5], []])
    assert only_none.of_answers(evidence, [[1.0], []]) == ([0.5, 0.5], [[None], []])


def test_beyond_the_range_that_was_seen_nothing_changes():
    evidence, right, has_answer = simulated(500, seed=1)
    confidence = fit_confidence(evidence, right, has_answer)
    far = Evidence(np.array([1e3, 1e9]), np.array([-1e3, -1e9]), np.array([1e3, np.inf]))
    assert len(set(confidence.chance_of_right(far).tolist())) == 1


@pytest.mark.parametrize(
    ("right", "has_answer", "known"),
    [
        ([1, 0, 1, 0], [1, 1, 1, 1], (False, True)),  # SQuAD 1.1: never without an answer
        ([0, 0, 0, 0], [0, 0, 0, 0], (False, False)),
        ([0, 0, 0, 0], [1, 0, 1, 0], (True, False)),
    ],
)
def test_what_never_happened_is_not_known(right, has_answer, known):
    evidence = Evidence(*(np.arange(4.0) for _ in NAMES))
    found = fit_confidence(evidence, np.array(right), np.array(has_answer))
    assert (found.no_answer is not None, found.right is not None) == known
    nothing = Evidence(*(np.full(2, -np.inf) for _ in NAMES))  # questions without a span
    assert fit_confidence(nothing, np.zeros(2), np.array([True, False])).right is None


def test_the_best_of_several_documents_and_its_rival():
    texts = np.array(["a", "b", "c", "a", "a"], object)
    evidence = Evidence(
        np.array([5.0, 9.0, 4.0, 7.0, 6.5]),
        np.array([1.0, 0.0, 3.0, 2.0, 2.5]),
        np.array([1.0, 6.0, 2.0, 3.0, 0.5]),
        texts,
    )
    found = merge_documents(evidence, np.array([0, 3]))
    assert found.best.tolist() == [9, 7] and found.null.tolist() == [0, 2]
    # 9 against 5 elsewhere and 3 in its own document; the other two documents agree on "a"
    assert found.margin.tolist() == [4, 3]


def test_partial_overlap_counts_where_one_person_has_answered():
    one = Example("1", "?", "a b", ("a",), (0,))
    several = replace(one, answer_texts=("a", "a b", "b"), answer_starts=(0, 0, 2))
    marks = Marks(np.array([0.0, 1.0]), np.array([0.5, 1.0]), np.array([True, False]))
    assert how_right([one, one], marks).tolist() == [0.5, 0]
    assert how_right([several, several], marks).tolist() == [0, 0]


@pytest.mark.filterwarnings("error")
def test_three_answers_to_two_questions_are_of_several_people():
    one = Example("1", "?", "a b", ("a",), (0,))
    two, none = (
        replace(one, answer_texts=("a", "b")),
        replace(one, answer_texts=(), answer_starts=()),
    )
    same = replace(one, answer_texts=("a", "a"))
    marks = Marks(np.array([0.0, 1.0]), np.array([0.5, 1.0]), np.array([True, True]))
    assert how_right([one, two], marks).tolist() == [0.0, 1.0]  # 1.5 on average: exact match
    assert how_right([one, same], marks).tolist() == [0.5, 1.0]  # the same text twice is one
    assert how_right([two, none], marks).tolist() == [0.0, 1.0]  # of those that have any
    assert how_right([none, none], marks).tolist() == [0.5, 1.0]


def test_errors_are_of_the_answers_that_are_given():
    confidence = Confidence({name: [0.0, 0.5, 1.0] for name in NAMES}, [0.0] * 7, [0.0] * 7)
    evidence = Evidence(np.array([0.0, 0, 0, 0]), np.array([1.0, 1, -1, -1]), np.zeros(4))
    given = evidence, np.array([0.0, 1, 1, 1]), np.array([False, True, True, True])
    # every probability is a half; "", "" and two answers are given, of which three are right
    assert calibration_errors(confidence, *given, 0.0)["confidence_error"] == 0.5
    assert calibration_errors(confidence, *given, None)["no_answer_error"] == 0.5
    partly = replace(confidence, no_answer=None)
    assert calibration_errors(partly, *given, 0.0) == {}
    assert set(calibration_errors(partly, *given, None)) == {"confidence_error"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"ranges": 3}, "it is .*, it must be an object with ranges"),
        ({"ranges": {"best": [0, 1, 2]}}, "ranges.null is null, it must be 3 numbers"),
        ({"right": [1, 2]}, r"right is \[1, 2\], it must be 7 numbers"),
        ({"no_answer": [float("inf")] * 7}, "no_answer is .*, it must be 7 numbers"),
        ({"no_answer": [True] * 7}, "no_answer is .*, it must be 7 numbers"),
    ],
)
def test_a_damaged_entry_is_refused(change, says):
    with pytest.raises(UserError, match=f"here: confidence: {says}"):
        read_confidence({"confidence": {**FITTED, **change}}, "here")
    assert read_confidence({"null_threshold": 1.0}) is None


# ---- in a Reader ----

TEXT = "a b c d e f g h i j"


@pytest.fixture(scope="module")
def reader(tiny_model):
    made = Reader.load(tiny_model, "cpu")
    made.qa.update({"max_length": 32, "overlap": 4, "max_question": 8, "confidence": FITTED})
    return made


@pytest.mark.parametrize("context", [TEXT, [TEXT, "k l m", ""], ["", ""]])
@pytest.mark.parametrize("threshold", [None, -100.0, 0.0, 100.0])
def test_ranking_and_confidence_agree(reader, context, threshold):
    options = dict(allow_no_answer=threshold is not None, threshold=threshold)
    many = reader.answer("where is a?", context, top_k=6, **options)
    sure = [answer.confidence for answer in many]
    assert sure == sorted(sure, reverse=True) and 0 <= sure[-1] <= sure[0] <= 1
    assert len({answer.no_answer for answer in many}) == 1
    if not many[0]:
        assert many[0].confidence == many[0].no_answer
    # how many are asked for, and together with what, changes nothing
    for top_k in (1, 2):
        fewer = reader.answer("where is a?", context, top_k=top_k, **options)
        first = fewer if top_k == 1 else fewer[0]
        assert first == many[0]
    pairs = [("is b?", "b c"), ("where is a?", context)]
    among = list(reader.answer_many(pairs, **options))[1]
    assert among.confidence == pytest.approx(many[0].confidence, abs=1e-6)


def test_the_numbers_are_those_of_the_evidence(reader):
    example = Example("1", "where is a?", TEXT, (), ())
    spans, windows = reader.spans([example])
    evidence = evidence_of(spans, windows, [example])
    made = read_confidence(reader.qa)
    best, other = reader.answer("where is a?", TEXT, top_k=2, allow_no_answer=False)
    assert best.confidence == pytest.approx(made.chance_of_right(evidence)[0])
    assert best.no_answer == pytest.approx(made.chance_of_none(evidence)[0])
    # the margin: a text of its own that shares no token with the best
    starts = [(TEXT.index(one), TEXT.index(one) + 1) for one in TEXT.split()]
    apart = [
        spans.score[0, n]
        for n in range(20)
        if starts[spans.last[0, n]][1] <= best.start or starts[spans.first[0, n]][0] >= best.end
    ]
    rival = apart[0] if apart else spans.score[0, 19]
    assert evidence.margin[0] == pytest.approx(spans.score[0, 0] - rival)


def test_without_a_fit_nothing_is_claimed(tiny_model):
    answer = Reader.load(tiny_model, "cpu").answer("where is a?", TEXT)
    assert answer.confidence is None and answer.no_answer is None


def test_it_is_told_in_every_output(tiny_model, tmp_path, capsys, monkeypatch):
    import io
    import shutil

    folder = shutil.copytree(tiny_model, tmp_path / "model")
    write_json(folder / "qa.json", {"null_threshold": -1e9, "confidence": FITTED})
    asked = ["--model", str(folder), "--question", "where is a?", "--context", TEXT]
    main([*asked, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["answer"] == "" and 0 < found["confidence"] == found["no_answer"] < 1
    main(asked)
    said = re.search(r"confidence ([\d.]+)", capsys.readouterr().out)
    assert float(said[1]) == pytest.approx(found["confidence"], abs=1e-3)
    line = json.dumps({"id": 7, "question": "where is a?", "context": TEXT})
    monkeypatch.setattr("sys.stdin", io.StringIO(line + "\n"))
    main(["--model", str(folder), "--jsonl", "--threshold", "none"])
    row = json.loads(capsys.readouterr().out)
    assert row["answer"] and row["no_answer"] == found["no_answer"] != row["confidence"]
    write_json(folder / "qa.json", {"confidence": {"ranges": 1}})
    with pytest.raises(UserError, match=r"model/qa.json: confidence: "):
        Reader.load(folder)


def test_a_reader_is_calibrated_by_questions(tiny_model, letters, tmp_path):
    made = Reader.load(tiny_model, "cpu")
    found = made.calibrate(letters)
    assert set(found) == {"confidence_error", "no_answer_error"} and max(found.values()) < 0.3
    made.save(tmp_path / "calibrated")
    again = Reader.load(tmp_path / "calibrated", "cpu").answer("where is a?", TEXT)
    assert again == made.answer("where is a?", TEXT) and again.confidence is not None


def test_a_training_leaves_one(tmp_path, tiny_model, letters):
    argv = f"--train {letters} --dev {letters} --weights {tiny_model} --out {tmp_path / 'run'}"
    train([*argv.split(), *"--max-steps 2 --max-length 32 --overlap 4 --max-question 8".split()])
    qa = json.loads((tmp_path / "run" / "best" / "qa.json").read_text())
    assert read_confidence(qa) is not None and qa["confidence"]["no_answer"]
    assert 0 <= qa["tuning"]["tuned"]["confidence_error"] < 1
    answer = Reader.load(tmp_path / "run" / "best", "cpu").answer("where is a?", TEXT)
    assert 0 < answer.confidence < 1 and 0 < answer.no_answer < 1


# ---- what an answer says of itself ----


def test_an_answer_that_is_none_is_false():
    assert Answer("a", 0.5, 0, 1) and not Answer("", 0.5, 0, 0)


def test_it_shows_what_is_known():
    assert repr(Answer("a", 0.51234, 3, 4)) == "Answer('a', score=0.512, start=3, end=4)"
    full = Answer("a", 0.5, 3, 4, 2, confidence=0.75, no_answer=0.125)
    said = "Answer('a', confidence=0.75, score=0.5, no_answer=0.125, start=3, end=4, document=2)"
    assert repr(full) == said
    assert list(asdict(full))[:5] == ["answer", "score", "start", "end", "document"]


def test_it_is_marked_in_its_text():
    answer = Answer("<b>", 0.5, 4, 7)
    text = "a & <b> & c"
    assert answer.in_html(text) == (
        '<p style="white-space: pre-wrap">a &amp; <mark>&lt;b&gt;</mark> &amp; c</p>'
    )
    assert ">&amp; <mark>&lt;b&gt;</mark> &amp;<" in answer.in_html(text, around=2)
    second = replace(answer, document=1)
    assert second.in_html(["x", text]) == answer.in_html(text)
    assert "<mark>" not in Answer("", 0.5, 0, 0).in_html(text)
    assert Answer("", 0.5, 0, 0).in_html([]).endswith("></p>")


@pytest.mark.skipif(
    not (BUNDLED / "model.safetensors").exists(), reason="the bundled reader is missing"
)
def test_the_bundled_reader_knows_how_sure_it_is():
    made = Reader.load(BUNDLED, "cpu")
    text = "Agnes Holm kept the lamp for thirty years. An electric one replaced it in 1931."
    sure = made.answer("Who kept the lamp?", text)
    unsure = made.answer("Who painted the lamp?", text, allow_no_answer=False)
    none = made.answer("What is the capital of France?", text)
    assert sure.confidence > 0.7 > 0.3 > sure.no_answer
    assert unsure.confidence < 0.3 < 0.7 < unsure.no_answer
    assert none.answer == "" and none.confidence == none.no_answer > 0.7
    # `score` falls as texts grow; this does not, as long as nothing else in them could be meant
    longer = made.answer("Who kept the lamp?", text + " It rained on the roof all day long." * 200)
    assert longer.confidence > 0.6
