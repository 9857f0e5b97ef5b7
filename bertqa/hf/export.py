"""A model folder out again, into a folder that transformers opens, with the same numbers in it."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch

from bertqa.errors import UserError
from bertqa.files import write_json, write_text
from bertqa.folders import staged
from bertqa.hf import vocabulary
from bertqa.hf.architecture import DISTIL_FIELDS, DISTIL_FIXED
from bertqa.hf.convert import dtype_name, new_folder
from bertqa.hf.names import HEAD, Report, Row, their_names
from bertqa.model.build import build_empty
from bertqa.model.card import eval_results, exported_card
from bertqa.model.config import CLASSES, QA, BertConfig
from bertqa.model.disk import DTYPES, WEIGHTS, checked, write_safetensors
from bertqa.model.folder import open_model_weights
from bertqa.model.record import read_config, read_qa, write_qa

ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_new", "relu": "relu"}
"""Ours -> what transformers calls it."""

CLASS_ENDINGS = {QA: "ForQuestionAnswering", CLASSES: "ForSequenceClassification", None: "Model"}
TASKS = {QA: "question-answering", CLASSES: "text-classification", None: "feature-extraction"}
"""What the Hub calls the use of a head."""


@dataclass
class _Part:
    """Rows of a tensor of ours that are a tensor of theirs."""

    ours: str
    rows: slice
    shape: tuple[int, ...]
    dtype: torch.dtype
    place: str
    """The name and the rows, for people."""


def export(src: str | Path, dest: str | Path) -> Report:
    """A model folder into a folder that transformers opens (and `hf upload` publishes), with the same numbers in it.

    Args:
        src: a model folder.
        dest: a new or empty folder; it appears when everything has succeeded.

    Raises:
        UserError: for something else than a model folder, and for a shape that Hugging Face's classes do not have.
    """
    src = Path(src)
    dest = new_folder(dest)
    record = read_config(src)
    for what in ("attention", "model"):
        if what in record:
            raise UserError(
                f"{src}: its {what} is its own, {record[what]!r}, which transformers does not know"
            )
    head = record["head"]
    config = BertConfig(**record["architecture"])
    _refuse_inexpressible(config)
    # Written from the file and not from a loaded model: nothing is rounded, and memory holds one tensor.
    empty = build_empty(record).state_dict()
    weights = open_model_weights(src, empty)
    parts = _parts(empty, weights.dtypes, config.model_type, head)
    dtype = dtype_name(part.dtype for part in parts.values())

    with staged(dest) as new, checked(src):
        remarks = write_beside(src, new, record, dtype)
        sha256 = write_safetensors(
            new / WEIGHTS, parts, lambda name: weights.get(parts[name].ours)[parts[name].rows]
        )
        card = exported_card(src, config.model_type, TASKS[head], record.get("provenance", {}))
        write_text(new / "README.md", card)
        for name, scores in eval_results(card).items():
            (new / ".eval_results").mkdir(exist_ok=True)
            write_text(new / ".eval_results" / name, scores)
    if config.model_type == "bert" and head is None and not config.pooler:
        remarks.append(
            "it has no pooler: transformers' BertModel will draw one at random and say so"
        )
    return Report(
        source=str(src),
        dest=str(dest),
        model_type=config.model_type,
        head=head,
        parameters=sum(tensor.numel() for tensor in empty.values()),
        dtype=dtype,
        source_sha256=weights.sha256(),
        sha256=sha256,
        rows=[Row("renamed", name, part.place, part.shape) for name, part in parts.items()],
        remarks=remarks,
    )


def write_beside(src: Path, new: Path, record: dict, dtype: str) -> list[str]:
    """What stands beside exported weights: the tokenizer, transformers' config.json, qa.json. Returns remarks.

    Args:
        record: config.json of the model folder `src`.
        dtype: the name of the weights' number type.
    """
    config = BertConfig(**record["architecture"])
    remarks = vocabulary.install(src, new, config.vocab_size, complete=True).remarks
    theirs = write_architecture(config, record, dtype, vocabulary.pad_id(new))
    write_json(new / "config.json", theirs)
    if (src / "qa.json").exists():
        write_qa(new, read_qa(src))
    return remarks


def _parts(empty: dict, stored_dtypes: dict, model_type: str, head: str | None) -> dict[str, _Part]:
    """Their tensors by name: one or three for each of ours."""
    # BertModel has its tensors bare; a model with a head has them in its attribute `bert`
    stem = f"{model_type}." if head else ""
    parts = {}
    for ours, tensor in empty.items():
        names = their_names(ours, model_type)
        size = len(tensor) // len(names)  # of qkv a third each: query's rows, key's, value's
        for i, name in enumerate(names):
            rows = slice(i * size, (i + 1) * size)
            place = f"{ours}[{rows.start}:{rows.stop}]" if len(names) > 1 else ours
            shape = (size, *tensor.shape[1:])
            # heads stand beside the encoder, not in it: qa_outputs.weight, but bert.encoder.layer.0...
            full = name if HEAD.match(name) else stem + name
            parts[full] = _Part(ours, rows, shape, DTYPES[stored_dtypes[ours]], place)
    return parts


def write_architecture(config: BertConfig, record: dict, dtype: str, pad_id: int) -> dict:
    """The config.json that transformers reads, for a config that it can express (`_refuse_inexpressible`).

    Args:
        record: config.json of the model folder, with the head and its labels.
    """
    is_distil = config.model_type == "distilbert"
    head = record["head"]
    fields = dataclasses.asdict(config)
    fields["hidden_act"] = ACTIVATIONS[config.hidden_act]
    del fields["pooler"]
    del fields["model_type"]
    if is_distil:
        for name in (*DISTIL_FIXED, "position_embedding_type"):
            del fields[name]
        fields = {DISTIL_FIELDS.get(name, name): value for name, value in fields.items()}
        fields["sinusoidal_pos_embds"] = False
    if head == CLASSES:
        labels = record["labels"]
        fields["id2label"] = {str(i): name for i, name in enumerate(labels)}
        fields["label2id"] = {name: i for i, name in enumerate(labels)}
    stem = "DistilBert" if is_distil else "Bert"
    return {
        "architectures": [stem + CLASS_ENDINGS[head]],
        "model_type": config.model_type,
        **fields,
        "pad_token_id": pad_id,
        # transformers opens all of a model in one type; of two, the wide one loses nothing
        "torch_dtype": "float32" if " " in dtype else dtype,
    }


def _refuse_inexpressible(config: BertConfig) -> None:
    """Raise UserError for a shape that Hugging Face's classes do not have."""
    fixed = DISTIL_FIXED if config.model_type == "distilbert" else {}
    fixed = {**fixed, "position_embedding_type": "absolute"}
    wrong = [name for name, value in fixed.items() if getattr(config, name) != value]
    if config.model_type == "bert" and config.type_vocab_size == 0:
        wrong.append("type_vocab_size")
    if wrong:
        listed = ", ".join(f"{name} {getattr(config, name)}" for name in wrong)
        raise UserError(
            f"Hugging Face's {config.model_type} has no {listed}; this model cannot go there"
        )
