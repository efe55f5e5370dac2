"""Route: the best chunks of each query, given the mean keys."""

from __future__ import annotations

from typing import Any

from bench.micro import checks
from bench.micro.ready import Ready


def test_route(ready: Ready, timed: Any) -> None:
    """Score every candidate of every query and keep the top k; only the scores count as operations."""
    named, given = ready.named, ready.given
    flops = 2 * named.head_dim * named.heads * ready.candidates
    timed(ready.step("route"), lambda found: checks.routes(named, given, ready.take(found)), flops=flops)
