"""Runs that are killed, filled disks, flipped bits, jumping clocks: resumed, each ends as if nothing had happened."""

import json
import os
import random
import shutil
import signal
import subprocess
from functools import partial
from pathlib import Path

import pytest
from processes import (
    count_file_events,
    die_at_file_event,
    die_at_step,
    journal,
    nan_loss_at,
    result,
    run,
    signal_in_evaluation,
    small_files_from,
    start,
    training,
    wild_clock,
)

from bertqa import Reader, UserError, load
from bertqa.files import sha256
from bertqa.model import disk
from bertqa.reporting.run_folder import read_journal
from bertqa.train import main
from bertqa.training import checkpoint
from bertqa.training.progress import Journal

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked here")

# 14 steps with dropout, an average of the weights, a checkpoint at every step and an evaluation at every third.
STEPS = [
    "--batch-size",
    "8",
    "--epochs",
    "2",
    "--eval-every",
    "3",
    "--save-every",
    "0",
    "--ema",
    "0.9",
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_model, letters):
    """(a run that nothing happened to, the number of its acts on files, its seconds)."""
    folder = tmp_path_factory.mktemp("whole")
    counting = partial(count_file_events, str(folder / "run"), total=str(folder / "count"))
    run(training(tiny_model, letters, folder / "run", *STEPS), folder / "log", counting)
    return folder / "run", int((folder / "count").read_text())


def resume(out: Path, log: Path, tiny_model, letters) -> str:
    """Go on with a run; one that was killed before it had a config.json is started again."""
    if (out / "config.json").exists():
        return run(["train", "--resume", out], log)
    return run(training(tiny_model, letters, out, *STEPS), log)


# ---- kill -9 ----


@pytest.mark.parametrize(
    ("part", "number"),
    [
        (r"/last[^/]*\.tmp/checksums.json", 6),
        (r"/best[^/]*\.tmp$", 12),
        ("previous", 9),
    ],
    ids=["last.tmp without its checksums", "no best", "no previous"],
)
def test_killed_while_writing(tmp_path, whole, tiny_model, letters, part, number):
    """At the worst moments: the resumed run ends bit for bit as the undisturbed one, and leaves no rubbish."""
    out, log = tmp_path / "run", tmp_path / "log"
    hook = partial(die_at_file_event, number, str(out), part)
    run(training(tiny_model, letters, out, *STEPS), log, hook, status=-9)
    assert 0 < len(journal(out)) < len(journal(whole[0]))
    resume(out, log, tiny_model, letters)
    assert result(out) == result(whole[0])


@pytest.mark.slow
@pytest.mark.parametrize("moment", range(10))
def test_killed_at_a_random_act_on_a_file(tmp_path, whole, tiny_model, letters, moment):
    """Killed, resumed, killed again while resuming, resumed: the acts are drawn by seed from all that a run does."""
    out, log, draw = tmp_path / "run", tmp_path / "log", random.Random(moment)
    run(
        training(tiny_model, letters, out, *STEPS),
        log,
        partial(die_at_file_event, draw.randint(1, whole[1]), str(out)),
        status=-9,
    )
    if (out / "config.json").exists():
        again = start(
            ["train", "--resume", out],
            log,
            partial(die_at_file_event, draw.randint(1, whole[1] // 4), str(out)),
        )
        again.join(300)
        assert again.exitcode in (-9, 0)
    resume(out, log, tiny_model, letters)
    assert result(out) == result(whole[0])


@pytest.mark.slow
@pytest.mark.parametrize("moment", range(20))
def test_killed_at_a_random_time(tmp_path, whole, tiny_model, letters, moment):
    """From outside, at 20 lengths of the journal, and up to 50 ms later."""
    out, log, draw = tmp_path / "run", tmp_path / "log", random.Random(moment)
    process = start(training(tiny_model, letters, out, *STEPS), log)
    size = draw.randrange((whole[0] / "metrics.jsonl").stat().st_size)
    path = out / "metrics.jsonl"
    while process.is_alive() and not (path.exists() and path.stat().st_size >= size):
        process.join(0.001)
    process.join(draw.random() * 0.05)
    process.kill()
    process.join()
    resume(out, log, tiny_model, letters)
    assert result(out) == result(whole[0])


def test_a_run_that_never_saved_begins_again(tmp_path, whole, tiny_model, letters):
    out, log = tmp_path / "run", tmp_path / "log"
    run(
        training(tiny_model, letters, out, *STEPS),
        log,
        partial(die_at_file_event, 1, str(out), r"/last[^/]*\.tmp"),
        status=-9,
    )
    assert (
        not (out / "last").exists() and len(journal(out)) == 2
    )  # an evaluation and a step, now done anew
    said = resume(out, log, tiny_model, letters)
    assert "was stopped before its first checkpoint; it begins again" in said
    assert result(out) == result(whole[0])


# ---- signals ----


@pytest.mark.parametrize(
    ("hook", "steps", "evaluations", "says"),
    [
        (partial(die_at_step, 3, signal.SIGTERM), 3, [0], "SIGTERM: stopping after this step"),
        (partial(signal_in_evaluation, 1, signal.SIGINT), 0, [], "SIGINT: stopping in this eval"),
        (partial(signal_in_evaluation, 3, signal.SIGHUP), 6, [0, 3], "SIGHUP: stopping in this"),
        (partial(signal_in_evaluation, 6, signal.SIGTERM), 14, [0, 3, 6, 9, 12], "stopping in"),
    ],
    ids=["at a step with an evaluation", "in the first", "in another", "in the last"],
)
def test_a_signal_saves_before_the_evaluation(
    tmp_path, whole, tiny_model, letters, hook, steps, evaluations, says
):
    """The state is saved, the evaluation is owed to the resumed run, which ends as the undisturbed one."""
    out, log = tmp_path / "run", tmp_path / "log"
    said = run(training(tiny_model, letters, out, *STEPS), log, hook, status=130)
    assert says in said and "go on with: python -m bertqa.train --resume" in said
    assert ("once more stops at once" in said) == ("SIGINT" in says)
    assert checkpoint.load_checkpoint(out)[1]["progress"]["step"] == steps
    assert [line["step"] for line in journal(out) if line["event"] == "eval"] == evaluations
    resume(out, log, tiny_model, letters)
    assert result(out) == result(whole[0])


# ---- disks ----


def one_error(said: str) -> str:
    """The only error line."""
    (line,) = [
        line
        for line in said.replace("\r", "\n").splitlines()
        if "error" in line.lower() or "Traceback" in line
    ]
    return line


def test_files_that_may_not_grow(tmp_path, whole, tiny_model, letters):
    """The checkpoint of step 5 does not fit: one line says so, that of step 4 stays, and from there it goes on."""
    out, log = tmp_path / "run", tmp_path / "log"
    said = run(
        training(tiny_model, letters, out, *STEPS),
        log,
        partial(small_files_from, 5, 100_000),
        status=2,
    )
    assert "last: could not be written" in one_error(said) and "Make room" in one_error(said)
    assert (
        not list(out.glob("*.tmp")) and checkpoint.load_checkpoint(out)[1]["progress"]["step"] == 4
    )
    resume(out, log, tiny_model, letters)
    assert result(out) == result(whole[0])


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True
    ).returncode:
        pytest.skip("no right to mount a small file system here")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def test_a_full_disk_and_one_that_became_read_only(
    small_disk, tmp_path, whole, tiny_model, letters
):
    """1 MB holds three checkpoints of this run but not all the rest: it stops, and goes on when there is room."""
    out, log = small_disk / "run", tmp_path / "log"
    said = run(training(tiny_model, letters, out, *STEPS), log, status=2)
    assert "could not be written" in one_error(said) and "No space left" in one_error(said)
    step = checkpoint.load_checkpoint(out)[1]["progress"]["step"]
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    said = run(["train", "--resume", out], tmp_path / "read-only", status=2)
    assert "Read-only file system" in one_error(said)
    subprocess.run(["mount", "-o", "remount,rw,size=9m", small_disk], check=True)
    resume(out, log, tiny_model, letters)
    assert step >= 1 and result(out) == result(whole[0])


@pytest.mark.skipif(
    not Path("/proc/self").exists(), reason="wants /proc, where nobody can make a folder"
)
def test_a_run_folder_that_cannot_be_made(tmp_path, tiny_model, letters):
    said = run(
        training(tiny_model, letters, "/proc/run", "--max-steps", "1"), tmp_path / "log", status=2
    )
    assert "/proc/run" in one_error(said)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="wants /dev/full, a disk without room")
def test_a_journal_on_a_full_disk():
    full = Journal(Path("/dev/full"))
    with pytest.raises(UserError, match="/dev/full: could not be written .*No space left"):
        full.write("train", step=1)
    full.close()


# ---- damage ----


def test_flipped_bits_are_found_or_harmless(tmp_path, whole, capsys, aloud):
    """50 flips anywhere in last/: previous/ takes over, or exactly what was saved is read."""
    draw, harmless = random.Random(6), 0
    saved = checkpoint.load_checkpoint(whole[0])[1]
    shutil.copytree(whole[0] / "previous", tmp_path / "previous")
    for _ in range(50):
        shutil.rmtree(tmp_path / "last", ignore_errors=True)
        shutil.copytree(whole[0] / "last", tmp_path / "last")
        files = sorted((tmp_path / "last").iterdir())
        path = draw.choices(files, [file.stat().st_size ** 0.5 for file in files])[
            0
        ]  # the small ones too
        content = bytearray(path.read_bytes())
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
        found, state = checkpoint.load_checkpoint(tmp_path)
        warned = capsys.readouterr().err
        if found.name == "last":
            harmless += 1
            assert path.name == "checksums.json" and not warned and repr(state) == repr(saved)
        else:
            assert (
                found.name == "previous"
                and "warning: last/" in warned
                and "going on from previous/" in warned
            )
            assert (tmp_path / "damaged").is_dir() and not (tmp_path / "last").exists()
    assert harmless < 5


def test_the_sound_checkpoint_outlives_the_next_ones(tmp_path, whole, tiny_model, letters):
    """last/ is damaged, and the run that goes on from previous/ is killed at its first save: previous/ is still there."""
    out, log = tmp_path / "run", tmp_path / "log"
    shutil.copytree(whole[0], out)
    (out / "last" / "state.pt").write_bytes(b"rubbish")
    run(
        ["train", "--resume", out],
        log,
        partial(die_at_file_event, 1, str(out), r"/last[^/]*\.tmp/checksums.json"),
        status=-9,
    )
    assert checkpoint.load_checkpoint(out)[0] == out / "previous"
    resume(out, log, tiny_model, letters)
    assert result(out) == result(whole[0])


def test_settings_changed_behind_the_run_are_refused(tmp_path, whole):
    shutil.copytree(whole[0], tmp_path / "run")
    config = json.loads((whole[0] / "config.json").read_text())
    config["settings"] |= {"lr": 0.002, "threads": 2}  # threads may change, lr may not
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"cannot resume, because lr was 0\.001, now 0\.002\. "):
        main(["--resume", str(tmp_path / "run")])


def test_changed_weights_are_refused(tmp_path, whole, tiny_model):
    """Also where their config.json tells the same story of them."""
    shutil.copytree(whole[0], tmp_path / "run")
    shutil.copytree(tiny_model, tmp_path / "model")
    content = bytearray((tiny_model / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "model" / "model.safetensors").write_bytes(content)
    (tmp_path / "model" / "checksums.json").unlink()
    config = json.loads((whole[0] / "config.json").read_text())
    config["settings"]["weights"] = str(tmp_path / "model")
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        UserError, match="cannot resume, because weights file was '[0-9a-f]+', now '[0-9a-f]+'"
    ):
        main(["--resume", str(tmp_path / "run")])


@pytest.mark.parametrize("which", ["train", "dev", "vocabulary"])
def test_changed_data_is_refused(tmp_path, whole, tiny_model, letters, which):
    shutil.copytree(whole[0], tmp_path / "run")
    config = json.loads((whole[0] / "config.json").read_text())
    if which == "vocabulary":
        shutil.copytree(tiny_model, tmp_path / "model")
        for name in ("vocab.txt", "tokenizer.json"):
            path = tmp_path / "model" / name
            if path.exists():
                path.write_text(path.read_text().replace("who", "wha"))
        words = (tmp_path / "model" / "vocab.txt").read_text().split("\n")
        words[-3], words[-4] = words[-4], words[-3]
        (tmp_path / "model" / "vocab.txt").write_text("\n".join(words))
        (tmp_path / "model" / "tokenizer.json").unlink(missing_ok=True)
        (tmp_path / "model" / "checksums.json").unlink()
        config["settings"]["weights"] = str(tmp_path / "model")
    else:
        changed = tmp_path / "changed.jsonl"
        lines = letters.read_text().splitlines()
        lines[7], lines[8] = lines[8], lines[7]  # only the order
        changed.write_text("\n".join(lines) + "\n")
        config["settings"][which] = str(changed)
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    said = "train windows" if which == "vocabulary" else f"{which} windows"
    with pytest.raises(
        UserError, match=f"cannot resume, because {said} was '[0-9a-f]+', now '[0-9a-f]+'"
    ):
        main(["--resume", str(tmp_path / "run")])


# ---- numbers and clocks ----


def test_nan_in_a_batch(tmp_path, whole, tiny_model, letters):
    """A loss that is NaN for once stops the run before it reaches the weights; without it, the run goes on."""
    out, log = tmp_path / "run", tmp_path / "log"
    said = run(training(tiny_model, letters, out, *STEPS), log, partial(nan_loss_at, 8), status=2)
    assert "error: step 8: the loss is nan" in one_error(said)
    assert checkpoint.load_checkpoint(out)[1]["progress"]["step"] == 7
    resume(out, log, tiny_model, letters)
    assert result(out) == result(whole[0])


def test_the_wall_clock_does_not_matter(tmp_path, whole, tiny_model, letters):
    run(
        training(tiny_model, letters, tmp_path / "run", *STEPS, "--max-minutes", "60"),
        tmp_path / "log",
        wild_clock,
    )
    assert result(tmp_path / "run") == result(whole[0])
    times = [record["time"] for record in read_journal(tmp_path / "run" / "metrics.jsonl")]
    assert max(times) - min(times) > 86400 and times != sorted(times)  # it did jump


def test_a_run_killed_before_its_summary_takes_no_step(tmp_path, whole, tiny_model, letters):
    """Killed between its last checkpoint and its end, a run is finished all the same."""
    out, log = tmp_path / "run", tmp_path / "log"
    shutil.copytree(whole[0], out)
    (out / "summary.json").unlink()
    run(["train", "--resume", out], log)
    assert result(out) == result(whole[0])


@pytest.mark.parametrize("name", ["model.safetensors", "vocab.txt", "config.json"])
def test_a_flipped_bit_in_best_is_noticed_by_whoever_loads_it(tmp_path, whole, name):
    shutil.copytree(whole[0] / "best", tmp_path / "best")
    qa = json.loads((tmp_path / "best" / "qa.json").read_text())
    (tmp_path / "best" / "qa.json").write_text(json.dumps({**qa, "null_threshold": 7.0}))
    assert (
        Reader.load(tmp_path / "best").qa["null_threshold"] == 7.0
    )  # qa.json is for people to change
    path = tmp_path / "best" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"best.*{name}"):
        Reader.load(tmp_path / "best")


def test_a_lost_journal_is_told(tmp_path, capsys, aloud):
    Journal(tmp_path / "metrics.jsonl", keep_bytes=1234).close()
    assert "metrics.jsonl: 1,234 bytes of it are lost" in capsys.readouterr().err


def test_a_folder_that_is_loaded_again_is_not_read_again(tmp_path, tiny_model, monkeypatch):
    """Nor is it believed once a file was written anew."""
    mine = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    read = []
    monkeypatch.setattr(disk, "sha256", lambda path: read.append(path.name) or sha256(path))
    load(mine)
    assert "model.safetensors" in read and len(read) == len(set(read))
    read.clear()
    load(mine)
    assert read == []
    content = bytearray((mine / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (mine / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="model.safetensors is damaged"):
        load(mine)


def test_a_file_differs_from_its_checksum_or_has_none(tmp_path):
    (tmp_path / "a").write_text("a")
    assert not disk.is_damaged(tmp_path, "a")  # there are no checksums
    disk.write_checksums(tmp_path)
    (tmp_path / "b").write_text("b")
    assert not disk.is_damaged(tmp_path, "a") and not disk.is_damaged(tmp_path, "b")
    (tmp_path / "a").write_text("b")
    assert disk.is_damaged(tmp_path, "a")


@pytest.mark.parametrize("name", ["a\0", "\ud800", "", "../../x"])
def test_checksums_of_names_that_no_file_has(tmp_path, tiny_model, name):
    mine = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    (mine / "checksums.json").write_text(json.dumps({name: "0"}))
    with pytest.raises(UserError, match="checksums.json is damaged|is unreadable"):
        load(mine)


def test_damage_is_said_before_what_it_leads_to(tmp_path, tiny_model):
    """A tokenizer.json that is no JSON any more: the checksum tells why."""
    mine = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    name = "tokenizer.json" if (mine / "tokenizer.json").exists() else "vocab.txt"
    (mine / name).write_text("{")
    with pytest.raises(UserError, match=f"{name} is damaged"):
        load(mine)
