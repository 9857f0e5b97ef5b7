"""The tools that make the bundled reader and its ablation: split, plan, parts that are kept, what is left behind."""

import json
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file

from bertqa import UserError
from bertqa.data.examples import Example, read_examples
from bertqa.model import folder
from bertqa.settings import DistillationSettings, QuestionAnsweringSettings
from bertqa.training.distillation import ask_teachers
from bertqa.training.question_answering import QuestionAnswering

sys.path.insert(0, str(ROOT / "tools"))
import ablation
import train_reader
from folds import ask_fold_teachers
from new_pairs import new_pairs
from planning import Cost, count_middle, count_teachers
from split_articles import hold_out, write_squad
from trainings import Training

SMALL = ["--max-length", "48", "--batch-size", "8", "--device", "cpu"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BERTQA_CACHE", str(tmp_path / "cache"))


def example(title: str, answer: str = "", number: int = 0) -> Example:
    starts = (0,) if answer else ()
    return Example(
        f"{title}{number}", "who?", f"{answer} x", (answer,) * len(starts), starts, title
    )


# Splitting


def test_held_out_articles_have_questions_without_an_answer():
    """As all of dev's do: so they choose its threshold best. Those of the log come first, the rest is drawn by seed."""
    mixed = [f"m{number}" for number in range(20)] + ["Hunter-gatherer"]
    examples = [example(f"a{number}", "yes") for number in range(30)]
    for title in mixed:
        examples += [example(title, "yes"), example(title, number=1)]
    chosen = hold_out(examples, 0.2, seed=0)
    assert len(chosen) == 4 and set(chosen) <= set(mixed) and "Hunter-gatherer" in chosen
    assert chosen == hold_out(examples, 0.2, seed=0) != hold_out(examples, 0.2, seed=1)
    answered = hold_out(examples[:30], 0.2, seed=0)  # SQuAD 1.1: all articles are alike
    assert len(answered) == 6
    with pytest.raises(UserError, match="1 article"):
        hold_out(examples[:1], 0.1, seed=0)


def test_written_questions_are_read_as_they_were(tmp_path, letters):
    before = read_examples(letters).examples
    write_squad(tmp_path / "again.json", before)
    after = read_examples(tmp_path / "again.json").examples
    assert sorted(before, key=lambda one: one.id) == sorted(after, key=lambda one: one.id)


# New pairs


def test_new_pairs_are_of_one_article_and_hold_no_answer():
    """A swap has another paragraph of the article, without the answer's text; an edit a word out of another question."""
    texts = ["Ada Byron wrote it in 1843.", "Babbage made it in 1822.", "Byron died."]
    questions = ["Who wrote about engines in 1843?", "When did Babbage begin 2 machines?", "Why?"]
    answers = ["Byron", "1822", ""]
    known = []
    for number, (text, question, answer) in enumerate(zip(texts, questions, answers, strict=True)):
        found = (answer,) if answer else ()
        starts = (text.index(answer),) if answer else ()
        for title in ("a", "b"):
            context = text + title
            known.append(Example(f"{title}{number}", question, context, found, starts, title))
    of = {one.id: one for one in known}

    swaps = [one for seed in range(20) for one in new_pairs(known, 1, 0, seed)]
    pairs = {(one.id, one.context) for one in swaps}
    for name, context in pairs:
        source = of[name.removeprefix("swap:")]
        assert context != source.context and context.endswith(source.title)
        assert not source.answer_texts or source.answer_texts[0] not in context
    # Of "who wrote" one paragraph is left, as Byron stands in the third; of the two others both.
    assert len(pairs) == 2 * (1 + 2 + 2)
    assert not any(one.answer_texts or one.answer_starts for one in swaps)

    edits = [one for seed in range(200) for one in new_pairs(known, 0, 1, seed)]
    made = {one.question for one in edits}
    assert "Who wrote about engines in 2?" in made  # a number for a number
    assert "Who wrote about machines in 1843?" in made
    assert not any("1843 begin" in question or "in Babbage" in question for question in made)
    for one in edits:
        source = of[one.id.removeprefix("edit:")]
        assert one.context == source.context and not one.answer_texts
        before, after = source.question.split(), one.question.split()
        assert sum(old != new for old, new in zip(before, after, strict=True)) == 1
        assert before[0] == after[0]
    assert new_pairs(known, 0.5, 0.5, 1) == new_pairs(known, 0.5, 0.5, 1)
    assert new_pairs(known, 0, 0, 1) == []


# Time


def test_what_fits_into_the_time():
    """At 20 s an epoch and 2 s for the rest, three teachers of 3 epochs and ten epochs of the student wanted."""
    cost = Cost(epoch=20.0, fixed=2.0)

    def teachers(left):
        return count_teachers(3, 10, 3, cost, left)

    assert [teachers(left) for left in (1e9, 265, 263, 201, 199, 10)] == [3, 3, 2, 2, 1, 1]
    # Asking three teachers 6 s, loading and evaluating 2, measuring afterwards 6; 21 s an epoch.
    assert cost.student(14 + 6 * 21 + 1, 3) == 6 and cost.student(14 + 6 * 21 - 1, 3) == 5
    training = Training("name", "command", {}, seconds=62.0, steps_seconds=60.0, windows=9)
    assert Cost.of(training, 3) == cost


def test_a_middle_generation_has_what_the_student_leaves():
    """At 20 s an epoch and 2 s for the rest, and half as many new pairs as questions: 30 s an epoch of a student, 31.5
    with its soft loss. Three teachers are asked in 9 s, so that a middle student of one epoch takes 42.5."""
    cost = Cost(epoch=20.0, fixed=2.0, growth=1.5)
    assert cost.taught(1, 3) == pytest.approx(42.5)

    def students(left, epochs=2):
        return count_middle(3, epochs, 1, cost, left, 3)

    # The last student's two epochs: 6 behind it, 2 fixed, 63, and 9 or 6 for asking three or two.
    three, two = 3 * 42.5 + 80.1, 2 * 42.5 + 77.1
    assert [students(left) for left in (three, three - 1, two, two - 1, 0)] == [3, 2, 2, 0, 0]
    assert students(three - 31.5, epochs=1) == 3
    assert cost.student(80.1, 3) == 2 and cost.student(79.9, 3) == 1


# All of it, small


@pytest.fixture
def arguments(tmp_path, tiny_model, letters) -> list[str]:
    files = ["--train", str(letters), "--dev", str(letters), "--dev1", str(letters)]
    where = ["--weights", str(tiny_model), "--out", str(tmp_path / "out")]
    recipe = ["--teachers", "2", "--teacher-epochs", "1", "--epochs", "2", "--held-out", "0.3"]
    recipe += ["--ema", "0.5"]  # of five steps
    return [*files, *where, *recipe, *SMALL]


def test_one_command_makes_a_reader(tmp_path, arguments, capsys):
    """Of teachers, two students that learn from them and from new pairs, and one that learns from those two."""
    out = tmp_path / "out"
    between = ["--middle", "2", "--middle-epochs", "1", "--swaps", "1", "--edits", "1"]
    others = ["--dropout", "0", "--layer-decay", "0.9"]
    assert train_reader.main([*arguments, *between, *others]) == 0
    config = folder.read_config(out / "reader")
    assert config["head"] == folder.QA and "fine_tuned_on" in config["provenance"]
    student = folder.read_config(out / "student" / "best")["provenance"]["taught_by"]
    assert student.count("sha256") == 2 and "middle0" in student and "middle1" in student
    middle = folder.read_config(out / "middle1" / "best")["provenance"]["taught_by"]
    assert "teacher0" in middle and "teacher1" in middle
    stored = load_file(out / "reader" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    qa = folder.read_qa(out / "reader")
    assert qa["max_length"] == 48 and qa["null_threshold"] is not None

    results = json.loads((out / "results.json").read_text())
    names = ["teacher0", "teacher1", "middle0", "middle1", "student"]
    assert [one["name"] for one in results["trainings"]] == names
    pairs = results["split"]["new_pairs"]
    teacher, _, taught, _, last = results["trainings"]
    assert pairs > 0 and taught["windows"] > teacher["windows"]
    assert last["windows"] == 2 * taught["windows"]  # epochs
    assert "--dropout 0" in last["command"] and "--dropout" not in teacher["command"]
    assert all("--layer-decay 0.9" in one["command"] for one in results["trainings"])
    assert (out / "reader" / "int8_ranges.safetensors").exists()
    measured = [row["data"] for row in results["rows"]]
    assert measured.count("dev") == 3 and "dev 1.1, always answering" in measured
    held = results["split"]["held_out_articles"]
    assert len(held) == 2
    trained = read_examples(out / "data" / "train.json").examples
    assert not any(one.title in held for one in trained)
    taught = read_examples(out / "data" / "train-and-pairs.json").examples
    assert len(taught) == len(trained) + pairs
    assert not any(one.title in held for one in taught)

    card = (out / "reader" / "README.md").read_text()
    for part in (*held, "| reader | dev |", "python -m bertqa.train", "chose nothing"):
        assert part in card
    assert (
        str(tmp_path) not in card and "base_model" not in card
    )  # the start is no model of the Hub
    assert (out / "results.md").read_text().strip() in capsys.readouterr().out


def test_fold_teachers_label_the_articles_that_they_were_not_trained_on(tmp_path, arguments):
    """Two of them; new pairs go with their article, and the student alone learns from both."""
    out = tmp_path / "out"
    flags = ["--folds", "2", "--swaps", "1", "--seed", "3"]
    assert train_reader.main([*arguments, *flags]) == 0
    results = json.loads((out / "results.json").read_text())
    assert [one["name"] for one in results["trainings"]] == ["teacher0", "teacher1", "student"]
    trained = read_examples(out / "data" / "train.json").examples
    titles = {one.title for one in trained}
    seen_by = []
    for number in (0, 1):
        file = results["trainings"][number]["command"].split("--train ")[1].split()[0]
        assert file == str(out / "data" / f"not-fold{number}.json")
        seen = {one.title for one in read_examples(file).examples}
        assert seen == titles - set(results["split"]["folds"][number])
        seen_by.append(seen)
    assert seen_by[0] | seen_by[1] == titles and not seen_by[0] & seen_by[1]

    settings = QuestionAnsweringSettings(max_length=48, overlap=16, max_question=8)
    pairs = str(out / "data" / "train-and-pairs.json")
    task = QuestionAnswering(
        pairs, pairs, out / "teacher0" / "best", settings, seed=0, device=torch.device("cpu")
    )
    teachers = [str(out / name / "best") for name in ("teacher0", "teacher1")]
    asked = DistillationSettings(teacher=teachers)
    folds = results["split"]["folds"]
    teaching = ask_fold_teachers(asked, folds, task, torch.float32)
    said = []
    for teacher in teachers:
        alone = DistillationSettings(teacher=[teacher])
        said.append(ask_teachers(alone, [Path(teacher)], task, torch.float32))
    assert torch.equal(teaching.first, said[0].first)
    examples = task.train.trainable()
    for window, begin in enumerate(teaching.first.tolist()):
        rows = slice(begin, begin + int(task.windows.lengths[window]))
        example = examples[task.windows.question[window]]
        unseen = 0 if example.title in folds[0] else 1
        assert example.title not in seen_by[unseen]
        torch.testing.assert_close(teaching.logits[rows], said[unseen].logits[rows])
        assert not torch.allclose(teaching.logits[rows], said[1 - unseen].logits[rows], 0, 0.01)
    assert any(one.id.startswith("swap:") for one in examples)
    # Two teachers of one fold label it with the mean of their logits.
    both = ask_fold_teachers(asked, [sorted(titles)] * 2, task, torch.float32)
    folders = [Path(name) for name in asked.teacher]
    alone = ask_teachers(asked, folders, task, torch.float32)
    torch.testing.assert_close(both.logits, alone.logits)
    # The student of the run was taught by the very same logits.
    begun = json.loads((out / "student" / "config.json").read_text())
    assert begun["fingerprints"]["teachers"] == teaching.fingerprint
    assert begun["settings"]["teacher"] == teachers
    card = (out / "reader" / "README.md").read_text()
    assert "those that were not trained on it" in card and "best of 1 trainings" in card

    # Stopped between its last step and its end, it goes on with the same teachers.
    (out / "student" / "training.json").unlink()
    (out / "student" / "summary.json").unlink()
    whole = (out / "reader" / "model.safetensors").read_bytes()
    assert train_reader.main([*arguments, *flags]) == 0
    assert (out / "reader" / "model.safetensors").read_bytes() == whole
    with pytest.raises(UserError, match="give 2 to 3, as many"):
        more = ["--folds", "9", "--teachers", "9", "--out", str(tmp_path / "more")]
        train_reader.main([*arguments, *more])
    with pytest.raises(UserError, match="with --folds 2 give a multiple of 2"):
        train_reader.main([*arguments, "--folds", "2", "--teachers", "3"])


def test_the_same_command_goes_on(tmp_path, arguments, capsys):
    """What is finished is not done again, and the same reader comes out."""
    out = tmp_path / "out"
    assert train_reader.main(arguments) == 0
    whole = (out / "reader" / "model.safetensors").read_bytes()
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/best/model.safetensors")}
    for path in (out / "student").glob("training.json"):
        path.unlink()
    (out / "student" / "summary.json").unlink()  # stopped between its last step and its end
    assert train_reader.main(arguments) == 0
    after = {path: path.stat().st_mtime_ns for path in out.glob("*/best/model.safetensors")}
    teachers = [path for path in before if "teacher" in str(path)]
    assert len(teachers) == 2 and all(before[path] == after[path] for path in teachers)
    assert (out / "reader" / "model.safetensors").read_bytes() == whole

    with pytest.raises(UserError, match="holds a training with other settings"):
        train_reader.main([*arguments, "--lr", "1e-3"])
    with pytest.raises(UserError, match="was begun with other data"):
        train_reader.main([*arguments, "--seed", "5"])


def test_a_time_limit_shrinks_the_student_up_front(tmp_path, arguments):
    out = tmp_path / "out"
    long = ["--epochs", "1000", "--middle", "2", "--middle-epochs", "400", "--max-minutes", "0.12"]
    assert train_reader.main([*arguments, *long]) == 0
    assert json.loads((out / "middle.json").read_text()) == 0
    assert json.loads((out / "epochs.json").read_text()) < 1000
    steps = json.loads((out / "student" / "summary.json").read_text())
    assert steps["finished"]
    assert not (out / "student" / "last").exists()  # no time for checkpoints


def test_rows_are_compared_with_the_row_they_build_on(tmp_path, tiny_model, letters, capsys):
    out = tmp_path / "out"
    flags = ["--train", str(letters), "--dev", str(letters), "--weights", str(tiny_model)]
    flags += ["--out", str(out), "--lr", "1e-3", "--epochs", "1", *SMALL]
    plain = [*flags, "--seeds", "0,1", "--rows", "ema,ensemble"]
    assert ablation.main(plain) == 0
    table = capsys.readouterr().out
    lines = table.strip().splitlines()
    assert len(lines) == 4 and lines[2].startswith("| ema |") and " ± " in lines[2]
    assert lines[3].startswith("| ensemble |") and "] over ema" in lines[3]
    made = sorted(path.name for path in out.iterdir() if path.is_dir())
    assert made == ["ema-0", "ema-1", "ema-10", "ema-11", "ema-12", "ensemble-0", "ensemble-1"]
    settings = json.loads((out / "ensemble-1" / "config.json").read_text())["settings"]
    assert [path.split("/")[-2] for path in settings["teacher"]] == ["ema-10", "ema-11", "ema-12"]
    assert settings["seed"] == 1
    written = (out / "ablation.md").read_text()
    assert written.startswith(table) and "- ensemble: `python -m bertqa.train --train" in written

    assert ablation.main(plain) == 0  # nothing is trained again
    assert capsys.readouterr().out == table
    with pytest.raises(UserError, match="unknown more"):
        ablation.main([*flags, "--rows", "ema", "--rows", "more"])

    assert ablation.main([*flags, "--rows", "ema", "--rows", "second,swaps"]) == 0
    rows = [line.split(" | ")[0] for line in capsys.readouterr().out.splitlines()[2:]]
    assert rows == ["| ema", "| second", "| swaps"]
    second = json.loads((out / "second-0" / "config.json").read_text())["settings"]
    taught_by = [path.split("/")[-2] for path in second["teacher"]]
    assert taught_by == ["ensemble-10", "ensemble-11", "ensemble-12"]
    swaps = json.loads((out / "swaps-0" / "config.json").read_text())["settings"]
    assert "swaps-0.5" in swaps["train"] and swaps["train"] != second["train"]


@pytest.mark.slow
def test_quick_with_the_real_weights(tmp_path, shared, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = shared / "data"
    flags = ["--train", str(data / "squad2-train-8k.json.gz"), "--quick", "--out", "out"]
    flags += ["--dev", str(data / "squad2-dev-2k.json.gz")]
    flags += ["--weights", str(shared / "weights" / "all-MiniLM-L6-v2")]
    assert train_reader.main(flags) == 0
    assert (tmp_path / "out" / "reader" / "model.safetensors").stat().st_size < 46e6
