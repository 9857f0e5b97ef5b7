"""config.json of Hugging Face, read and written: the shape of the encoder, the head, and the names of classes."""

import dataclasses
import re
from collections.abc import Collection
from pathlib import Path

from bertqa.errors import UserError
from bertqa.files import read_object, show
from bertqa.hf.hub import CONFIG_FILES
from bertqa.hf.weights import ADAPTER_CONFIG, adapter
from bertqa.model.config import BertConfig
from bertqa.model.record import CLASSES, QA

# Our config fields that DistilBERT calls otherwise, and what its configs may leave out.
DISTIL_FIELDS = {
    "hidden_size": "dim",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "intermediate_size": "hidden_dim",
    "hidden_act": "activation",
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
}
DISTIL_LAYERS = 6
DISTIL_FIXED = {"type_vocab_size": 0, "layer_norm_eps": 1e-12}
"""What every DistilBERT has, whatever its config says: transformers' class does not read these."""

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
}
EXPORTED_ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_new", "relu": "relu"}

DECIDED_HERE = ("model_type", "pooler", "position_embedding_type")
"""Fields of ours that are not taken as a config states them."""

OTHER_KINDS = (
    "is_decoder",
    "add_cross_attention",
    "pruned_heads",
    "quantization_config",
    "auto_map",
)
"""Fields that, where true, make another model of it than the one that bertqa computes; the last names code of its own."""

LARGEST = 10_000_000
"""No size in a config.json is larger than this; a hostile one must not make us build it."""

CLASS_ENDINGS = {QA: "ForQuestionAnswering", CLASSES: "ForSequenceClassification", None: "Model"}


def read_hf_config(folder: Path) -> dict:
    """config.json of a Hugging Face folder."""
    found = [folder / name for name in CONFIG_FILES if (folder / name).exists()]
    if not found:
        if (folder / ADAPTER_CONFIG).exists():
            raise UserError(adapter(folder))
        raise UserError(
            f"{folder}: has no config.json, so the shape of the model is unknown; fetch it too"
        )
    raw = read_object(found[0])
    if "architecture" in raw and "model_type" not in raw:
        raise UserError(
            f"{folder}: is a model folder of bertqa already; use it as it is, or add --to-hf to export it"
        )
    return raw


def class_name(raw: dict) -> str:
    """The class of transformers that a config names first; "" where it names none."""
    classes = raw.get("architectures")
    if isinstance(classes, list) and classes:
        return str(classes[0])
    return ""


def model_type_of(raw: dict, plain_names: Collection[str]) -> str:
    """ "bert" or "distilbert". Configs of 2018 and 2019 have no model_type: then the class they name or the tensors decide.

    Raises:
        UserError: for any other architecture, by name.
    """
    found = raw.get("model_type")
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
    """Our config from Hugging Face's; what it leaves out had these defaults when it was written.

    Raises:
        UserError: for an architecture, activation or variant that the encoder does not compute, by name.
    """
    model_type = model_type_of(raw, plain_names)
    distil = model_type == "distilbert"
    fields = {field.name: field.default for field in dataclasses.fields(BertConfig)}
    if distil:
        fields["num_hidden_layers"] = DISTIL_LAYERS
    for name, default in fields.items():
        if name not in DECIDED_HERE:
            fields[name] = _stated(raw, name, default, distil)
    if distil:
        fields.update(DISTIL_FIXED)
    _refuse_other_kinds(raw, fields["hidden_act"], model_type)
    if fields["num_hidden_layers"] > len(plain_names):
        raise UserError(
            f"config.json: asks for {fields['num_hidden_layers']} layers, but there are only "
            f"{len(plain_names)} tensors in all"
        )
    fields["hidden_act"] = ACTIVATIONS[fields["hidden_act"]]
    fields["model_type"] = model_type
    fields["pooler"] = not distil and _wants_pooler(head, plain_names)
    return BertConfig(**fields)


def _stated(raw: dict, name: str, default: object, distil: bool) -> object:
    """What a config says of a field of ours, checked; the default where it says nothing."""
    theirs = DISTIL_FIELDS.get(name, name) if distil else name
    # transformers also answers to the common names, so some DistilBERT configs have hidden_size for dim.
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


def _wants_pooler(head: str | None, plain_names: Collection[str]) -> bool:
    """Whether our BERT with this head has the dense layer over [CLS]."""
    if head == CLASSES:
        return True
    return head is None and "pooler.dense.weight" in plain_names


def _refuse_other_kinds(raw: dict, activation: str, model_type: str) -> None:
    refuse = [f"{name} is {raw[name]!r}" for name in OTHER_KINDS if raw.get(name)]
    positions = raw.get("position_embedding_type", "absolute")
    if positions != "absolute":
        refuse.append(f"position_embedding_type is {positions!r} (supported: 'absolute')")
    if activation not in ACTIVATIONS:
        field = "activation" if model_type == "distilbert" else "hidden_act"
        refuse.append(f"{field} is {activation!r} (supported: {', '.join(ACTIVATIONS)})")
    if refuse:
        raise UserError(
            f"config.json: this {model_type} is of a kind that bertqa does not compute: {'; '.join(refuse)}"
        )


def find_head(raw: dict, plain_names: Collection[str]) -> str | None:
    """The head that a checkpoint brings.

    Raises:
        UserError: for a head over single tokens or choices, whose tensors are named like a classification head's.
    """
    named = class_name(raw)
    has_span = any(name.startswith("qa_outputs.") for name in plain_names)
    if has_span or named.endswith("ForQuestionAnswering"):
        return QA
    has_classes = any(name.startswith("classifier.") for name in plain_names)
    if not has_classes and not named.endswith("ForSequenceClassification"):
        return None
    if named.endswith(("ForTokenClassification", "ForMultipleChoice")):
        raise UserError(
            f"its head is {named}, which bertqa does not have; --fresh-head takes the encoder and draws a "
            "new question-answering head"
        )
    return CLASSES


def class_labels(raw: dict, count: int | None) -> list[str]:
    """Names of the classes in order: the config's, or LABEL_0 and so on for `count` rows of the classifier."""
    named = raw.get("id2label")
    if not isinstance(named, dict) or not all(str(key).isdecimal() for key in named):
        named = {}
    if not named:
        return [f"LABEL_{i}" for i in range(count or 2)]
    numbers = sorted(named, key=int)
    labels = [str(named[number]) for number in numbers]
    if list(map(int, numbers)) != list(range(len(numbers))) or len(set(labels)) < len(labels):
        raise UserError(
            f"config.json: id2label is {show(named)}; it must number the classes from 0 on, each with a name of its own"
        )
    return labels


def refuse_other_losses(raw: dict, labels: list[str]) -> None:
    """Raise UserError, by name, for a classification head whose outputs are not the classes of a softmax."""
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


def write_architecture(
    config: BertConfig, head: str | None, labels: list[str] | None, dtype: str, pad_id: int
) -> dict:
    """The config.json that transformers reads, for a config that it can express (`refuse_inexpressible`)."""
    distil = config.model_type == "distilbert"
    fields = dataclasses.asdict(config)
    fields["hidden_act"] = EXPORTED_ACTIVATIONS[config.hidden_act]
    del fields["pooler"]
    del fields["model_type"]
    if distil:
        for name in (*DISTIL_FIXED, "position_embedding_type"):
            del fields[name]
        fields = {DISTIL_FIELDS.get(name, name): value for name, value in fields.items()}
        fields["sinusoidal_pos_embds"] = False
    if head == CLASSES:
        fields["id2label"] = {str(i): name for i, name in enumerate(labels)}
        fields["label2id"] = {name: i for i, name in enumerate(labels)}
    stem = "DistilBert" if distil else "Bert"
    return {
        "architectures": [stem + CLASS_ENDINGS[head]],
        "model_type": config.model_type,
        **fields,
        "pad_token_id": pad_id,
        # transformers opens all of a model in one type; of two, the wide one loses nothing
        "torch_dtype": "float32" if " " in dtype else dtype,
    }


def refuse_inexpressible(config: BertConfig) -> None:
    """Raise UserError for a shape that Hugging Face's classes do not have."""
    fixed = DISTIL_FIXED if config.model_type == "distilbert" else {}
    fixed = {**fixed, "position_embedding_type": "absolute"}
    wrong = [name for name, value in fixed.items() if getattr(config, name) != value]
    if config.model_type == "bert" and config.type_vocab_size == 0:
        wrong.append("type_vocab_size")
    if wrong:
        listed = ", ".join(f"{name} {getattr(config, name)}" for name in wrong)
        raise UserError(
            f"Hugging Face's {config.model_type} has no {listed}; this model cannot go there"
        )
