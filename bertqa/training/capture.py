"""Which way the steps of a run are computed (`plan_of`), in micro-batches of what size (`settle`), and CUDA graphs of
them (`Graphs`).

On a GPU a step is some thousand kernels of a few microseconds, and the host needs longer to ask for them one by one than
the GPU to run them. A graph is asked for once: work is captured when it is first done, and replayed from then on, at the
same addresses, with the same numbers baked in.
"""

import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bertqa.errors import UserError
from bertqa.model.attention import own_name
from bertqa.model.copies import foreign
from bertqa.settings import LoopSettings
from bertqa.training.job import Job


@dataclass(frozen=True)
class Plan:
    """How steps are computed. None of it changes the numbers beyond rounding."""

    static: bool = False
    """Token counts are rounded up to buckets, and nothing but `rows` comes from the host."""
    captured: bool = False
    """Each bucket is a CUDA graph, and the update is one. Needs `static`."""
    copies: bool = False
    """16-bit copies of the weights in place of autocast. Needs `static`."""
    fused: bool = False
    """Kernels of our own for all of a layer but its attention (model/fused.py). Needs `copies`."""
    why: str = ""
    """Why steps are not captured on a GPU, or kernels not fused, for people."""

    def __str__(self) -> str:
        """In words."""
        if not self.captured:
            return f"not captured as CUDA graphs: {self.why}"
        parts = ["captured as CUDA graphs"]
        if self.copies:
            parts.append("16-bit copies of the weights")
        if self.fused:
            parts.append("fused kernels")
        elif self.copies:
            parts.append(f"no fused kernels ({self.why})")
        return ", ".join(parts)


def plan_of(job: Job) -> Plan:
    """The fastest way of computing the steps of a run that is as exact.

    Raises:
        UserError: for --capture on where there are no graphs.
    """
    wish = job.settings.capture
    if job.device.type != "cuda":
        if wish == "on":
            raise UserError(
                f"capture is on, but the device is {job.device.type} and only NVIDIA's GPUs have graphs; "
                "use --capture auto"
            )
        return Plan()
    if wish == "off":
        return Plan(why="--capture off")
    if job.dtype == torch.float16:
        # The loss scaler decides on the host whether a step counts.
        if wish == "on":
            raise UserError("capture is on, but fp16 cannot be captured; use --precision bf16")
        return Plan(why="fp16 cannot be captured")
    why = doubt(job)
    if why and wish == "auto":
        return Plan(why=f"{why}; --capture on tries it")
    if why or job.dtype != torch.bfloat16:
        return Plan(static=True, captured=True)
    why = why_not_fused(job)
    return Plan(static=True, captured=True, copies=True, fused=not why, why=why)


def why_not_fused(job: Job) -> str:
    """Why the fused kernels cannot compute the layers of this model, or not on this machine; "" where they can."""
    for layer in job.model.encoder.layers:
        if "behind_attention" in vars(layer):
            return "--compile"
        if layer.activation is not F.gelu:
            return "they know gelu alone"
    for weight in job.model.parameters():
        if not weight.is_contiguous() or weight.data_ptr() % 16:
            return "a weight is part of another tensor"
    try:
        from bertqa.model import kernels  # where there is no NVIDIA GPU, there is no Triton

        row = torch.zeros(1, 16, dtype=job.dtype, device=job.device)
        kernels.gelu(row, row[0])
    except Exception as error:  # of Triton, of the C compiler that it needs, of the driver
        return f"Triton does not work here, {type(error).__name__}"
    return ""


def doubt(job: Job) -> str:
    """What may not be the same in a replay as it was in the capture; "" where all is known to be."""
    if not getattr(job.task, "static_shapes", False):
        return f"the task {type(job.task).__name__} does not say that its loss has static shapes"
    if foreign(job.model):
        return f"the model has {foreign(job.model)}, which is not ours"
    encoder = job.model.encoder
    if own_name(encoder.attention):
        return f"the attention {own_name(encoder.attention)} is not ours"
    if encoder.recompute:
        # Recomputing draws the same dropout again, from a state of the generator that only the host knows.
        return "--recompute cannot be captured"
    return ""


class Graphs:
    """Work on a GPU that is captured the first time and replayed from then on."""

    def __init__(self, device: torch.device, ranks: int):
        self.device = device
        self.graphs: dict[Hashable, torch.cuda.CUDAGraph] = {}
        # One pool for all: they never run side by side, and none leaves anything in it that another one needs.
        self.pool = torch.cuda.graph_pool_handle()
        self.stream = torch.cuda.Stream(device)
        # NCCL has a thread of its own that asks about events, which a global capture forbids to every thread.
        self.mode = "global" if ranks == 1 else "thread_local"
        self.seconds = 0.0

    def run(
        self,
        key: Hashable,
        work: Callable[[], None],
        keep: Sequence[Tensor] = (),
        warm_up: bool = True,
    ) -> None:
        """Do the work: a replay of the graph that is known by this key.

        Args:
            work: reads and writes tensors that stay where they are. It must not wait for the device.
            keep: what the work changes and the warm-up before its capture must not.
            warm_up: whether to do the work once before it is captured, which loads kernels and compiles.
        """
        if key not in self.graphs:
            began = time.perf_counter()
            self.graphs[key] = self._capture(work, keep, warm_up)
            self.seconds += time.perf_counter() - began
        self.graphs[key].replay()

    def _capture(self, work, keep: Sequence[Tensor], warm_up: bool) -> torch.cuda.CUDAGraph:
        # A run that is resumed captures at other steps. So that it draws the same dropout, captures draw nothing.
        generator = torch.cuda.get_rng_state(self.device)
        if warm_up:
            before = [tensor.clone() for tensor in keep]
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                work()
            torch.cuda.current_stream().wait_stream(self.stream)
            for tensor, old in zip(keep, before, strict=True):
                tensor.copy_(old)
        graph = torch.cuda.CUDAGraph()
        options = {"pool": self.pool, "stream": self.stream, "capture_error_mode": self.mode}
        try:
            with torch.cuda.graph(graph, **options):
                work()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"a step could not be captured as a CUDA graph ({reason}); use --capture off"
            ) from error
        torch.cuda.set_rng_state(generator, self.device)
        return graph


class FusedLayers:
    """The layers of an encoder with fused kernels, lent to it where they are wanted: evaluation goes without."""

    def __init__(self, layers: Iterable[nn.Module], device: torch.device):
        self.layers = list(layers)
        self.device = device

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Inside, each layer runs the kernels before and behind its attention, with dropouts of its own."""
        if not self.layers:
            yield
            return
        from bertqa.model import fused  # where there is no NVIDIA GPU, there is no Triton

        # Drawn on the device, so that each replay of a graph draws others: two for each layer.
        seeds = torch.randint(2**31 - 1, (len(self.layers), 2), device=self.device)
        for layer, own in zip(self.layers, seeds.int(), strict=True):
            layer.before_attention = partial(fused.before_attention, layer)
            layer.behind_attention = partial(fused.behind_attention, layer, seeds=own)
        try:
            yield
        finally:
            for layer in self.layers:
                del layer.before_attention, layer.behind_attention


def settle(
    settings: LoopSettings, model: nn.Module, device: torch.device, dtype: torch.dtype
) -> LoopSettings:
    """The settings with `micro_tokens` as a number, where it was "auto".

    It is decided once, when a run begins, and written to its config.json: a resumed run, perhaps on another card, must
    add up the same micro-batches. 8,192 on CPUs; on a GPU what fills it (32,768), or what 40 % of its memory hold: a
    captured step lies in memory of its own, and is computed once outside of it before it is captured.
    """
    if settings.micro_tokens != "auto":
        return replace(settings, micro_tokens=int(settings.micro_tokens))
    if device.type != "cuda":
        return replace(settings, micro_tokens=8192)
    config = model.config
    # What a layer keeps of a token for the backward pass. Measured with BERT-large in bf16: 1.4 MB in 24 layers.
    bytes_per_token = config.num_hidden_layers * (
        20 * config.hidden_size + 10 * config.intermediate_size
    )
    if dtype == torch.float32:
        bytes_per_token *= 2
    weights = sum(weight.numel() for weight in model.parameters())
    # Weights, gradients, two moments and an average in float32, copies and their gradients in 16 bits.
    room = 0.4 * torch.cuda.get_device_properties(device).total_memory - 24 * weights
    tokens = max(1024, int(room / bytes_per_token))
    return replace(settings, micro_tokens=min(32768, 2 ** (tokens.bit_length() - 1)))
