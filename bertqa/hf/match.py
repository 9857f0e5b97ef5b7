"""Which stored tensors make which of ours: each is renamed, ignored for a stated reason, or an error.

A tensor has a stored name, a plain name (today's spelling, without prefixes), and a place in a tensor of ours:

    module.bert.encoder.layer.4.attention.self.key.bias -> encoder.layer.4.attention.self.key.bias -> encoder.layers.4.qkv.bias
"""

import dataclasses
from collections import Counter
from dataclasses import dataclass, field

from torch import Tensor

from bertqa.errors import UserError
from bertqa.hf.architecture import architecture_of, class_labels, find_head, refuse_other_losses
from bertqa.hf.names import HEAD, Row, ignored, listed, plain_name, their_names
from bertqa.model.build import build_empty
from bertqa.model.config import CLASSES, QA, BertConfig
from bertqa.model.disk import DTYPES, Weights

WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""Parts of names that DataParallel, DistributedDataParallel, torch.compile and FSDP put in."""

TIED = {
    "embeddings.word_embeddings.weight": (
        "cls.predictions.decoder.weight",
        "vocab_projector.weight",
    )
}
"""Tensors that transformers ties to another: a checkpoint may hold one of the two names only."""

SEGMENT = "embeddings.segment.weight"
"""How the name of ours ends that holds a row for each segment."""

INSIDE = ("embeddings.", "encoder.", "transformer.", "pooler.")
"""Where plain names of the encoder begin. An unknown tensor there changes what the encoder computes."""


@dataclass
class Stored:
    """A tensor of the checkpoint."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    """As safetensors spells it."""


@dataclass
class Plan:
    """What becomes of a checkpoint."""

    config: BertConfig
    head: str | None
    labels: list[str] | None
    empty: dict[str, Tensor]
    """Our tensors by name, without memory: shapes, and once that is decided the types in which they are written."""
    parts: dict[str, list[str]] = field(default_factory=dict)
    """Our tensor -> the stored tensors that it is made of; not there for one that is drawn fresh."""
    rows: list[Row] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    """Plain names of tensors that the checkpoint lacks."""
    unexpected: list[str] = field(default_factory=list)
    """Stored names of tensors for which there is no place."""
    misshapen: list[str] = field(default_factory=list)
    """What is wrong with tensors that have a place and do not fit there, in words."""


def plan_conversion(raw: dict, weights: Weights, fresh_head) -> Plan:
    """Find a stored tensor for each of ours; `fresh_head` as for `convert`.

    Raises:
        UserError: for an architecture or a head that we do not have; or one that lists all tensors that do not fit.
    """
    plain = _by_plain_name(weights)
    head, labels = _head_and_labels(raw, plain, fresh_head)
    config = architecture_of(raw, plain, head)
    one_row = config.type_vocab_size == 1
    if one_row:
        # bertqa feeds 0 and 1: with the one row for both, a model that knows one segment sees no difference
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
    return plan


def _by_plain_name(weights: Weights) -> dict[str, Stored]:
    plain: dict[str, Stored] = {}
    for stored, shape in weights.shapes.items():
        name = plain_name(_unwrapped(stored))
        if name in plain and not ignored(name):
            raise UserError(
                f"{plain[name].name} and {stored} are two tensors for one place; which is right cannot be told"
            )
        plain[name] = Stored(stored, shape, weights.dtypes[stored])
    return plain


def _unwrapped(stored: str) -> str:
    """A stored name without what wrappers of the module put into it."""
    return ".".join(part for part in stored.split(".") if part not in WRAPPERS)


def _head_and_labels(raw: dict, plain: dict[str, Stored], fresh_head):
    """The head that the model gets, and the names of its classes where it has any."""
    if fresh_head == "qa":
        return QA, None
    if fresh_head == "none":
        return None, None
    if fresh_head is not None:
        return CLASSES, list(fresh_head[1])
    head = find_head(raw, plain)
    if head != CLASSES:
        return head, None
    count = None  # as the tensor has it, for id2label may be missing
    if "classifier.weight" in plain and plain["classifier.weight"].shape:
        count = plain["classifier.weight"].shape[0]
    labels = ["score"] if count == 1 else class_labels(raw, count)
    refuse_other_losses(raw, labels)
    return head, labels


def _match(plan: Plan, plain: dict[str, Stored], fresh: bool, one_row: bool) -> None:
    """Fill the plan's parts and rows; or one UserError that lists all that does not fit."""
    used: set[str] = set()
    for ours, tensor in plan.empty.items():
        theirs = their_names(ours, plan.config.model_type)
        # A fresh head is drawn, and so is the pooler that classes stand on where the checkpoint has none.
        lacks_pooler = ours.startswith("encoder.pooler.") and theirs[0] not in plain
        if fresh and (HEAD.match(ours) or (plan.head == CLASSES and lacks_pooler)):
            plan.rows.append(Row("fresh", None, ours, tuple(tensor.shape)))
            continue
        if one_row and ours.endswith(SEGMENT):
            theirs = theirs * 2
        used |= _take(ours, theirs, plan, plain)
    for name in sorted(plain.keys() - used):
        stored = plain[name]
        why = _why_unused(name, plan.config, fresh)
        if why:
            plan.rows.append(Row("ignored", stored.name, None, stored.shape, why))
        else:
            plan.unexpected.append(stored.name)
    # Only now: whoever has the wrong file wants to see all of it at once.
    if plan.missing or plan.unexpected or plan.misshapen:
        raise UserError(_what_does_not_fit(plan, plain))


def _take(ours: str, theirs: list[str], plan: Plan, plain: dict[str, Stored]) -> set[str]:
    """Note for one tensor of ours the stored ones that make it, one below the other, and what is wrong with them.

    Our qkv of (96, 32) takes rows 0:32 from query, 32:64 from key, 64:96 from value, (32, 32) each.

    Returns:
        Their plain names.
    """
    whole = plan.empty[ours]
    size = len(whole) // len(theirs)  # rows of each
    shape = (size, *whole.shape[1:])
    used = set()
    for i, wanted in enumerate(theirs):
        found = [name for name in (wanted, *TIED.get(wanted, ())) if name in plain]
        if not found:
            plan.missing.append(wanted)
            continue
        used.add(found[0])  # a tied one beside it is a copy, and ignored with its head
        stored = plain[found[0]]
        if stored.shape != shape:
            plan.misshapen.append(f"{stored.name} is {stored.shape}, config.json asks for {shape}")
        elif stored.dtype not in DTYPES:
            plan.misshapen.append(
                f"{stored.name} is stored as {stored.dtype}, which is no plain number type"
            )
        place = f"{ours}[{i * size}:{(i + 1) * size}]" if len(theirs) > 1 else ours
        plan.rows.append(Row("renamed", stored.name, place, shape))
        plan.parts.setdefault(ours, []).append(stored.name)
    return used


def _why_unused(name: str, config: BertConfig, fresh: bool) -> str:
    """Why a tensor of this plain name is left out; "" where it must not be."""
    if name.startswith("pooler.") and config.model_type == "bert" and not config.pooler:
        return "question answering has no use for it"
    if fresh and HEAD.match(name):
        return "a fresh head was asked for"
    known = ignored(name)
    if not known and fresh and not name.startswith(INSIDE):
        return "a layer of its own on the encoder, and a fresh head was asked for"
    return known


# The one error


def _what_does_not_fit(plan: Plan, plain: dict[str, Stored]) -> str:
    """All of it, and what to do."""
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
    """What the names of the whole encoder begin with, where nothing of it was found but behind something else."""
    encoder = set()
    for ours in plan.empty:
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
            continue  # one tensor of that ending is chance; all of an encoder is a prefix
        # a `bert.` at its end belongs to the names behind it, unless there is nothing else
        if prefix.endswith((".bert.", ".distilbert.")):
            prefix = prefix[: prefix.rindex(".", 0, -1) + 1]
        prefixes.append(prefix)
    return sorted(prefixes)


def _advice(plan: Plan) -> str:
    """What to do about tensors that do not fit."""
    foreign = []
    for name in plan.unexpected:
        if not plain_name(_unwrapped(name)).startswith(INSIDE):
            foreign.append(name)
    is_whole = all(HEAD.match(name) for name in plan.missing)
    if plan.misshapen or not is_whole or len(foreign) < len(plan.unexpected):
        return "Is config.json of this checkpoint?"
    if not foreign:
        return "It has no trained head: --fresh-head draws a new one"
    return (
        f"The encoder is whole, but it holds a layer that bertqa does not have ({listed(foreign, 4)}): "
        "--fresh-head takes the encoder without it"
    )
