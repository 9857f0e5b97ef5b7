"""What the doctor finds, what it allows as a ceiling, and what it writes: hand-made data first, then real SQuAD."""

import gzip
import json
import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertqa import doctor
from bertqa.console import say
from bertqa.data.characters import beginnings
from bertqa.data.examples import Example, read_examples
from bertqa.data.tokenizer import WordPiece
from bertqa.data.windows import build_windows
from bertqa.errors import UserError
from bertqa.qa.agreement import normalise_answer, token_f1
from bertqa.qa.ceiling import place, search, views
from bertqa.qa.checkup import percentiles, token_report
from bertqa.reporting.doctor_text import marked, marks_for

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *"abcdefghij",
    *"?.-東京",
    "who",
    "the",
    "##b",
    "##c",
]
PANDAS = "The red panda lives in Nepal. It eats bamboo, and it sleeps."


def make_vocabulary(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    return folder


@pytest.fixture
def weights(tmp_path) -> Path:
    return make_vocabulary(tmp_path / "vocabulary")


@pytest.fixture(autouse=True)
def no_bundled_reader(tmp_path, monkeypatch):
    """The answers below must not depend on whether the repository has its reader."""
    monkeypatch.setattr("bertqa.doctor.bundled_reader", lambda: str(tmp_path / "absent"))


def question(id, text, *answers, **more):
    """A SQuAD question; an answer is (text, offset)."""
    return {
        "id": id,
        "question": text,
        "answers": [{"text": t, "answer_start": s} for t, s in answers],
        **more,
    }


def write(path: Path, *paragraphs, title="Pandas") -> Path:
    entries = [{"context": context, "qas": questions} for context, questions in paragraphs]
    path.write_text(
        json.dumps({"version": "v2.0", "data": [{"title": title, "paragraphs": entries}]})
    )
    return path


def report(capsys, *argv) -> dict:
    assert doctor.main([*map(str, argv), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def table(capsys, *argv) -> str:
    assert doctor.main([*map(str, argv)]) == 0
    return capsys.readouterr().out


@pytest.fixture
def sick(tmp_path) -> Path:
    """Six questions: fine, repaired, rejected, asked again and contradicting itself."""
    return write(
        tmp_path / "sick.json",
        (
            PANDAS,
            [
                question("fine", "Where does it live?", ("Nepal", 23), ("in Nepal", 20)),
                question("shifted", "What does it eat?", ("bamboo", 40), ("bamboo shoots", 38)),
                question("lost", "What does it drink?", ("water", 3)),
                question("again", "WHAT does it  eat", ("panda", 8)),
                question("none", "Who is it?", is_impossible=True),
                question("some", "who is it ?", ("panda", 8), is_impossible=False),
            ],
        ),
        ("Bears.", [question("bears", "Who is it?", ("Bears", 0))]),
    )


# ---- the report ----


def test_counts_offsets_repeats_and_contradictions(sick, capsys):
    found = report(capsys, sick)
    assert {
        name: found[name]
        for name in ("version", "questions", "impossible", "paragraphs", "articles")
    } == {"version": "2.0", "questions": 7, "impossible": 1, "paragraphs": 2, "articles": 1}
    assert found["answers_per_question"] == {"0": 1, "1": 4, "2": 2}
    assert (found["repaired"], found["unplaced_answers"]) == (1, 2)
    assert found["rejected"] == [
        {"id": "lost", "reason": 'the answer "water" does not occur in the context'}
    ]
    assert found["duplicates"] == [
        ["shifted", "again"],
        ["none", "some"],
    ]  # not "bears": another paragraph
    assert found["contradictions"] == [
        {"ids": ["shifted", "again"], "kind": "different answers"},
        {"ids": ["none", "some"], "kind": "answerable and impossible"},
    ]
    assert "settings" not in found and "ceiling" not in found and "overlap" not in found


def test_the_table_is_short_aligned_and_says_what_is_left_out(sick, weights, capsys):
    text = table(capsys, sick)
    assert (
        "Tokens, windows and the ceiling are left out: they need a vocabulary. Give --weights FOLDER."
        in text
    )
    text = table(capsys, sick, sick, "--weights", weights)
    lines = text.splitlines()
    assert (
        max(map(len, [row for row in lines if str(sick) not in row and str(weights) not in row]))
        <= 100
    )
    numbers = {
        row[:26].strip(): row[26:36] for row in lines if row[:1].isalpha() and "/" not in row
    }
    assert (
        numbers["questions rejected"] == "         1" and numbers["contradictions"] == "         2"
    )
    assert "  1 x an answer does not occur in the context" in lines
    assert (
        "  shifted again   different answers" in lines
        and "  none some   answerable and impossible" in lines
    )
    assert "they need a vocabulary" not in text


def test_a_file_without_a_single_answer(tmp_path, weights, capsys):
    path = write(tmp_path / "none.json", ("a b", [question("q", "who?")]), title="")
    found = report(capsys, path, "--weights", weights)
    assert (
        found["ceiling"]["figures"]["exact"] == 100.0
        and "answer" not in found["tokens"]
        and found["articles"] == 0
    )
    assert "answers                            0\n" in table(capsys, path, "--weights", weights)


def test_overlap_of_two_files(tmp_path, capsys):
    train = write(
        tmp_path / "train.json",
        (PANDAS, [question("1", "Where?", ("Nepal", 23)), question("2", "Who?")]),
        ("Bears.", [question("3", "What is it?")]),
    )
    dev = write(
        tmp_path / "dev.json",
        (PANDAS.replace(" It", "  It"), [question("9", "where", ("Nepal", 23))]),
        ("Cats.", [question("3", "Who?")]),
        title="Cats",
    )
    assert report(capsys, train, dev)["overlap"] == {
        "file": str(dev),
        "questions_in_it": 2,
        "articles": 0,
        "paragraphs": 1,
        "questions_on_them": 2,
        "ids": ["3"],
        "questions": ["1", "2"],
        "questions_and_paragraphs": ["1"],
    }
    assert "2 questions are about them" in table(capsys, train, dev)


# ---- windows and the ceiling ----


def test_tokens_windows_and_every_fault(tmp_path, weights, capsys):
    # a b ##c c d e f g h i j a - b, 14 tokens; questions of 2 leave room for 6: [0..5] [4..9] [8..13]
    path = write(
        tmp_path / "data.json",
        (
            "a bc c d e f g h i j a-b",
            [
                question("exact", "who?", ("c d", 5)),
                question("inside", "who?", ("b", 2)),
                question("long", "who ?", ("d e f g", 7), ("d e f", 7)),
                question("wide", "who? who", ("bc c d e f g h", 2)),
                question("lost", "who?", ("zebra", 5)),
                question("none", "a who?", is_impossible=True),
            ],
        ),
    )
    found = report(
        capsys,
        path,
        "--weights",
        weights,
        "--max-length",
        11,
        "--overlap",
        2,
        "--max-question",
        2,
        "--max-answer-length",
        3,
    )
    assert found["settings"] == {
        "max_length": 11,
        "overlap": 2,
        "max_question": 2,
        "max_answer_length": 3,
    }
    assert found["tokens"]["paragraph"] == {
        "least": 14,
        "median": 14,
        "90 %": 14,
        "99 %": 14,
        "most": 14,
    }
    assert found["windows"]["count"] == 18 and found["windows"]["questions_with_several"] == 6
    assert found["windows"]["filled"] == 1.0 and found["questions_cut"] == 2
    faulty = {
        name: [(answer["id"], answer["tokens"]) for answer in answers]
        for name, answers in found["answers"]["faulty"].items()
        if answers
    }
    assert faulty == {
        "too many tokens": [("long", 4)],
        "in no window": [("wide", 8)],
        "not found in its paragraph": [("lost", 0)],
    }
    ceiling = found["ceiling"]
    assert ceiling["rules"] == "v2.0" and {
        entry["id"]: entry["best"] for entry in ceiling["below"]
    } == {"wide": "c d e", "lost": ""}
    # exact: 4 of 6; wide: "c d e" is 3 words of 7 -> precision 1, recall 3/7, F1 0.6; "bc c" is 3 tokens, but 2 words
    assert ceiling["figures"]["exact"] == pytest.approx(400 / 6) and ceiling["figures"][
        "f1"
    ] == pytest.approx(460 / 6)


def test_a_word_that_is_one_token_cannot_be_cut(tmp_path, weights, capsys):
    path = write(
        tmp_path / "data.json",
        (
            "who the ab bc",
            [question("half", "who?", ("wh", 0)), question("article", "who?", ("e ab", 6))],
        ),
    )
    found = report(capsys, path, "--weights", weights)
    faulty = found["answers"]["faulty"]["not on token boundaries"]
    assert [(answer["answer"], answer["nearest"]) for answer in faulty] == [
        ("wh", "who"),
        ("e ab", "the ab"),
    ]
    assert [(entry["id"], entry["best"], entry["f1"]) for entry in found["ceiling"]["below"]] == [
        ("half", "", 0.0),
        ("article", "ab", pytest.approx(200 / 3)),
    ]
    assert '"wh": tokens can only give "who"' in table(capsys, path, "--weights", weights)


def test_v1_data_are_scored_by_v1_rules(tmp_path, weights, capsys):
    data = {
        "data": [
            {"paragraphs": [{"context": "the a b", "qas": [question("q", "who?", ("the", 0))]}]}
        ]
    }
    (tmp_path / "v1.json").write_text(json.dumps(data))
    ceiling = report(capsys, tmp_path / "v1.json", "--weights", weights)["ceiling"]
    assert ceiling == {"rules": "v1.1", "figures": {"exact_match": 100.0, "f1": 0.0}, "below": []}


def brute_force(context, view, golds, most, v1):
    """(EM, F1) of the best of all spans, without any shortcut."""
    texts = [
        context[view.starts[i] : view.ends[j]]
        for first, stop in zip(view.first, view.stop, strict=True)
        for i in range(first, stop)
        for j in range(i, min(i + most, stop))
    ]
    guesses = [normalise_answer(text) for text in ("", *texts)]
    return max(
        (int(guess in golds), max(token_f1(gold.split(), guess.split(), v1) for gold in golds))
        for guess in guesses
    )


pieces = st.sampled_from(
    [
        *"abcABC",
        "the",
        "The ",
        "a ",
        "An ",
        " ",
        "  ",
        "-",
        ".",
        "b,c",
        "ab",
        "abc",
        "who",
        "東京",
        "한글",
        "Σ",
        "ς",
        "é",
        "e\u0301",
        "\u200b",
        "\u00a0",
        "\x1c",
        "\x0b",
        "\n",
        "“",
        "–",
        "İ",
        "½",
        "👩‍🔬",
    ]
)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(pieces, min_size=1, max_size=24),
    st.lists(st.lists(pieces, max_size=5), min_size=1, max_size=3),
    st.integers(1, 6),
    st.integers(6, 9),
    st.booleans(),
)
def test_the_search_finds_what_brute_force_finds(tokenizer, context, golds, most, max_length, v1):
    context, golds = "".join(context), {normalise_answer("".join(gold)) for gold in golds}
    golds = sorted(golds if v1 else golds - {""})
    if not golds:
        return
    examples = [Example("q", "who", context, (), ())]
    view = next(
        views(build_windows(examples, tokenizer, max_length=max_length, overlap=1, max_question=1))
    )
    guess = normalise_answer(search(context, view, golds, most, v1))
    score = int(guess in golds), max(token_f1(gold.split(), guess.split(), v1) for gold in golds)
    assert score == brute_force(context, view, golds, most, v1)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return WordPiece.load(make_vocabulary(tmp_path_factory.mktemp("vocabulary")))


def test_reach_is_the_furthest_window(tokenizer):
    examples = [Example("q", "who?", "a b c d e f g h i j a b", (), ())]
    view = next(views(build_windows(examples, tokenizer, max_length=11, overlap=2, max_question=2)))
    assert (
        view.first.tolist() == [0, 4, 8]
        and [view.reach(i) for i in range(12)] == [6] * 4 + [10] * 4 + [12] * 4
    )


@pytest.mark.parametrize(
    ("name", "exact", "f1", "below"),
    [
        ("dev-v2.0", 99.99158, 99.99932, ["5726ed6cf1498d1400e8f00d"]),
        ("dev-v1.1", 99.98108, 99.98977, ["56dfa1d34a1a83140091ebd4", "5726ed6cf1498d1400e8f00d"]),
    ],
)
def test_ceiling_of_squad(shared, name, exact, f1, below):
    data = read_examples(shared / "data" / f"{name}.json.gz")
    vocabulary = WordPiece.load(shared / "weights" / "all-MiniLM-L6-v2")
    for stride in ({"overlap": 128}, {"step": 128}):
        options = {"max_length": 384, **stride, "max_question": 64, "max_answer_length": 30}
        found = token_report(data, vocabulary, options)
        ceiling, faulty = found["ceiling"], found["answers"]["faulty"]
        assert ceiling["figures"].get(
            "exact", ceiling["figures"].get("exact_match")
        ) == pytest.approx(exact, abs=1e-5)
        assert ceiling["figures"]["f1"] == pytest.approx(f1, abs=1e-5)
        assert [entry["id"] for entry in ceiling["below"]] == below
        assert all(answer["fault"] for entry in ceiling["below"] for answer in entry["answers"])
        assert (
            not faulty["in no window"]
            and not faulty["not found in its paragraph"]
            and found["questions_cut"] == 0
        )


# ---- settings and mistakes ----


def test_windows_are_those_of_the_model_unless_said_otherwise(sick, weights, capsys):
    (weights / "qa.json").write_text(
        '{"max_length": 100, "step": 9, "max_answer_length": 7, "null_threshold": 1.5}'
    )
    assert report(capsys, sick, "--weights", weights)["settings"] == {
        "max_length": 100,
        "step": 9,
        "max_question": 64,
        "max_answer_length": 7,
    }
    assert report(capsys, sick, "--weights", weights, "--overlap", 8, "--max-length", 90)[
        "settings"
    ] == {"max_length": 90, "overlap": 8, "max_question": 64, "max_answer_length": 7}


@pytest.mark.parametrize(
    ("qa", "says"),
    [
        ('{"max_length": "384"}', 'qa.json: max_length is "384"; expected a whole number'),
        ('{"overlap": [1]}', "qa.json: overlap is [1]; expected a whole number"),
        ('{"max_length": 1' + "0" * 30 + "}", "expected a number from 0 to 1,000,000"),
        ('{"null_threshold": 1' + "0" * 400 + "}", "expected a number that is not infinite"),
    ],
)
def test_the_model_s_settings_are_checked(sick, weights, qa, says):
    (weights / "qa.json").write_text(qa)
    with pytest.raises(UserError) as caught:
        doctor.main([str(sick), "--weights", str(weights)])
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--overlap", "8", "--step", "8"], "not both"),
        (["--max-length", "20"], "use at least 68"),
        (["--max-length", "1" + "0" * 30], "use at most 1,000,000"),
        (["--max-answer-length", "0"], "at least 1 token"),
        (["--doc-stride", "128"], "say --step N or --overlap N"),
        (["--show", "2", "--json"], "leave out --json"),
        (["--show", "0"], "at least 1"),
        (
            ["--id", "fine", "missing"],
            "has no question 'missing'; ids are like 'fine', 'shifted', 'lost'",
        ),
        (["--weights", "no-such-folder"], "is it a model folder"),
    ],
)
def test_mistakes_are_explained(sick, argv, says):
    with pytest.raises(UserError, match=says):
        doctor.main([str(sick), *argv])


def test_it_starts_without_torch(sick, weights):
    code = (
        "import sys; from bertqa import doctor; status = doctor.main(sys.argv[1:]); "
        "assert 'torch' not in sys.modules, 'torch was imported'; sys.exit(status)"
    )
    argv = [sick, sick, "--weights", weights, "--fix", sick.parent / "out.json"]
    done = subprocess.run(
        [sys.executable, "-c", code, *argv],
        capture_output=True,
        text=True,
        cwd=Path(doctor.__file__).parents[1],
    )
    assert done.returncode == 0, done.stderr
    assert "ceiling" in done.stdout


# ---- --show ----


def test_show_marks_the_answer_and_the_windows(tmp_path, weights, capsys):
    path = write(
        tmp_path / "data.json",
        (
            "a b c d e f g h i j a b",
            [
                question("q", "who?", ("e f", 8), ("e f", 8), ("f", 10)),
                question("none", "b?", is_impossible=True),
            ],
        ),
    )
    argv = [
        path,
        "--id",
        "q",
        "--weights",
        weights,
        "--max-length",
        11,
        "--overlap",
        2,
        "--max-question",
        2,
    ]
    assert table(capsys, *argv) == (
        "id        q   (Pandas)\n"
        "question  who?\n"
        "answer    e f   (at 8, given 2 times)\n"
        "answer    f   (at 10)\n"
        "windows   3 over 12 tokens; {2 begins the second, 1} ends the first\n"
        "{1 a b c d {2 [[e f]] 1} g h {3 i j 2} a b 3}\n\n"
    )
    # "who", "?": with room for one token its end is not read
    assert "question  who?   (cut after 1 tokens)\n" in table(capsys, *argv[:-1], 1)
    assert "answer    (impossible)\na b c d e f g h i j a b\n" in table(
        capsys, path, "--id", "none"
    )


def test_marks_for_a_terminal(monkeypatch):
    example = Example("q", "who?", "a \x1bb", ("b",), (3,))

    class Terminal:
        isatty = staticmethod(lambda: True)

    monkeypatch.delenv("NO_COLOR", raising=False)
    assert marked(example, None, marks_for(Terminal)) == "a \ufffd\x1b[7mb\x1b[27m"
    monkeypatch.setenv("NO_COLOR", "1")
    assert marked(example, None, marks_for(Terminal)) == "a \ufffd[[b]]"


def test_show_is_random_but_seeded(sick, capsys):
    def ids(seed: int, count: int = 3) -> list[str]:
        text = table(capsys, sick, "--show", count, "--seed", seed)
        return [row.split()[1] for row in text.splitlines() if row.startswith("id ")]

    assert (
        ids(1) == ids(1) and len(ids(1)) == 3 and len({tuple(ids(seed)) for seed in range(5)}) > 1
    )
    assert ids(0, 99) == ["fine", "shifted", "lost", "again", "none", "some", "bears"]


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "ascii"])
def test_what_an_encoding_lacks_can_be_printed(tmp_path, encoding):
    path = write(tmp_path / "data.json", ("a\ud83d Łb", [question("q", "who \ud83d?", ("Łb", 3))]))
    done = subprocess.run(
        [sys.executable, "-m", "bertqa.doctor", path, "--id", "q"],
        capture_output=True,
        cwd=Path(doctor.__file__).parents[1],
        env={**os.environ, "PYTHONIOENCODING": encoding},
    )
    assert done.returncode == 0, done.stderr
    assert "a\\ud83d [[Łb]]" in done.stdout.decode("utf-8")


# ---- --fix ----


@pytest.mark.parametrize("name", ["out.json", "out.json.gz"])
def test_fix_writes_data_with_nothing_left_to_fix(sick, tmp_path, capsys, name):
    found = report(capsys, sick, "--fix", tmp_path / name)
    assert found["fixed"] == {
        "file": str(tmp_path / name),
        "questions": 6,
        "repaired": 1,
        "renamed": 0,
        "broken_left_out": 0,
        "rejected_left_out": 1,
        "answers_left_out": 1,
    }
    fixed = read_examples(tmp_path / name)
    assert (fixed.format, fixed.repaired, fixed.rejected) == ("squad", 0, [])
    by_id = {example.id: example for example in fixed.examples}
    assert list(by_id) == ["fine", "shifted", "again", "none", "some", "bears"]
    assert by_id["shifted"].answer_texts == ("bamboo",) and by_id["shifted"].answer_starts == (38,)
    assert by_id["none"].answer_texts == () and by_id["fine"].title == "Pandas"
    raw = (tmp_path / name).read_bytes()
    document = json.loads(gzip.decompress(raw) if name.endswith("gz") else raw)
    assert document["version"] == "v2.0" and len(document["data"][0]["paragraphs"]) == 2
    questions = document["data"][0]["paragraphs"][0]["qas"]
    assert [qa["is_impossible"] for qa in questions] == [False, False, False, True, False]
    assert not (tmp_path / (name + ".part")).exists()


@pytest.fixture
def broken(tmp_path) -> Path:
    """Of seven records four are broken and two have an id that another has."""
    asked = [
        question("fine", "Where does it live?", ("Nepal", 23)),
        {"id": "no-question", "answers": []},
        {"id": "no-answers", "question": "Who is it?"},
        {"id": "text", "question": "Who?", "answers": "Nepal"} | {"answers": [{"answer_start": 3}]},
        question("", "Who?"),
        question("fine", "What does it eat?", ("bamboo", 38)),
        question("fine", "What does it drink?"),
    ]
    return write(tmp_path / "broken.json", (PANDAS, asked))


def test_every_broken_record_is_listed_and_fix_mends_them(broken, tmp_path, capsys):
    with pytest.raises(UserError):
        read_examples(broken)
    found = report(capsys, broken, "--fix", tmp_path / "out.json")
    assert found["questions"] == 1 and len(found["faults"]) == 6
    where = ["qas[1]", "qas[2]", "qas[3]", "qas[4]", "qas[5]", "qas[6]"]
    assert all(place in fault for place, fault in zip(where, found["faults"], strict=True))
    assert (found["fixed"]["renamed"], found["fixed"]["broken_left_out"]) == (2, 4)
    fixed = read_examples(tmp_path / "out.json")
    assert [example.id for example in fixed.examples] == ["fine", "fine-2", "fine-3"]
    assert fixed.examples[1].answer_texts == ("bamboo",)
    text = table(capsys, broken, "--fix", tmp_path / "out.json", "--explain", 3)
    assert "broken records                     6   train and score refuse the file" in text
    assert "... and 3 more: --explain 6" in text
    assert "2 repeated ids made unique; left out: 4 broken records, 0 rejected questions" in text


def test_fix_never_overwrites_its_input_and_never_writes_nothing(sick, tmp_path, capsys):
    before = sick.read_bytes()
    (tmp_path / "link.json").symlink_to(sick)
    other = write(tmp_path / "other.json", (PANDAS, [question("1", "Where?", ("Nepal", 23))]))
    for name in ("sick.json", "link.json", "../" + tmp_path.name + "/sick.json", "other.json"):
        with pytest.raises(UserError, match="would overwrite"):
            doctor.main([str(sick), str(other), "--fix", str(tmp_path / name)])
    assert sick.read_bytes() == before
    path = write(tmp_path / "lost.json", ("a b", [question("q", "who?", ("zebra", 0))]))
    with pytest.raises(UserError, match="all 1 questions are rejected"):
        doctor.main([str(path), "--fix", str(tmp_path / "out.json")])
    assert not (tmp_path / "out.json").exists()
    assert "wrote" in table(capsys, sick, "--fix", tmp_path / "fine.json")


def test_percentiles_are_values_that_occur():
    assert percentiles(np.arange(1, 201)) == {
        "least": 1,
        "median": 100,
        "90 %": 180,
        "99 %": 198,
        "most": 200,
    }


# ---- scripts whose letters carry marks ----

SCRIPTS = {
    "Hindi": "जॉन एलवे ने ब्रोंकोस को जीत दिलाई। क्षत्रिय श्रीमती ज़्यादा र्‍य",
    "Thai": "สมเด็จพระเจ้าอยู่หัว น้ำ ที่ ผู้ใหญ่ กรุงเทพฯ",
    "Arabic": "قَرَأَ الطَّالِبُ كِتَابًا مُهِمًّا فِي مـــحمد القُرْآن",
    "Hebrew": "שָׁלוֹם עֲלֵיכֶם בְּרֵאשִׁית",
    "Tamil": "கொழும்பு தமிழ்நாடு ஸ்ரீ",
    "Latin": unicodedata.normalize("NFD", "Łódź Dupré Ångström Việt Nam Điện Biên İstanbul"),
    "Korean": unicodedata.normalize("NFD", "한국어 서울 각하"),
}
"""XQuAD's kinds of loss: a vocabulary that drops marks made 151 Hindi, 288 Thai and 14 Arabic answers unreachable."""


@pytest.mark.parametrize("lower", [True, False], ids=["uncased", "cased"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_every_stretch_of_whole_characters_can_be_the_answer(tmp_path, script, lower):
    """With a token for each code point no token may end between a letter and its marks, kept or dropped."""
    text = SCRIPTS[script]
    forms = text + text.lower() + unicodedata.normalize("NFD", text)
    letters = sorted({letter for letter in forms if not letter.isspace()})
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *("##" + c for c in letters)]
    (tmp_path / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": lower}))
    begins = [at for at in beginnings(text) if not text[at : at + 1].isspace()]
    pairs = [(start, end) for start in begins for end in begins if start < end]
    examples = []
    for start, end in pairs:
        answer = text[start:end].rstrip()
        examples.append(Example(f"{start} {end}", "who?", text, (answer,), (start,)))
    windows = build_windows(examples, WordPiece.load(tmp_path))
    assert windows.unlabelled == () and len(examples) > 20
    for example, view in zip(examples, views(windows), strict=True):
        faults = [answer.fault for answer in place(example, view, 999)]
        assert faults == [""], example.answer_texts


def test_what_the_library_says_is_shown(sick, monkeypatch, capsys):
    """As by every verb: of a download, say, that takes a while."""

    def slow_read(path, **options):
        say(f"fetching {path.name}")
        return read_examples(path, **options)

    monkeypatch.setattr(doctor, "read_examples", slow_read)
    assert doctor.main([str(sick)]) == 0
    assert "fetching sick.json" in capsys.readouterr().err
