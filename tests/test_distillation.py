"""Teachers: the loss by hand, the cache and what can go wrong with it, runs cut, resumed and shared; the ensemble."""

import errno
import json
import os
import shutil
from copy import copy as shallow
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from processes import most_apart, run_ranks, small_work, training, weights
from safetensors.torch import load_file
from test_training import events, run, same
from tiny_checkpoints import write_checkpoint

from bertqa import UserError
from bertqa.data.batches import WindowStore
from bertqa.hf.convert import resolve_weights
from bertqa.model import folder
from bertqa.model.attention import Layout
from bertqa.model.heads import BertForQuestionAnswering, Ensemble, SpanLogits, span_loss
from bertqa.predict import main as predict
from bertqa.predict import together
from bertqa.reader import Reader
from bertqa.settings import DistillationSettings
from bertqa.train import main
from bertqa.training import distillation
from bertqa.training.distillation import (
    Teaching,
    ask_teachers,
    class_divergence,
    rows_of,
    span_divergence,
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The cache folder of a test is its own."""
    monkeypatch.setenv("BERTQA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def teachers(tmp_path_factory, tiny_model) -> list[str]:
    """Two readers of the student's size and vocabulary with other weights."""
    where = tmp_path_factory.mktemp("teachers")
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = BertForQuestionAnswering(folder.load(tiny_model).config)
        with torch.no_grad():
            model.span.weight.mul_(20)  # so sure of itself that a student can tell
        folder.save(where / f"t{seed}", model, tokenizer_from=tiny_model, provenance={"source": ""})
    return [str(where / "t1"), str(where / "t2")]


@pytest.fixture(scope="module")
def task(tiny_model, letters):
    """What the teachers see of a student: the question answering task over the letters."""
    from bertqa.settings import QuestionAnsweringSettings
    from bertqa.training.question_answering import QuestionAnswering

    return QuestionAnswering(
        str(letters),
        str(letters),
        tiny_model,
        QuestionAnsweringSettings(max_length=32, overlap=4, max_question=8),
        seed=0,
        device=torch.device("cpu"),
        say=lambda line: None,
        progress=False,
    )


def ask(task, *names, say=lambda line: None, **settings) -> Teaching:
    chosen = DistillationSettings(teacher=[str(name) for name in names], **settings)
    task = shallow(task)
    task.say = say
    folders = [Path(resolve_weights(name)) for name in names]
    return ask_teachers(chosen, folders, task, torch.float32)


# The loss


def plain_divergence(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> float:
    """KL(teacher || student) of two rows of logits, in float64, number by number."""
    p = np.exp(student.double().numpy() / temperature)
    q = np.exp(teacher.double().numpy() / temperature)
    total = 0.0
    for one, other in zip(p / p.sum(), q / q.sum(), strict=True):
        total += other * np.log(other / one)
    return total


@pytest.mark.parametrize("temperature", [1.0, 2.0, 8.0])
def test_span_divergence_is_that_of_a_plain_loop(temperature):
    lengths = (5, 13, 1, 7)
    layout = Layout.of(lengths, torch.device("cpu"))
    torch.manual_seed(0)
    student, teacher = torch.randn(2, sum(lengths), 2) * 6
    expected, begin = 0.0, 0
    for length in lengths:
        for column in (0, 1):
            window = slice(begin, begin + length)
            expected += plain_divergence(
                student[window, column], teacher[window, column], temperature
            )
        begin += length
    found = span_divergence(SpanLogits(*student.unbind(1)), teacher, layout, temperature)
    assert float(found.sum()) == pytest.approx(expected / 2, rel=1e-5)


def test_class_divergence_is_that_of_a_plain_loop():
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 6, 4) * 5
    expected = sum(plain_divergence(*pair, 3.0) for pair in zip(student, teacher, strict=True))
    assert float(class_divergence(student, teacher, 3.0).sum()) == pytest.approx(expected, rel=1e-5)


def test_hard_and_soft_loss_are_weighted():
    layout = Layout.of((3, 4), torch.device("cpu"))
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 7, 2)
    logits = SpanLogits(*student.unbind(1))
    # The store has another window of 2 tokens between the two of this batch, which come in the other order.
    kept = torch.cat([teacher[3:], torch.zeros(2, 2), teacher[:3]])
    teaching = Teaching([], "", kept.half(), torch.tensor([0, 4, 6]), 0.75, 2.0)
    batch = SimpleNamespace(picked=torch.tensor([2, 0]), weights=torch.ones(2))
    found = teaching.span_loss(torch.tensor(8.0), logits, batch, layout)
    soft = span_divergence(logits, teacher.half(), layout, 2.0).sum()
    assert float(found) == pytest.approx(0.25 * 8 + 0.75 * 4 * float(soft))


def gradient_of(teaching: Teaching, task, model) -> float:
    """The largest gradient of any weight, over all windows at once."""
    batch = task.store.batch(np.arange(len(task.store)))
    layout = Layout.of(batch.lengths, torch.device("cpu"))
    logits = model(batch.input_ids, token_type_ids=batch.token_type_ids, lengths=layout)
    hard = span_loss(logits, layout, batch.start_labels, batch.end_labels)
    model.zero_grad()
    teaching.span_loss(hard, logits, batch, layout).backward()
    return max(float(parameter.grad.abs().max()) for parameter in model.parameters())


def test_a_frozen_copy_of_the_student_teaches_nothing(task, tiny_model, teachers):
    """At weight 1 the gradient is 0; through the cache it is what float16 rounds off."""
    model = folder.load(tiny_model)
    teaching = ask(task, tiny_model, teacher_weight=1.0)
    other = gradient_of(ask(task, *teachers, teacher_weight=1.0), task, model)
    assert gradient_of(teaching, task, model) < 1e-3 * other

    batch = task.store.batch(np.arange(len(task.store)))
    layout = Layout.of(batch.lengths, torch.device("cpu"))
    with torch.no_grad():
        logits = model(batch.input_ids, token_type_ids=batch.token_type_ids, lengths=layout)
    teaching.logits = torch.stack(logits, 1)  # as they are, in float32
    assert gradient_of(teaching, task, model) < 1e-6 * other


def test_windows_that_only_fill_a_static_batch_teach_nothing(task, tiny_model, teachers):
    """The batch that CUDA graphs are made of: token counts rounded up, a window missing, dummies behind the last."""
    model = folder.load(tiny_model)
    teaching = ask(task, *teachers)
    rows = np.array([7, 3, 11])
    static = task.store.static_batch(torch.tensor([7, 3, 11, -1]), 128)
    found = []
    for batch in (task.store.batch(rows), static):
        layout = Layout.of_batch(batch)
        logits = model(batch.input_ids, token_type_ids=batch.token_type_ids, lengths=layout)
        model.zero_grad()
        loss = teaching.span_loss(torch.zeros(()), logits, batch, layout)
        loss.backward()
        found.append((loss.item(), model.span.weight.grad.clone()))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    assert torch.allclose(found[0][1], found[1][1], atol=1e-5)


# What the teachers say


def test_the_mean_of_the_teachers_is_kept_for_every_token(task, teachers):
    """Row by row what each teacher says when it is asked window by window, up to a shift of each window."""
    teaching = ask(task, *teachers)
    assert teaching.logits.dtype == torch.float16
    assert len(teaching.logits) == task.store.lengths.sum()
    models = [folder.load(name) for name in teachers]
    for window, length in enumerate(task.store.lengths.tolist()):
        batch = task.store.batch(np.array([window]))
        with torch.no_grad():
            said = [
                torch.stack(
                    model(
                        batch.input_ids,
                        token_type_ids=batch.token_type_ids,
                        lengths=batch.lengths,
                    ),
                    1,
                )
                for model in models
            ]
        mean = (said[0] + said[1]) / 2  # (length, 2)
        begin = int(teaching.first[window])
        kept = teaching.logits[begin : begin + length].float()
        assert torch.allclose(kept, mean - mean.amax(0), atol=0.02)


def test_rows_of_windows_by_hand():
    starts = np.array([0, 3, 5, 9])
    assert rows_of(np.array([2, 0]), starts).tolist() == [5, 6, 7, 8, 0, 1, 2]
    assert rows_of(np.array([1]), starts).tolist() == [3, 4]


def test_an_ensemble_says_the_mean(teachers, task):
    models = [folder.load(name) for name in teachers]
    batch = task.store.batch(np.arange(5))
    inputs = {"token_type_ids": batch.token_type_ids, "lengths": batch.lengths}
    with torch.no_grad():
        first, second = (model(batch.input_ids, **inputs) for model in models)
        both = Ensemble(models)(batch.input_ids, **inputs)
    assert torch.allclose(both.start, (first.start + second.start) / 2)
    assert torch.allclose(both.end, (first.end + second.end) / 2)


def test_several_models_predict_by_the_mean_of_their_logits(tmp_path, teachers, letters, capsys):
    def predicted(name, *models):
        flags = ["--model", *models, "--data", str(letters), "--out", str(tmp_path / name)]
        assert predict([*flags, "--device", "cpu"]) == 0
        return json.loads((tmp_path / name / "null_odds.json").read_text())

    one = predicted("one", teachers[0])
    assert predicted("twice", teachers[0], teachers[0]) == pytest.approx(one, abs=1e-5)
    both = predicted("both", *teachers)
    assert both == pytest.approx(predicted("turned", *reversed(teachers)), abs=1e-5)
    assert both != pytest.approx(one, abs=1e-2)


def test_the_threshold_of_several_models_is_the_mean_of_theirs(tmp_path, teachers):
    qa = {"max_length": 48, "overlap": 8, "max_question": 8}
    for number, name in enumerate(teachers):
        shutil.copytree(name, tmp_path / f"m{number}")
        folder.write_qa(tmp_path / f"m{number}", {**qa, "null_threshold": 1.0 + 2 * number})
    first, second = (Reader.load(tmp_path / f"m{number}", "cpu") for number in range(2))
    assert together([first, second], ["m1"]).qa == {**first.qa, "null_threshold": 2.0}
    del second.qa["null_threshold"]
    first.qa["confidence"] = {}  # is the first one's, and says nothing about their mean
    assert "confidence" not in together([first, second], ["m1"]).qa
    assert together([first, second], ["m1"]).qa["null_threshold"] is None


def test_several_models_must_have_one_vocabulary(tmp_path, teachers, letters):
    other = write_checkpoint(tmp_path / "hf")
    flags = ["--data", str(letters), "--out", str(tmp_path / "out"), "--device", "cpu"]
    with pytest.raises(UserError, match="its vocabulary is not the first model's") as caught:
        predict(["--model", teachers[0], str(other), *flags])
    assert f"/{other.name}-" in str(caught.value)  # the folder that it was converted into
    with pytest.raises(UserError, match="--text takes one model"):
        predict(["--model", *teachers, "--text", "a"])


# The cache


def forbid_answers(monkeypatch):
    """From here on no teacher may be asked."""

    def asked(*args, **options):
        raise AssertionError("the teachers were asked again")

    monkeypatch.setattr(distillation, "forward_all", asked)


def test_teachers_are_asked_once(task, teachers, cache, monkeypatch):
    lines = []
    first = ask(task, *teachers, say=lines.append)
    forbid_answers(monkeypatch)
    again = ask(task, *reversed(teachers), say=lines.append, temperature=5.0)
    assert torch.equal(first.logits, again.logits) and first.fingerprint == again.fingerprint
    kept = cache / "teachers" / f"{first.fingerprint}.safetensors"
    assert list(kept.parent.iterdir()) == [kept]
    assert f"kept in {kept}" in lines[0] and f"read from {kept}" in lines[1]


def test_other_weights_windows_or_number_formats_are_asked_anew(task, teachers, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(teachers[0], copy)
    before = ask(task, copy)
    assert ask(task, teachers[0]).fingerprint == before.fingerprint  # the name is not the model
    torch.manual_seed(5)
    model = BertForQuestionAnswering(folder.load(copy).config)
    folder.save(copy, model, tokenizer_from=teachers[0], provenance={"source": ""})
    after = ask(task, copy)
    assert after.fingerprint != before.fingerprint
    assert not torch.equal(after.logits, before.logits)

    fewer = shallow(task)
    fewer.windows = task.windows.select(np.arange(10))
    assert len(ask(fewer, copy).logits) == task.store.lengths[:10].sum()
    chosen = DistillationSettings(teacher=[str(copy)])
    bf16 = ask_teachers(chosen, [copy], task, torch.bfloat16)
    assert bf16.fingerprint != after.fingerprint


def test_other_orders_of_the_classes_are_asked_anew(task):
    """Of classes that no training text has, the windows say nothing."""
    found = set()
    for labels in (None, ["a", "b", "c"], ["a", "c", "b"]):
        student = SimpleNamespace(windows=task.windows, labels=labels)
        found.add(distillation.fingerprint_of(student, ["sum"], torch.float32))
    assert len(found) == 3


@pytest.mark.parametrize("harm", ["flipped", "cut", "empty", "other"])
def test_a_damaged_cache_is_made_again(task, teachers, cache, harm):
    whole = ask(task, *teachers)
    path = cache / "teachers" / f"{whole.fingerprint}.safetensors"
    content = path.read_bytes()
    if harm == "flipped":
        path.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    elif harm == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif harm == "empty":
        path.write_bytes(b"")
    else:  # another run's file under this name
        other = ask(task, teachers[0])
        os.replace(path.with_name(f"{other.fingerprint}.safetensors"), path)
    # What a killed process leaves behind is nobody's logits.
    path.with_name(path.name + ".x.tmp").write_bytes(content[:100])
    said = []
    again = ask(task, *teachers, say=said.append)
    assert torch.equal(again.logits, whole.logits)
    assert torch.equal(load_file(path)["logits"], whole.logits)
    warning, stored = said
    assert str(path) in warning and "damaged" in warning and "are kept in" in stored


def test_a_full_disk_costs_the_cache_and_not_the_run(
    tmp_path, tiny_model, letters, teachers, monkeypatch, capsys
):
    def full(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(distillation, "save_file", full)
    run(tmp_path / "run", tiny_model, letters, "--teacher", *teachers, "--max-steps", "2")
    said = [line for line in capsys.readouterr().err.splitlines() if "could not be kept" in line]
    assert len(said) == 1 and "No space left" in said[0] and "BERTQA_CACHE" in said[0]
    assert not list((tmp_path / "cache" / "teachers").iterdir())


# Runs


@pytest.fixture(scope="module")
def taught(tmp_path_factory, tiny_model, letters, teachers):
    """A run with teachers, dropout, an average of the weights and cut batches, that nothing happened to."""
    before = os.environ.get("BERTQA_CACHE")
    os.environ["BERTQA_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    out = run(tmp_path_factory.mktemp("runs") / "taught", tiny_model, letters, *steps(teachers))
    if before is None:
        del os.environ["BERTQA_CACHE"]
    return out


def steps(teachers) -> list[str]:
    return ["--teacher", *teachers, "--epochs", "2", "--ema", "0.9", "--micro-tokens", "100"]


def test_teachers_change_what_is_learned(taught, tmp_path, tiny_model, letters, teachers):
    plain = run(tmp_path / "plain", tiny_model, letters, *steps(teachers)[3:])
    assert not same(weights(taught), weights(plain))
    hard = run(tmp_path / "hard", tiny_model, letters, *steps(teachers), "--teacher-weight", "0.1")
    assert not same(weights(taught), weights(hard))


def test_resumed_run_with_teachers_is_the_unbroken_one(
    tmp_path, tiny_model, letters, teachers, taught, monkeypatch
):
    out = run(tmp_path / "run", tiny_model, letters, *steps(teachers), "--max-minutes", "1e-9")
    assert len(events(out, "train")) == 1
    forbid_answers(monkeypatch)  # the resumed run finds the logits in the cache
    assert main(["--resume", str(out), "--max-minutes", "60"]) == 0
    assert same(weights(out), weights(taught))
    assert same(weights(out, "best"), weights(taught, "best"))
    assert events(out, "train") == events(taught, "train")


def test_resume_refuses_other_teachers(tmp_path, tiny_model, letters, teachers):
    copy = tmp_path / "copy"
    shutil.copytree(teachers[0], copy)
    more = ["--teacher", str(copy), "--max-minutes", "1e-9"]
    out = run(tmp_path / "run", tiny_model, letters, *more)
    shutil.rmtree(copy)
    shutil.copytree(teachers[1], copy)
    with pytest.raises(UserError, match="cannot resume, because teachers was"):
        main(["--resume", str(out)])


def test_the_card_names_the_teachers(taught, teachers):
    card = (taught / "best" / "README.md").read_text()
    provenance = json.loads((taught / "best" / "config.json").read_text())["provenance"]
    for name in teachers:  # by name alone: a card tells nothing of the machine
        assert Path(name).name in provenance["taught_by"] and name not in card
    assert "- taught by: " in card and "- teacher_weight: 0.8" in card


def test_a_plain_card_says_nothing_of_them(tmp_path, tiny_model, letters):
    out = run(tmp_path / "run", tiny_model, letters, "--max-steps", "1")
    card = (out / "best" / "README.md").read_text()
    assert "teacher" not in card and "temperature" not in card and "taught" not in card


def keep_cache_in(where: str) -> None:
    """A hook for processes: their cache folder."""
    os.environ["BERTQA_CACHE"] = where


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked here")
def test_two_ranks_learn_what_one_does(tmp_path, tiny_model, letters, teachers):
    """Same teachers' logits to the bit, same weights to rounding."""
    more = ["--teacher", *teachers, "--batch-size", "4", "--max-steps", "12", "--dropout", "0"]
    more += ["--eps", "1e-4", "--micro-tokens", "60"]
    kept = []
    for size in (1, 2):
        where = tmp_path / f"cache{size}"
        hook = partial(keep_cache_in, str(where))
        arguments = training(tiny_model, letters, tmp_path / f"run{size}", *more)
        run_ranks(arguments, size, tmp_path / f"logs{size}", small_work, hook)
        kept.append(load_file(next((where / "teachers").iterdir()))["logits"])
    assert torch.equal(*kept)
    assert 0 < most_apart(weights(tmp_path / "run1"), weights(tmp_path / "run2")) < 1e-6


# Mistakes


def says(task, *names) -> str:
    with pytest.raises(UserError) as caught:
        ask(task, *names)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_teacher_needs_the_vocabulary(task, tmp_path, teachers):
    other = tmp_path / "other"
    shutil.copytree(teachers[0], other)
    tokens = (other / "vocab.txt").read_text().split("\n")
    place = tokens.index("k")
    tokens[place] = "kk"
    (other / "vocab.txt").write_text("\n".join(tokens))
    said = says(task, teachers[0], other)
    assert str(other) in said and "2 tokens differ" in said
    assert f'"k" is unknown there and {place} here' in said


def test_a_teacher_needs_a_head(task, tmp_path, tiny_model):
    encoder = tmp_path / "encoder"
    folder.save(encoder, folder.load_encoder(tiny_model), tokenizer_from=tiny_model)
    said = says(task, encoder)
    assert str(encoder) in said and "its head is none" in said and "fine-tune it first" in said


def test_a_teacher_needs_positions(task, tmp_path, tiny_model):
    short = tmp_path / "short"
    config = folder.load(tiny_model).config.replace(max_position_embeddings=16)
    folder.save(short, BertForQuestionAnswering(config), tokenizer_from=tiny_model)
    assert "it has 16 positions" in says(task, short) and "--max-length 16" in says(task, short)


def test_a_teacher_must_exist(task):
    assert "no-such-teacher" in says(task, "no-such-teacher")


def test_a_hugging_face_folder_of_other_tokens_is_no_teacher(task, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = says(task, write_checkpoint(tmp_path / "hf"))
    assert "its vocabulary is not the student's" in said


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--teacher-weight", "0"], "teacher_weight is 0.0, it must lie in (0, 1]"),
        (["--teacher-weight", "1.5"], "teacher_weight is 1.5"),
        (["--temperature", "0"], "temperature is 0.0, it must be positive"),
        (["--temperature", "inf"], "temperature is inf"),
    ],
)
def test_settings_are_checked(tmp_path, tiny_model, letters, flags, says):
    with pytest.raises(UserError) as caught:
        run(tmp_path / "run", tiny_model, letters, *flags)
    assert says in str(caught.value)


def test_teachers_in_a_settings_file_are_a_list(tmp_path, tiny_model, letters):
    (tmp_path / "c.json").write_text(json.dumps({"teacher": "one"}))
    with pytest.raises(UserError, match="teacher is .*one.*, it must be a list of texts"):
        run(tmp_path / "run", tiny_model, letters, "--config", str(tmp_path / "c.json"))


# Classes


def test_classifiers_learn_from_classifiers(tmp_path, tiny_model):
    """From a teacher whose classes stand in another order: the student says what the teacher says."""
    rows = ["text,label"]
    for number in range(40):
        first, label = [("a", "no"), ("b", "perhaps"), ("c", "yes")][number % 3]
        rows.append(f"{first} {' '.join('defgh'[: number % 5])},{label}")
    (tmp_path / "texts.csv").write_text("\n".join(rows) + "\n")
    shared = ["--task", "classify", "--train", str(tmp_path / "texts.csv"), "--max-length", "16"]
    shared += ["--batch-size", "8", "--lr", "3e-3", "--dropout", "0", "--threads", "1"]
    weights = ["--weights", str(tiny_model)]
    assert main([*shared, *weights, "--epochs", "8", "--out", str(tmp_path / "first")]) == 0
    teacher = tmp_path / "teacher"
    shutil.copytree(tmp_path / "first" / "best", teacher)
    model, order = folder.load(teacher), [2, 0, 1]
    with torch.no_grad():
        model.classifier.weight.copy_(model.classifier.weight[order])
        model.classifier.bias.copy_(model.classifier.bias[order])
    labels = folder.read_config(teacher)["labels"]
    turned = [labels[place] for place in order]
    folder.save(teacher, model, tokenizer_from=tiny_model, labels=turned)

    more = ["--teacher", str(teacher), "--teacher-weight", "1", "--epochs", "12"]
    assert main([*shared, *weights, *more, "--out", str(tmp_path / "second")]) == 0
    summary = json.loads((tmp_path / "second" / "summary.json").read_text())
    assert summary["best_macro_f1"] > 90
    assert (tmp_path / "second" / "best" / "README.md").read_text().count("taught by") == 1

    folder.save(teacher, model, tokenizer_from=tiny_model, labels=["x", "y", "z"])
    with pytest.raises(UserError, match="its classes are x, y, z"):
        main([*shared, *weights, *more, "--out", str(tmp_path / "third")])


def test_a_class_teacher_of_a_reader_is_refused(task, tmp_path, tiny_model):
    from bertqa.model.heads import BertForSequenceClassification

    config = folder.load(tiny_model).config
    where = tmp_path / "classes"
    model = BertForSequenceClassification(config, 2)
    folder.save(where, model, tokenizer_from=tiny_model, labels=["a", "b"])
    assert "its head is sequence-classification" in says(task, where)


def test_the_store_knows_its_rows_on_the_device(task):
    batch = WindowStore(task.windows).batch(np.array([4, 1, 7]))
    assert batch.picked.tolist() == [4, 1, 7]


def test_files_in_the_cache_are_plain_safetensors(task, teachers, cache):
    teaching = ask(task, *teachers)
    content = load_file(cache / "teachers" / f"{teaching.fingerprint}.safetensors")
    assert torch.equal(content["logits"], teaching.logits)
