"""Backward: dq, dk and dv of a given layout and a given result of the forward."""

from __future__ import annotations

from typing import Any

from bench.micro import checks
from bench.micro.ready import Ready


def test_backward(ready: Ready, timed: Any) -> None:
    """Compute all gradients; five matrix products of every pair."""

    def check(found: Any) -> None:
        dq, dk, dv = map(ready.take, found)
        checks.rows(ready.named, ready.given, {"dq": dq})
        checks.keys(ready.named, ready.given, dk, dv)

    timed(ready.step("attend_backward"), check, flops=10 * ready.pairs * ready.named.head_dim)
