"""A Hugging Face checkpoint into a model folder, with nothing passed over in silence: once, or when --weights names one.

Every tensor of a checkpoint is renamed, ignored for a stated reason, or an error; every tensor of ours is found, drawn
fresh because that was asked for, or an error.
"""

import hashlib
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from bertqa.console import say
from bertqa.errors import UserError
from bertqa.files import read_object, sha256, write_text
from bertqa.folders import cache_folder, clear_leftovers, locked, model_of, staged
from bertqa.hf import hub, vocabulary
from bertqa.hf.architecture import (
    CONFIG_FILES,
    model_type_of,
    pooling_file,
    read_hf_config,
    take_settings,
)
from bertqa.hf.match import SEGMENT, Plan, plan_conversion
from bertqa.hf.names import Report, fold
from bertqa.hf.weights import WEIGHT_FILES, open_weights
from bertqa.model.card import plain_card, read_license
from bertqa.model.disk import DTYPES, WEIGHTS, Weights, write_checksums, write_safetensors
from bertqa.model.record import write_config


def convert(src: str | Path, dest: str | Path, *, fresh_head=None, seed: int = 0) -> Report:
    """A Hugging Face checkpoint into a model folder.

    Args:
        src: a folder, one weight file in it, or a Hub id `org/name[@revision]`.
        dest: a new or empty folder; it appears when everything has succeeded.
        fresh_head: None for the head that the checkpoint brings; "qa" or ("classification", labels) to put a new one,
            drawn as BERT initialises, in its place; "none" to leave it out.
        seed: of that draw.

    Raises:
        UserError: for a checkpoint that does not fit, tensor by tensor, and for all that is wrong with its files.
    """
    dest = new_folder(dest)
    place = hub.locate(src)
    try:
        return _convert(place, dest, fresh_head, seed)
    except UserError as error:
        # Most say which file they are about; what was only found when all is put together says which checkpoint.
        if str(place.folder) in str(error):
            raise
        raise UserError(f"{place.source if place.revision else place.folder}: {error}") from error


def new_folder(dest: str | Path) -> Path:
    """The path, which must not exist yet or be an empty folder."""
    dest = Path(dest)
    if dest.is_file() or (dest.is_dir() and any(dest.iterdir())):
        raise UserError(
            f"{dest}: exists and is not an empty folder; name another, or remove it first"
        )
    return dest


def _convert(place: hub.Place, dest: Path, fresh_head, seed: int) -> Report:
    raw = read_hf_config(place.folder)
    # refuse what is no BERT before opening a file that may be in any form
    model_type_of(raw, ())
    weights = open_weights(place.weights)
    plan = plan_conversion(raw, weights, fresh_head)
    for name, tensor in plan.empty.items():
        plan.empty[name] = tensor.to(_stored_dtype(weights, plan.parts.get(name, ())))
    tensors = _Tensors(plan, weights, torch.Generator().manual_seed(seed))
    provenance = {
        "source": place.source,
        "revision": place.revision,
        "license": read_license(place.folder),
        "sha256": weights.sha256(),
    }
    if fresh_head not in (None, "none"):
        # these weights answer nothing before they are trained
        provenance["fresh_head"] = seed
    parameters = sum(tensor.numel() for tensor in plan.empty.values())

    with staged(dest) as new:
        tokenizer = vocabulary.install(place.folder, new, plan.config.vocab_size)
        remarks = [*plan.remarks, *tokenizer.remarks]
        # With a fresh head it is we who train it, and we feed token types.
        if not tokenizer.segments and plan.config.type_vocab_size and fresh_head is None:
            tensors.one_segment = True
            remarks.append(
                "its tokenizer gives no token types: the row of the first segment stands for both"
            )
        written = write_safetensors(new / WEIGHTS, plan.empty, tensors.get)
        tensors.check()
        remarks += take_settings(place.folder, new, plan.config, plan.head, fresh_head)
        # once more: what another process put there meanwhile is not ours to replace
        new_folder(dest)
        write_config(new, plan.config, plan.head, plan.labels, provenance)
        write_text(new / "README.md", plain_card(plan.config, plan.head, parameters, provenance))
    return Report(
        source=place.source,
        dest=str(dest),
        model_type=plan.config.model_type,
        head=plan.head,
        parameters=parameters,
        dtype=dtype_name(tensor.dtype for tensor in plan.empty.values()),
        source_sha256=provenance["sha256"],
        sha256=written,
        rows=plan.rows,
        remarks=remarks,
    )


@dataclass
class _Tensors:
    """Our tensors, each made from the stored ones when it is written, so that memory holds one at a time."""

    plan: Plan
    weights: Weights
    generator: torch.Generator
    one_segment: bool = False
    """Whether every segment gets the first one's row, as the model was never fed another."""
    broken: list[str] = field(default_factory=list)
    """Stored tensors with numbers that are not finite, among those read so far."""

    def get(self, ours: str) -> Tensor:
        if ours not in self.plan.parts:
            # a head's: as BERT initialises, weights from a normal, biases zero
            drawn = torch.zeros_like(self.plan.empty[ours], device="cpu")
            if not ours.endswith("bias"):
                drawn.normal_(0.0, self.plan.config.initializer_range, generator=self.generator)
            return drawn
        pieces = []
        for name in self.plan.parts[ours]:
            piece = self.weights.get(name)
            if not piece.isfinite().all():
                self.broken.append(name)
            pieces.append(piece)
        whole = pieces[0] if len(pieces) == 1 else torch.cat(pieces)  # query, key, value: (3 H, H)
        if self.one_segment and ours.endswith(SEGMENT):
            whole = whole[:1].expand_as(whole)
        return whole.to(self.plan.empty[ours].dtype)

    def check(self) -> None:
        """Raise UserError where what was read is not finite."""
        if self.broken:
            names = ", ".join(fold(self.broken)[:8])
            raise UserError(
                f"{len(self.broken)} of its tensors hold NaN or infinite numbers: {names}; "
                "the checkpoint was broken where it was made"
            )


def _stored_dtype(weights: Weights, names: Iterable[str]) -> torch.dtype:
    """As stored, so that nothing is lost on the way; float32 for float64, for parts that differ, and for fresh ones."""
    stored = {DTYPES[weights.dtypes[name]] for name in names}
    if len(stored) == 1 and stored != {torch.float64}:
        return stored.pop()
    return torch.float32


def dtype_name(dtypes: Iterable[torch.dtype]) -> str:
    """ "float16", or "float16 and float32"."""
    return " and ".join(sorted({str(dtype).removeprefix("torch.") for dtype in dtypes}))


# What --weights and --model take

FORMAT = 1
"""To be raised when the same checkpoint converts into something else than before."""


def resolve_weights(
    name_or_path: str | Path, cache: str | Path | None = None, *, encoder_only: bool = False
) -> Path:
    """The model folder that a user means by --weights or --model.

    A model folder is taken as it is, and of a run folder its best model. A Hugging Face folder, file or Hub id is converted
    into the cache the first time, which is said, and taken from there after that: a folder or file as long as all
    that conversion reads is unchanged, a Hub id without a revision at the commit of that first time. Several processes may
    ask at once: one converts, the others wait for it.

    Args:
        cache: where conversions are kept; weights/ in BERTQA_CACHE or ~/.cache/bertqa where None.
        encoder_only: leave out the head, and what else stands on the encoder, because a fresh head will take its place.

    Raises:
        UserError: as `convert`.
    """
    path = model_of(name_or_path)
    if (path / "config.json").exists() and "architecture" in read_object(path / "config.json"):
        return path
    is_here = path.exists()
    source = path if is_here else name_or_path
    name = _name_of_path(path) if is_here else _name_of_id(name_or_path)
    if encoder_only:
        name += "-encoder"
    cache = Path(cache) if cache else cache_folder() / "weights"
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{cache}: cannot keep converted weights there ({error.strerror}); set BERTQA_CACHE to a folder "
            "that you may write to"
        ) from None
    dest = cache / name
    with locked(cache / f"{name}.lock") as is_alone:
        if is_alone:
            clear_leftovers(dest)
        if _is_whole(dest):
            say(f"using {dest}, converted from {name_or_path} before")
            return dest
        # half a folder, of a copy or an rsync that was cut off: all in the cache is ours to make anew
        shutil.rmtree(dest, ignore_errors=True)
        if not is_here:
            say(f"{name_or_path}: no such folder here; taken as a Hub id")
        say(f"converting {name_or_path} into {dest} (once)")
        try:
            report = convert(source, dest, fresh_head="none" if encoder_only else None)
            write_checksums(dest, {WEIGHTS: report.sha256})  # what is in the cache, nobody changes
        except UserError:
            # on a file system without locks, another process may have been faster
            if not _is_whole(dest):
                raise
    return dest


def _is_whole(folder: Path) -> bool:
    return (folder / "config.json").exists() and (folder / WEIGHTS).exists()


def _name_of_path(path: Path) -> str:
    """What a folder or file here becomes in the cache: its name, and a hash over all that conversion reads."""
    place = hub.locate(path)
    names = [*CONFIG_FILES, *hub.TEXT_FILES, *WEIGHT_FILES[1::2]]
    pooling = pooling_file(place.folder)
    if pooling and pooling not in names:
        names.append(pooling)
    if place.weights.name.endswith(".index.json"):
        names.append(place.weights.name)
    read = [place.folder / name for name in names if (place.folder / name).is_file()]
    # By content and not by time or name: a checkpoint that is copied is not converted again, one that is changed is.
    lines = [f"format {FORMAT}"]
    for file in (*read, *open_weights(place.weights).files):
        lines.append(f"{file.relative_to(place.folder)} {sha256(file)}")
    key = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    return f"{place.source}-{key[:16]}"


def _name_of_id(given: str | Path) -> str:
    """What a Hub id becomes in the cache: organisation, name and revision."""
    repo, revision = hub.parse_id(given)
    name = repo.replace("/", "--")
    if revision:
        name += f"@{revision.replace('/', '-')}"
    return f"{name}-{FORMAT}"
