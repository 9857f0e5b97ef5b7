"""Reading and writing of files: what damaged, foreign and hostile bytes and JSON become, and what a crash leaves."""

import gzip
import hashlib
import io
import json
import os
import re
import sys
import threading
from pathlib import Path

import pytest

from bertqa.errors import UserError, show
from bertqa.files import (
    decode,
    json_lines,
    parse_json,
    read_bytes,
    read_json,
    read_object,
    read_text,
    replacing,
    same_file,
    sha256,
    to_json,
    unpacked,
    write_json,
    write_text,
)
from bertqa.folders import locked, model_of, staged

# ---- bytes and text


def refusal(read, *given, **options) -> str:
    with pytest.raises(UserError) as caught:
        read(*given, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_same_text_through_a_file_a_pipe_and_standard_input(tmp_path, monkeypatch):
    """A byte order mark is no character of the text, and Windows line ends are two, however it is given."""
    path = tmp_path / "text"
    path.write_bytes("\ufeffThe pier.\r\nIt was built\r\nby Elin Varga in 1904.\r\n".encode())
    text = "The pier.\r\nIt was built\r\nby Elin Varga in 1904.\r\n"
    assert read_text(path) == text
    assert decode(read_bytes(path)) == text
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(path.read_bytes())))
    assert read_text("-") == text
    packed = io.BytesIO(gzip.compress(path.read_bytes()))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(packed))
    assert read_text("-") == text
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=[gzip.compress(text.encode())])
    writer.start()
    assert read_text(pipe) == text
    writer.join()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (
            "café!".encode("latin-1"),
            "probably Latin-1; save it as UTF-8 (iconv -f latin1 -t utf-8)",
        ),
        (
            "\u201cdon\u2019t\u201d \u2013 \u20ac5 café".encode("cp1252"),
            "probably Windows-1252; save it as UTF-8 (iconv -f windows-1252 -t utf-8)",
        ),
        (
            "日本語".encode("shift-jis") + b"\x81",
            "nor Windows-1252; save it as UTF-8 (iconv -f ENCODING -t utf-8)",
        ),
        (b"PK\x03\x04\xff", "or an Excel file; unpack it, or save the table as CSV (UTF-8)"),
        ("a".encode("utf-16"), "UTF-16, or packed? Needed is UTF-8, plain or .gz"),
        (b"\x28\xb5\x2f\xfdabc", "UTF-16, or packed? Needed is UTF-8, plain or .gz"),
        ("id,question".encode("utf-16-le"), "save it as UTF-8 (iconv -f utf-16le -t utf-8)"),
    ],
)
def test_other_encodings(content, says):
    message = refusal(decode, content)
    assert message.endswith(says)
    if "iconv -f windows-1252" in message:
        assert content.decode("windows-1252") == "\u201cdon\u2019t\u201d \u2013 \u20ac5 café"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"a\nb\xe9!\n",
            "not UTF-8: byte 0xe9 at offset 3 (line 2), probably Latin-1; save it as UTF-8 "
            "(iconv -f latin1 -t utf-8)",
        ),
        (
            "é".encode()[:1],
            "cut off in the middle of a character: byte 0xc3 at offset 0 (line 1); fetch it again",
        ),
        (b" \n\t", "holds only white space; fetch it or write it again, or give another file"),
    ],
)
def test_the_place_of_what_is_no_text(content, message):
    assert refusal(decode, content) == message


@pytest.mark.parametrize(
    "head", [b"BZ", b"\xfd7", b"PK", b"(\xb5/\xfd", b"%PDF", b"\0", b" " * 63 + b"\0"]
)
def test_packed_files_are_known_by_their_first_bytes(head):
    assert "UTF-16, or packed?" in refusal(decode, head + b"\xe9!")
    assert "probably Latin-1" in refusal(decode, b"." * 64 + head.strip(b"\xfd7(\xb5/") + b"\xe9!")


def test_damaged_gzip():
    packed = gzip.compress(b"some text, long enough to be damaged inside" * 9)
    assert refusal(unpacked, packed[:-9]) == (
        f"cut off: its gzip stream ends early, after {len(packed) - 9:,} bytes; fetch it again"
    )
    broken = packed[:20] + bytes([packed[20] ^ 255]) + packed[21:]
    assert refusal(unpacked, broken).startswith("damaged: its gzip stream cannot be read (")
    assert refusal(unpacked, gzip.compress(b"")).startswith("is empty (0 bytes); ")
    assert unpacked(packed)[:9] == b"some text"


def test_git_lfs_pointers(tmp_path):
    path = tmp_path / "data.json"
    path.write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935\nsize 45144140\n"
    )
    assert refusal(read_bytes, path) == (
        "is a Git LFS pointer: the file itself was not fetched; run git lfs pull in its repository"
    )


# ---- JSON


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[" * 100_000, "line 1: JSON that Python cannot read: "),
        ("9" * 5000, "line 1: JSON that Python cannot read: "),
        ('{"data": [1], "data": [2]}', 'the key "data" stands twice in one object; leave one out'),
        ('[{"a": {"b": 1, "c": 2, "b": 1}}]', 'the key "b" stands twice'),
        ("[NaN]", "JSON has no NaN; write a number of usual size, or null"),
        ("-Infinity", "JSON has no -Infinity"),
        ("1e999", "JSON has no 1e999"),
        ('{"a": 1', "cut off: the JSON ends early, line 1, column 8"),
        ("{'a': 1}", "not JSON: line 1, column 2"),
    ],
)
def test_json_that_is_refused(text, says):
    assert refusal(parse_json, text).startswith(says)


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ('{"a":\n!}', None, 'not JSON: line 2, column 1: Expecting value, near "!}"'),
        ('{"a": !}', 7, 'not JSON: line 7, column 7: Expecting value, near "!}"'),
        ("!" * 40, None, f'not JSON: line 1, column 1: Expecting value, near "{"!" * 30}"'),
        ('{"a": tru', 3, "cut off: the JSON ends early, line 3, column 7; fetch it again"),
        ('{"a": tru}', 3, 'not JSON: line 3, column 7: Expecting value, near "tru}"'),
        ('"\\u00e', None, "cut off: the JSON ends early, line 1, column 3; fetch it again"),
        ('"\\u00ex', None, "cut off: the JSON ends early, line 1, column 3; fetch it again"),
        (
            '"\\u00ex"',
            None,
            'not JSON: line 1, column 3: Invalid \\uXXXX escape, near "u00ex\\""',
        ),
        ('{"a": "b', None, "cut off: the JSON ends early, line 1, column 7; fetch it again"),
        ("[1]\n]", 5, 'not JSON: line 6, column 1: Extra data, near "]"'),
    ],
)
def test_the_place_of_what_is_no_json(text, line, message):
    assert refusal(parse_json, text, line) == message


def test_an_object_with_very_many_keys_and_one_of_them_twice():
    pairs = ", ".join(f'"{n}": 0' for n in range(200_000))
    assert "stands twice" in refusal(parse_json, "{" + pairs + ', "7": 1}')


def test_nan_of_pandas_where_data_may_have_it():
    assert parse_json("[1.5, NaN]", allow_nan=True)[1] != 1
    assert list(json_lines('{"a": NaN}\n\n{"a": 1}', allow_nan=True))[1] == ("line 3", {"a": 1})
    assert refusal(list, json_lines('{"a": 1}\n{"a": NaN}')).startswith("line 2: JSON has no NaN")
    assert refusal(list, json_lines('1\n{"a": 1, "a": 2}')).startswith('line 2: the key "a" stands')


def test_a_line_separator_inside_a_string_ends_no_line():
    assert list(json_lines('"a\u2028b"\n2')) == [("line 1", "a\u2028b"), ("line 2", 2)]


def test_messages_name_the_file(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"a": 1, "a": 2}')
    assert refusal(read_json, path).startswith(f'{path}: the key "a" stands twice')
    path.write_text("[1]")
    assert refusal(read_object, path) == f"{path}: holds a JSON list, expected an object"
    assert refusal(read_text, tmp_path / "none") == f"{tmp_path / 'none'}: there is no such file"
    assert read_json(path) == [1]


def test_any_value_can_be_shown():
    class Odd:
        def __repr__(self):
            return "odd"

    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    assert show({(1, 2): 3}) == "a dict that JSON cannot show"
    assert show({"a": {1, 2}, "b": Odd()}) == '{"a": "{1, 2}", "b": "odd"}'
    assert show(deep) == "a list that JSON cannot show"
    assert show("x" * 100) == '"' + "x" * 76 + "..."


def test_what_is_shown_has_eighty_characters_at_most():
    assert show("x" * 78) == '"' + "x" * 78 + '"'
    assert show("x" * 79) == '"' + "x" * 76 + "..."
    assert show("é\ud800") == '"é\\ud800"'


def test_no_json_from_outside_is_read_elsewhere():
    """files.py's reader knows the traps: depth, digits, memory, NaN, repeated keys."""
    package = Path(__file__).resolve().parents[1] / "bertqa"
    others = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if re.search(r"json\.loads?\(", path.read_text(encoding="utf-8"))
    }
    assert others == {"files.py"}


# ---- writing


def test_what_is_written_is_whole_or_not_there(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"half": "\ud800", "é": [1]})
    assert json.loads(path.read_text(encoding="utf-8")) == {"half": "\ud800", "é": [1]}
    with pytest.raises(ZeroDivisionError), replacing(path) as fresh:
        fresh.write_text("half of it")
        raise ZeroDivisionError
    assert json.loads(path.read_text(encoding="utf-8"))["é"] == [1]
    write_text(path, "a\r\nb\n")
    assert path.read_bytes() == b"a\r\nb\n" and [p.name for p in tmp_path.iterdir()] == ["x.json"]
    assert sha256(path, path) == sha256(path, path) != sha256(path)
    assert to_json("\udc00é") == '"\\udc00é"'


def test_what_is_written_reaches_the_disk_before_its_name(tmp_path, monkeypatch):
    path, seen = tmp_path / "x", []
    monkeypatch.setattr(os, "fsync", lambda handle: seen.append(path.exists()))
    write_text(path, "a")
    assert seen == [False] and path.exists()


@pytest.mark.skipif(os.name != "posix", reason="no permissions like these here")
def test_what_is_written_is_as_readable_as_any_new_file(tmp_path):
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "x", "a")
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o640


def test_names_that_cannot_be_written_to(tmp_path):
    assert refusal(write_text, tmp_path, "a") == f"{tmp_path}: is a folder; give the name of a file"
    inside = tmp_path / "none" / "x"
    assert refusal(write_text, inside, "a") == f"{inside}: there is no folder {tmp_path / 'none'}"


def test_a_half_written_file_lies_beside_under_a_name_of_its_own(tmp_path):
    path = tmp_path / "x.json"
    with replacing(path) as one, replacing(path) as other:
        assert one != other and {one.parent, other.parent} == {tmp_path}
        assert one.name.startswith("x.json.") and one.suffix == ".tmp"
    assert [found.name for found in tmp_path.iterdir()] == ["x.json"]


def test_checksums_and_names_of_files(tmp_path):
    (tmp_path / "a").write_bytes(b"a" * 5_000_000)
    (tmp_path / "b").write_bytes(b"b")
    both = (tmp_path / "a", tmp_path / "b")
    assert sha256(*both) == hashlib.sha256(b"a" * 5_000_000 + b"b").hexdigest()
    (tmp_path / "again").symlink_to(tmp_path / "a")
    assert same_file(tmp_path / "a", tmp_path / "again") and not same_file(*both)
    assert not same_file(tmp_path / "a", tmp_path / "none")
    assert not same_file(tmp_path / "none", tmp_path / "a")


def test_a_folder_is_replaced_whole_and_nothing_foreign_is_deleted(tmp_path):
    for name in ("model", "model.tmp", "model.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").write_text(name)
    with staged(tmp_path / "model") as fresh:
        (fresh / "new").write_text("1")
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["new"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "model.old", "model.tmp"]
    with pytest.raises(ZeroDivisionError), staged(tmp_path / "model") as fresh:
        raise ZeroDivisionError
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["new"]
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file, expected a folder"), staged(tmp_path / "file"):
        pass


def test_one_at_a_time(tmp_path):
    pytest.importorskip("fcntl")
    inside, most = [], []

    def work():
        with locked(tmp_path):
            inside.append(1)
            most.append(len(inside))
            inside.pop()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 8


def test_a_run_folder_stands_for_its_best_model(tmp_path):
    assert model_of(tmp_path / "none") == tmp_path / "none"
    (tmp_path / "config.json").write_text("{}")
    assert model_of(tmp_path) == tmp_path
    for part in ("last", "best"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_text("{}")
        assert model_of(tmp_path) == tmp_path / part
    (tmp_path / "model.safetensors").touch()  # a model that has such folders
    assert model_of(tmp_path) == tmp_path


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_a_pipe_is_written_to_and_not_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()), daemon=True)
    reader.start()
    write_text(pipe, "all of it")
    reader.join(10)
    assert read == ["all of it"] and pipe.is_fifo()
    assert list(tmp_path.iterdir()) == [pipe]
