"""Attend: out and lse of a given layout."""

from __future__ import annotations

from typing import Any

from bench.micro import checks
from bench.micro.ready import Ready


def test_attend(ready: Ready, timed: Any) -> None:
    """Attend to anchors and routes; two matrix products of every pair."""

    def check(found: Any) -> None:
        checks.rows(ready.named, ready.given, {"out": ready.take(found.out), "lse": ready.take(found.lse)})

    timed(ready.step("attend"), check, flops=4 * ready.pairs * ready.named.head_dim)
