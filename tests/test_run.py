"""A run as a whole: layers of settings, the run folder's lock, what resuming checks, and tasks of one's own."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import at_step, run, start, training
from safetensors.torch import load_file

from bertqa import UserError
from bertqa.data.batches import WindowStore
from bertqa.data.examples import read_examples
from bertqa.data.tokenizer import WordPiece
from bertqa.data.windows import build_windows
from bertqa.folders import held
from bertqa.model.disk import write_checksums
from bertqa.settings import LoopSettings, OptimSettings
from bertqa.train import main
from bertqa.training.command_line import parse
from bertqa.training.job import Job, Task
from bertqa.training.question_answering import QuestionAnswering
from bertqa.training.run import run_training
from bertqa.training.run_files import run_folder
from bertqa.training.starting import job_of, length_remarks

STEPS = ["--batch-size", "8", "--epochs", "2", "--eval-every", "3", "--save-every", "0"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_model, letters):
    """The folder of a finished run."""
    out = tmp_path_factory.mktemp("finished") / "run"
    assert main(training(tiny_model, letters, out, *STEPS)[1:]) == 0
    return out


@pytest.fixture
def copy(tmp_path, finished):
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def config_with(path, **settings):
    path.write_text(json.dumps(settings))
    return str(path)


def chosen(*argv) -> dict:
    return parse(list(argv)).settings.by_name()


# ---- layers ----


def test_a_none_that_is_typed_counts(tmp_path):
    config = config_with(tmp_path / "c.json", max_steps=7, dropout=0.2)
    assert chosen("--config", config)["max_steps"] == 7
    found = chosen("--config", config, "--max-steps", "none", "--dropout", "None")
    assert found["max_steps"] is None and found["dropout"] is None


def test_overlap_and_step_replace_each_other_over_layers(tmp_path, finished):
    def stride(*argv):
        found = chosen(*argv)
        return found["overlap"], found["step"]

    assert stride("--preset", "google") == (None, 128)
    assert stride("--preset", "google", "--overlap", "64") == (64, None)
    assert stride("--config", str(finished / "config.json"), "--step", "9") == (None, 9)
    assert stride("--preset", "google", "--config", str(finished / "config.json")) == (4, None)
    config = config_with(tmp_path / "c.json", step=5)
    assert stride("--config", config, "--overlap", "64") == (64, None)
    assert stride("--config", config, "--overlap", "3", "--step", "2") == (3, 2)  # refused later


def test_a_gpu_can_be_named():
    settings = parse(["--device", "cuda:1"]).settings
    assert settings.loop.device == "cuda:1" and settings.problems() == []


@pytest.mark.parametrize("text", ["9007199254740993", "9223372036854775807", "1e3"])
def test_whole_numbers_are_exact(text):
    assert chosen("--seed", text)["seed"] == (1000 if text == "1e3" else int(text))


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--seed", "1e30"], "'1e30' is not exact; write all its digits"),
        (["--seed", "1.5"], "'1.5' is not a whole number"),
        (["--seed", "9" * 5000], "'9+' is not a whole number"),
        (["--lr", "fast"], "'fast' is not a number"),
    ],
)
def test_numbers_that_are_none(flags, says, capsys):
    with pytest.raises(SystemExit):
        parse(flags)
    assert re.search(says, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--threads", "100000"], "threads is 100000, it must lie between 0 and"),
        (["--seed", str(2**63)], f"seed is {2**63}, it must lie between 0 and {2**63 - 1}"),
        (["--seed", "-1"], "seed is -1, it must lie between 0"),
        (["--limit-train", "-1"], "limit_train is -1, it must be positive"),
        (["--lr", "inf", "--eps", "nan"], "lr is inf, it must be positive; eps is nan"),
        (["--epochs", "1.7e308"], "epochs is 1.7e.308, it must be positive, and a million at most"),
        (["--batch-size", "9" * 400], "batch_size is 9+, it must be positive"),
        (["--save-every", "9" * 5000 + "steps"], "save_every is 9+steps, it must be minutes"),
        (["--device", "gpu"], "device is gpu, it must be auto, cpu, cuda, cuda:1 or mps"),
        (["--freeze", "9" * 5000], "freeze is 9+, it must be none, embeddings"),
    ],
)
def test_values_out_of_range(tmp_path, tiny_model, letters, flags, says):
    with pytest.raises(UserError, match=says):
        main(training(tiny_model, letters, tmp_path / "run", *flags)[1:])
    assert not (tmp_path / "run").exists()


def test_settings_that_are_gone(tmp_path, finished):
    """An earlier run's config.json still works where they did nothing, else it is refused by name."""
    config = json.loads((finished / "config.json").read_text())
    neutral = dict(tensorboard=False, patience=0, tune_on=None, keep_impossible=1.0)
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"settings": {**config["settings"], **neutral}}))
    assert chosen("--config", str(path)) == chosen("--config", str(finished / "config.json"))
    used = {**config["settings"], **neutral, "patience": 3, "label_smoothing": 0.1}
    path.write_text(json.dumps({"settings": used}))
    with pytest.raises(
        UserError, match="no setting label_smoothing .it is 0.1., patience .it is 3"
    ):
        chosen("--config", str(path))


def test_settings_are_checked_before_weights_are_fetched():
    with pytest.raises(UserError, match="lr is -1.0, it must be positive"):
        main(["--weights", "nobody/has-such-weights", "--lr", "-1"])


def test_numbers_in_a_file_that_no_float_holds(tmp_path):
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"warmup": 10**400, "lr": 10**400}))
    with pytest.raises(UserError, match="warmup is 10+.*, it must be a number"):
        chosen("--config", str(path))


# ---- what a run's length makes of its settings ----


@pytest.mark.parametrize(
    ("loop", "optim", "typed", "says"),
    [
        ({"max_steps": 40}, {"warmup": 500}, (), "warmup is 500 steps, but the run has 40"),
        ({"max_steps": 900}, {}, (), "max_steps is 900, but 2 epochs end at step 200"),
        ({"max_steps": 9}, {}, ("epochs",), "epochs is 2, that is 200 steps, but max_steps ends"),
        ({"max_steps": 9, "eval_every": 10}, {}, (), "eval_every is 10, but the run has 9 steps"),
        ({"max_steps": 9}, {"warmup": 8}, (), None),
        ({}, {"warmup": 0.9}, ("epochs",), None),
    ],
)
def test_settings_that_the_length_changes_are_told(loop, optim, typed, says):
    loop = LoopSettings(batch_size=10, **loop)
    told = length_remarks(1000, loop, OptimSettings(**optim), frozenset(typed))
    assert told == [] if says is None else len(told) == 1 and says in told[0]


def test_max_steps_none_moves_the_end_of_a_resumed_run(tmp_path, tiny_model, letters, capsys):
    out = tmp_path / "run"
    assert main([*training(tiny_model, letters, out, *STEPS)[1:], "--max-steps", "4"]) == 0
    assert main(["--resume", str(out), "--epochs", "3"]) == 0
    assert "--max-steps none lets the epochs decide" in capsys.readouterr().err
    assert main(["--resume", str(out), "--max-steps", "none"]) == 0
    assert "the run's end was moved from step 4 to 21" in capsys.readouterr().err
    config = json.loads((out / "config.json").read_text())
    assert config["settings"]["max_steps"] is None and config["settings"]["epochs"] == 3


# ---- the run folder ----


def test_config_says_what_was_run(copy, letters):
    config = json.loads((copy / "config.json").read_text())
    assert config["command"][:5] == ["python", "-m", "bertqa.train", "--train", str(letters)]
    assert config["steps"] == 14
    assert config["hardware"]["device"] == "cpu" and config["hardware"]["precision"] == "float32"


def test_a_lock_says_who_holds_it(copy):
    settings = parse(["--resume", str(copy)]).settings
    with held(copy / "lock"):
        says = f"{copy}: in use by process {os.getpid()} on .*, since .*; wait"
        with pytest.raises(UserError, match=says):
            main(["--resume", str(copy)])
        with pytest.raises(UserError, match=says):
            run_training(job_of(settings, copy), resume=True)
    assert not (copy / "lock").exists()
    assert main(["--resume", str(copy)]) == 0


def test_a_second_resume_is_refused(tmp_path, copy):
    """Two processes go on with one run: the second is told who has it, and the first ends as if alone."""
    log, other = tmp_path / "log", tmp_path / "other"
    first = start(["train", "--resume", copy, "--epochs", "4"], log, partial(at_step, 3, wait_long))
    while not (copy / "lock").exists():
        assert first.is_alive(), log.read_text()
    said = run(["train", "--resume", copy], other, status=2)
    assert f"in use by process {first.pid} on" in said and "Traceback" not in said
    assert "windows of at most" not in said  # refused before the data are read
    first.join(300)
    assert first.exitcode == 0
    lines = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if line["event"] == "train"]
    assert steps == list(range(1, 29))


def wait_long() -> None:
    time.sleep(8)


def test_a_run_that_could_not_begin_is_in_nobodys_way(tmp_path, tiny_model, letters, monkeypatch):
    """What fails before config.json is there leaves a folder that can be taken again."""
    args = training(tiny_model, letters, tmp_path / "run", "--max-steps", "1")[1:]

    def fail(task, run):
        (run / "rejected.jsonl").write_text("half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(QuestionAnswering, "save_rejected", fail)
        with pytest.raises(OSError):
            main(args)
    assert main(args) == 0
    with pytest.raises(UserError, match="run: already holds a run"):
        main(args)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no /proc")
def test_a_folder_that_the_system_does_not_make(tiny_model, letters):
    args = training(tiny_model, letters, Path("/proc/run"), "--max-steps", "1")[1:]
    with pytest.raises(UserError, match="^/proc/run: cannot be made .*; give another --out"):
        main(args)


def test_a_folder_that_cannot_be_made_is_told_before_anything_is_read(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UserError, match="file/a/run: .*/file is a file, not a folder; give another"
    ):
        main(["--out", str(tmp_path / "file" / "a" / "run"), "--train", "/nowhere"])


def test_a_kill_leaves_no_lock_in_the_way(tmp_path, copy):
    (copy / "lock").write_text("process 1 on elsewhere")
    assert main(["--resume", str(copy)]) == 0


def test_best_that_was_half_replaced_gets_its_name_back(copy):
    before = load_file(copy / "best" / "model.safetensors")
    (copy / "best.x1y2z3.old").mkdir()
    (copy / "best").rename(copy / "best.x1y2z3.old" / "replaced")
    assert main(["--resume", str(copy)]) == 0
    after = load_file(copy / "best" / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not list(copy.glob("*.old"))


@pytest.mark.parametrize("harm", ["delete", "empty", "flip"])
def test_lost_best_weights_are_told(copy, harm, capsys):
    """A run at its end is refused; one that goes on says so and makes new ones."""
    path = copy / "best" / "model.safetensors"
    if harm == "delete":
        shutil.rmtree(copy / "best")
    elif harm == "empty":
        path.write_bytes(b"")
    else:
        content = bytearray(path.read_bytes())
        content[-9] ^= 4
        path.write_bytes(content)
    with pytest.raises(UserError, match="best: .*, are lost. The run is at its end.*run/last"):
        main(["--resume", str(copy)])
    assert main(["--resume", str(copy), "--epochs", "3"]) == 0
    said = capsys.readouterr().err
    assert "are lost; the next evaluation makes new ones" in said and "kept in" in said
    assert load_file(path)


def test_files_that_moved_are_given_to_resume(tmp_path, copy, letters, capsys):
    moved = tmp_path / "moved.jsonl"
    shutil.copyfile(letters, moved)
    assert main(["--resume", str(copy / "last"), "--train", str(moved), "--dev", str(moved)]) == 0
    assert json.loads((copy / "config.json").read_text())["settings"]["train"] == str(moved)
    moved.write_text(letters.read_text().replace("where", "when", 1))
    with pytest.raises(UserError, match="cannot resume, because train windows was"):
        main(["--resume", str(copy)])


def test_a_damaged_report_does_not_cost_the_exit_status(copy, capsys):
    (copy / "nbest_predictions.json").write_text("[" * 100_000)
    (copy / "last").rename(copy / "unused")
    shutil.copytree(copy / "unused", copy / "last")
    (copy / "metrics.jsonl").write_bytes(b"\xff\xfe" + (copy / "metrics.jsonl").read_bytes()[2:])
    assert main(["--resume", str(copy)]) == 0
    assert "no report: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"settings": []}, '"settings"'),
        ({"fingerprints": 7}, '"fingerprints" is missing or of another kind'),
        ({"moved_ends": [{"step": "x"}]}, '"moved_ends" hold'),
        ({"moved_ends": {}}, '"moved_ends" is missing or of another kind'),
        ({"settings": {"batch_size": "many"}}, 'batch_size is "many", it must be a whole number'),
        ({"settings": {"dev": "\ud800"}}, "dev is .*ud800.*, it must be a text"),
        ({"settings": {"weights": "a\0b"}}, "weights is .*0000b.*, it must be a text"),
    ],
)
def test_a_damaged_config_of_a_run(copy, change, says):
    config = json.loads((copy / "config.json").read_text())
    if isinstance(change.get("settings"), dict):
        change = {"settings": {**config["settings"], **change["settings"]}}
    (copy / "config.json").write_text(json.dumps({**config, **change}))
    for part in ("last", "previous"):
        shutil.rmtree(copy / part)
    with pytest.raises(UserError, match=says):
        main(["--resume", str(copy)])


def test_nothing_is_kept_where_no_evaluation_has_a_score(
    tmp_path, tiny_model, letters, monkeypatch, capsys
):
    monkeypatch.setattr(QuestionAnswering, "evaluate", lambda *args: {"f1": float("nan")})
    monkeypatch.setattr(QuestionAnswering, "describe", lambda *args: "nothing")
    out = tmp_path / "run"
    assert main(training(tiny_model, letters, out, "--max-steps", "1")[1:]) == 0
    assert "no evaluation found a f1, so nothing is kept in best/" in capsys.readouterr().err
    assert not (out / "best").exists()


@pytest.mark.parametrize(
    ("part", "value"),
    [
        (("progress", "step"), "x"),
        (("progress", "step"), -1),
        (("progress", "best"), None),
        (("fingerprints", "lr"), torch.zeros(3)),
        (("optimizer", "state", 0, "exp_avg"), torch.zeros(3)),
        (("optimizer", "state", 1, "step"), {}),
        (("optimizer", "param_groups", 0, "params"), []),
        (("rng", 0, "cpu"), torch.zeros(3)),
        (("rng",), []),
        (("average",), {}),
        (("journal_bytes",), None),
    ],
)
def test_the_state_of_another_kind_of_run(copy, part, value):
    """Its checksum is right, but it is not the state of such a run: one line."""
    for name in ("last", "previous"):
        state = torch.load(copy / name / "state.pt", weights_only=True)
        inner = state
        for key in part[:-1]:
            inner = inner[key]
        inner[part[-1]] = value
        torch.save(state, copy / name / "state.pt")
        (copy / name / "checksums.json").unlink()
        write_checksums(copy / name)
    with pytest.raises(UserError, match="start a new run with another --out$"):
        main(["--resume", str(copy), "--epochs", "3"])


# ---- a task of one's own ----


class Sums(Task):
    """The least that a task must have: what to train on, a loss, a key and an evaluation."""

    key = "closeness"

    def __init__(self, windows):
        self.store = WindowStore(windows)

    def loss(self, model, batch, layout):
        values = model(batch.start_labels.float()[:, None])[:, 0]
        return (values - 2 * batch.start_labels).square().sum()

    def evaluate(self, model, autocast):
        return {"closeness": -abs(float(model.weight.detach()) - 2)}


class Line(torch.nn.Linear):
    """y = w x, with the config by which the optimizer knows depths."""

    def __init__(self):
        super().__init__(1, 1, bias=False)
        self.config = type("Config", (), {"num_hidden_layers": 0})


def test_a_task_of_ones_own_has_a_run_like_any_other(tmp_path, tiny_model, letters):
    windows = build_windows(
        read_examples(letters).trainable(),
        WordPiece.load(tiny_model),
        max_length=32,
        overlap=4,
        max_question=8,
    )
    loop = LoopSettings(epochs=8, batch_size=8, eval_every=10)

    def job(**settings):
        torch.manual_seed(0)
        return Job(
            model=Line(),
            task=Sums(windows),
            settings=LoopSettings(**{**vars(loop), **settings}),
            optim=OptimSettings(lr=0.2, weight_decay=0.0),
            run=tmp_path / "run",
        )

    stopped = run_training(job(max_minutes=1e-9))
    assert not stopped.outcome.finished and not stopped.interrupted
    trained = run_training(job(), resume=True)
    assert trained.outcome.finished and np.isclose(trained.outcome.last["closeness"], 0, atol=0.1)
    assert {path.name for path in (tmp_path / "run").iterdir()} >= {
        "config.json",
        "summary.json",
        "metrics.jsonl",
        "best",
        "last",
    }
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["settings"]["lr"] == 0.2 and config["command"] is None
    with pytest.raises(UserError, match="already holds a run"):
        run_training(job())


# ---- what is said meanwhile ----


def test_a_log_stays_short(tmp_path, tiny_model, letters):
    """Into a file the bar is written every half minute, not at every step."""
    more = ["--eval-every", "999", "--epochs", "9"]
    said = run(training(tiny_model, letters, tmp_path / "run", *STEPS, *more), tmp_path / "log")
    assert said.count("windows/s, ") < 8 and "train: " in said


@pytest.mark.parametrize("disabled", ["", "1"])
def test_tqdms_own_switch_turns_bars_off(disabled):
    code = (
        "from bertqa.console import progress_bar\n"
        "for shown in (True, False):\n"
        "    with progress_bar(total=3, desc='three', unit=' steps', shown=shown) as bar: bar.update(3)"
    )
    environment = {**os.environ, "TQDM_DISABLE": disabled}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert (done.stderr == "") == (disabled == "1")


def test_runs_of_one_second_have_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda *_: "runs/20261126-221544")
    with run_folder(None) as first:
        (first / "config.json").write_text("{}")
        with run_folder(None) as second:
            assert second == Path("runs/20261126-221544-2") and second.is_dir()
    assert first.is_dir()
    assert not second.exists()  # nothing was put into it
    shutil.rmtree("runs")
    with run_folder(None):
        pass
    assert not Path("runs").exists()


def test_a_run_named_by_the_time_needs_a_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").write_text("a file")
    with (
        pytest.raises(UserError, match="runs is a file, not a folder; give another --out"),
        run_folder(None),
    ):
        pass
