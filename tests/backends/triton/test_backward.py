"""The backward kernels against the oracle, from the selection and the results of the reference backend."""

from __future__ import annotations

from typing import Any, cast

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st

import sparsemoc as moc
from sparsemoc.backends import protocol
from sparsemoc.backends.triton import launch_backward
from sparsemoc.backends.triton.backward import attend_backward
from sparsemoc.backends.triton.config import TritonConfig
from sparsemoc.backends.triton.device import device_tables
from sparsemoc.backends.triton.lengths import ends_of
from sparsemoc.backends.triton.signatures_backward import kernels
from sparsemoc.backends.triton.variants import Variant
from sparsemoc.spec.anchors import Window
from sparsemoc.spec.plan import plan
from sparsemoc.testing import checks
from sparsemoc.testing.implementations import ApiImplementation, Forward
from sparsemoc.testing.libraries import library
from sparsemoc.testing.problems import Problem
from sparsemoc.testing.strategies import partial_anchors, problems
from tests.backends import gradient_cases as cases

CPU = torch.device("cpu")
TORCH = library("torch", "cpu")
DTYPES = ("float32", "float16", "bfloat16")
SMALL = TritonConfig(grad_keys=16, grad_rows=16, grad_query_rows=16, grad_query_keys=16, anchor_split=32)
#: Every tile of keys with more than one tile of rows is split.
HOT = TritonConfig(grad_keys=16, grad_rows=16, grad_segment=16, grad_parts=64, grad_query_rows=32, grad_query_keys=16)

STREAM = moc.Stream.multishot(shots=3, frames=2, height=2, width=3, caption=3, prompt=5)
SPEC = moc.RoutingSpec(chunks=moc.Chunks(size=4), top_k=2, anchors=("text", "shot"), causal="chunk")


class Backward(cases.Backward):
    """The backward of the Triton kernels behind the forward of the reference backend."""

    def __init__(self, config: TritonConfig = SMALL, ordered: bool = False, **options: Any) -> None:
        super().__init__(self.launched)
        self.config, self.ordered, self.options = config, ordered, protocol.Options(**options)

    def launched(self, problem: Problem, result: Forward) -> tuple[Any, Any, Any]:
        arrays, lengths = problem.arrays, problem.key_length_array()
        call = self.call(problem)
        tables = device_tables(call.plan, lengths is not None, CPU)
        ends = ends_of(tables.geometry, tables.keys, None if lengths is None else torch.from_numpy(lengths))
        q, k, v, out, d_out = (
            TORCH.give(problem.restore(problem.present(x)))
            for x in (arrays.q, arrays.k, arrays.v, result.out, arrays.d_out)
        )
        lse, d_lse = TORCH.give(result.lse), TORCH.give(arrays.d_lse)
        if problem.packed:
            q, k, v, out, d_out, lse, d_lse = (x[None] for x in (q, k, v, out, d_out, lse, d_lse))
        scale = problem.head_dim**-0.5 if problem.scale is None else problem.scale
        selected = TORCH.give(result.selected)
        with np.errstate(all="ignore"):
            found = attend_backward(call, tables, q, k, v, selected, ends, scale, out, lse, d_out, d_lse, self.config)
        dq, dk, dv = map(TORCH.take, found)
        return (dq[0], dk[0], dv[0]) if problem.packed else (dq, dk, dv)

    def call(self, problem: Problem) -> protocol.Problem:
        streams = problem.streams if problem.packed else problem.streams[0]
        place = {} if problem.packed else {"q_start": problem.q_start, "q_tokens": problem.queries}
        return protocol.Problem(
            plan=plan(problem.spec, streams, **place), framework="torch", device="cpu", dtype=problem.dtype,
            batch=problem.batch, heads=problem.heads, kv_heads=problem.kv_heads, head_dim=problem.head_dim,
            v_head_dim=problem.v_head_dim, backward=True, deterministic=self.ordered, options=self.options,
        )  # fmt: skip


def configs() -> st.SearchStrategy[TritonConfig]:
    tiles = st.sampled_from((16, 32))
    return st.builds(
        TritonConfig,
        anchor_split=st.sampled_from((16, 48, 16384)),
        grad_keys=tiles,
        grad_rows=tiles,
        grad_segment=st.sampled_from((16, 48, 16384)),
        grad_parts=st.sampled_from((4, 2**20)),
        grad_query_rows=tiles,
        grad_query_keys=tiles,
    )


def check(problem: Problem, config: TritonConfig = SMALL, ordered: bool = False, **options: Any) -> None:
    with np.errstate(all="ignore"):
        checks.check_backward(cast("Any", Backward(config, ordered, **options)), problem)


def small(spec: moc.RoutingSpec = SPEC, **changes: Any) -> Problem:
    sizes = {"heads": 4, "kv_heads": 2, "head_dim": 8, "v_head_dim": 5, "batch": 2, "data_seed": 7}
    return Problem(spec, (STREAM,), **{**sizes, **changes})


@hypothesis.settings(max_examples=12)
@hypothesis.given(problem=problems(dtypes=DTYPES, pairs=2**10), config=configs(), ordered=st.booleans())
def test_matches_the_oracle(problem: Problem, config: TritonConfig, ordered: bool) -> None:
    check(problem, config, ordered)


@hypothesis.settings(max_examples=6)
@hypothesis.given(
    problem=problems(dtypes=DTYPES, pairs=2**10, anchor=partial_anchors(), padding=True),
    config=configs(),
    ordered=st.booleans(),
)
def test_anchors_that_split_a_chunk(problem: Problem, config: TritonConfig, ordered: bool) -> None:
    check(problem, config, ordered)


@hypothesis.settings(max_examples=6)
@hypothesis.given(problem=problems(dtypes=DTYPES, pairs=2**10, padding=True), ordered=st.booleans())
def test_padding_may_hold_anything(problem: Problem, ordered: bool) -> None:
    cases.check_padding(Backward(ordered=ordered).run, problem)


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize(
    ("which", "bad"), [("q", np.nan), ("q", np.inf), ("k", np.nan), ("k", -np.inf), ("v", np.nan), ("d_out", np.nan)]
)
@pytest.mark.parametrize("causal", ["chunk", "token"])
def test_what_is_not_finite_stays_with_those_who_see_it(which: str, bad: float, ordered: bool, causal: str) -> None:
    """One number of one row: gradients that no pair connects with it are those without it."""
    anchors = (Window(2, unit="token"),)
    window = moc.RoutingSpec(
        chunks=moc.Chunks(size=4), top_k=1, anchors=anchors, causal=causal, dense_queries=(), routable=("text", "video")
    )
    problem = small(window, batch=1, heads=2, kv_heads=1, q_tokens=30)
    x = getattr(problem.arrays, which).copy()
    x[0, 9, 0, 3] = bad
    spoiled = problem.with_arrays(**{which: x})
    implementation = Fixed(problem, ordered)
    with np.errstate(all="ignore"):
        before, after = implementation.backward(problem), implementation.backward(spoiled)
    masks = checks.oracle_masks(problem, implementation.selected)[0]
    touched_rows, touched_keys = cases.touched(masks, which, 9)
    for name, x, y in zip(("dq", "dk", "dv"), before, after, strict=True):
        free = ~touched_rows if name == "dq" else ~touched_keys
        assert np.array_equal(x[0][free], y[0][free]), name
        assert free.any()


class Fixed(Backward):
    """Keeps the selection of one problem."""

    def __init__(self, problem: Problem, ordered: bool) -> None:
        super().__init__(SMALL, ordered)
        self.selected = super().forward(problem).selected

    def forward(self, problem: Problem) -> Forward:
        with np.errstate(all="ignore"):
            out, lse = ApiImplementation("reference").attend(problem, self.selected)
        return Forward(out, lse, self.selected, np.zeros(0, bool))


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_split_tiles_of_keys(dtype: str, ordered: bool) -> None:
    check(small(dtype=dtype, batch=1), HOT, ordered)


@pytest.mark.parametrize("ordered", [False, True])
def test_every_row_chooses_one_chunk(ordered: bool) -> None:
    """A hot chunk: its list of rows is split, and nobody else's is."""
    spec = moc.RoutingSpec(chunks=moc.Chunks(size=4), top_k=1, anchors=("chunk",), dense_queries=())
    problem = small(spec, batch=1, dtype="bfloat16")
    k = problem.arrays.k.copy()
    k[:, 8:12] = 4
    hot = problem.with_arrays(k=k, q=np.abs(problem.arrays.q))
    check(hot, HOT, ordered)


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("data", ["huge", "huge queries"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_large_numbers(dtype: str, data: str, ordered: bool) -> None:
    check(small(dtype=dtype, data=data, batch=1), SMALL, ordered)


def test_float16_with_large_slopes() -> None:
    """Slopes beyond the range of float16, gradients within it."""
    problem = small(dtype="float16", batch=1)
    q, k = (x * np.float16(1e-3) for x in (problem.arrays.q, problem.arrays.k))
    v = problem.arrays.v * np.float16(2e4)
    d_out = problem.arrays.d_out * np.float16(8)
    check(problem.with_arrays(q=q, k=k, v=v, d_out=d_out))


@pytest.mark.parametrize("ordered", [False, True])
def test_small_workspace_makes_the_same(ordered: bool) -> None:
    problem = small(heads=2, q_tokens=16)
    whole, cut = Backward(SMALL, ordered).backward(problem), Backward(SMALL, ordered, max_workspace=1).backward(problem)
    for x, y in zip(whole[not ordered :], cut[not ordered :], strict=True):
        assert checks.same_bits(x, y)
    check(problem, SMALL, ordered, max_workspace=1)


def test_in_a_fixed_order_results_repeat_whatever_the_batch() -> None:
    problem = small(dtype="bfloat16", heads=2, kv_heads=1, q_tokens=16)
    arrays = problem.arrays
    first = problem.but(batch=1).with_arrays(
        **{name: getattr(arrays, name)[:1] for name in ("q", "k", "v", "d_out", "d_lse")}
    )
    for x, y in zip(Backward(ordered=True).backward(problem), Backward(ordered=True).backward(first), strict=True):
        assert checks.same_bits(x[:1], y)


def test_without_routes() -> None:
    check(small(moc.RoutingSpec(chunks=moc.Chunks(size=4), top_k=0, anchors=("chunk",)), batch=1))


def test_default_config() -> None:
    check(small(batch=1, heads=2, dtype="bfloat16"), TritonConfig())
    check(small(batch=1, heads=2, dtype="bfloat16"), TritonConfig(), ordered=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_launches_give_every_argument_of_the_signatures(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What CI compiles is what is launched: same arguments, same compile-time constants."""
    launched: dict[str, list[dict[str, Any]]] = {}

    class Recorder:
        def __init__(self, name: str) -> None:
            self.name = name

        def __getitem__(self, grid: Any) -> Any:
            return lambda **arguments: launched.setdefault(self.name, []).append(arguments)

    names = (
        "row_constants", "grads", "join_segments", "anchor_query_grads", "routed_query_grads", "join_query_grads"
    )  # fmt: skip
    for name in names:
        monkeypatch.setattr(launch_backward, name, Recorder(name))
    for ordered in (False, True):
        Backward(HOT, ordered).backward(small(dtype=dtype, head_dim=16, v_head_dim=16))
    for name in names:
        variants = [v for v in kernels(HOT, 16, 16, dtype) if v.kernel.fn.__name__ == name]
        assert variants
        for arguments in launched[name]:
            given = {key: value for key, value in arguments.items() if key not in ("num_warps", "num_stages")}
            assert set(given) == set(variants[0].signature)
            assert any(matches(variant, arguments) for variant in variants), name


def matches(variant: Variant, arguments: dict[str, Any]) -> bool:
    """Return whether the constants, warps and stages of a variant are those of a launch, head groups aside."""
    constants = {name: value for name, value in variant.constants.items() if name != "GROUP"}
    same = all(arguments[name] == value for name, value in constants.items())
    return same and (arguments["num_warps"], arguments["num_stages"]) == (variant.warps, variant.stages)
