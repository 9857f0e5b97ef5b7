"""Write the files of `score`: a row per question, and plots with the file names of the official script."""

import csv
import io
import json
from pathlib import Path

from bertqa.data.examples import Example
from bertqa.errors import UserError
from bertqa.files import write_text
from bertqa.qa import metrics

CURVES = {"exact": "exact match", "f1": "F1", "oracle": "having an answer at all"}
HISTOGRAMS = (
    ("hasAns", True, "questions with an answer"),
    ("noAns", False, "questions without an answer"),
)


def details(
    examples: list[Example], final: metrics.Scores, odds: list, threshold: float, with_odds: bool
) -> list[dict]:
    """Return a row for each scored question; `answered` is None for a missing prediction.

    Args:
        final: scores after the no-answer threshold.
        odds: no-answer odds of each row.
        with_odds: add these as na_prob.
    """
    by_id = {example.id: example for example in examples}
    answered = metrics.answered(final, odds, threshold)
    rows = []
    for i, id in enumerate(final.ids):
        example = by_id[id]
        row = {
            "id": id,
            "title": example.title,
            "question": example.question,
            "prediction": final.texts[i],
            "answers": list(example.answer_texts),
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
    """Write rows as JSON lines, or as a CSV in which the accepted answers are a JSON list."""
    out = io.StringIO()
    if path.suffix == ".jsonl":
        out.writelines(json.dumps(row) + "\n" for row in rows)
    else:
        writer = csv.DictWriter(out, rows[0], lineterminator="\n")
        writer.writeheader()
        for row in rows:
            answers = json.dumps(row["answers"], ensure_ascii=False)
            writer.writerow({**row, "answers": answers})
    # UTF-8 cannot encode half of a surrogate pair: a CSV gets it as an escape, such as \ud800.
    write_text(path, out.getvalue().encode("utf-8", "backslashreplace").decode())


def load_matplotlib():
    """Return matplotlib's Figure class (pyplot has global state). Raises UserError if it is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError(
            "--out-image-dir needs matplotlib, which is not installed: pip install 'bertqa[plots]', or leave it out"
        ) from None
    return Figure


def plot(folder: Path, scores: metrics.Scores, na_probs: dict[str, float]) -> None:
    """Write those plots for which there are questions of their kind."""
    folder.mkdir(parents=True, exist_ok=True)
    odds = metrics.odds_of(scores, na_probs)
    if any(scores.has_answer):
        order = metrics.ranking(scores, na_probs)
        for name, values in metrics.curve_values(scores).items():
            curve = metrics.precision_recall(values, scores.has_answer, odds, order)
            draw_curve(folder / f"pr_{name}.png", CURVES[name], *curve)
    for name, kind, title in HISTOGRAMS:
        chosen = []
        for value, has_answer in zip(odds, scores.has_answer, strict=True):
            if has_answer is kind and value is not None:
                chosen.append(value)
        if chosen:
            draw_histogram(folder / f"na_prob_hist_{name}.png", title, chosen)


def draw_curve(
    path: Path, title: str, precisions: list[float], recalls: list[float], area: float
) -> None:
    """Plot precision over recall; `area` is the average precision in percent."""
    figure = load_matplotlib()()
    axes = figure.subplots()
    # Steps, not slopes: between two thresholds there is nothing.
    axes.step(recalls, precisions, where="post")
    axes.fill_between(recalls, precisions, step="post", alpha=0.2)
    axes.set(xlim=(0, 1.05), ylim=(0, 1.05))
    axes.set(title=f"{title} (average precision {area:.1f})", xlabel="recall", ylabel="precision")
    figure.savefig(path)


def draw_histogram(path: Path, title: str, odds: list[float]) -> None:
    """Plot the share of the questions in each bin of odds."""
    # Here, because importing numpy takes longer than scoring.
    from bertqa.qa.thresholds import histogram

    shares, edges = histogram(odds)
    figure = load_matplotlib()()
    axes = figure.subplots()
    axes.stairs(shares, edges, fill=True)
    axes.set(title=title, xlabel="no-answer odds", ylabel="proportion")
    figure.savefig(path)
