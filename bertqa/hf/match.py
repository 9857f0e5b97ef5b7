"""Match the tensors of a checkpoint with our parameters: each is renamed, ignored for a stated reason, or an error.

A tensor has a stored name, a plain name (in today's spelling, without prefixes), and a place in one of our parameters:

    module.bert.encoder.layer.4.attention.self.key.bias -> encoder.layer.4.attention.self.key.bias -> encoder.layers.4.qkv.bias
"""

import dataclasses
from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bertqa.errors import UserError
from bertqa.hf.architecture import architecture_of, class_labels, find_head, refuse_other_losses
from bertqa.hf.names import HEAD, Row, listed, plain_name, their_names, why_ignored
from bertqa.model.build import build_empty
from bertqa.model.config import CLASSES, QA, BertConfig
from bertqa.model.disk import DTYPES, Weights

WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""Parts of names that DataParallel, DistributedDataParallel, torch.compile and FSDP insert."""

TIED = {
    "embeddings.word_embeddings.weight": (
        "cls.predictions.decoder.weight",
        "vocab_projector.weight",
    )
}
"""Plain name -> other names of the same tensor, which transformers ties to it; a checkpoint may hold either."""

SEGMENT = "embeddings.segment.weight"
"""How the name of our segment embedding ends, a row for each segment."""

INSIDE = ("embeddings.", "encoder.", "transformer.", "pooler.")
"""How the encoder's plain names begin. An unknown tensor there would change what the encoder computes, so it is an error."""


@dataclass
class Stored:
    """A tensor of the checkpoint."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    """As safetensors spells it."""


@dataclass
class Plan:
    """How a checkpoint becomes a model of ours."""

    config: BertConfig
    head: str | None
    labels: list[str] | None
    parameters: dict[str, Tensor]
    """Our parameters by name, on the meta device: with the shapes and types that are written."""
    parts: dict[str, list[str]] = field(default_factory=dict)
    """Our parameter -> the stored tensors that it is made of; a fresh one is not in it."""
    rows: list[Row] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    """Plain names of the tensors that the checkpoint lacks."""
    unexpected: list[str] = field(default_factory=list)
    """Stored names of the tensors that are neither used nor ignored."""
    misshapen: list[str] = field(default_factory=list)
    """A phrase for each tensor of the wrong shape or type."""


def plan_conversion(raw: dict, weights: Weights, fresh_head) -> Plan:
    """Find the stored tensors of each of our parameters; `fresh_head` as for `convert`.

    Raises:
        UserError: for an architecture or a head that bertqa does not have, or listing all tensors that do not fit.
    """
    plain = _by_plain_name(weights)
    head, labels = _head_and_labels(raw, plain, fresh_head)
    config = architecture_of(raw, plain, head)
    one_row = config.type_vocab_size == 1
    if one_row:
        # bertqa feeds the token types 0 and 1; with the same row for both, the model computes what it did before
        config = config.replace(type_vocab_size=2)
    record = {"architecture": dataclasses.asdict(config), "head": head, "labels": labels}
    plan = Plan(config, head, labels, build_empty(record).state_dict())
    wrapped = sum(name != _unwrapped(name) for name in weights.shapes)
    if wrapped:
        plan.remarks.append(
            f"{wrapped} names without the prefixes that DataParallel, DDP or torch.compile left in them"
        )
    if one_row:
        plan.remarks.append("it knows one segment only: its row stands for both")
    _match(plan, plain, fresh_head is not None, one_row)
    for name, tensor in plan.parameters.items():
        plan.parameters[name] = tensor.to(_stored_dtype(weights, plan.parts.get(name, [])))
    return plan


def _by_plain_name(weights: Weights) -> dict[str, Stored]:
    """Return the stored tensors by plain name. Raise UserError if two of them have the same one."""
    plain: dict[str, Stored] = {}
    for stored, shape in weights.shapes.items():
        name = plain_name(_unwrapped(stored))
        if name in plain and not why_ignored(name):
            raise UserError(
                f"{plain[name].name} and {stored} are two tensors for one place; which is right cannot be told"
            )
        plain[name] = Stored(stored, shape, weights.dtypes[stored])
    return plain


def _unwrapped(stored: str) -> str:
    """Return a stored name without the parts that WRAPPERS insert."""
    return ".".join(part for part in stored.split(".") if part not in WRAPPERS)


def _head_and_labels(raw: dict, plain: dict[str, Stored], fresh_head):
    """Return the head that the model gets, and the names of its classes (None for other heads)."""
    if fresh_head == "qa":
        return QA, None
    if fresh_head == "none":
        return None, None
    if fresh_head is not None:
        return CLASSES, list(fresh_head[1])
    head = find_head(raw, plain)
    if head != CLASSES:
        return head, None
    count = None  # number of classes by the tensor's shape; id2label may be missing
    if "classifier.weight" in plain and plain["classifier.weight"].shape:
        count = plain["classifier.weight"].shape[0]
    labels = ["score"] if count == 1 else class_labels(raw, count)
    refuse_other_losses(raw, labels)
    return head, labels


def _match(plan: Plan, plain: dict[str, Stored], fresh: bool, one_row: bool) -> None:
    """Fill the plan's parts and rows, or raise one UserError that lists all tensors that do not fit."""
    used: set[str] = set()
    for ours, tensor in plan.parameters.items():
        theirs = their_names(ours, plan.config.model_type)
        # With a fresh class head, a pooler that the checkpoint lacks is initialised too.
        lacks_pooler = ours.startswith("encoder.pooler.") and theirs[0] not in plain
        if fresh and (HEAD.match(ours) or (plan.head == CLASSES and lacks_pooler)):
            plan.rows.append(Row("fresh", None, ours, tuple(tensor.shape)))
            continue
        if one_row and ours.endswith(SEGMENT):
            theirs = theirs * 2
        used |= _match_parameter(ours, theirs, plan, plain)
    for name in sorted(plain.keys() - used):
        stored = plain[name]
        why = _why_unused(name, plan.config, fresh)
        if why:
            plan.rows.append(Row("ignored", stored.name, None, stored.shape, why))
        else:
            plan.unexpected.append(stored.name)
    # Only now, so that the message lists everything at once.
    if plan.missing or plan.unexpected or plan.misshapen:
        raise UserError(_what_does_not_fit(plan, plain))


def _match_parameter(
    ours: str, theirs: list[str], plan: Plan, plain: dict[str, Stored]
) -> set[str]:
    """Record in the plan which stored tensors make one parameter, stacked in this order, and what is wrong with them.

    A qkv weight of (96, 32) takes rows 0:32 from query, 32:64 from key, 64:96 from value, (32, 32) each.

    Returns:
        The plain names of the stored tensors used.
    """
    whole = plan.parameters[ours]
    size = len(whole) // len(theirs)  # rows of each stored tensor
    shape = (size, *whole.shape[1:])
    used = set()
    parts: list[str] = []
    plan.parts[ours] = parts
    for i, wanted in enumerate(theirs):
        found = [name for name in (wanted, *TIED.get(wanted, ())) if name in plain]
        if not found:
            plan.missing.append(wanted)
            continue
        # If both tied names are there, the second is a copy, and ignored with its head.
        used.add(found[0])
        stored = plain[found[0]]
        if stored.shape != shape:
            plan.misshapen.append(f"{stored.name} is {stored.shape}, config.json asks for {shape}")
        elif stored.dtype not in DTYPES:
            plan.misshapen.append(
                f"{stored.name} is stored as {stored.dtype}, which is no plain number type"
            )
        place = f"{ours}[{i * size}:{(i + 1) * size}]" if len(theirs) > 1 else ours
        plan.rows.append(Row("renamed", stored.name, place, shape))
        parts.append(stored.name)
    return used


def _why_unused(name: str, config: BertConfig, fresh: bool) -> str:
    """Return why an unused tensor may be left out; "" if it may not."""
    if name.startswith("pooler.") and config.model_type == "bert" and not config.pooler:
        return "question answering has no use for it"
    if fresh and HEAD.match(name):
        return "a fresh head was asked for"
    known = why_ignored(name)
    if not known and fresh and not name.startswith(INSIDE):
        return "a layer of its own on the encoder, and a fresh head was asked for"
    return known


def _stored_dtype(weights: Weights, names: list[str]) -> torch.dtype:
    """Return the type in which a parameter is written: that of the stored tensors it is made of, which loses nothing.

    It is float32 if these are float64, differ in type, or there are none (a fresh head).
    """
    stored = {DTYPES[weights.dtypes[name]] for name in names}
    if len(stored) == 1 and stored != {torch.float64}:
        return stored.pop()
    return torch.float32


# The message that lists all that does not fit


def _what_does_not_fit(plan: Plan, plain: dict[str, Stored]) -> str:
    """Word the message: the tensors that are missing, unexpected or of the wrong shape or type, and what to do."""
    behind = _other_prefixes(plan, plain)
    if behind:
        return (
            f"its tensors stand behind {' and '.join(map(repr, behind))}, a prefix that bertqa does not know; take it "
            "off their names, or save the model that was wrapped by itself"
        )
    said = []
    problems = {
        "missing": plan.missing,
        "unexpected": plan.unexpected,
        "of the wrong shape or type": plan.misshapen,
    }
    for what, names in problems.items():
        if names:
            said.append(f"{len(names)} {what} ({listed(names)})")
    return (
        f"the tensors are not those of a {plan.config.model_type} with {plan.head or 'no'} head: "
        f"{'; '.join(said)}. {_advice(plan)}"
    )


def _other_prefixes(plan: Plan, plain: dict[str, Stored]) -> list[str]:
    """Return prefixes behind which the whole encoder stands, if none of its tensors was found without one.

    With only "net.bert.embeddings.word_embeddings.weight" and its like in the checkpoint, that is ["net."].
    """
    encoder = set()
    for ours in plan.parameters:
        if not HEAD.match(ours):
            encoder.update(their_names(ours, plan.config.model_type))
    if not encoder <= set(plan.missing):
        return []
    found: Counter[str] = Counter()  # prefix -> how many tensors of the encoder stand behind it
    for name in plain:
        parts = name.split(".")
        for place in range(1, len(parts)):
            if ".".join(parts[place:]) in encoder:
                found[".".join(parts[:place]) + "."] += 1
    prefixes = []
    for prefix, count in found.items():
        if count < len(encoder):
            continue  # a single tensor with such a name is chance
        # "net.bert." -> "net.": plain_name takes `bert.` off itself
        if prefix.endswith((".bert.", ".distilbert.")):
            prefix = prefix[: prefix.rindex(".", 0, -1) + 1]
        prefixes.append(prefix)
    return sorted(prefixes)


def _advice(plan: Plan) -> str:
    """Say what to do about tensors that do not fit."""
    foreign = []
    for name in plan.unexpected:
        if not plain_name(_unwrapped(name)).startswith(INSIDE):
            foreign.append(name)
    encoder_is_whole = all(HEAD.match(name) for name in plan.missing)
    if plan.misshapen or not encoder_is_whole or len(foreign) < len(plan.unexpected):
        return "Is config.json of this checkpoint?"
    if not foreign:
        return "It has no trained head: --fresh-head draws a new one"
    return (
        f"The encoder is whole, but it holds a layer that bertqa does not have ({listed(foreign, 4)}): "
        "--fresh-head takes the encoder without it"
    )
