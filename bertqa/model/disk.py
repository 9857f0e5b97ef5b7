"""Files of a model folder: safetensors, read and written one tensor at a time, and checksums to detect damage.

A checkpoint may take more than half of the memory, so nothing here holds a second copy: files are memory-mapped, a tensor
is read on request, and a new file is hashed while it is written.
"""

import contextlib
import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from bertqa.errors import UserError, first_sentence
from bertqa.files import read_object, refuse_lfs_pointer, sha256, write_json
from bertqa.model.record import RANGES

WEIGHTS = "model.safetensors"

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Types that weights may have, by their names in safetensors."""


@dataclass
class Weights:
    """The tensors of a checkpoint: names, shapes and types at once, the numbers one tensor at a time."""

    files: list[Path]
    """The weight files in order, without a checkpoint's index."""
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]
    """"F32", "F16" ... as safetensors names them, for PyTorch files too."""
    get: Callable[[str], Tensor]
    """Read a tensor by name, in the type it is stored in."""
    metadata: dict[str, str] = field(default_factory=dict)
    """The metadata of a safetensors file."""

    def sha256(self) -> str:
        """Return the checksum of all files in order, as `cat FILES | sha256sum` does."""
        return sha256(*self.files)


def open_safetensors(path: Path, device: str | torch.device) -> Weights:
    """Read the header of a safetensors file and map the rest; `get` will put tensors on `device`.

    Raises:
        UserError: if the file is damaged, or a Git LFS pointer.
    """
    try:
        with open(path, "rb") as stream:
            refuse_lfs_pointer(stream.read(100))
        file = safe_open(path, framework="pt", device=str(device))  # mapped, not read
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
    return Weights([path], shapes, dtypes, file.get_tensor, file.metadata() or {})


def write_safetensors(
    path: Path,
    plan: Mapping,
    get: Callable[[str], Tensor],
    metadata: dict[str, str] | None = None,
) -> str:
    """Write a safetensors file one tensor at a time and return its sha256.

    The library's own writers need all tensors in memory at once.

    Args:
        plan: the tensors' names, each with an object that has its dtype and shape (a tensor on the meta device, say).
        get: return the tensor of a name, on any device, with that dtype and shape; called once for each.
        metadata: strings for the file's header.
    """
    # Wider types first, so that every tensor is aligned.
    names = sorted(plan, key=lambda name: -plan[name].dtype.itemsize)
    digest = hashlib.sha256()
    with open(path, "wb") as stream:
        header = _header(names, plan, metadata or {})
        stream.write(header)
        digest.update(header)
        for name in names:
            tensor = get(name).detach().to("cpu").contiguous()
            assert tensor.dtype == plan[name].dtype and tensor.shape == plan[name].shape, name
            numbers = memoryview(tensor.view(-1).view(torch.uint8).numpy())
            stream.write(numbers)
            digest.update(numbers)
    return digest.hexdigest()


def _header(names: list[str], plan: Mapping, metadata: dict[str, str]) -> bytes:
    """Return the header: 8 bytes with the length of a JSON object, then the object: name -> dtype, shape, byte range."""
    spelled = {dtype: name for name, dtype in DTYPES.items()}
    entries: dict[str, dict] = {"__metadata__": {"format": "pt", **metadata}}
    end = 0
    for name in names:
        dtype = plan[name].dtype
        shape = torch.Size(plan[name].shape)
        start = end
        end += dtype.itemsize * shape.numel()
        entries[name] = {
            "dtype": spelled[dtype],
            "shape": list(shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the numbers begin at a multiple of 8
    return len(text).to_bytes(8, "little") + text


# Checksums

CHECKSUMS = "checksums.json"
FOR_PEOPLE = ("README.md", "qa.json")
"""Files that users may edit, so their checksums are not compared."""

READ_ALONE = ("state.pt", RANGES)
"""Files that loading a model does not read; those who read them check them."""


def write_checksums(folder: Path, known: dict[str, str] | None = None) -> None:
    """Add the checksum of every file to checksums.json.

    Args:
        known: checksums, by name, of files that need not be read again. Those in checksums.json are not read either.
    """
    sums = dict(known or {})
    if (folder / CHECKSUMS).exists():
        sums.update(read_object(folder / CHECKSUMS))
    for path in sorted(folder.iterdir()):
        if path.name != CHECKSUMS and path.name not in sums:
            sums[path.name] = sha256(path)
    write_json(folder / CHECKSUMS, sums)


@contextlib.contextmanager
def rewritten(folder: Path, name: str) -> Iterator[None]:
    """Update checksums.json for a file that is replaced inside this context.

    The old checksum goes first, so that a process that is killed here leaves no checksum that the new file fails.
    """
    path = folder / CHECKSUMS
    if not path.exists():
        yield
        return
    sums = read_object(path)
    sums.pop(name, None)
    write_json(path, sums)
    yield
    write_json(path, {**sums, name: sha256(folder / name)})


def is_damaged(folder: Path, name: str) -> bool:
    """Whether a file differs from its checksum in checksums.json, if it has one there."""
    path = folder / CHECKSUMS
    sums = read_object(path) if path.exists() else {}
    return name in sums and sums[name] != sha256_of(folder / name)


def find_damage(folder: Path, needed: Sequence[str] = (), ignored: Sequence[str] = ()) -> str:
    """Compare the files of a folder with checksums.json and return the first problem; "" if there is none.

    Args:
        needed: files that must exist. Unless checksums.json is one of them, a folder may lack it.
        ignored: files that may have changed.
    """
    if not folder.is_dir():
        return "not there"
    missing = [name for name in needed if not (folder / name).is_file()]
    if missing:
        return f"{', '.join(missing)} missing"
    if not (folder / CHECKSUMS).exists():
        return ""
    try:
        sums = read_object(folder / CHECKSUMS)
    except UserError:
        return f"{CHECKSUMS} is damaged"
    # A needed file without a checksum could be changed unnoticed.
    if not set(needed) <= {*sums, CHECKSUMS}:
        return f"{CHECKSUMS} is damaged"
    for name, expected in sums.items():
        path = folder / Path(name).name  # never outside of the folder
        if name in ignored:
            continue
        try:
            found = sha256_of(path)
        except OSError as error:
            return f"{name} is unreadable ({error.strerror})"
        except ValueError:  # a name that no file can have
            return f"{CHECKSUMS} is damaged"
        if found != expected:
            return f"{name} is damaged (its checksum differs)"
    return ""


def sha256_of(path: Path) -> str:
    """Return the checksum of a file, which is read once per process unless it changes. Raises OSError."""
    state = path.stat()
    return _sha256_in_state(path, state.st_ino, state.st_size, state.st_mtime_ns)


@functools.lru_cache(maxsize=1024)
def _sha256_in_state(path: Path, inode: int, size: int, changed: int) -> str:
    """Return the checksum of a file; cached until its inode, size or time of change differ."""
    return sha256(path)


@contextlib.contextmanager
def checked(folder: str | Path) -> Iterator[None]:
    """Compare a model folder with its checksums.json, if it has one, in another thread while it is read inside.

    Raises:
        UserError: on leaving, if a file is damaged; this replaces any error raised inside.
    """
    # hashlib releases Python's global lock, so a second core hashes while the first one reads.
    with ThreadPoolExecutor(1) as pool:
        damage = pool.submit(find_damage, Path(folder), ignored=(*FOR_PEOPLE, *READ_ALONE))
        try:
            yield
        finally:
            # Damage may have caused any error inside, and explains it better.
            if damage.result():
                raise UserError(
                    f"{folder}: {damage.result()}; copy it again, or delete {CHECKSUMS} there if it was changed on purpose"
                )
