"""How a checkpoint's maker used it: the threshold that was tuned with bertqa, and sentence-transformers' pooling.

The pooling becomes the defaults of `embed`.
"""

import json
import re
from pathlib import Path

from bertqa.errors import UserError
from bertqa.files import read_json, read_object, show
from bertqa.model.config import BertConfig
from bertqa.model.record import QA, Embedding, read_qa, write_embed, write_qa

MODULES = "modules.json"
SETTINGS = "sentence_bert_config.json"
POOLS = {"mean": "mean", "mean_tokens": "mean", "cls": "cls", "cls_token": "cls"}
"""What their Pooling module calls it -> what `embed --pool` does."""


def take_settings(
    source: Path, new: Path, config: BertConfig, head: str | None, fresh_head
) -> list[str]:
    """Take them over into a model folder with this config and head; returns remarks for the report."""
    if head == QA and fresh_head is None and (source / "qa.json").exists():
        write_qa(new, read_qa(source))
        return ["qa.json taken over: the threshold and windows that its maker tuned with bertqa"]
    embedding, remarks = read_pooling(source, config.max_position_embeddings)
    if head is not None or embedding is None:
        return []
    write_embed(new, embedding)
    return remarks


def read_pooling(folder: Path, positions: int) -> tuple[Embedding | None, list[str]]:
    """What a checkpoint says of its vectors, and remarks; None where it is not one of sentence-transformers.

    Args:
        positions: of the encoder, which no text can be longer than.

    Raises:
        UserError: for files that are not what sentence-transformers writes.
    """
    kinds = _modules(folder)
    if kinds is None:
        return None, []
    embedding = Embedding(normalize="Normalize" in kinds)
    remarks = []
    if (folder / SETTINGS).exists():
        settings = read_object(folder / SETTINGS)
        length = settings.get("max_seq_length")
        if length is not None and (type(length) is not int or not 3 <= length <= 1_000_000):
            raise UserError(f"{folder / SETTINGS}: max_seq_length is {show(length)}")
        embedding.max_length = min(length, positions) if length else None
        if settings.get("do_lower_case") is True:
            remarks.append(
                f"warning: {SETTINGS} has do_lower_case true: sentence-transformers lower-cases texts first"
            )
    if "Pooling" in kinds:
        embedding.pool = _pool_of(folder)
        if embedding.pool is None:
            remarks.append(
                "warning: its Pooling is neither mean nor cls alone: embed uses its own default"
            )
    others = sorted(set(kinds) - {"Transformer", "Pooling", "Normalize"})
    if others:
        remarks.append(
            f"warning: embed does not compute its {', '.join(others)}; its vectors will differ"
        )
    remarks.append(f"embed's defaults are those of sentence-transformers: {describe(embedding)}")
    return embedding, remarks


def _modules(folder: Path) -> dict[str, dict] | None:
    """The last part of a module's class -> what modules.json says of it; None where there is no such file."""
    if not (folder / MODULES).exists():
        return None
    modules = read_json(folder / MODULES)
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise UserError(f"{folder / MODULES}: is {show(modules)}, expected a list of modules")
    return {str(module.get("type")).rpartition(".")[2]: module for module in modules}


def pooling_file(folder: Path) -> str | None:
    """The name of the Pooling module's settings, "1_Pooling/config.json" mostly; None where there is no such module."""
    pooling = (_modules(folder) or {}).get("Pooling", {})
    path = str(pooling.get("path"))
    # a path would lead out of the folder
    return f"{path}/config.json" if re.fullmatch(r"[\w-]+", path) else None


def _pool_of(folder: Path) -> str | None:
    """The one kind of pooling that a Pooling module has; None where it has another, or several."""
    name = pooling_file(folder)
    if name is None or not (folder / name).exists():
        return None
    settings = read_object(folder / name)
    named = settings.get("pooling_mode")
    if isinstance(named, str):  # since sentence-transformers 5
        return POOLS.get(named)
    chosen = [
        name.removeprefix("pooling_mode_")
        for name, value in settings.items()
        if name.startswith("pooling_mode_") and value is True
    ]
    return POOLS.get(chosen[0]) if len(chosen) == 1 else None


def describe(embedding: Embedding) -> str:
    """In a few words."""
    parts = [f"pool {json.dumps(embedding.pool)}"]
    if embedding.normalize:
        parts.append("normalised")
    if embedding.max_length:
        parts.append(f"at most {embedding.max_length} tokens")
    return ", ".join(parts)
