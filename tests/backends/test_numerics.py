"""Extremes of every dtype: large and small numbers, offsets, ties, one key, empty rows."""

from __future__ import annotations

import numpy as np
import pytest

import sparsemoc as moc
from sparsemoc.testing import checks
from sparsemoc.testing.implementations import ApiImplementation
from sparsemoc.testing.problems import DATA, Problem, dtype_of

DTYPES = ("float16", "bfloat16", "float32", "float64")
STREAM = moc.Stream((moc.Segment("text", 5), moc.Segment("video", 23), moc.Segment("video", 18)))
SPEC = moc.RoutingSpec(chunks=moc.Chunks(size=5), top_k=2, anchors=("text", "chunk"))


def _problem(dtype: str, **changes: object) -> Problem:
    sizes = {"heads": 2, "head_dim": 16, "v_head_dim": 16, "data_seed": 11, "dtype": dtype}
    return Problem(SPEC, (STREAM,), **{**sizes, **changes})  # type: ignore[arg-type]


def _check(backend: str, problem: Problem) -> None:
    implementation = ApiImplementation(backend)
    checks.check_selection(implementation, problem)
    checks.check_forward(implementation, problem)
    if problem.data != "huge queries":
        checks.check_backward(implementation, problem)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("data", DATA)
def test_every_kind_of_data_in_every_dtype(backend: str, dtype: str, data: str) -> None:
    _check(backend, _problem(dtype, data=data))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("factor", [2.0**-14, 2.0**-8, 2.0**6])
def test_other_magnitudes(backend: str, dtype: str, factor: float) -> None:
    problem = _problem(dtype)
    arrays = problem.arrays
    scaled = {name: (getattr(arrays, name).astype(np.float64) * factor).astype(dtype_of(dtype)) for name in "qkv"}
    _check(backend, problem.with_arrays(**scaled))


@pytest.mark.parametrize("dtype", DTYPES)
def test_values_at_the_top_of_the_range(backend: str, dtype: str) -> None:
    """A softmax of values near the largest number is no larger than they are."""
    problem = _problem(dtype)
    most = float(np.finfo(np.float16).max if dtype == "float16" else 2.0**100)
    v = (np.sign(problem.arrays.v.astype(np.float64)) * most).astype(dtype_of(dtype))
    spoiled = problem.with_arrays(v=v)
    checks.check_forward(ApiImplementation(backend), spoiled)
    assert np.isfinite(ApiImplementation(backend).forward(spoiled).out.astype(np.float64)).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_key_gives_its_value(backend: str, dtype: str) -> None:
    stream = moc.Stream((moc.Segment("video", 1),))
    problem = Problem(SPEC, (stream,), head_dim=3, v_head_dim=3, dtype=dtype)
    got = ApiImplementation(backend).forward(problem)
    assert np.array_equal(got.out, problem.arrays.v)
    _check(backend, problem)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_batch_of_padding_alone(backend: str, dtype: str) -> None:
    problem = _problem(dtype, key_lengths=((0, 0, 0),))
    got = ApiImplementation(backend).forward(problem)
    assert (got.out == 0).all()
    assert (got.lse == -np.inf).all()
    assert (got.selected == -1).all()
    assert all((grad == 0).all() for grad in ApiImplementation(backend).backward(problem))


@pytest.mark.parametrize("top_k", [0, 1, 1000])
@pytest.mark.parametrize("scale", [0.0, -1.0, 4.0])
def test_any_scale_and_top_k(backend: str, top_k: int, scale: float) -> None:
    spec = moc.RoutingSpec(chunks=moc.Chunks(size=5), top_k=top_k, anchors=("chunk",))
    _check(backend, _problem("float32", scale=scale).but(spec=spec))


@pytest.mark.dtype("float64")
def test_lse_of_float64_is_float64(backend: str) -> None:
    got = ApiImplementation(backend).forward(_problem("float64", data="offset"))
    assert got.lse.dtype == np.float64
    assert (got.lse != got.lse.astype(np.float32)).any()


def test_infinities_and_nan_are_no_surprise(backend: str) -> None:
    """What they make comes back without a warning, which the tests would take for an error."""
    q, k, v = np.random.default_rng(0).standard_normal((3, 1, 24, 2, 4), np.float32)
    k[0, 3], v[0, 5], q[0, 7] = np.inf, np.nan, -np.inf
    spec = moc.RoutingSpec(chunks=moc.Chunks(size=6), top_k=1, anchors=("chunk",))
    out = moc.attention(q, k, v, spec, backend=backend)
    grads = moc.attention_grads(q, k, v, spec, np.ones_like(out), backend=backend)
    assert np.isnan(out[0, 5]).all()
    assert all(np.isnan(grad).any() for grad in grads)
