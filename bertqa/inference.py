"""Windows through the model to spans: what evaluation, `predict` and the Reader share."""

import sys
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from bertqa.data.batches import WindowStore, by_length
from bertqa.data.windows import Windows
from bertqa.model.attention import Layout
from bertqa.model.heads import span_loss
from bertqa.qa.spans import SpanDecoder, Spans, SpanSettings

TOKENS = {"cpu": 4096, "cuda": 65536}
"""Tokens in an inference batch: on a CPU what stays near its caches, on a GPU what fills it."""


@torch.inference_mode()
def span_logits(model: nn.Module, windows: Windows, device: torch.device, autocast=None, tokens: int | None = None,
                progress: str | None = None) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, float]]:
    """Yield (rows (S,), start logits (N,), end logits (N,), summed loss) for batches that cover all windows once.

    The logits are float32 and packed, each window of its whole length. `model` must be in eval mode.
    """
    from tqdm import tqdm

    store, waiting = WindowStore(windows, device), None
    bar = tqdm(total=len(windows), desc=progress, unit=" windows", leave=False, disable=progress is None,
               dynamic_ncols=True,
               mininterval=0.2 if sys.stderr.isatty() else 30)
    with bar:
        for rows in by_length(store.lengths, tokens or TOKENS.get(device.type, 16384)):
            batch = store.batch(rows)
            layout = Layout.of(batch.lengths, device)
            with autocast or torch.autocast(device.type, enabled=False):
                logits = model(batch.input_ids, token_type_ids=batch.token_type_ids, lengths=layout)
            loss = span_loss(logits, layout, batch.start_labels, batch.end_labels)
            # One batch late, so that the copy of a batch waits while the next is already under way.
            if waiting is not None:
                yield _on_host(*waiting)
            waiting = (rows, torch.stack(logits), loss)
            bar.update(len(rows))
        if waiting is not None:
            yield _on_host(*waiting)


def _on_host(rows: np.ndarray, logits: torch.Tensor, loss: torch.Tensor):
    start, end = logits.float().cpu().numpy()
    return rows, start, end, float(loss)


def find_spans(model: nn.Module, windows: Windows, device: torch.device, settings: SpanSettings = SpanSettings(), *,
               autocast=None, progress: str | None = None) -> tuple[Spans, float]:
    """The n-best spans of every question, and the mean loss over windows (of use only where there are labels)."""
    decoder, total, training = SpanDecoder(windows, settings), 0.0, model.training
    model.eval()
    for rows, start, end, loss in span_logits(model, windows, device, autocast, progress=progress):
        decoder.add(rows, start, end)
        total += loss
    model.train(training)
    return decoder.finish(), total / max(1, len(windows))
