"""The forward kernels against the oracle, for selections that the reference backend makes."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from sparsemoc.backends import protocol
from sparsemoc.backends.triton.config import TritonConfig
from sparsemoc.backends.triton.device import device_tables
from sparsemoc.backends.triton.forward import attend
from sparsemoc.backends.triton.lengths import ends_of
from sparsemoc.spec.routing import Block
from sparsemoc.testing.libraries import library
from sparsemoc.testing.problems import Problem
from sparsemoc.testing.strategies import partial_anchors, problems
from tests.backends import attention_cases as cases
from tests.backends.attention_cases import DTYPES, movie, problem_of

CPU = torch.device("cpu")
TORCH = library("torch", "cpu")
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
    call, lengths = cases.call_of(problem, "torch", options), problem.key_length_array()
    tables = device_tables(call.plan, lengths is not None, CPU)
    ends = ends_of(tables.geometry, tables.keys, None if lengths is None else torch.from_numpy(lengths))
    q, k, v = (shown(problem, x) for x in (problem.arrays.q, problem.arrays.k, problem.arrays.v))
    scale = problem.head_dim**-0.5 if problem.scale is None else problem.scale
    with np.errstate(all="ignore"):
        out, lse = attend(call, tables, q, k, v, torch.from_numpy(selected), ends, scale, config)
    out, lse = TORCH.take(out), TORCH.take(lse)
    return (out[0], lse[0]) if problem.packed else (out, lse)


def check(problem: Problem, config: TritonConfig = SMALL, options: protocol.Options | None = None) -> None:
    cases.check(partial(run, config=config, options=options), problem)


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


@pytest.mark.parametrize("changes", cases.SPECS)
def test_specs(changes: dict[str, Any]) -> None:
    check(problem_of(**{"anchors": ("text", "chunk"), **changes}))


@pytest.mark.parametrize("changes", [changes for changes in cases.SPECS if "unit" in changes])
def test_units_whose_routes_go_by_chunk(changes: dict[str, Any]) -> None:
    check(problem_of(**changes), replace(SMALL, anchor_union=1000))


@pytest.mark.parametrize("unit", ["token", Block(6)])
def test_padding_changes_no_bit(unit: Any) -> None:
    cases.check_padding(run, unit)


@pytest.mark.parametrize("unit", ["token", Block(6)])
@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_what_a_row_does_not_see_changes_no_bit(unit: Any, poison: float) -> None:
    cases.check_poison(run, unit, poison)


@pytest.mark.parametrize("packed", [False, True])
def test_a_sample_alone_gives_the_same_bits(packed: bool) -> None:
    cases.check_sample_alone(run, packed)


def test_slices_of_the_workspace_change_no_bit() -> None:
    cases.check_slices(run)


@pytest.mark.parametrize(("rows", "split"), [(16, 16), (32, 48), (16, 64)])
def test_dense_queries_are_split_over_keys(rows: int, split: int) -> None:
    config = replace(SMALL, anchor_rows=rows, anchor_split=split)
    check(problem_of(anchors=("shot",), dtype="bfloat16", streams=(movie(4, 16),)), config)
