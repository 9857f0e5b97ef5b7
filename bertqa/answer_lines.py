"""Answer questions from standard input, a JSON object per line, on standard output: `python -m bertqa.predict --jsonl`.

A program at the other end may wait for each answer or send a million lines at once: what has arrived is a batch.
"""

import os
import queue
import sys
import threading
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import TextIO

from bertqa.data.sources import QUESTIONS_AT_ONCE
from bertqa.errors import UserError
from bertqa.files import decode, parse_json, to_json
from bertqa.qa.asked import Asked, asked_of
from bertqa.qa.documents import Ranking
from bertqa.reader import Reader


def stdin_lines() -> Iterable[str | bytes]:
    """Open standard input as a file object of its own.

    At exit Python closes sys.stdin, and aborts where the thread of `as_they_come` still waits in it.
    """
    try:
        return open(os.dup(sys.stdin.fileno()), "rb")
    except OSError:  # not a real file: a program has replaced sys.stdin
        return sys.stdin


@dataclass
class Line:
    """A line of input."""

    asked: Asked
    name: dict
    """{"id": ...} as in the line; {} for a line without an id, whose answer has none."""


def answer_lines(
    reader: Reader,
    lines: Iterable[str | bytes],
    out: TextIO,
    context: str | None,
    top_k: int,
    options: dict,
    on_error: str = "stop",
) -> int:
    """Answer lines that are objects {"question", "context", "id"}, in their order, by lines that are objects
    {"id", "answer", "score", "start", "end", "document"}.

    Args:
        context: of lines that have none. A context may be a list of documents.
        top_k: over 1, a line of answer also has "answers", a list of the best ones.
        on_error: "write" answers {"id", "error"} to a line that is no such object.

    Returns:
        The exit status: 1 where a line could not be read.

    Raises:
        UserError: for a line that is no such object where `on_error` is "stop", after the answers to those before it.
    """
    if hasattr(out, "reconfigure"):  # JSON may hold half of a surrogate pair, which UTF-8 cannot
        out.reconfigure(encoding="utf-8", errors="backslashreplace")
    how = reader.how(top_k, **options)
    number = 0
    failed = 0
    for waiting in as_they_come(lines):
        lot = []
        for line in waiting:
            number += 1
            if line.strip():
                lot.append(read_line(line, number, context))
        rankings = reader.rank([line.asked for line in lot], how)
        for line, ranking in zip(lot, rankings, strict=True):
            if ranking.error and on_error == "stop":
                out.flush()
                raise UserError(ranking.error)
            failed += bool(ranking.error)
            out.write(to_json({**line.name, **row_of(ranking, top_k)}) + "\n")
        out.flush()
    if failed:
        print(f"{failed:,} of the lines could not be read", file=sys.stderr)
    return int(failed > 0)


def row_of(ranking: Ranking, top_k: int) -> dict:
    """Return the object to write for a question."""
    if ranking.error:
        return {"error": ranking.error}
    row = asdict(ranking.answers[0])
    if top_k > 1:
        row["answers"] = [asdict(answer) for answer in ranking.answers[:top_k]]
    return row


def read_line(line: str | bytes, number: int, context: str | None) -> Line:
    """Read a line of input. One that is no question has an `asked.error`."""
    name = {}
    try:
        row = read_object(line, number)
        if "id" in row:
            name["id"] = row["id"]
        asked = asked_of(number, *question_and_documents(row, context))
    except UserError as error:
        asked = Asked(error=f"line {number}: {error}")
    return Line(asked, name)


def read_object(line: str | bytes, number: int) -> dict:
    """Return the JSON object of a line. Raises UserError where it is none."""
    wanted = "each line is an object with question and context"
    try:
        text = line if isinstance(line, str) else decode(line)
        row = parse_json(text, number)
    except UserError as error:
        raise UserError(f"not JSON ({error}); {wanted}") from None
    if not isinstance(row, dict):
        raise UserError(f"a JSON {type(row).__name__}; {wanted}")
    return row


def question_and_documents(row: dict, context: str | None) -> tuple[str, list[str]]:
    """Return the question of a line's object, and its documents, else `context`. Raises UserError for others than texts."""
    question = row.get("question")
    if not isinstance(question, str):
        raise UserError(f"question is {question!r}; give a string")
    found = row.get("context", context)
    documents = found if isinstance(found, list) else [found]
    if not all(isinstance(document, str) for document in documents):
        what = "missing" if found is None else "no text"
        raise UserError(
            f"context is {what}; give a string or a list of strings, or --context-file for all lines"
        )
    return question, documents


def as_they_come(lines: Iterable) -> Iterator[list]:
    """Yield lists of the lines that arrived since the last list: one line from a slow source, many from a fast one.

    So a program that waits for each answer gets it, and a file is answered in large batches.
    """
    # A thread reads: there is no other way to learn how many lines a pipe holds without waiting for the next one.
    came: queue.Queue = queue.Queue(maxsize=QUESTIONS_AT_ONCE)

    def read():
        try:
            for line in lines:
                came.put(line)
            came.put(None)
        except Exception as error:  # raised again by the thread that takes the lines
            came.put(error)

    threading.Thread(target=read, daemon=True).start()
    # The reader ends with None, or with the exception that ended it.
    last: object = ""
    while isinstance(last, (str, bytes)):
        items = [came.get()]
        while not came.empty() and len(items) < QUESTIONS_AT_ONCE:
            items.append(came.get())
        last = items[-1]
        yield [item for item in items if isinstance(item, (str, bytes))]
    if last is not None:
        raise last
