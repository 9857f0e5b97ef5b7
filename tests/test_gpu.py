"""On a GPU: attention bodies beside float64, steps beside the CPU's, captured steps beside eager ones, and the verb.

All of it is made here (random models, letters), and takes less than a minute on one card.
"""

import dataclasses
import math
import os
import signal
from contextlib import contextmanager

import numpy as np
import pytest

# Before CUDA begins: what bit-for-bit equality of matrix products asks for.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import torch  # noqa: E402
from test_step import CASES, Classes, Spans, job_of  # noqa: E402

from bertqa import BertConfig, BertForQuestionAnswering  # noqa: E402
from bertqa.data.batches import WindowStore, bucket_of, epoch_order, step_rows  # noqa: E402
from bertqa.data.examples import read_examples  # noqa: E402
from bertqa.data.tokenizer import WordPiece  # noqa: E402
from bertqa.data.windows import build_windows  # noqa: E402
from bertqa.device import autocast  # noqa: E402
from bertqa.errors import UserError  # noqa: E402
from bertqa.inference import find_spans  # noqa: E402
from bertqa.model import attention  # noqa: E402
from bertqa.model.attention import Layout  # noqa: E402
from bertqa.model.heads import BertForSequenceClassification  # noqa: E402
from bertqa.reporting.run_folder import read_journal  # noqa: E402
from bertqa.settings import OptimSettings  # noqa: E402
from bertqa.train import main  # noqa: E402
from bertqa.training import checkpoint  # noqa: E402
from bertqa.training import step as steps  # noqa: E402
from bertqa.training.capture import Plan, plan_of  # noqa: E402
from bertqa.training.optim import freeze, lr_at  # noqa: E402
from bertqa.training.progress import Progress  # noqa: E402
from bertqa.training.step import Step  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA GPU"),
]

CPU = torch.device("cpu")
CUDA = torch.device("cuda", 0)
FLOAT, HALF, BRAIN = torch.float32, torch.float16, torch.bfloat16
EAGER = Plan(why="a test")
CAPTURED = Plan(static=True, captured=True)
COPIES = Plan(static=True, captured=True, copies=True)
FUSED = Plan(static=True, captured=True, copies=True, fused=True)


PLANS = {"copies": COPIES, "fused": FUSED}


@pytest.fixture(scope="module")
def windows(letters, tiny_model):
    examples = read_examples(letters).trainable()
    tokenizer = WordPiece.load(tiny_model)
    return build_windows(examples, tokenizer, max_length=32, overlap=4, max_question=8)


def small(dropout=0.0, attention_dropout=0.0, make=BertForQuestionAnswering, **more):
    """A random model with heads of 32, as MiniLM has."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=36,
        hidden_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=64,
        initializer_range=0.05,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=attention_dropout,
    )
    return make(config, **more)


@contextmanager
def deterministic():
    """Only kernels that give the same bits each time."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def relative(found, expected) -> float:
    found, expected = found.detach().double().cpu(), expected.detach().double().cpu()
    return float((found - expected).norm() / expected.norm())


# ---- attention ----

LENGTHS = [384, 1, 512, 3, 3, 170, 33, 64]
BODIES = ("varlen", "padded", "per_sequence", "reference")


@pytest.mark.parametrize("head", [32, 64])
@pytest.mark.parametrize(
    ("dtype", "most"), [(FLOAT, 5e-6), (HALF, 3e-3), (BRAIN, 2e-2)], ids=["fp32", "fp16", "bf16"]
)
def test_attention_bodies_equal_float64(head, dtype, most):
    draw = torch.Generator().manual_seed(head)
    exact = torch.randn(sum(LENGTHS), 3, 4, head, generator=draw).to(dtype)
    pull = torch.randn(sum(LENGTHS), 4, head, generator=draw)
    qkv = exact.double().requires_grad_()
    expected = attention.reference_attention(*qkv.unbind(1), Layout.of(LENGTHS, CPU))
    (expected * pull).sum().backward()
    for name in BODIES:
        if name == "varlen" and dtype == FLOAT:
            continue  # the kernel knows 16 bits only
        body = getattr(attention, f"{name}_attention")
        x = exact.to(CUDA).requires_grad_()
        found = body(*x.unbind(1), Layout.of(LENGTHS, CUDA))
        (found.float() * pull.to(CUDA)).sum().backward()
        assert relative(found, expected) < most, name
        assert relative(x.grad, qkv.grad) < most, name


@pytest.mark.parametrize("name", ["varlen", "padded", "reference"])
def test_attention_over_a_static_layout(windows, name):
    """Missing windows in the middle, dummies behind: the real tokens attend as in the plain batch."""
    store = WindowStore(windows, CUDA)
    plain = store.batch(np.array([3, 0, 11, 7]))
    count = len(plain.input_ids)
    picked = torch.tensor([3, 0, -1, 11, 7, -1], device=CUDA)
    static = store.static_batch(picked, bucket_of(count))
    body = getattr(attention, f"{name}_attention")
    qkv = torch.randn(len(static.input_ids), 3, 4, 32, device=CUDA, dtype=BRAIN)
    found = body(*qkv.unbind(1), Layout.of_batch(static))[:count]
    expected = body(*qkv[:count].unbind(1), Layout.of_batch(plain))
    assert relative(found, expected) < 5e-3


def test_the_fastest_body_is_chosen():
    choose = attention.choose_attention
    assert choose(CUDA, BRAIN, 0.0) is attention.varlen_attention
    assert choose(CUDA, BRAIN, 0.0, has_lengths=False) is attention.varlen_attention
    assert choose(CUDA, BRAIN, 0.1) is attention.padded_attention
    assert choose(CUDA, FLOAT, 0.0) is attention.padded_attention


# ---- steps ----


def take(
    windows, tmp_path, plan, *, device=CUDA, dtype=FLOAT, task=Spans, model=None, count=12, **more
):
    """(losses and norms (count, 2), weights, averages, step) of so many steps of 8 windows; each 7th has 5."""
    model = (model or small()).to(device).train()
    # A larger eps: key biases have no gradient but rounding noise, of which Adam would make whole steps.
    optim = more.pop("optim", OptimSettings(lr=1e-3, eps=1e-4))
    job = job_of(model, task(windows, device), tmp_path / "run", optim, **more)
    job.device, job.dtype = device, dtype
    freeze(model, optim.freeze)
    step = Step(job, plan)
    progress = Progress()
    torch.manual_seed(1)
    numbers = go_on(step, progress, count)
    weights = {name: weight.detach().cpu() for name, weight in model.named_parameters()}
    averages = [average.cpu() for average in step.average.averages]
    return numbers, weights, averages, step


def go_on(step, progress, count):
    """Losses and norms (count, 2) of the next steps."""
    windows = len(step.store)
    results = []
    for number in range(progress.step, progress.step + count):
        epoch, at = divmod(number, math.ceil(windows / 8))
        rows = step_rows(epoch_order(windows, 0, epoch), at, 8)
        results.append(step(rows, lr_at(number, 24, step.job.optim), progress).numbers)
        progress.step += 1
    return np.stack([result.read() for result in results])


@pytest.mark.parametrize(
    ("dtype", "plan", "more", "most"),
    [
        (FLOAT, EAGER, {}, 5e-5),
        (FLOAT, CAPTURED, {}, 5e-5),
        (BRAIN, EAGER, {}, 2e-2),
        (HALF, EAGER, {}, 2e-2),
        (BRAIN, CAPTURED, {}, 2e-2),
        (BRAIN, COPIES, {}, 2e-2),
        (BRAIN, COPIES, {"micro_tokens": 64}, 2e-2),
    ],
    ids=["fp32", "fp32 captured", "bf16", "fp16", "bf16 autocast captured", "copies", "micro"],
)
def test_steps_are_those_of_the_cpu(windows, tmp_path, dtype, plan, more, most):
    expected, *_ = take(windows, tmp_path, Plan(), device=CPU)
    found, *_ = take(windows, tmp_path, plan, dtype=dtype, **more)
    assert np.abs(found[:, 0] - expected[:, 0]).max() < most


@pytest.mark.parametrize("case", CASES)
def test_captured_steps_are_the_eager_ones(windows, tmp_path, case):
    """In float32, dropout off: losses, norms, weights and averages of twelve steps."""
    eager = take(windows, tmp_path, EAGER, **CASES[case])
    found = take(windows, tmp_path, CAPTURED, **CASES[case])
    assert np.abs(found[0] - eager[0]).max() < 1e-4
    for name, weight in eager[1].items():
        assert torch.allclose(found[1][name], weight, atol=2e-5), name
    for one, two in zip(found[2], eager[2], strict=True):
        assert torch.allclose(one, two, atol=2e-5)


@pytest.mark.parametrize("case", ["plain", "micro-batches", "average", "google"])
def test_a_replay_computes_what_the_capture_did(windows, tmp_path, case):
    """16-bit copies, captured and not: the same kernels at work."""
    plain = take(windows, tmp_path, Plan(static=True, copies=True), dtype=BRAIN, **CASES[case])
    found = take(windows, tmp_path, COPIES, dtype=BRAIN, **CASES[case])
    assert np.abs(found[0] - plain[0]).max() < 5e-3


def test_few_graphs_serve_many_batches(windows, tmp_path):
    *_, step = take(windows, tmp_path, COPIES, dtype=BRAIN, count=14)
    keys = set(step.graphs.graphs)
    assert ("update", False) in keys and 2 <= len(keys) <= 4


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("attention_dropout", [0.0, 0.1])
def test_dropout_is_drawn_anew_by_each_replay(windows, tmp_path, attention_dropout, plan):
    """With learning rate 0 nothing but dropout makes two steps over the same windows differ."""
    model = small(0.1, attention_dropout).to(CUDA).train()
    job = job_of(model, Spans(windows, CUDA), tmp_path / "run", OptimSettings())
    job.device, job.dtype = CUDA, BRAIN
    step = Step(job, PLANS[plan])
    rows = np.arange(8)
    found = [float(step(rows, 0.0, Progress()).numbers.read()[0]) for _ in range(4)]
    assert len(set(found)) == 4


@pytest.mark.parametrize("plan", PLANS)
def test_the_same_seed_gives_the_same_steps(windows, tmp_path, plan):
    one, *_ = take(windows, tmp_path, PLANS[plan], dtype=BRAIN, model=small(0.1))
    two, *_ = take(windows, tmp_path, PLANS[plan], dtype=BRAIN, model=small(0.1))
    assert np.abs(one - two).max() < 5e-3


@pytest.mark.parametrize("plan", PLANS)
def test_the_same_seed_gives_the_same_bits_where_asked_for(windows, tmp_path, plan):
    with deterministic():
        one = take(windows, tmp_path, PLANS[plan], dtype=BRAIN, model=small(0.1))
        two = take(windows, tmp_path, PLANS[plan], dtype=BRAIN, model=small(0.1))
    assert np.array_equal(one[0], two[0])
    assert all(torch.equal(one[1][name], two[1][name]) for name in one[1])


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("case", ["plain", "average"])
def test_resumed_captured_steps_are_the_uninterrupted_ones(windows, tmp_path, case, plan):
    """Bit for bit with deterministic kernels, dropout on: what is captured at other steps draws what it would have."""
    with deterministic():
        whole = take(windows, tmp_path, PLANS[plan], dtype=BRAIN, model=small(0.1), **CASES[case])
        first, weights, _, step = take(
            windows, tmp_path, PLANS[plan], dtype=BRAIN, model=small(0.1), count=5, **CASES[case]
        )
        state, generators = step.state_dict(), checkpoint.rng_state(CUDA)
        model = small(0.1).to(CUDA).train()
        model.load_state_dict(weights)
        job = dataclasses.replace(step.job, model=model)
        again = Step(job, PLANS[plan])
        again.load_state_dict(state)
        torch.cuda.manual_seed(99)
        checkpoint.set_rng_state(generators, CUDA)
        rest = go_on(again, Progress(step=5), 7)
    assert np.array_equal(np.concatenate([first, rest]), whole[0])


def test_captured_steps_of_a_classifier(windows, tmp_path):
    found = []
    for plan in (EAGER, CAPTURED):
        model = small(make=BertForSequenceClassification, num_labels=3)
        found.append(take(windows, tmp_path, plan, task=Classes, model=model)[0])
    assert np.abs(found[0] - found[1]).max() < 1e-4


def test_fused_kernels_inside_of_a_graph(windows, tmp_path):
    expected, *_ = take(windows, tmp_path, Plan(), device=CPU)
    model = small()
    found, *_ = take(windows, tmp_path, FUSED, dtype=BRAIN, model=model)
    assert np.abs(found[:, 0] - expected[:, 0]).max() < 2e-2
    assert "behind_attention" not in vars(model.encoder.layers[0])


def test_the_fused_kernels_are_chosen(windows, tmp_path):
    job = job_of(small().to(CUDA), Spans(windows, CUDA), tmp_path / "run")
    job.device, job.dtype = CUDA, BRAIN
    assert plan_of(job) == FUSED
    job.model.encoder.fuse()
    assert plan_of(job) == dataclasses.replace(COPIES, why="--compile")


def test_recomputing_layers(windows, tmp_path):
    expected, *_ = take(windows, tmp_path, Plan(), device=CPU)
    model = small()
    model.encoder.recompute = True
    found, *_ = take(windows, tmp_path, EAGER, dtype=BRAIN, model=model)
    assert np.abs(found[:, 0] - expected[:, 0]).max() < 2e-2


def test_too_little_memory_is_explained(windows, tmp_path):
    model = small(0.1).to(CUDA).train()
    job = job_of(model, Spans(windows, CUDA), tmp_path / "run")
    job.device, job.dtype = CUDA, BRAIN
    step = Step(job, EAGER)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(CUDA).total_memory
    hog = []
    try:
        torch.cuda.set_per_process_memory_fraction(
            (torch.cuda.memory_reserved() + 2**22) / total, CUDA
        )
        with pytest.raises(torch.OutOfMemoryError):
            while True:
                hog.append(torch.empty(2**18, device=CUDA))
        with pytest.raises(UserError, match="too little memory .* use --micro-tokens"):
            step(np.arange(8), 1e-3, Progress())
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, CUDA)
        del hog
        torch.cuda.empty_cache()


# ---- evaluation and the verb ----


@pytest.mark.parametrize(("dtype", "most"), [(FLOAT, 1e-5), (HALF, 1e-2), (BRAIN, 2e-2)])
def test_evaluation_is_that_of_the_cpu(windows, dtype, most):
    model = small().eval()
    spans, loss = find_spans(model, windows, CPU)
    found, found_loss = find_spans(
        model.to(CUDA), windows, CUDA, autocast=autocast(CUDA, dtype), progress=None
    )
    assert abs(found_loss - loss) < most
    assert {weight.dtype for weight in model.parameters()} == {FLOAT}  # the copies are gone
    if dtype == FLOAT:
        assert np.abs(found.null_score - spans.null_score).max() < 1e-4


SHORT = (
    "--max-length 32 --overlap 4 --max-question 8 --batch-size 8 --lr 1e-3 --seed 1 --device cuda"
)


def verb(out, tiny_model, data, *more, status=0):
    files = ["--train", str(data), "--dev", str(data), "--weights", str(tiny_model)]
    assert main([*files, "--out", str(out), *SHORT.split(), *more]) == status
    return [record for record in read_journal(out / "metrics.jsonl") if record["event"] == "train"]


def test_the_verb_learns_captured(tmp_path, tiny_model, letters, capsys):
    more = ["--epochs", "30", "--eval-every", "999", "--lr", "3e-3", "--dropout", "0"]
    found = verb(tmp_path / "run", tiny_model, letters, *more, "--weight-decay", "0")
    assert "steps: captured as CUDA graphs, 16-bit copies" in capsys.readouterr().err
    assert found[-1]["loss"] < found[0]["loss"] / 3
    config = (tmp_path / "run" / "config.json").read_text()
    assert '"micro_tokens": "auto"' not in config  # settled


def test_stopped_by_a_signal_and_resumed(tmp_path, tiny_model, letters, monkeypatch):
    with deterministic():
        more = ["--epochs", "2", "--deterministic"]
        whole = verb(tmp_path / "whole", tiny_model, letters, *more)
        update, calls = steps.set_lr, []

        def counted(*args):
            calls.append(args)
            if len(calls) == 4:
                os.kill(os.getpid(), signal.SIGTERM)
            return update(*args)

        monkeypatch.setattr(steps, "set_lr", counted)
        verb(tmp_path / "run", tiny_model, letters, *more, status=130)
        assert main(["--resume", str(tmp_path / "run")]) == 0
    found = [
        record
        for record in read_journal(tmp_path / "run" / "metrics.jsonl")
        if record["event"] == "train"
    ]
    assert [record["loss"] for record in found] == [record["loss"] for record in whole]


def test_own_parts_run_eager_and_say_so(tmp_path, tiny_model, letters, capsys):
    verb(tmp_path / "run", tiny_model, letters, "--max-steps", "2", "--capture", "off")
    assert "not captured as CUDA graphs: --capture off" in capsys.readouterr().err
    verb(tmp_path / "fp16", tiny_model, letters, "--max-steps", "2", "--precision", "fp16")
    assert "fp16 cannot be captured" in capsys.readouterr().err
