"""Read a file of texts whole, as columns; turn labels into class numbers; split rows for training and evaluation.

texts.py lists the formats. A label is a name or a whole number.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np

from bertqa.data.record_fields import EMPTY, field
from bertqa.data.sources import Source
from bertqa.data.texts import Columns, rows_in
from bertqa.errors import UserError, no_data, show


@dataclass
class Texts:
    """The R rows of a file, in file order."""

    path: str
    sha256: str  # of the uncompressed content
    where: list[str]  # place of each row in the file ("line 3"), for messages
    ids: list[str]
    texts: list[str]
    pairs: list[str] | None = None  # the second text of each row
    labels: list[str] | None = None

    def __len__(self) -> int:
        return len(self.texts)

    def select(self, rows: Sequence[int]) -> "Texts":
        """Return these rows, in this order."""
        chosen = {}
        for name in ("where", "ids", "texts", "pairs", "labels"):
            column = getattr(self, name)
            chosen[name] = None if column is None else [column[row] for row in rows]
        return replace(self, **chosen)

    def empty(self) -> list[int]:
        """Return the rows whose texts are all blank."""
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
    """Read columns of a file, and its ids.

    Args:
        text_column: None means "text", or the lines of a file that is not a table (see `is_table`).
        pair_column: the column of second texts; None if there are none.
        label_column: the column of labels; None if there are none.
        limit: keep only the first rows, this many.

    Raises UserError, one line that names the file and what is wrong with it or with the first row that cannot be read.
    """
    if limit is not None and limit < 1:
        raise UserError(f"limit is {limit}; it must be at least 1 text")
    columns = Columns(text_column, pair_column, label_column)
    try:
        return _read(Path(path), columns, limit)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _read(path: Path, columns: Columns, limit: int | None) -> Texts:
    """Read columns of a file. Its errors do not name the file."""
    rows: list[tuple[str, dict]] = []
    with Source(path) as source:
        for where, row in islice(rows_in(source, columns), limit):
            if isinstance(row, UserError):
                raise row
            columns.require(where, row)
            rows.append((where, row))
        # Read the rows beyond the limit too, because the checksum is of the whole file.
        for _ in source.lines():
            pass
    if not rows:
        raise no_data("has a header, but no rows")
    found = Texts(
        path=str(path),
        sha256=source.digest.hexdigest(),
        where=[where for where, _ in rows],
        ids=[str(row.get("id", number)) for number, (_, row) in enumerate(rows)],
        texts=[field(where, row, columns.text or "text", str) for where, row in rows],
    )
    if columns.pair:
        found.pairs = [field(where, row, columns.pair, str) for where, row in rows]
    if columns.label:
        found.labels = [_label(where, row, columns.label) for where, row in rows]
    return found


def _label(where: str, row: dict, name: str) -> str:
    """Return a row's label as text; 1.0 becomes 1, because pandas makes floats of whole numbers. Raises UserError."""
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


# Labels to classes


def label_names(labels: Sequence[str]) -> list[str]:
    """Return the distinct labels in the order of their class numbers: by value if all are whole numbers, else by name."""
    names = set(labels)
    if all(re.fullmatch(r"-?[0-9]{1,18}", name) for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def label_rows(texts: Texts, names: Sequence[str]) -> np.ndarray:
    """Return the class of each row, its index in `names`, (R,). Raises UserError for labels that are not in `names`."""
    class_of = {name: number for number, name in enumerate(names)}
    unseen: dict[str, str] = {}  # label -> the place of its first row
    count = 0
    for label, where in zip(texts.labels, texts.where, strict=True):
        if label not in class_of:
            unseen.setdefault(label, where)
            count += 1
    if unseen:
        some = label_names(list(unseen))[:8]
        kinds = ", ".join(f"{show(name)} (first: {unseen[name]})" for name in some)
        raise UserError(
            f"{texts.path}: {count:,} of {len(texts):,} labels were not seen in training: {kinds}; "
            f"known are {', '.join(map(show, names))}"
        )
    return np.array([class_of[label] for label in texts.labels])


def split(texts: Texts, share: float, seed: int) -> tuple[Texts, Texts]:
    """Draw `share` of the rows, stratified by label; return the other rows and the drawn rows, each in the file's order.

    Of a label with several rows at least one row is drawn and one is not; the only row of a label is not drawn.
    """
    labels = np.array(texts.labels)
    random = np.random.default_rng([seed, 2])
    drawn: set[int] = set()
    for name in label_names(texts.labels):
        rows = random.permutation(np.flatnonzero(labels == name)).tolist()
        count = min(len(rows) - 1, max(1, round(share * len(rows))))
        drawn.update(rows[:count])
    rest = [row for row in range(len(texts)) if row not in drawn]
    return texts.select(rest), texts.select(sorted(drawn))
