"""What int8 needs to be fast: measured, kept in the model folder, refused where it is another's; and what is said of speed."""

import json
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import bertqa
from bertqa import (
    QuestionAnswering,
    Reader,
    SpeedHint,
    UserError,
    calibrate_int8,
    device,
    fine_tune,
    loading,
)
from bertqa.calibrate import drawn, main, question_windows
from bertqa.data.texts import Text
from bertqa.flags import one_line
from bertqa.hf.convert import resolve_weights
from bertqa.hf.export import export
from bertqa.model import folder
from bertqa.model.disk import find_damage, rewritten
from bertqa.model.products import CalibratedLinear, TokenwiseLinear, has_calibrated_products
from bertqa.model.ranges import ABOUT, PRODUCTS, RANGES, read_ranges, watched
from bertqa.model.record import CLASSES

ROOT = Path(__file__).resolve().parents[1]
needs_vnni = pytest.mark.skipif(
    not has_calibrated_products(),
    reason="this processor or this build of torch has no calibrated products (VNNI)",
)


@pytest.fixture
def model(tmp_path, tiny_model):
    """A model folder without ranges."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


@pytest.fixture
def measured(model, letters):
    """One with them."""
    calibrate_int8(model, letters, windows=16)
    return model


def encoder_of(where):
    return folder.load_encoder(where)


def kinds(model) -> set:
    found = (CalibratedLinear, TokenwiseLinear)
    return {type(module) for module in model.modules() if type(module) in found}


def about(where) -> dict:
    """The metadata of a folder's ranges."""
    content = (Path(where) / RANGES).read_bytes()
    size = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + size])["__metadata__"]


# ---- measured, kept ----


def test_ranges_say_of_what_they_are(measured):
    said = about(measured)
    sums = json.loads((measured / "checksums.json").read_text())
    assert said == {
        "format": "pt",
        **ABOUT,
        "windows": "16",
        "weights": sums["model.safetensors"],
    }
    assert RANGES in sums and find_damage(measured) == ""
    found = load_file(measured / RANGES)
    assert sorted(found) == sorted(f"layers.{n}.{name}" for n in (0, 1) for name in PRODUCTS)
    kept = read_ranges(measured, encoder_of(measured))
    assert all(torch.equal(kept[name], found[name]) for name in found)


def test_ranges_are_the_least_and_largest_inputs(model):
    """Each product's, each channel's behind a norm; they grow with all that is read."""
    encoder = encoder_of(model)
    seen = []
    hook = encoder.layers[1].qkv.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.inference_mode(), watched(encoder) as ranges:
        for ids in (torch.arange(5, 15), torch.arange(9, 30)):
            encoder(ids, lengths=[len(ids)])
    hook.remove()
    rows = torch.cat(seen)  # (N, 32)
    assert torch.equal(ranges["layers.1.qkv"], torch.stack([rows.amin(0), rows.amax(0)]))
    assert ranges["layers.0.ffn_in"].shape == (2, 32)
    assert ranges["layers.0.ffn_out"].shape == (2, 1)
    assert not encoder.layers[0].qkv._forward_pre_hooks


def test_the_draw_is_by_seed(model, letters):
    files = []
    for seed in (0, 0, 1):
        calibrate_int8(model, letters, windows=5, seed=seed)
        files.append((model / RANGES).read_bytes())
    assert files[0] == files[1] != files[2]


def test_questions_are_cut_as_the_reader_would_cut_them(tiny_model):
    """tiny_model has 64 positions: windows of 64 tokens, questions of 32 at most, an overlap of 16."""
    asked = [
        SimpleNamespace(question="where is a?", documents=["a b " * 50, "c"]),
        SimpleNamespace(question="a " * 40, documents=["b " * 40]),
    ]
    windows = question_windows(tiny_model, asked)
    assert windows.questions.counts.tolist() == [4, 4, 32] and windows.lengths.max() == 64
    assert windows.question.tolist() == [0, 0, 0, 1, 2, 2]
    assert windows.first.tolist() == [0, 41, 82, 0, 0, 13]


def test_each_record_is_drawn_as_likely():
    texts = [Text(str(n), "") for n in range(10)]
    counts = np.zeros(10)
    for seed in range(2000):
        few = [int(text.id) for text in drawn(texts, 3, seed)]
        assert len(set(few)) == 3
        counts[few] += 1
    assert np.abs(counts / 2000 - 0.3).max() < 0.05


@needs_vnni
def test_int8_computes_by_the_ranges(measured):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reader = Reader.load(measured, int8=True)
    assert kinds(reader.model) == {CalibratedLinear}
    product = reader.model.encoder.layers[0].attention_out
    least, largest = load_file(measured / RANGES)["layers.0.attention_out"].flatten().tolist()
    assert product.scale == pytest.approx((largest - least) / 255)


@needs_vnni
def test_the_bundled_reader_has_its_ranges():
    """Who makes another reader measures again: python -m bertqa.calibrate."""
    where = ROOT / "weights" / "minilm-squad2"
    assert read_ranges(where, encoder_of(where)) is not None and find_damage(where) == ""
    assert int(about(where)["windows"]) == 256


@needs_vnni
def test_several_models_have_each_its_own(measured, tmp_path, letters):
    from bertqa.predict import together

    other = tmp_path / "other"
    model = folder.load(measured)
    with torch.no_grad():
        model.encoder.embeddings.norm.weight.mul_(3)
    folder.save(other, model)
    calibrate_int8(other, letters, windows=16)
    readers = [Reader.load(where, int8=True) for where in (measured, other)]
    members = together(readers, [other]).model.members
    scales = [member.encoder.layers[0].qkv.scale for member in members]
    assert scales[0] != scales[1]


# ---- absent ----


@needs_vnni
def test_without_ranges_it_is_said_once_a_model(model, tmp_path, recwarn):
    loading._tell_unmeasured.cache_clear()
    for _ in range(2):
        assert kinds(Reader.load(model, int8=True).model) == {TokenwiseLinear}
    other = shutil.copytree(model, tmp_path / "other one")
    Reader.load(other, int8=True)
    said = [warning for warning in recwarn if warning.category is SpeedHint]
    assert [str(hint.message).split(" has no")[0] for hint in said] == [
        f"int8: {model}",
        f"int8: {other}",
    ]
    assert str(said[1].message).endswith(f"python -m bertqa.calibrate '{other}' DATA")
    assert {hint.filename for hint in said} == {__file__}  # of who called


@needs_vnni
def test_the_verb_says_it_on_stderr(model):
    asked = ["--question", "where is c?", "--context", "a b c d", "--model", str(model), "--int8"]
    command = [sys.executable, "-m", "bertqa.predict", "--device", "cpu", *asked]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "hint" not in done.stdout
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("hint: ")]
    assert f"python -m bertqa.calibrate {model} DATA" in line and len(done.stderr.splitlines()) == 1


def test_where_nothing_would_be_faster_nothing_is_said(model, monkeypatch, recwarn):
    loading._tell_unmeasured.cache_clear()
    monkeypatch.setattr(loading, "has_calibrated_products", lambda: False)
    Reader.load(model, int8=True)
    assert not [warning for warning in recwarn if warning.category is SpeedHint]


# ---- damaged, or of something else ----


def refused(where, says: str) -> None:
    """int8 says what is wrong and what to do; nothing else minds; and what it says to do helps."""
    with pytest.raises(UserError, match=says) as error:
        Reader.load(where, int8=True)
    assert f"python -m bertqa.calibrate {where} DATA, or delete the file" in str(error.value)
    assert "\n" not in str(error.value)
    Reader.load(where)


def test_a_flipped_bit_is_noticed(measured, letters):
    content = bytearray((measured / RANGES).read_bytes())
    content[-1] ^= 1
    (measured / RANGES).write_bytes(content)
    refused(measured, "is damaged .its checksum differs.")
    calibrate_int8(measured, letters)
    Reader.load(measured, int8=True)
    assert find_damage(measured) == ""


@pytest.mark.parametrize("content", [b"", b"no tensors", None])
def test_half_a_file_is_refused(measured, content):
    whole = (measured / RANGES).read_bytes()
    (measured / "checksums.json").unlink()
    (measured / RANGES).write_bytes(whole[: len(whole) // 2] if content is None else content)
    refused(measured, "not a whole safetensors file")


def replaced(where: Path, tensors: dict, **changes) -> None:
    """Ranges in a folder as another program might write them, with a checksum that is right."""
    said = {**about(where), **changes}
    with rewritten(where, RANGES):
        save_file(tensors, where / RANGES, {name: said[name] for name in said if said[name]})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"weights": "0" * 64}, "was measured on other weights .sha256 0000000000000000. than"),
        ({"weights": None}, "was measured on other weights"),
        ({"version": "2"}, "is of version 2, and only 1 is known here"),
        ({"content": None}, "holds no int8 ranges"),
    ],
)
def test_ranges_of_something_else(measured, changes, says):
    replaced(measured, load_file(measured / RANGES), **changes)
    refused(measured, says)


def test_ranges_of_other_weights_in_the_same_folder(measured):
    """Weights that were changed by hand, checksums and all."""
    other = folder.load(measured)
    with torch.no_grad():
        other.span.bias.add_(1)
    save_file(other.state_dict(), measured / "model.safetensors")
    (measured / "checksums.json").unlink()
    refused(measured, "was measured on other weights")


def without_one(tensors):
    del tensors["layers.1.ffn_in"]


def with_one_more(tensors):
    tensors["layers.2.qkv"] = tensors["layers.1.qkv"].clone()


def narrower(tensors):
    tensors["layers.0.qkv"] = tensors["layers.0.qkv"][:, :31].contiguous()


def not_a_number(tensors):
    tensors["layers.0.ffn_in"][0, 3] = float("nan")


def upside_down(tensors):
    tensors["layers.0.ffn_out"] = tensors["layers.0.ffn_out"].flip(0).contiguous()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (without_one, "layers.1.ffn_in is missing"),
        (with_one_more, "layers.2.qkv is of no layer of this model"),
        (narrower, r"layers.0.qkv has shape \(2, 31\), this model needs \(2, 32\)"),
        (not_a_number, "layers.0.ffn_in is no least and largest value"),
        (upside_down, "layers.0.ffn_out is no least and largest value"),
    ],
)
def test_ranges_that_do_not_fit(measured, change, says):
    tensors = load_file(measured / RANGES)
    change(tensors)
    replaced(measured, tensors)
    refused(measured, says)


# ---- copied, left out ----


def test_a_reader_that_is_saved_keeps_them(measured, tmp_path):
    Reader.load(measured).save(tmp_path / "kept")
    assert read_ranges(tmp_path / "kept", encoder_of(measured)) is not None
    bertqa.save(tmp_path / "again", bertqa.load(measured))  # the same weights, to the bit
    assert read_ranges(tmp_path / "again", encoder_of(measured)) is not None


def test_other_weights_do_not_keep_them(measured, tmp_path):
    model = folder.load(measured)
    folder.save(tmp_path / "half", model, dtype=torch.float16)
    assert not (tmp_path / "half" / RANGES).exists()
    with torch.no_grad():
        model.span.bias.add_(1)
    folder.save(measured, model)  # into the very folder
    assert not (measured / RANGES).exists() and find_damage(measured) == ""


def test_exports_leave_them_out(measured, tmp_path):
    export(measured, tmp_path / "theirs")
    assert not list((tmp_path / "theirs").rglob("int8*"))


def test_the_cache_of_converted_models_keeps_them(copy, tmp_path, monkeypatch):
    monkeypatch.setenv("BERTQA_CACHE", str(tmp_path / "cache"))
    theirs = copy("bert-qa")
    rows = [{"question": "a?", "context": "a b c d e"}, {"question": "b?", "context": "x"}]
    path = calibrate_int8(theirs, rows)
    assert path == Path(resolve_weights(theirs)) / RANGES and path.exists()
    assert about(path.parent)["windows"] == "2" and find_damage(path.parent) == ""


# ---- the verb ----


def test_the_verb_measures_a_classifier_and_an_encoder(copy, tmp_path, aloud, capsys, monkeypatch):
    monkeypatch.setenv("BERTQA_CACHE", str(tmp_path / "cache"))
    texts = tmp_path / "texts.csv"
    texts.write_text("review,label\n" + "".join(f"{'a b ' * n}c,x\n" for n in range(9)))
    for name in ("bert-classes", "bert-bare"):
        theirs = copy(name)
        flags = ["--windows", "4", "--text-column", "review", "--device", "cpu"]
        assert main([str(theirs), str(texts), *flags]) == 0
        where = Path(resolve_weights(theirs))
        assert "int8: measured on 4 windows in " in capsys.readouterr().err
        assert read_ranges(where, encoder_of(where)) is not None
    assert folder.read_config(resolve_weights(tmp_path / "bert-classes"))["head"] == CLASSES


@needs_vnni
@pytest.mark.parametrize("verb", ["embed", "predict"])
def test_verbs_of_texts_know_int8(copy, tmp_path, verb, capsys, monkeypatch):
    monkeypatch.setenv("BERTQA_CACHE", str(tmp_path / "cache"))
    from bertqa import embed, predict

    theirs = copy("bert-classes")
    where = Path(resolve_weights(theirs))
    texts = [f"{'a b ' * n}c word{n}" for n in range(9)]
    calibrate_int8(where, texts)
    run = {"embed": embed.main, "predict": predict.main}[verb]
    printed = []
    for flags in ([], ["--int8"]):
        more = ["--json"] if verb == "predict" else []
        assert (
            run(["--model", str(where), "--text", texts[5], "--device", "cpu", *flags, *more]) == 0
        )
        printed.append(json.loads(capsys.readouterr().out))
    if verb == "predict":
        printed = [
            [found["probabilities"][name] for name in ("no", "yes", "maybe")] for found in printed
        ]
    exact, near = np.array(printed)
    assert 0 < np.abs(exact - near).max() < 0.1 * np.ptp(exact)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--windows", "0"], "--windows 0: give 1 or more"),
        (["--device", "tpu"], "device is 'tpu'"),
    ],
)
def test_flags_without_meaning(model, letters, flags, says):
    with pytest.raises(UserError, match=says):
        main([str(model), str(letters), *flags])
    assert not (model / RANGES).exists()


def test_data_that_cannot_be_read(model, tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"question": "a?", "context": "a"}\n{"question": 3}\n')
    with pytest.raises(UserError, match="bad.jsonl"):
        main([str(model), str(bad)])
    with pytest.raises(UserError, match="no question or text"):
        drawn([], 4, 0)
    assert not (model / RANGES).exists()


# ---- training ----


SHORT = dict(max_steps=4, eval_every=2, batch_size=8, max_length=48, max_question=12, overlap=8)


@pytest.fixture
def trained(tiny_model, letters, tmp_path):
    """A short training with an evaluation before its first step and two after it."""
    return fine_tune(letters, weights=tiny_model, out=tmp_path / "run", **SHORT).training.run


def test_training_leaves_ranges_of_the_best_weights(trained, caplog):
    best = trained / "best"
    assert read_ranges(best, encoder_of(best)) is not None and find_damage(best) == ""
    assert 0 < int(about(best)["windows"]) <= 256
    assert not (trained / "last" / RANGES).exists()


def test_training_measures_on_its_windows_drawn_by_seed(tiny_model, letters, tmp_path, caplog):
    settings = dict(max_steps=2, batch_size=8, max_length=48, max_question=12, overlap=8)
    with caplog.at_level("INFO", logger="bertqa"):
        fine_tune(letters, weights=tiny_model, out=tmp_path / "run", **settings)
    windows = about(tmp_path / "run" / "best")["windows"]
    assert f"best/: ranges for int8 measured on {windows} training windows in " in caplog.text


@pytest.fixture
def measurements(monkeypatch):
    """The model folders that a training measures, in order; the measuring is real."""
    from bertqa import inference
    from bertqa.training import checkpoint

    folders = []

    def counted(folder, *args, **kwargs):
        folders.append(Path(folder))
        return inference.calibrate(folder, *args, **kwargs)

    monkeypatch.setattr(checkpoint, "calibrate", counted)
    return folders


@pytest.fixture
def kept(monkeypatch):
    """Every evaluation finds a new best; of each whether best/ had ranges when it was kept."""
    from bertqa.training import checkpoint

    left = []
    keep_best = checkpoint.keep_best
    evaluate = QuestionAnswering.evaluate

    def keep(job):
        keep_best(job)
        left.append((job.run / "best" / RANGES).exists())

    def better_than_ever(self, model, autocast):
        return {**evaluate(self, model, autocast), "f1": 1000.0 + len(left)}

    monkeypatch.setattr(checkpoint, "keep_best", keep)
    monkeypatch.setattr(QuestionAnswering, "evaluate", better_than_ever)
    return left


def test_ranges_are_measured_once_however_often_a_new_best_comes(
    tiny_model, letters, tmp_path, measurements, kept
):
    fine_tune(letters, weights=tiny_model, out=tmp_path / "run", **SHORT)
    assert kept == [False, False, False]  # of step 0, 2 and 4
    assert measurements == [tmp_path / "run" / "best"]


def test_a_run_that_is_killed_leaves_a_whole_best_without_ranges_and_measures_when_it_ends(
    tiny_model, letters, tmp_path, monkeypatch, measurements
):
    from bertqa import train
    from bertqa.training import checkpoint

    run = tmp_path / "run"
    best = run / "best"
    counted = checkpoint.calibrate

    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "calibrate", killed)
    with pytest.raises(KeyboardInterrupt):
        fine_tune(letters, weights=tiny_model, out=run, **SHORT)
    assert not (best / RANGES).exists() and find_damage(best) == ""
    assert (run / "summary.json").exists()  # all else is written before

    # No step is left, so no new best can come.
    monkeypatch.setattr(checkpoint, "calibrate", counted)
    for _ in range(2):
        assert train.main(["--resume", str(run)]) == 0
        assert measurements == [best]  # ranges that are there are not measured again
        assert read_ranges(best, encoder_of(best)) is not None and find_damage(best) == ""


def test_a_new_best_of_a_resumed_run_has_no_ranges_of_the_old_weights(trained, measurements, kept):
    from bertqa import train

    assert train.main(["--resume", str(trained), "--max-steps", "8"]) == 0
    assert kept == [False, False] and measurements == [trained / "best"]
    best = trained / "best"
    assert read_ranges(best, encoder_of(best)) is not None and find_damage(best) == ""


def test_a_run_that_is_stopped_leaves_ranges(tiny_model, letters, tmp_path, measurements):
    settings = {**SHORT, "eval_every": 1, "max_minutes": 1e-6}
    stopped = fine_tune(letters, weights=tiny_model, out=tmp_path / "run", **settings).training
    assert not stopped.outcome.finished
    best = tmp_path / "run" / "best"
    assert measurements == [best]
    assert read_ranges(best, encoder_of(best)) is not None and find_damage(best) == ""


def test_a_signal_does_not_wait_for_ranges(
    tiny_model, letters, tmp_path, monkeypatch, measurements
):
    """Who sends SIGTERM may send SIGKILL soon, and a large model takes minutes."""
    from bertqa import train
    from bertqa.training import checkpoint

    run = tmp_path / "run"
    keep_best = checkpoint.keep_best

    def keep(job):
        keep_best(job)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(checkpoint, "keep_best", keep)
    with pytest.raises(KeyboardInterrupt):
        fine_tune(letters, weights=tiny_model, out=run, **SHORT)
    assert measurements == [] and find_damage(run / "best") == ""

    monkeypatch.setattr(checkpoint, "keep_best", keep_best)
    assert train.main(["--resume", str(run)]) == 0
    assert measurements == [run / "best"]


@pytest.mark.parametrize("flags", [["--max-steps", "6"], []], ids=["more steps", "at its end"])
def test_a_resumed_run_makes_damaged_ranges_anew(trained, measurements, flags):
    from bertqa import train

    best = trained / "best"
    content = bytearray((best / RANGES).read_bytes())
    content[-1] ^= 1
    (best / RANGES).write_bytes(content)
    assert train.main(["--resume", str(trained), *flags]) == 0
    assert measurements == [best]
    assert find_damage(best) == "" and read_ranges(best, encoder_of(best)) is not None


def test_a_training_is_worth_more_than_its_ranges(
    tiny_model, letters, tmp_path, monkeypatch, caplog
):
    def full(*args):
        raise RuntimeError("CUDA out of memory. Tried to allocate")

    monkeypatch.setattr("bertqa.training.checkpoint.calibrate", full)
    settings = dict(max_steps=1, batch_size=8, max_length=48, max_question=12, overlap=8)
    fine_tune(letters, weights=tiny_model, out=tmp_path / "run", **settings)
    assert "warning: best/ has no ranges for int8: CUDA out of memory" in caplog.messages
    assert find_damage(tmp_path / "run" / "best") == ""


# ---- what is said of speed ----


@pytest.fixture
def units(monkeypatch):
    """A process that has said nothing yet; call it with whether the processor has bf16 units."""
    monkeypatch.setattr(device, "_said", set())

    def has(bf16: bool, amx: bool = False):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)

    return has


def hints(recwarn) -> list[str]:
    return [str(warning.message) for warning in recwarn if warning.category is SpeedHint]


def test_a_reader_says_once_what_is_faster(tiny_model, units, recwarn, capsys):
    units(True)
    for _ in range(2):
        Reader.load(tiny_model, "cpu")
    (hint,) = hints(recwarn)
    assert "--precision bf16" in hint and "--int8" in hint and "\n" not in hint
    assert one_line(hint, SpeedHint, "reader.py", 3) == f"hint: {hint}\n"
    assert one_line("x", UserWarning, "reader.py", 3) == "warning: x\n"
    assert capsys.readouterr().out == ""
    where = [warning.filename for warning in recwarn if warning.category is SpeedHint]
    assert where == [__file__]  # of who called


@pytest.mark.parametrize("options", [{"dtype": "fp32"}, {"int8": True}])
def test_who_has_chosen_is_told_nothing(measured, units, recwarn, options):
    units(True)
    Reader.load(measured, "cpu", **options)
    assert hints(recwarn) == []


def test_other_processors_say_nothing(tiny_model, units, recwarn):
    units(False)
    Reader.load(tiny_model, "cpu")
    assert hints(recwarn) == [] and not device.has_bf16_units()
    units(False, amx=True)
    assert device.has_bf16_units()


def test_the_hint_can_be_silenced(tiny_model, units):
    units(True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=bertqa.SpeedHint)
        Reader.load(tiny_model, "cpu")


def test_of_several_processes_the_first_says_it(tiny_model, units, recwarn, monkeypatch):
    units(True)
    monkeypatch.setenv("RANK", "1")
    Reader.load(tiny_model, "cpu")
    assert hints(recwarn) == []


@pytest.mark.parametrize(("precision", "count"), [("auto", 1), ("fp32", 0)])
def test_a_training_says_once_what_is_faster(
    tiny_model, letters, tmp_path, units, caplog, precision, count
):
    units(True)
    settings = dict(
        max_steps=1, batch_size=8, max_length=48, max_question=12, overlap=8, device="cpu"
    )
    with caplog.at_level("INFO", logger="bertqa"), warnings.catch_warnings():
        warnings.simplefilter("ignore", SpeedHint)  # of the Reader that comes of it
        for name in ("one", "two"):
            fine_tune(
                letters, weights=tiny_model, out=tmp_path / name, precision=precision, **settings
            )
    said = [line for line in caplog.messages if line.startswith("hint: ")]
    assert len(said) == count and all("--precision bf16 trains" in line for line in said)


def test_help_says_it_too():
    from bertqa.console import BF16_ANSWERS, INT8_ANSWERS

    for verb in ("predict", "embed"):
        command = [sys.executable, "-m", f"bertqa.{verb}", "--help"]
        shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
        shown = " ".join(shown.split())
        assert BF16_ANSWERS in shown and INT8_ANSWERS in shown
