"""Thresholds are tuned on raw best answers, by article, and probabilities mean what they say."""

import json

import numpy as np
import pytest
from test_spans import decode, lay

from bertqa.data.examples import Example
from bertqa.errors import UserError
from bertqa.qa.answers import best_answers, null_odds, prediction_files
from bertqa.qa.metrics import evaluate_v2, score_answers
from bertqa.qa.thresholds import (
    NO_SPAN_ODDS,
    abstain,
    calibration_error,
    fit_logistic,
    fit_probability,
    gap_of_equal_bins,
    no_answer_probability,
    tune,
    tune_threshold,
)


def test_the_decision_rule():
    odds = np.array([-1.0, 0.5, 0.6, NO_SPAN_ODDS])
    assert abstain(odds, 0.5).tolist() == [False, False, True, True]  # equal is answered
    assert abstain(odds, None).tolist() == [False] * 4


def test_the_threshold_story():
    """Three questions; the model is right about the answers of two, and the third has none. Null odds -3, 1 and 3.

    Predictions written at threshold 0 have lost the second answer, so the best that any sweep finds in them is 66.7 at
    -3. The raw answers give 100 at 2.
    """
    windows, examples = lay([["aa", "bb"]] * 3, [1] * 3, [[(0, 2)]] * 3)
    examples = [
        Example(e.id, e.question, e.context, gold, (0,) * len(gold))
        for e, gold in zip(examples, [("aa",), ("aa",), ()], strict=True)
    ]
    start, end = np.zeros((2, 18), np.float32)
    start[[3, 9, 15]] = end[[3, 9, 15]] = 2  # aa scores 4
    start[[0, 6, 12]] = (1, 5, 7)  # the null answer 1, 5 and 7
    spans = decode(windows, start, end)
    odds = null_odds(spans)
    assert odds.tolist() == [-3, 1, 3]

    def sweep(texts):
        scores = score_answers(examples, dict(zip(["q0", "q1", "q2"], texts, strict=True)))
        best = tune_threshold(odds, scores.exact, scores.f1, scores.has_answer)
        return scores, best

    thresholded = prediction_files(spans, windows, examples, 0.0)
    assert list(thresholded["predictions.json"].values()) == ["aa", "", ""]
    scores, wrong = sweep(thresholded["predictions.json"].values())
    official = evaluate_v2(scores, thresholded["null_odds.json"])
    assert (official["best_f1"], official["best_f1_thresh"]) == (pytest.approx(200 / 3), -3)
    assert wrong.best_f1 == pytest.approx(200 / 3)

    scores, right = sweep(best_answers(spans, windows, examples).texts)
    assert (right.best_f1, right.best_f1_thresh, right.best_exact, right.best_exact_thresh) == (
        100,
        2,
        100,
        2,
    )
    settings = tune(odds, scores.exact, scores.f1, scores.has_answer)
    assert settings["null_threshold"] == 2
    final = prediction_files(spans, windows, examples, settings["null_threshold"])[
        "predictions.json"
    ]
    assert list(final.values()) == ["aa", "aa", ""]


# ---- tuning ----


def test_what_tuning_reports():
    rng = np.random.default_rng(0)
    has = rng.random(200) < 0.5
    odds = np.where(has, -1.0, 1.0) + rng.normal(0, 1.5, 200)
    exact = ((rng.random(200) < 0.8) & has).astype(float)
    found = tune(odds, exact, exact / 2, has)
    report = found["tuning"]["tuned"]
    silent = odds > found["null_threshold"]
    assert report["questions"] == 200
    assert report["exact"] == pytest.approx(100 * np.where(silent, ~has, exact).mean())
    assert report["exact_at_zero"] == pytest.approx(100 * np.where(odds > 0, ~has, exact).mean())
    assert report["best_f1"] == pytest.approx(report["f1"])
    assert report["best_exact"] >= report["exact"]
    assert report["f1_at_zero"] == pytest.approx(100 * np.where(odds > 0, ~has, exact / 2).mean())
    fitted = found["no_answer_scale"], found["no_answer_bias"]
    for name, fit in (("calibration_error_before", (1, 0)), ("calibration_error", fitted)):
        expected = calibration_error(no_answer_probability(odds, *fit), has)
        assert report[name] == pytest.approx(expected), name
    assert report["calibration_error"] < report["calibration_error_before"]
    # what hindsight would have chosen for each, so that it can be seen how far apart they are
    sweep = tune_threshold(odds, exact, exact / 2, has)
    assert report["best_f1_thresh"] == sweep.best_f1_thresh == found["null_threshold"]
    assert report["best_exact_thresh"] == sweep.best_exact_thresh != sweep.best_f1_thresh
    assert json.loads(json.dumps(found)) == found


def test_questions_without_a_span_are_no_part_of_the_fit():
    rng = np.random.default_rng(2)
    has = rng.random(100) < 0.5
    odds = np.where(has, -2.0, 2.0) + rng.normal(0, 2, 100)
    exact = has.astype(float)
    alone = tune(odds, exact, exact, has)
    more = np.array([True, False, False])  # three that no threshold can help
    beside = tune(
        np.append(odds, [NO_SPAN_ODDS] * 3),
        np.append(exact, ~more),
        np.append(exact, ~more),
        np.append(has, more),
    )
    for name in ("null_threshold", "no_answer_scale", "no_answer_bias"):
        assert beside[name] == alone[name]


def test_a_question_without_a_span_counts_as_undecided_where_all_others_lie_below():
    # Its odds stand at 0, so the threshold for "answer all that can be" is midway and not 1 above -3.
    found = tune([-3.0, NO_SPAN_ODDS], [1, 1], [1, 1], [True, False])
    assert found["null_threshold"] == -1.5


def test_data_without_impossible_questions_has_no_threshold():
    found = tune([1.0, -1.0], [1, 0], [1, 0.5], [True, True])
    assert (found["null_threshold"], found["no_answer_scale"], found["no_answer_bias"]) == (
        None,
        None,
        None,
    )
    assert (
        found["tuning"]["tuned"]["f1"] == 75 and "calibration_error" not in found["tuning"]["tuned"]
    )


def test_only_impossible_questions_have_a_threshold_but_no_probability():
    found = tune([1.0, -1.0], [0, 0], [0, 0], [False, False])
    assert found["null_threshold"] < -1 and found["no_answer_scale"] is None


def test_questions_without_a_span_do_not_stretch_the_threshold():
    # all should be answered: the threshold stands just above the highest real odds, not at 5,000 or 10,001
    found = tune(
        [-1.0, 2.0, NO_SPAN_ODDS, NO_SPAN_ODDS],
        [1, 1, 0, 1],
        [1, 1, 0, 1],
        [True, True, True, False],
    )
    assert found["null_threshold"] == 3
    assert found["tuning"]["tuned"]["exact"] == 75
    assert abs(found["no_answer_scale"] or 0) < 10


def test_no_question_has_no_threshold():
    with pytest.raises(UserError, match="0 of 0 are not"):
        tune_threshold([], [], [], [])


# ---- calibration ----


def test_the_fit_recovers_what_made_the_data():
    rng = np.random.default_rng(1)
    odds = rng.normal(1, 5, 40_000)
    has = rng.random(len(odds)) >= 1 / (1 + np.exp(-(0.3 * odds - 0.7)))
    scale, bias = fit_probability(odds, has)
    assert scale == pytest.approx(0.3, abs=0.015) and bias == pytest.approx(-0.7, abs=0.05)
    before = calibration_error(no_answer_probability(odds, 1, 0), has)
    after = calibration_error(no_answer_probability(odds, scale, bias), has)
    assert before > 0.1 and after < 0.01
    # it is the maximum of the likelihood: the gradient vanishes, up to Platt's targets
    gap = no_answer_probability(odds, scale, bias) - ~has
    assert abs(gap.mean()) < 1e-3 and abs((gap * odds).mean()) < 5e-3


@pytest.mark.parametrize(
    "odds, has",
    [
        (
            [-2.0, -1.0, 1.0, 2.0],
            [True, True, False, False],
        ),  # separable: plain maximum likelihood diverges
        ([-2000.0, -1000.0, 1000.0, 2000.0], [True, True, False, False]),
        ([2.0, 1.0, -1.0, -2.0], [True, True, False, False]),  # the wrong way round
        ([3.0, 3.0, 3.0], [True, False, False]),  # nothing to learn but the share
        ([0.0, 0.0, 500.0], [True, True, False]),
    ],
)
def test_the_fit_is_finite_on_awkward_data(odds, has):
    odds, has = np.array(odds), np.array(has)
    scale, bias = fit_probability(odds, has)
    probability = no_answer_probability(odds, scale, bias)
    assert np.isfinite([scale, bias]).all() and ((probability > 0) & (probability < 1)).all()
    # Platt's targets, where two numbers can reach them: the same for each kind that is told apart
    none = ~has
    target = np.where(none, (none.sum() + 1) / (none.sum() + 2), 1 / (has.sum() + 2))
    assert probability.mean() == pytest.approx(target.mean(), abs=1e-6)


def test_probability_by_hand():
    np.testing.assert_allclose(
        no_answer_probability([0, 2, -2], 0.5, 0.0), [0.5, 0.7310586, 0.2689414], atol=1e-7
    )
    with np.errstate(over="raise"):  # no overflow at either end
        assert no_answer_probability([NO_SPAN_ODDS], 1, 0) == 1
    assert no_answer_probability([-NO_SPAN_ODDS], 1, 0) == 0


def test_calibration_error_by_hand():
    # bins of a half: {0.1, 0.3} mean 0.2, share 0.5 without an answer; {0.9, 0.9, 1.0} mean 2.8/3, share 2/3
    error = calibration_error([0.1, 0.3, 0.9, 0.9, 1.0], [True, False, False, False, True], bins=2)
    assert error == pytest.approx((2 * 0.3 + 3 * (2.8 / 3 - 2 / 3)) / 5)
    assert calibration_error([0.0, 1.0], [True, False]) == 0


def test_bins_of_as_many_questions_each_by_hand():
    # two bins: {0.1, 0.2} mean 0.15 of which half came true, {0.9, 1.0} mean 0.95 of which all
    error = gap_of_equal_bins([0.9, 0.1, 1.0, 0.2], [1, 0, 1, 1], bins=2)
    assert error == pytest.approx((2 * 0.35 + 2 * 0.05) / 4)


def test_a_pull_decides_what_the_data_leave_open():
    inputs = np.array([[1.0, 1.0], [0.0, 0.0]])  # the second weight is of no consequence
    found = fit_logistic(inputs, np.array([1.0, 0.0]), np.array([2.0, 5.0]), strength=1e-6)
    assert found == pytest.approx([0.0, 5.0], abs=1e-3)
    pulled = fit_logistic(inputs, np.array([1.0, 1.0]), np.zeros(2), strength=1.0)
    assert pulled[0] == pytest.approx(2 / (1 + np.exp(pulled[0])))  # gradient = pull
