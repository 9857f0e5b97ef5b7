"""The module that a config describes: freshly initialised, or with names and shapes but no memory."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from bertqa.model.config import BertConfig
from bertqa.model.encoder import BertEncoder
from bertqa.model.heads import BertForQuestionAnswering, BertForSequenceClassification
from bertqa.model.record import CLASSES, QA


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
    with torch.device("meta"), _NoInit():
        yield


class _NoInit(TorchFunctionMode):
    """Skips torch.nn.init: drawing "random" numbers on the meta device makes torch load its compiler, which takes 3 s."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if getattr(function, "__module__", "") == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return function(*args, **kwargs)


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
