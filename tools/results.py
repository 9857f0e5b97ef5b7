"""What trainings and models got, as a table and as results.json: written anew after every part."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from trainings import Bench, Questions, line_of, say

from bertqa.files import write_json

HEADER = ["model", "data", "questions", "EM", "F1", "F1 at 0", "HasAns F1", "NoAns F1"]
"""Of the table of results."""


@dataclass
class Row:
    """What a model got on some questions."""

    model: str
    data: str
    questions: int
    metrics: dict


class Results:
    """results.json and results.md, written anew after every part: a run that is stopped leaves what it knows."""

    def __init__(self, bench: Bench, questions: str, facts: dict):
        """`questions` names what trainings are evaluated on; `facts` go into results.json as they are."""
        self.bench, self.questions, self.facts = bench, questions, facts
        self.rows: list[Row] = []

    def measure(
        self, name: str, model: nn.Module, asked: Questions, threshold: float | None, dtype
    ) -> None:
        """Score a model, note it, say it."""
        metrics = self.bench.score(model, asked, threshold, dtype)
        self.add(Row(name, asked.name, len(asked.data.examples), metrics))

    def add(self, row: Row) -> None:
        """Note what a model got, and say it."""
        self.rows.append(row)
        say(f"{row.model} on {row.data}: {line_of(row.metrics)}")
        self.write()

    def write(self) -> None:
        """Put everything that is known on the disk."""
        content = {
            **self.facts,
            "trainings": [vars(training) for training in self.bench.done],
            "rows": [vars(row) for row in self.rows],
        }
        write_json(self.bench.out / "results.json", content)
        (self.bench.out / "results.md").write_text(self.table() + "\n", encoding="utf-8")

    def table(self) -> str:
        """All that was measured, as Markdown."""
        count = len(self.bench.task.dev.examples)
        rows = []
        for training in self.bench.done:
            name = f"{training.name} ({training.windows:,} windows, {training.seconds:.0f} s)"
            rows.append(Row(name, self.questions, count, training.metrics))
        return markdown(HEADER, [cells_of(row) for row in rows + self.rows])


def cells_of(row: Row) -> list[str]:
    """A row of the table of results."""
    found = [row.model, row.data, f"{row.questions:,}"]
    for name in ("exact", "f1", "f1_at_zero", "HasAns_f1", "NoAns_f1"):
        found.append(f"{row.metrics[name]:.2f}" if name in row.metrics else "")
    if "f1_interval" in row.metrics:
        low, high = row.metrics["f1_interval"]
        found[HEADER.index("F1")] += f" ({low:.2f}-{high:.2f})"
    return found


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, cells)) + " |" for cells in lines)
