"""The shapes in which data sets ship questions, in one table: the keys of a record decide how it is read, or why it is not.

To add a shape, add a row to SHAPES: a name, the keys by which it is recognised, and a function from one record to its
questions, or a text that says why it is not read and what to use instead.
"""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from bertqa.data.record_fields import (
    CONTEXTS,
    KNOWN,
    QUESTIONS,
    Faults,
    field,
    keys_in,
    members,
    name_among,
    parse_printed,
    refuse_doubles,
    title_in,
)
from bertqa.data.records import Records, look_ahead, records_in
from bertqa.data.tables import PARQUET, parquet_records
from bertqa.errors import UserError, show
from bertqa.files import decode

ACCEPTED = (
    'SQuAD JSON ("data", "paragraphs", "qas"); records with id, question, context and answers as a JSON list, under '
    '"data" or one per line; MRQA lines ("context", "qas"); CSV with the columns id, question, context and answers'
)

LOOKED_AT = 20
"""First records that decide the shape: one must have a shape's keys, the others may be broken."""


@dataclass(slots=True)
class RawQuestion:
    """One question as its file has it. Only its context is checked."""

    where: str  # its place in the file, for messages
    record: dict  # id, question and answers, under any of their known keys
    context: str
    title: str


RecordReader = Callable[[str, object, Faults], Iterator[RawQuestion]]
"""From the place of a record, the record, and what to do about faults, to its questions."""


@dataclass(frozen=True)
class Shape:
    """A row of the table."""

    name: str  # in messages and in `Dataset.format`
    keys: str
    """Keys that a record of this shape has: `a.b` is key b inside the value of a, # is a number."""
    then: RecordReader | str  # reads a record; or says why it is not read, and what to use


# Functions that read a record


def _article(where: str, article: object, faults: Faults) -> Iterator[RawQuestion]:
    """Read SQuAD's article: {"title", "paragraphs": [{"context", "qas": [{"id", "question", "answers"}]}]}."""
    with faults:
        refuse_doubles(where, article, {"title", "paragraphs"})
        title = title_in(where, article)
        for here, paragraph in members(where, article, "paragraphs"):
            yield from _paragraph(here, paragraph, faults, title)


def _paragraph(
    where: str, paragraph: object, faults: Faults, title: str = ""
) -> Iterator[RawQuestion]:
    """Read SQuAD's paragraph, which SimpleTransformers, CMRC and MRQA also write without an article around it."""
    with faults:
        refuse_doubles(where, paragraph, {*CONTEXTS, "qas", "title"})
        context = field(where, paragraph, name_among(paragraph, CONTEXTS), str)
        title = title or title_in(where, paragraph)
        for here, record in members(where, paragraph, "qas"):
            yield RawQuestion(here, record, context, title)


def _mrqa(where: str, entry: object, faults: Faults) -> Iterator[RawQuestion]:
    """Read MRQA's {"context", "qas": [{"qid", "question", "detected_answers", "answers"}]}; skip its header."""
    if isinstance(entry, dict) and "header" in entry and "context" not in entry:
        return
    for question in _paragraph(where, entry, faults):
        question.where = question.where.replace(f"{where}.qas", f"{where}, qas")
        if isinstance(question.record, dict) and "qid" in question.record:
            question.record = {**question.record, "id": question.record["qid"]}
        yield question


def _flat(where: str, record: object, faults: Faults) -> Iterator[RawQuestion]:
    """Read a question with its own context: {"id", "question", "context", "answers"}."""
    with faults:
        context = field(where, record, name_among(record, CONTEXTS), str)
        yield RawQuestion(where, record, context, title_in(where, record))


def _sberquad(where: str, record: dict, faults: Faults) -> Iterator[RawQuestion]:
    """Read a row of SberQuAD's CSV: paragraph_id, question_id, paragraph, question, answer."""
    flat = {**record, "context": record.get("paragraph")}
    answer = flat.pop("answer", None)
    flat.setdefault("answers", [answer])
    if "question_id" in record:
        flat.setdefault("id", record["question_id"])
    yield from _flat(where, flat, faults)


def _subjqa(where: str, record: dict, faults: Faults) -> Iterator[RawQuestion]:
    """Read a row of SubjQA's CSV: question, review, human_ans_spans; the answer ANSWERNOTFOUND means that there is none."""
    text = record.get("human_ans_spans")
    indices = parse_printed(where, "human_ans_indices", str(record.get("human_ans_indices", "")))
    start = indices[0] if isinstance(indices, list) and indices else None
    answers = [] if text == "ANSWERNOTFOUND" else [{"text": text, "start": start}]
    flat = {**record, "id": record.get("q_review_id"), "answers": answers}
    flat.pop("human_ans_spans", None)
    yield from _flat(where, {**flat, "context": record.get("review")}, faults)


# Reasons not to read a shape that several shapes share

MRQA = "use its file from MRQA's collection (mrqa/MRQA-Shared-Task-2019)"
ELSEWHERE = f"its texts are in other files; {MRQA}"
DIALOGUE = (
    "a question only makes sense after the turns before it; use data whose questions stand alone, "
    "such as SQuAD"
)
HTML = "answers are pieces of web pages; use KorQuAD 1"
NO_PLACE = f"answers have no place; {MRQA}"
NUMBERS = f"answers are numbers and dates, no spans; {MRQA}"
PAGES = f"answers are tokens of web pages; {MRQA}"
VOTES = f"answers are votes of annotators; {MRQA}"
UNPLACED = (
    "in the task's own form answers have no place; use BioASQ in SQuAD's form (dmis-lab/biobert)"
)
NO_CONTEXT = (
    "the texts that they are found in are missing; use a file with contexts, such as MRQA's"
)
CLASSES = (
    "to classify texts: --task classify; answers marked in doccano: export them in SQuAD's form"
)
IN_SQUAD = "export it in SQuAD's form"
NO_SPANS = "answers are no spans of the text; use SQuAD"
TEN_ARTICLES = f"the context is ten articles, some answers yes or no; {MRQA}"
BY_COLUMN = 'write df.to_json(FILE, orient="records")'

SHAPES = (
    Shape("QuAC", "paragraphs.qas.followup", DIALOGUE),
    Shape("QuAC", "paragraphs.qas.yesno", DIALOGUE),
    Shape("QuAC", "context turn_ids", DIALOGUE),
    Shape("CoQA", "story questions", DIALOGUE),
    Shape("KorQuAD 2", "raw_html", HTML),
    Shape("KorQuAD 2", "qas.answer.html_answer_start", HTML),
    Shape("DROP", "passage qa_pairs", NUMBERS),
    Shape("DROP", "passage answers_spans", NUMBERS),
    Shape("BoolQ", "passage question title answer", NO_SPANS),
    Shape("MS MARCO", "query passages", NO_SPANS),
    Shape("RACE", "article options", NO_SPANS),
    Shape("a file of multiple choice", "question options", NO_SPANS),
    Shape("MultiRC", "passage.questions", NO_SPANS),
    Shape("ReCoRD", "passage.entities qas", "a question is a sentence with a gap; use SQuAD"),
    Shape("ROPES", "paragraphs.situation", "a question needs two texts; use SQuAD"),
    Shape("QASPER", "full_text qas", "answers are spread over a paper; use SQuAD"),
    Shape("NarrativeQA", "document.summary question", NO_SPANS),
    Shape("DuoRC", "plot", NO_PLACE),
    Shape("DuReader of 2017", "documents question", "answers have no place; use DuReader robust"),
    Shape("a file of Label Studio's", "annotations.result", IN_SQUAD),
    Shape("a file of texts and labels", "text label", CLASSES),
    Shape("HotpotQA", "supporting_facts", TEN_ARTICLES),
    Shape(
        "MuSiQue", "question_decomposition", "the context is twenty paragraphs; use MRQA's HotpotQA"
    ),
    Shape("NewsQA", "storyid questions.q", VOTES),
    Shape("NewsQA", "story_id answer_char_ranges", VOTES),
    Shape("TriviaQA", "data.questionsource", ELSEWHERE),
    Shape("TriviaQA", "question questionsource", ELSEWHERE),
    Shape("TriviaQA", "question entity_pages", ELSEWHERE),
    Shape("SearchQA", "question search_results", NO_PLACE),
    Shape(
        "TyDi QA's primary task",
        "document_plaintext",
        "texts are whole articles; use its GoldP file",
    ),
    Shape("Natural Questions", "question_text annotations", PAGES),
    Shape("Natural Questions", "annotations long_answer_candidates", PAGES),
    Shape("TechQA", "question_text doc_ids", "its texts are in other files; use SQuAD"),
    Shape("BioASQ", "questions.body", UNPLACED),
    Shape("BioASQ", "body snippets", UNPLACED),
    Shape("MRQA as the Hub's rows", "detected_answers.char_spans.start", f"to read it, {MRQA}"),
    Shape("a file of Haystack's labels", "query document", IN_SQUAD),
    Shape("a table by column (pandas)", "question.# context.#", BY_COLUMN),
    Shape("mrqa", "header", _mrqa),
    Shape("mrqa", "context qas.detected_answers", _mrqa),
    Shape("squad", "paragraphs", _article),
    Shape("squad", "context qas", _paragraph),
    Shape("squad", "context_text qas", _paragraph),
    Shape("sberquad", "paragraph question answer", _sberquad),
    Shape("subjqa", "review question human_ans_spans", _subjqa),
    Shape("flat", "question context", _flat),
    Shape("flat", "query_text context_text", _flat),
    Shape("a file of DPR's", "question positive_ctxs", NO_CONTEXT),
    Shape("questions with answers alone (NQ-open)", "question answer", NO_CONTEXT),
    Shape("questions with answers alone", "question answers", NO_CONTEXT),
    Shape("flat", "question", _flat),
    Shape("flat", "context", _flat),
)
"""A record has the shape of the first row all of whose keys it has; case does not matter."""


def questions_in(content: bytes, faults: Faults) -> tuple[str, Iterator[RawQuestion]]:
    """Return the name of a file's format and its questions, lazily. Raises UserError for a shape that is not read."""
    if content.startswith(PARQUET):
        records = Records("parquet", parquet_records(io.BytesIO(content)))
        shape = shape_of_records(records)
    else:
        text = decode(content)
        records = records_in(text, faults)
        if records.header is None:
            shape = shape_of_records(records)
        else:
            shape = shape_of_columns(records.header, text)
    refuse(shape)
    return _format_name(shape, records), _all_questions(records, shape.then, faults)


def _format_name(shape: Shape, records: Records) -> str:
    """Return the name of a file's format: of its shape, or, of flat records, of what holds them."""
    if shape.name not in ("flat", "sberquad", "subjqa"):
        return shape.name
    return "flat json" if records.kind == "json" else records.kind


def _all_questions(records: Records, read: RecordReader, faults: Faults) -> Iterator[RawQuestion]:
    for where, record in records.items:
        yield from read(where, record, faults)


def shape_of_keys(keys: set[str]) -> Shape | None:
    """Return the first shape whose keys are all among `keys`; None if there is none."""
    for shape in SHAPES:
        if keys.issuperset(shape.keys.split()):
            return shape
    return None


def shape_of_records(records: Records) -> Shape:
    """Return the shape that the first records have. Raises UserError if none of them has a known shape."""
    first, records.items = look_ahead(records.items, LOOKED_AT)
    if not first:
        return Shape("flat", "", _flat)
    shape = common_shape([record for _, record in first])
    if shape:
        return shape
    record = first[0][1]
    found = list(record) if isinstance(record, dict) and record else record
    raise UserError(f"wrong shape: found {show(found)}; accepted are {ACCEPTED}")


def common_shape(records: list[object]) -> Shape | None:
    """Return the first shape of the table that any of these records has; None if none has one."""
    found = {shape_of_keys(keys_in(record)) for record in records}
    for shape in SHAPES:
        if shape in found:
            return shape
    return None


def refuse(shape: Shape) -> None:
    """Raise UserError if this shape is not read: its name, why, and what to use."""
    if isinstance(shape.then, str):
        raise UserError(f"is {shape.name}: {shape.then}")


def shape_of_columns(header: list[str], text: str) -> Shape:
    """Return the shape of a CSV with this header, in lower case. Raises UserError that names the columns that it lacks.

    `text` is the file or its first line, for a message to quote.
    """
    shape = shape_of_keys(set(header))
    if shape and shape.then not in (_flat, NO_CONTEXT):
        return shape
    # All other tables must be flat.
    needed = (QUESTIONS, CONTEXTS)
    lacking = [names[0] for names in needed if not set(names) & set(header)]
    if not lacking:
        return Shape("flat", "", _flat)
    if not KNOWN & set(header):
        first = text.lstrip().partition("\n")[0]
        raise UserError(
            f"wrong shape: neither JSON nor a CSV header: {show(first)}; accepted are {ACCEPTED}"
        )
    raise UserError(
        f"the CSV has no column {' and no '.join(map(show, lacking))}; its columns are "
        f"{', '.join(map(show, header))}"
    )
