"""What --weights and --model take: a model folder, or a Hugging Face checkpoint that is converted the first time."""

import sys
from pathlib import Path

from bertqa.errors import UserError
from bertqa.files import read_object
from bertqa.hf import hub
from bertqa.hf.convert import convert
from bertqa.hf.weights import open_weights


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
