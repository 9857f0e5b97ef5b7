"""Weights in every form in which the Hub has stored them since 2018: safetensors or pickles, whole or in shards."""

import json
import re
import warnings
import zipfile
from pathlib import Path

import torch

from bertqa.errors import UserError, first_sentence
from bertqa.model.tensors import DTYPES, Weights, open_safetensors

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""The names that weights have in a checkpoint; the first that is there is used."""

OTHER_FORMATS = (
    ".safetensors",
    ".bin",
    ".pt",
    ".pth",
    ".h5",
    ".msgpack",
    ".ckpt",
    ".index",
    ".onnx",
    ".gguf",
)
"""Files that are weights but not under a name or in a format that is read; named in the error."""


def open_weights(path: Path, device: str | torch.device = "cpu") -> Weights:
    """Open the weights of a folder, or one weight file or index.

    Args:
        device: where `get` puts the tensors of a safetensors file.

    Raises:
        UserError: nothing there is a weight file we read, a file is damaged, a shard is missing, or a pickle holds more
            than tensors (nothing of it is run).
    """
    if path.is_dir():
        found = [path / name for name in WEIGHT_FILES if (path / name).is_file()]
        if not found:
            raise UserError(_no_weights(path))
        path = found[0]
    if path.name.endswith(".index.json"):
        return _open_shards(path)
    opened = open_safetensors(path, device) if path.suffix == ".safetensors" else _open_pickle(path)
    if not opened.shapes:
        raise UserError(f"{path}: holds no tensor at all; is it the right file?")
    return opened


def _no_weights(folder: Path) -> str:
    others = sorted(p.name for p in folder.iterdir() if p.suffix in OTHER_FORMATS)
    advice = (
        (
            "name the file itself"
            if any(name.endswith((".safetensors", ".bin")) for name in others)
            else "save it as safetensors with the program that wrote it"
        )
        if others
        else "fetch one of them"
    )
    return (
        f"{folder}: holds none of {', '.join(WEIGHT_FILES)}"
        + (f", but {', '.join(others[:5])}" if others else "")
        + f"; {advice}"
    )


def _open_pickle(path: Path) -> Weights:
    # Files of PyTorch before 1.6 are no zip archives and cannot be mapped. Only tensors are ever unpickled.
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # about the pickle protocol: of no use to whoever converts
            tensors = torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
    except Exception as error:  # a damaged pickle can fail in any way
        asked = re.search(
            r"GLOBAL ([\w.]+)|unrecognized function (.+)|but got <class '([\w.]+)'>", str(error)
        )
        if asked:
            raise UserError(
                f"{path}: refused: besides tensors its pickle asks for {next(filter(None, asked.groups()))}, "
                "and such a call could do anything to this machine. Nothing of it was run. Use a "
                "safetensors file of this checkpoint"
            ) from error
        # torch goes on to recommend weights_only=False, the last thing to do with a file that is not what it should be.
        why = re.search(r"WeightsUnpickler error: (.+)", str(error)) or re.match(
            "(Weights only load failed)", str(error)
        )
        raise UserError(
            f"{path}: not a whole PyTorch weight file ("
            f"{why[1] if why else first_sentence(error)}); it was cut off or damaged on its way: fetch it again"
        ) from error
    if not isinstance(tensors, dict):
        raise UserError(
            f"{path}: holds a {type(tensors).__name__}, expected a dictionary of tensors by name"
        )
    strange = [
        str(name)
        for name, value in tensors.items()
        if not (isinstance(name, str) and torch.is_tensor(value) and value.layout == torch.strided)
    ]
    if strange:
        raise UserError(
            f"{path}: holds more than tensors by name ({', '.join(strange[:5])}); save the model's "
            "state_dict() alone, best as safetensors"
        )
    spelled = {dtype: name for name, dtype in DTYPES.items()}
    return Weights(
        [path],
        {name: tuple(t.shape) for name, t in tensors.items()},
        {
            name: spelled.get(t.dtype, str(t.dtype).removeprefix("torch."))
            for name, t in tensors.items()
        },
        tensors.__getitem__,
    )


def _open_shards(index: Path) -> Weights:
    try:
        placed = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = sorted(set(placed.values()))
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise UserError(
            f"{index}: not an index of weight shards ({type(error).__name__}: {first_sentence(error)}); "
            'expected JSON with a "weight_map" of tensor name to file name'
        ) from error
    missing = [str(f) for f in files if Path(f).name != f or not (index.parent / f).is_file()]
    if missing:
        raise UserError(
            f"{index}: {len(missing)} of its {len(files)} shards are not beside it: "
            f"{', '.join(missing[:5])}; fetch them too"
        )
    opened = {f: open_weights(index.parent / f) for f in files}
    lost = [name for name, f in placed.items() if name not in opened[f].shapes]
    if lost:
        raise UserError(
            f"{index}: {len(lost)} tensors are not in the shards it names ({lost[0]} not in "
            f"{placed[lost[0]]}); the shards are of another model"
        )
    return Weights(
        [index.parent / f for f in files],
        {name: opened[f].shapes[name] for name, f in placed.items()},
        {name: opened[f].dtypes[name] for name, f in placed.items()},
        lambda name: opened[placed[name]].get(name),
    )
