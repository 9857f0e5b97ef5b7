"""A model as config.json describes it: the module made from the file, and what the file is to say of a module.

Models of one's own are named there too, so that nobody loads one as a plain model with other numbers: attention that is
not BERT's ("attention": "windowed"), and a class or parameters that are not ours ("model": "Verifier"). Code is never
stored: who loads such a folder brings it.
"""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bertqa.errors import UserError
from bertqa.model.attention import own_name
from bertqa.model.config import CLASSES, QA, BertConfig, misfits
from bertqa.model.encoder import BertEncoder
from bertqa.model.heads import BertForQuestionAnswering, BertForSequenceClassification

# The module that a config describes


def build(config: BertConfig, head: str | None, labels=None, attention=None) -> nn.Module:
    """The module that a folder's config describes, freshly initialised."""
    if head == QA:
        return BertForQuestionAnswering(config, attention)
    if head == CLASSES:
        return BertForSequenceClassification(config, len(labels), attention)
    return BertEncoder(config, attention)


def build_empty(config: dict, attention=None) -> nn.Module:
    """The module that a config.json describes, with names and shapes but no memory."""
    architecture = BertConfig(**config["architecture"])
    with empty():
        return build(architecture, config["head"], config.get("labels"), attention)


@contextmanager
def empty() -> Iterator[None]:
    """Modules that are made inside have names and shapes but no memory, and nothing is drawn at random for them."""
    # a tensor on the meta device has a shape and a type, and no numbers
    with torch.device("meta"), _NoInit():
        yield


class _NoInit(TorchFunctionMode):
    """Skips torch.nn.init: drawing "random" numbers on the meta device makes torch load its compiler, which takes 3 s."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if getattr(function, "__module__", "") == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return function(*args, **kwargs)


# What config.json says of a module


def head_of(model: nn.Module) -> str | None:
    """The head of a model, as config.json names it; None for the encoder alone, and for heads of one's own.

    Raises:
        TypeError: for a module that has no encoder of ours.
    """
    if isinstance(model, BertForQuestionAnswering):
        return QA
    if isinstance(model, BertForSequenceClassification):
        return CLASSES
    if isinstance(getattr(model, "encoder", model), BertEncoder):
        return None
    raise TypeError(f"a {type(model).__name__} is none of our models; unwrap it first")


def config_record(model: nn.Module, head: str | None, labels, provenance: dict) -> dict:
    """The contents of config.json for a model.

    Raises:
        UserError: for a model that its config does not describe: the folder could not be loaded.
    """
    encoder = getattr(model, "encoder", model)
    record = {"architecture": dataclasses.asdict(encoder.config), "head": head}
    if labels:
        record["labels"] = labels
    plain = build_empty(record, encoder.attention).state_dict()
    tensors = model.state_dict()
    is_ours = type(model) in (BertForQuestionAnswering, BertForSequenceClassification, BertEncoder)

    problems = misfits(encoder.config, encoder)
    # What stands beside the encoder in a model of one's own is its own business.
    if is_ours:
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        problems += differences(plain, shapes, "its config says")
    if problems:
        raise UserError(
            f"this {type(model).__name__} is not what its config says, so nobody could load it: {listed(problems)}. Change "
            "both together, as bertqa.model.surgery does, or give the model a class of its own"
        )
    attention = own_name(
        encoder.attention
    )  # None for BERT's own bodies, which all compute the same
    if attention:
        record["attention"] = attention
    # A class of ours with parameters of one's own (adapters) is no plain model either.
    if not is_ours or tensors.keys() != plain.keys():
        record["model"] = type(model).__name__
    return {**record, "provenance": provenance}


def differences(wanted: dict[str, Tensor], shapes: dict[str, tuple], who_wants: str) -> list[str]:
    """What tensors of these shapes lack or have otherwise than `wanted`, one phrase each; more of them are no difference."""
    problems = []
    for name, tensor in wanted.items():
        shape = tuple(tensor.shape)
        if name not in shapes:
            problems.append(f"{name} is missing")
        elif shapes[name] != shape:
            problems.append(f"{name} has shape {shapes[name]}, {who_wants} {shape}")
    return problems


# Models of one's own, refused where only plain ones are known


def refuse_own_attention(config: dict, folder: Path, attention) -> None:
    """Raise a UserError where a folder needs attention of its own, and none is given, or BERT's."""
    name = config.get("attention")
    if name and own_name(attention) is None:
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


def listed(problems: list[str], most: int = 8) -> str:
    """The first problems in one line, and how many more there are."""
    text = "; ".join(problems[:most])
    if len(problems) > most:
        text += f"; and {len(problems) - most} more"
    return text
