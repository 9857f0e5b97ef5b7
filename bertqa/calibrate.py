"""python -m bertqa.calibrate: measure the int8 ranges of a model, that is, how large the inputs of its matrix products get on
texts like those it will read. The model folder keeps them. `calibrate_int8` does the same from Python; training does it too.
"""

import argparse
import random
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from bertqa.console import say
from bertqa.data.examples import Example
from bertqa.data.question_stream import Question, question_stream
from bertqa.data.sources import expand
from bertqa.data.text_windows import TextWindows, text_windows
from bertqa.data.texts import Text, text_stream
from bertqa.data.tokenizer import WordPiece
from bertqa.data.windows import Windows, build_windows
from bertqa.data.writing import plain, rows_of
from bertqa.errors import UserError
from bertqa.files import to_json, write_text
from bertqa.flags import VerbParser, run_verb, verb
from bertqa.model.record import (
    CLASSES,
    QA,
    RANGES,
    WINDOWS_FOR_RANGES,
    read_config,
    read_embed,
    read_qa,
    with_defaults,
)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = VerbParser(
        prog="python -m bertqa.calibrate",
        description="Measure what --int8 needs to be fast, and keep it in the model folder (int8_ranges.safetensors).",
        epilog="example: python -m bertqa.calibrate weights/mine train.json",
    )
    parser.add_argument(
        "model", metavar="MODEL", help="model folder, run folder, Hugging Face folder or Hub id"
    )
    parser.add_argument(
        "data",
        metavar="DATA",
        nargs="+",
        help="files like those that it will read, of any form that predict and embed read: questions for a reader, else texts; "
        "not those that its scores are measured on",
    )
    parser.add_argument(
        "--windows",
        type=int,
        default=WINDOWS_FOR_RANGES,
        metavar="N",
        help=f"windows to read, drawn by seed [{WINDOWS_FOR_RANGES}]",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the draw [0]")
    parser.add_argument(
        "--text-column", metavar="NAME", help="column of the texts [as trained, else text]"
    )
    parser.add_argument(
        "--pair-column", metavar="NAME", help="column of the second texts [as trained]"
    )
    parser.add_argument(
        "--device", default="auto", metavar="NAME", help="cpu, cuda, cuda:1, mps [auto]"
    )
    return parser.parse_args(argv)


@verb
def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and write the file. Returns the exit status."""
    measure(**vars(parse_args(argv)))
    return 0


def calibrate_int8(
    model: str | Path,
    data: object,
    *,
    windows: int = WINDOWS_FOR_RANGES,
    seed: int = 0,
    text_column: str | None = None,
    pair_column: str | None = None,
    device=None,
) -> Path:
    """Measure what int8 needs to be fast (`Reader.load(..., int8=True)`), and keep it in the model folder.

    Args:
        model: a model folder, a run folder, a Hugging Face folder or a Hub id. The latter two are converted first; the
            ranges go into the converted folder.
        data: texts like those that the model will read: a file, or rows: dictionaries with question and context for a
            reader, texts for an encoder.
        windows: how many windows to read, drawn by `seed`.
        text_column, pair_column: columns of the texts; None = as the model was trained.
        device: to compute on; None = the fastest here.

    Returns:
        The file that was written.

    Raises:
        UserError: for a model with layers that are not ours, and for data that cannot be read.
    """
    options = {
        "windows": windows,
        "seed": seed,
        "text_column": text_column,
        "pair_column": pair_column,
        "device": device,
    }
    if isinstance(data, (str, Path)):
        return measure(model, [data], **options)
    with tempfile.TemporaryDirectory() as scratch:
        rows = Path(scratch) / "rows.jsonl"
        lines = []
        for row in rows_of(data):
            record = {"text": row} if isinstance(row, str) else plain(row)
            lines.append(to_json(record) + "\n")
        write_text(rows, "".join(lines))
        return measure(model, [rows], **options)


def measure(
    model: str | Path,
    data: Sequence[str | Path],
    windows: int,
    seed: int,
    text_column: str | None,
    pair_column: str | None,
    device,
) -> Path:
    """Measure on files; the arguments are otherwise those of `calibrate_int8`. Returns the file that was written."""
    if windows < 1:
        raise UserError(f"--windows {windows}: give 1 or more")
    # Here, so that --help need not wait for torch.
    from bertqa.data.batches import WindowStore
    from bertqa.device import as_device
    from bertqa.hf.convert import resolve_weights
    from bertqa.inference import calibrate

    device = as_device(device)
    paths = expand(data)
    where = Path(resolve_weights(model))
    began = time.perf_counter()
    if read_config(where)["head"] == QA:
        read = question_windows(where, drawn(question_stream(paths), windows, seed))
    else:
        columns = columns_of(where, text_column, pair_column)
        read = windows_of_texts(where, drawn(text_stream(paths, *columns), windows, seed))
    count = calibrate(where, WindowStore(read, device), windows, seed)
    took = time.perf_counter() - began
    say(f"int8: measured on {count:,} windows in {took:.1f} s: {where / RANGES}")
    return where / RANGES


def question_windows(where: Path, questions: list[Question]) -> Windows:
    """Cut questions and their documents into windows, as the reader in `where` would."""
    positions = read_config(where)["architecture"]["max_position_embeddings"]
    qa = with_defaults(read_qa(where), positions)
    documents = []
    for question in questions:
        for text in question.documents:
            documents.append(Example(str(len(documents)), question.question, text, (), ()))
    return build_windows(
        documents,
        WordPiece.load(where),
        max_length=qa["max_length"],
        overlap=qa.get("overlap"),
        step=qa.get("step"),
        max_question=qa["max_question"],
    )


def columns_of(
    where: Path, text_column: str | None, pair_column: str | None
) -> tuple[str | None, str | None]:
    """Return the columns of the texts and of the second texts: those given, or else those that a classifier was trained on."""
    if read_config(where)["head"] == CLASSES:
        trained = read_qa(where)
        text_column = text_column or trained.get("text_column")
        pair_column = pair_column or trained.get("pair_column")
    # Files without columns have texts too.
    if text_column == "text" and not pair_column:
        text_column = None
    return text_column, pair_column


def windows_of_texts(where: Path, texts: list[Text]) -> TextWindows:
    """Tokenise texts, or pairs of them, as the classifier or the encoder in `where` would."""
    config = read_config(where)
    length = read_embed(where).max_length
    if config["head"] == CLASSES:
        length = read_qa(where).get("max_length")
    pairs = None
    if texts[0].second is not None:
        pairs = [text.second for text in texts]
    return text_windows(
        [text.text for text in texts],
        WordPiece.load(where),
        pairs=pairs,
        max_length=length or config["architecture"]["max_position_embeddings"],
    )


def drawn(records: Iterable, most: int, seed: int) -> list:
    """Draw at most `most` of the records at random, reading each of them once (Vitter's algorithm R).

    Raises:
        UserError: for a record that cannot be read, and if there is none.
    """
    draw = random.Random(seed)
    kept = []
    for number, record in enumerate(records):
        if record.error:
            where = "" if record.where in record.error else f"{record.where}: "
            raise UserError(where + record.error)
        if number < most:
            kept.append(record)
            continue
        place = draw.randrange(number + 1)
        if place < most:
            kept[place] = record
    if not kept:
        raise UserError("the files hold no question or text to measure on")
    return kept


if __name__ == "__main__":
    raise SystemExit(run_verb(main))
