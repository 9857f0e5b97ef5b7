"""AdamW with BERT's parameter groups, the learning rate as a pure function of the step, and the moving average of the weights."""

import math
from collections import defaultdict
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from bertqa.errors import UserError
from bertqa.settings import OptimSettings


def lr_at(step: int, total: int, settings: OptimSettings) -> float:
    """Return the learning rate of optimizer step `step` of `total`; steps are counted from 0.

    It rises linearly over the warm-up (and is above 0 at the first step), peaks at `lr`, then follows the schedule, which
    would reach zero at step `total`. With 10 steps, a warm-up of 0.2 and a linear schedule, in eighths of lr:
    4 8 | 8 7 6 5 4 3 2 1.
    """
    warmup = settings.warmup
    if warmup < 1:
        # a share of the run; from 1 on it is a number of steps
        warmup = math.ceil(warmup * total)
    warmup = min(total, int(warmup))
    if step < warmup:
        return settings.lr * (step + 1) / warmup
    left = (total - step) / max(1, total - warmup)  # 1 right after the warm-up, 0 at the end
    if settings.schedule == "constant":
        return settings.lr
    if settings.schedule == "cosine":
        return settings.lr * (1 - math.cos(math.pi * left)) / 2
    return settings.lr * left


def depth_of(name: str, layers: int) -> int:
    """Return the depth of a parameter: 0 for embeddings, 1 to `layers` for the layers, layers + 1 for everything above."""
    # encoder.layers.4.norm.weight -> 5. If the model is an encoder alone, names begin with "layers.".
    name = f".{name}"
    if ".layers." in name:
        return 1 + int(name.split(".layers.")[1].split(".")[0])
    return 0 if ".embeddings." in name else layers + 1


def freeze(model: nn.Module, what: str) -> None:
    """Freeze the part of the model that `OptimSettings.freeze` names. Parameters that are frozen already stay so.

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
    """Return the number of layers of the model's encoder."""
    # The encoder's config, since a model of one's own need not have one.
    return getattr(model, "encoder", model).config.num_hidden_layers


def _rate_factor(
    name: str, layers: int, settings: OptimSettings, lr_factors: dict[str, float]
) -> float:
    """Return the factor of a parameter's learning rate."""
    depth = depth_of(name, layers)
    is_head = depth > layers and ".pooler." not in f".{name}"
    if settings.head_lr and is_head:
        factor = settings.head_lr / settings.lr
    else:
        # With 6 layers and a decay of 0.9: 1 for the head, 0.9 for layer 6, 0.9^7 for the embeddings.
        factor = settings.layer_decay ** (layers + 1 - depth)
    for beginning, more in lr_factors.items():
        if name.startswith(beginning):
            factor *= more
    return factor


def parameter_groups(
    model: nn.Module, settings: OptimSettings, lr_factors: dict[str, float]
) -> list[dict]:
    """Group the trainable parameters by the factor of their learning rate ("lr_scale") and their weight decay.

    "decay" is the weight decay of the settings; "weight_decay", which AdamW uses, may be changed by `set_lr`.

    Raises:
        UserError: if no parameter's name begins like one of `lr_factors`.
    """
    names = [name for name, _ in model.named_parameters()]
    for beginning in lr_factors:
        if not any(name.startswith(beginning) for name in names):
            raise UserError(
                f"lr_factors: no parameter's name begins with {beginning!r}; the last one is {names[-1]}"
            )
    layers = _layers_of(model)
    members: dict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            scale = _rate_factor(name, layers, settings, lr_factors)
            # No weight decay for biases and LayerNorm, which have one dimension.
            decay = settings.weight_decay if parameter.dim() > 1 else 0.0
            members[scale, decay].append(parameter)
    groups = []
    for (scale, decay), parameters in members.items():
        group = {"params": parameters, "lr_scale": scale, "weight_decay": decay, "decay": decay}
        groups.append(group)
    return groups


def make_optimizer(
    model: nn.Module,
    settings: OptimSettings,
    device: torch.device,
    tensor_lr: bool = False,
    capturable: bool = False,
    lr_factors: dict[str, float] | None = None,
) -> torch.optim.AdamW:
    """Return AdamW over the trainable parameters, in the groups of `parameter_groups`.

    Args:
        tensor_lr: whether learning rates are tensors on the device; in a CUDA graph a float would never change.
        capturable: whether its steps can be captured in a CUDA graph.
        lr_factors: further factors of the learning rate, by the beginning of a parameter's name.
    """
    optimizer = torch.optim.AdamW(
        parameter_groups(model, settings, lr_factors or {}),
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
    """Load the moments that `optimizer.state_dict()` returned.

    The options of the groups stay: they follow from the settings and the device of this run.
    """
    groups = []
    for group, before in zip(optimizer.param_groups, saved["param_groups"], strict=True):
        groups.append({**group, "params": before["params"]})
    optimizer.load_state_dict({**saved, "param_groups": groups})


def set_lr(optimizer: torch.optim.AdamW, lr: float, updates: int, settings: OptimSettings) -> None:
    """Set the learning rate of every group for the next update, before which `updates` have been made.

    Without bias correction (Google's optimizer) the update is lr * m / (sqrt(v) + eps). torch always divides m by c1 and
    sqrt(v) by sqrt(c2), c = 1 - beta^t; scaling lr, eps and weight decay by the inverse gives Google's formula.
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
    """Exponential moving average of the trainable weights (--ema); with decay 0 there is none, and nothing is done."""

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.weights = []
        if decay:
            self.weights = [weight for weight in model.parameters() if weight.requires_grad]
        self.averages = [weight.detach().clone() for weight in self.weights]

    @torch.no_grad()
    def update(self) -> None:
        """Set average = decay * average + (1 - decay) * weights."""
        if self.decay:
            torch._foreach_lerp_(self.averages, self.weights, 1 - self.decay)

    @contextmanager
    def in_place(self):
        """Inside, the model holds the averages; afterwards its own weights again."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        # Only the storage is exchanged: the parameters must stay the same objects, by which the optimizer knows them.
        for weight, average in zip(self.weights, self.averages, strict=True):
            weight.data, average.data = average.data, weight.data

    def state_dict(self) -> dict:
        """Return the averages, in the order of the trainable parameters."""
        return {"averages": self.averages}

    def load_state_dict(self, state: dict) -> None:
        """Load what `state_dict` returned."""
        for average, saved in zip(self.averages, state["averages"], strict=True):
            average.copy_(saved)
