"""What Hugging Face calls the tensors of BERT and DistilBERT, and what we call them: a table that is read both ways."""

import re

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
LAYER = re.compile(r"(?<=^layers\.)\d+")
"""The number of a layer in a name of ours."""

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


def plain_name(theirs: str) -> str:
    """A stored name in today's spelling and without the `bert.` or `distilbert.` in front."""
    for old, new in OLD_SPELLINGS:
        theirs = old.sub(new, theirs)
    return theirs.removeprefix("bert.").removeprefix("distilbert.")


def ignored(plain: str) -> str:
    """Why a tensor of this plain name is of no use here; "" where no reason is known."""
    for pattern, why in IGNORED:
        if pattern.fullmatch(plain):
            return why
    return ""


def their_names(ours: str, model_type: str) -> list[str]:
    """The plain names of the one or three tensors that a parameter of ours holds.

    >>> their_names("encoder.layers.4.ffn_in.bias", "distilbert")
    ['transformer.layer.4.ffn.lin1.bias']
    """
    module, _, kind = ours.removeprefix("encoder.").rpartition(".")
    found = LAYER.search(module)
    layer = found[0] if found else ""
    theirs = NAMES[LAYER.sub("{}", module)][model_type == "distilbert"]
    return [f"{name.format(layer)}.{kind}" for name in theirs.split()]
