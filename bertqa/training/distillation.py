"""Distillation: a student learns what teachers say about its training windows, beside the right answers.

The teachers answer every window once, before the first step. The mean of their logits is kept in the cache folder, so
that other students, a resumed run and further epochs pay nothing for it, and on the device, from where a step gathers the
rows of its windows without the host.

The loss is (1 - w) * hard + w * T^2 * KL(teacher || student), both softmaxes at temperature T (Hinton et al. 2015).
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor, nn

from bertqa.console import say
from bertqa.data.batches import Batch
from bertqa.data.tokenizer import WordPiece, vocabulary_difference
from bertqa.device import autocast
from bertqa.errors import UserError
from bertqa.files import replacing, sha256
from bertqa.folders import cache_folder
from bertqa.hf.convert import resolve_weights
from bertqa.inference import forward_all
from bertqa.model import folder
from bertqa.model.attention import Layout
from bertqa.model.card import without_folders
from bertqa.model.config import BertConfig
from bertqa.model.copies import computing_in_16_bits
from bertqa.model.heads import Ensemble, SpanLogits
from bertqa.settings import DistillationSettings
from bertqa.training.job import FileTask

LOW = -1e30
"""Logit of padding: its probability is 0, and it is finite, so that 0 times a difference of two of them is 0."""


@dataclass
class Teaching:
    """What the teachers say about every training window."""

    names: list[str]
    """Each teacher and the first digits of its weights' sha256, for the model card."""
    fingerprint: str
    """Of the windows and the teachers' weights."""
    logits: Tensor
    """float16 on the device: (T, 2) start and end of each window's tokens, one window behind the other; or (W, C)."""
    first: Tensor
    """(W,) int64 on the device: the row of each window's first token; 0, 3, 5 for windows of 3, 2 and 4 tokens."""
    weight: float
    temperature: float

    def span_loss(self, hard: Tensor, logits: SpanLogits, batch: Batch, layout: Layout) -> Tensor:
        """The loss of a packed batch, summed over its windows as `hard`, the loss of the right answers, is."""
        begin = self.first[batch.picked]  # (S,)
        # Of each token its row: that of its window's first token, and as many further as it stands behind that.
        taught = self.logits[begin[layout.sequence] + layout.positions]  # (N, 2)
        divergences = span_divergence(logits, taught, layout, self.temperature)  # (S,)
        return self._mixed(hard, (divergences * batch.weights).sum())

    def class_loss(self, hard: Tensor, logits: Tensor, batch: Batch) -> Tensor:
        """The same for class logits (S, C)."""
        taught = self.logits[batch.picked]  # (S, C)
        divergences = class_divergence(logits, taught, self.temperature)  # (S,)
        return self._mixed(hard, (divergences * batch.weights).sum())

    def _mixed(self, hard: Tensor, divergence: Tensor) -> Tensor:
        return (1 - self.weight) * hard + self.weight * self.temperature**2 * divergence


def span_divergence(
    logits: SpanLogits, taught: Tensor, layout: Layout, temperature: float
) -> Tensor:
    """(S,) of each window the mean of KL(teacher || student) for the first and the last token of the answer.

    Each softmax is over the tokens of one window, [CLS] (no answer) among them.

    Args:
        logits: the student's, (N,) each.
        taught: (N, 2), the teachers' start and end logits of the same tokens.
    """
    # One row a window, (S, L, 2), for a softmax over its tokens; of padding LOW leaves nothing.
    student = layout.pad(torch.stack(logits, 1) / temperature, LOW).log_softmax(1)
    teacher = layout.pad(taught.float() / temperature, LOW).log_softmax(1)
    both = F.kl_div(student, teacher, reduction="none", log_target=True)
    return both.sum((1, 2)) / 2  # (S,)


def class_divergence(logits: Tensor, taught: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) of S texts: (S, C), (S, C) -> (S,)."""
    student = (logits / temperature).log_softmax(1)
    teacher = (taught.float() / temperature).log_softmax(1)
    return F.kl_div(student, teacher, reduction="none", log_target=True).sum(1)


def ask_teachers(settings: DistillationSettings, task: FileTask, dtype: torch.dtype) -> Teaching:
    """The mean logits of the teachers on all training windows, out of the cache where it has them.

    Args:
        task: the student's: its head, classes, tokenizer and training windows decide who can teach it.
        dtype: of autocast while the teachers answer; float32 = none.

    Raises:
        UserError: for a teacher that cannot be found, has no such head, or another vocabulary.
    """
    world = task.world
    found = world.in_turn(lambda: [Path(resolve_weights(name)) for name in settings.teacher])
    for name, where in zip(settings.teacher, found, strict=True):
        check_teacher(name, where, task)
    # What a cached file may be used for: these windows, these teachers' weights, this number format.
    sums = [sha256(where / "config.json", where / "model.safetensors") for where in found]
    fingerprint = fingerprint_of(task, sums, dtype)
    path = cache_folder() / "teachers" / f"{fingerprint}.safetensors"
    logits = read_logits(path, fingerprint)
    # All or none: ranks that asked the teachers alone would share the work with nobody.
    if all(world.gather(logits is not None)):
        task.say(f"teachers: their logits on {len(task.windows):,} windows are read from {path}")
    else:
        # In the order of their sums: the mean is the same to the last bit, however they are named.
        in_order = [where for _, where in sorted(zip(sums, found, strict=True))]
        logits = _mean_logits(in_order, task, dtype)
        if world.local_rank == 0:
            task.say(keep_logits(path, fingerprint, logits))
    names = []
    for name, digest in zip(settings.teacher, sums, strict=True):
        names.append(f"{without_folders(name)} (sha256 {digest[:16]})")
    return Teaching(
        names=names,
        fingerprint=fingerprint,
        logits=torch.from_numpy(logits).to(task.device),
        first=torch.from_numpy(_row_starts(task)[:-1]).to(task.device),
        weight=settings.teacher_weight,
        temperature=settings.temperature,
    )


def check_teacher(name: str, where: Path, task: FileTask) -> None:
    """Refuse a model that cannot teach this student. Raises UserError that says why, and what would do."""
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
    differs = vocabulary_difference(WordPiece.load(where), task.tokenizer)
    if differs:
        raise UserError(
            f"teacher {name}: its vocabulary is not the student's: {differs}; a teacher must have the vocabulary of "
            "the weights to train"
        )


def fingerprint_of(task: FileTask, teachers: list[str], dtype: torch.dtype) -> str:
    """32 digits: other windows, other teachers' weights or another number format give others.

    The order of the teachers does not count, but that of the classes does, in which the logits stand.
    """
    parts = [task.windows.fingerprint(), str(dtype), *sorted(teachers), *(task.labels or [])]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _row_starts(task: FileTask) -> np.ndarray:
    """(W+1,) int64: window w has the rows starts[w] : starts[w+1] of the logits; a row a token, or one a text."""
    rows = np.ones(len(task.windows), np.int64)
    if task.head == folder.QA:
        rows = task.windows.lengths
    starts = np.zeros(len(rows) + 1, np.int64)
    starts[1:] = rows.cumsum()
    return starts


def _mean_logits(teachers: list[Path], task: FileTask, dtype: torch.dtype) -> np.ndarray:
    """float16 (T, 2) or (W, C): the teachers' mean logits, each softmax's largest at 0.

    A softmax does not see the shift, and float16 is finest near 0: the likely tokens keep the most digits.
    """
    model = Ensemble([load_teacher(where, task) for where in teachers]).eval()

    def compute(batch: Batch, layout: Layout) -> tuple[Tensor, ...]:
        logits = model(batch.input_ids, token_type_ids=batch.token_type_ids, lengths=layout)
        if not isinstance(logits, SpanLogits):
            return (logits - logits.amax(1, keepdim=True),)
        both = torch.stack(logits, 1)  # (N, 2)
        largest = layout.pad(both, LOW).amax(1)  # (S, 2)
        return (both - largest[layout.sequence],)

    starts = _row_starts(task)
    width = len(task.labels) if task.labels else 2
    mean = np.empty((starts[-1], width), np.float16)
    with computing_in_16_bits(model, autocast(task.device, dtype)) as cast:
        parts = forward_all(
            compute,
            task.windows,
            task.device,
            autocast=cast,
            progress=task.bar("teachers"),
            world=task.world,
        )
        for rows, (logits,) in parts:
            # float16 ends at 65504; what is so unlikely is 0 in any softmax.
            mean[rows_of(rows, starts)] = logits.clip(-60000, 0)
    return mean


def rows_of(windows: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """The rows of some windows, one window behind the other.

    With starts 0, 3, 5, 9 the windows 2, 0 have the rows 5 6 7 8, 0 1 2: counting 0 .. 6, shifted by 5 and by -4.
    """
    counts = starts[windows + 1] - starts[windows]  # 4, 3
    before = counts.cumsum() - counts  # 0, 4
    shift = np.repeat(starts[windows] - before, counts)  # 5 5 5 5, -4 -4 -4
    return np.arange(len(shift)) + shift


def load_teacher(where: Path, task: FileTask) -> nn.Module:
    """The model of a folder, its classes in the student's order."""
    model = folder.load(where, device=task.device)
    theirs = folder.read_config(where).get("labels")
    # A teacher of "no", "yes" and a student of "yes", "no": rows 1, 0 of its classifier.
    if theirs and theirs != task.labels:
        order = torch.tensor([theirs.index(label) for label in task.labels], device=task.device)
        model.classifier.weight = nn.Parameter(model.classifier.weight[order])
        model.classifier.bias = nn.Parameter(model.classifier.bias[order])
    return model


def read_logits(path: Path, fingerprint: str) -> np.ndarray | None:
    """The logits that were kept under this fingerprint; None where there are none, or not whole (a warning)."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="np") as file:
            logits = file.get_tensor("logits")
            noted = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        say(f"warning: {path}: damaged ({error}); the teachers answer again")
        return None
    if noted != {"fingerprint": fingerprint, "sha256": _digest(logits)}:
        say(f"warning: {path}: damaged; the teachers answer again")
        return None
    return logits


def keep_logits(path: Path, fingerprint: str, logits: np.ndarray) -> str:
    """Write the logits for the next run. Returns what to say about it: a full disk is no reason not to train."""
    noted = {"fingerprint": fingerprint, "sha256": _digest(logits)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as fresh:
            save_file({"logits": logits}, fresh, metadata=noted)
    except (OSError, SafetensorError) as error:
        return (
            f"warning: {path}: the teachers' logits could not be kept ({error}); this run has them in memory, another "
            "or a resumed one asks the teachers again. Make room, or set BERTQA_CACHE to another folder"
        )
    return f"teachers: their logits are kept in {path} ({logits.nbytes / 1e6:,.1f} MB)"


def _digest(logits: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(logits).data).hexdigest()
