"""The forward kernels against the oracle, for selections that the reference backend makes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from sparsemoc.backends import protocol
from sparsemoc.backends.reference import BACKEND as REFERENCE
from sparsemoc.backends.triton.config import TritonConfig
from sparsemoc.backends.triton.device import device_tables
from sparsemoc.backends.triton.forward import attend
from sparsemoc.backends.triton.lengths import ends_of
from sparsemoc.spec.anchors import First, Window
from sparsemoc.spec.chunks import Chunks
from sparsemoc.spec.plan import Plan, plan
from sparsemoc.spec.routing import Block, RoutingSpec
from sparsemoc.spec.stream import Segment, Stream
from sparsemoc.testing import checks
from sparsemoc.testing.libraries import library
from sparsemoc.testing.problems import Problem
from sparsemoc.testing.strategies import partial_anchors, problems

CPU = torch.device("cpu")
TORCH = library("torch", "cpu")
DTYPES = ("float32", "float16", "bfloat16")
SMALL = TritonConfig(
    anchor_rows=16, anchor_keys=16, anchor_split=32, anchor_union=2, routed_rows=16, routed_keys=16, merge_rows=16
)


def configs() -> st.SearchStrategy[TritonConfig]:
    tiles = st.sampled_from((16, 32))
    return st.builds(
        TritonConfig,
        anchor_rows=tiles,
        anchor_keys=tiles,
        anchor_split=st.sampled_from((16, 48, 16384)),
        anchor_union=st.sampled_from((1, 2, 1000)),
        routed_rows=tiles,
        routed_keys=tiles,
        merge_rows=st.just(16),
        merge_float32=st.booleans(),
    )


def plan_of(problem: Problem) -> Plan:
    if problem.packed:
        return plan(problem.spec, problem.streams)
    return plan(problem.spec, problem.streams[0], q_start=problem.q_start, q_tokens=problem.queries)


def call_of(problem: Problem, options: protocol.Options | None = None) -> protocol.Problem:
    return protocol.Problem(
        plan=plan_of(problem),
        framework="torch",
        device="cpu",
        dtype=problem.dtype,
        batch=problem.batch,
        heads=problem.heads,
        kv_heads=problem.kv_heads,
        head_dim=problem.head_dim,
        v_head_dim=problem.v_head_dim,
        options=options or protocol.Options(),
    )


def routes(problem: Problem) -> np.ndarray[Any, Any]:
    call, lengths = call_of(problem), problem.key_length_array()
    q, k = (x[None] if problem.packed else x for x in (problem.arrays.q, problem.arrays.k))
    with np.errstate(all="ignore"):
        centroids = REFERENCE.pool(call, k, lengths)
        return REFERENCE.route(call, q, centroids, lengths, None)


def shown(problem: Problem, x: Any) -> Any:
    tensor = TORCH.give(x)[None] if problem.packed else TORCH.give(x)
    if problem.strides == "transposed":
        return tensor.transpose(1, 2).contiguous().transpose(1, 2)
    if problem.strides == "sliced":
        wide = torch.full((*tensor.shape[:-1], 2 * tensor.shape[-1]), float("nan"), dtype=tensor.dtype)
        wide[..., ::2] = tensor
        return wide[..., ::2]
    return tensor[:, :, :1].expand(tensor.shape) if problem.strides == "broadcast" else tensor


def run(
    problem: Problem,
    selected: np.ndarray[Any, Any],
    config: TritonConfig = SMALL,
    options: protocol.Options | None = None,
) -> tuple[Any, Any]:
    call, lengths = call_of(problem, options), problem.key_length_array()
    tables = device_tables(call.plan, lengths is not None, CPU)
    ends = ends_of(tables.geometry, tables.keys, None if lengths is None else torch.from_numpy(lengths))
    q, k, v = (shown(problem, x) for x in (problem.arrays.q, problem.arrays.k, problem.arrays.v))
    scale = problem.head_dim**-0.5 if problem.scale is None else problem.scale
    with np.errstate(all="ignore"):
        out, lse = attend(call, tables, q, k, v, torch.from_numpy(selected), ends, scale, config)
    out, lse = TORCH.take(out), TORCH.take(lse)
    return (out[0], lse[0]) if problem.packed else (out, lse)


def check(problem: Problem, config: TritonConfig = SMALL, options: protocol.Options | None = None) -> None:
    selected = routes(problem)
    out, lse = run(problem, selected, config, options)
    with np.errstate(all="ignore"):
        checks.check_output(problem, checks.oracle_masks(problem, selected), out, lse)


def movie(frames: int = 3, tokens: int = 7) -> Stream:
    shots = [Segment("video", shot=shot, grid=(frames, 1, tokens)) for shot in (0, 1)]
    return Stream((Segment("text", 5), Segment("text", 3, shot=0), shots[0], Segment("text", 2, shot=1), shots[1]))


def problem_of(anchors: tuple[Any, ...] = ("text", "chunk"), **changes: Any) -> Problem:
    fields: dict[str, Any] = {"chunks": Chunks(size=9), "top_k": 2, "anchors": anchors}
    fields |= {name: changes.pop(name) for name in ("causal", "unit", "top_k", "dense_queries") if name in changes}
    spec = RoutingSpec(**fields)
    shape: dict[str, Any] = {"streams": (movie(),), "heads": 2, "kv_heads": 1, "head_dim": 8, "v_head_dim": 12}
    return Problem(spec=spec, **shape | changes)


@hypothesis.settings(max_examples=10)
@hypothesis.given(problem=problems(dtypes=DTYPES, dropout=False, pairs=2**11), config=configs())
def test_matches_the_oracle(problem: Problem, config: TritonConfig) -> None:
    check(problem, config)


@hypothesis.settings(max_examples=5)
@hypothesis.given(
    problem=problems(dtypes=DTYPES, dropout=False, pairs=2**11, anchor=partial_anchors()), config=configs()
)
def test_matches_the_oracle_where_anchors_hold_a_part_of_a_chunk(problem: Problem, config: TritonConfig) -> None:
    check(problem, config)


@hypothesis.settings(max_examples=5)
@hypothesis.given(
    problem=problems(dtypes=DTYPES, dropout=False, pairs=2**11, data=("nan key", "nan value", "nan query")),
    config=configs(),
)
def test_nan_shows_where_it_is_seen_and_nowhere_else(problem: Problem, config: TritonConfig) -> None:
    check(problem, config)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("strides", ["plain", "transposed", "sliced", "broadcast"])
def test_any_strides(dtype: str, strides: str) -> None:
    check(problem_of(dtype=dtype, strides=strides, batch=2, v_head_dim=5))


@pytest.mark.parametrize(
    "changes",
    [
        {"anchors": ("shot",), "q_start": 4, "q_tokens": 30},
        {"anchors": (Window(6),)},
        {"anchors": (Window(6),), "causal": "token"},
        {"anchors": (First(4), "frame"), "top_k": 9},
        {"anchors": (), "top_k": 0},
        {"anchors": (), "causal": "chunk", "dense_queries": ()},
        {"anchors": (Window(4), First(3)), "unit": Block(4)},
        {"anchors": ("text", "chunk"), "unit": Block(4), "causal": "token"},
        {"scale": 0.0},
        {"scale": -0.7},
    ],
)
@pytest.mark.parametrize("union", [2, 1000])
def test_specs(changes: dict[str, Any], union: int) -> None:
    check(problem_of(**{"anchors": ("text", "chunk"), **changes}), replace(SMALL, anchor_union=union))


@pytest.mark.parametrize("unit", ["token", Block(6)])
def test_padding_changes_no_bit(unit: Any) -> None:
    lengths = ((5, 1, 15, 0, 21), (2, 3, 0, 2, 8))
    problem = problem_of(anchors=("text", "shot", Window(3)), unit=unit, batch=2, key_lengths=lengths)
    check(problem)
    selected, arrays = routes(problem), problem.arrays
    spoiled = {}
    for name in ("q", "k", "v"):
        x = getattr(arrays, name).copy()
        for row, sample in enumerate(problem.samples()):
            x[row, ~sample.valid] = np.nan
        spoiled[name] = x
    got, wanted = run(problem.with_arrays(**spoiled), selected), run(problem, selected)
    assert checks.same_bits(got[0], wanted[0])
    assert checks.same_bits(got[1], wanted[1])


@pytest.mark.parametrize("unit", ["token", Block(6)])
@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_what_a_row_does_not_see_changes_no_bit(unit: Any, poison: float) -> None:
    problem = problem_of(anchors=("chunk", Window(4)), unit=unit, causal="token", dtype="float16")
    selected, arrays = routes(problem), problem.arrays
    mask = checks.oracle_masks(problem, selected)[0]
    for key in (11, 20):
        k, v = arrays.k.copy(), arrays.v.copy()
        k[:, key], v[:, key] = poison, poison
        got, wanted = run(problem.with_arrays(k=k, v=v), selected), run(problem, selected)
        blind = ~mask[:, :, key]
        assert checks.same_bits(got[0][0].swapaxes(0, 1)[blind], wanted[0][0].swapaxes(0, 1)[blind])
        assert checks.same_bits(got[1][0][blind], wanted[1][0][blind])


@pytest.mark.parametrize("packed", [False, True])
def test_a_sample_alone_gives_the_same_bits(packed: bool) -> None:
    streams = (movie(2, 5), movie(3, 4)) if packed else (movie(),)
    lengths = ((5, 1, 8, 0, 9), (2, 3, 0, 2, 8))
    problem = problem_of(anchors=("text", "shot"), key_lengths=lengths, batch=1 if packed else 2, packed=packed)
    problem = problem.but(streams=streams)
    selected = routes(problem)
    outs, lses = (checks.pieces(problem, x, axis) for x, axis in zip(run(problem, selected), (0, 1), strict=True))
    start = 0
    for number in range(2):
        part = slice(start, start + streams[number].tokens) if packed else slice(number, number + 1)
        start += streams[number].tokens if packed else 0
        arrays = {name: getattr(problem.arrays, name)[part] for name in ("q", "k", "v")}
        alone = problem.but(
            batch=1, streams=(streams[number if packed else 0],), key_lengths=(lengths[number],)
        ).with_arrays(**arrays)
        own = selected[:, :, part] if packed else selected[part]
        out, lse = run(alone, own[..., : plan_of(alone).slots])
        lead = () if packed else (0,)
        assert checks.same_bits(out[lead], outs[number])
        assert checks.same_bits(lse[lead], lses[number])


def test_slices_of_the_workspace_change_no_bit() -> None:
    problem = problem_of(batch=2, heads=4, kv_heads=2)
    selected = routes(problem)
    wanted = run(problem, selected)
    for limit in (1, 150_000):
        got = run(problem, selected, options=protocol.Options(max_workspace=limit))
        assert all(checks.same_bits(x, y) for x, y in zip(got, wanted, strict=True))


@pytest.mark.parametrize(("rows", "split"), [(16, 16), (32, 48), (16, 64)])
def test_dense_queries_are_split_over_keys(rows: int, split: int) -> None:
    config = replace(SMALL, anchor_rows=rows, anchor_split=split)
    check(problem_of(anchors=("shot",), dtype="bfloat16", streams=(movie(4, 16),)), config)
