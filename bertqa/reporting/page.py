"""Write the report, a self-contained HTML page about one run, about two compared, or about the seeds of a few recipes.

Where a piece is missing, the page has a sentence that says why. Text from the data gets into the page only as JSON,
and is shown as text nodes; the page's content security policy allows no script but its own, and no network.
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
"""Joined in this order, they are the page's script."""


def write_report(
    run: Path,
    *others: Path,
    out: Path | None = None,
    dev: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Path:
    """Write the page, and return its path.

    Args:
        run, others: run folders.
        out: path of the page, by default in `run`.
        dev: the dev questions, if they are no longer where the run's settings say.
        say: is called with each line to print: the verdict, remarks, and what is missing on the page.

    Raises:
        UserError: for a folder that is not a run, damaged files, and runs that share no question.
    """
    folders = [Path(folder) for folder in (run, *others)]
    runs = [read_run(folder) for folder in folders]
    tell_apart(runs)
    if not out:
        names = ["report", *(folder.resolve().name for folder in folders[1:])]
        out = folders[0] / ("-".join(names)[:100] + ".html")
    out = Path(out)
    refuse_overwriting(out, runs, dev)
    page = collect(runs, dev)
    lines = [*page["notes"], *page["gaps"].values()]
    if page["verdict"]:
        lines.insert(0, page["verdict"]["text"])
    for line in dict.fromkeys(lines):  # each once: several gaps may have the same reason
        say(line)
    with replacing(out) as fresh:
        fresh.write_text(render(page), encoding="utf-8", newline="")
    return out


def tell_apart(runs: list[Run]) -> None:
    """Prefix names that several runs have with the name of the parent folder."""
    names = [run.name for run in runs]
    for run in runs:
        if names.count(run.name) > 1:
            run.name = f"{run.folder.resolve().parent.name}/{run.name}"


def refuse_overwriting(out: Path, runs: list[Run], dev: str | None) -> None:
    """Raise UserError if the page would overwrite a file that it is made from."""
    for run in runs:
        inputs = [run.folder / name for name in FILES]
        questions = find_dev(run, dev)
        if questions:
            inputs.append(questions)
        for path in inputs:
            if same_file(out, path):
                raise UserError(f"--out {out} would overwrite {path}; give another name")


def collect(runs: list[Run], dev: str | None) -> dict:
    """Return everything that the page shows; "gaps" has a sentence for each section that has nothing to show."""
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
    if why and len(runs) > 1:
        raise UserError(f"{folders_of(runs)} cannot be compared: {why}")
    if why:
        page["gaps"].update(dict.fromkeys(("scores", "answers", "failures", "questions"), why))
    elif runs[0].classifies:
        add_classes(page, runs, dev)
    else:
        add_scores(page, runs, dev_questions(runs[0], dev))
    return page


def why_unscored(runs: list[Run], dev: str | None) -> str:
    """Return a sentence that says why there are no scores to show; "" if there are."""
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
    """Return the remarks about the runs; those that are not the same for all runs with the run's name."""
    remarks_of = [remarks(run) for run in runs]
    shared = set(remarks_of[0]).intersection(*remarks_of[1:])
    notes = {}  # a set that keeps its order
    for run, sentences in zip(runs, remarks_of, strict=True):
        for sentence in sentences:
            if sentence not in shared:
                sentence = f"{run.name}: {sentence}"
            notes[sentence] = None
    return list(notes)


def describe_run(run: Run) -> dict:
    """Return what the page shows of any run, evaluated or not."""
    threshold = run.qa.get("null_threshold")
    settings = {}  # as text, which the page compares
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


def add_classes(page: dict, runs: list[Run], dev: str | None) -> None:
    """Add the scores of classifiers."""
    page["classes"] = [scored.class_report(run, dev) for run in runs]
    if len(runs) > 1:
        fractions = [(one["accuracy"] / 100, one["macro_f1"] / 100) for one in page["classes"]]
        page["families"] = family_rows(runs, fractions)


def dev_questions(run: Run, dev: str | None) -> Dataset:
    """Read the questions that a run was evaluated on, as many as it was."""
    limit = run.setting("limit_dev")
    # A config.json that was edited by hand may hold anything here.
    is_count = type(limit) is int and 0 < limit < 2**31
    return read_examples(find_dev(run, dev), limit if is_count else None)


def family_rows(runs: list[Run], systems: Sequence[tuple]) -> list[dict]:
    """Return mean and deviation of the scores of each recipe over its runs."""
    families = analysis.families([run.config["settings"] for run in runs])
    return analysis.family_rows(families, systems)


def add_scores(page: dict, runs: list[Run], data: Dataset) -> None:
    """Add all that depends on the predictions of answers."""
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
        page["families"] = family_rows(runs, systems)
    if len(runs) == 2:
        exact = [one.exact for one in found]
        names = [run.name for run in runs]
        page["verdict"] = analysis.verdict(page["scores"][0], exact, names)
    # Groups are by the windows of the first run: the runs of one table must share its groups.
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
    """Return what to compare the scores with, a sentence each."""
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
    """Return a sentence for each run that was evaluated on another file than this."""
    notes = []
    for run in runs:
        known = run.part("fingerprints").get("dev file")
        # dev.json was held out of the training file, and so has another hash than that.
        is_held_out = Path(data.path) == run.folder / "dev.json"
        if known and not is_held_out and not data.sha256.startswith(str(known)):
            notes.append(
                f"{data.path} is not the file that {run.name} was evaluated on: its content differs."
            )
    return notes


def answered_by_all(runs: Sequence[Run], data: Dataset) -> list[Example]:
    """Return the questions that all runs have predictions for. Raises UserError if there are none."""
    answered = set.intersection(*(set(run.predictions) for run in runs))
    examples = [example for example in data.examples if example.id in answered]
    if not examples:
        raise UserError(
            f"{folders_of(runs)} have no question of {data.path} in common; compare "
            "runs that were evaluated on the same file, or give it with --dev FILE"
        )
    return examples


def render(page: dict) -> str:
    """Return the HTML with style, script and data inside. No text in the data can end its element or be run."""
    text = to_json(page)
    # In a script element "</script>" and "<!--" have a meaning even inside a JSON string, and the two line separators
    # end a line of JavaScript. Escaped, they are the same text to JSON.parse.
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    parts = {
        "title": html.escape(" and ".join(run["name"] for run in page["runs"])),
        "style": (ASSETS / "page.css").read_text(encoding="utf-8"),
        "script": "".join((ASSETS / name).read_text(encoding="utf-8") for name in SCRIPTS),
        "data": text,
    }
    # The content security policy in the template allows only what has these hashes.
    for name in ("style", "script"):
        digest = hashlib.sha256(parts[name].encode()).digest()
        parts[f"{name}_hash"] = f"'sha256-{base64.b64encode(digest).decode()}'"
    template = (ASSETS / "page.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)
