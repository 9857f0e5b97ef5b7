"""config.json, qa.json and embed.json of a model folder: read and checked, completed with defaults, written."""

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
"""Default number of windows on which the int8 ranges are measured."""

LARGEST = 1_000_000
"""Upper bound of the whole numbers in qa.json and embed.json."""

EXPECTED = {
    int: "a whole number",
    float: "a number",
    str: "text",
    dict: "an object",
    bool: "true or false",
}
"""JSON types of values, for messages."""


@dataclass
class Answering:
    """Fields of qa.json and their types. A file has those that its task needs; other fields are kept unchecked."""

    null_threshold: float | None = None
    """A question whose null odds exceed this gets no answer; None: every question gets one."""
    no_answer_scale: float | None = None
    no_answer_bias: float | None = None
    """P(no answer) = sigmoid(scale * odds + bias)."""
    confidence: dict | None = None
    """Calibration of answer scores to probabilities, as fitted by qa/confidence.py."""
    tuning: dict | None = None
    """Metrics of the threshold on the data it was tuned on."""
    max_length: int | None = None
    """Tokens in a window, including the question and special tokens."""
    overlap: int | None = None
    step: int | None = None
    """Tokens shared by adjacent windows, or from the start of one to the next; one of the two."""
    max_question: int | None = None
    max_answer_length: int | None = None
    """In tokens."""
    text_column: str | None = None
    pair_column: str | None = None
    """Columns of the data that a classifier was trained on."""


@dataclass
class Embedding:
    """Fields of embed.json: how an encoder's maker turns a text into one vector. None: not stated."""

    pool: str | None = None
    """"mean" or "cls"."""
    normalize: bool | None = None
    """Whether vectors are scaled to length 1."""
    max_length: int | None = None
    """Tokens to which a text is truncated."""


def read_config(folder: str | Path) -> dict:
    """Read and check config.json of a model folder: "architecture", "head", "labels" (classification), "provenance".

    Raises:
        UserError: if there is none, or it is not that of a bertqa model folder.
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
    # Check all fields here, so that a file edited by hand does not fail later, inside a module.
    _check_architecture(path, config.get("architecture"))
    _check_head(path, config["head"], config.get("labels"))
    for name in ("attention", "model"):
        if not isinstance(config.get(name, ""), str):
            raise UserError(f'{path}: "{name}" is {config[name]!r}; it must be a name')
    if not isinstance(config.get("provenance", {}), dict):
        raise UserError(
            f'{path}: "provenance" is {show(config["provenance"])}; it must be an object'
        )
    return config


def _check_architecture(path: Path, shape: object) -> None:
    """Raise a UserError unless `shape` has fields of a BertConfig only, each of its type and in its bounds."""
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
    """Whether a JSON value is of a type. An int counts as a float; a bool does not count as a number."""
    if kind is float:
        return type(value) in (int, float)
    return type(value) is kind


def _check_head(path: Path, head: object, labels: object) -> None:
    """Raise a UserError for an unknown head, or a classification head without labels."""
    is_known = head in (None, QA, CLASSES)
    has_labels = (
        isinstance(labels, list) and labels and all(isinstance(name, str) for name in labels)
    )
    if not is_known or (head == CLASSES and not has_labels):
        raise UserError(
            f"{path}: head is {head!r} with labels {labels!r}; known are null, {QA!r}, and {CLASSES!r} with "
            "a list of labels"
        )


def write_config(
    folder: Path, config: BertConfig, head: str | None, labels: list[str] | None, provenance: dict
) -> None:
    """Write config.json of a model folder."""
    record = {"architecture": dataclasses.asdict(config), "head": head}
    if head == CLASSES:
        record["labels"] = list(labels)
    write_json(folder / "config.json", {**record, "provenance": provenance})


def read_qa(folder: str | Path) -> dict:
    """Read and check qa.json of a model folder; {} if there is none. Fields that are null are left out but the threshold."""
    qa = {}
    for name, value in _read_typed(Path(folder) / "qa.json", Answering).items():
        # A threshold of null has a meaning: every question gets an answer.
        if value is not None or name == "null_threshold":
            qa[name] = value
    return qa


def write_qa(folder: str | Path, qa: dict) -> None:
    """Write or replace qa.json."""
    write_json(Path(folder) / "qa.json", qa)


def read_embed(folder: str | Path) -> Embedding:
    """Read and check embed.json of a model folder; all fields are None if there is none."""
    found = _read_typed(Path(folder) / EMBEDDING, Embedding)
    names = {field.name for field in dataclasses.fields(Embedding)}
    return Embedding(**{name: value for name, value in found.items() if name in names})


def write_embed(folder: str | Path, embedding: Embedding) -> None:
    """Write or replace embed.json."""
    write_json(Path(folder) / EMBEDDING, dataclasses.asdict(embedding))


def _read_typed(path: Path, kind: type) -> dict:
    """Read a JSON object and check its values against the field types of the dataclass `kind`; {} without a file."""
    if not path.exists():
        return {}
    found = read_object(path)
    for field in dataclasses.fields(kind):
        value = found.get(field.name)
        expected = "" if value is None else _expected_instead(value, field.type)
        if expected:
            raise UserError(f"{path}: {field.name} is {show(value)}; expected {expected}")
    return found


def _expected_instead(value: object, types: object) -> str:
    """Return what a field of these types (such as `int | None`) expects instead of a value; "" if the value is fine."""
    kind = types.__args__[0]
    if not _is_of(value, kind):
        return EXPECTED[kind]
    # Not math.isfinite, which raises for an int too large for a float.
    if kind is float and not abs(value) <= sys.float_info.max:
        return "a number that is not infinite"
    if kind is int and not 0 <= value <= LARGEST:
        return f"a number from 0 to {LARGEST:,}"
    return ""


def with_defaults(qa: dict, positions: int) -> dict:
    """Return qa.json completed with default window settings, for folders that were converted and not trained here.

    The defaults are those of transformers' pipeline, reduced for a model with fewer positions.
    """
    qa = dict(qa)
    # Leave room for the question, and for more text than is shared with the next window.
    length = qa.setdefault("max_length", min(384, positions))
    asked = qa.setdefault("max_question", min(64, length // 2))
    if "step" not in qa:
        qa.setdefault("overlap", min(128, (length - asked) // 2))
    return qa


def qa_of(model) -> dict:
    """Read qa.json of the folder that a model was loaded from; {} for a model that was not."""
    folder = getattr(model, "folder", None)
    return {} if folder is None else read_qa(folder)


def positions_of(model) -> int:
    """Return the longest sequence that a model takes, in tokens: by its encoder's config or its own, else 512."""
    config = getattr(getattr(model, "encoder", model), "config", None)
    return 512 if config is None else config.max_position_embeddings
