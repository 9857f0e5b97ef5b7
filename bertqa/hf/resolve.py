"""What --weights and --model take: a model folder, or a Hugging Face checkpoint that is converted the first time."""

import hashlib
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from bertqa.errors import UserError
from bertqa.files import cache_folder, model_of, read_object, sha256
from bertqa.folders import locked
from bertqa.hf import hub
from bertqa.hf.convert import convert
from bertqa.hf.weights import WEIGHT_FILES, open_weights

FORMAT = 1
"""To be raised when the same checkpoint converts into something else than before."""


@dataclass
class _Source:
    """What to convert, and the name of the folder in the cache that it becomes."""

    given: str | Path
    name: str


def resolve_weights(
    name_or_path: str | Path, cache: str | Path | None = None, *, encoder_only: bool = False
) -> Path:
    """The model folder that a user means by --weights or --model.

    A model folder is taken as it is, and of a run folder its best model. A Hugging Face folder, file or Hub id is converted
    into the cache the first time, which is said on stderr, and taken from there after that: a folder or file as long as all
    that conversion reads is unchanged, a Hub id without a revision at the commit of that first time. Several processes may
    ask at once: one converts, the others wait for it.

    Args:
        cache: where conversions are kept; weights/ in BERTQA_CACHE or ~/.cache/bertqa where None.
        encoder_only: leave out the head, and what else stands on the encoder, because a fresh head will take its place.

    Raises:
        UserError: as `convert`.
    """
    path = model_of(name_or_path)
    if _is_model_folder(path):
        return path
    source = _source_of_path(path) if path.exists() else _source_of_id(name_or_path)
    name = source.name + ("-encoder" if encoder_only else "")
    cache = Path(cache) if cache else cache_folder() / "weights"
    _make(cache)
    dest = cache / name
    with locked(cache / f"{name}.lock"):
        if _is_whole(dest):
            print(f"using {dest}, converted from {name_or_path} before", file=sys.stderr)
            return dest
        # half a folder, of a copy or an rsync that was cut off: all in the cache is ours to make anew
        shutil.rmtree(dest, ignore_errors=True)
        if not path.exists():
            print(f"{name_or_path}: no such folder here; taken as a Hub id", file=sys.stderr)
        print(f"converting {name_or_path} into {dest} (once)", file=sys.stderr)
        try:
            convert(source.given, dest, fresh_head="none" if encoder_only else None)
        except UserError:
            # on a file system without locks, another process may have been faster
            if not _is_whole(dest):
                raise
    return dest


def _is_model_folder(path: Path) -> bool:
    config = path / "config.json"
    return config.exists() and "architecture" in read_object(config)


def _is_whole(folder: Path) -> bool:
    return (folder / "config.json").exists() and (folder / "model.safetensors").exists()


def _make(cache: Path) -> None:
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{cache}: cannot keep converted weights there ({error.strerror}); set BERTQA_CACHE to a folder "
            "that you may write to"
        ) from None


def _source_of_path(path: Path) -> _Source:
    """A folder or file here: its name, and a hash over all that conversion reads."""
    place = hub.locate(path)
    names = (*hub.CONFIG_FILES, *hub.TEXT_FILES, *WEIGHT_FILES[1::2])
    read = [place.folder / name for name in names if (place.folder / name).is_file()]
    lines = [f"format {FORMAT}"]
    for file in (*read, *open_weights(place.weights).files):
        lines.append(f"{file.relative_to(place.folder)} {sha256(file)}")
    key = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    return _Source(path, f"{place.source}-{key[:16]}")


def _source_of_id(given: str | Path) -> _Source:
    """A Hub id: organisation, name and revision."""
    repo, revision = hub.parse_id(given)
    name = repo.replace("/", "--")
    if revision:
        name += f"@{revision.replace('/', '-')}"
    return _Source(given, f"{name}-{FORMAT}")
