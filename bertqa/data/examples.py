"""Question files become a list of `Example`, whatever their format; content tells the format, the name never does.

Plain or gzipped UTF-8, with or without byte order mark, in one of these shapes:

    squad      {"data": [{"title", "paragraphs": [{"context", "qas": [{"id", "question", "answers",
               "is_impossible"}]}]}]}; v1.1 has no is_impossible
    flat json  a list of flat records, or {"data": [flat records]}
    jsonl      a flat record per line: id, question, context, answers, and optionally title and is_impossible
    mrqa       a header line, then {"context", "qas": [{"qid", "question", "detected_answers", "answers"}]} per line
    csv        columns id, question, context; answers, or answer_text and answer_start; optionally title, is_impossible
               (true/false/1/0); others are ignored; comma, semicolon or tab between them

`answers` is {"text": [...], "answer_start": [...]} or a list of {"text", "answer_start"}. A CSV cell holds it as JSON
or as the Python literal that datasets' `to_csv` writes, NumPy arrays included. None: the question is impossible.
MRQA: the first span of each detected answer, then the other accepted texts.

What is checked:

    structure   a wrong type, an absent key, an id seen before: `UserError`, naming file and record.
    offsets     an answer that does not stand at its offset moves to the one place that has its text, or to the nearest
                if that is at most `NEARBY` characters off and the next one at least twice as far; `repaired` counts it.
                An answer without an offset is looked for likewise, uncounted. What cannot be placed keeps start -1.
                White space around an answer is dropped.
    rejected    what training cannot use: an empty question, answers of which none can be placed, is_impossible true
                with answers or false without. They stay in `examples`, for evaluation loses no question, and count
                there as in the official scorer: by their answers, whatever the flag says.
"""

import ast
import csv
import gc
import gzip
import hashlib
import io
import json
import os
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from bertqa.data.download import locate
from bertqa.errors import UserError

NEARBY = 20  # characters; offsets slip by a few through stripped blanks, byte order marks and UTF-16 counting

ACCEPTED = (
    'SQuAD JSON ("data", "paragraphs", "qas"); records with id, question, context and answers as a JSON list, under '
    '"data" or one per line; MRQA lines ("context", "qas"); CSV with the columns id, question, context and answers'
)
KINDS = {str: "text", list: "a list", dict: "an object", bool: "true or false"}

Question = tuple[str, dict, str, str]  # where it stands in the file, its record, its context, its title


@dataclass(frozen=True, slots=True)
class Example:
    """One question about one paragraph. A start >= 0 promises: context[start : start + len(text)] == text."""

    id: str
    question: str
    context: str  # one object for all questions about a paragraph, so that it is tokenised once
    answer_texts: tuple[str, ...]  # accepted answers; () = the question is impossible
    answer_starts: tuple[int, ...]  # character offset of each in context; -1 = could not be located
    title: str = ""


@dataclass(frozen=True, slots=True)
class Rejected:
    """A question that training cannot use, and why. Its record is flat: mended, it can be read again as JSONL."""

    id: str
    reason: str
    record: dict


@dataclass
class Dataset:
    """What `read_examples` found in one file."""

    path: str
    sha256: str  # of the uncompressed content, so that a file and its .gz have the same
    format: str  # "squad", "flat json", "jsonl", "mrqa" or "csv"
    examples: list[Example]
    repaired: int  # answers whose offset was off and was repaired
    rejected: list[Rejected]

    @property
    def has_impossible(self) -> bool:
        return any(not example.answer_texts for example in self.examples)

    @property
    def version(self) -> str:
        """The SQuAD version that these data are like: "2.0" if a question is impossible, otherwise "1.1"."""
        return "2.0" if self.has_impossible else "1.1"

    def trainable(self) -> list[Example]:
        """The examples that have a located answer or are impossible, in file order, without the rejected ones."""
        rejected = {question.id for question in self.rejected}
        return [example for example in self.examples if example.id not in rejected]

    def summary(self) -> str:
        impossible = sum(not example.answer_texts for example in self.examples)
        where = " (-> rejected.jsonl)" if self.rejected else ""
        return (
            f"{len(self.examples):,} example{'s' * (len(self.examples) != 1)}, {impossible:,} impossible, "
            f"{self.repaired:,} offset{'s' * (self.repaired != 1)} repaired, {len(self.rejected):,} rejected{where}"
        )


def read_examples(path: str | Path, limit: int | None = None) -> Dataset:
    """Read a file of questions; `limit` keeps the first so many of them, in file order, and checks no further.

    The names `squad1` and `squad2` stand for dev files here, `squad2-train` for that one: see `bertqa.data.download`.

    Raises UserError, one line that names the file and the record, line or byte, for a file that is missing, empty, cut
    off, not UTF-8, not JSON, of another shape or without questions, and for a record that breaks its structure.
    """
    if limit is not None and limit < 1:
        raise UserError(f"limit is {limit}; it must be at least 1 question")
    path = locate(path)
    collects = gc.isenabled()
    gc.disable()  # a million small objects and no cycle among them: looking for one takes a third of the time
    try:
        content = _read_bytes(Path(path))
        kind, questions = _sniff(_decode(content))
        data = Dataset(str(path), hashlib.sha256(content).hexdigest(), kind, [], 0, [])
        seen: dict[str, str] = {}  # id -> where
        contexts: dict[str, str] = {}
        for where, record, context, title in islice(questions, limit):
            example, repaired, reason = _example(where, record, contexts.setdefault(context, context), title)
            if example.id in seen:
                raise UserError(f"{where}: id {_show(example.id)} was used by {seen[example.id]}; make every id unique")
            seen[example.id] = where
            data.examples.append(example)
            data.repaired += repaired
            if reason:
                record = {**record, "id": example.id, "context": context, "title": title}
                data.rejected.append(Rejected(example.id, reason, record))
        if not data.examples:
            raise UserError(f"has no questions in it, though its shape is right ({kind})")
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    finally:
        if collects:
            gc.enable()
    return data


def write_rejected(dataset: Dataset, path: str | Path) -> None:
    """Write a line of JSON per rejected question: its flat record and "reason". No rejected ones: an empty file."""
    path = Path(path)
    part = path.with_name(path.name + ".part")
    with open(part, "wb") as file:
        for question in dataset.rejected:
            line = json.dumps({**question.record, "reason": question.reason}, ensure_ascii=False) + "\n"
            # UTF-8 has no lone surrogates; backslashreplace writes \udXXX, which is just how JSON spells them
            file.write(line.encode("utf-8", "backslashreplace"))
    os.replace(part, path)


# ---- one record -> one example


def _example(where: str, record: dict, context: str, title: str) -> tuple[Example, int, str]:
    """-> the example, how many of its offsets were repaired, and why training cannot use it ("": it can)."""
    id, question = _name(where, record, "id"), _field(where, record, "question", str)
    if not id.strip():
        raise UserError(f'{where}: "id" is empty; every question needs its own')
    flag = record.get("is_impossible")
    if flag is not None:
        _field(where, record, "is_impossible", bool)
    answers = _answers(where, record)
    if flag and not any(text.strip() for text, _ in answers):
        answers = []  # impossible, and written with "" as its answer
    texts, starts, repaired = [], [], 0
    for text, start in answers:
        text, start, moved = _locate(context, text, start)
        texts.append(text)
        starts.append(start)
        repaired += moved

    reason = ""
    if not question.strip():
        reason = "the question is empty"
    elif flag and answers:
        reason = "is_impossible is true, but there are answers"
    elif flag is False and not answers:
        reason = "is_impossible is false, but there are no answers"
    elif starts and max(starts) < 0:
        reason = "; ".join(dict.fromkeys(_why_lost(context, text) for text in texts))
    return Example(id, question, context, tuple(texts), tuple(starts), title), repaired, reason


def _locate(context: str, text: str, start: int) -> tuple[str, int, bool]:
    """-> the text without outer white space, its offset (-1: unknown), and whether the offset given was wrong."""
    bare = text.strip()
    if not bare:
        return bare, -1, False
    if start >= 0:
        for offset in (start + text.index(bare), start):  # files strip the text after counting, or never
            if context.startswith(bare, offset):
                return bare, offset, False
    found = [match.start() for match in re.finditer(f"(?={re.escape(bare)})", context)]  # lookahead: may overlap
    if len(found) == 1:
        return bare, found[0], start >= 0
    if found and start >= 0:
        nearest, second = sorted(found, key=lambda offset: abs(offset - start))[:2]
        if abs(nearest - start) <= NEARBY and 2 * abs(nearest - start) <= abs(second - start):
            return bare, nearest, True
    return bare, -1, False


def _why_lost(context: str, text: str) -> str:
    if not text:
        return "the answer text is empty"
    if text not in context:
        return f"the answer {_show(text)} does not occur in the context"
    return f"the answer {_show(text)} occurs more than once, and answer_start is not clearly nearest to one of them"


def _answers(where: str, record: dict) -> list[tuple[str, int]]:
    """-> text and offset of each answer as the file has them; -1 = without offset."""
    answers = record.get("answers")
    if answers is None and record.get("answer_text") is not None:
        answers = [{"text": record["answer_text"], "answer_start": record.get("answer_start")}]
    elif answers is None and "answer" in record:  # or a file of answers would quietly train as all impossible
        raise UserError(f'{where}: unknown key "answer"; write "answers", or "answer_text" and "answer_start"')
    where += ".answers"
    if isinstance(answers, dict):
        texts = _field(where, answers, "text", list)
        starts = _field(where, answers, "answer_start", list) if "answer_start" in answers else [None] * len(texts)
        if len(texts) != len(starts):
            raise UserError(f"{where}: {len(texts)} in text but {len(starts)} in answer_start; they must pair up")
        answers = [{"text": text, "answer_start": start} for text, start in zip(texts, starts, strict=True)]
    elif not isinstance(answers or [], list):
        raise UserError(f"{where}: must be a list or an object, not {_show(answers)}")
    pairs = []
    for i, answer in enumerate(answers or []):
        text = _field(f"{where}[{i}]", answer, "text", str)
        start = answer.get("answer_start")
        if isinstance(start, float) and start.is_integer():  # a pandas column with empty cells
            start = int(start)
        if start is not None and type(start) is not int:
            raise UserError(f'{where}[{i}]: "answer_start" must be a whole number, not {_show(start)}')
        pairs.append((text, -1 if start is None else max(start, -1)))
    return pairs


# ---- text -> questions, format by format


def _sniff(text: str) -> tuple[str, Iterator[Question]]:
    """-> the format, and the questions, lazily."""
    if text.lstrip()[0] not in "{[":
        return "csv", _flat(_csv_records(text))
    kind, head = "jsonl", _first_line(text)
    if head is not None and "data" not in head:
        items = _lines(text)
    elif isinstance(document := _json(text), dict) and "data" not in document:
        head, items = document, iter([("the only record", document)])
    else:
        kind, name = "flat json", "data" if isinstance(document, dict) else "records"
        records = _field("the file", document, "data", list) if name == "data" else document
        items = ((f"{name}[{i}]", record) for i, record in enumerate(records))
        if not records:
            return kind, _flat(items)
        keyed = (item for item in records if isinstance(item, dict) and item.keys() & {"paragraphs", "question"})
        head = next(keyed, records[0])  # a first record without its key is that record's mistake, not another format
    keys = head.keys() if isinstance(head, dict) else set()
    if keys & {"header", "qas"}:
        return "mrqa", _mrqa(items)
    if "paragraphs" in keys:
        return "squad", _squad(items)
    if keys & {"question", "context"}:
        return kind, _flat(items)
    raise UserError(f"wrong shape: found {_show(list(keys) or head)}; accepted are {ACCEPTED}")


def _squad(articles: Iterator[tuple[str, dict]]) -> Iterator[Question]:
    for where, article in articles:
        paragraphs, title = _field(where, article, "paragraphs", list), _title(where, article)
        for i, paragraph in enumerate(paragraphs):
            here = f"{where}.paragraphs[{i}]"
            context = _field(here, paragraph, "context", str)
            for k, question in enumerate(_field(here, paragraph, "qas", list)):
                yield f"{here}.qas[{k}]", question, context, title


def _flat(records: Iterator[tuple[str, dict]]) -> Iterator[Question]:
    for where, record in records:
        yield where, record, _field(where, record, "context", str), _title(where, record)


def _mrqa(entries: Iterator[tuple[str, dict]]) -> Iterator[Question]:
    for where, entry in entries:
        if isinstance(entry, dict) and "header" in entry and "context" not in entry:
            continue
        context = _field(where, entry, "context", str)
        for k, qa in enumerate(_field(where, entry, "qas", list)):
            here = f"{where}, qas[{k}]"
            record = {"id": _name(here, qa, "qid"), "question": _field(here, qa, "question", str)}
            detected = _field(here, qa, "detected_answers", list) if "detected_answers" in qa else []
            answers = [_span(f"{here}.detected_answers[{i}]", found, context) for i, found in enumerate(detected)]
            others = _field(here, qa, "answers", list) if "answers" in qa else []
            answers += [{"text": text} for text in others if text not in [answer["text"] for answer in answers]]
            yield here, {**record, "answers": answers}, context, ""


def _span(where: str, detected: dict, context: str) -> dict:
    """MRQA's spans are [first, last character]; their text may differ in case and blanks from the paragraph's own."""
    text, spans = _field(where, detected, "text", str), _field(where, detected, "char_spans", list)
    if not spans:
        return {"text": text}
    pair = spans[0]
    if not (isinstance(pair, list) and len(pair) == 2 and all(type(end) is int and end >= 0 for end in pair)):
        raise UserError(f'{where}: "char_spans" must hold [first, last] character offsets, not {_show(pair)}')
    piece = context[pair[0] : pair[1] + 1]
    same = piece.casefold().split() == text.casefold().split()
    return {"text": piece if same else text, "answer_start": pair[0]}


def _csv_records(text: str) -> Iterator[tuple[str, dict]]:
    """-> where a row begins, and the row as the flat record that JSON would hold."""
    first = re.split("[\r\n]", text.lstrip(), maxsplit=1)[0]
    for delimiter in ",;\t":
        if {"id", "question", "context"} <= {name.strip(' "').lower() for name in first.split(delimiter)}:
            break
    else:
        raise UserError(f"wrong shape: neither JSON nor a CSV header: {_show(first)}; accepted are {ACCEPTED}")
    (_, header), *rows = _csv_rows(text, delimiter)
    header = [name.strip().lower() for name in header]
    for where, row in rows:
        if len(row) != len(header):
            raise UserError(f"{where}: has {len(row)} cells, the header {len(header)}; cut off, or a quote missing?")
        record: dict = dict(zip(header, row, strict=True))
        if "is_impossible" in record:
            flags = {"": None, "true": True, "1": True, "false": False, "0": False}
            record["is_impossible"] = flags.get(record["is_impossible"].strip().lower(), record["is_impossible"])
        if "answers" in record:
            record["answers"] = _literal(where, record["answers"])
        elif "answer_text" in record:
            start = record.get("answer_start", "").strip()
            number = re.fullmatch(r"-?\d+(\.0*)?", start)
            record["answer_start"] = float(start) if number else start or None
            record["answer_text"] = record["answer_text"] or None
        yield where, record


def _csv_rows(text: str, delimiter: str, keep_blank: bool = False) -> list[tuple[str, list[str]]]:
    """The rows that are not blank (or all that have a cell). A quoted paragraph may go over several lines: a row is named
    by its first."""
    rows, last = [], 0
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    usual_limit = csv.field_size_limit(2**31 - 1)  # 128 KiB, for the whole process: put it back
    try:
        for row in reader:
            if row and keep_blank or any(cell.strip() for cell in row):
                rows.append((f"line {last + 1}", row))
            last = reader.line_num
    except csv.Error as error:
        cut = "cut off: " if "unexpected end" in str(error) else ""
        raise UserError(f"{cut}the CSV row that begins on line {last + 1} cannot be read: {error}") from None
    finally:
        csv.field_size_limit(usual_limit)
    return rows


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
            tree.values = [node.args[0] if isinstance(node, ast.Call) and node.args else node for node in tree.values]
        return ast.literal_eval(tree)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        raise UserError(f'{where}: "answers" is neither JSON nor a Python literal: {_show(cell)}') from None


def _first_line(text: str) -> dict | None:
    """The first line, if that is a whole JSON object and more follows: the mark of JSONL."""
    first, _, rest = text.lstrip().partition("\n")
    try:
        value = json.loads(first) if rest.strip() else None
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _lines(text: str) -> Iterator[tuple[str, object]]:
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines: U+2028 may stand inside a JSON string
        if line.strip():
            yield f"line {number}", _json(line, number)


# ---- bytes -> text -> values


def _read_bytes(path: Path) -> bytes:
    if path.is_dir():
        raise UserError("is a folder; name a file in it")
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except FileNotFoundError:
        raise UserError("there is no such file") from None
    except EOFError:
        raise UserError(f"cut off: its gzip stream ends early, after {len(content):,} bytes; fetch it again") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"damaged: its gzip stream cannot be read ({error}); fetch it again") from None
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}") from None
    if not content:
        raise UserError("is empty (0 bytes)")
    return content


def _decode(content: bytes) -> str:
    try:
        text = content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        where = f"byte {content[error.start]:#04x} at offset {error.start} (line {line})"
        if error.reason == "unexpected end of data":
            raise UserError(f"cut off in the middle of a character: {where}; fetch it again") from None
        if b"\0" in content[:64] or content[:2] in (b"BZ", b"\xfd7", b"PK"):
            raise UserError(f"not text in UTF-8: {where}; UTF-16, or packed? Needed is UTF-8, plain or .gz") from None
        raise UserError(f"not UTF-8: {where}, probably Latin-1; save it as UTF-8 (iconv -f latin1 -t utf-8)") from None
    if not text.strip():
        raise UserError("holds only white space")
    return text


def _json(text: str, line: int = 1) -> object:
    """`json.loads` for a text that begins on this line of the file."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"line {line + error.lineno - 1}, column {error.colno}"
        rest = text[error.pos :].rstrip()
        # what is left is nothing, or the beginning of a literal, an escape or a string: more was to come
        cut = any(word.startswith(rest) for word in ("true", "false", "null", "NaN", "-Infinity", "Infinity"))
        if cut or error.msg.startswith("Unterminated") or (error.msg.startswith("Invalid \\u") and len(rest) < 6):
            raise UserError(f"cut off: the JSON ends early, {where}; fetch it again") from None
        raise UserError(f"not JSON: {where}: {error.msg}, near {_show(rest[:30])}") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets thousands deep
        raise UserError(f"line {line}: JSON that Python cannot read: {error}") from None


def _field(where: str, record: object, key: str, kind: type):
    """record[key], checked to be there and to be of this type."""
    if isinstance(record, dict) and isinstance(value := record.get(key), kind):
        return value
    if not isinstance(record, dict):
        raise UserError(f"{where}: must be an object, not {_show(record)}")
    if key not in record:
        raise UserError(f'{where}: has no "{key}", its keys are {_show(list(record))}')
    raise UserError(f'{where}: "{key}" must be {KINDS[kind]}, not {_show(value)}')


def _name(where: str, record: dict, key: str) -> str:
    """record[key], text or a whole number, as text."""
    if isinstance(record, dict) and type(record.get(key)) is int:
        return str(record[key])
    return _field(where, record, key, str)


def _title(where: str, record: dict) -> str:
    return "" if record.get("title") is None else _name(where, record, "title")


def _show(value: object) -> str:
    """The value as JSON, on one line that any terminal can print, cut to 80 characters."""
    text = json.dumps(value, ensure_ascii=False, default=repr).encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= 80 else text[:77] + "..."
