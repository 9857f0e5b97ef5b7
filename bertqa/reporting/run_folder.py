"""A run folder as one reads it afterwards, without torch: its files, its curves, and what was run in words."""

import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bertqa.data.download import official
from bertqa.errors import UserError


@dataclass
class Run:
    """A run folder as found; what it lacks is empty or None."""

    folder: Path
    name: str
    config: dict
    events: list[dict]
    weights: Path | None
    """best/, or last/ before the first evaluation."""
    model: dict
    """config.json of that folder."""
    qa: dict
    """qa.json of best/."""
    predictions: dict[str, str] | None
    nbest: dict[str, list[dict]]
    odds: dict[str, float]

    def of(self, event: str) -> list[dict]:
        """The journal's records of this event."""
        return [record for record in self.events if record.get("event") == event]

    def setting(self, name: str):
        """The run's value of a setting; None also for one it did not know."""
        return self.config["settings"].get(name)


def read_run(folder: Path) -> Run:
    """Read a run folder. Raises UserError where it is none, or where one of its files is damaged."""
    config = read_object(folder / "config.json")
    if config is None or not isinstance(config.get("settings"), dict):
        what = (
            "not a run: it has no config.json with settings"
            if folder.is_dir()
            else "there is no such folder"
        )
        raise UserError(
            f"{folder}: {what}; give the folder that python -m bertqa.train --out FOLDER made"
        )
    journal = folder / "metrics.jsonl"
    try:
        events = (
            [record for record in read_journal(journal) if isinstance(record, dict)]
            if journal.exists()
            else []
        )
    except UnicodeDecodeError as error:
        raise UserError(f"{journal}: not UTF-8 ({error}); the file is damaged") from None
    weights = next(
        (folder / part for part in ("best", "last") if (folder / part / "config.json").exists()),
        None,
    )
    return Run(
        folder,
        folder.resolve().name,
        config,
        events,
        weights,
        weights and read_object(weights / "config.json") or {},
        read_object(folder / "best" / "qa.json") or {},
        read_object(folder / "predictions.json", str),
        read_object(folder / "nbest_predictions.json", list) or {},
        read_object(folder / "null_odds.json", (int, float)) or {},
    )


def read_object(path: Path, kind: type | tuple[type, ...] = object) -> dict | None:
    """A JSON object with values of a kind; None where there is no such file. Raises UserError where it is damaged."""

    def refuse(name: str):
        raise ValueError(f"it holds {name}")

    try:
        found = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
        if not isinstance(found, dict):
            refuse(f"a {type(found).__name__} where an object must stand")
        for key, value in found.items():
            if not isinstance(value, kind):
                refuse(f"{json.dumps(value)[:40]} for {key!r}")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise UserError(
            f"{path}: cannot be read ({error}); the file is damaged, or not of a run"
        ) from None
    return found


def find_dev(run: Run, given: str | None = None) -> Path | None:
    """The file of dev questions: as given, else as the run had it, seen from here or from above its folder."""
    if given is not None:
        return Path(given)
    name = Path(run.setting("dev") or "")
    named = official(name)  # squad2: where it was fetched to
    places = [
        named.path if named else name,
        *(parent / name for parent in run.folder.resolve().parents[:3]),
    ]
    return next((place for place in places if place.is_file()), None)


def numbers(records: list[dict], *names: str) -> list[list[float]]:
    """The columns `names` of the records that have them all as finite numbers."""
    rows = [[record.get(name) for name in names] for record in records]
    good = [
        row
        for row in rows
        if all(type(value) in (int, float) and math.isfinite(value) for value in row)
    ]
    return [list(column) for column in zip(*good, strict=True)] if good else [[] for _ in names]


# ---- in words ----


def remarks(run: Run) -> list[str]:
    """What a reader must know to read the numbers rightly, a sentence each."""
    notes, ends = moved_ends(run.config), run.of("end")
    if run.events and not ends:
        notes.append(
            "The run has not ended: it is still being trained, or was killed. Curves go as far as it got."
        )
    elif ends and ends[-1].get("finished") is False:
        notes.append(
            f"The run was stopped at step {ends[-1].get('steps', 0):,}, before its end; "
            f"python -m bertqa.train --resume {run.folder} goes on."
        )
    tuning = run.qa.get("tuning") or {}
    if run.qa.get("null_threshold") is not None and "held_out" in tuning:
        rest = tuning["held_out"]
        notes.append(
            f"The no-answer threshold was tuned on {tuning['tuned']['questions']:,} of these questions. On the "
            f"{rest['questions']:,} held out it gives EM {rest['exact']:.2f}, F1 {rest['f1']:.2f}: these are "
            "the honest numbers."
        )
    elif run.qa.get("null_threshold") is not None and tuning:
        notes.append(
            "The no-answer threshold was tuned on these same questions, which flatters the scores a little."
        )
    return notes


def moved_ends(config: dict) -> list[str]:
    """A sentence for each time that --resume gave the run another end: its schedule is not that of the settings alone."""
    return [
        f"At step {move['step']:,} the run's end was moved from step {move['from']:,} to {move['to']:,}; the learning "
        "rate follows the new schedule from there."
        for move in config.get("moved_ends", [])
    ]


def lead(run: Run) -> str:
    """One sentence: what was trained, on what, how long."""
    shape, end = run.model.get("architecture", {}), (run.of("end") or run.of("train") or [{}])[-1]
    kind = {"bert": "A BERT", "distilbert": "A DistilBERT"}.get(shape.get("model_type"), "A model")
    layers = f" of {shape['num_hidden_layers']} layers" if "num_hidden_layers" in shape else ""
    size, steps = parameters(run.weights), end.get("steps", end.get("step"))
    names = {part: Path(run.setting(part) or "?").name for part in ("weights", "train", "dev")}
    return (
        f"{kind}{layers}{f' and {size / 1e6:,.1f} million parameters' if size else ''}, started from "
        f"{names['weights']}, trained on {names['train']}{f' for {steps:,} steps' if steps else ''}"
        f"{' in ' + duration(end['seconds']) if 'seconds' in end else ''}, evaluated on {names['dev']}."
    )


def duration(seconds: float) -> str:
    """3725 -> "1 h 2 min", 95 -> "1 min 35 s"."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def facts(run: Run) -> dict[str, str]:
    """Label -> value of what was run, for people; what is not known is left out."""
    setting, config, shape = run.setting, run.config, run.model.get("architecture", {})
    end = (run.of("end") or [{}])[-1]
    provenance = run.model.get("provenance", {})
    origin = ", ".join(
        str(provenance[name]) for name in ("source", "license") if provenance.get(name)
    )
    score = "macro_f1" if setting("task") == "classify" else "f1"
    steps, scores = numbers(run.of("eval"), "step", score)
    size, marks = parameters(run.weights), config.get("fingerprints", {})

    def file(part: str) -> str:
        limit = (
            f", first {setting(f'limit_{part}'):,} questions" if setting(f"limit_{part}") else ""
        )
        mark = f" (sha256 {marks[f'{part} file']}…)" if f"{part} file" in marks else ""
        return f"{setting(part)}{limit}{mark}"

    found = {
        "Model": shape
        and f"{shape.get('model_type')}, {shape.get('num_hidden_layers')} layers, hidden size "
        f"{shape.get('hidden_size')}, {shape.get('num_attention_heads')} heads"
        + (f", {size:,} parameters" if size else ""),
        "Started from": f"{setting('weights')}"
        + (f" ({origin})" if origin else "")
        + (", with a fresh answer head" if setting("fresh_head") else ""),
        "Trained on": file("train"),
        "Evaluated on": file("dev"),
        "Windows": f"{setting('max_length')} tokens, "
        + (
            f"step {setting('step')}"
            if setting("step") is not None
            else f"overlap {128 if setting('overlap') is None else setting('overlap')}"
        ),
        "Recipe": f"{setting('epochs')} epochs, batches of {setting('batch_size')} windows, learning rate "
        f"{setting('lr')} ({setting('schedule')}, warm-up {setting('warmup')}), weight decay "
        f"{setting('weight_decay')}, seed {setting('seed')}",
        "Best weights": scores
        and f"step {steps[scores.index(max(scores))]:,}, {score} {max(scores):.2f}",
        "Training time": "seconds" in end
        and (f"{duration(end['seconds'])} for {end['steps']:,} steps, {end['windows']:,} windows"),
        "Throughput": "windows_per_s" in end
        and (f"{end['windows_per_s']:,.1f} windows/s, {end['tokens_per_s']:,.0f} useful tokens/s"),
        "Peak memory": end.get("peak_memory_mb") and f"{end['peak_memory_mb']:,} MB",
        "Hardware": hardware(config),
        "Software": ", ".join(
            f"{name} {value}"
            for name, value in config.get("versions", {}).items()
            if name != "platform"
        ),
        "Commit": config.get("commit"),
        "Begun": config.get("started"),
        "Command": " ".join(map(str, config.get("command", []))),
    }
    return {label: str(value) for label, value in found.items() if value}


def hardware(config: dict) -> str:
    """What config.json says of the machine: its "hardware" (names and values) if it has that, platform and device."""
    known, processes = (
        config.get("hardware", {}),
        config.get("fingerprints", {}).get("processes", 1),
    )
    parts = [f"{name.replace('_', ' ')} {value}" for name, value in known.items()]
    parts += [
        config.get("versions", {}).get("platform", ""),
        f"{processes} processes" if processes > 1 else "",
        f"device {config['settings'].get('device')}, precision {config['settings'].get('precision')}",
    ]
    return ", ".join(filter(None, parts))


def parameters(folder: Path | None) -> int:
    """Numbers in a model folder's weights, from the header of model.safetensors; 0 where that cannot be read."""
    try:
        with open(folder / "model.safetensors", "rb") as file:
            header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        return sum(
            math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__"
        )
    except (OSError, TypeError, ValueError, struct.error):
        return 0


def read_journal(path: str | Path) -> Iterator[dict]:
    """The events of a metrics.jsonl, in order. A last line that was cut off in the middle is left out.

    Raises:
        UserError: where the file is missing or another line is not JSON.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: there is no journal; is this the folder of a run?")
    lines = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines, 1):
        if line:
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                if number < len(lines):
                    raise UserError(
                        f"{path}: line {number} is not JSON; the file is damaged"
                    ) from None
