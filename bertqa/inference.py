"""Inference: run a model over all windows and decode spans or classes. Used by evaluation, the verbs and the Reader."""

import copy
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
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
"""Tokens in an inference batch, by device type: on a CPU few enough for the caches, on a GPU enough to fill it."""
if torch.cpu._is_amx_tile_supported():
    # AMX needs larger products: on a Xeon bf16 is 1.25 times as fast as with 1,536 tokens, and int8 no slower.
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
    """Run `compute` on packed batches that cover all windows once, the longest windows first.

    The ranks of a `world` (distributed) compute every size-th batch each, and all of them yield all batches. Batches are
    the same as in a single process, so logits are too, bit for bit.

    Args:
        compute: returns a tuple of tensors for a batch, by a model in eval mode.
        model: the model that `compute` calls. If it is packed for CPUs (prepack) and there are enough batches, each thread
            computes whole batches, without waiting for the others: 1.1 times as fast with two.
        tokens: most tokens in a batch; None: what suits the device (`TOKENS`).
        progress: name of a progress bar that counts windows, or what `unit` says; None: no bar.

    Yields:
        (rows, results): indices of the batch's windows (S,), and the tensors as float32 arrays.
    """
    store = WindowStore(windows, device)
    batches = list(by_length(store.lengths, tokens or _tokens_for(device)))
    one_each = device.type == "cpu" and 1 < torch.get_num_threads() <= len(batches)
    forward = _forward_by_threads if one_each and can_be_shared(model) else _forward
    mine = batches if world is None else batches[world.rank :: world.size]
    parts = _counted(forward(compute, store, mine, autocast), mine, progress, unit)
    if world is None or world.size == 1:
        yield from parts
        return
    for _ in batches[:: world.size]:
        # In the last round some ranks have no batch left, and give None.
        for part in world.gather(next(parts, None)):
            if part is not None:
                yield part


def _tokens_for(device: torch.device) -> int:
    """Return the number of tokens in an inference batch on a device."""
    return TOKENS.get(device.type, 16384)


def _counted(parts, batches: list[np.ndarray], progress: str | None, unit: str):
    """Yield the parts of these batches, with a progress bar over their rows if `progress` names one."""
    total = sum(map(len, batches))
    shown = progress is not None
    with progress_bar(total=total, desc=progress, unit=unit, shown=shown, leave=False) as bar:
        for rows, results in parts:
            bar.update(len(rows))
            yield rows, results


@torch.inference_mode()
def _forward(compute, store: WindowStore, batches: list[np.ndarray], autocast):
    """Yield (rows, results) of these batches, as `forward_all` does."""
    waiting = None
    for rows in batches:
        batch = store.batch(rows)
        layout = Layout.of_batch(batch)
        with autocast or torch.autocast(store.device.type, enabled=False):
            results = compute(batch, layout)
        # One batch late, so that the caller decodes a batch while the GPU computes the next one.
        if waiting is not None:
            yield _arrived(*waiting)
        waiting = (rows, [OnItsWay(result.float()) for result in results])
    if waiting is not None:
        yield _arrived(*waiting)


def _forward_by_threads(compute, store: WindowStore, batches: list[np.ndarray], autocast):
    """Yield what `_forward` does. Each batch is computed by one thread, as many at once as torch has threads."""

    def work(rows: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        batch = store.batch(rows)
        # Both modes hold in the thread that enters them only, and an autocast stores the state that it will restore.
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
        # A new thread, the caller's too, starts with the number that any thread has set last: restore it.
        torch.set_num_threads(threads)


def _arrived(rows: np.ndarray, results: list[OnItsWay]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Wait for a batch's results and return them as arrays."""
    return rows, [result.read() for result in results]


def span_scores(out) -> tuple[Tensor, ...]:
    """Return the start and end logits (N,) in a span model's output, and its null logits (S,) if it has any.

    The output of a head of the user's needs `.start` and `.end`. Its `.null`, a verifier's logit for "no answer here", is
    added to the null score of each window, and so to the null odds.
    """
    null = getattr(out, "null", None)
    if null is None:
        return out.start, out.end
    return out.start, out.end, null


@contextmanager
def _evaluating(model: nn.Module, autocast) -> Iterator:
    """Put a model into eval mode inside this context; yield the autocast to use (see computing_in_16_bits)."""
    training = model.training
    model.eval()
    try:
        with computing_in_16_bits(model, autocast) as cast:
            yield cast
    finally:
        model.train(training)


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
    """Return the n best spans of every question, and the mean loss over windows (meaningful only with labels).

    The ranks of a `world` share the work, and all return the spans of all questions. For what a model of your own must
    return, see `span_scores`.
    """

    def compute(batch: Batch, layout: Layout) -> tuple[Tensor, ...]:
        logits = model(batch.input_ids, token_type_ids=batch.token_type_ids, lengths=layout)
        loss = span_loss(logits, layout, batch.start_labels, batch.end_labels)
        return loss, *span_scores(logits)

    decoder = SpanDecoder(windows, settings)
    total = 0.0
    with _evaluating(model, autocast) as cast:
        parts = forward_all(
            compute, windows, device, model=model, autocast=cast, progress=progress, world=world
        )
        for rows, (loss, *scores) in parts:
            decoder.add(rows, *scores)
            total += float(loss)
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
    """Read documents with a model in eval mode: their best spans, and sums of probabilities.

    Args:
        windows: of the documents, `examples`.
        done: called after every batch with the fraction of the windows that were in it.
    """

    def compute(batch: Batch, layout: Layout) -> tuple[Tensor, ...]:
        logits = model(batch.input_ids, token_type_ids=batch.token_type_ids, lengths=layout)
        return span_scores(logits)

    decoder = SpanDecoder(windows, settings)
    lengths = windows.lengths
    # log of the sum of exp(logit) over each document: of start logits, of end logits
    mass = np.full((2, len(examples)), -np.inf)
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
    """Return the class logits (W, C) of all W windows, and the mean cross-entropy (meaningful only with labels).

    The ranks of a `world` share the work, and all return all logits.
    """

    def compute(batch: Batch, layout: Layout) -> tuple[Tensor, ...]:
        # (S, C)
        logits = model(batch.input_ids, token_type_ids=batch.token_type_ids, lengths=layout)
        return logits, F.cross_entropy(logits, batch.classes, reduction="sum")

    logits = np.empty((len(windows), model.num_labels), np.float32)  # (W, C)
    total = 0.0
    with _evaluating(model, autocast) as cast:
        parts = forward_all(
            compute, windows, device, model=model, autocast=cast, progress=progress, world=world
        )
        for rows, (part, loss) in parts:
            logits[rows] = part
            total += float(loss)
    return logits, total / max(1, len(windows))


def probabilities(logits: np.ndarray, labels: Sequence[str]) -> list[dict[str, float]]:
    """Return the probability of each class by its name, most probable first, for each row of logits (R, C)."""
    # Shifted so that exp cannot overflow; a softmax does not change by it.
    powers = np.exp(logits - logits.max(1, keepdims=True), dtype=np.float64)
    softmax = powers / powers.sum(1, keepdims=True)  # (R, C)
    found = []
    for row in softmax:
        descending = np.argsort(-row, kind="stable")
        found.append({labels[place]: float(row[place]) for place in descending})
    return found


def calibrate(folder: str | Path, store: WindowStore, most: int, seed: int) -> int:
    """Measure the ranges that int8 inference needs (model/ranges.py) on random windows, and write them to a model folder.

    The encoder is loaded from the folder, in float32, onto the store's device: a model in training may be compiled or have
    hooks. Returns the number of windows drawn: `most`, or all, if there are fewer.
    """
    encoder = load_encoder(folder, device=store.device, dtype=torch.float32)
    count = min(most, len(store))
    drawn = np.random.default_rng(seed).choice(len(store), count, replace=False)
    drawn = drawn[np.argsort(-store.lengths[drawn], kind="stable")]
    with torch.inference_mode(), watched(encoder) as ranges:
        for rows in split_by_tokens(drawn, store.lengths, _tokens_for(store.device)):
            batch = store.batch(rows)
            layout = Layout.of_batch(batch)
            encoder(batch.input_ids, token_type_ids=batch.token_type_ids, lengths=layout)
    problem = misfit(ranges, encoder)
    if problem:
        raise UserError(f"{folder}: its int8 ranges cannot be measured: {problem}")
    write_ranges(folder, ranges, count)
    return count
