"""Tiny checkpoints in Hugging Face's form, written without transformers: a random model of ours, exported."""

import json
import string
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bertqa.errors import UserError
from bertqa.hf.convert import convert
from bertqa.hf.export import export
from bertqa.model import folder
from bertqa.model.config import BertConfig

SIZES = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "max_position_embeddings": 512,
}
"""Odd sizes, so that swapped axes fail."""

VOCAB = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *string.ascii_lowercase,
    *(f"##{c}" for c in string.ascii_lowercase),
    *string.digits,
    *string.punctuation[:10],
    "é",
    "中",
    "\u2028",
]
VOCAB += [f"word{i}" for i in range(99 - len(VOCAB))]


def write_vocab(where: Path, tokens=VOCAB) -> None:
    where.mkdir(parents=True, exist_ok=True)
    (where / "vocab.txt").write_bytes("".join(token + "\n" for token in tokens).encode())


def random_model(
    model_type: str = "bert", head: str | None = folder.QA, labels=None, seed: int = 0, **changes
):
    """A model of ours, every parameter of which is random (norms and biases too, so that none can be swapped)."""
    distil = {"type_vocab_size": 0} if model_type == "distilbert" else {}
    torch.manual_seed(seed)
    model = folder.build(
        BertConfig(model_type=model_type, **{**SIZES, **distil, **changes}), head, labels
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(
                torch.randn_like(parameter) * 0.1
                + (".norm.weight" in name or "_norm.weight" in name)
            )
    return model.eval()


def write_checkpoint(
    where: Path,
    model_type: str = "bert",
    head: str | None = folder.QA,
    labels=None,
    seed: int = 0,
    **changes,
) -> Path:
    """A Hugging Face folder with a tokenizer of vocab.txt only, and beside it (name + "-ours") the model folder of it."""
    ours = where.with_name(where.name + "-ours")
    write_vocab(where.with_name(where.name + "-vocab"))
    model = random_model(model_type, head, labels, seed, **changes)
    folder.save(
        ours,
        model,
        tokenizer_from=where.with_name(where.name + "-vocab"),
        labels=labels,
        provenance={"source": "tests", "license": "cc0-1.0"},
    )
    export(ours, where)
    return where


def edit_json(path: Path, **changes) -> None:
    """Change an object of JSON; `...` takes a key away."""
    value = json.loads(path.read_text()) if path.exists() else {}
    value = {k: v for k, v in {**value, **changes}.items() if v is not ...}
    path.write_text(json.dumps(value))


def edit_tensors(source: Path, change) -> None:
    """Let `change` change the dictionary of a folder's tensors; what it returns takes its place."""
    tensors = load_file(source / "model.safetensors")
    tensors = change(tensors) or tensors
    save_file(tensors, source / "model.safetensors")


def refused(source, dest, **options) -> str:
    """The message with which a conversion fails; nothing may be left at its destination."""
    with pytest.raises(UserError) as caught:
        convert(source, dest, **options)
    assert "\n" not in str(caught.value)
    assert not dest.exists() and not list(dest.parent.glob(dest.name + ".*tmp"))
    return str(caught.value)


def bytes_of(where: Path) -> bytes:
    """The weights of a folder."""
    return (where / "model.safetensors").read_bytes()
