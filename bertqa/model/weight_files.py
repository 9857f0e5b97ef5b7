"""Tensors in and out of files: every form in which the Hub has stored weights since 2018, one tensor at a time.

A checkpoint may be larger than half of memory, so nothing here holds a second copy: files are mapped, a tensor is read
when it is asked for, and a new file is written while it is hashed.
"""

import hashlib
import json
import re
import warnings
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from bertqa.errors import UserError
from bertqa.model.hub import WEIGHT_FILES, first_sentence

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""safetensors' names of the number types that weights may have."""

OTHER_FORMATS = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".ckpt", ".index", ".onnx", ".gguf")
"""Files that are weights but not under a name or in a format that is read; named in the error."""


@dataclass
class Weights:
    """The tensors of a checkpoint, described at once and read one by one."""

    files: list[Path]
    """What was opened, in order; an index is not among them."""
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]
    """"F32", "F16" ... as safetensors spells them, also for PyTorch files."""
    get: Callable[[str], Tensor]
    """Name -> tensor, as stored."""

    def sha256(self) -> str:
        """Of all files in order, as `cat FILES | sha256sum` prints it."""
        return sha256(*self.files)


def sha256(*files: Path) -> str:
    """Of the content of files, one behind the other, read in blocks: they may be larger than memory."""
    digest = hashlib.sha256()
    for file in files:
        with open(file, "rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


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
    opened = _open_safetensors(path, device) if path.suffix == ".safetensors" else _open_pickle(path)
    if not opened.shapes:
        raise UserError(f"{path}: holds no tensor at all; is it the right file?")
    return opened


def _no_weights(folder: Path) -> str:
    others = sorted(p.name for p in folder.iterdir() if p.suffix in OTHER_FORMATS)
    advice = ("name the file itself" if any(name.endswith((".safetensors", ".bin")) for name in others) else
              "save it as safetensors with the program that wrote it") if others else "fetch one of them"
    return (f"{folder}: holds none of {', '.join(WEIGHT_FILES)}"
            + (f", but {', '.join(others[:5])}" if others else "") + f"; {advice}")


def _open_safetensors(path: Path, device) -> Weights:
    try:
        file = safe_open(path, framework="pt", device=str(device))
        slices = {name: file.get_slice(name) for name in file.keys()}
        return Weights([path], {name: tuple(s.get_shape()) for name, s in slices.items()},
                       {name: str(s.get_dtype()) for name, s in slices.items()}, file.get_tensor)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a whole safetensors file ({first_sentence(error)}); it was cut off or damaged on "
                        "its way: fetch it again") from error


def _open_pickle(path: Path) -> Weights:
    # Files of PyTorch before 1.6 are no zip archives and cannot be mapped. Only tensors are ever unpickled.
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")    # about the pickle protocol: of no use to whoever converts
            tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a damaged pickle can fail in any way
        asked = re.search(r"GLOBAL ([\w.]+)|unrecognized function (.+)|but got <class '([\w.]+)'>", str(error))
        if asked:
            raise UserError(f"{path}: refused: besides tensors its pickle asks for {next(filter(None, asked.groups()))}, "
                            "and such a call could do anything to this machine. Nothing of it was run. Use a "
                            "safetensors file of this checkpoint") from error
        # torch goes on to recommend weights_only=False, the last thing to do with a file that is not what it should be.
        why = re.search(r"WeightsUnpickler error: (.+)", str(error)) or re.match("(Weights only load failed)", str(error))
        raise UserError(f"{path}: not a whole PyTorch weight file ("
                        f"{why[1] if why else first_sentence(error)}); it was cut off or damaged on its way: fetch it again"
                        ) from error
    if not isinstance(tensors, dict):
        raise UserError(f"{path}: holds a {type(tensors).__name__}, expected a dictionary of tensors by name")
    strange = [str(name) for name, value in tensors.items()
               if not (isinstance(name, str) and torch.is_tensor(value) and value.layout == torch.strided)]
    if strange:
        raise UserError(f"{path}: holds more than tensors by name ({', '.join(strange[:5])}); save the model's "
                        "state_dict() alone, best as safetensors")
    spelled = {dtype: name for name, dtype in DTYPES.items()}
    return Weights([path], {name: tuple(t.shape) for name, t in tensors.items()},
                   {name: spelled.get(t.dtype, str(t.dtype).removeprefix("torch.")) for name, t in tensors.items()},
                   tensors.__getitem__)


def _open_shards(index: Path) -> Weights:
    try:
        placed = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = sorted(set(placed.values()))
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise UserError(f"{index}: not an index of weight shards ({type(error).__name__}: {first_sentence(error)}); "
                        'expected JSON with a "weight_map" of tensor name to file name') from error
    missing = [str(f) for f in files if Path(f).name != f or not (index.parent / f).is_file()]
    if missing:
        raise UserError(f"{index}: {len(missing)} of its {len(files)} shards are not beside it: "
                        f"{', '.join(missing[:5])}; fetch them too")
    opened = {f: open_weights(index.parent / f) for f in files}
    lost = [name for name, f in placed.items() if name not in opened[f].shapes]
    if lost:
        raise UserError(f"{index}: {len(lost)} tensors are not in the shards it names ({lost[0]} not in "
                        f"{placed[lost[0]]}); the shards are of another model")
    return Weights([index.parent / f for f in files],
                   {name: opened[f].shapes[name] for name, f in placed.items()},
                   {name: opened[f].dtypes[name] for name, f in placed.items()},
                   lambda name: opened[placed[name]].get(name))


def write_safetensors(path: Path, dtypes: dict[str, torch.dtype], shapes: dict[str, tuple[int, ...]],
                      get: Callable[[str], Tensor]) -> str:
    """Write a safetensors file one tensor at a time and return its sha256.

    The library's own writer wants all tensors in memory first. The format: 8 bytes with the length of a JSON header,
    the header (name -> dtype, shape, byte range), then the bytes.

    Args:
        dtypes, shapes: of every tensor, by name.
        get: name -> tensor on any device, of that dtype and shape; called once each.
    """
    spelled = {dtype: name for name, dtype in DTYPES.items()}
    names = sorted(dtypes, key=lambda name: -dtypes[name].itemsize)    # wide numbers first keeps all of them aligned
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name in names:
        start, end = end, end + dtypes[name].itemsize * torch.Size(shapes[name]).numel()
        header[name] = {"dtype": spelled[dtypes[name]], "shape": list(shapes[name]), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with open(path, "wb") as stream:
        for block in _blocks(len(text).to_bytes(8, "little") + text, names, dtypes, shapes, get):
            stream.write(block)
            digest.update(block)
    return digest.hexdigest()


def _blocks(header: bytes, names, dtypes, shapes, get) -> Iterable[memoryview]:
    yield memoryview(header)
    for name in names:
        tensor = get(name).detach().to("cpu").contiguous()
        assert tensor.dtype == dtypes[name] and tensor.shape == shapes[name], name
        yield memoryview(tensor.view(-1).view(torch.uint8).numpy())
