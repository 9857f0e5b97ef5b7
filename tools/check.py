"""All checks: a virtual environment, lint, tests.

    python tools/check.py [pytest arguments]
"""

import sys

from quickstart import environment, run


def main() -> None:
    """Lint, then test."""
    python = environment("test")
    run(python, "-m", "ruff", "check", ".")
    run(python, "-m", "pytest", *(sys.argv[1:] or ["-m", "not slow and not gpu", "-q"]))


if __name__ == "__main__":
    main()
