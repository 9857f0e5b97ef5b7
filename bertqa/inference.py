"""Windows through the model, to spans or classes: what evaluation, `predict`, `embed` and the Reader share."""

import copy
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bertqa.console import progress_bar
from bertqa.data.batches import Batch, WindowStore, by_length, split_by_tokens
from bertqa.data.examples import Example
from bertqa.data.windows import Windows
from bertqa.device import OnItsWay
from bertqa.errors import UserError
from bertqa.model.attention import Layout
from bertqa.model.copies import computing_in_16_bits
from bertqa.model.folder import load_encoder
from bertqa.model.heads import span_loss
from bertqa.model.prepack import can_be_shared
from bertqa.model.ranges import misfit, watched, write_ranges
from bertqa.qa.documents import Reading, log_mass
from bertqa.qa.spans import SpanDecoder, Spans, SpanSettings

TOKENS = {"cpu": 1536, "cuda": 65536}
"""Tokens in an inference batch: on a CPU what stays near its caches, on a GPU what fills it."""
if torch.cpu._is_amx_tile_supported():
    # Its units are filled by larger products: on a Xeon bf16 is 1.25 times as fast as with 1,536, int8 the same.
    TOKENS["cpu"] = 4096


def forward_all(
    compute: Callable[[Batch, Layout], tuple[Tensor, ...]],
    windows: Windows,
    device: torch.device,
    *,
    model: nn.Module | None = None,
    autocast=None,
    tokens: int | None = None,
    progress: str | None = None,
    unit: str = " windows",
    world=None,
) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
    """Yield (rows (S,), what `compute` returned for them, as float32 on the host) for packed batches, longest windows
    first, that cover all windows once. The model that `compute` calls must be in eval mode.

    With a `world` (distributed) each rank computes every size-th batch and yields those of all: whole batches
    and not questions are dealt out, so that each is the very batch of a single process, to the last bit of its logits.

    Args:
        model: what `compute` calls. One that is packed for CPUs (prepack) may be called by many threads, and is where there
            is work for all of them: a core that computes a batch by itself waits for no other, 1.1 times as fast on two.
    """
    store = WindowStore(windows, device)
    batches = list(by_length(store.lengths, tokens or TOKENS.get(device.type, 16384)))
    forward = _forward
    if (
        device.type == "cpu"
        and 1 < torch.get_num_threads() <= len(batches)
        and can_be_shared(model)
    ):
        forward = _forward_by_threads
    if world is None or world.size == 1:
        parts = forward(compute, store, batches, autocast)
        yield from _counted(parts, batches, progress, unit)
        return
    batches_of_rank = batches[world.rank :: world.size]
    parts = forward(compute, store, batches_of_rank, autocast)
    mine = _counted(parts, batches_of_rank, progress, unit)
    for _ in batches[:: world.size]:
        yield from (part for part in world.gather(next(mine, None)) if part is not None)


def _counted(parts, batches: list[np.ndarray], progress: str | None, unit: str):
    """The parts as they come, with a progress bar of that name over the rows of all batches; none where it is None."""
    total = sum(map(len, batches))
    shown = progress is not None
    with progress_bar(total=total, desc=progress, unit=unit, shown=shown, leave=False) as bar:
        for rows, results in parts:
            bar.update(len(rows))
            yield rows, results


@torch.inference_mode()
def _forward(compute, store: WindowStore, batches: list[np.ndarray], autocast):
    """What `forward_all` yields, for these batches."""
    waiting = None
    for rows in batches:
        batch = store.batch(rows)
        layout = Layout.of_batch(batch)
        with autocast or torch.autocast(store.device.type, enabled=False):
            results = compute(batch, layout)
        # One batch late: while the device computes this batch, the caller works on the one before.
        if waiting is not None:
            yield _arrived(*waiting)
        waiting = (rows, [OnItsWay(result.float()) for result in results])
    if waiting is not None:
        yield _arrived(*waiting)


def _forward_by_threads(compute, store: WindowStore, batches: list[np.ndarray], autocast):
    """What `_forward` yields, each batch computed by one of as many threads as torch would use for it."""

    def work(rows: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        batch = store.batch(rows)
        # An autocast keeps what it will put back; and neither mode holds in other threads than the one that enters it.
        cast = copy.copy(autocast) or torch.autocast("cpu", enabled=False)
        with torch.inference_mode(), cast:
            results = compute(batch, Layout.of_batch(batch))
        return rows, [result.float().numpy() for result in results]

    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield from pool.map(work, batches)
    finally:
        pool.shutdown(cancel_futures=True)
        # What any thread has set last is what new threads begin with, those of others too.
        torch.set_num_threads(threads)


def _arrived(rows: np.ndarray, results: list[OnItsWay]) -> tuple[np.ndarray, list[np.ndarray]]:
    return rows, [result.read() for result in results]


def span_scores(out) -> tuple[Tensor, ...]:
    """Start and end logits (N,) of what a span model returns, by name, and null scores (S,) where it has them.

    A head of one's own returns an object with `.start` and `.end`, and whatever else it likes. Its `.null`, a verifier's
    logit for "no answer here", is added to the null score of each window, and so to the null odds.
    """
    null = getattr(out, "null", None)
    if null is None:
        return out.start, out.end
    return out.start, out.end, null


def find_spans(
    model: nn.Module,
    windows: Windows,
    device: torch.device,
    settings: SpanSettings = SpanSettings(),
    *,
    autocast=None,
    progress: str | None = None,
    world=None,
) -> tuple[Spans, float]:
    """The n-best spans of every question, and the mean loss over windows (of use only where there are labels).

    The ranks of a `world` share the work; all of them return the spans of all questions. The model may be your own: see
    `span_scores` for what it returns.
    """

    def compute(batch: Batch, layout: Layout) -> tuple[Tensor, ...]:
        logits = model(batch.input_ids, token_type_ids=batch.token_type_ids, lengths=layout)
        loss = span_loss(logits, layout, batch.start_labels, batch.end_labels)
        return loss, *span_scores(logits)

    decoder = SpanDecoder(windows, settings)
    total = 0.0
    training = model.training
    model.eval()
    with computing_in_16_bits(model, autocast) as cast:
        parts = forward_all(
            compute, windows, device, model=model, autocast=cast, progress=progress, world=world
        )
        for rows, (loss, *scores) in parts:
            decoder.add(rows, *scores)
            total += float(loss)
    model.train(training)
    return decoder.finish(), total / max(1, len(windows))


def read_windows(
    model: nn.Module,
    windows: Windows,
    examples: Sequence[Example],
    device: torch.device,
    settings: SpanSettings,
    *,
    autocast=None,
    progress: str | None = None,
    done: Callable[[float], None] | None = None,
) -> Reading:
    """What a model in eval mode makes of documents, `examples`, that are cut into windows.

    `done` is told after every batch which share of the windows it was.
    """

    def compute(batch: Batch, layout: Layout) -> tuple[Tensor, ...]:
        logits = model(batch.input_ids, token_type_ids=batch.token_type_ids, lengths=layout)
        return span_scores(logits)

    decoder = SpanDecoder(windows, settings)
    lengths = windows.lengths
    mass = np.full((2, len(examples)), -np.inf)  # start and end of each document
    batches = forward_all(
        compute, windows, device, model=model, autocast=autocast, progress=progress
    )
    for rows, (start, end, *null) in batches:
        decoder.add(rows, start, end, *null)
        question = windows.question[rows]
        count = windows.count[rows]
        np.logaddexp.at(mass[0], question, log_mass(start, lengths[rows], count))
        np.logaddexp.at(mass[1], question, log_mass(end, lengths[rows], count))
        if done is not None:
            done(len(rows) / len(windows))
    return Reading(examples, decoder.finish(), windows, mass)


def class_logits(
    model: nn.Module,
    windows: Windows,
    device: torch.device,
    *,
    autocast=None,
    progress: str | None = None,
    world=None,
) -> tuple[np.ndarray, float]:
    """Logits (W, C) float32 of every window, and the mean cross-entropy (of use only where there are labels).

    The ranks of a `world` share the work; all of them return all logits.
    """

    def compute(batch: Batch, layout: Layout) -> tuple[Tensor, ...]:
        logits = model(
            batch.input_ids, token_type_ids=batch.token_type_ids, lengths=layout
        )  # (S, C)
        return logits, F.cross_entropy(logits, batch.classes, reduction="sum")

    logits = np.empty((len(windows), model.num_labels), np.float32)  # (W, C)
    total = 0.0
    training = model.training
    model.eval()
    with computing_in_16_bits(model, autocast) as cast:
        parts = forward_all(
            compute, windows, device, model=model, autocast=cast, progress=progress, world=world
        )
        for rows, (part, loss) in parts:
            logits[rows] = part
            total += float(loss)
    model.train(training)
    return logits, total / max(1, len(windows))


def calibrate(folder: str | Path, store: WindowStore, most: int, seed: int) -> int:
    """Measure on windows drawn by seed how far the inputs of a model's products reach, and keep that in its folder: int8
    inference needs it (model/ranges.py).

    The folder's own encoder reads them, in float32 on the store's device: not a model whose layers are compiled or watched.

    Args:
        most: how many windows to read, all where there are fewer.

    Returns:
        How many were read.
    """
    encoder = load_encoder(folder, device=store.device, dtype=torch.float32)
    count = min(most, len(store))
    drawn = np.random.default_rng(seed).choice(len(store), count, replace=False)
    drawn = drawn[np.argsort(-store.lengths[drawn], kind="stable")]
    tokens = TOKENS.get(store.device.type, 16384)
    with torch.inference_mode(), watched(encoder) as ranges:
        for rows in split_by_tokens(drawn, store.lengths, tokens):
            batch = store.batch(rows)
            layout = Layout.of_batch(batch)
            encoder(batch.input_ids, token_type_ids=batch.token_type_ids, lengths=layout)
    problem = misfit(ranges, encoder)
    if problem:
        raise UserError(f"{folder}: its int8 ranges cannot be measured: {problem}")
    write_ranges(folder, ranges, count)
    return count
