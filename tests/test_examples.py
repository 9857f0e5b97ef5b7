"""Every format, every repair, every reason to reject and every error message of bertqa/data/examples.py."""

import csv
import gc
import gzip
import hashlib
import json
import random
import re
import time
import unicodedata
from copy import deepcopy

import pytest

from bertqa.data.characters import inside_word
from bertqa.data.examples import Example, read_examples
from bertqa.data.offsets import (
    CHARACTERS,
    FROM_ONE,
    NEARBY,
    Placed,
    clearly_nearest,
    place,
    unit_of,
    unit_of_paragraph,
)
from bertqa.data.questions import Gold
from bertqa.data.record_fields import parse_printed
from bertqa.data.writing import write_rejected
from bertqa.errors import UserError

CONTEXT = "Ada Lovelace wrote it in 1843. Naïve? 数学 is hard."
WANTED = [
    Example("1", "Who wrote it?", CONTEXT, ("Ada Lovelace", "Ada"), (0, 0), "Notes"),
    Example("2", "Who printed it?", CONTEXT, (), (), "Notes"),
    Example("3", "What is hard?", CONTEXT, ("数学",), (38,), "Notes"),
]
PAIRS = [{"text": "Ada Lovelace", "answer_start": 0}, {"text": "Ada", "answer_start": 0}]
SQUAD = {
    "version": "v2.0",
    "data": [
        {"title": "Nothing here", "paragraphs": []},
        {
            "title": "Notes",
            "paragraphs": [
                {
                    "context": CONTEXT,
                    "qas": [
                        {
                            "id": "1",
                            "question": "Who wrote it?",
                            "answers": PAIRS,
                            "is_impossible": False,
                        },
                        {
                            "id": "2",
                            "question": "Who printed it?",
                            "answers": [],
                            "is_impossible": True,
                            "plausible_answers": [{"text": "Ada", "answer_start": 0}],
                        },
                        {
                            "id": "3",
                            "question": "What is hard?",
                            "answers": [{"text": "数学", "answer_start": 38}],
                            "is_impossible": False,
                        },
                    ],
                }
            ],
        },
    ],
}
FLAT = [
    {
        "id": "1",
        "question": "Who wrote it?",
        "context": CONTEXT,
        "title": "Notes",
        "answers": {"text": ["Ada Lovelace", "Ada"], "answer_start": [0, 0]},
    },
    {
        "id": "2",
        "question": "Who printed it?",
        "context": CONTEXT,
        "title": "Notes",
        "answers": {"text": [], "answer_start": []},
    },
    {
        "id": "3",
        "question": "What is hard?",
        "context": CONTEXT,
        "title": "Notes",
        "answers": [{"text": "数学", "answer_start": 38}],
    },
]
CSV = f"""id,question,context,title,answers
1,Who wrote it?,{CONTEXT},Notes,"{{'text': ['Ada Lovelace', 'Ada'], 'answer_start': [0, 0]}}"
2,Who printed it?,{CONTEXT},Notes,"{{""text"": [], ""answer_start"": []}}"
3,What is hard?,{CONTEXT},Notes,"{{'text': array(['数学'], dtype=object), 'answer_start': array([38], dtype=int32)}}"
"""


@pytest.fixture
def write(tmp_path):
    """Writes bytes, text or a JSON value to a file whose name says nothing about its format."""

    def write(content):
        if not isinstance(content, str | bytes):
            content = json.dumps(content)
        path = tmp_path / "questions"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def jsonl(records, **options):
    return "\n".join(json.dumps(record, **options) for record in records)


def flat(context="The cat sat.", **record):
    """A flat record; impossible, if it says nothing of answers."""
    if not record.keys() & {"answers", "answer_text", "answer", "is_impossible"}:
        record["answers"] = []
    return {"id": "a", "question": "Who sat?", "context": context, **record}


def fails(path, message, **options):
    """The file is refused with its own name and exactly this, on one line."""
    with pytest.raises(UserError) as caught:
        read_examples(path, **options)
    assert str(caught.value) == f"{path}: {message}"


# ---- formats


@pytest.mark.parametrize(
    "content, kind",
    [
        (SQUAD, "squad"),
        (json.dumps(SQUAD, indent=2, ensure_ascii=False), "squad"),
        (FLAT, "flat json"),
        ({"data": FLAT, "version": 1}, "flat json"),
        (jsonl(FLAT), "jsonl"),
        ("\n" + jsonl(FLAT, ensure_ascii=False).replace("\n", "\r\n\r\n") + "\n", "jsonl"),
        (CSV, "csv"),
        (CSV.replace("\n", "\r\n"), "csv"),
        (CSV.replace("\n", "\r"), "csv"),
        (",,,,\r\n" + CSV, "csv"),  # a sheet may begin with empty rows
    ],
)
def test_one_file_in_every_format(write, content, kind):
    data = read_examples(write(content))
    assert data.examples == WANTED
    assert (data.format, data.repaired, data.rejected, data.version) == (kind, 0, [], "2.0")
    assert (
        len({id(example.context) for example in data.examples}) == 1
    )  # one object, or it is tokenised three times


@pytest.mark.parametrize("answer_start", ["38", "38.0", ""])
@pytest.mark.parametrize("comma", [",", ";", "\t"])
def test_csv_with_one_answer_per_row(write, comma, answer_start):
    rows = [
        ["ID", "Question", "Context", "answer_text", "answer_start", "is_impossible", "index"],
        ["7", "What is hard?", f'"{CONTEXT}"', "数学", answer_start, "False", "0"],
        [],
        ["8", '"Who said ""no""\nand when?"', f'"{CONTEXT}"', "", "", "TRUE", "1"],
        ["9", "Who?", f'"{CONTEXT}"', "", "", "", "2"],
    ]
    data = read_examples(write("\n".join(comma.join(row) for row in rows)))
    assert data.examples == [
        Example("7", "What is hard?", CONTEXT, ("数学",), (38,)),
        Example("8", 'Who said "no"\nand when?', CONTEXT, (), ()),
        Example("9", "Who?", CONTEXT, (), ()),
    ]
    assert (data.format, data.repaired, data.rejected) == ("csv", 0, [])


def test_csv_takes_long_paragraphs_and_restores_the_module(write):
    before = csv.field_size_limit()
    context = "word " * 60_000
    data = read_examples(
        write(f"id,question,context,answer_text,answer_start\n1,?,{context},word,5\n")
    )
    assert data.examples[0].context == context and data.examples[0].answer_starts == (5,)
    assert csv.field_size_limit() == before and gc.isenabled()


MRQA = [
    {
        "id": "x",
        "context": "[PAR] The Broncos  won; the Broncos sang.",
        "qas": [
            {
                "qid": "q1",
                "question": "who won",
                "answers": ["broncos", "Denver"],
                "detected_answers": [
                    {
                        "text": "the broncos",
                        "char_spans": [[6, 16], [24, 34]],
                        "token_spans": [[1, 2]],
                    }
                ],
            },
            {
                "qid": "q2",
                "question": "did what",
                "answers": ["sang"],
                "detected_answers": [
                    {"text": "sang", "char_spans": [[36, 39]]},
                    {"text": "won", "char_spans": []},
                ],
            },
        ],
    }
]


@pytest.mark.parametrize("header", [[], [{"header": {"dataset": "SQuAD", "split": "dev"}}]])
def test_mrqa(write, header):
    data = read_examples(write(jsonl(header + MRQA)))
    context = MRQA[0]["context"]
    assert data.examples == [
        # the paragraph's own spelling first (training), then the accepted texts that stand nowhere (scoring)
        Example("q1", "who won", context, ("The Broncos", "broncos", "Denver"), (6, -1, -1)),
        Example("q2", "did what", context, ("sang", "won"), (36, 19)),
    ]
    assert (data.format, data.repaired, data.rejected, data.version) == ("mrqa", 0, [], "1.1")


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from pyarrow import parquet

    rows = [{**row, "answers": {"text": [], "answer_start": []}} for row in FLAT[:1]]
    rows[0]["answers"] = FLAT[0]["answers"]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "no-name")
    data = read_examples(tmp_path / "no-name")
    assert (data.examples, data.format) == (WANTED[:1], "parquet")
    (tmp_path / "no-name").write_bytes(b"PAR1 and so on PAR1")
    with pytest.raises(UserError, match="not a Parquet file that pyarrow can read"):
        read_examples(tmp_path / "no-name")


def test_gzip_is_known_by_content_and_hashed_unpacked(write):
    text = json.dumps(SQUAD).encode()
    plain, packed = read_examples(write(text)), read_examples(write(gzip.compress(text)))
    assert plain.examples == packed.examples == WANTED
    assert plain.sha256 == packed.sha256 == hashlib.sha256(text).hexdigest()


@pytest.mark.parametrize("content", [json.dumps(SQUAD), jsonl(FLAT), CSV])
def test_byte_order_mark(write, content):
    assert read_examples(write(b"\xef\xbb\xbf" + content.encode())).examples == WANTED


def test_single_record_numeric_ids_and_lone_surrogates(write):
    data = read_examples(
        write('{"id": 12, "question": "\\ud83d?", "context": "a \\udc00 b", "answers": null}')
    )
    assert data.examples == [Example("12", "\ud83d?", "a \udc00 b", (), ())]
    assert data.format == "jsonl"


@pytest.mark.parametrize(
    "answers",
    [
        {"text": ["cat"], "answer_start": [4.0]},
        {"text": ["cat"]},
        [{"text": "cat", "answer_start": None}],
        [{"text": "cat", "answer_start": -1}],
        [{"text": "cat"}],
    ],
)
def test_ways_to_write_an_answer(write, answers):
    data = read_examples(write([flat(answers=answers)]))
    assert (data.examples[0].answer_texts, data.examples[0].answer_starts, data.repaired) == (
        ("cat",),
        (4,),
        0,
    )


def test_an_answer_that_is_a_plain_text(write):
    """Under "answers", beside its offset or without one; also in a file with SberQuAD's names, which need no id."""
    records = [
        {"question": "Which?", "context": "The cat sat.", "answers": "cat"},
        {"question": "Who?", "context": "A cat, a cat.", "answers": "cat", "answer_start": 9},
    ]
    found = read_examples(write(jsonl(records))).examples
    assert [(one.answer_texts, one.answer_starts) for one in found] == [
        (("cat",), (4,)),
        (("cat",), (9,)),
    ]
    (one,) = read_examples(
        write(jsonl([{"question": "Which?", "paragraph": "The cat sat.", "answer": "cat"}]))
    ).examples
    assert (one.id, one.context, one.answer_starts) == ("0", "The cat sat.", (4,))


def test_flat_answer_text(write):
    data = read_examples(write([flat(answer_text="cat", answer_start=4)]))
    assert (data.examples[0].answer_texts, data.examples[0].answer_starts) == (("cat",), (4,))


def test_limit_counts_questions_and_looks_no_further(write):
    broken = deepcopy(SQUAD)
    del broken["data"][1]["paragraphs"][0]["qas"][2]["id"]
    path = write(broken)
    assert read_examples(path, limit=2).examples == WANTED[:2]
    fails(
        path,
        'data[1].paragraphs[0].qas[2]: has no "id", its keys are ["question", "answers", "is_impossible"]',
        limit=3,
    )
    assert read_examples(write(SQUAD), limit=99).examples == WANTED
    with pytest.raises(UserError, match="limit is 0; it must be at least 1 question"):
        read_examples(path, limit=0)


# ---- offsets


@pytest.mark.parametrize(
    "context, text, start, found, repaired",
    [
        ("The cat sat.", "cat", 4, 4, False),
        ("The cat sat.", "cat", 5, 4, True),  # the only place
        ("cat" + "." * 500, "cat", 400, 0, True),  # however far
        ("cat" + "." * 500, "cat", 9999, 0, True),
        ("The cat sat.", "cat", -7, 4, False),  # below 0: no offset
        ("The cat sat.", "dog", 4, -1, False),
        ("The cat sat.", "Kat", 4, -1, False),
        ("cat, cat, cat", "cat", 6, 5, True),  # 1 off, and 4 off the next
        ("cat, cat, cat", "cat", 7, -1, False),  # 2 off and 3 off: not clear
        ("cat" + "." * 60 + "cat", "cat", 20, 0, True),  # 20 off, and 43 off the next
        ("cat" + "." * 90 + "cat", "cat", 21, -1, False),  # more than NEARBY
        ("cat, cat", "cat", -1, -1, False),  # nothing to be near to
        ("....", "..", 3, 2, True),  # places may overlap: 1 off, and 2 off the next
        ("aaaa", "aa", 3, -1, False),  # only inside a word
        ("The cat sat.", " cat ", 3, 4, False),  # counted before stripping
        ("The cat sat.", " cat", 3, 4, False),
        ("The cat sat.", "cat ", 4, 4, False),
        ("The cat sat.", " cat\n", 4, 4, False),  # counted after it
        ("a (b) a (b)", "(b)", 9, 8, True),  # no regular expression
        ("", "cat", 0, -1, False),
    ],
)
def test_offset_repair(write, context, text, start, found, repaired):
    data = read_examples(write([flat(context, answers=[{"text": text, "answer_start": start}])]))
    example = data.examples[0]
    assert (example.answer_texts, example.answer_starts, data.repaired) == (
        (text.strip(),),
        (found,),
        repaired,
    )
    assert len(data.rejected) == (found < 0) and len(data.trainable()) == (found >= 0)


def test_answers_that_stand_inside_words_only_where_their_offset_says_so(write):
    records = [
        flat("In 1952 he had five ships.", id=0, answers=[{"text": "5", "answer_start": 15}]),
        flat("The notary opened it at noon.", id=1, answers=[{"text": "no"}]),
        flat(
            "The party; she taught painting.", id=2, answers=[{"text": "art", "answer_start": 24}]
        ),
        flat("They took the US route by bus.", id=3, answers=[{"text": "us", "answer_start": 11}]),
        flat("Only the captain knew.", id=4, answers=[{"text": "he", "answer_start": 0}]),
        flat("Only the captain knew.", id=5, answers=[{"text": "he", "answer_start": 6}]),
        flat("Ann came. " + "x " * 200 + "Okoro left.", id=6, answers=["Okoro"]),
        flat("北京大学的学生在北大上课。", id=7, answers=[{"text": "大学", "answer_start": 9}]),
        flat("The 1960s and 5km on, art.", id=8, answers=["1960"]),
        flat("The party, art and artist", id=9, answers=[{"text": "art", "answer_start": 19}]),
        flat("The artist, art and art", id=10, answers=[{"text": "art", "answer_start": 13}]),
        flat("It had 1,000 men.", id=11, answers=[{"text": "1", "answer_start": 0}]),
        flat("They paid 5.25 euros to 1,000 men.", id=12, answers=["25", "000"]),
        flat("It sank in 1904. 12 lived, 5", id=13, answers=["12"]),
    ]
    data = read_examples(write(records))
    assert data.examples[12].answer_starts == (-1, -1)
    starts = [example.answer_starts[0] for example in data.examples]
    assert starts == [-1, -1, -1, -1, -1, 6, 410, 2, 4, 19, 12, -1, -1, 17]
    assert data.rejected[0].reason == 'the answer "5" occurs only inside other words'


def test_an_answer_whose_text_has_another_form(write):
    """The offset is right, and letters and digits agree: the paragraph's own characters are the answer."""
    cases = [
        ("built by Elin\nVarga in", "Elin Varga", 9, "Elin\nVarga"),
        ("built by Elin  Varga in", "Elin Varga", 9, "Elin  Varga"),
        ("built by Elin\u00a0Varga in", "Elin Varga", 9, "Elin\u00a0Varga"),
        ("built by Elin\r\nVarga in", "Elin\nVarga", 9, "Elin\r\nVarga"),
        ("built by ELIN Varga in", "Elin Varga", 9, "ELIN Varga"),
        ("built by E\u0301lin Va\u0301rga in", "Élin Várga", 9, "E\u0301lin Va\u0301rga"),
        ("built by Élin Várga in", "E\u0301lin Va\u0301rga", 9, "Élin Várga"),
        ("it “the Lamp’s end” then", "the Lamp's end", 4, "the Lamp’s end"),
        ("it “the Lamp’s end” then", "the Lamp's end", 3, "the Lamp’s end"),
        ("it “the Lamp’s end” then", '"the Lamp\'s end"', 3, "“the Lamp’s end”"),
        ("by Elin\u200bVarga in", "ElinVarga", 3, "Elin\u200bVarga"),
        ("by Elin\u00adVarga in", "ElinVarga", 3, "Elin\u00adVarga"),
        ("an early–life gain", "early-life", 3, "early–life"),
        ("the ﬁrst Straße", "first STRASSE", 4, "ﬁrst Straße"),
        ("at 10\u202f000 m.", "10 000 m", 3, "10\u202f000 m"),
    ]
    records = [
        flat(context, id=number, answers=[{"text": text, "answer_start": start}])
        for number, (context, text, start, _) in enumerate(cases)
    ]
    data = read_examples(write(records))
    assert [example.answer_texts[0] for example in data.examples] == [own for *_, own in cases]
    assert (data.repaired, data.rejected) == (len(cases), [])
    for example in data.examples:
        assert example.context.startswith(example.answer_texts[0], example.answer_starts[0])


@pytest.mark.parametrize(
    ("context", "text", "start"),
    [
        ("The Elinor sails.", "elin", 4),  # inside a word
        ("The mill burned.", "kiln", 4),
        ("Red, ..... green", "Red green", 0),  # too much between
        ("cat", "cats", 0),
        ("The cat", "Cat", 7),
        ("ab", "—", 0),
    ],
)
def test_other_words_are_no_other_form(write, context, text, start):
    data = read_examples(write([flat(context, answers=[{"text": text, "answer_start": start}])]))
    assert data.examples[0].answer_starts == (-1,)


UNITS_MADE = {
    "characters": len,
    "UTF-16 units": lambda text: len(text.encode("utf-16-le")) // 2,
    "UTF-8 bytes": lambda text: len(text.encode()),
    "characters, line ends as two": lambda text: len(text.replace("\n", "\r\n")),
    "characters from 1": lambda text: len(text) + 1,
    "characters in NFC": lambda text: len(unicodedata.normalize("NFC", text)),
    "characters in NFD": lambda text: len(unicodedata.normalize("NFD", text)),
    "UTF-16 units, line ends as two": lambda text: (
        len(text.replace("\n", "\r\n").encode("utf-16-le")) // 2
    ),
    "UTF-8 bytes, line ends as two": lambda text: len(text.replace("\n", "\r\n").encode()),
}


@pytest.mark.parametrize("unit", UNITS_MADE)
def test_offsets_in_another_unit(write, unit):
    """Every answer goes to its own place, though a wrong one may be nearer; the summary names the unit."""
    draw = random.Random(1)
    records, true = [], []
    for number in range(40):
        words = [
            draw.choice(["🎉", "é", "e\u0301", "3", "Ola", "to", "x\ny", "数学"]) for _ in range(60)
        ]
        context = " ".join(words)
        place = draw.choice([n for n, word in enumerate(words) if word in ("3", "Ola")])
        start = len(" ".join(words[:place])) + (place > 0)
        answer = {"text": words[place], "answer_start": UNITS_MADE[unit](context[:start])}
        records.append(flat(context, id=number, answers=[answer]))
        true.append(start)
    data = read_examples(write(records))
    assert [example.answer_starts[0] for example in data.examples] == true
    assert data.unit == unit and data.rejected == []
    named = f" (counted in {unit})" if unit != "characters" else ""
    assert f" repaired{named}, 0 rejected" in data.summary()
    assert (data.repaired > 0) == (unit != "characters")


def test_a_paragraph_in_another_unit_than_its_file(write):
    records = [
        flat(f"🎉 {n} The cat sat.", id=n, answers=[{"text": "cat", "answer_start": 8}])
        for n in range(9)
    ]
    emoji = "🎉🎉🎉🎉🎉🎉 Tern FC won 3 of 3 games."
    records.append(flat(emoji, id="emoji", answers=[{"text": "3", "answer_start": 25}]))
    data = read_examples(write(records))
    assert (data.examples[-1].answer_starts, data.unit, data.repaired) == ((19,), "characters", 1)


def test_windows_line_ends_counted_as_one(write):
    context = "one\r\ntwo\r\nthree one\r\ntwo"
    data = read_examples(write([flat(context, answers=[{"text": "two", "answer_start": 18}])]))
    assert data.examples[0].answer_starts == (21,)


def test_an_answer_right_behind_what_a_unit_does_not_count(write):
    answers = [{"text": "x", "answer_start": 3}]
    data = read_examples(write([flat("e\u0301\u0323e\u0301-x, y", answers=answers)]))
    assert (data.examples[0].answer_starts, data.unit) == ((6,), "characters in NFC")
    answers = [{"text": "3", "answer_start": 1}]
    data = read_examples(write([flat("e\u03013 or 3", answers=answers)]))
    assert data.examples[0].answer_starts == (2,)


def test_looking_for_an_answer_takes_no_square_of_time(write):
    """100,000 letters took over a minute."""
    began = time.perf_counter()
    for text in ("a" * 50_000, "a", "ab" * 20_000, "a " * 20_000):
        for context in ("a" * 100_000, "ab" * 50_000, "a " * 50_000):
            read_examples(write([flat(context, answers=[{"text": text, "answer_start": 77_777}])]))
    assert time.perf_counter() - began < 20


def test_located_answers_stand_where_they_say(write):
    draw = random.Random(0)
    records = []
    for i in range(3000):
        context = "".join(draw.choices("ab  ", k=draw.randrange(40)))
        text = "".join(draw.choices("ab ", k=draw.randrange(1, 6)))
        records.append(
            flat(
                context, id=str(i), answers=[{"text": text, "answer_start": draw.randrange(-1, 40)}]
            )
        )
    data = read_examples(write(records))
    located = 0
    for record, example in zip(records, data.examples, strict=True):
        (text,), (start,) = example.answer_texts, example.answer_starts
        given = record["answers"][0]
        places = len(re.findall(rf"\b(?={re.escape(text)}\b)", example.context))
        if start >= 0:
            located += 1
            assert example.context[start : start + len(text)] == text != ""
            assert text.split() == given["text"].split() or (
                text.replace(" ", "") == given["text"].replace(" ", "")
                and start >= given["answer_start"] >= 0
            )
        elif text:  # what is certain is never given up
            stated = given["answer_start"]
            assert places != 1 and (stated < 0 or not example.context.startswith(text, stated))
        if (
            text
            and given["text"] == text
            and example.context[given["answer_start"] :].startswith(text)
        ):
            assert start == given["answer_start"] or given["answer_start"] == -1
    assert located == len(data.trainable()) and 500 < located < 1900


# ---- what training cannot use


@pytest.mark.parametrize(
    "record, texts, reason",
    [
        (flat(question=" "), (), "the question is empty"),
        (
            flat(answers=[{"text": "cat", "answer_start": 4}], is_impossible=True),
            ("cat",),
            "is_impossible is true, but there are answers",
        ),
        (
            flat(answers=[], is_impossible=False),
            (),
            "is_impossible is false, but there are no answers",
        ),
        (
            flat(answers=[{"text": " ", "answer_start": 4}], is_impossible=False),
            ("",),
            "the answer text is empty",
        ),
        (flat(answers={"text": [""], "answer_start": [0]}), ("",), "the answer text is empty"),
        (
            flat(answers={"text": ["dog", "dog", ""], "answer_start": [4, 4, 4]}),
            ("dog", "dog", ""),
            'the answer "dog" does not occur in the context; the answer text is empty',
        ),
        (
            flat("cat or cat", answers={"text": ["cat"], "answer_start": [400]}),
            ("cat",),
            'the answer "cat" occurs more than once, and answer_start is not clearly nearest to one of them',
        ),
    ],
)
def test_rejected_for_training_but_evaluated(write, record, texts, reason):
    data = read_examples(write([record, flat(id="b")]))
    assert [(rejected.id, rejected.reason) for rejected in data.rejected] == [("a", reason)]
    assert data.rejected[0].record == {**record, "title": ""}
    assert [example.id for example in data.examples] == ["a", "b"]
    assert data.examples[0].answer_texts == texts
    assert [example.id for example in data.trainable()] == ["b"]


@pytest.mark.parametrize(
    "record",
    [
        flat(),
        flat(answers=None),
        flat(answers=[], is_impossible=None),
        flat(answers={"text": [], "answer_start": []}, is_impossible=True),
        flat(answers=[{"text": "", "answer_start": 0}], is_impossible=True),
        flat("", answers=[]),
    ],
)
def test_impossible(write, record):
    data = read_examples(write([record]))
    assert (data.examples[0].answer_texts, data.rejected, data.version) == ((), [], "2.0")
    assert data.trainable() == data.examples


def test_one_usable_answer_is_enough(write):
    data = read_examples(
        write([flat(answers={"text": ["dog", "", "cat"], "answer_start": [0, 0, 9]})])
    )
    assert data.examples[0].answer_texts == ("dog", "", "cat")
    assert data.examples[0].answer_starts == (-1, -1, 4)
    assert (data.repaired, data.rejected, data.version) == (1, [], "1.1")


def test_summary(write):
    records = [flat(id=i, answers={"text": ["cat"], "answer_start": [i]}) for i in range(3, 6)]
    records += [flat(id=i) for i in range(6, 9)] + [
        flat(id=9, answers=[{"text": "dog"}]),
        flat(id=10, answers=[]),
    ]
    assert read_examples(write(records)).summary() == (
        "8 examples, 4 impossible, 2 offsets repaired, 1 rejected (-> rejected.jsonl)"
    )
    assert (
        read_examples(write(records[:1])).summary()
        == "1 example, 0 impossible, 1 offset repaired, 0 rejected"
    )


def test_rejected_file_can_be_mended_and_read(write, tmp_path):
    records = [
        flat("数学 \ud800 \\ud801", id=5, answers={"text": ["cat"], "answer_start": [1]}),
        flat(id="b"),
    ]
    data, out = read_examples(write(records)), tmp_path / "rejected.jsonl"
    write_rejected(data, out)
    assert out.read_text("utf-8").splitlines() == [
        '{"id": "5", "question": "Who sat?", "context": "数学 \\ud800 \\\\ud801", '
        '"answers": {"text": ["cat"], "answer_start": [1]}, "title": "", '
        '"reason": "the answer \\"cat\\" does not occur in the context"}'
    ]
    again = read_examples(out)
    assert (
        again.examples == data.examples[:1] and again.rejected[0].reason == data.rejected[0].reason
    )
    out.write_text(out.read_text("utf-8").replace('"cat"', '"数学"'), "utf-8")
    assert [example.answer_starts for example in read_examples(out).trainable()] == [(0,)]
    write_rejected(read_examples(write([flat()])), out)
    assert out.read_bytes() == b""
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "questions",
        "rejected.jsonl",
    ]  # nothing temporary


# ---- records that break the structure


def article(**qa):
    return {
        "data": [
            {
                "paragraphs": [
                    {"context": "c", "qas": [{"id": "a", "question": "q", "answers": [], **qa}]}
                ]
            }
        ]
    }


@pytest.mark.parametrize(
    "content, message",
    [
        (article(id=None), 'data[0].paragraphs[0].qas[0]: "id" must be text, not null'),
        (article(id=1.5), 'data[0].paragraphs[0].qas[0]: "id" must be text, not 1.5'),
        (article(id=True), 'data[0].paragraphs[0].qas[0]: "id" must be text, not true'),
        (
            article(id=" "),
            'data[0].paragraphs[0].qas[0]: "id" is empty; every question needs its own',
        ),
        (
            article(question=float("nan")),
            'data[0].paragraphs[0].qas[0]: "question" must be text, not NaN',
        ),
        (
            article(is_impossible="maybe"),
            'data[0].paragraphs[0].qas[0]: "is_impossible" must be true or false, not "maybe"',
        ),
        (
            article(is_impossible=2),
            'data[0].paragraphs[0].qas[0]: "is_impossible" must be true or false, not 2',
        ),
        (
            article(answers=7),
            "data[0].paragraphs[0].qas[0].answers: must be a list or an object, not 7",
        ),
        (
            article(answers=[7]),
            "data[0].paragraphs[0].qas[0].answers[0]: must be an object, not 7",
        ),
        (
            article(answers=[{"text": 7, "answer_start": 0}]),
            'data[0].paragraphs[0].qas[0].answers[0]: "text" must be text, not 7',
        ),
        (
            article(answers=[{"answer_start": 0}]),
            'data[0].paragraphs[0].qas[0].answers[0]: has no "text", its keys are ["answer_start"]',
        ),
        (
            article(answers=[{"text": "c", "answer_start": float("nan")}]),
            'data[0].paragraphs[0].qas[0].answers[0]: "answer_start" must be a whole number, not NaN',
        ),
        (
            article(answers=[{"text": "c", "answer_start": "0"}]),
            'data[0].paragraphs[0].qas[0].answers[0]: "answer_start" must be a whole number, not "0"',
        ),
        (
            article(answers={"text": ["c"], "answer_start": []}),
            "data[0].paragraphs[0].qas[0].answers: 1 in text but 0 in answer_start; they must pair up",
        ),
        (
            {"data": [{"paragraphs": [{"context": ["c"], "qas": []}]}]},
            'data[0].paragraphs[0]: "context" must be text, not ["c"]',
        ),
        (
            {"data": [{"paragraphs": [{"qas": []}]}]},
            'data[0].paragraphs[0]: has no "context", its keys are ["qas"]',
        ),
        (
            {"data": [{"paragraphs": [{"context": "c"}]}]},
            'data[0].paragraphs[0]: has no "qas", its keys are ["context"]',
        ),
        (
            {"data": [{"paragraphs": [{"context": "c", "qas": [3]}]}]},
            "data[0].paragraphs[0].qas[0]: must be an object, not 3",
        ),
        ({"data": [{"paragraphs": {}}]}, 'data[0]: "paragraphs" must be a list, not {}'),
        (
            {"data": [{"title": "t"}, *article()["data"]]},
            'data[0]: has no "paragraphs", its keys are ["title"]',
        ),
        ({"data": {}}, 'the file: "data" must be a list, not {}'),
        ([flat(), flat(id="b", context=None)], 'records[1]: "context" must be text, not null'),
        ([flat(), flat(id="a")], 'records[1]: id "a" was used by records[0]; make every id unique'),
        (
            [flat(id=1), flat(id="1")],
            'records[1]: id "1" was used by records[0]; make every id unique',
        ),
        (
            [flat(answer="cat")],
            'records[0]: unknown key "answer"; write "answers", or "answer_text" and "answer_start"',
        ),
        ({"data": [flat(), 5]}, "data[1]: must be an object, not 5"),
        (jsonl([flat(), flat(id="b", question=3)]), 'line 2: "question" must be text, not 3'),
        (jsonl([flat()]) + "\n\n[]", "line 3: must be an object, not []"),
        (
            {"question": "q", "context": "c"},
            'the only record: has neither "answers" nor "is_impossible", its keys are ["question", '
            '"context"]; a question without an answer says "answers": []',
        ),
        (
            jsonl(
                [
                    {"header": {}},
                    {"context": "c", "qas": [{"qid": "1", "question": "q", "answers": []}]},
                    {"context": "c", "qas": [{"question": "q", "answers": []}]},
                ]
            ),
            'line 3, qas[0]: has no "id", its keys are ["question", "answers"]',
        ),
        (
            jsonl(
                [
                    {"header": {}},
                    {
                        "context": "c",
                        "qas": [
                            {
                                "qid": "1",
                                "question": "q",
                                "detected_answers": [{"text": "c", "char_spans": [0, 0]}],
                            }
                        ],
                    },
                ]
            ),
            'line 2, qas[0].detected_answers[0]: "char_spans" must hold [first, last] character offsets, not 0',
        ),
        (
            "id,question,context\na,q,c\nb,q\n",
            "line 3: has 2 cells, the header 3; cut off, or a quote missing?",
        ),
        (
            'id,question,context,answers\na,"q\nq",c,\na,q,c,\n',
            'line 4: id "a" was used by line 2; make every id unique',
        ),
        (
            "id,question,context,answers\na,q,c,{oops\n",
            'line 2: "answers" is neither JSON nor a Python literal: "{oops"',
        ),
        (
            "id,question,context,answers\na,q,c,open('x')\n",
            """line 2: "answers" is neither JSON nor a Python literal: "open('x')\"""",
        ),
        (
            "id,question,context,answer_text,answer_start\na,q,c,c,first\n",
            'line 2.answers[0]: "answer_start" must be a whole number, not "first"',
        ),
        (
            "id,question,context,is_impossible\na,q,c,maybe\n",
            'line 2: "is_impossible" must be true or false, not "maybe"',
        ),
        (
            'id,question,context\na,q,"c"c\n',
            "the CSV row that begins on line 2 cannot be read: ',' expected after '\"'",
        ),
    ],
)
def test_broken_records(write, content, message):
    fails(write(content), message)


# ---- files that cannot be read

ACCEPTED = (
    'accepted are SQuAD JSON ("data", "paragraphs", "qas"); records with id, question, context and answers as a JSON '
    'list, under "data" or one per line; MRQA lines ("context", "qas"); CSV with the columns id, question, context and '
    "answers"
)
WHAT_TO_DO = "; fetch it or write it again, or give another file"


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "is empty (0 bytes)" + WHAT_TO_DO),
        (gzip.compress(b""), "is empty (0 bytes)" + WHAT_TO_DO),
        (b" \n\t\n", "holds only white space" + WHAT_TO_DO),
        (b"\xef\xbb\xbf\n", "holds only white space" + WHAT_TO_DO),
        (
            '{"data": [\n  {"title": x}]}',
            'not JSON: line 2, column 13: Expecting value, near "x}]}"',
        ),
        ('{"id": "1"}}', 'not JSON: line 1, column 12: Extra data, near "}"'),
        (
            jsonl([flat()]) + "\n{'id': 2}",
            "not JSON: line 2, column 2: Expecting property name enclosed in double quotes, near \"'id': 2}\"",
        ),
        (
            jsonl([flat()]) + '\n{"id": "2", "quest',
            "cut off: the JSON ends early, line 2, column 13; fetch it again",
        ),
        (
            json.dumps(SQUAD)[:-1],
            "cut off: the JSON ends early, line 1, column 626; fetch it again",
        ),
        (
            'id,question,context\na,q,c\nb,q,"half a con',
            "cut off: the CSV row that begins on line 3 cannot be read: unexpected end of data",
        ),
        (
            '{"a": "café"}'.encode("latin-1"),
            "not UTF-8: byte 0xe9 at offset 10 (line 1), probably Latin-1; save it as UTF-8 (iconv -f latin1 -t utf-8)",
        ),
        (
            "[\n{'café".encode()[:-1],
            "cut off in the middle of a character: byte 0xc3 at offset 7 (line 2); fetch it again",
        ),
        (
            "[]".encode("utf-16"),
            "not text in UTF-8: byte 0xff at offset 0 (line 1); UTF-16, or packed? Needed is UTF-8, plain or .gz",
        ),
        ([], f"has no questions in it, though its shape is right (flat json){WHAT_TO_DO}"),
        (
            {"data": []},
            f"has no questions in it, though its shape is right (flat json){WHAT_TO_DO}",
        ),
        (
            {"data": [{"paragraphs": []}]},
            f"has no questions in it, though its shape is right (squad){WHAT_TO_DO}",
        ),
        ({"header": {}}, f"has no questions in it, though its shape is right (mrqa){WHAT_TO_DO}"),
        (
            "id,question,context\n",
            f"has no questions in it, though its shape is right (csv){WHAT_TO_DO}",
        ),
        ({"train": [], "dev": []}, f'wrong shape: found ["train", "dev"]; {ACCEPTED}'),
        ([{"text": "a"}], f'wrong shape: found ["text"]; {ACCEPTED}'),
        ([1, 2], f"wrong shape: found 1; {ACCEPTED}"),
        (jsonl([{"text": "a"}, {"text": "b"}]), f'wrong shape: found ["text"]; {ACCEPTED}'),
        (
            "<!DOCTYPE html>\n",
            f'wrong shape: neither JSON nor a CSV header: "<!DOCTYPE html>"; {ACCEPTED}',
        ),
        (
            "question,id\n",
            'the CSV has no column "context"; its columns are "question", "id"',
        ),
        (
            "question,context\n",
            f"has no questions in it, though its shape is right (csv){WHAT_TO_DO}",
        ),
        (
            "first,second\n",
            f'wrong shape: neither JSON nor a CSV header: "first,second"; {ACCEPTED}',
        ),
    ],
)
def test_broken_files(write, content, message):
    fails(write(content), message)


def test_no_file(tmp_path):
    fails(tmp_path, "is a folder; name a file in it")
    fails(tmp_path / "none.json", "there is no such file")


@pytest.mark.parametrize(
    "content",
    [
        '[{"id": "1", "question": "\\u00e9\\n?", "context": "c", "is_impossible": true, "x": [-15, null, false]}]',
        json.dumps(FLAT[1:2], indent=1),
    ],
)
def test_json_cut_anywhere_is_called_cut(write, content):
    for end in range(1, len(content)):
        with pytest.raises(UserError, match="cut off: the JSON ends early, line "):
            read_examples(write(content[:end]))


def test_gzip_cut_anywhere_is_called_cut(write):
    packed = gzip.compress(jsonl(FLAT).encode())
    for end in range(2, len(packed)):
        fails(
            write(packed[:end]),
            f"cut off: its gzip stream ends early, after {end} bytes; fetch it again",
        )


def test_hostile_json(write):
    with pytest.raises(UserError, match="questions: line 1: JSON that Python cannot read: "):
        read_examples(write("[" * 200_000))


# ---- real data


@pytest.mark.parametrize(
    "name, questions, impossible, contexts, version",
    [
        ("dev-v1.1", 10_570, 0, 2_067, "1.1"),
        ("dev-v2.0", 11_873, 5_945, 1_204, "2.0"),
        ("train-v2.0-rebuilt", 128_943, 41_344, 18_891, "2.0"),
    ],
)
def test_squad(shared, name, questions, impossible, contexts, version):
    data = read_examples(shared / "data" / f"{name}.json.gz")
    assert (
        data.summary()
        == f"{questions:,} examples, {impossible:,} impossible, 0 offsets repaired, 0 rejected"
    )
    assert (data.format, data.version, len(data.trainable())) == ("squad", version, questions)
    assert len({id(example.context) for example in data.examples}) == contexts
    for example in data.examples:
        for text, start in zip(example.answer_texts, example.answer_starts, strict=True):
            assert example.context.startswith(text, start)


@pytest.fixture(scope="module")
def dev2k(shared):
    return json.loads(gzip.decompress((shared / "data" / "squad2-dev-2k.json.gz").read_bytes()))


def questions_of(squad):
    return [
        qa
        for article in squad["data"]
        for paragraph in article["paragraphs"]
        for qa in paragraph["qas"]
    ]


def test_swapped_offsets_in_real_data(dev2k, write, tmp_path):
    """Answerable questions of a paragraph swap offsets in pairs: nearly all are repaired, the rest is rejected."""
    broken, moved = deepcopy(dev2k), 0
    for article in broken["data"]:
        for paragraph in article["paragraphs"]:
            answered = [qa["answers"] for qa in paragraph["qas"] if qa["answers"]]
            for one, other in zip(answered[::2], answered[1::2], strict=False):
                starts = one[0]["answer_start"], other[0]["answer_start"]
                for answers, start in zip((one, other), reversed(starts), strict=True):
                    for answer in answers:
                        moved += answer["answer_start"] != start
                        answer["answer_start"] = start
    data, whole = read_examples(write(broken)), read_examples(write(dev2k))
    assert moved == 2509
    assert data.summary() == (
        "2,032 examples, 1,018 impossible, 2,244 offsets repaired, 70 rejected (-> rejected.jsonl)"
    )
    rejected, right = {question.id: question.reason for question in data.rejected}, 0
    for example, original in zip(data.examples, whole.examples, strict=True):
        assert example.answer_texts == original.answer_texts  # scores stay the same
        assert (example.id in rejected) == bool(
            example.answer_starts and max(example.answer_starts) < 0
        )
        for text, start in zip(example.answer_texts, example.answer_starts, strict=True):
            assert start < 0 or example.context.startswith(text, start)
        right += (
            example.id not in rejected and example.answer_starts[:1] == original.answer_starts[:1]
        )
    # the other 14: the text happens to stand nearer to the wrong offset, or only a second annotator's answer is certain
    assert (right, len(data.trainable())) == (1948, 1962)
    assert all("occurs more than once" in reason for reason in rejected.values())
    write_rejected(data, out := tmp_path / "rejected.jsonl")
    assert {question.id: question.reason for question in read_examples(out).rejected} == rejected


def test_missing_keys_in_real_data(dev2k, write):
    for key, message in [
        ("id", 'has no "id", its keys are ["question", "answers", "is_impossible"]'),
        ("question", 'has no "question", its keys are ["id", "answers", "is_impossible"]'),
    ]:
        broken = deepcopy(dev2k)
        del broken["data"][3]["paragraphs"][2]["qas"][1][key]
        fails(write(broken), f"data[3].paragraphs[2].qas[1]: {message}")
    broken = deepcopy(dev2k)
    for qa in questions_of(broken):
        del qa["is_impossible"]
    assert (
        read_examples(write(broken)).summary()
        == "2,032 examples, 1,018 impossible, 0 offsets repaired, 0 rejected"
    )
    for qa in questions_of(broken):
        del qa["answers"]
    path = write(broken)
    fails(
        path,
        'data[0].paragraphs[0].qas[0]: has neither "answers" nor "is_impossible", its keys are '
        '["question", "id"]; a question without an answer says "answers": []',
    )


def test_duplicate_ids_in_real_data(dev2k, write):
    broken = deepcopy(dev2k)
    paragraphs = broken["data"][3]["paragraphs"]
    paragraphs[5]["qas"][1]["id"] = id = paragraphs[2]["qas"][0]["id"]
    fails(
        write(broken),
        f'data[3].paragraphs[5].qas[1]: id "{id}" was used by data[3].paragraphs[2].qas[0]; make every id unique',
    )


def test_damaged_bytes_in_real_data(shared, dev2k, write):
    packed = (shared / "data" / "squad2-dev-2k.json.gz").read_bytes()
    half = packed[: len(packed) // 2]
    fails(write(half), "cut off: its gzip stream ends early, after 63,690 bytes; fetch it again")
    damaged = bytearray(packed)
    damaged[-5] ^= 1  # its length and checksum stand at the end
    with pytest.raises(
        UserError, match="questions: damaged: its gzip stream cannot be read .*; fetch it again"
    ):
        read_examples(write(bytes(damaged)))
    text = json.dumps(dev2k, ensure_ascii=False)
    fails(
        write(text[:300_000]), "cut off: the JSON ends early, line 1, column 299955; fetch it again"
    )
    fails(
        write(re.sub("[^\x00-\xff]", "?", text).encode("latin-1")),
        "not UTF-8: byte 0xe9 at offset 3347 (line 1), probably Latin-1; save it as UTF-8 (iconv -f latin1 -t utf-8)",
    )


ARTICLE = {"title": "t", "paragraphs": [{"context": "a b", "qas": []}]}


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ({"data": [ARTICLE], "Data": []}, 'the file: has both "data" and "Data"'),
        ([{**ARTICLE, "Paragraphs": []}], 'has both "paragraphs" and "Paragraphs"'),
        ([{"context": "a", "CONTEXT": "b", "qas": []}], 'has both "context" and "CONTEXT"'),
        (
            [flat("a b", answers=[{"text": "a", "Text": "b", "answer_start": 0}])],
            '"text" and "Text"',
        ),
        ([flat("a b", answers={"text": ["a"], "TEXT": ["b"]})], 'has both "text" and "TEXT"'),
    ],
)
def test_a_key_twice_in_two_spellings_is_refused_at_every_level(write, document, says):
    with pytest.raises(UserError) as caught:
        read_examples(write(document))
    assert says in str(caught.value) and str(caught.value).endswith("; leave one out")


def test_answers_under_an_unknown_name_are_no_answers_whatever_the_flag_says(write):
    record = {**flat("a b"), "is_impossible": False, "gold": ["a"]}
    record.pop("answers", None)
    with pytest.raises(UserError, match='has no "answers", though "is_impossible" is false'):
        read_examples(write([record]))


# ---- where an answer stands, by hand ----


@pytest.mark.parametrize(
    ("context", "gold", "placed"),
    [
        ("a b", Gold("a", 0), Placed("a", 0)),
        ("a b", Gold(" a ", 0), Placed("a", 0)),
        ("x a b", Gold(" a", 1), Placed("a", 2)),
        ("a b", Gold("  ", 0), Placed("", -1)),
        ("a b", Gold("b"), Placed("b", 2)),  # no offset was stated, so none was wrong
        ("a b b", Gold("b"), Placed("b", -1)),
        ("a b", Gold("b", 1), Placed("b", 2, True)),
        ("a b", Gold("c", 1), Placed("c", -1)),
        ("\u201cElin Varga\u201d sat", Gold("elin-varga", 0), Placed("Elin Varga", 1, True)),
        ("Elin Varga", Gold("elin-varga", 0, 10), Placed("Elin Varga", 0)),
        ("x Elin Varga y", Gold("elin-varga", 1, 13), Placed("Elin Varga", 2)),
    ],
)
def test_an_answer_is_placed(context, gold, placed):
    assert place(context, gold) == placed


@pytest.mark.parametrize(
    ("context", "start", "nearest"),
    [
        ("cat  cat  cat", 6, 5),  # 1 and 4 away
        ("cat  cat  cat", 7, -1),  # 2 and 3
        ("cat   cat", 2, 0),  # 2 and 4: twice as far is far enough
        ("cat  cat", 2, -1),
        ("concat cat", 3, 7),  # inside a word it is no match
        ("dog", 0, -1),
        ("x" * 9 + " cat", 0, 10),
    ],
)
def test_the_nearest_place_must_be_clearly_so(context, start, nearest):
    assert clearly_nearest(context, "cat", start) == nearest


def test_what_is_far_is_not_near():
    context = "." * NEARBY + " cat " + "." * 3 * NEARBY
    place_of = NEARBY + 1
    assert clearly_nearest(context, "cat", place_of - NEARBY) == place_of
    assert clearly_nearest(context, "cat", place_of + NEARBY) == place_of
    assert clearly_nearest(context, "cat", place_of - NEARBY - 1) == -1
    assert clearly_nearest(context, "cat", place_of + NEARBY + 1) == -1


def test_the_unit_that_explains_most_is_the_files():
    smile = "\U0001f600"
    context = f"{smile} a b c"
    utf16 = [(context, Gold(letter, context.index(letter) + 1)) for letter in "abc"]
    plain = [(context, Gold(letter, context.index(letter))) for letter in "abc"]
    assert unit_of(plain) == CHARACTERS and unit_of(plain + utf16) == CHARACTERS
    assert unit_of(utf16) == unit_of(utf16 + plain[:2]) != CHARACTERS
    # What states no offset, or has no text, speaks for nothing.
    assert unit_of([*plain[:1], *[(context, Gold("a", -1))] * 9, *utf16[1:]]) == unit_of(utf16)
    assert unit_of([]) == unit_of([(context, Gold("a", -1)), (context, Gold(" ", 0))]) == CHARACTERS


def test_characters_are_counted_from_one_only_throughout_a_file():
    def shifted(count, sound=0):
        context = "x a b c d e"
        golds = [Gold(letter, context.index(letter) + 1) for letter in "abcde"[:count]]
        golds += [Gold("a", 2)] * sound
        return unit_of([(context, gold) for gold in golds])

    assert shifted(3) == FROM_ONE and shifted(2) == CHARACTERS  # two may be a slip
    assert shifted(5, sound=1) == CHARACTERS
    silent = [("x a b c", Gold("a", -1)), ("x a b c", Gold(" ", 0))]  # these say nothing of it
    said = [("x a b c", Gold(letter, place)) for letter, place in (("a", 3), ("b", 5), ("c", 7))]
    assert unit_of(said + silent) == FROM_ONE


def test_a_paragraph_may_count_in_a_unit_of_its_own():
    context = "\U0001f600 a b"
    other = unit_of([(context, Gold("a", 3))])
    assert other != CHARACTERS
    assert unit_of_paragraph(context, [Gold("a", 3), Gold("b", 5)], CHARACTERS) == other
    assert unit_of_paragraph(context, [Gold("a", 2), Gold("b", 4)], other) == CHARACTERS
    assert unit_of_paragraph(context, [Gold("a", 2), Gold("b", 5)], CHARACTERS) == CHARACTERS
    assert unit_of_paragraph(context, [Gold("a", 2), Gold("b", 5)], other) == other
    assert unit_of_paragraph(context, [Gold("a"), Gold("b", 5)], CHARACTERS) == other
    # Where both explain all answers, the file's unit decides.
    assert unit_of_paragraph("\U0001f600aaa", [Gold("a", 3)], other) == other
    assert unit_of_paragraph("\U0001f600aaa", [Gold("a", 3)], CHARACTERS) == CHARACTERS


@pytest.mark.parametrize(
    "first_and_last",
    [
        "\u0e01\u103f",
        "\u1780\u17b3",
        "\u1100\u11ff",
        "\uac00\ud7a3",
        "\u3041\u9fa5",
        "\uf900\ufad9",
        "\uff66\uff9d",
        "\U00020000\U0002a6d0",
    ],
)
def test_scripts_without_blanks_have_words_anywhere(first_and_last):
    for character in first_and_last:
        assert not inside_word(2 * character, 1), hex(ord(character))
    for letter in "a\u0416\u10a0\u1200\u05d0":
        assert inside_word(2 * letter, 1), hex(ord(letter))


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        ("1,000", [1, 2, 3, 4]),
        ("5.25", [1, 2, 3]),
        ("a.b", []),
        ("1. 2", []),
        ("a1", []),
        ("ab", [1]),
        (".5", []),
        ("5,", []),
    ],
)
def test_where_words_and_numbers_are_cut(text, inside):
    assert [place for place in range(-1, len(text) + 2) if inside_word(text, place)] == inside


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        ("  ", None),
        ("[1, NaN]", None),  # JSON, as pandas writes it
        ("array([1, 2], dtype=int32)", [1, 2]),
        ("{'text': array(['a' 'b'], dtype='<U9'), 'n': np.int64(3)}", {"text": ["a", "b"], "n": 3}),
        ("(1, -2.5, 1e3, True, None)", [1, -2.5, 1000.0, True, None]),
        ("b'a'", "a"),
        ("'two\nlines'", "two\nlines"),
    ],
)
def test_cells_as_python_and_numpy_print_them(cell, value):
    found = parse_printed("line 1", "answers", cell)
    assert found == value or cell == "[1, NaN]" and found[0] == 1


@pytest.mark.parametrize(
    "cell",
    [
        "np.int64",
        "array",
        "array(1, 2)",
        "array(1, dtype)",
        "array(1, 2=int)",
        "int64(3)",
        "[1] 2",
        "[1",
        "{1: 2}",
        "{'a': 1, 'a': 2}",
        "{'a'}",
        "]",
        "'a",
        "(" * 22 + ")" * 22,
    ],
)
def test_cells_that_nothing_prints(cell):
    with pytest.raises(
        UserError, match='^line 1: "answers" is neither JSON nor a Python literal: '
    ):
        parse_printed("line 1", "answers", cell)


def test_cells_that_were_cut():
    with pytest.raises(
        UserError, match='"answers" is cut: NumPy or pandas wrote "..." in the place'
    ):
        parse_printed("line 1", "answers", "['a' ... 'b']")
    assert parse_printed("line 1", "answers", "(" * 20 + ")" * 20)  # as deep as may be
