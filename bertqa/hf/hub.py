"""Where a checkpoint is: a folder, one weight file, or the Hugging Face Hub.

Downloads go through huggingface_hub (which `tokenizers` brings), so its cache and its variables hold: HF_HOME,
HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE. It is imported only when something is fetched. Model cards, which the Hub reads the
metadata of, are read and written here too.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

from bertqa.errors import UserError, first_sentence
from bertqa.hf.weights import WEIGHT_FILES

ID = re.compile(
    r"(?:https?://[^/]+/|hf://)?([\w.-]+/[\w.-]+?)(?:/tree/([^/@]+))?/?(?:@([\w./-]+))?"
)
"""org/name, org/name@revision, or the address of a model's page."""


@dataclass
class Place:
    """A Hugging Face checkpoint on this disk."""

    folder: Path
    """Holds config.json and the tokenizer files."""
    weights: Path
    """The folder, or the one file or index in it to read."""
    source: str
    """What its origin is called: the Hub id, or the name of the folder."""
    revision: str | None = None
    """Commit on the Hub."""


def locate(source: str | Path) -> Place:
    """The folder, file or Hub id `org/name[@revision]`, downloaded if it has to be.

    Raises:
        UserError: nothing of that name here or there, no access, no connection, or a damaged download.
    """
    path = Path(source)
    if path.is_dir() or path.is_file():
        folder = path if path.is_dir() else path.parent
        return Place(folder, path, folder.resolve().name)
    repo, revision = parse_id(source)
    folder = download(repo, revision)
    return Place(folder, folder, repo, folder.name)


def parse_id(source: str | Path) -> tuple[str, str | None]:
    """("org/name", revision or None) of a Hub id. Raises UserError for what can only be a path that does not exist."""
    match, parent = ID.fullmatch(str(source)), Path(source).parent
    mistyped = (
        parent != Path(".") and parent.is_dir()
    )  # runs/bset, where runs/ is here: never ask the Hub for that
    if mistyped or not match:
        raise UserError(
            f"{source}: there is no such file or folder{f' in {parent}' if mistyped else ''}; expected a path, "
            "or a Hub id like google-bert/bert-base-uncased"
        )
    return match[1], match[2] or match[3]


def download(repo: str, revision: str | None = None) -> Path:
    """Fetch config, tokenizer, card and weights of a checkpoint into Hugging Face's cache, all of one commit.

    Only these files, weights in one form only; what is in the cache already is not fetched again. Every file is checked
    against the hash under which the Hub keeps it.

    Returns:
        The snapshot's folder, named by its commit.
    """
    config = next(
        filter(None, (fetch(repo, name, revision) for name in ("config.json", "bert_config.json"))),
        None,
    )
    if config is None:
        raise _lacks(repo, "config.json")
    folder = config.parent
    for name in ("tokenizer_config.json", "tokenizer.json", "vocab.txt", "README.md", "qa.json"):
        fetch(repo, name, folder.name)
    weights = next(filter(None, (fetch(repo, name, folder.name) for name in WEIGHT_FILES)), None)
    if weights is None:
        raise _lacks(repo, " or ".join(WEIGHT_FILES[::2]))
    if weights.name.endswith(".index.json"):
        try:
            shards = sorted(
                set(json.loads(weights.read_text(encoding="utf-8"))["weight_map"].values())
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{repo}: {weights.name} is not an index of weight shards ({error})"
            ) from error
        for shard in shards:
            if fetch(repo, shard, folder.name) is None:
                raise _lacks(repo, shard)
    return folder


def fetch(repo: str, name: str, revision: str | None) -> Path | None:
    """One file of a repository, from the cache or the Hub; None where the repository has no such file.

    Raises:
        UserError: with the reason for which it could not be had.
    """
    import huggingface_hub as hub
    from huggingface_hub import errors

    try:
        path = Path(hub.hf_hub_download(repo, name, revision=revision))
    except errors.GatedRepoError as error:
        raise UserError(
            f"{repo}: is gated; accept its terms on {hub.constants.ENDPOINT}/{repo}, then log in with "
            "`hf auth login` or set HF_TOKEN"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(
            f'{repo}: has no revision {revision!r}; look under "Files" on {hub.constants.ENDPOINT}/{repo} for '
            "its branches, tags and commits"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"{repo}: is neither a folder here nor a model on {hub.constants.ENDPOINT} that you may see; check "
            "the spelling, and for a private one set HF_TOKEN"
        ) from error
    except (
        errors.LocalEntryNotFoundError
    ) as error:  # not in the cache, and the Hub could not be asked
        if hub.constants.HF_HUB_OFFLINE or _known_absent(hub, repo, name, revision):
            return None
        raise UserError(
            f"{repo}: {hub.constants.ENDPOINT} cannot be reached ({first_sentence(error.__cause__ or error)}), "
            f"and {name} is not in the cache {hub.constants.HF_HUB_CACHE}"
        ) from error
    except errors.EntryNotFoundError:
        return None
    except errors.HFValidationError as error:
        raise UserError(
            f"{repo}: there is no such file or folder, and it is no Hub id either "
            f"({first_sentence(error)})"
        ) from error
    except Exception as error:  # whatever the HTTP library of that version raises
        raise UserError(
            f"{repo}: fetching {name} failed ({type(error).__name__}: {first_sentence(error)}); run the same "
            "command again"
        ) from error
    _verify(repo, path)
    return path


def _lacks(repo: str, name: str) -> UserError:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return UserError(
            f"{repo}: {name} is not in the cache {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE forbids to fetch "
            "it; unset HF_HUB_OFFLINE once, or copy the cache from a machine that has it"
        )
    return UserError(
        f"{repo}: has no {name} on {constants.ENDPOINT}; is it a checkpoint for transformers?"
    )


def _known_absent(hub, repo: str, name: str, revision: str | None) -> bool:
    """Whether the cache remembers that the repository has no such file."""
    return (
        hub.try_to_load_from_cache(repo, name, revision=revision)
        is hub.file_download._CACHED_NO_EXIST
    )


def _verify(repo: str, path: Path) -> None:
    """The cache names a file by the hash that the Hub gave: sha256 for large files, git's own for small ones."""
    stored = path.resolve()
    if not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", stored.name):
        return  # a file system without links: the name is the plain one
    digest = (
        hashlib.sha256()
        if len(stored.name) == 64
        else hashlib.sha1(b"blob %d\0" % stored.stat().st_size)
    )
    with open(stored, "rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    if digest.hexdigest() != stored.name:
        path.unlink()
        stored.unlink(missing_ok=True)
        raise UserError(
            f"{repo}: {path.name} arrived damaged (its hash is {digest.hexdigest()[:12]}..., the Hub says "
            f"{stored.name[:12]}...); it was deleted, run the same command again"
        )
