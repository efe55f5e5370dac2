"""Index: routes by query become routes by chunk, a counting sort that keeps the order of queries."""

from __future__ import annotations

from typing import Any

from bench.micro import checks
from bench.micro.indexing import INDEXES
from bench.micro.ready import Ready


def test_index(ready: Ready, timed: Any) -> None:
    """Sort for both passes, or, where the passes cut queries differently, for the backward."""
    _index("index", ready, timed)


def test_index_forward(ready: Ready, timed: Any) -> None:
    """Sort for the forward."""
    _index("index_forward", ready, timed)


def _index(kind: str, ready: Ready, timed: Any) -> None:
    index, selected = INDEXES[ready.backend.name][kind](ready), ready.given.selected[0]
    timed(index.step, lambda found: checks.index(selected, index.blocks, index.entries(found)))
