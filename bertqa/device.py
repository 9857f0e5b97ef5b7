"""Devices and precision: which are chosen by `auto`, mixed precision, copies between host and device, memory, threads."""

import os
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bertqa.console import BF16_ANSWERS, BF16_TRAINS, INT8_ANSWERS, say
from bertqa.errors import UserError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(name: str, number: int | None = None) -> torch.device:
    """Return the device for `auto`, `cpu`, `cuda`, `cuda:1` or `mps`; `auto` is the first of cuda, mps, cpu that exists.

    Args:
        number: the GPU to use if the name does not say; None: by LOCAL_RANK under torchrun, else the first.

    Raises:
        UserError: if this machine or this build of torch does not have the device.
    """
    kind, _, digits = name.partition(":")
    if digits and not (digits.isdigit() and kind == "cuda"):
        raise UserError(f"device is {name!r}; use auto, cpu, mps, cuda or cuda:N")
    if digits:
        number = int(digits)
    elif number is None:
        number = int(os.environ.get("LOCAL_RANK", 0))

    present = ["cpu"]
    if torch.backends.mps.is_available():
        present.insert(0, "mps")
    if torch.cuda.is_available():
        present.insert(0, "cuda")
    if kind == "auto":
        kind = present[0]
    if kind not in present:
        raise UserError(
            f"device is {name!r}, but torch {torch.__version__} finds only {', '.join(present)} here; use --device auto"
        )
    if kind != "cuda":
        return torch.device(kind)
    # Checked now, because CUDA says "invalid device ordinal" only at the first tensor.
    if number >= torch.cuda.device_count():
        raise UserError(
            f"device is cuda:{number}, but this machine has {torch.cuda.device_count()} GPUs, counted from 0; "
            "use one of them, or as many processes with torchrun --nproc-per-node"
        )
    return torch.device("cuda", number)


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype of autocast for `auto`, `fp32`, `bf16` or `fp16`; `auto`: bf16, on old GPUs fp16, on CPUs fp32.

    Warns about 16 bits on a CPU without bf16 units, which emulates them some 100 times slower.
    """
    if name == "auto":
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if device.type == "cpu" and name != "fp32" and not torch.cpu._is_avx512_bf16_supported():
        say(
            f"warning: this CPU has no units for {name}; it will be emulated, many times slower than fp32"
        )
    # In 16 bits torch's matrix products on a CPU are oneDNN's.
    if device.type == "cpu" and name != "fp32":
        bound_kernel_caches(each_thread=256, all_threads=256)  # a training step uses some 250
    return DTYPES[name]


HINTS = {
    "training": f"--precision bf16 trains {BF16_TRAINS} as fast as fp32",
    "answering": (
        f'--precision bf16 (in Python dtype="bf16") answers {BF16_ANSWERS} as fast as fp32, '
        f"--int8 (int8=True) {INT8_ANSWERS} where the model's ranges were measured"
    ),
}
_said: set[str] = set()


def faster_here(what: str, device: torch.device) -> str | None:
    """Return a hint about faster precisions of this CPU, for users who have not chosen one; None without bf16 units.

    None too if the hint was given before in this process, or on ranks other than 0 under torchrun.

    Args:
        what: "training" or "answering".
    """
    first_process = os.environ.get("RANK", "0") == "0"
    if device.type != "cpu" or what in _said or not first_process or not has_bf16_units():
        return None
    _said.add(what)
    return f"this processor has units for bf16: {HINTS[what]}; --precision fp32 says nothing"


def has_bf16_units() -> bool:
    """Whether this processor has units for bf16 matrix products: AVX512-BF16 or AMX."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def as_device(device: str | torch.device | None) -> torch.device:
    """Return the torch.device of a name such as "cuda:1"; None: "auto". A torch.device is returned as it is."""
    if isinstance(device, torch.device):
        return device
    return pick_device(device or "auto", 0)


def as_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """Return the torch dtype of a name; None: "auto". A torch dtype is returned as it is."""
    if dtype in DTYPES.values():
        return dtype
    names = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}  # torch's, and ours
    name = names.get(dtype, dtype)
    if name not in (None, "auto", *DTYPES):
        raise UserError(
            f"dtype is {dtype!r}; use auto, {', '.join(DTYPES)}, {', '.join(names)} or the torch dtype"
        )
    return pick_precision(name or "auto", device)


def bound_kernel_caches(each_thread: int, all_threads: int) -> None:
    """Limit the caches of oneDNN's kernels on a CPU, unless the environment sets them already.

    oneDNN compiles a kernel, of up to a megabyte, for every shape. It caches 1,024 of them, and torch 1,024 more in every
    thread, so the memory of a service with many threads would grow for hours. Both variables are read at the first product
    in the process.
    """
    os.environ.setdefault("LRU_CACHE_CAPACITY", str(each_thread))
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(all_threads))


def autocast(device: torch.device, dtype: torch.dtype, cache: bool = True) -> torch.autocast:
    """Return autocast to a 16-bit dtype, or a disabled one for float32; `cache`: whether it caches cast weights."""
    if dtype == torch.float32:
        return torch.autocast(device.type, enabled=False)
    return torch.autocast(device.type, dtype=dtype, cache_enabled=cache)


def grad_scaler(device: torch.device, dtype: torch.dtype) -> torch.amp.GradScaler:
    """Return a loss scaler for float16, whose gradients would underflow; disabled for other dtypes."""
    return torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """Return an array as a tensor on the device, copied asynchronously."""
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        # Only copies from pinned memory are asynchronous. torch keeps this tensor until the copy is done.
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


class OnItsWay:
    """An asynchronous copy of a tensor to the host. `read()` waits for this copy, not for work that was queued later."""

    def __init__(self, tensor: Tensor):
        self.tensor = tensor
        self.arrived = None
        if tensor.device.type == "cuda":
            self.tensor = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self.tensor.copy_(tensor, non_blocking=True)
            # An event, because torch.cuda.synchronize() would also wait for the batch queued after this one.
            self.arrived = torch.cuda.Event()
            self.arrived.record()

    def read(self) -> np.ndarray:
        """Wait for the copy and return it as an array."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.tensor.cpu().numpy()


def peak_memory(device: torch.device) -> int:
    """Return the peak memory in bytes: allocated on a GPU, else resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():
        # Preferred to getrusage, which includes the parent's memory after a fork.
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) * 1024
    import resource  # not on Windows

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024  # macOS counts bytes, others KiB


def after_fork(device: torch.device) -> None:
    """Set a forked child process to one thread: with more, its first product waits forever for its parent's threads.

    Raises:
        UserError: for a model on a GPU, because CUDA does not work after a fork.
    """
    if device.type == "cuda":
        raise UserError(
            "this model is on a GPU and came here by a fork, which CUDA does not allow; load it in this process, or "
            'start processes by multiprocessing\'s "spawn"'
        )
    torch.set_num_threads(1)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def set_threads(threads: int) -> None:
    """Set the number of torch's threads on a CPU; 0 leaves it as it is.

    Raises:
        UserError: for more than four per core. For a hundred thousand, OpenMP would end the process without a message.
    """
    most = 4 * (os.cpu_count() or 1)
    if not 0 <= threads <= most:
        raise UserError(f"--threads {threads}: give 1 to {most}, or 0 for torch's own choice")
    if threads:
        torch.set_num_threads(threads)
