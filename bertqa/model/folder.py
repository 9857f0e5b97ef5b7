"""Model folders: load one as the module it describes; save a module as one, atomically.

model.safetensors     the tensors, under our names
config.json           "architecture" (BertConfig), "head", "labels", "provenance" (source, license, sha256 ...), and
                      "attention" and "model" for models with code of the user's (build.py)
vocab.txt, tokenizer.json, tokenizer_config.json
qa.json               no-answer threshold, calibration and window settings
embed.json            pooling and normalisation of sentence vectors, if the encoder's maker has specified them
int8_ranges.safetensors   ranges of the activations, if they were measured for int8 (ranges.py)
README.md             the model card
checksums.json        sha256 of these files, to detect damage
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
from bertqa.model.encoder import BertEncoder, encoder_of
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
    """Return the model in a folder, in eval mode: a BertEncoder, or one with the head that config.json names.

    Args:
        attention: your own attention, as for BertEncoder; required if the model was trained with it.
        device: where to put the tensors, directly from the file.
        dtype: type of the parameters; None: as stored, but 16-bit weights become float32.

    Raises:
        UserError: if this is no model folder, if its weights are damaged or do not fit its config, or if the model needs
            your own attention or your own class (for which there is `load_into`).
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
    """Return the encoder of a folder without its head, in eval mode; see `load`."""
    config = read_config(folder)
    refuse_own_attention(config, Path(folder), attention)
    # A class of the user's is fine here: its encoder is a BertEncoder.
    encoder = build_empty({**config, "head": None}, attention)
    return _fill(folder, encoder, device, dtype, _encoder_prefix(config))


def load_into(model: nn.Module, folder: str | Path) -> list[str]:
    """Copy the tensors of a folder into a model that you have built, by name; its device and dtype stay.

    For models with additional parameters (a head, adapters). A BertEncoder takes the encoder of any folder.

    Returns:
        The names of the model's tensors that the folder does not have. They are left as they are (a new head, say).

    Raises:
        UserError: if the model lacks a tensor of the folder, or has it in another shape.
    """
    config = read_config(folder)
    encoder = encoder_of(model)
    refuse_own_attention(config, Path(folder), encoder.attention)
    prefix = _encoder_prefix(config) if encoder is model else ""
    stored = _open_weights(folder, "cpu")
    state = model.state_dict()
    found = []
    problems = []
    for full_name, shape in stored.shapes.items():
        # A bare encoder leaves out the folder's head; a model without a pooler, the pooler.
        is_unused_pooler = encoder.pooler is None and "pooler." in full_name
        if is_unused_pooler or not full_name.startswith(prefix):
            continue
        name = full_name.removeprefix(prefix)
        found.append(name)
        if name not in state:
            problems.append(f"{name} has no place in this {type(model).__name__}")
        elif state[name].shape != shape:
            problems.append(f"{name} has shape {shape}, the model {tuple(state[name].shape)}")
    if problems:
        raise UserError(f"{folder}: does not fit the model: {listed(problems)}")
    # Everything is checked before the first tensor is copied, so that no error leaves the model half filled.
    with disk.checked(folder):
        check_tokenizer(folder, encoder.config.vocab_size)
    with torch.no_grad():
        for name in found:
            state[name].copy_(stored.get(prefix + name))
    model.folder = Path(folder)
    return [name for name in state if name not in found]


def _encoder_prefix(config: dict) -> str:
    """Return the prefix of the encoder's tensor names in a folder's weights."""
    is_encoder = config["head"] is None and config.get("model") in (None, "BertEncoder")
    return "" if is_encoder else "encoder."


def _fill(
    folder: str | Path, model: nn.Module, device, dtype: torch.dtype | None, prefix: str = ""
) -> nn.Module:
    """Give a model on the meta device its tensors from a folder, where their names start with `prefix`."""
    names = model.state_dict()
    stored = open_model_weights(folder, names, device, prefix)
    tensors = {}
    with disk.checked(folder):
        check_tokenizer(folder, encoder_of(model).config.vocab_size)
        for name in names:
            tensor = stored.get(prefix + name)  # directly onto the device
            # 16 bits are for storage only: matrix products in them would differ from those of training.
            at_least = torch.promote_types(tensor.dtype, torch.float32)
            tensors[name] = tensor.to(dtype or at_least)
    model.load_state_dict(tensors, assign=True)
    model.folder = Path(folder)  # `save` copies the tokenizer from there
    return model.eval()


def open_model_weights(
    folder: str | Path, wanted: dict[str, Tensor], device="cpu", prefix: str = ""
) -> disk.Weights:
    """Open the weights of a model folder and check that those whose names start with `prefix` are the `wanted` ones.

    Raises:
        UserError: if the file is missing, or naming the tensors that are missing, unexpected or of another shape.
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
    """Write a model folder, replacing an older one of that name, and return the sha256 of its weights.

    Args:
        tokenizer_from: a folder whose tokenizer files are copied; None: the folder that the model was loaded from. If it
            has the same head, then provenance, qa and labels that are None are taken from there too.
        provenance: where the weights come from: source, license, sha256 and so on, as JSON values.
        qa: contents of qa.json.
        labels: names of the classes in order, for a classification head.
        dtype: type to store the weights in (torch.float16 halves the file); None: that of the parameters.
        card: text of README.md; None: a plain one is written.

    Raises:
        UserError: if the folder could not be loaded again: the config does not describe the model, the number of labels
            is not that of the classes, or the tokenizer does not fit the word embedding.
    """
    # Raise every error before anything is written.
    head = head_of(model)
    source = _source_of(model, folder, tokenizer_from)
    inherited = read_config(source) if (source / "config.json").exists() else {}
    if inherited.get("head") != head:
        inherited = {}
    if provenance is None:
        provenance = inherited.get("provenance", {})
    if labels is None:
        labels = inherited.get("labels")
    if qa is None and inherited:
        qa = read_qa(source) or None
    labels = _labels_of(model, head, labels)
    record = config_record(model, head, labels, provenance)
    config = encoder_of(model).config
    check_tokenizer(source, config.vocab_size)
    with staged(folder) as new:
        sha256 = _write_weights(new / disk.WEIGHTS, model, dtype)
        write_json(new / "config.json", record)
        parameters = sum(tensor.numel() for tensor in model.state_dict().values())
        write_text(new / "README.md", card or plain_card(config, head, parameters, provenance))
        if qa is not None:
            write_qa(new, qa)
        for name in _files_to_copy(source, model, sha256):
            shutil.copyfile(source / name, new / name)
        disk.write_checksums(new, {disk.WEIGHTS: sha256})  # last: of all files above
    return sha256


def _write_weights(path: Path, model: nn.Module, dtype: torch.dtype | None) -> str:
    """Write a model's tensors in this dtype, or their own; return the sha256 of the file."""
    state = model.state_dict()
    plan = {}
    for name, tensor in state.items():
        plan[name] = torch.empty_like(tensor, dtype=dtype or tensor.dtype, device="meta")
    return disk.write_safetensors(path, plan, lambda name: state[name].to(plan[name].dtype))


def copy(source: str | Path, folder: str | Path, qa: dict) -> None:
    """Write a model folder with the files of another, but with this qa.json and without a run's training state."""
    source = Path(source)
    with staged(folder) as new:
        for path in source.iterdir():
            if path.is_file() and path.name not in (disk.CHECKSUMS, "qa.json", "state.pt"):
                shutil.copyfile(path, new / path.name)
        write_qa(new, qa)
        disk.write_checksums(new)


def _source_of(model: nn.Module, folder: str | Path, tokenizer_from: str | Path | None) -> Path:
    """Return the folder whose tokenizer is saved with a model."""
    source = tokenizer_from or getattr(model, "folder", None)
    if source is None:
        raise UserError(
            f"{folder}: this model was not loaded from a folder, so say where its tokenizer is: "
            "save(..., tokenizer_from=FOLDER)"
        )
    return Path(source)


def _files_to_copy(source: Path, model: nn.Module, sha256: str) -> list[str]:
    """Return the files of the source folder that a model is saved with; `sha256` is that of the saved weights."""
    names = [*TOKENIZER_FILES]
    if isinstance(model, BertEncoder):
        names.append(EMBEDDING)
    # Ranges are valid only for the weights that they were measured with.
    if weights_of_ranges(source) == sha256:
        names.append(RANGES)
    return [name for name in names if (source / name).exists()]


def _labels_of(model: nn.Module, head: str | None, labels) -> list[str] | None:
    """Return the names of a model's classes, None for a model without classes. Raises UserError if they do not fit."""
    if head == QA or isinstance(model, BertEncoder):
        if labels:
            raise UserError(
                f"labels {list(labels)} are of no use: {type(model).__name__} has no classes"
            )
        return None
    if head is None:
        return list(labels) if labels else None  # a head of the user's may use them
    labels = list(labels or (f"LABEL_{i}" for i in range(model.num_labels)))
    if len(labels) != model.num_labels:
        raise UserError(f"{len(labels)} labels for a model of {model.num_labels} classes: {labels}")
    return labels
