"""The movie reviews that ship with the package: valid, balanced, original texts that no single word can tell apart."""

import csv
import re
from collections import Counter
from itertools import combinations, pairwise
from pathlib import Path

import pytest

import bertqa

SAMPLE = Path(bertqa.__file__).parent / "data" / "sample" / "reviews.csv"


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    with SAMPLE.open(
        encoding="utf-8", newline=""
    ) as file:  # newline="": a review may hold line breaks
        return list(csv.DictReader(file, strict=True))


def words(text: str) -> list[str]:
    """Lower-case words, apostrophes kept ("don't"), punctuation dropped."""
    return re.findall(r"[^\W_]+(?:'[^\W_]+)*", text.lower())


def best_stump(texts: list[set[str]], positive: list[bool]) -> tuple[float, str]:
    """Accuracy and word of the best rule "this word occurs, or does not, therefore the review is positive"."""
    in_positive = Counter(
        word for text, label in zip(texts, positive, strict=True) if label for word in text
    )
    in_all = Counter(word for text in texts for word in text)
    total = sum(positive)

    def accuracy(word: str) -> float:
        # right = positives holding the word + negatives without it; the opposite rule is right on all the others
        right = in_positive[word] + (len(texts) - total) - (in_all[word] - in_positive[word])
        return max(right, len(texts) - right) / len(texts)

    return max((accuracy(word), word) for word in in_all)


def test_columns_and_labels(rows):
    assert {tuple(row) for row in rows} == {
        ("text", "label")
    }  # a stray comma would add a column named None
    assert {row["label"] for row in rows} == {"negative", "positive"}


def test_count_and_balance(rows):
    count = Counter(row["label"] for row in rows)
    assert len(rows) == 278
    assert count["negative"] == count["positive"] == 139


def test_every_review_is_short_and_trimmed(rows):
    for row in rows:
        assert 12 <= len(row["text"].split()) <= 60, row["text"]
        assert row["text"] == row["text"].strip()


def test_file_exercises_a_csv_reader(rows):
    raw = SAMPLE.read_bytes()
    assert not raw.startswith(b"\xef\xbb\xbf") and b"\r" not in raw
    texts = [row["text"] for row in rows]
    for mark in (",", '"', "\n", "é", "ź", "\N{CLAPPING HANDS SIGN}"):
        assert any(mark in text for text in texts), mark


def test_no_duplicates_or_near_duplicates(rows):
    sets = [frozenset(words(row["text"])) for row in rows]
    assert len(set(sets)) == len(rows)
    for (i, a), (j, b) in combinations(enumerate(sets), 2):
        assert len(a & b) / len(a | b) < 0.3, (rows[i]["text"], rows[j]["text"])


def test_stump_finds_a_giveaway_word():
    texts = [{"good", "film"}, {"good"}, {"film"}, {"bad", "film"}]
    assert best_stump(texts, [True, True, False, False]) == (1.0, "good")
    assert best_stump(texts, [False, False, True, True]) == (1.0, "good")


def test_no_single_word_decides(rows):
    accuracy, word = best_stump(
        [set(words(row["text"])) for row in rows], [row["label"] == "positive" for row in rows]
    )
    assert accuracy <= 0.68, f"{word!r} alone gets {accuracy:.3f}"


def test_order_is_shuffled(rows):
    labels = [row["label"] for row in rows]
    changes = sum(a != b for a, b in pairwise(labels))
    assert (
        100 < changes < 180
    )  # 139 expected of a random order, standard deviation 8; sorted gives 1, alternating 277
