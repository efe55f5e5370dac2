"""Plan: a spec of several shots is compiled for the lengths of a call."""

from __future__ import annotations

from typing import Any

from bench.micro import checks, sizes
from sparsemoc.spec.compile import compile_sample


def test_plan(size: str, timed: Any) -> None:
    """Compile chunks, anchors and candidates; a call finds them in a cache where they were asked for before."""
    named = sizes.problem(size)
    lengths = tuple(segment.tokens for segment in named.stream.segments)

    def call() -> Any:
        return compile_sample.__wrapped__(named.spec, named.stream, 0, named.tokens, lengths)

    timed(call, lambda compiled: checks.plan(named, compiled))
