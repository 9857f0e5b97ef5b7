"""Write the vectors of files of texts: `python -m bertqa.embed --data`.

An .npy grows while texts are read, as a job (jobs.py) that can be resumed. A .safetensors is written at the end.
"""

import argparse
import io
import json
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import islice, takewhile
from pathlib import Path

import numpy as np

from bertqa.data.texts import Text, text_stream
from bertqa.errors import UserError, no_data
from bertqa.files import flush_to_disk, replacing, to_json
from bertqa.folders import take_place
from bertqa.jobs import Job

SHARE = 8192
"""Most texts of a share, which are embedded and written together."""

HEADER = 128
"""Bytes of an .npy's header; numpy leaves room in it for any number of rows."""


def texts_of(args: argparse.Namespace, paths: Sequence[Path]) -> Iterable[Text]:
    """Return the texts that the flags name."""
    if args.text is not None:
        return [Text("0", "--text", args.text)]
    return islice(text_stream(paths, args.text_column), args.limit)


def refuse_bad(texts: Iterable[Text], names: Sequence[str]) -> None:
    """Raise UserError where a row cannot be read, or there is none."""
    count = 0
    for text in texts:
        if text.error:
            raise UserError(text.error)
        count += 1
    if not count:
        raise no_data(f"{', '.join(names)}: has a header, but no rows")


def write_npy(args: argparse.Namespace, embed) -> tuple[int, ...]:
    """Embed files of texts as a job in the folder FILE.npy.part; at its end FILE.npy and its ids are moved out of there.

    Returns:
        The shape of the array.
    """
    out = args.out
    folder = out.with_name(out.name + ".part")
    settings = {"column": args.text_column, **embed.settings}
    job = Job(args, folder, [embed.folder], embed.loaded, settings)
    growing = folder / "vectors.npy"
    stream = text_stream(job.paths, args.text_column)
    job.answer(stream, partial(rows_of, job, growing, embed), noun="text", size=SHARE)
    shape = finish(growing, job.done)
    # The ids first: whoever sees the vectors finds their ids too.
    write_ids(out, (row["id"] for row in job.rows()))
    take_place(growing, out)
    shutil.rmtree(folder)
    return shape


def rows_of(
    job: Job, growing: Path, embed, texts: list[Text], done: Callable[[float], None]
) -> list[dict]:
    """Append the vectors of a share's texts to the array, up to the first that cannot be read.

    Returns:
        A row of the job for each of them, and one with an "error" for the text that cannot be read.
    """
    good = list(takewhile(lambda text: not text.error, texts))
    if good:
        append_vectors(growing, job.done, embed([text.text for text in good]).vectors)
    done(1.0)
    rows = [{"id": text.id} for text in good]
    if len(good) < len(texts):
        bad = texts[len(good)]
        rows.append({"id": bad.id, "error": bad.error})
    return rows


def append_vectors(path: Path, done: int, vectors: np.ndarray) -> None:
    """Write vectors after the first `done` ones of an unfinished .npy, in the place of what stands there.

    Raises:
        UserError: where the file holds fewer than `done`, as after a power failure.
    """
    path.touch()
    begin = HEADER + done * vectors[0].nbytes
    with open(path, "r+b") as file:
        file.write(header_of(vectors.shape))  # `finish` corrects the number of rows
        # Without this check, seek would go past the end and leave a gap of zeros.
        if file.seek(0, os.SEEK_END) < begin:
            raise UserError(
                f"{path}: is shorter than the {done:,} vectors that are told of beside it; remove {path.parent}, and begin again"
            )
        file.seek(begin)
        file.truncate()
        file.write(np.ascontiguousarray(vectors, "<f4"))


def finish(path: Path, count: int) -> tuple[int, ...]:
    """Write the number of vectors into the header of an .npy and flush it to the disk. Returns the shape."""
    with open(path, "r+b") as file:
        np.lib.format.read_magic(file)
        (_, *size), _, _ = np.lib.format.read_array_header_1_0(file)
        shape = (count, *size)
        file.seek(0)
        file.write(header_of(shape))
    flush_to_disk(path)
    return shape


def header_of(shape: tuple[int, ...]) -> bytes:
    """Return the header of an .npy of float32 of this shape."""
    header = io.BytesIO()
    about = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, about)
    assert len(header.getvalue()) == HEADER
    return header.getvalue()


def write_ids(out: Path, ids: Iterable[str]) -> None:
    """Write the ids of the vectors in `out` beside it, as a JSON list."""
    with replacing(out.with_suffix(".ids.json")) as fresh, open(fresh, "w") as file:
        before = "["
        for id in ids:
            file.write(before + to_json(id))
            before = ", "
        file.write("]\n")


def write_at_once(args: argparse.Namespace, texts: Iterable[Text], embed) -> tuple[int, ...]:
    """Embed all texts in memory, then write `args.out`. Returns the shape of the vectors.

    In a .safetensors ids and settings are metadata; with --pool none, `rows` and `spans` say which text and which characters
    a vector is of (see `Vectors`).
    """
    from safetensors.numpy import save

    texts = list(texts)
    refuse_bad(texts, args.data)
    ids = [text.id for text in texts]
    found = embed([text.text for text in texts], "embed" if args.data else None)
    with replacing(args.out) as fresh:
        if args.out.suffix == ".npy":
            fresh.write_bytes(header_of(found.vectors.shape) + found.vectors.tobytes())
            write_ids(args.out, ids)
            return found.vectors.shape
        arrays = {"vectors": found.vectors}
        if found.rows is not None:
            arrays["rows"] = found.rows
            arrays["spans"] = found.spans
        settings = {"model": str(embed.model), **embed.settings}
        metadata = {"ids": to_json(ids), "settings": json.dumps(settings)}
        fresh.write_bytes(save(arrays, metadata))
    return found.vectors.shape
