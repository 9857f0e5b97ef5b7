"""The model card: README.md of a model folder, written from what was measured and nothing else."""


def model_card(title: str, provenance: dict, settings: dict, metrics: dict, qa: dict) -> str:
    """Markdown with Hugging Face metadata on top.

    Args:
        provenance: of the weights, as config.json keeps it.
        settings: the run's settings that make the recipe.
        metrics: of the evaluation that these weights got.
        qa: what qa.json will hold.
    """
    license = provenance.get("license")
    base = provenance.get("source")
    head = ["---", "library_name: bertqa", "pipeline_tag: question-answering", "tags: [bertqa, bert, extractive-qa]",
            *([f"license: {license}"] if license else []), "---"]
    lineage = [f"- started from: {base}" + (f", revision {provenance['revision']}" if provenance.get("revision") else "")]
    if license:
        lineage.append(f"- its licence: {license}")
    lineage += [f"- {name.replace('_', ' ')}: {value}" for name, value in provenance.items()
                if name not in ("source", "revision", "license", "sha256")]
    scores = [f"| {name} | {value:.2f} |" for name, value in metrics.items() if isinstance(value, float)]
    threshold = qa.get("null_threshold")
    rule = ("Every question gets an answer: the dev set has no impossible questions." if threshold is None else
            f"A question is left unanswered where its null odds exceed {threshold:.4f}, tuned on the same dev set for F1"
            + (", on part of its articles; the numbers are of the others." if settings.get("tune_on") else
               ", so exact and f1 are a little flattered; those at zero are not."))
    recipe = [f"- {name}: {value}" for name, value in settings.items() if value is not None]
    return "\n".join([
        *head, "", f"# {title}", "", "An extractive question answering model: it marks the answer in a text that you give, "
        "or says that there is none.", "",
        "## Where it comes from", "", *lineage, "", "## What it got on its dev set", "",
        f"{settings.get('dev', 'dev')}: {metrics.get('total', '?')} questions.", "", "| measure | value |", "|---|---|",
        *scores, "", rule, "", "## Recipe", "", *recipe, "", "## Limits", "",
        "It knows nothing but the text at hand, cuts its answer out of it, does not count, compare or combine, and can be "
        "wrong with a high score. Nothing was measured here on languages or kinds of text other than the dev set's.", ""])
