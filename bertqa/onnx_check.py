"""An ONNX file, called like a model of ours and held against the one that it was made of: its numbers on real questions,
and F1 on data that is given.
"""

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
from bertqa.hf.export import FILE, padded_model, require
from bertqa.model import folder
from bertqa.model.attention import Layout
from bertqa.model.config import BertConfig
from bertqa.model.heads import SpanLogits
from bertqa.model.record import with_defaults
from bertqa.qa.answers import best_answers, null_odds
from bertqa.qa.metrics import averages, score_answers
from bertqa.qa.thresholds import abstain
from bertqa.reader import Reader

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
    record = folder.read_config(src)
    plain = padded_model(model, record["head"])
    onnx = OnnxModel(file, model.config)
    qa = with_defaults(folder.read_qa(src), model.config.max_position_embeddings)
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
    qa = folder.read_qa(folder_with_onnx)
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
