"""Convert a Hugging Face checkpoint into a model folder, and find the model folder that --weights or --model names.

Every tensor of the checkpoint is renamed, ignored for a stated reason, or an error. Every parameter of ours is filled from
the checkpoint, initialised because the caller asked for a fresh head, or an error.
"""

import hashlib
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from bertqa.console import say
from bertqa.errors import UserError
from bertqa.files import read_object, sha256, write_text
from bertqa.folders import (
    cache_folder,
    clear_leftovers,
    locked,
    model_of,
    new_folder,
    staged,
)
from bertqa.hf import hub, vocabulary
from bertqa.hf.architecture import model_type_of, read_hf_config, take_settings
from bertqa.hf.match import SEGMENT, Plan, plan_conversion
from bertqa.hf.names import Report, dtype_name, fold
from bertqa.hf.weights import open_weights
from bertqa.model.card import plain_card, read_license
from bertqa.model.disk import WEIGHTS, Weights, write_checksums, write_safetensors
from bertqa.model.record import write_config


def convert(src: str | Path, dest: str | Path, *, fresh_head=None, seed: int = 0) -> Report:
    """Convert a Hugging Face checkpoint into a model folder.

    Args:
        src: a folder, one weight file in it, or a Hub id `org/name[@revision]`.
        dest: a new or empty folder; it is written only if everything succeeds.
        fresh_head: None to keep the checkpoint's head, "none" to leave it out; "qa" or ("classification", labels) to put a
            new head in its place, initialised as BERT's.
        seed: of that initialisation.

    Raises:
        UserError: if the tensors do not fit (all of them are listed), or a file is missing, damaged or contradicts another.
    """
    dest = new_folder(dest)
    place = hub.locate(src)
    try:
        return _convert(place, dest, fresh_head, seed)
    except UserError as error:
        # Most messages name a file of the checkpoint; the others get its name here.
        if str(place.folder) in str(error):
            raise
        raise UserError(f"{place.source if place.revision else place.folder}: {error}") from error


def _convert(place: hub.Place, dest: Path, fresh_head, seed: int) -> Report:
    raw = read_hf_config(place.folder)
    # first of all: the weight files of other architectures may be in any format
    model_type_of(raw, ())
    weights = open_weights(place.weights)
    plan = plan_conversion(raw, weights, fresh_head)
    provenance = {
        "source": place.source,
        "revision": place.revision,
        "license": read_license(place.folder),
        "sha256": weights.sha256(),
    }
    if fresh_head not in (None, "none"):
        # recorded, because such a head gives no useful answers before it is trained
        provenance["fresh_head"] = seed
    parameters = sum(tensor.numel() for tensor in plan.parameters.values())

    with staged(dest) as new:
        tokenizer = vocabulary.install(place.folder, new, plan.config.vocab_size)
        remarks = [*plan.remarks, *tokenizer.remarks]
        # With a fresh head it keeps both rows: it will be trained here, with token types.
        has_segments = plan.config.type_vocab_size > 0 and fresh_head is None
        one_segment = has_segments and not tokenizer.segments
        if one_segment:
            remarks.append(
                "its tokenizer gives no token types: the row of the first segment stands for both"
            )
        generator = torch.Generator().manual_seed(seed)
        tensors = _Tensors(plan, weights, generator, one_segment)
        written = write_safetensors(new / WEIGHTS, plan.parameters, tensors.get)
        tensors.check()
        remarks += take_settings(place.folder, new, plan.config, plan.head, fresh_head)
        # again, because another process may have written there meanwhile
        new_folder(dest)
        write_config(new, plan.config, plan.head, plan.labels, provenance)
        write_text(new / "README.md", plain_card(plan.config, plan.head, parameters, provenance))
    return Report(
        source=place.source,
        dest=str(dest),
        model_type=plan.config.model_type,
        head=plan.head,
        parameters=parameters,
        dtype=dtype_name(tensor.dtype for tensor in plan.parameters.values()),
        source_sha256=provenance["sha256"],
        sha256=written,
        rows=plan.rows,
        remarks=remarks,
    )


@dataclass
class _Tensors:
    """Makes each parameter when it is written, so that only one is in memory at a time."""

    plan: Plan
    weights: Weights
    generator: torch.Generator
    one_segment: bool
    """Whether all segments get the embedding of segment 0, the only one that the model was trained with."""
    broken: list[str] = field(default_factory=list)
    """Names of the stored tensors read so far that hold NaN or infinities."""

    def get(self, ours: str) -> Tensor:
        """Return the parameter of this name, from the checkpoint or initialised."""
        if ours not in self.plan.parts:
            # of a fresh head, initialised as BERT's: weights from a normal distribution, biases zero
            drawn = torch.zeros_like(self.plan.parameters[ours], device="cpu")
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
        return whole.to(self.plan.parameters[ours].dtype)

    def check(self) -> None:
        """Raise UserError if any tensor read so far holds NaN or infinities."""
        if self.broken:
            names = ", ".join(fold(self.broken)[:8])
            raise UserError(
                f"{len(self.broken)} of its tensors hold NaN or infinite numbers: {names}; "
                "the checkpoint was broken where it was made"
            )


# What --weights and --model take

FORMAT = 1
"""Version of the cache: to be raised when conversion of the same checkpoint gives another result than before."""


def resolve_weights(
    name_or_path: str | Path, cache: str | Path | None = None, *, encoder_only: bool = False
) -> Path:
    """Return the model folder that a user means by --weights or --model.

    A model folder is returned as it is, and a run folder's best model. A Hugging Face folder, file or Hub id is converted
    into the cache once, with a message. A folder or file is converted again when anything that conversion reads has
    changed; a Hub id without a revision stays at the commit of its first conversion. If several processes ask at once,
    one converts and the others wait.

    Args:
        cache: folder of the conversions; None for weights/ in BERTQA_CACHE or ~/.cache/bertqa.
        encoder_only: leave out the head, and other layers on the encoder, because a fresh head will take their place.

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
    dest = _weights_cache(cache) / name
    with locked(dest.with_name(f"{name}.lock")) as is_alone:
        if is_alone:
            clear_leftovers(dest)
        if _is_whole(dest):
            say(f"using {dest}, converted from {name_or_path} before")
            return dest
        # A copy of the cache that was interrupted (rsync) leaves half a folder.
        shutil.rmtree(dest, ignore_errors=True)
        if not is_here:
            say(f"{name_or_path}: no such folder here; taken as a Hub id")
        say(f"converting {name_or_path} into {dest} (once)")
        try:
            report = convert(source, dest, fresh_head="none" if encoder_only else None)
            # Nobody edits a folder in the cache, so it can have checksums from the start.
            write_checksums(dest, {WEIGHTS: report.sha256})
        except UserError:
            # without a lock, another process may have converted it meanwhile
            if not _is_whole(dest):
                raise
    return dest


def _weights_cache(given: str | Path | None) -> Path:
    """Return the folder of converted weights, created if it does not exist."""
    cache = Path(given) if given else cache_folder() / "weights"
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{cache}: cannot keep converted weights there ({error.strerror}); set BERTQA_CACHE to a folder "
            "that you may write to"
        ) from None
    return cache


def _is_whole(folder: Path) -> bool:
    return (folder / "config.json").exists() and (folder / WEIGHTS).exists()


def _name_of_path(path: Path) -> str:
    """Return the name in the cache for a local folder or file: its own name, and a hash of all that conversion reads."""
    place = hub.locate(path)
    # A hash of the contents, not of times: a copied checkpoint is not converted again, a changed one is.
    lines = [f"format {FORMAT}"]
    for file in [*hub.files_beside_weights(place), *open_weights(place.weights).files]:
        lines.append(f"{file.relative_to(place.folder)} {sha256(file)}")
    key = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    return f"{place.source}-{key[:16]}"


def _name_of_id(given: str | Path) -> str:
    """Return the name in the cache for a Hub id: organisation, name, revision and FORMAT."""
    repo, revision = hub.parse_id(given)
    name = repo.replace("/", "--")
    if revision:
        name += f"@{revision.replace('/', '-')}"
    return f"{name}-{FORMAT}"
