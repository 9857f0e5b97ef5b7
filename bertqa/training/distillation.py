"""Distillation: a student learns from the logits of teachers, beside the gold answers.

The teachers read every training window once, before the first step. The mean of their logits is stored in the cache
folder, so that other students, further epochs and a resumed run need no teacher, and on the device, where each step
gathers the rows of its windows.

The loss is (1 - w) * hard + w * T^2 * KL(teacher || student), both softmaxes at temperature T (Hinton et al. 2015).
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor, nn

from bertqa.data.batches import Batch
from bertqa.data.tokenizer import WordPiece, vocabulary_difference
from bertqa.device import autocast
from bertqa.errors import UserError
from bertqa.files import replacing, sha256
from bertqa.folders import cache_folder
from bertqa.inference import forward_all
from bertqa.model import folder
from bertqa.model.attention import Layout
from bertqa.model.config import BertConfig
from bertqa.model.copies import computing_in_16_bits
from bertqa.model.heads import Ensemble, SpanLogits
from bertqa.settings import DistillationSettings
from bertqa.training.job import FileTask

PADDING_LOGIT = -1e30
"""Its probability is 0. It is finite, because 0 times a difference of two infinities would be NaN."""


# ---- the loss ----


@dataclass
class Teaching:
    """The mean logits of the teachers on every training window, and how much they count."""

    sums: dict[str, str]
    """The sha256 of each teacher, by the name that the user gave it."""
    fingerprint: str
    """Of the windows and the teachers' weights."""
    logits: Tensor
    """float16 on the device. Question answering: (T, 2), start and end logit of each token, all windows in a row.
    Classification: (W, C), one row a text."""
    first: Tensor
    """(W,) int64 on the device: the row of each window's first token; 0, 3, 5 for windows of 3, 2 and 4 tokens."""
    weight: float
    """Share of the teachers in the loss, 0 to 1."""
    temperature: float

    def span_loss(self, hard: Tensor, logits: SpanLogits, batch: Batch, layout: Layout) -> Tensor:
        """Mix the teachers into `hard`, the loss on the gold answers; both are sums over the windows of the batch."""
        # The row of each token: the row of its window's first token, plus its position in the window.
        rows = self.first[batch.picked][layout.sequence] + layout.positions  # (N,)
        divergences = span_divergence(logits, self.logits[rows], layout, self.temperature)  # (S,)
        return self._mixed(hard, (divergences * batch.weights).sum())

    def class_loss(self, hard: Tensor, logits: Tensor, batch: Batch) -> Tensor:
        """Like `span_loss`, for class logits (S, C)."""
        taught = self.logits[batch.picked]  # (S, C)
        divergences = class_divergence(logits, taught, self.temperature)  # (S,)
        return self._mixed(hard, (divergences * batch.weights).sum())

    def _mixed(self, hard: Tensor, divergence: Tensor) -> Tensor:
        return (1 - self.weight) * hard + self.weight * self.temperature**2 * divergence


def span_divergence(
    logits: SpanLogits, taught: Tensor, layout: Layout, temperature: float
) -> Tensor:
    """Return KL(teacher || student) of each window, (S,): the mean over start and end.

    Each softmax is over the tokens of one window, [CLS] (no answer) among them.

    Args:
        logits: the student's, (N,) each.
        taught: (N, 2), the teachers' start and end logits of the same tokens.
    """
    # One row a window, for a softmax over its tokens: (S, L, 2).
    student = layout.pad(torch.stack(logits, 1) / temperature, PADDING_LOGIT).log_softmax(1)
    teacher = layout.pad(taught.float() / temperature, PADDING_LOGIT).log_softmax(1)
    both = F.kl_div(student, teacher, reduction="none", log_target=True)
    return both.sum((1, 2)) / 2  # (S,)


def class_divergence(logits: Tensor, taught: Tensor, temperature: float) -> Tensor:
    """Return KL(teacher || student) of each text, (S,), from logits (S, C) and (S, C)."""
    student = (logits / temperature).log_softmax(1)
    teacher = (taught.float() / temperature).log_softmax(1)
    return F.kl_div(student, teacher, reduction="none", log_target=True).sum(1)


# ---- the teachers ----


def ask_teachers(
    settings: DistillationSettings, folders: list[Path], task: FileTask, dtype: torch.dtype
) -> Teaching:
    """Return the mean logits of the teachers on all training windows: from the cache, else computed and stored there.

    Args:
        folders: the model folder of each of `settings.teacher`.
        task: the student's; its head, classes, tokenizer and training windows decide which models can teach it.
        dtype: of autocast while the teachers compute; float32 = none.

    Raises:
        UserError: for a teacher with another head, other classes, too few positions or another vocabulary.
    """
    for name, where in zip(settings.teacher, folders, strict=True):
        check_teacher(name, where, task)
    sums = [sha256(where / "config.json", where / "model.safetensors") for where in folders]
    fingerprint = fingerprint_of(task, sums, dtype)
    # Sorted by checksum, so that the mean does not depend on the order of the names, not even in its last bit.
    in_order = [where for _, where in sorted(zip(sums, folders, strict=True))]
    logits = cached_logits(fingerprint, task, lambda: _mean_logits(in_order, task, dtype))
    return Teaching(
        sums=dict(zip(settings.teacher, sums, strict=True)),
        fingerprint=fingerprint,
        logits=torch.from_numpy(logits).to(task.device),
        first=torch.from_numpy(_row_starts(task)[:-1]).to(task.device),
        weight=settings.teacher_weight,
        temperature=settings.temperature,
    )


def check_teacher(name: str, where: Path, task: FileTask) -> None:
    """Raise UserError if this model cannot teach this student; the message says why, and what to do."""
    config = folder.read_config(where)
    if config["head"] != task.head:
        raise UserError(
            f"teacher {name}: its head is {config['head'] or 'none'}, but this task needs one for "
            f"{task.head}; fine-tune it first, or name another teacher"
        )
    if task.labels and sorted(config["labels"]) != sorted(task.labels):
        raise UserError(
            f"teacher {name}: its classes are {', '.join(config['labels'])}, the student's "
            f"{', '.join(task.labels)}; they must be the same"
        )
    positions = BertConfig(**config["architecture"]).longest
    longest = int(task.windows.lengths.max())
    if positions is not None and longest > positions:
        raise UserError(
            f"teacher {name}: it has {positions} positions, but the longest training window has {longest} tokens; "
            f"use --max-length {positions}"
        )
    difference = vocabulary_difference(WordPiece.load(where), task.tokenizer)
    if difference:
        raise UserError(
            f"teacher {name}: its vocabulary is not the student's: {difference}; a teacher must have the vocabulary of "
            "the weights to train"
        )


def fingerprint_of(task: FileTask, teachers: list[str], dtype: torch.dtype) -> str:
    """Return 32 digits that depend on the windows, the teachers' checksums, the number format and the classes' order.

    They do not depend on the order of the teachers. The classes' order is that of the logits' columns.
    """
    parts = [task.windows.fingerprint(), str(dtype), *sorted(teachers), *(task.labels or [])]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def load_teacher(where: Path, task: FileTask) -> nn.Module:
    """Load a teacher and put its classes into the student's order."""
    model = folder.load(where, device=task.device)
    labels = folder.read_config(where).get("labels")
    # Teacher "no", "yes" and student "yes", "no": the classifier's rows 1, 0.
    if labels and labels != task.labels:
        order = torch.tensor([labels.index(label) for label in task.labels], device=task.device)
        model.classifier.weight = nn.Parameter(model.classifier.weight[order])
        model.classifier.bias = nn.Parameter(model.classifier.bias[order])
    return model


def _mean_logits(teachers: list[Path], task: FileTask, dtype: torch.dtype) -> np.ndarray:
    """Return the teachers' mean logits, float16 (T, 2) or (W, C), shifted so that each softmax's largest logit is 0.

    The shift does not change a softmax, and float16 is most precise near 0, where the likely tokens then are.
    """
    model = Ensemble([load_teacher(where, task) for where in teachers]).eval()

    def shifted_logits(batch: Batch, layout: Layout) -> tuple[Tensor, ...]:
        logits = model(batch.input_ids, token_type_ids=batch.token_type_ids, lengths=layout)
        if not isinstance(logits, SpanLogits):
            return (logits - logits.amax(1, keepdim=True),)  # (S, C)
        both = torch.stack(logits, 1)  # (N, 2)
        largest = layout.pad(both, PADDING_LOGIT).amax(1)  # (S, 2)
        return (both - largest[layout.sequence],)

    starts = _row_starts(task)
    width = len(task.labels) if task.labels else 2
    mean = np.empty((starts[-1], width), np.float16)
    with computing_in_16_bits(model, autocast(task.device, dtype)) as cast:
        parts = forward_all(
            shifted_logits,
            task.windows,
            task.device,
            autocast=cast,
            progress=task.bar("teachers"),
            world=task.world,
        )
        for windows, (logits,) in parts:
            # float16 ends at 65504; anything below -60000 has probability 0 anyway.
            mean[rows_of(windows, starts)] = logits.clip(-60000, 0)
    return mean


def _row_starts(task: FileTask) -> np.ndarray:
    """Return (W+1,) int64: the logits of window w are the rows starts[w] : starts[w+1], one a token, or one a text."""
    rows = np.ones(len(task.windows), np.int64)
    if task.head == folder.QA:
        rows = task.windows.lengths
    starts = np.zeros(len(rows) + 1, np.int64)
    starts[1:] = rows.cumsum()
    return starts


def rows_of(windows: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Return the rows of some windows, those of the first window first.

    With starts 0, 3, 5, 9 the windows 2, 0 have the rows 5 6 7 8, 0 1 2: that is 0 .. 6, shifted by 5 and by -4.
    """
    counts = starts[windows + 1] - starts[windows]  # 4, 3
    before = counts.cumsum() - counts  # 0, 4
    shift = np.repeat(starts[windows] - before, counts)  # 5 5 5 5, -4 -4 -4
    return np.arange(len(shift)) + shift


# ---- the cache ----


def cached_logits(
    fingerprint: str, task: FileTask, compute: Callable[[], np.ndarray]
) -> np.ndarray:
    """Return the logits that the cache has under this fingerprint; else compute and store them."""
    path = cache_folder() / "teachers" / f"{fingerprint}.safetensors"
    logits = read_logits(path, fingerprint, task.say)
    # All ranks or none: they share the computation, and a rank alone would wait for the others.
    if all(task.world.gather(logits is not None)):
        task.say(f"teachers: their logits on {len(task.windows):,} windows are read from {path}")
        return logits
    logits = compute()
    if task.world.local_rank == 0:
        task.say(store_logits(path, fingerprint, logits))
    return logits


def read_logits(path: Path, fingerprint: str, say: Callable[[str], None]) -> np.ndarray | None:
    """Return the stored logits; None if there are none, or, with a warning, if they are damaged."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="np") as file:
            logits = file.get_tensor("logits")
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        say(f"warning: {path}: damaged ({error}); the teachers answer again")
        return None
    if metadata != {"fingerprint": fingerprint, "sha256": _digest(logits)}:
        say(f"warning: {path}: damaged; the teachers answer again")
        return None
    return logits


def store_logits(path: Path, fingerprint: str, logits: np.ndarray) -> str:
    """Store the logits and return a line for people, a warning if it failed: training needs no cache."""
    metadata = {"fingerprint": fingerprint, "sha256": _digest(logits)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as fresh:
            save_file({"logits": logits}, fresh, metadata=metadata)
    except (OSError, SafetensorError) as error:
        return (
            f"warning: {path}: the teachers' logits could not be kept ({error}); this run has them in memory, another "
            "or a resumed one asks the teachers again. Make room, or set BERTQA_CACHE to another folder"
        )
    return f"teachers: their logits are kept in {path} ({logits.nbytes / 1e6:,.1f} MB)"


def _digest(logits: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(logits).data).hexdigest()
