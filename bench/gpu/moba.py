"""The composition that MoBA published, by the names of its own parts; see `bench.peers.composition`.

Plans are read once, before a call is timed again; routes are sorted and gathered in every call.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import sparsemoc as moc
from bench.peers.composition import Composition
from bench.peers.router import Router
from bench.peers.sequences import VarLen


@cache
def _router(tokens: int, chunk: int, top_k: int, heads: int, device: str) -> Router:
    stream = moc.Stream((moc.Segment("video", tokens),))
    chunks = moc.Chunks(size=chunk)
    spec = moc.RoutingSpec(stream=stream, chunks=chunks, top_k=top_k, anchors=("chunk",), causal="token")
    return Router(moc.plan(spec), heads, device)


@cache
def _composition(plan: moc.Plan, heads: int, device: str) -> Composition:
    return Composition(plan, heads, device)


def route(q: Any, k: Any, chunk: int, top_k: int) -> Any:
    """Return the top_k earlier chunks of each query by its product with their mean keys, (heads, queries, top_k)."""
    return _router(q.shape[1], chunk, top_k, q.shape[2], q.device.type)(q, k)


class Moba:
    """Attention of batch 1 over the chunks that each query chose, and its own where that is causal.

    Args:
        selected: (heads, queries, slots), chunk numbers, -1 for none.
        plan: the chunks.
        own: whether each query attends to its own chunk too, up to itself: what the plan's anchors say.
        sequences: the attention over sequences, by default torch's.
    """

    def __init__(self, selected: Any, plan: moc.Plan, own: bool, sequences: VarLen | None = None) -> None:
        assert own == (len(plan.samples[0].anchor_rectangles) > 0), "the anchors of the plan say whether"
        heads, device = selected.shape[0], selected.device.type
        self._selected = selected
        self._composition = (
            _composition(plan, heads, device) if sequences is None else Composition(plan, heads, device, sequences)
        )

    def forward(self, q: Any, k: Any, v: Any) -> Any:
        """Return out (1, tokens, heads, head_dim)."""
        return self._composition.forward(q, k, v, self._selected)[0]

    def gradients(self, q: Any, k: Any, v: Any, d_out: Any) -> tuple[Any, Any, Any]:
        """Compute out, and return dq, dk and dv, as q."""
        _, dq, dk, dv = self._composition.gradients(q, k, v, self._selected, d_out)
        return dq, dk, dv
