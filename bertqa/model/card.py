"""Model cards: README.md of a model folder, with the Hub's metadata, the measured scores and the recipe."""

import json
import re
from pathlib import Path

from bertqa.model.config import BertConfig

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
"""A Hub id, org/name."""

SQUAD = {"rajpurkar/squad": ("1", "1.1"), "rajpurkar/squad_v2": ("2", "2.0")}
"""Official data by Hub id: the number in our short name (squad1, squad2), and the version."""

METRICS = {
    "exact": ("exact_match", "EM"),
    "f1": ("f1", "F1"),
    "accuracy": ("accuracy", "accuracy"),
    "macro_f1": ("f1", "macro F1"),
}
"""Metrics by our name: the Hub's name, and the name to show."""


def fine_tuned(provenance: dict, weights: Path, data: str) -> dict:
    """Return the provenance of weights fine-tuned on `data` from the folder `weights`; an earlier one becomes "lineage"."""
    found = {**provenance, "fine_tuned_on": data}
    # The teachers of the earlier training, if it was distillation, are not those of this one.
    teachers = found.pop("taught_by", None)
    earlier = provenance.get("fine_tuned_on")
    if earlier:
        chain = provenance.get("lineage") or provenance.get("source")
        how = f"fine-tuned on {earlier}"
        if teachers:
            how += f"; taught by {teachers}"
        found["lineage"] = f"{chain} -> {without_folders(weights.resolve())} ({how})"
    return found


def model_card(where: Path, provenance: dict, settings: dict, metrics: dict, qa: dict) -> str:
    """Return the card of a question answering model; `qa`: contents of its qa.json; other arguments as for `card`."""
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
    """Return the card of a text classifier; `measured`: a sentence on the dev set; other arguments as for `card`."""
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
    """Describe when the model gives no answer, and how tuning that affects its scores."""
    if threshold is None:
        return "Every question gets an answer: the dev set has no impossible questions."
    return (
        f"A question is left unanswered where its null odds exceed {threshold:.4f}, tuned on the same "
        "dev set for F1, so exact and f1 are a little flattered; those at zero are not."
    )


def without_folders(value: object) -> str:
    """Return a setting as a card may show it: an absolute path without its folders, but RUN/best for a run's weights."""
    if isinstance(value, (list, tuple)):
        return ", ".join(map(without_folders, value))
    path = Path(str(value))
    if not path.is_absolute():
        return str(value)
    if path.name in ("best", "last"):
        return "/".join(path.parts[-2:])
    return path.name


CARD = """{front_matter}

# {title}

{about}

## Where it comes from

{lineage}

## What it got on its dev set

{measured}

| measure | value |
|---|---|
{scores}

{rule}

## Recipe

{recipe}

## Limits

{limits} Nothing was measured here on languages or kinds of text other than the dev set's.
"""


def card(
    where: Path, provenance: dict, settings: dict, metrics: dict, task: str, tag: str, **texts: str
) -> str:
    """Return a card: Markdown that begins with the Hub's metadata.

    Args:
        where: the model folder; the name of the run folder around it is the title.
        provenance: that of the weights, as in config.json.
        settings: the run's settings, which are the recipe.
        metrics: scores of these weights on the dev set.
        task: its name as the Hub's pipeline_tag.
        texts: about and limits; measured and rule, the lines above and below the table of scores.
    """
    title = where.resolve().parent.name
    scores = []
    for name, value in metrics.items():
        if isinstance(value, float):
            scores.append(f"| {name} | {value:.2f} |")
    recipe = []
    for name, value in settings.items():
        # The output folder means nothing on another machine.
        if value is not None and name != "out":
            recipe.append(f"- {name}: {without_folders(value)}")
    return CARD.format(
        title=title,
        front_matter="\n".join(front_matter(title, provenance, settings, metrics, task, tag)),
        lineage="\n".join(lineage(provenance)),
        scores="\n".join(scores),
        recipe="\n".join(recipe),
        **texts,
    )


def front_matter(
    title: str, provenance: dict, settings: dict, metrics: dict, task: str, tag: str
) -> list[str]:
    """Return the lines of a card's metadata: YAML between two lines of dashes, with the scores in model-index."""
    tags = f"tags: [bertqa, bert, {tag}]"
    found = ["---", "library_name: bertqa", f"pipeline_tag: {task}", tags]
    if provenance.get("license"):
        found.append(f"license: {provenance['license']}")
    source = str(provenance.get("source"))
    if HUB_ID.fullmatch(source):
        found.append(f"base_model: {source}")
    trained_on = official(settings.get("train"), "train")
    if trained_on:
        found.append(f"datasets: [{trained_on}]")
    scores = {name: metrics[name] for name in METRICS if isinstance(metrics.get(name), float)}
    if scores:
        found += model_index(title, settings, scores, task)
    return [*found, "---"]


def official(setting: object, part: str) -> str:
    """Return the Hub id of the data whose `part` (train, dev) a setting names; "" if it is no official file."""
    file = Path(str(setting)).name.removesuffix(".gz")
    for dataset, (number, version) in SQUAD.items():
        if file in (f"squad{number}", f"squad{number}-{part}", f"{part}-v{version}.json"):
            return dataset
    return ""


def model_index(title: str, settings: dict, scores: dict[str, float], task: str) -> list[str]:
    """Return the lines of a card's model-index: the scores, and the data that they were measured on."""
    dev = settings.get("dev")
    name = dataset = Path(str(dev or settings.get("train") or "dev")).name
    if not dev:
        name = f"{name}, held out"
    elif settings.get("limit_dev"):
        name = f"{name}, its first {settings['limit_dev']}"
    elif official(dev, "dev"):
        dataset = official(dev, "dev")
        name = f"SQuAD {SQUAD[dataset][1]}, dev"
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


def eval_results(card: str) -> dict[str, str]:
    """Return the YAML files for the Hub's .eval_results/, by name, made from the model-index of a card.

    They have scores on official data only, the Hub's benchmarks, whose tasks are named by their metrics.
    """
    files: dict[str, str] = {}
    dataset = ""
    for line in card.splitlines():
        # Lines as model_index writes them; cards from elsewhere are left alone.
        named = re.match(r'    dataset: .*type: "([^"]*)"', line)
        if named:
            dataset = named[1]
        score = re.match(r"    - \{type: (\w+), .*value: ([\d.]+)\}", line)
        if score and dataset in SQUAD:
            metric, value = score.groups()
            entry = f"- dataset: {{id: {dataset}, task_id: {metric}}}\n  value: {value}\n"
            file = f"{Path(dataset).name}.yaml"
            files[file] = files.get(file, "") + entry
    return files


def lineage(provenance: dict) -> list[str]:
    """Return the provenance of the weights as Markdown items."""
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
    """Return a card without scores, for a model that was not trained here."""
    kind = "DistilBERT" if config.model_type == "distilbert" else "BERT"
    purpose = (head or "any task").replace("-", " ")
    items = [f"- {name}: {value}" for name, value in provenance.items() if value is not None]
    came_from = "\n".join(items)
    return f"""# {kind} for {purpose}

{parameters:,} parameters: {config.num_hidden_layers} layers, hidden size {config.hidden_size}, \
{config.num_attention_heads} heads, {config.vocab_size:,} tokens, {config.max_position_embeddings} positions

Where it came from:

{came_from}
"""


def read_license(folder: Path) -> str | None:
    """Return the `license:` in a card's metadata, if there is one."""
    front, _ = parts_of_card(folder)
    found = re.search(r"^license:\s*['\"]?([\w.-]+)", front, re.MULTILINE)
    return found[1] if found else None


def parts_of_card(folder: Path) -> tuple[str, str]:
    """Return the metadata and the text of the card in a folder; "" for a missing part."""
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.exists() else ""
    front, body = re.match(r"(?:---\n(.*?\n)---(?:\n|$))?(.*)", text, re.DOTALL).groups()
    return front or "", body


def exported_card(src: Path, model_type: str, task: str, provenance: dict) -> str:
    """Return the card for a folder exported to transformers: that of the model folder, its metadata completed."""
    front, body = parts_of_card(src)
    # With library_name bertqa the Hub would not show how to load it with transformers.
    replaced = ("library_name:", "pipeline_tag:")
    kept = [line for line in front.splitlines() if not line.startswith(replaced)]
    source = str(provenance.get("source"))
    more = {
        "library_name": "transformers",
        "license": provenance.get("license"),
        "tags": f"[bertqa, {model_type}]",
        "pipeline_tag": task,
        "base_model": source if HUB_ID.fullmatch(source) else None,
    }
    lines = []
    for name, value in more.items():
        if value and not any(line.startswith(f"{name}:") for line in kept):
            lines.append(f"{name}: {value}")
    return "\n".join(["---", *lines, *kept, "---", "", body.strip(), ""])
