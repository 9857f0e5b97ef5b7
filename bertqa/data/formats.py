"""The formats of question files: a file's text to flat records, one for each question (examples.py describes them)."""

import ast
import json
import re
from collections.abc import Iterator

from bertqa.data.fields import csv_rows, field, name_in, title_in
from bertqa.errors import UserError
from bertqa.files import json_lines, parse_json, show

ACCEPTED = (
    'SQuAD JSON ("data", "paragraphs", "qas"); records with id, question, context and answers as a JSON list, under '
    '"data" or one per line; MRQA lines ("context", "qas"); CSV with the columns id, question, context and answers'
)

Question = tuple[str, dict, str, str]
"""Where it stands in the file, its record, its context, its title."""


def questions_in(text: str) -> tuple[str, Iterator[Question]]:
    """-> the format, and the questions, lazily."""
    if text.lstrip()[0] not in "{[":
        return "csv", _flat(_csv_records(text))
    kind, head = "jsonl", _first_line(text)
    if head is not None and "data" not in head:
        items = json_lines(text, allow_nan=True)
    elif isinstance(document := parse_json(text, allow_nan=True), dict) and "data" not in document:
        head, items = document, iter([("the only record", document)])
    else:
        kind, name = "flat json", "data" if isinstance(document, dict) else "records"
        records = field("the file", document, "data", list) if name == "data" else document
        items = ((f"{name}[{i}]", record) for i, record in enumerate(records))
        if not records:
            return kind, _flat(items)
        keyed = (
            item
            for item in records
            if isinstance(item, dict) and item.keys() & {"paragraphs", "question"}
        )
        head = next(
            keyed, records[0]
        )  # a first record without its key is that record's mistake, not another format
    keys = head.keys() if isinstance(head, dict) else set()
    if keys & {"header", "qas"}:
        return "mrqa", _mrqa(items)
    if "paragraphs" in keys:
        return "squad", _squad(items)
    if keys & {"question", "context"}:
        return kind, _flat(items)
    raise UserError(f"wrong shape: found {show(list(keys) or head)}; accepted are {ACCEPTED}")


def _squad(articles: Iterator[tuple[str, dict]]) -> Iterator[Question]:
    for where, article in articles:
        paragraphs, title = field(where, article, "paragraphs", list), title_in(where, article)
        for i, paragraph in enumerate(paragraphs):
            here = f"{where}.paragraphs[{i}]"
            context = field(here, paragraph, "context", str)
            for k, question in enumerate(field(here, paragraph, "qas", list)):
                yield f"{here}.qas[{k}]", question, context, title


def _flat(records: Iterator[tuple[str, dict]]) -> Iterator[Question]:
    for where, record in records:
        yield where, record, field(where, record, "context", str), title_in(where, record)


def _mrqa(entries: Iterator[tuple[str, dict]]) -> Iterator[Question]:
    for where, entry in entries:
        if isinstance(entry, dict) and "header" in entry and "context" not in entry:
            continue
        context = field(where, entry, "context", str)
        for k, qa in enumerate(field(where, entry, "qas", list)):
            here = f"{where}, qas[{k}]"
            record = {"id": name_in(here, qa, "qid"), "question": field(here, qa, "question", str)}
            detected = field(here, qa, "detected_answers", list) if "detected_answers" in qa else []
            answers = [
                _span(f"{here}.detected_answers[{i}]", found, context)
                for i, found in enumerate(detected)
            ]
            others = field(here, qa, "answers", list) if "answers" in qa else []
            answers += [
                {"text": text}
                for text in others
                if text not in [answer["text"] for answer in answers]
            ]
            yield here, {**record, "answers": answers}, context, ""


def _span(where: str, detected: dict, context: str) -> dict:
    """MRQA's spans are [first, last character]; their text may differ in case and blanks from the paragraph's own."""
    text, spans = field(where, detected, "text", str), field(where, detected, "char_spans", list)
    if not spans:
        return {"text": text}
    pair = spans[0]
    if not (
        isinstance(pair, list)
        and len(pair) == 2
        and all(type(end) is int and end >= 0 for end in pair)
    ):
        raise UserError(
            f'{where}: "char_spans" must hold [first, last] character offsets, not {show(pair)}'
        )
    piece = context[pair[0] : pair[1] + 1]
    same = piece.casefold().split() == text.casefold().split()
    return {"text": piece if same else text, "answer_start": pair[0]}


def _csv_records(text: str) -> Iterator[tuple[str, dict]]:
    """-> where a row begins, and the row as the flat record that JSON would hold."""
    first = re.split("[\r\n]", text.lstrip(), maxsplit=1)[0]
    for delimiter in ",;\t":
        if {"id", "question", "context"} <= {
            name.strip(' "').lower() for name in first.split(delimiter)
        }:
            break
    else:
        raise UserError(
            f"wrong shape: neither JSON nor a CSV header: {show(first)}; accepted are {ACCEPTED}"
        )
    (_, header), *rows = csv_rows(text, delimiter)
    header = [name.strip().lower() for name in header]
    for where, row in rows:
        if len(row) != len(header):
            raise UserError(
                f"{where}: has {len(row)} cells, the header {len(header)}; cut off, or a quote missing?"
            )
        record: dict = dict(zip(header, row, strict=True))
        if "is_impossible" in record:
            flags = {"": None, "true": True, "1": True, "false": False, "0": False}
            record["is_impossible"] = flags.get(
                record["is_impossible"].strip().lower(), record["is_impossible"]
            )
        if "answers" in record:
            record["answers"] = _literal(where, record["answers"])
        elif "answer_text" in record:
            start = record.get("answer_start", "").strip()
            number = re.fullmatch(r"-?\d+(\.0*)?", start)
            record["answer_start"] = float(start) if number else start or None
            record["answer_text"] = record["answer_text"] or None
        yield where, record


def _literal(where: str, cell: str) -> object:
    """The value of a cell in JSON or as a Python literal, in which array([...], dtype=...) stands for its list."""
    if not cell.strip():
        return None
    try:
        return json.loads(cell)
    except ValueError:
        pass
    try:
        tree = ast.parse(cell.strip(), mode="eval").body
        if isinstance(tree, ast.Dict):
            tree.values = [
                node.args[0] if isinstance(node, ast.Call) and node.args else node
                for node in tree.values
            ]
        return ast.literal_eval(tree)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        raise UserError(
            f'{where}: "answers" is neither JSON nor a Python literal: {show(cell)}'
        ) from None


def _first_line(text: str) -> dict | None:
    """The first line, if that is a whole JSON object and more follows: the mark of JSONL."""
    first, _, rest = text.lstrip().partition("\n")
    try:
        value = json.loads(first) if rest.strip() else None
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
