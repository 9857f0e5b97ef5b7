"""Weights in and out: a Hugging Face checkpoint into a model folder, or a model folder into a Hugging Face one."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(
    0, str(Path(__file__).resolve().parents[1])
)  # so that it runs from a clone without installing

from bertqa.flags import run_verb

EXAMPLE = """examples:
  python tools/convert_weights.py google-bert/bert-base-uncased weights/bert-base-uncased
  python tools/convert_weights.py path/to/checkpoint weights/mine --fresh-head
  python tools/convert_weights.py runs/mine/best exported --to-hf      then: hf upload you/mine exported
"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawTextHelpFormatter
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

    from bertqa.hf.convert import convert  # after parsing: --help need not wait for torch
    from bertqa.hf.export import export  # after parsing: --help need not wait for torch

    if args.to_hf:
        report = export(args.src, args.dest)
    else:
        report = convert(
            args.src, args.dest, fresh_head="qa" if args.fresh_head else None, seed=args.seed
        )
    print(json.dumps(report.as_dict(), ensure_ascii=False) if args.json else report)
    return 0


if __name__ == "__main__":
    sys.exit(run_verb(main))
