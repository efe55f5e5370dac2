"""Gradients of every backend: against finite differences of the oracle, and in the corners that draws seldom reach."""

from __future__ import annotations

import numpy as np
import pytest

import sparsemoc as moc
from sparsemoc.testing import checks, oracle
from sparsemoc.testing.implementations import ApiImplementation
from sparsemoc.testing.problems import Problem

STREAM = moc.Stream.multishot(shots=3, frames=2, height=2, width=3, caption=3, prompt=5)
SPEC = moc.RoutingSpec(chunks=moc.Chunks(size=4), top_k=2, anchors=("text", "shot"), causal="chunk")


def _problem(spec: moc.RoutingSpec = SPEC, **changes: object) -> Problem:
    sizes = {"heads": 4, "kv_heads": 2, "head_dim": 8, "v_head_dim": 5, "batch": 2, "data_seed": 7}
    return Problem(spec, (STREAM,), **{**sizes, **changes})  # type: ignore[arg-type]


@pytest.mark.dtype("float64")
@pytest.mark.parametrize("which", ["q", "k", "v"])
def test_finite_differences(backend: str, which: str) -> None:
    """The loss of the oracle under the backend's own selection falls along the backend's gradient as it says."""
    problem = _problem(dtype="float64")
    implementation, arrays = ApiImplementation(backend), problem.arrays
    masks = checks.oracle_masks(problem, implementation.forward(problem).selected)
    direction = np.random.default_rng(3).standard_normal(getattr(arrays, which).shape)

    def loss(step: float) -> float:
        moved = problem.with_arrays(**{which: getattr(arrays, which) + step * direction})
        total = 0.0
        for number, (sample, mask) in enumerate(zip(moved.samples(), masks, strict=True)):
            out, lse = oracle.attention(sample.q, sample.k, sample.v, mask, sample.factor)
            total += float((out * arrays.d_out[number]).sum() + (lse * arrays.d_lse[number]).sum())
        return total

    grad = dict(zip("qkv", implementation.backward(problem), strict=True))[which]
    slope = (loss(1e-5) - loss(-1e-5)) / 2e-5
    assert slope == pytest.approx(float((grad * direction).sum()), rel=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_every_dtype(backend: str, dtype: str) -> None:
    checks.check_backward(ApiImplementation(backend), _problem(dtype=dtype))


@pytest.mark.parametrize("causal", ["none", "chunk", "token"])
@pytest.mark.parametrize("unit", ["token", moc.Block(3)])
def test_every_causal_mode_and_unit(backend: str, causal: str, unit: str | moc.Block) -> None:
    spec = moc.RoutingSpec(chunks=moc.Chunks(size=4), top_k=2, anchors=("chunk",), causal=causal, unit=unit)
    checks.check_backward(ApiImplementation(backend), _problem(spec, q_tokens=20))


def test_without_d_lse_is_with_zeros(backend: str) -> None:
    arrays = _problem().arrays
    q, k, v, d_out = arrays.q, arrays.k, arrays.v, arrays.d_out
    zeros = np.zeros_like(arrays.d_lse)
    without = moc.attention_grads(q, k, v, SPEC, d_out, stream=STREAM, backend=backend, deterministic=True)
    with_zeros = moc.attention_grads(
        q, k, v, SPEC, d_out, stream=STREAM, backend=backend, deterministic=True, d_lse=zeros
    )
    for x, y in zip(without, with_zeros, strict=True):
        assert np.array_equal(x, y)


def test_a_key_nobody_sees_has_no_gradient(backend: str) -> None:
    spec = moc.RoutingSpec(chunks=moc.Chunks(size=4), top_k=0, anchors=("chunk",), dense_queries=())
    problem = _problem(spec, q_tokens=4)
    _, dk, dv = ApiImplementation(backend).backward(problem)
    assert (dk[:, :-4] == 0).all()
    assert (dv[:, :-4] == 0).all()
    assert (dk[:, -4:] != 0).any()


def test_inputs_are_not_written_to(backend: str) -> None:
    arrays = _problem().arrays
    inputs = (arrays.q, arrays.k, arrays.v, arrays.d_out, arrays.d_lse)
    before = [x.copy() for x in inputs]
    for x in inputs:
        x.flags.writeable = False
    grads = moc.attention_grads(*inputs[:3], SPEC, inputs[3], d_lse=inputs[4], stream=STREAM, backend=backend)
    assert all(np.array_equal(x, y) for x, y in zip(inputs, before, strict=True))
    assert not any(np.shares_memory(grad, x) for grad in grads for x in inputs)
