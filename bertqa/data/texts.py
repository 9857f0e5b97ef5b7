"""Files of texts, with labels or without, become columns: what is classified or embedded.

Plain or gzipped UTF-8, with or without byte order mark, in one of these shapes:

    csv     comma, semicolon or tab between the cells, whichever gives a header with the columns asked for
    jsonl   an object per line, or a list of objects
    lines   a text per line, blank ones included, so that row n is line n + 1

A label is a name or a whole number. A column "id" names the rows; without one they are numbered from 0.
"""

import csv
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np

from bertqa.data.fields import field
from bertqa.data.tables import csv_rows
from bertqa.errors import UserError
from bertqa.files import decode, json_lines, parse_json, read_bytes, show


@dataclass
class Texts:
    """R rows of a file, in its order."""

    path: str
    sha256: str  # of the uncompressed content
    where: list[str]  # "line 3": where each row stands in the file, for messages
    ids: list[str]
    texts: list[str]
    pairs: list[str] | None = None  # the second text of each row
    labels: list[str] | None = None

    def __len__(self) -> int:
        return len(self.texts)

    def select(self, rows: Sequence[int]) -> "Texts":
        """These rows, in this order."""
        columns = {
            name: getattr(self, name) for name in ("where", "ids", "texts", "pairs", "labels")
        }
        return replace(
            self,
            **{name: column and [column[row] for row in rows] for name, column in columns.items()},
        )

    def empty(self) -> list[int]:
        """Rows without a word in any of their texts."""
        second = self.pairs or [""] * len(self)
        return [
            row
            for row, text in enumerate(self.texts)
            if not text.strip() and not second[row].strip()
        ]


def read_texts(
    path: str | Path,
    text_column: str | None = None,
    *,
    pair_column: str | None = None,
    label_column: str | None = None,
    limit: int | None = None,
) -> Texts:
    """Read the columns named, and "id"; `limit` keeps the first so many rows.

    Without `text_column`, the column is "text", and what is no table is read as lines: where the file has no objects,
    its first line no cell "text", and its name no .csv or .tsv.

    Raises:
        UserError: one line that names the file and what is wrong with it: missing, not UTF-8, cut off, without one of
            the columns (its own are listed), without rows, a text that is no text, a label that is empty.
    """
    try:
        content = read_bytes(Path(path))
        text = decode(content)
        wanted = [name for name in (text_column or "text", pair_column, label_column) if name]
        if text_column is None and not _is_table(str(path), text):
            lines = text.removesuffix("\n").split("\n")
            rows = [
                (f"line {n}", {"text": line.removesuffix("\r")}) for n, line in enumerate(lines, 1)
            ]
        else:
            table = text.lstrip()[0] not in "{["
            rows = (
                _cells(text, wanted, keep_blank=label_column is None)
                if table
                else _objects(text, wanted)
            )
        rows = list(islice(rows, limit))
        if not rows:
            raise UserError("has a header, but no rows")

        def column(name: str | None, get) -> list[str] | None:
            return name and [get(where, row, name) for where, row in rows]

        ids = [str(row.get("id", number)) for number, (_, row) in enumerate(rows)]
        return Texts(
            str(path),
            hashlib.sha256(content).hexdigest(),
            [where for where, _ in rows],
            ids,
            column(wanted[0], _text),
            column(pair_column, _text),
            column(label_column, _label),
        )
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _is_table(name: str, text: str) -> bool:
    first = text.lstrip().split("\n", 1)[0].strip()
    cells = [cell.strip(' "') for cell in re.split("[,;\t]", first)]
    return (
        name.lower().removesuffix(".gz").endswith((".csv", ".tsv"))
        or first.startswith("{")
        or "text" in cells
    )


def _text(where: str, row: dict, name: str) -> str:
    return field(where, row, name, str)


def _label(where: str, row: dict, name: str) -> str:
    value = row[name]
    if isinstance(value, float) and value.is_integer():  # a pandas column that had empty cells
        value = int(value)
    label = str(value).strip() if isinstance(value, (str, int)) else ""
    if not label:
        raise UserError(
            f'{where}: the label "{name}" is {show(value)}; it must be a name or a whole number'
        )
    return label


def _require(where: str, wanted: list[str], found: Sequence[str]) -> None:
    missing = [name for name in wanted if name not in found]
    if missing:
        raise UserError(
            f"{where} has no column {' and no '.join(map(show, missing))}; its columns are "
            f"{', '.join(map(show, found))}; say which with --text-column, --label-column, --pair-column"
        )


def _objects(text: str, wanted: list[str]):
    if text.lstrip().startswith("["):
        rows = (
            (f"record {number}", row)
            for number, row in enumerate(parse_json(text, allow_nan=True), 1)
        )
    else:
        rows = json_lines(text, allow_nan=True)
    for where, row in rows:
        if not isinstance(row, dict):
            raise UserError(f"{where}: must be an object, not {show(row)}")
        _require(where, wanted, list(row))
        yield where, row


def _cells(text: str, wanted: list[str], keep_blank: bool):
    first = re.split("[\r\n]", text.lstrip(), maxsplit=1)[0]
    headers = {delimiter: next(csv.reader([first], delimiter=delimiter)) for delimiter in ",;\t"}
    fits = {
        delimiter: set(wanted) <= {name.strip() for name in names}
        for delimiter, names in headers.items()
    }
    delimiter = max(headers, key=lambda delimiter: (fits[delimiter], len(headers[delimiter])))
    header = [name.strip() for name in headers[delimiter]]
    _require("the header", wanted, header)
    try:
        return _fit(header, csv_rows(text, delimiter, keep_blank))
    except UserError:
        if delimiter != "\t":
            raise
        # Many a TSV (GLUE's) quotes nothing, and a quotation mark in it is just one.
        lines = [
            (f"line {n}", line.removesuffix("\r")) for n, line in enumerate(text.split("\n"), 1)
        ]
        return _fit(
            header,
            [
                (where, line.split("\t"))
                for where, line in lines
                if line.strip() or keep_blank and line
            ],
        )


def _fit(header: list[str], rows: list[tuple[str, list[str]]]) -> list[tuple[str, dict]]:
    """The rows behind the first, which is the header, as objects."""
    for where, row in rows:
        if len(row) != len(header):
            raise UserError(
                f"{where}: has {len(row)} cells, the header {len(header)}; cut off, or a quote missing?"
            )
    return [(where, dict(zip(header, row, strict=True))) for where, row in rows[1:]]


# ---- labels and splits ----


def label_names(labels: Sequence[str]) -> list[str]:
    """The classes in their order: by value where all are whole numbers, else by name."""
    names = set(labels)
    whole = all(re.fullmatch(r"-?\d+", name) for name in names)
    return sorted(names, key=(lambda name: (int(name), name)) if whole else None)


def label_rows(texts: Texts, names: Sequence[str]) -> np.ndarray:
    """(R,) the class of each row, as its place in `names`. Raises UserError for labels that are not among them."""
    unseen = [
        (label, where)
        for label, where in zip(texts.labels, texts.where, strict=True)
        if label not in names
    ]
    if unseen:
        kinds = ", ".join(
            f"{show(name)} (first: {next(where for label, where in unseen if label == name)})"
            for name in label_names([label for label, _ in unseen])[:8]
        )
        raise UserError(
            f"{texts.path}: {len(unseen):,} of {len(texts):,} labels were not seen in training: {kinds}; "
            f"known are {', '.join(map(show, names))}"
        )
    place = {name: row for row, name in enumerate(names)}
    return np.array([place[label] for label in texts.labels])


def split(texts: Texts, share: float, seed: int) -> tuple[Texts, Texts]:
    """(the rest, `share` of the rows), both in the file's order.

    Stratified: that share is drawn of each label, by seed; one row at least if there are two, and never the last.
    """
    labels, drawn, draw = np.array(texts.labels), [], np.random.default_rng([seed, 2])
    for name in label_names(texts.labels):
        rows = np.flatnonzero(labels == name)
        drawn.extend(
            draw.permutation(rows)[: min(len(rows) - 1, max(1, round(share * len(rows))))].tolist()
        )
    chosen = set(drawn)
    return texts.select([row for row in range(len(texts)) if row not in chosen]), texts.select(
        sorted(chosen)
    )
