"""What one layer routed under one plan, summed up on the device that holds its layouts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from sparsemoc.spec.host import host
from sparsemoc.spec.plan import Plan
from sparsemoc.training.array_ops import ArrayOps
from sparsemoc.training.summary import PlanSummary
from sparsemoc.training.tables import Tables


class Tally:
    """The counts of a layer under one plan. Adding never waits for a device; reading does.

    Args:
        plan: the plan of one sample: packed samples are added one by one, each to the tally of its own plan.
        heads: query heads.
        ops: the device's operations.
        tables: the plan's tables there.
    """

    def __init__(self, plan: Plan, heads: int, ops: ArrayOps, tables: Tables) -> None:
        self._plan, self.heads, self._ops, self._tables = plan, heads, ops, tables
        # Of chunks and shots counted from 1.
        self._load = ops.zeros(heads, plan.chunks + 1)
        self._hits = ops.zeros(heads, tables.shots + 1, tables.shots + 1)
        self._routed = ops.zeros(heads)
        self._lengths: Counter[tuple[int, ...] | None] = Counter()
        self._unread: list[Any] = []

    def add(self, selected: Any, key_lengths: Any) -> None:
        """Record the selection of samples.

        Args:
            selected: int32 (rows, heads, queries, slots).
            key_lengths: int32 (rows, segments), or None without padding.
        """
        ops, tables = self._ops, self._tables
        if key_lengths is None:
            self._lengths[None] += selected.shape[0]
            stop = tables.chunk_hi[None]
        else:
            lengths = ops.wide(ops.own(key_lengths)) + 0  # a copy: the caller may use the memory again
            self._unread.append(lengths)
            stop = tables.stops(ops, lengths)
        load, hits, held = self._count(selected, stop)
        # New arrays: those that were made in inference mode may not be written to outside of it.
        self._load = self._load + load.sum(0)
        self._hits = self._hits + hits
        self._routed = self._routed + (load * (stop - tables.chunk_lo)[:, None]).sum((0, -1)) - held

    def _count(self, selected: Any, stop: Any) -> tuple[Any, Any, Any]:
        """Return load (rows, heads, chunks + 1), shot hits, and the keys of routes that are anchors (heads,)."""
        ops, tables, rows = self._ops, self._tables, selected.shape[0]
        load = ops.zeros(rows, self.heads, self._plan.chunks + 1)
        hits, held = ops.zeros(*self._hits.shape), ops.zeros(self.heads)
        static = None if tables.overlap is None else tables.overlap.static(ops, tables.chunk_lo, stop)
        for heads, first, last, shot in self._blocks(selected):
            index = ops.wide(selected[:, heads, first:last]) + 1
            part = load[:, heads]
            _, together, width = part.shape
            base = (ops.arange(rows * together) * width).reshape(rows, together, 1, 1)
            part += ops.histogram(index + base, rows * together * width).reshape(part.shape)
            hits[heads, shot] += ops.rows_with(ops.take(tables.chunk_shot, index), tables.shots + 1).sum(0)
            if tables.overlap is not None:
                held[heads] += tables.overlap.held(ops, index, first, static, tables.chunk_lo, stop).sum(0)
        return load, hits, held

    def _blocks(self, selected: Any) -> Iterator[tuple[slice, int, int, int]]:
        """Cut the work: heads, and queries first ... last - 1 of one shot, of about `most_entries` entries."""
        rows, _, _, slots = selected.shape
        if not rows * slots:
            return
        most = max(1, self._ops.most_entries // (rows * slots))
        for lo, hi, shot in self._tables.parts:
            for first in range(lo, hi, most):
                last = min(first + most, hi)
                together = max(1, most // (last - first))
                for head in range(0, self.heads, together):
                    yield slice(head, min(head + together, self.heads)), first, last, shot

    def read(self) -> PlanSummary:
        """Return the counts on the host."""
        if self._unread:
            for row in np.concatenate([host(lengths) for lengths in self._unread]).tolist():
                self._lengths[tuple(row)] += 1
            self._unread.clear()
        samples = [
            (self._plan.samples[0] if lengths is None else self._plan.sample(0, lengths), times)
            for lengths, times in self._lengths.items()
        ]
        load, hits = host(self._load)[:, 1:], host(self._hits)[:, 1:, 1:]
        return PlanSummary.of(self._plan, samples, load, hits, host(self._routed))
