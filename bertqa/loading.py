"""Load by name: a model, an encoder, or the parts of a Reader. A name is a folder, a Hub id, or None (bundled reader)."""

import argparse
import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from bertqa.data.tokenizer import WordPiece
from bertqa.device import (
    as_device,
    as_dtype,
    bound_kernel_caches,
    faster_here,
    pick_device,
    pick_precision,
)
from bertqa.errors import SpeedHint, UserError
from bertqa.folders import bundled_reader
from bertqa.hf.convert import resolve_weights
from bertqa.model import folder, prepack
from bertqa.model.encoder import BertEncoder, encoder_of
from bertqa.model.products import has_calibrated_products
from bertqa.model.ranges import command, read_ranges
from bertqa.qa.confidence import read_confidence

SIXTEEN_BITS = ("bf16", "fp16", "bfloat16", "float16", torch.bfloat16, torch.float16)
"""Names of these dtypes in Python."""


@dataclass(frozen=True)
class Loaded:
    """A model prepared for inference, and what it was loaded with."""

    model: nn.Module
    tokenizer: WordPiece
    qa: dict
    """What qa.json says."""
    device: torch.device
    dtype: torch.dtype
    """Of autocast."""
    arguments: dict = field(default_factory=dict)
    """Of `Reader.load`, so that other processes can load it again; the name is an absolute path."""


def load_for_reader(name, device, dtype, int8: bool, attention) -> Loaded:
    """Load what a Reader consists of; arguments and errors are those of `Reader.load`."""
    where = folder_of(name)
    arguments = dict(device=device, dtype=dtype, int8=int8, attention=attention)
    arguments["name"] = str(where.resolve())
    device = as_device(device_for(device, dtype, int8))
    config = folder.read_config(where)
    if config["head"] != folder.QA:
        raise UserError(
            f"{where}: its head is {config['head']!r}, but answering needs {folder.QA!r}; fine-tune it first: "
            "python -m bertqa.train --weights ... --fresh-head"
        )
    if device.type == "cpu":
        # The products of a batch have few shapes.
        bound_kernel_caches(each_thread=8, all_threads=128)
    tell_what_is_faster(dtype, int8, device)
    dtype = as_dtype(dtype, device)
    model = folder.load(where, device=device, attention=attention)
    model = prepared(model, where, dtype, int8)
    qa = folder.read_qa(where)
    read_confidence(qa, where / "qa.json")  # a damaged calibration raises now, not at a question
    return Loaded(model, WordPiece.load(where), qa, device, dtype, arguments)


def load_for_verb(
    args: argparse.Namespace, where: Path, load: Callable[..., nn.Module] = folder.load
) -> Loaded:
    """Load the model of a folder as the flags --device, --precision and --int8 of a verb ask for."""
    device = device_of_verb(args)
    dtype = pick_precision(args.precision, device)
    model = prepared(load(where, device=device), where, dtype, args.int8)
    return Loaded(model, WordPiece.load(where), folder.read_qa(where), device, dtype)


def device_of_verb(args: argparse.Namespace) -> torch.device:
    """Return the device that the flags of a verb ask for; under torchrun each process has its own GPU."""
    return pick_device(device_for(args.device, args.precision, args.int8))


def tell_what_is_faster(precision, int8: bool, device: torch.device) -> None:
    """Warn once per process if this processor is faster with bf16 or int8 and the user has not chosen a precision."""
    if int8 or precision not in (None, "auto"):
        return
    hint = faster_here("answering", device)
    if hint:
        warnings.warn(hint, SpeedHint, stacklevel=4)  # the caller of Reader.load


def device_for(
    device: str | torch.device | None, precision: str | torch.dtype | None, int8: bool
) -> str | torch.device | None:
    """Return the device to compute on: as it was given, but for int8 the CPU where nothing was given.

    Raises:
        UserError: for int8 on another device, or beside a 16-bit precision.
    """
    if not int8:
        return device
    if precision in SIXTEEN_BITS:
        named = str(precision).removeprefix("torch.")
        raise UserError(
            f"int8 and {named} are two number formats for the same matrix products; choose one"
        )
    if device in (None, "auto"):
        return "cpu"
    if str(device).startswith("cpu"):
        return device
    raise UserError(
        f"int8 runs on the CPU only, and the device is {device}; use device cpu, or bf16 on a GPU"
    )


def prepared(model: nn.Module, where: Path, dtype: torch.dtype, int8: bool) -> nn.Module:
    """Return a copy of a folder's model for inference: on CPUs with packed products, or with products in int8.

    int8 uses the folder's measured ranges, and warns where there are none that it is slower.

    Raises:
        UserError: if the ranges are damaged or those of other weights, or the weights are not finite float32 numbers.
    """
    if not int8:
        return prepack.pack(model, dtype)
    ranges = read_ranges(where, encoder_of(model))
    if ranges is None and has_calibrated_products():
        _tell_unmeasured(where)
    return prepack.int8(model, ranges)


@functools.cache  # so once per folder
def _tell_unmeasured(where: Path) -> None:
    """Warn that int8 without measured ranges takes twice as long."""
    warnings.warn(
        f"int8: {where} has no measured ranges, so each token is scaled by itself, which takes twice as long; "
        f"measure them once: {command(where)}",
        SpeedHint,
        stacklevel=5,  # the caller of Reader.load
    )


def load(
    name: str | Path | None = None,
    *,
    attention: Callable | None = None,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype | None = None,
) -> nn.Module:
    """Load a model, in eval mode: a BertEncoder, or one with the head that its config.json names.

    Args:
        name: a model folder, a run folder, a Hugging Face folder or a Hub id; None: the reader that comes with bertqa.
        attention: your own attention, as for BertEncoder; required if the model was trained with it.
        device: "cuda", "cuda:1", "cpu", "mps", "auto" or a torch.device.
        dtype: type of the parameters, by name or a torch dtype; None: as stored, but 16-bit weights become float32.

    Raises:
        UserError: if there is no such model, or it needs a class of your own (use `load_into`).
    """
    device = as_device(device)
    dtype = None if dtype is None else as_dtype(dtype, device)
    return folder.load(folder_of(name), attention=attention, device=device, dtype=dtype)


def load_encoder(
    name: str | Path | None = None,
    *,
    attention: Callable | None = None,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype | None = None,
) -> BertEncoder:
    """Load the encoder of a model without its head, in eval mode; see `load`."""
    device = as_device(device)
    dtype = None if dtype is None else as_dtype(dtype, device)
    return folder.load_encoder(folder_of(name), attention=attention, device=device, dtype=dtype)


def folder_of(name: str | Path | None) -> Path:
    """Return the model folder of a name, converting a Hugging Face checkpoint first; None: the bundled reader."""
    return resolve_weights(bundled_reader() if name is None else name)
