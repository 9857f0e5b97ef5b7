"""The loop: exact accumulation, exact resume, same seed same bits, stop signals, sound numbers; and the verb around it."""

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from bertqa import UserError
from bertqa import device as precision
from bertqa.data.batches import WindowStore, epoch_order, padded, step_rows
from bertqa.data.examples import read_examples
from bertqa.data.tokenizer import WordPiece
from bertqa.data.windows import build_windows
from bertqa.distributed import World
from bertqa.hf.export import export
from bertqa.model import folder
from bertqa.reporting.run_folder import read_journal
from bertqa.settings import LoopSettings, OptimSettings, parts_of
from bertqa.train import main
from bertqa.training import checkpoint, loop, step
from bertqa.training.command_line import PRESETS, parse
from bertqa.training.job import total_steps
from bertqa.training.optim import depth_of, freeze, lr_at, make_optimizer, set_lr
from bertqa.training.progress import Journal

SHORT = [
    "--max-length",
    "32",
    "--overlap",
    "4",
    "--max-question",
    "8",
    "--batch-size",
    "8",
    "--lr",
    "1e-3",
    "--seed",
    "1",
    "--threads",
    "1",
]
TIMES = ("time", "seconds", "windows_per_s", "tokens_per_s", "peak_memory_mb")


def run(out, tiny_model, letters, *more, status=0):
    """Train the tiny model through the verb's own main; the run folder."""
    assert (
        main(
            [
                "--train",
                str(letters),
                "--dev",
                str(letters),
                "--weights",
                str(tiny_model),
                "--out",
                str(out),
                *SHORT,
                *more,
            ]
        )
        == status
    )
    return out


def weights(run_folder, which="last"):
    return load_file(run_folder / which / "model.safetensors")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def close(a, b, atol):
    return max(float((a[name] - b[name]).abs().max()) for name in a) < atol


def events(run_folder, kind):
    return [
        {key: value for key, value in record.items() if key not in TIMES}
        for record in read_journal(run_folder / "metrics.jsonl")
        if record["event"] == kind
    ]


@pytest.fixture(scope="module")
def plain(tmp_path_factory, tiny_model, letters):
    """An uninterrupted run of 21 steps (3 epochs of 7), evaluated every 5."""
    return run(
        tmp_path_factory.mktemp("plain") / "run",
        tiny_model,
        letters,
        "--epochs",
        "3",
        "--eval-every",
        "5",
    )


def test_it_learns(tmp_path, tiny_model, letters):
    out = run(
        tmp_path / "run",
        tiny_model,
        letters,
        "--epochs",
        "30",
        "--eval-every",
        "105",
        "--lr",
        "3e-3",
        "--dropout",
        "0",
        "--weight-decay",
        "0",
    )
    first, last = events(out, "eval")[0], events(out, "eval")[-1]
    assert first["f1"] < 40 and last["f1"] > 95 and last["loss"] < first["loss"] / 3


def test_the_loss_curve_is_that_of_transformers(tmp_path, tiny_model, letters):
    """The same weights, windows, order and recipe in a plain loop over their model, dropout off on both sides. Theirs gets
    one window at a time: in a padded batch its softmax would run over padding too."""
    transformers = pytest.importorskip("transformers")
    steps = events(
        run(tmp_path / "run", tiny_model, letters, "--epochs", "3", "--dropout", "0"), "train"
    )
    export(tiny_model, tmp_path / "theirs")
    model = (
        transformers.AutoModelForQuestionAnswering.from_pretrained(
            tmp_path / "theirs", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
        )
        .float()
        .train()
    )
    matrices, others = (
        [p for p in model.parameters() if (p.dim() > 1) == wide] for wide in (True, False)
    )
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    )
    store = WindowStore(
        build_windows(
            read_examples(letters).trainable(),
            WordPiece.load(tiny_model),
            max_length=32,
            overlap=4,
            max_question=8,
        )
    )
    losses, per_epoch = [], math.ceil(len(store) / 8)
    for number, record in enumerate(steps):
        epoch, step = divmod(number, per_epoch)
        rows, loss = step_rows(epoch_order(len(store), 1, epoch), step, 8), 0.0
        for row in rows:
            batch = store.batch(np.array([row]))
            ids, mask, segments = padded(batch)
            share = model(
                input_ids=ids,
                attention_mask=mask,
                token_type_ids=segments,
                start_positions=batch.start_labels,
                end_positions=batch.end_labels,
            ).loss / len(rows)
            share.backward()
            loss += share.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = record["lr"]
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss)
    assert len(losses) == 3 * per_epoch and np.mean(losses[:7]) - np.mean(losses[-7:]) > 0.2
    assert np.abs(np.array(losses) - [record["loss"] for record in steps]).max() < 1e-4


def test_the_run_folder_is_complete(plain):
    assert {path.name for path in plain.iterdir()} >= {
        "config.json",
        "metrics.jsonl",
        "best",
        "last",
        "predictions.json",
        "nbest_predictions.json",
        "null_odds.json",
        "confidence.json",
        "rejected.jsonl",
        "summary.json",
    }
    config = json.loads((plain / "config.json").read_text())
    assert config["settings"]["lr"] == 1e-3 and config["versions"]["torch"] == torch.__version__
    train = events(plain, "train")
    assert [record["step"] for record in train] == list(range(1, 22))
    assert all(math.isfinite(record["loss"]) and record["grad_norm"] > 0 for record in train)
    assert [record["step"] for record in events(plain, "eval")] == [0, 5, 10, 15, 20, 21]
    qa = folder.read_qa(plain / "best")
    assert qa["max_length"] == 32 and qa["overlap"] == 4 and isinstance(qa["null_threshold"], float)
    predictions = json.loads((plain / "predictions.json").read_text())
    assert set(predictions) == {f"q{n}" for n in range(53)}
    assert folder.load(plain / "best").span.weight.shape == (2, 32)


def test_same_seed_same_bits_other_seed_others(tmp_path, plain, tiny_model, letters):
    again = run(tmp_path / "again", tiny_model, letters, "--epochs", "3", "--eval-every", "5")
    assert same(weights(again), weights(plain)) and events(again, "train") == events(plain, "train")
    other = run(
        tmp_path / "other", tiny_model, letters, "--epochs", "3", "--eval-every", "5", "--seed", "2"
    )
    assert not same(weights(other), weights(plain))


def test_deterministic_changes_nothing_on_a_cpu(tmp_path, plain, tiny_model, letters, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    try:
        out = run(
            tmp_path / "run",
            tiny_model,
            letters,
            "--epochs",
            "3",
            "--eval-every",
            "5",
            "--deterministic",
        )
        assert (
            torch.are_deterministic_algorithms_enabled()
            and os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        )
    finally:
        torch.use_deterministic_algorithms(False)
    assert same(weights(out), weights(plain))


def test_recomputing_layers_gives_the_same_bits(tmp_path, plain, tiny_model, letters):
    out = run(
        tmp_path / "run", tiny_model, letters, "--epochs", "3", "--eval-every", "5", "--recompute"
    )
    assert same(weights(out), weights(plain)) and events(out, "train") == events(plain, "train")


@pytest.mark.slow
def test_compiled_run_ends_where_a_plain_one_does(tmp_path, tiny_model, letters):
    plain, fused = (
        run(tmp_path / name, tiny_model, letters, "--epochs", "1", "--dropout", "0", *more)
        for name, more in (("plain", []), ("fused", ["--compile"]))
    )
    for one, two in zip(events(plain, "train"), events(fused, "train"), strict=True):
        assert one["loss"] == pytest.approx(two["loss"], abs=1e-3)


def test_config_of_a_run_repeats_it(tmp_path, plain):
    assert main(["--config", str(plain / "config.json"), "--out", str(tmp_path / "again")]) == 0
    assert same(weights(tmp_path / "again"), weights(plain)) and events(
        tmp_path / "again", "eval"
    ) == events(plain, "eval")


def test_config_of_a_run_alone_repeats_it_in_another_folder(
    tmp_path, tiny_model, letters, monkeypatch
):
    """Its own folder is not among the settings that are taken from it: nothing is in the way."""
    monkeypatch.chdir(tmp_path)
    out = run(tmp_path / "run", tiny_model, letters, "--max-steps", "2")
    assert main(["--config", str(out / "config.json")]) == 0
    (again,) = (tmp_path / "runs").iterdir()
    assert same(weights(again), weights(out)) and events(again, "train") == events(out, "train")


@pytest.mark.parametrize(
    ("every", "at"),
    [
        ("5steps", [5, 7, 10, 14]),
        ("10", [7, 14]),
        ("0", [*range(1, 15)]),
        ("3", [3, 6, 7, 10, 13, 14]),
    ],
)
def test_checkpoints_come_by_steps_and_by_minutes(
    tmp_path, tiny_model, letters, monkeypatch, every, at
):
    """Two epochs of 7 steps, a minute each, evaluated at the end only; the end of an epoch is always saved, nothing twice."""
    update, write, clock, saved = step.set_lr, checkpoint.save_checkpoint, [0.0], []
    monkeypatch.setattr(
        step, "set_lr", lambda *args: clock.__setitem__(0, clock[0] + 60) or update(*args)
    )
    monkeypatch.setattr(
        loop, "time", SimpleNamespace(monotonic=lambda: clock[0], perf_counter=time.perf_counter)
    )
    monkeypatch.setattr(
        checkpoint,
        "save_checkpoint",
        lambda run, model, state: (
            saved.append(state["progress"]["step"]) or write(run, model, state)
        ),
    )
    run(
        tmp_path / "run",
        tiny_model,
        letters,
        "--epochs",
        "2",
        "--eval-every",
        "99",
        "--save-every",
        every,
    )
    assert saved == at


@pytest.mark.parametrize(
    ("stop_at", "number"), [(1, signal.SIGTERM), (7, signal.SIGINT), (12, signal.SIGUSR1)]
)
def test_stopped_and_resumed_equals_never_stopped(
    tmp_path, plain, tiny_model, letters, stop_at, number, monkeypatch
):
    """A signal at a step, --resume: same losses, same weights, same predictions, bit for bit."""
    update, calls = step.set_lr, []

    def counted(*args):
        calls.append(args)
        if len(calls) == stop_at:
            os.kill(os.getpid(), number)
        return update(*args)

    monkeypatch.setattr(step, "set_lr", counted)
    out = run(
        tmp_path / "run", tiny_model, letters, "--epochs", "3", "--eval-every", "5", status=130
    )
    assert len(events(out, "train")) == stop_at
    # What a killed run would have written behind its checkpoint is cut off again.
    with open(out / "metrics.jsonl", "a") as file:
        file.write('{"event": "train", "step": 99}\n{"cut o')
    assert main(["--resume", str(out)]) == 0
    assert same(weights(out), weights(plain)) and same(weights(out, "best"), weights(plain, "best"))
    assert events(out, "train") == events(plain, "train") and events(out, "eval") == events(
        plain, "eval"
    )
    for name in ("predictions.json", "nbest_predictions.json", "null_odds.json"):
        assert (out / name).read_bytes() == (plain / name).read_bytes()


def test_resume_moves_the_end(tmp_path, tiny_model, letters, capsys):
    """A finished run goes on as one that was always meant to be so long; under a schedule with an end, from there on."""
    more = ["--schedule", "constant", "--warmup", "2"]
    whole = run(tmp_path / "whole", tiny_model, letters, "--max-steps", "9", "--epochs", "2", *more)
    out = run(tmp_path / "run", tiny_model, letters, "--max-steps", "5", "--epochs", "2", *more)
    assert main(["--resume", str(out), "--max-steps", "9"]) == 0
    said = "At step 5 the run's end was moved from step 5 to 9; the learning rate follows the new schedule from there."
    assert said in capsys.readouterr().err and said in (out / "report.html").read_text()
    assert (
        said in (out / "best" / "README.md").read_text()
        and said not in (whole / "best" / "README.md").read_text()
    )
    measured = [
        "What it got on its dev set" in (out / which / "README.md").read_text()
        for which in ("best", "last")
    ]
    assert measured == [True, False]  # last/ goes on where no evaluation has been
    assert same(weights(out), weights(whole)) and events(out, "train") == events(whole, "train")

    out = run(tmp_path / "linear", tiny_model, letters, "--epochs", "1", "--max-minutes", "1e-9")
    assert main(["--resume", str(out), "--epochs", "2", "--max-minutes", "1e-9"]) == 0
    assert main(["--resume", str(out), "--max-minutes", "9"]) == 0  # the new end lasts
    rates = [event["lr"] for event in events(out, "train")]
    settings = OptimSettings(lr=json.loads((out / "config.json").read_text())["settings"]["lr"])
    assert rates == [lr_at(0, 7, settings), *(lr_at(step, 14, settings) for step in range(1, 14))]
    with pytest.raises(
        UserError, match=f"{out}: is at step 14 and cannot end at step 7; give more --epochs"
    ):
        main(["--resume", str(out), "--epochs", "1"])
    assert json.loads((out / "config.json").read_text())["settings"]["epochs"] == 2


def test_resuming_with_ema_and_time_limit(tmp_path, tiny_model, letters):
    more = ["--epochs", "2", "--ema", "0.9"]
    whole = run(tmp_path / "whole", tiny_model, letters, *more)
    out = run(tmp_path / "run", tiny_model, letters, *more, "--max-minutes", "1e-9")
    assert len(events(out, "train")) == 1
    assert main(["--resume", str(out), "--max-minutes", "60"]) == 0
    assert same(weights(out), weights(whole)) and same(weights(out, "best"), weights(whole, "best"))
    assert not same(weights(whole, "best"), weights(whole))  # the average is what is kept


def moves(run_folder, start):
    """How far the first step moved each weight at most; Adam's first step is the learning rate itself."""
    after = weights(run_folder)
    return {name: float((after[name] - start[name]).abs().max()) for name in start}


def test_the_head_has_a_learning_rate_of_its_own(tmp_path, tiny_model, letters):
    """From the command line, a config.json and Python, and a resumed run has it too."""
    start = load_file(tiny_model / "model.safetensors")
    still = ["--max-steps", "2", "--schedule", "constant", "--warmup", "0", "--weight-decay", "0"]
    plain = run(tmp_path / "plain", tiny_model, letters, *still, "--max-steps", "1")
    first = [*still, "--head-lr", "4e-3", "--max-minutes", "1e-9"]
    out = run(tmp_path / "run", tiny_model, letters, *first)
    before, now = moves(plain, start), moves(out, start)
    for name in start:
        factor = 4 if name.startswith("span.") else 1
        assert now[name] == pytest.approx(factor * before[name], rel=1e-3), name
    assert main(["--resume", str(out), "--max-minutes", "60"]) == 0
    whole = run(tmp_path / "whole", tiny_model, letters, *still, "--head-lr", "4e-3")
    again = tmp_path / "again"
    assert main(["--config", str(whole / "config.json"), "--out", str(again)]) == 0
    assert same(weights(out), weights(whole)) and same(weights(again), weights(whole))
    assert json.loads((again / "config.json").read_text())["settings"]["head_lr"] == 4e-3


def test_accumulation_changes_nothing(tmp_path, tiny_model, letters, monkeypatch):
    """One batch of 32 == 4 of 8 == micro-batches by a token budget, to rounding: weights after 20 steps."""
    # Key biases have no gradient but rounding noise, which Adam would blow up to whole steps: a larger eps keeps it noise.
    more = [
        "--batch-size",
        "32",
        "--dropout",
        "0",
        "--max-steps",
        "20",
        "--epochs",
        "10",
        "--eps",
        "1e-4",
    ]
    whole = weights(run(tmp_path / "whole", tiny_model, letters, *more))
    cut = weights(run(tmp_path / "cut", tiny_model, letters, *more, "--micro-tokens", "100"))
    single = weights(run(tmp_path / "single", tiny_model, letters, *more, "--micro-tokens", "1"))
    assert close(whole, cut, 1e-6) and close(whole, single, 1e-6) and not same(whole, cut)
    monkeypatch.setattr(
        step, "split_by_tokens", lambda rows, lengths, most: np.array_split(rows, 4)
    )
    four = weights(run(tmp_path / "four", tiny_model, letters, *more))  # 4 x 8
    assert close(whole, four, 1e-6) and not same(whole, four)


def test_gradients_are_exchanged_once_a_step(tmp_path, tiny_model, letters, monkeypatch):
    """All micro-batches but the last of a step lie inside DDP's no_sync."""
    split, micros, unsynced = step.split_by_tokens, [], []

    @contextmanager
    def no_sync():
        unsynced.append(len(micros))
        yield

    def wrap(world, model, device):
        model.no_sync = no_sync
        return model

    monkeypatch.setattr(World, "wrap", wrap)
    monkeypatch.setattr(
        step, "split_by_tokens", lambda *args: micros.append(split(*args)) or micros[-1]
    )
    run(tmp_path / "run", tiny_model, letters, "--max-steps", "3", "--micro-tokens", "60")
    assert all(len(micro) > 2 for micro in micros) and len(micros) == 3
    assert [unsynced.count(step) for step in (1, 2, 3)] == [len(micro) - 1 for micro in micros]


def test_resume_refuses_other_data(tmp_path, tiny_model, letters, capsys):
    data = tmp_path / "data.jsonl"
    data.write_text(letters.read_text())
    out = run(tmp_path / "run", tiny_model, data, "--epochs", "2", "--max-minutes", "1e-9")
    data.write_text(letters.read_text().replace('"where is', '"where is the', 1))
    with pytest.raises(
        UserError, match="cannot resume, because train windows was '.*', now '.*'; dev windows was"
    ):
        main(["--resume", str(out)])


@pytest.mark.parametrize("there", [False, True], ids=["no folder", "no run"])
def test_resume_needs_the_folder_of_a_run(tmp_path, there):
    run = tmp_path / "run"
    if there:
        run.mkdir()
    with pytest.raises(
        UserError,
        match=f"{run}: not the folder of a run, there is no config.json in it; --resume wants",
    ):
        main(["--resume", str(run)])


def test_a_damaged_checkpoint_falls_back(tmp_path, tiny_model, letters, capsys):
    out = run(tmp_path / "run", tiny_model, letters, "--epochs", "2", "--max-minutes", "1e-9")
    assert main(["--resume", str(out), "--max-minutes", "1e-9"]) == 0
    whole = run(tmp_path / "whole", tiny_model, letters, "--epochs", "2")
    assert len(events(out, "train")) == 2 and (out / "previous").is_dir()
    state = out / "last" / "state.pt"
    damaged = bytearray(state.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    state.write_bytes(damaged)
    assert main(["--resume", str(out), "--max-minutes", "60"]) == 0
    assert (
        "last/: state.pt is damaged (its checksum differs); going on from previous/"
        in capsys.readouterr().err
    )
    assert same(weights(out), weights(whole))
    for name in ("last", "previous"):
        (out / name / "state.pt").write_bytes(b"")
    with pytest.raises(UserError, match="no whole checkpoint to resume .last/.*previous/"):
        main(["--resume", str(out)])


def test_a_failed_save_leaves_the_old_checkpoint(tmp_path):
    def state(step):
        parts = {"optimizer": {}, "rng": [], "fingerprints": {}, "journal_bytes": 0}
        counts = ("best", "best_step", "skipped", "windows", "tokens", "seconds")
        return {"progress": {"step": step, **dict.fromkeys(counts, 0)}, **parts}

    def save_model(where):
        where.mkdir(exist_ok=True)
        (where / "model.safetensors").write_bytes(b"weights")

    checkpoint.save_checkpoint(tmp_path, save_model, state(1))

    def full(where):
        where.mkdir(exist_ok=True)
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="could not be written .*No space left.*untouched"):
        checkpoint.save_checkpoint(tmp_path, full, state(2))
    assert checkpoint.load_checkpoint(tmp_path)[1] == state(1) and not list(tmp_path.glob("*.tmp"))


def test_numbers_of_a_state():
    counts = ("step", "best", "best_step", "skipped", "windows", "tokens", "seconds")
    sound = dict.fromkeys(counts, 0)
    assert checkpoint.wrong_numbers(sound) == []
    assert checkpoint.wrong_numbers({**sound, "best": -math.inf, "seconds": 0.5}) == []
    for name in counts:
        for value in (True, "1", None, [1]):
            assert checkpoint.wrong_numbers({**sound, name: value}) == [name]
        negative = checkpoint.wrong_numbers({**sound, name: -1})
        assert negative == ([] if name == "best" else [name])
        del sound[name]
        assert checkpoint.wrong_numbers(sound) == [name]
        sound[name] = 0


@pytest.mark.parametrize("name", ["exp_avg", "exp_avg_sq"])
def test_moments_have_the_shape_of_their_weight(name):
    weight = torch.zeros(2, 3)
    moments = {"exp_avg": weight, "exp_avg_sq": weight, "step": 1}
    checkpoint.check_moments(SimpleNamespace(state={weight: moments}))
    with pytest.raises(ValueError, match=rf"{name} has shape \(3, 2\), not \(2, 3\)"):
        checkpoint.check_moments(SimpleNamespace(state={weight: {**moments, name: weight.T}}))


def test_what_a_killed_process_has_left_is_cleaned_up(tmp_path):
    """Half-written things go; what was half replaced gets its name back, unless its successor has come."""
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "config.json.x1.tmp").write_text("half")
    (tmp_path / "best.x1.tmp").mkdir()
    (tmp_path / "best").mkdir()
    for name in ("best.y2.old", "last.z3.old"):
        (tmp_path / name / "replaced").mkdir(parents=True)
        (tmp_path / name / "replaced" / "old").touch()
    checkpoint.sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "last", "mine"]
    assert not list((tmp_path / "best").iterdir()) and (tmp_path / "last" / "old").exists()


def test_nan_weights_stop_the_run_before_they_spread(tmp_path, tiny_model, letters):
    model = folder.load(tiny_model)
    with torch.no_grad():
        model.encoder.layers[1].ffn_in.weight[3, 3] = float("nan")
    folder.save(tmp_path / "nan", model, tokenizer_from=tiny_model, provenance={})
    with pytest.raises(UserError, match="step 1: the loss is nan .*Try a lower --lr"):
        main(
            [
                "--train",
                str(letters),
                "--dev",
                str(letters),
                "--weights",
                str(tmp_path / "nan"),
                "--fresh-head",
                "--out",
                str(tmp_path / "run"),
                *SHORT,
            ]
        )
    assert not (tmp_path / "run" / "last").exists()


def test_bf16_on_a_cpu_keeps_few_kernels(monkeypatch):
    """They are a megabyte each, and a training would otherwise keep 1,024 of them in each of two places."""
    monkeypatch.setattr(os, "environ", environ := {"LRU_CACHE_CAPACITY": "7"})
    assert (
        precision.pick_precision("fp32", torch.device("cpu")) == torch.float32 and len(environ) == 1
    )
    assert precision.pick_precision("bf16", torch.device("cpu")) == torch.bfloat16
    assert environ == {
        "LRU_CACHE_CAPACITY": "7",
        "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "256",
    }  # one's own value wins


def test_bf16_autocast_trains_on_cpu(tmp_path, tiny_model, letters):
    exact = events(
        run(tmp_path / "fp32", tiny_model, letters, "--max-steps", "6", "--dropout", "0"), "train"
    )
    mixed = events(
        run(
            tmp_path / "bf16",
            tiny_model,
            letters,
            "--max-steps",
            "6",
            "--dropout",
            "0",
            "--precision",
            "bf16",
        ),
        "train",
    )
    differ = [abs(a["loss"] - b["loss"]) for a, b in zip(exact, mixed, strict=True)]
    assert 0 < max(differ) < 0.05


def test_fp16_counts_skips_and_gives_up(tmp_path, tiny_model, letters):
    """fp16 trains on a CPU too; gradients that always overflow end the run with a diagnosis."""
    out = run(tmp_path / "run", tiny_model, letters, "--max-steps", "8", "--precision", "fp16")
    last = events(out, "train")[-1]
    assert last["loss_scale"] <= 65536 and last["skipped"] < 8 and math.isfinite(last["loss"])
    model = folder.load(tiny_model)
    with torch.no_grad():
        model.span.weight.mul_(1e6)  # logits beyond float16
        model.encoder.layers[1].ffn_norm.weight.mul_(1e30)
    folder.save(tmp_path / "huge", model, tokenizer_from=tiny_model, provenance={})
    with pytest.raises(UserError, match="25 steps in a row .*--precision bf16 or fp32"):
        main(
            [
                "--train",
                str(letters),
                "--dev",
                str(letters),
                "--weights",
                str(tmp_path / "huge"),
                "--fresh-head",
                "--out",
                str(tmp_path / "stop"),
                *SHORT,
                "--epochs",
                "9",
                "--precision",
                "fp16",
                "--eval-every",
                "99",
            ]
        )


def scaled(monkeypatch, scale: float) -> None:
    """Losses are scaled by this from the first step on, whatever the precision."""
    monkeypatch.setattr(
        step,
        "grad_scaler",
        lambda device, dtype: torch.amp.GradScaler(device.type, init_scale=scale),
    )


def test_scaling_the_loss_changes_nothing(tmp_path, plain, tiny_model, letters, monkeypatch):
    """In float32 a power of two scales without rounding: clipping and Adam must see the gradients as they are."""
    scaled(monkeypatch, 1024.0)
    out = run(tmp_path / "run", tiny_model, letters, "--epochs", "3", "--eval-every", "5")
    assert same(weights(out), weights(plain))
    assert [record["grad_norm"] for record in events(out, "train")] == [
        record["grad_norm"] for record in events(plain, "train")
    ]


def test_fp16_leaves_out_steps_until_the_scale_fits(tmp_path, tiny_model, letters, monkeypatch):
    """A scale of 2^30 overflows: it is halved and nothing is learnt, until it fits; --resume knows the scale."""
    scaled(monkeypatch, 2.0**30)
    more = ["--precision", "fp16", "--epochs", "3", "--eval-every", "99"]
    out = run(tmp_path / "run", tiny_model, letters, *more)
    steps = events(out, "train")
    left_out = [record["grad_norm"] in ("inf", "nan") for record in steps]
    few = left_out.index(False)
    assert few >= 3 and sum(left_out) < 18
    assert [record["skipped"] for record in steps] == np.cumsum(left_out).tolist()
    assert [record["loss_scale"] for record in steps] == [
        2.0 ** (30 - record["skipped"]) for record in steps
    ]
    state = torch.load(out / "last" / "state.pt", weights_only=True)
    assert {moments["step"].item() for moments in state["optimizer"]["state"].values()} == {
        21 - sum(left_out)
    }
    still = run(tmp_path / "still", tiny_model, letters, *more, "--max-steps", str(few))
    before = load_file(tiny_model / "model.safetensors")
    assert same(weights(still), before) and not same(weights(out), before)

    halved = run(tmp_path / "halved", tiny_model, letters, *more, "--max-minutes", "1e-9")
    assert main(["--resume", str(halved), "--max-minutes", "9"]) == 0
    assert same(weights(halved), weights(out)) and events(halved, "train") == steps


def test_questions_can_be_limited(tmp_path, tiny_model, letters, capsys):
    run(tmp_path / "run", tiny_model, letters, "--max-steps", "1", "--limit-dev", "5")
    assert "5 examples" in capsys.readouterr().err


# ---- optimizer and schedule against hand-computed values ----


def test_schedules_by_hand():
    linear = OptimSettings(lr=1.0, warmup=0.2)
    assert [round(lr_at(k, 10, linear), 4) for k in range(10)] == [
        0.5,
        1.0,
        1.0,
        0.875,
        0.75,
        0.625,
        0.5,
        0.375,
        0.25,
        0.125,
    ]
    assert lr_at(5, 10, OptimSettings(lr=2.0, warmup=0, schedule="constant")) == 2.0
    assert lr_at(5, 10, OptimSettings(lr=1.0, warmup=0, schedule="cosine")) == pytest.approx(0.5)
    assert lr_at(2, 100, OptimSettings(lr=1.0, warmup=4)) == 0.75  # a number of steps


def test_steps_are_counted_on_windows():
    assert total_steps(101, LoopSettings(epochs=2, batch_size=10)) == 22
    assert total_steps(101, LoopSettings(epochs=0.5, batch_size=10)) == 6
    assert total_steps(101, LoopSettings(epochs=2, batch_size=10, max_steps=5)) == 5
    assert total_steps(101, LoopSettings(epochs=2, batch_size=10, max_steps=500)) == 22
    assert total_steps(300, LoopSettings(epochs=0.1, batch_size=10)) == 3
    # 2.2 times 25 is 55.00000000000001 in floats: 55 steps, not 56.
    assert total_steps(250, LoopSettings(epochs=2.2, batch_size=10)) == 55


class OneWeight(torch.nn.Module):
    """A parameter of two dimensions and a bias, with the config that depth needs."""

    def __init__(self):
        super().__init__()
        self.config = type("Config", (), {"num_hidden_layers": 2})
        self.weight = torch.nn.Parameter(torch.tensor([[0.5]]))
        self.bias = torch.nn.Parameter(torch.tensor([0.5]))


@pytest.mark.parametrize("correction", [True, False])
def test_adam_and_decay_by_hand(correction):
    """Three updates with gradients 0.1, -0.2, 0.3: AdamW, and Google's variant without bias correction."""
    settings = OptimSettings(lr=0.01, weight_decay=0.1, eps=1e-6, bias_correction=correction)
    model = OneWeight()
    optimizer = make_optimizer(model, settings, torch.device("cpu"))
    expected, m, v = {"weight": 0.5, "bias": 0.5}, 0.0, 0.0
    for t, gradient in enumerate([0.1, -0.2, 0.3], 1):
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        c1, c2 = (1 - 0.9**t, 1 - 0.999**t) if correction else (1, 1)
        step = m / c1 / (math.sqrt(v / c2) + 1e-6)
        expected["weight"] -= 0.01 * (step + 0.1 * expected["weight"])
        expected["bias"] -= 0.01 * step  # no decay
        for p in model.parameters():
            p.grad = torch.full_like(p, gradient)
        set_lr(optimizer, 0.01, t - 1, settings)
        optimizer.step()
        assert model.weight.item() == pytest.approx(expected["weight"], abs=1e-6)
        assert model.bias.item() == pytest.approx(expected["bias"], abs=1e-6)


def test_groups_depth_decay_and_freezing(tiny_model):
    model = folder.load(tiny_model)
    assert (
        depth_of("encoder.embeddings.word.weight", 2) == 0
        and depth_of("encoder.layers.1.qkv.bias", 2) == 2
    )
    assert depth_of("span.weight", 2) == 3
    optimizer = make_optimizer(model, OptimSettings(layer_decay=0.5), torch.device("cpu"))
    scales = {id(p): group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    assert [
        scales[id(p)]
        for p in (
            model.span.weight,
            model.encoder.layers[1].qkv.weight,
            model.encoder.layers[0].qkv.weight,
            model.encoder.embeddings.word.weight,
        )
    ] == [1.0, 0.5, 0.25, 0.125]
    decays = {id(p): group["decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decays[id(model.span.weight)] == 0.01
    assert decays[id(model.span.bias)] == decays[id(model.encoder.layers[0].ffn_norm.weight)] == 0
    for what, trained in (("1", {"encoder.layers.1", "span"}), ("encoder", {"span"})):
        freeze(model, what)
        left = {name for name, p in model.named_parameters() if p.requires_grad}
        assert left and all(any(name.startswith(prefix) for prefix in trained) for name in left)
    with pytest.raises(UserError, match="freeze is 3 layers, but this model has 2"):
        freeze(model, "3")


def test_frozen_parts_do_not_move(tmp_path, tiny_model, letters):
    out = run(tmp_path / "run", tiny_model, letters, "--max-steps", "3", "--freeze", "encoder")
    before, after = load_file(tiny_model / "model.safetensors"), weights(out)
    assert {name for name in before if not torch.equal(before[name], after[name])} == {
        "span.weight",
        "span.bias",
    }


# ---- the command line ----


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--doc-stride", "128"], "say --step N or --overlap N"),
        (["--overlap", "3", "--step", "3"], "not both"),
        (["--max-length", "65"], "the model has 64 positions"),
        (
            ["--lr", "-1", "--batch-size", "0", "--dropout", "2", "--max-answer-length", "0"],
            "batch_size is 0.*; lr is -1.0.*; dropout is 2.0.*; max_answer_length is 0",
        ),
        (["--epochs", "inf", "--warmup", "inf"], "epochs is inf.*; warmup is inf"),
        (
            ["--save-every", "often"],
            "save_every is often, it must be minutes, as in 10, or steps, as in 500steps",
        ),
        (["--save-every", "-1"], "save_every is -1, it must be"),
        (["--weights", "/nowhere/at/all"], "/nowhere/at/all"),
        (["--train", "/nowhere.json"], "/nowhere.json"),
    ],
)
def test_mistakes_are_explained(tmp_path, tiny_model, letters, flags, says):
    with pytest.raises(UserError, match=says):
        run(tmp_path / "run", tiny_model, letters, *flags)


def test_unknown_settings_in_a_file_are_named_all_at_once(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"learning_rate": 1, "batchsize": 2, "lr": 3}))
    with pytest.raises(
        UserError, match=r"unknown 'learning_rate', 'batchsize' \(did you mean 'batch_size'\?\)"
    ):
        main(["--config", str(path)])


def test_everything_wrong_in_a_file_is_listed_together(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(
        json.dumps(
            {
                "settings": {
                    "lr": "fast",
                    "epochs": None,
                    "batch_size": 2.5,
                    "schedule": "steep",
                    "ema": True,
                    "freeze": 2,
                    "weights": None,
                    "bias_correction": "no",
                    "betas": 1,
                    "max_steps": None,
                    "dropout": 0,
                    "save_every": 5,
                }
            }
        )
    )
    with pytest.raises(UserError) as error:
        main(["--config", str(path)])
    for part in (
        "unknown 'betas' (did you mean 'beta",
        'lr is "fast", it must be a number',
        "epochs is null, it must be a number",
        "batch_size is 2.5, it must be a whole number",
        'schedule is "steep", it must be one of linear, cosine, ',
        "ema is true, it must be a number",
        "freeze is 2, it must be a text",
        "weights is null, it must be a text",
        'bias_correction is "no", it must be true or false',
    ):
        assert part in str(error.value)
    assert not any(
        f"{name} is" in str(error.value) for name in ("max_steps", "dropout", "save_every")
    )
    path.write_text('{"settings": [1]}')
    with pytest.raises(
        UserError, match=r'config.json: its "settings" are \[1\], expected an object'
    ):
        main(["--config", str(path)])


def test_a_run_folder_is_never_overwritten(plain, tiny_model, letters):
    with pytest.raises(UserError, match="already holds a run"):
        run(plain, tiny_model, letters)


def test_errors_are_one_line_and_exit_status_2(tmp_path):
    said = subprocess.run(
        [sys.executable, "-m", "bertqa.train", "--train", str(tmp_path / "no.json")],
        capture_output=True,
        text=True,
    )
    assert (
        said.returncode == 2 and said.stderr.count("\n") == 1 and said.stderr.startswith("error: ")
    )


@pytest.mark.parametrize("name", ["google", "hf", "fast"])
def test_a_preset_says_what_it_sets(name, capsys, aloud):
    """And the command line wins over it."""
    settings = parse(["--preset", name, "--batch-size", "3"]).settings.by_name()
    said = capsys.readouterr().err
    for setting, value in PRESETS[name].items():
        assert f"{setting} {value}" in said
        assert settings[setting] == (3 if setting == "batch_size" else value)


def test_knobs_stay_few():
    assert sum(len(dataclasses.fields(part)) for part in parts_of("qa").values()) <= 46


def test_journal_survives_a_torn_line(tmp_path):
    journal = Journal(tmp_path / "metrics.jsonl")
    journal.write("train", loss=float("nan"), step=1)
    size = journal.size
    journal.write("train", loss=2.0, step=2)
    journal.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"event": "tr')
    assert [record["step"] for record in read_journal(tmp_path / "metrics.jsonl")] == [1, 2]
    Journal(tmp_path / "metrics.jsonl", keep_bytes=size).close()
    assert [record["loss"] for record in read_journal(tmp_path / "metrics.jsonl")] == ["nan"]


def test_help_shows_every_default(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "a Hub id. [" in said and "[<" not in said  # no Python object where a value belongs


@pytest.mark.parametrize("task", ["qa", "classify"])
def test_help_fits_a_hundred_lines(task, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main(["--task", task, "--help"])
    assert capsys.readouterr().out.count("\n") <= 100


def test_help_starts_without_torch():
    code = "import sys, bertqa.train\ntry: bertqa.train.main(['--help'])\nexcept SystemExit: pass\nsys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
