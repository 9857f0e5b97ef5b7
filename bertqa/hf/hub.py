"""Find a checkpoint: a folder, one weight file, or a repository on the Hugging Face Hub, which is downloaded.

Downloads go through huggingface_hub, a dependency of `tokenizers`, with its cache and its environment variables: HF_HOME,
HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE. It is imported only to download.
"""

import contextlib
import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bertqa.errors import UserError, first_sentence, show
from bertqa.files import sha256
from bertqa.hf.architecture import CONFIG_FILES, pooling_file
from bertqa.hf.weights import ADAPTER_CONFIG, WEIGHT_FILES, adapter_message, shard_names

TEXT_FILES = (
    "tokenizer_config.json",
    "tokenizer.json",
    "vocab.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "README.md",
    "qa.json",
    "modules.json",
    "sentence_bert_config.json",
    "1_Pooling/config.json",
)
"""Files that a conversion reads beside config.json and the weights, if they exist."""

COMMIT = re.compile("[0-9a-f]{40}")
HASH = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")
"""git's hash (sha1) of a small file, sha256 of a large one."""

ID = re.compile(
    r"(?:https?://[^/]+/|hf://)?([\w.-]+/[\w.-]+?)(?:/tree/([^/@]+))?/?(?:@([\w./-]+))?"
)
"""org/name, org/name@revision, or the URL of a model's page; groups: the id, and a revision in either form."""


@dataclass
class Place:
    """A Hugging Face checkpoint on disk."""

    folder: Path
    """Holds config.json and the tokenizer files."""
    weights: Path
    """The folder, or the one weight file or index in it to read."""
    source: str
    """The Hub id, or the name of the folder."""
    revision: str | None = None
    """The commit on the Hub; None for a local folder."""


def locate(source: str | Path) -> Place:
    """Find a folder, a weight file or a Hub id `org/name[@revision]`, and download the latter unless it is in the cache.

    Raises:
        UserError: if it exists neither here nor on the Hub, without access or connection, or for a damaged download.
    """
    path = Path(source)
    if path.is_dir() or path.is_file():
        # Some people name config.json for the model.
        if path.suffix in (".json", ".txt", ".md") and not path.name.endswith(".index.json"):
            raise UserError(f"{path}: is no weight file; name the folder that it stands in")
        folder = path if path.is_dir() else path.parent
        return Place(folder, path, folder.resolve().name)
    repo, revision = parse_id(source)
    folder = download(repo, revision)
    return Place(folder, folder, repo, folder.name)


def files_beside_weights(place: Place) -> list[Path]:
    """Return the files that a conversion of this checkpoint reads beside its weights: settings, tokenizer, card, index."""
    indexes = [name for name in WEIGHT_FILES if name.endswith(".index.json")]
    names = [*CONFIG_FILES, *TEXT_FILES, *indexes]
    pooling = pooling_file(place.folder)
    if pooling and pooling not in names:
        names.append(pooling)
    if place.weights.name.endswith(".index.json"):
        names.append(place.weights.name)
    return [place.folder / name for name in names if (place.folder / name).is_file()]


def parse_id(source: str | Path) -> tuple[str, str | None]:
    """Return ("org/name", revision or None) of a Hub id. Raise UserError if it can only be a path that does not exist."""
    # README's commands name weights/, a folder of the repository.
    if Path(source).parts[:1] == ("weights",):
        raise UserError(
            f"{source}: there is no such folder here, and nothing under weights/ is looked for on the Hub; "
            "the bundled reader is what is taken where no model is named"
        )
    match = ID.fullmatch(str(source))
    parent = Path(source).parent
    # runs/bset while runs/ exists is a mistyped path, not a Hub id
    mistyped = parent != Path(".") and parent.is_dir()
    if mistyped or not match or ".." in str(source):
        where = f" in {parent}" if mistyped else ""
        raise UserError(
            f"{source}: there is no such file or folder{where}; expected a path, "
            "or a Hub id like google-bert/bert-base-uncased"
        )
    return match[1], match[2] or match[3]


def download(repo: str, revision: str | None = None) -> Path:
    """Fetch config, tokenizer, card and weights of a checkpoint into Hugging Face's cache, all from one commit.

    Weights are fetched in one format only, and nothing that is in the cache already. Every file is checked against the
    Hub's hash of it.

    Returns:
        The snapshot folder, whose name is the commit.
    """
    with checked_answers():
        config = _fetch_first(repo, CONFIG_FILES, revision, "config.json")
        # The other files come from this commit: the branch may move meanwhile.
        commit = config.parent.name
        for name in TEXT_FILES:
            fetch(repo, name, commit)  # each may be missing
        pooling = pooling_file(config.parent)
        if pooling and pooling not in TEXT_FILES:
            fetch(repo, pooling, commit)
        weights = _fetch_first(repo, WEIGHT_FILES, commit, "model.safetensors or pytorch_model.bin")
        if weights.name.endswith(".index.json"):
            for shard in sorted(set(shard_names(weights).values())):
                _fetch_first(repo, [shard], commit, shard)
    return config.parent


def _fetch_first(repo: str, names: Sequence[str], revision: str | None, wanted: str) -> Path:
    """Fetch the first of these files that the repository has. Raise UserError if it has none of `wanted`."""
    from huggingface_hub import constants

    for name in names:
        path = fetch(repo, name, revision)
        if path is not None:
            return path
    if fetch(repo, ADAPTER_CONFIG, revision):
        raise UserError(adapter_message(repo))
    if constants.HF_HUB_OFFLINE:
        raise UserError(
            f"{repo}: {wanted} is not in the cache {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE forbids to fetch "
            "it; unset HF_HUB_OFFLINE once, or copy the cache from a machine that has it"
        )
    raise UserError(
        f"{repo}: has no {wanted} on {constants.ENDPOINT}; is it a checkpoint for transformers?"
    )


@contextlib.contextmanager
def checked_answers() -> Iterator[None]:
    """Pass every HTTP response of the Hub to `refuse_bad_names` inside the block.

    huggingface_hub names files in its cache by the ETag and the commit in the response, without checking either.
    """
    import huggingface_hub as hub
    from huggingface_hub.utils import _http as http

    if hasattr(hub, "set_client_factory"):
        before = http._GLOBAL_CLIENT_FACTORY
        configure = hub.set_client_factory
    else:  # before 1.0: requests in place of httpx
        before = http._GLOBAL_BACKEND_FACTORY
        configure = hub.configure_http_backend

    def factory():
        client = before()
        hooks = getattr(client, "event_hooks", None) or client.hooks
        hooks["response"].append(lambda answer, *_, **__: refuse_bad_names(answer))
        return client

    # The hook runs before huggingface_hub sees the response.
    configure(factory)
    try:
        yield
    finally:
        configure(before)


def refuse_bad_names(answer) -> None:
    """Raise UserError for a response to HEAD whose ETag is no hash, or whose commit is no commit hash.

    A download cannot be checked against such an ETag, and one like ../../x would lead out of the cache.
    """
    if answer.request.method != "HEAD":
        return  # the server of the file itself: no file is named by its ETag
    commit = answer.headers.get("X-Repo-Commit")
    if commit is None:
        return  # huggingface_hub refuses that itself
    linked = answer.headers.get("X-Linked-Etag")
    tag = linked or answer.headers.get("ETag")
    problems = []
    if not COMMIT.fullmatch(commit):
        problems.append(f"the commit {show(commit)}")
    if tag is not None and not HASH.fullmatch(tag.removeprefix("W/").strip('"')):
        problems.append(f"the ETag {show(tag)}")
    if problems:
        raise UserError(
            f"{answer.request.url}: the server states {' and '.join(problems)}, which is no hash, so what it "
            "sends cannot be checked; nothing was fetched. Is HF_ENDPOINT a mirror of the Hub?"
        )


def fetch(repo: str, name: str, revision: str | None) -> Path | None:
    """Return the path of a repository's file in the cache, downloaded if need be; None if the repository has no such file.

    Raises:
        UserError: if it could not be fetched; says why.
    """
    import huggingface_hub as hub
    from huggingface_hub import errors

    try:
        path = Path(hub.hf_hub_download(repo, name, revision=revision))
    except UserError as error:
        raise UserError(f"{repo}: {error}") from None
    except errors.LocalEntryNotFoundError as error:
        # Not in the cache, and the Hub cannot be reached. The cache also records files that the repository does not have.
        known = hub.try_to_load_from_cache(repo, name, revision=revision)
        if hub.constants.HF_HUB_OFFLINE or known is hub.file_download._CACHED_NO_EXIST:
            return None
        raise UserError(
            f"{repo}: there is no such folder here, {hub.constants.ENDPOINT} cannot be reached "
            f"({first_sentence(error.__cause__ or error)}), and {name} is not in the cache {hub.constants.HF_HUB_CACHE}"
        ) from error
    except errors.EntryNotFoundError:
        return None
    except Exception as error:  # httpx or requests have errors of their own
        raise UserError(f"{repo}: {_why_not_fetched(repo, name, revision, error)}") from error
    _verify(repo, path)
    return path


def _why_not_fetched(repo: str, name: str, revision: str | None, error: Exception) -> str:
    """Say why a file could not be fetched, and what to do."""
    from huggingface_hub import constants, errors

    # before RepositoryNotFoundError, of which it is a subclass
    if isinstance(error, errors.GatedRepoError):
        return (
            f"is gated; accept its terms on {constants.ENDPOINT}/{repo}, then log in with "
            "`hf auth login` or set HF_TOKEN"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return (
            f'has no revision {revision!r}; look under "Files" on {constants.ENDPOINT}/{repo} for '
            "its branches, tags and commits"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"is neither a folder here nor a model on {constants.ENDPOINT} that you may see; check "
            "the spelling, and for a private one set HF_TOKEN"
        )
    if isinstance(error, errors.HFValidationError):
        return (
            f"there is no such file or folder, and it is no Hub id either ({first_sentence(error)})"
        )
    return (
        f"fetching {name} failed ({type(error).__name__}: {first_sentence(error)}); run the same "
        "command again"
    )


def _verify(repo: str, path: Path) -> None:
    """Check a file against the Hub's hash, which is its name in the cache. If they differ, delete it and raise UserError."""
    stored = path.resolve()
    if stored.name == path.name:
        return  # without symbolic links, the cache has no hash of the file
    if len(stored.name) == 64:
        found = sha256(stored)
    else:
        content = stored.read_bytes()
        found = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    if found != stored.name:
        path.unlink()
        stored.unlink(missing_ok=True)
        raise UserError(
            f"{repo}: {path.name} arrived damaged (its hash is {found[:12]}..., the Hub says "
            f"{stored.name[:12]}...); it was deleted, run the same command again"
        )
