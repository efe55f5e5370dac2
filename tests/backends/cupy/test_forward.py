"""The forward kernels against the oracle, on the CPU, for selections that the reference backend makes."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from sparsemoc.backends import protocol
from sparsemoc.backends.cupy.config import EMULATED, CupyConfig, default_config
from sparsemoc.backends.cupy.emulator import in_reverse
from sparsemoc.backends.cupy.forward import attend
from sparsemoc.spec.chunks import Chunks
from sparsemoc.spec.routing import Block
from sparsemoc.testing import checks
from sparsemoc.testing.problems import Problem
from sparsemoc.testing.strategies import partial_anchors, problems
from tests.backends import attention_cases as cases
from tests.backends.attention_cases import DTYPES, movie, problem_of
from tests.backends.cupy.routing_checks import MACHINE, tables_of

SMALL = default_config(64, "float32", EMULATED)


def configs() -> st.SearchStrategy[CupyConfig]:
    """Draw what needs no compilation of its own."""
    return st.builds(
        replace,
        st.just(SMALL),
        anchor_split=st.sampled_from((16, 48, 16384)),
        anchor_union=st.sampled_from((1, 2, 1000)),
        routed_span=st.sampled_from((1, 2, 5)),
    )


def shown(problem: Problem, x: Any) -> Any:
    array = x[None] if problem.packed else x
    if problem.strides == "transposed":
        return np.ascontiguousarray(array.swapaxes(1, 2)).swapaxes(1, 2)
    if problem.strides == "sliced":
        wide = np.full((*array.shape[:-1], 2 * array.shape[-1]), np.nan, array.dtype)
        wide[..., ::2] = array
        return wide[..., ::2]
    return np.broadcast_to(array[:, :, :1], array.shape) if problem.strides == "broadcast" else array


def run(
    problem: Problem,
    selected: np.ndarray[Any, Any],
    config: CupyConfig = SMALL,
    options: protocol.Options | None = None,
) -> tuple[Any, Any]:
    call = cases.call_of(problem, "numpy", options)
    tables, ends = tables_of(call.plan, problem.key_length_array())
    q, k, v = (shown(problem, x) for x in (problem.arrays.q, problem.arrays.k, problem.arrays.v))
    scale = problem.head_dim**-0.5 if problem.scale is None else problem.scale
    fault = MACHINE.zeros((4,), "uint32")
    out, lse = attend(call, tables, q, k, v, selected, ends, scale, config, fault)
    assert not fault.any()
    return (out[0], lse[0]) if problem.packed else (out, lse)


def check(problem: Problem, config: CupyConfig = SMALL) -> None:
    cases.check(partial(run, config=config), problem)


@hypothesis.settings(max_examples=40)
@hypothesis.given(problem=problems(dtypes=DTYPES, dropout=False, pairs=2**11), config=configs())
def test_matches_the_oracle(problem: Problem, config: CupyConfig) -> None:
    check(problem, config)


@hypothesis.settings(max_examples=20)
@hypothesis.given(
    problem=problems(dtypes=DTYPES, dropout=False, pairs=2**11, anchor=partial_anchors()), config=configs()
)
def test_matches_the_oracle_where_anchors_hold_a_part_of_a_chunk(problem: Problem, config: CupyConfig) -> None:
    check(problem, config)


@hypothesis.settings(max_examples=20)
@hypothesis.given(
    problem=problems(dtypes=DTYPES, dropout=False, pairs=2**11, data=("nan key", "nan value", "nan query")),
    config=configs(),
)
def test_nan_shows_where_it_is_seen_and_nowhere_else(problem: Problem, config: CupyConfig) -> None:
    check(problem, config)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("strides", ["plain", "transposed", "sliced", "broadcast"])
@pytest.mark.parametrize("v_head_dim", [5, 16])
def test_any_strides(dtype: str, strides: str, v_head_dim: int) -> None:
    check(problem_of(dtype=dtype, strides=strides, batch=2, v_head_dim=v_head_dim))


@pytest.mark.parametrize("changes", cases.SPECS)
def test_specs(changes: dict[str, Any]) -> None:
    check(problem_of(**{"anchors": ("text", "chunk"), **changes}), replace(SMALL, anchor_union=2))


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


@pytest.mark.parametrize("split", [16, 48, 64])
def test_dense_queries_are_split_over_keys(split: int) -> None:
    problem = problem_of(anchors=("shot",), dtype="bfloat16", streams=(movie(4, 16),))
    check(problem, replace(SMALL, anchor_split=split))


def test_tf32_is_as_near_as_its_name_says() -> None:
    problem = problem_of(head_dim=64, v_head_dim=64)
    selected = cases.routes(problem)
    wanted, _ = run(problem, selected)
    got, _ = run(problem, selected, options=protocol.Options(precision="tf32"))
    error = np.abs(got - wanted).max() / np.abs(wanted).max()
    assert 0 < error < 2**-11


@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_that_run_in_another_order_change_no_bit(dtype: str) -> None:
    """A barrier too few, or a copy into what others still read, shows in one of the two."""
    for changes in ({"anchors": ("shot",)}, {"anchors": ("chunk",), "chunks": Chunks(size=40)}):
        problem = problem_of(dtype=dtype, streams=(movie(4, 16),), **changes)
        selected = cases.routes(problem)
        wanted = run(problem, selected)
        with in_reverse():
            got = run(problem, selected)
        assert all(checks.same_bits(x, y) for x, y in zip(got, wanted, strict=True))


@pytest.mark.parametrize(("dtype", "head_dim"), [("bfloat16", 128), ("bfloat16", 64), ("float32", 64)])
@pytest.mark.parametrize("size", [20, 90])
def test_tiles_of_a_gpu(dtype: str, head_dim: int, size: int) -> None:
    """Keys stay for rows that pass by them, and rows for keys."""
    config = default_config(head_dim, dtype, 90)
    stream = movie(4, 48)
    check(
        problem_of(
            anchors=("text", "frame"), chunks=Chunks(size=size), dtype=dtype, head_dim=head_dim, v_head_dim=head_dim,
            streams=(stream,), heads=1, kv_heads=1,
        ),
        config,
    )  # fmt: skip
