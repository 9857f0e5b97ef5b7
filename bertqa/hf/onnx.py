"""A model folder into ONNX, for onnxruntime in any language; and such a file called like a model of ours.

B rows and L columns of a padded batch, N packed tokens. The file takes input_ids, attention_mask and token_type_ids (B, L)
int64, both sizes free, under the names that Hugging Face's exports have. Needs the extra `onnx`.
"""

import warnings
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from bertqa.errors import UserError
from bertqa.files import write_json
from bertqa.folders import staged
from bertqa.hf import vocabulary
from bertqa.hf.architecture import write_architecture
from bertqa.hf.convert import new_folder
from bertqa.model.attention import Layout
from bertqa.model.config import BertConfig
from bertqa.model.folder import CLASSES, QA, load, read_config, read_qa, write_qa
from bertqa.model.heads import SpanLogits

FILE = "model.onnx"
OUTPUTS = {
    QA: ("start_logits", "end_logits"),
    CLASSES: ("logits",),
    None: ("last_hidden_state",),
}
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
    _require("onnx", "onnxscript")
    src = Path(src)
    dest = new_folder(dest)
    record = read_config(src)
    config = BertConfig(**record["architecture"])
    model = load(src, attention=attention, dtype=torch.float32)
    with staged(dest) as new:
        vocabulary.install(src, new, config.vocab_size, complete=True)
        labels = record.get("labels")
        pad_id = vocabulary.pad_id(new)
        theirs = write_architecture(config, record["head"], labels, "float32", pad_id)
        write_json(new / "config.json", theirs)
        if (src / "qa.json").exists():
            write_qa(new, read_qa(src))
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
    rows = torch.export.Dim("batch", min=1)
    columns = torch.export.Dim("length", min=2, max=config.max_position_embeddings)
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


class OnnxModel(nn.Module):
    """The answers of an ONNX file for packed tokens, by onnxruntime on the CPU: stands where a span model of ours stands."""

    def __init__(self, path: Path, config: BertConfig):
        _require("onnxruntime")
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


def _require(*packages: str) -> None:
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise UserError(
            f"ONNX needs {' and '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed: "
            "pip install 'bertqa[onnx]'"
        )
