"""The tools that make the bundled reader and its ablation: split, plan, parts that are kept, what is left behind."""

import json
import sys

import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file

from bertqa import UserError
from bertqa.data.examples import Example, read_examples
from bertqa.model import folder

sys.path.insert(0, str(ROOT / "tools"))
import ablation
import train_reader
from split_articles import hold_out, write_squad
from train_reader import Cost, count_teachers
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


# All of it, small


@pytest.fixture
def arguments(tmp_path, tiny_model, letters) -> list[str]:
    files = ["--train", str(letters), "--dev", str(letters), "--dev1", str(letters)]
    where = ["--weights", str(tiny_model), "--out", str(tmp_path / "out")]
    recipe = ["--teachers", "2", "--teacher-epochs", "1", "--epochs", "2", "--held-out", "0.3"]
    recipe += ["--ema", "0.5"]  # of five steps
    return [*files, *where, *recipe, *SMALL]


def test_one_command_makes_a_reader(tmp_path, arguments, capsys):
    out = tmp_path / "out"
    assert train_reader.main(arguments) == 0
    config = folder.read_config(out / "reader")
    assert config["head"] == folder.QA and "fine_tuned_on" in config["provenance"]
    student = folder.read_config(out / "student" / "best")["provenance"]["taught_by"]
    assert student.count("sha256") == 2
    stored = load_file(out / "reader" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    qa = folder.read_qa(out / "reader")
    assert qa["max_length"] == 48 and qa["null_threshold"] is not None

    results = json.loads((out / "results.json").read_text())
    assert [one["name"] for one in results["trainings"]] == ["teacher0", "teacher1", "student"]
    measured = [row["data"] for row in results["rows"]]
    assert measured.count("dev") == 2 and "dev 1.1, always answering" in measured
    held = results["split"]["held_out_articles"]
    assert len(held) == 2
    trained = read_examples(out / "data" / "train.json").examples
    assert not any(one.title in held for one in trained)

    card = (out / "reader" / "README.md").read_text()
    for part in (*held, "| reader | dev |", "python -m bertqa.train", "chose nothing"):
        assert part in card
    assert (
        str(tmp_path) not in card and "base_model" not in card
    )  # the start is no model of the Hub
    assert (out / "results.md").read_text().strip() in capsys.readouterr().out


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
    assert train_reader.main([*arguments, "--epochs", "1000", "--max-minutes", "0.21"]) == 0
    assert json.loads((out / "epochs.json").read_text()) < 1000
    steps = json.loads((out / "student" / "summary.json").read_text())
    assert steps["finished"]
    assert not (out / "student" / "last").exists()  # no time for checkpoints


def test_rows_are_compared_with_the_row_they_build_on(tmp_path, tiny_model, letters, capsys):
    out = tmp_path / "out"
    flags = ["--train", str(letters), "--dev", str(letters), "--weights", str(tiny_model)]
    flags += ["--out", str(out), "--rows", "ema,ensemble", "--seeds", "0,1", "--lr", "1e-3", *SMALL]
    assert ablation.main(flags) == 0
    table = capsys.readouterr().out
    lines = table.strip().splitlines()
    assert len(lines) == 4 and lines[2].startswith("| ema |") and " ± " in lines[2]
    assert lines[3].startswith("| ensemble |") and "] over ema" in lines[3]
    made = sorted(path.name for path in out.iterdir() if path.is_dir())
    assert made == ["ema-0", "ema-1", "ema-10", "ema-11", "ema-12", "ensemble-0", "ensemble-1"]
    settings = json.loads((out / "ensemble-1" / "config.json").read_text())["settings"]
    assert [path.split("/")[-2] for path in settings["teacher"]] == ["ema-10", "ema-11", "ema-12"]
    assert settings["seed"] == 1

    assert ablation.main(flags) == 0  # nothing is trained again
    assert capsys.readouterr().out == table
    with pytest.raises(UserError, match="unknown more"):
        ablation.main([*flags, "--rows", "more"])


@pytest.mark.slow
def test_quick_with_the_real_weights(tmp_path, shared, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = shared / "data"
    flags = ["--train", str(data / "squad2-train-8k.json.gz"), "--quick", "--out", "out"]
    flags += ["--dev", str(data / "squad2-dev-2k.json.gz")]
    flags += ["--weights", str(shared / "weights" / "all-MiniLM-L6-v2")]
    assert train_reader.main(flags) == 0
    assert (tmp_path / "out" / "reader" / "model.safetensors").stat().st_size < 46e6
