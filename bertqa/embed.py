"""python -m bertqa.embed: vectors of texts; `embed_texts` is the same thing in Python.

A sequence  [CLS] text [SEP]  has a vector for each token, of each layer. What comes out of them is --pool:

    cls     the vector of [CLS]
    mean    the mean over all tokens, [CLS] and [SEP] among them (what sentence-transformers' models are trained for)
    pooler  tanh(dense([CLS])), where the model has kept that layer
    none    all of them
"""

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bertqa.errors import UserError
from bertqa.flags import run_verb

POOLS = ("cls", "pooler", "mean", "none")


@dataclass
class Vectors:
    """The vectors of R texts, in their order."""

    vectors: np.ndarray
    """(R, H) float32, of all layers (R, layers + 1, H), embeddings first; with pool none N tokens take the place of R."""
    rows: np.ndarray | None
    """(R+1,) int64, with pool none only: text r owns vectors rows[r] : rows[r+1], [CLS] first and [SEP] last."""
    spans: np.ndarray | None
    """(N, 2) int32, with pool none only: a token's first character in its text, one past its last; -1 for [CLS], [SEP]."""
    tokens: int
    """N, with [CLS] and [SEP]."""
    cut: int
    """Texts that were longer than the limit and lost their end."""


def embed_texts(
    encoder,
    tokenizer,
    texts: Sequence[str],
    *,
    pool: str = "mean",
    layer: int | str = -1,
    normalize: bool = False,
    max_length: int | None = None,
    dtype=None,
    progress: str | None = None,
    empty: Callable = np.empty,
) -> Vectors:
    """Embed texts in packed batches, longest first: no padding, and any length beside any other.

    Args:
        encoder: a BertEncoder in eval mode, on the device to compute on (`load_encoder`; prepack.pack makes it faster).
        tokenizer: its WordPiece.
        pool: "cls", "mean", "pooler" or "none", see above.
        layer: of the hidden states: -1 the last, 0 the embeddings, or "all".
        normalize: give every vector length 1.
        max_length: most tokens of a text, the special ones included; as many as the encoder has positions where None.
        dtype: to compute in (torch.bfloat16 on a GPU); float32 where None. The vectors are float32 anyway.
        progress: name of a progress bar; none where None.
        empty: makes the array to fill, from a shape and a type; a memory-mapped file, for example.

    Raises:
        UserError: for a pool or a layer that the encoder does not have, and a length that it cannot read.
    """
    import torch
    import torch.nn.functional as F

    from bertqa.data.text_windows import text_windows
    from bertqa.device import autocast
    from bertqa.inference import forward_all

    config, device = encoder.config, next(encoder.parameters()).device
    most = config.max_position_embeddings if max_length is None else max_length
    check(config, pool, layer, most)
    windows = text_windows(
        texts, tokenizer, max_length=most, progress=progress and f"{progress}: tokens"
    )
    rows = np.concatenate([[0], windows.lengths.cumsum(dtype=np.int64)])  # (R+1,)
    layers = (config.num_hidden_layers + 1,) if layer == "all" else ()
    count = int(rows[-1]) if pool == "none" else len(texts)
    vectors = empty((count, *layers, config.hidden_size), np.float32)

    def compute(batch, layout) -> tuple:
        out = encoder(
            batch.input_ids,
            token_type_ids=batch.token_type_ids,
            lengths=layout,
            output_hidden_states=layer != -1,
        )
        found = pooled(out, layout, pool, layer)
        return (F.normalize(found, dim=-1) if normalize else found,)

    cast = autocast(device, dtype or torch.float32)
    for which, (found,) in forward_all(
        compute, windows, device, autocast=cast, progress=progress, unit=" texts"
    ):
        if pool == "none":
            for row, part in zip(
                which, np.split(found, windows.lengths[which].cumsum()[:-1]), strict=True
            ):
                vectors[rows[row] : rows[row + 1]] = part
        else:
            vectors[which] = found
    plain = pool != "none"
    return Vectors(
        vectors,
        None if plain else rows,
        None if plain else token_spans(windows.texts, rows),
        int(rows[-1]),
        windows.cut,
    )


def pooled(out, layout, pool: str, layer: int | str):
    """(S, H) of an EncoderOutput of N packed tokens, or (S, layers + 1, H); with pool none (N, H), (N, layers + 1, H)."""
    import torch

    if pool == "pooler":
        return out.pooled.float()
    x = (
        out.last_hidden_state
        if layer == -1
        else torch.stack(out.hidden_states, 1)
        if layer == "all"
        else out.hidden_states[layer]
    ).float()  # (N, H) or (N, layers + 1, H)
    if pool == "cls":
        return x[layout.first_tokens]
    if pool == "none":
        return x
    total = x.new_zeros(len(layout.lengths), *x.shape[1:]).index_add_(0, layout.sequence, x)
    return total / layout.cu_seqlens.diff().view(-1, *[1] * (x.dim() - 1))


def token_spans(tokens, rows: np.ndarray) -> np.ndarray:
    """(N, 2) int32 characters of each token, -1 for [CLS] and [SEP], which stand around every text's own."""
    spans = np.full((int(rows[-1]), 2), -1, np.int32)
    own = np.ones(len(spans), bool)
    own[rows[:-1]] = own[rows[1:] - 1] = False
    spans[own] = np.stack([tokens.starts, tokens.ends], 1)
    return spans


def check(config, pool: str, layer: int | str, max_length: int) -> None:
    """Refuse what this encoder cannot give. Raises UserError naming every problem at once."""
    layers, problems = config.num_hidden_layers, []
    if pool not in POOLS:
        problems.append(f"pool is {pool!r}, use {', '.join(POOLS)}")
    if layer != "all" and not (isinstance(layer, int) and -layers - 1 <= layer <= layers):
        problems.append(
            f"layer is {layer!r}, but this encoder has layers 1 to {layers}, and 0 for the embeddings; use one "
            f"of these, -1 to {-layers - 1} from the end, or all"
        )
    if pool == "pooler" and layer not in (-1, layers):
        problems.append(
            f"pool pooler stands on the last layer, but layer is {layer!r}; leave it out"
        )
    if pool == "pooler" and not config.pooler:
        problems.append(
            "this encoder has no pooler (a question answering model has none, nor has DistilBERT); use pool cls "
            "or mean, or the checkpoint that it was fine-tuned from"
        )
    if not 3 <= max_length <= config.max_position_embeddings:
        problems.append(
            f"max_length is {max_length}, use 3 to {config.max_position_embeddings}, this encoder's positions"
        )
    if problems:
        raise UserError("; ".join(problems))


# ---- the verb ----


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    from bertqa.settings import bundled_reader

    parser = argparse.ArgumentParser(
        prog="python -m bertqa.embed",
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Vectors of texts." + __doc__.split("Python.", 1)[1],
        epilog="example: python -m bertqa.embed --model weights/all-MiniLM-L6-v2 --data questions.txt --out questions.npy "
        "--normalize",
    )
    parser.add_argument(
        "--model",
        default=bundled_reader(),
        help="model folder, Hugging Face folder or Hub id; a head on it "
        "does not matter [%(default)s]",
    )
    parser.add_argument("--text", help="one text; its vector is printed as JSON")
    parser.add_argument(
        "--data",
        metavar="FILE",
        help="a text per line; or a column of CSV, TSV or JSONL; .gz or not",
    )
    parser.add_argument("--text-column", metavar="NAME", help="that column [text]")
    parser.add_argument(
        "--out",
        metavar="FILE",
        help=".npy, with the ids beside it in .ids.json; or .safetensors, with the "
        "ids in its metadata",
    )
    parser.add_argument(
        "--pool", choices=POOLS, default="mean", help="see above; none needs .safetensors [mean]"
    )
    parser.add_argument(
        "--layer", default="-1", help="-1 = the last, 0 = the embeddings, or all [-1]"
    )
    parser.add_argument("--normalize", action="store_true", help="make every vector of length 1")
    parser.add_argument(
        "--max-length", type=int, metavar="N", help="cut texts to N tokens [the model's positions]"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N texts of the file")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"])
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16", "fp16"])
    parser.add_argument(
        "--threads", type=int, default=0, help="CPU threads; 0 = torch's own choice [0]"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Embed a text or a file. Returns the exit status."""
    from bertqa.data.texts import Texts, read_texts

    args = parse_args(argv)
    layer = args.layer if args.layer == "all" else whole_number(args.layer)
    out = args.out and Path(args.out)
    if (args.text is None) == (args.data is None):
        raise UserError("give either --text TEXT, or --data FILE --out VECTORS")
    if args.data and not out:
        raise UserError("--data needs --out FILE.npy or FILE.safetensors, where the vectors go")
    if out and out.suffix not in (".npy", ".safetensors"):
        raise UserError(
            f"--out {out}: vectors are written as .npy or .safetensors; give a name that ends in one of these"
        )
    if out and args.pool == "none" and out.suffix == ".npy":
        raise UserError(
            "--pool none gives a vector per token, and .npy cannot say which text a token belongs to; "
            "use --out FILE.safetensors"
        )
    if args.text is not None:
        texts = Texts("--text", "", [""], ["0"], [args.text])
    else:
        texts = read_texts(args.data, args.text_column, limit=args.limit)

    import torch

    from bertqa.data.tokenizer import WordPiece
    from bertqa.device import pick_device, pick_precision
    from bertqa.hf.resolve import resolve_weights
    from bertqa.model import folder, prepack

    if args.threads:
        torch.set_num_threads(args.threads)
    where, device = resolve_weights(args.model), pick_device(args.device)
    dtype, tokenizer = pick_precision(args.precision, device), WordPiece.load(where)
    encoder, began = (
        prepack.pack(folder.load_encoder(where, device=device), dtype),
        time.perf_counter(),
    )
    settings = {
        "pool": args.pool,
        "layer": layer,
        "normalize": args.normalize,
        "max_length": args.max_length,
    }
    with partial(out) as part:
        found = embed_texts(
            encoder,
            tokenizer,
            texts.texts,
            **settings,
            dtype=dtype,
            progress=args.data and "embed",
            empty=lambda shape, kind: (
                np.lib.format.open_memmap(part, "w+", kind, shape)
                if out and out.suffix == ".npy"
                else np.empty(shape, kind)
            ),
        )
        print(report(found, texts, time.perf_counter() - began), file=sys.stderr)
        if out:
            write(out, part, found, texts.ids, {"model": str(args.model), **settings})
        else:
            print(
                json.dumps(
                    found.vectors.tolist() if args.pool == "none" else found.vectors[0].tolist()
                )
            )
    return 0


@contextlib.contextmanager
def partial(out: Path | None):
    """A name to write to in place of `out`; whatever stands there is gone at the end."""
    part = out and out.with_name(out.name + ".tmp")
    try:
        yield part
    finally:
        if part:
            part.unlink(missing_ok=True)


def whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise UserError(
            f"--layer {text}: give a number, such as -1 for the last layer, or all"
        ) from None


def report(found: Vectors, texts, took: float) -> str:
    """What was done, for people."""
    shape = " x ".join(f"{size:,}" for size in found.vectors.shape)
    cut = f", {found.cut:,} of them cut" if found.cut else ""
    empty = f", {len(texts.empty()):,} of them empty" if texts.empty() else ""
    return (
        f"{len(texts):,} texts{cut}{empty}, {found.tokens:,} tokens in {took:.1f} s: {len(texts) / took:,.0f} texts/s, "
        f"{found.tokens / took:,.0f} tokens/s; {shape} float32"
    )


def write(out: Path, part: Path, found: Vectors, ids: list[str], settings: dict) -> None:
    """Write the vectors under a temporary name and rename them, the ids beside or inside."""
    if out.suffix == ".npy":
        found.vectors.flush()
        names = out.with_suffix(".ids.json")
        names.with_name(names.name + ".tmp").write_text(
            json.dumps(ids, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        os.replace(names.with_name(names.name + ".tmp"), names)
    else:
        from safetensors.numpy import save

        arrays = {
            name: value
            for name in ("vectors", "rows", "spans")
            if (value := getattr(found, name)) is not None
        }
        part.write_bytes(
            save(
                arrays,
                {"ids": json.dumps(ids, ensure_ascii=False), "settings": json.dumps(settings)},
            )
        )
    os.replace(part, out)


if __name__ == "__main__":
    raise SystemExit(run_verb(main))
