"""The properties of centroids and of the Layout: pooling, the chunk-major form, the counts."""

from __future__ import annotations

import numpy as np

from sparsemoc.testing import checks, oracle
from sparsemoc.testing.checks import expect
from sparsemoc.testing.implementations import Implementation
from sparsemoc.testing.problems import Problem


def check_pool(implementation: Implementation, problem: Problem) -> None:
    """Centroids are float32 means of the valid keys, within the bound that the scores assume."""
    got = implementation.pool(problem)
    expect(got.dtype == np.float32, f"centroids must be float32, got {got.dtype}")
    start = 0
    for number, sample in enumerate(problem.samples()):
        wanted = oracle.centroids(sample).transpose(1, 0, 2)
        size = oracle.centroids(sample, np.abs(sample.k)).transpose(1, 0, 2)
        row, place = (0, slice(start, start + sample.chunks)) if problem.packed else (number, slice(None))
        start += sample.chunks
        found = got[row, :, place].astype(np.float64)
        expect(found.shape == wanted.shape, f"centroids of sample {number}: {found.shape}, must be {wanted.shape}")
        n = np.bincount(oracle.tokens_of(sample.spec, sample.stream).chunk, minlength=sample.chunks)[None, :, None]
        expect((np.isnan(found) == np.isnan(wanted)).all(), "a NaN key must show in its centroid, and there alone")
        with np.errstate(invalid="ignore"):
            far = np.abs(found - wanted) > 1.01 * (n + 2) * 2.0**-24 * size + n * 2.0**-126
        expect(
            not far.any(), f"sample {number}: centroids are off at (head, chunk, dim) {np.argwhere(far)[:3].tolist()}"
        )


def check_transpose(implementation: Implementation, problem: Problem) -> None:
    """The chunk-major form holds every (chunk, query, slot) once, queries ascending, and gives the selection back."""
    got = implementation.forward(problem)
    if got.layout is None:
        return
    got.layout.validate()
    shifted, start = got.selected.copy(), 0
    for rows, sample in zip(checks.selections(problem, shifted), problem.samples(), strict=True):
        rows[rows >= 0] += start
        start += sample.chunks if problem.packed else 0
    turned = got.layout.chunk_major()
    found = np.full_like(shifted, -1)
    for b, h in np.ndindex(*turned.ptr.shape[:2]):
        for chunk, (lo, hi) in enumerate(zip(turned.ptr[b, h, :-1], turned.ptr[b, h, 1:], strict=True)):
            expect((np.diff(turned.query[lo:hi]) > 0).all(), f"chunk {chunk}: queries do not ascend")
            found[b, h, turned.query[lo:hi], turned.slot[lo:hi]] = chunk
    expect(np.array_equal(found, shifted), "chunk-major and back is not the selection")
    expect(len(turned.query) == (shifted >= 0).sum(), "chunk-major holds a pair twice")


def check_counts(implementation: Implementation, problem: Problem) -> None:
    """Pairs, density and FLOPs count the mask: anchors and dense rows too, each key once, padding nowhere."""
    got = implementation.forward(problem)
    if got.layout is None:
        return
    pairs = int(got.mask.sum())
    full = sum(int(s.valid_queries.sum()) * int(s.valid.sum()) for s in problem.samples()) * problem.heads
    expect(got.layout.pairs() == pairs, f"pairs() is {got.layout.pairs()}, the mask has {pairs}")
    density, wanted = got.layout.density(), pairs / full if full else 0.0
    expect(abs(density - wanted) <= 1e-12, f"density() is {density}, the mask has {wanted}")
    flops = 2 * pairs * (problem.head_dim + problem.v_head_dim)
    expect(got.layout.flops(problem.head_dim, problem.v_head_dim) == flops, f"flops() must be {flops}")
