"""The model card: README.md of a model folder, written from what was measured and nothing else."""

import re
from pathlib import Path

from bertqa.model.config import BertConfig

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
"""org/name."""


def model_card(where: Path, provenance: dict, settings: dict, metrics: dict, qa: dict) -> str:
    """The card of a question answering model; `qa` is what qa.json will hold, the rest as for `card`."""
    threshold = qa.get("null_threshold")
    if threshold is None:
        rule = "Every question gets an answer: the dev set has no impossible questions."
    else:
        rule = (
            f"A question is left unanswered where its null odds exceed {threshold:.4f}, tuned on the same dev set "
            "for F1, so exact and f1 are a little flattered; those at zero are not."
        )
    dev = settings.get("dev") or "held out of the training questions"
    return card(
        where,
        provenance,
        settings,
        metrics,
        task="question-answering",
        tag="extractive-qa",
        about="An extractive question answering model: it marks the answer in a text that you give, or says that there is "
        "none.",
        measured=f"{dev}: {metrics.get('total', '?')} questions.",
        rule=rule,
        limits="It knows nothing but the text at hand, cuts its answer out of it, does not count, compare or combine, and "
        "can be wrong with a high score.",
    )


def classifier_card(
    where: Path, provenance: dict, settings: dict, metrics: dict, labels: list[str], measured: str
) -> str:
    """The card of a text classifier; `measured` says on what, the rest is as for `card`."""
    return card(
        where,
        provenance,
        settings,
        metrics,
        task="text-classification",
        tag="text-classification",
        about=f"A text classifier; its classes are {', '.join(labels)}.",
        measured=measured,
        rule="Accuracy and macro_f1 are in percent; macro_f1 is the mean over the classes.",
        limits="It names one of its classes for any text, and can be wrong with a high probability.",
    )


def card(
    where: Path,
    provenance: dict,
    settings: dict,
    metrics: dict,
    *,
    task: str,
    tag: str,
    about: str,
    measured: str,
    rule: str,
    limits: str,
) -> str:
    """Markdown with Hugging Face metadata on top.

    Args:
        where: the model folder in its run folder, whose name is the title.
        provenance: of the weights, as config.json keeps it.
        settings: the run's settings that make the recipe.
        metrics: of the evaluation that these weights got.
        task: as the Hub's pipeline_tag names it.
        measured, rule: sentences above and below the table of metrics.
    """
    license = provenance.get("license")
    base = provenance.get("source")
    head = [
        "---",
        "library_name: bertqa",
        f"pipeline_tag: {task}",
        f"tags: [bertqa, bert, {tag}]",
        *([f"license: {license}"] if license else []),
        "---",
    ]
    lineage = [
        f"- started from: {base}"
        + (f", revision {provenance['revision']}" if provenance.get("revision") else "")
    ]
    if license:
        lineage.append(f"- its licence: {license}")
    lineage += [
        f"- {name.replace('_', ' ')}: {value}"
        for name, value in provenance.items()
        if name not in ("source", "revision", "license", "sha256")
    ]
    scores = [
        f"| {name} | {value:.2f} |" for name, value in metrics.items() if isinstance(value, float)
    ]
    recipe = [f"- {name}: {value}" for name, value in settings.items() if value is not None]
    return "\n".join(
        [
            *head,
            "",
            f"# {where.resolve().parent.name}",
            "",
            about,
            "",
            "## Where it comes from",
            "",
            *lineage,
            "",
            "## What it got on its dev set",
            "",
            measured,
            "",
            "| measure | value |",
            "|---|---|",
            *scores,
            "",
            rule,
            "",
            "## Recipe",
            "",
            *recipe,
            "",
            "## Limits",
            "",
            f"{limits} Nothing was measured here on languages or kinds of text other than the dev set's.",
            "",
        ]
    )


def plain_card(config: BertConfig, head: str | None, parameters: int, provenance: dict) -> str:
    """A model card that says what is known without having measured anything."""
    lines = [f"- {name}: {value}" for name, value in provenance.items() if value is not None]
    return "\n".join(
        [
            f"# {'DistilBERT' if config.model_type == 'distilbert' else 'BERT'} for {(head or 'any task').replace('-', ' ')}",
            "",
            f"{parameters:,} parameters: {config.num_hidden_layers} layers, hidden size {config.hidden_size}, "
            f"{config.num_attention_heads} heads, {config.vocab_size:,} tokens, {config.max_position_embeddings} positions",
            "",
            "Where it came from:",
            "",
            *lines,
            "",
        ]
    )


def read_license(folder: Path) -> str | None:
    """The `license:` of a model card's metadata, where there is one."""
    card = folder / "README.md"
    if not card.exists():
        return None
    metadata = re.match(
        r"---\n(.*?)\n---", card.read_text(encoding="utf-8", errors="replace"), re.DOTALL
    )
    found = (
        re.search(r"^license:\s*['\"]?([\w.-]+)", metadata[1], re.MULTILINE) if metadata else None
    )
    return found[1] if found else None


def exported_card(src: Path, model_type: str, task: str, provenance: dict) -> str:
    """The card of a model folder, with the metadata that the Hub reads: the card's, and what it does not say."""
    text = (src / "README.md").read_text(encoding="utf-8") if (src / "README.md").exists() else ""
    front, body = (re.match(r"(?:---\n(.*?\n)---\n)?(.*)", text, re.DOTALL)).groups()
    kept = [
        line
        for line in (front or "").splitlines()
        if not line.startswith(("library_name:", "pipeline_tag:"))
    ]
    source = str(provenance.get("source"))
    more = {
        "library_name": "transformers",
        "license": provenance.get("license"),
        "tags": f"[bertqa, {model_type}]",
        "pipeline_tag": task,
        "base_model": source if HUB_ID.fullmatch(source) else None,
    }
    lines = [
        f"{name}: {value}"
        for name, value in more.items()
        if value and not any(line.startswith(f"{name}:") for line in kept)
    ]
    return "\n".join(["---", *lines, *kept, "---", "", body.strip(), ""])
