"""The loop and its step called from Python: what a setting says holds wherever they are called."""

import dataclasses
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import bertqa.model
from bertqa import BertConfig, BertForQuestionAnswering
from bertqa.data.batches import (
    WindowStore,
    bucket_of,
    bucket_width,
    epoch_order,
    split_evenly,
    step_rows,
)
from bertqa.data.examples import read_examples
from bertqa.data.tokenizer import WordPiece
from bertqa.data.windows import build_windows
from bertqa.device import OnItsWay
from bertqa.distributed import World
from bertqa.errors import UserError
from bertqa.model.attention import Layout, per_sequence_attention
from bertqa.model.copies import WeightCopies, computing_in_16_bits, foreign
from bertqa.model.encoder import Layer
from bertqa.model.heads import BertForSequenceClassification, Ensemble, span_loss
from bertqa.reporting.run_folder import read_journal
from bertqa.settings import LoopSettings, OptimSettings, broken
from bertqa.training import loop as loop_module
from bertqa.training import progress as progress_module
from bertqa.training.capture import Plan, plan_of, settle
from bertqa.training.gradients import Gradients
from bertqa.training.job import Job
from bertqa.training.loop import Trainer, train
from bertqa.training.optim import freeze, lr_at
from bertqa.training.progress import Journal, Logs, Outcome, Progress, summary
from bertqa.training.step import Step, StepResult

CPU = torch.device("cpu")
CPU_FLOAT = torch.float32


class Spans:
    """A task with the least that the loop asks for: windows, a loss, a metric."""

    key = "f1"
    static_shapes = True

    def __init__(self, windows, device=CPU):
        self.store = WindowStore(windows, device)

    def loss(self, model, batch, layout):
        logits = model(batch.input_ids, token_type_ids=batch.token_type_ids, lengths=layout)
        return span_loss(
            logits, layout, batch.start_labels, batch.end_labels, weights=batch.weights
        )

    def evaluate(self, model, autocast):
        return {"f1": 0.0}

    def save_model(self, model, folder, evaluated):
        folder.mkdir(exist_ok=True)

    def save_predictions(self, run):
        pass


def tiny(dropout=0.1, seed=0):
    """A random model over the vocabulary of letters."""
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=36,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=64,
        initializer_range=0.1,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=0.0,
    )
    return BertForQuestionAnswering(config)


@pytest.fixture(scope="module")
def windows(letters, tiny_model):
    examples = read_examples(letters).trainable()
    tokenizer = WordPiece.load(tiny_model)
    return build_windows(examples, tokenizer, max_length=32, overlap=4, max_question=8)


def job_of(model, task, run: Path, optim=OptimSettings(lr=1e-3), **settings) -> Job:
    run.mkdir(exist_ok=True)
    return Job(
        model,
        task,
        LoopSettings(**{"batch_size": 8, "max_steps": 3, "epochs": 9, **settings}),
        optim,
        run=run,
        device=CPU,
        dtype=torch.float32,
        journal=Journal(run / "metrics.jsonl"),
    )


def trained(tmp_path, name, windows, **more):
    """The weights after three steps, by name."""
    model = tiny()
    train(job_of(model, Spans(windows), tmp_path / name, **more))
    return {name: weight.detach() for name, weight in model.named_parameters()}


# ---- what settings say holds wherever the loop is called ----


def test_the_loop_freezes(tmp_path, windows):
    before = dict(tiny().named_parameters())
    after = trained(tmp_path, "run", windows, optim=OptimSettings(lr=1e-3, freeze="encoder"))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"span.weight", "span.bias"}


def test_the_loop_draws_by_its_seed(tmp_path, windows):
    """Dropout, not only the order of the data: whatever was drawn before, the same seed trains alike."""
    one = trained(tmp_path, "one", windows, seed=3)
    torch.rand(7)
    two = trained(tmp_path, "two", windows, seed=3)
    other = trained(tmp_path, "other", windows, seed=4)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_evaluation_before_the_first_step(tmp_path, windows):
    job = job_of(tiny(), Spans(windows), tmp_path / "run")
    job.evaluate_first = True
    train(job)
    evaluations = [
        record["step"]
        for record in read_journal(tmp_path / "run" / "metrics.jsonl")
        if record["event"] == "eval"
    ]
    assert evaluations == [0, 3]


def test_of_equal_evaluations_the_first_is_kept(tmp_path, windows):
    outcome = train(job_of(tiny(), Spans(windows), tmp_path / "run", eval_every=1))
    progress = outcome.progress
    assert (progress.best, progress.best_step, progress.evaluated) == (0.0, 1, 3)
    assert (outcome.finished, outcome.stopped_by, outcome.last) == (True, "", {"f1": 0.0})


def test_what_is_counted(tmp_path, windows):
    """An epoch of 53 windows is 7 steps of 8, the last one of 5; the eighth step is of the next epoch."""
    job = job_of(tiny(), Spans(windows), tmp_path / "run", max_steps=8)
    progress = train(job).progress
    next_rows = step_rows(epoch_order(53, job.settings.seed, 1), 0, 8)
    lengths = job.task.store.lengths
    assert (progress.step, progress.windows) == (8, 53 + 8)
    assert progress.tokens == lengths.sum() + lengths[next_rows].sum()
    lines = [
        record
        for record in read_journal(tmp_path / "run" / "metrics.jsonl")
        if record["event"] == "train"
    ]
    assert [record["step"] for record in lines] == [*range(1, 9)]
    assert [record["epoch"] for record in lines] == [round(step / 7, 4) for step in range(1, 9)]
    assert [record["lr"] for record in lines] == [lr_at(step, 8, job.optim) for step in range(8)]


def test_what_is_not_finite_never_reaches_the_weights(tmp_path, windows):
    """On a CPU, where to look costs nothing, the run stops before the update: the weights in memory stay sound."""

    class Broken(Spans):
        def loss(self, model, batch, layout):
            return super().loss(model, batch, layout) * math.nan

    model = tiny()
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    with pytest.raises(UserError, match="the loss is nan"):
        train(job_of(model, Broken(windows), tmp_path / "run"))
    assert all(torch.equal(before[name], weight) for name, weight in model.named_parameters())


def test_a_sitting_ends_by_the_minute_and_takes_a_step_at_least(tmp_path, windows, monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr(loop_module, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    trainer = Trainer(job_of(tiny(), Spans(windows), tmp_path / "run", max_minutes=2.0))
    clock[0] += 500
    assert not trainer.out_of_time  # no step was taken yet
    trainer.progress.step = 1
    for seconds, over in ((119.5, False), (120.0, True), (121.0, True)):
        clock[0] = 1000 + seconds
        assert trainer.out_of_time is over
    trainer.job.settings = dataclasses.replace(trainer.job.settings, max_minutes=None)
    assert not trainer.out_of_time


def test_an_epoch_may_be_one_step(tmp_path, windows):
    train(job_of(tiny(), Spans(windows), tmp_path / "run", batch_size=64))
    records = read_journal(tmp_path / "run" / "metrics.jsonl")
    assert [record["step"] for record in records if record["event"] == "eval"] == [1, 2, 3]


def test_a_signal_to_another_process_stops_this_one(tmp_path, windows):
    class Told(World):
        """What one rank of several sees: somebody else has had a signal."""

        def any(self, *flags):
            return [True, *flags[1:]]

    job = job_of(tiny(), Spans(windows), tmp_path / "run")
    job.world = Told()
    outcome = train(job)
    assert (outcome.finished, outcome.progress.step) == (False, 0)
    assert outcome.stopped_by == "a signal to another process"
    assert (tmp_path / "run" / "last" / "state.pt").exists()
    job = job_of(tiny(), Spans(windows), tmp_path / "other")
    decision = Trainer(job).decide(["SIGTERM", "SIGINT"])
    assert (decision.stop, decision.save, decision.evaluate) == ("SIGTERM", True, False)


def test_a_good_step_starts_the_count_of_skipped_ones_anew():
    trainer = SimpleNamespace(progress=Progress(step=30), job=SimpleNamespace(run=Path("run")))
    skipped, taken = StepResult(None, 0.5, True), StepResult(None, 0.5, False)
    for result in [skipped] * 24 + [taken] + [skipped] * 24:
        Trainer.count_skip(trainer, result)
    assert (trainer.progress.skipped, trainer.progress.skipped_in_row) == (48, 24)
    with pytest.raises(UserError) as stopped:
        Trainer.count_skip(trainer, skipped)
    assert str(stopped.value).startswith("fp16: 25 steps in a row had gradients")
    assert "scale is down to 0.5 and the last good step was 6. " in str(stopped.value)


def test_speed_is_that_of_the_last_fifty_steps(tmp_path, windows, monkeypatch):
    """Two seconds a step; 8 windows in each of the first ten, 16 and 64 tokens in all others. Pauses do not count."""
    clock, said = [0.0], []
    monkeypatch.setattr(progress_module.time, "perf_counter", lambda: clock[0])
    job = job_of(tiny(), Spans(windows), tmp_path / "run")
    job.say = said.append
    progress = Progress()
    logs = Logs(job, progress, 100, 7)
    for step in range(60):
        progress.step += 1
        progress.windows += 8 if step < 10 else 16
        progress.tokens += 0 if step < 10 else 64
        clock[0] += 2
        logs.step(1e-3, OnItsWay(torch.tensor([0.5, 1.0])), None)
        with logs.paused():
            clock[0] += 100
    last = list(read_journal(tmp_path / "run" / "metrics.jsonl"))[-1]
    assert (last["windows_per_s"], last["tokens_per_s"], last["seconds"]) == (8, 32, 120)
    assert (last["loss"], last["grad_norm"]) == (0.5, 1.0) and "loss_scale" not in last
    progress.skipped = 3
    progress.step += 1
    logs.step(1e-3, OnItsWay(torch.tensor([0.5, math.inf])), 1024.0)  # fp16: the scaler skipped it
    last = list(read_journal(tmp_path / "run" / "metrics.jsonl"))[-1]
    assert (last["loss_scale"], last["skipped"], last["grad_norm"]) == (1024.0, 3, "inf")
    with pytest.raises(UserError, match="gradient"):
        logs.step(1e-3, OnItsWay(torch.tensor([0.5, math.inf])), None)
    logs.evaluation({"f1": 1.234, "loss": 0.5, "HasAns_total": 5.0, "questions": 7})
    assert said == ["step 61: f1 1.23, loss 0.50"]


def test_the_summary_of_a_run():
    progress = Progress(
        step=4, skipped=1, best=0.5, best_step=3, windows=10, tokens=50, seconds=2.5
    )
    found = summary(Outcome(progress, {}, True), "f1", CPU)
    assert found.pop("peak_memory_mb") > 1
    assert found == {
        "steps": 4,
        "windows": 10,
        "seconds": 2.5,
        "windows_per_s": 4.0,
        "tokens_per_s": 20.0,
        "skipped": 1,
        "best_f1": 0.5,
        "best_step": 3,
        "finished": True,
    }
    assert summary(Outcome(Progress(), {}, False), "f1", CPU)["windows_per_s"] == 0


def test_ends_of_a_batch_are_not_its_starts(windows):
    longer = dataclasses.replace(windows, end_label=windows.end_label + 1)
    batch = WindowStore(longer).batch(np.arange(8))
    assert batch.start_labels.tolist() == windows.start_label[:8].tolist()
    assert batch.end_labels.tolist() == (windows.start_label[:8] + 1).tolist()


# ---- static batches: token counts rounded up, everything made from the rows ----


def test_buckets():
    assert [bucket_of(tokens) for tokens in (0, 1, 128, 129, 2800)] == [128, 128, 128, 256, 2816]
    for tokens in range(1, 70_000, 37):
        bucket = bucket_of(tokens)
        assert tokens <= bucket < tokens + bucket_width(bucket)
        assert bucket - tokens < max(128, tokens / 31)
        assert bucket_of(bucket) == bucket  # a bucket is in its own bucket
    assert len({bucket_of(tokens) for tokens in range(8192, 16384)}) <= 33  # few serve many


def test_a_static_batch_is_the_plain_one_and_filling(windows):
    store = WindowStore(windows)
    rows = np.array([3, 0, 11, 7])
    plain = store.batch(rows)
    count = len(plain.input_ids)
    static = store.static_batch(torch.tensor([*rows, -1, -1]), bucket_of(count))
    for name in ("input_ids", "token_type_ids", "positions", "sequence"):
        assert torch.equal(getattr(static, name)[:count], getattr(plain, name)), name
    for name in ("start_labels", "end_labels", "weights", "picked"):
        assert torch.equal(getattr(static, name)[:4], getattr(plain, name)), name
        assert not getattr(static, name)[4:].any(), name
    assert static.cu_seqlens[:5].tolist() == plain.cu_seqlens.tolist()
    lengths = static.cu_seqlens.diff()
    assert lengths[4:6].tolist() == [0, 0]  # the missing ones
    assert lengths.max() <= static.longest == store.longest  # dummies too: attention stops there
    assert lengths.sum() == len(static.input_ids) == bucket_of(count) > count
    assert static.lengths is None
    # The first token of each sequence exists, also where there is none.
    assert Layout.of_batch(static).first_tokens.max() < len(static.input_ids)


def test_a_static_batch_without_any_window(windows):
    """That of a rank whose share of the last batch is empty."""
    static = WindowStore(windows).static_batch(torch.tensor([-1, -1]), bucket_of(0))
    assert static.weights.sum() == 0 and static.cu_seqlens[-1] == len(static.input_ids) == 128


def test_attention_by_sequences_says_that_it_needs_lengths(windows):
    static = WindowStore(windows).static_batch(torch.tensor([0, 1]), 128)
    model = tiny()
    model.encoder.attention = per_sequence_attention
    with pytest.raises(UserError, match="a Layout that knows its lengths on the host"):
        model(static.input_ids, lengths=Layout.of_batch(static))


def test_filling_changes_neither_loss_nor_gradients(windows):
    store, model = WindowStore(windows), tiny(dropout=0.0).double()
    plain = store.batch(np.array([3, 0, 11, 7]))
    static = store.static_batch(torch.tensor([3, 0, -1, 11, 7, -1]), 128)
    found = []
    for batch in (plain, static):
        loss = Spans(windows).loss(model, batch, Layout.of_batch(batch))
        model.zero_grad()
        loss.backward()
        found.append([loss, *(parameter.grad for parameter in model.parameters())])
    for one, two in zip(*found, strict=True):
        assert torch.allclose(one, two, atol=1e-12)


# ---- static steps: what is captured on a GPU, here without capture ----

GOOGLE = OptimSettings(lr=1e-3, bias_correction=False, eps=1e-4)


def steps_of(windows, plan, tmp_path, *, optim=None, task=None, model=None, dtype=None, **settings):
    """(numbers (7, 2), weights by name, averages) of seven steps: one epoch of 53 windows, the last with 5 of 8."""
    model = model or tiny(dropout=0.0)
    # Key biases have no gradient but rounding noise, which Adam would blow up to whole steps: a larger eps keeps it noise.
    optim = optim or OptimSettings(lr=1e-3, eps=1e-4)
    job = job_of(model, task or Spans(windows), tmp_path / "run", optim, **settings)
    job.dtype = dtype or CPU_FLOAT
    freeze(model, optim.freeze)
    step = Step(job, plan)
    progress = Progress()
    order = epoch_order(len(windows), 0, 0)
    numbers = []
    for number in range(7):
        lr = lr_at(number, 7, optim)
        numbers.append(step(step_rows(order, number, 8), lr, progress).numbers.read())
        progress.step += 1
    weights = {name: weight.detach() for name, weight in model.named_parameters()}
    return np.array(numbers), weights, step.average.averages


CASES = {
    "plain": {},
    "micro-batches": {"micro_tokens": 64},
    "one window at a time": {"micro_tokens": 1},
    "average": {"ema": 0.9},
    "frozen": {"optim": OptimSettings(lr=1e-3, eps=1e-4, freeze="1")},
    "layer decay": {"optim": OptimSettings(lr=1e-3, eps=1e-4, layer_decay=0.5)},
    "google": {"optim": GOOGLE},
    "no clipping": {"optim": OptimSettings(lr=1e-3, eps=1e-4, clip=0)},
}


@pytest.mark.parametrize("case", CASES)
def test_static_steps_are_the_plain_ones(tmp_path, windows, case):
    """Losses, gradient norms, weights and averages of seven steps, in float32."""
    plain = steps_of(windows, Plan(), tmp_path, **CASES[case])
    static = steps_of(windows, Plan(static=True), tmp_path, **CASES[case])
    assert np.abs(plain[0] - static[0]).max() < 2e-5
    assert plain[0][:, 0].std() > 0  # losses move
    for name, weight in plain[1].items():
        assert torch.allclose(weight, static[1][name], atol=2e-6), name
    for one, two in zip(plain[2], static[2], strict=True):
        assert torch.allclose(one, two, atol=2e-6)
    if case == "frozen":
        before = dict(tiny(dropout=0.0).named_parameters())
        stay = [name for name in before if torch.equal(before[name], static[1][name])]
        assert any("layers.0" in name for name in stay) and not any("layers.1" in n for n in stay)


def test_static_steps_of_a_classifier(tmp_path, windows):
    """Its loss, too, counts windows by their weights; the classes here are 0, 1, 2."""
    found = []
    for plan in (Plan(), Plan(static=True)):
        torch.manual_seed(0)
        config = tiny(dropout=0.0).config
        model = BertForSequenceClassification(config, 3)
        found.append(steps_of(windows, plan, tmp_path, task=Classes(windows), model=model))
    plain, static = found
    assert np.abs(plain[0] - static[0]).max() < 2e-5
    for name, weight in plain[1].items():
        assert torch.allclose(weight, static[1][name], atol=2e-6), name


class Classes(Spans):
    """A window's class is the remainder of its number."""

    def loss(self, model, batch, layout):
        logits = model(batch.input_ids, token_type_ids=batch.token_type_ids, lengths=layout)
        losses = F.cross_entropy(logits, batch.picked % 3, reduction="none")
        return (losses * batch.weights).sum()


def test_steps_with_16_bit_copies(tmp_path, windows):
    """The encoder computes in bfloat16, the weights that are updated and kept are float32."""
    exact = steps_of(windows, Plan(), tmp_path)
    plan = Plan(static=True, copies=True)
    for micro_tokens in (8192, 64):
        model = tiny(dropout=0.0)
        found = steps_of(
            windows, plan, tmp_path, model=model, dtype=torch.bfloat16, micro_tokens=micro_tokens
        )
        assert 0 < np.abs(exact[0][:, 0] - found[0][:, 0]).max() < 0.02
        assert {weight.dtype for weight in model.parameters()} == {torch.float32}
        assert all(weight.grad is None for weight in model.parameters())


def test_gradients_have_a_home_of_their_own_format():
    """Each leaf's is as large as it is, zero, and at a multiple of 128 bytes; homes of one format are one piece."""
    weights = [torch.nn.Parameter(torch.ones(size)) for size in ((3, 5), (40,), (7,))]
    formats = (torch.bfloat16, torch.float32, torch.bfloat16)
    leaves = [
        torch.nn.Parameter(weight.detach().to(format))
        for weight, format in zip(weights, formats, strict=True)
    ]
    gradients = Gradients(weights, leaves)
    gradients.begin(1)
    assert not gradients.at_home  # there are none yet
    gradients.make_homes()
    for leaf, home in zip(leaves, gradients.homes, strict=True):
        assert home is leaf.grad_home and (home.shape, home.dtype) == (leaf.shape, leaf.dtype)
        assert not home.any() and home.storage_offset() * home.element_size() % 128 == 0
    assert [flat.dtype for flat in gradients.home_flats] == [torch.bfloat16, torch.float32]
    for micro_batches, at_home in ((1, True), (2, False)):
        gradients.begin(micro_batches)
        assert gradients.at_home is at_home


def test_gradients_are_collected_by_format(monkeypatch):
    """torch's quick copy of a list wants one format; a head's gradients have 32 bits and an encoder's copies' 16."""
    weights = [torch.nn.Parameter(torch.zeros(size)) for size in (3, 40, 5, 7)]
    formats = (torch.bfloat16, torch.float32, torch.bfloat16, torch.float32)
    leaves = [
        torch.nn.Parameter(torch.zeros(len(weight), dtype=dtype))
        for weight, dtype in zip(weights, formats, strict=True)
    ]
    gradients = Gradients(weights, leaves)
    lists = []
    copy = torch._foreach_copy_
    monkeypatch.setattr(torch, "_foreach_copy_", lambda *both: lists.append(both) or copy(*both))
    for is_first, expected in ((True, 1.5), (False, 3.0), (False, 4.5), (True, 1.5)):
        for leaf in leaves[:3]:  # the last takes no part
            leaf.grad = torch.full_like(leaf, 1.5)
        gradients.collect(is_first)
        assert all(leaf.grad is None for leaf in leaves)
        for part in gradients.parts[:3]:
            assert part.tolist() == [expected] * len(part)
        assert not gradients.parts[3].any()
    for both in lists:
        assert all(len({tensor.dtype for tensor in tensors}) == 1 for tensors in both)


def test_copies_follow_their_masters():
    encoder = tiny().encoder
    copies = WeightCopies(encoder, torch.bfloat16)
    with torch.no_grad():
        encoder.layers[0].qkv.weight.fill_(3.0)
    copies.refresh()
    with copies.lent():
        assert {weight.dtype for weight in encoder.parameters()} == {torch.bfloat16}
        assert (encoder.layers[0].qkv.weight == 3.0).all()
    assert {weight.dtype for weight in encoder.parameters()} == {torch.float32}


def of_autocast(device="cuda", dtype=torch.bfloat16, enabled=True):
    """What is looked at of an autocast."""
    return SimpleNamespace(device=device, fast_dtype=dtype, _enabled=enabled)


@pytest.mark.parametrize(
    "autocast",
    [
        None,
        of_autocast("cpu"),
        of_autocast(dtype=torch.float16),
        of_autocast(enabled=False),
    ],
    ids=["none", "cpu", "fp16", "off"],
)
def test_weights_are_cast_once_only_for_bf16_on_a_gpu(autocast):
    model = tiny()
    with computing_in_16_bits(model, autocast) as inside:
        assert inside is autocast and model.encoder.layers[0].qkv.weight.dtype == torch.float32


def test_inside_the_encoders_weights_are_their_copies():
    one, two = tiny(seed=0), tiny(seed=1)
    for model, encoders in (
        (one, [one.encoder]),
        (Ensemble([one, two]), [one.encoder, two.encoder]),
    ):
        masters = [encoder.layers[1].ffn_out.weight for encoder in encoders]
        with computing_in_16_bits(model, of_autocast()) as inside:
            assert inside is None
            for encoder, master in zip(encoders, masters, strict=True):
                assert {weight.dtype for weight in encoder.parameters()} == {torch.bfloat16}
                assert torch.equal(encoder.layers[1].ffn_out.weight, master.bfloat16())
        assert [encoder.layers[1].ffn_out.weight for encoder in encoders] == masters
        assert one.span.weight.dtype == torch.float32


def hooked(model):
    model.encoder.layers[0].register_forward_hook(lambda *_: None)


def hooked_before(model):
    model.span.register_forward_pre_hook(lambda *_: None)


def replaced(model):
    model.encoder.forward = model.encoder.forward


def of_a_class_of_ones_own(model):
    model.encoder.layers[1].__class__ = type("Mine", (Layer,), {"__module__": "mine"})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (hooked, "a hook"),
        (hooked_before, "a hook"),
        (replaced, "a hook"),
        (of_a_class_of_ones_own, "Mine"),
    ],
)
def test_code_of_others_is_found_and_computes_as_it_did(change, named):
    model = tiny()
    assert foreign(model) == ""
    change(model)
    assert foreign(model) == named
    with computing_in_16_bits(model, of_autocast()) as inside:
        assert inside is not None and model.encoder.layers[0].qkv.weight.dtype == torch.float32
    with computing_in_16_bits(torch.nn.Linear(1, 1), of_autocast()) as inside:
        assert inside is not None  # there is no encoder of ours


def test_static_state_goes_on_eager(tmp_path, windows):
    """A run that was captured on a GPU can be resumed on a CPU, and the other way round."""
    model = tiny(dropout=0.0)
    job = job_of(model, Spans(windows), tmp_path / "run")
    rows = np.arange(8)
    for one, other in ((Plan(static=True), Plan()), (Plan(), Plan(static=True))):
        first = Step(job, one)
        first(rows, 1e-3, Progress())
        state = first.state_dict()
        second = Step(job, other)
        second.load_state_dict(state)
        second(rows, 1e-3, Progress(step=1))
        steps = {float(moments["step"]) for moments in second.optimizer.state.values()}
        assert steps == {2.0}
        is_tensor = isinstance(second.optimizer.param_groups[0]["lr"], torch.Tensor)
        assert is_tensor == other.static


def test_moments_are_made_without_a_trace(tmp_path, windows):
    """What happens once before an update is captured changes neither weights nor averages, and counts as no step."""
    model = tiny()
    job = job_of(model, Spans(windows), tmp_path / "run", ema=0.9)
    before = [weight.detach().clone() for weight in model.parameters()]
    step = Step(job, Plan(static=True))
    step._make_moments()
    for weight, average, old in zip(model.parameters(), step.average.averages, before, strict=True):
        assert torch.equal(weight, old) and torch.equal(average, old)
    for moments in step.optimizer.state.values():
        assert not any(value.any() for value in moments.values())


def test_even_micro_batches():
    lengths = np.array([4, 4, 4, 4, 4, 9, 1])
    cut = [part.tolist() for part in split_evenly(np.arange(5), lengths, 16)]
    assert cut == [[0, 1, 2], [3, 4]]
    assert [part.tolist() for part in split_evenly(np.arange(5), lengths, 20)] == [[0, 1, 2, 3, 4]]
    assert split_evenly(np.arange(0), lengths, 16) == []
    draw = np.random.default_rng(0)
    for _ in range(50):
        lengths = draw.integers(1, 400, 70)
        rows = draw.permutation(70)
        parts = split_evenly(rows, lengths, 1000)
        assert np.concatenate(parts).tolist() == rows.tolist()
        sizes = [lengths[part].sum() for part in parts]
        assert max(sizes) <= 1000 and min(sizes) > 200


def test_micro_tokens_are_settled_once():
    model = tiny()
    asked = LoopSettings()
    assert asked.micro_tokens == "auto" and broken(asked) == []
    assert settle(asked, model, CPU, torch.float32).micro_tokens == 8192
    given = LoopSettings(micro_tokens="300")
    assert settle(given, model, CPU, torch.float32).micro_tokens == 300
    for wrong in ("0", -1, "many", "1.5"):
        assert "micro_tokens is" in broken(LoopSettings(micro_tokens=wrong))[0]


@pytest.mark.parametrize(
    ("gigabytes", "shape", "tokens"),
    [
        (150, (384, 6, 12, 1536), 32768),
        (150, (1024, 24, 16, 4096), 32768),
        (16, (768, 12, 12, 3072), 4096),
        (85, (1024, 24, 16, 4096), 16384),
        (16, (1024, 24, 16, 4096), 1024),
    ],
    ids=["MiniLM on H200", "large on H200", "base on 16 GB", "large on 80 GB", "large on 16 GB"],
)
def test_micro_tokens_fit_the_card(monkeypatch, gigabytes, shape, tokens):
    hidden, layers, heads, inner = shape
    memory = SimpleNamespace(total_memory=gigabytes * 10**9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: memory)
    with torch.device("meta"):
        model = BertForQuestionAnswering(
            BertConfig(
                hidden_size=hidden,
                num_hidden_layers=layers,
                num_attention_heads=heads,
                intermediate_size=inner,
            )
        )
    cuda = torch.device("cuda")
    assert settle(LoopSettings(), model, cuda, torch.bfloat16).micro_tokens == tokens


def test_too_little_memory_is_explained(tmp_path, windows):
    class Greedy(Spans):
        def loss(self, model, batch, layout):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    job = job_of(tiny(), Greedy(windows), tmp_path / "run", micro_tokens=4096)
    with pytest.raises(
        UserError, match="too little memory for 4,096 tokens .* --micro-tokens 2048"
    ):
        train(job)


# ---- which way steps are computed ----


def plan_on(device, tmp_path, windows, *, dtype=torch.bfloat16, model=None, task=None, **settings):
    job = job_of(model or tiny(), task or Spans(windows), tmp_path / "run", **settings)
    job.device, job.dtype = torch.device(device), dtype
    return plan_of(job)


def test_steps_are_captured_on_gpus(tmp_path, windows):
    assert plan_on("cpu", tmp_path, windows) == Plan()
    exact = plan_on("cuda", tmp_path, windows, dtype=torch.float32)
    assert exact == Plan(static=True, captured=True)
    model = tiny()
    model.encoder.layers[1].activation = torch.relu
    plan = plan_on("cuda", tmp_path, windows, model=model)
    assert plan == Plan(static=True, captured=True, copies=True, why="they know gelu alone")
    assert "no fused kernels (they know gelu alone)" in str(plan)


def test_without_triton_there_are_no_fused_kernels(tmp_path, windows, monkeypatch):
    monkeypatch.delattr(bertqa.model, "kernels", raising=False)
    monkeypatch.setitem(sys.modules, "bertqa.model.kernels", None)
    plan = plan_on("cuda", tmp_path, windows)
    assert plan.copies and not plan.fused and "Triton does not work here" in str(plan)


def test_models_of_ones_own_have_steps_on_gpus_too(tmp_path, windows, monkeypatch):
    """A bare encoder lacks `model.encoder`, a model around one `model.config`, and a model without anything of ours both."""
    memory = SimpleNamespace(total_memory=150 * 10**9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: memory)
    bare = tiny().encoder
    around = torch.nn.Module()
    around.encoder = tiny().encoder
    other = torch.nn.Sequential(torch.nn.Linear(3, 3))
    for model, tokens in ((bare, 32768), (around, 32768), (other, 8192)):
        settled = settle(LoopSettings(), model, torch.device("cuda"), torch.bfloat16)
        assert settled.micro_tokens == tokens
    for model in (bare, around):
        plan = plan_on("cuda", tmp_path, windows, model=model)
        assert plan.captured and plan.copies
    assert "Sequential, has no encoder" in str(plan_on("cuda", tmp_path, windows, model=other))
    bare.recompute = True
    assert "--recompute" in str(plan_on("cuda", tmp_path, windows, model=bare))
    # A static step computes without a GPU too, and finds the encoder whose weights it copies.
    step = Step(job_of(bare, Spans(windows), tmp_path / "run"), Plan(static=True, copies=True))
    assert step.copies is not None


def test_what_may_not_be_captured_runs_eager_and_says_so(tmp_path, windows):
    def mine(query, key, value, layout, dropout):
        return value

    def why(**more):
        plan = plan_on("cuda", tmp_path, windows, **more)
        assert not plan.static and not plan.captured and not plan.copies
        return str(plan)

    own = tiny()
    own.encoder.attention = mine
    assert "the attention mine is not ours" in why(model=own)
    patched = tiny()
    patched.encoder.layers[0].qkv = LowRank(32, 96)
    assert "the model has LowRank, which is not ours" in why(model=patched)
    hooked = tiny()
    hooked.encoder.layers[0].register_forward_hook(lambda *_: None)
    assert "the model has a hook" in why(model=hooked)
    again = tiny()
    again.encoder.recompute = True
    assert "--recompute" in why(model=again)
    task = Spans(windows)
    task.static_shapes = False
    assert "the task Spans does not say" in why(task=task)
    assert "fp16" in why(dtype=torch.float16)
    assert "--capture off" in why(capture="off")
    wished = plan_on("cuda", tmp_path, windows, model=patched, capture="on")
    assert wished.captured and not wished.copies
    with pytest.raises(UserError, match="capture is on, but the device is cpu"):
        plan_on("cpu", tmp_path, windows, capture="on")
    with pytest.raises(UserError, match="fp16 cannot be captured; use --precision bf16"):
        plan_on("cuda", tmp_path, windows, dtype=torch.float16, capture="on")


class LowRank(torch.nn.Linear):
    """A module that is neither torch's nor ours."""
