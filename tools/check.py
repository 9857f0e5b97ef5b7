"""All checks: a virtual environment, lint, tests.

    python tools/check.py [pytest arguments]
"""

import sys

from quickstart import environment, run

# B008: our defaults are frozen dataclasses. UP036: quickstart must explain itself on an old Python.
LINT = ["--line-length", "127", "--select", "E,F,W,I,B,UP", "--ignore", "B008,UP036", "--target-version", "py310",
        "--config", "lint.isort.known-first-party = ['bertqa']"]


def main() -> None:
    """Lint, then test."""
    python = environment("test")
    run(python, "-m", "ruff", "check", "--quiet", *LINT, "bertqa", "tests", "tools")
    run(python, "-m", "pytest", *(sys.argv[1:] or ["-m", "not slow and not gpu", "-q"]))


if __name__ == "__main__":
    main()
