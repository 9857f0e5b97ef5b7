"""Questions one after another: asked at a terminal, or one per line from a pipe. `python -m bertqa.predict` runs it."""

import contextlib
import dataclasses
import os
import re
import shutil
import sys
from typing import TextIO

from bertqa.errors import UserError
from bertqa.files import decode, to_json
from bertqa.reader import Answer, Reader

BOLD, FAINT, PLAIN = "\033[1;7m", "\033[2m", "\033[0m"

NO_ANSWER = "(no answer in this text)"

RUNNERS_UP = 3
"""Other answers shown under the best one."""

AROUND = 300
"""Most characters of the sentence to show on either side of an answer."""

WRAPPED = 50
"""Characters from which a line is taken for one that an editor has broken, and not for a title or an item of a list."""


def ask_again(
    reader: Reader, context: str, options: dict, as_json: bool = False, top_k: int = 1
) -> int:
    """Read questions until an empty line or the end of input, and print the answers; returns the exit status.

    At a terminal the best answer stands highlighted in its sentence, with its score and the runners-up; Ctrl-D and
    Ctrl-C leave too. From a pipe each line of input gives one line of output, as plain text or JSON, and empty lines
    are skipped.

    Raises:
        UserError: for `top_k` over 1 where a line is the answer.
    """
    typed = sys.stdin.isatty()
    if top_k > 1 and (as_json or not typed):
        raise UserError(
            f"--top-k {top_k}: each question read from a pipe, or answered as JSON, gets one line; give "
            "--question, or --jsonl, whose lines hold lists"
        )
    if not typed:
        return answer_piped(reader, context, options, as_json)
    # Not at the top: it changes what input() does in the whole process.
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 (gives `input` its history and line editing)
    print(
        f"{len(context):,} characters read. Ask about them; an empty line or Ctrl-D ends.",
        file=sys.stderr,
    )
    while True:
        try:
            question = input("? ").strip()
        except (EOFError, KeyboardInterrupt):
            print(file=sys.stderr)
            return 0
        if not question:
            return 0
        if as_json:
            print(one_line(reader.answer(question, context, **options), as_json), flush=True)
            continue
        answers = reader.answer(question, context, max(RUNNERS_UP + 1, top_k), **options)
        width = shutil.get_terminal_size().columns - 1
        print(in_sentence(answers, context, colour(sys.stdout), width) + "\n", flush=True)


def answer_piped(reader: Reader, context: str, options: dict, as_json: bool) -> int:
    """A line of output for each line of standard input that is not blank; returns the exit status.

    Raises:
        UserError: for a line that is not UTF-8, whatever the locale says.
    """
    # As bytes: sys.stdin would put stand-ins for what it cannot decode, and the question would be another.
    for number, line in enumerate(getattr(sys.stdin, "buffer", sys.stdin), 1):
        if not line.strip():
            continue
        try:
            question = line if isinstance(line, str) else decode(line)
        except UserError as error:
            raise UserError(f"standard input: line {number}: {error}") from None
        answer = reader.answer(question.strip(), context, **options)
        print(one_line(answer, as_json), flush=True)
    return 0


def paste() -> str:
    """A document typed or pasted at the terminal."""
    print(
        "Paste the text to ask about; end it with a line that holds only a dot, or with Ctrl-D.",
        file=sys.stderr,
    )
    lines = []
    for line in sys.stdin:
        if line.strip() == ".":
            break
        lines.append(line)
    if not "".join(lines).strip():
        raise UserError("there is no text to ask about")
    return "".join(lines)


def stdin_from_terminal() -> None:
    """Questions come from the terminal after a text came through a pipe. Raises UserError where there is no terminal."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY)
    except OSError:
        raise UserError(
            "--context-file - took the text from standard input, and there is no terminal to ask at; give "
            "--question, or the text as a file"
        ) from None
    os.dup2(terminal, 0)  # input() and its line editing read file descriptor 0
    os.close(terminal)
    sys.stdin = open(0, encoding=sys.stdin.encoding, closefd=False)


def one_line(answer: Answer, as_json: bool) -> str:
    """An answer as one line of output."""
    if as_json:
        return to_json(dataclasses.asdict(answer))
    if not answer.answer:
        return f"{NO_ANSWER}   [{how_sure(answer)}]"
    where = f"characters {answer.start} to {answer.end}"
    return f"{printable(answer.answer)}   [{how_sure(answer)}, {where}]"


def how_sure(answer: Answer) -> str:
    """The confidence, where it is known, and the score."""
    said = f"score {answer.score:.3f}"
    if answer.confidence is not None:
        said = f"confidence {answer.confidence:.3f}, {said}"
    return said


def in_sentence(answers: list[Answer], context: str, colour: bool, width: int | None = None) -> str:
    """The best of ranked answers in its sentence, and the others below, in lines of `width` characters."""
    best, *others = answers
    bold, faint, plain = BOLD, FAINT, PLAIN
    if not colour:
        bold = faint = plain = ""
    said = NO_ANSWER
    nearest = "nearest"
    if best.answer:
        nearest = "then"
        begin, end = sentence(context, best.start, best.end)
        before = printable(context[begin : best.start])
        after = printable(context[best.end : end])
        answer = printable(best.answer)
        if not colour:
            answer = f"[{answer}]"
        # Wrapping keeps every character in its place, so the marks can be put in afterwards.
        line = wrap(before + answer + after, width)
        first = len(before)
        last = first + len(answer)
        said = f"{line[:first]}{bold}{line[first:last]}{plain}{line[last:]}"
    below = how_sure(best)
    if others:
        shown = [f"{printable(one.answer) or 'no answer'} ({one.score:.3f})" for one in others]
        below += f"   {nearest}: {'; '.join(shown)}"
    return f"{said}\n{faint}{wrap(below, width)}{plain}"


def wrap(text: str, width: int | None) -> str:
    """The text with spaces replaced by line ends so that lines have at most `width` characters, where words allow it.

    >>> wrap("It rained all day.", 10)
    'It rained\\nall day.'
    """
    if width is None:
        return text
    begin = 0  # of the line that is next
    while len(text) - begin > width:
        space = text.rfind(" ", begin, begin + width + 1)
        if space <= begin:  # a word longer than a line
            space = text.find(" ", begin + width)
        if space < 0:
            break
        text = text[:space] + "\n" + text[space + 1 :]
        begin = space + 1
    return text


def sentence(text: str, start: int, end: int) -> tuple[int, int]:
    """The characters of the sentence, or sentences, around text[start:end], at most AROUND more on either side.

    >>> sentence("It rained. Ada came at noon. He left.", 11, 14)
    (11, 28)
    """
    first = max(0, start - AROUND)
    last = min(len(text), end + AROUND)
    # A full stop and a space end a sentence, and so do most ends of lines: a rule that reads well, not a grammar.
    before = re.compile(r"[.!?。！？]['\")\]”’]*\s+|\n\s*|[。！？]")
    behind = re.compile(r"[.!?。！？]['\")\]”’]*(?=\s|$)|\n|[。！？]")
    # The last end of a sentence before the answer, and the first one behind it.
    for match in before.finditer(text, first, start):
        if match.group()[0] != "\n" or line_ends(text, match.start()):
            first = match.end()
    for match in behind.finditer(text, end, last):
        if match.group() != "\n":
            return first, match.end()
        if line_ends(text, match.start()):
            return first, match.start()
    return first, last


def line_ends(text: str, place: int) -> bool:
    """Whether the line end at `place` ends a sentence: behind it is an empty line, or before it a short one (a title, an
    item of a list). Others are where an editor broke the line."""
    short = place - text.rfind("\n", 0, place) <= WRAPPED
    empty_behind = re.compile(r"[^\S\n]*(\n|$)").match(text, place + 1)
    return short or empty_behind is not None


def printable(text: str) -> str:
    """One line without control characters: a document must not be able to drive the terminal."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+", " ", text)


def colour(stream: TextIO) -> bool:
    """Whether a stream wants ANSI colours: a terminal that is not dumb, and no NO_COLOR (no-color.org)."""
    return stream.isatty() and os.environ.get("TERM") != "dumb" and not os.environ.get("NO_COLOR")
