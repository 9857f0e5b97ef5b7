"""Fixtures shared by every test."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """No test reads or fills the cache of whoever runs it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BERTQA_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def told_already():
    """What is faster on this processor was said before; tests of what is said are those of test_int8.py."""
    from bertqa import device

    device._said.update(device.HINTS)


@pytest.fixture
def aloud():
    """What the library says is shown on stderr, as it is in a verb."""
    from bertqa.console import said_on_stderr

    with said_on_stderr():
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and weights that stands beside the repository; tests that need it skip without it."""
    folder = ROOT.parent / "shared"
    if not (folder / "data").is_dir():
        pytest.skip(
            f"real data and weights are missing: no folder {folder.name}/data beside the repository"
        )
    return folder


WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "?",
    "who",
    "where",
    "is",
    "the",
    *"abcdefghijklmnopqrstuvwxyz",
]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """A model folder with a random QA model (hidden 32, 2 layers) over a vocabulary of letters and a few words."""
    import json

    import torch

    from bertqa import BertConfig, BertForQuestionAnswering
    from bertqa.model import folder

    source = tmp_path_factory.mktemp("vocabulary")
    (source / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    (source / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True}))
    torch.manual_seed(0)
    model = BertForQuestionAnswering(
        BertConfig(
            vocab_size=len(WORDS),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=48,
            max_position_embeddings=64,
            initializer_range=0.1,
        )
    )
    where = tmp_path_factory.mktemp("models") / "tiny"
    folder.save(
        where,
        model,
        tokenizer_from=source,
        provenance={"source": "random", "license": "CC0-1.0", "sha256": "0"},
    )
    return where


@pytest.fixture(scope="session")
def letters(tmp_path_factory) -> Path:
    """Flat JSONL questions "where is x?" over strings of letters; the answer is the letter behind x, a quarter impossible."""
    import json
    import random

    draw, rows = random.Random(0), []
    for number in range(53):
        shuffled = draw.sample("abcdefghijklmnopqrstuvwxyz", draw.randint(4, 25))
        context, place = " ".join(shuffled), draw.randrange(len(shuffled) - 1)
        answers = {"text": [shuffled[place + 1]], "answer_start": [2 * place + 2]}
        asked = shuffled[place]
        if number % 4 == 0:
            answers, asked = {"text": [], "answer_start": []}, "the"
        rows.append(
            {
                "id": f"q{number}",
                "title": f"t{number % 5}",
                "question": f"where is {asked}?",
                "context": context,
                "answers": answers,
            }
        )
    path = tmp_path_factory.mktemp("data") / "letters.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def originals(tmp_path_factory) -> Path:
    """Tiny Hugging Face folders: bert-qa, bert-bare, bert-classes, distilbert-qa."""
    from tiny_checkpoints import write_checkpoint

    from bertqa.model.record import CLASSES

    root = tmp_path_factory.mktemp("originals")
    write_checkpoint(root / "bert-qa")
    write_checkpoint(root / "bert-bare", head=None, pooler=True)
    write_checkpoint(root / "bert-classes", head=CLASSES, labels=["no", "yes", "maybe"])
    write_checkpoint(root / "distilbert-qa", "distilbert")
    return root


@pytest.fixture
def copy(originals, tmp_path):
    """A copy of one of the originals that a test may break."""
    import shutil

    return lambda name="bert-qa": Path(shutil.copytree(originals / name, tmp_path / name))
