"""The model card: README.md of a model folder, written from what was measured and nothing else."""

import json
import re
from pathlib import Path

from bertqa.model.config import BertConfig

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
"""org/name."""

SQUAD = {"rajpurkar/squad": ("1", "1.1"), "rajpurkar/squad_v2": ("2", "2.0")}
"""The Hub's ids of the official data -> the number in our short name, the version."""

METRICS = {
    "exact": ("exact_match", "EM"),
    "f1": ("f1", "F1"),
    "accuracy": ("accuracy", "accuracy"),
    "macro_f1": ("f1", "macro F1"),
}
"""Our name of a metric -> the Hub's, and what people call it."""


def fine_tuned(provenance: dict, weights: Path, data: str) -> dict:
    """The provenance of what was trained further on `data`, from the folder `weights`: every step before, and this one."""
    found = {**provenance, "fine_tuned_on": data}
    # Who taught the weights that training started from is a step of their past, not of this training.
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
    """The card of a question answering model; `qa` is what qa.json will hold, the rest as for `card`."""
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
    """A setting as a card may show it: of a path on this machine only the name, of a run's best/ the run's before it."""
    if isinstance(value, (list, tuple)):
        return ", ".join(map(without_folders, value))
    path = Path(str(value))
    if not path.is_absolute():
        return str(value)
    return "/".join(path.parts[-2:]) if path.name in ("best", "last") else path.name


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
    """Markdown with Hugging Face metadata on top.

    Args:
        where: the model folder in its run folder, whose name is the title.
        provenance: of the weights, as config.json keeps it.
        settings: the run's settings that make the recipe.
        metrics: of the evaluation that these weights got.
        task: as the Hub's pipeline_tag names it.
        texts: about and limits; measured and rule, which stand above and below the table of metrics.
    """
    title = where.resolve().parent.name
    scores = []
    for name, value in metrics.items():
        if isinstance(value, float):
            scores.append(f"| {name} | {value:.2f} |")
    recipe = []
    for name, value in settings.items():
        # where it was written to means nothing on another machine
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
    """The metadata on top of a card, YAML between two lines of dashes; model-index holds the scores."""
    found = ["---", "library_name: bertqa", f"pipeline_tag: {task}"]
    found.append(f"tags: [bertqa, bert, {tag}]")
    if provenance.get("license"):
        found.append(f"license: {provenance['license']}")
    source = str(provenance.get("source"))
    if HUB_ID.fullmatch(source):
        found.append(f"base_model: {source}")
    trained_on = official(settings.get("train"), "train")
    if trained_on:
        found.append(f"datasets: [{trained_on}]")
    scores = {name: metrics.get(name) for name in METRICS}
    scores = {name: value for name, value in scores.items() if isinstance(value, float)}
    if scores:
        found += model_index(title, settings, scores, task)
    return [*found, "---"]


def official(setting: object, part: str) -> str:
    """The Hub's id of the data whose `part` (train, dev) a setting names; "" where that is no official file."""
    file = Path(str(setting)).name.removesuffix(".gz")
    for dataset, (number, version) in SQUAD.items():
        if file in (f"squad{number}", f"squad{number}-{part}", f"{part}-v{version}.json"):
            return dataset
    return ""


def model_index(title: str, settings: dict, scores: dict[str, float], task: str) -> list[str]:
    """The model-index of a card: the scores with the data that they were measured on."""
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
    """What the Hub reads beside the card: files of its .eval_results/ by name, in YAML, from the card's model-index.

    Scores on data that are not on the Hub belong to no benchmark. A task is called as its metric.
    """
    files: dict[str, str] = {}
    dataset = ""
    for line in card.splitlines():
        # lines as model_index writes them; a card that was written by hand has no such lines, or the same
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
    items = [f"- {name}: {value}" for name, value in provenance.items() if value is not None]
    came_from = "\n".join(items)
    return f"""# {kind} for {purpose}

{parameters:,} parameters: {config.num_hidden_layers} layers, hidden size {config.hidden_size}, \
{config.num_attention_heads} heads, {config.vocab_size:,} tokens, {config.max_position_embeddings} positions

Where it came from:

{came_from}
"""


def read_license(folder: Path) -> str | None:
    """The `license:` of a model card's metadata, where there is one."""
    front, _ = parts_of_card(folder)
    found = re.search(r"^license:\s*['\"]?([\w.-]+)", front, re.MULTILINE)
    return found[1] if found else None


def parts_of_card(folder: Path) -> tuple[str, str]:
    """The metadata and the text of the card in a folder; "" for what is not there."""
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.exists() else ""
    front, body = re.match(r"(?:---\n(.*?\n)---(?:\n|$))?(.*)", text, re.DOTALL).groups()
    return front or "", body


def exported_card(src: Path, model_type: str, task: str, provenance: dict) -> str:
    """The card of a model folder, with the metadata that the Hub reads: the card's, and what it does not say."""
    front, body = parts_of_card(src)
    # library_name was bertqa: with it the Hub would show no code for transformers
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
