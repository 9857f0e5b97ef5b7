"""The settings of a training run, as dataclasses. No torch here, so that `train --help` comes at once.

Each field is also a flag of `python -m bertqa.train`, and the text under it is that flag's help.
"""

import dataclasses
import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from bertqa.data.windows import check_window_settings
from bertqa.errors import UserError

PACKAGE = Path(__file__).resolve().parent
SAMPLE = PACKAGE / "data" / "sample"
DEVICE = re.compile(r"auto|cpu|mps|cuda(:[0-9]{1,4})?")
SAVE_EVERY = re.compile(r"([1-9][0-9]{0,17}) ?steps|([0-9]*[.]?[0-9]+(?:e[-+]?[0-9]+)?)")

RESUMABLE = {"max_minutes", "device", "threads", "save_every", "capture"}
"""Settings that a resumed run may have otherwise than the run had: none of them is part of its result."""

ENDS = {"epochs", "max_steps"}
"""Settings by which --resume moves the end of a run; its config.json says at which step that was."""

MOVABLE = {"train", "dev", "weights"}
"""Files that may have been moved when a run is resumed: their fingerprints tell whether they are the same."""


def bundled_reader() -> str:
    """The reader that comes with bertqa: in weights/ of where one stands or of the clone, else in the wheel."""
    name = Path("weights") / "minilm-squad2"
    for place in (name, PACKAGE.parent / name):
        if place.is_dir():
            return str(place)
    return str(PACKAGE / name)


def broken(settings, rules: dict[str, tuple[bool, str]]) -> list[str]:
    """A phrase for each setting that breaks its rule: name -> (whether it is kept, what it asks)."""
    return [
        f"{name} is {getattr(settings, name)}, it must {must}"
        for name, (kept, must) in rules.items()
        if not kept
    ]


def positive(value: float | None) -> bool:
    """Whether a number that may be left open is above 0, and one that other numbers can be divided by."""
    return value is None or 0 < value < 2**63


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
    """Draw the answer head at random: needed where the weights have none."""
    task: Literal["qa", "classify"] = "qa"
    """qa, or classify: classes of texts; `--task classify --help` shows its flags."""


@dataclass(frozen=True)
class LabelledFiles(FileSettings):
    """What goes in and where it comes out, for classification."""

    train: str = str(SAMPLE / "reviews.csv")
    """Texts with labels to train on: CSV, TSV or JSONL; .gz or not."""
    dev: str | None = None
    """Texts with labels to evaluate on, in any of these forms; none = a part of train, see --split."""
    fresh_head: bool = False
    """Draw the class head at random although the weights have one."""


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
    max_answer_length: int = 30
    """Most tokens of an answer."""
    limit_train: int | None = None
    """Train on the first N questions only."""
    limit_dev: int | None = None
    """Evaluate on the first N questions only."""

    def problems(self, max_positions: int | None = None) -> list[str]:
        """Everything that is wrong with these values, one phrase each."""
        found = broken(
            self,
            {
                "max_answer_length": (self.max_answer_length > 0, "be positive"),
                "limit_train": (positive(self.limit_train), "be positive"),
                "limit_dev": (positive(self.limit_dev), "be positive"),
            },
        )
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
        """overlap and step as windows take them: overlap 128 where neither was given."""
        if self.overlap is None and self.step is None:
            return {"overlap": 128, "step": None}
        return {"overlap": self.overlap, "step": self.step}

    def saved(self) -> dict:
        """What qa.json must say so that `predict` makes the same windows."""
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
    split: float | None = None
    """Share of the training texts that is the dev set, drawn by seed; 0.3 where no dev is given."""
    max_length: int | None = None
    """Most tokens of a text (or pair), longer ones are cut; none = the model's positions."""
    class_weights: Literal["none", "balanced"] = "none"
    """none, or balanced: errors on a class weigh by how rare it is, texts / (classes * its texts)."""
    limit_train: int | None = None
    """Read the first N texts only, before the split."""
    limit_dev: int | None = None
    """Evaluate on the first N texts only."""

    def problems(self, max_positions: int | None = None) -> list[str]:
        """Everything that is wrong with these values, one phrase each."""
        most = max_positions or 10**9
        least = 4 if self.pair_column is None else 5  # special tokens, and one of each text
        length_fits = self.max_length is None or least <= self.max_length <= most
        rules = {
            "split": (self.split is None or 0 < self.split < 1, "lie in (0, 1)"),
            "max_length": (
                length_fits,
                f"be at least {least} and at most the model's {most} positions",
            ),
            "limit_train": (positive(self.limit_train), "be positive"),
            "limit_dev": (positive(self.limit_dev), "be positive"),
        }
        return broken(self, rules)

    def saved(self, max_length: int) -> dict:
        """What the model folder must say so that `predict` reads texts alike."""
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
    teacher_weight: float = 0.8
    """Their share of the loss beside the right answers."""
    temperature: float = 2.0
    """Of their logits; high: unlikely answers count."""

    def problems(self) -> list[str]:
        """Everything that is wrong with these values, one phrase each."""
        rules = {
            "teacher_weight": (0 < self.teacher_weight <= 1, "lie in (0, 1]"),
            "temperature": (positive(self.temperature), "be positive"),
        }
        return broken(self, rules)


@dataclass(frozen=True)
class ModelSettings:
    """Changes to the encoder for training."""

    dropout: float | None = None
    """In the encoder; none = as the weights say."""
    attention_dropout: float = 0.0
    """Dropout of attention weights; the fastest attention bodies have none."""
    recompute: bool = False
    """Keep less for the backward pass and compute it again: much less memory, a third slower."""
    compile: bool = False
    """Let torch.compile fuse what stands between matrix products: for GPUs, slower on two CPU cores."""

    def problems(self) -> list[str]:
        """Everything that is wrong with these values, one phrase each."""
        rules = {
            "dropout": (self.dropout is None or 0 <= self.dropout < 1, "lie in [0, 1)"),
            "attention_dropout": (0 <= self.attention_dropout < 1, "lie in [0, 1)"),
        }
        return broken(self, rules)


@dataclass(frozen=True)
class OptimSettings:
    """What decides an update of the weights."""

    lr: float = 5e-5
    """Peak learning rate."""
    warmup: float = 0.1
    """Warm-up: a fraction of all steps where below 1, else a number of steps."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """After the warm-up: linear or cosine to zero, or constant."""
    weight_decay: float = 0.01
    """Decoupled weight decay, on weight matrices only: never on biases and LayerNorm."""
    clip: float = 1.0
    """Largest gradient norm, applied once per optimizer step; 0 = no clipping."""
    beta1: float = 0.9
    """Adam's decay of the gradient's mean."""
    beta2: float = 0.999
    """Adam's decay of the gradient's square."""
    eps: float = 1e-8
    """Added to the root of Adam's second moment."""
    bias_correction: bool = True
    """Adam's; Google's BERT goes without."""
    layer_decay: float = 1.0
    """Learning rate of a layer relative to that of the layer above it (1 = all the same)."""
    freeze: str = "none"
    """What is not trained: none, embeddings, encoder, or N = the embeddings and the first N layers."""

    def problems(self) -> list[str]:
        """Everything that is wrong with these values, one phrase each."""
        is_count = self.freeze.isdecimal() and len(self.freeze) < 10
        can_freeze = is_count or self.freeze in ("none", "embeddings", "encoder")
        rules = {
            "lr": (positive(self.lr), "be positive"),
            "warmup": (0 <= self.warmup < math.inf, "be a fraction below 1 or a number of steps"),
            "weight_decay": (0 <= self.weight_decay < math.inf, "not be negative"),
            "clip": (self.clip >= 0, "be positive, or 0 for no clipping"),
            "beta1": (0 <= self.beta1 < 1, "lie in [0, 1)"),
            "beta2": (0 < self.beta2 < 1, "lie in (0, 1)"),
            "eps": (positive(self.eps), "be positive"),
            "layer_decay": (0 < self.layer_decay <= 1, "lie in (0, 1]"),
            "freeze": (can_freeze, "be none, embeddings, encoder or a number of layers"),
        }
        return broken(self, rules)


@dataclass(frozen=True)
class LoopSettings:
    """How long, how much at once, how often to look, and on what."""

    epochs: float = 2.0
    """Passes over the training windows."""
    max_steps: int | None = None
    """Stop after N optimizer steps; the learning rate reaches zero there."""
    max_minutes: float | None = None
    """Save and stop then; --resume goes on."""
    batch_size: int = 16
    """Windows in an optimizer step, over all ranks."""
    micro_tokens: str | int = "auto"
    """Most tokens at once; auto = by device."""
    ema: float = 0.0
    """Decay of a moving average of the weights, which is then what is evaluated and kept; 0 = none."""
    eval_every: int = 0
    """Evaluate every N steps, and always at the end; 0 = after every epoch."""
    save_every: str | float = 10.0
    """Minutes (10), or steps (500steps), between checkpoints; 0 = every step. A signal saves too."""
    seed: int = 0
    """Order of the data, dropout, fresh weights."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """fp32, bf16 or fp16; auto = bf16 or fp16 on GPUs, fp32 elsewhere."""
    device: str = "auto"
    """cpu, cuda, cuda:1 or mps; auto = the GPU if there is one."""
    threads: int = 0
    """CPU threads; 0 = torch's own choice."""
    deterministic: bool = False
    """Refuse GPU kernels whose results vary from run to run (slower)."""
    capture: Literal["auto", "on", "off"] = "auto"
    """auto, on or off: steps as CUDA graphs."""

    def problems(self) -> list[str]:
        """Everything that is wrong with these values, one phrase each."""
        most_threads = max(64, 4 * (os.cpu_count() or 1))
        micro = self.micro_tokens == "auto" or str(self.micro_tokens).strip("0").isdecimal()
        saves = SAVE_EVERY.fullmatch(str(self.save_every)) is not None
        rules = {
            "epochs": (0 < self.epochs <= 10**6, "be positive, and a million at most"),
            "max_steps": (positive(self.max_steps), "be positive"),
            "max_minutes": (positive(self.max_minutes), "be positive"),
            "batch_size": (positive(self.batch_size), "be positive"),
            "micro_tokens": (micro, "be a number of tokens, or auto"),
            "ema": (0 <= self.ema < 1, "lie in [0, 1)"),
            "eval_every": (self.eval_every >= 0, "be a number of steps, or 0"),
            "save_every": (saves, "be minutes, as in 10, or steps, as in 500steps, or 0"),
            "device": (
                DEVICE.fullmatch(self.device) is not None,
                "be auto, cpu, cuda, cuda:1 or mps",
            ),
            "threads": (0 <= self.threads <= most_threads, f"lie between 0 and {most_threads}"),
            "seed": (0 <= self.seed < 2**63, f"lie between 0 and {2**63 - 1}"),
        }
        return broken(self, rules)

    @property
    def save_steps(self) -> int:
        """Checkpoints come at multiples of so many steps; 0 = not by steps."""
        return int(SAVE_EVERY.fullmatch(str(self.save_every))[1] or 0)

    @property
    def save_minutes(self) -> float:
        """Checkpoints come after so many minutes; infinite where they come by steps."""
        return float(SAVE_EVERY.fullmatch(str(self.save_every))[2] or math.inf)


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
        """Every setting by its name."""
        found: dict = {}
        for part in dataclasses.fields(self):
            found |= dataclasses.asdict(getattr(self, part.name))
        return found

    def recipe(self) -> dict:
        """The settings that a model card tells: those of teachers only where there are any."""
        found = self.by_name()
        if not self.teachers.teacher:
            for part in dataclasses.fields(self.teachers):
                del found[part.name]
        return found

    def problems(self, max_positions: int | None = None) -> list[str]:
        """Everything that is wrong with these values, one phrase each."""
        return [
            *self.loop.problems(),
            *self.optim.problems(),
            *self.model.problems(),
            *self.teachers.problems(),
            *self.data.problems(max_positions),
        ]


def parts_of(task: str) -> dict[str, type]:
    """The dataclass of each part of a run's settings, for this task."""
    if task == "classify":
        own = {"files": LabelledFiles, "data": ClassificationSettings}
    else:
        own = {"files": FileSettings, "data": QuestionAnsweringSettings}
    return {
        **own,
        "teachers": DistillationSettings,
        "model": ModelSettings,
        "optim": OptimSettings,
        "loop": LoopSettings,
    }
