"""Mutated checkpoint files: whatever is wrong with them ends in a UserError of one line, soon, and leaves nothing behind.

A seeded mutator of our own: bytes flipped, cut and repeated, and JSON values put in the place of others.
"""

import json
import random
import shutil
import time
from pathlib import Path

import pytest
from tiny_checkpoints import write_checkpoint

from bertqa.errors import UserError
from bertqa.hf.convert import convert
from bertqa.model import folder
from bertqa.model.record import read_config, read_embed, read_qa

ROUNDS = 40
"""Mutations of each file."""

ABSURD = [
    None,
    True,
    -1,
    0,
    3,
    2**63,
    10**9,
    1e308,
    0.5,
    "",
    "x",
    "../../x",
    "\u0000",
    [],
    [[]],
    [None],
    {},
    {"a": {}},
    "😀" * 100,
]


def mutated(content: bytes, draw: random.Random) -> bytes:
    """Bytes with one kind of damage."""
    place = draw.randrange(len(content))
    kind = draw.randrange(4)
    if kind == 0:
        return content[:place]
    if kind == 1:
        return content[:place] + bytes([draw.randrange(256)]) + content[place + 1 :]
    if kind == 2:
        return content[:place] + content[place // 2 :]
    return content[:place] + b'{"a": [' * draw.choice([1, 5000]) + content[place:]


def mutated_json(value: object, draw: random.Random) -> object:
    """A JSON value with one value in it, at any depth, replaced, taken away or renamed."""
    places = []

    def visit(found, depth=0):
        inner = []
        if isinstance(found, dict):
            inner = list(found.items())
        elif isinstance(found, list):
            inner = list(enumerate(found))
        for key, child in inner[:200]:
            places.append((found, key))
            if depth < 6:
                visit(child, depth + 1)

    value = json.loads(json.dumps(value))
    visit(value)
    if not places or draw.random() < 0.05:
        return draw.choice(ABSURD)
    holder, key = draw.choice(places)
    if draw.random() < 0.2:
        del holder[key]
    else:
        holder[key] = draw.choice(ABSURD)
    return value


def damage(path: Path, content: bytes, draw: random.Random) -> None:
    if path.suffix == ".json" and draw.random() < 0.8:
        path.write_text(json.dumps(mutated_json(json.loads(content), draw)))
    else:
        path.write_bytes(mutated(content, draw))


MORE = {
    "added_tokens.json": {"covid19": 99},
    "special_tokens_map.json": {
        "cls_token": {"content": "[CLS]"},
        "additional_special_tokens": ["[E1]"],
    },
    "qa.json": {"null_threshold": 0.5, "max_length": 64, "tuning": {}, "overlap": 8},
    "modules.json": [
        {"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ],
    "sentence_bert_config.json": {"max_seq_length": 32, "do_lower_case": False},
    "1_Pooling/config.json": {"pooling_mode_mean_tokens": True},
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A checkpoint with every file that a conversion reads."""
    where = write_checkpoint(tmp_path_factory.mktemp("fuzz") / "tiny", vocab_size=103)
    (where / "1_Pooling").mkdir()
    for name, value in MORE.items():
        (where / name).write_text(json.dumps(value))
    shutil.copy(where / "model.safetensors", where / "a.safetensors")
    return where


NAMES = [
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "README.md",
    "model.safetensors",
    *MORE,
]


@pytest.mark.parametrize("head", [None, "none"])
@pytest.mark.parametrize("name", NAMES)
def test_conversion_of_mutated_files(checkpoint, tmp_path, name, head):
    draw = random.Random(f"{name} {head}")
    source = Path(shutil.copytree(checkpoint, tmp_path / "source"))
    if name in ("vocab.txt", "added_tokens.json", "special_tokens_map.json"):
        (source / "tokenizer.json").unlink()
    content = (source / name).read_bytes()
    for _ in range(ROUNDS // 4):
        damage(source / name, content, draw)
        began = time.perf_counter()
        try:
            convert(source, tmp_path / "mine", fresh_head=head)
        except UserError as error:
            assert "\n" not in str(error) and len(str(error)) < 3000
            assert not (tmp_path / "mine").exists()
        else:
            # what was converted can be loaded
            folder.load(tmp_path / "mine")
            shutil.rmtree(tmp_path / "mine")
        assert time.perf_counter() - began < 10
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_mutated_indexes(checkpoint, tmp_path):
    draw = random.Random(0)
    source = Path(shutil.copytree(checkpoint, tmp_path / "source"))
    index = {"metadata": {}, "weight_map": {f"t{i}": "a.safetensors" for i in range(3)}}
    path = source / "model.safetensors.index.json"
    for _ in range(ROUNDS):
        damage(path, json.dumps(index).encode(), draw)
        with pytest.raises(UserError):
            convert(path, tmp_path / "mine")


OURS = ["config.json", "tokenizer.json", "vocab.txt", "model.safetensors", "qa.json", "embed.json"]


@pytest.mark.parametrize("name", OURS)
def test_model_folders_of_mutated_files(checkpoint, tmp_path, name):
    """Without checksums.json, which would notice each of them: as a folder that a person edited."""
    draw = random.Random(name)
    ours = tmp_path / "ours"
    convert(checkpoint, ours)
    (ours / "embed.json").write_text('{"pool": "mean", "normalize": true, "max_length": 32}')
    if name == "vocab.txt":
        (ours / "tokenizer.json").unlink()
    content = (ours / name).read_bytes()
    for _ in range(ROUNDS):
        damage(ours / name, content, draw)
        for read in (read_config, read_qa, read_embed, folder.load):
            try:
                read(ours)
            except UserError as error:
                assert "\n" not in str(error)
