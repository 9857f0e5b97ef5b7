"""AdamW with BERT's groups, the learning rate as a pure function of the step, and the average of the weights."""

import math
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from bertqa.errors import UserError
from bertqa.settings import OptimSettings


def lr_at(step: int, total: int, settings: OptimSettings) -> float:
    """Learning rate of optimizer step `step` (counted from 0) of `total`.

    It rises linearly over the warm-up (the first step already moves), peaks at `lr`, then follows the schedule, which
    would reach zero at step `total`. Of 10 steps with a warm-up of 0.2 and a linear schedule, in eighths of lr:
    4 8 | 8 7 6 5 4 3 2 1.
    """
    warm = settings.warmup
    if warm < 1:
        # a share of the run; else it is a number of steps
        warm = math.ceil(warm * total)
    warm = min(total, int(warm))
    if step < warm:
        return settings.lr * (step + 1) / warm
    left = (total - step) / max(1, total - warm)  # 1 just behind the warm-up, 0 at the end
    if settings.schedule == "constant":
        return settings.lr
    if settings.schedule == "cosine":
        return settings.lr * (1 - math.cos(math.pi * left)) / 2
    return settings.lr * left


def depth_of(name: str, layers: int) -> int:
    """How far above the input a parameter lies: 0 embeddings, 1.. layers, layers + 1 everything on top."""
    # encoder.layers.4.norm.weight -> 5; a model may also be the encoder alone, so its names may begin with "layers."
    name = f".{name}"
    if ".layers." in name:
        return 1 + int(name.split(".layers.")[1].split(".")[0])
    return 0 if ".embeddings." in name else layers + 1


def freeze(model: nn.Module, what: str) -> None:
    """Stop training the part of the model that `OptimSettings.freeze` names; what its maker has frozen stays frozen.

    Raises UserError for more layers than the model has.
    """
    layers = _layers_of(model)
    depth_by_name = {"none": -1, "embeddings": 0, "encoder": layers}
    top = depth_by_name[what] if what in depth_by_name else int(what)
    if top > layers:
        raise UserError(
            f"freeze is {what} layers, but this model has {layers}; use 0 to {layers}, or encoder"
        )
    for name, parameter in model.named_parameters():
        if depth_of(name, layers) <= top:
            parameter.requires_grad_(False)


def _layers_of(model: nn.Module) -> int:
    """How many layers the encoder of a model has; a model of one's own need have no config."""
    return getattr(model, "encoder", model).config.num_hidden_layers


def _rate_factor(
    name: str, layers: int, settings: OptimSettings, lr_factors: dict[str, float]
) -> float:
    """What the learning rate of a parameter is multiplied by."""
    depth = depth_of(name, layers)
    is_head = depth > layers and ".pooler." not in f".{name}"
    if settings.head_lr and is_head:
        factor = settings.head_lr / settings.lr
    else:
        # With 6 layers and a decay of 0.9: 1 for what stands on top, 0.9 for layer 6, 0.9^7 for the embeddings.
        factor = settings.layer_decay ** (layers + 1 - depth)
    for beginning, more in lr_factors.items():
        if name.startswith(beginning):
            factor *= more
    return factor


def make_optimizer(
    model: nn.Module,
    settings: OptimSettings,
    device: torch.device,
    tensor_lr: bool = False,
    capturable: bool = False,
    lr_factors: dict[str, float] | None = None,
) -> torch.optim.AdamW:
    """AdamW over the trainable parameters: a group for each pair of rate and decay; `lr_scale` is the factor of the rate.

    Args:
        tensor_lr: each group has its learning rate in a tensor on the device: a CUDA graph would keep a float as it was.
        capturable: its steps can be captured in a CUDA graph.
        lr_factors: of parameters whose name begins so, beside their depth's factor.

    Raises:
        UserError: for the beginning of a name that no parameter has.
    """
    lr_factors = lr_factors or {}
    names = [name for name, _ in model.named_parameters()]
    for beginning in lr_factors:
        if not any(name.startswith(beginning) for name in names):
            raise UserError(
                f"lr_factors: no parameter's name begins with {beginning!r}; the last one is {names[-1]}"
            )
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            scale = _rate_factor(name, _layers_of(model), settings, lr_factors)
            # Biases and norms, everything of one dimension, are not pulled towards zero.
            decay = settings.weight_decay if parameter.dim() > 1 else 0.0
            groups.setdefault((scale, decay), []).append(parameter)
    described = []
    for (scale, decay), members in groups.items():
        # `weight_decay` is what the next update uses, `decay` what the settings say: see `set_lr`.
        about = {"lr_scale": scale, "weight_decay": decay, "decay": decay}
        described.append({"params": members, **about})
    optimizer = torch.optim.AdamW(
        described,
        lr=settings.lr,
        betas=(settings.beta1, settings.beta2),
        eps=settings.eps,
        fused=device.type in ("cpu", "cuda"),
        capturable=capturable,
    )
    if tensor_lr:
        for group in optimizer.param_groups:
            group["lr"] = torch.tensor(settings.lr, device=device)
    return optimizer


def load_optimizer(optimizer: torch.optim.AdamW, saved: dict) -> None:
    """Put back the moments that `optimizer.state_dict()` returned. Its groups stay: they are what the settings say, and
    how the update is computed is this device's."""
    groups = []
    for group, before in zip(optimizer.param_groups, saved["param_groups"], strict=True):
        groups.append({**group, "params": before["params"]})
    optimizer.load_state_dict({**saved, "param_groups": groups})


def set_lr(optimizer: torch.optim.AdamW, lr: float, updates: int, settings: OptimSettings) -> None:
    """Give every group its learning rate for the next update; `updates` is how many have been made before it.

    Without bias correction (Google's optimizer) the update is lr * m / (sqrt(v) + eps). torch divides m by c1 and
    sqrt(v) by sqrt(c2), c = 1 - beta^t; scaling lr, eps and decay by the inverse gives just that formula.
    """
    correction1 = correction2 = 1.0
    if not settings.bias_correction:
        correction1 = 1 - settings.beta1 ** (updates + 1)
        correction2 = 1 - settings.beta2 ** (updates + 1)
    scale = correction1 / math.sqrt(correction2)
    for group in optimizer.param_groups:
        rate = lr * group["lr_scale"] * scale
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
        group["eps"] = settings.eps / math.sqrt(correction2)
        group["weight_decay"] = group["decay"] / scale


class Average:
    """Exponential moving average of the trainable weights; does nothing with decay 0."""

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.weights = []
        if decay:
            self.weights = [weight for weight in model.parameters() if weight.requires_grad]
        self.averages = [weight.detach().clone() for weight in self.weights]

    @torch.no_grad()
    def update(self) -> None:
        """average = decay * average + (1 - decay) * weights."""
        if self.decay:
            torch._foreach_lerp_(self.averages, self.weights, 1 - self.decay)

    @contextmanager
    def in_place(self):
        """The model holds the averages inside, its own weights again afterwards."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        # The parameters stay the same objects, so that the optimizer keeps its hold on them; only their storage is exchanged.
        for weight, average in zip(self.weights, self.averages, strict=True):
            weight.data, average.data = average.data, weight.data

    def state_dict(self) -> dict:
        """The averages, in the order of the trainable parameters."""
        return {"averages": self.averages}

    def load_state_dict(self, state: dict) -> None:
        """Put back what `state_dict` returned."""
        for average, saved in zip(self.averages, state["averages"], strict=True):
            average.copy_(saved)
