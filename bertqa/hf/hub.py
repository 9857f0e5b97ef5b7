"""Where a checkpoint is: a folder, one weight file, or the Hugging Face Hub.

Downloads go through huggingface_hub (which `tokenizers` brings), so its cache and its variables hold: HF_HOME,
HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE. It is imported only when something is fetched.
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
from bertqa.hf.weights import ADAPTER_CONFIG, WEIGHT_FILES, adapter, shard_names

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
"""What else a conversion reads, of tokenizers, cards, bertqa's own and sentence-transformers' settings."""

COMMIT = re.compile("[0-9a-f]{40}")
HASH = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")
"""git's hash of a small file, sha256 of a large one."""

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
        # config.json, say: named by whoever took it for the model
        if path.suffix in (".json", ".txt", ".md") and not path.name.endswith(".index.json"):
            raise UserError(f"{path}: is no weight file; name the folder that it stands in")
        folder = path if path.is_dir() else path.parent
        return Place(folder, path, folder.resolve().name)
    repo, revision = parse_id(source)
    folder = download(repo, revision)
    return Place(folder, folder, repo, folder.name)


def parse_id(source: str | Path) -> tuple[str, str | None]:
    """("org/name", revision or None) of a Hub id. Raises UserError for what can only be a path that does not exist."""
    if Path(source).parts[:1] == ("weights",):  # README's, and ours where there is a clone
        raise UserError(
            f"{source}: there is no such folder here, and nothing under weights/ is looked for on the Hub; "
            "the bundled reader is what is taken where no model is named"
        )
    match = ID.fullmatch(str(source))
    parent = Path(source).parent
    # runs/bset, where runs/ is here: never ask the Hub for that
    mistyped = parent != Path(".") and parent.is_dir()
    if mistyped or not match or ".." in str(source):
        where = f" in {parent}" if mistyped else ""
        raise UserError(
            f"{source}: there is no such file or folder{where}; expected a path, "
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
    with checked_answers():
        config = _first(repo, CONFIG_FILES, revision, "config.json")
        # A branch may move while files are fetched; its commit does not.
        commit = config.parent.name
        for name in TEXT_FILES:
            fetch(repo, name, commit)  # none of them is in every repository
        pooling = pooling_file(config.parent)
        if pooling and pooling not in TEXT_FILES:
            fetch(repo, pooling, commit)
        weights = _first(repo, WEIGHT_FILES, commit, " or ".join(WEIGHT_FILES[::2]))
        if weights.name.endswith(".index.json"):
            for shard in sorted(set(shard_names(weights).values())):
                _first(repo, [shard], commit, shard)
    return config.parent


def _first(repo: str, names: Sequence[str], revision: str | None, wanted: str) -> Path:
    """The first of these files that the repository has. Raises UserError, where it has none, that calls them `wanted`."""
    from huggingface_hub import constants

    for name in names:
        path = fetch(repo, name, revision)
        if path is not None:
            return path
    if fetch(repo, ADAPTER_CONFIG, revision):
        raise UserError(adapter(repo))
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
    """While the block runs, every answer of the Hub passes `refuse_bad_names` before paths are made of it.

    huggingface_hub names files in its cache by the ETag and the commit that the server states, and believes both.
    """
    import huggingface_hub as hub
    from huggingface_hub.utils import _http as http

    if hasattr(hub, "set_client_factory"):
        before = http._GLOBAL_CLIENT_FACTORY
        configure = hub.set_client_factory
    else:  # before 1.0, it spoke through another library
        before = http._GLOBAL_BACKEND_FACTORY
        configure = hub.configure_http_backend

    def factory():
        client = before()
        hooks = getattr(client, "event_hooks", None) or client.hooks
        hooks["response"].append(lambda answer, *_, **__: refuse_bad_names(answer))
        return client

    # Every answer passes through a hook of the HTTP client, before huggingface_hub makes a path of what it states.
    configure(factory)
    try:
        yield
    finally:
        configure(before)


def refuse_bad_names(answer) -> None:
    """Raise UserError for an answer to HEAD whose ETag is no hash, or whose commit is none.

    Of such an ETag no download can be checked, and one like ../../x would lead out of the cache.
    """
    if answer.request.method != "HEAD":
        return  # a file's own server may have ETags of any kind: nothing is named by them
    commit = answer.headers.get("X-Repo-Commit")
    if commit is None:
        return  # huggingface_hub refuses it by itself
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
    """One file of a repository, from the cache or the Hub; None where the repository has no such file.

    Raises:
        UserError: with the reason for which it could not be had.
    """
    import huggingface_hub as hub
    from huggingface_hub import errors

    # Narrow errors first: a gated repository is, to huggingface_hub, also one that is not found.
    try:
        path = Path(hub.hf_hub_download(repo, name, revision=revision))
    except UserError as error:
        raise UserError(f"{repo}: {error}") from None
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
    except errors.LocalEntryNotFoundError as error:
        # not in the cache, and the Hub could not be asked; the cache may remember that there is no such file
        known = hub.try_to_load_from_cache(repo, name, revision=revision)
        if hub.constants.HF_HUB_OFFLINE or known is hub.file_download._CACHED_NO_EXIST:
            return None
        raise UserError(
            f"{repo}: there is no such folder here, {hub.constants.ENDPOINT} cannot be reached "
            f"({first_sentence(error.__cause__ or error)}), and {name} is not in the cache {hub.constants.HF_HUB_CACHE}"
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


def _verify(repo: str, path: Path) -> None:
    """The cache names a file by the hash that the Hub gave: sha256 for large files, git's own for small ones."""
    stored = path.resolve()
    if stored.name == path.name:
        return  # a file system without links: the name is the plain one
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
