"""The files of a model folder, whatever model is in it: read with every doubt settled, written whole or not at all.

    model.safetensors     the tensors, under our names
    config.json           "architecture" (BertConfig), "head", "labels", "provenance" (source, license, sha256 ...)
    vocab.txt, tokenizer.json, tokenizer_config.json
    qa.json               no-answer threshold and window settings, once they are known
    README.md             the model card
"""

import dataclasses
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bertqa.errors import UserError
from bertqa.model.config import BertConfig
from bertqa.model.weight_files import Weights, open_weights, write_safetensors

QA, CLASSES = "question-answering", "sequence-classification"
"""The heads, as config.json names them; null is the encoder alone."""

TOKENIZER_FILES = ("vocab.txt", "tokenizer.json", "tokenizer_config.json")


@contextmanager
def empty() -> Iterator[None]:
    """Modules that are made inside have names and shapes but no memory, and nothing is drawn at random for them."""
    with torch.device("meta"), _NoInit():
        yield


class _NoInit(TorchFunctionMode):
    """Skips torch.nn.init: drawing "random" numbers on the meta device makes torch load its compiler, which takes 3 s."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if getattr(function, "__module__", "") == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return function(*args, **kwargs)


def fill(folder: str | Path, model: nn.Module, device="cpu", dtype: torch.dtype | None = None, prefix: str = "") -> nn.Module:
    """Put the stored tensors in the place of an `empty` model's, each read straight to the device; in eval mode.

    Args:
        dtype: of the parameters; where None, as stored, but 16-bit storage is computed with in float32.
        prefix: what stands before the model's names in the file.
    """
    stored = open_model_weights(folder, model.state_dict(), device, prefix)

    def read(name: str) -> Tensor:
        tensor = stored.get(prefix + name)
        return tensor.to(dtype or (torch.float32 if tensor.dtype.itemsize < 4 else tensor.dtype))

    model.load_state_dict({name: read(name) for name in model.state_dict()}, assign=True)
    model.folder = Path(folder)    # where its tokenizer is, should it be saved
    return model.eval()


def load_as(kind: type[nn.Module], head: str, folder: str | Path, device, dtype) -> nn.Module:
    """`kind.load(folder)`: the model of a folder, which must have that head."""
    config = read_config(folder)
    if config["head"] != head:
        raise UserError(f"{folder}: its head is {config['head']!r}, {kind.__name__} has {head!r}")
    with empty():
        model = kind(BertConfig(**config["architecture"]), *([len(config["labels"])] if head == CLASSES else []))
    return fill(folder, model, device, dtype)


def open_model_weights(folder: str | Path, empty: dict[str, Tensor], device="cpu", prefix: str = "") -> Weights:
    """The weights of a model folder, which must be those of `empty` (all that start with `prefix`).

    Raises:
        UserError: for weights that are not there, or do not fit; tensor by tensor.
    """
    path = Path(folder) / "model.safetensors"
    if not path.exists():
        raise UserError(f"{path} is missing, so this is only half a model folder; convert or copy it again")
    stored = open_weights(path, device)
    found = {name.removeprefix(prefix): shape for name, shape in stored.shapes.items() if name.startswith(prefix)}
    problems = [f"{name} is missing" for name in empty if name not in found]
    problems += [f"{name} is not of this architecture" for name in found if name not in empty]
    problems += [f"{name} has shape {found[name]}, config.json asks for {tuple(tensor.shape)}"
                 for name, tensor in empty.items() if found.get(name, tensor.shape) != tensor.shape]
    if problems:
        raise UserError(f"{path}: does not fit its config.json: " + "; ".join(problems[:8])
                        + (f"; and {len(problems) - 8} more" if len(problems) > 8 else ""))
    return stored


def save(folder: str | Path, model: nn.Module, head: str | None, *, tokenizer_from: str | Path | None = None,
         provenance: dict | None = None, qa: dict | None = None, labels=None, dtype: torch.dtype | None = None,
         card: str | None = None) -> str:
    """Write a model folder, in place of an older one of that name, and return the sha256 of its weights.

    Args:
        tokenizer_from: a model folder whose tokenizer files are copied.
        provenance: source, license, sha256 and whatever else tells where the weights came from, as JSON values.
        qa: contents of qa.json; no such file where None.
        labels: the classes' names in order, for a classification head.
        dtype: to store in (torch.float16 halves the file); as the parameters are where None.
        card: text of README.md; a plain one is written where None.

    A model that was loaded from a folder and is saved without `tokenizer_from` takes what is not given from there.
    """
    if tokenizer_from is None:
        tokenizer_from = getattr(model, "folder", None)
        if tokenizer_from is None:
            raise UserError(f"{folder}: this model was not loaded from a folder, so say where its tokenizer is: "
                            "save(..., tokenizer_from=FOLDER)")
        before = read_config(tokenizer_from)
        provenance, labels = provenance or before.get("provenance"), labels or before.get("labels")
        qa = qa or read_qa(tokenizer_from) or None
    if head == CLASSES:
        labels = list(labels or (f"LABEL_{i}" for i in range(model.num_labels)))
        assert len(labels) == model.num_labels
    state = model.state_dict()
    dtypes = {name: dtype or tensor.dtype for name, tensor in state.items()}
    with staged(folder) as new:
        sha256 = write_safetensors(new / "model.safetensors", dtypes, {n: tuple(t.shape) for n, t in state.items()},
                                   lambda name: state[name].to(dtypes[name]))
        for name in TOKENIZER_FILES:
            if (Path(tokenizer_from) / name).exists():
                shutil.copyfile(Path(tokenizer_from) / name, new / name)
        write_config(new, model.config, head, labels, provenance or {})
        if qa is not None:
            write_qa(new, qa)
        parameters = sum(tensor.numel() for tensor in state.values())
        (new / "README.md").write_text(card or plain_card(model.config, head, parameters, provenance or {}), encoding="utf-8")
    return sha256


def write_config(folder: Path, config: BertConfig, head: str | None, labels, provenance: dict) -> None:
    """Write config.json."""
    record = {"architecture": dataclasses.asdict(config), "head": head}
    if head == CLASSES:
        record["labels"] = list(labels)
    write_json(folder / "config.json", {**record, "provenance": provenance})


def read_config(folder: str | Path) -> dict:
    """config.json of a model folder: "architecture", "head", "labels" (classification), "provenance"; checked.

    Raises:
        UserError: where there is none, or it is not of a model folder of ours.
    """
    folder = Path(folder)
    path = folder / "config.json"
    if not path.exists():
        raise UserError(f"{folder}: {'has no config.json' if folder.is_dir() else 'there is no such folder'}; expected a "
                        "model folder, as training and tools/convert_weights.py write it")
    config = read_json(path)
    if "architecture" not in config and config.keys() & {"model_type", "hidden_size", "dim", "architectures"}:
        raise UserError(f"{folder}: is a Hugging Face folder; convert it first: python tools/convert_weights.py {folder} "
                        f"weights/{folder.resolve().name}")
    shape, head, labels = config.get("architecture"), config.setdefault("head", None), config.get("labels")
    known = {field.name: type(field.default) for field in dataclasses.fields(BertConfig)}
    strange = [f"{name} {value!r}" for name, value in shape.items()
               if not isinstance(value, (float, int) if known.get(name) is float else known.get(name, ()))
               ] if isinstance(shape, dict) else ["it is no object"]
    if strange:
        raise UserError(f"{path}: \"architecture\" does not describe a BERT: {', '.join(strange)}; known are "
                        f"{', '.join(known)}")
    if head not in (None, QA, CLASSES) or head == CLASSES and not (isinstance(labels, list) and labels):
        raise UserError(f"{path}: head is {head!r} with labels {labels!r}; known are null, {QA!r}, and {CLASSES!r} with "
                        "a list of labels")
    return config


def read_qa(folder: str | Path) -> dict:
    """qa.json of a model folder; {} where it has none yet."""
    path = Path(folder) / "qa.json"
    return read_json(path) if path.exists() else {}


def write_qa(folder: str | Path, qa: dict) -> None:
    """Write or replace qa.json."""
    write_json(Path(folder) / "qa.json", qa)


def read_json(path: Path) -> dict:
    """A JSON object from a file. Raises UserError where it is anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file") from None
    except ValueError as error:  # bad JSON or bad UTF-8
        raise UserError(f"{path}: not JSON ({error})") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds a JSON {type(value).__name__}, expected an object")
    return value


def write_json(path: Path, value: dict) -> None:
    """Write a JSON file under a temporary name and rename it."""
    new = path.with_name(path.name + ".tmp")
    new.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(new, path)


@contextmanager
def staged(folder: str | Path) -> Iterator[Path]:
    """A new empty folder beside `folder`, which takes its name (and its place) if the block ends well, or vanishes."""
    folder = Path(folder).resolve()
    new, old = folder.with_name(folder.name + ".tmp"), folder.with_name(folder.name + ".old")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file, expected a folder or a new name")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        yield new
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def plain_card(config: BertConfig, head: str | None, parameters: int, provenance: dict) -> str:
    """A model card that says what is known without having measured anything."""
    lines = [f"- {name}: {value}" for name, value in provenance.items() if value is not None]
    return "\n".join([
        f"# {'DistilBERT' if config.model_type == 'distilbert' else 'BERT'} for {(head or 'any task').replace('-', ' ')}", "",
        f"{parameters:,} parameters: {config.num_hidden_layers} layers, hidden size {config.hidden_size}, "
        f"{config.num_attention_heads} heads, {config.vocab_size:,} tokens, {config.max_position_embeddings} positions",
        "", "Where it came from:", "", *lines, "",
    ])
