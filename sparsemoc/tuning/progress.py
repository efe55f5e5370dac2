"""Progress of a search: what is measured now, the best so far, and the time left; as lines of text."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from sparsemoc.spec.errors import SpecError, describe
from sparsemoc.tuning.outcome import fields_of
from sparsemoc.tuning.work import Work


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


def titled(work: Work) -> str:
    """Return a few words for an operation and its problem."""
    problem, plan = work.problem, work.problem.plan
    tokens = f"{plan.q_tokens}" if plan.q_tokens == plan.k_tokens else f"{plan.q_tokens} x {plan.k_tokens}"
    heads = f"{problem.heads}" if problem.group == 1 else f"{problem.heads}/{problem.kv_heads}"
    batch = f"batch {problem.batch}, " if problem.batch > 1 else ""
    return (
        f"{work.backend.name} {work.operation}: {batch}{tokens} tokens, {heads} heads x {problem.head_dim}, "
        f"{problem.dtype}"
    )


def changed(config: Any, default: Any) -> str:
    """Return the fields in which a config differs from the default."""
    own, usual = fields_of(config), fields_of(default)
    return ", ".join(f"{name}={value}" for name, value in own.items() if value != usual.get(name)) or "default"


def duration(seconds: float) -> str:
    """Return a time: 12.3 us, 4.56 ms, 7.89 s."""
    for unit, size in (("us", 1e-6), ("ms", 1e-3)):
        if seconds < 999.5 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s" if seconds < 999.5 else f"{seconds:,.0f} s"
