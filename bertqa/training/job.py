"""What a training run needs: what is learned (a `Task`), and everything else (a `Job`)."""

import dataclasses
import math
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
from bertqa.model import folder
from bertqa.model.attention import Layout
from bertqa.model.card import fine_tuned, without_folders
from bertqa.settings import LoopSettings, OptimSettings
from bertqa.training.progress import Journal


class Task:
    """What is learned: training windows, a loss and an evaluation.

    A task of your own needs `store`, `key`, `loss` and `evaluate`; everything else has a default.
    """

    store: WindowStore
    """The windows to train on."""
    key: str
    """The metric that decides which weights are best; higher is better."""
    head: str | None = None
    """The kind of head, folder.QA or folder.CLASSES; None = one of your own."""
    labels: list[str] | None = None
    """The names of the classes, for a classifier."""
    loss_parts: tuple[str, ...] = ()
    """Names of the parts of the loss; the journal has each of them as loss_NAME."""
    recipe: dict = {}
    """Settings for the model card."""
    static_shapes: bool = False
    """Whether `loss` can be captured in a CUDA graph: it weights each window by `batch.weights`, and never waits for the
    device (no item(), no list of lengths)."""
    weights: Path | None = None
    """The model folder that training starts from; saved models take its tokenizer and provenance."""

    def loss(self, model: nn.Module, batch: Batch, layout: Layout) -> Tensor:
        """Return the loss of a packed batch, summed over its windows, (); with `loss_parts` (P,), the sum of each part."""
        raise NotImplementedError

    def evaluate(self, model: nn.Module, autocast) -> dict[str, float]:
        """Return metrics on the dev set, `key` among them, computed under the context manager `autocast`.

        All ranks call it, share the work, and get the same result.
        """
        raise NotImplementedError

    def fingerprints(self) -> dict[str, str]:
        """Return what must be the same when the run is resumed."""
        return {"train windows": f"{len(self.store)}, {self.store.lengths.sum()} tokens"}

    def describe(self, metrics: dict) -> str:
        """Return the metrics of the last evaluation in words, for the end of a run."""
        shown = []
        for name, value in metrics.items():
            if isinstance(value, (int, float)):
                shown.append(f"{name} {value:.4g}")
        return ", ".join(shown)

    def save_model(self, model: nn.Module, where: Path, evaluated: bool) -> None:
        """Write a model folder, or just the weights if the task has no `weights` to take a tokenizer from.

        Args:
            evaluated: whether the last evaluation was of these very weights, so that the card may state its metrics.
        """
        if self.weights is not None:
            folder.save(where, model, tokenizer_from=self.weights, provenance={})
            return
        where.mkdir(parents=True, exist_ok=True)
        # Clones, because a model of one's own may share a tensor between two names, which safetensors refuses.
        state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        save_file(state, where / "model.safetensors")

    def save_predictions(self, run: Path) -> None:
        """Write the predictions of the last evaluation into the run folder."""

    def save_rejected(self, run: Path) -> None:
        """Write the training examples that cannot be used to rejected.jsonl in the run folder."""


class FileTask(Task):
    """A task that reads a train and a dev file. Subclasses define `read`, `cut`, `card` and `saved_settings`."""

    train: Any
    """The training data; `train` and `dev` have a path and a sha256."""
    dev: Any
    """The data to evaluate on."""
    windows: Windows | TextWindows
    """The windows of `train`; `store` has the same on the device."""
    dev_windows: Windows | TextWindows
    """The windows of `dev`."""
    teaching: Any = None
    """The teachers' logits on the training windows (distillation.Teaching), if there are teachers."""

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
        """Read both files and cut them into windows.

        Args:
            train, dev: files; if `dev` is None, a part of the training data, drawn by `seed`, is held out.
            weights: the model folder whose tokenizer is used, and whose classes, if it has any.
            say: takes a line at a time for people.
            progress: whether to show progress bars.
            world: its ranks share evaluations.

        Raises:
            UserError: for files that cannot be read, or have nothing to train or evaluate on.
        """
        self.weights = Path(weights)
        self.settings = settings
        self.device = device
        self.say = say
        self.progress = progress
        self.world = world
        self.tokenizer = WordPiece.load(weights)
        # The dev set too, so that a mistake in it shows now and not after the first epoch.
        self.read(train, dev, seed)
        self.windows = self.cut(self.train, "train")
        self.dev_windows = self.cut(self.dev, "dev")
        self.store = WindowStore(self.windows, device)

    def read(self, train, dev, seed: int) -> None:
        """Set `train`, `dev` and, for a classifier, `labels`."""
        raise NotImplementedError

    def cut(self, data, name: str) -> Windows | TextWindows:
        """Cut `train` or `dev`, as `name` says, into windows, and tell people about them."""
        raise NotImplementedError

    def card(self, where: Path, provenance: dict) -> str:
        """Return the model card of a model in the folder `where` that got the metrics of the last evaluation."""
        raise NotImplementedError

    def saved_settings(self) -> dict:
        """Return the contents of qa.json."""
        raise NotImplementedError

    def save_model(self, model: nn.Module, where: Path, evaluated: bool) -> None:
        """Write a model folder; only an `evaluated` model gets a card with metrics."""
        provenance = self.provenance()
        card = None
        if evaluated:
            card = self.card(where, provenance)
        folder.save(
            where,
            model,
            tokenizer_from=self.weights,
            labels=self.labels,
            qa=self.saved_settings(),
            provenance=provenance,
            card=card,
        )

    def bar(self, name: str) -> str | None:
        """Return the title for a progress bar; None if none is to be shown."""
        return name if self.progress else None

    def fingerprints(self) -> dict[str, str]:
        """Return what must be the same when the run is resumed."""
        # The windows as well as the file: with other settings or another tokenizer the same file gives other windows.
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
        """Return where the trained weights come from: the starting weights, the data, the teachers."""
        data = f"{Path(self.train.path).name}, sha256 {self.train.sha256[:16]}"
        source = folder.read_config(self.weights)["provenance"]
        found = fine_tuned(source, self.weights, data)
        if self.teaching:
            teachers = []
            for name, digest in self.teaching.sums.items():
                teachers.append(f"{without_folders(name)} (sha256 {digest[:16]})")
            found["taught_by"] = ", ".join(teachers)
        return found


@dataclass
class Job:
    """A training run: the model, its task, the settings, the device and the run folder.

    Whatever the settings say holds, also for a job made in Python: the loop seeds torch with `settings.seed` and freezes
    what `optim.freeze` names.
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
    """Of matrix products, by autocast; float32 = no mixed precision."""
    journal: Journal = field(default_factory=lambda: Journal(None))
    """Takes the metrics of the loop; `run_training` opens the run's metrics.jsonl."""
    world: World = World()
    fingerprints: dict = field(default_factory=dict)
    """What must be the same when the run is resumed, beside the task's own fingerprints and the settings."""
    resumed: dict | None = None
    """The training state to go on from, as `checkpoint.load_checkpoint` returns it; None for a new run."""
    evaluate_first: bool = False
    """Whether to evaluate before the first step too."""
    lr_factors: dict[str, float] = field(default_factory=dict)
    """Learning rate factors by the beginning of a parameter's name: {"span.": 10, "encoder.embeddings.": 0.1}."""
    checkpoints: bool = True
    """Whether to write last/. Without it a stopped run cannot be resumed; meant for runs of seconds."""
    report: bool = True
    """Whether to write report.html at the end."""
    recorded: dict = field(default_factory=dict)
    """Settings for config.json beside the loop's and the optimizer's, by name."""
    command: list[str] | None = None
    """The command line; None if the run was started from Python."""
    say: Callable[[str], None] = say
    """Takes a line at a time for people."""

    def __post_init__(self):
        self.run = Path(self.run)

    @property
    def loss_parts(self) -> tuple[str, ...]:
        """Names of the parts of the task's loss; none if the task has no such attribute (it need not be a Task)."""
        return getattr(self.task, "loss_parts", ())

    @property
    def all_settings(self) -> dict:
        """Every setting of the run by name."""
        return {
            **self.recorded,
            **dataclasses.asdict(self.optim),
            **dataclasses.asdict(self.settings),
        }


def total_steps(windows: int, settings: LoopSettings) -> int:
    """Return the number of optimizer steps of the whole run; an epoch is counted in windows, not in questions."""
    # Less a hair, because the product may be above a whole number: 2.2 * 25 = 55.00000000000001 are 55 steps.
    steps = math.ceil(settings.epochs * math.ceil(windows / settings.batch_size) - 1e-9)
    return max(1, min(steps, settings.max_steps or steps))
