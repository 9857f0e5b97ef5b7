"""safetensors files, one tensor at a time: a checkpoint may be larger than half of memory.

Nothing here holds a second copy: files are mapped, a tensor is read when it is asked for, and a new file is written while
it is hashed.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from bertqa.errors import UserError, first_sentence
from bertqa.files import refuse_lfs_pointer, sha256

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""safetensors' names of the number types that weights may have."""


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


def open_safetensors(path: Path, device: str | torch.device) -> Weights:
    """Read the header of a safetensors file and map the rest; `get` puts tensors on `device`.

    Raises:
        UserError: the file is damaged, or a Git LFS pointer in its place.
    """
    try:
        with open(path, "rb") as stream:
            refuse_lfs_pointer(stream.read(100))
        file = safe_open(path, framework="pt", device=str(device))
        slices = {name: file.get_slice(name) for name in file.keys()}
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path}: not a whole safetensors file ({first_sentence(error)}); it was cut off or damaged on "
            "its way: fetch it again"
        ) from error
    shapes = {name: tuple(entry.get_shape()) for name, entry in slices.items()}
    dtypes = {name: str(entry.get_dtype()) for name, entry in slices.items()}
    return Weights([path], shapes, dtypes, file.get_tensor)


def write_safetensors(
    path: Path,
    dtypes: dict[str, torch.dtype],
    shapes: dict[str, tuple[int, ...]],
    get: Callable[[str], Tensor],
) -> str:
    """Write a safetensors file one tensor at a time and return its sha256.

    By hand, because the library's own writers want all tensors in memory at once, and a conversion needs no more than
    one. The format: 8 bytes with the length of a JSON header, the header (name -> dtype, shape, byte range), the bytes.

    Args:
        dtypes, shapes: of every tensor, by name.
        get: name -> tensor on any device, of that dtype and shape; called once each.
    """
    # wide numbers first keeps all of them aligned
    names = sorted(dtypes, key=lambda name: -dtypes[name].itemsize)
    digest = hashlib.sha256()
    with open(path, "wb") as stream:

        def write(block) -> None:
            stream.write(block)
            digest.update(block)

        write(_header(names, dtypes, shapes))
        for name in names:
            tensor = get(name).detach().to("cpu").contiguous()
            assert tensor.dtype == dtypes[name] and tensor.shape == shapes[name], name
            write(memoryview(tensor.view(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()


def _header(names: list[str], dtypes: dict, shapes: dict) -> bytes:
    """What stands before the numbers, its own length first."""
    spelled = {dtype: name for name, dtype in DTYPES.items()}
    entries: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        start = end
        end += dtypes[name].itemsize * torch.Size(shapes[name]).numel()
        entries[name] = {
            "dtype": spelled[dtypes[name]],
            "shape": list(shapes[name]),
            "data_offsets": [start, end],
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the numbers begin at a multiple of 8
    return len(text).to_bytes(8, "little") + text
