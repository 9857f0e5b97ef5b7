"""The model card: README.md of a model folder, written from what was measured and nothing else."""

import json
import re
from pathlib import Path

from bertqa.model.config import BertConfig

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
"""org/name."""


OFFICIAL = {
    "squad2": ("SQuAD 2.0, dev", "rajpurkar/squad_v2"),
    "squad2-dev": ("SQuAD 2.0, dev", "rajpurkar/squad_v2"),
    "dev-v2.0.json": ("SQuAD 2.0, dev", "rajpurkar/squad_v2"),
    "squad1": ("SQuAD 1.1, dev", "rajpurkar/squad"),
    "squad1-dev": ("SQuAD 1.1, dev", "rajpurkar/squad"),
    "dev-v1.1.json": ("SQuAD 1.1, dev", "rajpurkar/squad"),
}
"""What a dev set may be called -> its name, and the Hub's id of it."""

METRICS = {
    "exact": ("exact_match", "EM"),
    "f1": ("f1", "F1"),
    "accuracy": ("accuracy", "accuracy"),
    "macro_f1": ("f1", "macro F1"),
}
"""Our name of a metric -> the Hub's, and what people call it."""


def fine_tuned(provenance: dict, weights: Path, data: str) -> dict:
    """The provenance of weights that were trained further, with every step that they came by.

    Args:
        provenance: of the weights that training started from.
        weights: their folder.
        data: what they were now trained on.
    """
    found = {**provenance, "fine_tuned_on": data}
    earlier = provenance.get("fine_tuned_on")
    if earlier:
        chain = provenance.get("lineage") or provenance.get("source")
        found["lineage"] = f"{chain} -> {weights.resolve().name} (fine-tuned on {earlier})"
    return found


def model_card(where: Path, provenance: dict, settings: dict, metrics: dict, qa: dict) -> str:
    """The card of a question answering model; `qa` is what qa.json will hold, the rest as for
    `card`.
    """
    dev = without_folders(settings.get("dev") or "held out of the training questions")
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
        rule=threshold_rule(qa.get("null_threshold")),
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


def threshold_rule(threshold: float | None) -> str:
    """When the model gives no answer, and what that does to the numbers above."""
    if threshold is None:
        return "Every question gets an answer: the dev set has no impossible questions."
    return (
        f"A question is left unanswered where its null odds exceed {threshold:.4f}, tuned on the same "
        "dev set for F1, so exact and f1 are a little flattered; those at zero are not."
    )


def without_folders(value: object) -> str:
    """A setting as a card may show it: of a path on this machine only the name."""
    text = str(value)
    return Path(text).name if Path(text).is_absolute() else text


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
    title = where.resolve().parent.name
    scores = [
        f"| {name} | {value:.2f} |" for name, value in metrics.items() if isinstance(value, float)
    ]
    recipe = [
        f"- {name}: {without_folders(value)}"
        for name, value in settings.items()
        if value is not None and name != "out"
    ]
    sections = [
        *front_matter(title, provenance, settings, metrics, task, tag),
        "",
        f"# {title}",
        "",
        about,
        "",
        "## Where it comes from",
        "",
        *lineage(provenance),
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
    return "\n".join(sections)


def front_matter(
    title: str, provenance: dict, settings: dict, metrics: dict, task: str, tag: str
) -> list[str]:
    """The metadata on top of a card, YAML between two lines of dashes; model-index holds the scores
    for the Hub.
    """
    lines = ["---", "library_name: bertqa", f"pipeline_tag: {task}"]
    lines.append(f"tags: [bertqa, bert, {tag}]")
    if provenance.get("license"):
        lines.append(f"license: {provenance['license']}")
    source = str(provenance.get("source"))
    if HUB_ID.fullmatch(source):
        lines.append(f"base_model: {source}")
    named = [name for name in METRICS if isinstance(metrics.get(name), float)]
    if named:
        lines += model_index(title, settings, {name: metrics[name] for name in named}, task)
    return [*lines, "---"]


def model_index(title: str, settings: dict, scores: dict[str, float], task: str) -> list[str]:
    """The model-index of a card: the scores with the data that they were measured on."""
    file = Path(str(settings.get("dev") or settings.get("train") or "dev")).name
    name, dataset = OFFICIAL.get(file.removesuffix(".gz"), (file, file))
    if settings.get("limit_dev"):
        name, dataset = f"{file}, its first {settings['limit_dev']}", file
    lines = [
        "model-index:",
        f"- name: {json.dumps(title)}",
        "  results:",
        f"  - task: {{type: {task}}}",
        f"    dataset: {{name: {json.dumps(name)}, type: {json.dumps(dataset)}, split: validation}}",
        "    metrics:",
    ]
    for ours, value in scores.items():
        theirs, spoken = METRICS[ours]
        lines.append(f"    - {{type: {theirs}, name: {spoken}, value: {value:.2f}}}")
    return lines


def lineage(provenance: dict) -> list[str]:
    """Where the weights come from, an item each."""
    started = f"- started from: {provenance.get('source')}"
    if provenance.get("revision"):
        started += f", revision {provenance['revision']}"
    items = [started]
    if provenance.get("license"):
        items.append(f"- its licence: {provenance['license']}")
    for name, value in provenance.items():
        if name not in ("source", "revision", "license", "sha256"):
            items.append(f"- {name.replace('_', ' ')}: {value}")
    return items


def plain_card(config: BertConfig, head: str | None, parameters: int, provenance: dict) -> str:
    """A model card that says what is known without having measured anything."""
    kind = "DistilBERT" if config.model_type == "distilbert" else "BERT"
    purpose = (head or "any task").replace("-", " ")
    came_from = [f"- {name}: {value}" for name, value in provenance.items() if value is not None]
    return "\n".join(
        [
            f"# {kind} for {purpose}",
            "",
            f"{parameters:,} parameters: {config.num_hidden_layers} layers, hidden size {config.hidden_size}, "
            f"{config.num_attention_heads} heads, {config.vocab_size:,} tokens, {config.max_position_embeddings} positions",
            "",
            "Where it came from:",
            "",
            *came_from,
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
    """The card of a model folder, with the metadata that the Hub reads: the card's, and what it
    does not say.
    """
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
