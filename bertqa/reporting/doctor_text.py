"""Print what `doctor` finds: its report as a table, and single questions with answers and windows marked."""

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bertqa.data.examples import Example
from bertqa.data.tokenizer import WordPiece
from bertqa.data.windows import build_windows
from bertqa.qa.ceiling import FAULTS, INSIDE, NO_WINDOW, TOO_LONG, UNPLACED, View, views


def printable(text: str) -> str:
    """Replace control characters, except tab and newline: a terminal would obey them."""
    return re.sub("[\x00-\x08\x0b-\x1f\x7f-\x9f]", "\ufffd", text)


# The report


def table(report: dict, most: int) -> Iterator[str]:
    """Yield the report in lines of at most 100 columns (more with long paths).

    Args:
        report: see `checkup.examine`.
        most: questions to list for each problem.
    """
    yield from data_table(report)
    yield from problem_table(report, most)
    if "overlap" in report:
        yield from overlap_table(report["overlap"])
    if "settings" in report:
        yield from token_table(report)
        yield from ceiling_table(report, most)
    else:
        yield (
            "Tokens, windows and the ceiling are left out: they need a vocabulary. "
            "Give --weights FOLDER."
        )
    if "fixed" in report:
        yield ""
        yield fixed_line(report["fixed"])


def row(label: str, number: int | str, note: str = "") -> str:
    """Return a line of the table: what is counted, how many, and a note."""
    shown = number if isinstance(number, str) else f"{number:,}"
    return f"{label:<26}{shown:>10}   {note}".rstrip()


def brief(text: str, width: int) -> str:
    """Return the text on one line of at most this width."""
    text = printable(" ".join(text.split()))
    if len(text) > width:
        return text[: width - 3] + "..."
    return text


def quoted(text: str, width: int) -> str:
    """Return the text in quotes, on one line of at most this width."""
    return brief(json.dumps(text, ensure_ascii=False), width)


def data_table(report: dict) -> Iterator[str]:
    """Yield what is in the file."""
    questions = report["questions"]
    impossible = report["impossible"]
    yield f"{report['file']}   ({report['format']}, sha256 {report['sha256'][:12]})"
    yield row("SQuAD version", report["version"], "2.0 has impossible questions, 1.1 has none")
    yield row("questions", questions, f"{impossible:,} impossible ({impossible / questions:.1%})")
    articles = f"in {report['articles']:,} articles" if report["articles"] else ""
    yield row("paragraphs", report["paragraphs"], articles)

    # {3: 2, 1: 5} is two questions with three answers each, and five with one.
    questions_with = report["answers_per_question"]
    answers = sum(number * count for number, count in questions_with.items())
    note = ""
    answerable = questions - impossible
    if answerable:
        note = f"at most {max(questions_with)} a question, {answers / answerable:.1f} on average"
    yield row("answers", answers, note)


def problem_table(report: dict, most: int) -> Iterator[str]:
    """Yield what is wrong with records, answers and questions."""
    rejected = report["rejected"]
    faults = report["faults"]
    if faults:
        yield row("broken records", len(faults), "train and score refuse the file; --fix mends it")
        for fault in faults[:most]:
            yield f"  {brief(fault, 96)}"
        if len(faults) > most:
            yield f"  ... and {len(faults) - most:,} more: --explain {len(faults)}, or --json"
    unit = ""
    if report["offsets_in"] != "characters":
        unit = f"the file counts in {report['offsets_in']}"
    yield row("offsets repaired", report["repaired"], unit)
    unplaced = report["unplaced_answers"]
    yield row("answers without a place", unplaced, "they count in scores, but cannot be trained on")
    yield row("questions rejected", len(rejected), "training leaves them out, scores do not")
    # Without the answer that a reason quotes, equal reasons can be counted together.
    quote = r'the answer ".*?(?= does not occur| occurs more)'
    reasons = Counter(re.sub(quote, "an answer", question["reason"]) for question in rejected)
    for reason, count in reasons.most_common(5):
        yield f"  {count:,} x {brief(reason, 85)}"
    for question in rejected[:most]:
        yield f"  {question['id']}   {brief(question['reason'], 60)}"

    again = sum(len(ids) - 1 for ids in report["duplicates"])  # the first of a group repeats none
    yield row("asked again", again, "same question, same paragraph")
    pairs = report["contradictions"]
    yield row("contradictions", len(pairs), "such questions with answers that exclude each other")
    for pair in pairs[:most]:
        yield f"  {brief(' '.join(pair['ids']), 66)}   {pair['kind']}"


def overlap_table(shared: dict) -> Iterator[str]:
    """Yield what is shared with the other file."""
    same = len(shared["questions_and_paragraphs"])
    yield f"\nshared with {shared['file']}   ({shared['questions_in_it']:,} questions)"
    yield row("ids", len(shared["ids"]))
    yield row("articles", shared["articles"], "by title")
    about = f"{shared['questions_on_them']:,} questions are about them"
    yield row("paragraphs", shared["paragraphs"], about)
    yield row("questions", len(shared["questions"]), f"{same:,} of them about the same paragraph")


def token_table(report: dict) -> Iterator[str]:
    """Yield lengths in tokens, numbers of windows, and answers that no span can hit."""
    settings = report["settings"]
    windows = report["windows"]
    lengths = report["tokens"]
    yield f"\ntokens of {report['vocabulary']}"
    yield " " * 26 + "".join(f"{name:>10}" for name in lengths["paragraph"])
    for name, values in lengths.items():
        yield f"{name:<26}" + "".join(f"{value:>10,}" for value in values.values())
    yield ""

    stride = f"step {settings['step']}" if "step" in settings else f"overlap {settings['overlap']}"
    note = f"of {settings['max_length']} tokens, {stride}; {windows['filled']:.1%} filled"
    yield row("windows", windows["count"], note)
    yield row("questions with several", windows["questions_with_several"])
    yield row("questions cut", report["questions_cut"], f"after {settings['max_question']} tokens")
    yield row("distinct answers", report["answers"]["distinct"])
    notes = {
        NO_WINDOW: "no window holds them whole",
        TOO_LONG: f"more than {settings['max_answer_length']}",
        INSIDE: "no span hits them exactly; scoring may forgive it",
    }
    for fault in FAULTS:
        yield row(f"  {fault}", len(report["answers"]["faulty"][fault]), notes.get(fault, ""))


def ceiling_table(report: dict, most: int) -> Iterator[str]:
    """Yield the best score that any model could reach, and the questions that keep it below 100."""
    figures = report["ceiling"]["figures"]
    below = report["ceiling"]["below"]
    exact = figures.get("exact_match", figures.get("exact"))
    note = f"EM and {figures['f1']:.3f} F1: the best that any model could score"
    yield row("ceiling", f"{exact:.3f}", note)
    if "HasAns_exact" in figures:
        with_answer = f"{figures['HasAns_exact']:.3f}"
        yield row("  with answer", with_answer, f"EM and {figures['HasAns_f1']:.3f} F1")
    yield row("  questions below 100 EM", len(below))
    for question in below[:most]:
        yield f"  {question['id']}   {brief(question['question'], 66)}"
        for answer in question["answers"]:
            yield f"    {quoted(answer['text'], 38)}: {why(answer, report['settings'])}"
        yield f"    best: {quoted(question['best'], 60)}, F1 {question['f1']:.1f}"
    if len(below) > most:
        yield f"  ... and {len(below) - most:,} more: --explain {len(below)}, or --json"


def why(answer: dict, settings: dict) -> str:
    """Return in a few words why no span hits this answer."""
    if answer["fault"] == TOO_LONG:
        return f"{answer['tokens']} tokens, --max-answer-length is {settings['max_answer_length']}"
    if answer["fault"] == INSIDE:
        return f"tokens can only give {quoted(answer['nearest'], 35)}"
    return answer["fault"] or "without words"


def fixed_line(fixed: dict) -> str:
    """Return a line about what --fix wrote and left out."""
    mended = f"{fixed['repaired']:,} offsets repaired"
    if fixed["renamed"]:
        mended += f", {fixed['renamed']:,} repeated ids made unique"
    left_out = f"{fixed['rejected_left_out']:,} rejected questions"
    if fixed["broken_left_out"]:
        left_out = f"{fixed['broken_left_out']:,} broken records, {left_out}"
    return (
        f"wrote {fixed['file']}: {fixed['questions']:,} questions, {mended}; "
        f"left out: {left_out}, {fixed['answers_left_out']:,} answers without a place"
    )


# Single questions


@dataclass(frozen=True)
class Marks:
    """How to mark an answer's beginning and end, and a pattern for the marks of windows."""

    opening: str = "[["
    closing: str = "]]"
    window: str = "{}"


def marks_for(stream) -> Marks:
    """Return colours for a terminal, brackets for anything else."""
    if stream.isatty() and "NO_COLOR" not in os.environ:
        return Marks("\x1b[7m", "\x1b[27m", "\x1b[36m{}\x1b[39m")
    return Marks()


def describe(
    examples: Sequence[Example], tokenizer: WordPiece | None, settings: dict, marks: Marks
) -> Iterator[str]:
    """Yield the questions with their answers and marked paragraphs, in lines or blocks of lines."""
    shown: list[View | None] = [None] * len(examples)
    cut = [False] * len(examples)
    if tokenizer:
        asked = tokenizer.encode([example.question for example in examples])
        cut = (asked.counts > settings["max_question"]).tolist()
        options = dict(settings)
        del options["max_answer_length"]  # concerns spans, not windows
        shown = list(views(build_windows(examples, tokenizer, **options)))
    for example, view, is_cut in zip(examples, shown, cut, strict=True):
        title = f"   ({example.title})" if example.title else ""
        yield f"id        {example.id}{title}"
        note = f"   (cut after {settings['max_question']} tokens)" if is_cut else ""
        yield f"question  {printable(example.question)}{note}"
        yield from answer_lines(example)
        if view:
            line = f"windows   {len(view.first)} over {len(view.starts):,} tokens"
            if len(view.first) > 1:
                line += "; {2 begins the second, 1} ends the first"
            yield line
        yield marked(example, view, marks) + "\n"


def answer_lines(example: Example) -> Iterator[str]:
    """Yield the distinct accepted answers, with their offsets."""
    if not example.answer_texts:
        yield "answer    (impossible)"
    counts = Counter(zip(example.answer_texts, example.answer_starts, strict=True))
    for (text, start), times in counts.items():
        note = f"at {start}" if start >= 0 else UNPLACED
        if times > 1:
            note += f", given {times} times"
        yield f"answer    {printable(text)}   ({note})"


def marked(example: Example, view: View | None, marks: Marks) -> str:
    """Return the paragraph with its answer and windows marked; a single window is not.

    Several marks at one character come in this order: an answer's end, a window's end, a window's beginning, an
    answer's beginning.
    """
    places = []  # (character, rank among the marks there, mark)
    for text, start in zip(example.answer_texts, example.answer_starts, strict=True):
        if start >= 0:
            places.append((start, 3, marks.opening))
            places.append((start + len(text), 0, marks.closing))
            break  # training uses the first
    if view and len(view.first) > 1:
        for number, (first, stop) in enumerate(zip(view.first, view.stop, strict=True), 1):
            places.append((int(view.starts[first]), 2, marks.window.format(f"{{{number} ")))
            places.append((int(view.ends[stop - 1]), 1, marks.window.format(f" {number}}}")))
    pieces = []
    last = 0
    for character, _, mark in sorted(places):
        pieces += [printable(example.context[last:character]), mark]
        last = character
    pieces.append(printable(example.context[last:]))
    return "".join(pieces)
