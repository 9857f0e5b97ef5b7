"""The bytes of a model folder: its tensors, read and written one at a time, and checksums by which a flipped bit is noticed.

A checkpoint may be larger than half of memory, so nothing here holds a second copy: files are mapped, a tensor is read
when it is asked for, and a new file is hashed while it is written.
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
    metadata: dict[str, str] = field(default_factory=dict)
    """What a safetensors file says of itself."""

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

    By hand, because the library's own writers want all tensors in memory at once, and a conversion needs no more than one.

    Args:
        plan: name -> what has the dtype and the shape of that tensor; one without memory (device "meta") will do.
        get: name -> tensor on any device, of that dtype and shape; called once each.
        metadata: what the file says of itself.
    """
    # wide numbers first keeps all of them aligned
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
    """What stands before the numbers: 8 bytes with the length of a JSON object, and that: name -> dtype, shape, byte range."""
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
"""Files that one may change by hand: a card, a threshold."""

READ_ALONE = ("state.pt", RANGES)
"""Files that are of no use to a model; who reads them sees whether they are whole."""


def write_checksums(folder: Path, known: dict[str, str] | None = None) -> None:
    """Add the checksum of every file to checksums.json.

    Args:
        known: checksums of files that need not be read again, by name; those that stand there already are not either.
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
    """Inside, a file of a model folder is written anew. A process that is killed here leaves no checksum of another file."""
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
    """Whether a file is not what checksums.json says, where that tells of it."""
    path = folder / CHECKSUMS
    sums = read_object(path) if path.exists() else {}
    return name in sums and sums[name] != sha256_of(folder / name)


def find_damage(folder: Path, needed: Sequence[str] = (), ignored: Sequence[str] = ()) -> str:
    """What is wrong with the files of a folder; "" where they are what was written.

    Args:
        needed: files that must be there. Without checksums.json among them, a folder that has none is fine.
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
    # Whoever cut the list short could change a file unseen.
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
    """The checksum of a file, which is read once in a process as long as it stays what it is. Raises OSError."""
    state = path.stat()
    return _sha256_in_state(path, state.st_ino, state.st_size, state.st_mtime_ns)


@functools.lru_cache(maxsize=1024)
def _sha256_in_state(path: Path, inode: int, size: int, changed: int) -> str:
    """The checksum of a file that is in this state: a process that loads a model again does not read it all again."""
    return sha256(path)


@contextlib.contextmanager
def checked(folder: str | Path) -> Iterator[None]:
    """For reading a model folder: meanwhile another thread compares its files with checksums.json, where it has one.

    Raises:
        UserError: at the end, where they are not what was written; also in place of an error inside.
    """
    # Hashing lets go of Python's lock, so that a second core hashes while the first one reads.
    with ThreadPoolExecutor(1) as pool:
        damage = pool.submit(find_damage, Path(folder), ignored=(*FOR_PEOPLE, *READ_ALONE))
        try:
            yield
        finally:
            # A flipped bit may show as any error inside; that it is one explains the other.
            if damage.result():
                raise UserError(
                    f"{folder}: {damage.result()}; copy it again, or delete {CHECKSUMS} there if it was changed on purpose"
                )
