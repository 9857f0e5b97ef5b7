"""What tools/bench.py works on: the questions, the model, and the sizes of a round."""

import importlib
import json
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Runs from a clone; the old scripts' Python loops stand in tests/.
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import numpy as np  # noqa: E402

from bertqa.data.examples import Dataset, Example, read_examples  # noqa: E402
from bertqa.data.text_windows import TextWindows, text_windows  # noqa: E402
from bertqa.data.tokenizer import WordPiece  # noqa: E402
from bertqa.data.windows import Windows, build_windows  # noqa: E402

LENGTH = 384
"""Tokens of the longest window."""
OVERLAP = 128
OTHERS = ("transformers", "onnxruntime", "onnx", "onnxscript")


def importable(module: str) -> bool:
    """Whether it is installed and works: a package that fits ill with its neighbours raises when it is imported."""
    try:
        importlib.import_module(module)
    except ImportError:
        return False
    return True


@dataclass
class Bench:
    """A run of the bench. Each part loads when it is first asked for, so a process has what it needs and no more."""

    data_path: str
    weights: str
    scratch: str
    """A folder for what is made on the way."""
    quick: bool = False
    device_name: str = "cpu"
    dtype_name: str = "fp32"
    label: str = ""
    """Of the model, in the names of tasks."""
    batch_size: int = 16
    """Windows in an optimizer step."""
    others: tuple[str, ...] = ()
    """Which of `OTHERS` can be imported here; the main process tries, so that no contestant pays for another's import."""

    def has(self, *modules: str) -> bool:
        return set(modules) <= set(self.others)

    @property
    def on_gpu(self) -> bool:
        return self.device_name == "cuda"

    # ---- data ----

    @cached_property
    def data(self) -> Dataset:
        return read_examples(self.data_path)

    @cached_property
    def tokenizer(self) -> WordPiece:
        return WordPiece.load(self.weights)

    def windows_of(self, examples: list[Example]) -> Windows:
        return build_windows(examples, self.tokenizer, max_length=LENGTH, overlap=OVERLAP)

    @cached_property
    def windows(self) -> Windows:
        return self.windows_of(self.data.examples)

    @cached_property
    def sorted_batches(self) -> list[np.ndarray]:
        """A few of the 50 batches that length grouping makes of a mega-batch, largest first and evenly spread."""
        size = self.batch_size
        rows = np.random.default_rng(0).permutation(len(self.windows))[: 50 * size]
        rows = rows[np.argsort(-self.windows.lengths[rows], kind="stable")]
        batches = [rows[i : i + size] for i in range(0, len(rows), size)]
        wanted = self._size(quick=1, cpu=3, gpu=8)
        return [batches[int((i + 0.5) / wanted * len(batches))] for i in range(wanted)]

    @cached_property
    def random_batches(self) -> list[np.ndarray]:
        """The same windows, dealt at random."""
        rows = np.random.default_rng(1).permutation(np.concatenate(self.sorted_batches))
        return np.array_split(rows, len(self.sorted_batches))

    @cached_property
    def asked(self) -> list[Example]:
        """The questions that the model answers: a random part of all."""
        order = np.random.default_rng(2).permutation(len(self.data.examples))
        count = self._size(quick=8, cpu=160, gpu=4096)
        return [self.data.examples[i] for i in order[:count]]

    @cached_property
    def asked_windows(self) -> Windows:
        return self.windows_of(self.asked)

    @cached_property
    def texts(self) -> list[str]:
        """Texts to embed: questions, in the order of the file."""
        count = self._size(quick=8, cpu=5000, gpu=5000)
        return [example.question for example in self.data.examples[:count]]

    @cached_property
    def text_windows(self) -> TextWindows:
        return text_windows(self.texts, self.tokenizer, max_length=LENGTH)

    def _size(self, *, quick: int, cpu: int, gpu: int) -> int:
        if self.quick:
            return quick
        return gpu if self.on_gpu else cpu

    # ---- models ----

    @cached_property
    def config(self) -> dict:
        return json.loads((Path(self.weights) / "config.json").read_text())["architecture"]

    @property
    def device(self):
        import torch

        return torch.device(self.device_name)

    @property
    def dtype(self):
        from bertqa.device import DTYPES

        return DTYPES[self.dtype_name]

    @property
    def autocast(self):
        from bertqa.device import autocast

        return autocast(self.device, self.dtype)

    def wait(self) -> None:
        """Until the GPU has done what it was asked to."""
        if self.on_gpu:
            import torch

            torch.cuda.synchronize()

    def store(self, windows: Windows):
        from bertqa.data.batches import WindowStore

        return WindowStore(windows, self.device_name)

    def model(self):
        from bertqa.model import folder

        return folder.load(self.weights, device=self.device_name)

    @cached_property
    def exported(self) -> Path:
        """Our weights as a folder for transformers."""
        from bertqa.hf.export import export

        where = Path(self.scratch) / f"hf-{self.label}"
        if not where.exists():
            export(self.weights, where)
        return where

    def their_model(self, **config):
        from transformers import AutoModelForQuestionAnswering

        model = AutoModelForQuestionAnswering.from_pretrained(self.exported, **config)
        # Since version 5 it computes in the format of the file, and float16 is no format for a CPU.
        return model.float().eval().to(self.device_name)

    def their_tokenizer(self):
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast(
            tokenizer_file=f"{self.weights}/tokenizer.json",
            model_max_length=512,
            pad_token="[PAD]",
            cls_token="[CLS]",
            sep_token="[SEP]",
            unk_token="[UNK]",
        )

    def padded(self, store, rows: np.ndarray, length: int | None) -> dict:
        """The arguments of their model for a batch of windows, padded to `length` or to the longest of them."""
        import torch

        from bertqa.data.batches import padded

        tensors = padded(store.batch(rows))
        if length:
            tensors = [torch.nn.functional.pad(x, (0, length - x.shape[1])) for x in tensors]
        names = ["input_ids", "attention_mask"]
        if self.config["type_vocab_size"]:
            names.append("token_type_ids")
        return dict(zip(names, tensors, strict=False))
