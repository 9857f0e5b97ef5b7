"""Questions one after another: asked at a terminal, or one per line from a pipe. `python -m bertqa.predict` runs it."""

import dataclasses
import json
import os
import queue
import re
import shutil
import sys
import threading
from collections.abc import Iterable, Iterator
from itertools import count
from typing import TextIO

from bertqa.errors import UserError
from bertqa.reader import QUESTIONS_AT_ONCE, Answer, Reader

BOLD, FAINT, PLAIN = "\033[1;7m", "\033[2m", "\033[0m"

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
    if typed:
        try:
            import readline  # noqa: F401 (gives `input` its history and line editing)
        except ImportError:
            pass
        print(
            f"{len(context):,} characters read. Ask about them; an empty line or Ctrl-D ends.",
            file=sys.stderr,
        )
    while True:
        try:
            question = input("? " if typed else "").strip()
        except (EOFError, KeyboardInterrupt) as leaving:
            if not typed and isinstance(leaving, KeyboardInterrupt):
                raise
            if typed:
                print(file=sys.stderr)
            return 0
        if not question:
            if typed:
                return 0
            continue
        if typed and not as_json:
            answers = reader.answer(question, context, max(RUNNERS_UP + 1, top_k), **options)
            width = shutil.get_terminal_size().columns - 1
            print(in_sentence(answers, context, colour(sys.stdout), width) + "\n", flush=True)
        else:
            print(one_line(reader.answer(question, context, **options), as_json), flush=True)


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
    os.dup2(terminal, 0)
    os.close(terminal)
    sys.stdin = open(0, encoding=sys.stdin.encoding, closefd=False)


def stdin_lines() -> Iterable[str | bytes]:
    """The lines of standard input, from a file object of their own: when Python exits it closes sys.stdin, and aborts
    if the thread of `as_they_come` is still waiting in it."""
    try:
        return open(os.dup(sys.stdin.fileno()), "rb")
    except OSError:  # not a real file: a program has put something else in its place
        return sys.stdin


def one_line(answer: Answer, as_json: bool) -> str:
    """An answer as one line of output."""
    if as_json:
        return json.dumps(dataclasses.asdict(answer), ensure_ascii=False)
    where = f", characters {answer.start} to {answer.end}" if answer.answer else ""
    return f"{printable(answer.answer) or '(no answer in this text)'}   [score {answer.score:.3f}{where}]"


def in_sentence(answers: list[Answer], context: str, colour: bool, width: int | None = None) -> str:
    """The best of ranked answers in its sentence, and the others below, in lines of `width` characters."""
    best, *others = answers
    bold, faint, plain = (BOLD, FAINT, PLAIN) if colour else ("", "", "")
    if best.answer:
        begin, end = sentence(context, best.start, best.end)
        before, after = printable(context[begin : best.start]), printable(context[best.end : end])
        answer = printable(best.answer) if colour else f"[{printable(best.answer)}]"
        line, first, last = wrap(before + answer + after, width), len(before), len(before + answer)
        said = f"{line[:first]}{bold}{line[first:last]}{plain}{line[last:]}"
    else:
        said = "(no answer in this text)"
    rest = "; ".join(
        f"{printable(other.answer) or 'no answer'} ({other.score:.3f})" for other in others
    )
    more = f"   {'then' if best.answer else 'nearest'}: {rest}" if rest else ""
    return f"{said}\n{faint}{wrap(f'score {best.score:.3f}{more}', width)}{plain}"


def wrap(text: str, width: int | None) -> str:
    """The text with spaces replaced by line ends so that lines have at most `width` characters, where words allow it.

    >>> wrap("It rained all day.", 10)
    'It rained\\nall day.'
    """
    begin = 0
    while width and len(text) - begin > width:
        space = text.rfind(" ", begin, begin + width + 1)
        if space <= begin:
            space = text.find(" ", begin + width)
        if space < 0:
            break
        text, begin = text[:space] + "\n" + text[space + 1 :], space + 1
    return text


def sentence(text: str, start: int, end: int) -> tuple[int, int]:
    """The characters of the sentence, or sentences, around text[start:end], at most AROUND more on either side.

    >>> sentence("It rained. Ada came at noon. He left.", 11, 14)
    (11, 28)
    """
    first, last = max(0, start - AROUND), min(len(text), end + AROUND)
    # A full stop and a space end a sentence, and so do most ends of lines: a rule that reads well, not a grammar.
    before = re.compile(r"[.!?。！？]['\")\]”’]*\s+|\n\s*|[。！？]")
    behind = re.compile(r"[.!?。！？]['\")\]”’]*(?=\s|$)|\n|[。！？]")
    for match in before.finditer(text, first, start):
        if match.group()[0] != "\n" or line_ends(text, match.start()):
            first = match.end()
    for match in behind.finditer(text, end, last):
        if match.group() != "\n" or line_ends(text, match.start()):
            return first, match.start() if match.group() == "\n" else match.end()
    return first, last


def line_ends(text: str, place: int) -> bool:
    """Whether the line end at `place` ends a sentence: behind it is an empty line, or before it a short one (a title, an
    item of a list). Others are where an editor broke the line."""
    return place - text.rfind("\n", 0, place) <= WRAPPED or bool(
        re.compile(r"[^\S\n]*(\n|$)").match(text, place + 1)
    )


def printable(text: str) -> str:
    """One line without control characters: a document must not be able to drive the terminal."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+", " ", text)


def colour(stream: TextIO) -> bool:
    """Whether a stream wants ANSI colours: a terminal that is not dumb, and no NO_COLOR (no-color.org)."""
    return stream.isatty() and os.environ.get("TERM") != "dumb" and not os.environ.get("NO_COLOR")


def answer_lines(
    reader: Reader,
    lines: Iterable[str | bytes],
    out: TextIO,
    context: str | None,
    top_k: int,
    options: dict,
) -> int:
    """Answer {"question", "context", "id"} objects, one a line, with {"id", "answer", "score", "start", "end", "document"}
    objects in the same order; returns the exit status.

    A context may be a list of documents; lines without one are asked about `context`. With top_k > 1 a line also has
    "answers", the best ones.

    Raises:
        UserError: naming the line that is no such object; the answers to those before it are out.
    """
    if hasattr(out, "reconfigure"):  # half of a surrogate pair is legal in JSON, if escaped
        out.reconfigure(encoding="utf-8", errors="backslashreplace")
    numbers = count(1)
    for waiting in as_they_come(lines):
        asked, mistake = [], None
        for line, number in zip(waiting, numbers, strict=False):
            if line.strip():
                try:
                    asked.append(parse_line(line, number, context))
                except UserError as error:
                    mistake = error
                    break
        pairs = ((row["question"], row["context"]) for row in asked)
        for row, found in zip(asked, reader.answer_many(pairs, top_k, **options), strict=True):
            best = found if top_k == 1 else found[0]
            more = (
                {} if top_k == 1 else {"answers": [dataclasses.asdict(answer) for answer in found]}
            )
            name = {"id": row["id"]} if "id" in row else {}
            out.write(
                json.dumps({**name, **dataclasses.asdict(best), **more}, ensure_ascii=False) + "\n"
            )
        out.flush()
        if mistake:
            raise mistake
    return 0


def parse_line(line: str | bytes, number: int, context: str | None) -> dict:
    """A line of input as a checked object with a question and a context. Raises UserError naming the line."""
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UserError(
            f"line {number}: not JSON ({error}); each line is an object with question and context"
        ) from None
    if not isinstance(row, dict):
        raise UserError(
            f"line {number}: a JSON {type(row).__name__}; each line is an object with question and context"
        )
    row.setdefault("context", context)
    if not isinstance(row.get("question"), str):
        raise UserError(f"line {number}: question is {row.get('question')!r}; give a string")
    documents = row["context"] if isinstance(row["context"], list) else [row["context"]]
    if not all(isinstance(document, str) for document in documents):
        raise UserError(
            f"line {number}: context is {'missing' if row['context'] is None else 'no text'}; give a string or "
            "a list of strings, or --context-file for all lines"
        )
    return row


def as_they_come(lines: Iterable) -> Iterator[list]:
    """Lists of the lines that have come in meanwhile: one where they come slowly, many where the model is slower.

    So a program that waits for each answer gets it, and a file through a pipe is read in large batches.
    """
    came: queue.Queue = queue.Queue(maxsize=QUESTIONS_AT_ONCE)

    def read():
        try:
            for line in lines:
                came.put(line)
            came.put(None)
        except Exception as error:  # what happens in this thread must be said in the other
            came.put(error)

    threading.Thread(target=read, daemon=True).start()
    last = ""
    while isinstance(last, (str, bytes)):
        items = [came.get()]
        while not came.empty() and len(items) < QUESTIONS_AT_ONCE:
            items.append(came.get())
        last = items[-1]
        yield [item for item in items if isinstance(item, (str, bytes))]
    if last is not None:
        raise last
