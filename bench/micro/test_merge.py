"""Merge: partial results of anchors and routes are put together by their lse."""

from __future__ import annotations

from typing import Any

from bench.micro import checks
from bench.micro.merging import MERGES
from bench.micro.ready import Ready


def test_merge(ready: Ready, timed: Any) -> None:
    """Merge what the kernels of one call have left, where that is a step of its own."""

    def check(found: Any) -> None:
        checks.rows(ready.named, ready.given, {"out": ready.take(found.out), "lse": ready.take(found.lse)})

    timed(MERGES[ready.backend.name](ready), check)
