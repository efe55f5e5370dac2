"""Sampled queries: the few rows of a call on which results are compared with the reference, read as NumPy arrays.

Where they lie follows from the sizes alone: a few blocks of neighbouring queries, spread evenly over the valid ones of
the first, the last and (packed) the longest sample, for the first, the middle and the last head; and a padded query.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsemoc.backends import Problem
from sparsemoc.spec.host import host
from sparsemoc.spec.layout import Layout
from sparsemoc.spec.plan import Sample, plan

Floats = NDArray[Any]
Ints = NDArray[np.int64]

#: Blocks over all samples, queries to a block, and (query, key) pairs over all blocks and heads, about, at most.
BLOCKS, QUERIES, PAIRS = 6, 8, 2**18


@dataclass(frozen=True, eq=False)
class Part:
    """The sampled queries of one head of one sample.

    Attributes:
        problem: the whole call.
        index: number of the sample in the batch.
        sample: its place in the arrays, and its plan.
        head: query head; kv_head: the key head that it reads.
        blocks: disjoint ranges of its queries, counted from the sample's first.
    """

    problem: Problem
    index: int
    sample: Sample
    head: int
    blocks: tuple[tuple[int, int], ...]

    @property
    def kv_head(self) -> int:
        """The key head that its head reads."""
        return self.head // self.problem.group

    @property
    def keys(self) -> tuple[int, slice, int]:
        """Where its keys lie in (batch, tokens, heads, head_dim)."""
        start = self.sample.k_row
        return self.sample.row, slice(start, start + self.sample.plan.k_tokens), self.kv_head

    def queries(self, block: tuple[int, int]) -> tuple[int, slice, int]:
        """Return where the queries of a block lie in (batch, tokens, heads, head_dim)."""
        start = self.sample.q_row
        return self.sample.row, slice(start + block[0], start + block[1]), self.head

    def logs(self, block: tuple[int, int]) -> tuple[int, int, slice]:
        """Return where they lie in (batch, heads, tokens)."""
        row, queries, head = self.queries(block)
        return row, head, queries

    def alone(self, block: tuple[int, int], top_k: int, dtype: str) -> Problem:
        """Return the problem of a block and its one head by itself, for the reference."""
        sample = self.sample.plan
        spec = replace(sample.spec, top_k=top_k)
        lo, hi = block
        own = plan(spec, sample.stream, q_start=sample.q_start + lo, q_tokens=hi - lo)
        return replace(
            self.problem, plan=own, framework="numpy", device="cpu", dtype=dtype, batch=1, heads=1, kv_heads=1
        )

    def lengths(self, key_lengths: Any) -> NDArray[np.int32] | None:
        """Return the key_lengths of the sample by itself."""
        if key_lengths is None:
            return None
        return read(key_lengths[self.index : self.index + 1, : len(self.sample.plan.stream.segments)])

    def layout(self, block: tuple[int, int], layout: Layout) -> Layout:
        """Return the layout of a block and its one head by itself."""
        own = self.alone(block, layout.plan.spec.max_top_k, "float64").plan
        selected = read(layout.selected[self.logs(block)])
        return Layout(selected[None, None, :, : own.slots], own, self.lengths(layout.key_lengths))


def samples_of(problem: Problem, key_lengths: Any) -> list[tuple[int, Sample]]:
    """Return the samples to look at, each with its number: the first, the last, and packed the longest too."""
    samples = problem.plan.batch(problem.batch, None if key_lengths is None else read(key_lengths))
    longest = max(range(len(samples)), key=lambda index: samples[index].plan.k_tokens)
    return [(index, samples[index]) for index in sorted({0, longest, len(samples) - 1})]


def heads_of(heads: int) -> list[int]:
    """Return the heads to look at: the first, the middle and the last."""
    return sorted({0, heads // 2, heads - 1})


def spread(count: int, wanted: int) -> Ints:
    """Return at most `wanted` of `count` places, evenly, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, wanted)).round().astype(np.int64))


def parts_of(problem: Problem, key_lengths: Any) -> list[Part]:
    """Return the sampled queries of a call."""
    samples, heads = samples_of(problem, key_lengths), heads_of(problem.heads)
    count = max(2, BLOCKS // len(samples))
    most = PAIRS // (count * len(samples) * len(heads))
    return [
        Part(problem, index, sample, head, blocks)
        for index, sample in samples
        for blocks in (tuple(_blocks(problem, sample, count, most)),)
        for head in heads
    ]


def _blocks(problem: Problem, sample: Sample, count: int, most: int) -> Iterator[tuple[int, int]]:
    """Yield disjoint blocks of about `most` pairs each, at least a query: spread over the valid ones, and a padded."""
    own = sample.plan
    valid = own.valid_keys[own.q_start : own.q_start + own.q_tokens]
    middles, stop = np.flatnonzero(valid), 0
    for middle in middles[spread(len(middles), count)].tolist() if len(middles) else ():
        routed = problem.plan.slots * -(-own.k_tokens // own.chunks)
        keys = max(1, min(len(own.anchors(own.q_start + middle)) + routed, own.k_tokens))
        size = min(max(1, most // keys), QUERIES)
        lo = max(stop, min(middle - size // 2, own.q_tokens - size), 0)
        stop = max(stop, min(max(lo + size, middle + 1), own.q_tokens))
        if lo < stop:
            yield lo, stop
    padded = np.flatnonzero(~valid[stop:])
    if len(padded):
        yield stop + int(padded[0]), stop + int(padded[0]) + 1


def read(array: Any) -> Floats:
    """Return an array, or a slice of one, as NumPy's; torch's bfloat16 as float32, which NumPy lacks."""
    if hasattr(array, "detach"):
        array = array.detach()
        array = (array.float() if str(array.dtype) == "torch.bfloat16" else array).cpu().numpy()
    return host(array)


def wide(array: Any) -> NDArray[np.float64]:
    """Return an array, or a slice of one, as float64."""
    return read(array).astype(np.float64)
