"""Call: what one call of attention costs where there is next to nothing to compute."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import sparsemoc as moc
from bench.micro import checks, sizes
from bench.micro.ready import Ready


def test_call(ready: Ready, timed: Any) -> None:
    """Route and attend over 40 tokens through the public function, whatever the size: its time is overhead."""
    named, given = sizes.problem(sizes.TINY), sizes.given(sizes.TINY, ready.dtype)
    q, k, v = (ready.give(array) for array in (given.arrays.q, given.arrays.k, given.arrays.v))

    def call() -> Any:
        return moc.attention(q, k, v, named.spec, backend=ready.backend.name, return_layout=True)

    def check(found: Any) -> None:
        out, layout = found
        selected = ready.take(layout.selected)
        checks.routes(named, given, selected)
        checks.rows(named, replace(given, selected=selected), {"out": ready.take(out)})

    timed(ready.waiting(call), check)
