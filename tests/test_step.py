"""The loop and its step called from Python: what a setting says holds wherever they are called."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from bertqa import BertConfig, BertForQuestionAnswering
from bertqa.data.batches import WindowStore, bucket_of, bucket_width
from bertqa.data.examples import read_examples
from bertqa.data.tokenizer import WordPiece
from bertqa.data.windows import build_windows
from bertqa.errors import UserError
from bertqa.model.attention import Layout, per_sequence_attention
from bertqa.model.heads import span_loss
from bertqa.reporting.run_folder import read_journal
from bertqa.settings import LoopSettings, OptimSettings
from bertqa.training.job import Job
from bertqa.training.journal import Journal
from bertqa.training.loop import train

CPU = torch.device("cpu")


class Spans:
    """A task with the least that the loop asks for: windows, a loss, a metric."""

    key = "f1"

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
