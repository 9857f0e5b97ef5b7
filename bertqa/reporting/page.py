"""The report: one self-contained HTML page about a run, about two compared, or about several of a few recipes.

A piece that is missing becomes a sentence on the page. Text from data reaches the page as JSON only
and becomes text nodes; the page's policy lets no script run but its own, and nothing be fetched.
"""

import base64
import hashlib
import html
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from bertqa import __version__
from bertqa.data.examples import Dataset, Example, read_examples
from bertqa.errors import UserError
from bertqa.files import replacing, same_file, to_json
from bertqa.reporting import analysis, scored
from bertqa.reporting.curves import answer_or_not, risk, training_curves
from bertqa.reporting.facts import facts, lead, remarks
from bertqa.reporting.run_folder import FILES, Run, find_dev, is_number, read_run

ASSETS = Path(__file__).resolve().parent / "assets"
SCRIPTS = ("charts.js", "sections.js", "classes.js", "questions.js", "start.js")
"""One after the other, as one script."""


def write_report(
    run: Path,
    *others: Path,
    out: Path | None = None,
    dev: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Path:
    """Write the page, and return where. `say` takes the verdict, and what the page lacks, a line at a time.

    Args:
        run, others: folders that training made.
        out: where the page goes; by default into `run`.
        dev: the questions, where they are no longer where the run had them.

    Raises:
        UserError: for a folder that is not a run, damaged files, and runs that share no question.
    """
    folders = [Path(folder) for folder in (run, *others)]
    runs = [read_run(folder) for folder in folders]
    tell_apart(runs)
    name = "-".join(["report", *(folder.resolve().name for folder in folders[1:])])[:100]
    out = Path(out) if out else folders[0] / f"{name}.html"
    refuse_overwriting(out, runs, dev)
    page = collect(runs, dev)
    lines = [*page["notes"], *page["gaps"].values()]
    if page["verdict"]:
        lines.insert(0, page["verdict"]["text"])
    for line in dict.fromkeys(lines):  # several gaps may have one reason
        say(line)
    with replacing(out) as fresh:
        fresh.write_text(render(page), encoding="utf-8", newline="")
    return out


def tell_apart(runs: list[Run]) -> None:
    """Put the parent's name before names that several runs have."""
    names = [run.name for run in runs]
    for run in runs:
        if names.count(run.name) > 1:
            run.name = f"{run.folder.resolve().parent.name}/{run.name}"


def refuse_overwriting(out: Path, runs: list[Run], dev: str | None) -> None:
    """Raise UserError where the page would take the place of a file that it is made from."""
    for run in runs:
        inputs = [run.folder / name for name in FILES]
        questions = find_dev(run, dev)
        if questions:
            inputs.append(questions)
        for path in inputs:
            if same_file(out, path):
                raise UserError(f"--out {out} would overwrite {path}; give another name")


def collect(runs: list[Run], dev: str | None) -> dict:
    """All that the page shows; `gaps` says of a section why there is nothing to show."""
    page = {
        "made": time.strftime("%Y-%m-%d %H:%M"),
        "version": __version__,
        "notes": shared_notes(runs),
        "gaps": {},
        "verdict": None,
        "scores": [],
        "families": [],
        "beside": [],
        "groups": [],
        "questions": None,
        "classes": None,
        "kinds": [[key, *text] for key, text in analysis.KINDS.items()],
        "runs": [describe_run(run) for run in runs],
    }
    if not any(run.events for run in runs):
        page["gaps"]["training"] = "There are no curves: metrics.jsonl is missing or empty."
    why = why_unscored(runs, dev)
    if not why and runs[0].classifies:
        page["classes"] = [scored.class_report(run, dev) for run in runs]
        if len(runs) > 1:
            fractions = [(one["accuracy"] / 100, one["macro_f1"] / 100) for one in page["classes"]]
            page["families"] = analysis.family_rows(analysis.families(runs), fractions)
        return page
    if not why:
        # the first so many questions, as the run was evaluated; a config.json that was edited may say anything
        limit = runs[0].setting("limit_dev")
        is_count = type(limit) is int and 0 < limit < 2**31
        fill(page, runs, read_examples(find_dev(runs[0], dev), limit if is_count else None))
        return page
    if len(runs) > 1:
        raise UserError(f"{folders_of(runs)} cannot be compared: {why}")
    page["gaps"].update(dict.fromkeys(("scores", "answers", "failures", "questions"), why))
    return page


def why_unscored(runs: list[Run], dev: str | None) -> str:
    """A sentence why there are no scores to show; "" where there are."""
    if any(run.classifies for run in runs):
        if not all(run.classifies for run in runs):
            return "Some of these runs answer questions, and others learned classes of texts."
        lacking = [run.name for run in runs if not run.classified]
        file = "predictions.jsonl"
        what = ", and this run learned classes of texts" if len(runs) == 1 else ""
    else:
        lacking = [run.name for run in runs if run.predictions is None]
        file = "predictions.json"
        what = (
            ": not evaluated yet, or still being trained. The page can be written again at any time"
        )
    if lacking:
        return f"There is no {file} in {' and '.join(lacking)}{what}."
    if not runs[0].classifies and find_dev(runs[0], dev) is None:
        place = runs[0].setting("dev")
        return (
            f"The questions are not where they were ({place}); say where they are with --dev FILE."
        )
    return ""


def shared_notes(runs: list[Run]) -> list[str]:
    """The remarks about each run, with its name before what is not true of all."""
    said = [remarks(run) for run in runs]
    shared = set(said[0]).intersection(*said[1:])
    notes = {}  # a set that keeps its order
    for run, sentences in zip(runs, said, strict=True):
        for sentence in sentences:
            if sentence not in shared:
                sentence = f"{run.name}: {sentence}"
            notes[sentence] = None
    return list(notes)


def describe_run(run: Run) -> dict:
    """What the page shows of a run whether it was evaluated or not."""
    threshold = run.qa.get("null_threshold")
    settings = {}  # as text, for the page shows where two runs differ
    for name, value in run.config["settings"].items():
        settings[name] = "none" if value is None else str(value)
    return {
        "name": run.name,
        "lead": lead(run),
        "facts": facts(run),
        "settings": settings,
        "curves": training_curves(run),
        "threshold": threshold if is_number(threshold) else None,
    }


def fill(page: dict, runs: list[Run], data: Dataset) -> None:
    """Add what rests on the predictions."""
    page["notes"] += changed_data_notes(runs, data)
    examples = data.examples
    if len(runs) > 1:
        examples = answered_by_all(runs, data)
        if len(examples) < max(len(run.predictions) for run in runs):
            of = "both" if len(runs) == 2 else "all"
            page["notes"].append(
                f"The runs answered different questions; compared are the {len(examples):,} of {of}."
            )
    found = [scored.score(run, examples) for run in runs]
    has_answer = np.array([bool(example.answer_texts) for example in examples])
    systems = [(one.exact, one.f1) for one in found]
    page["total"] = len(examples)
    page["scores"] = analysis.score_table(has_answer, systems)
    if len(runs) > 1:
        page["families"] = analysis.family_rows(analysis.families(runs), systems)
    if len(runs) == 2:
        exact = [one.exact for one in found]
        names = [run.name for run in runs]
        page["verdict"] = analysis.verdict(page["scores"][0], exact, names)
    # The first run's windows serve for all: two that cut texts otherwise could not share a table.
    for each in analysis.group(examples, scored.count_windows(runs[0], examples)):
        rows = analysis.group_rows(each, systems)
        page["groups"].append(
            {"name": each.name, "labels": each.labels, "rows": rows, "of": each.of.tolist()}
        )
    for shown, run, one in zip(page["runs"], runs, found, strict=True):
        shown["kinds"] = analysis.kind_rows(one.kinds, one.f1)
        shown["risk"] = risk(run, examples, one.exact)
        shown.update(answer_or_not(run, examples, has_answer))
    page["beside"] = beside(page["runs"], has_answer)
    if len(runs) > 2:
        page["gaps"]["questions"] = "Single questions are shown for one run, or for two compared."
        return
    page["questions"] = scored.browser(examples)
    page["questions"]["runs"] = []
    for run, one in zip(runs, found, strict=True):
        page["questions"]["runs"].append(scored.columns(run, one, examples))


def beside(shown: list[dict], has_answer: np.ndarray) -> list[str]:
    """What the scores can be held against, a sentence each."""
    sentences = []
    for run in shown:
        if "at_zero" in run:
            name = run["name"] if len(shown) > 1 else "it"
            exact, f1 = run["at_zero"]
            sentences.append(f"With threshold 0 {name} would have EM {exact:.2f}, F1 {f1:.2f}.")
    if not has_answer.all():
        share = 100 * (~has_answer).mean()
        sentences.append(f"Who never answers has EM and F1 {share:.2f}.")
    return sentences


def folders_of(runs: Sequence[Run]) -> str:
    return " and ".join(str(run.folder) for run in runs)


def changed_data_notes(runs: list[Run], data: Dataset) -> list[str]:
    """A sentence for each run that was evaluated on other questions than these."""
    notes = []
    for run in runs:
        known = run.part("fingerprints").get("dev file")
        # dev.json was held out of the training file: its own hash is not that of any file that was given
        is_held_out = Path(data.path) == run.folder / "dev.json"
        if known and not is_held_out and not data.sha256.startswith(str(known)):
            notes.append(
                f"{data.path} is not the file that {run.name} was evaluated on: its content differs."
            )
    return notes


def answered_by_all(runs: Sequence[Run], data: Dataset) -> list[Example]:
    """The questions that every run has a prediction for. Raises UserError where there are none."""
    examples = []
    for example in data.examples:
        if all(example.id in run.predictions for run in runs):
            examples.append(example)
    if not examples:
        raise UserError(
            f"{folders_of(runs)} have no question of {data.path} in common; compare "
            "runs that were evaluated on the same file, or give it with --dev FILE"
        )
    return examples


def render(page: dict) -> str:
    """The page with style, script and data inside. No text of the data can end its block or run."""
    text = to_json(page)
    # Inside a script element "</script>" and "<!--" mean something even within a JSON string, and
    # the two line separators end a line of JavaScript; escaped they are the same text to JSON.parse.
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    parts = {
        "title": html.escape(" and ".join(run["name"] for run in page["runs"])),
        "style": (ASSETS / "page.css").read_text(encoding="utf-8"),
        "script": "".join((ASSETS / name).read_text(encoding="utf-8") for name in SCRIPTS),
        "data": text,
    }
    # the policy in the template lets nothing run but what has these hashes
    for name in ("style", "script"):
        digest = hashlib.sha256(parts[name].encode()).digest()
        parts[f"{name}_hash"] = f"'sha256-{base64.b64encode(digest).decode()}'"
    template = (ASSETS / "page.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)
