"""A Hugging Face checkpoint into a model folder, with nothing passed over in silence.

Every tensor of a checkpoint is renamed, ignored for a stated reason, or an error; every tensor of ours is found, drawn
fresh because that was asked for, or an error.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from bertqa.errors import UserError
from bertqa.files import write_text
from bertqa.folders import staged
from bertqa.hf import hub, vocabulary
from bertqa.hf.architecture import model_type_of, read_hf_config
from bertqa.hf.match import SEGMENT, Plan, plan_conversion
from bertqa.hf.pooling import read_pooling
from bertqa.hf.table import Report, fold
from bertqa.hf.weights import open_weights
from bertqa.model.card import plain_card, read_license
from bertqa.model.config import BertConfig
from bertqa.model.record import QA, read_qa, write_config, write_embed, write_qa
from bertqa.model.tensors import DTYPES, Weights, write_safetensors


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
    dtypes = {name: _stored_dtype(weights, plan.parts.get(name, ())) for name in plan.empty}
    tensors = _Tensors(plan, weights, dtypes, torch.Generator().manual_seed(seed))
    provenance = {
        "source": place.source,
        "revision": place.revision,
        "license": read_license(place.folder),
        "sha256": weights.sha256(),
    }
    if fresh_head not in (None, "none"):
        # these weights answer nothing before they are trained
        provenance["fresh_head"] = seed
    shapes = {name: tuple(tensor.shape) for name, tensor in plan.empty.items()}
    parameters = sum(tensor.numel() for tensor in plan.empty.values())

    with staged(dest) as new:
        tokenizer = vocabulary.install(place.folder, new, plan.config.vocab_size)
        remarks = [*plan.remarks, *tokenizer.remarks]
        if not tokenizer.segments and plan.config.type_vocab_size and fresh_head is None:
            tensors.one_segment = True
            remarks.append(
                "its tokenizer gives no token types: the row of the first segment stands for both"
            )
        sha256 = write_safetensors(new / "model.safetensors", dtypes, shapes, tensors.get)
        tensors.check()
        remarks += _take_settings(place.folder, new, plan, fresh_head)
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
        dtype=dtype_name(dtypes.values()),
        source_sha256=provenance["sha256"],
        sha256=sha256,
        rows=plan.rows,
        remarks=remarks,
    )


def _take_settings(source: Path, new: Path, plan: Plan, fresh_head) -> list[str]:
    """Take over how a checkpoint's maker used it: bertqa's threshold, sentence-transformers' pooling. Returns remarks."""
    if plan.head == QA and fresh_head is None and (source / "qa.json").exists():
        write_qa(new, read_qa(source))
        return ["qa.json taken over: the threshold and windows that its maker tuned with bertqa"]
    embedding, remarks = read_pooling(source, plan.config.max_position_embeddings)
    if plan.head is not None or embedding is None:
        return []
    write_embed(new, embedding)
    return remarks


@dataclass
class _Tensors:
    """Our tensors, each made from the stored ones when it is written, so that memory holds one at a time."""

    plan: Plan
    weights: Weights
    dtypes: dict[str, torch.dtype]
    generator: torch.Generator
    one_segment: bool = False
    """Whether every segment gets the first one's row, as the model was never fed another."""
    broken: list[str] = field(default_factory=list)
    """Stored tensors with numbers that are not finite, among those read so far."""

    def get(self, ours: str) -> Tensor:
        if ours not in self.plan.parts:
            shape = self.plan.empty[ours].shape
            return _draw(ours, shape, self.plan.config, self.generator)
        pieces = []
        for name in self.plan.parts[ours]:
            piece = self.weights.get(name)
            if not piece.isfinite().all():
                self.broken.append(name)
            pieces.append(piece)
        whole = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        if self.one_segment and ours.endswith(SEGMENT):
            whole = whole[:1].expand_as(whole)
        return whole.to(self.dtypes[ours])

    def check(self) -> None:
        """Raise UserError where what was read is not finite."""
        if self.broken:
            names = ", ".join(fold(self.broken)[:8])
            raise UserError(
                f"{len(self.broken)} of its tensors hold NaN or infinite numbers: {names}; "
                "the checkpoint was broken where it was made"
            )


def _draw(ours: str, shape, config: BertConfig, generator: torch.Generator) -> Tensor:
    """BERT's initialisation of one parameter of a head: weights from a normal, biases zero."""
    if ours.endswith("bias"):
        return torch.zeros(shape)
    return torch.empty(shape).normal_(0.0, config.initializer_range, generator=generator)


def _stored_dtype(weights: Weights, names: Iterable[str]) -> torch.dtype:
    """As stored, so that nothing is lost on the way; float32 for float64, for parts that differ, and for fresh ones."""
    stored = {DTYPES[weights.dtypes[name]] for name in names}
    if len(stored) == 1 and stored != {torch.float64}:
        return stored.pop()
    return torch.float32


def dtype_name(dtypes: Iterable[torch.dtype]) -> str:
    """ "float16", or "float16 and float32"."""
    return " and ".join(sorted({str(dtype).removeprefix("torch.") for dtype in dtypes}))
