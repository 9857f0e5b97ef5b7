"""The small files of ../shared/cases, each with what must come of it; without that folder the tests are skipped.

What they show is also in the tests of its room, so nothing is lost where the folder is not.
"""

from pathlib import Path

import numpy as np
import pytest

from bertqa.data.examples import read_examples
from bertqa.data.labelled_texts import read_texts
from bertqa.data.tokenizer import WordPiece
from bertqa.data.windows import build_windows
from bertqa.data.writing import write_repaired
from bertqa.errors import UserError
from bertqa.files import read_text
from bertqa.qa.ceiling import place, views

ROOT = Path(__file__).resolve().parents[1]
MRQA = "use its file from MRQA's collection (mrqa/MRQA-Shared-Task-2019)"
NOTHING_SAID = 'has neither "answers" nor "is_impossible", its keys are '

REFUSED = {
    "answer_start_str.json": '"answer_start" must be a whole number, not "0"',
    "answers_partly.jsonl": f"line 2: {NOTHING_SAID}",
    "bioasq_b.json": "is BioASQ: in the task's own form answers have no place; use BioASQ in SQuAD's form",
    "coqa.json": "is CoQA: a question only makes sense after the turns before it",
    "drop.json": f"is DROP: answers are numbers and dates, no spans; {MRQA}",
    "dup_ids.json": 'id "55_1" was used by data[0].paragraphs[0].qas[0]; make every id unique',
    "dureader_robust_test.json": f"data[0].paragraphs[0].qas[0]: {NOTHING_SAID}",
    "flat_answer_start_end.jsonl": '"label", "answer_start"]; a question without an answer says',
    "flat_odd_column.csv": 'unknown key "answer"; write "answers", or "answer_text" and "answer_start"',
    "flat_text_column.csv": '"text", "answer_start"]; a question without an answer says',
    "hf_mrqa_rows.jsonl": f"is MRQA as the Hub's rows: to read it, {MRQA}",
    "hotpot_hf_rows.jsonl": f"is HotpotQA: the context is ten articles, some answers yes or no; {MRQA}",
    "hotpot_original.json": f"is HotpotQA: the context is ten articles, some answers yes or no; {MRQA}",
    "mrqa_header_only.jsonl": "has no questions in it, though its shape is right (mrqa)",
    "newsqa_combined.csv": f"is NewsQA: answers are votes of annotators; {MRQA}",
    "newsqa_combined.json": f"is NewsQA: answers are votes of annotators; {MRQA}",
    "nq_dpr.json": "is a file of DPR's: the texts that they are found in are missing",
    "nq_open.jsonl": "is questions with answers alone (NQ-open): the texts that they are found in are missing",
    "nq_original.jsonl": f"is Natural Questions: answers are tokens of web pages; {MRQA}",
    "nq_simplified.jsonl": f"is Natural Questions: answers are tokens of web pages; {MRQA}",
    "pandas_columns.json": 'is a table by column (pandas): write df.to_json(FILE, orient="records")',
    "quac.json": "is QuAC: a question only makes sense after the turns before it",
    "techqa.json": "is TechQA: its texts are in other files; use SQuAD",
    "tydiqa_primary.jsonl": "is TyDi QA's primary task: texts are whole articles; use its GoldP file",
    "../12-answers-twice.csv": 'the header has 2 columns "answers"; leave out all but one',
    "../13-no-answers-key.json": f"records[0]: {NOTHING_SAID}",
    "../13-unknown-answers-key.jsonl": f'line 1: {NOTHING_SAID}["id", "question", "context", "Answers"]',
    "../17-lfs-data.json": "is a Git LFS pointer: the file itself was not fetched; run git lfs pull",
    "../22-four-faults.json": 'records[1]: "question" must be text, not null',
    "../32-cp1252.jsonl": "probably Windows-1252; save it as UTF-8 (iconv -f windows-1252 -t utf-8)",
}

READ = {
    "cmrc2018_trial.json": [
        [("工程师陆明", 26), ("陆明", 29), ("陆明", 29)],
        [("九十二米", 20), ("九十二米", 20), ("92米", -1)],
    ],
    "dureader_checklist.json": [[("一九一一年", 5)], []],
    "flat_answer_strings.jsonl": [[("Dora Plum", 45), ("Plum", 50)], [("June 1911", 32)], []],
    "hf_to_csv_array.csv": [[("Dora Plum", 45), ("Plum", 50)], [("June 1911", 32)], []],
    "hf_to_csv_arrayofdict.csv": [[("Dora Plum", 45), ("Plum", 50)], [("June 1911", 32)], []],
    "hf_to_csv_listdict.csv": [[("Dora Plum", 45)], [("June 1911", 32)], []],
    "hf_to_csv_nparray.csv": [[("Dora Plum", 45), ("Plum", 50)], [("June 1911", 32)], []],
    "mrqa_hyphen.jsonl": [
        [("early-life training", 19), ("early- life training", -1)],
        [("GFN-signature", 47), ("GFN signature", -1)],
    ],
    "mrqa_impossible.jsonl": [[], [("Ilsé Kron", 12)], [("Nowhere", -1)]],
    "mrqa_searchqa.jsonl": [[("red clover", 35)]],
    "squad_byte_offsets.json": [[("Kron", 38)]],
    "subjqa_original.csv": [[("the bass is deep", 25)], []],
    "subjqa_pandas_flat.csv": [
        [("the bass is deep", 25), ("deep", 37)],
        [("about nine hours", 57)],
        [],
    ],
    "../10-one-paragraph.json": [[("Elin Varga", 33)]],
    "../10-paragraphs-under-data.json": [[("Elin Varga", 33)]],
    "../10-simpletransformers.json": [[("Elin Varga", 33)], []],
    "../11-no-id.csv": [[("Elin Varga", 33)]],
    "../11-sep-line.csv": [[("Elin Varga", 33)]],
    "../23-float-impossible.csv": [[("Elin Varga", 33)], []],
    "../25-no-ids.json": [[("Elin Varga", 33)], [("1904", 47)]],
    "../29-inside-a-word.json": [
        *([(word, -1)] for word in ("5", "no", "art", "us", "he")),
        *([("Okoro", 815)], [("大学", 2)]),
    ],
    "../30-utf16-offsets.json": [[("3", 19)], [("Ola", 9)], [("12", 41)], [("Varde", 19)]],
    "../34-start-end.json": [[("3", 11)], [("Holm", 50)]],
}


@pytest.fixture
def shapes(shared):
    return shared / "cases" / "shapes"


def answers(data):
    pairs = [zip(e.answer_texts, e.answer_starts, strict=True) for e in data.examples]
    return [list(pair) for pair in pairs]


def test_every_shape_is_read_right_or_refused_by_name(shapes):
    for path in sorted(shapes.iterdir()):
        if path.name in REFUSED:
            continue
        data = read_examples(path)
        if path.name in READ:
            assert answers(data) == READ[path.name], path.name
            continue
        assert data.examples and data.repaired == 0
        for example in data.examples:
            found = dict(zip(example.answer_texts, example.answer_starts, strict=True))
            for text, start in found.items():
                assert start < 0 or example.context.startswith(text, start), path.name
        assert [r.reason for r in data.rejected if '"yes"' not in r.reason] == [], path.name


@pytest.mark.parametrize("name", REFUSED)
def test_refused(shapes, name):
    with pytest.raises(UserError) as caught:
        read_examples(shapes / name)
    assert REFUSED[name] in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", READ)
def test_read(shapes, name):
    assert answers(read_examples(shapes / name)) == READ[name]


def test_whole_characters(shapes):
    """Case 07: no answer is lost to the bundled reader's vocabulary, which drops accents and vowel signs."""
    examples = read_examples(shapes / "../07-combining-end.json").examples
    windows = build_windows(examples, WordPiece.load(ROOT / "weights" / "minilm-squad2"))
    assert windows.unlabelled == ()
    for example, view in zip(examples, views(windows), strict=True):
        assert [answer.fault for answer in place(example, view, 30)] == [""]
    starts = windows.contexts.rows[:-1] + windows.start_label - windows.questions.counts - 2
    ends = windows.contexts.rows[:-1] + windows.end_label - windows.questions.counts - 2
    cut = [
        example.context[windows.contexts.starts[a] : windows.contexts.ends[b]]
        for example, a, b in zip(examples, starts, ends, strict=True)
    ]
    assert cut == [example.answer_texts[0] for example in examples]
    assert np.all(windows.start_label > 0)


def test_other_forms_of_a_text(shapes):
    data = read_examples(shapes / "../08-form-differs.json")
    assert (data.repaired, data.rejected) == (8, [])
    assert [example.answer_starts for example in data.examples] == [*[(22,)] * 6, (16,), (22,)]


def test_four_faults(shapes, tmp_path):
    data = read_examples(shapes / "../22-four-faults.json", gather=True)
    assert [fault.split(":")[0].split(".")[0] for fault in data.faults] == [
        *("records[1]", "records[3]", "records[4]", "records[5]")
    ]
    write_repaired(data, tmp_path / "fixed.json")
    fixed = read_examples(tmp_path / "fixed.json")
    assert [example.id for example in fixed.examples] == ["0", "2"]


def test_texts_and_labels(shapes):
    cases = shapes.parent
    floats = read_texts(cases / "23-float-labels.csv", "text", label_column="label")
    whole = read_texts(cases / "23-int-labels.csv", "text", label_column="label")
    assert floats.labels == ["1", "0", "1", "0"] and whole.labels == ["1", "0"]
    assert read_texts(cases / "24-words.txt").texts == ["text", "image", "sound"]
    assert len(read_texts(cases / "24-sentences.txt")) == 2
    text = read_text(cases / "19-crlf-bom.txt")
    assert text.startswith("The pier.\r\nIt was built\r\nby Elin Varga")
