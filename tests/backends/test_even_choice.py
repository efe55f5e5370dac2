"""Keys that carry no information must not be chosen by the length of their chunk.

Keys and queries are independent standard normals. The mean of n keys has variance 1 / n, so a chunk of fewer tokens has
scores of wider spread and wins more often: this is why cuts are balanced. With balanced cuts the lengths differ by at
most one, and every chunk should be taken with nearly the same probability.

Statistics: each of `TRIALS` draws is one batch row with fresh keys; it gives the share of its queries that took chunk
c. Queries of a row share the keys, so their choices are not independent; rows are. With p_c the mean over rows and s_c
the standard deviation over rows, t_c = (p_c - 1 / C) / (s_c / sqrt(TRIALS)) is nearly standard normal if the choice is
even. The sum of t_c^2 over C chunks has mean near C and a deviation near sqrt(2 C); we allow C + 6 sqrt(2 C). An uneven
choice shows in the same number: with short tails (4 tokens against 16) it must exceed that bound many times.
"""

from __future__ import annotations

import numpy as np
import pytest

import sparsemoc as moc

TRIALS = 400
TOKENS = 100


def _statistic(backend: str, chunks: moc.Chunks) -> tuple[float, int]:
    rng = np.random.default_rng(5)
    q = rng.standard_normal((TRIALS, 32, 1, 8), np.float32)
    k = rng.standard_normal((TRIALS, TOKENS, 1, 8), np.float32)
    stream = moc.Stream((moc.Segment("video", TOKENS),))
    spec = moc.RoutingSpec(chunks=chunks, top_k=1, anchors=())
    layout = moc.route(q, k, spec, stream=stream, backend=backend)
    count = layout.plan.chunks
    shares = np.stack([(layout.selected[:, 0, :, 0] == chunk).mean(axis=1) for chunk in range(count)])
    t = (shares.mean(axis=1) - 1 / count) / (shares.std(axis=1, ddof=1) / TRIALS**0.5)
    return float((t**2).sum()), count


@pytest.mark.parametrize("size", [15, 16, 17])
def test_balanced_chunks_are_chosen_evenly(backend: str, size: int) -> None:
    found, count = _statistic(backend, moc.Chunks(size=size))
    assert found <= count + 6 * (2 * count) ** 0.5


def test_the_statistic_sees_a_short_tail(backend: str) -> None:
    found, count = _statistic(backend, moc.Chunks(size=16, tail="short"))
    assert found > 5 * (count + 6 * (2 * count) ** 0.5)
