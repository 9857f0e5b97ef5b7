"""What the loop does not know: what is trained on, its loss, and how good a model is at it."""

from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor, nn

from bertqa.data.batches import Batch, WindowStore
from bertqa.model import folder
from bertqa.model.attention import Layout


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
        state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        save_file(state, where / "model.safetensors")

    def save_predictions(self, run: Path) -> None:
        """Write the predictions of the last evaluation into the run folder."""

    def save_rejected(self, run: Path) -> int:
        """Write what could not be trained on to rejected.jsonl. Returns how much that is."""
        return 0
