"""The bound on scores holds for float32 computations in any order; the budgets let them pass and stop less."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from sparsemoc.spec.chunks import Chunks
from sparsemoc.spec.routing import RoutingSpec
from sparsemoc.spec.stream import Segment, Stream
from sparsemoc.testing import oracle, tolerance
from sparsemoc.testing.problems import Problem
from sparsemoc.testing.sample import Floats, Sample
from sparsemoc.testing.strategies import problems

_FEW = settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))


def _blocked(x: Floats, size: int) -> Floats:
    """Sum over axis 0 in float32: by blocks, each from its end."""
    parts = [x[start : start + size][::-1].cumsum(axis=0, dtype=np.float32)[-1] for start in range(0, len(x), size)]
    total: Floats = np.array(parts, np.float32).cumsum(axis=0, dtype=np.float32)[-1]
    return total


def _float32_scores(sample: Sample, block: int) -> Floats:
    chunk_of = oracle.tokens_of(sample.spec, sample.stream).chunk
    q, k = sample.q.astype(np.float32), sample.k.astype(np.float32)
    found = np.zeros((sample.heads, len(sample.units), sample.chunks), np.float32)
    for chunk in range(sample.chunks):
        keys = k[sample.valid & (chunk_of == chunk)]
        if not len(keys):
            continue
        mean = _blocked(keys, block) / np.float32(len(keys))
        for number, unit in enumerate(sample.units):
            query = _blocked(q[list(unit.queries)], block) / np.float32(len(unit.queries))
            products = (query * mean[sample.key_heads]).T
            found[:, number, chunk] = _blocked(products, block)
    return found


@pytest.mark.parametrize("block", [1, 3, 1000])
def test_the_bound_holds(block: int) -> None:
    @_FEW
    @given(problems(data=("normal", "integers", "equal", "offset", "signed zeros"), pairs=2**12))
    def check(problem: Problem) -> None:
        for sample in problem.samples():
            table = tolerance.scores_of(sample)
            off = np.abs(_float32_scores(sample, block).astype(np.float64) - table.values)
            assert (off <= table.bounds).all()

    check()


def _tied(k: Floats) -> Sample:
    stream = Stream((Segment("video", len(k)),))
    spec = RoutingSpec(chunks=Chunks(4), top_k=1, anchors=())
    return Sample(spec, stream, np.ones((len(k), 1, k.shape[2])), k, k)


def test_equal_integer_keys_are_decidable_and_others_are_not() -> None:
    whole = _tied(np.full((12, 1, 3), 2.0))
    assert tolerance.decidable(whole) == (12, 12)
    rough = replace(whole, k=np.full((12, 1, 3), 0.3))
    assert tolerance.decidable(rough) == (0, 12)


def test_overflow_decides_nothing_and_nan_decides_all() -> None:
    k = np.arange(1.0, 13.0)[:, None, None] * np.ones((12, 1, 3))
    assert tolerance.decidable(_tied(k)) == (12, 12)
    assert tolerance.decidable(_tied(k * 1e38)) == (0, 12)
    k[5] = np.nan
    assert tolerance.decidable(_tied(k)) == (12, 12)


@pytest.mark.parametrize("name", ["out", "lse", "dq", "dk", "dv"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_the_budget_stops_an_error_of_a_few_roundings(name: str, dtype: str) -> None:
    rng = np.random.default_rng(0)
    whole = _tied(rng.standard_normal((12, 1, 3)))
    sample = replace(whole, q=rng.standard_normal((12, 1, 3)))
    mask = np.ones((1, 12, 12), bool)
    d_out, d_lse = rng.standard_normal((12, 1, 3)), rng.standard_normal((1, 12))
    truth = getattr(tolerance.dense(sample, mask, d_out, d_lse, np.float64), name)
    magnitude = getattr(tolerance.magnitudes(sample, mask, d_out, d_lse, tolerance.unit_roundoff(dtype)), name)
    band = tolerance.band(sample, name, dtype)
    u = tolerance.ROUNDOFF["float64" if dtype == "float64" else "float32" if name == "lse" else dtype]
    assert tolerance.error(truth * (1 + u), truth, magnitude) <= band
    assert tolerance.error(truth + 64 * u * magnitude, truth, magnitude) > band
