"""A model folder out again: into a folder that transformers opens, with the same numbers in it, or into ONNX.

B rows and L columns of a padded batch. The ONNX file takes input_ids, attention_mask and token_type_ids (B, L) int64, both
sizes free, under the names that Hugging Face's exports have; it needs the extra `onnx`. bertqa/onnx_check.py runs it.
"""

import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from bertqa.errors import UserError
from bertqa.files import write_json, write_text
from bertqa.folders import staged
from bertqa.hf import vocabulary
from bertqa.hf.architecture import refuse_inexpressible, write_architecture
from bertqa.hf.convert import dtype_name, new_folder
from bertqa.hf.names import HEAD, Report, Row, their_names
from bertqa.model.build import build_empty, refuse_elsewhere
from bertqa.model.card import eval_results, exported_card
from bertqa.model.checksums import checked
from bertqa.model.config import BertConfig
from bertqa.model.folder import load, open_model_weights
from bertqa.model.record import CLASSES, QA, read_config, read_qa, write_qa
from bertqa.model.tensors import DTYPES, write_safetensors

TASKS = {QA: "question-answering", CLASSES: "text-classification", None: "feature-extraction"}
"""What the Hub calls the use of a head."""


@dataclass
class _Part:
    """Rows of a tensor of ours that are a tensor of theirs."""

    ours: str
    rows: slice
    shape: tuple[int, ...]
    dtype: torch.dtype
    place: str
    """The name and the rows, for people."""


def export(src: str | Path, dest: str | Path) -> Report:
    """A model folder into a folder that transformers opens (and `hf upload` publishes), with the same numbers in it.

    Args:
        src: a model folder.
        dest: a new or empty folder; it appears when everything has succeeded.

    Raises:
        UserError: for something else than a model folder, and for a shape that Hugging Face's classes do not have.
    """
    src = Path(src)
    dest = new_folder(dest)
    record = read_config(src)
    refuse_elsewhere(record, src, "transformers")
    head = record["head"]
    config = BertConfig(**record["architecture"])
    refuse_inexpressible(config)
    empty = build_empty(record).state_dict()
    weights = open_model_weights(src, empty)
    parts = _parts(empty, weights.dtypes, config.model_type, head)
    dtypes = {name: part.dtype for name, part in parts.items()}
    dtype = dtype_name(dtypes.values())

    with staged(dest) as new, checked(src):
        remarks = vocabulary.install(src, new, config.vocab_size, complete=True).remarks
        sha256 = write_safetensors(
            new / "model.safetensors",
            dtypes,
            {name: part.shape for name, part in parts.items()},
            lambda name: weights.get(parts[name].ours)[parts[name].rows],
        )
        pad_id = vocabulary.pad_id(new)
        theirs = write_architecture(config, head, record.get("labels"), dtype, pad_id)
        write_json(new / "config.json", theirs)
        if (src / "qa.json").exists():
            write_qa(new, read_qa(src))
        provenance = record.get("provenance", {})
        card = exported_card(src, config.model_type, TASKS[head], provenance)
        write_text(new / "README.md", card)
        for name, scores in eval_results(card).items():
            (new / ".eval_results").mkdir(exist_ok=True)
            write_text(new / ".eval_results" / name, scores)
    if config.model_type == "bert" and head is None and not config.pooler:
        remarks.append(
            "it has no pooler: transformers' BertModel will draw one at random and say so"
        )
    return Report(
        source=str(src),
        dest=str(dest),
        model_type=config.model_type,
        head=head,
        parameters=sum(tensor.numel() for tensor in empty.values()),
        dtype=dtype,
        source_sha256=weights.sha256(),
        sha256=sha256,
        rows=[Row("renamed", name, part.place, part.shape) for name, part in parts.items()],
        remarks=remarks,
    )


def _parts(empty: dict, stored_dtypes: dict, model_type: str, head: str | None) -> dict[str, _Part]:
    """Their tensors by name: one or three for each of ours."""
    stem = f"{model_type}." if head else ""
    parts = {}
    for ours, tensor in empty.items():
        names = their_names(ours, model_type)
        size = len(tensor) // len(names)
        for i, name in enumerate(names):
            rows = slice(i * size, (i + 1) * size)
            place = f"{ours}[{rows.start}:{rows.stop}]" if len(names) > 1 else ours
            shape = (size, *tensor.shape[1:])
            # heads stand beside the encoder, not in it
            full = name if HEAD.match(name) else stem + name
            parts[full] = _Part(ours, rows, shape, DTYPES[stored_dtypes[ours]], place)
    return parts


# ONNX

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
