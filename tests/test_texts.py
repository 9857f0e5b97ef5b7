"""Files of texts and labels: tables told from lists, columns named twice, labels as pandas writes them."""

import bz2
import gzip
import hashlib
import os
import threading

import pytest

from bertqa.data.labelled_texts import label_names, read_texts
from bertqa.data.texts import is_table, text_stream
from bertqa.errors import UserError


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def refusal(path, *given, **options) -> str:
    with pytest.raises(UserError) as caught:
        read_texts(path, *given, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(f"{path}: ")


@pytest.mark.parametrize(
    ("name", "content", "texts"),
    [
        ("words.txt", "text\nimage\nsound\n", ["text", "image", "sound"]),
        ("words", "text\nimage\nsound", ["text", "image", "sound"]),
        (
            "sentences.txt",
            "text, audio and video\nsecond line, here\n",
            ["text, audio and video", "second line, here"],
        ),
        (
            "sentences",
            "text, audio and video\nsecond line, here\n",
            ["text, audio and video", "second line, here"],
        ),
        ("table.txt", "text,label\na,b\n", ["text,label", "a,b"]),
        ("table", "text,label\na,b\n", ["a"]),
        ("one.csv", "text\nimage\n", ["image"]),
        ("notes.txt", "{not json}\n[1] a note\n", ["{not json}", "[1] a note"]),
        ("list.json", '[\n {"text": "a"},\n {"text": "b"}]', ["a", "b"]),
        ("windows.txt", "\ufefftext\r\na\r\n\r\n", ["text", "a", ""]),
    ],
)
def test_lists_and_tables(write, name, content, texts):
    assert read_texts(write(name, content)).texts == texts
    packed = write(f"{name}.gz", gzip.compress(content.encode()))
    assert read_texts(packed).texts == texts


def test_a_column_that_is_named_makes_a_table(write):
    path = write("table.txt", "text,label\na,b\n")
    assert read_texts(path, "text", label_column="label").labels == ["b"]
    assert not is_table("x.txt", "text,label\n") and is_table("x", '{"text": 1}')


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("floats.csv", "text,label\na,1.0\nb,0.0\nc,1.0\n"),
        ("whole.csv", "text,label\na,1\nb,0\nc,1\n"),
        (
            "floats.jsonl",
            '{"text": "a", "label": 1.0}\n{"text": "b", "label": 0}\n{"text": "c", "label": "1.0"}',
        ),
    ],
)
def test_labels_as_pandas_writes_them(write, name, content):
    assert read_texts(write(name, content), label_column="label").labels == ["1", "0", "1"]


@pytest.mark.parametrize("label", ["nan", "NaN", "", " ", "None"])
def test_an_empty_label(write, label):
    path = write("x.csv", f"text,label\na,1\nb,{label}\n")
    assert refusal(path, label_column="label").startswith('line 3: the label "label" is ')


@pytest.mark.parametrize("label", ["NaN", "null", "1.5", "true]"[:4], "[1]", "1e400"])
def test_a_label_that_is_none_in_json(write, label):
    path = write("x.jsonl", '{"text": "a", "label": 1}\n' + f'{{"text": "b", "label": {label}}}\n')
    if label == "true":
        assert read_texts(path, label_column="label").labels == ["1", "True"]
    else:
        assert "it must be a name or a whole number" in refusal(path, label_column="label")


def test_labels_with_very_many_digits_are_names():
    assert label_names(["9" * 5000, "1"]) == ["1", "9" * 5000]


def test_two_columns_of_one_name(write):
    says = 'the header has 2 columns "text"; leave out all but one'
    assert refusal(write("x.csv", "text,n,text\na,1,b\n")) == says
    assert refusal(write("x.tsv", "text\ttext\na\tb\n")) == says
    path = write("x.jsonl", '{"text": "a"}\n{"text": "b", "text": "c"}\n')
    assert refusal(path) == 'line 2: the key "text" stands twice in one object; leave one out'
    assert read_texts(write("x.csv", ",text,\n0,a,\n")).texts == ["a"]  # columns without a name
    says = 'has both "text" and "Text"; leave one out'
    assert refusal(write("x.csv", "text,Text\na,b\n")) == f"the header: {says}"
    assert (
        refusal(write("x.jsonl", '{"text": "a"}\n{"text": "b", "Text": "c"}\n'))
        == f"line 2: {says}"
    )


def test_excel_says_what_separates_its_cells(write):
    path = write("x.csv", "sep=;\r\nid;text\r\n7;a,b\r\n")
    found = read_texts(path)
    assert (found.texts, found.ids, found.where) == (["a,b"], ["7"], ["line 3"])
    assert refusal(write("x.csv", "sep=;\n")) == (
        "holds no rows; fetch it or write it again, or give another file"
    )


def test_a_header_of_any_length(write):
    long = "x" * 200_000
    assert read_texts(write("x.csv", f"text,{long}\na,b\n")).texts == ["a"]
    assert "has no column" in refusal(write("x.csv", f'"{long}"\na\n'))


def test_a_limit_must_be_one_text_or_more(write):
    path = write("x.txt", "a\nb\n")
    for limit in (0, -1):
        with pytest.raises(UserError, match=f"limit is {limit}; it must be at least 1 text"):
            read_texts(path, limit=limit)
    assert read_texts(path, limit=1).texts == ["a"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
@pytest.mark.parametrize("content", ["text,label\na,1\nb,0\n", "text\tlabel\na\t1\nb\t0\n"])
def test_a_pipe_is_read_once_and_whole(tmp_path, write, content):
    """--train <(cat x.csv): neither the checksum nor the search for quotation marks may open it a second time."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=[content], daemon=True)
    writer.start()
    piped = read_texts(pipe, "text", label_column="label", limit=1)
    whole = read_texts(write("x.csv", content), "text", label_column="label")
    assert (piped.texts, piped.labels, piped.sha256) == (["a"], ["1"], whole.sha256)
    assert whole.sha256 == hashlib.sha256(content.encode()).hexdigest()


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from pyarrow import parquet

    rows = [{"text": "a", "label": 1}, {"text": "b", "label": 0}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "no-name")
    found = read_texts(tmp_path / "no-name", label_column="label")
    assert (found.texts, found.labels, found.ids) == (["a", "b"], ["1", "0"], ["0", "1"])
    assert refusal(tmp_path / "no-name", "review").startswith('row 0 has no column "review"')


@pytest.mark.parametrize("pack", [bz2.compress, gzip.compress])
def test_packed_files(write, pack):
    found = read_texts(write("x.csv.bz2", pack(b"text,label\na,x\n")), label_column="label")
    assert (
        found.texts == ["a"]
        and found.sha256 == read_texts(write("y.csv", "text,label\na,x\n")).sha256
    )


def test_a_row_without_its_second_text_has_an_error_and_no_text(write):
    rows = '{"text": "a", "second": "b"}\n{"text": "c", "second": 5}\n'
    good, bad = text_stream([write("x.jsonl", rows)], "text", "second")
    assert (good.text, good.second, good.error) == ("a", "b", "")
    assert (bad.text, bad.second, bad.characters) == ("", None, 0) and "second" in bad.error
