"""python -m bertqa.convert SRC DEST: checkpoints in; --to-hf and --to-onnx go out again."""

import argparse
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


@verb
def main(argv: Sequence[str] | None = None) -> int:
    parser = VerbParser(
        prog="python -m bertqa.convert",
        description=DESCRIPTION,
        epilog=EXAMPLE,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument(
        "src",
        metavar="SRC",
        help="a Hugging Face folder, one weight file in it, or a Hub id "
        "org/name[@revision];\nwith --to-hf, a model folder of bertqa",
    )
    parser.add_argument(
        "dest", metavar="DEST", help="the folder to write; it must not exist yet, or be empty"
    )
    parser.add_argument(
        "--fresh-head",
        action="store_true",
        help="put a new question-answering head on the encoder, in place of any that is there",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the new head's weights [0]")
    parser.add_argument(
        "--to-hf", action="store_true", help="the other way: write what transformers opens"
    )
    parser.add_argument(
        "--to-onnx",
        action="store_true",
        help="write model.onnx, with the vocabulary and qa.json beside it",
    )
    parser.add_argument(
        "--score",
        metavar="DATA",
        help="with --to-onnx: squad1, squad2 or a file of questions to measure its F1 on",
    )
    parser.add_argument(
        "--json", action="store_true", help="print the report as JSON, one entry a tensor"
    )
    args = parser.parse_args(argv)
    if args.to_onnx and args.to_hf:
        parser.error("--to-onnx and --to-hf: one at a time")
    if args.score and not args.to_onnx:
        parser.error("--score is for --to-onnx")
    if args.to_onnx:
        return to_onnx(Path(args.src), Path(args.dest), args.score)

    # after parsing: --help need not wait for torch
    from bertqa.hf.convert import convert
    from bertqa.hf.export import export

    if args.to_hf:
        report = export(args.src, args.dest)
    else:
        head = "qa" if args.fresh_head else None
        report = convert(args.src, args.dest, fresh_head=head, seed=args.seed)
    print(to_json(report.as_dict()) if args.json else report)
    return 0


def to_onnx(src: Path, dest: Path, data: str | None) -> int:
    """Write the file, and say how near it is to the model, where onnxruntime can tell."""
    from bertqa.hf.export import export_onnx

    file = export_onnx(src, dest)
    print(f"{file}: {file.stat().st_size / 1e6:.1f} MB")
    if find_spec("onnxruntime") is None:
        print("not checked: onnxruntime is not installed")
        return 0
    from bertqa.onnx_check import compare, score

    print(f"checked in onnxruntime: differs from {src} by {compare(src, file):.1g} at most")
    if data:
        found = score(dest, data)
        print(f"{data}: exact {found['exact']:.2f}, f1 {found['f1']:.2f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_verb(main))
