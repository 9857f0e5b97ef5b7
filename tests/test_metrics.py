"""The scorer against a plain re-implementation of the official definition, and what it has beyond that."""

import json
from types import SimpleNamespace

import numpy as np
import official_squad as official
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertqa.errors import UserError
from bertqa.qa import metrics, thresholds
from bertqa.qa.agreement import char_tokens, normalise_answer
from bertqa.qa.thresholds import tune_threshold

# Words that make answers agree in part, and everything normalisation treats specially.
WORDS = [
    "a",
    "an",
    "the",
    "The",
    "cat",
    "Cat.",
    "dog",
    "dog's",
    "42",
    "...",
    "!",
    "-",
    "a-n",
    "日本",
    "日本の",
    "猫。",
    "İzmir",
    "ﬁn",
    "naïve",
    "«cat»",
    "\u00a0",
    "\u3000",
    "\u200b",
    "\x1c",
    "\n",
    "🙂",
    "e\u0301",
    "\ud800",
]
TEXTS = st.lists(st.sampled_from(WORDS), max_size=3).map(" ".join)
IDS = st.sampled_from("abcdef")
ODDS = st.sampled_from([-2.5, -1, 0, 0.0, 0.25, 0.5, 1, 1.0, 2.5, 1e9, float("inf")])
CASES = settings(max_examples=200, deadline=None, derandomize=True)


def squad(questions: list[tuple[str, list[str]]]) -> dict:
    qas = [
        {"id": id, "answers": [{"text": text, "answer_start": 0} for text in texts]}
        for id, texts in questions
    ]
    return {"version": "v2.0", "data": [{"title": "", "paragraphs": [{"context": "", "qas": qas}]}]}


def examples(questions: list[tuple[str, list[str]]]) -> list:
    return [SimpleNamespace(id=id, answer_texts=tuple(texts)) for id, texts in questions]


def questions_of(answers) -> st.SearchStrategy:
    """Questions with repeated ids, and predictions with some missing and some extra."""
    questions = st.lists(
        st.tuples(IDS, st.lists(TEXTS, min_size=answers, max_size=3)), min_size=1, max_size=6
    )
    return st.tuples(questions, st.dictionaries(IDS, TEXTS)).filter(
        lambda c: any(id in c[1] for id, _ in c[0])
    )


# ---- equality with the official scripts ----


@CASES
@given(TEXTS | st.text())
def test_normalisation_is_the_official_one(text):
    assert normalise_answer(text) == official.normal(text)


@CASES
@given(questions_of(answers=0), st.dictionaries(IDS, ODDS, min_size=6), ODDS)
def test_every_v2_key_is_the_official_one_to_the_last_digit(case, odds, threshold):
    questions, predictions = case
    data = official.drop_unpredicted(squad(questions), predictions)
    scores = metrics.score_answers(examples(questions), predictions, missing="skip")
    assert json.dumps(metrics.evaluate_v2(scores)) == json.dumps(
        official.evaluate_v2(data, predictions)
    )

    known = {
        id: value for id, value in odds.items() if id in scores.ids
    }  # the script has no curves for others
    theirs = official.evaluate_v2(data, predictions, known, threshold, curves=True)
    assert json.dumps(metrics.evaluate_v2(scores, odds, threshold, curves=True)) == json.dumps(
        theirs
    )


@CASES
@given(questions_of(answers=1))
def test_every_v1_key_is_the_official_one_with_missing_predictions(case):
    questions, predictions = case
    scores = metrics.score_answers(examples(questions), predictions, v1=True)
    assert json.dumps(metrics.evaluate_v1(scores)) == json.dumps(
        official.evaluate_v1(squad(questions), predictions)
    )


@CASES
@given(questions_of(answers=0), st.dictionaries(IDS, ODDS, min_size=6), ODDS)
def test_a_missing_prediction_counts_like_a_wrong_answer_that_no_threshold_can_mend(
    case, odds, threshold
):
    questions, predictions = case
    scores = metrics.score_answers(examples(questions), predictions)
    gone = [id for id in scores.ids if id not in predictions]
    filled = predictions | dict.fromkeys(gone, "\ue000")
    kept = odds | dict.fromkeys(gone, float("-inf"))
    theirs = official.evaluate_v2(squad(questions), filled, kept, threshold)
    ours = metrics.evaluate_v2(
        scores, {id: value for id, value in odds.items() if id not in gone}, threshold
    )
    shared = [key for key in theirs if not key.startswith("best")]
    assert [ours[key] for key in shared] == [theirs[key] for key in shared]
    assert ours["best_exact"] <= 100 * (len(scores.ids) - len(gone)) / len(scores.ids)


def test_an_article_leaves_a_space_behind():
    assert normalise_answer("New–the–York") == "new– –york"
    assert normalise_answer("«The» end") == "« » end"


def test_literal_scores():
    golds = [("q", ["the Eiffel Tower", "Eiffel Tower, Paris"])]

    def score(text, v1=False):
        scores = metrics.score_answers(examples(golds), {"q": text}, v1=v1)
        return scores.exact[0], scores.f1[0]

    assert score("An Eiffel tower!") == (1, 1.0)
    assert score("tower") == (0, 2 / 3)
    assert score("Paris, Eiffel Tower") == (0, 1.0)
    assert score("") == (0, 0)
    golds = [
        ("q", ["the"])
    ]  # nothing is left of it: v2 accepts the empty answer, v1.1 gives it no F1
    assert score("...") == (1, 1)
    assert score("...", v1=True) == (1, 0)


# ---- policies ----


def test_missing_predictions_wrong_or_skipped():
    data = examples([("a", ["cat"]), ("b", ["dog"]), ("c", []), ("d", [])])
    predictions = {"a": "cat", "c": "x"}
    wrong = metrics.evaluate_v2(metrics.score_answers(data, predictions), {"a": 0.1, "c": 0.9}, 0.5)
    assert (wrong["exact"], wrong["total"], wrong["HasAns_exact"], wrong["NoAns_exact"]) == (
        50.0,
        4,
        50.0,
        50.0,
    )
    assert (wrong["best_exact"], wrong["best_exact_thresh"]) == (
        50.0,
        0.1,
    )  # d stays wrong at every threshold
    skip = metrics.evaluate_v2(
        metrics.score_answers(data, predictions, missing="skip"), {"a": 0.1, "c": 0.9}, 0.5
    )
    assert (skip["exact"], skip["total"], skip["best_exact"]) == (100.0, 2, 100.0)


def test_files_that_do_not_belong_together_are_refused():
    with pytest.raises(
        UserError, match="none of the 1 predictions .* 'z' in the predictions and 'a' in the data"
    ):
        metrics.score_answers(examples([("a", ["cat"])]), {"z": "cat"})
    with pytest.raises(UserError, match="'b' has no answers"):
        metrics.score_answers(examples([("a", ["cat"]), ("b", [])]), {"a": "cat"}, v1=True)
    scores = metrics.score_answers(examples([("a", ["cat"]), ("b", [])]), {"a": "cat", "b": ""})
    with pytest.raises(UserError, match="1 of 2 questions have no no-answer probability, e.g. 'b'"):
        metrics.evaluate_v2(scores, {"a": 0.5})


def test_of_records_with_one_id_v2_counts_the_last_and_v1_all():
    data = examples([("a", ["cat"]), ("b", ["cat"]), ("a", ["dog"])])
    scores = metrics.score_answers(data, {"a": "dog"})
    assert (scores.ids, scores.exact) == (["a", "b"], [1, 0])
    scores = metrics.score_answers(data, {"a": "dog"}, v1=True)
    assert (scores.ids, scores.exact) == (["a", "b", "a"], [0, 0, 1])


def test_the_first_three_ids_are_named_or_that_there_is_none():
    data = examples([(id, ["x"]) for id in "abcd"])
    with pytest.raises(UserError, match="like nothing in the predictions and 'a', 'b', 'c' in the"):
        metrics.score_answers(data, {})


def test_the_default_threshold_is_the_script_s():
    """evaluate-v2.0.py abstains above 1.0, and so never without odds."""
    data = examples([("a", ["x"]), ("b", ["x"])])
    scores = metrics.score_answers(data, {"a": "x", "b": "x"})
    assert metrics.evaluate_v2(scores)["exact"] == 100.0
    assert metrics.evaluate_v2(scores, {"a": 1.0, "b": 1.01})["exact"] == 50.0


def test_curves_by_hand():
    """Answered in the order of their odds; the two in the middle share theirs, so there is no point between them."""
    has = [True, False, True, True]
    precisions, recalls, area = metrics.precision_recall(
        [1.0, 0.0, 0.5, 1.0], has, [-1.0, 0.0, 0.0, 2.0], [0, 1, 2, 3]
    )
    assert precisions == [1.0, 1.0, 1.5 / 3, 2.5 / 4]
    assert recalls == [0.0, 1 / 3, 1.5 / 3, 2.5 / 3]
    assert area == pytest.approx(100 * (1 / 3 + 0.5 * 0.5 / 3 + 2.5 / 4 / 3))
    scores = metrics.score_answers(examples([("a", [])]), {"a": "x"})
    found = metrics.evaluate_v2(scores, {"a": 0.0}, curves=True)
    assert not [name for name in found if name.startswith("pr_")]  # no recall of nothing


# ---- thresholds ----


def test_the_threshold_story():
    """Sweeping predictions that a threshold has already emptied gives a wrong answer; sweeping raw ones a right one."""
    odds = {"a": -1.0, "b": 0.5, "c": 1.5, "d": 2.0, "e": 3.0}
    data = examples([("a", ["x"]), ("b", ["x"]), ("c", ["x"]), ("d", []), ("e", [])])
    raw = dict.fromkeys(odds, "x")
    emptied = {
        id: "" if odds[id] > 0 else text for id, text in raw.items()
    }  # what run_qa and the old scripts write

    scores = metrics.score_answers(data, emptied)
    thresholded = metrics.evaluate_v2(scores, odds)
    assert (thresholded["best_exact"], thresholded["best_exact_thresh"]) == (60.0, -1.0)

    scores = metrics.score_answers(data, raw)
    sweep = tune_threshold(list(odds.values()), scores.exact, scores.f1, scores.has_answer)
    assert (sweep.best_exact, sweep.best_exact_thresh) == (100.0, 1.75)
    assert metrics.evaluate_v2(scores, odds, sweep.best_exact_thresh)["exact"] == 100.0
    assert metrics.evaluate_v2(scores, odds, thresholded["best_exact_thresh"])["exact"] == 60.0


def test_the_official_sweep_promises_what_no_threshold_gives():
    tied = examples([("a", ["x"]), ("b", [])]), {"a": "x", "b": "x"}, {"a": 1.0, "b": 1.0}
    negative = examples([("a", []), ("b", [])]), {"a": "x", "b": "x"}, {"a": -2.0, "b": -1.0}
    for (data, predictions, odds), promised, real in ((tied, 100.0, 50.0), (negative, 100.0, 0.0)):
        scores = metrics.score_answers(data, predictions)
        theirs = metrics.evaluate_v2(scores, odds)
        assert theirs["best_exact"] == promised
        assert metrics.evaluate_v2(scores, odds, theirs["best_exact_thresh"])["exact"] == real
    sweep = tune_threshold([-2.0, -1.0], [0, 0], [0, 0], [False, False])
    assert (sweep.best_exact, sweep.best_exact_thresh) == (100.0, -3.0)


@CASES
@given(
    st.lists(
        st.tuples(ODDS.filter(np.isfinite), st.sampled_from([0, 0.25, 0.5, 1]), st.booleans()),
        min_size=1,
    )
)
def test_tuned_thresholds_score_what_they_promise_and_none_scores_more(rows):
    odds, f1, has_answer = map(np.array, zip(*rows, strict=True))
    exact = (f1 == 1).astype(int)
    sweep = tune_threshold(odds, exact, f1, has_answer)

    def at(threshold, values):
        return 100 * np.where(odds > threshold, ~has_answer, values).mean()

    assert len(sweep.thresholds) == len(set(odds)) + 1
    assert np.all(np.diff(sweep.thresholds) > 0)
    for values, curve, best, threshold in (
        (exact, sweep.exact, sweep.best_exact, sweep.best_exact_thresh),
        (f1, sweep.f1, sweep.best_f1, sweep.best_f1_thresh),
    ):
        np.testing.assert_allclose(curve, [at(t, values) for t in sweep.thresholds], atol=1e-9)
        assert at(threshold, values) == pytest.approx(best)
        assert all(at(t, values) <= best + 1e-9 for t in [-9, *odds, *(odds + 0.01), 2e9])


def test_neighbouring_floats_and_odds_that_are_not_finite():
    low = np.nextafter(1.0, 2.0)
    odds = np.array([low, np.nextafter(low, 2.0)])
    assert odds.mean() == odds[1]  # so the point midway would answer both
    sweep = tune_threshold(odds, [1, 0], [1, 0], [True, False])
    assert (sweep.best_exact, sweep.best_exact_thresh) == (100.0, low)
    with pytest.raises(UserError, match="1 of 2 are not"):
        tune_threshold([1.0, np.inf], [1, 0], [1, 0], [True, False])


# ---- extras ----


def test_answer_vs_no_answer():
    data = examples([("a", ["cat"]), ("b", ["cat"]), ("c", []), ("d", []), ("e", [])])
    scores = metrics.score_answers(
        data, {"a": "dog", "b": "", "c": "", "d": "dog"}
    )  # e is missing: wrong
    odds = [0.0, 0.0, 0.0, 9.0, None]
    assert metrics.answered(scores, odds, 1.0) == [True, False, False, False, None]
    assert metrics.answer_vs_no_answer(scores, odds, 1.0) == 60.0
    assert metrics.answer_vs_no_answer(scores, odds, 10.0) == 40.0
    assert metrics.answered(scores, odds, 9.0) == [
        True,
        False,
        False,
        True,
        None,
    ]  # equal: answered


def test_char_f1_reads_languages_without_spaces():
    data = examples(
        [
            ("ja", ["日本の首都"]),
            ("th", ["กรุงเทพ"]),
            ("en", ["red panda"]),
            ("mixed", ["東京 Tower"]),
        ]
    )
    predictions = {"ja": "首都。", "th": "กรุงเทพ", "en": "panda red cat", "mixed": "東京tower"}
    scores = metrics.score_answers(data, predictions, characters=True)
    assert scores.f1[0] == 0  # one word against another
    assert scores.char_f1 == [pytest.approx(4 / 7), 1.0, pytest.approx(0.8), 1.0]
    assert char_tokens("東京tower の 3階") == ["東", "京", "tower", "の", "3", "階"]
    assert char_tokens("한국의 수도") == ["한국의", "수도"]


def test_bootstrap_intervals():
    values = np.tile([0.0, 1.0], 500)
    columns = np.stack([values, values, values - values, np.ones(1000)], 1)
    limits = thresholds.bootstrap(columns, 500)
    np.testing.assert_allclose(limits[0], [0.5 - 1.96 * 0.0158, 0.5 + 1.96 * 0.0158], atol=0.002)
    assert limits.tolist() == thresholds.bootstrap(columns, 500, level=0.95).tolist()
    narrow = thresholds.bootstrap(columns, 500, level=0.90)
    assert limits[0, 0] < narrow[0, 0] < narrow[0, 1] < limits[0, 1]
    assert limits[0].tolist() == limits[1].tolist()  # paired: both columns saw the same draws
    assert limits[2:].tolist() == [[0.0, 0.0], [1.0, 1.0]]
    assert thresholds.bootstrap(columns, 500).tolist() == limits.tolist()
    assert thresholds.bootstrap(columns, 500, seed=1)[0].tolist() != limits[0].tolist()


def test_histogram_keeps_every_question():
    shares, edges = thresholds.histogram(
        [0.2, 0.4]
    )  # probabilities: the axis is theirs, not the data's
    assert (edges[0], edges[-1]) == (0.0, 1.0) and sorted(shares)[-2:] == [0.5, 0.5]
    shares, edges = thresholds.histogram([0.0, 0.04, 0.99, 1.0])
    assert shares[0] == shares[-1] == 0.5 and edges[1] == 0.05
    shares, edges = thresholds.histogram([-8.0, 12.0])
    assert (shares[0], shares[-1], edges[0], edges[-1]) == (0.5, 0.5, -8.0, 12.0)
    # Outside on one side only.
    shares, edges = thresholds.histogram([-8.0, 0.5])
    assert (shares[0], shares[-1], edges[0], edges[-1]) == (0.5, 0.5, -8.0, 0.5)
    shares, edges = thresholds.histogram([0.5, 12.0])
    assert (shares[0], shares[-1], edges[0], edges[-1]) == (0.5, 0.5, 0.5, 12.0)
    shares, edges = thresholds.histogram([-8.0, 12.0, float("inf"), float("-inf")])
    assert (shares[0], shares[-1], edges[0], edges[-1]) == (0.5, 0.5, -8.0, 12.0)
    shares, edges = thresholds.histogram([float("inf"), float("-inf"), float("-inf"), 0.5], bins=4)
    assert (shares.tolist(), edges.tolist()) == ([0.5, 0, 0.25, 0.25], [0, 0.25, 0.5, 0.75, 1])
    shares, edges = thresholds.histogram([float("inf")] * 2)
    assert (shares[-1], edges[0], edges[-1]) == (1.0, 0.0, 1.0)


def test_defaults_of_the_statistics():
    draw = np.random.default_rng(0)
    values = draw.random((40, 1))
    assert thresholds.bootstrap(values).tolist() == (
        thresholds.bootstrap(values, 1000, level=0.95, seed=0).tolist()
    )
    assert thresholds.bootstrap(values, 999).tolist() != thresholds.bootstrap(values).tolist()
    probability, outcome = draw.random(200), draw.random(200) < 0.5
    for error in (thresholds.calibration_error, thresholds.gap_of_equal_bins):
        assert error(probability, outcome) == error(probability, outcome, bins=15)
        assert error(probability, outcome) != error(probability, outcome, bins=14)
