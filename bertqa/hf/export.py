"""Export a model folder as a Hugging Face checkpoint: the same numbers, under the names that transformers expects."""

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from bertqa.errors import UserError
from bertqa.files import write_json, write_text
from bertqa.folders import new_folder, staged
from bertqa.hf import vocabulary
from bertqa.hf.architecture import DISTIL_FIELDS, DISTIL_FIXED
from bertqa.hf.names import HEAD, Report, Row, dtype_name, their_names
from bertqa.model.build import build_empty
from bertqa.model.card import eval_results, exported_card
from bertqa.model.config import CLASSES, QA, BertConfig
from bertqa.model.disk import DTYPES, WEIGHTS, checked, write_safetensors
from bertqa.model.folder import open_model_weights
from bertqa.model.record import read_config, read_qa, write_qa

ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_new", "relu": "relu"}
"""Our name -> transformers'."""

CLASS_ENDINGS = {QA: "ForQuestionAnswering", CLASSES: "ForSequenceClassification", None: "Model"}
TASKS = {QA: "question-answering", CLASSES: "text-classification", None: "feature-extraction"}
"""Head -> its task on the Hub."""


@dataclass
class _TheirTensor:
    """A tensor of theirs: rows of a parameter of ours."""

    ours: str
    rows: slice
    shape: tuple[int, ...]
    dtype: torch.dtype
    place: str
    """Our name and the rows, for the report."""


def export(src: str | Path, dest: str | Path) -> Report:
    """Export a model folder into a folder that transformers opens and `hf upload` publishes.

    Args:
        src: a model folder.
        dest: a new or empty folder; it is written only if everything succeeds.

    Raises:
        UserError: if `src` is not a model folder, or Hugging Face's classes cannot express the model.
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
    # Tensors are copied from file to file without loading the model: nothing is rounded, one tensor is in memory.
    empty = build_empty(record).state_dict()
    weights = open_model_weights(src, empty)
    parts = _their_tensors(empty, weights.dtypes, config.model_type, head)
    dtype = dtype_name(part.dtype for part in parts.values())

    with staged(dest) as new, checked(src):
        remarks = write_beside(src, new, record, dtype)
        sha256 = write_safetensors(
            new / WEIGHTS, parts, lambda name: weights.get(parts[name].ours)[parts[name].rows]
        )
        remarks += _write_card(src, new, record, config.model_type)
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
    """Write the other files of an export into `new`: the tokenizer, transformers' config.json, and qa.json.

    Args:
        record: config.json of the model folder `src`.
        dtype: of the weights, as dtype_name gives it.

    Returns:
        Remarks for the report.
    """
    config = BertConfig(**record["architecture"])
    remarks = vocabulary.install(src, new, config.vocab_size, complete=True).remarks
    theirs = hf_config(config, record, dtype, vocabulary.pad_id(new))
    write_json(new / "config.json", theirs)
    if (src / "qa.json").exists():
        write_qa(new, read_qa(src))
    return remarks


def _write_card(src: Path, new: Path, record: dict, model_type: str) -> list[str]:
    """Write README.md, and the scores that the Hub reads beside it, after all other files. Return remarks."""
    task = TASKS[record["head"]]
    card = exported_card(src, model_type, task, record.get("provenance", {}))
    remarks = []
    lost = []
    for path in sorted(src.iterdir()):
        if path.name != "README.md" and not (new / path.name).exists() and _names(card, path.name):
            lost.append(path.name)
    if lost:
        card = _without_files(card, lost)
        remarks.append(
            f"README.md: left out what it says of files that are not exported: {', '.join(lost)}"
        )
    write_text(new / "README.md", card)
    for name, scores in eval_results(card).items():
        (new / ".eval_results").mkdir(exist_ok=True)
        write_text(new / ".eval_results" / name, scores)
    return remarks


def _names(text: str, file: str) -> bool:
    """Return whether Markdown names a file, as code or as the target of a link."""
    return f"`{file}`" in text or f"]({file})" in text


def _without_files(card: str, files: list[str]) -> str:
    """Return a card without the paragraphs, list items and table rows that name one of these files."""
    blocks = []
    for block in card.split("\n\n"):
        # a list item begins with "- " or "* ", a table row with "|"
        parts = re.split(r"\n(?=[-*] |\|)", block)
        kept = [part for part in parts if not any(_names(part, file) for file in files)]
        if kept:
            blocks.append("\n".join(kept))
    return "\n\n".join(blocks)


def _their_tensors(
    empty: dict, stored_dtypes: dict, model_type: str, head: str | None
) -> dict[str, _TheirTensor]:
    """Return the tensors to write by their names: one, or three of qkv, for each parameter of ours."""
    # BertModel's names have no prefix; in a model with a head the encoder is the attribute `bert`
    prefix = f"{model_type}." if head else ""
    parts = {}
    for ours, tensor in empty.items():
        names = their_names(ours, model_type)
        size = len(tensor) // len(names)  # of qkv (3 H, H): query's H rows, key's, value's
        for i, name in enumerate(names):
            rows = slice(i * size, (i + 1) * size)
            place = f"{ours}[{rows.start}:{rows.stop}]" if len(names) > 1 else ours
            shape = (size, *tensor.shape[1:])
            # heads are beside the encoder: qa_outputs.weight, but bert.encoder.layer.0...
            full = name if HEAD.match(name) else prefix + name
            parts[full] = _TheirTensor(ours, rows, shape, DTYPES[stored_dtypes[ours]], place)
    return parts


def hf_config(config: BertConfig, record: dict, dtype: str, pad_id: int) -> dict:
    """Return transformers' config.json for a config that it can express (see `_refuse_inexpressible`).

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
    family = "DistilBert" if is_distil else "Bert"
    return {
        "architectures": [family + CLASS_ENDINGS[head]],
        "model_type": config.model_type,
        **fields,
        "pad_token_id": pad_id,
        # transformers loads a whole model in one type; of "float16 and float32", the wider loses nothing
        "torch_dtype": "float32" if " " in dtype else dtype,
    }


def _refuse_inexpressible(config: BertConfig) -> None:
    """Raise UserError for a config that Hugging Face's classes cannot express."""
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
