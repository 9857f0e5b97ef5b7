"""Small files in the shapes of public data sets and tools that are read, texts of our own; test_shapes.py reads them."""

import json

TEXT = "The Kettle Bridge was opened in June 1911 by Dora Plum."
DORA = [("Dora Plum", 45)]
JUNE = [("June 1911", 32)]


def lines(*records) -> str:
    return "\n".join(json.dumps(record, ensure_ascii=False) for record in records)


def qa(id="1", **more) -> dict:
    answers = [{"text": "Dora Plum", "answer_start": 45}]
    return {"id": id, "question": "Who?", "answers": answers, **more}


def squad(*questions, context=TEXT, **paragraph) -> dict:
    paragraphs = [{"context": context, "qas": list(questions), **paragraph}]
    return {"version": "1.1", "data": [{"title": "Bridge", "paragraphs": paragraphs}]}


def flat(**more) -> dict:
    return {"id": "1", "question": "Who?", "context": TEXT, **more}


def hub(id="1", text="Dora Plum", start=45) -> dict:
    """A row of a data set on the Hub."""
    return flat(id=id, title="B", answers={"text": [text], "answer_start": [start]})


def mrqa(text, span, context=TEXT, accepted=()) -> str:
    found = {"text": text, "char_spans": [span], "token_spans": [[0, 1]]}
    question = {"qid": "q", "question": "Who?", "question_tokens": [], "detected_answers": [found]}
    question["answers"] = [text, *accepted]
    entry = {"id": "", "context": context, "context_tokens": [], "qas": [question]}
    return lines({"header": {"dataset": "X", "split": "dev"}}, entry)


def csv(header, *cells) -> str:
    quoted = ",".join('"' + cell.replace('"', '""') + '"' for cell in cells)
    return f"{header}\n{quoted}\n"


CSV_HEADER = "id,title,context,question,answers"
CHINESE = "青石桥建于一九一一年，桥长九十二米。"

READ = {
    "SQuAD 1.1": (squad(qa()), [DORA]),
    "SQuAD 2.0": (
        squad(qa(is_impossible=False), {**qa("2"), "answers": [], "is_impossible": True}),
        [DORA, []],
    ),
    "XQuAD": (squad(qa()), [DORA]),
    "MLQA": (squad(qa()), [DORA]),
    "AdversarialQA": (squad(qa()), [DORA]),
    "SQuADShifts": (squad(qa(is_impossible=False)), [DORA]),
    "TyDi QA GoldP": (squad(qa("english-1-0")), [DORA]),
    "FQuAD": (squad(qa(), context=TEXT), [DORA]),
    "SberQuAD": (squad(qa(62310)), [DORA]),
    "ARCD": (squad(qa("969331847966")), [DORA]),
    "KorQuAD 1": (squad(qa("6566495-0-0")), [DORA]),
    "JaQuAD": (squad(qa(question_type="x")), [DORA]),
    "GermanQuAD": (
        squad(
            qa(
                51870,
                answers=[{"answer_id": 3, "document_id": 4, "text": "1911", "answer_start": 37}],
            )
        ),
        [[("1911", 37)]],
    ),
    "CMRC 2018": (
        [
            {
                "context_id": "T1",
                "context_text": CHINESE,
                "qas": [
                    {"query_text": "多长？", "query_id": "T1_0", "answers": ["九十二米", "92米"]}
                ],
                "title": "桥",
            }
        ],
        [[("九十二米", 13), ("92米", -1)]],
    ),
    "DuReader robust": (squad(qa(), title=""), [DORA]),
    "PolicyQA": (squad(qa(type="x"), summary="First Party"), [DORA]),
    "COVID-QA": (
        {"data": [{"paragraphs": [{"qas": [qa(262)], "context": TEXT, "document_id": 630}]}]},
        [DORA],
    ),
    "CUAD": (
        squad(
            qa("OLDEN__Parties", is_impossible=False),
            qa("OLDEN__Cap", answers=[], is_impossible=True),
        ),
        [DORA, []],
    ),
    "BioASQ (SQuAD's form)": (squad(qa("5503_001")), [DORA]),
    "MRQA": (mrqa("Dora Plum", [45, 53], accepted=["Plum"]), [[("Dora Plum", 45), ("Plum", 50)]]),
    "SubjQA": (
        csv(
            "item_id,question,review,human_ans_spans,human_ans_indices,q_review_id",
            *(
                "B00",
                "How is the bass?",
                "the bass is deep and deep. ANSWERNOTFOUND",
                "deep",
                "(21, 25)",
                "qr1",
            ),
        ),
        [[("deep", 21)]],
    ),
    "rows of the Hub (to_json)": (lines(hub(), hub("2", "June 1911", 32)), [DORA, JUNE]),
    "rows of the Hub (to_csv)": (
        csv(
            CSV_HEADER,
            "1",
            "B",
            TEXT,
            "Who?",
            "{'text': array(['Dora Plum'], dtype=object), 'answer_start': array([45])}",
        ),
        [DORA],
    ),
    "SimpleTransformers": ([{"context": TEXT, "qas": [qa("00001", is_impossible=False)]}], [DORA]),
    "Haystack's annotation tool": (
        {"data": [{"paragraphs": [{"qas": [qa(400)], "context": TEXT, "document_id": 7}]}]},
        [DORA],
    ),
    # what no row of DATA_SETS.md names
    "SberQuAD's CSV": (
        csv(
            "paragraph_id,question_id,paragraph,question,answer",
            "7",
            "9",
            TEXT,
            "Who?",
            "Dora Plum",
        ),
        [DORA],
    ),
    "SubjQA, no answer": (
        csv(
            "question,review,human_ans_spans,human_ans_indices,q_review_id",
            *("How?", "It fits. ANSWERNOTFOUND", "ANSWERNOTFOUND", "(9, 23)", "qr2"),
        ),
        [[]],
    ),
    "one article": (squad(qa())["data"][0], [DORA]),
    "a list of articles": (squad(qa())["data"], [DORA]),
    "an article a line": (lines(*squad(qa())["data"], *squad(qa("2"))["data"]), [DORA, DORA]),
    "one paragraph": ({"context": TEXT, "qas": [qa()]}, [DORA]),
    "a paragraph a line": (
        lines({"context": TEXT, "qas": [qa()]}, {"context": TEXT, "qas": [qa("2")]}),
        [DORA, DORA],
    ),
    "paragraphs under data": ({"data": [{"context": TEXT, "qas": [qa()]}]}, [DORA]),
    "Haystack's feedback": (
        {"export": [{"paragraphs": [{"context": TEXT, "qas": [qa(1)]}]}]},
        [DORA],
    ),
    "the Hub's viewer": (
        {"features": [], "rows": [{"row_idx": 0, "row": hub(), "truncated_cells": []}]},
        [DORA],
    ),
    "a split": ({"train": [hub()], "validation": []}, [DORA]),
    "pandas by index": ({"0": hub(), "1": hub("2", "June 1911", 32)}, [DORA, JUNE]),
    "pandas split": (
        {
            "columns": ["id", "question", "context", "answers"],
            "index": [0],
            "data": [["1", "Who?", TEXT, {"text": ["Dora Plum"], "answer_start": [45]}]],
        },
        [DORA],
    ),
    "texts alone": (
        lines(flat(answers=["Dora Plum", "Plum"]), flat(id="2", answers=[])),
        [[("Dora Plum", 45), ("Plum", 50)], []],
    ),
    "single values": ([flat(answers={"text": "1911", "answer_start": 37})], [[("1911", 37)]]),
    "printed in JSONL": (
        lines(flat(answers="{'text': ['Dora Plum'], 'answer_start': [45]}")),
        [DORA],
    ),
    "flattened": (
        lines(flat(**{"answers.text": ["Dora Plum"], "answers.answer_start": [45]})),
        [DORA],
    ),
    "flattened and printed": (
        csv(
            "id,context,question,answers.text,answers.answer_start",
            "1",
            TEXT,
            "Who?",
            "['Dora Plum' 'Plum']",
            "[45 50]",
        ),
        [[("Dora Plum", 45), ("Plum", 50)]],
    ),
    "flattened, none": (
        csv("id,context,question,answers.text,answers.answer_start", "1", TEXT, "Who?", "[]", "[]"),
        [[]],
    ),
    "annotation tools": (
        [flat(id=11, answers=[{"start": 45, "end": 54, "text": "Dora Plum", "labels": ["A"]}])],
        [DORA],
    ),
    "start_offset": ([flat(answers=[{"start_offset": 45, "text": "Dora Plum"}])], [DORA]),
    "answer_offset": ([flat(answer_text="Dora Plum", answer_offset=45)], [DORA]),
    "guid": ([{**hub(), "guid": "x", "id": 5}, {**hub(), "id": 6}], [DORA, DORA]),
    "no ids": (
        lines(*({k: v for k, v in hub().items() if k != "id"} for _ in range(3))),
        [DORA] * 3,
    ),
    "np.int64": (
        csv(
            CSV_HEADER,
            "1",
            "B",
            TEXT,
            "Who?",
            "[{'text': np.str_('Dora Plum'), 'answer_start': np.int64(45)}]",
        ),
        [DORA],
    ),
    "arrays in arrays": (
        csv(
            CSV_HEADER,
            *("1", "B", TEXT, "Who?"),
            "{'text': array([array(['Dora Plum'], dtype=object)],\n      dtype=object), "
            "'answer_start': array([array([45], dtype=int32)], dtype=object)}",
        ),
        [DORA],
    ),
    "no commas": (
        csv(
            CSV_HEADER,
            "1",
            "B",
            TEXT,
            "Who?",
            "[{'answer_start': 45, 'text': 'Dora Plum'} {'answer_start': 50, 'text': 'Plum'}]",
        ),
        [[("Dora Plum", 45), ("Plum", 50)]],
    ),
    "a list as MRQA's header": (
        mrqa("Dora Plum", [45, 53]).replace(
            '{"header": {"dataset": "X", "split": "dev"}}', '[{"header": {}}]'
        ),
        [DORA],
    ),
    "MRQA with another spelling": (
        mrqa("GFN signature", [4, 16], "the GFN-signature here"),
        [[("GFN-signature", 4), ("GFN signature", -1)]],
    ),
    "MRQA with ends behind": (mrqa("Dora Plum", [45, 54]), [DORA]),
    "pandas' floats": (
        csv(
            "id,question,context,answer_text,answer_start,is_impossible",
            "1",
            "Who?",
            TEXT,
            "Dora Plum",
            "45.0",
            "0.0",
        ),
        [DORA],
    ),
    "pandas' floats in JSONL": (
        '{"id": "1", "question": "Why?", "context": "c", "answer_text": NaN, "answer_start": NaN, "is_impossible": 1.0}',
        [[]],
    ),
}
