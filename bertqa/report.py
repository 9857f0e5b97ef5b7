"""python -m bertqa.report RUN [OTHER]: one self-contained HTML page about a run, or about two runs compared.

Everything comes from the run folder and the dev file it names: `training/run_folder.py` reads it, the numbers are
`reporting/analysis.py`'s, the page is drawn by `reporting/page/`. A piece that is missing becomes a sentence on the page. Text
from data reaches the page as JSON only and becomes text nodes; the page's policy lets no script run but its own, and
nothing be fetched.
"""

import argparse
import base64
import hashlib
import html
import json
import os
import re
import sys
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bertqa import __version__
from bertqa.data.examples import Dataset, Example, read_examples
from bertqa.errors import UserError
from bertqa.flags import run_verb
from bertqa.qa import metrics
from bertqa.qa.thresholds import NO_SPAN_ODDS
from bertqa.reporting import analysis
from bertqa.reporting.run_folder import Run, facts, find_dev, lead, numbers, read_run, remarks

PAGE = Path(__file__).resolve().parent / "reporting" / "page"
SCRIPTS = ("charts.js", "sections.js", "questions.js")  # one after the other, as one script
RUNNERS_UP = 3
"""Spans shown beneath each prediction."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bertqa.report",
        allow_abbrev=False,
        description="One HTML page about a run: what was run, curves, scores, where it fails, every question. With a "
        "second run: both side by side, and whether they really differ.",
        epilog="example: python -m bertqa.report runs/base runs/large -o compared.html",
    )
    parser.add_argument(
        "run", metavar="RUN", type=Path, help="folder that python -m bertqa.train made"
    )
    parser.add_argument(
        "other", metavar="OTHER", type=Path, nargs="?", help="a second one, to compare it with"
    )
    parser.add_argument(
        "-o",
        "--out",
        metavar="F",
        type=Path,
        help="where the page goes [RUN/report.html; with OTHER RUN/report-OTHER.html]",
    )
    parser.add_argument(
        "--dev", metavar="FILE", help="the questions, where they are no longer where RUN had them"
    )
    args = parser.parse_args(argv)
    print(
        write_report(
            args.run, args.other, args.out, args.dev, say=lambda line: print(line, file=sys.stderr)
        )
    )
    return 0


def write_report(
    run: Path,
    other: Path | None = None,
    out: Path | None = None,
    dev: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Path:
    """Write the page, and return where. `say` takes the verdict, and what the page lacks, a line at a time.

    Raises:
        UserError: for a folder that is not a run, damaged files, and two runs that share no question.
    """
    folders = [Path(folder) for folder in (run, other) if folder is not None]
    runs = [read_run(folder) for folder in folders]
    if len(runs) == 2 and runs[0].name == runs[1].name:
        for one in runs:
            one.name = f"{one.folder.resolve().parent.name}/{one.name}"
    names = ["report", *(folder.resolve().name for folder in folders[1:])]
    out = Path(out) if out else folders[0] / f"{'-'.join(names)}.html"
    page = collect(runs, dev)
    verdict = [page["verdict"]["text"]] if page["verdict"] else []
    for line in dict.fromkeys([*verdict, *page["notes"], *page["gaps"].values()]):
        say(line)
    fresh = out.with_name(out.name + ".tmp")
    # backslashreplace spells a lone surrogate \udXXX, and inside of JSON strings that is what it means
    fresh.write_bytes(render(page).encode("utf-8", "backslashreplace"))
    os.replace(fresh, out)
    return out


# ---- all that the page shows ----


def collect(runs: list[Run], dev: str | None) -> dict:
    """The page's data: see the keys below. `gaps` says, per section, in a sentence why there is nothing to show."""
    page = {
        "made": time.strftime("%Y-%m-%d %H:%M"),
        "version": __version__,
        "notes": [],
        "gaps": {},
        "verdict": None,
        "scores": [],
        "beside": [],
        "groups": [],
        "questions": None,
        "kinds": [[key, *text] for key, text in analysis.KINDS.items()],
    }
    page["runs"] = [
        {
            "name": run.name,
            "lead": lead(run),
            "facts": facts(run),
            "settings": {
                name: "none" if value is None else str(value)
                for name, value in run.config["settings"].items()
            },
            "curves": curves(run),
            "threshold": run.qa.get("null_threshold"),
        }
        for run in runs
    ]
    said = [remarks(run) for run in runs]
    shared = set(said[0]).intersection(*said[1:])
    page["notes"] = list(
        dict.fromkeys(
            note if note in shared else f"{run.name}: {note}"
            for run, notes in zip(runs, said, strict=True)
            for note in notes
        )
    )
    if not any(run.events for run in runs):
        page["gaps"]["training"] = "There are no curves: metrics.jsonl is missing or empty."
    path = find_dev(runs[0], dev)
    unscored = [run.name for run in runs if run.predictions is None]
    if any(run.setting("task") == "classify" for run in runs):
        why = "Scores and single texts are shown for question answering only, and this run learned classes of texts."
    elif unscored:
        why = (
            f"There is no predictions.json in {' and '.join(unscored)}: not evaluated yet, or still being trained. "
            "The page can be written again at any time."
        )
    elif path is None:
        why = f"The questions are not where they were ({runs[0].setting('dev')}); say where they are with --dev FILE."
    else:
        data = read_examples(path, runs[0].setting("limit_dev"))
        fill(page, runs, data)
        return page
    if len(runs) == 2:
        raise UserError(f"{runs[0].folder} and {runs[1].folder} cannot be compared: {why}")
    page["gaps"] |= dict.fromkeys(("scores", "answers", "failures", "questions"), why)
    return page


def fill(page: dict, runs: list[Run], data: Dataset) -> None:
    """Add what rests on the predictions."""
    examples = data.examples
    for run in runs:
        known = run.config.get("fingerprints", {}).get("dev file")
        if known and not data.sha256.startswith(known):
            page["notes"].append(
                f"{data.path} is not the file that {run.name} was evaluated on: its content differs."
            )
    if len(runs) == 2:
        examples = [
            example for example in examples if all(example.id in run.predictions for run in runs)
        ]
        if not examples:
            raise UserError(
                f"{runs[0].folder} and {runs[1].folder} have no question of {data.path} in common; compare "
                "runs that were evaluated on the same file, or give it with --dev FILE"
            )
        if len(examples) < max(len(run.predictions) for run in runs):
            page["notes"].append(
                f"The runs answered different questions; compared are the {len(examples):,} of both."
            )
    scored = [score(run, examples) for run in runs]
    has_answer = np.array([bool(example.answer_texts) for example in examples])
    systems = [(one.exact, one.f1) for one in scored]
    page["scores"] = analysis.score_table(has_answer, systems)
    if len(runs) == 2:
        page["verdict"] = analysis.verdict(
            page["scores"][0], [one.exact for one in scored], [run.name for run in runs]
        )
    windows = count_windows(runs[0], examples)
    groups = analysis.group(examples, windows)
    page["groups"] = [
        {
            "name": each.name,
            "labels": each.labels,
            "rows": analysis.group_rows(each, systems),
            "of": each.of.tolist(),
        }
        for each in groups
    ]
    for shown, run, one in zip(page["runs"], runs, scored, strict=True):
        shown["kinds"] = analysis.kind_rows(one.kinds, one.f1)
        shown |= answer_or_not(run, examples, has_answer)
        if "at_zero" in shown:
            page["beside"].append(
                "With threshold 0{} would have EM {:.2f}, F1 {:.2f}.".format(
                    f" {run.name}" if len(runs) > 1 else " it", *shown["at_zero"]
                )
            )
    if not has_answer.all():
        page["beside"].append(f"Who never answers has EM and F1 {100 * (~has_answer).mean():.2f}.")
    page["questions"] = {
        **browser(examples),
        "runs": [columns(run, one, examples) for run, one in zip(runs, scored, strict=True)],
    }


@dataclass
class Scored:
    """A run's predictions against the examples, a row per question."""

    texts: list[str | None]
    exact: np.ndarray
    f1: np.ndarray
    spans: list[tuple[int, int] | None]
    kinds: list[str]


def score(run: Run, examples: list[Example]) -> Scored:
    """Score predictions.json, which is written at the tuned threshold; a question it lacks counts as wrong."""
    scores = metrics.score_answers(examples, run.predictions)
    spans = [
        place(run, example, text) for example, text in zip(examples, scores.texts, strict=True)
    ]
    kinds = [
        analysis.kind_of(*row)
        for row in zip(examples, scores.texts, scores.exact, scores.f1, spans, strict=True)
    ]
    return Scored(
        scores.texts, np.array(scores.exact, float), np.array(scores.f1, float), spans, kinds
    )


def place(run: Run, example: Example, text: str | None) -> tuple[int, int] | None:
    """Where a prediction stands in the context, if the n-best list says so, and truly."""
    for entry in run.nbest.get(example.id, ()) if text else ():
        if entry["text"] == text and example.context[entry["start"] : entry["end"]] == text:
            return entry["start"], entry["end"]
    return None


def answer_or_not(run: Run, examples: list[Example], has_answer: np.ndarray) -> dict:
    """Curves over the null odds: each is its points, or a sentence why there are none."""
    best = {
        id: next((entry["text"] for entry in entries if entry["text"]), "")
        for id, entries in run.nbest.items()
    }
    absent = [
        example.id for example in examples if example.id not in best or example.id not in run.odds
    ]
    if absent:
        why = f"null_odds.json and nbest_predictions.json lack {len(absent):,} of {len(examples):,} questions."
        return dict.fromkeys(("pr", "sweep", "histogram", "reliability"), why)
    raw = metrics.score_answers(examples, best)
    odds = np.array([run.odds[id] for id in raw.ids])
    result = {
        "histogram": analysis.odds_histogram(odds, has_answer),
        "pr": "No question has an answer.",
    }
    if has_answer.any():
        order, result["pr"] = metrics.ranking(raw, run.odds), {}
        for name in ("exact", "f1"):
            precisions, recalls, area = metrics.precision_recall(
                getattr(raw, name), raw.has_answer, odds, order
            )
            result["pr"][name] = {
                "points": analysis.pick(300, recalls, precisions),
                "area": round(area, 2),
            }
    if has_answer.all():
        return result | dict.fromkeys(
            ("sweep", "reliability"), "Every question has an answer: there is nothing to tune."
        )
    result["sweep"] = analysis.sweep(
        odds, np.array(raw.exact, float), np.array(raw.f1, float), has_answer
    )
    if run.qa.get("null_threshold") is not None:
        result["at_zero"] = [
            100 * float(np.where(odds > 0, ~has_answer, values).mean())
            for values in (raw.exact, raw.f1)
        ]
    scale, found = run.qa.get("no_answer_scale"), odds < NO_SPAN_ODDS
    result["reliability"] = (
        "best/qa.json holds no fitted probability."
        if scale is None
        else analysis.reliability(odds[found], has_answer[found], scale, run.qa["no_answer_bias"])
    )
    return result


def count_windows(run: Run, examples: list[Example]) -> np.ndarray | None:
    """(Q,) windows of each question as the run cut them; None where its tokenizer or settings are missing."""
    from bertqa.data.tokenizer import WordPiece
    from bertqa.data.windows import build_windows

    names = ("max_length", "overlap", "step", "max_question")
    try:
        windows = build_windows(
            examples,
            WordPiece.load(run.weights),
            **{name: run.qa[name] for name in names if run.qa.get(name) is not None},
        )
    except (UserError, TypeError, ImportError):
        return None
    return np.bincount(windows.question, minlength=len(examples))


# ---- the question browser: columns, each context once ----


def utf16(text: str) -> Callable[[int], int]:
    """From Python's character offsets to JavaScript's, which counts characters beyond U+FFFF twice."""
    wide = []
    if max(text, default="") > "\uffff":
        wide = [i for i, character in enumerate(text) if character > "\uffff"]
    return lambda offset: offset + bisect_left(wide, offset)


def browser(examples: list[Example]) -> dict:
    """Questions and accepted answers: `gold` is start, end, start, end, ... in the context, `lost` what has no place."""
    contexts: dict[str, int] = {}
    rows = [contexts.setdefault(example.context, len(contexts)) for example in examples]
    gold, lost = [], {}
    for row, example in enumerate(examples):
        at, spans = utf16(example.context), {}
        for text, start in zip(example.answer_texts, example.answer_starts, strict=True):
            if start >= 0:
                spans[at(start), at(start + len(text))] = None
            else:
                lost.setdefault(row, []).append(text)
        gold.append([side for span in spans for side in span])
    titles = dict(zip(rows, (example.title for example in examples), strict=True))
    return {
        "contexts": list(contexts),
        "titles": [titles[row] for row in range(len(contexts))],
        "context": rows,
        "id": [example.id for example in examples],
        "question": [example.question for example in examples],
        "gold": gold,
        "lost": lost,
    }


def columns(run: Run, scored: Scored, examples: list[Example]) -> dict:
    """One run's answers: `answer` is [start, end], "" for none, null for missing, or a text that has no place.

    `best` is start, end, per mille of the best entries of the n-best list, the null answer as 0, 0.
    """
    names, result = (
        list(analysis.KINDS),
        {"kind": [], "f1": [], "odds": [], "answer": [], "best": []},
    )
    rows = zip(examples, scored.texts, scored.f1.tolist(), scored.spans, scored.kinds, strict=True)
    for example, text, f1, span, kind in rows:
        at, odds = utf16(example.context), run.odds.get(example.id)
        result["kind"].append(names.index(kind))
        result["f1"].append(round(100 * f1))
        result["odds"].append(None if odds is None or odds >= NO_SPAN_ODDS else round(odds, 2))
        result["answer"].append([at(span[0]), at(span[1])] if span else text)
        result["best"].append(
            [
                value
                for entry in run.nbest.get(example.id, ())[: RUNNERS_UP + 1]
                for value in (
                    at(entry["start"]),
                    at(entry["end"]),
                    round(1000 * entry["probability"]),
                )
            ]
        )
    return result


def curves(run: Run) -> dict:
    """name -> [steps, values], training values thinned, evaluations whole; `dev` has those of two scores by their label."""
    names = (
        {"macro-F1": "macro_f1", "accuracy": "accuracy"}
        if run.setting("task") == "classify"
        else {"F1": "f1", "EM": "exact"}
    )
    return {
        **{
            name: analysis.thin(400, *numbers(run.of("train"), "step", name))
            for name in ("loss", "lr", "windows_per_s")
        },
        "dev_loss": numbers(run.of("eval"), "step", "loss"),
        "dev": {label: numbers(run.of("eval"), "step", name) for label, name in names.items()},
    }


# ---- the page ----


def render(page: dict) -> str:
    """The HTML page with style, script and data inside. No text of the data can end its block or run."""
    text = json.dumps(page, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    parts = {
        "title": html.escape(" and ".join(run["name"] for run in page["runs"])),
        "style": (PAGE / "page.css").read_text(encoding="utf-8"),
        "script": "".join((PAGE / name).read_text(encoding="utf-8") for name in SCRIPTS),
        "data": text,
    }
    for name in ("style", "script"):
        digest = hashlib.sha256(parts[name].encode()).digest()
        parts[f"{name}_hash"] = f"'sha256-{base64.b64encode(digest).decode()}'"
    template = (PAGE / "page.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)


if __name__ == "__main__":
    raise SystemExit(run_verb(main))
