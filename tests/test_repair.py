"""Broken records gathered by the doctor, and what --fix makes of them."""

import json

import pytest

from bertqa.data.examples import read_examples
from bertqa.doctor import main
from bertqa.errors import UserError

CONTEXT = (
    "The pier at Dunmore was built by Elin Varga in 1904. It burned down twice, once in winter."
)


def question(id, **changes):
    answers = {"text": ["Elin Varga"], "answer_start": [33]}
    record = {"id": id, "question": "Who?", "context": CONTEXT, "answers": answers, **changes}
    return {key: value for key, value in record.items() if value != "absent"}


def test_all_structural_faults_are_listed_and_left_out(tmp_path, capsys):
    sick, fixed = tmp_path / "sick.json", tmp_path / "fixed.json"
    records = [
        question("0"),
        question("1", question=None),
        question("2", answers={"text": ["Elin Varga"], "answer_start": ["33"]}),
        question("0"),
        question("5", context=None),
        question("6", answers="absent"),
        7,
        question("8", is_impossible="perhaps"),
    ]
    sick.write_text(json.dumps(records))
    assert main([str(sick), "--json", "--fix", str(fixed)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["faults"] == [
        'records[1]: "question" must be text, not null',
        'records[2].answers[0]: "answer_start" must be a whole number, not "33"',
        'records[3]: id "0" was used by records[0]; make every id unique',
        'records[4]: "context" must be text, not null',
        'records[5]: has neither "answers" nor "is_impossible", its keys are ["id", "question", '
        '"context"]; a question without an answer says "answers": []',
        "records[6]: must be an object, not 7",
        'records[7]: "is_impossible" must be true or false, not "perhaps"',
    ]
    assert report["questions"] == 1 and report["fixed"]["broken_left_out"] == 7
    assert [example.id for example in read_examples(fixed).examples] == ["0"]
    assert main([str(sick), "--explain", "9"]) == 0
    shown = capsys.readouterr().out
    assert "broken records" in shown and all(fault[:60] in shown for fault in report["faults"])


def test_faults_inside_articles_hide_nothing_behind_them(tmp_path):
    good = {"context": CONTEXT, "qas": [{"id": "1", "question": "Who?", "answers": []}]}
    other = {"context": CONTEXT, "qas": [3, {"id": "2", "question": "Who?", "answers": []}]}
    articles = [
        {"title": "a", "paragraphs": [{"context": 5, "qas": []}, {"context": "c"}, good]},
        {"title": 1.5, "paragraphs": []},
        {"title": "b"},
        {"title": "c", "paragraphs": [other]},
    ]
    path = tmp_path / "sick.json"
    path.write_text(json.dumps({"data": articles}))
    data = read_examples(path, gather=True)
    assert [example.id for example in data.examples] == ["1", "2"]
    assert [fault.split(":")[0] for fault in data.faults] == [
        "data[0].paragraphs[0]",
        "data[0].paragraphs[1]",
        "data[1]",
        "data[2]",
        "data[3].paragraphs[0].qas[0]",
    ]


def test_lines_that_are_no_json_are_faults_of_their_own(tmp_path):
    path = tmp_path / "sick.jsonl"
    path.write_text(
        "\n".join([json.dumps(question("0")), "{oops", json.dumps(question("2")), '{"id": 3'])
    )
    data = read_examples(path, gather=True)
    assert [example.id for example in data.examples] == ["0", "2"]
    assert [fault.split(",")[0] for fault in data.faults] == [
        "not JSON: line 2",
        "cut off: the JSON ends early",
    ]
    with pytest.raises(UserError, match="not JSON: line 2, column 2"):
        read_examples(path)


def test_where_not_one_question_is_whole_the_doctor_refuses_too(tmp_path):
    path = tmp_path / "sick.jsonl"
    records = [question(str(n), answers="absent", Answers=[]) for n in range(3)]
    path.write_text("\n".join(map(json.dumps, records)))
    with pytest.raises(UserError) as caught:
        main([str(path)])
    assert str(caught.value) == (
        f'{path}: not one question is whole: line 1: has neither "answers" nor "is_impossible", its '
        'keys are ["id", "question", "context", "Answers"]; a question without an answer says '
        '"answers": [] (and 2 more)'
    )


def test_fix_renames_repeated_ids(tmp_path, capsys):
    sick, fixed = tmp_path / "sick.json", tmp_path / "fixed.json"
    records = [
        question("a"),
        question("a", question="Who built it?"),
        question("a"),  # the first over again
        question("a-2", question="Whose?"),
        question("a", question="By whom?"),
        question("a", question="How?", answers=["by hand"]),  # cannot be trained on
    ]
    sick.write_text(json.dumps(records))
    assert main([str(sick), "--fix", str(fixed)]) == 0
    assert "4 questions, 0 offsets repaired, 2 repeated ids made unique; left out: 2 broken" in (
        capsys.readouterr().out
    )
    found = {example.id: example.question for example in read_examples(fixed).examples}
    assert found == {"a": "Who?", "a-2": "Whose?", "a-3": "Who built it?", "a-4": "By whom?"}
