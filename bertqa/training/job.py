"""What a training run needs: what is learned (a `Task`), and everything else around it (a `Job`)."""

import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from bertqa.console import say
from bertqa.data.batches import Batch, WindowStore
from bertqa.data.text_windows import TextWindows
from bertqa.data.tokenizer import WordPiece
from bertqa.data.windows import Windows
from bertqa.distributed import World
from bertqa.errors import UserError, first_sentence
from bertqa.files import read_object
from bertqa.inference import calibrate
from bertqa.model import folder
from bertqa.model.attention import Layout
from bertqa.model.card import fine_tuned
from bertqa.model.record import WINDOWS_FOR_RANGES
from bertqa.settings import LoopSettings, OptimSettings
from bertqa.training.progress import Journal


class Task:
    """A task of the loop. One's own needs `store`, `key`, `loss` and `evaluate`; the rest may stay as it is here."""

    store: WindowStore
    """The windows to train on."""
    key: str
    """The metric that decides which weights are best; higher is better."""
    head: str | None = None
    """The head of its models, as model/folder.py names it; None = one that folders do not know."""
    labels: list[str] | None = None
    """The classes, for a head that has them."""
    loss_parts: tuple[str, ...] = ()
    """Names of the parts of the loss, which the journal then tells one by one, as loss_NAME."""
    recipe: dict = {}
    """Settings that the model card tells."""
    static_shapes: bool = False
    """Whether `loss` counts each window by `batch.weights` and never waits for the device (no item(), no list of lengths):
    only then are its steps captured as CUDA graphs."""
    weights: Path | None = None
    """The model folder that the tokenizer and the provenance of saved models come from."""

    def loss(self, model: nn.Module, batch: Batch, layout: Layout) -> Tensor:
        """Loss summed over the windows of a packed batch, (); with `loss_parts` (P,), one number a part, whose sum it is."""
        raise NotImplementedError

    def evaluate(self, model: nn.Module, autocast) -> dict[str, float]:
        """Metrics on the dev set, `key` among them. Called on every rank; they share the work and all return the same."""
        raise NotImplementedError

    def fingerprints(self) -> dict[str, str]:
        """What a resumed run must have in common with this one."""
        return {"train windows": f"{len(self.store)}, {self.store.lengths.sum()} tokens"}

    def describe(self, metrics: dict) -> str:
        """The metrics of an evaluation for people, at the end of a run."""
        shown = []
        for name, value in metrics.items():
            if isinstance(value, (int, float)):
                shown.append(f"{name} {value:.4g}")
        return ", ".join(shown)

    def save_model(self, model: nn.Module, where: Path, evaluated: bool) -> None:
        """Write a model folder with what the last evaluation found, and its numbers where it was `evaluated`.

        Without `weights`, which has the tokenizer, it holds nothing but the weights.
        """
        if self.weights is not None:
            folder.save(where, model, tokenizer_from=self.weights, provenance={})
            return
        where.mkdir(parents=True, exist_ok=True)
        # Clones: a model of one's own may share a tensor between two names, which safetensors refuses.
        state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        save_file(state, where / "model.safetensors")

    def save_predictions(self, run: Path) -> None:
        """Write the predictions of the last evaluation into the run folder."""

    def save_rejected(self, run: Path) -> None:
        """Write what could not be trained on to rejected.jsonl."""


class FileTask(Task):
    """A task that reads its windows from files, and that teachers may help to teach: `read` and `cut` are its own."""

    train: Any
    """What was read to train on: it has a path and a sha256; so has `dev`."""
    dev: Any
    windows: Windows | TextWindows
    """What `store` was made of."""
    dev_windows: Windows | TextWindows
    teaching = None
    """What teachers say about the training windows (distillation.Teaching), where there are any."""

    def __init__(
        self,
        train,
        dev,
        weights: str | Path,
        settings,
        *,
        seed: int,
        device: torch.device,
        say: Callable[[str], None] = say,
        progress: bool = True,
        world: World = World(),
    ):
        """Read and tokenise.

        Args:
            train, dev: files; without `dev` a part of the training data, drawn by `seed`, is held out.
            weights: the model folder whose tokenizer, and classes if it has any, are used.
            say: takes a line at a time for people.
            progress: whether to show bars.
            world: its ranks share evaluations.

        Raises:
            UserError: for files that cannot be read or hold nothing to train or evaluate on.
        """
        self.weights = Path(weights)
        self.settings = settings
        self.device = device
        self.say = say
        self.progress = progress
        self.world = world
        self.tokenizer = WordPiece.load(weights)
        # Both now: a mistake in the dev set must not show after the first epoch.
        self.read(train, dev, seed)
        self.windows = self.cut(self.train, "train")
        self.dev_windows = self.cut(self.dev, "dev")
        self.store = WindowStore(self.windows, device)

    def read(self, train, dev, seed: int) -> None:
        """Set `train`, `dev` and `labels`."""
        raise NotImplementedError

    def cut(self, data, name: str) -> Windows | TextWindows:
        """The windows of `train` or `dev`, of which people are told what they are like."""
        raise NotImplementedError

    def bar(self, name: str) -> str | None:
        """The name of a progress bar; None where none is to be seen."""
        return name if self.progress else None

    def fingerprints(self) -> dict[str, str]:
        """What a resumed run must have in common with this one."""
        # The windows too: other settings, or another tokenizer, make others of the same file.
        found = {
            "train windows": self.windows.fingerprint(),
            "dev windows": self.dev_windows.fingerprint(),
            "train file": self.train.sha256[:16],
            "dev file": self.dev.sha256[:16],
        }
        if self.teaching:
            found["teachers"] = self.teaching.fingerprint
        return found

    def provenance(self) -> dict:
        """Where the weights come from: those that training started from, the data, the teachers."""
        data = f"{Path(self.train.path).name}, sha256 {self.train.sha256[:16]}"
        source = folder.read_config(self.weights)["provenance"]
        found = fine_tuned(source, self.weights, data)
        if self.teaching:
            found["taught_by"] = ", ".join(self.teaching.names)
        return found


@dataclass
class Job:
    """A training run: which model learns which task, how, where, and where its folder is.

    What the settings say holds whoever calls the loop: it draws from `settings.seed` and freezes what `optim.freeze` names.
    """

    model: nn.Module
    """On `device`, float32."""
    task: Task
    settings: LoopSettings
    optim: OptimSettings
    run: Path
    """The run folder: best/ and last/ are written there."""
    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.float32
    """Format of matrix products; float32 = no mixed precision."""
    journal: Journal = field(default_factory=lambda: Journal(None))
    """Where the loop writes its numbers; `run_training` opens the run's own."""
    world: World = World()
    fingerprints: dict = field(default_factory=dict)
    """What a resumed run must share with this one, beside what the task and the loop's settings say."""
    resumed: dict | None = None
    """The state that `checkpoint.load_checkpoint` returned, of the run to go on with."""
    evaluate_first: bool = False
    """Also evaluate before the first step, to know where training starts from."""
    lr_factors: dict[str, float] = field(default_factory=dict)
    """Factors of the learning rate by the beginning of a parameter's name: {"span.": 10, "encoder.embeddings.": 0.1}."""
    checkpoints: bool = True
    """Keep the whole state in last/. Without it a run cannot go on where it was stopped: for runs of seconds."""
    report: bool = True
    """Write report.html at the end."""
    recorded: dict = field(default_factory=dict)
    """Settings that config.json keeps beside the loop's and the optimizer's, by name."""
    command: list[str] | None = None
    """The command line that asked for the run; None from Python."""
    say: Callable[[str], None] = say
    """Takes a line at a time for people."""

    def __post_init__(self):
        self.run = Path(self.run)

    @property
    def loss_parts(self) -> tuple[str, ...]:
        """Names of the parts of the task's loss; a task need not be a Task."""
        return getattr(self.task, "loss_parts", ())

    @property
    def all_settings(self) -> dict:
        """Every setting of the run by its name."""
        return {
            **self.recorded,
            **dataclasses.asdict(self.optim),
            **dataclasses.asdict(self.settings),
        }


def total_steps(windows: int, settings: LoopSettings) -> int:
    """Optimizer steps of the whole run: counted on windows, not on questions."""
    # The product may be a hair above a whole number: 2.2 * 25 = 55.00000000000001 are 55 steps.
    steps = math.ceil(settings.epochs * math.ceil(windows / settings.batch_size) - 1e-9)
    return max(1, min(steps, settings.max_steps or steps))


def measure_ranges(job: Job, best: Path) -> None:
    """Add to a model folder that the job's task has just saved what int8 needs to be fast (model/ranges.py), measured on
    training windows drawn by seed."""
    if getattr(job.task, "head", None) is None:
        return
    config = read_object(best / "config.json")
    # Of a model or an attention of one's own nobody but its maker knows how it is loaded.
    if "model" in config or "attention" in config:
        return
    began = time.monotonic()
    try:
        count = calibrate(best, job.task.store, WINDOWS_FOR_RANGES, job.settings.seed)
    except (UserError, RuntimeError) as error:
        # Such as a GPU without room for a second model: a training is worth more than what can be measured later.
        job.say(f"warning: best/ has no ranges for int8: {first_sentence(error)}")
        return
    took = time.monotonic() - began
    job.say(f"best/: ranges for int8 measured on {count:,} training windows in {took:.1f} s")
