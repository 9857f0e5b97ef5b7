"""Read the files of a run folder, without torch."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bertqa.data.download import official
from bertqa.errors import UserError, show
from bertqa.files import decode, json_lines, parse_json, read_bytes, read_json

FILES = (
    "config.json",
    "metrics.jsonl",
    "predictions.json",
    "predictions.jsonl",
    "nbest_predictions.json",
    "null_odds.json",
    "confidence.json",
    "summary.json",
    "rejected.jsonl",
)
"""The files that training leaves in a run folder, beside best/ and last/."""


@dataclass
class Run:
    """The contents of a run folder; what is missing is empty or None."""

    folder: Path
    name: str
    config: dict  # config.json
    events: list[dict]  # metrics.jsonl
    weights: Path | None  # best/, or last/ before the first evaluation
    model: dict  # config.json of that folder
    qa: dict  # qa.json of best/
    predictions: dict[str, str] | None
    nbest: dict[str, list[dict]]
    odds: dict[str, float]
    confidence: dict[str, float]  # probability that each prediction is right; empty in older runs
    classified: list[dict] | None
    """The lines of a classifier's predictions.jsonl: id, label, gold, probabilities."""

    def of(self, event: str) -> list[dict]:
        """Return the journal's records of this event."""
        return [record for record in self.events if record.get("event") == event]

    def last(self, event: str) -> dict:
        """Return the last record of this event; empty if there is none."""
        records = self.of(event)
        return records[-1] if records else {}

    def setting(self, name: str):
        """Return the value of a setting; None also for one that the run does not have."""
        return self.config["settings"].get(name)

    def part(self, name: str) -> dict:
        """Return an object in config.json, such as "versions"; empty if there is none."""
        return object_at(self.config, name)

    @property
    def shape(self) -> dict:
        """The architecture of the model, as its config.json says."""
        return object_at(self.model, "architecture")

    @property
    def classifies(self) -> bool:
        return self.setting("task") == "classify"


def object_at(parent: dict, name: str) -> dict:
    """Return parent[name] if that is an object, else an empty one."""
    value = parent.get(name)
    return value if isinstance(value, dict) else {}


def read_run(folder: Path) -> Run:
    """Read a run folder. Raises UserError if it is not one, and for damaged files."""
    config = object_in(folder / "config.json")
    if config is None or not isinstance(config.get("settings"), dict):
        what = "there is no such folder"
        if folder.is_dir():
            what = "not a run: it has no config.json with settings"
        raise UserError(
            f"{folder}: {what}; give the folder that python -m bertqa.train --out FOLDER made"
        )
    # A run that was started a moment ago has only config.json.
    journal = folder / "metrics.jsonl"
    events = list(read_journal(journal)) if journal.exists() else []
    weights = None
    for part in ("last", "best"):  # best/ wins
        if (folder / part / "config.json").exists():
            weights = folder / part
    nbest = object_in(folder / "nbest_predictions.json") or {}
    for id, entries in nbest.items():
        check_entries(folder / "nbest_predictions.json", id, entries)
    model = {}
    if weights:
        model = object_in(weights / "config.json") or {}
    # Files may be missing, in older runs or in unfinished ones: the page says so.
    return Run(
        folder=folder,
        name=folder.resolve().name,
        config=config,
        events=[record for record in events if isinstance(record, dict)],
        weights=weights,
        model=model,
        qa=object_in(folder / "best" / "qa.json") or {},
        predictions=object_in(folder / "predictions.json", str),
        nbest=nbest,
        odds=object_in(folder / "null_odds.json", float) or {},
        confidence=object_in(folder / "confidence.json", float) or {},
        classified=classes_in(folder / "predictions.jsonl"),
    )


def damaged(path: Path, what: object) -> UserError:
    """Return the error for a file that is not as training wrote it."""
    return UserError(f"{path}: cannot be read ({what}); the file is damaged, or not of a run")


def object_in(path: Path, kind: type = object) -> dict | None:
    """Read a JSON object with values of one kind; None if there is no file. Raises UserError if it is damaged."""
    if not path.is_file():
        return None
    try:
        found = read_json(path, allow_nan=True)  # NaN is refused below, with its key
    except UserError as error:
        raise damaged(path, str(error).removeprefix(f"{path}: ")) from None
    if not isinstance(found, dict):
        raise damaged(path, f"it holds a {type(found).__name__} where an object must stand")
    for key, value in found.items():
        good = is_number(value) if kind is float else isinstance(value, kind)
        if not good:
            raise damaged(path, f"it holds {show(value)[:40]} for {key!r}")
    return found


def is_number(value: object) -> bool:
    """Return whether this is a finite number that a float can hold; True and False are not."""
    # Comparisons with NaN are False. The bounds exclude ints too large for a float.
    return type(value) in (int, float) and -1e300 < value < 1e300


def has_numbers(record: object, *names: str) -> bool:
    """Return whether this is an object with a number under each of these names."""
    return isinstance(record, dict) and all(is_number(record.get(name)) for name in names)


def check_entries(path: Path, id: str, entries: object) -> None:
    """Raise UserError if a question's n-best list is not a list of spans with probabilities."""
    if not isinstance(entries, list):
        raise damaged(path, f"it holds {show(entries)[:40]} for {id!r}")
    for entry in entries:
        good = (
            isinstance(entry, dict)
            and isinstance(entry.get("text"), str)
            and type(entry.get("start")) is int
            and type(entry.get("end")) is int
            and is_number(entry.get("probability"))
            and abs(entry["probability"]) < 2  # not 1: it may be rounded up
        )
        if not good:
            raise damaged(path, f"an entry of {id!r} is {show(entry)[:60]}")


def classes_in(path: Path) -> list[dict] | None:
    """Read a classifier's predictions; None if there is no file. Raises UserError if it is damaged."""
    if not path.is_file():
        return None
    records = []
    try:
        for where, record in json_lines(decode(read_bytes(path))):
            shares = record.get("probabilities") if isinstance(record, dict) else None
            if not isinstance(shares, dict) or not all(map(is_number, shares.values())):
                raise UserError(f"{where} has no probabilities")
            records.append(record)
    except UserError as error:
        raise damaged(path, error) from None
    return records


def read_journal(path: str | Path) -> Iterator[dict]:
    """Yield the records of a metrics.jsonl, in order. A last line that is incomplete is left out.

    Raises:
        UserError: if the file is missing, or any other line is not JSON.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: there is no journal; is this the folder of a run?")
    if path.stat().st_size == 0:
        return
    # Lines are appended, so a run that was killed can only have left the last one incomplete.
    *lines, last = read_bytes(path).split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            yield parse_json(decode(line), number)
        except UserError:
            raise UserError(f"{path}: line {number} is not JSON; the file is damaged") from None
    try:
        yield parse_json(decode(last))
    except UserError:
        pass  # incomplete, or the empty text after the last newline


def find_dev(run: Run, given: str | None = None) -> Path | None:
    """Return the file of dev questions: as given, or else as in the settings of the run. None if it is not found."""
    if given is not None:
        return Path(given)
    held_out = run.folder / "dev.json"
    if not run.setting("dev") and held_out.is_file():
        return held_out
    return find_file(run, run.setting("dev"))


def find_file(run: Run, setting: object) -> Path | None:
    """Return the file that a setting names; None if it is not found."""
    if not isinstance(setting, str) or not setting:
        return None
    name = Path(setting)
    fetched = official(name)  # a name like squad2, which was downloaded
    places = [fetched.path if fetched else name]
    # A relative path is relative to where training was started: in most cases the folder that has runs/.
    places += [parent / name for parent in run.folder.resolve().parents[:3]]
    return next((place for place in places if place.is_file()), None)


def numbers(records: list[dict], *names: str) -> list[list[float]]:
    """Return the columns `names` of those records that have finite numbers in all of them."""
    rows = []
    for record in records:
        row = [record.get(name) for name in names]
        if all(map(is_number, row)):
            rows.append(row)
    if not rows:
        return [[] for _ in names]
    return [list(column) for column in zip(*rows, strict=True)]


def moved_ends(config: dict) -> list[str]:
    """Return a sentence for each time that --resume moved the run's end, and with it the learning rate schedule."""
    moves = config.get("moved_ends")
    if not isinstance(moves, list):
        return []
    sentences = []
    for move in moves:
        if has_numbers(move, "step", "from", "to"):
            sentences.append(
                f"At step {move['step']:,} the run's end was moved from step {move['from']:,} to "
                f"{move['to']:,}; the learning rate follows the new schedule from there."
            )
    return sentences
