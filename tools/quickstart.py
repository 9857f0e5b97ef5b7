"""Set up everything: a virtual environment, bertqa, a fine-tuned reader, its score, and an answer to your question.

    python tools/quickstart.py

It makes .venv in the repository, installs the versions of tools/constraints.txt, fine-tunes the bundled reader on the
bundled sample (a few minutes on two CPU cores), and asks for a question. It needs Python 3.10 or newer and the package
index. On Linux without an NVIDIA driver it installs PyTorch's CPU build, 200 MB instead of 4.7 GB.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import time
import urllib.request
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONSTRAINTS = ROOT / "tools" / "constraints.txt"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
CUDA_SIZE = "some 4.7 GB with the packages of CUDA"
CONTEXT = (
    "The lighthouse on Tern Island was built in 1874 by Agnes Holm, who also kept its lamp for thirty years. "
    "Its light was replaced by an electric one in 1931, and since 1988 nobody has lived there."
)
QUESTION = "Who looked after the lamp?"


def environment(extra: str = "") -> Path:
    """Make or update .venv with bertqa and an extra. Returns the path of its python."""
    if sys.version_info < (3, 10):
        raise SystemExit(
            f"error: this is Python {sys.version.split()[0]}; bertqa needs 3.10 or newer"
        )
    home = ROOT / ".venv"
    python = home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    stamp = home / (f"installed-{extra}" if extra else "installed")
    key = requirements()
    if python.exists() and stamp.exists() and stamp.read_text() == key:
        return python
    print(f"installing into {home} ...", flush=True)
    in_use = python.exists() and any(home.glob("installed*"))
    if not in_use:  # a python that is running cannot be replaced
        venv.create(home, with_pip=True)
        install_torch(python)
    package = f"{ROOT}[{extra}]" if extra else str(ROOT)
    run(*pip_install(python), "--constraint", CONSTRAINTS, "--editable", package)
    stamp.write_text(key)
    return python


def pip_install(python: Path) -> list:
    return [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]


def install_torch(python: Path) -> None:
    """Say which build of torch will be installed; install it where it is the CPU build, as PyPI's has CUDA on Linux."""
    if sys.platform != "linux":
        print("torch: the package index's own for this system, some 200 MB", flush=True)
        return
    if has_nvidia_driver():
        print(f"torch: with CUDA, for there is an NVIDIA driver; {CUDA_SIZE}", flush=True)
        return
    if not answers(CPU_INDEX):
        print(f"torch: {CPU_INDEX} does not answer, so the one with CUDA; {CUDA_SIZE}", flush=True)
        return
    print(f"torch: for CPUs, from {CPU_INDEX}; some 200 MB, no NVIDIA driver is here", flush=True)
    lines = CONSTRAINTS.read_text().splitlines()
    pinned = next(line for line in lines if line.startswith("torch=="))
    # Its dependencies are installed with bertqa's, from PyPI.
    command = [*pip_install(python), "--no-deps", "--index-url", CPU_INDEX, pinned]
    if subprocess.run([str(part) for part in command]).returncode:
        print(f"torch: that failed, so the one with CUDA; {CUDA_SIZE}", flush=True)


def has_nvidia_driver() -> bool:
    """Whether there is an NVIDIA driver: it is loaded, or nvidia-smi is installed."""
    return Path("/proc/driver/nvidia").exists() or shutil.which("nvidia-smi") is not None


def answers(index: str) -> bool:
    """Whether a package index answers for torch within five seconds."""
    try:
        with urllib.request.urlopen(f"{index}/torch/", timeout=5) as page:
            return page.status == 200
    except (OSError, ValueError):
        return False


def requirements() -> str:
    """Return the hash of the files that decide what is installed in .venv."""
    content = (ROOT / "setup.cfg").read_bytes() + (ROOT / "tools/constraints.txt").read_bytes()
    return hashlib.sha256(content).hexdigest()


def run(*command) -> None:
    """Run a command in the repository; where it fails, exit with its status."""
    status = subprocess.run([str(part) for part in command], cwd=ROOT).returncode
    if status:
        raise SystemExit(status)


def main() -> None:
    """Install, fine-tune, answer."""
    python = environment()
    out = time.strftime("runs/quickstart-%Y%m%d-%H%M%S")
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
    ask = ["--question", question, "--context", CONTEXT]
    # fp32 is the default. Naming it suppresses the hint at faster formats between question and answer.
    run(python, "-m", "bertqa.predict", "--model", f"{out}/best", "--precision", "fp32", *ask)
    print(f"\nThe run, its curves and its mistakes: {ROOT / out / 'report.html'}")


if __name__ == "__main__":
    main()
