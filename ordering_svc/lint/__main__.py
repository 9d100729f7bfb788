"""`python -m ordering_svc.lint`, which is what `loramux ordering lint` runs."""

from __future__ import annotations

import sys

EXIT_UNUSABLE = 2


def main() -> int:
    """Run the command; without what it needs, say how to get it."""
    try:
        from ordering_svc.lint.command import app
    except ModuleNotFoundError as error:
        sys.stderr.write(f"error: lint needs the package {error.name}: pip install 'loramux[ordering]'\n")
        return EXIT_UNUSABLE
    app(prog_name="loramux ordering lint")
    return 0


if __name__ == "__main__":
    sys.exit(main())
