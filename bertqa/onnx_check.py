"""An ONNX file held against the model that it was made of: its numbers on real questions, and F1 on data that is given."""

from pathlib import Path

import numpy as np
import torch

from bertqa.data.batches import WindowStore, by_length, padded
from bertqa.data.download import locate
from bertqa.data.examples import read_examples
from bertqa.data.tokenizer import WordPiece
from bertqa.data.windows import build_windows
from bertqa.errors import UserError
from bertqa.hf.onnx import OnnxModel, padded_model
from bertqa.model import folder
from bertqa.model.reading import with_defaults
from bertqa.qa.answers import best_answers, null_odds
from bertqa.qa.metrics import averages, score_answers
from bertqa.qa.thresholds import abstain
from bertqa.reader import Reader

SAMPLE = Path(__file__).parent / "data" / "sample" / "dev.json"
QUESTIONS = 16
TOLERANCE = 1e-3
"""Largest difference that rounding can explain, in logits and hidden states; it is some 1e-5 in practice."""


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
    from bertqa.hf.onnx import FILE
    from bertqa.model.config import BertConfig

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
