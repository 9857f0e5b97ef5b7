"""The settings of a training run, as dataclasses. Without torch, so that `train --help` answers at once.

Each field is also a flag of `python -m bertqa.train`, and the text under it is that flag's help.
"""

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from bertqa import fields
from bertqa.data.windows import check_window_settings
from bertqa.errors import UserError
from bertqa.fields import broken
from bertqa.folders import bundled_reader

SAMPLE = Path(__file__).resolve().parent / "data" / "sample"

RESUMABLE = {"max_minutes", "device", "threads", "save_every", "capture"}
"""Settings that may differ when a run is resumed, because they do not change its result."""

ENDS = {"epochs", "max_steps"}
"""Settings that may differ when a run is resumed, because they move its end; config.json records at which step."""

MOVABLE = {"train", "dev", "weights"}
"""Files that may have moved when a run is resumed: their fingerprints, not their paths, must be the same."""


@dataclass(frozen=True)
class FileSettings:
    """What goes in and where it comes out."""

    train: str = str(SAMPLE / "train.json")
    """Questions to train on: SQuAD or flat JSON, JSONL, MRQA, CSV; .gz or not; squad1, squad2."""
    dev: str | None = None
    """Questions to evaluate on; none = those that belong to train, or a tenth of its articles."""
    weights: str = field(default_factory=bundled_reader)
    """Where to start from: a model folder, a Hugging Face folder, or a Hub id."""
    out: str | None = None
    """Run folder; none = runs/ and the time."""
    fresh_head: bool = False
    """Draw a head at random: the weights have none."""
    task: Literal["qa", "classify"] = "qa"
    """qa, or classify (`--task classify --help`)."""


@dataclass(frozen=True)
class LabelledFiles(FileSettings):
    """What goes in and where it comes out, for classification."""

    train: str = str(SAMPLE / "reviews.csv")
    """Texts with labels to train on: CSV, TSV or JSONL; .gz or not."""
    dev: str | None = None
    """Texts with labels to evaluate on, in any of these forms; none = a part of train, see --split."""
    fresh_head: bool = False
    """Draw the class head at random in any case."""


@dataclass(frozen=True)
class QuestionAnsweringSettings:
    """How questions become windows, and spans answers."""

    max_length: int = 384
    """Most tokens of a window, special ones too."""
    overlap: int | None = None
    """Tokens that neighbouring windows share (run_qa's doc_stride); 128 unless step is given."""
    step: int | None = None
    """Tokens from one window's start to the next (Google's doc_stride)."""
    max_question: int = 64
    """Question tokens kept."""
    max_answer_length: Annotated[int, fields.POSITIVE] = 30
    """Most tokens of an answer."""
    limit_train: Annotated[int | None, fields.POSITIVE] = None
    """Train on the first N questions only."""
    limit_dev: Annotated[int | None, fields.POSITIVE] = None
    """Evaluate on the first N questions only."""

    def problems(self, max_positions: int | None = None) -> list[str]:
        """Return a phrase for each value that is wrong; `max_positions` is the model's, None before it is known."""
        found = broken(self)
        try:
            check_window_settings(
                self.max_length,
                max_question=self.max_question,
                max_positions=max_positions,
                **self.stride,
            )
        except UserError as error:
            found.append(str(error).removeprefix("windows: "))
        return found

    @property
    def stride(self) -> dict[str, int | None]:
        """overlap and step as build_windows takes them: overlap 128 if neither is set."""
        if self.overlap is None and self.step is None:
            return {"overlap": 128, "step": None}
        return {"overlap": self.overlap, "step": self.step}

    def saved(self) -> dict:
        """Return the entries of qa.json that make `predict` cut the same windows."""
        stride = {name: value for name, value in self.stride.items() if value is not None}
        return {
            "max_length": self.max_length,
            **stride,
            "max_question": self.max_question,
            "max_answer_length": self.max_answer_length,
        }


@dataclass(frozen=True)
class ClassificationSettings:
    """Which columns are read, and how texts become sequences."""

    text_column: str = "text"
    """Column, or key, of the text."""
    label_column: str = "label"
    """Column of the class, by name or by number."""
    pair_column: str | None = None
    """Column of a second text, to classify pairs."""
    split: Annotated[float | None, fields.SHARE] = None
    """Share of the training texts that is the dev set, drawn by seed; 0.3 where no dev is given."""
    max_length: int | None = None
    """Most tokens of a text (or pair), longer ones are cut; none = the model's positions."""
    class_weights: Literal["none", "balanced"] = "none"
    """none, or balanced: errors on a class weigh by how rare it is, texts / (classes * its texts)."""
    limit_train: Annotated[int | None, fields.POSITIVE] = None
    """Read the first N texts only, then split."""
    limit_dev: Annotated[int | None, fields.POSITIVE] = None
    """Evaluate on the first N texts only."""

    def problems(self, max_positions: int | None = None) -> list[str]:
        """Return a phrase for each value that is wrong; `max_positions` is the model's, None before it is known."""
        most = max_positions or 10**9
        # [CLS] and [SEP], and two tokens of the text; or [CLS] and two [SEP], and a token of each text
        least = 4 if self.pair_column is None else 5
        found = broken(self)
        if self.max_length is not None and not least <= self.max_length <= most:
            found.append(
                f"max_length is {self.max_length}, it must be at least {least} and at most the model's {most} positions"
            )
        return found

    def saved(self, max_length: int) -> dict:
        """Return the entries of qa.json that make `predict` read and cut texts in the same way."""
        return {
            "text_column": self.text_column,
            "pair_column": self.pair_column,
            "max_length": max_length,
        }


@dataclass(frozen=True)
class DistillationSettings:
    """Models to learn from."""

    teacher: list[str] = field(default_factory=list)
    """Models whose mean logits are learned beside the right answers; same vocabulary."""
    teacher_weight: Annotated[float, fields.FACTOR] = 0.8
    """Their share of the loss, of 1."""
    temperature: Annotated[float, fields.POSITIVE] = 2.0
    """Of their logits; high: unlikely answers count."""


@dataclass(frozen=True)
class ModelSettings:
    """Changes to the encoder for training."""

    dropout: Annotated[float | None, fields.RATE] = None
    """In the encoder; none = as the weights say."""
    attention_dropout: Annotated[float, fields.RATE] = 0.0
    """Of attention weights; none is fastest."""
    recompute: bool = False
    """Layers run twice: less memory, a third slower."""
    compile: bool = False
    """Let torch.compile fuse what stands between matrix products: for GPUs, slower on two CPU cores."""


@dataclass(frozen=True)
class OptimSettings:
    """What decides an update of the weights."""

    lr: Annotated[float, fields.POSITIVE] = 5e-5
    """Peak learning rate."""
    head_lr: Annotated[float | None, fields.POSITIVE] = None
    """That of the head alone; none = lr."""
    warmup: Annotated[float, fields.WARMUP] = 0.1
    """Warm-up: a fraction of all steps where below 1, else a number of steps."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """Then linear or cosine to zero, or constant."""
    weight_decay: Annotated[float, fields.NOT_NEGATIVE] = 0.01
    """Decoupled weight decay, on weight matrices only: never on biases and LayerNorm."""
    clip: Annotated[float, fields.NORM] = 1.0
    """Largest gradient norm, applied once per optimizer step; 0 = no clipping."""
    beta1: Annotated[float, fields.RATE] = 0.9
    """Adam's decay of the gradient's mean."""
    beta2: Annotated[float, fields.SHARE] = 0.999
    """Adam's decay of the gradient's square."""
    eps: Annotated[float, fields.POSITIVE] = 1e-8
    """Added to the root of Adam's second moment."""
    bias_correction: bool = True
    """Adam's; Google's BERT goes without."""
    layer_decay: Annotated[float, fields.FACTOR] = 1.0
    """Rate of a layer relative to the one above."""
    freeze: Annotated[str, fields.FROZEN] = "none"
    """What is not trained: none, embeddings, encoder, or N = the embeddings and the first N layers."""


@dataclass(frozen=True)
class LoopSettings:
    """How long, how much at once, how often to look, and on what."""

    epochs: Annotated[float, fields.EPOCHS] = 2.0
    """Passes over the training windows."""
    max_steps: Annotated[int | None, fields.POSITIVE] = None
    """Stop after N optimizer steps; the learning rate reaches zero there."""
    max_minutes: Annotated[float | None, fields.POSITIVE] = None
    """Save and stop then; --resume goes on."""
    batch_size: Annotated[int, fields.POSITIVE] = 16
    """Windows in an optimizer step, over all ranks."""
    micro_tokens: Annotated[str | int, fields.TOKENS] = "auto"
    """Most tokens at once; auto = by device."""
    ema: Annotated[float, fields.RATE] = 0.0
    """Decay of a moving average of the weights, which is then what is evaluated and kept; 0 = none."""
    eval_every: Annotated[int, fields.STEPS] = 0
    """Evaluate every N steps, and always at the end; 0 = after every epoch."""
    save_every: Annotated[str | float, fields.SAVES] = 10.0
    """Minutes (10) or steps (500steps) between checkpoints; 0 = every step."""
    seed: Annotated[int, fields.SEED] = 0
    """Order of the data, dropout, fresh weights."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """fp32, bf16 or fp16; auto = bf16 or fp16 on GPUs, fp32 elsewhere, though bf16 is faster on CPUs with units for it."""
    device: Annotated[str, fields.DEVICE] = "auto"
    """cpu, cuda, cuda:1, mps; auto = a GPU if any."""
    threads: Annotated[int, fields.THREADS] = 0
    """CPU threads; 0 = torch's own choice."""
    deterministic: bool = False
    """Refuse GPU kernels whose results vary from run to run (slower)."""
    capture: Literal["auto", "on", "off"] = "auto"
    """auto, on or off: steps as CUDA graphs."""

    @property
    def save_steps(self) -> int:
        """Steps between checkpoints; 0 if they come by time."""
        return int(fields.SAVE_EVERY.fullmatch(str(self.save_every))[1] or 0)

    @property
    def save_minutes(self) -> float:
        """Minutes between checkpoints; infinite if they come by steps."""
        return float(fields.SAVE_EVERY.fullmatch(str(self.save_every))[2] or math.inf)


@dataclass(frozen=True)
class RunSettings:
    """All settings of a run. No two parts have a setting of the same name."""

    files: FileSettings
    data: QuestionAnsweringSettings | ClassificationSettings
    model: ModelSettings = ModelSettings()
    optim: OptimSettings = OptimSettings()
    loop: LoopSettings = LoopSettings()
    teachers: DistillationSettings = DistillationSettings()

    def by_name(self) -> dict:
        """Return all settings as one dict."""
        found: dict = {}
        for part in dataclasses.fields(self):
            found |= dataclasses.asdict(getattr(self, part.name))
        return found

    def recipe(self) -> dict:
        """Return the settings that a model card lists: those of distillation only if there are teachers."""
        found = self.by_name()
        if not self.teachers.teacher:
            for part in dataclasses.fields(self.teachers):
                del found[part.name]
        return found

    def problems(self, max_positions: int | None = None) -> list[str]:
        """Return a phrase for each value that is wrong; `max_positions` is the model's, None before it is known."""
        found = []
        for part in (self.loop, self.optim, self.model, self.teachers):
            found += broken(part)
        return found + self.data.problems(max_positions)


def parts_of(task: str) -> dict[str, type]:
    """Return the dataclass of each part of RunSettings for a task, qa or classify."""
    parts: dict[str, type] = {"files": FileSettings, "data": QuestionAnsweringSettings}
    if task == "classify":
        parts = {"files": LabelledFiles, "data": ClassificationSettings}
    return {
        **parts,
        "teachers": DistillationSettings,
        "model": ModelSettings,
        "optim": OptimSettings,
        "loop": LoopSettings,
    }
