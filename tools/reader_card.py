"""Write the model card (README.md) of a reader that tools/train_reader.py made; every number on it was measured."""

import shlex
import sys

from results import HEADER, Results, cells_of, markdown
from trainings import Training

from bertqa.model import folder
from bertqa.model.card import front_matter, without_folders


def lineage(results: Results, best: Training) -> dict:
    """Return the provenance of the reader for config.json: initial weights, licence, data, teachers.

    Args:
        best: the training that the reader's weights are from.
    """
    provenance = folder.read_config(results.bench.model_of(best))["provenance"]
    split = results.facts["split"]
    provenance["fine_tuned_on"] = (
        f"{split['source']} (sha256 {split['asked']['sha256'][:16]}) without {len(split['held_out_articles'])} articles: "
        f"{split['train_questions']:,} questions{pairs_of(split, best)}, {best.windows:,} windows"
    )
    provenance["taught_by"] = taught_by(results, best)
    return provenance


def pairs_of(split: dict, best: Training) -> str:
    """Return what the lineage says of new pairs (new_pairs.py), "" for a model that did not learn from any."""
    if "train-and-pairs.json" not in best.command:
        return ""
    return f", {split['new_pairs']:,} new pairs of question and paragraph made from them"


def reader_card(results: Results, best: Training) -> str:
    """Return the card as Markdown: lineage, scores, what chose what, recipe, limits."""
    provenance = lineage(results, best)
    name = results.bench.out.name
    front = front_matter(name, provenance, {}, {}, "question-answering", "extractive-qa")
    scores = [cells_of(row) for row in results.rows]
    recipe = []
    for training in results.bench.done:
        recipe.append(f"- {training.name}: `{portable(shlex.split(training.command), results)}`")
    command = portable(["python", *sys.argv], results)
    split = results.facts["split"]
    articles = split["held_out_articles"]
    candidates = [one for one in results.bench.done if not one.fold]
    start = provenance.get("lineage") or provenance.get("source")
    licence = provenance.get("license") or "no licence known"
    newline = "\n"  # f-strings of Python 3.10 take no backslash
    return f"""{newline.join(front)}

# {name}

A small extractive question answering model: it marks the answer in a text that you give, or says that there is none.

## Where it comes from

- started from: {start}, {licence}
- fine-tuned on: {provenance["fine_tuned_on"]}
- taught by: {provenance["taught_by"]}

## What it got

{markdown(HEADER, scores)}

In float32, from the weights as they are stored (float16); in brackets 95 % bootstrap intervals over questions. The dev sets
chose nothing.

## What chose what

{split["held_out_questions"]:,} questions of {len(articles)} articles ({split["held_out_impossible"]:,} without an answer)
were held out of every training. On them `{best.name}` was the best of {len(candidates)} trainings, and its
no-answer threshold and calibration were fitted to them. The articles, drawn by seed {split["asked"]["seed"]}:
{", ".join(articles)}.

## Recipe

```bash
{command}
```

did these trainings in its folder OUT:

{newline.join(recipe)}

## Limits

It knows nothing but the text at hand, cuts its answer out of it, does not count, compare or combine, and can be wrong with a
high score. `--threshold none` always answers. Nothing was measured here on languages or kinds of text other than those above.
"""


def portable(words: list[str], results: Results) -> str:
    """Return a command without the folders of this machine: the run's folder is called OUT."""
    out = str(results.bench.out)
    return shlex.join(without_folders(word.replace(out, "OUT")) for word in words)


def taught_by(results: Results, best: Training) -> str:
    """Return what the lineage says of the teachers of a model, and of theirs."""
    teachers = [one for one in results.bench.done if f"/{one.name}/best" in best.command]
    if not teachers:
        return "no teacher, the right answers alone"
    scores = ", ".join(f"{one.metrics['f1']:.2f}" for one in teachers)
    logits = "the mean of their logits"
    if teachers[0].fold:
        logits = "on each article the logits of those that were not trained on it"
    line = (
        f"{len(teachers)} reader(s) of its own size (F1 on the held-out articles {scores}): {logits}, "
        "beside the right answers"
    )
    if "--teacher " in teachers[0].command:
        line += f"; each of them taught by {taught_by(results, teachers[0])}"
    return line
