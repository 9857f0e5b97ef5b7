"""transformers' own fine-tuning on the same data: what a row of bertqa.train is held against.

    python tools/baseline.py --train squad2-train-8k.json.gz --dev squad2-dev-2k.json.gz --weights FOLDER --fresh-head \\
        --epochs 1 --lr 1e-4 --seed 0 --out runs/theirs

Takes the flags of bertqa.train and does the same steps from the same first weights, a fresh head included: the same
windows, AdamW, weight decay, warm-up, clipping and number format. Theirs are the model with its attention dropout (0.1, as
every published BERT has it), the loss, and batches as their Trainer makes them with group_by_length: windows of like length
together, padded to the longest. Both are decoded and scored by bertqa. Writes summary.json; the time is that of the steps.
"""

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

sys.path.insert(
    0, str(Path(__file__).resolve().parents[1])
)  # so that it runs from a clone without installing

from bertqa.data.batches import padded
from bertqa.device import autocast, pick_device, pick_precision
from bertqa.errors import UserError
from bertqa.files import write_json
from bertqa.flags import run_verb
from bertqa.hf.export import export
from bertqa.hf.resolve import resolve_weights
from bertqa.model import folder
from bertqa.model.heads import SpanLogits
from bertqa.training.command_line import parse
from bertqa.training.loop import total_steps
from bertqa.training.optim import lr_at, make_optimizer, set_lr
from bertqa.training.question_answering import QuestionAnswering
from bertqa.training.questions import with_dev
from bertqa.training.starting import starting_model


class Theirs(nn.Module):
    """Their model, called like ours to be evaluated, and with labels to be trained."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model, self.config = model, model.config

    def ask(self, input_ids, attention_mask, token_type_ids, **labels):
        """What it returns for padded rows (S, L); DistilBERT knows no segments."""
        segments = (
            {"token_type_ids": token_type_ids} if getattr(self.config, "type_vocab_size", 0) else {}
        )
        return self.model(input_ids=input_ids, attention_mask=attention_mask, **segments, **labels)

    def forward(self, input_ids, token_type_ids, *, lengths) -> SpanLogits:
        """Packed (N,) ids to (N,) logits, through padded rows."""
        out = self.ask(
            lengths.pad(input_ids, 0), lengths.mask().long(), lengths.pad(token_type_ids, 0)
        )
        return SpanLogits(
            lengths.unpad(out.start_logits).float(), lengths.unpad(out.end_logits).float()
        )


def grouped_order(lengths: np.ndarray, batch_size: int, draw: np.random.Generator) -> np.ndarray:
    """(W,) windows in the order of their LengthGroupedSampler: a permutation, each 50 batches of it longest first, and
    the longest window of all in the first batch."""
    order = draw.permutation(len(lengths))
    several = 50 * batch_size
    parts = [
        part[np.argsort(-lengths[part], kind="stable")]
        for part in np.split(order, range(several, len(order), several))
    ]
    longest = max(parts, key=lambda part: lengths[part[0]])
    parts[0][0], longest[0] = longest[0], parts[0][0]
    return np.concatenate(parts)


def main(argv: Sequence[str] | None = None) -> int:
    """Train their model, evaluate it, write summary.json."""
    import transformers

    settings = parse(argv).settings
    files = with_dev(settings.files)
    answers, optim, loop = settings.data, settings.optim, settings.loop
    ours_alone = {
        "--layer-decay": optim.layer_decay != 1,
        "--freeze": optim.freeze != "none",
        "--ema": loop.ema != 0,
    }
    if given := [flag for flag, used in ours_alone.items() if used]:
        raise UserError(f"{', '.join(given)}: transformers' recipe has no such thing; leave it out")
    device = pick_device(loop.device)
    cast = autocast(device, pick_precision(loop.precision, device))
    torch.manual_seed(loop.seed)
    weights = Path(resolve_weights(files.weights))

    def say(line: str) -> None:
        print(line, file=sys.stderr)

    task = QuestionAnswering(
        files.train, files.dev, weights, answers, seed=loop.seed, device=device, say=say
    )
    ours = starting_model(
        weights, folder.read_config(weights), files.fresh_head, settings.model, task
    ).model
    with tempfile.TemporaryDirectory() as scratch:
        folder.save(
            f"{scratch}/ours", ours, tokenizer_from=weights, provenance={"source": files.weights}
        )
        export(f"{scratch}/ours", f"{scratch}/theirs")
        model = transformers.AutoModelForQuestionAnswering.from_pretrained(
            f"{scratch}/theirs", attention_probs_dropout_prob=0.1
        ).float()
    model = Theirs(model).to(device).train()
    torch.manual_seed(loop.seed)
    optimizer, store, size = make_optimizer(model, optim, device), task.store, loop.batch_size
    total, per_epoch, losses, began = (
        total_steps(len(store), loop),
        -(-len(store) // size),
        [],
        time.perf_counter(),
    )
    order = np.empty(0, int)
    for step in tqdm(
        range(total),
        desc="transformers",
        unit=" steps",
        mininterval=1 if sys.stderr.isatty() else 30,
    ):
        if step % per_epoch == 0:
            order = grouped_order(
                store.lengths, size, np.random.default_rng([loop.seed, step // per_epoch])
            )
        batch = store.batch(order[step % per_epoch * size :][:size])
        with cast:
            loss = model.ask(
                *padded(batch), start_positions=batch.start_labels, end_positions=batch.end_labels
            ).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), optim.clip or float("inf"))
        set_lr(optimizer, lr_at(step, total, optim), step, optim)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    losses = torch.stack(losses).tolist()  # waits for the device
    summary = {
        "steps": total,
        "seconds": round(time.perf_counter() - began, 1),
        "transformers": transformers.__version__,
        **task.evaluate(model, cast),
        "losses": losses,
    }
    if files.out:
        Path(files.out).mkdir(parents=True, exist_ok=True)
        write_json(Path(files.out) / "summary.json", summary)
    print(
        json.dumps({name: value for name, value in summary.items() if name != "losses"}, indent=1)
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(run_verb(main))
