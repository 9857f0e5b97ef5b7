"""Checkpoints from the Hub, tried against a server on this machine that answers as the Hub does.

The client runs in a process of its own, for huggingface_hub reads its variables when it is imported.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from processes import python
from safetensors.torch import load_file, save_file
from servers import COMMITS, MIB, ROOT, Hub, etag, hub_client, serving
from tiny_checkpoints import write_checkpoint

from bertqa.errors import UserError
from bertqa.hf import hub
from bertqa.hf.convert import convert, resolve_weights
from bertqa.model import folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("hub") / "tiny")


@pytest.fixture
def server(checkpoint):
    """The Hub, with org/tiny, org/sharded and several that go wrong. `log` lists what was asked of it."""
    files = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
    files |= {"tf_model.h5": b"of no use", "pytorch_model.bin": b"of no use either"}
    tensors = load_file(checkpoint / "model.safetensors")
    halves = {f"model-0000{i + 1}-of-00002.safetensors": sorted(tensors)[i::2] for i in range(2)}
    shards = {}
    for name, part in halves.items():
        save_file({key: tensors[key] for key in part}, checkpoint.with_name(name))
        shards[name] = checkpoint.with_name(name).read_bytes()
    index = {
        "metadata": {},
        "weight_map": {key: name for name, part in halves.items() for key in part},
    }
    sharded = {k: v for k, v in files.items() if k != "model.safetensors"} | shards
    sharded["model.safetensors.index.json"] = json.dumps(index).encode()
    repos = {f"org/{name}": files for name in ("tiny", "gated", "damaged", "broken")}
    repos["org/cut"] = files | {"model.safetensors": bytes(range(256)) * (MIB * 12 // 256)}
    repos |= {
        "other/tiny": files,
        "org/sharded": sharded,
        "org/empty": {"README.md": b"nothing"},
        "org/half": {k: v for k, v in sharded.items() if not k.startswith("model-00002")},
        "org/config": {"config.json": files["config.json"]},
    }
    with serving(Hub, repos=repos, log=[], damaged="model.safetensors") as running:
        yield running


@pytest.fixture
def client(server, tmp_path):
    """Run `hub.locate` as a verb would; returns (folder or None, what stood on stderr)."""

    def run(name: str, **env) -> tuple[Path | None, str]:
        said = tmp_path / "said"
        said.mkdir(exist_ok=True)
        code = (
            "import time\ntime.sleep = lambda seconds: None    # between retries\n"
            "from bertqa.flags import run_verb\nfrom bertqa.hf import hub\n"
            f"raise SystemExit(run_verb(lambda argv: print(hub.locate({name!r}).folder) or 0))"
        )
        process = python(["-c", code], tmp_path, hub_client(server, tmp_path / "home", **env), said)
        process.join(120)
        out, err = (said / "out").read_text(), (said / "err").read_text()
        assert process.exitcode in (0, 2) and "Traceback" not in err, err
        errors = [line for line in err.splitlines() if line.startswith("error: ")]
        assert (process.exitcode == 2) == (len(errors) == 1)
        return (None, errors[0]) if errors else (Path(out.strip()), err)

    return run


def same_files(one: Path, other: Path, but: str = "") -> bool:
    names = [path.name for path in one.iterdir() if path.name != but]
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


def test_only_what_is_needed(client, server, checkpoint):
    where, _ = client("org/tiny")
    assert where.name == COMMITS["main"] and same_files(where, checkpoint)
    assert {path.name for path in where.iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.txt",
    }
    assert not {"tf_model.h5", "pytorch_model.bin"} & {name for *_, name, _ in server.log}
    fetched = sum(command == "GET" for command, *_ in server.log)
    client("org/tiny")
    assert sum(command == "GET" for command, *_ in server.log) == fetched, (
        "the second time it comes from the cache"
    )


def test_revision(client):
    assert client("org/tiny@v1")[0].name == COMMITS["v1"]
    _, error = client("org/tiny@v9")
    assert (
        "error: org/tiny: has no revision 'v9'; look under \"Files\" on http://127.0.0.1" in error
    )


def test_shards(client):
    where, _ = client("org/sharded")
    assert {path.name for path in where.iterdir()} >= {
        "model.safetensors.index.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    }
    _, error = client("org/half")
    assert "error: org/half: has no model-00002-of-00002.safetensors on http://" in error


def test_resumes_after_a_cut(client, server):
    """12 MiB, cut after 11: the client writes blocks of 10 MiB, and asks for what comes after them only."""
    where, _ = client("org/cut")
    assert (where / "model.safetensors").read_bytes() == server.repos["org/cut"][
        "model.safetensors"
    ]
    ranges = [
        asked
        for command, *_, name, asked in server.log
        if command == "GET" and name == "model.safetensors"
    ]
    assert ranges == [None, f"bytes={10 * MIB}-"]


@pytest.mark.parametrize("name", ["model.safetensors", "vocab.txt"])
def test_wrong_checksum(client, server, checkpoint, name):
    server.damaged = name
    right = etag(name, (checkpoint / name).read_bytes())[:12]
    _, error = client("org/damaged")
    assert re.search(
        rf"error: org/damaged: {name} arrived damaged \(its hash is [0-9a-f]{{12}}\.\.\., the Hub says "
        rf"{right}\.\.\.\); it was deleted, run the same command again$",
        error,
    )
    server.damaged = None
    where, _ = client("org/damaged")
    assert same_files(where, checkpoint), "the damaged file was not kept in the cache"


def test_not_found(client):
    _, error = client("org/nothing")
    assert "error: org/nothing: is neither a folder here nor a model on http://127.0.0.1:" in error
    _, error = client("org/empty")
    assert "error: org/empty: has no config.json on http://127.0.0.1:" in error
    _, error = client("org/a--b")
    assert "error: org/a--b: there is no such file or folder, and it is no Hub id either (" in error
    _, error = client("org/config")
    assert (
        "error: org/config: has no model.safetensors or pytorch_model.bin on http://127.0.0.1:"
        in error
    )


def test_gated(client, checkpoint):
    _, error = client("org/gated")
    assert re.search(
        r"error: org/gated: is gated; accept its terms on http://127.0.0.1:\d+/org/gated, then log in with "
        r"`hf auth login` or set HF_TOKEN$",
        error,
    )
    _, error = client("org/gated", HF_TOKEN="hf_bad")
    assert "error: org/gated: is gated" in error
    where, _ = client("org/gated", HF_TOKEN="hf_good")
    assert same_files(where, checkpoint)


def test_offline(client, server, checkpoint):
    _, error = client("org/tiny", HF_HUB_OFFLINE="1")
    assert re.search(
        r"error: org/tiny: config.json is not in the cache .*hub, and HF_HUB_OFFLINE forbids to fetch it",
        error,
    )
    assert server.log == []
    client("org/tiny")
    asked = len(server.log)
    where, _ = client("org/tiny", HF_HUB_OFFLINE="1")
    assert same_files(where, checkpoint) and len(server.log) == asked


def test_no_server(client, checkpoint):
    """A connection that fails, though nobody said offline: an error while the cache is cold, no matter when it is warm."""
    down = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    _, error = client("org/tiny", **down)
    assert re.search(
        r"error: org/tiny: there is no such folder here, http://127.0.0.1:9 cannot be reached \(.+\), and config.json is not in the cache",
        error,
    )
    client("org/sharded")  # of which the cache also knows that it has no model.safetensors
    where, _ = client("org/sharded", **down)
    assert same_files(checkpoint, where, but="model.safetensors")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize(
    "tag", ["../../../../escaped", "/tmp/escaped", "v1", "d41d8cd98f00b204e9800998ecf8427e", ""]
)
def test_an_etag_that_is_no_hash(client, server, tmp_path, name, tag):
    """It names the file in the cache, and is what the download is checked by: nothing of that file is fetched."""
    server.hostile = {name: tag}
    where, error = client("org/tiny")
    assert where is None
    if tag:
        assert f'the server states the ETag "\\"{tag}\\"", which is no hash' in error
    fetched = [asked for command, *_, asked, _ in server.log if command == "GET"]
    assert name not in fetched
    assert not list(tmp_path.rglob("*escaped*"))


def test_a_commit_that_is_no_hash(client, server, tmp_path):
    """It names a folder in the cache, also that of files which the repository does not have."""
    server.hostile = {"commit": "../../../../../escaped"}
    _, error = client("org/tiny")
    assert 'the server states the commit "../../../../../escaped", which is no hash' in error
    _, error = client("org/empty")
    assert "which is no hash" in error
    assert not list(tmp_path.rglob("*escaped*"))


@pytest.mark.parametrize("shard", ["../../escaped.safetensors", "/tmp/x.safetensors", 7, None, ""])
def test_shard_names_that_lead_elsewhere(client, server, tmp_path, shard):
    index = json.dumps({"weight_map": {"a": shard}}).encode()
    server.repos["org/half"]["model.safetensors.index.json"] = index
    _, error = client("org/half")
    assert "which is no name of a weight file" in error
    assert not list(tmp_path.rglob("*escaped*"))


def test_adapter_on_the_hub(client, server):
    server.repos["org/adapter"] = {"adapter_config.json": b"{}", "adapter_model.safetensors": b""}
    _, error = client("org/adapter")
    assert "error: org/adapter: is an adapter" in error and "merge it into its base model" in error


def test_added_tokens_are_fetched(client, server):
    more = {"added_tokens.json": b'{"covid19": 99}', "1_Pooling/config.json": b"{}"}
    server.repos["org/config"] = {**server.repos["org/tiny"], **more}
    where, _ = client("org/config")
    assert all((where / name).read_bytes() == content for name, content in more.items())


def test_server_fails(client):
    _, error = client("org/broken")
    assert (
        "error: org/broken: there is no such folder here, http://127.0.0.1:" in error
        and "cannot be reached" in error
    )


@pytest.mark.parametrize(
    "text, expected",
    [
        ("google-bert/bert-base-uncased", ("google-bert/bert-base-uncased", None)),
        ("org/name.v2@refs/pr/3", ("org/name.v2", "refs/pr/3")),
        ("https://huggingface.co/org/name", ("org/name", None)),
        ("https://huggingface.co/org/name/tree/main", ("org/name", "main")),
        ("hf://org/name@abc", ("org/name", "abc")),
    ],
)
def test_ids(text, expected):
    assert hub.parse_id(text) == expected


def test_nothing_under_weights_is_asked_of_the_hub(tmp_path, monkeypatch):
    """README's command in another folder than the clone."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError, match="^weights/minilm-squad2: there is no such folder here, and"
    ):
        hub.parse_id("weights/minilm-squad2")


def test_a_file_beside_the_weights_is_named_no_weight_file(checkpoint):
    with pytest.raises(UserError, match="config.json: is no weight file; name the folder that it"):
        resolve_weights(checkpoint / "config.json")


@pytest.mark.parametrize(
    "text", ["bert-base-uncased", "a/b/c", "runs/bset", "", "../x", "/no/where"]
)
def test_what_is_no_id(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    with pytest.raises(
        UserError,
        match="there is no such file or folder.*; expected a path, or a Hub id like google-bert/",
    ):
        hub.parse_id(text)


# resolve_weights: what --weights and --model take ---------------------------------------------------------------------


def test_model_folder_is_taken_as_it_is(checkpoint, tmp_path):
    ours = checkpoint.with_name("tiny-ours")
    assert (
        resolve_weights(ours, tmp_path / "weights") == ours and not (tmp_path / "weights").exists()
    )


def test_a_run_folder_stands_for_its_best_model(checkpoint, tmp_path):
    best = tmp_path / "run" / "best"
    shutil.copytree(checkpoint.with_name("tiny-ours"), best)
    (tmp_path / "run" / "config.json").write_text('{"train": "squad2"}')
    assert resolve_weights(tmp_path / "run", tmp_path / "weights") == best


def test_local_folder_is_converted_once(checkpoint, tmp_path, capsys, aloud):
    cache, source = tmp_path / "weights", Path(shutil.copytree(checkpoint, tmp_path / "tiny"))
    first = resolve_weights(source, cache)
    assert first.parent == cache and first.name.startswith("tiny-")
    assert capsys.readouterr().err == f"converting {source} into {first} (once)\n"
    written = (first / "config.json").stat().st_mtime_ns
    assert resolve_weights(source, cache) == first
    assert (first / "config.json").stat().st_mtime_ns == written
    assert capsys.readouterr().err == f"using {first}, converted from {source} before\n"
    tensors = load_file(source / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, source / "model.safetensors")
    second = resolve_weights(source, cache)
    # other weights of the same name must not be taken for these
    assert second != first
    assert torch.equal(folder.load(first).span.bias + 1, folder.load(second).span.bias)
    save_file({name: tensor + 2 for name, tensor in tensors.items()}, source / "model.safetensors")
    third = resolve_weights(source, cache)
    assert torch.equal(folder.load(first).span.bias + 2, folder.load(third).span.bias)


@pytest.mark.parametrize(
    "name, content",
    [
        ("qa.json", {"null_threshold": 2.5}),
        ("tokenizer_config.json", {"do_lower_case": True, "model_max_length": 7}),
        ("special_tokens_map.json", {"additional_special_tokens": ["[MASK]"]}),
        ("config.json", {"hidden_act": "relu"}),
        ("vocab.txt", None),
        ("README.md", None),
    ],
)
def test_conversion_is_made_anew_where_its_source_changed(checkpoint, tmp_path, name, content):
    """Whatever of it conversion reads: tokenizer, threshold, config, licence."""
    source = Path(shutil.copytree(checkpoint, tmp_path / "tiny"))
    (source / "tokenizer.json").unlink()
    first = resolve_weights(source, tmp_path / "weights")
    if content is None:
        with open(source / name, "a") as stream:
            stream.write("\n")
    else:
        before = json.loads((source / name).read_text()) if (source / name).exists() else {}
        (source / name).write_text(json.dumps({**before, **content}))
    assert resolve_weights(source, tmp_path / "weights") != first


def test_half_a_folder_in_the_cache_is_made_anew(checkpoint, tmp_path):
    first = resolve_weights(checkpoint, tmp_path / "weights")
    (first / "model.safetensors").unlink()
    assert resolve_weights(checkpoint, tmp_path / "weights") == first
    folder.load(first)


def test_an_index_that_was_given_by_itself_is_a_part_of_the_source(checkpoint, tmp_path):
    """The same shards, but the index names fewer of their tensors: another conversion, or none."""
    source = Path(shutil.copytree(checkpoint, tmp_path / "tiny"))
    placed = dict.fromkeys(load_file(source / "model.safetensors"), "model.safetensors")
    index = source / "mine.index.json"
    index.write_text(json.dumps({"weight_map": placed}))
    resolve_weights(index, tmp_path / "weights")
    placed.pop("qa_outputs.bias")
    index.write_text(json.dumps({"weight_map": placed}))
    with pytest.raises(UserError, match="missing .qa_outputs.bias"):
        resolve_weights(index, tmp_path / "weights")


KILLED = """
import os, sys
from bertqa.hf import convert as hf
write = hf.write_safetensors
def killed(path, *args):
    write(path, *args)
    os.kill(os.getpid(), 9)
hf.write_safetensors = killed
hf.resolve_weights(*sys.argv[1:])
"""


def test_what_a_killed_conversion_left_is_cleared(checkpoint, tmp_path):
    """By the next one that has its lock; what others put beside it stays."""
    command = [sys.executable, "-c", KILLED, checkpoint, tmp_path / "weights"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run(command, env=env, stderr=subprocess.DEVNULL).returncode == -9
    (left,) = (tmp_path / "weights").glob("*.tmp")
    assert (left / "model.safetensors").exists()
    name = left.name.rsplit(".", 2)[0]
    theirs = ["other.abcdefgh.tmp", f"{name}.mine.tmp", f"{name}.tmp", f"{name}.abcdefgh.new"]
    for other in theirs:
        (tmp_path / "weights" / other).mkdir()
    (tmp_path / "weights" / f"{name}.abcdefgh.tmp").touch()  # a file, and not a folder of ours
    found = resolve_weights(checkpoint, tmp_path / "weights")
    folder.load(found)
    names = {path.name for path in (tmp_path / "weights").iterdir()}
    assert names == {name, f"{name}.lock", f"{name}.abcdefgh.tmp", *theirs}


def test_a_flipped_bit_in_a_conversion_is_noticed(checkpoint, tmp_path):
    found = resolve_weights(checkpoint, tmp_path / "weights")
    content = bytearray((found / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (found / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="model.safetensors is damaged .its checksum differs"):
        folder.load(found)


def test_what_another_made_meanwhile_is_taken(checkpoint, tmp_path, monkeypatch):
    """Where the file system knows no locks, two convert at once: the later one takes what the first made."""

    def beaten(source, dest, **options):
        convert(source, dest, **options)
        (dest / "of the first").touch()
        return convert(source, dest, **options)

    monkeypatch.setattr("bertqa.hf.convert.convert", beaten)
    found = resolve_weights(checkpoint, tmp_path / "weights")
    assert (found / "of the first").exists()


def test_a_cache_that_cannot_be_written(checkpoint, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot keep converted weights there .*set BERTQA_CACHE"):
        resolve_weights(checkpoint, tmp_path / "file" / "weights")


def test_fresh_heads_are_not_taken_for_trained_ones(checkpoint, tmp_path):
    """Somebody converted the same checkpoint with --fresh-head under the name that would be used."""
    convert(checkpoint, tmp_path / "weights" / "tiny", fresh_head="qa")
    found = resolve_weights(checkpoint, tmp_path / "weights")
    assert "fresh_head" not in folder.read_config(found)["provenance"]
    encoder = resolve_weights(checkpoint, tmp_path / "weights", encoder_only=True)
    assert folder.read_config(encoder)["head"] is None and encoder != found


def test_hub_id_is_converted_once(server, tmp_path, monkeypatch, checkpoint):
    """Also when the name is taken by another organisation; and the second time without the Hub."""
    asked = []
    monkeypatch.setattr(
        hub, "download", lambda repo, revision: asked.append((repo, revision)) or checkpoint
    )
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("BERTQA_CACHE", str(tmp_path / "cache"))
    ids = ["org/tiny", "other/tiny", "org/tiny@v1"]
    found = [resolve_weights(name) for name in ids]
    assert [where.parent for where in found] == [tmp_path / "cache" / "weights"] * 3
    assert len(set(found)) == 3 and found[0].name.startswith("org--tiny-")
    assert [resolve_weights(name) for name in ids] == found
    assert asked == [("org/tiny", None), ("other/tiny", None), ("org/tiny", "v1")]
    assert folder.read_config(found[2])["provenance"]["source"] == "org/tiny"
    assert list((tmp_path / "here").iterdir()) == [], "nothing is left where one stands"


START = """
import sys
from bertqa.flags import run_verb
from bertqa.hf.convert import resolve_weights
from bertqa.model import folder
def main(argv):
    folder.load(resolve_weights(argv[0]))
    return 0
raise SystemExit(run_verb(main))
"""


def starts_at_once(what: str, env: dict[str, str], folder: Path) -> list[str]:
    """What each of five processes says that load the same weights at the same time; all must end well."""
    env = {**env, "OMP_NUM_THREADS": "1"}
    starts = []
    for number in range(5):
        (folder / f"said{number}").mkdir()
        starts.append(python(["-c", START, what], folder, env, folder / f"said{number}"))
    for start in starts:
        start.join(300)
    said = [(folder / f"said{number}" / "err").read_text() for number in range(5)]
    assert [start.exitcode for start in starts] == [0] * 5, said
    return said


def test_five_starts_on_one_unconverted_folder(checkpoint, tmp_path):
    """One converts, all load the same folder, and nothing else is left behind or taken away."""
    cache = tmp_path / "cache"
    theirs = cache / "weights" / "tiny.old"
    theirs.mkdir(parents=True)
    environment = {**os.environ, "BERTQA_CACHE": str(cache)}
    said = starts_at_once(str(checkpoint), environment, tmp_path)
    assert sum(line.startswith("converting ") for line in said) == 1
    assert sum(line.startswith("using ") for line in said) == 4
    left = sorted(path.name for path in theirs.parent.iterdir())
    assert len(left) == 3 and left[0].startswith("tiny-") and left[1] == left[0] + ".lock"
    assert left[2] == "tiny.old", "a folder of the user's own"


@pytest.mark.slow
def test_five_starts_on_one_hub_id(server, tmp_path):
    env = hub_client(server, tmp_path / "home", BERTQA_CACHE=str(tmp_path / "cache"))
    said = starts_at_once("org/tiny", env, tmp_path)
    assert sum("converting org/tiny" in lines for lines in said) == 1
    fetched = [name for command, *_, name, _ in server.log if command == "GET"]
    assert len(fetched) == len(set(fetched)), "each file was fetched once"


def test_command_with_a_hub_id(server, tmp_path):
    """From the Hub to a model folder in one command, and its commit is written down."""
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "convert_weights.py", "org/tiny@v1", tmp_path / "mine"],
        env=hub_client(server, tmp_path),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert folder.read_config(tmp_path / "mine")["provenance"] | {"sha256": 0} == {
        "source": "org/tiny",
        "revision": COMMITS["v1"],
        "license": "cc0-1.0",
        "sha256": 0,
    }
