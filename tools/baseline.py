"""Fine-tune with transformers on the same data, to compare with bertqa.train.

    python tools/baseline.py --train squad2-train-8k.json.gz --dev squad2-dev-2k.json.gz --weights FOLDER --fresh-head \\
        --epochs 1 --lr 1e-4 --seed 0 --out runs/theirs

It takes the flags of bertqa.train and does as many steps from the same initial weights, a fresh head included, with the same
windows, AdamW, weight decay, warm-up, clipping and number format. From transformers are the model with its attention dropout
(0.1, as in every published BERT), the loss, and the batches of its Trainer with group_by_length: windows of similar length,
padded to the longest. Both are decoded and scored by bertqa. It writes summary.json; the time is that of the steps.
"""

import importlib.metadata
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

# so that it runs from a clone without installing
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bertqa.data.batches import padded
from bertqa.device import autocast
from bertqa.errors import UserError
from bertqa.files import to_json, write_json
from bertqa.flags import run_verb
from bertqa.hf.convert import resolve_weights
from bertqa.hf.export import export
from bertqa.model import folder
from bertqa.model.heads import SpanLogits
from bertqa.settings import RunSettings
from bertqa.training.command_line import parse
from bertqa.training.job import Job, total_steps
from bertqa.training.optim import lr_at, make_optimizer, set_lr
from bertqa.training.starting import job_of


class Theirs(nn.Module):
    """Transformers' model: called like ours for evaluation, asked with labels for training."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.config = model.config

    def ask(self, input_ids, attention_mask, token_type_ids, **labels):
        """Return its output for padded rows (S, L); DistilBERT has no segments."""
        if getattr(self.config, "type_vocab_size", 0):
            labels["token_type_ids"] = token_type_ids
        return self.model(input_ids=input_ids, attention_mask=attention_mask, **labels)

    def forward(self, input_ids, token_type_ids, *, lengths) -> SpanLogits:
        """Packed (N,) ids to (N,) logits, through padded rows."""
        mask = lengths.mask().long()
        out = self.ask(lengths.pad(input_ids, 0), mask, lengths.pad(token_type_ids, 0))
        start = lengths.unpad(out.start_logits).float()
        end = lengths.unpad(out.end_logits).float()
        return SpanLogits(start, end)


def grouped_order(lengths: np.ndarray, batch_size: int, draw: np.random.Generator) -> np.ndarray:
    """Return (W,) windows in the order of transformers' LengthGroupedSampler.

    It is a permutation in which every 50 batches are sorted, longest first, and the longest window of all comes first.
    """
    order = draw.permutation(len(lengths))
    several = 50 * batch_size
    parts = []
    for part in np.split(order, range(several, len(order), several)):
        longest_first = np.argsort(-lengths[part], kind="stable")
        parts.append(part[longest_first])
    longest = max(parts, key=lambda part: lengths[part[0]])
    parts[0][0], longest[0] = longest[0], parts[0][0]
    return np.concatenate(parts)


def main(argv: Sequence[str] | None = None) -> int:
    """Train transformers' model, evaluate it, write summary.json."""
    settings = parse(argv).settings
    refuse_ours_alone(settings)
    out = Path(settings.files.out) if settings.files.out else None
    job = job_of(settings, out or Path("."))
    model = their_model(job, Path(resolve_weights(settings.files.weights)))
    cast = autocast(job.device, job.dtype)

    torch.manual_seed(job.settings.seed)
    began = time.perf_counter()
    losses = train(model, job, cast)
    summary = {
        "steps": len(losses),
        "seconds": round(time.perf_counter() - began, 1),
        "transformers": importlib.metadata.version("transformers"),
        **job.task.evaluate(model, cast),
    }
    if out:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "summary.json", {**summary, "losses": losses})
    print(to_json(summary, indent=1))
    return 0


def refuse_ours_alone(settings: RunSettings) -> None:
    """Raise UserError for settings that transformers' recipe does not have."""
    ours_alone = {
        "--layer-decay": settings.optim.layer_decay != 1,
        "--freeze": settings.optim.freeze != "none",
        "--ema": settings.loop.ema != 0,
        "--teacher": bool(settings.teachers.teacher),
    }
    given = [flag for flag, is_used in ours_alone.items() if is_used]
    if given:
        raise UserError(f"{', '.join(given)}: transformers' recipe has no such thing; leave it out")


def their_model(job: Job, weights: Path) -> Theirs:
    """Return transformers' model with the initial weights of ours, a fresh head included, and attention dropout."""
    with tempfile.TemporaryDirectory() as scratch:
        ours = Path(scratch) / "ours"
        folder.save(ours, job.model, tokenizer_from=weights, provenance={"source": str(weights)})
        model = in_transformers(ours, attention_probs_dropout_prob=0.1)
    return Theirs(model).to(job.device).train()


def in_transformers(weights: Path, **config) -> nn.Module:
    """Return a model folder's question answering model as transformers' own, in float32; `config` changes its config."""
    from transformers import AutoModelForQuestionAnswering

    with tempfile.TemporaryDirectory() as scratch:
        exported = Path(scratch) / "theirs"
        export(weights, exported)
        return AutoModelForQuestionAnswering.from_pretrained(exported, **config).float()


def train(model: Theirs, job: Job, cast) -> list[float]:
    """Train for as many steps as the job has. Returns the loss of each."""
    store = job.task.store
    size = job.settings.batch_size
    total = total_steps(len(store), job.settings)
    steps_per_epoch = math.ceil(len(store) / size)
    optimizer = make_optimizer(model, job.optim, job.device)
    clip = job.optim.clip or math.inf
    losses = []
    order = np.empty(0, int)
    interval = 1 if sys.stderr.isatty() else 30
    for step in tqdm(range(total), desc="transformers", unit=" steps", mininterval=interval):
        epoch, step_in_epoch = divmod(step, steps_per_epoch)
        if step_in_epoch == 0:
            draw = np.random.default_rng([job.settings.seed, epoch])
            order = grouped_order(store.lengths, size, draw)
        first = step_in_epoch * size
        batch = store.batch(order[first : first + size])
        with cast:
            labels = {"start_positions": batch.start_labels, "end_positions": batch.end_labels}
            loss = model.ask(*padded(batch), **labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        set_lr(optimizer, lr_at(step, total, job.optim), step, job.optim)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return torch.stack(losses).tolist()  # waits for the device


if __name__ == "__main__":
    raise SystemExit(run_verb(main))
