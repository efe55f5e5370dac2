"""Progress of a search: what is measured now, the best so far, and the time left."""

from __future__ import annotations

import sys
from collections.abc import Callable

from sparsemoc.spec.errors import SpecError, describe


class Progress:
    """Where the lines go.

    Args:
        write: takes a line of text; None for silence.
    """

    def __init__(self, write: Callable[[str], None] | None) -> None:
        self._write = write

    @classmethod
    def of(cls, given: object) -> Progress:
        """Return the progress that a caller asked for.

        Raises:
            SpecError: it is neither a Progress, a function nor None.
        """
        if isinstance(given, Progress):
            return given
        if given is not None and not callable(given):
            raise SpecError(f"tune: progress must be a function of a line of text, or None, got {describe(given)}.")
        return cls(given)

    def tell(self, line: str) -> None:
        """Write a line."""
        if self._write is not None:
            self._write(line)


def printed(line: str) -> None:
    """Write a line to standard error where a person reads it."""
    if sys.stderr.isatty():
        print(line, file=sys.stderr, flush=True)  # noqa: T201  asked for by `tune`
