"""The loop and its step called from Python: what a setting says holds wherever they are called."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from bertqa import BertConfig, BertForQuestionAnswering
from bertqa.data.batches import WindowStore
from bertqa.data.examples import read_examples
from bertqa.data.tokenizer import WordPiece
from bertqa.data.windows import build_windows
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
        return span_loss(logits, layout, batch.start_labels, batch.end_labels)

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
