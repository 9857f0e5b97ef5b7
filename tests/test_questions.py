"""The questions of a run: a dev set held out by article, and mistakes that are likely, said in one line."""

import json

import pytest
from processes import training

from bertqa import UserError
from bertqa.data.examples import Dataset, Example
from bertqa.reporting.facts import facts, lead
from bertqa.reporting.run_folder import find_dev, read_run
from bertqa.settings import SAMPLE, FileSettings, LabelledFiles
from bertqa.train import main
from bertqa.training.question_answering import (
    Questions,
    check_answers,
    hold_out,
    warnings_of,
)
from bertqa.training.starting import with_dev


def data(*articles: int, answers=("a",), sha="0", path="x.json") -> Dataset:
    """So many questions about each article."""
    examples = []
    for title, count in enumerate(articles):
        for number in range(count):
            starts = (0,) * len(answers)
            examples.append(Example(f"{title}-{number}", "?", "a b", answers, starts, str(title)))
    return Dataset(path, sha, "squad", examples)


def titles(dataset: Dataset) -> set[str]:
    return {example.title for example in dataset.examples}


@pytest.mark.parametrize("share", [1e-9, 0.1, 0.5, 1.0])
def test_whole_articles_are_held_out(share):
    drawn = set()
    whole = data(5, 2, 9, 3, 1, 6)
    for seed in range(10):
        found = hold_out(whole, share, seed)
        assert titles(found.train) | titles(found.dev) == titles(whole)
        assert titles(found.train) and titles(found.dev)
        assert not titles(found.train) & titles(found.dev)
        assert hold_out(whole, share, seed).dev.examples == found.dev.examples
        drawn.add(tuple(sorted(titles(found.dev))))
    assert len(drawn) > 2


def test_as_near_to_the_share_as_articles_allow():
    found = hold_out(data(*[1] * 100), 0.1, 0)
    assert len(found.dev.examples) == 10 and len(found.train.examples) == 90
    assert len(hold_out(data(*[1] * 100), 0.1, 0, limit=3).dev.examples) == 3


def test_one_article_cannot_be_split():
    with pytest.raises(UserError, match="no --dev is given, .* all 4 questions are about one art"):
        hold_out(data(4), 0.1, 0)


@pytest.mark.parametrize(
    ("train", "dev", "says"),
    [
        (data(3), data(3, sha="1"), []),
        (data(3), data(3), ["the same file"]),
        (data(3), data(3, answers=(), sha="1"), ["has impossible questions, but x.json has none"]),
        (
            data(3, answers=()),
            data(3, sha="1"),
            ["none of the 3 questions in x.json has an answer"],
        ),
    ],
)
def test_likely_mistakes_are_told(train, dev, says):
    told = warnings_of(Questions(train, dev))
    assert len(told) == len(says)
    assert all(part in line for part, line in zip(says, told, strict=True))


def test_mixed_questions_are_told_apart():
    mixed = data(3)
    mixed.examples += data(2, answers=()).examples
    told = warnings_of(Questions(mixed, data(3, sha="1")))
    assert told == [
        "warning: x.json has impossible questions, but x.json has none, so no threshold for giving no "
        "answer can be tuned"
    ]
    both = Dataset("y.json", "1", "squad", mixed.examples)
    assert warnings_of(Questions(mixed, both)) == []
    assert warnings_of(Questions(data(3), both))[0].startswith("warning: y.json has impossible")
    assert warnings_of(Questions(data(), data(3, sha="1"))) == []
    held_out = warnings_of(Questions(mixed, both, held_out=True))
    assert held_out == [
        "no --dev is given: 5 questions of x.json, all those about 1 of its articles, are held out to "
        "evaluate on (-> dev.json)"
    ]


def test_answers_from_python_must_stand_where_they_say():
    def answered(*answers):
        texts, starts = zip(*answers, strict=True)
        return Example("q", "?", "a b a", texts, starts)

    check_answers(answered(("a", 0), ("b a", 2), ("a", 4)))
    for text, start in (("b", 0), ("a", -1), ("a", 5), ("a b a b", 0), ("", -1)):
        with pytest.raises(UserError) as refused:
            check_answers(answered(("a", 0), (text, start)))
        assert str(refused.value) == (
            f"example 'q': its answer {text!r} does not stand at character {start} of the context"
        )


def test_without_a_title_a_paragraph_is_an_article():
    untitled = [Example(str(n), "?", f"text {n % 3}", (), ()) for n in range(30)]
    found = hold_out(Dataset("x", "0", "squad", untitled), 0.1, 0)
    assert len(found.dev.examples) == 10 and len({e.context for e in found.dev.examples}) == 1


def test_the_dev_set_that_belongs_to_a_training_set():
    def dev(train):
        return with_dev(FileSettings(train=train)).dev

    assert dev(str(SAMPLE / "train.json")) == str(SAMPLE / "dev.json")
    assert dev("squad2") == dev("squad2-train") == "squad2" and dev("squad1") == "squad1"
    assert dev("mine.jsonl") is None and with_dev(FileSettings(dev="d.json")).dev == "d.json"
    assert with_dev(LabelledFiles(train="squad2", task="classify")).dev is None


def test_a_run_without_dev(tmp_path, tiny_model, letters, capsys):
    """A part is held out, written beside the run for its report, and held out again when it is resumed."""
    args = training(tiny_model, letters, tmp_path / "run", "--max-minutes", "1e-9")[1:]
    place = args.index("--dev")
    del args[place : place + 2]
    assert main(args) == 0
    said = capsys.readouterr().err
    assert "no --dev is given: " in said and "are held out to evaluate on (-> dev.json)" in said
    assert main(["--resume", str(tmp_path / "run"), "--max-minutes", "9"]) == 0
    said = capsys.readouterr().err
    assert "no report" not in said and "its content differs" not in said
    run = read_run(tmp_path / "run")
    assert find_dev(run) == tmp_path / "run" / "dev.json"
    assert "questions held out of it" in lead(run)
    assert facts(run)["Evaluated on"] == "questions held out of it"
    predictions = json.loads((tmp_path / "run" / "predictions.json").read_text())
    assert 0 < len(predictions) < 53
    card = (tmp_path / "run" / "best" / "README.md").read_text()
    assert "held out of the training questions: " in card
