"""Models of one's own on disk: what a folder says of them, so that nobody loads one as a plain model with other numbers.

config.json names attention that is not BERT's ("attention": "windowed"), and a class or parameters that are not ours
("model": "Verifier"). Code is never stored: who loads such a folder brings it.
"""

from pathlib import Path

from torch import Tensor, nn

from bertqa.errors import UserError
from bertqa.model.attention import own_name
from bertqa.model.config import misfits


def describe_own(model: nn.Module, is_ours: bool, plain: dict[str, Tensor]) -> dict[str, str]:
    """What config.json is to say of a model beside its architecture and head: {} for a plain one.

    Args:
        is_ours: whether its class is one of bertqa's own, and no subclass.
        plain: the tensors of the plain model with this config and head.

    Raises:
        UserError: for a model that its config does not describe; the folder could not be loaded.
    """
    encoder = getattr(model, "encoder", model)
    problems = misfits(encoder.config, encoder)
    tensors = model.state_dict()
    if is_ours:
        problems += differences(plain, tensors)
    if problems:
        raise UserError(
            f"this {type(model).__name__} is not what its config says, so nobody could load it: {listed(problems)}. Change "
            "both together, as bertqa.model.surgery does, or give the model a class of its own"
        )
    record = {}
    attention = own_name(encoder.attention)
    if attention:
        record["attention"] = attention
    if not is_ours or tensors.keys() != plain.keys():
        record["model"] = type(model).__name__
    return record


def differences(plain: dict[str, Tensor], tensors: dict[str, Tensor]) -> list[str]:
    """What a plain model's tensors lack or have in another shape, one phrase each; more of them are no difference."""
    problems = [f"{name} is missing" for name in plain if name not in tensors]
    for name, tensor in plain.items():
        if name in tensors and tensors[name].shape != tensor.shape:
            shape = tuple(tensors[name].shape)
            problems.append(f"{name} has shape {shape}, its config says {tuple(tensor.shape)}")
    return problems


def refuse_own_attention(config: dict, folder: Path, attention) -> None:
    """Raise a UserError where a folder needs attention of its own, and none is given."""
    name = config.get("attention")
    if name and attention is None:
        raise UserError(
            f"{folder}: was trained with its own attention, {name!r}, and has other numbers without it; give that function: "
            f"attention={name.split(',')[0]}"
        )


def refuse_own_model(config: dict, folder: Path) -> None:
    """Raise a UserError where a folder holds a model of one's own."""
    name = config.get("model")
    if name:
        raise UserError(
            f"{folder}: holds a model of its own, {name!r}, that only its own code can make; make one and fill it: "
            f"bertqa.load_into({name}(...), {str(folder)!r})"
        )


def refuse_elsewhere(config: dict, folder: Path, where: str) -> None:
    """Raise a UserError for a folder that is to go where only plain models are known."""
    for what in ("attention", "model"):
        if what in config:
            raise UserError(
                f"{folder}: its {what} is its own, {config[what]!r}, which {where} does not know"
            )


def listed(problems: list[str], most: int = 8) -> str:
    """The first problems in one line, and how many more there are."""
    text = "; ".join(problems[:most])
    if len(problems) > most:
        text += f"; and {len(problems) - most} more"
    return text
