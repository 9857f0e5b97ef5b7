"""Questions as people read them in a terminal: the answer marked in its paragraph, and where
windows begin and end.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bertqa.data.examples import Example
from bertqa.data.tokenizer import WordPiece
from bertqa.data.windows import build_windows
from bertqa.qa.ceiling import UNPLACED, View, views


@dataclass(frozen=True)
class Marks:
    """What opens an answer, what closes it, and a pattern for the ends of a window."""

    opening: str = "[["
    closing: str = "]]"
    window: str = "{}"


def marks_for(stream) -> Marks:
    """Colours for a terminal, brackets for everything else."""
    if stream.isatty() and "NO_COLOR" not in os.environ:
        return Marks("\x1b[7m", "\x1b[27m", "\x1b[36m{}\x1b[39m")
    return Marks()


def printable(text: str) -> str:
    """Control characters but tab and newline could do anything to a terminal."""
    return re.sub("[\x00-\x08\x0b-\x1f\x7f-\x9f]", "\ufffd", text)


def describe(
    examples: Sequence[Example], tokenizer: WordPiece | None, settings: dict, marks: Marks
) -> Iterator[str]:
    """The questions with their answers and marked paragraphs, a line or a block of lines at a time."""
    shown: list[View | None] = [None] * len(examples)
    if tokenizer:
        options = {name: value for name, value in settings.items() if name != "max_answer_length"}
        shown = list(views(build_windows(examples, tokenizer, **options)))
    for example, view in zip(examples, shown, strict=True):
        title = f"   ({example.title})" if example.title else ""
        yield f"id        {example.id}{title}"
        yield f"question  {printable(example.question)}"
        yield from answer_lines(example)
        if view:
            yield window_line(view)
        yield marked(example, view, marks) + "\n"


def answer_lines(example: Example) -> Iterator[str]:
    """Each accepted answer once, with its offset."""
    if not example.answer_texts:
        yield "answer    (impossible)"
    counts = Counter(zip(example.answer_texts, example.answer_starts, strict=True))
    for (text, start), times in counts.items():
        note = f"at {start}" if start >= 0 else UNPLACED
        if times > 1:
            note += f", given {times} times"
        yield f"answer    {printable(text)}   ({note})"


def window_line(view: View) -> str:
    legend = ""
    if len(view.first) > 1:
        legend = "; {2 begins the second, 1} ends the first"
    return f"windows   {len(view.first)} over {len(view.starts):,} tokens{legend}"


def marked(example: Example, view: View | None, marks: Marks) -> str:
    """The paragraph with its marks. A single window needs none.

    Where several marks fall on one character they stand in this order: an answer's end, a window's
    end, a window's beginning, an answer's beginning.
    """
    places = []  # (character, rank among marks at one place, mark)
    placed = [
        (start, start + len(text))
        for text, start in zip(example.answer_texts, example.answer_starts, strict=True)
        if start >= 0
    ]
    if placed:
        begin, end = placed[0]  # the answer that training uses
        places.append((begin, 3, marks.opening))
        places.append((end, 0, marks.closing))
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
