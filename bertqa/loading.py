"""What `Reader.load` makes a Reader of: a model folder, read, on a device, ready for inference."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from bertqa.data.tokenizer import WordPiece
from bertqa.device import as_device, as_dtype, bound_kernel_caches
from bertqa.errors import UserError
from bertqa.hf.convert import resolve_weights
from bertqa.model import folder, prepack


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
    where = Path(resolve_weights(name))
    arguments = (str(where.resolve()), device, dtype, int8, attention)
    if int8 and device in (None, "auto"):
        device = "cpu"
    device = as_device(device)
    if int8 and device.type != "cpu":
        raise UserError(
            f"int8 runs on the CPU only, and the device is {device}; use device cpu, or bf16 on a GPU"
        )
    config = folder.read_config(where)
    if config["head"] != folder.QA:
        raise UserError(
            f"{where}: its head is {config['head']!r}, but answering needs {folder.QA!r}; fine-tune it first: "
            "python -m bertqa.train --weights ... --fresh-head"
        )
    if device.type == "cpu":
        bound_kernel_caches(each_thread=8, all_threads=128)  # a batch has a few shapes
    dtype = as_dtype(dtype, device)
    model = folder.load(where, device=device, attention=attention)
    model = prepack.int8(model) if int8 else prepack.pack(model, dtype)
    return Parts(model, WordPiece.load(where), folder.read_qa(where), device, dtype, arguments)
