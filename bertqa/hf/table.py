"""What a conversion did, tensor by tensor, for people and for programs."""

import dataclasses
import re
from dataclasses import dataclass


@dataclass
class Row:
    """What became of one tensor."""

    what: str
    """"renamed", "ignored" or "fresh"."""
    theirs: str | None
    ours: str | None
    shape: tuple[int, ...]
    why: str = ""


@dataclass
class Report:
    """What a conversion did."""

    source: str
    dest: str
    model_type: str
    head: str | None
    parameters: int
    dtype: str
    source_sha256: str
    sha256: str
    rows: list[Row]
    remarks: list[str]

    def as_dict(self) -> dict:
        """Everything, one entry a tensor, for --json."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        """A table, with one line for a tensor that all layers have, and then what else there is to say."""
        folded: dict[tuple, list[Row]] = {}
        for row in self.rows:
            alike = (row.what, *fold([row.theirs or ""], "{}"), *fold([row.ours or ""], "{}"))
            folded.setdefault(alike, []).append(row)
        lines = [
            (
                rows[0].what,
                *fold([r.theirs or "-" for r in rows]),
                "".join(fold([r.ours for r in rows])) if rows[0].ours else f"({rows[0].why})",
                "x".join(map(str, rows[0].shape)),
            )
            for rows in folded.values()
        ]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        table = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        ]
        counts = ", ".join(
            f"{sum(row.what == what for row in self.rows)} {what}"
            for what in ("renamed", "ignored", "fresh")
        )
        return "\n".join(
            [
                *table,
                "",
                f"tensors: {counts}, 0 missing, 0 unexpected",
                f"model: {self.model_type}, {self.head or 'no head'}, {self.parameters:,} parameters, {self.dtype}",
                *self.remarks,
                f"sha256 of the source: {self.source_sha256}",
                f"sha256 of {self.dest}/model.safetensors: {self.sha256}",
            ]
        )


def fold(names: list[str], layers: str | None = None) -> list[str]:
    """Names that differ in the layer only become one, with {0..5} (or `layers`) for its number."""
    groups: dict[tuple[str, str], list[int]] = {}
    for name in names:
        number = re.search(r"(?<=\.)\d+(?=\.)", name)
        key = (name[: number.start()], name[number.end() :]) if number else (name, "")
        groups.setdefault(key, []).extend([int(number[0])] if number else [])
    folded = []
    for (before, after), numbers in groups.items():
        low, high = (min(numbers), max(numbers)) if numbers else (0, 0)
        run = (
            str(low)
            if low == high
            else f"{{{low}..{high}}}"
            if len(set(numbers)) == high - low + 1
            else "{" + ",".join(map(str, sorted(set(numbers)))) + "}"
        )
        folded.append(before + (layers or run if numbers else "") + after)
    return folded
