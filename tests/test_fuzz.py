"""Every reader of outside files, on files damaged by a seeded mutator: an answer or one UserError of one line, in time.

To add a reader, add a row to READERS: a name, sound files to start from, and a function of a path.
"""

import gzip
import json
import random
import time

import pytest
from shapes_read import READ
from shapes_refused import REFUSED

from bertqa.data.examples import read_examples
from bertqa.data.labelled_texts import label_rows, read_texts
from bertqa.data.question_stream import question_stream
from bertqa.data.sources import expand
from bertqa.data.tokenizer import WordPiece
from bertqa.data.writing import write_rejected, write_repaired
from bertqa.errors import UserError
from bertqa.files import json_lines, read_json, read_object, read_text
from bertqa.qa.predictions import read_odds, read_predictions

TRIES = 500
"""Damaged files for each reader."""

SLOW = 5.0
"""Seconds that none may take; sound ones of this size take a hundredth."""


def content_of(value) -> bytes:
    return (value if isinstance(value, str) else json.dumps(value)).encode()


QUESTIONS = [
    content_of(content) for content, _ in [*READ.values(), *READ.values(), *REFUSED.values()]
]
TEXTS = [
    b"text,label\na lovely film,1.0\nan awful film,0.0\n",
    b'id\ttext\tlabel\n1\t"a b"\tx\n2\tc\ty\n',
    b'{"id": 3, "text": "a", "label": 1}\n{"id": 4, "text": "b", "label": 0}\n',
    b'[{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]',
    b"sep=;\nid;text;label\n7;a,b;z\n",
    b"text\nimage\nsound\n",
]
PREDICTIONS = [
    b'{"1": "Dora Plum", "2": ""}',
    b'[{"id": "1", "prediction_text": "a", "no_answer_probability": 0.25}]',
    b'{"id": 1, "answer": null}\n{"id": 2, "answer": "b"}\n',
    b"id,prediction_text\n1,Dora Plum\n2,\n",
]
ODDS = [b'{"1": 0.5, "2": -3}', b'{"1": 1e-7}']
SETTINGS = [
    b'{"max_length": 384, "overlap": 128, "null_threshold": -0.5, "tuning": {"f1": [1, 2.5]}}',
    b'{"settings": {"train": "x.json", "seed": 0}, "fingerprints": {"train file": "ab"}}',
]
TOKENIZERS = [
    b'{"do_lower_case": true, "strip_accents": null, "tokenize_chinese_chars": true}',
    b'{"do_lower_case": false}',
]


def read_questions(path):
    data = read_examples(path)
    for example in data.examples:
        for text, start in zip(example.answer_texts, example.answer_starts, strict=True):
            assert start < 0 or example.context.startswith(text, start)
    write_rejected(data, path.with_name("rejected.jsonl"))
    if data.rejected:
        again = read_examples(path.with_name("rejected.jsonl"))
        assert [example.id for example in again.examples] == [one.id for one in data.rejected]


def mend_questions(path):
    data = read_examples(path, gather=True)
    assert all("\n" not in fault for fault in data.faults)
    fixed = path.with_name("fixed.json")
    write_repaired(data, fixed)
    again = read_examples(fixed)
    assert (again.repaired, again.rejected) == (0, [])


def answer_questions(path):
    for question in question_stream(expand([str(path)])):
        assert "\n" not in question.error and isinstance(question.documents, tuple)


def read_labels(path):
    texts = read_texts(path, "text", label_column="label")
    label_rows(texts, sorted(set(texts.labels)))


def load_tokenizer(path):
    folder = path.with_name("model")
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n##b\n")
    (folder / "tokenizer_config.json").write_bytes(path.read_bytes())
    WordPiece.load(folder).encode(["ab a \u0301b"])


READERS = {
    "questions": (QUESTIONS, read_questions),
    "questions, mended": (QUESTIONS, mend_questions),
    "questions, answered": (QUESTIONS, answer_questions),
    "texts": (TEXTS, read_texts),
    "labels": (TEXTS, read_labels),
    "predictions": (PREDICTIONS, read_predictions),
    "odds": (ODDS, read_odds),
    "JSON": (SETTINGS, read_json),
    "JSON objects": (SETTINGS, read_object),
    "JSON lines": (QUESTIONS, lambda path: list(json_lines(read_text(path)))),
    "tokenizer_config.json": (TOKENIZERS, load_tokenizer),
}

BYTES = [
    b"\0",
    b"\xff",
    b"\xe9",
    b"\x93",
    b'"',
    b"'",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"\n",
    b"\r",
    b"\\",
    b"\t",
]
VALUES = [
    *(
        b"null",
        b"true",
        b"NaN",
        b"-Infinity",
        b"1e999",
        b"-1",
        b"0.5",
        b'""',
        b"[]",
        b"{}",
        b'"\\ud800"',
    ),
    *(
        b"9" * 5000,
        b"[" * 3000,
        b'{"a":' * 3000,
        b'"' + b"a" * 20_000 + b'"',
        b"99999999999999999999",
    ),
    *(
        b'{"a": 1, "a": 2}',
        "\u2028\u0301\U0001f389".encode(),
        b"\xef\xbb\xbf",
        b"array([1, 2])",
        b"{1, 2}",
    ),
]


def damaged(draw: random.Random, content: bytes, others: list[bytes]) -> bytes:
    """The content after an accident or two."""
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        place = draw.randrange(len(content) + 1)
        end = min(len(content), place + draw.choice([0, 1, 1, 3, 12]))
        accident = draw.randrange(8)
        if accident == 0:
            content = content[:place]
        elif accident == 1:
            content = content[:place] + content[end:]
        elif accident == 2:
            content = content[:place] + draw.choice(BYTES) + content[end:]
        elif accident == 3:
            content = content[:place] + content[place:end] * 2 + content[end:]
        elif accident == 4:
            content = content.replace(
                *draw.choice([(b'"', b"'"), (b": ", b":"), (b"\n", b"\r\n"), (b",", b";")])
            )
        elif accident == 5 and draw.random() < 0.5:
            content = content[:place] + draw.choice(others)[place:]
        elif accident == 5:
            content += content
        else:
            content = with_other_value(draw, content)
    return content


def with_other_value(draw: random.Random, content: bytes) -> bytes:
    """Something odd in the place of what stands behind a colon or a comma."""
    places = [place for place, byte in enumerate(content) if byte in b":,"]
    if not places:
        return draw.choice(VALUES)
    place = draw.choice(places) + 1
    end = place
    while end < len(content) and content[end] not in b",}]\n":
        end += 1
    return content[:place] + draw.choice(VALUES) + content[end:]


@pytest.mark.parametrize("name", READERS)
def test_damaged_files(tmp_path, name):
    sound, read = READERS[name]
    draw = random.Random(name)
    outcomes = {"read": 0, "refused": 0}
    for number in range(TRIES):
        content = damaged(draw, draw.choice(sound), sound)
        if number % 10 == 0:
            content = gzip.compress(content)[: draw.choice([None, None, -5])]
        path = tmp_path / draw.choice(["file", "file.csv", "file.txt", "file.json"])
        path.write_bytes(content)
        began = time.perf_counter()
        try:
            read(path)
            outcomes["read"] += 1
        except UserError as error:
            outcomes["refused"] += 1
            assert "\n" not in str(error) and len(str(error)) < 2000, content[:300]
        except Exception as error:
            raise AssertionError(f"{name}: {content[:2000]!r}") from error
        assert time.perf_counter() - began < SLOW, content[:300]
    assert outcomes["refused"] > TRIES // 10, outcomes


@pytest.mark.parametrize("name", READERS)
def test_sound_files_are_read_or_refused_by_name(tmp_path, name):
    sound, read = READERS[name]
    for content in sound:
        path = tmp_path / "file"
        path.write_bytes(content)
        try:
            read(path)
        except UserError as error:
            assert "\n" not in str(error)
