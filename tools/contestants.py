"""The contestants of tools/bench.py: bertqa and what people use, on the same windows with the same weights.

A contestant takes a `Work`, loads its model, prepares its batches, and returns the function that is timed: one round. A
round of inference returns (rows (S,), start, end) of each batch, logits on the host, packed (N,) or padded (S, L). Whoever
cannot take part raises UserError or ImportError.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from baseline import in_transformers

from bertqa.data.batches import Batch, WindowStore, padded
from bertqa.device import DTYPES, autocast
from bertqa.errors import UserError
from bertqa.inference import calibrate, forward_all
from bertqa.loading import prepared
from bertqa.model import folder
from bertqa.model.copies import computing_in_16_bits
from bertqa.model.record import RANGES
from bertqa.settings import LoopSettings, OptimSettings
from bertqa.training.job import Job
from bertqa.training.progress import Progress
from bertqa.training.question_answering import QuestionAnswering
from bertqa.training.step import Step


@dataclass
class Work:
    """What every contestant computes: windows to train on (`task.store`) and windows to answer (`task.dev_windows`)."""

    task: QuestionAnswering
    weights: Path
    scratch: Path  # a temporary folder
    format: str = "fp32"  # of matrix products: fp32, bf16 or int8
    label: str = ""  # the shape of random weights; "" for the bundled reader
    batch_size: int = 16  # windows in an optimizer step
    steps: int = 1  # optimizer steps in a round

    def __post_init__(self):
        self.device = self.task.device
        self.dtype = DTYPES.get(self.format, torch.float32)
        self.cast = autocast(self.device, self.dtype)

    def batches(self, grouped: bool = False) -> list[np.ndarray]:
        """The windows (S,) of each optimizer step in a round, at random or as length grouping batches them."""
        # Length grouping sorts 50 batches' worth of windows: of these, some that are evenly spread.
        lengths = self.task.store.lengths
        count = 50 * self.batch_size
        rows = np.random.default_rng(0).choice(len(lengths), count, replace=count > len(lengths))
        sorted_batches = np.split(rows[np.argsort(-lengths[rows], kind="stable")], 50)
        batches = [sorted_batches[int((i + 0.5) / self.steps * 50)] for i in range(self.steps)]
        if grouped:
            return batches
        return np.split(np.random.default_rng(1).permutation(np.concatenate(batches)), self.steps)

    def padded(self, batch: Batch, length: int | None) -> dict[str, torch.Tensor]:
        """The inputs (S, L) of transformers' model, padded to `length` tokens or to the longest window."""
        tensors = padded(batch)
        if length:
            tensors = [torch.nn.functional.pad(x, (0, length - x.shape[1])) for x in tensors]
        return dict(zip(["input_ids", "attention_mask", "token_type_ids"], tensors, strict=True))

    def batches_to_answer(self, length: int | None = None) -> list[tuple[np.ndarray, dict]]:
        """(rows (S,), inputs of transformers' model) of all windows to answer, longest first."""
        store = WindowStore(self.task.dev_windows, self.device)
        order = np.argsort(-store.lengths, kind="stable")
        size = 128 if self.device.type == "cuda" else 32
        batches = np.split(order, range(size, len(order), size))
        return [(rows, self.padded(store.batch(rows), length)) for rows in batches]

    def wait(self) -> None:
        """Wait until the GPU has finished."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()


# ---- training: forward, backward, clip, AdamW ----


def our_training(work: Work, **settings) -> Callable:
    """The trainer at its defaults, but for `settings` of the loop, which concern GPUs."""
    if settings and work.device.type != "cuda":
        raise UserError("steps are captured on GPUs only")
    model = folder.load(work.weights, device=work.device).train()
    how = LoopSettings(batch_size=work.batch_size, **settings), OptimSettings()
    job = Job(model, work.task, *how, run=work.scratch, device=work.device, dtype=work.dtype)
    step = Step(job)
    batches = work.batches()

    def one_round():
        for rows in batches:
            step(rows, 5e-5, Progress())
        work.wait()

    return one_round


def their_training(work: Work, grouped=False, length=None, attention_dropout=0.1) -> Callable:
    """Transformers' model with the attention dropout of every published BERT; ours trains without."""
    model = in_transformers(work.weights, attention_probs_dropout_prob=attention_dropout)
    model.to(work.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5, weight_decay=0.01, fused=True)
    batches = []
    for rows in work.batches(grouped):
        batch = work.task.store.batch(rows)
        labels = {"start_positions": batch.start_labels, "end_positions": batch.end_labels}
        batches.append({**work.padded(batch, length), **labels})

    def one_round():
        for inputs in batches:
            with work.cast:
                loss = model(**inputs).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        work.wait()

    return one_round


# ---- inference ----


def our_inference(work: Work) -> Callable:
    model = folder.load(work.weights, device=work.device)
    int8 = work.format == "int8"
    # Random weights have no measured ranges yet.
    if int8 and not (work.weights / RANGES).exists():
        calibrate(work.weights, work.task.store, 32, seed=0)
    model = prepared(model, work.weights, work.dtype, int8)

    def compute(batch, layout):
        return tuple(model(batch.input_ids, token_type_ids=batch.token_type_ids, lengths=layout))

    def one_round():
        windows = work.task.dev_windows
        with computing_in_16_bits(model, work.cast) as cast:
            parts = forward_all(compute, windows, work.device, model=model, autocast=cast)
            return [(rows, *logits) for rows, logits in parts]

    return one_round


def in_padded_batches(answer: Callable[[dict], Sequence], work: Work, length=None) -> Callable:
    """A round of `answer`, which takes the inputs of a padded batch and returns start and end logits (S, L)."""
    batches = work.batches_to_answer(length)
    return lambda: [(rows, *answer(inputs)) for rows, inputs in batches]


def their_inference(work: Work, length: int | None = None) -> Callable:
    if work.format == "int8":
        raise UserError("it has no int8 of its own")
    model = in_transformers(work.weights).to(work.device).eval()

    @torch.inference_mode()
    def answer(inputs):
        with work.cast:
            out = model(**inputs)
        return out.start_logits.float().cpu().numpy(), out.end_logits.float().cpu().numpy()

    return in_padded_batches(answer, work, length)


def arrays(inputs: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in inputs.items()}


def onnx_file(work: Work) -> Path:
    """Transformers' model as ONNX in float32, for any batch size and length."""
    if work.device.type != "cpu":
        raise UserError("it is measured on CPUs")
    path = work.scratch / f"model-{work.label}.onnx"
    if not path.exists():
        model = in_transformers(work.weights, return_dict=False).eval()
        _, example = work.batches_to_answer()[0]
        sizes = dict.fromkeys((0, 1), torch.export.Dim.DYNAMIC)
        how = {"dynamic_shapes": dict.fromkeys(example, sizes), "external_data": False}
        torch.onnx.export(model, (), path, kwargs=example, dynamo=True, verbose=False, **how)
    return path


def onnxruntime_inference(work: Work) -> Callable:
    """In int8 with dynamic quantization: weights in 8 bits, activations scaled as they come."""
    if work.format == "bf16":
        raise UserError("it is measured in fp32 and int8")
    import onnxruntime
    from onnxruntime.quantization import quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    path = onnx_file(work)
    if work.format == "int8":
        # As onnxruntime advises: shapes are inferred and the graph is optimized before weights are rounded.
        shaped = work.scratch / "shaped.onnx"
        quant_pre_process(path, shaped, skip_symbolic_shape=True)
        path = work.scratch / "int8.onnx"
        quantize_dynamic(shaped, path, per_channel=True, op_types_to_quantize=["MatMul", "Gemm"])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return in_padded_batches(lambda inputs: session.run(None, arrays(inputs)), work)


def openvino_inference(work: Work) -> Callable:
    """In int8 calibrated by nncf on the very windows that it then answers; the rest in the format that it chooses."""
    import openvino

    model = openvino.Core().read_model(onnx_file(work))
    options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    if work.format == "int8":
        import nncf

        seen = nncf.Dataset(work.batches_to_answer(), lambda batch: arrays(batch[1]))
        model = nncf.quantize(model, seen, model_type=nncf.ModelType.TRANSFORMER)
    else:
        options["INFERENCE_PRECISION_HINT"] = {"fp32": "f32", "bf16": "bf16"}[work.format]
    request = openvino.compile_model(model, "CPU", options).create_infer_request()

    def answer(inputs):
        # Copies: the next batch is written to the same place.
        return [logits.copy() for logits in request.infer(arrays(inputs)).values()]

    return in_padded_batches(answer, work)


CONTESTANTS: dict[str, dict[str, Callable[[Work], Callable]]] = {
    "training": {
        "bertqa": our_training,
        "bertqa --capture off": partial(our_training, capture="off"),
        "transformers, padded to 384": partial(their_training, length=384),
        "transformers, dynamic padding": their_training,
        "transformers, length-grouped": partial(their_training, grouped=True),
        "the same without attention dropout, as ours": partial(
            their_training, grouped=True, attention_dropout=0.0
        ),
    },
    "inference": {
        "bertqa": our_inference,
        "transformers, padded to 384": partial(their_inference, length=384),
        "transformers, length-sorted": their_inference,
        "onnxruntime, length-sorted": onnxruntime_inference,
        "OpenVINO, length-sorted": openvino_inference,
    },
}
"""Task -> name -> contestant; the first is ours."""
