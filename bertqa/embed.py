"""python -m bertqa.embed: vectors of texts; `bertqa.vectors.embed_texts` is the same thing in Python.

A sequence  [CLS] text [SEP]  has a vector for each token, of each layer. What comes out of them is --pool:

    cls     the vector of [CLS]
    mean    the mean over all tokens, [CLS] and [SEP] among them (what sentence-transformers' models are trained for)
    pooler  tanh(dense([CLS])), where the model has kept that layer
    none    all of them
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bertqa.data.chunks import chunks
from bertqa.data.texts import Texts, read_texts
from bertqa.errors import UserError
from bertqa.files import flush_to_disk, read_object, replacing, to_json, write_json, write_text
from bertqa.flags import VerbParser, run_verb
from bertqa.folders import take_place
from bertqa.jobs import data_fingerprint, model_fingerprint, refuse_other
from bertqa.settings import bundled_reader

SHARE = 8192
"""Texts that are embedded, and written, together."""


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = VerbParser(
        prog="python -m bertqa.embed",
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Vectors of texts." + __doc__.split("Python.", 1)[1],
        epilog="example: python -m bertqa.embed --model weights/all-MiniLM-L6-v2 --data questions.txt --out questions.npy "
        "--normalize",
    )
    parser.add_argument(
        "--model",
        "--weights",
        default=bundled_reader(),
        help="model folder, run folder, Hugging Face folder or Hub id; a head on it does not matter [%(default)s]",
    )
    add_data_flags(parser)
    add_vector_flags(parser)
    args = parser.parse_args(argv)
    check(args)
    return args


def add_data_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("texts in, vectors out")
    group.add_argument("--text", help="one text; its vector is printed as JSON")
    group.add_argument(
        "--data",
        metavar="FILE",
        help="a text per line; or a column of CSV, TSV or JSONL; .gz or not",
    )
    group.add_argument("--text-column", metavar="NAME", help="that column [text]")
    group.add_argument(
        "--out",
        metavar="FILE",
        type=Path,
        help=".npy, with the ids beside it in .ids.json; or .safetensors, with the ids in its metadata",
    )
    group.add_argument(
        "--resume",
        action="store_true",
        help="go on with an --out FILE.npy that was stopped on its way",
    )
    group.add_argument("--limit", type=int, metavar="N", help="only the first N texts of the file")


def add_vector_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("which vectors")
    group.add_argument(
        "--pool",
        metavar="{cls,mean,pooler,none}",
        help="see above; none needs .safetensors [as the model was made, else mean]",
    )
    group.add_argument(
        "--layer", default="-1", help="-1 = the last, 0 = the embeddings, or all [-1]"
    )
    group.add_argument(
        "--normalize",
        action=argparse.BooleanOptionalAction,
        help="make every vector of length 1 [as the model was made, else no]",
    )
    group.add_argument(
        "--max-length",
        type=int,
        metavar="N",
        help="cut texts to N tokens [as the model was made, else its positions]",
    )
    group = parser.add_argument_group("the machine")
    group.add_argument(
        "--device", default="auto", metavar="NAME", help="cpu, cuda, cuda:1, mps [auto]"
    )
    group.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16", "fp16"])
    group.add_argument(
        "--threads", type=int, default=0, help="CPU threads; 0 = torch's own choice [0]"
    )


def check(args: argparse.Namespace) -> None:
    """Refuse flags that do not go together, before anything is loaded."""
    if (args.text is None) == (args.data is None):
        raise UserError("give either --text TEXT, or --data FILE --out VECTORS")
    if args.data and not args.out:
        raise UserError("--data needs --out FILE.npy or FILE.safetensors, where the vectors go")
    if args.out and args.out.suffix not in (".npy", ".safetensors"):
        raise UserError(
            f"--out {args.out}: vectors are written as .npy or .safetensors; give a name that ends in one of these"
        )
    if args.out and args.out.suffix == ".npy" and args.pool == "none":
        raise UserError(
            "--pool none gives a vector per token, and .npy cannot say which text a token belongs to; "
            "use --out FILE.safetensors"
        )
    if args.layer != "all":
        try:
            args.layer = int(args.layer)
        except ValueError:
            raise UserError(
                f"--layer {args.layer}: give a number, such as -1 for the last layer, or all"
            ) from None


def main(argv: Sequence[str] | None = None) -> int:
    """Embed a text or a file. Returns the exit status."""
    args = parse_args(argv)
    if args.text is not None:
        texts = Texts("--text", "", [""], ["0"], [args.text])
    else:
        texts = read_texts(args.data, args.text_column, limit=args.limit)
    embed = Embedder(args)
    began = time.perf_counter()
    if args.out is None:
        vectors = embed(texts.texts).vectors
        shape = vectors.shape
        print(json.dumps(vectors.tolist() if args.pool == "none" else vectors[0].tolist()))
    elif args.out.suffix == ".npy":
        files = [] if args.data is None else [Path(args.data)]
        shape = write_npy(args.out, texts, embed, data_fingerprint(files), args.resume)
    else:
        shape = write_safetensors(args.out, texts, embed)
    print(report(shape, texts, embed, time.perf_counter() - began), file=sys.stderr)
    return 0


class Embedder:
    """The encoder that the flags ask for, and how: texts in, `Vectors` out; counts texts, tokens and texts that were cut."""

    def __init__(self, args: argparse.Namespace):
        from bertqa.data.tokenizer import WordPiece
        from bertqa.device import pick_device, pick_precision, set_threads
        from bertqa.hf.convert import resolve_weights
        from bertqa.model import folder, prepack
        from bertqa.model.record import read_embed

        set_threads(args.threads)
        where = resolve_weights(args.model)
        device = pick_device(args.device)
        self.model = args.model
        self.fingerprint = model_fingerprint(Path(where))
        self.texts = self.tokens = self.cut = 0
        self.dtype = pick_precision(args.precision, device)
        self.tokenizer = WordPiece.load(where)
        self.encoder = prepack.pack(folder.load_encoder(where, device=device), self.dtype)
        self.progress = "embed" if args.data else None
        made = read_embed(where)  # what a model of sentence-transformers says of itself
        self.settings = {
            "pool": first_given(args.pool, made.pool, "mean"),
            "layer": args.layer,
            "normalize": first_given(args.normalize, made.normalize, False),
            "max_length": first_given(args.max_length, made.max_length, None),
        }

    def __call__(self, texts: Sequence[str]):
        from bertqa.vectors import embed_texts

        found = embed_texts(
            self.encoder,
            self.tokenizer,
            texts,
            **self.settings,
            dtype=self.dtype,
            progress=self.progress,
        )
        self.texts += len(texts)
        self.tokens += found.tokens
        self.cut += found.cut
        return found


def first_given(*values):
    """The first of several values that is not None; None where all are."""
    return next((value for value in values if value is not None), None)


def report(shape: Sequence[int], texts: Texts, embed: Embedder, took: float) -> str:
    """What was done, for people."""
    empty = len(texts.empty())
    said = f"{len(texts):,} texts"
    if embed.cut:
        said += f", {embed.cut:,} of them cut"
    if empty:
        said += f", {empty:,} of them empty"
    return (
        f"{said}, {embed.tokens:,} tokens in {took:.1f} s: {embed.texts / took:,.0f} texts/s, "
        f"{embed.tokens / took:,.0f} tokens/s; {' x '.join(f'{size:,}' for size in shape)} float32"
    )


def write_npy(
    out: Path, texts: Texts, embed: Embedder, data: list[dict], resume: bool
) -> tuple[int, ...]:
    """The vectors, share by share into a file beside `out`, which takes its place when it is whole; the ids beside it.

    What is written stays there when this is stopped, and `resume` goes on behind it. Returns the shape.

    Raises:
        UserError: where `out` is there already, or what was begun is of other data, another model or other settings.
    """
    if out.exists():
        raise UserError(f"{out}: is there already; give another --out")
    part = out.with_name(out.name + ".part")
    state = out.with_name(out.name + ".part.json")
    about = {"data": data, "model": embed.fingerprint, "texts": len(texts), **embed.settings}
    done = 0
    vectors = None
    if resume and state.exists():
        begun = read_object(state)
        done = begun.pop("done")
        refuse_other(out, begun, about)
        vectors = np.load(part, mmap_mode="r+")
    for share in chunks(range(done, len(texts)), SHARE):
        found = embed([texts.texts[row] for row in share]).vectors
        if vectors is None:
            shape = (len(texts), *found.shape[1:])
            vectors = np.lib.format.open_memmap(part, "w+", np.float32, shape)
        vectors[share[0] : share[-1] + 1] = found
        vectors.flush()
        write_json(state, {**about, "done": share[-1] + 1})
    write_text(out.with_suffix(".ids.json"), to_json(texts.ids) + "\n")
    flush_to_disk(part)
    take_place(part, out)
    state.unlink()
    return vectors.shape


def write_safetensors(out: Path, texts: Texts, embed: Embedder) -> tuple[int, ...]:
    """The vectors, and with --pool none which text and which characters each is of; ids and settings as metadata."""
    from safetensors.numpy import save

    found = embed(texts.texts)
    arrays = {"vectors": found.vectors}
    if found.rows is not None:
        arrays["rows"] = found.rows
        arrays["spans"] = found.spans
    settings = {"model": str(embed.model), **embed.settings}
    with replacing(out) as fresh:
        fresh.write_bytes(
            save(arrays, {"ids": to_json(texts.ids), "settings": json.dumps(settings)})
        )
    return found.vectors.shape


if __name__ == "__main__":
    raise SystemExit(run_verb(main))
