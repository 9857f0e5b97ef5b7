"""Devices and number formats: what `auto` means, and the mixed-precision parts that are no-ops in float32."""

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
    """The device for `auto`, `cpu`, `cuda`, `cuda:1` or `mps`; `auto` is the first of cuda, mps, cpu that is there.

    `number` says which GPU, where the name does not; where None, each process of torchrun has its own, and any other
    process the first.

    Raises:
        UserError: for a device that this machine or this build of torch does not have.
    """
    asked = name
    kind, _, digits = name.partition(":")
    if digits and not (digits.isdigit() and kind == "cuda"):
        raise UserError(f"device is {name!r}; use auto, cpu, mps, cuda or cuda:N")
    name = kind
    if digits:
        number = int(digits)
    elif number is None:
        number = int(os.environ.get("LOCAL_RANK", 0))
    there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    present = [kind for kind, is_there in there.items() if is_there]
    if name == "auto":
        name = present[0]
    if name not in present:
        raise UserError(
            f"device is {asked!r}, but torch {torch.__version__} finds only {', '.join(present)} here; use --device auto"
        )
    # Asked now, and not at the first tensor: there CUDA says "invalid device ordinal".
    if name == "cuda" and number >= torch.cuda.device_count():
        raise UserError(
            f"device is cuda:{number}, but this machine has {torch.cuda.device_count()} GPUs, counted from 0; "
            "use one of them, or as many processes with torchrun --nproc-per-node"
        )
    return torch.device("cuda", number) if name == "cuda" else torch.device(name)


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """The dtype of autocast for `auto`, `fp32`, `bf16` or `fp16`: `auto` is bf16 on GPUs that have it, fp16 on older
    ones, float32 elsewhere. A CPU without bf16 units emulates bf16 some 100 times slower, so it warns there."""
    if name == "auto":
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if device.type == "cpu" and name != "fp32" and not torch.cpu._is_avx512_bf16_supported():
        say(
            f"warning: this CPU has no units for {name}; it will be emulated, many times slower than fp32"
        )
    # In 16 bits torch's products on a CPU are oneDNN's.
    if device.type == "cpu" and name != "fp32":
        bound_kernel_caches(each_thread=256, all_threads=256)  # a training step needs some 250
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
    """What would be faster on this processor, for who has chosen no precision; None where nothing would be, and where it
    was said before in this process.

    Args:
        what: "training" or "answering".
    """
    first_process = os.environ.get("RANK", "0") == "0"  # of those that torchrun has started
    if device.type != "cpu" or what in _said or not first_process or not has_bf16_units():
        return None
    _said.add(what)
    return f"this processor has units for bf16: {HINTS[what]}; --precision fp32 says nothing"


def has_bf16_units() -> bool:
    """Whether this processor multiplies bf16 faster than float32: AVX512-BF16 or AMX."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def as_device(device: str | torch.device | None) -> torch.device:
    """The torch.device of a name, "cuda:1" included, or the one that is given."""
    if isinstance(device, torch.device):
        return device
    return pick_device(device or "auto", 0)


def as_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """The torch dtype of a name, or the one that is given."""
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
    """Bound what is kept of oneDNN's kernels on a CPU, unless the environment says so already.

    oneDNN makes a kernel for every shape that it meets, up to a megabyte each. It keeps 1,024 of them, and torch keeps
    1,024 more in every thread that computes: the memory of a service with many threads would grow for hours. Both numbers
    are read once, before the first product of the process.
    """
    os.environ.setdefault("LRU_CACHE_CAPACITY", str(each_thread))
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(all_threads))


def autocast(device: torch.device, dtype: torch.dtype, cache: bool = True) -> torch.autocast:
    """Autocast to a 16-bit dtype, or a context that does nothing for float32; `cache` keeps cast weights inside."""
    if dtype == torch.float32:
        return torch.autocast(device.type, enabled=False)
    return torch.autocast(device.type, dtype=dtype, cache_enabled=cache)


def grad_scaler(device: torch.device, dtype: torch.dtype) -> torch.amp.GradScaler:
    """A loss scaler for float16, whose gradients underflow without one; disabled for the others."""
    return torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """An array as a tensor on the device. The host does not wait for the copy.

    From ordinary memory it would: only what lies in pinned memory is copied while the host goes on.
    """
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        tensor = tensor.pin_memory()  # torch keeps it until the copy is done
    return tensor.to(device, non_blocking=True)


class OnItsWay:
    """A tensor on its way from the device to the host. `read()` waits for it, and not for what was asked for later."""

    def __init__(self, tensor: Tensor):
        self.tensor = tensor
        self.arrived = None
        if tensor.device.type == "cuda":
            self.tensor = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self.tensor.copy_(tensor, non_blocking=True)
            # An event, since synchronize() of the device would also wait for the batch that was started after this one.
            self.arrived = torch.cuda.Event()
            self.arrived.record()

    def read(self) -> np.ndarray:
        """The values."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.tensor.cpu().numpy()


def peak_memory(device: torch.device) -> int:
    """Most bytes in use so far: on the GPU where there is one, else resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would also count the process that started this one
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) * 1024
    import resource  # not on Windows

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def after_fork(device: torch.device) -> None:
    """Make this process, a forked child, ready to compute: with more threads than one, its first product would wait for
    ever for those of its parent.

    Raises:
        UserError: for a GPU, which CUDA does not take across a fork.
    """
    if device.type == "cuda":
        raise UserError(
            "this model is on a GPU and came here by a fork, which CUDA does not allow; load it in this process, or "
            'start processes by multiprocessing\'s "spawn"'
        )
    torch.set_num_threads(1)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def set_threads(threads: int) -> None:
    """Threads of torch's products on a CPU; 0 leaves them as they are. UserError for more than any machine can use.

    Asked for a hundred thousand, OpenMP ends the process without a word.
    """
    most = 4 * (os.cpu_count() or 1)
    if not 0 <= threads <= most:
        raise UserError(f"--threads {threads}: give 1 to {most}, or 0 for torch's own choice")
    if threads:
        torch.set_num_threads(threads)
