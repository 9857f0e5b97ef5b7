"""Weights in every form in which the Hub has stored them since 2018: safetensors or pickles, whole or in shards."""

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
"""The names that weights have in a checkpoint; the first that is there is used."""

OTHER_FORMATS = ".safetensors .bin .pt .pth .h5 .msgpack .ckpt .index .onnx .gguf".split()
"""Files that are weights but not under a name or in a format that is read; named in the error."""

CONTAINERS = ("state_dict", "model_state_dict")
"""Where training programs put a model's tensors in a checkpoint of more than these."""

ADAPTER_CONFIG = "adapter_config.json"
"""What PEFT and AdapterHub put into the folder of an adapter."""


def open_weights(path: Path) -> Weights:
    """Open the weights of a folder, or one weight file or index.

    Raises:
        UserError: nothing there is a weight file we read, a file is damaged, a shard is missing, the tensors are those
            of an adapter, or a pickle holds more than tensors (nothing of it is run).
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
    # as PEFT and AdapterHub name their tensors, in a file that was renamed to a model's
    if any(".lora_" in name or ".adapters." in name for name in opened.shapes):
        raise UserError(adapter(path))
    return opened


def adapter(where: Path | str) -> str:
    """The message for a checkpoint that is an adapter only."""
    return (
        f"{where}: is an adapter (LoRA or its like), not a model: merge it into its base model first "
        "(peft: model.merge_and_unload(), then save_pretrained) and convert the result"
    )


def _no_weights(folder: Path) -> str:
    """Why there is nothing to open."""
    if (folder / ADAPTER_CONFIG).exists():
        return adapter(folder)
    others = sorted(path.name for path in folder.iterdir() if path.suffix in OTHER_FORMATS)
    message = f"{folder}: holds none of {', '.join(WEIGHT_FILES)}"
    if not others:
        return f"{message}; fetch one of them"
    message += f", but {', '.join(others[:5])}"
    if any(name.endswith((".safetensors", ".bin")) for name in others):
        return f"{message}; name the file itself"
    return f"{message}; save it as safetensors with the program that wrote it"


def _open_pickle(path: Path) -> Weights:
    try:
        with open(path, "rb") as stream:
            refuse_lfs_pointer(stream.read(100))
        with warnings.catch_warnings():
            # about the pickle protocol: of no use to whoever converts
            warnings.simplefilter("ignore")
            # Files of PyTorch before 1.6 are no zip archives and cannot be mapped.
            mapped = zipfile.is_zipfile(path)
            # Only tensors are ever unpickled.
            tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except Exception as error:  # a damaged pickle can fail in any way
        raise UserError(f"{path}: {_why_no_pickle(str(error))}") from error
    if not isinstance(tensors, dict):
        raise UserError(
            f"{path}: holds a {type(tensors).__name__}, expected a dictionary of tensors by name"
        )
    # a container may stand in a container, in this order
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
    """What is wrong with a file that torch.load refused."""
    asked = re.search(
        r"GLOBAL ([\w.]+)|unrecognized function (.+)|but got <class '([\w.]+)'>", error
    )
    if asked:
        return (
            f"refused: besides tensors its pickle asks for {next(filter(None, asked.groups()))}, "
            "and such a call could do anything to this machine. Nothing of it was run. Use a "
            "safetensors file of this checkpoint"
        )
    # torch goes on to recommend weights_only=False, the last thing to do with a file that is not what it should be.
    why = re.search(r"WeightsUnpickler error: (.+)", error)
    why = why or re.match("(Weights only load failed)", error)
    reason = why[1] if why else first_sentence(error)
    return (
        f"not a whole PyTorch weight file ({reason}); it was cut off or damaged on its way: "
        "fetch it again"
    )


def shard_names(index: Path) -> dict[str, str]:
    """Tensor name -> name of the shard that holds it, a plain file name each."""
    placed = read_object(index).get("weight_map")
    if not isinstance(placed, dict) or not placed:
        raise UserError(
            f'{index}: not an index of weight shards: it has no "weight_map" of tensor name to file name'
        )
    for name, file in placed.items():
        # a path would lead out of the folder
        plain = isinstance(file, str) and re.fullmatch(r"[\w][\w.-]{0,200}", file)
        if not plain or not file.endswith((".safetensors", ".bin")):
            raise UserError(
                f"{index}: {show(name)} is said to be in {show(file)}, which is no name of a weight file"
            )
    return placed


def _open_shards(index: Path) -> Weights:
    placed = shard_names(index)
    files = sorted(set(placed.values()))
    missing = [file for file in files if not (index.parent / file).is_file()]
    if missing:
        raise UserError(
            f"{index}: {len(missing)} of its {len(files)} shards are not beside it: "
            f"{', '.join(missing[:5])}; fetch them too"
        )
    # opened is not read: many files take no more memory than one
    opened = {file: open_weights(index.parent / file) for file in files}
    # an index and shards of two versions of a model have the same file names
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
