"""Training with a head, a loss and labels of one's own, by the same loop; meant to be read as examples, as test_hacks.py.

best/, resuming, Reader and the journal work as for bertqa's own tasks.
"""

import json
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_hacks import Lora
from torch import Tensor, nn

import bertqa
from bertqa import (
    BertEncoder,
    BertForQuestionAnswering,
    Job,
    Layout,
    LoopSettings,
    OptimSettings,
    Task,
)
from bertqa.hf.export import export
from bertqa.settings import QuestionAnsweringSettings

WINDOWS = QuestionAnsweringSettings(max_length=40, overlap=8, max_question=8)
CPU = torch.device("cpu")


def quiet(line: str) -> None:
    """In the place of print."""


# A verifier -----------------------------------------------------------------------------------------------------------


class Verified(NamedTuple):
    start: Tensor
    end: Tensor
    null: Tensor
    """(S,) how sure the verifier is that the window holds no answer; the Reader adds it to the null score."""


class Verifier(BertForQuestionAnswering):
    """A span reader with a second opinion, from [CLS], on whether there is an answer at all (Zhang et al. 2020)."""

    def __init__(self, config):
        super().__init__(config)
        self.verifier = nn.Linear(config.hidden_size, 1)

    def forward(self, input_ids, token_type_ids=None, *, lengths):
        x = self.encoder(
            input_ids, token_type_ids=token_type_ids, lengths=lengths
        ).last_hidden_state
        start, end = self.span(x).unbind(-1)  # (N, H) -> (N,) each
        return Verified(start, end, self.verifier(x[lengths.first_tokens])[:, 0])


class Verifying(bertqa.QuestionAnswering):
    """Question answering with the verifier's loss beside that of the spans."""

    loss_parts = ("spans", "verifier")

    def loss(self, model, batch, layout):
        out = model(batch.input_ids, token_type_ids=batch.token_type_ids, lengths=layout)
        has_none = (batch.start_labels == 0).float()  # (S,)
        second = F.binary_cross_entropy_with_logits(out.null, has_none, reduction="sum")
        spans = bertqa.span_loss(out, layout, batch.start_labels, batch.end_labels)
        return torch.stack([spans, second])


def verifying(tiny_model, letters, run, steps) -> Job:
    examples = bertqa.read_examples(letters).trainable()
    task = Verifying(
        examples,
        examples[:20],
        tiny_model,
        WINDOWS,
        seed=0,
        device=CPU,
        say=quiet,
        progress=False,
    )
    torch.manual_seed(0)
    model = Verifier(bertqa.load(tiny_model).config)
    bertqa.load_into(model, tiny_model)
    loop = LoopSettings(max_steps=steps, batch_size=8, eval_every=steps)
    optim = OptimSettings(lr=1e-3)
    return Job(model, task, loop, optim, run, lr_factors={"verifier.": 5}, report=False, say=quiet)


def test_a_verifier_is_trained_kept_and_read_with(tiny_model, letters, tmp_path):
    job = verifying(tiny_model, letters, tmp_path / "run", 4)
    trained = bertqa.run_training(job)
    assert trained.outcome.finished and "f1" in trained.outcome.last
    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[:3]:
        step = json.loads(line)
        assert step["loss"] == pytest.approx(step["loss_spans"] + step["loss_verifier"], rel=1e-5)
    best = tmp_path / "run" / "best"
    with pytest.raises(bertqa.UserError, match="holds a model of its own, 'Verifier'"):
        bertqa.load(best)
    model = Verifier(job.model.config)
    assert bertqa.load_into(model, best) == []
    assert model.verifier.weight.equal(job.model.verifier.weight)
    reader = bertqa.Reader(model, bertqa.WordPiece.load(best))
    assert reader.qa["max_length"] == 40 and reader.qa["null_threshold"] is not None
    asked = ("where is a?", "b a c")
    with torch.no_grad():
        model.verifier.bias += 1000
        assert reader.answer(*asked).answer == ""
        model.verifier.bias -= 2000
        assert reader.answer(*asked).answer != ""


# Tags for tokens ------------------------------------------------------------------------------------------------------


class Tagger(nn.Module):
    """An encoder with a class for every token: 0 outside of an answer, 1 at its first token, 2 inside it."""

    def __init__(self, config):
        super().__init__()
        self.encoder = BertEncoder(config)
        self.tags = nn.Linear(config.hidden_size, 3)

    def forward(self, input_ids, token_type_ids=None, *, lengths):
        x = self.encoder(
            input_ids, token_type_ids=token_type_ids, lengths=lengths
        ).last_hidden_state
        return self.tags(x)  # (N, H) -> (N, 3)


def tags_of(windows) -> list[np.ndarray]:
    """The tags of each window's tokens, from its answer's first and last token; 0 is [CLS], no answer."""
    found = []
    for length, start, end in zip(
        windows.lengths, windows.start_label, windows.end_label, strict=True
    ):
        tags = np.zeros(length, np.int64)
        if start:
            tags[start : end + 1] = 2
            tags[start] = 1
        found.append(tags)
    return found


class Tagging(Task):
    """BIO tags on the windows of questions. `Batch.rows` says which windows a batch holds, and so leads to their tags."""

    key = "accuracy"

    def __init__(self, path, weights):
        self.weights = weights
        examples = bertqa.read_examples(path).examples
        tokenizer = bertqa.WordPiece.load(weights)
        windows = bertqa.build_windows(
            examples, tokenizer, max_length=40, overlap=8, max_question=8
        )
        self.store = bertqa.WindowStore(windows)
        self.tags = tags_of(windows)

    def labels_of(self, batch) -> Tensor:
        return torch.from_numpy(np.concatenate([self.tags[row] for row in batch.rows]))  # (N,)

    def loss(self, model, batch, layout):
        logits = model(batch.input_ids, batch.token_type_ids, lengths=layout)
        means = F.cross_entropy(logits, self.labels_of(batch), reduction="none")  # (N,)
        lengths = layout.cu_seqlens.diff()  # (S,)
        return (means / lengths[layout.sequence]).sum()  # of each window the mean

    def evaluate(self, model, autocast):
        batch = self.store.batch(np.arange(len(self.store)))
        model.eval()
        with torch.no_grad(), autocast:
            logits = model(batch.input_ids, batch.token_type_ids, lengths=batch.lengths)
        model.train()
        return {"accuracy": 100 * (logits.argmax(1) == self.labels_of(batch)).float().mean().item()}


def tagging(tiny_model, letters, run, max_minutes=None) -> Job:
    torch.manual_seed(0)
    model = Tagger(bertqa.load(tiny_model).config)
    bertqa.load_into(model.encoder, tiny_model)
    loop = LoopSettings(max_steps=8, batch_size=8, eval_every=4, max_minutes=max_minutes)
    task = Tagging(letters, tiny_model)
    return Job(model, task, loop, OptimSettings(lr=3e-3), run, report=False, say=quiet)


def test_a_tagger_learns_and_goes_on_where_it_was_stopped(tiny_model, letters, tmp_path):
    whole = bertqa.run_training(tagging(tiny_model, letters, tmp_path / "whole"))
    assert whole.figures["best_accuracy"] > 85 and whole.figures["steps"] == 8
    stopped = tagging(tiny_model, letters, tmp_path / "parts", max_minutes=1e-9)
    assert bertqa.run_training(stopped).figures["steps"] == 1
    resumed = bertqa.run_training(tagging(tiny_model, letters, tmp_path / "parts"), resume=True)
    assert resumed.outcome.last == whole.outcome.last
    for name in ("best", "last"):
        one, other = (tmp_path / run / name / "model.safetensors" for run in ("whole", "parts"))
        assert one.read_bytes() == other.read_bytes()


def test_settings_are_checked_before_a_folder_is_made(tiny_model, letters, tmp_path):
    """All at once, as on the command line."""
    job = tagging(tiny_model, letters, tmp_path / "run")
    job.settings = LoopSettings(batch_size=0, precision="fp8")
    job.optim = OptimSettings(lr=-1.0, schedule="steep")
    with pytest.raises(bertqa.UserError) as error:
        bertqa.run_training(job)
    assert str(error.value) == (
        "batch_size is 0, it must be positive; precision is fp8, it must be one of auto, fp32, bf16, fp16; "
        "lr is -1.0, it must be positive; schedule is steep, it must be one of linear, cosine, constant"
    )
    assert not (tmp_path / "run").exists()


def test_a_tagger_gives_the_numbers_of_transformers(tiny_model, letters, tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is the reference")
    job = tagging(tiny_model, letters, tmp_path / "run")
    batch = job.task.store.batch(np.arange(6))
    layout = Layout.of_batch(batch)
    bertqa.save(tmp_path / "encoder", job.model.encoder, tokenizer_from=tiny_model)
    export(tmp_path / "encoder", tmp_path / "theirs")
    auto = transformers.BertForTokenClassification
    theirs = auto.from_pretrained(tmp_path / "theirs", num_labels=3).eval()
    theirs.classifier = job.model.tags
    mask = layout.mask()  # (S, L)
    logits = theirs(
        layout.pad(batch.input_ids),
        attention_mask=mask.long(),
        token_type_ids=layout.pad(batch.token_type_ids),
    ).logits
    losses = [  # of each window alone, as transformers would compute it
        F.cross_entropy(window[keep], torch.from_numpy(tags))
        for window, keep, tags in zip(logits, mask, job.task.tags, strict=False)
    ]
    ours = job.task.loss(job.model.eval(), batch, layout)
    assert (ours - sum(losses)).abs() < 1e-5


# Low-rank adapters ----------------------------------------------------------------------------------------------------


def test_adapters_alone_are_trained_by_the_loop(tiny_model, letters, tmp_path):
    """What is frozen stays frozen in run_training; best/ has the adapters, and merged they are a plain model folder."""
    model = bertqa.load(tiny_model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.encoder.requires_grad_(False)
    for layer in model.encoder.layers:
        layer.qkv = Lora(layer.qkv, rank=2)
    task = bertqa.QuestionAnswering(
        str(letters),
        str(letters),
        tiny_model,
        WINDOWS,
        seed=0,
        device=CPU,
        say=quiet,
        progress=False,
    )
    loop = LoopSettings(max_steps=3, batch_size=8, eval_every=3)
    bertqa.run_training(
        Job(model, task, loop, OptimSettings(lr=1e-2), tmp_path / "run", report=False, say=quiet)
    )
    after = model.state_dict()
    moved = {name for name in after if name not in before or not after[name].equal(before[name])}
    adapters = {f"encoder.layers.{i}.qkv.{side}" for i in (0, 1) for side in ("down", "up")}
    assert moved == {*adapters, "span.weight", "span.bias"}
    for layer in model.encoder.layers:
        layer.qkv = layer.qkv.merge()
    bertqa.save(tmp_path / "merged", model, tokenizer_from=tmp_path / "run" / "best")
    reader = bertqa.Reader.load(tmp_path / "merged", device="cpu")
    assert "null_threshold" in reader.qa
    assert isinstance(reader.answer("where is a?", "b a c"), bertqa.Answer)
