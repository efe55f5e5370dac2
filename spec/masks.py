"""The way back from a mask to the selection that it expresses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sparsemoc.spec.errors import LayoutError
from sparsemoc.spec.plan import Plan, Sample
from sparsemoc.spec.routing import Block

if TYPE_CHECKING:
    from sparsemoc.spec.layout import Layout

Bools = NDArray[np.bool_]

#: Reads a mask: (batch row, head, first query row, stop) -> bool (rows, keys).
Reader = Callable[[int, int, int, int], Bools]


def layout_of(read: Reader, sizes: tuple[int, int], plan: Plan, key_lengths: NDArray[np.int32] | None) -> Layout:
    """Return the one layout of a plan whose dense mask is a given one.

    Args:
        read: gives the mask, a stretch of queries at a time.
        sizes: batch and heads.
        plan, key_lengths: what the layout is made for.

    Raises:
        LayoutError: a query whose keys are not its anchors and whole candidate chunks.
    """
    from sparsemoc.spec.layout import Layout

    layout = Layout(np.full((*sizes, plan.q_tokens, plan.slots), -1, np.int32), plan, key_lengths)
    added = plan.spec.dropout.into_max if plan.spec.dropout is not None else 0
    for sample in layout.samples():
        keys = slice(sample.k_row, sample.k_row + sample.plan.k_tokens)
        for queries in _stretches(sample):
            stretch = _Stretch(sample, queries)
            rows = slice(stretch.row, stretch.row + len(queries))
            for head, top_k in enumerate(plan.spec.top_k_of(layout.heads)):
                seen = read(sample.row, head, rows.start, rows.stop)
                own = seen[:, keys].copy()
                seen[:, keys] = False
                stretch.refuse(seen, head, "sees a key of another sample")
                chosen = stretch.chosen(own, head, top_k + added)
                layout.selected[sample.row, head, rows] = _ascending(chosen, plan.slots)
    return layout


def _stretches(sample: Sample) -> Iterator[range]:
    """Cut the queries of a sample into stretches of 128 or more that cut no block of queries."""
    plan = sample.plan
    unit = plan.spec.unit.n if isinstance(plan.spec.unit, Block) else 1
    start, stop = plan.q_start, plan.q_start + plan.q_tokens
    for lo, hi in pairwise(plan.chunk_bounds.tolist()):
        for end in range(lo + unit, hi + unit, unit):
            if min(end, hi, stop) - start >= 128:
                yield range(start, min(end, hi, stop))
                start = min(end, hi, stop)
    if start < stop:
        yield range(start, stop)


class _Stretch:
    """Neighbouring queries, and what their anchors and candidates leave a mask to say."""

    def __init__(self, sample: Sample, queries: range) -> None:
        plan = sample.plan
        self._sample = sample
        self.row = queries.start - plan.q_start + sample.q_row
        self._anchored = np.zeros((len(queries), plan.k_tokens), bool)
        self._candidate = np.zeros((len(queries), plan.chunks), bool)
        for index, query in enumerate(queries):
            self._anchored[index, plan.anchors(query)] = True
            self._candidate[index, plan.candidates(query)] = True
        self._free = self._per_chunk(~self._anchored & plan.valid_keys)
        inside = (plan.unit_lo >= queries.start) & (plan.unit_lo < queries.stop)
        self._units = list(zip(plan.unit_lo[inside] - queries.start, plan.unit_hi[inside] - queries.start, strict=True))

    def _per_chunk(self, keys: Bools) -> NDArray[np.int64]:
        return np.add.reduceat(keys, self._sample.plan.chunk_bounds[:-1], axis=1, dtype=np.int64)

    def chosen(self, seen: Bools, head: int, most: int) -> Bools:
        """Return (queries, chunks): the routes that make these queries see exactly the keys in `seen`."""
        extra = seen & ~self._anchored
        found = self._per_chunk(extra)
        chosen = found > 0
        for lo, hi in self._units:  # a member whose anchors cover a chunk does not show whether its block chose it
            chosen[lo:hi] = chosen[lo:hi].any(axis=0)
        self.refuse(self._anchored & ~seen, head, "does not see all of its anchors")
        self.refuse(extra & ~self._sample.plan.valid_keys, head, "sees a padded key")
        self.refuse(chosen & ~self._candidate, head, "sees keys of a chunk that is no candidate of it")
        self.refuse(chosen & (found != self._free), head, "or one of its block sees a part of a chunk")
        self.refuse(
            chosen.sum(axis=1, keepdims=True) > most, head, f"sees more chunks than the {most} that the spec allows"
        )
        return chosen

    def refuse(self, wrong: Bools, head: int, what: str) -> None:
        """Raise LayoutError for the first query of `wrong` (queries, anything) that is wrong anywhere."""
        if wrong.any():
            query = self.row + int(np.argwhere(wrong)[0, 0])
            place = f"batch {self._sample.row}, head {head}, query {query}"
            raise LayoutError(
                f"from_block_mask: block_mask must be anchors and whole candidate chunks of the plan, got {place}, "
                f"which {what}. Hint: no layout of this plan can express it; change the spec."
            )


def _ascending(chosen: Bools, slots: int) -> NDArray[np.int32]:
    """Return the chosen chunks of each row in order, -1 beyond their count."""
    out = np.full((len(chosen), slots), -1, np.int32)
    row, chunk = np.nonzero(chosen)
    out[row, np.cumsum(chosen, axis=1)[row, chunk] - 1] = chunk
    return out
