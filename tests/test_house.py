"""The house: which room may import which, no cycles, no torch where it must not be, nothing done at import time."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "bertqa"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")

GROUND = {"errors", "files", "folders", "console", "device", "distributed"}
MAY_IMPORT = {
    "errors": set(),
    "console": set(),
    "files": {"errors"},
    "folders": {"errors", "files"},
    "device": {"console", "errors"},
    "distributed": {"errors"},
    "flags": {"console", "errors"},
    "data": {*GROUND, "data"},
    "model": {*GROUND, "model"},
    "qa": {*GROUND, "data", "qa"},
    "hf": {*GROUND, "hf", "model"},
    "inference": {*GROUND, "data", "model", "qa", "hf"},
    "vectors": {*GROUND, "data", "model", "inference"},
    "fields": set(),
    "settings": {*GROUND, "data", "fields"},
    "reporting": {*GROUND, "data", "qa", "reporting"},
    "training": {
        *GROUND,
        *("flags", "fields", "settings"),
        *("data", "model", "qa", "hf", "inference", "reporting", "training"),
    },
}
"""Verbs (every other module) may import anything."""


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports_of(path: Path) -> set[str]:
    """Every module of ours, and every other package, that a file imports anywhere, functions included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


def ours(path: Path) -> set[str]:
    known = {name_of(module) for module in MODULES}
    return {name for name in imports_of(path) if name in known and name != name_of(path)}


def room(name: str) -> str:
    return name.split(".")[1]


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_arrows_go_one_way(path):
    here = room(name_of(path))
    if here in MAY_IMPORT:
        wrong = {name for name in ours(path) if room(name) not in MAY_IMPORT[here]}
        assert not wrong, f"{name_of(path)} must not import {sorted(wrong)}"


def test_no_cycles():
    graph, done = {name_of(path): ours(path) for path in MODULES}, set()

    def visit(name, trail):
        assert name not in trail, " -> ".join([*trail, name])
        if name not in done:
            for other in sorted(graph[name]):
                visit(other, [*trail, name])
            done.add(name)

    for name in graph:
        visit(name, [])


@pytest.mark.parametrize(
    "path",
    [
        path
        for path in MODULES
        if room(name_of(path)) in ("data", "qa", "reporting", "files", "folders")
        and path.name != "batches.py"
    ],
    ids=name_of,
)
def test_data_qa_reporting_and_files_never_name_torch(path):
    assert not {name for name in imports_of(path) if name.split(".")[0] == "torch"}


@pytest.mark.parametrize(
    "module",
    [
        "bertqa",
        "bertqa.score",
        "bertqa.doctor",
        "bertqa.report",
        "bertqa.data.windows",
        "bertqa.train",
        "bertqa.convert",
        "bertqa.predict",
        "bertqa.prompt",
        "bertqa.embed",
        "bertqa.calibrate",
        "bertqa.reader",
        "bertqa.compat",
        "bertqa.training.command_line",
    ],
)
def test_starts_without_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


ONLY_IN_FILES = {
    ("json", "loads"),
    ("json", "load"),
    ("os", "replace"),
    ("os", "rename"),
    ("tempfile", "mkstemp"),
    ("tempfile", "mkdtemp"),
    ("fcntl", "flock"),
    *(("hashlib", name) for name in ("sha256", "sha1", "md5", "new", "file_digest")),
}
"""One reader of JSON, one writer of files and folders, one checksum of a file, one lock."""

AT_THE_GROUND = ("files", "folders")
"""Where these are."""

REMAINS = {
    ("data.download", "replace"): "a download that goes on where an earlier one stopped",
    ("data.examples", "sha256"): "of a file's content behind gzip",
    ("data.sources", "sha256"): "of a file's content behind gzip",
    ("data.windows", "sha256"): "of arrays",
    ("hf.hub", "sha1"): "git's own, of small files of the Hub",
    ("hf.convert", "sha256"): "of a list of names and checksums",
    ("model.disk", "sha256"): "of a file while it is written, tensor by tensor",
    ("reporting.page", "sha256"): "of the page's own script, which its policy names",
    ("training.distillation", "sha256"): "of arrays, and of a list of names",
}
"""What else uses these, and why."""


def test_files_are_read_and_written_in_one_way():
    found = set()
    for path in MODULES:
        module = name_of(path).removeprefix("bertqa.")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                if (node.value.id, node.attr) in ONLY_IN_FILES and module not in AT_THE_GROUND:
                    found.add((module, node.attr))
    assert found - set(REMAINS) == set(), "use what bertqa/files.py and folders.py have"
    assert set(REMAINS) - found == set(), "these are gone: take them out of REMAINS"


def test_rooms_say_things_and_print_nothing():
    """From Python all that they say can be silenced: console.say, which only the verbs show."""
    found = set()
    for path in MODULES:
        is_room = path.parent != PACKAGE or path.stem in GROUND - {"console"}
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if is_room and isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                if node.func.id == "print":
                    found.add(f"{name_of(path)}:{node.lineno}")
    assert found == set()


def test_five_dependencies():
    allowed = {
        "torch",
        "tokenizers",
        "safetensors",
        "numpy",
        "tqdm",
        "huggingface_hub",
        "matplotlib",
        "onnxruntime",
        *("pyarrow", "zstandard"),  # optional: data in these forms
        "triton",  # part of torch where there is an NVIDIA GPU
        "typing_extensions",  # seen by type checkers alone
    }
    used = {name.split(".")[0] for path in MODULES for name in imports_of(path)}
    assert used - set(sys.stdlib_module_names) - {"bertqa"} <= allowed


def test_the_top_level_is_what_it_should_be():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    top = {line.split("/")[0] for line in listed.stdout.splitlines()}
    assert top <= {
        "setup.cfg",
        "pyproject.toml",
        "MANIFEST.in",
        "bertqa",
        "tests",
        "tools",
        "weights",
        "README.md",
        ".ci",
        ".gitignore",
    }


def test_the_tree_in_the_readme_is_true():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    tree = text.split("## The house", 1)[1].split("```")[1]
    missing = [path.name for path in MODULES if path.stem not in tree]
    assert not missing, f"README's tree lacks {missing}"


def test_public_names_exist_and_are_explained():
    import bertqa

    for name in bertqa.__all__:
        assert getattr(bertqa, name).__doc__, f"{name} has no docstring"
        assert re.search(rf"\b{name}\b", bertqa.__doc__), (
            f"bertqa's docstring does not tell of {name}"
        )
