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

from bertqa.data.sources import STDIN, expand
from bertqa.embed_files import refuse_bad, texts_of, write_at_once, write_npy
from bertqa.errors import UserError
from bertqa.flags import VerbParser, add_machine_flags, run_verb, verb
from bertqa.folders import bundled_reader


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = VerbParser(
        prog="python -m bertqa.embed",
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Vectors of texts." + __doc__.split("Python.", 1)[1],
        epilog="example: python -m bertqa.embed --model weights/all-MiniLM-L6-v2 --data questions.txt --out questions.npy "
        "--normalize",
    )
    parser.set_defaults(on_error="stop")  # where a text has no vector, all behind it would move up
    says = "model folder, run folder, Hugging Face folder or Hub id; a head on it does not matter [%(default)s]"
    parser.add_argument("--model", "--weights", default=bundled_reader(), help=says)

    add = parser.add_argument_group("texts in, vectors out").add_argument
    add("--text", help="one text; its vector is printed as JSON")
    says = "a text per line; or a column of CSV, TSV, JSONL or Parquet; packed or not; several files, folders, patterns, "
    add("--data", metavar="FILE", nargs="+", help=says + "- for standard input")
    add("--text-column", metavar="NAME", help="that column [text]")
    says = (
        ".npy, with the ids beside it in .ids.json; or .safetensors, with the ids in its metadata"
    )
    add("--out", metavar="FILE", type=Path, help=says)
    says = "go on with an --out FILE.npy that was stopped on its way"
    add("--resume", action="store_true", help=says)
    add("--limit", type=int, metavar="N", help="only the first N texts")

    add = parser.add_argument_group("which vectors").add_argument
    says = "see above; none needs .safetensors [as the model was made, else mean]"
    add("--pool", metavar="{cls,mean,pooler,none}", help=says)
    add("--layer", default="-1", help="-1 = the last, 0 = the embeddings, or all [-1]")
    says = "make every vector of length 1 [as the model was made, else no]"
    add("--normalize", action=argparse.BooleanOptionalAction, help=says)
    says = "cut texts to N tokens [as the model was made, else its positions]"
    add("--max-length", type=int, metavar="N", help=says)

    add_machine_flags(parser.add_argument_group("the machine"))
    args = parser.parse_args(argv)
    check(args)
    return args


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
    if args.resume and (not args.data or args.out.suffix != ".npy"):
        raise UserError(
            "--resume goes on with the --out FILE.npy of --data; everything else is written at once"
        )
    if args.limit is not None and args.limit < 1:
        raise UserError(f"--limit {args.limit}: give 1 or more")
    if args.out and args.out.exists():
        raise UserError(f"{args.out}: is there already; give another --out")
    if args.layer != "all":
        try:
            args.layer = int(args.layer)
        except ValueError:
            raise UserError(
                f"--layer {args.layer}: give a number, such as -1 for the last layer, or all"
            ) from None


@verb
def main(argv: Sequence[str] | None = None) -> int:
    """Embed a text or files of them. Returns the exit status."""
    args = parse_args(argv)
    paths = expand(args.data or [])
    # All is read twice, since a bad row in the end would cost the hours before it; but a pipe can be read only once.
    if not any(path == STDIN or path.is_fifo() for path in paths):
        refuse_bad(texts_of(args, paths), args.data)
    embed = Embedder(args)
    began = time.perf_counter()
    if args.out is None:
        vectors = embed([args.text]).vectors
        shape = vectors.shape
        print(json.dumps(vectors.tolist() if args.pool == "none" else vectors[0].tolist()))
    elif args.data and args.out.suffix == ".npy":
        shape = write_npy(args, paths, embed)
    else:
        shape = write_at_once(args, texts_of(args, paths), embed)
    print(report(shape, embed, time.perf_counter() - began), file=sys.stderr)
    return 0


class Embedder:
    """The encoder that the flags ask for, and how: texts in, `Vectors` out; counts texts, tokens and texts that were cut."""

    def __init__(self, args: argparse.Namespace):
        from bertqa import vectors
        from bertqa.data.tokenizer import WordPiece
        from bertqa.device import pick_device, pick_precision, set_threads
        from bertqa.hf.convert import resolve_weights
        from bertqa.loading import device_for, for_int8
        from bertqa.model import folder, prepack
        from bertqa.model.record import read_embed

        set_threads(args.threads)
        where = Path(resolve_weights(args.model))
        self.device = pick_device(device_for(args.device, args.precision, args.int8))
        self.model = args.model
        self.folder = where
        self.texts = self.tokens = self.cut = self.empty = 0
        self.dtype = pick_precision(args.precision, self.device)
        self.tokenizer = WordPiece.load(where)
        encoder = folder.load_encoder(where, device=self.device)
        self.encoder = for_int8(encoder, where) if args.int8 else prepack.pack(encoder, self.dtype)
        # What a model of sentence-transformers says of itself: with another pool its vectors are worth little.
        made = read_embed(where)
        positions = self.encoder.config.max_position_embeddings
        self.settings = {
            "pool": first_given(args.pool, made.pool, "mean"),
            "layer": args.layer,
            "normalize": first_given(args.normalize, made.normalize, False),
            "max_length": first_given(args.max_length, made.max_length, None),
        }
        vectors.check(
            self.encoder.config,
            self.settings["pool"],
            self.settings["layer"],
            first_given(self.settings["max_length"], positions),
        )

    def __call__(self, texts: Sequence[str], progress: str | None = None):
        from bertqa import vectors

        found = vectors.embed_texts(
            self.encoder,
            self.tokenizer,
            texts,
            **self.settings,
            dtype=self.dtype,
            progress=progress,
        )
        self.texts += len(texts)
        self.tokens += found.tokens
        self.cut += found.cut
        self.empty += sum(not text.strip() for text in texts)
        return found


def first_given(*values):
    """The first of several values that is not None; None where all are."""
    for value in values:
        if value is not None:
            return value
    return None


def report(shape: Sequence[int], embed: Embedder, took: float) -> str:
    """What was done, for people."""
    said = f"{embed.texts:,} texts"
    if embed.cut:
        said += f", {embed.cut:,} of them cut"
    if embed.empty:
        said += f", {embed.empty:,} of them empty"
    said += f", {embed.tokens:,} tokens in {took:.1f} s: {embed.texts / took:,.0f} texts/s, "
    sizes = " x ".join(map("{:,}".format, shape))
    return f"{said}{embed.tokens / took:,.0f} tokens/s; {sizes} float32"


if __name__ == "__main__":
    raise SystemExit(run_verb(main))
