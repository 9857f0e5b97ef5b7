"""python -m bertqa.convert SRC DEST: import a Hugging Face checkpoint; --to-hf and --to-onnx export a model folder."""

import argparse
import dataclasses
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from bertqa.files import to_json
from bertqa.flags import VerbParser, run_verb, verb

DESCRIPTION = "Weights in and out: a Hugging Face checkpoint into a model folder, or a model folder into one, or into ONNX."
EXAMPLE = """examples:
  python -m bertqa.convert google-bert/bert-base-uncased weights/bert-base-uncased
  python -m bertqa.convert path/to/checkpoint weights/mine --fresh-head
  python -m bertqa.convert runs/mine/best exported --to-hf      then: hf upload you/mine exported
  python -m bertqa.convert runs/mine/best exported --to-onnx    needs: pip install 'bertqa[onnx]'
"""
HELP = {
    "src": "a Hugging Face folder, one weight file in it, or a Hub id org/name[@revision];\n"
    "with --to-hf, a model folder of bertqa",
    "dest": "the folder to write; it must not exist yet, or be empty",
    "--fresh-head": "put a new question-answering head on the encoder, in place of any that is there",
    "--seed": "of the new head's weights [0]",
    "--to-hf": "the other way: write what transformers opens",
    "--to-onnx": "write model.onnx, with the vocabulary and qa.json beside it",
    "--score": "with --to-onnx: squad1, squad2 or a file of questions to measure its F1 on",
    "--json": "print the report as JSON, one entry a tensor",
}


@verb
def main(argv: Sequence[str] | None = None) -> int:
    parser = VerbParser(
        prog="python -m bertqa.convert",
        description=DESCRIPTION,
        epilog=EXAMPLE,
        formatter_class=argparse.RawTextHelpFormatter,
    )

    def add(name: str, **options) -> None:
        parser.add_argument(name, help=HELP[name], **options)

    add("src", metavar="SRC")
    add("dest", metavar="DEST")
    add("--fresh-head", action="store_true")
    add("--seed", type=int, default=0)
    add("--to-hf", action="store_true")
    add("--to-onnx", action="store_true")
    add("--score", metavar="DATA")
    add("--json", action="store_true")
    args = parser.parse_args(argv)
    if args.to_onnx and args.to_hf:
        parser.error("--to-onnx and --to-hf: one at a time")
    if args.score and not args.to_onnx:
        parser.error("--score is for --to-onnx")
    if args.to_onnx:
        return to_onnx(Path(args.src), Path(args.dest), args.score)

    # imported after parsing, so that --help does not wait for torch
    from bertqa.hf.convert import convert
    from bertqa.hf.export import export

    if args.to_hf:
        report = export(args.src, args.dest)
    else:
        head = "qa" if args.fresh_head else None
        report = convert(args.src, args.dest, fresh_head=head, seed=args.seed)
    if args.json:
        report = to_json(dataclasses.asdict(report))
    print(report)
    return 0


def to_onnx(src: Path, dest: Path, data: str | None) -> int:
    """Write model.onnx; with onnxruntime installed, print how much it differs from the model, and its score on `data`."""
    from bertqa.onnx_file import compare, export_onnx, score

    file = export_onnx(src, dest)
    print(f"{file}: {file.stat().st_size / 1e6:.1f} MB")
    if find_spec("onnxruntime") is None:
        print("not checked: onnxruntime is not installed")
        return 0
    print(f"checked in onnxruntime: differs from {src} by {compare(src, file):.1g} at most")
    if data:
        found = score(dest, data)
        print(f"{data}: exact {found['exact']:.2f}, f1 {found['f1']:.2f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_verb(main))
