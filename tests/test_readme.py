"""README: its Python blocks run, the flags of its commands exist, the files that it names are there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
needs_reader = pytest.mark.skipif(not (ROOT / "weights" / "minilm-squad2" / "model.safetensors").exists(),
                                  reason="the bundled reader weights/minilm-squad2 is missing")


@needs_reader
@pytest.mark.parametrize("block", PYTHON, ids=range(len(PYTHON)))
def test_python_blocks_run(block, tmp_path):
    done = subprocess.run([sys.executable, "-c", block], cwd=ROOT, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr


def test_every_flag_in_the_readme_exists():
    """Each `python -m bertqa.VERB --flag` and tools command uses flags that its --help knows."""
    commands = re.findall(r"(?:python -m bertqa\.(\w+)|python (tools/\w+\.py))((?:[^\n`]|\\\n)*)", README)
    helps: dict[str, str] = {}
    for verb, script, rest in commands:
        flags = re.findall(r"(?<![\w-])(--[a-z][a-z0-9-]*)", rest)
        task = ["--task", "classify"] if "--task classify" in rest else []
        name = " ".join([verb or script, *task])
        if name not in helps:
            argv = ["-m", f"bertqa.{verb}"] if verb else [script]
            if script in ("tools/quickstart.py", "tools/check.py"):
                helps[name] = ""
            else:
                done = subprocess.run([sys.executable, *argv, *task, "--help"], cwd=ROOT, capture_output=True, text=True)
                assert done.returncode == 0, f"{name}: {done.stderr}"
                helps[name] = done.stdout
        for flag in flags:
            assert flag in helps[name], f"README uses {flag} of {name}, which its --help does not list"


def test_files_named_in_the_readme_exist():
    named = set(re.findall(r"\b((?:bertqa|tests|tools|weights)/[\w./-]+\.(?:py|md|json|csv|txt))\b", README))
    assert [name for name in named if not (ROOT / name).exists()] == []
