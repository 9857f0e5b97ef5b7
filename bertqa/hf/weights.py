"""Open weights in any form that the Hub has had since 2018: safetensors or PyTorch pickles, in one file or in shards."""

import re
import warnings
import zipfile
from pathlib import Path

import torch

from bertqa.errors import UserError, first_sentence, show
from bertqa.files import read_object, refuse_lfs_pointer
from bertqa.model.disk import DTYPES, Weights, open_safetensors

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""File names of weights in a checkpoint; the first that exists is used."""

OTHER_FORMATS = ".safetensors .bin .pt .pth .h5 .msgpack .ckpt .index .onnx .gguf".split()
"""Endings of weight files under other names or in other formats; the error names them."""

CONTAINERS = ("state_dict", "model_state_dict")
"""Keys under which training programs store a model's tensors beside other state."""

ADAPTER_CONFIG = "adapter_config.json"
"""A file that PEFT and AdapterHub write into the folder of an adapter."""


def open_weights(path: Path) -> Weights:
    """Open the weights of a folder, or one weight file or index.

    Raises:
        UserError: if no weight file is found, a file is damaged, a shard is missing, the tensors are an adapter's, or a
            pickle holds more than tensors (none of its code is run).
    """
    if path.is_dir():
        found = [path / name for name in WEIGHT_FILES if (path / name).is_file()]
        if not found:
            raise UserError(_no_weights(path))
        path = found[0]
    if path.name.endswith(".index.json"):
        return _open_shards(path)
    opened = open_safetensors(path, "cpu") if path.suffix == ".safetensors" else _open_pickle(path)
    if not opened.shapes:
        raise UserError(f"{path}: holds no tensor at all; is it the right file?")
    # PEFT's and AdapterHub's tensor names, in a file that was renamed to a model's
    if any(".lora_" in name or ".adapters." in name for name in opened.shapes):
        raise UserError(adapter_message(path))
    return opened


def adapter_message(where: Path | str) -> str:
    """Return the message for a checkpoint that is only an adapter."""
    return (
        f"{where}: is an adapter (LoRA or its like), not a model: merge it into its base model first "
        "(peft: model.merge_and_unload(), then save_pretrained) and convert the result"
    )


def _no_weights(folder: Path) -> str:
    """Return the message for a folder without a weight file that bertqa reads."""
    if (folder / ADAPTER_CONFIG).exists():
        return adapter_message(folder)
    others = sorted(path.name for path in folder.iterdir() if path.suffix in OTHER_FORMATS)
    message = f"{folder}: holds none of {', '.join(WEIGHT_FILES)}"
    if not others:
        return f"{message}; fetch one of them"
    message += f", but {', '.join(others[:5])}"
    if any(name.endswith((".safetensors", ".bin")) for name in others):
        return f"{message}; name the file itself"
    return f"{message}; save it as safetensors with the program that wrote it"


def _open_pickle(path: Path) -> Weights:
    """Open a file of torch.save; tensors are mapped, not read, if PyTorch can do that."""
    try:
        with open(path, "rb") as stream:
            refuse_lfs_pointer(stream.read(100))
        with warnings.catch_warnings():
            # about the pickle protocol: of no use to whoever converts
            warnings.simplefilter("ignore")
            # Files of PyTorch before 1.6 are not zip archives and cannot be mapped.
            mapped = zipfile.is_zipfile(path)
            # weights_only: nothing but tensors is unpickled, so that no code of the file is run
            tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except Exception as error:  # a damaged pickle can fail in any way
        raise UserError(f"{path}: {_why_no_pickle(str(error))}") from error
    if not isinstance(tensors, dict):
        raise UserError(
            f"{path}: holds a {type(tensors).__name__}, expected a dictionary of tensors by name"
        )
    # "state_dict" may hold "model_state_dict"
    for name in CONTAINERS:
        if isinstance(tensors.get(name), dict):
            tensors = tensors[name]
    strange = [str(name) for name, value in tensors.items() if not _is_tensor(name, value)]
    if strange:
        raise UserError(
            f"{path}: holds more than tensors by name ({', '.join(strange[:5])}); save the model's "
            "state_dict() alone, best as safetensors"
        )
    spelled = {dtype: name for name, dtype in DTYPES.items()}
    dtypes = {}
    for name, tensor in tensors.items():
        dtypes[name] = spelled.get(tensor.dtype, str(tensor.dtype).removeprefix("torch."))
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    return Weights([path], shapes, dtypes, tensors.__getitem__)


def _is_tensor(name: object, value: object) -> bool:
    return isinstance(name, str) and torch.is_tensor(value) and value.layout == torch.strided


def _why_no_pickle(error: str) -> str:
    """Say what is wrong with a file, from the message of torch.load."""
    asked = re.search(
        r"GLOBAL ([\w.]+)|unrecognized function (.+)|but got <class '([\w.]+)'>", error
    )
    if asked:
        return (
            f"refused: besides tensors its pickle asks for {next(filter(None, asked.groups()))}, "
            "and such a call could do anything to this machine. Nothing of it was run. Use a "
            "safetensors file of this checkpoint"
        )
    # Only this part of torch's message: the rest recommends weights_only=False, which would run the file's code.
    why = re.search(r"WeightsUnpickler error: (.+)", error)
    if why is None:
        why = re.match("(Weights only load failed)", error)
    reason = first_sentence(error) if why is None else why[1]
    return (
        f"not a whole PyTorch weight file ({reason}); it was cut off or damaged on its way: "
        "fetch it again"
    )


def shard_names(index: Path) -> dict[str, str]:
    """Read an index: tensor name -> file name of the shard that holds it."""
    placed = read_object(index).get("weight_map")
    if not isinstance(placed, dict) or not placed:
        raise UserError(
            f'{index}: not an index of weight shards: it has no "weight_map" of tensor name to file name'
        )
    for name, file in placed.items():
        # no path, which could lead out of the folder
        plain = isinstance(file, str) and re.fullmatch(r"[\w][\w.-]{0,200}", file)
        if not plain or not file.endswith((".safetensors", ".bin")):
            raise UserError(
                f"{index}: {show(name)} is said to be in {show(file)}, which is no name of a weight file"
            )
    return placed


def _open_shards(index: Path) -> Weights:
    """Open all shards of an index as one."""
    placed = shard_names(index)
    files = sorted(set(placed.values()))
    missing = [file for file in files if not (index.parent / file).is_file()]
    if missing:
        raise UserError(
            f"{index}: {len(missing)} of its {len(files)} shards are not beside it: "
            f"{', '.join(missing[:5])}; fetch them too"
        )
    # Opening maps a file and reads nothing.
    opened = {file: open_weights(index.parent / file) for file in files}
    # Two versions of a model have the same file names: the index may be of one and the shards of the other.
    lost = [name for name, file in placed.items() if name not in opened[file].shapes]
    if lost:
        raise UserError(
            f"{index}: {len(lost)} tensors are not in the shards it names ({lost[0]} not in "
            f"{placed[lost[0]]}); the shards are of another model"
        )
    return Weights(
        [index.parent / file for file in files],
        {name: opened[file].shapes[name] for name, file in placed.items()},
        {name: opened[file].dtypes[name] for name, file in placed.items()},
        lambda name: opened[placed[name]].get(name),
    )
