"""How the steps of a run are computed: the plan (`plan_of`), the size of micro-batches (`settle`), CUDA graphs (`Graphs`).

On a GPU a step launches some thousand kernels of a few microseconds each, and the host needs longer to launch them than the
GPU to run them. A CUDA graph is launched once for all of its kernels. It is captured while the work is first done, and
replayed from then on: at the same addresses, and with the same Python numbers.
"""

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
from bertqa.model.encoder import BertEncoder, encoder_of
from bertqa.settings import LoopSettings
from bertqa.training.job import Job


@dataclass(frozen=True)
class Plan:
    """How steps are computed. Results are the same but for rounding."""

    static: bool = False
    """Token counts are rounded up to buckets, and the host sends nothing but the numbers of the windows."""
    captured: bool = False
    """There is a CUDA graph for each bucket, and one for the update. Needs `static`."""
    copies: bool = False
    """16-bit copies of the weights replace autocast. Needs `static`."""
    fused: bool = False
    """Triton kernels compute each layer, except for its attention (model/fused.py). Needs `copies`."""
    why: str = ""
    """Why steps on a GPU are not captured, or kernels not fused, for people."""

    def __str__(self) -> str:
        """The plan in words."""
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
    """Return the fastest plan that gives the same results.

    Raises:
        UserError: if --capture is on and the device or number format allows no graphs.
    """
    asked = job.settings.capture
    if job.device.type != "cuda":
        if asked == "on":
            raise UserError(
                f"capture is on, but the device is {job.device.type} and only NVIDIA's GPUs have graphs; "
                "use --capture auto"
            )
        return Plan()
    if asked == "off":
        return Plan(why="--capture off")
    if job.dtype == torch.float16:
        # The loss scaler decides on the host whether to skip an update.
        if asked == "on":
            raise UserError("capture is on, but fp16 cannot be captured; use --precision bf16")
        return Plan(why="fp16 cannot be captured")
    doubtful = doubt(job)
    if doubtful and asked == "auto":
        return Plan(why=f"{doubtful}; --capture on tries it")
    if doubtful or job.dtype != torch.bfloat16:
        return Plan(static=True, captured=True)
    why = why_not_fused(job)
    return Plan(static=True, captured=True, copies=True, fused=not why, why=why)


def why_not_fused(job: Job) -> str:
    """Return why the fused kernels cannot be used for this model or on this machine; "" if they can."""
    for layer in encoder_of(job.model).layers:
        if "behind_attention" in vars(layer):
            return "--compile"
        if layer.activation is not F.gelu:
            return "they know gelu alone"
    for weight in job.model.parameters():
        if not weight.is_contiguous() or weight.data_ptr() % 16:
            return "a weight is part of another tensor"
    try:
        from bertqa.model import kernels  # needs Triton: only torch for NVIDIA GPUs has it

        row = torch.zeros(1, 16, dtype=job.dtype, device=job.device)
        kernels.gelu(row, row[0])
    except Exception as error:  # from Triton, from the C compiler that it needs, or from the driver
        return f"Triton does not work here, {type(error).__name__}"
    return ""


def doubt(job: Job) -> str:
    """Return why a replayed graph might not do the same as the captured step; "" if it certainly does."""
    if not getattr(job.task, "static_shapes", False):
        return f"the task {type(job.task).__name__} does not say that its loss has static shapes"
    if foreign(job.model):
        return f"the model has {foreign(job.model)}, which is not ours"
    encoder = encoder_of(job.model)
    if not isinstance(encoder, BertEncoder):
        return f"the model, {type(job.model).__name__}, has no encoder of ours"
    if own_name(encoder.attention):
        return f"the attention {own_name(encoder.attention)} is not ours"
    if encoder.recompute:
        # Recomputing draws the same dropout again, from a generator state that only the host knows.
        return "--recompute cannot be captured"
    return ""


class Graphs:
    """Work on a GPU that is captured as a CUDA graph the first time, and replayed from then on."""

    def __init__(self, device: torch.device, ranks: int):
        self.device = device
        self.graphs: dict[Hashable, torch.cuda.CUDAGraph] = {}
        # One memory pool for all graphs: they never run at the same time, and leave nothing there that another needs.
        self.pool = torch.cuda.graph_pool_handle()
        self.stream = torch.cuda.Stream(device)
        # NCCL's own thread queries events, which a global capture would forbid to every thread.
        self.mode = "global" if ranks == 1 else "thread_local"

    def run(
        self,
        key: Hashable,
        work: Callable[[], None],
        keep: Sequence[Tensor] = (),
        warm_up: bool = True,
    ) -> None:
        """Do the work by replaying the graph of this key, which is captured first if there is none.

        Args:
            work: must only use tensors that stay at their addresses, and must not wait for the device.
            keep: tensors that the work changes; they are put back after a warm-up.
            warm_up: whether to do the work once before the capture, so that kernels are compiled and loaded.
        """
        if key not in self.graphs:
            self.graphs[key] = self._capture(work, keep, warm_up)
        self.graphs[key].replay()

    def _capture(self, work, keep: Sequence[Tensor], warm_up: bool) -> torch.cuda.CUDAGraph:
        # A resumed run captures at other steps, so a capture must not change which dropout is drawn.
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
    """Lends fused kernels to the layers of an encoder for a training step; evaluation goes without."""

    def __init__(self, layers: Iterable[nn.Module], device: torch.device):
        self.layers = list(layers)
        self.device = device

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Inside, each layer runs the fused kernels before and after its attention."""
        if not self.layers:
            yield
            return
        from bertqa.model import fused  # needs Triton

        # Of dropout, two a layer. Drawn on the device, so that each replay of a graph draws new ones.
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
    """Return the settings with `micro_tokens` as a number, if it was "auto".

    It is decided when a run begins, and written to its config.json: a resumed run, perhaps on another GPU, must add up the
    same micro-batches. On CPUs it is 8,192; on a GPU 32,768, which keeps it busy, or what fits into 40 % of its memory. (A
    captured step has memory of its own, and is computed once outside of it before.) A model without an encoder of ours, whose
    memory is not known, has 8,192 everywhere.
    """
    if settings.micro_tokens != "auto":
        return replace(settings, micro_tokens=int(settings.micro_tokens))
    encoder = encoder_of(model)
    if device.type != "cuda" or not isinstance(encoder, BertEncoder):
        return replace(settings, micro_tokens=8192)
    config = encoder.config
    # Activations of a token that the layers keep for the backward pass; measured for BERT-large in bf16: 1.4 MB.
    bytes_per_token = config.num_hidden_layers * (
        20 * config.hidden_size + 10 * config.intermediate_size
    )
    if dtype == torch.float32:
        bytes_per_token *= 2
    weights = sum(weight.numel() for weight in model.parameters())
    # 24 bytes a weight: itself, gradient, two moments and average in float32, copy and its gradient in 16 bits.
    room = 0.4 * torch.cuda.get_device_properties(device).total_memory - 24 * weights
    tokens = max(1024, int(room / bytes_per_token))
    power_of_two = 2 ** (tokens.bit_length() - 1)  # the largest that is not above it
    return replace(settings, micro_tokens=min(32768, power_of_two))
