"""python -m bertqa.report RUN [OTHER]: one self-contained HTML page about a run, or about two runs compared.

Everything comes from the run folder and the dev file it names; the numbers are `qa/analysis.py`'s, the page is
`report_page/`. A piece that is missing becomes a sentence on the page. Text from data reaches the page as JSON only and
is shown by `textContent`; the page's policy lets no script run but its own, and nothing be fetched.
"""

import argparse
import base64
import hashlib
import html
import json
import math
import os
import re
import struct
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
from bertqa.qa import analysis, metrics
from bertqa.qa.thresholds import NO_SPAN_ODDS
from bertqa.training.journal import read_journal

PAGE = Path(__file__).resolve().parent / "report_page"
RUNNERS_UP = 3
"""Spans shown beneath each prediction."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bertqa.report", allow_abbrev=False,
        description="One HTML page about a run: what was run, curves, scores, where it fails, every question. With a "
                    "second run: both side by side, and whether they really differ.",
        epilog="example: python -m bertqa.report runs/base runs/large -o compared.html")
    parser.add_argument("run", metavar="RUN", type=Path, help="folder that python -m bertqa.train made")
    parser.add_argument("other", metavar="OTHER", type=Path, nargs="?", help="a second one, to compare it with")
    parser.add_argument("-o", "--out", metavar="F", type=Path,
                        help="where the page goes [RUN/report.html; with OTHER RUN/report-OTHER.html]")
    parser.add_argument("--dev", metavar="FILE", help="the questions, where they are no longer where RUN had them")
    args = parser.parse_args(argv)
    print(write_report(args.run, args.other, args.out, args.dev, say=lambda line: print(line, file=sys.stderr)))
    return 0


def write_report(run: Path, other: Path | None = None, out: Path | None = None, dev: str | None = None,
                 say: Callable[[str], None] = lambda line: None) -> Path:
    """Write the page, and return where. `say` takes the verdict, and what the page lacks, a line at a time.

    Raises:
        UserError: for a folder that is not a run, damaged files, and two runs that share no question.
    """
    runs = [read_run(Path(folder)) for folder in (run, other) if folder is not None]
    if len(runs) == 2 and runs[0].name == runs[1].name:
        for one in runs:
            one.name = f"{one.folder.resolve().parent.name}/{one.name}"
    out = Path(out) if out else Path(run) / ("report.html" if other is None else f"report-{runs[1].folder.name}.html")
    page = collect(runs, dev)
    for line in [*([page["verdict"]["text"]] if page["verdict"] else []), *page["notes"], *page["gaps"].values()]:
        say(line)
    fresh = out.with_name(out.name + ".tmp")
    # backslashreplace spells a lone surrogate \udXXX, and inside of JSON strings that is what it means
    fresh.write_bytes(render(page).encode("utf-8", "backslashreplace"))
    os.replace(fresh, out)
    return out


# ---- the folder of a run ----


@dataclass
class Run:
    """A run folder as found; what it lacks is empty or None."""

    folder: Path
    name: str
    config: dict
    events: list[dict]
    model: dict
    """config.json of best/, or of last/ before the first evaluation."""
    weights: Path | None
    """The model folder that it stands in."""
    qa: dict
    predictions: dict[str, str] | None
    nbest: dict[str, list[dict]]
    odds: dict[str, float]

    def of(self, event: str) -> list[dict]:
        return [record for record in self.events if record.get("event") == event]

    def setting(self, name: str):
        return self.config["settings"].get(name)


def read_run(folder: Path) -> Run:
    """Read a run folder. Raises UserError where it is none, or where one of its files is damaged."""
    config = read_object(folder / "config.json")
    if config is None or not isinstance(config.get("settings"), dict):
        what = "there is no such folder" if not folder.is_dir() else "not a run: it has no config.json with settings"
        raise UserError(f"{folder}: {what}; give the folder that python -m bertqa.train --out FOLDER made")
    journal = folder / "metrics.jsonl"
    try:
        events = [record for record in read_journal(journal) if isinstance(record, dict)] if journal.exists() else []
    except UnicodeDecodeError as error:
        raise UserError(f"{journal}: not UTF-8 ({error}); the file is damaged") from None
    weights = next((folder / part for part in ("best", "last") if (folder / part / "config.json").exists()), None)
    return Run(folder, folder.resolve().name, config, events, weights and read_object(weights / "config.json") or {}, weights,
               read_object(folder / "best" / "qa.json") or {}, read_object(folder / "predictions.json"),
               read_object(folder / "nbest_predictions.json") or {}, read_object(folder / "null_odds.json") or {})


def read_object(path: Path) -> dict | None:
    """A JSON object; None where there is no such file. Raises UserError where it holds something else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise UserError(f"{path}: not a JSON file ({error}); the run folder is damaged") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: holds a JSON {type(found).__name__}, but must hold an object; the run folder is damaged")
    return found


def find_dev(run: Run, dev: str | None) -> Path | None:
    """The file of dev questions: as given, else as the run had it, seen from here or from where its folder stands."""
    if dev is not None:
        return Path(dev)
    name = Path(run.setting("dev") or "")
    places = [name, *(parent / name for parent in run.folder.resolve().parents[:3])]
    return next((place for place in places if place.is_file()), None)


# ---- all that the page shows ----


def collect(runs: list[Run], dev: str | None) -> dict:
    """The page's data: see the keys below. `gaps` says, per section, in a sentence why there is nothing to show."""
    page = {"made": time.strftime("%Y-%m-%d %H:%M"), "version": __version__, "notes": [], "gaps": {}, "verdict": None,
            "scores": [], "groups": [], "kinds": [[key, *text] for key, text in analysis.KINDS.items()], "questions": None}
    page["runs"] = [{"name": run.name, "lead": lead(run), "facts": facts(run), "settings": run.config["settings"],
                     "curves": curves(run), "threshold": run.qa.get("null_threshold")} for run in runs]
    for run in runs:
        page["notes"] += [f"{run.name}: {note}" if len(runs) > 1 else note for note in remarks(run)]
    if not any(run.events for run in runs):
        page["gaps"]["training"] = "There are no curves: metrics.jsonl is missing or empty."
    path = find_dev(runs[0], dev)
    unscored = [run.name for run in runs if run.predictions is None]
    if unscored:
        why = (f"{' and '.join(unscored)} has no predictions.json: it was not evaluated yet, or is still being trained. The page "
               "can be written again at any time.")
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
            page["notes"].append(f"{data.path} is not the file that {run.name} was evaluated on: its content differs.")
    if len(runs) == 2:
        examples = [example for example in examples if all(example.id in run.predictions for run in runs)]
        if not examples:
            raise UserError(f"{runs[0].folder} and {runs[1].folder} have no question of {data.path} in common; compare "
                            "runs that were evaluated on the same file, or give it with --dev FILE")
        if len(examples) < max(len(run.predictions) for run in runs):
            page["notes"].append(f"The runs answered different questions; compared are the {len(examples):,} of both.")
    scored = [score(run, examples) for run in runs]
    has_answer = np.array([bool(example.answer_texts) for example in examples])
    systems = [(one.exact, one.f1) for one in scored]
    page["scores"] = analysis.score_table(has_answer, systems)
    if len(runs) == 2:
        page["verdict"] = analysis.verdict(page["scores"][0], [one.exact for one in scored], [run.name for run in runs])
    windows = count_windows(runs[0], examples)
    groups = analysis.group(examples, windows)
    page["groups"] = [{"name": each.name, "labels": each.labels, "rows": analysis.group_rows(each, systems),
                       "of": each.of.tolist()} for each in groups]
    for shown, run, one in zip(page["runs"], runs, scored, strict=True):
        shown["kinds"] = analysis.kind_rows(one.kinds, one.f1)
        shown |= answer_or_not(run, examples, has_answer)
    page["questions"] = {**browser(examples), "runs": [
        columns(run, one, examples) for run, one in zip(runs, scored, strict=True)]}


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
    spans = [place(run, example, text) for example, text in zip(examples, scores.texts, strict=True)]
    kinds = [analysis.kind_of(*row) for row in zip(examples, scores.texts, scores.exact, scores.f1, spans, strict=True)]
    return Scored(scores.texts, np.array(scores.exact, float), np.array(scores.f1, float), spans, kinds)


def place(run: Run, example: Example, text: str | None) -> tuple[int, int] | None:
    """Where a prediction stands in the context, if the n-best list says so, and truly."""
    for entry in run.nbest.get(example.id, ()) if text else ():
        if entry["text"] == text and example.context[entry["start"]:entry["end"]] == text:
            return entry["start"], entry["end"]
    return None


def answer_or_not(run: Run, examples: list[Example], has_answer: np.ndarray) -> dict:
    """Curves over the null odds: each is its points, or a sentence why there are none."""
    best = {id: next((entry["text"] for entry in entries if entry["text"]), "") for id, entries in run.nbest.items()}
    absent = [example.id for example in examples if example.id not in best or example.id not in run.odds]
    if absent:
        why = f"null_odds.json and nbest_predictions.json lack {len(absent):,} of {len(examples):,} questions."
        return dict.fromkeys(("pr", "sweep", "histogram", "reliability"), why)
    raw = metrics.score_answers(examples, best)
    odds = np.array([run.odds[id] for id in raw.ids])
    result = {"histogram": analysis.odds_histogram(odds, has_answer), "pr": "No question has an answer."}
    if has_answer.any():
        order, result["pr"] = metrics.ranking(raw, run.odds), {}
        for name in ("exact", "f1"):
            precisions, recalls, area = metrics.precision_recall(getattr(raw, name), raw.has_answer, odds, order)
            result["pr"][name] = {"points": analysis.pick(300, recalls, precisions), "area": round(area, 2)}
    if has_answer.all():
        return result | dict.fromkeys(("sweep", "reliability"), "Every question has an answer, so there is nothing to tune.")
    result["sweep"] = analysis.sweep(odds, np.array(raw.exact, float), np.array(raw.f1, float), has_answer)
    scale, found = run.qa.get("no_answer_scale"), odds < NO_SPAN_ODDS
    result["reliability"] = "best/qa.json holds no fitted probability." if scale is None else analysis.reliability(
        odds[found], has_answer[found], scale, run.qa["no_answer_bias"])
    return result


def count_windows(run: Run, examples: list[Example]) -> np.ndarray | None:
    """(Q,) windows of each question as the run cut them; None where its tokenizer or settings are missing."""
    from bertqa.data.tokenizer import WordPiece
    from bertqa.data.windows import build_windows

    names = ("max_length", "overlap", "step", "max_question")
    try:
        windows = build_windows(examples, WordPiece.load(run.weights), **{
            name: run.qa[name] for name in names if run.qa.get(name) is not None})
    except (UserError, TypeError, ImportError):
        return None
    return np.bincount(windows.question, minlength=len(examples))


# ---- the question browser: columns, each context once ----


def utf16(text: str) -> Callable[[int], int]:
    """From Python's character offsets to JavaScript's, which counts characters beyond U+FFFF twice."""
    wide = [] if text.isascii() else [i for i, character in enumerate(text) if character > "\uffff"]
    return lambda offset: offset + bisect_left(wide, offset)


def browser(examples: list[Example]) -> dict:
    """Questions and accepted answers. `gold` is start, end, start, end, ... in the context; `lost` has answers without place."""
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
    return {"contexts": list(contexts), "titles": [titles[row] for row in range(len(contexts))], "context": rows,
            "id": [example.id for example in examples], "question": [example.question for example in examples],
            "gold": gold, "lost": lost}


def columns(run: Run, scored: Scored, examples: list[Example]) -> dict:
    """One run's answers: `answer` is [start, end], "" for none, null for missing, or a text that has no place.

    `best` is start, end, per mille of the best entries of the n-best list, the null answer as 0, 0.
    """
    names, result = list(analysis.KINDS), {"kind": [], "f1": [], "odds": [], "answer": [], "best": []}
    for example, text, f1, span, kind in zip(examples, scored.texts, scored.f1.tolist(), scored.spans, scored.kinds, strict=True):
        at, odds = utf16(example.context), run.odds.get(example.id)
        result["kind"].append(names.index(kind))
        result["f1"].append(round(100 * f1))
        result["odds"].append(None if odds is None or odds >= NO_SPAN_ODDS else round(odds, 2))
        result["answer"].append([at(span[0]), at(span[1])] if span else text)
        result["best"].append([value for entry in run.nbest.get(example.id, ())[:RUNNERS_UP + 1] for value in
                               (at(entry["start"]), at(entry["end"]), round(1000 * entry["probability"]))])
    return result


# ---- what was run ----


def numbers(records: list[dict], *names: str) -> list[list[float]]:
    """The columns `names` of the records that have them all as finite numbers."""
    rows = [[record.get(name) for name in names] for record in records]
    good = [row for row in rows if all(type(value) in (int, float) and math.isfinite(value) for value in row)]
    return [list(column) for column in zip(*good, strict=True)] if good else [[] for _ in names]


def curves(run: Run) -> dict:
    """name -> [steps, values]; training values are thinned, evaluations whole."""
    train = {name: analysis.thin(400, *numbers(run.of("train"), "step", name)) for name in ("loss", "lr", "windows_per_s")}
    return train | {f"dev_{name}": numbers(run.of("eval"), "step", name) for name in ("loss", "exact", "f1")}


def remarks(run: Run) -> list[str]:
    """What a reader must know to read the numbers rightly."""
    notes, ends = [], run.of("end")
    if run.events and not ends:
        notes.append("The run has not ended: it is still being trained, or was killed. Curves go as far as it got.")
    elif ends and ends[-1].get("finished") is False:
        notes.append(f"The run was stopped at step {ends[-1].get('steps', 0):,}, before its end; "
                     f"python -m bertqa.train --resume {run.folder} goes on.")
    tuning = run.qa.get("tuning", {})
    if run.qa.get("null_threshold") is not None:
        held_out = tuning.get("held_out")
        notes.append(
            f"The no-answer threshold was tuned on {tuning['tuned']['questions']:,} of these questions. On the "
            f"{held_out['questions']:,} held out it gives EM {held_out['exact']:.2f}, F1 {held_out['f1']:.2f}: the honest number."
            if held_out else
            "The no-answer threshold was tuned on these same questions, which flatters the scores a little.")
    return notes


def lead(run: Run) -> str:
    """One sentence: what was trained, on what, how long."""
    shape, end = run.model.get("architecture", {}), (run.of("end") or run.of("train") or [{}])[-1]
    model = (f"{shape.get('model_type', 'bert')} with {shape['num_hidden_layers']} layers of {shape['hidden_size']}"
             if {"num_hidden_layers", "hidden_size"} <= shape.keys() else "A model")
    steps = end.get("steps", end.get("step"))
    took = f", {steps:,} steps in {duration(end['seconds'])}" if steps and "seconds" in end else ""
    return (f"{model}, started from {Path(run.setting('weights') or '?').name}, trained on "
            f"{Path(run.setting('train') or '?').name}{took}; evaluated on {Path(run.setting('dev') or '?').name}.")


def duration(seconds: float) -> str:
    """3725 -> "1 h 2 min", 95 -> "1 min 35 s"."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def facts(run: Run) -> dict[str, str]:
    """Label -> value of what was run, for people; what is not known is left out."""
    setting, config, shape = run.setting, run.config, run.model.get("architecture", {})
    end, evals = (run.of("end") or [{}])[-1], run.of("eval")
    provenance, marks = run.model.get("provenance", {}), config.get("fingerprints", {})
    origin = ", ".join(f"{provenance[name]}" for name in ("source", "license") if provenance.get(name))
    size = parameters(run.weights)
    best = max((record for record in evals if type(record.get("f1")) in (int, float)), key=lambda r: r["f1"], default={})
    stretch = "step {step}" if setting("step") is not None else "overlap {overlap}"
    limits = {name: f", first {setting(name):,} questions" if setting(name) else "" for name in ("limit_train", "limit_dev")}
    found = {
        "Model": shape and f"{shape.get('model_type')}, {shape.get('num_hidden_layers')} layers, hidden size "
                           f"{shape.get('hidden_size')}, {shape.get('num_attention_heads')} heads"
                           + (f", {size / 1e6:,.1f} M parameters" if size else ""),
        "Started from": f"{setting('weights')}" + (f" ({origin})" if origin else "")
                        + (", with a fresh answer head" if setting("fresh_head") else ""),
        "Trained on": f"{setting('train')}{limits['limit_train']} (sha256 {marks.get('train file', 'unknown')}…)",
        "Evaluated on": f"{setting('dev')}{limits['limit_dev']} (sha256 {marks.get('dev file', 'unknown')}…)",
        "Windows": f"{setting('max_length')} tokens, " + stretch.format(
            step=setting("step"), overlap=128 if setting("overlap") is None else setting("overlap")),
        "Recipe": f"{setting('epochs')} epochs, batches of {setting('batch_size')} windows, learning rate {setting('lr')} "
                  f"({setting('schedule')}, warm-up {setting('warmup')}), weight decay {setting('weight_decay')}, "
                  f"seed {setting('seed')}",
        "Best weights": best and f"step {best['step']:,}, F1 {best['f1']:.2f}",
        "Training time": "seconds" in end and f"{duration(end['seconds'])} for {end['steps']:,} steps, "
                                              f"{end['windows']:,} windows",
        "Throughput": "windows_per_s" in end and f"{end['windows_per_s']:,.1f} windows/s, {end['tokens_per_s']:,.0f} useful tokens/s",
        "Peak memory": "peak_memory_mb" in end and f"{end['peak_memory_mb']:,} MB",
        "Hardware": hardware(config),
        "Software": ", ".join(f"{name} {value}" for name, value in config.get("versions", {}).items() if name != "platform"),
        "Commit": config.get("commit"),
        "Begun": config.get("started"),
        "Command": " ".join(map(str, config.get("command", []))),
    }
    return {label: str(value) for label, value in found.items() if value}


def hardware(config: dict) -> str:
    """What config.json says of the machine."""
    known = config.get("hardware", {})
    parts = [f"{name.replace('_', ' ')} {value}" for name, value in known.items()] if isinstance(known, dict) else [str(known)]
    processes = config.get("fingerprints", {}).get("processes", 1)
    return ", ".join([*parts, config.get("versions", {}).get("platform", ""), *([f"{processes} processes"] * (processes > 1)),
                      f"device {config['settings'].get('device')}, precision {config['settings'].get('precision')}"])


def parameters(folder: Path | None) -> int:
    """Numbers in a model folder's weights, read from the safetensors header; 0 where that cannot be."""
    try:
        with open(folder / "model.safetensors", "rb") as file:
            header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
    except (OSError, TypeError, ValueError, struct.error):
        return 0


# ---- the page ----


def render(page: dict) -> str:
    """The HTML page with style, script and data inside. No text of the data can end its block or run."""
    escapes = {ord(character): f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"}
    parts = {"title": html.escape(" and ".join(run["name"] for run in page["runs"])),
             "style": (PAGE / "page.css").read_text(encoding="utf-8"),
             "script": (PAGE / "page.js").read_text(encoding="utf-8"),
             "data": json.dumps(page, ensure_ascii=False, allow_nan=False, separators=(",", ":")).translate(escapes)}
    for name in ("style", "script"):
        digest = hashlib.sha256(parts[name].encode()).digest()
        parts[f"{name}_hash"] = f"'sha256-{base64.b64encode(digest).decode()}'"
    template = (PAGE / "page.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)


if __name__ == "__main__":
    raise SystemExit(run_verb(main))
