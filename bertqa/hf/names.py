"""Tensor names: Hugging Face's for BERT and DistilBERT, and ours; and the report of a conversion, tensor by tensor."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

# Our name -> (BERT's, DistilBERT's), without .weight or .bias at the end; {} is the layer's number. None: the model has no
# such module. Our qkv stacks their query, key and value, for one product of (N, H) with (H, 3 H) in place of three.
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
"""The layer's number in a tensor name, theirs or ours."""

HEAD = re.compile(r"(span|qa_outputs|pre_classifier|classifier)\.")
"""How names of head parameters begin, ours and theirs: a head has no `encoder.` or `bert.` before it."""

# Pattern -> today's spelling: TensorFlow's LayerNorms (until 2019), and NVIDIA's fused dense layers.
OLD_SPELLINGS = (
    (re.compile(r"(layer_?norm)\.gamma$", re.IGNORECASE), r"\1.weight"),
    (re.compile(r"(layer_?norm)\.beta$", re.IGNORECASE), r"\1.bias"),
    (re.compile(r"\.dense_act\."), ".dense."),
)

# Plain name -> why bertqa has no use for the tensor.
IGNORED = (
    (re.compile(r"embeddings\.(position_ids|token_type_ids)"), "a buffer, not a weight"),
    (re.compile(r"cls\..+"), "head of the pre-training"),
    (re.compile(r"vocab_(transform|layer_norm|projector)\..+"), "head of the pre-training"),
    (re.compile(r"fit_denses?\..+"), "TinyBERT's link to its teacher"),
)


def plain_name(theirs: str) -> str:
    """Return a stored name in today's spelling, without `bert.` or `distilbert.` before it."""
    for old, new in OLD_SPELLINGS:
        theirs = old.sub(new, theirs)
    return theirs.removeprefix("bert.").removeprefix("distilbert.")


def why_ignored(plain: str) -> str:
    """Return why a tensor with this plain name is ignored; "" if it is not."""
    for pattern, why in IGNORED:
        if pattern.fullmatch(plain):
            return why
    return ""


def their_names(ours: str, model_type: str) -> list[str]:
    """Return the plain names of the tensors that make a parameter of ours: one, or three for qkv.

    >>> their_names("encoder.layers.4.ffn_in.bias", "distilbert")
    ['transformer.layer.4.ffn.lin1.bias']
    """
    # encoder.layers.4.ffn_in.bias -> module layers.4.ffn_in, kind bias -> layers.{}.ffn_in and layer 4
    module, _, kind = ours.removeprefix("encoder.").rpartition(".")
    found = LAYER.search(module)
    layer = found[0] if found else ""
    bert, distilbert = NAMES[_any_layer(module)]
    theirs = distilbert if model_type == "distilbert" else bert
    return [f"{name.format(layer)}.{kind}" for name in theirs.split()]


KINDS = ("renamed", "ignored", "fresh")
"""What a conversion does with a tensor; fresh is one of ours that was initialised."""


@dataclass
class Row:
    """What a conversion did with one tensor."""

    what: str
    """One of KINDS."""
    theirs: str | None
    ours: str | None
    shape: tuple[int, ...]
    why: str = ""


@dataclass
class Report:
    """What a conversion did, in either direction."""

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
        """Return a table with one line for each tensor of a layer, not for each layer; then totals, remarks and checksums."""
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
    """Return the table's lines with aligned columns; rows that differ in the layer only share a line."""
    groups: dict[tuple, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.what, _any_layer(row.theirs), _any_layer(row.ours)].append(row)
    lines = []
    for group in groups.values():
        first = group[0]
        theirs = "-"
        if first.theirs:
            [theirs] = fold([row.theirs for row in group])
        ours = f"({first.why})"
        if first.ours:
            [ours] = fold([row.ours for row in group])
        lines.append((first.what, theirs, ours, "x".join(map(str, first.shape))))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]


def _any_layer(name: str | None) -> str:
    """Return the name with {} for the layer's number; "" for None."""
    return LAYER.sub("{}", name or "", count=1)


def fold(names: Sequence[str]) -> list[str]:
    """Merge names that differ in the layer only.

    >>> fold(["layer.0.bias", "layer.1.bias", "layer.2.bias", "norm.bias"])
    ['layer.{0..2}.bias', 'norm.bias']
    """
    layers: dict[str, list[int]] = defaultdict(list)  # "layer.{}.bias" -> [0, 1, 2]
    for name in names:
        numbers = layers[_any_layer(name)]
        number = LAYER.search(name)
        if number:
            numbers.append(int(number[0]))
    return [name.replace("{}", _range(numbers), 1) for name, numbers in layers.items()]


def _range(numbers: list[int]) -> str:
    """Return layer numbers as 4, {0..5} or {0,2,5}."""
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
    """Return the first `most` names, folded and separated by commas."""
    folded = fold(names)
    rest = ", ..." if len(folded) > most else ""
    return ", ".join(folded[:most]) + rest


def dtype_name(dtypes: Iterable) -> str:
    """Return the distinct torch dtypes as "float16", or "float16 and float32"."""
    return " and ".join(sorted({str(dtype).removeprefix("torch.") for dtype in dtypes}))
