"""Who takes part in tools/bench.py: bertqa and what people use, at each task, on the same questions and weights.

A contestant is a function of a `Work` with a name in `TASKS`. It loads what it needs and returns one round of the work, a
function for the clock to call; it raises LeftOut, or ImportError, where it cannot take part. What the others have done for
them in advance is their padding. S windows in a batch, L the longest of them, N tokens in it.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

# so that it runs from a clone without installing
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bertqa.data.batches import Batch, WindowStore, padded
from bertqa.data.examples import Dataset, Example
from bertqa.data.tokenizer import WordPiece
from bertqa.data.windows import Windows, build_windows
from bertqa.device import DTYPES, autocast, grad_scaler
from bertqa.hf.export import export
from bertqa.inference import forward_all
from bertqa.model import folder, prepack
from bertqa.model.copies import computing_in_16_bits
from bertqa.model.heads import span_loss
from bertqa.settings import LoopSettings, OptimSettings
from bertqa.training.job import Job
from bertqa.training.progress import Progress
from bertqa.training.step import Step

LENGTH = 384
"""Tokens of the longest window."""
Round = Callable[[], object]


class LeftOut(Exception):
    """Why a contestant does not take part."""


@dataclass
class Work:
    """The model and the questions: the same for everyone, made when first asked for."""

    weights: Path
    data: Dataset
    scratch: Path  # a folder for what is made on the way
    device: torch.device = torch.device("cpu")
    format: str = "fp32"  # of matrix products: one of DTYPES, or int8
    label: str = ""  # of a model with random weights
    batch_size: int = 16  # windows in an optimizer step
    steps: int = 1  # of them in a round
    questions: int = 8  # to answer in a round, drawn at random

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES.get(self.format, torch.float32)

    @property
    def cast(self) -> torch.autocast:
        return autocast(self.device, self.dtype)

    @cached_property
    def config(self) -> dict:
        return folder.read_config(self.weights)["architecture"]

    def windows_of(self, examples: list[Example]) -> Windows:
        tokenizer = WordPiece.load(self.weights)
        return build_windows(examples, tokenizer, max_length=LENGTH, overlap=128)

    @cached_property
    def asked(self) -> list[Example]:
        order = np.random.default_rng(2).permutation(len(self.data.examples))
        return [self.data.examples[i] for i in order[: self.questions]]

    @cached_property
    def asked_windows(self) -> Windows:
        return self.windows_of(self.asked)

    @cached_property
    def store(self) -> WindowStore:
        """The windows to train on."""
        return WindowStore(self.windows_of(self.data.examples), self.device)

    @cached_property
    def grouped_batches(self) -> list[np.ndarray]:
        """A few of the 50 batches that length grouping makes of a mega-batch, evenly spread, largest first."""
        wanted = 50 * self.batch_size
        draw = np.random.default_rng(0)
        rows = draw.choice(len(self.store), wanted, replace=wanted > len(self.store))
        batches = np.split(rows[np.argsort(-self.store.lengths[rows], kind="stable")], 50)
        return [batches[int((i + 0.5) / self.steps * 50)] for i in range(self.steps)]

    @cached_property
    def random_batches(self) -> list[np.ndarray]:
        """The same windows, dealt at random."""
        rows = np.random.default_rng(1).permutation(np.concatenate(self.grouped_batches))
        return np.split(rows, self.steps)

    def padded(self, batch: Batch, length: int | None) -> dict:
        """What transformers' model takes, (S, L) by name, padded to `length` or to the longest of the batch."""
        tensors = padded(batch)
        if length:
            tensors = [torch.nn.functional.pad(x, (0, length - x.shape[1])) for x in tensors]
        names = ["input_ids", "attention_mask", "token_type_ids"]
        if not self.config["type_vocab_size"]:
            names.pop()  # DistilBERT's model takes two
        return dict(zip(names, tensors, strict=False))

    def asked_batches(self, length: int | None = None) -> list[tuple[np.ndarray, dict]]:
        """(rows (S,), what the model takes) of all windows to answer, longest first."""
        store = WindowStore(self.asked_windows, self.device)
        order = np.argsort(-store.lengths, kind="stable")
        size = 128 if self.device.type == "cuda" else 32
        parts = np.split(order, range(size, len(order), size))
        return [(rows, self.padded(store.batch(rows), length)) for rows in parts]

    def their_model(self, **config):
        """The same weights in transformers' model, in eval mode."""
        from transformers import AutoModelForQuestionAnswering

        exported = self.scratch / f"hf-{self.label}"
        if not exported.exists():
            export(self.weights, exported)
        model = AutoModelForQuestionAnswering.from_pretrained(exported, **config)
        # Since version 5 it computes in the format of the file, and float16 is no format for a CPU.
        return model.float().eval().to(self.device)

    def wait(self) -> None:
        """Until the GPU has done what it was asked to."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()


# ---- training: forward, backward, clip, AdamW ----


def our_training(work: Work, **settings) -> Round:
    """At the trainer's defaults; `settings` differ from them on a GPU only."""
    if settings and work.device.type != "cuda":
        raise LeftOut("steps are captured and compiled on GPUs only")

    def loss(model, batch, layout):
        logits = model(batch.input_ids, token_type_ids=batch.token_type_ids, lengths=layout)
        labels = batch.start_labels, batch.end_labels
        return span_loss(logits, layout, *labels, weights=batch.weights)

    model = folder.load(work.weights, device=work.device).train()
    task = SimpleNamespace(store=work.store, loss=loss, static_shapes=True)
    how = LoopSettings(batch_size=work.batch_size, **settings), OptimSettings()
    step = Step(Job(model, task, *how, run=work.scratch, device=work.device, dtype=work.dtype))

    def one_round():
        for rows in work.random_batches:
            step(rows, 5e-5, Progress())
        work.wait()

    return one_round


def their_training(work: Work, grouped=False, length=None, attention_dropout=0.1) -> Round:
    """0.1 stands in the configuration of every published BERT; our exports say 0, with which ours was trained."""
    model = work.their_model(attention_probs_dropout_prob=attention_dropout).train()
    scaler = grad_scaler(work.device, work.dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5, weight_decay=0.01, fused=True)
    batches = []
    for rows in work.grouped_batches if grouped else work.random_batches:
        batch = work.store.batch(rows)
        labels = {"start_positions": batch.start_labels, "end_positions": batch.end_labels}
        batches.append({**work.padded(batch, length), **labels})

    def one_round():
        for inputs in batches:
            with work.cast:
                loss = model(**inputs).loss
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        work.wait()

    return one_round


# ---- inference: windows to logits on the host; a round returns [(rows (S,), start, end)], packed (N,) or padded (S, L) ----


def our_inference(work: Work) -> Round:
    model = folder.load(work.weights, device=work.device)
    is_int8 = work.format == "int8"
    model = prepack.int8(model) if is_int8 else prepack.pack(model, work.dtype)

    def compute(batch, layout):
        return tuple(model(batch.input_ids, token_type_ids=batch.token_type_ids, lengths=layout))

    def one_round():
        with computing_in_16_bits(model, work.cast) as cast:
            parts = forward_all(compute, work.asked_windows, work.device, autocast=cast)
            return [(rows, *logits) for rows, logits in parts]

    return one_round


def arrays(inputs: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in inputs.items()}


def answers(batches: list[tuple[np.ndarray, dict]], answer: Callable[[dict], tuple]) -> Round:
    """A round of a program that takes padded batches one by one."""
    return lambda: [(rows, *answer(inputs)) for rows, inputs in batches]


def their_inference(work: Work, length: int | None = None) -> Round:
    if work.format == "int8":
        raise LeftOut("it has no int8 of its own")
    model = work.their_model()

    @torch.inference_mode()
    def answer(inputs):
        with work.cast:
            out = model(**inputs)
        return out.start_logits.float().cpu().numpy(), out.end_logits.float().cpu().numpy()

    return answers(work.asked_batches(length), answer)


def onnx_file(work: Work) -> Path:
    """Transformers' model in ONNX and float32, batch size and length left open."""
    path = work.scratch / f"model-{work.label}.onnx"
    if not path.exists():
        model = work.their_model()
        model.config.return_dict = False
        _, example = work.asked_batches()[0]
        sizes = dict.fromkeys((0, 1), torch.export.Dim.DYNAMIC)
        how = {"dynamic_shapes": dict.fromkeys(example, sizes), "external_data": False}
        torch.onnx.export(model, (), path, kwargs=example, dynamo=True, verbose=False, **how)
    return path


def onnxruntime_inference(work: Work) -> Round:
    """In int8 with weights in 8 bits and activations scaled as they come."""
    if work.device.type != "cpu" or work.format not in ("fp32", "int8"):
        raise LeftOut("it is measured on CPUs, in fp32 and int8")
    import onnxruntime
    from onnxruntime.quantization import quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    path = onnx_file(work)
    if work.format == "int8":
        shaped = work.scratch / "shaped.onnx"
        quant_pre_process(path, shaped, skip_symbolic_shape=True)
        path = work.scratch / "int8.onnx"
        products = ["MatMul", "Gemm"]
        quantize_dynamic(shaped, path, per_channel=True, op_types_to_quantize=products)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return answers(work.asked_batches(), lambda inputs: session.run(None, arrays(inputs)))


def openvino_inference(work: Work) -> Round:
    """In int8 calibrated by nncf on the very windows that it then answers, and free to choose the format of the rest."""
    if work.device.type != "cpu" or work.format == "fp16":
        raise LeftOut("it is measured on CPUs, in fp32, bf16 and int8")
    import openvino

    batches = work.asked_batches()
    model = openvino.Core().read_model(onnx_file(work))
    options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    if work.format == "int8":
        import nncf

        seen = nncf.Dataset([arrays(inputs) for _, inputs in batches])
        model = nncf.quantize(model, seen, model_type=nncf.ModelType.TRANSFORMER)
    else:
        options["INFERENCE_PRECISION_HINT"] = {"fp32": "f32", "bf16": "bf16"}[work.format]
    request = openvino.compile_model(model, "CPU", options).create_infer_request()

    def answer(inputs):
        # copies: the next batch is written in the same place
        return [logits.copy() for logits in request.infer(arrays(inputs)).values()]

    return answers(batches, answer)


# ---- a whole run ----


def our_run(work: Work) -> Round:
    """`python -m bertqa.train` from its start to its last line: an epoch, an evaluation, and all that it writes."""
    out = work.scratch / "run"
    data = os.path.abspath(work.data.path)
    command = [sys.executable, "-m", "bertqa.train", "--train", data, "--dev", data, "--epochs", 1]
    command += ["--weights", work.weights.resolve(), "--out", out, "--precision", work.format]
    command += ["--batch-size", work.batch_size, "--device", work.device]
    command += ["--limit-dev", 10570]  # as many as dev-v1.1 has

    def one_round():
        shutil.rmtree(out, ignore_errors=True)
        root = Path(__file__).resolve().parents[1]
        subprocess.run(list(map(str, command)), check=True, cwd=root, stdout=subprocess.DEVNULL)

    return one_round


TASKS: dict[str, dict[str, Callable[[Work], Round]]] = {
    "training": {
        "bertqa": our_training,
        "bertqa --capture off": partial(our_training, capture="off"),
        "transformers, padded to 384": partial(their_training, length=LENGTH),
        "transformers, dynamic padding": their_training,
        "transformers, length-grouped": partial(their_training, grouped=True),
        "the same without attention dropout, as ours": partial(
            their_training, grouped=True, attention_dropout=0.0
        ),
    },
    "inference": {
        "bertqa": our_inference,
        "transformers, padded to 384": partial(their_inference, length=LENGTH),
        "transformers, length-sorted": their_inference,
        "onnxruntime, length-sorted": onnxruntime_inference,
        "OpenVINO, length-sorted": openvino_inference,
    },
    "run": {"bertqa.train": our_run},
}
"""Task -> name -> contestant; the first is ours."""
