"""Whole files of texts, with labels or without, as columns: what is trained on. Read as text_stream.py says, row after row;
the first that cannot be read ends it.

A label is a name or a whole number.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np

from bertqa.data.fields import EMPTY
from bertqa.data.sources import Source
from bertqa.data.text_stream import Columns, rows_in, text_in
from bertqa.errors import UserError
from bertqa.files import show


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
        chosen = {}
        for name in ("where", "ids", "texts", "pairs", "labels"):
            column = getattr(self, name)
            chosen[name] = None if column is None else [column[row] for row in rows]
        return replace(self, **chosen)

    def empty(self) -> list[int]:
        """Rows without a word in any of their texts."""
        seconds = self.pairs or [""] * len(self)
        found = []
        for row, (text, second) in enumerate(zip(self.texts, seconds, strict=True)):
            if not text.strip() and not second.strip():
                found.append(row)
        return found


def read_texts(
    path: str | Path,
    text_column: str | None = None,
    *,
    pair_column: str | None = None,
    label_column: str | None = None,
    limit: int | None = None,
) -> Texts:
    """Read the columns named, and "id"; `limit` keeps the first so many rows.

    Without `text_column` the column is "text", and what is no table is read as lines (see `is_table`).

    Raises:
        UserError: one line that names the file and what is wrong with it: missing, not UTF-8, cut off, without one of
            the columns (its own are listed), with two columns of one name, without rows, a text that is no text, a
            label that is empty.
    """
    if limit is not None and limit < 1:
        raise UserError(f"limit is {limit}; it must be at least 1 text")
    columns = Columns(text_column, pair_column, label_column)
    rows: list[tuple[str, dict]] = []
    try:
        with Source(Path(path)) as source:
            for where, row in islice(rows_in(source, columns), limit):
                if isinstance(row, UserError):
                    raise row
                columns.require(where, row)
                rows.append((where, row))
            for _ in source.lines():  # behind the limit: the checksum is of all
                pass
        if not rows:
            raise UserError("has a header, but no rows")
        return Texts(
            path=str(path),
            sha256=source.digest.hexdigest(),
            where=[where for where, _ in rows],
            ids=[str(row.get("id", number)) for number, (_, row) in enumerate(rows)],
            texts=_column(rows, columns.wanted[0], text_in),
            pairs=_column(rows, pair_column, text_in) if pair_column else None,
            labels=_column(rows, label_column, _label) if label_column else None,
        )
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _column(
    rows: Sequence[tuple[str, dict]], name: str, get: Callable[[str, dict, str], str]
) -> list[str]:
    """A column of the rows, each of its values checked by `get`."""
    return [get(where, row, name) for where, row in rows]


def _label(where: str, row: dict, name: str) -> str:
    """A label as text; a whole number that pandas has made a float of, as it was: 1.0 is 1."""
    value = row[name]
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, (str, int)):
        label = str(value).strip()
        if re.fullmatch(r"-?[0-9]+\.0", label):
            label = label.removesuffix(".0")
        if label.lower() not in EMPTY:
            return label
    raise UserError(
        f'{where}: the label "{name}" is {show(value)}; it must be a name or a whole number'
    )


# Labels and splits


def label_names(labels: Sequence[str]) -> list[str]:
    """The classes in their order: by value where all are whole numbers, else by name."""
    names = set(labels)
    if all(re.fullmatch(r"-?[0-9]{1,18}", name) for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def label_rows(texts: Texts, names: Sequence[str]) -> np.ndarray:
    """(R,) the class of each row, as its place in `names`. Raises UserError for labels that are not among them."""
    place = {name: row for row, name in enumerate(names)}
    unseen: dict[str, str] = {}  # label -> where it stands first
    count = 0
    for label, where in zip(texts.labels, texts.where, strict=True):
        if label not in place:
            unseen.setdefault(label, where)
            count += 1
    if unseen:
        some = label_names(list(unseen))[:8]
        kinds = ", ".join(f"{show(name)} (first: {unseen[name]})" for name in some)
        raise UserError(
            f"{texts.path}: {count:,} of {len(texts):,} labels were not seen in training: {kinds}; "
            f"known are {', '.join(map(show, names))}"
        )
    return np.array([place[label] for label in texts.labels])


def split(texts: Texts, share: float, seed: int) -> tuple[Texts, Texts]:
    """(the rest, `share` of the rows), both in the file's order.

    Stratified: that share is drawn of each label, by seed; one row at least if there are two, and never the last.
    """
    labels = np.array(texts.labels)
    draw = np.random.default_rng([seed, 2])
    drawn: set[int] = set()
    for name in label_names(texts.labels):
        rows = draw.permutation(np.flatnonzero(labels == name)).tolist()
        count = min(len(rows) - 1, max(1, round(share * len(rows))))
        drawn.update(rows[:count])
    rest = [row for row in range(len(texts)) if row not in drawn]
    return texts.select(rest), texts.select(sorted(drawn))
