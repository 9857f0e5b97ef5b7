"""python -m bertqa.embed: vectors of texts; `bertqa.embed_texts` is the same thing in Python.

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

HELP = {
    "--model": "model folder, run folder, Hugging Face folder or Hub id; a head on it does not matter [%(default)s]",
    "--text": "one text; its vector is printed as JSON",
    "--data": "a text per line; or a column of CSV, TSV, JSONL or Parquet; packed or not; several files, folders, patterns, "
    "- for standard input",
    "--text-column": "that column [text]",
    "--out": ".npy, with the ids beside it in .ids.json; or .safetensors, with the ids in its metadata",
    "--resume": "go on with an --out FILE.npy that was stopped on its way",
    "--limit": "only the first N texts",
    "--pool": "see above; none needs .safetensors [as the model was made, else mean]",
    "--layer": "-1 = the last, 0 = the embeddings, or all [-1]",
    "--normalize": "make every vector of length 1 [as the model was made, else no]",
    "--max-length": "cut texts to N tokens [as the model was made, else its positions]",
}


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = VerbParser(
        prog="python -m bertqa.embed",
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Vectors of texts." + __doc__.split("Python.", 1)[1],
        epilog="example: python -m bertqa.embed --model weights/all-MiniLM-L6-v2 --data questions.txt --out questions.npy "
        "--normalize",
    )

    def add(group, name: str, *aliases: str, **options) -> None:
        group.add_argument(name, *aliases, help=HELP[name], **options)

    add(parser, "--model", "--weights", default=bundled_reader())
    texts = parser.add_argument_group("texts in, vectors out")
    add(texts, "--text")
    add(texts, "--data", metavar="FILE", nargs="+")
    add(texts, "--text-column", metavar="NAME")
    add(texts, "--out", metavar="FILE", type=Path)
    add(texts, "--resume", action="store_true")
    add(texts, "--limit", type=int, metavar="N")
    vectors = parser.add_argument_group("which vectors")
    add(vectors, "--pool", metavar="{cls,mean,pooler,none}")
    add(vectors, "--layer", default="-1")
    add(vectors, "--normalize", action=argparse.BooleanOptionalAction)
    add(vectors, "--max-length", type=int, metavar="N")
    add_machine_flags(parser.add_argument_group("the machine"))
    # Jobs ask for it. Not a flag, since an array of vectors has no place for an error.
    parser.set_defaults(on_error="stop")
    args = parser.parse_args(argv)
    check(args)
    args.layer = layer_of(args.layer)
    return args


def layer_of(word: str) -> int | str:
    """Return the layer that --layer names: its number, or "all"."""
    if word == "all":
        return word
    try:
        return int(word)
    except ValueError:
        raise UserError(
            f"--layer {word}: give a number, such as -1 for the last layer, or all"
        ) from None


def check(args: argparse.Namespace) -> None:
    """Raise UserError for flags that do not go together, before anything is loaded."""
    if (args.text is None) == (args.data is None):
        raise UserError("give either --text TEXT, or --data FILE --out VECTORS")
    if args.data and not args.out:
        raise UserError("--data needs --out FILE.npy or FILE.safetensors, where the vectors go")
    suffix = args.out.suffix if args.out else None
    if suffix not in (None, ".npy", ".safetensors"):
        raise UserError(
            f"--out {args.out}: vectors are written as .npy or .safetensors; give a name that ends in one of these"
        )
    if suffix == ".npy" and args.pool == "none":
        raise UserError(
            "--pool none gives a vector per token, and .npy cannot say which text a token belongs to; "
            "use --out FILE.safetensors"
        )
    if args.resume and (not args.data or suffix != ".npy"):
        raise UserError(
            "--resume goes on with the --out FILE.npy of --data; everything else is written at once"
        )
    if args.limit is not None and args.limit < 1:
        raise UserError(f"--limit {args.limit}: give 1 or more")
    if args.out and args.out.exists():
        raise UserError(f"{args.out}: is there already; give another --out")


@verb
def main(argv: Sequence[str] | None = None) -> int:
    """Embed a text, or files of texts. Returns the exit status."""
    args = parse_args(argv)
    paths = expand(args.data or [])
    # Read everything once before: a bad row at the end would cost the hours before it. A pipe can only be read once.
    if not any(path == STDIN or path.is_fifo() for path in paths):
        refuse_bad(texts_of(args, paths), args.data)
    embed = Embedder(args)
    began = time.perf_counter()
    if args.out is None:
        vectors = embed([args.text]).vectors
        shape = vectors.shape
        if args.pool != "none":
            vectors = vectors[0]
        print(json.dumps(vectors.tolist()))
    elif args.data and args.out.suffix == ".npy":
        shape = write_npy(args, embed)
    else:
        shape = write_at_once(args, texts_of(args, paths), embed)
    print(report(shape, embed, time.perf_counter() - began), file=sys.stderr)
    return 0


class Embedder:
    """The encoder that the flags ask for: a function from texts to `Vectors`, which counts what it was given."""

    def __init__(self, args: argparse.Namespace):
        from bertqa import vectors
        from bertqa.device import set_threads
        from bertqa.loading import folder_of, load_for_verb
        from bertqa.model.folder import load_encoder
        from bertqa.model.record import read_embed

        set_threads(args.threads)
        self.model = args.model
        self.folder = folder_of(args.model)
        self.loaded = load_for_verb(args, self.folder, load_encoder)
        # How a sentence-transformers model was trained: its vectors are poor with another pool.
        trained = read_embed(self.folder)
        self.settings = {
            "pool": first_given(args.pool, trained.pool, "mean"),
            "layer": args.layer,
            "normalize": first_given(args.normalize, trained.normalize, False),
            "max_length": first_given(args.max_length, trained.max_length),
        }
        config = self.loaded.model.config
        longest = first_given(self.settings["max_length"], config.max_position_embeddings)
        vectors.check(config, self.settings["pool"], self.settings["layer"], longest)
        self.texts = 0
        self.empty = 0  # texts without a word
        self.cut = 0  # texts that were longer than the encoder reads
        self.tokens = 0

    def __call__(self, texts: Sequence[str], progress: str | None = None):
        from bertqa.vectors import embed_texts

        found = embed_texts(
            self.loaded.model,
            self.loaded.tokenizer,
            texts,
            **self.settings,
            dtype=self.loaded.dtype,
            progress=progress,
        )
        self.texts += len(texts)
        self.tokens += found.tokens
        self.cut += found.cut
        self.empty += sum(not text.strip() for text in texts)
        return found


def first_given(*values):
    """Return the first value that is not None; None where all are."""
    for value in values:
        if value is not None:
            return value
    return None


def report(shape: Sequence[int], embed: Embedder, seconds: float) -> str:
    """Return the closing message."""
    said = f"{embed.texts:,} texts"
    if embed.cut:
        said += f", {embed.cut:,} of them cut"
    if embed.empty:
        said += f", {embed.empty:,} of them empty"
    said += f", {embed.tokens:,} tokens in {seconds:.1f} s: {embed.texts / seconds:,.0f} texts/s, "
    sizes = " x ".join(f"{size:,}" for size in shape)
    return f"{said}{embed.tokens / seconds:,.0f} tokens/s; {sizes} float32"


if __name__ == "__main__":
    raise SystemExit(run_verb(main))
