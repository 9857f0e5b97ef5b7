"""Export a model folder to ONNX; run the file with onnxruntime, compare it with the model, and score it.

The file takes input_ids, attention_mask and token_type_ids, (B, L) int64 each with any number of rows B and columns L, under
the names of Hugging Face's exports. Writing it needs the extra `onnx`.
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
from bertqa.folders import new_folder, staged
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
"""Head -> names of the file's outputs. Span logits at padding are float32's minimum, hidden states there are zero."""


class PaddedModel(nn.Module):
    """The module that is exported: a model in eval mode that takes padded batches and returns a tuple, as ONNX wants it."""

    def __init__(self, model: nn.Module, head: str | None):
        super().__init__()
        self.model = model
        self.head = head
        self.eval()

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
    """Export a model folder into a folder with model.onnx, the tokenizer, transformers' config.json, and qa.json.

    Args:
        attention: your own attention function, if the model was trained with one; it must be made of Layout's pad, unpad
            and mask.

    Returns:
        The path of model.onnx.

    Raises:
        UserError: if the packages of the extra `onnx` are missing, or `src` is not a model folder.
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
    """Write the graph of a model in eval mode, for padded batches of any size."""
    config = model.config
    names = ["input_ids", "attention_mask", "token_type_ids"]
    if not config.type_vocab_size:
        names.pop()  # DistilBERT has no token types
    # A tensor of its own for each input: torch.export merges inputs that are one tensor.
    inputs = tuple(torch.ones(2, 8, dtype=torch.int64) for _ in names)
    rows = torch.export.Dim("batch", min=1, max=2**31)  # torch 2.6 needs a maximum
    columns = torch.export.Dim("length", min=2, max=config.longest)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that several inputs share the names of their axes
        torch.onnx.export(
            PaddedModel(model, head),
            inputs,
            str(path),
            dynamo=True,
            dynamic_shapes=[{0: rows, 1: columns} for _ in names],
            input_names=names,
            output_names=list(OUTPUTS[head]),
            external_data=False,
            verbose=False,
        )


def require(*packages: str) -> None:
    """Raise UserError if one of these packages of the extra `onnx` is not installed."""
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise UserError(
            f"ONNX needs {' and '.join(missing)}, which {verb} not installed: pip install 'bertqa[onnx]'"
        )


# Running the file

SAMPLE = Path(__file__).parent / "data" / "sample" / "dev.json"
QUESTIONS = 16
TOLERANCE = 1e-3
"""The largest difference in logits or hidden states that rounding can explain; about 1e-5 is usual."""


class OnnxModel(nn.Module):
    """An ONNX file with a span head, run by onnxruntime on the CPU and called as a BertForQuestionAnswering."""

    def __init__(self, path: Path, config: BertConfig):
        require("onnxruntime")
        import onnxruntime

        super().__init__()
        self.config = config
        self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self.inputs = [entry.name for entry in self.session.get_inputs()]

    def run(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> list:
        """Return the file's outputs for a padded (B, L) batch, as numpy arrays."""
        given = {
            "input_ids": input_ids.numpy(),
            "attention_mask": attention_mask.numpy(),
            "token_type_ids": token_type_ids.numpy(),
        }
        return self.session.run(None, {name: given[name] for name in self.inputs})

    def forward(self, input_ids: Tensor, token_type_ids: Tensor, lengths: Layout) -> SpanLogits:
        """Return start and end logits (N,) of packed tokens."""
        mask = lengths.mask().long()  # (B, L)
        start, end = self.run(lengths.pad(input_ids), mask, lengths.pad(token_type_ids))
        return SpanLogits(
            lengths.unpad(torch.from_numpy(start)), lengths.unpad(torch.from_numpy(end))
        )


def compare(src: str | Path, file: Path, attention=None) -> float:
    """Return the largest difference between the outputs of a model folder and its ONNX file, on questions of the sample.

    Raises:
        UserError: if it is more than TOLERANCE.
    """
    model = folder.load(src, attention=attention, dtype=torch.float32)
    record = read_config(src)
    plain = PaddedModel(model, record["head"])
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
            difference = float(np.abs(want.numpy() - got).max())
            worst = max(worst, difference)
    if not worst < TOLERANCE:
        raise UserError(
            f"{file}: differs from {src} by {worst:.2g} on the sample's questions; do not use it"
        )
    return worst


def score(folder_with_onnx: Path, data: str) -> dict[str, float]:
    """Answer SQuAD or a file of questions with an exported reader, and return EM and F1 in percent (`metrics.averages`).

    Questions are left unanswered by the model's no-answer threshold, if it has one.
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
    unanswered = abstain(null_odds(spans), qa.get("null_threshold"))
    final = {}
    for example, text, is_unanswered in zip(examples, texts, unanswered.tolist(), strict=True):
        final[example.id] = "" if is_unanswered else text
    scores = score_answers(examples, final)
    return averages(scores.exact, scores.f1, scores.has_answer)
