"""Which stored tensors make which of ours: each is renamed, ignored for a stated reason, or an error."""

import dataclasses
from collections import Counter
from dataclasses import dataclass, field

from torch import Tensor

from bertqa.errors import UserError
from bertqa.hf.architecture import architecture_of, class_labels, find_head, refuse_other_losses
from bertqa.hf.names import HEAD, Row, ignored, listed, plain_name, their_names
from bertqa.model.build import build_empty
from bertqa.model.config import BertConfig
from bertqa.model.disk import DTYPES, Weights
from bertqa.model.record import CLASSES, QA

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
class Plan:
    """What becomes of a checkpoint."""

    config: BertConfig
    head: str | None
    labels: list[str] | None
    empty: dict[str, Tensor]
    """Our tensors by name, without memory."""
    parts: dict[str, list[str]]
    """Our tensor -> the stored tensors that it is made of; not there for one that is drawn fresh."""
    rows: list[Row]
    remarks: list[str]


@dataclass
class Misfits:
    """Tensors that do not fit."""

    missing: list[str] = field(default_factory=list)
    """Plain names."""
    unexpected: list[str] = field(default_factory=list)
    """Stored names."""
    misshapen: list[str] = field(default_factory=list)
    """What is wrong with each, in words."""


def plan_conversion(raw: dict, weights: Weights, fresh_head) -> Plan:
    """Find a stored tensor for each of ours; `fresh_head` as for `convert`.

    Raises:
        UserError: for an architecture or a head that we do not have; or one that lists all tensors that do not fit.
    """
    plain = _plain_names(weights)
    head, labels = _head_and_labels(raw, weights, plain, fresh_head)
    config = architecture_of(raw, plain, head)
    one_row = config.type_vocab_size == 1
    if one_row:
        # bertqa feeds 0 and 1: with the one row for both, a model that knows one segment sees no difference
        config = config.replace(type_vocab_size=2)
    record = {"architecture": dataclasses.asdict(config), "head": head, "labels": labels}
    plan = Plan(config, head, labels, build_empty(record).state_dict(), {}, [], [])
    wrapped = sum(stored != _unwrapped(stored) for stored in weights.shapes)
    if wrapped:
        plan.remarks.append(
            f"{wrapped} names without the prefixes that DataParallel, DDP or torch.compile left in them"
        )
    if one_row:
        plan.remarks.append("it knows one segment only: its row stands for both")
    _match(plan, weights, plain, fresh_head is not None, one_row)
    return plan


def _head_and_labels(raw: dict, weights: Weights, plain: dict[str, str], fresh_head):
    if fresh_head == "qa":
        return QA, None
    if fresh_head == "none":
        return None, None
    if fresh_head is not None:
        return CLASSES, list(fresh_head[1])
    head = find_head(raw, plain)
    if head != CLASSES:
        return head, None
    rows = None
    if "classifier.weight" in plain:
        shape = weights.shapes[plain["classifier.weight"]]
        rows = shape[0] if shape else None
    labels = ["score"] if rows == 1 else class_labels(raw, rows)
    refuse_other_losses(raw, labels)
    return head, labels


def _unwrapped(stored: str) -> str:
    """A stored name without what wrappers of the module put into it."""
    return ".".join(part for part in stored.split(".") if part not in WRAPPERS)


def _plain_names(weights: Weights) -> dict[str, str]:
    """Plain name -> stored name."""
    plain: dict[str, str] = {}
    for stored in weights.shapes:
        name = plain_name(_unwrapped(stored))
        if name in plain and not ignored(name):
            raise UserError(
                f"{plain[name]} and {stored} are two tensors for one place; which is right cannot be told"
            )
        plain[name] = stored
    return plain


def _match(plan: Plan, weights: Weights, plain: dict[str, str], fresh: bool, one_row: bool) -> None:
    """Fill the plan's parts and rows; or one UserError that lists all that does not fit."""
    misfits = Misfits()
    used: set[str] = set()
    for ours, tensor in plan.empty.items():
        theirs = their_names(ours, plan.config.model_type)
        if fresh and _belongs_to_fresh_head(ours, theirs, plan, plain):
            plan.rows.append(Row("fresh", None, ours, tuple(tensor.shape)))
            continue
        if one_row and ours.endswith(SEGMENT):
            theirs = theirs * 2
        used |= _take(ours, theirs, plan, weights, plain, misfits)
    for name in sorted(plain.keys() - used):
        stored = plain[name]
        why = _why_unused(name, plan.config, fresh)
        if why:
            plan.rows.append(Row("ignored", stored, None, weights.shapes[stored], why))
        else:
            misfits.unexpected.append(stored)
    if misfits.missing or misfits.unexpected or misfits.misshapen:
        raise UserError(_misfit(plan, plain, misfits))


def _take(
    ours: str,
    theirs: list[str],
    plan: Plan,
    weights: Weights,
    plain: dict[str, str],
    misfits: Misfits,
) -> set[str]:
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
        name = _found_name(wanted, plain)
        if name is None:
            misfits.missing.append(wanted)
            continue
        used.add(name)
        stored = plain[name]
        problem = _problem(stored, weights, shape)
        if problem:
            misfits.misshapen.append(problem)
        place = f"{ours}[{i * size}:{(i + 1) * size}]" if len(theirs) > 1 else ours
        plan.rows.append(Row("renamed", stored, place, shape))
        plan.parts.setdefault(ours, []).append(stored)
    return used


def _belongs_to_fresh_head(ours: str, theirs: list[str], plan: Plan, plain: dict[str, str]) -> bool:
    """Whether this tensor of ours is drawn: all of a fresh head, and its pooler where the checkpoint has none."""
    if HEAD.match(ours):
        return True
    pooler = plan.head == CLASSES and ours.startswith("encoder.pooler.")
    return pooler and theirs[0] not in plain


def _found_name(wanted: str, plain: dict[str, str]) -> str | None:
    """The plain name under which a tensor is stored: its own, or of one that it is tied to."""
    for name in (wanted, *TIED.get(wanted, ())):
        if name in plain:
            return name
    return None


def _problem(stored: str, weights: Weights, shape: tuple[int, ...]) -> str:
    """Why a stored tensor cannot be taken; "" where it can."""
    if weights.shapes[stored] != shape:
        return f"{stored} is {weights.shapes[stored]}, config.json asks for {shape}"
    if weights.dtypes[stored] not in DTYPES:
        return f"{stored} is stored as {weights.dtypes[stored]}, which is no plain number type"
    return ""


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


def _misfit(plan: Plan, plain: dict[str, str], misfits: Misfits) -> str:
    """All that does not fit, and what to do."""
    behind = _other_prefixes(plan, plain, misfits.missing)
    if behind:
        return (
            f"its tensors stand behind {' and '.join(map(repr, behind))}, a prefix that bertqa does not know; take it "
            "off their names, or save the model that was wrapped by itself"
        )
    said = []
    problems = {
        "missing": misfits.missing,
        "unexpected": misfits.unexpected,
        "of the wrong shape or type": misfits.misshapen,
    }
    for what, names in problems.items():
        if names:
            said.append(f"{len(names)} {what} ({listed(names)})")
    return (
        f"the tensors are not those of a {plan.config.model_type} with {plan.head or 'no'} head: "
        f"{'; '.join(said)}. {_advice(misfits)}"
    )


def _other_prefixes(plan: Plan, plain: dict[str, str], missing: list[str]) -> list[str]:
    """What the names of the whole encoder begin with, where nothing of it was found but behind something else."""
    encoder = set()
    for ours in plan.empty:
        encoder.update(their_names(ours, plan.config.model_type))
    encoder = {name for name in encoder if not HEAD.match(name)}
    if not encoder <= set(missing):
        return []
    found: Counter[str] = Counter()  # prefix -> how many tensors of the encoder stand behind it
    for name in plain:
        parts = name.split(".")
        for place in range(1, len(parts)):
            if ".".join(parts[place:]) in encoder:
                found[".".join(parts[:place]) + "."] += 1
    # one tensor of that ending is chance; all of an encoder is a prefix
    whole = [prefix for prefix, count in found.items() if count == len(encoder)]
    return sorted(map(_without_stem, whole))


def _without_stem(prefix: str) -> str:
    """A prefix without the `bert.` at its end, which belongs to the names behind it; unless there is nothing else."""
    for stem in ("distilbert.", "bert."):
        if prefix.endswith(stem) and prefix != stem:
            return prefix.removesuffix(stem)
    return prefix


def _advice(misfits: Misfits) -> str:
    """What to do about them."""
    foreign = []
    for name in misfits.unexpected:
        if not plain_name(_unwrapped(name)).startswith(INSIDE):
            foreign.append(name)
    is_whole = all(HEAD.match(name) for name in misfits.missing)
    if misfits.misshapen or not is_whole or len(foreign) < len(misfits.unexpected):
        return "Is config.json of this checkpoint?"
    if not foreign:
        return "It has no trained head: --fresh-head draws a new one"
    return (
        f"The encoder is whole, but it holds a layer that bertqa does not have ({listed(foreign, 4)}): "
        "--fresh-head takes the encoder without it"
    )
