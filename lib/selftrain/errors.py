"""The one error that a user can mend: a single line that names file, line and fix."""

from __future__ import annotations

import sys
from collections.abc import Callable


class InputError(ValueError):
    """Input that has to change before anything expensive starts. Its text is one line."""


def run_command(main: Callable[[], int | None]) -> None:
    """Run a command's `main`, turning an `InputError` into one line on stderr and exit status 1."""
    try:
        sys.exit(main() or 0)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
