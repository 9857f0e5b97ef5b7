"""Questions read one after the other: every format, packed or not, and bad records in their place."""

import bz2
import gzip
import io
import json
from collections import Counter

import pytest
from shapes_read import READ
from shapes_refused import REFUSED

from bertqa.data.examples import read_examples
from bertqa.data.labelled_texts import read_texts
from bertqa.data.question_stream import Ids, Seen, question_stream
from bertqa.data.sources import Source, expand
from bertqa.data.texts import text_stream
from bertqa.errors import UserError

ROWS = [{"id": f"q{n}", "question": f"who is {n}?", "context": f"{n} is é."} for n in range(5)]
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS)
CSV = "id,question,context\n" + "".join(
    f'{row["id"]},{row["question"]},"{row["context"]}"\n' for row in ROWS
)
PARAGRAPHS = [
    {"context": row["context"], "qas": [{"id": row["id"], "question": row["question"]}]}
    for row in ROWS
]
FORMS = {
    "jsonl": JSONL,
    "jsonl with a byte order mark and Windows ends": "\ufeff" + JSONL.replace("\n", "\r\n"),
    "jsonl with blank lines": "\n" + JSONL.replace("\n", "\n\n"),
    "squad": json.dumps({"data": [{"title": "t", "paragraphs": PARAGRAPHS}]}, indent=1),
    "paragraphs under data": json.dumps({"data": PARAGRAPHS}),
    "a list of paragraphs": json.dumps(PARAGRAPHS),
    "a list of records": json.dumps(ROWS, indent=1),
    "records under data": json.dumps({"data": ROWS}),
    "mrqa": '{"header": {"dataset": "x"}}\n'
    + "".join(
        json.dumps({"context": p["context"], "qas": [{"qid": q["id"], "question": q["question"]}]})
        + "\n"
        for p in PARAGRAPHS
        for q in p["qas"]
    ),
    "csv": CSV,
    "csv with semicolons": CSV.replace(",", ";"),
    "csv of Excel": "sep=;\n" + CSV.replace(",", ";"),
    "csv behind empty rows of a sheet": ',,\r\n"",,\r\n' + CSV,
    "tsv": CSV.replace(",", "\t"),
    "csv with other columns": CSV.replace("id,q", "Id,Q").replace("q1,", "q1,"),
}


def read(path, *more):
    return list(question_stream(expand([str(path), *map(str, more)])))


def told(questions):
    """What was read: (id, question, documents), or (id, what is wrong)."""
    return [(q.id, q.error) if q.error else (q.id, q.question, q.documents) for q in questions]


GOOD = [(row["id"], row["question"], (row["context"],)) for row in ROWS]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress])
def test_every_form_packed_or_not(tmp_path, form, pack):
    (tmp_path / "file").write_bytes(pack(FORMS[form].encode()))
    assert told(read(tmp_path / "file")) == GOOD


def test_files_folders_patterns_and_standard_input(tmp_path, monkeypatch):
    for n, row in enumerate(ROWS[:4]):
        (tmp_path / f"{n}.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / ".hidden").write_text("no question")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(json.dumps(ROWS[4]).encode())))
    assert told(read(tmp_path, "-")) == GOOD
    assert told(read(tmp_path / "[01].jsonl", tmp_path / "2.*")) == GOOD[:3]
    for name, says in (("*.csv", "no file has such a name"), ("nowhere.json", "no such file")):
        with pytest.raises(UserError, match=says):
            read(tmp_path / name)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="there is no file in this folder"):
        read(tmp_path / "empty")


def test_lists_are_documents_and_labels_are_not_looked_at(tmp_path):
    row = {"id": 1, "question": "q", "context": ["a", "b"], "answers": 7, "is_impossible": "?"}
    (tmp_path / "file").write_text(json.dumps(row) + "\n" + json.dumps({**row, "id": 2}))
    assert told(read(tmp_path / "file")) == [("1", "q", ("a", "b")), ("2", "q", ("a", "b"))]


BAD = [
    ("not json", "not JSON"),
    ('{"id": "x", "question": "q", "context": "c"', "cut off"),
    ("7", "must be an object, not 7"),
    ('{"id": "x", "question": null, "context": "c"}', '"question" must be text, not null'),
    ('{"id": "x", "context": "c"}', 'has no "question"'),
    ('{"id": "x", "question": "q"}', 'has no "context"'),
    ('{"id": "x", "question": "q", "context": ["a", 1]}', '"context" must be text or a list of te'),
    ('{"question": "q", "context": "c"}', "has no id, but the first record has one"),
    ('{"id": "q0", "question": "q", "context": "c"}', "its id was used before"),
    ('{"id": " ", "question": "q", "context": "c"}', '"id" is blank'),
    ('{"id": 1.5, "question": "q", "context": "c"}', '"id" must be text or a whole number'),
]


@pytest.mark.parametrize(("line", "says"), BAD)
def test_a_bad_line_stands_in_its_place(tmp_path, line, says):
    lines = JSONL.splitlines()
    (tmp_path / "file").write_text("\n".join([*lines[:2], line, *lines[2:]]))
    questions = read(tmp_path / "file")
    assert questions[2].where.endswith("file: line 3") and says in questions[2].error
    del questions[2]
    assert told(questions) == GOOD


def test_a_bad_first_line_and_bytes_that_are_no_text(tmp_path):
    (tmp_path / "file").write_bytes(b'{"id": \n' + JSONL.encode() + b'{"id": "\xff\xfe"}\n')
    first, *questions, last = read(tmp_path / "file")
    assert "cut off" in first.error and first.id is None
    assert "not UTF-8" in last.error and told(questions) == GOOD


def test_bad_rows_of_a_csv(tmp_path):
    (tmp_path / "file.csv").write_text(CSV.replace("q2,", "q2,more,") + "\n,,\n")
    questions = read(tmp_path / "file.csv")
    assert "has 4 cells, the header 3" in questions[2].error and questions[2].where.endswith("4")
    del questions[2]
    assert told(questions) == GOOD[:2] + GOOD[3:]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"id,question,text\n1,q,c\n", 'the CSV has no column "context"; its columns are "id"'),
        (b"one,two\n1,q\n", "neither JSON nor a CSV header"),
        (b"question,question,context\nq,q,c\n", 'has 2 columns "question"'),
        (b'id,question,context\n1,q,"c\n', "cut off: the CSV row that begins on line 2"),
        (b'{"records": []}', "wrong shape"),
        (b'[{"name": "a"}]', "wrong shape"),
        (b'{"q": 1}\n{"q": 2}\n', "wrong shape: found .*q"),
        (b"[1, 2", "cut off: the JSON ends early"),
        (gzip.compress(JSONL.encode())[:-20], "cut off: its packed stream ends early"),
        (gzip.compress(JSONL.encode())[:30] + b"x" * 60, "damaged|cut off"),
        (b"\x28\xb5\x2f\xfd and so on", "zstdcat FILE|damaged|cannot be read"),
        (b"PAR1 and so on PAR1", "pip install 'bertqa.parquet.'|not a Parquet file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"id,question,context\n1,q,\xff\n", "not UTF-8"),
    ],
)
def test_files_that_cannot_be_read_are_named(tmp_path, content, says):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(UserError, match=f"file: .*({says})"):
        read(tmp_path / "file")


def texts_of(path):
    return list(text_stream([path]))


NOTHING = (b"", gzip.compress(b""), b" \n\n", b"\xef\xbb\xbf", b"sep=;\n")
NO_RECORDS = (b"id,question,context,text\n", b"[]", b'{"data": []}')
"""Of these a stream gives no record, and the verbs say what to do where all files together give none."""


@pytest.mark.parametrize(
    ("reads", "contents"),
    [
        (read, NOTHING),
        (texts_of, NOTHING),
        (read_examples, NOTHING + NO_RECORDS),
        (read_texts, NOTHING + NO_RECORDS[:2]),
    ],
)
def test_a_file_without_data_is_refused_with_what_to_do(tmp_path, reads, contents):
    for content in contents:
        path = tmp_path / "file.csv"
        path.write_bytes(content)
        with pytest.raises(UserError, match="file.csv: .*; fetch it or write it again, or give"):
            reads(path)


def test_records_without_ids_are_numbered_over_all_files(tmp_path):
    for name in ("a", "b"):
        rows = [json.dumps({"question": "q", "context": name}) for _ in range(2)]
        (tmp_path / name).write_text("\n".join([*rows, "broken"]))
    assert [q.id for q in read(tmp_path / "a", tmp_path / "b")] == [0, 1, 2, 3, 4, 5]
    (tmp_path / "c").write_text(json.dumps({"id": "x", "question": "q", "context": "c"}))
    last = read(tmp_path / "a", tmp_path / "c")[-1]
    assert last.id == "x" and "the first record has none" in last.error


def test_how_much_has_been_read(tmp_path):
    (tmp_path / "file").write_text(JSONL * 2000)
    stream = question_stream([tmp_path / "file", tmp_path / "file"])
    shares = [stream.share_read for _ in stream]
    assert 0 < shares[0] < 0.2 and shares == sorted(shares) and stream.share_read == 1
    (tmp_path / "squad").write_text(FORMS["a list of paragraphs"])
    stream = question_stream([tmp_path / "squad"])
    assert [stream.share_read for _ in stream] == [0.2, 0.4, 0.6, 0.8, 1.0]


def test_ids_seen_before_are_known_whether_recent_or_old(monkeypatch):
    monkeypatch.setattr("bertqa.data.question_stream.RECENT", 10)
    seen = Seen()
    assert [seen.add(str(n)) for n in range(95)] == [False] * 95
    assert len(seen.old) == 90 and len(seen.recent) == 5
    assert all(seen.add(str(n)) for n in range(95)) and not seen.add("95")


def test_half_a_surrogate_pair_is_an_id_like_others():
    ids = Ids()
    assert ids.of({"id": "\ud800"}) == ("\ud800", "") and ids.of({"id": "\ud800"})[1]


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from pyarrow import parquet

    rows = [{**row, "answers": {"text": ["a"], "answer_start": [0]}} for row in ROWS]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "no-name")
    assert told(read(tmp_path / "no-name")) == GOOD
    with Source(tmp_path / "no-name") as source:
        assert source.head.startswith(b"PAR1")


@pytest.mark.parametrize("name", READ)
def test_every_shape_that_is_trained_on_can_be_answered(tmp_path, name):
    """One table of shapes serves both: the same questions, paragraphs and ids."""
    content = READ[name][0]
    path = tmp_path / "file"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    found = [(str(q.id), q.question, q.documents[0]) for q in read(path)]
    assert [q.error for q in read(path)] == [""] * len(READ[name][1])
    assert found == [(e.id, e.question, e.context) for e in read_examples(path).examples]


@pytest.mark.parametrize(
    "name",
    [name for name, (_, says) in REFUSED.items() if says.startswith("is ")],
)
def test_what_is_refused_by_name_in_training_is_in_answering(tmp_path, name):
    content, says = REFUSED[name]
    path = tmp_path / "file"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    if name in ("NQ-open", "DPR"):
        assert all('has no "context"' in q.error for q in read(path))
        return
    with pytest.raises(UserError) as caught:
        read(path)
    assert says in str(caught.value)


def test_what_says_nothing_of_answers_is_answered(tmp_path):
    for name, count in (("no answers", 1), ("answers of one only", 2)):
        content, says = REFUSED[name]
        path = tmp_path / "file"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        assert len([q for q in read(path) if not q.error]) == count and "neither" in says


def test_records_that_do_not_say_what_is_right_are_counted(tmp_path):
    known = {"id": 1, "question": "Who?", "context": "Ada saw Bo.", "answers": []}
    unknown = {"id": 2, "question": "Who?", "context": "Ada saw Bo.", "gold": ["Ada"]}
    (tmp_path / "file").write_text(f"{json.dumps(known)}\n{json.dumps(unknown)}\n[]\n")
    (tmp_path / "csv").write_text("id,question,context,answer_text\n3,Who?,Ada,\n")
    tally = Counter()
    for _ in question_stream([tmp_path / "file", tmp_path / "csv"], tally):
        pass
    assert tally == {"records": 4, "unlabelled": 1}


def test_tables_whose_lines_end_in_a_return_alone(tmp_path):
    """Excel's "CSV (Macintosh)"; within quotes a return is a character of the cell."""
    path = tmp_path / "file"
    path.write_bytes(b'id,question,context\r1,"who\ris",a b\r2,where,"a\r\nb"\r\n3,when,c\r')
    found = [(question.id, question.question, *question.documents) for question in read(path)]
    assert found == [("1", "who\ris", "a b"), ("2", "where", "a\r\nb"), ("3", "when", "c")]
