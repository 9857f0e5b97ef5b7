"""What a training run needs, in one object."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from bertqa.distributed import World
from bertqa.settings import LoopSettings, OptimSettings
from bertqa.training.journal import Journal
from bertqa.training.task import Task


@dataclass
class Job:
    """A run of the loop: which model learns which task, how, where, and where its folder is.

    What the settings say holds whoever calls the loop: it draws from `settings.seed` and freezes what `optim.freeze` names.
    """

    model: nn.Module
    """On `device`, float32."""
    task: Task
    settings: LoopSettings
    optim: OptimSettings
    run: Path
    """The run folder: best/ and last/ are written there."""
    device: torch.device
    dtype: torch.dtype
    """Format of matrix products; float32 = no mixed precision."""
    journal: Journal
    world: World = World()
    fingerprints: dict = field(default_factory=dict)
    """What a resumed run must share with this one: data, vocabulary, windows, settings."""
    resumed: dict | None = None
    """The state that `checkpoint.load_checkpoint` returned, of the run to go on with."""
    evaluate_first: bool = False
    """Also evaluate before the first step, to know where training starts from."""
