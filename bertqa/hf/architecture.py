"""Read a checkpoint's settings: config.json (the encoder's shape, the head, the classes), and how it was used.

The latter are sentence-transformers' files, which become the defaults of `embed`, and the qa.json of an exported model.
"""

import dataclasses
import json
import re
from collections.abc import Collection
from pathlib import Path

from bertqa.errors import UserError, show
from bertqa.files import read_json, read_object
from bertqa.hf.weights import ADAPTER_CONFIG, adapter_message
from bertqa.model.config import CLASSES, QA, BertConfig
from bertqa.model.record import Embedding, read_qa, write_embed, write_qa

CONFIG_FILES = ("config.json", "bert_config.json")
"""The file's name today, and in Google's and the oldest checkpoints."""

# Our config field -> DistilBERT's.
DISTIL_FIELDS = {
    "hidden_size": "dim",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "intermediate_size": "hidden_dim",
    "hidden_act": "activation",
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
}
DISTIL_FIXED = {"type_vocab_size": 0, "layer_norm_eps": 1e-12}
"""Values of every DistilBERT, whatever its config says: transformers' class does not read these fields."""

# Hugging Face's name -> ours.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
}

DECIDED_HERE = ("model_type", "pooler", "position_embedding_type")
"""Our config fields that are not copied from a checkpoint's config."""

UNSUPPORTED_FIELDS = (
    "is_decoder add_cross_attention pruned_heads quantization_config auto_map".split()
)
"""Fields that, if true or not empty, make a model that bertqa does not compute; auto_map names code in the repository."""

LARGEST = 10_000_000
"""The largest size that is accepted from a config.json, so that a hostile one cannot fill the memory."""


def read_hf_config(folder: Path) -> dict:
    """Read config.json of a Hugging Face folder. Raise UserError if there is none, or it is a model folder of bertqa."""
    found = [folder / name for name in CONFIG_FILES if (folder / name).exists()]
    if not found:
        if (folder / ADAPTER_CONFIG).exists():
            raise UserError(adapter_message(folder))
        raise UserError(
            f"{folder}: has no config.json, so the shape of the model is unknown; fetch it too"
        )
    raw = read_object(found[0])
    # our config.json has "architecture", theirs has "architectures"
    if "architecture" in raw and "model_type" not in raw:
        raise UserError(
            f"{folder}: is a model folder of bertqa already; use it as it is, or add --to-hf to export it"
        )
    return raw


def class_name(raw: dict) -> str:
    """Return the first class in "architectures", such as BertForQuestionAnswering; "" if there is none."""
    classes = raw.get("architectures")
    return str(classes[0]) if isinstance(classes, list) and classes else ""


def model_type_of(raw: dict, plain_names: Collection[str]) -> str:
    """Return "bert" or "distilbert", by the config or the plain names of the tensors. Raise UserError for any other."""
    found = raw.get("model_type")
    # Configs of 2018 and 2019 have no model_type: the class decides, or else the tensors' names.
    if not found and class_name(raw):
        stem = re.sub(r"(For|Model|LMHead).*", "", class_name(raw))  # "BertForMaskedLM" -> "Bert"
        known = {"Bert": "bert", "DistilBert": "distilbert"}
        found = known.get(stem, class_name(raw))
    if not found:
        is_distil = any(name.startswith("transformer.layer.") for name in plain_names)
        found = "distilbert" if is_distil else "bert"
    if found not in ("bert", "distilbert"):
        raise UserError(
            f"the architecture is {found}; supported are bert (any size, cased or uncased, MiniLM, TinyBERT, "
            "whole-word masking, multilingual) and distilbert"
        )
    return found


def architecture_of(raw: dict, plain_names: Collection[str], head: str | None) -> BertConfig:
    """Make our config of Hugging Face's. Fields that it lacks get transformers' defaults, which are BertConfig's too.

    Raises:
        UserError: for an architecture, activation or variant that bertqa does not compute.
    """
    model_type = model_type_of(raw, plain_names)
    is_distil = model_type == "distilbert"
    fields = {field.name: field.default for field in dataclasses.fields(BertConfig)}
    if is_distil:
        fields["num_hidden_layers"] = 6  # DistilBERT's default
    for name, default in fields.items():
        if name not in DECIDED_HERE:
            fields[name] = _config_value(raw, name, default, is_distil)
    if is_distil:
        fields.update(DISTIL_FIXED)
    _refuse_variants(raw, fields["hidden_act"], model_type)
    # A layer has tensors of its own, so a config with more layers than tensors is damaged or hostile.
    if fields["num_hidden_layers"] > len(plain_names):
        raise UserError(
            f"config.json: asks for {fields['num_hidden_layers']} layers, but there are only "
            f"{len(plain_names)} tensors in all"
        )
    fields["hidden_act"] = ACTIVATIONS[fields["hidden_act"]]
    fields["model_type"] = model_type
    # BERT's class head takes the pooler's output, the span head does not; without a head the encoder keeps its pooler.
    keeps_pooler = head is None and "pooler.dense.weight" in plain_names
    fields["pooler"] = not is_distil and (head == CLASSES or keeps_pooler)
    return BertConfig(**fields)


def _config_value(raw: dict, name: str, default: object, is_distil: bool) -> object:
    """Return a config's value for our field `name`, checked; the default if it has none."""
    theirs = DISTIL_FIELDS.get(name, name) if is_distil else name
    # transformers also accepts the common names: some DistilBERT configs have hidden_size in place of dim.
    value = raw.get(theirs, raw.get(name))
    if value is None:
        return default
    kind = (int, float) if isinstance(default, float) else type(default)
    fits = isinstance(value, kind) and not isinstance(value, bool)
    if fits and kind is int:
        fits = 0 <= value <= LARGEST
    if not fits:
        raise UserError(f"config.json: {theirs} is {value!r}, expected something like {default!r}")
    return value


def _refuse_variants(raw: dict, activation: str, model_type: str) -> None:
    """Raise UserError for a variant of the architecture that bertqa does not compute."""
    problems = [f"{name} is {raw[name]!r}" for name in UNSUPPORTED_FIELDS if raw.get(name)]
    positions = raw.get("position_embedding_type", "absolute")
    if positions != "absolute":
        problems.append(f"position_embedding_type is {positions!r} (supported: 'absolute')")
    if activation not in ACTIVATIONS:
        field = "activation" if model_type == "distilbert" else "hidden_act"
        problems.append(f"{field} is {activation!r} (supported: {', '.join(ACTIVATIONS)})")
    if problems:
        raise UserError(
            f"config.json: this {model_type} is of a kind that bertqa does not compute: {'; '.join(problems)}"
        )


# The head


def find_head(raw: dict, plain_names: Collection[str]) -> str | None:
    """Return a checkpoint's head, None if it has none. Raise UserError for token classification and multiple choice."""
    named = class_name(raw)
    has_span = any(name.startswith("qa_outputs.") for name in plain_names)
    if has_span or named.endswith("ForQuestionAnswering"):
        return QA
    has_classes = any(name.startswith("classifier.") for name in plain_names)
    if not has_classes and not named.endswith("ForSequenceClassification"):
        return None
    # the tensors of these heads have the same names as a classification head's
    if named.endswith(("ForTokenClassification", "ForMultipleChoice")):
        raise UserError(
            f"its head is {named}, which bertqa does not have; --fresh-head takes the encoder and draws a "
            "new question-answering head"
        )
    return CLASSES


def class_labels(raw: dict, count: int | None) -> list[str]:
    """Return the names of the classes in order: the config's, or else LABEL_0, LABEL_1 ... for `count` classes."""
    named = raw.get("id2label")
    if not isinstance(named, dict) or not named or not all(str(key).isdecimal() for key in named):
        return [f"LABEL_{i}" for i in range(count or 2)]
    numbers = sorted(named, key=int)  # JSON keys are text, and as text "10" sorts before "2"
    labels = [str(named[number]) for number in numbers]
    if list(map(int, numbers)) != list(range(len(numbers))) or len(set(labels)) < len(labels):
        raise UserError(
            f"config.json: id2label is {show(named)}; it must number the classes from 0 on, each with a name of its own"
        )
    return labels


def refuse_other_losses(raw: dict, labels: list[str]) -> None:
    """Raise UserError for a classification head whose outputs are not logits of a softmax over the classes."""
    kind = raw.get("problem_type")
    if kind not in (None, "single_label_classification"):
        found = f"is for {str(kind).replace('_', ' ')}"
    elif len(labels) == 1:
        found = "has one output (a regression, or a cross-encoder's score)"
    else:
        return
    raise UserError(
        f"its head {found}, and bertqa's are classes of which one is right (a softmax): its numbers "
        "would be wrong here; --fresh-head takes the encoder and draws a new question-answering head"
    )


# How the checkpoint was used

POOLS = {"mean": "mean", "mean_tokens": "mean", "cls": "cls", "cls_token": "cls"}
"""Name in sentence-transformers' Pooling module -> name in `embed --pool`."""


def take_settings(
    source: Path, new: Path, config: BertConfig, head: str | None, fresh_head
) -> list[str]:
    """Write qa.json or embed.json into the folder `new` if `source` has such settings. Return remarks for the report."""
    if head == QA and fresh_head is None and (source / "qa.json").exists():
        write_qa(new, read_qa(source))
        return ["qa.json taken over: the threshold and windows that its maker tuned with bertqa"]
    modules = _modules(source)
    if modules is None or head is not None:
        return []
    remarks: list[str] = []
    write_embed(new, _embedding_of(source, modules, config.max_position_embeddings, remarks))
    return remarks


def _embedding_of(folder: Path, modules: dict, positions: int, remarks: list[str]) -> Embedding:
    """Return how sentence-transformers makes a vector with these modules; add to the remarks for the report."""
    embedding = Embedding(normalize="Normalize" in modules)
    path = folder / "sentence_bert_config.json"
    settings = read_object(path) if path.exists() else {}
    length = settings.get("max_seq_length")
    if length is not None and (type(length) is not int or not 3 <= length <= 1_000_000):
        raise UserError(f"{path}: max_seq_length is {show(length)}")
    if length:
        embedding.max_length = min(length, positions)
    if settings.get("do_lower_case") is True:
        remarks.append(
            f"warning: {path.name} has do_lower_case true: sentence-transformers lower-cases texts first"
        )
    if "Pooling" in modules:
        embedding.pool = _pool_of(folder)
        if embedding.pool is None:
            remarks.append(
                "warning: its Pooling is neither mean nor cls alone: embed uses its own default"
            )
    # A Dense module, say: a warning is enough, because the encoder is of use without it.
    others = sorted(set(modules) - {"Transformer", "Pooling", "Normalize"})
    if others:
        remarks.append(
            f"warning: embed does not compute its {', '.join(others)}; its vectors will differ"
        )
    parts = [f"pool {json.dumps(embedding.pool)}"]
    if embedding.normalize:
        parts.append("normalised")
    if embedding.max_length:
        parts.append(f"at most {embedding.max_length} tokens")
    remarks.append(f"embed's defaults are those of sentence-transformers: {', '.join(parts)}")
    return embedding


def _modules(folder: Path) -> dict[str, dict] | None:
    """Read modules.json: name of a module's class, such as Pooling -> its entry. Return None if there is no such file."""
    path = folder / "modules.json"
    if not path.exists():
        return None
    modules = read_json(path)
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise UserError(f"{path}: is {show(modules)}, expected a list of modules")
    return {str(module.get("type")).rpartition(".")[2]: module for module in modules}


def pooling_file(folder: Path) -> str | None:
    """Return the file of the Pooling module's settings, mostly "1_Pooling/config.json"; None if there is no such module."""
    pooling = (_modules(folder) or {}).get("Pooling", {})
    path = str(pooling.get("path"))
    # no deeper path, which could lead out of the folder
    return f"{path}/config.json" if re.fullmatch(r"[\w-]+", path) else None


def _pool_of(folder: Path) -> str | None:
    """Return "mean" or "cls" if the Pooling module does just that; None if it does something else, or several things."""
    name = pooling_file(folder)
    if name is None or not (folder / name).exists():
        return None
    settings = read_object(folder / name)
    named = settings.get("pooling_mode")
    if isinstance(named, str):  # since sentence-transformers 5
        return POOLS.get(named)
    prefix = "pooling_mode_"
    chosen = [mode for mode, on in settings.items() if on is True and mode.startswith(prefix)]
    if len(chosen) != 1:
        return None
    return POOLS.get(chosen[0].removeprefix(prefix))
