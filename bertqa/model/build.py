"""config.json and modules: build the module that a config.json describes, and describe a module in a config.json.

A config.json also names what is not BERT in a model, so that it cannot be loaded as plain BERT by mistake: attention
functions of the user's ("attention": "windowed"), and classes or extra parameters of the user's ("model": "Verifier").
Their code is not stored; it must be passed when the folder is loaded.
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
from bertqa.model.encoder import BertEncoder, encoder_of
from bertqa.model.heads import BertForQuestionAnswering, BertForSequenceClassification

# From a config to a module


def build(config: BertConfig, head: str | None, labels=None, attention=None) -> nn.Module:
    """Return the module that a config describes, newly initialised."""
    if head == QA:
        return BertForQuestionAnswering(config, attention)
    if head == CLASSES:
        return BertForSequenceClassification(config, len(labels), attention)
    return BertEncoder(config, attention)


def build_empty(config: dict, attention=None) -> nn.Module:
    """Return the module that a config.json describes, on the meta device: names and shapes, no memory."""
    architecture = BertConfig(**config["architecture"])
    with empty():
        return build(architecture, config["head"], config.get("labels"), attention)


@contextmanager
def empty() -> Iterator[None]:
    """Make modules built inside this context have names and shapes but no memory (torch's meta device)."""
    with torch.device("meta"), _NoInit():
        yield


class _NoInit(TorchFunctionMode):
    """Skip torch.nn.init: "drawing" random numbers on the meta device makes torch import its compiler, which takes 3 s."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if getattr(function, "__module__", "") == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return function(*args, **kwargs)


# From a module to a config.json


def head_of(model: nn.Module) -> str | None:
    """Return the name of a model's head in config.json; None for a bare encoder and for heads of the user's.

    Raises:
        TypeError: if the module is no BertEncoder and has none.
    """
    if isinstance(model, BertForQuestionAnswering):
        return QA
    if isinstance(model, BertForSequenceClassification):
        return CLASSES
    if isinstance(encoder_of(model), BertEncoder):
        return None
    raise TypeError(f"a {type(model).__name__} is none of our models; unwrap it first")


def config_record(model: nn.Module, head: str | None, labels, provenance: dict) -> dict:
    """Return the contents of config.json for a model.

    Raises:
        UserError: if the config does not describe the model, so that its folder could not be loaded.
    """
    encoder = encoder_of(model)
    record = {"architecture": dataclasses.asdict(encoder.config), "head": head}
    if labels:
        record["labels"] = labels
    plain = build_empty(record, encoder.attention).state_dict()
    tensors = model.state_dict()
    is_ours = type(model) in (BertForQuestionAnswering, BertForSequenceClassification, BertEncoder)

    problems = misfits(encoder.config, encoder)
    # Beside the encoder, a class of the user's may have any tensors.
    if is_ours:
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        problems += differences(plain, shapes, "its config says")
    if problems:
        raise UserError(
            f"this {type(model).__name__} is not what its config says, so nobody could load it: {listed(problems)}. Change "
            "both together, as bertqa.model.surgery does, or give the model a class of its own"
        )
    attention = own_name(encoder.attention)
    if attention:
        record["attention"] = attention
    # One of our classes with additional parameters (adapters) is not plain BERT either.
    if not is_ours or tensors.keys() != plain.keys():
        record["model"] = type(model).__name__
    return {**record, "provenance": provenance}


def differences(wanted: dict[str, Tensor], shapes: dict[str, tuple], who_wants: str) -> list[str]:
    """Return which of the `wanted` tensors are missing from `shapes` or have another shape there, one phrase each."""
    problems = []
    for name, tensor in wanted.items():
        shape = tuple(tensor.shape)
        if name not in shapes:
            problems.append(f"{name} is missing")
        elif shapes[name] != shape:
            problems.append(f"{name} has shape {shapes[name]}, {who_wants} {shape}")
    return problems


# Refusing models that need the user's code


def refuse_own_attention(config: dict, folder: Path, attention) -> None:
    """Raise a UserError if a folder was trained with the user's own attention and `attention` is BERT's."""
    name = config.get("attention")
    if name and own_name(attention) is None:
        raise UserError(
            f"{folder}: was trained with its own attention, {name!r}, and has other numbers without it; give that function: "
            f"attention={name.split(',')[0]}"
        )


def refuse_own_model(config: dict, folder: Path) -> None:
    """Raise a UserError if a folder holds a class or parameters of the user's."""
    name = config.get("model")
    if name:
        raise UserError(
            f"{folder}: holds a model of its own, {name!r}, that only its own code can make; make one and fill it: "
            f"bertqa.load_into({name}(...), {str(folder)!r})"
        )


def listed(problems: list[str], most: int = 8) -> str:
    """Join the first problems in one line, and count the rest."""
    text = "; ".join(problems[:most])
    if len(problems) > most:
        text += f"; and {len(problems) - most} more"
    return text
