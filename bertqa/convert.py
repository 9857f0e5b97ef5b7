"""python -m bertqa.convert SRC DEST: a Hugging Face checkpoint into a model folder, or with --to-hf the other way."""

import argparse
from collections.abc import Sequence

from bertqa.files import to_json
from bertqa.flags import VerbParser, run_verb

DESCRIPTION = (
    "Weights in and out: a Hugging Face checkpoint into a model folder, or a model folder into one."
)
EXAMPLE = """examples:
  python -m bertqa.convert google-bert/bert-base-uncased weights/bert-base-uncased
  python -m bertqa.convert path/to/checkpoint weights/mine --fresh-head
  python -m bertqa.convert runs/mine/best exported --to-hf      then: hf upload you/mine exported
"""


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
        "--json", action="store_true", help="print the report as JSON, one entry a tensor"
    )
    args = parser.parse_args(argv)

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


if __name__ == "__main__":
    raise SystemExit(run_verb(main))
