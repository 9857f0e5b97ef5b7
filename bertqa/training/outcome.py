"""How a run ended, and its closing figures."""

from dataclasses import dataclass

import torch

from bertqa.device import peak_memory
from bertqa.training.progress import Progress


@dataclass
class Outcome:
    """How a run ended."""

    progress: Progress
    last: dict
    """Metrics of the last evaluation."""
    finished: bool
    """False where it was stopped early and --resume would go on."""
    stopped_by: str = ""
    """Why it was: a signal's name, or the time limit."""


def summary(outcome: Outcome, key: str, device: torch.device) -> dict:
    """The closing figures of a run: time, speed, memory, best score."""
    progress = outcome.progress
    took = max(1e-9, progress.seconds)
    return {
        "steps": progress.step,
        "windows": progress.windows,
        "seconds": round(progress.seconds, 1),
        "windows_per_s": round(progress.windows / took, 2),
        "tokens_per_s": round(progress.tokens / took, 1),
        "peak_memory_mb": round(peak_memory(device) / 2**20),
        "skipped": progress.skipped,
        f"best_{key}": progress.best,
        "best_step": progress.best_step,
        "finished": outcome.finished,
    }
