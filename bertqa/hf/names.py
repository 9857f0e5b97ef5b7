"""What Hugging Face calls the tensors of BERT and DistilBERT, and what we call them; and a conversion's report, name by name."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

# ours -> (BERT's, DistilBERT's), each followed by .weight or .bias; {} is the layer. Our qkv stacks three of theirs: one
# product of (N, H) with (H, 3 H) in place of three. None: that model has no such part.
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
LAYER = re.compile(r"(?<=\.)\d+(?=\.)")
"""The number of a layer in a tensor's name, theirs or ours."""

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
    # encoder.layers.4.ffn_in.bias -> layers.4.ffn_in, bias -> layers.{}.ffn_in, and 4 for theirs
    module, _, kind = ours.removeprefix("encoder.").rpartition(".")
    found = LAYER.search(module)
    layer = found[0] if found else ""
    bert, distilbert = NAMES[_any_layer(module)]
    theirs = distilbert if model_type == "distilbert" else bert
    return [f"{name.format(layer)}.{kind}" for name in theirs.split()]


KINDS = ("renamed", "ignored", "fresh")
"""What can become of a tensor."""


@dataclass
class Row:
    """What became of one tensor."""

    what: str
    """One of KINDS."""
    theirs: str | None
    ours: str | None
    shape: tuple[int, ...]
    why: str = ""


@dataclass
class Report:
    """What a conversion did."""

    source: str
    dest: str
    model_type: str
    head: str | None
    parameters: int
    dtype: str
    source_sha256: str
    sha256: str
    rows: list[Row]
    remarks: list[str]

    def __str__(self) -> str:
        """A table, with one line for a tensor that all layers have, and then what else there is to say."""
        whats = [row.what for row in self.rows]
        counts = ", ".join(f"{whats.count(what)} {what}" for what in KINDS)
        head = self.head or "no head"
        lines = [
            *_table(self.rows),
            "",
            f"tensors: {counts}, 0 missing, 0 unexpected",
            f"model: {self.model_type}, {head}, {self.parameters:,} parameters, {self.dtype}",
            *self.remarks,
            f"sha256 of the source: {self.source_sha256}",
            f"sha256 of {self.dest}/model.safetensors: {self.sha256}",
        ]
        return "\n".join(lines)


def _table(rows: list[Row]) -> list[str]:
    """Aligned lines, one for all rows that differ in the layer only."""
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        alike = (row.what, _any_layer(row.theirs), _any_layer(row.ours))
        groups.setdefault(alike, []).append(row)
    lines = []
    for group in groups.values():
        first = group[0]
        [theirs] = fold([row.theirs or "-" for row in group])
        ours = f"({first.why})"
        if first.ours:
            [ours] = fold([row.ours for row in group])
        lines.append((first.what, theirs, ours, "x".join(map(str, first.shape))))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]


def _any_layer(name: str | None) -> str:
    """The name without the number of its layer."""
    return LAYER.sub("{}", name or "", count=1)


def fold(names: Sequence[str]) -> list[str]:
    """Names that differ in the layer only become one.

    >>> fold(["layer.0.bias", "layer.1.bias", "layer.2.bias", "norm.bias"])
    ['layer.{0..2}.bias', 'norm.bias']
    """
    layers: dict[str, list[int]] = {}  # name without its number -> numbers, in the order of names
    for name in names:
        number = LAYER.search(name)
        found = layers.setdefault(_any_layer(name), [])
        if number:
            found.append(int(number[0]))
    return [name.replace("{}", _range(numbers), 1) for name, numbers in layers.items()]


def _range(numbers: list[int]) -> str:
    """4, {0..5} or {0,2,5}."""
    if not numbers:
        return ""
    distinct = sorted(set(numbers))
    low, high = distinct[0], distinct[-1]
    if low == high:
        return str(low)
    if len(distinct) == high - low + 1:
        return f"{{{low}..{high}}}"
    return "{" + ",".join(map(str, distinct)) + "}"


def listed(names: Sequence[str], most: int = 12) -> str:
    """Names folded and with commas between them, the first ones where there are many."""
    folded = fold(names)
    rest = ", ..." if len(folded) > most else ""
    return ", ".join(folded[:most]) + rest
