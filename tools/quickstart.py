"""Everything from nothing: a virtual environment, bertqa, a fine-tuned reader, its score, and an answer to your question.

    python tools/quickstart.py

Makes .venv in the repository, installs what tools/constraints.txt pins, fine-tunes the bundled reader on the bundled
sample (a few minutes on two CPU cores), and asks for a question. Needs Python 3.10 or newer and the package index only.
"""

import hashlib
import os
import subprocess
import sys
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONTEXT = (
    "The lighthouse on Tern Island was built in 1874 by Agnes Holm, who also kept its lamp for thirty years. "
    "Its light was replaced by an electric one in 1931, and since 1988 nobody has lived there."
)
QUESTION = "Who looked after the lamp?"


def environment(extra: str = "") -> Path:
    """The python of .venv with bertqa and the extra installed; made or brought up to date where it is not."""
    if sys.version_info < (3, 10):
        raise SystemExit(
            f"error: this is Python {sys.version.split()[0]}; bertqa needs 3.10 or newer"
        )
    home = ROOT / ".venv"
    python = home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    stamp, key = home / f"installed{extra and '-' + extra}", requirements()
    if not (python.exists() and stamp.exists() and stamp.read_text() == key):
        print(f"installing into {home} (a minute or two) ...", flush=True)
        if not (
            python.exists() and any(home.glob("installed*"))
        ):  # one in use, whose python runs, cannot be made again
            venv.create(home, with_pip=True)
        package = f"{ROOT}[{extra}]" if extra else str(ROOT)
        run(
            python,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--constraint",
            ROOT / "tools" / "constraints.txt",
            "--editable",
            package,
        )
        stamp.write_text(key)
    return python


def requirements() -> str:
    """The hash of what decides what .venv has to hold."""
    return hashlib.sha256(
        b"".join((ROOT / name).read_bytes() for name in ("setup.cfg", "tools/constraints.txt"))
    ).hexdigest()


def run(*command) -> None:
    """Run a command in the repository; its failure is ours."""
    status = subprocess.run([str(part) for part in command], cwd=ROOT).returncode
    if status:
        raise SystemExit(status)


def main() -> None:
    """Install, fine-tune, answer."""
    python, out = environment(), time.strftime("runs/quickstart-%Y%m%d-%H%M%S")
    print(
        "\nFine-tuning the bundled reader on the bundled sample; step 0 is the score before:",
        flush=True,
    )
    run(python, "-m", "bertqa.train", "--out", out)
    question = QUESTION
    if sys.stdin.isatty():
        print(f"\nA text:\n  {CONTEXT}")
        question = input(f"Ask it something [{QUESTION}]: ").strip() or QUESTION
    print(f"\nText:     {CONTEXT}\nQuestion: {question}\nAnswer:   ", end="", flush=True)
    run(
        python,
        "-m",
        "bertqa.predict",
        "--model",
        f"{out}/best",
        "--question",
        question,
        "--context",
        CONTEXT,
    )
    print(f"\nThe run, its curves and its mistakes: {ROOT / out / 'report.html'}")


if __name__ == "__main__":
    main()
