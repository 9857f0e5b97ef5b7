"""What people get who install bertqa: the wheel works without a clone, the sdist can test itself."""

import configparser
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from servers import ROOT

READER = ROOT / "weights" / "minilm-squad2" / "model.safetensors"


def test_every_package_is_listed():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    listed = set(config["options"]["packages"].split())
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in (ROOT / "bertqa").rglob("__init__.py")
    }
    assert listed == found | {"bertqa.weights"}


def test_nothing_is_said_of_a_licence_of_the_code():
    """The owner has not chosen one."""
    assert "licen" not in (ROOT / "setup.cfg").read_text().lower()


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A folder with the wheel and the sdist of a copy of this tree."""
    pytest.importorskip("setuptools", minversion="70.1")  # since then without the package wheel
    if not READER.exists():
        pytest.skip("the bundled reader weights/minilm-squad2 is missing")
    copy = tmp_path_factory.mktemp("copy")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in listed.stdout.split("\0"):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, copy / name)
    out = tmp_path_factory.mktemp("built")
    for kind in ("wheel", "sdist"):  # each in a process of its own, for they change sys.argv
        code = f"from setuptools import build_meta; build_meta.build_{kind}({str(out)!r})"
        subprocess.run([sys.executable, "-c", code], cwd=copy, check=True, capture_output=True)
    return out


@pytest.mark.slow
def test_a_wheel_answers_without_a_clone(built, tmp_path):
    (wheel,) = built.glob("*.whl")
    assert wheel.stat().st_size < 100e6
    site = tmp_path / "site"
    install = [
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        site,
        wheel,
    ]
    subprocess.run([sys.executable, *map(str, install)], check=True, capture_output=True)

    def bertqa(*argv: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "bertqa", *argv],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(site)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    asked = ("--question", "Who kept the lamp?", "--context", "Agnes Holm kept the lamp.")
    assert bertqa("predict", *asked).startswith("Agnes Holm")
    assert bertqa("--version").startswith("bertqa ")
    assert "Hugging Face" in bertqa("convert", "--help")


@pytest.mark.slow
def test_an_sdist_has_what_its_tests_need(built):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as packed:
        names = {name.partition("/")[2] for name in packed.getnames()}
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout
    needed = {name for name in listed.split("\n") if name and not name.startswith("weights/")}
    assert needed - names == set()
    assert "weights/minilm-squad2/model.safetensors" in names


def test_the_readme_says_from_which_torch_on():
    bound = re.search(r"torch>=([\d.]+)", (ROOT / "setup.cfg").read_text())[1]
    assert f"torch is {bound} or newer" in (ROOT / "README.md").read_text()
