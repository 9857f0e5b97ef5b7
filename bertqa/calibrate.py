"""python -m bertqa.calibrate: measure on texts like those to come how far the inputs of a model's products reach, which int8
needs to be fast. The model folder keeps it; `calibrate_int8` is the same thing in Python. Training does it by itself.
"""

import argparse
import random
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from bertqa.console import say
from bertqa.data.examples import Example
from bertqa.data.question_stream import question_stream
from bertqa.data.sources import expand
from bertqa.data.text_windows import TextWindows, text_windows
from bertqa.data.texts import text_stream
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
    measure(parse_args(argv))
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
        model: a model folder, a run folder, a Hugging Face folder or a Hub id; of the latter two, the folder that they were
            converted into keeps it.
        data: what the model will read, or is like it: a file, or rows: dictionaries with question and context for a reader,
            texts for an encoder.
        windows: how many windows to read, drawn by `seed`.
        text_column, pair_column: of texts; as trained where None.
        device: to compute on; the fastest that is there where None.

    Returns:
        The file that was written.

    Raises:
        UserError: for a model that is not one of ours throughout, and data that cannot be read.
    """
    asked = argparse.Namespace(
        model=model,
        data=[data],
        windows=windows,
        seed=seed,
        text_column=text_column,
        pair_column=pair_column,
        device=device,
    )
    if isinstance(data, (str, Path)):
        return measure(asked)
    with tempfile.TemporaryDirectory() as scratch:
        rows = Path(scratch) / "rows.jsonl"
        lines = []
        for row in rows_of(data):
            record = {"text": row} if isinstance(row, str) else plain(row)
            lines.append(to_json(record) + "\n")
        write_text(rows, "".join(lines))
        asked.data = [rows]
        return measure(asked)


def measure(args: argparse.Namespace) -> Path:
    """What the flags ask for. Returns the file that was written."""
    if args.windows < 1:
        raise UserError(f"--windows {args.windows}: give 1 or more")
    from bertqa.data.batches import WindowStore
    from bertqa.device import as_device
    from bertqa.hf.convert import resolve_weights
    from bertqa.inference import calibrate

    device = as_device(args.device)
    paths = expand(args.data)
    where = Path(resolve_weights(args.model))
    began = time.perf_counter()
    windows = question_windows if read_config(where)["head"] == QA else windows_of_texts
    store = WindowStore(windows(where, paths, args), device)
    count = calibrate(where, store, args.windows, args.seed)
    took = time.perf_counter() - began
    say(f"int8: measured on {count:,} windows in {took:.1f} s: {where / RANGES}")
    return where / RANGES


def question_windows(where: Path, paths: list[Path], args: argparse.Namespace) -> Windows:
    """All windows of some questions of the files, as the reader would cut them."""
    qa = with_defaults(
        read_qa(where), read_config(where)["architecture"]["max_position_embeddings"]
    )
    documents = []
    for question in drawn(question_stream(paths), args.windows, args.seed):
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


def windows_of_texts(where: Path, paths: list[Path], args: argparse.Namespace) -> TextWindows:
    """Some texts of the files, or pairs of them, as the classifier or the encoder would cut them."""
    config = read_config(where)
    length = read_embed(where).max_length
    column = args.text_column
    second = args.pair_column
    if config["head"] == CLASSES:
        trained = read_qa(where)
        length = trained.get("max_length")
        column = column or trained.get("text_column")
        second = second or trained.get("pair_column")
    if column == "text" and not second:
        column = None  # which files without columns have too
    texts = drawn(text_stream(paths, column, second), args.windows, args.seed)
    return text_windows(
        [text.text for text in texts],
        WordPiece.load(where),
        pairs=[text.second for text in texts] if second else None,
        max_length=length or config["architecture"]["max_position_embeddings"],
    )


def drawn(records: Iterable, most: int, seed: int) -> list:
    """So many of the records, each as likely as any other, however many come (Vitter's algorithm R).

    Raises:
        UserError: for a record that cannot be read, and where there is none.
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
