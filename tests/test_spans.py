"""Decoding against brute force, against the old scripts' algorithms, and by hand."""

import numpy as np
import pytest
import reference_postprocess as reference

from bertqa.data.examples import Example, read_examples
from bertqa.data.tokenizer import WordPiece
from bertqa.data.tokens import Tokens
from bertqa.data.windows import Windows, build_windows
from bertqa.errors import UserError
from bertqa.qa import spans as room
from bertqa.qa.answers import best_answers, characters, n_best, null_odds, prediction_files
from bertqa.qa.search import MODES, has_max_context
from bertqa.qa.spans import SpanDecoder, SpanSettings
from bertqa.qa.thresholds import NO_SPAN_ODDS

# ---- small worlds ----


def lay(paragraphs, question_sizes, pieces):
    """Windows and examples over paragraphs of words, a word a token; pieces[q] lists (first, count) of q's windows."""

    def tokens(sizes, starts, ends):
        rows = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        return Tokens(
            np.zeros(rows[-1], np.int32), np.array(starts, np.int32), np.array(ends, np.int32), rows
        )

    starts, ends = [], []
    for words in paragraphs:
        at = 0
        for word in words:
            starts.append(at)
            ends.append(at + len(word))
            at += len(word) + 1
    none = [0] * sum(question_sizes)
    flat = [(q, first, count) for q, windows in enumerate(pieces) for first, count in windows]
    question, first, count = (np.array(column, np.int32) for column in zip(*flat, strict=True))
    windows = Windows(
        tokens(question_sizes, none, none),
        tokens([len(words) for words in paragraphs], starts, ends),
        np.arange(len(paragraphs), dtype=np.int32),
        question,
        first,
        count,
        np.zeros_like(first),
        np.zeros_like(first),
        101,
        102,
    )
    examples = [
        Example(f"q{q}", "?", " ".join(words), (), ()) for q, words in enumerate(paragraphs)
    ]
    return windows, examples


def random_world(rng, words="abcdefghijklmnopqrstuvwxyz", questions=3, longest=12):
    sizes = rng.integers(0, longest + 1, questions)
    room_, step = int(rng.integers(2, 9)), int(rng.integers(1, 5))
    pieces = []
    for size in sizes.tolist():
        firsts = [0]
        while firsts[-1] + room_ < size:
            firsts.append(firsts[-1] + min(step, room_))
        pieces.append([(first, min(room_, size - first)) for first in firsts])
    paragraphs = [["".join(rng.choice(list(words), 2)) for _ in range(size)] for size in sizes]
    return lay(paragraphs, rng.integers(1, 5, questions).tolist(), pieces)


def random_logits(rng, windows, integers):
    """Start and end logits of all windows, packed; integers of few values make many ties."""
    size = int(windows.lengths.sum())
    if integers:
        return tuple(rng.integers(-2, 3, size).astype(np.float32) for _ in range(2))
    return tuple((rng.standard_normal(size) * 4).astype(np.float32) for _ in range(2))


def unpack(windows, start, end):
    """[(start, end)] of each window."""
    cuts = np.cumsum(windows.lengths)[:-1]
    return list(zip(np.split(start, cuts), np.split(end, cuts), strict=True))


def decode(windows, start, end, settings=None, order=None, calls=1):
    """Stream windows in this order (rows), in about so many calls."""
    logits = unpack(windows, start, end)
    decoder = SpanDecoder(windows, settings or SpanSettings())
    for rows in np.array_split(np.arange(len(windows)) if order is None else order, calls):
        if len(rows):
            decoder.add(
                rows, *(np.concatenate([logits[row][side] for row in rows]) for side in (0, 1))
            )
    return decoder.finish()


def by_hand(windows, logits, settings):
    """For each question ([(score, first, last, start, end)] of all spans, best first; lowest null): nothing clever."""
    result = []
    for q in range(len(windows.question_context)):
        features = reference.features_of(windows, q)
        rows, best, null = np.flatnonzero(windows.question == q), {}, None
        for me, (feature, row) in enumerate(zip(features, rows, strict=True)):
            start, end = logits[row]
            if null is None or start[0] + end[0] < null[0]:
                null = (start[0] + end[0], start[0], end[0])
            for i in feature.context:
                for j in feature.context:
                    if not i <= j < i + settings.max_answer_length:
                        continue
                    if settings.max_context and not reference.max_context_of(features, me, i):
                        continue
                    name = tuple(
                        feature.first + position - feature.context[0] for position in (i, j)
                    )
                    best[name] = max(
                        best.get(name, (-np.inf,)), (start[i] + end[j], start[i], end[j])
                    )
        ordered = sorted((-score, *name, start, end) for name, (score, start, end) in best.items())
        result.append(([(-score, *rest) for score, *rest in ordered[: settings.n_best]], null))
    return result


def rows_of(spans):
    """Spans as lists of tuples, to compare with `by_hand`."""
    result = []
    for q in range(len(spans.first)):
        columns = (
            column[q].tolist()
            for column in (spans.score, spans.first, spans.last, spans.start, spans.end)
        )
        real = [row for row in zip(*columns, strict=True) if row[1] >= 0]
        null = tuple(
            column[q].item() for column in (spans.null_score, spans.null_start, spans.null_end)
        )
        result.append((real, null))
    return result


# ---- exact ----


@pytest.mark.parametrize("buffer, block", [(room.BUFFER, room.BLOCK), (40, 60)])
def test_exact_equals_brute_force(monkeypatch, buffer, block):
    monkeypatch.setattr(room, "BUFFER", buffer)
    monkeypatch.setattr(room, "BLOCK", block)
    rng = np.random.default_rng(buffer)
    tied = several = 0
    for case in range(500):  # of each parameter: 1,000 in all, 3,000 questions
        windows, _ = random_world(rng)
        settings = SpanSettings(
            n_best=int(rng.integers(1, 26)),
            max_answer_length=int(rng.integers(1, 9)),
            max_context=bool(rng.integers(2)),
        )
        start, end = random_logits(rng, windows, integers=case % 2 == 0)
        spans = decode(
            windows, start, end, settings, rng.permutation(len(windows)), int(rng.integers(1, 5))
        )
        expected = by_hand(windows, unpack(windows, start, end), settings)
        assert rows_of(spans) == expected, case  # bit for bit
        tied += sum(len({row[0] for row in found}) < len(found) for found, _ in expected)
        several += len(windows) > len(windows.question_context)
    assert tied > 500 and several > 250


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("integers", [True, False])
def test_order_and_grouping_do_not_matter(mode, integers, monkeypatch):
    rng = np.random.default_rng(3)
    windows, _ = random_world(rng, questions=40, longest=60)
    start, end = random_logits(rng, windows, integers)
    settings = SpanSettings(n_best=7, max_answer_length=5, mode=mode)
    whole = rows_of(decode(windows, start, end, settings))
    monkeypatch.setattr(room, "BUFFER", 100)
    monkeypatch.setattr(room, "BLOCK", 500)
    for calls in (1, 7, len(windows)):
        assert (
            rows_of(decode(windows, start, end, settings, rng.permutation(len(windows)), calls))
            == whole
        )


def two_windows():
    """Paragraph "aa bb cc dd ee", windows [0..2] and [2..4], a question of 2 tokens: paragraph from position 4."""
    return lay([["aa", "bb", "cc", "dd", "ee"]], [2], [[(0, 3), (2, 3)]])


def test_a_span_of_two_windows_counts_once_with_its_highest_score():
    windows, examples = two_windows()
    #              [CLS] q q [SEP] aa bb cc [SEP] | [CLS] q q [SEP] cc dd ee [SEP]
    start = np.array([1, 9, 9, 9, 0, 0, 4, 9, 3, 9, 9, 9, 5, 0, 0, 9], np.float32)
    end = np.array([2, 9, 9, 9, 0, 0, 3, 9, -1, 9, 9, 9, 1, 2, 0, 9], np.float32)
    spans = decode(windows, start, end, SpanSettings(n_best=3))
    # cc is 7 in the first window and 6 in the second, cc dd is 7, cc dd ee is 5
    assert rows_of(spans) == [([(7, 2, 2, 4, 3), (7, 2, 3, 5, 2), (5, 2, 4, 5, 0)], (2, 3, -1))]
    assert best_answers(spans, windows, examples).texts == ["cc"]
    assert null_odds(spans).tolist() == [2 - 7]


def test_the_null_score_is_the_minimum_over_windows_with_its_own_logits():
    windows, _ = two_windows()
    start, end = np.zeros((2, 16), np.float32)
    start[[0, 8]], end[[0, 8]] = (5, 1), (4, 2)
    assert rows_of(decode(windows, start, end))[0][1] == (3, 1, 2)
    start[[0, 8]], end[[0, 8]] = (2, 1), (1, 2)  # equal: the first window's
    for order in ([0, 1], [1, 0]):
        assert rows_of(decode(windows, start, end, order=order, calls=2))[0][1] == (3, 2, 1)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "first, last, text", [(0, 0, "aa"), (4, 4, "ee"), (0, 4, "aa bb cc dd ee"), (2, 3, "cc dd")]
)
def test_answers_at_the_edges(mode, first, last, text):
    windows, examples = lay([["aa", "bb", "cc", "dd", "ee"]], [2], [[(0, 5)]])
    start, end = np.zeros((2, 10), np.float32)
    start[4 + first] = end[4 + last] = 3
    start[[1, 9]] = end[[3, 9]] = 9  # question and [SEP] never answer
    spans = decode(windows, start, end, SpanSettings(mode=mode))
    answers = best_answers(spans, windows, examples)
    assert answers.texts == [text]
    assert examples[0].context[answers.starts[0] : answers.ends[0]] == text


@pytest.mark.parametrize("mode", MODES)
def test_length_limit_and_order(mode):
    windows, examples = lay([["aa", "bb", "cc", "dd"]], [1], [[(0, 4)]])
    start, end = np.zeros((2, 8), np.float32)
    start[3], end[6] = 9, 8  # aa ... dd is too long for 3
    end[5] = 7  # aa bb cc is not
    start[6] = 4  # dd alone: 12
    for limit, text in ((4, "aa bb cc dd"), (3, "aa bb cc"), (2, "dd"), (1, "dd")):
        spans = decode(windows, start, end, SpanSettings(max_answer_length=limit, mode=mode))
        assert best_answers(spans, windows, examples).texts == [text], limit


@pytest.mark.parametrize("mode", MODES)
def test_one_token_and_none(mode):
    windows, examples = lay([["aa"], []], [1, 1], [[(0, 1)], [(0, 0)]])
    start = np.array([1, 0, 0, 2, 0, 6, 7, 8, 9], np.float32)
    end = np.array([1, 0, 0, 3, 0, 5, 7, 8, 9], np.float32)
    spans = decode(windows, start, end, SpanSettings(mode=mode))
    assert rows_of(spans) == [([(5, 0, 0, 2, 3)], (2, 1, 1)), ([], (11, 6, 5))]
    assert null_odds(spans).tolist() == [-3, NO_SPAN_ODDS]
    answers = best_answers(spans, windows, examples)
    assert (answers.texts, answers.starts.tolist(), answers.ends.tolist()) == (
        ["aa", ""],
        [0, 0],
        [2, 0],
    )
    files = prediction_files(spans, windows, examples, None)
    assert files["predictions.json"] == {"q0": "aa", "q1": ""}
    nothing = dict(text="", probability=1.0, start_logit=6.0, end_logit=5.0, start=0, end=0)
    assert files["nbest_predictions.json"]["q1"] == [nothing]
    assert list(n_best(spans, windows, examples, no_answer=True))[1] == [nothing]


def test_no_valid_span_among_the_candidates():
    """run_qa submits the text "empty" here; we abstain. The exact mode finds the span it did not look at."""
    windows, examples = lay([["aa", "bb"]], [1], [[(0, 2)]])
    start = np.array([0, 0, 0, 1, 2, 0], np.float32)
    end = np.array([0, 0, 0, 2, 1, 0], np.float32)
    answer, _, _ = reference.run_qa(
        "aa bb", reference.features_of(windows, 0), [(start, end)], n=1, v2=False
    )
    assert answer == "empty"
    for mode, text in (("hf", ""), ("google", ""), ("exact", "aa")):
        spans = decode(windows, start, end, SpanSettings(n_best=1, mode=mode))
        for threshold in (None, 0.0, 5.0):
            assert prediction_files(spans, windows, examples, threshold)["predictions.json"] == {
                "q0": text
            }


def test_equal_logits_are_in_the_order_of_the_scripts():
    """Google's sort keeps equals in their order; run_qa's argsort leaves it to numpy, and reads it from behind."""
    windows, _ = lay([["aa", "bb", "cc", "dd"]], [1], [[(0, 4)]])  # [CLS] ? [SEP] aa bb cc dd [SEP]
    logits = np.zeros(8, np.float32)
    for mode, order in (("hf", np.argsort(logits)[::-1]), ("google", np.arange(8))):
        for n in (2, 4, 5):
            # of the n positions with the largest logits those that are in the paragraph
            found = [position - 3 for position in order[:n].tolist() if 3 <= position < 7]
            spans = {(first, last) for first in found for last in found if first <= last}
            decoded = decode(windows, logits, logits, SpanSettings(n_best=n, mode=mode))
            (real, _), *_ = rows_of(decoded)
            assert {(first, last) for _, first, last, _, _ in real} <= spans
            assert len(real) == min(n, len(spans)), (mode, n)


def test_max_context_worked_example():
    # windows [0..5], [4..9], [8..9] of 10 tokens: token 4 has 1 in the first (to its right), 0 in the second; token 5
    # the other way round; token 8 has 1 in the second and 0 in the third; token 9 has 0 in both, but the larger
    # window's hundredths win
    windows, _ = lay([["x"] * 10], [1], [[(0, 6), (4, 6), (8, 2)]])
    owns = has_max_context(windows, np.arange(3), np.arange(-1, 7)[None, :])
    assert [np.flatnonzero(row).tolist() for row in owns] == [[1, 2, 3, 4, 5], [2, 3, 4, 5, 6], []]
    # equal windows [0..2] and [2..4], and token 2 at the edge of both: the first has it
    windows, _ = two_windows()
    assert has_max_context(windows, np.arange(2), np.arange(3)[None, :]).tolist() == [
        [True] * 3,
        [False, True, True],
    ]


def test_max_context_prefers_the_larger_window_even_behind():
    # token 2 has nothing to one side in windows [0..2] and [2..6]; the hundredths of the second are more
    windows, _ = lay([["x"] * 7], [1], [[(0, 3), (2, 5)]])
    owns = has_max_context(windows, np.arange(2), np.arange(5)[None, :])
    assert owns.tolist() == [[True, True, False, False, False], [True] * 5]


def test_google_adds_up_in_double_precision():
    windows, examples = lay([["aa", "bb"]], [1], [[(0, 2)]])
    start, end = np.zeros((2, 6), np.float32)
    start[3] = 2**25  # aa scores so much
    start[4], end[4] = 2**25 - 4, 5  # and bb 1 more, which float32 cannot tell
    for mode, text in (("google", "bb"), ("hf", "aa")):
        spans = decode(windows, start, end, SpanSettings(mode=mode, max_answer_length=1))
        assert best_answers(spans, windows, examples).texts == [text], mode
        assert spans.score[0, 0] - 2**25 == (1 if mode == "google" else 0)


def test_max_context_equals_googles_rule():
    rng = np.random.default_rng(5)
    for _ in range(60):
        windows, _ = random_world(rng, longest=30)
        for q in range(3):
            features, rows = (
                reference.features_of(windows, q),
                np.flatnonzero(windows.question == q),
            )
            for me, (feature, row) in enumerate(zip(features, rows, strict=True)):
                expected = [
                    reference.max_context_of(features, me, position) for position in feature.context
                ]
                assert (
                    has_max_context(windows, row[None], np.arange(len(expected))[None, :])[
                        0
                    ].tolist()
                    == expected
                )


# ---- the compatible modes ----


def same_as_reference(windows, examples, logits, settings, spans, questions=None):
    """Predictions, n-best lists and null odds equal the reference's, with and without no-answer; number of "empty"s."""
    script = reference.run_qa if settings.mode == "hf" else reference.google
    empties = 0
    odds = null_odds(spans)
    ours = {v2: list(n_best(spans, windows, examples, no_answer=v2)) for v2 in (True, False)}
    answers = {
        v2: prediction_files(spans, windows, examples, 0.5 if v2 else None)["predictions.json"]
        for v2 in ours
    }
    rows = np.searchsorted(windows.question, np.arange(len(examples) + 1))
    for q in range(len(examples)) if questions is None else questions:
        features = reference.features_of(windows, q)
        for v2 in (True, False):
            answer, entries, difference = script(
                examples[q].context,
                features,
                logits[rows[q] : rows[q + 1]],
                settings.n_best,
                settings.max_answer_length,
                v2,
                0.5,
            )
            found = ours[v2][q]
            if spans.first[q, 0] < 0:
                empties += 1
                assert [entry["text"] for entry in entries if entry["text"] != "empty"] == [""] * v2
                assert (answers[v2][examples[q].id], len(found), found[0]["text"]) == ("", 1, "")
                assert odds[q] == NO_SPAN_ODDS
                continue
            assert answers[v2][examples[q].id] == answer
            assert [(one["text"], one["start_logit"], one["end_logit"]) for one in found] == [
                (one["text"], one["start_logit"], one["end_logit"]) for one in entries
            ]
            np.testing.assert_allclose(
                [one["probability"] for one in found],
                [one["probability"] for one in entries],
                rtol=1e-4,
                atol=1e-12,
            )
            if v2:
                assert odds[q] == difference
    return empties


@pytest.mark.parametrize("mode", ["hf", "google"])
def test_compatible_modes_on_small_windows(mode):
    rng = np.random.default_rng(11)
    empties = 0
    for case in range(150):
        words = (
            "abc" if case % 3 == 0 else "abcdefghijklmnopqrstuvwxyz"
        )  # few words: repeated texts
        windows, examples = random_world(rng, words, longest=20)
        settings = SpanSettings(int(rng.choice([3, 8, 20])), int(rng.integers(1, 9)), mode)
        start, end = random_logits(rng, windows, integers=case % 2 == 0)
        spans = decode(windows, start, end, settings, rng.permutation(len(windows)), 3)
        empties += same_as_reference(
            windows, examples, unpack(windows, start, end), settings, spans
        )
    assert empties > 25  # the trap was met


def check_real(shared, mode, name, limit=None, max_length=384, stride=128):
    """Windows, and questions without a candidate, once all is found equal on random logits."""
    examples = read_examples(shared / "data" / name).examples[:limit]
    windows = build_windows(
        examples,
        WordPiece.load(shared / "weights" / "all-MiniLM-L6-v2"),
        max_length=max_length,
        **{"overlap" if mode == "hf" else "step": stride},
    )
    start, end = random_logits(np.random.default_rng(0), windows, integers=False)
    settings = SpanSettings(mode=mode)
    spans = decode(
        windows, start, end, settings, np.random.default_rng(1).permutation(len(windows)), 50
    )
    return len(windows), same_as_reference(
        windows, examples, unpack(windows, start, end), settings, spans
    )


@pytest.mark.parametrize("mode", ["hf", "google"])
def test_compatible_modes_on_real_windows(shared, mode):
    windows, _ = check_real(
        shared, mode, "squad2-dev-2k.json.gz", limit=150, max_length=128, stride=48
    )
    assert windows > 250  # at 128 tokens most questions have several


@pytest.mark.slow
@pytest.mark.parametrize("mode, count", [("hf", 12_134), ("google", 12_232)])
def test_compatible_modes_on_dev_v2(shared, mode, count):
    windows, _ = check_real(shared, mode, "dev-v2.0.json.gz")
    assert windows == count


# ---- n-best lists and files ----


def test_files_by_hand():
    windows, examples = lay([["la", "la", "do"]], [1], [[(0, 3)]])
    start = np.array([1, 9, 9, 3, 2, 0, 9], np.float32)  # paragraph at 3, 4, 5
    end = np.array([2, 9, 9, 2, 2, 1, 9], np.float32)
    spans = decode(windows, start, end, SpanSettings(n_best=4))
    # by position: la (0-0) 5, la la (0-1) 5, la la do 4, la (1-1) 4; the last repeats a text
    files = prediction_files(spans, windows, examples, 0.0)
    assert files["predictions.json"] == {"q0": "la"}
    assert files["null_odds.json"] == {"q0": -2.0}
    entries = files["nbest_predictions.json"]["q0"]
    assert list(entries[0]) == ["text", "probability", "start_logit", "end_logit", "start", "end"]
    assert [
        tuple(one[key] for key in ("text", "start_logit", "end_logit", "start", "end"))
        for one in entries
    ] == [("la", 3, 2, 0, 2), ("la la", 3, 2, 0, 5), ("la la do", 3, 1, 0, 8), ("", 1, 2, 0, 0)]
    shares = np.exp([5, 5, 4, 3])
    np.testing.assert_allclose(
        [one["probability"] for one in entries], shares / shares.sum(), rtol=1e-12
    )
    # odds of -2 exceed -3 and nothing else changes; None leaves the null answer out
    silent = prediction_files(spans, windows, examples, -3.0)
    assert silent["predictions.json"] == {"q0": ""}
    assert silent["nbest_predictions.json"] == files["nbest_predictions.json"]
    open_ = prediction_files(spans, windows, examples, None)
    assert open_["predictions.json"] == {"q0": "la"}
    assert [one["text"] for one in open_["nbest_predictions.json"]["q0"]] == [
        "la",
        "la la",
        "la la do",
    ]


def test_the_null_answer_takes_its_place_or_is_added_last():
    windows, examples = lay([["aa", "bb"]], [1], [[(0, 2)]])
    start, end = np.zeros((2, 6), np.float32)
    start[3], end[3] = 2, 2  # aa 4, aa bb 2, bb 0
    for null, texts in (
        (5, ["", "aa"]),
        (3, ["aa", ""]),
        (2, ["aa", "aa bb", ""]),
        (-9, ["aa", "aa bb", ""]),
    ):
        start[0] = null
        spans = decode(windows, start, end, SpanSettings(n_best=2))
        assert [
            one["text"] for one in next(n_best(spans, windows, examples, no_answer=True))
        ] == texts, null


def test_a_list_may_be_cut_shorter():
    windows, examples = lay([["aa", "bb", "cc"]], [1], [[(0, 3)]])
    logits = np.array([9, 0, 0, 3, 2, 1, 0], np.float32)
    spans = decode(windows, logits, logits, SpanSettings(n_best=4))
    for most, count in ((1, 1), (3, 3), (9, 4), (None, 4)):
        [entries] = n_best(spans, windows, examples, no_answer=False, most=most)
        assert len(entries) == count and entries[0]["text"] == "aa"
        assert sum(entry["probability"] for entry in entries) == pytest.approx(1)


def test_probabilities_of_large_scores_do_not_overflow():
    windows, examples = lay([["aa"]], [1], [[(0, 1)]])
    start = np.array([9000, 0, 0, 9001, 0], np.float32)
    spans = decode(windows, start, np.zeros(5, np.float32))
    with np.errstate(over="raise"):
        entries = next(n_best(spans, windows, examples, no_answer=True))
    shares = [one["probability"] for one in entries]
    np.testing.assert_allclose(shares, [1 / (1 + np.exp(-1)), 1 / (1 + np.exp(1))])


def test_text_is_cut_from_the_raw_paragraph(shared):
    context = "  Caf\u00e9\u00a0\U0001f469\u200d\U0001f680 \u6771\u4eac  \u05e9\u05dc\u05d5\u05dd! ne\u0301e "
    example = Example("u", "where?", context, (), ())
    tokenizer = WordPiece.load(shared / "weights" / "all-MiniLM-L6-v2")
    windows = build_windows([example], tokenizer)
    rng = np.random.default_rng(0)
    spans = decode(windows, *random_logits(rng, windows, integers=False), SpanSettings(n_best=500))
    starts, ends = characters(spans, windows)
    for start, end, first, last in zip(
        starts[0], ends[0], spans.first[0], spans.last[0], strict=True
    ):
        if first >= 0:
            assert (start, end) == (windows.contexts.starts[first], windows.contexts.ends[last])
    entries = next(n_best(spans, windows, [example], no_answer=False))
    assert all(one["text"] and one["text"] == context[one["start"] : one["end"]] for one in entries)
    whole = {
        "Caf\u00e9",
        "\U0001f469\u200d\U0001f680",
        "\u6771\u4eac",
        "\u05e9\u05dc\u05d5\u05dd",
        "ne\u0301e",
    }
    assert whole <= {one["text"] for one in entries}


# ---- refusals ----


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 2e30])
@pytest.mark.parametrize("side", [0, 1])
def test_logits_that_are_not_finite_name_their_question(value, side):
    windows, _ = lay([["aa"], ["bb"], ["cc"]], [1, 1, 1], [[(0, 1)], [(0, 1)], [(0, 1)]])
    logits = np.zeros((2, 10), np.float32)
    logits[side, 7] = value
    with pytest.raises(UserError, match="question 0 .*finite"):
        SpanDecoder(windows).add([2, 0], *logits)


def test_the_first_token_of_a_window_belongs_to_that_window():
    windows, _ = lay([["aa"], ["bb"]], [1, 1], [[(0, 1)], [(0, 1)]])
    logits = np.zeros((2, 10), np.float32)
    logits[0, 5] = np.nan  # [CLS] of the second
    with pytest.raises(UserError, match="question 1 "):
        SpanDecoder(windows).add([0, 1], *logits)


def test_logits_may_be_large_as_long_as_their_sums_are_numbers():
    windows, examples = lay([["aa", "bb"]], [1], [[(0, 2)]])
    start, end = np.zeros((2, 6), np.float32)
    start[4] = end[4] = 9e29
    spans = decode(windows, start, end)
    assert best_answers(spans, windows, examples).texts == ["bb"]
    assert np.isfinite(null_odds(spans)).all()


def test_windows_come_once_and_all():
    windows, _ = two_windows()
    decoder, one = SpanDecoder(windows), np.zeros(8, np.float32)
    decoder.add([1], one, one)
    with pytest.raises(AssertionError, match="1 windows never added, e.g. row 0"):
        decoder.finish()
    with pytest.raises(AssertionError, match="added twice"):
        decoder.add([1], one, one)
    with pytest.raises(AssertionError, match="added twice"):
        decoder.add([0, 0], *np.zeros((2, 16), np.float32))
    with pytest.raises(AssertionError, match="logits for 8 tokens"):
        decoder.add([0], one[1:], one[1:])


def test_added_logits_are_copied():
    windows, _ = two_windows()
    start, end = random_logits(np.random.default_rng(0), windows, integers=False)
    expected = rows_of(decode(windows, start, end))
    decoder = SpanDecoder(windows)
    decoder.add([0, 1], start, end)
    start[:] = 0  # a caller that uses its buffer again
    assert rows_of(decoder.finish()) == expected


@pytest.mark.parametrize(
    "bad, words",
    [
        (dict(n_best=0), "n_best is 0"),
        (dict(max_answer_length=-1), "is -1"),
        (dict(mode="HF"), "'HF'.*exact, hf, google"),
    ],
)
def test_settings_are_checked(bad, words):
    with pytest.raises(UserError, match=words):
        SpanSettings(**bad)
    assert SpanSettings(mode="google").max_context
