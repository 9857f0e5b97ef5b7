"""Small files in the shapes of public data sets and tools that are refused by name; test_shapes.py tries them."""

from shapes_read import CSV_HEADER, TEXT, csv, flat, hub, lines, qa, squad

HTML = {"html_answer_start": 3, "html_answer_text": "<b>", "text": "x", "answer_start": 3}
NQ = {
    "question_text": "when",
    "document_text": "x",
    "annotations": [{}],
    "long_answer_candidates": [],
}
CELL = "{'text': ['Dora Plum', ..., 'Plum'], 'answer_start': [45, ..., 50]}"

REFUSED = {
    "QuAC": (
        squad(qa("C_1_q#0", followup="y", yesno="x")),
        "is QuAC: a question only makes sense after",
    ),
    "QuAC's rows": (lines(flat(turn_ids=["x"], dialogue_id="d")), "is QuAC: "),
    "CoQA": (
        {"data": [{"story": "x", "questions": [{"input_text": "q"}], "answers": []}]},
        "is CoQA: a question only",
    ),
    "KorQuAD 2": (
        {"data": [{"context": "c", "raw_html": "<b>", "qas": [{"answer": HTML}]}]},
        "is KorQuAD 2: answers are pieces of web pages; use KorQuAD 1",
    ),
    "DROP": (
        {"nfl_1": {"passage": "x", "qa_pairs": []}, "nfl_2": {"passage": "y", "qa_pairs": []}},
        "is DROP: answers are numbers",
    ),
    "HotpotQA": (
        [
            {
                "_id": "5",
                "question": "q",
                "answer": "yes",
                "supporting_facts": [],
                "context": [["T", ["s"]]],
            }
        ],
        "is HotpotQA: the context is ten articles",
    ),
    "NewsQA's CSV": (
        csv("story_id,question,answer_char_ranges", "a", "q", "1:2"),
        "is NewsQA: answers are votes of annotators; use its file from MRQA's",
    ),
    "NewsQA": ({"data": [{"storyId": "a", "text": "x", "questions": [{"q": "q"}]}]}, "is NewsQA: "),
    "SearchQA": (
        lines({"question": "q", "answer": "a", "search_results": []}),
        "is SearchQA: answers have no place; use its file from MRQA's",
    ),
    "TriviaQA": (
        {"Data": [{"Question": "q", "QuestionSource": "s"}], "Domain": "Web"},
        "is TriviaQA: its texts are in other files; use its file from MRQA's",
    ),
    "TriviaQA's rows": (
        lines({"question": "q", "entity_pages": {}, "search_results": {}, "answer": {}}),
        "is TriviaQA: ",
    ),
    "Natural Questions": (
        lines(NQ, NQ),
        "is Natural Questions: answers are tokens of web pages; use its file from MRQA's",
    ),
    "NQ-open": (
        lines({"question": "q", "answer": ["a"]}, {"question": "r", "answer": ["a"]}),
        "is questions with answers alone (NQ-open): the texts that they are found in are missing",
    ),
    "DPR": (
        [{"question": "q", "answers": ["a"], "positive_ctxs": []}],
        "is a file of DPR's: the texts",
    ),
    "TechQA": (
        [{"QUESTION_ID": "T", "QUESTION_TEXT": "q", "DOC_IDS": []}],
        "is TechQA: its texts are in other files",
    ),
    "BioASQ": (
        {"questions": [{"body": "q", "snippets": [], "type": "yesno", "id": "1"}]},
        "is BioASQ: in the task's own form answers have no place; use BioASQ in SQuAD's form",
    ),
    "TyDi QA": (
        lines({"document_plaintext": "x", "question_text": "q", "annotations": []}),
        "is TyDi QA's primary task: texts are whole articles; use its GoldP file",
    ),
    "the Hub's MRQA rows": (
        lines(
            flat(
                subset="SQuAD",
                detected_answers={"text": ["x"], "char_spans": [{"start": [1], "end": [2]}]},
            )
        ),
        "is MRQA as the Hub's rows: to read it, use its file from MRQA's collection",
    ),
    "Haystack's labels": (
        [{"query": "q", "document": {"content": "x"}, "answer": {"answer": "x"}}],
        "is a file of Haystack's labels: export it in SQuAD's form",
    ),
    "pandas by column": (
        {"question": {"0": "q"}, "context": {"0": "c"}},
        'is a table by column (pandas): write df.to_json(FILE, orient="records")',
    ),
    "BoolQ": (
        lines({"question": "q", "passage": "p", "title": "t", "answer": True}),
        "is BoolQ: answers are no spans of the text; use SQuAD",
    ),
    "RACE": ([{"article": "a", "options": [], "questions": []}], "is RACE: answers are no spans"),
    "QASPER": ({"1503.0": {"full_text": [], "qas": []}}, "is QASPER: answers are spread over"),
    "DuoRC": (lines({"plot": "p", "question": "q", "answers": []}), "is DuoRC: answers have no"),
    "Label Studio": (
        [{"id": 1, "data": {"text": "x"}, "annotations": [{"result": []}]}],
        "is a file of Label Studio's: export it in SQuAD's form",
    ),
    "a row that does not fit": (
        {"columns": ["question", "context"], "data": [["q"]]},
        "data[0]: must be a list of 2 values, one for each column",
    ),
    "several splits": (
        {"train": [hub()], "dev": [hub()]},
        'holds several splits, "train", "dev"; save each to a file of its own',
    ),
    "a viewer's cut cells": (
        {"rows": [{"row": hub(), "truncated_cells": ["context"]}]},
        'rows[0]: the viewer has cut ["context"]; download the data set instead',
    ),
    "no context": (
        csv("id,question,answers", "1", "q", "[]"),
        'the CSV has no column "context"; its columns are "id", "question", "answers"',
    ),
    "neither": (
        csv("id,answer_text", "1", "q"),
        'the CSV has no column "question" and no "context"; its columns are "id", "answer_text"',
    ),
    "a column twice": (
        csv("id,question,context,answers,Answers", "1", "q", "c", "[]", "[]"),
        'the header has 2 columns "answers"; leave out all but one',
    ),
    "a key twice": (
        '{"data": [{"paragraphs": []}], "data": []}',
        'the key "data" stands twice in one object; leave one out',
    ),
    "a key in two spellings": (
        [{**hub(), "Question": "Why?"}],
        'records[0]: has both "question" and "Question"; leave one out',
    ),
    "cut by NumPy": (
        csv(CSV_HEADER, "1", "B", TEXT, "Who?", CELL),
        'line 2: "answers" is cut: NumPy or pandas wrote "..." in the place of values',
    ),
    "a set": (
        csv(CSV_HEADER, "1", "B", TEXT, "Who?", "{'a', 'b'}"),
        'line 2: "answers" is neither JSON nor a Python literal: ',
    ),
    "a tuple as a key": (
        csv(CSV_HEADER, "1", "B", TEXT, "Who?", "{('a', 'b'): 1}"),
        'line 2: "answers" is neither JSON nor a Python literal: ',
    ),
    "no answers": (
        lines(flat(label="Plum", answer_start=50)),
        'the only record: has neither "answers" nor "is_impossible", its keys are ["id", "question", "context", "label", "answer_start"]',
    ),
    "answers of one only": (
        lines(hub(), {k: v for k, v in hub("2").items() if k != "answers"}),
        'line 2: has neither "answers" nor "is_impossible"',
    ),
    "own names": (
        lines(flat(**{"Answer Text": "Plum"}), flat()),
        'line 1: has neither "answers" nor "is_impossible", its keys are ["id", "question", "context", "Answer Text"]',
    ),
    "an offset as text": (
        [flat(answers=[{"text": "x", "answer_start": "3"}])],
        'records[0].answers[0]: "answer_start" must be a whole number, not "3"',
    ),
    "some ids": (
        [{k: v for k, v in hub().items() if k != "id"}, hub()],
        "records[1]: has an id, but records[0] has none; give all an id, or none",
    ),
    "ids missing": (
        [hub(), {k: v for k, v in hub().items() if k != "id"}],
        'records[1]: has no "id", its keys are ',
    ),
    "a Git LFS pointer": (
        "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 45\n",
        "is a Git LFS pointer",
    ),
}
