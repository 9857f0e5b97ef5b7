"""What a name given in Python stands for: a model, an encoder, or all that a Reader is made of, on a device."""

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from bertqa.data.tokenizer import WordPiece
from bertqa.device import as_device, as_dtype, bound_kernel_caches, faster_here
from bertqa.errors import SpeedHint, UserError
from bertqa.folders import bundled_reader
from bertqa.hf.convert import resolve_weights
from bertqa.model import folder, prepack
from bertqa.model.encoder import BertEncoder
from bertqa.model.products import has_calibrated_products
from bertqa.model.ranges import command, read_ranges
from bertqa.qa.confidence import read_confidence

SIXTEEN_BITS = ("bf16", "fp16", "bfloat16", "float16", torch.bfloat16, torch.float16)
"""What a caller may name them."""


@dataclass(frozen=True)
class Parts:
    """A Reader's, and where they are from."""

    model: nn.Module
    tokenizer: WordPiece
    qa: dict
    device: torch.device
    dtype: torch.dtype
    arguments: tuple
    """name, device, dtype, int8, attention as they were given; the name is an absolute path, so that it means the same in
    other processes."""


def load_parts(name, device, dtype, int8: bool, attention) -> Parts:
    """The parts that the arguments of `Reader.load` stand for. Raises UserError as it does."""
    where = folder_of(name)
    arguments = (str(where.resolve()), device, dtype, int8, attention)
    device = as_device(device_for(device, dtype, int8))
    config = folder.read_config(where)
    if config["head"] != folder.QA:
        raise UserError(
            f"{where}: its head is {config['head']!r}, but answering needs {folder.QA!r}; fine-tune it first: "
            "python -m bertqa.train --weights ... --fresh-head"
        )
    if device.type == "cpu":
        bound_kernel_caches(each_thread=8, all_threads=128)  # a batch has a few shapes
    tell_what_is_faster(dtype, int8, device)
    dtype = as_dtype(dtype, device)
    model = folder.load(where, device=device, attention=attention)
    model = for_int8(model, where) if int8 else prepack.pack(model, dtype)
    qa = folder.read_qa(where)
    read_confidence(qa, where / "qa.json")  # refused here, and not at the first question
    return Parts(model, WordPiece.load(where), qa, device, dtype, arguments)


def tell_what_is_faster(precision, int8: bool, device: torch.device) -> None:
    """Warn once a process, where this processor answers faster in formats of which nobody has chosen one."""
    if int8 or precision not in (None, "auto"):
        return
    hint = faster_here("answering", device)
    if hint:
        warnings.warn(hint, SpeedHint, stacklevel=4)  # of Reader.load's caller


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


def for_int8(model: nn.Module, where: Path) -> nn.Module:
    """A copy of a folder's model in int8, by the ranges that the folder keeps; token by token where it has none, which is
    said.

    Raises:
        UserError: where they are damaged, or of other weights.
    """
    ranges = read_ranges(where, getattr(model, "encoder", model))
    if ranges is None and has_calibrated_products():
        _tell_unmeasured(where)
    return prepack.int8(model, ranges)


@functools.cache  # once a model
def _tell_unmeasured(where: Path) -> None:
    warnings.warn(
        f"int8: {where} has no measured ranges, so each token is scaled by itself, which takes twice as long; "
        f"measure them once: {command(where)}",
        SpeedHint,
        stacklevel=5,  # of Reader.load's caller
    )


def load(
    name: str | Path | None = None,
    *,
    attention: Callable | None = None,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype | None = None,
) -> nn.Module:
    """The model of a folder, in eval mode: a BertEncoder, or the encoder with the head that its config.json names.

    Args:
        name: a model folder, a run folder, a Hugging Face folder or a Hub id; None is the reader that comes with bertqa.
        attention: of your own, as BertEncoder's; needed where the model was trained with it.
        device: "cuda", "cuda:1", "cpu", "mps", "auto" or a torch.device.
        dtype: of the parameters, by name or as torch has it; where None, as stored, but 16-bit storage is computed with
            in float32.

    Raises:
        UserError: where there is no such model, or it is a model of one's own (`load_into` loads that).
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
    """The encoder alone, in eval mode, whatever head the model has; see `load`."""
    device = as_device(device)
    dtype = None if dtype is None else as_dtype(dtype, device)
    return folder.load_encoder(folder_of(name), attention=attention, device=device, dtype=dtype)


def folder_of(name: str | Path | None) -> Path:
    """The model folder that a name stands for, converted where it must be; None is the bundled reader."""
    return resolve_weights(bundled_reader() if name is None else name)
