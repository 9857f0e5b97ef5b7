"""python -m bertqa.report RUN [OTHER ...]: one self-contained HTML page about runs.

It is made from the run folders and the dev file in their settings, by reporting/.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from bertqa.flags import VerbParser, run_verb, verb
from bertqa.reporting.page import write_report


@verb
def main(argv: Sequence[str] | None = None) -> int:
    parser = VerbParser(
        prog="python -m bertqa.report",
        allow_abbrev=False,
        description="One HTML page about a run: what was run, curves, scores, where it fails, every question. With a "
        "second run: both side by side, and whether they really differ. With more: mean and deviation of each recipe "
        "over its seeds.",
        epilog="example: python -m bertqa.report runs/base runs/large -o compared.html",
    )
    parser.add_argument(
        "run", metavar="RUN", type=Path, help="folder that python -m bertqa.train made"
    )
    parser.add_argument(
        "others", metavar="OTHER", type=Path, nargs="*", help="more of them, to compare it with"
    )
    parser.add_argument(
        "-o",
        "--out",
        metavar="F",
        type=Path,
        help="where the page goes [RUN/report.html; with OTHER RUN/report-OTHER.html]",
    )
    parser.add_argument(
        "--dev", metavar="FILE", help="the questions, where they are no longer where RUN had them"
    )
    args = parser.parse_args(argv)

    def say(line: str) -> None:
        print(line, file=sys.stderr)

    print(write_report(args.run, *args.others, out=args.out, dev=args.dev, say=say))
    return 0


if __name__ == "__main__":
    raise SystemExit(run_verb(main))
