"""What score writes beside its numbers: a row per question, and plots named as the official script names them."""

import csv
import io
import json
from pathlib import Path

from bertqa.data.examples import Example
from bertqa.errors import UserError
from bertqa.files import write_text
from bertqa.qa import metrics
from bertqa.qa.metrics import Scores

CURVES = {"exact": "exact match", "f1": "F1", "oracle": "having an answer at all"}
HISTOGRAMS = (
    ("hasAns", True, "questions with an answer"),
    ("noAns", False, "questions without an answer"),
)


def details(
    examples: list[Example], final: Scores, odds: list, threshold: float, with_odds: bool
) -> list[dict]:
    """One row per scored question: all that its scores were made from.

    `answered` is null for a missing prediction.
    """
    by_id = {example.id: example for example in examples}
    answered = metrics.answered(final, odds, threshold)
    rows = []
    for i, id in enumerate(final.ids):
        row = {
            "id": id,
            "title": by_id[id].title,
            "question": by_id[id].question,
            "prediction": final.texts[i],
            "answers": list(by_id[id].answer_texts),
            "answered": answered[i],
            "exact": final.exact[i],
            "f1": final.f1[i],
        }
        if final.char_f1:
            row["char_f1"] = final.char_f1[i]
        if with_odds:
            row["na_prob"] = odds[i]
        rows.append(row)
    return rows


def write_details(path: Path, rows: list[dict]) -> None:
    """As JSON lines, or as a CSV in which the accepted answers are a JSON list."""
    out = io.StringIO()
    if path.suffix == ".jsonl":
        out.writelines(json.dumps(row) + "\n" for row in rows)
    else:
        writer = csv.DictWriter(out, rows[0], lineterminator="\n")
        writer.writeheader()
        for row in rows:
            answers = json.dumps(row["answers"], ensure_ascii=False)
            writer.writerow({**row, "answers": answers})
    # UTF-8 has no half of a surrogate pair: a CSV gets it spelled out
    write_text(path, out.getvalue().encode("utf-8", "backslashreplace").decode())


def load_matplotlib():
    """matplotlib's Figure class: without pyplot there is no global state. Raises UserError where it is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError(
            "--out-image-dir needs matplotlib, which is not installed: pip install 'bertqa[plots]', or leave it out"
        ) from None
    return Figure


def plot(folder: Path, scores: Scores, na_probs: dict[str, float]) -> None:
    """Write all that can be drawn: curves need a question with an answer, a histogram one of its kind."""
    folder.mkdir(parents=True, exist_ok=True)
    odds = metrics.odds_of(scores, na_probs)
    if any(scores.has_answer):
        order = metrics.ranking(scores, na_probs)
        for name, values in metrics.curve_values(scores).items():
            curve = metrics.precision_recall(values, scores.has_answer, odds, order)
            draw_curve(folder / f"pr_{name}.png", CURVES[name], *curve)
    for name, kind, title in HISTOGRAMS:
        chosen = [
            value
            for value, has_answer in zip(odds, scores.has_answer, strict=True)
            if has_answer is kind and value is not None
        ]
        if chosen:
            draw_histogram(folder / f"na_prob_hist_{name}.png", title, chosen)


def draw_curve(
    path: Path, title: str, precisions: list[float], recalls: list[float], area: float
) -> None:
    """Precision over recall; `area` under it in percent."""
    figure = load_matplotlib()()
    axes = figure.subplots()
    # a step and not a slope: between two thresholds there is nothing
    axes.step(recalls, precisions, where="post")
    axes.fill_between(recalls, precisions, step="post", alpha=0.2)
    axes.set(xlim=(0, 1.05), ylim=(0, 1.05))
    axes.set(title=f"{title} (average precision {area:.1f})", xlabel="recall", ylabel="precision")
    figure.savefig(path)


def draw_histogram(path: Path, title: str, odds: list[float]) -> None:
    """The share of the questions in each bin of odds."""
    from bertqa.qa.thresholds import histogram  # numpy takes longer to start than to score

    shares, edges = histogram(odds)
    figure = load_matplotlib()()
    axes = figure.subplots()
    axes.stairs(shares, edges, fill=True)
    axes.set(title=title, xlabel="no-answer odds", ylabel="proportion")
    figure.savefig(path)
