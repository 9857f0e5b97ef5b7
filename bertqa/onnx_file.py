"""A model folder into an ONNX file; the file called like a model of ours, held against the one that it was made of, and scored.

B rows and L columns of a padded batch. The file takes input_ids, attention_mask and token_type_ids (B, L) int64, both sizes
free, under the names that Hugging Face's exports have; to write one takes the extra `onnx`.
"""

import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from bertqa.data.batches import WindowStore, by_length, padded
from bertqa.data.download import locate
from bertqa.data.examples import read_examples
from bertqa.data.tokenizer import WordPiece
from bertqa.data.windows import build_windows
from bertqa.errors import UserError
from bertqa.folders import staged
from bertqa.hf.convert import new_folder
from bertqa.hf.export import write_beside
from bertqa.model import folder
from bertqa.model.attention import Layout
from bertqa.model.config import CLASSES, QA, BertConfig
from bertqa.model.heads import SpanLogits
from bertqa.model.record import read_config, read_qa, with_defaults
from bertqa.qa.answers import best_answers, null_odds
from bertqa.qa.metrics import averages, score_answers
from bertqa.qa.thresholds import abstain
from bertqa.reader import Reader

FILE = "model.onnx"
OUTPUTS = {QA: ("start_logits", "end_logits"), CLASSES: ("logits",), None: ("last_hidden_state",)}
"""What comes out of each head; logits of padding are float32's minimum, its hidden states zero."""


class _Padded(nn.Module):
    """A model of a padded batch that returns a tuple, as an ONNX graph does."""

    def __init__(self, model: nn.Module, head: str | None):
        super().__init__()
        self.model = model
        self.head = head

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        out = self.model(input_ids, attention_mask, token_type_ids)
        if self.head == QA:
            return out.start, out.end
        if self.head == CLASSES:
            return (out,)
        return (out.last_hidden_state,)


def export_onnx(src: str | Path, dest: str | Path, *, attention=None) -> Path:
    """A model folder into a folder with model.onnx, the tokenizer's files, config.json as transformers has it, and qa.json.

    Args:
        attention: of your own, where the model was trained with it; written with Layout's pad, unpad and mask.

    Raises:
        UserError: without the packages of the extra `onnx`, and for something else than a model folder.
    """
    require("onnx", "onnxscript")
    src = Path(src)
    dest = new_folder(dest)
    record = read_config(src)
    model = folder.load(src, attention=attention, dtype=torch.float32)
    with staged(dest) as new:
        write_beside(src, new, record, "float32")
        write_onnx(model, record["head"], new / FILE)
    return dest / FILE


def write_onnx(model: nn.Module, head: str | None, path: Path) -> None:
    """Write the graph of a model in eval mode, called with padded batches of any size."""
    config = model.config
    names = ["input_ids", "attention_mask", "token_type_ids"]
    if not config.type_vocab_size:
        names.pop()  # DistilBERT's has two inputs
    # One tensor for each: export would take the same one twice for a single input.
    inputs = tuple(torch.ones(2, 8, dtype=torch.int64) for _ in names)
    rows = torch.export.Dim("batch", min=1, max=2**31)  # torch 2.6 wants an end
    columns = torch.export.Dim("length", min=2, max=config.longest)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of axis names that several inputs share
        torch.onnx.export(
            padded_model(model, head),
            inputs,
            str(path),
            dynamo=True,
            dynamic_shapes=[{0: rows, 1: columns} for _ in names],
            input_names=names,
            output_names=list(OUTPUTS[head]),
            external_data=False,
            verbose=False,
        )


def padded_model(model: nn.Module, head: str | None) -> nn.Module:
    """What an ONNX file is made of: the model in eval mode, of (B, L) ids, mask and segments, as a tuple."""
    return _Padded(model, head).eval()


def require(*packages: str) -> None:
    """Raise UserError where a package of the extra `onnx` is not installed."""
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise UserError(
            f"ONNX needs {' and '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed: "
            "pip install 'bertqa[onnx]'"
        )


# The file, run

SAMPLE = Path(__file__).parent / "data" / "sample" / "dev.json"
QUESTIONS = 16
TOLERANCE = 1e-3
"""Largest difference that rounding can explain, in logits and hidden states; it is some 1e-5 in practice."""


class OnnxModel(nn.Module):
    """The answers of an ONNX file for packed tokens, by onnxruntime on the CPU: stands where a span model of ours stands."""

    def __init__(self, path: Path, config: BertConfig):
        require("onnxruntime")
        import onnxruntime

        super().__init__()
        self.config = config
        self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self.inputs = [entry.name for entry in self.session.get_inputs()]

    def run(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> list:
        """The file's outputs for a padded (B, L) batch, as numpy arrays."""
        given = {
            "input_ids": input_ids.numpy(),
            "attention_mask": attention_mask.numpy(),
            "token_type_ids": token_type_ids.numpy(),
        }
        return self.session.run(None, {name: given[name] for name in self.inputs})

    def forward(self, input_ids: Tensor, token_type_ids: Tensor, lengths: Layout) -> SpanLogits:
        """Start and end logits (N,) of packed tokens."""
        mask = lengths.mask().long()  # (B, L)
        start, end = self.run(lengths.pad(input_ids), mask, lengths.pad(token_type_ids))
        return SpanLogits(
            lengths.unpad(torch.from_numpy(start)), lengths.unpad(torch.from_numpy(end))
        )


def compare(src: str | Path, file: Path, attention=None) -> float:
    """The largest difference between what a model folder and its ONNX file say of the questions of the bundled sample.

    Raises:
        UserError: where it is more than rounding.
    """
    model = folder.load(src, attention=attention, dtype=torch.float32)
    record = read_config(src)
    plain = padded_model(model, record["head"])
    onnx = OnnxModel(file, model.config)
    qa = with_defaults(read_qa(src), model.config.max_position_embeddings)
    windows = build_windows(
        read_examples(SAMPLE, QUESTIONS).examples,
        WordPiece.load(src),
        max_length=qa["max_length"],
        max_question=qa["max_question"],
        overlap=qa.get("overlap"),
        step=qa.get("step"),
    )
    store = WindowStore(windows)
    worst = 0.0
    for rows in by_length(store.lengths, 4096):
        ids, mask, segments = padded(store.batch(rows))  # (B, L) each
        with torch.inference_mode():
            wanted = plain(ids, mask, segments)
        found = onnx.run(ids, mask, segments)
        for want, got in zip(wanted, found, strict=True):
            worst = max(worst, float(np.abs(want.numpy() - got).max()))
    if not worst < TOLERANCE:
        raise UserError(
            f"{file}: differs from {src} by {worst:.2g} on the sample's questions; do not use it"
        )
    return worst


def score(folder_with_onnx: Path, data: str) -> dict[str, float]:
    """EM and F1 in percent, as `metrics.averages` gives them, of an exported reader on SQuAD or a file of questions.

    Where the model has a threshold it is used.
    """
    qa = read_qa(folder_with_onnx)
    reader = Reader(
        OnnxModel(folder_with_onnx / FILE, BertConfig()),
        WordPiece.load(folder_with_onnx),
        qa,
        torch.device("cpu"),
    )
    examples = read_examples(locate(data)).examples
    spans, windows = reader.spans(examples, progress=data)
    texts = best_answers(spans, windows, examples).texts
    silent = abstain(null_odds(spans), qa.get("null_threshold"))
    final = {}
    for example, text, is_silent in zip(examples, texts, silent.tolist(), strict=True):
        final[example.id] = "" if is_silent else text
    scores = score_answers(examples, final)
    return averages(scores.exact, scores.f1, scores.has_answer)
