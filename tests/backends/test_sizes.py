"""Sizes beyond what the strategies draw: lengths around the tiles of kernels, wide heads, many chunks, one query."""

from __future__ import annotations

from typing import Any

import pytest

import sparsemoc as moc
from sparsemoc.testing import checks
from sparsemoc.testing.implementations import ApiImplementation
from sparsemoc.testing.problems import Problem


def _check(backend: str, problem: Problem) -> None:
    implementation = ApiImplementation(backend)
    checks.check_selection(implementation, problem)
    checks.check_dropout(implementation, problem)
    checks.check_forward(implementation, problem)
    checks.check_backward(implementation, problem)


def _problem(spec: moc.RoutingSpec, *segments: moc.Segment, **changes: Any) -> Problem:
    sizes = {"heads": 2, "head_dim": 32, "v_head_dim": 32, "data_seed": 3}
    return Problem(spec, (moc.Stream(segments),), **{**sizes, **changes})


@pytest.mark.parametrize("size", [31, 32, 33, 63, 64, 65, 127, 128, 129])
@pytest.mark.parametrize("causal", ["chunk", "token"])
def test_chunks_around_tiles(backend: str, size: int, causal: str) -> None:
    spec = moc.RoutingSpec(
        chunks=moc.Chunks(size=size, tail="short"), top_k=2, anchors=("text", "chunk"), causal=causal
    )
    _check(backend, _problem(spec, moc.Segment("text", 17), moc.Segment("video", 3 * size + 1)))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize(("head_dim", "v_head_dim"), [(64, 64), (80, 80), (128, 128), (129, 65), (256, 256)])
def test_wide_heads(backend: str, dtype: str, head_dim: int, v_head_dim: int) -> None:
    spec = moc.RoutingSpec(chunks=moc.Chunks(size=24), top_k=2, anchors=("chunk",))
    _check(backend, _problem(spec, moc.Segment("video", 150), head_dim=head_dim, v_head_dim=v_head_dim, dtype=dtype))


@pytest.mark.parametrize("top_k", [1, 8, 33, 70])
@pytest.mark.parametrize("data", ["normal", "integers", "equal"])
def test_many_chunks(backend: str, top_k: int, data: str) -> None:
    spec = moc.RoutingSpec(chunks=moc.Chunks(size=2), top_k=top_k, anchors=("chunk",))
    _check(backend, _problem(spec, moc.Segment("video", 301), q_tokens=40, data=data, head_dim=8))


def test_many_chunks_with_dropout(backend: str) -> None:
    dropout = moc.RouteDropout(off=0.8, into=3.0, into_max=6)
    spec = moc.RoutingSpec(chunks=moc.Chunks(size=2), top_k=20, anchors=("chunk",), dropout=dropout)
    _check(backend, _problem(spec, moc.Segment("video", 301), q_tokens=40, training=True, seed=2**40 + 1, head_dim=8))


@pytest.mark.parametrize("q_start", [0, 150, 299])
def test_one_query(backend: str, q_start: int) -> None:
    spec = moc.RoutingSpec(chunks=moc.Chunks(size=16), top_k=3, anchors=("chunk",), causal="token")
    _check(backend, _problem(spec, moc.Segment("video", 300), q_tokens=1, q_start=q_start, batch=3))


@pytest.mark.parametrize("unit", [moc.Block(16), moc.Block(50)])
def test_blocks_of_queries(backend: str, unit: moc.Block) -> None:
    spec = moc.RoutingSpec(chunks=moc.Chunks(size=48), top_k=2, anchors=("chunk", moc.window(20)), unit=unit)
    lengths = ((20, 100, 0, 90),)
    segments = (moc.Segment("text", 20), *(moc.Segment("video", 100, shot=shot) for shot in range(3)))
    _check(backend, _problem(spec, *segments, key_lengths=lengths, q_tokens=290))


@pytest.mark.parametrize("nominal", [9, 17, 33, 65, 129])
@pytest.mark.parametrize("valid", [1, 8, 16, 17, 40])
def test_chunks_mostly_of_padding(backend: str, nominal: int, valid: int) -> None:
    """What is valid fills fewer vectors or tiles than the chunk has room for."""
    spec = moc.RoutingSpec(chunks=moc.Chunks(size=None), top_k=1, anchors=("chunk",))
    segments = [moc.Segment("video", nominal), moc.Segment("video", 5), moc.Segment("video", nominal)]
    _check(backend, _problem(spec, *segments, key_lengths=((valid, 5, min(valid, nominal) // 2),)))


def test_eight_query_heads_to_a_key_head(backend: str) -> None:
    spec = moc.RoutingSpec(chunks=moc.Chunks(size=20), top_k=2, anchors=("shot",), causal="chunk")
    segments = [moc.Segment("video", grid=(3, 4, 5), shot=shot) for shot in range(3)]
    _check(backend, _problem(spec, *segments, heads=16, kv_heads=2))


def test_packed_samples_of_unequal_length(backend: str) -> None:
    spec = moc.RoutingSpec(chunks=moc.Chunks(size=33), top_k=2, anchors=("text", "chunk"), causal="chunk")
    streams = tuple(moc.Stream((moc.Segment("text", 9), moc.Segment("video", n))) for n in (1, 200, 64, 130))
    _check(backend, Problem(spec, streams, packed=True, heads=4, kv_heads=2, head_dim=32, v_head_dim=16, data_seed=1))
