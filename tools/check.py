"""Run all checks in a virtual environment: format, lint, tests.

python tools/check.py [pytest arguments]
"""

import sys

from quickstart import environment, run

FOLDERS = ("bertqa", "tests", "tools")


def main() -> None:
    """Check format and lint, whose settings are in pyproject.toml, then run the tests."""
    python = environment("test")
    run(python, "-m", "ruff", "format", "--quiet", "--check", *FOLDERS)
    run(python, "-m", "ruff", "check", "--quiet", *FOLDERS)
    run(python, "-m", "pytest", *(sys.argv[1:] or ["-m", "not slow and not gpu", "-q"]))


if __name__ == "__main__":
    main()
