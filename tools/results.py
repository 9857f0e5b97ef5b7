"""The metrics of trainings and models as results.json and as a table, written again after every part of a run."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from trainings import Bench, Questions, line_of, say

from bertqa.files import write_json, write_text

HEADER = ["model", "data", "questions", "EM", "F1", "F1 at 0", "HasAns F1", "NoAns F1"]
"""The columns of the table."""


@dataclass
class Row:
    """The metrics of a model on some questions."""

    model: str
    data: str
    questions: int
    metrics: dict


class Results:
    """Collects the results of a run and keeps them in results.json and results.md, for a run that is stopped too."""

    def __init__(self, bench: Bench, facts: dict):
        """`facts` go into results.json unchanged."""
        self.bench = bench
        self.facts = facts
        self.rows: list[Row] = []

    def measure(
        self, name: str, model: nn.Module, asked: Questions, threshold: float | None, dtype
    ) -> None:
        """Score a model on questions and add the row."""
        metrics = self.bench.score(model, asked, threshold, dtype)
        self.add(Row(name, asked.name, len(asked.data.examples), metrics))

    def held_out(self, name: str, metrics: dict) -> Row:
        """Return the row of a model on the held-out questions, to which its threshold was tuned."""
        return Row(name, "held out, tuned on it", len(self.bench.task.dev.examples), metrics)

    def add(self, row: Row) -> None:
        """Add a row, print it, and write the files."""
        self.rows.append(row)
        say(f"{row.model} on {row.data}: {line_of(row.metrics)}")
        self.write()

    def write(self) -> None:
        """Write results.json and results.md."""
        content = {
            **self.facts,
            "trainings": [vars(training) for training in self.bench.done],
            "rows": [vars(row) for row in self.rows],
        }
        write_json(self.bench.out / "results.json", content)
        write_text(self.bench.out / "results.md", self.table() + "\n")

    def table(self) -> str:
        """Return trainings and rows as a Markdown table."""
        rows = []
        for training in self.bench.done:
            name = f"{training.name} ({training.windows:,} windows, {training.seconds:.0f} s)"
            rows.append(self.held_out(name, training.metrics))
        return markdown(HEADER, [cells_of(row) for row in rows + self.rows])


def cells_of(row: Row) -> list[str]:
    """Return the cells of a row, in the order of HEADER; "" for a metric that it lacks."""
    found = [row.model, row.data, f"{row.questions:,}"]
    for name in ("exact", "f1", "f1_at_zero", "HasAns_f1", "NoAns_f1"):
        found.append(f"{row.metrics[name]:.2f}" if name in row.metrics else "")
    if "f1_interval" in row.metrics:
        low, high = row.metrics["f1_interval"]
        found[HEADER.index("F1")] += f" ({low:.2f}-{high:.2f})"
    return found


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, cells)) + " |" for cells in lines)
