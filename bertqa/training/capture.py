"""Which way the steps of a run are computed (`plan_of`), and CUDA graphs of them (`Graphs`).

On a GPU a step is some thousand kernels of a few microseconds, and the host needs longer to ask for them one by one than
the GPU to run them. A graph is asked for once: work is captured when it is first done, and replayed from then on, at the
same addresses, with the same numbers baked in.
"""

import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bertqa.errors import UserError
from bertqa.model.attention import choose_attention, own_name
from bertqa.model.copies import foreign
from bertqa.training.job import Job, total_steps

COMPILE_SECONDS = 10.0
"""What torch.compile takes. Measured on an H200: 9 to 11 s."""

SAVED_PER_WINDOW = 1.6e-13
"""Seconds that compiled layers save for each window and each weight of the layers. Measured on an H200 at 64 windows a
step: 0.87 ms a step with BERT-base (85 million weights), 2.3 ms with BERT-large (302), 0.16 ms with MiniLM-L6 (11)."""


COMPILE_OPTIONS = {"fallback_random": True}
"""Dropout is drawn by torch's own kernel, as where nothing is compiled: the same numbers for the same seed. A compiled kernel
draws four and uses one of them, which takes longer than all else that it does."""


@dataclass(frozen=True)
class Plan:
    """How steps are computed. None of it changes the numbers beyond rounding."""

    static: bool = False
    """Token counts are rounded up to buckets, and nothing but `rows` comes from the host."""
    captured: bool = False
    """Each bucket is a CUDA graph, and the update is one. Needs `static`."""
    copies: bool = False
    """16-bit copies of the weights in place of autocast. Needs `static`."""
    compiled: str = ""
    """What torch.compile fuses in each layer: "" nothing, "behind" what stands behind attention, "layers" all of it."""
    why: str = ""
    """Why steps are not captured on a GPU, for people."""

    def __str__(self) -> str:
        """In words."""
        if not self.captured:
            return f"not captured as CUDA graphs: {self.why}"
        parts = ["captured as CUDA graphs"]
        if self.copies:
            parts.append("16-bit copies of the weights")
        if self.compiled:
            parts.append("layers fused by torch.compile")
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
    is_16_bit = job.dtype == torch.bfloat16 and not why
    compiled = "behind" if not why and pays_to_compile(job) else ""
    return Plan(static=True, captured=True, copies=is_16_bit, compiled=compiled)


def pays_to_compile(job: Job) -> bool:
    """Whether the run is long enough for torch.compile to save more time than it takes."""
    already = "behind_attention" in vars(job.model.encoder.layers[0])  # --compile
    windows = total_steps(len(job.task.store), job.settings) * job.settings.batch_size
    weights = sum(weight.numel() for weight in job.model.encoder.layers.parameters())
    return not already and windows * weights * SAVED_PER_WINDOW > COMPILE_SECONDS


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


class CompiledLayers:
    """Layers of an encoder as torch.compile makes them, lent to it where they are wanted: evaluation goes without."""

    def __init__(self, job: Job, what: str):
        self.compiled: list[tuple[nn.Module, str, Callable]] = []
        for layer in job.model.encoder.layers if what else ():
            if what == "behind":
                function = compiled(layer.behind_attention)
                self.compiled.append((layer, "behind_attention", function))
            else:
                self.compiled.append((layer, "forward", whole_layer(layer, job)))

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Inside, the encoder runs the compiled functions."""
        for layer, name, function in self.compiled:
            setattr(layer, name, function)
        try:
            yield
        finally:
            for layer, name, _ in self.compiled:
                delattr(layer, name)


def whole_layer(layer: nn.Module, job: Job) -> Callable:
    """A layer's forward, compiled, attention (whose body is chosen here and not inside) included."""
    body = choose_attention(job.device, job.dtype, layer.attention_dropout, has_lengths=False)
    forward = compiled(layer.forward)
    return lambda x, layout, attention=None: forward(x, layout, attention or body)


def compiled(function: Callable) -> Callable:
    """What torch.compile makes of it, once for any number of tokens."""
    return torch.compile(function, dynamic=True, options=COMPILE_OPTIONS)
