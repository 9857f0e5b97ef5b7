"""What a training run needs, in one object."""

import dataclasses
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from bertqa.distributed import World
from bertqa.settings import LoopSettings, OptimSettings
from bertqa.training.journal import Journal
from bertqa.training.task import Task


def say_on_stderr(line: str) -> None:
    """Tell people who wait at a terminal."""
    print(line, file=sys.stderr, flush=True)


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
    say: Callable[[str], None] = say_on_stderr
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
