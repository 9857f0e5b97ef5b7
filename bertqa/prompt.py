"""Answer questions that are typed at a terminal, or come as lines of text through a pipe: part of `bertqa.predict`."""

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

# ANSI sequences
BOLD = "\033[1;7m"
FAINT = "\033[2m"
PLAIN = "\033[0m"

NO_ANSWER = "(no answer in this text)"

RUNNERS_UP = 3
"""Other answers shown under the best one."""

AROUND = 300
"""Most characters of its sentence shown on either side of an answer."""

WRAPPED = 50
"""A longer line was probably broken by an editor; a shorter one is a title or an item of a list."""


def ask_again(
    reader: Reader, context: str, options: dict, as_json: bool = False, top_k: int = 1
) -> int:
    """Read questions about a text and print the answers, until the input ends. Returns the exit status.

    At a terminal the best answer is highlighted in its sentence, with its score and the runners-up; an empty line and
    Ctrl-C end too. From a pipe every line that is not empty gives one line of output.

    Raises:
        UserError: for `top_k` over 1 where each answer is one line.
    """
    typed = sys.stdin.isatty()
    if top_k > 1 and (as_json or not typed):
        raise UserError(
            f"--top-k {top_k}: each question read from a pipe, or answered as JSON, gets one line; give "
            "--question, or --jsonl, whose lines hold lists"
        )
    if not typed:
        return answer_piped(reader, context, options, as_json)
    # Here and not at the top, for it changes input() in the whole process: it gets history and line editing.
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401
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
    """Answer each line of standard input that is not blank by one line. Returns the exit status.

    Raises:
        UserError: for a line that is not UTF-8, whatever the locale says.
    """
    # As bytes, because sys.stdin would silently replace what it cannot decode.
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
    """Read a text that is typed or pasted at the terminal."""
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
    """Reopen standard input as the terminal, after a text came through a pipe. Raises UserError where there is none."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY)
    except OSError:
        raise UserError(
            "--context-file - took the text from standard input, and there is no terminal to ask at; give "
            "--question, or the text as a file"
        ) from None
    os.dup2(terminal, 0)  # where input() and its line editing read
    os.close(terminal)
    sys.stdin = open(0, encoding=sys.stdin.encoding, closefd=False)


def one_line(answer: Answer, as_json: bool) -> str:
    """Return an answer as one line of output."""
    if as_json:
        return to_json(dataclasses.asdict(answer))
    if not answer.answer:
        return f"{NO_ANSWER}   [{how_sure(answer)}]"
    where = f"characters {answer.start} to {answer.end}"
    return f"{printable(answer.answer)}   [{how_sure(answer)}, {where}]"


def how_sure(answer: Answer) -> str:
    """Return the confidence, where there is one, and the score, in words."""
    said = f"score {answer.score:.3f}"
    if answer.confidence is not None:
        said = f"confidence {answer.confidence:.3f}, {said}"
    return said


def in_sentence(answers: list[Answer], context: str, colour: bool, width: int | None = None) -> str:
    """Return the best of ranked answers in its sentence, and the others below it, in lines of `width` characters."""
    best, *others = answers
    said = NO_ANSWER
    others_are = "nearest"
    if best.answer:
        said = highlighted(best, context, colour, width)
        others_are = "then"
    below = how_sure(best)
    if others:
        shown = []
        for other in others:
            text = printable(other.answer) or "no answer"
            shown.append(f"{text} ({other.score:.3f})")
        below += f"   {others_are}: {'; '.join(shown)}"
    below = wrap(below, width)
    if colour:
        below = f"{FAINT}{below}{PLAIN}"
    return f"{said}\n{below}"


def highlighted(answer: Answer, context: str, colour: bool, width: int | None) -> str:
    """Return an answer in its sentence: in reverse video, or without colours in brackets."""
    begin, end = sentence(context, answer.start, answer.end)
    before = printable(context[begin : answer.start])
    inside = printable(answer.answer)
    after = printable(context[answer.end : end])
    if not colour:
        return wrap(f"{before}[{inside}]{after}", width)
    # Wrapping keeps all positions, so the highlighting can be inserted afterwards.
    line = wrap(before + inside + after, width)
    first = len(before)
    last = first + len(inside)
    return f"{line[:first]}{BOLD}{line[first:last]}{PLAIN}{line[last:]}"


def wrap(text: str, width: int | None) -> str:
    """Replace spaces by line ends so that lines have at most `width` characters, where words are no longer than that.

    >>> wrap("It rained all day.", 10)
    'It rained\\nall day.'
    """
    if width is None:
        return text
    begin = 0  # of the current line
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
    """Return where the sentences around text[start:end] begin and end, at most AROUND characters away from it.

    >>> sentence("It rained. Ada came at noon. He left.", 11, 14)
    (11, 28)
    """
    first = max(0, start - AROUND)
    last = min(len(text), end + AROUND)
    # A rule of thumb: a full stop and a space end a sentence, and so do most line ends.
    before = re.compile(r"[.!?。！？]['\")\]”’]*\s+|\n\s*|[。！？]")
    behind = re.compile(r"[.!?。！？]['\")\]”’]*(?=\s|$)|\n|[。！？]")
    # The last end of a sentence before the answer, and the first one after it.
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
    """Return whether the line end at `place` ends a sentence: an empty line follows, or the line before it is short."""
    short = place - text.rfind("\n", 0, place) <= WRAPPED
    empty_behind = re.compile(r"[^\S\n]*(\n|$)").match(text, place + 1)
    return short or empty_behind is not None


def printable(text: str) -> str:
    """Replace control characters and line ends by spaces: a document must not control the terminal."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+", " ", text)


def colour(stream: TextIO) -> bool:
    """Return whether a stream takes ANSI colours: a terminal that is not dumb, and NO_COLOR (no-color.org) is not set."""
    return stream.isatty() and os.environ.get("TERM") != "dumb" and not os.environ.get("NO_COLOR")
