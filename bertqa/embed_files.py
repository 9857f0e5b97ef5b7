"""Files of texts in, files of vectors out: `python -m bertqa.embed --data`.

An .npy grows as texts are read (jobs.py): it is stopped and goes on as answers do. A .safetensors is written at once.
"""

import argparse
import io
import json
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from itertools import islice, takewhile
from pathlib import Path

import numpy as np

from bertqa.data.texts import Text, text_stream
from bertqa.errors import UserError, no_data
from bertqa.files import flush_to_disk, replacing, to_json
from bertqa.folders import take_place
from bertqa.jobs import Job, answer_stream, depends_on

SHARE = 8192
"""Most texts that are embedded, and written, together."""

HEADER = 128
"""Bytes before the numbers of an .npy; numpy leaves room in them for any number of rows."""


def texts_of(args: argparse.Namespace, paths: Sequence[Path]) -> Iterable[Text]:
    """The texts that the flags name, one after the other."""
    if args.text is not None:
        return [Text("0", "--text", args.text)]
    return islice(text_stream(paths, args.text_column), args.limit)


def refuse_bad(texts: Iterable[Text], names: Sequence[str]) -> None:
    """Raise UserError for a row that cannot be read, before hours are spent on those before it."""
    count = 0
    for text in texts:
        if text.error:
            raise UserError(text.error)
        count += 1
    if not count:
        raise no_data(f"{', '.join(names)}: has a header, but no rows")


def write_npy(args: argparse.Namespace, paths: Sequence[Path], embed) -> tuple[int, ...]:
    """The vectors, share by share, in the folder FILE.npy.part, the folder of a job; whole, they take the place of FILE.npy,
    with the ids beside it. Returns their shape."""
    out = args.out
    depends = depends_on(
        args,
        paths,
        [embed.folder],
        embed.device,
        embed.dtype,
        column=args.text_column,
        **embed.settings,
    )
    job = Job(out.with_name(out.name + ".part"), depends, args.resume)
    growing = job.folder / "vectors.npy"

    def rows(texts: list[Text], done: Callable[[float], None]) -> list[dict]:
        """A row for each text, or up to the first that cannot be read; their vectors are in the file then."""
        # Not the texts behind a bad one: their vectors would stand where nobody looks for them.
        good = list(takewhile(lambda text: not text.error, texts))
        if good:
            put_behind(growing, job.done, embed([text.text for text in good]).vectors)
        done(1.0)
        found = [{"id": text.id} for text in good]
        for text in texts[len(good) :][:1]:
            found.append({"id": text.id, "error": text.error})
        return found

    answer_stream(
        job,
        text_stream(paths, args.text_column),
        rows,
        args,
        noun="text",
        size=SHARE,
        device=embed.device.type,
    )
    shape = finish(growing, job.done)
    # The ids first: whoever sees the vectors finds these too.
    write_ids(out, (row["id"] for row in job.rows()))
    take_place(growing, out)
    shutil.rmtree(job.folder)
    return shape


def put_behind(path: Path, done: int, vectors: np.ndarray) -> None:
    """Write vectors behind the first `done` ones of an .npy that is not whole yet; what stands there is lost.

    Raises:
        UserError: where it holds fewer: not this program has cut it, but a machine that went down.
    """
    path.touch()
    begin = HEADER + done * vectors[0].nbytes
    with open(path, "r+b") as file:
        file.write(header_of(vectors.shape))  # until it is finished it tells of a vector's shape
        # Beyond its end seek would go too, and leave zeros in between.
        if file.seek(0, os.SEEK_END) < begin:
            raise UserError(
                f"{path}: is shorter than the {done:,} vectors that are told of beside it; remove {path.parent}, and begin again"
            )
        file.seek(begin)
        file.truncate()
        file.write(np.ascontiguousarray(vectors, "<f4"))


def finish(path: Path, count: int) -> tuple[int, ...]:
    """Give an .npy the header of so many vectors, and see it to the disk. Returns its shape."""
    with open(path, "r+b") as file:
        np.lib.format.read_magic(file)
        (_, *size), _, _ = np.lib.format.read_array_header_1_0(file)
        shape = (count, *size)
        file.seek(0)
        file.write(header_of(shape))
    flush_to_disk(path)
    return shape


def header_of(shape: tuple[int, ...]) -> bytes:
    """How an .npy of float32 of this shape begins."""
    told = io.BytesIO()
    about = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(told, about)
    assert len(told.getvalue()) == HEADER
    return told.getvalue()


def write_ids(out: Path, ids: Iterable[str]) -> None:
    """The ids of the vectors in `out`, a list of JSON beside it."""
    with replacing(out.with_suffix(".ids.json")) as fresh, open(fresh, "w") as file:
        before = "["
        for id in ids:
            file.write(before + to_json(id))
            before = ", "
        file.write("]\n")


def write_at_once(args: argparse.Namespace, texts: Iterable[Text], embed) -> tuple[int, ...]:
    """Vectors that are all in memory. In a .safetensors, with --pool none, also which text and which characters each is of;
    ids and settings are its metadata."""
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
