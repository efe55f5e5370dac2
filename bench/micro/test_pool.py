"""Pool: the mean key of each chunk."""

from __future__ import annotations

from typing import Any

from bench.micro import checks
from bench.micro.ready import Ready


def test_pool(ready: Ready, timed: Any) -> None:
    """Sum the keys of each chunk; an addition for every number of k."""
    named, given = ready.named, ready.given
    flops = named.tokens * named.kv_heads * named.head_dim
    timed(ready.step("pool"), lambda found: checks.pool(named, given, ready.take(found)), flops=flops)
