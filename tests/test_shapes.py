"""The shapes in which public data sets and tools ship their questions: read right, or refused in one line by name.

Each has a record or two, texts of our own. The table of DATA_SETS.md is held against them.
"""

import gzip
import json
import re
from pathlib import Path

import pytest
from shapes_read import CHINESE, READ, flat, lines
from shapes_refused import REFUSED

from bertqa.data.examples import read_examples
from bertqa.data.writing import write_rejected
from bertqa.errors import UserError

ROOT = Path(__file__).resolve().parents[1]


def write(path: Path, content) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", READ)
def test_read(tmp_path, name):
    content, answers = READ[name]
    path = write(tmp_path / "questions", content)
    data = read_examples(path)
    found = [
        list(zip(example.answer_texts, example.answer_starts, strict=True))
        for example in data.examples
    ]
    assert found == answers and data.rejected == []
    packed = tmp_path / "questions.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert read_examples(packed).examples == data.examples


@pytest.mark.parametrize("name", REFUSED)
def test_refused(tmp_path, name):
    content, says = REFUSED[name]
    path = write(tmp_path / "questions", content)
    with pytest.raises(UserError) as caught:
        read_examples(path)
    assert str(caught.value).startswith(f"{path}: {says}") and "\n" not in str(caught.value)


def test_ids_are_read_under_any_name_and_made_where_there_is_none(tmp_path):
    def ids(*records):
        return [e.id for e in read_examples(write(tmp_path / "x", list(records))).examples]

    for name in ("qid", "question_id", "query_id", "guid", "_id", "key"):
        record = {name: "a7", "question": "q", "context": "c", "answers": []}
        assert ids(record) == ["a7"]
    bare = {"question": "q", "context": "c", "answers": []}
    assert ids(bare, bare, bare) == ["0", "1", "2"]
    assert ids({**bare, "id": 5, "guid": "x"}) == ["5"]


@pytest.mark.parametrize("name", ["SubjQA", "SberQuAD's CSV", "CMRC 2018", "MRQA"])
def test_what_is_rejected_can_be_mended_in_any_shape(tmp_path, name):
    content = READ[name][0]
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    for good in ("the bass is deep and deep", "by Dora Plum", CHINESE[-6:]):
        text = text.replace(good, "-")
    data = read_examples(write(tmp_path / "questions", text))
    assert len(data.rejected) == 1
    rejected = tmp_path / "rejected.jsonl"
    write_rejected(data, rejected)
    record = json.loads(rejected.read_text(encoding="utf-8"))
    record.pop("detected_answers", None)
    mended = {**record, "context": "It is x.", "answers": [{"text": "x", "answer_start": 6}]}
    (example,) = read_examples(write(rejected, lines(mended))).trainable()
    assert (example.id, example.answer_starts) == (data.examples[0].id, (6,))


def test_an_answer_without_a_known_offset_says_what_keys_it_has(tmp_path):
    answers = [{"text": "e", "pos": 3}]
    data = read_examples(write(tmp_path / "x", [flat(context="e or e", answers=answers)]))
    assert data.rejected[0].reason == (
        'the answer "e" occurs more than once, and no offset says which one is meant; its keys are '
        '["text", "pos"]'
    )
    record = flat(context="e or e", answer_text="e", position=3)
    data = read_examples(write(tmp_path / "x", [record]))
    assert data.rejected[0].reason.endswith(
        'its keys are ["id", "question", "context", "answer_text", "position"]'
    )


def test_the_table_of_data_sets_names_shapes_that_are_read():
    text = (ROOT / "tests" / "DATA_SETS.md").read_text(encoding="utf-8")
    table = text.split("| data set | file | flags |", 1)[1].split("\n\n")[0]
    named = []
    for row in table.strip().splitlines()[1:]:
        named += re.split(r", (?![^(]*\))", row.split("|")[1].strip())
    assert len(named) > 20 and set(named) <= set(READ), set(named) - set(READ)
    refused = text.split("Refused by name, with what to use instead: ", 1)[1].split(". ")[0]
    for name in re.split(", | and ", " ".join(refused.split())):
        assert any(name in shape or shape in name for shape in REFUSED), name
