"""config.json, qa.json and embed.json of a model folder: what they say, checked before anything is made of it, and completed."""

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path

from bertqa.errors import UserError, show
from bertqa.files import read_object, write_json
from bertqa.model.config import CLASSES, QA, BertConfig

EMBEDDING = "embed.json"
RANGES = "int8_ranges.safetensors"
WINDOWS_FOR_RANGES = 256
"""Windows that these are measured on, where nobody says how many."""

LARGEST = 1_000_000
"""No number of tokens in a file of settings is larger."""

EXPECTED = {
    int: "a whole number",
    float: "a number",
    str: "text",
    dict: "an object",
    bool: "true or false",
}
"""Types of the values, in words."""


@dataclass
class Answering:
    """What qa.json may say, and of which type. A file says what its task needs; what is not named here is kept as it is."""

    null_threshold: float | None = None
    """A question is left unanswered where its null odds exceed this; None: every question gets an answer."""
    no_answer_scale: float | None = None
    no_answer_bias: float | None = None
    """The probability that there is no answer is sigmoid(scale * odds + bias)."""
    confidence: dict | None = None
    """What makes probabilities of scores, as qa/confidence.py fits it."""
    tuning: dict | None = None
    """What the threshold got where it was tuned."""
    max_length: int | None = None
    """Tokens of a window, the question and special tokens included."""
    overlap: int | None = None
    step: int | None = None
    """How windows follow each other, one of the two."""
    max_question: int | None = None
    max_answer_length: int | None = None
    """Tokens."""
    text_column: str | None = None
    pair_column: str | None = None
    """Columns that a classifier reads."""


@dataclass
class Embedding:
    """What embed.json may say: how whoever trained an encoder makes one vector of a text. None: the verb's own default."""

    pool: str | None = None
    """"mean" or "cls"."""
    normalize: bool | None = None
    """Whether vectors have length 1."""
    max_length: int | None = None
    """Tokens, beyond which a text is cut."""


def read_config(folder: str | Path) -> dict:
    """config.json of a model folder: "architecture", "head", "labels" (classification), "provenance"; checked.

    Raises:
        UserError: where there is none, or it is not of a model folder of ours.
    """
    folder = Path(folder)
    path = folder / "config.json"
    if not path.exists():
        what = "has no config.json" if folder.is_dir() else "there is no such folder"
        raise UserError(
            f"{folder}: {what}; expected a model folder, as training and tools/convert_weights.py write it"
        )
    config = read_object(path)
    theirs = config.keys() & {"model_type", "hidden_size", "dim", "architectures"}
    if "architecture" not in config and theirs:
        raise UserError(
            f"{folder}: is a Hugging Face folder; convert it first: python tools/convert_weights.py {folder} "
            f"weights/{folder.resolve().name}"
        )
    config.setdefault("head", None)
    # A file that was edited by hand must not fail in the middle of a module: all of it is looked at here.
    check_architecture(path, config.get("architecture"))
    _check_head(path, config["head"], config.get("labels"))
    for name in ("attention", "model"):
        if not isinstance(config.get(name, ""), str):
            raise UserError(f'{path}: "{name}" is {config[name]!r}; it must be a name')
    if not isinstance(config.get("provenance", {}), dict):
        raise UserError(
            f'{path}: "provenance" is {show(config["provenance"])}; it must be an object'
        )
    return config


def check_architecture(path: Path, shape: object) -> None:
    """Raise UserError where an "architecture" is not the fields of a BertConfig, of their types and in their bounds."""
    known = {field.name: type(field.default) for field in dataclasses.fields(BertConfig)}
    strange = []
    if not isinstance(shape, dict):
        strange = ["it is no object"]
        shape = {}
    for name, value in shape.items():
        if name not in known or not _is_of(value, known[name]):
            strange.append(f"{name} {value!r}")
    if strange:
        raise UserError(
            f'{path}: "architecture" does not describe a BERT: {", ".join(strange)}; known are '
            f"{', '.join(known)}"
        )
    try:
        BertConfig(**shape)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _is_of(value: object, kind: type) -> bool:
    """Whether a JSON value is of a type: a whole number is a float too, and true is no number."""
    if kind is float:
        return type(value) in (int, float)
    return type(value) is kind


def _check_head(path: Path, head: object, labels: object) -> None:
    known = head in (None, QA, CLASSES)
    named = isinstance(labels, list) and labels and all(isinstance(name, str) for name in labels)
    if not known or (head == CLASSES and not named):
        raise UserError(
            f"{path}: head is {head!r} with labels {labels!r}; known are null, {QA!r}, and {CLASSES!r} with "
            "a list of labels"
        )


def write_config(
    folder: Path, config: BertConfig, head: str | None, labels: list[str] | None, provenance: dict
) -> None:
    """Write config.json."""
    record = {"architecture": dataclasses.asdict(config), "head": head}
    if head == CLASSES:
        record["labels"] = list(labels)
    write_json(folder / "config.json", {**record, "provenance": provenance})


def read_qa(folder: str | Path) -> dict:
    """qa.json of a model folder, checked; {} where it has none yet. What is null is left out, but for the threshold."""
    qa = {}
    for name, value in _read_typed(Path(folder) / "qa.json", Answering).items():
        # null is a threshold too: every question gets an answer
        if value is not None or name == "null_threshold":
            qa[name] = value
    return qa


def write_qa(folder: str | Path, qa: dict) -> None:
    """Write or replace qa.json."""
    write_json(Path(folder) / "qa.json", qa)


def read_embed(folder: str | Path) -> Embedding:
    """embed.json of a model folder; nothing but None in it where the folder has none."""
    found = _read_typed(Path(folder) / EMBEDDING, Embedding)
    names = {field.name for field in dataclasses.fields(Embedding)}
    return Embedding(**{name: value for name, value in found.items() if name in names})


def write_embed(folder: str | Path, embedding: Embedding) -> None:
    """Write or replace embed.json."""
    write_json(Path(folder) / EMBEDDING, dataclasses.asdict(embedding))


def _read_typed(path: Path, kind: type) -> dict:
    """A JSON object whose values are of the types that the dataclass `kind` states; {} where there is no such file."""
    if not path.exists():
        return {}
    found = read_object(path)
    for field in dataclasses.fields(kind):
        value = found.get(field.name)
        if value is not None:
            problem = _problem(value, field.type)
            if problem:
                raise UserError(f"{path}: {field.name} is {show(value)}; expected {problem}")
    return found


def _problem(value: object, types: object) -> str:
    """What was expected in place of a value, by the types that a field states; "" where the value is fine."""
    kind = types.__args__[0]  # of `int | None`
    if not _is_of(value, kind):
        return EXPECTED[kind]
    # not math.isfinite: a whole number of 400 digits is no float
    if kind is float and not abs(value) <= sys.float_info.max:
        return "a number that is not infinite"
    if kind is int and not 0 <= value <= LARGEST:
        return f"a number from 0 to {LARGEST:,}"
    return ""


def with_defaults(qa: dict, positions: int) -> dict:
    """What qa.json says of windows, completed: a folder that was converted and never trained here says nothing.

    The defaults are those of transformers' pipeline, or what a model of so many positions can take.
    """
    qa = dict(qa)
    # A window must have room for the question, and for more of the text than it shares with the next window.
    length = qa.setdefault("max_length", min(384, positions))
    asked = qa.setdefault("max_question", min(64, length // 2))
    if "step" not in qa:
        qa.setdefault("overlap", min(128, (length - asked) // 2))
    return qa


def qa_of(model) -> dict:
    """qa.json of the folder that a model was loaded from, if it was."""
    where = getattr(model, "folder", None)
    return {} if where is None else read_qa(where)


def positions_of(model) -> int:
    """The longest sequence that a model takes, 512 where it does not say; a model of one's own may leave it to its encoder."""
    config = getattr(getattr(model, "encoder", model), "config", None)
    return 512 if config is None else config.max_position_embeddings
