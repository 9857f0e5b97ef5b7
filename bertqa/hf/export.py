"""A model folder into a folder that transformers opens, with the same numbers in it."""

from dataclasses import dataclass
from pathlib import Path

import torch

from bertqa.files import write_json, write_text
from bertqa.folders import staged
from bertqa.hf import vocabulary
from bertqa.hf.architecture import refuse_inexpressible, write_architecture
from bertqa.hf.convert import dtype_name, new_folder
from bertqa.hf.names import HEAD, their_names
from bertqa.hf.table import Report, Row
from bertqa.model.build import build_empty
from bertqa.model.card import exported_card
from bertqa.model.config import BertConfig
from bertqa.model.folder import open_model_weights
from bertqa.model.own import refuse_elsewhere
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

    with staged(dest) as new:
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
