"""Convert weights: `python -m bertqa.convert` under its former name, from a clone without installing."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bertqa.convert import main
from bertqa.flags import run_verb

if __name__ == "__main__":
    raise SystemExit(run_verb(main))
