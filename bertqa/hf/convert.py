"""Hugging Face checkpoints into model folders and back, with nothing passed over in silence.

Every tensor of a checkpoint is renamed, ignored for a stated reason, or an error; every tensor of ours is found, drawn
fresh because that was asked for, or an error.
"""

import dataclasses
import sys
from pathlib import Path

import torch
from torch import Tensor

from bertqa.errors import UserError
from bertqa.files import read_object, staged, write_json
from bertqa.hf import hub, vocabulary
from bertqa.hf.names import (
    HEAD,
    architecture_of,
    class_labels,
    find_head,
    ignored,
    model_type_of,
    plain_name,
    their_names,
    write_architecture,
)
from bertqa.hf.table import Report, Row, fold
from bertqa.hf.weights import open_weights
from bertqa.model.card import exported_card, plain_card, read_license
from bertqa.model.config import BertConfig
from bertqa.model.folder import (
    CLASSES,
    QA,
    build_empty,
    open_model_weights,
    read_config,
    read_qa,
    write_config,
    write_qa,
)
from bertqa.model.tensors import DTYPES, Weights, write_safetensors

TASKS = {QA: "question-answering", CLASSES: "text-classification", None: "feature-extraction"}
"""What the Hub calls the use of a head."""


def convert(src: str | Path, dest: str | Path, *, fresh_head=None, seed: int = 0) -> Report:
    """A Hugging Face checkpoint into a model folder.

    Args:
        src: a folder, one weight file in it, or a Hub id `org/name[@revision]`.
        dest: a new or empty folder; it appears when everything has succeeded.
        fresh_head: None for the head that the checkpoint brings; "qa" or ("classification", labels) to put a new one,
            drawn as BERT initialises, in its place.
        seed: of that draw.

    Raises:
        UserError: for a checkpoint that does not fit, tensor by tensor, and for all that is wrong with its files.
    """
    dest = _new_folder(dest)
    place = hub.locate(src)
    try:
        return _convert(place, dest, fresh_head, seed)
    except UserError as error:
        if str(place.folder) in str(error):
            raise
        raise UserError(f"{place.source if place.revision else place.folder}: {error}") from error


def _new_folder(dest: str | Path) -> Path:
    dest = Path(dest)
    if dest.is_file() or dest.is_dir() and any(dest.iterdir()):
        raise UserError(
            f"{dest}: exists and is not an empty folder; name another, or remove it first"
        )
    return dest


def _convert(place: hub.Place, dest: Path, fresh_head, seed: int) -> Report:
    raw = read_hf_config(place.folder)
    model_type_of(raw, ())  # refuse what is no BERT before opening a file that may be in any form
    weights = open_weights(place.weights)
    plain = _plain_names(weights)
    if fresh_head is None:
        head, labels = find_head(raw, plain)
    else:
        head, labels = (QA, None) if fresh_head == "qa" else (CLASSES, list(fresh_head[1]))
    if head == CLASSES and labels is None:
        shape = weights.shapes[plain["classifier.weight"]] if "classifier.weight" in plain else ()
        labels = class_labels(raw, next(iter(shape), None))
    config = architecture_of(raw, plain, head)
    empty = build_empty(
        {"architecture": dataclasses.asdict(config), "head": head, "labels": labels}
    ).state_dict()
    parts, rows = _match(weights, plain, empty, config, head, fresh=fresh_head is not None)

    generator, broken = torch.Generator().manual_seed(seed), []
    dtypes = {name: _stored_dtype(weights, parts.get(name)) for name in empty}

    def read(ours: str) -> Tensor:
        if ours not in parts:
            return _draw(ours, empty[ours].shape, config, generator)
        pieces = [weights.get(name) for name in parts[ours]]
        broken.extend(
            name
            for name, piece in zip(parts[ours], pieces, strict=True)
            if not piece.isfinite().all()
        )
        return (pieces[0] if len(pieces) == 1 else torch.cat(pieces)).to(dtypes[ours])

    with staged(dest) as new:
        remarks = vocabulary.install(place.folder, new, config.vocab_size)
        source_sha256 = weights.sha256()
        sha256 = write_safetensors(
            new / "model.safetensors", dtypes, {n: tuple(t.shape) for n, t in empty.items()}, read
        )
        if broken:
            raise UserError(
                f"{len(broken)} of its tensors hold NaN or infinite numbers: {', '.join(fold(broken)[:8])}; "
                "the checkpoint was broken where it was made"
            )
        provenance = {
            "source": place.source,
            "revision": place.revision,
            "license": read_license(place.folder),
            "sha256": source_sha256,
        }
        if fresh_head is not None:
            provenance["fresh_head"] = seed  # these weights answer nothing before they are trained
        elif head == QA and (place.folder / "qa.json").exists():
            write_qa(new, read_object(place.folder / "qa.json"))
            remarks.append(
                "qa.json taken over: the threshold and windows that its maker tuned with bertqa"
            )
        write_config(new, config, head, labels, provenance)
        parameters = sum(tensor.numel() for tensor in empty.values())
        (new / "README.md").write_text(
            plain_card(config, head, parameters, provenance), encoding="utf-8"
        )
    return Report(
        place.source,
        str(dest),
        config.model_type,
        head,
        parameters,
        _dtype_name(dtypes.values()),
        source_sha256,
        sha256,
        rows,
        remarks,
    )


def read_hf_config(folder: Path) -> dict:
    """config.json of a Hugging Face folder (bert_config.json in Google's and the oldest)."""
    path = next(
        (folder / name for name in ("config.json", "bert_config.json") if (folder / name).exists()),
        None,
    )
    if path is None:
        raise UserError(
            f"{folder}: has no config.json, so the shape of the model is unknown; fetch it too"
        )
    raw = read_object(path)
    if "architecture" in raw and "model_type" not in raw:
        raise UserError(
            f"{folder}: is a model folder of bertqa already; use it as it is, or add --to-hf to export it"
        )
    return raw


def _plain_names(weights: Weights) -> dict[str, str]:
    """Plain name -> stored name."""
    plain: dict[str, str] = {}
    for stored in weights.shapes:
        name = plain_name(stored)
        if name in plain and not ignored(name):
            raise UserError(
                f"{plain[name]} and {stored} are two tensors for one place; which is right cannot be told"
            )
        plain[name] = stored
    return plain


def _match(
    weights: Weights,
    plain: dict[str, str],
    empty: dict[str, Tensor],
    config: BertConfig,
    head: str | None,
    fresh: bool,
) -> tuple[dict[str, list[str]], list[Row]]:
    """Which stored tensors make which of ours; or one UserError that lists all that does not fit."""
    parts: dict[str, list[str]] = {}
    rows, missing, misshapen, used = [], [], [], set()
    for ours, tensor in empty.items():
        theirs = their_names(ours, config.model_type)
        in_head = (
            HEAD.match(ours) or fresh and head == CLASSES and ours.startswith("encoder.pooler.")
        )
        if fresh and (HEAD.match(ours) or in_head and theirs[0] not in plain):
            rows.append(Row("fresh", None, ours, tuple(tensor.shape)))
            continue
        size = len(tensor) // len(theirs)
        shape = (size, *tensor.shape[1:])
        for i, name in enumerate(theirs):
            if name not in plain:
                missing.append(name)
                continue
            stored, used = plain[name], used | {name}
            if weights.shapes[stored] != shape:
                misshapen.append(
                    f"{stored} is {weights.shapes[stored]}, config.json asks for {shape}"
                )
            elif weights.dtypes[stored] not in DTYPES:
                misshapen.append(
                    f"{stored} is stored as {weights.dtypes[stored]}, which is no plain number type"
                )
            place = f"{ours}[{i * size}:{(i + 1) * size}]" if len(theirs) > 1 else ours
            rows.append(Row("renamed", stored, place, shape))
            parts.setdefault(ours, []).append(stored)
    unexpected = []
    for name in sorted(plain.keys() - used):
        why = ignored(name)
        if name.startswith("pooler.") and config.model_type == "bert" and not config.pooler:
            why = "question answering has no use for it"
        elif fresh and HEAD.match(name):
            why = "a fresh head was asked for"
        if why:
            rows.append(Row("ignored", plain[name], None, weights.shapes[plain[name]], why))
        else:
            unexpected.append(plain[name])
    if missing or unexpected or misshapen:
        raise UserError(_misfit(config, head, missing, unexpected, misshapen))
    return parts, rows


def _misfit(config: BertConfig, head: str | None, missing, unexpected, misshapen) -> str:
    said = [
        f"{len(names)} {what} ({', '.join(fold(names)[:12])}{', ...' if len(fold(names)) > 12 else ''})"
        for what, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of the wrong shape or type", misshapen),
        )
        if names
    ]
    only_head = (
        missing and not unexpected and not misshapen and all(HEAD.match(name) for name in missing)
    )
    return (
        f"the tensors are not those of a {config.model_type} with {head or 'no'} head: {'; '.join(said)}. "
        + (
            "It has no trained head: --fresh-head draws a new one"
            if only_head
            else "Is config.json of this checkpoint?"
        )
    )


def _draw(ours: str, shape, config: BertConfig, generator: torch.Generator) -> Tensor:
    """BERT's initialisation of one parameter of a head: weights from a normal, biases zero."""
    if ours.endswith("bias"):
        return torch.zeros(shape)
    return torch.empty(shape).normal_(0.0, config.initializer_range, generator=generator)


def _stored_dtype(weights: Weights, names: list[str] | None) -> torch.dtype:
    """As stored, so that nothing is lost on the way; float32 for float64, for parts that differ, and for fresh ones."""
    stored = {DTYPES[weights.dtypes[name]] for name in names or []}
    return stored.pop() if len(stored) == 1 and stored != {torch.float64} else torch.float32


def _dtype_name(dtypes) -> str:
    return " and ".join(sorted({str(dtype).removeprefix("torch.") for dtype in dtypes}))


def export(src: str | Path, dest: str | Path) -> Report:
    """A model folder into a folder that transformers opens (and `hf upload` publishes), with the same numbers in it.

    Args:
        src: a model folder.
        dest: a new or empty folder; it appears when everything has succeeded.

    Raises:
        UserError: for something else than a model folder, and for a shape that Hugging Face's classes do not have.
    """
    src, dest = Path(src), _new_folder(dest)
    record = read_config(src)
    head, labels, provenance = record["head"], record.get("labels"), record.get("provenance", {})
    empty = build_empty(record).state_dict()
    config = BertConfig(**record["architecture"])
    weights = open_model_weights(src, empty)
    stem = f"{config.model_type}." if head else ""
    rows, origin, dtypes, shapes = [], {}, {}, {}
    for ours, tensor in empty.items():
        names = [
            name if HEAD.match(name) else stem + name
            for name in their_names(ours, config.model_type)
        ]
        size = len(tensor) // len(names)
        for i, name in enumerate(names):
            origin[name] = (ours, slice(i * size, (i + 1) * size))
            dtypes[name], shapes[name] = DTYPES[weights.dtypes[ours]], (size, *tensor.shape[1:])
            place = f"{ours}[{i * size}:{(i + 1) * size}]" if len(names) > 1 else ours
            rows.append(Row("renamed", name, place, shapes[name]))
    dtype = _dtype_name(dtypes.values())
    with staged(dest) as new:
        vocab = vocabulary.install(src, new, config.vocab_size, complete=True)
        sha256 = write_safetensors(
            new / "model.safetensors",
            dtypes,
            shapes,
            lambda name: weights.get(origin[name][0])[origin[name][1]],
        )
        write_json(
            new / "config.json",
            write_architecture(config, head, labels, dtype, vocabulary.pad_id(new)),
        )
        if (src / "qa.json").exists():
            write_qa(new, read_qa(src))
        (new / "README.md").write_text(
            exported_card(src, config.model_type, TASKS[head], provenance), encoding="utf-8"
        )
    if config.model_type == "bert" and head is None and not config.pooler:
        vocab.append("it has no pooler: transformers' BertModel will draw one at random and say so")
    parameters = sum(tensor.numel() for tensor in empty.values())
    return Report(
        str(src),
        str(dest),
        config.model_type,
        head,
        parameters,
        dtype,
        weights.sha256(),
        sha256,
        rows,
        vocab,
    )


def resolve_weights(name_or_path: str | Path, cache: str | Path = "weights") -> Path:
    """The model folder that a user means by --weights or --model.

    A model folder is taken as it is. A Hugging Face folder, file or Hub id is converted into `cache`/name the first
    time, which is said on stderr, and taken from there after that; a Hub id without a revision stays at the commit of
    that first time.

    Raises:
        UserError: as `convert`, and where `cache` holds other checkpoints under that name.
    """
    path = Path(name_or_path)
    if path.is_dir() and "architecture" in (
        read_object(path / "config.json") if (path / "config.json").exists() else {}
    ):
        return path
    if path.exists():
        place = hub.locate(path)
        names, source = [place.source, place.source + "-converted"], place.source
        same = {"sha256": open_weights(place.weights).sha256()}
    else:
        source, revision = hub.parse_id(name_or_path)
        at = f"@{revision.replace('/', '-')}" if revision else ""
        names, same = (
            [source.split("/")[1] + at, source.replace("/", "--") + at],
            {"source": source},
        )
    for dest in (Path(cache) / name for name in names):
        if not (dest / "config.json").exists():
            print(f"converting {name_or_path} into {dest} (once)", file=sys.stderr)
            convert(name_or_path, dest)
            return dest
        before = read_object(dest / "config.json").get("provenance", {})
        if same.items() <= before.items() and "fresh_head" not in before:
            print(f"using {dest}, converted from {name_or_path} before", file=sys.stderr)
            return dest
    raise UserError(
        f"{name_or_path}: {Path(cache) / names[0]} is of another checkpoint of that name; convert it yourself: "
        f"python tools/convert_weights.py {name_or_path} NEW_FOLDER"
    )
