"""What Hugging Face calls the parts of BERT and DistilBERT, and what we call them: tables that are read both ways."""

import dataclasses
import re

from bertqa.errors import UserError
from bertqa.model.config import BertConfig
from bertqa.model.folder import CLASSES, QA

# ours -> (BERT's, DistilBERT's), each followed by .weight or .bias; {} is the layer. Our qkv stacks three of theirs.
NAMES = {
    "embeddings.word": ("embeddings.word_embeddings", "embeddings.word_embeddings"),
    "embeddings.position": ("embeddings.position_embeddings", "embeddings.position_embeddings"),
    "embeddings.segment": ("embeddings.token_type_embeddings", None),
    "embeddings.norm": ("embeddings.LayerNorm", "embeddings.LayerNorm"),
    "layers.{}.qkv": (
        "encoder.layer.{}.attention.self.query encoder.layer.{}.attention.self.key encoder.layer.{}.attention.self.value",
        "transformer.layer.{}.attention.q_lin transformer.layer.{}.attention.k_lin transformer.layer.{}.attention.v_lin",
    ),
    "layers.{}.attention_out": (
        "encoder.layer.{}.attention.output.dense",
        "transformer.layer.{}.attention.out_lin",
    ),
    "layers.{}.attention_norm": (
        "encoder.layer.{}.attention.output.LayerNorm",
        "transformer.layer.{}.sa_layer_norm",
    ),
    "layers.{}.ffn_in": ("encoder.layer.{}.intermediate.dense", "transformer.layer.{}.ffn.lin1"),
    "layers.{}.ffn_out": ("encoder.layer.{}.output.dense", "transformer.layer.{}.ffn.lin2"),
    "layers.{}.ffn_norm": (
        "encoder.layer.{}.output.LayerNorm",
        "transformer.layer.{}.output_layer_norm",
    ),
    "pooler": ("pooler.dense", None),
    "span": ("qa_outputs", "qa_outputs"),
    "pre_classifier": (None, "pre_classifier"),
    "classifier": ("classifier", "classifier"),
}
HEAD = re.compile(r"(span|qa_outputs|pre_classifier|classifier)\.")
"""Names of head parameters, ours and theirs; they stand outside the encoder and its prefix."""

# Spellings that checkpoints have had: TensorFlow's norms (until 2019), and NVIDIA's fused dense layers.
OLD_SPELLINGS = (
    (re.compile(r"(layer_?norm)\.gamma$", re.IGNORECASE), r"\1.weight"),
    (re.compile(r"(layer_?norm)\.beta$", re.IGNORECASE), r"\1.bias"),
    (re.compile(r"\.dense_act\."), ".dense."),
)

IGNORED = (
    (re.compile(r"embeddings\.(position_ids|token_type_ids)"), "a buffer, not a weight"),
    (re.compile(r"cls\..+"), "head of the pre-training"),
    (re.compile(r"vocab_(transform|layer_norm|projector)\..+"), "head of the pre-training"),
    (re.compile(r"fit_denses?\..+"), "TinyBERT's link to its teacher"),
)

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
DISTIL_DEFAULTS = {
    "model_type": "distilbert",
    "num_hidden_layers": 6,
    "type_vocab_size": 0,
    "layer_norm_eps": 1e-12,
}

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

LARGEST = 10_000_000
"""No size in a config.json is larger than this; a hostile one must not make us build it."""

CLASS_ENDINGS = {QA: "ForQuestionAnswering", CLASSES: "ForSequenceClassification", None: "Model"}


def plain_name(theirs: str) -> str:
    """A stored name in today's spelling and without the `bert.` or `distilbert.` in front."""
    for old, new in OLD_SPELLINGS:
        theirs = old.sub(new, theirs)
    return theirs.removeprefix("bert.").removeprefix("distilbert.")


def ignored(plain: str) -> str | None:
    """Why a tensor of this plain name is of no use here; None where no reason is known."""
    return next((why for pattern, why in IGNORED if pattern.fullmatch(plain)), None)


def their_names(ours: str, model_type: str) -> list[str]:
    """The plain names of the one or three tensors that a parameter of ours holds.

    >>> their_names("encoder.layers.4.ffn_in.bias", "distilbert")
    ['transformer.layer.4.ffn.lin1.bias']
    """
    module, _, kind = ours.removeprefix("encoder.").rpartition(".")
    layer = "".join(re.findall(r"(?<=^layers\.)\d+", module))
    theirs = NAMES[re.sub(r"(?<=^layers\.)\d+", "{}", module)][model_type == "distilbert"]
    return [f"{name.format(layer)}.{kind}" for name in theirs.split()]


def model_type_of(raw: dict, plain_names) -> str:
    """ "bert" or "distilbert". Configs of 2018 and 2019 have no model_type: then the class they name or the tensors decide.

    Raises:
        UserError: for any other architecture, by name.
    """
    classes = raw.get("architectures") if isinstance(raw.get("architectures"), list) else []
    found = raw.get("model_type")
    if not found and classes:
        found = {"Bert": "bert", "DistilBert": "distilbert"}.get(
            re.sub(r"(For|Model|LMHead).*", "", str(classes[0])), str(classes[0])
        )
    if not found:
        found = (
            "distilbert"
            if any(name.startswith("transformer.layer.") for name in plain_names)
            else "bert"
        )
    if found not in ("bert", "distilbert"):
        raise UserError(
            f"the architecture is {found}; supported are bert (any size, cased or uncased, MiniLM, TinyBERT, "
            "whole-word masking, multilingual) and distilbert"
        )
    return found


def architecture_of(raw: dict, plain_names, head: str | None) -> BertConfig:
    """Our config from Hugging Face's; what it leaves out had these defaults when it was written.

    Raises:
        UserError: for an architecture, activation or variant that the encoder does not compute, by name.
    """
    model_type = model_type_of(raw, plain_names)
    distil = model_type == "distilbert"
    fields = {field.name: field.default for field in dataclasses.fields(BertConfig)} | (
        DISTIL_DEFAULTS if distil else {}
    )
    for name, default in fields.items():
        theirs = DISTIL_FIELDS.get(name, name) if distil else name
        # transformers also answers to the common names, so some DistilBERT configs have hidden_size for dim.
        value = raw.get(theirs, raw.get(name))
        if (
            value is None
            or name in ("model_type", "pooler")
            or distil
            and name in DISTIL_DEFAULTS
            and name == theirs
        ):
            continue
        kind = (int, float) if isinstance(default, float) else type(default)
        if (
            not isinstance(value, kind)
            or isinstance(value, bool)
            or kind is int
            and not 0 <= value <= LARGEST
        ):
            raise UserError(
                f"config.json: {theirs} is {value!r}, expected something like {default!r}"
            )
        fields[name] = value
    if fields["num_hidden_layers"] > len(plain_names):
        raise UserError(
            f"config.json: asks for {fields['num_hidden_layers']} layers, but there are only "
            f"{len(plain_names)} tensors in all"
        )
    refuse = [
        f"{name} is {raw[name]!r}"
        for name in ("is_decoder", "add_cross_attention", "pruned_heads", "quantization_config")
        if raw.get(name)
    ]
    if raw.get("position_embedding_type", "absolute") != "absolute":
        refuse.append(
            f"position_embedding_type is {raw['position_embedding_type']!r} (supported: 'absolute')"
        )
    if fields["hidden_act"] not in ACTIVATIONS:
        refuse.append(
            f"{'activation' if distil else 'hidden_act'} is {fields['hidden_act']!r} (supported: "
            f"{', '.join(ACTIVATIONS)})"
        )
    if refuse:
        raise UserError(
            f"config.json: this {model_type} is of a kind that bertqa does not compute: {'; '.join(refuse)}"
        )
    fields["hidden_act"] = ACTIVATIONS[fields["hidden_act"]]
    fields["model_type"] = model_type
    fields["pooler"] = not distil and (
        head == CLASSES or head is None and "pooler.dense.weight" in plain_names
    )
    return BertConfig(**fields)


def find_head(raw: dict, plain_names) -> tuple[str | None, list[str] | None]:
    """The head that a checkpoint brings, and the names of its classes.

    Raises:
        UserError: for a head over single tokens or choices, whose tensors are named like a classification head's.
    """
    named = (
        str((raw.get("architectures") or [""])[0])
        if isinstance(raw.get("architectures"), list)
        else ""
    )
    if any(name.startswith("qa_outputs.") for name in plain_names) or named.endswith(
        "ForQuestionAnswering"
    ):
        return QA, None
    if any(name.startswith("classifier.") for name in plain_names) or named.endswith(
        "ForSequenceClassification"
    ):
        if named.endswith(("ForTokenClassification", "ForMultipleChoice")):
            raise UserError(
                f"its head is {named}, which bertqa does not have; --fresh-head takes the encoder and draws a "
                "new question-answering head"
            )
        return CLASSES, None
    return None, None


def class_labels(raw: dict, count: int | None) -> list[str]:
    """Names of the classes in order: the config's, or LABEL_0 and so on for `count` rows of the classifier."""
    named = raw.get("id2label")
    if isinstance(named, dict) and named and all(str(key).isdecimal() for key in named):
        return [str(named[key]) for key in sorted(named, key=int)]
    return [f"LABEL_{i}" for i in range(count or 2)]


def write_architecture(
    config: BertConfig, head: str | None, labels, dtype: str, pad_id: int
) -> dict:
    """The config.json that transformers reads. Raises UserError for a shape that it cannot express."""
    distil = config.model_type == "distilbert"
    inexpressible = [
        f"{name} {getattr(config, name)}"
        for name, value in DISTIL_DEFAULTS.items()
        if distil and name != "num_hidden_layers" and getattr(config, name) != value
    ]
    if not distil and config.type_vocab_size == 0:
        inexpressible = ["type_vocab_size 0"]
    if inexpressible:
        raise UserError(
            f"Hugging Face's {config.model_type} has no {', '.join(inexpressible)}; this model cannot go there"
        )
    fields = dataclasses.asdict(config) | {"hidden_act": EXPORTED_ACTIVATIONS[config.hidden_act]}
    del fields["pooler"], fields["model_type"]
    if distil:
        for name in ("type_vocab_size", "layer_norm_eps"):
            del fields[name]
        fields = {DISTIL_FIELDS.get(name, name): value for name, value in fields.items()}
        fields["sinusoidal_pos_embds"] = False
    named = (
        {
            "id2label": {str(i): name for i, name in enumerate(labels)},
            "label2id": {name: i for i, name in enumerate(labels)},
        }
        if head == CLASSES
        else {}
    )
    stem = "DistilBert" if distil else "Bert"
    return {
        "architectures": [stem + CLASS_ENDINGS[head]],
        "model_type": config.model_type,
        **fields,
        **named,
        "pad_token_id": pad_id,
        "torch_dtype": dtype if " " not in dtype else "float32",
    }
