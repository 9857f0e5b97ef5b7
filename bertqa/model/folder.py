"""A model on disk: load a folder as the module it describes, save a module as a folder, whole or not at all.

model.safetensors     the tensors, under our names
config.json           "architecture" (BertConfig), "head", "labels", "provenance" (source, license, sha256 ...), and
                      "attention" and "model" of models of one's own (build.py)
vocab.txt, tokenizer.json, tokenizer_config.json
qa.json               no-answer threshold and window settings, once they are known
embed.json            how the encoder's maker pools its vectors, where that is known
int8_ranges.safetensors   how far the inputs of its products reach, where that was measured (ranges.py)
README.md             the model card
checksums.json        sha256 of these files, by which a flipped bit is noticed
"""

import shutil
from pathlib import Path

import torch
from torch import Tensor, nn

from bertqa.errors import UserError
from bertqa.files import write_json, write_text
from bertqa.folders import staged
from bertqa.model import disk
from bertqa.model.build import (
    build,
    build_empty,
    config_record,
    differences,
    head_of,
    listed,
    refuse_own_attention,
    refuse_own_model,
)
from bertqa.model.card import plain_card
from bertqa.model.encoder import BertEncoder
from bertqa.model.ranges import weights_of_ranges
from bertqa.model.record import (
    CLASSES,
    EMBEDDING,
    QA,
    RANGES,
    read_config,
    read_qa,
    write_qa,
)
from bertqa.model.vocabulary import check_tokenizer

__all__ = ["CLASSES", "QA", "build", "load", "load_encoder", "load_into", "save"]

TOKENIZER_FILES = ("vocab.txt", "tokenizer.json", "tokenizer_config.json")


def load(
    folder: str | Path,
    *,
    attention=None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """The model of a folder, in eval mode: a BertEncoder, or the encoder with the head that config.json names.

    Args:
        attention: of your own, as BertEncoder's; needed where the model was trained with it.
        device: where the tensors go, straight from the file.
        dtype: of the parameters; where None, as stored, but 16-bit storage is computed with in float32.

    Raises:
        UserError: for a folder that is not a model folder, whose weights do not fit its config, that was trained with
            attention of its own, or that holds a model of one's own (`load_into` loads that).
    """
    config = read_config(folder)
    refuse_own_model(config, Path(folder))
    refuse_own_attention(config, Path(folder), attention)
    return _fill(folder, build_empty(config, attention), device, dtype)


def load_encoder(
    folder: str | Path,
    *,
    attention=None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> BertEncoder:
    """The encoder alone, in eval mode, whatever head the folder has; see `load`."""
    config = read_config(folder)
    refuse_own_attention(config, Path(folder), attention)
    # a model of one's own is no matter here, as long as its encoder is ours
    encoder = build_empty({**config, "head": None}, attention)
    return _fill(folder, encoder, device, dtype, _encoder_prefix(config))


def load_into(model: nn.Module, folder: str | Path) -> list[str]:
    """Put the tensors of a folder into a model that you built yourself, by name; its device and dtype stay.

    For models with parameters of their own: a head, adapters. A BertEncoder takes the encoder of any folder.

    Returns:
        The names of the model's tensors that the folder does not have; they stay as they are (a new head, for example).

    Raises:
        UserError: for a tensor that the model has no place for, or of another shape.
    """
    config = read_config(folder)
    encoder = getattr(model, "encoder", model)
    refuse_own_attention(config, Path(folder), encoder.attention)
    prefix = _encoder_prefix(config) if encoder is model else ""
    stored = _open_weights(folder, "cpu")
    state = model.state_dict()
    found = []
    problems = []
    for full_name, shape in stored.shapes.items():
        name = full_name.removeprefix(prefix)
        # heads of the folder, where only an encoder is filled
        unused_pooler = encoder.pooler is None and "pooler." in name  # as for question answering
        if unused_pooler or not full_name.startswith(prefix):
            continue
        found.append(name)
        if name not in state:
            problems.append(f"{name} has no place in this {type(model).__name__}")
        elif state[name].shape != shape:
            problems.append(f"{name} has shape {shape}, the model {tuple(state[name].shape)}")
    if problems:
        raise UserError(f"{folder}: does not fit the model: {listed(problems)}")
    # All of it before the first tensor: a model that is half filled would be neither the old one nor the new.
    with disk.checked(folder):
        check_tokenizer(folder, encoder.config.vocab_size)
    with torch.no_grad():
        for name in found:
            state[name].copy_(stored.get(prefix + name))
    model.folder = Path(folder)
    return [name for name in state if name not in found]


def _encoder_prefix(config: dict) -> str:
    """What stands before the encoder's names in the file of a folder."""
    is_encoder = config["head"] is None and config.get("model") in (None, "BertEncoder")
    return "" if is_encoder else "encoder."


def _fill(
    folder: str | Path, model: nn.Module, device, dtype: torch.dtype | None, prefix: str = ""
) -> nn.Module:
    """Put the stored tensors in the place of an `empty` model's; `prefix` stands before its names in the file."""
    names = model.state_dict()
    stored = open_model_weights(folder, names, device, prefix)
    tensors = {}
    with disk.checked(folder):
        check_tokenizer(folder, getattr(model, "encoder", model).config.vocab_size)
        for name in names:
            tensor = stored.get(prefix + name)  # straight to the device
            # 16 bits are for storing: products of them would differ from those of the model that was trained
            at_least = torch.promote_types(tensor.dtype, torch.float32)
            tensors[name] = tensor.to(dtype or at_least)
    model.load_state_dict(tensors, assign=True)
    model.folder = Path(folder)  # where its tokenizer is, should it be saved
    return model.eval()


def open_model_weights(
    folder: str | Path, wanted: dict[str, Tensor], device="cpu", prefix: str = ""
) -> disk.Weights:
    """The weights of a model folder, of which those that start with `prefix` must be the `wanted` ones, no more, no less.

    Raises:
        UserError: for weights that are not there, or do not fit; tensor by tensor.
    """
    stored = _open_weights(folder, device)
    found = {}
    for name, shape in stored.shapes.items():
        if name.startswith(prefix):
            found[name.removeprefix(prefix)] = shape
    problems = differences(wanted, found, "config.json asks for")
    problems += [f"{name} is not of this architecture" for name in found if name not in wanted]
    if problems:
        raise UserError(
            f"{Path(folder) / disk.WEIGHTS}: does not fit its config.json: {listed(problems)}"
        )
    return stored


def _open_weights(folder: str | Path, device) -> disk.Weights:
    path = Path(folder) / disk.WEIGHTS
    if not path.exists():
        raise UserError(
            f"{path} is missing, so this is only half a model folder; convert or copy it again"
        )
    return disk.open_safetensors(path, device)


def save(
    folder: str | Path,
    model: nn.Module,
    *,
    tokenizer_from: str | Path | None = None,
    provenance: dict | None = None,
    qa: dict | None = None,
    labels=None,
    dtype: torch.dtype | None = None,
    card: str | None = None,
) -> str:
    """Write a model folder, in place of an older one of that name, and return the sha256 of its weights.

    Args:
        tokenizer_from: a model folder whose tokenizer files are copied.
        provenance: source, license, sha256 and whatever else tells where the weights came from, as JSON values.
        qa: contents of qa.json; no such file where None.
        labels: the classes' names in order, for a classification head.
        dtype: to store in (torch.float16 halves the file); as the parameters are where None.
        card: text of README.md; a plain one is written where None.

    A model that was loaded from a folder and is saved without `tokenizer_from` takes what is not given from there. What is
    not given is also taken from `tokenizer_from`, where that is a model folder with the same head.

    Raises:
        UserError: for what could not be loaded again: a model that its config does not describe, labels that are not as many
            as its classes, or that have no use, a tokenizer that does not fit the word embedding.
    """
    # All that can be refused is, before anything is written.
    head = head_of(model)
    source = _source_of(model, folder, tokenizer_from)
    before = _same_kind(source, head)
    provenance = before.get("provenance", {}) if provenance is None else provenance
    labels = _labels_of(model, head, before.get("labels") if labels is None else labels)
    if qa is None and before:
        qa = read_qa(source) or None
    record = config_record(model, head, labels, provenance)
    config = getattr(model, "encoder", model).config
    check_tokenizer(source, config.vocab_size)
    copied = [*TOKENIZER_FILES]
    if isinstance(model, BertEncoder):
        copied.append(EMBEDDING)
    with staged(folder) as new:
        sha256 = _write_weights(new / disk.WEIGHTS, model, dtype)
        write_json(new / "config.json", record)
        parameters = sum(tensor.numel() for tensor in model.state_dict().values())
        write_text(new / "README.md", card or plain_card(config, head, parameters, provenance))
        if qa is not None:
            write_qa(new, qa)
        if weights_of_ranges(source) == sha256:
            copied.append(RANGES)  # of other weights they would be wrong
        for name in copied:
            if (source / name).exists():
                shutil.copyfile(source / name, new / name)
        disk.write_checksums(new, {disk.WEIGHTS: sha256})  # of all that stands there now
    return sha256


def _write_weights(path: Path, model: nn.Module, dtype: torch.dtype | None) -> str:
    """Write a model's tensors, in this type or as they are; returns the sha256 of the file."""
    state = model.state_dict()
    plan = {}
    for name, tensor in state.items():
        plan[name] = torch.empty_like(tensor, dtype=dtype or tensor.dtype, device="meta")
    return disk.write_safetensors(path, plan, lambda name: state[name].to(plan[name].dtype))


def copy(source: str | Path, folder: str | Path, qa: dict) -> None:
    """Write a model folder with the files of another, but for its qa.json, and for what a run left beside them."""
    source = Path(source)
    with staged(folder) as new:
        for path in source.iterdir():
            if path.is_file() and path.name not in (disk.CHECKSUMS, "qa.json", "state.pt"):
                shutil.copyfile(path, new / path.name)
        write_qa(new, qa)
        disk.write_checksums(new)


def _source_of(model: nn.Module, folder: str | Path, tokenizer_from: str | Path | None) -> Path:
    """The folder whose tokenizer a model is saved with."""
    source = tokenizer_from or getattr(model, "folder", None)
    if source is None:
        raise UserError(
            f"{folder}: this model was not loaded from a folder, so say where its tokenizer is: "
            "save(..., tokenizer_from=FOLDER)"
        )
    return Path(source)


def _same_kind(source: Path, head: str | None) -> dict:
    """config.json of the folder that a model comes from; {} where it is of another head, or no model folder."""
    if not (source / "config.json").exists():
        return {}
    before = read_config(source)
    return before if before["head"] == head else {}


def _labels_of(model: nn.Module, head: str | None, labels) -> list[str] | None:
    """The names of a model's classes, checked."""
    if head == QA or isinstance(model, BertEncoder):
        if labels:
            raise UserError(
                f"labels {list(labels)} are of no use: {type(model).__name__} has no classes"
            )
        return None
    if head is None:
        return list(labels) if labels else None  # a head of one's own knows what they are
    labels = list(labels or (f"LABEL_{i}" for i in range(model.num_labels)))
    if len(labels) != model.num_labels:
        raise UserError(f"{len(labels)} labels for a model of {model.num_labels} classes: {labels}")
    return labels
