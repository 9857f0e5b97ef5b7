"""The bundled sample, question by question. Read with plain json: it must be right whatever our own reader does."""

import json
import re
from pathlib import Path

import pytest

SAMPLE = Path(__file__).parent.parent / "bertqa" / "data" / "sample"
FILES = ("train.json", "dev.json")


def articles(name):
    return json.loads((SAMPLE / name).read_text(encoding="utf-8"))["data"]


def paragraphs(name):
    return [paragraph for article in articles(name) for paragraph in article["paragraphs"]]


def questions(name):
    """(context, question record) pairs."""
    return [(paragraph["context"], qa) for paragraph in paragraphs(name) for qa in paragraph["qas"]]


def both(read):
    return [item for name in FILES for item in read(name)]


def span_fault(context, answer):
    """What is wrong with one answer; "" when it is exact and cut at word boundaries."""
    text, start = answer["text"], answer["answer_start"]
    end = start + len(text)
    if not text or text != text.strip():
        return "empty or padded"
    if start < 0 or context[start:end] != text:
        return "text is not at answer_start"
    starts_inside = start > 0 and context[start - 1 : start + 1].isalnum()
    ends_inside = end < len(context) and context[end - 1 : end + 1].isalnum()
    if starts_inside or ends_inside:
        return "cuts a word"
    return ""


@pytest.mark.parametrize(
    "text, start, fault",
    [
        ("hen", 2, ""),
        ("a hen sat", 0, ""),
        ("hen", 3, "text is not at answer_start"),
        ("sat", -3, "text is not at answer_start"),
        ("hen ", 2, "empty or padded"),
        ("", 2, "empty or padded"),
        ("he", 2, "cuts a word"),
        ("en", 3, "cuts a word"),
    ],
)
def test_span_fault_sees_what_is_wrong(text, start, fault):
    assert span_fault("a hen sat", {"text": text, "answer_start": start}) == fault


@pytest.mark.parametrize("name", FILES)
def test_form_of_the_file(name):
    raw = (SAMPLE / name).read_bytes()
    assert len(raw) < 300_000
    data = json.loads(raw)
    assert data["version"] == "v2.0"
    assert raw.decode("utf-8") == json.dumps(data, ensure_ascii=False, indent=1) + "\n"
    for article in data["data"]:
        assert (
            set(article) == {"title", "paragraphs"}
            and article["title"].strip()
            and article["paragraphs"]
        )
        assert all(set(paragraph) == {"context", "qas"} for paragraph in article["paragraphs"])


@pytest.mark.parametrize("name", FILES)
def test_every_answer_is_an_exact_span(name):
    wrong = [
        (qa["id"], answer["text"], fault)
        for context, qa in questions(name)
        for answer in qa["answers"] + qa.get("plausible_answers", [])
        if (fault := span_fault(context, answer))
    ]
    assert wrong == []


@pytest.mark.parametrize("name", FILES)
def test_a_question_is_either_answered_or_impossible(name):
    wrong = []
    for _, qa in questions(name):
        accepted = [answer["text"] for answer in qa["answers"]]
        if qa["is_impossible"]:
            good = set(qa) == {"id", "question", "is_impossible", "answers", "plausible_answers"}
            good = good and not accepted and len(qa["plausible_answers"]) == 1
        else:
            good = set(qa) == {"id", "question", "is_impossible", "answers"}
            good = good and 1 <= len(accepted) <= 3 and len(set(accepted)) == len(accepted)
        question = qa["question"]
        if not (
            good
            and question == question.strip()
            and question.endswith("?")
            and len(question.split()) >= 3
        ):
            wrong.append(qa["id"])
    assert wrong == []


def test_ids_are_unique_and_name_their_paragraph():
    ids = [qa["id"] for _, qa in both(questions)]
    assert len(set(ids)) == len(ids)
    assert [i for i in ids if not re.fullmatch(r"sample-\d{4}-[a-h]", i)] == []
    for paragraph in both(paragraphs):
        assert len({qa["id"][:-2] for qa in paragraph["qas"]}) == 1
        assert (
            "".join(qa["id"][-1] for qa in paragraph["qas"]) == "abcdefgh"[: len(paragraph["qas"])]
        )


def test_no_question_is_asked_twice_of_a_paragraph():
    for paragraph in both(paragraphs):
        asked = [qa["question"].lower() for qa in paragraph["qas"]]
        assert len(set(asked)) == len(asked), asked


def test_train_and_dev_share_nothing():
    train, dev = (
        {" ".join(p["context"].split()).lower() for p in paragraphs(name)} for name in FILES
    )
    assert train & dev == set()
    assert len(train) + len(dev) == len(both(paragraphs))
    titles = [article["title"] for article in both(articles)]
    assert len(set(titles)) == len(titles)


def test_paragraphs_have_60_to_150_words():
    sizes = {p["context"][:30]: len(p["context"].split()) for p in both(paragraphs)}
    assert {start: words for start, words in sizes.items() if not 60 <= words <= 150} == {}
    assert [
        p["context"][:30]
        for p in both(paragraphs)
        if p["context"] != " ".join(p["context"].split())
    ] == []


def test_counts():
    contexts, asked = both(paragraphs), [qa for _, qa in both(questions)]
    impossible = sum(qa["is_impossible"] for qa in asked)
    assert len(contexts) >= 60
    assert 5.5 <= len(asked) / len(contexts) <= 7
    assert sum(len(qa["answers"]) > 1 for qa in asked) >= 60
    assert 0.65 <= len(paragraphs("train.json")) / len(contexts) <= 0.75
    assert 0.28 <= impossible / len(asked) <= 0.40
    for name in FILES:
        assert (
            0.28
            <= sum(qa["is_impossible"] for _, qa in questions(name)) / len(questions(name))
            <= 0.40
        )


def test_the_readme_has_these_counts():
    readme = (SAMPLE / "README.md").read_text(encoding="utf-8")
    for name in FILES:
        asked = [qa for _, qa in questions(name)]
        several = sum(len(qa["answers"]) > 1 for qa in asked)
        impossible = sum(qa["is_impossible"] for qa in asked)
        row = [name, len(articles(name)), len(paragraphs(name)), len(asked), impossible, several]
        assert re.search(
            r"\|\s*" + r"\s*\|\s*".join(re.escape(str(cell)) for cell in row) + r"\s*\|", readme
        ), row


@pytest.mark.parametrize(
    "script, letters",
    [
        ("Chinese and Japanese", "[\u4e00-\u9fff]"),
        ("kana", "[\u3040-\u30ff]"),
        ("Korean", "[\uac00-\ud7af]"),
        ("Arabic", "[\u0600-\u06ff]"),
        ("Greek", "[\u0370-\u03ff]"),
        ("Cyrillic", "[\u0400-\u04ff]"),
        ("accents", "[\u00c0-\u024f]"),
        ("stacked accents", "[\u1ea0-\u1eff]"),
        ("emoji", "[\U0001f300-\U0001faff]"),
    ],
)
def test_scripts_that_offsets_trip_over(script, letters):
    assert any(re.search(letters, p["context"]) for p in both(paragraphs)), script


@pytest.mark.parametrize("name", FILES)
def test_answers_stand_after_and_inside_such_scripts(name):
    """Offsets count Python characters; an answer behind an emoji or in Arabic shows a file that counted otherwise."""
    answered = [(context, a) for context, qa in questions(name) for a in qa["answers"]]
    assert any(re.search("[\u4e00-\u9fff\uac00-\ud7af]", a["text"]) for _, a in answered)
    assert any(re.search("[\u0600-\u06ff]", a["text"]) for _, a in answered)
    assert any(
        re.search("[\U0001f300-\U0001faff]", context[: a["answer_start"]])
        for context, a in answered
    )
