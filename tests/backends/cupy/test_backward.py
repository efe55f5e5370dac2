"""The backward kernels against the oracle, on the CPU, for selections and results that the reference backend makes."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from sparsemoc.backends import protocol
from sparsemoc.backends.cupy.backward import attend_backward
from sparsemoc.backends.cupy.config import EMULATED, CupyConfig, default_config
from sparsemoc.backends.cupy.emulator import in_reverse
from sparsemoc.spec.anchors import Window
from sparsemoc.spec.chunks import Chunks
from sparsemoc.testing import checks
from sparsemoc.testing.implementations import Forward
from sparsemoc.testing.problems import Problem
from sparsemoc.testing.strategies import partial_anchors, problems
from tests.backends import attention_cases as attention
from tests.backends import gradient_cases as cases
from tests.backends.attention_cases import DTYPES, movie, problem_of
from tests.backends.cupy.routing_checks import MACHINE, tables_of

SMALL = default_config(64, "float32", EMULATED)
#: Every tile of keys with more than one tile of rows is split.
HOT = replace(SMALL, grad_segment=16, grad_parts=2**20)


def configs() -> st.SearchStrategy[CupyConfig]:
    """Draw what needs no compilation of its own."""
    return st.builds(
        replace,
        st.just(SMALL),
        anchor_split=st.sampled_from((16, 48, 16384)),
        grad_segment=st.sampled_from((16, 48, 16384)),
        grad_parts=st.sampled_from((4, 2**20)),
    )


def run(problem: Problem, result: Forward, **how: Any) -> tuple[Any, Any, Any]:
    grads, fault = run_with_fault(problem, result, **how)
    assert not fault.any()
    return grads


def run_with_fault(
    problem: Problem,
    result: Forward,
    config: CupyConfig = SMALL,
    options: protocol.Options | None = None,
    without_d_lse: bool = False,
) -> tuple[tuple[Any, Any, Any], Any]:
    call, arrays = attention.call_of(problem, "numpy", options), problem.arrays
    tables, ends = tables_of(call.plan, problem.key_length_array())
    shown = (problem.restore(problem.present(x)) for x in (arrays.q, arrays.k, arrays.v, result.out, arrays.d_out))
    every = (*shown, result.lse, arrays.d_lse)
    q, k, v, out, d_out, lse, d_lse = (x[None] if problem.packed else x for x in every)
    scale = problem.head_dim**-0.5 if problem.scale is None else problem.scale
    fault = MACHINE.zeros((4,), "uint32")
    dq, dk, dv = attend_backward(
        call, tables, q, k, v, result.selected, ends, scale, out, lse, d_out, None if without_d_lse else d_lse, config,
        fault,
    )  # fmt: skip
    return (dq[0], dk[0], dv[0]) if problem.packed else (dq, dk, dv), fault


def check(problem: Problem, config: CupyConfig = SMALL, options: protocol.Options | None = None) -> None:
    cases.check(partial(run, config=config, options=options), problem)


def results(problem: Problem, **how: Any) -> tuple[Any, Any, Any]:
    return cases.Backward(partial(run, **how)).backward(problem)


@hypothesis.settings(max_examples=30)
@hypothesis.given(problem=problems(dtypes=DTYPES, pairs=2**10), config=configs())
def test_matches_the_oracle(problem: Problem, config: CupyConfig) -> None:
    check(problem, config)


@hypothesis.settings(max_examples=20)
@hypothesis.given(
    problem=problems(dtypes=DTYPES, pairs=2**10, anchor=partial_anchors(), padding=True), config=configs()
)
def test_anchors_that_hold_a_part_of_a_chunk(problem: Problem, config: CupyConfig) -> None:
    check(problem, config)


@hypothesis.settings(max_examples=10)
@hypothesis.given(problem=problems(dtypes=DTYPES, pairs=2**10, padding=True))
def test_padding_may_hold_anything(problem: Problem) -> None:
    cases.check_padding(run, problem)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("changes", attention.SPECS)
def test_specs(changes: dict[str, Any], dtype: str) -> None:
    check(problem_of(**{"anchors": ("text", "chunk"), **changes}, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("strides", ["plain", "transposed", "sliced", "broadcast"])
def test_any_strides(dtype: str, strides: str) -> None:
    for v_head_dim in (5, 16):
        check(problem_of(dtype=dtype, strides=strides, batch=2, heads=4, kv_heads=2, v_head_dim=v_head_dim))


@pytest.mark.parametrize("causal", ["chunk", "token"])
@pytest.mark.parametrize(("which", "bad"), cases.SPOILERS)
def test_what_is_not_finite_stays_with_those_who_see_it(which: str, bad: float, causal: str) -> None:
    cases.check_spoiler(run, which, bad, causal)


@pytest.mark.parametrize("dtype", DTYPES)
def test_split_tiles_of_keys(dtype: str) -> None:
    check(problem_of(dtype=dtype, heads=4, kv_heads=2, anchors=("text", "shot"), streams=(movie(4, 16),)), HOT)


def test_every_row_chooses_one_chunk() -> None:
    """A hot chunk: its list of rows is split, and nobody else's is."""
    problem = problem_of(anchors=("chunk",), top_k=1, dense_queries=(), dtype="bfloat16", streams=(movie(4, 16),))
    k = problem.arrays.k.copy()
    k[:, 8:17] = 4
    check(problem.with_arrays(k=k, q=np.abs(problem.arrays.q)), HOT)


@pytest.mark.parametrize("data", ["huge", "huge queries"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_large_numbers(dtype: str, data: str) -> None:
    check(problem_of(dtype=dtype, data=data))


def test_float16_with_large_slopes() -> None:
    """Slopes beyond the range of float16, gradients within it."""
    problem = problem_of(dtype="float16")
    q, k = (x * np.float16(1e-3) for x in (problem.arrays.q, problem.arrays.k))
    v, d_out = problem.arrays.v * np.float16(2e4), problem.arrays.d_out * np.float16(8)
    check(problem.with_arrays(q=q, k=k, v=v, d_out=d_out))


@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_that_run_in_another_order_change_no_bit(dtype: str) -> None:
    """A barrier too few, or a copy into what others still read, shows in one of the two."""
    for anchors in (("shot",), ("chunk", Window(3))):
        problem = problem_of(dtype=dtype, streams=(movie(4, 16),), anchors=anchors, chunks=Chunks(size=40))
        wanted = results(problem, config=HOT)
        with in_reverse():
            got = results(problem, config=HOT)
        again = results(problem, config=HOT)
        for x, y, z in zip(wanted, got, again, strict=True):
            assert checks.same_bits(x, y)
            assert checks.same_bits(x, z)


def test_a_sample_alone_gives_the_same_bits() -> None:
    cases.check_alone(run)


def test_slices_of_the_workspace_change_no_bit() -> None:
    problem = problem_of(batch=2, heads=4, kv_heads=2)
    wanted = results(problem)
    for limit in (1, 150_000):
        got = results(problem, options=protocol.Options(max_workspace=limit))
        assert all(checks.same_bits(x, y) for x, y in zip(got, wanted, strict=True))


def test_without_a_gradient_of_lse() -> None:
    problem = problem_of(dtype="bfloat16")
    result = cases.Backward(run).forward(problem)
    wanted = run(problem.with_arrays(d_lse=np.zeros_like(problem.arrays.d_lse)), result)
    got = run(problem, result, without_d_lse=True)
    assert all(checks.same_bits(x, y) for x, y in zip(got, wanted, strict=True))


def test_a_chunk_that_the_plan_does_not_have_is_reported_and_absent() -> None:
    problem = problem_of(dtype="bfloat16")
    result = cases.Backward(run).forward(problem)
    wanted = run(problem, result)
    head, row, slot = np.argwhere(result.selected[0] == -1)[0]
    result.selected[0, head, row, slot] = 99
    got, fault = run_with_fault(problem, result)
    assert (fault[0], fault[2], fault[3]) == (1, 99, row)
    assert all(checks.same_bits(x, y) for x, y in zip(got, wanted, strict=True))


@pytest.mark.parametrize(
    ("dtype", "head_dim", "v_head_dim"),
    [("bfloat16", 96, 20), ("float16", 130, 64), ("float32", 96, 96), ("bfloat16", 20, 130)],
)
def test_tiles_of_a_gpu(dtype: str, head_dim: int, v_head_dim: int) -> None:
    """Tiles as they ship: two stages, warps that hold several tiles, columns shared by two blocks."""
    config = default_config(max(head_dim, v_head_dim), dtype, 90)
    problem = problem_of(
        anchors=("text", "frame", Window(3)), chunks=Chunks(size=70), dtype=dtype, head_dim=head_dim,
        v_head_dim=v_head_dim, streams=(movie(3, 48),), heads=2, kv_heads=1,
    )  # fmt: skip
    check(problem, config)
