"""A model on disk: load a folder as the module it describes, save a module as a folder (disk.py says what is in it)."""

from pathlib import Path

import torch
from torch import nn

from bertqa.model import disk
from bertqa.model.config import BertConfig
from bertqa.model.disk import CLASSES, QA, read_config, read_qa, write_qa
from bertqa.model.encoder import BertEncoder
from bertqa.model.heads import BertForQuestionAnswering, BertForSequenceClassification

__all__ = ["CLASSES", "QA", "build", "build_empty", "load", "load_encoder", "read_config", "read_qa", "save", "write_qa"]


def build(config: BertConfig, head: str | None, labels=None) -> nn.Module:
    """The module that a folder's config describes, freshly initialised."""
    if head == QA:
        return BertForQuestionAnswering(config)
    return BertForSequenceClassification(config, len(labels)) if head == CLASSES else BertEncoder(config)


def build_empty(config: dict) -> nn.Module:
    """The module that a config.json describes, with names and shapes but no memory."""
    with disk.empty():
        return build(BertConfig(**config["architecture"]), config["head"], config.get("labels"))


def load(folder: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> nn.Module:
    """The model of a folder, in eval mode: a BertEncoder, or the encoder with the head that config.json names.

    Args:
        device: where the tensors go, straight from the file.
        dtype: of the parameters; where None, as stored, but 16-bit storage is computed with in float32.

    Raises:
        UserError: for a folder that is not a model folder, or whose weights do not fit its config.
    """
    return disk.fill(folder, build_empty(read_config(folder)), device, dtype)


def load_encoder(folder: str | Path, *, device: str | torch.device = "cpu",
                 dtype: torch.dtype | None = None) -> BertEncoder:
    """The encoder alone, in eval mode, whatever head the folder has; see `load`."""
    config = read_config(folder)
    prefix = "encoder." if config["head"] else ""
    return disk.fill(folder, build_empty({**config, "head": None}), device, dtype, prefix)


def save(folder: str | Path, model: nn.Module, **what) -> str:
    """Write a model folder, in place of an older one of that name, and return the sha256 of its weights.

    The keywords are those of `disk.save`: tokenizer_from, provenance, qa, labels, dtype, card.
    """
    heads = {BertForQuestionAnswering: QA, BertForSequenceClassification: CLASSES, BertEncoder: None}
    for kind, head in heads.items():
        if isinstance(model, kind):
            return disk.save(folder, model, head, **what)
    raise TypeError(f"a {type(model).__name__} is none of our models; unwrap it first")
