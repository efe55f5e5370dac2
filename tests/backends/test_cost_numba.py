"""What the CPU backend owes tuning: the processor, its search spaces, and the order of its estimates."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import llvmlite.binding
import ml_dtypes
import numpy as np
import pytest

import sparsemoc as moc
from sparsemoc.backends import Options, Problem, get_backend
from sparsemoc.backends.numba import BACKEND, NumbaConfig
from sparsemoc.backends.numba.cost import estimate
from sparsemoc.backends.numba.hardware import Caches, caches
from sparsemoc.backends.numba.launch import lanes_of, packed_bytes
from sparsemoc.backends.processor import processor
from sparsemoc.backends.protocol import OPERATIONS, Estimate, Operation, Tunable
from sparsemoc.backends.workload import workloads

SPEC = moc.RoutingSpec(chunks=moc.Chunks(size=128), top_k=8, anchors=("chunk",))
FIELDS = {
    "pool": set(),
    "route": set(),
    "attend": {"query_block", "query_block_max", "gathered", "key_tile"},
    "attend_backward": {"grad_block", "grad_rows", "grad_keys"},
}


def _problem(spec: moc.RoutingSpec = SPEC, tokens: int = 16384, head_dim: int = 64, **changes: Any) -> Problem:
    sizes = {"batch": 1, "heads": 4, "kv_heads": 4, "head_dim": head_dim, "v_head_dim": head_dim}
    fields = {"framework": "numpy", "device": "cpu", "dtype": "float32", **sizes, **changes}
    return Problem(plan=moc.plan(spec, tokens=tokens), **fields)


def _seconds(problem: Problem, operation: Operation, config: NumbaConfig | None = None) -> float:
    found = estimate(problem, operation, config or NumbaConfig(), 2)  # threads, on whatever machine
    assert found.reason is None
    assert found.seconds is not None
    return found.seconds


def test_the_kernels_that_have_tile_sizes_can_be_tuned_and_the_reference_cannot() -> None:
    assert isinstance(BACKEND, Tunable)
    assert not isinstance(get_backend("reference"), Tunable)


def test_the_processor_is_known_by_its_model_and_by_what_compilers_call_it() -> None:
    found = BACKEND.hardware(_problem())
    assert found == (processor(), llvmlite.binding.get_host_cpu_name(), "")
    assert BACKEND.hardware(_problem()) is found  # asked on every call


def test_caches_are_those_of_the_system_and_usual_ones_where_it_tells_of_none(tmp_path: Path) -> None:
    rows = [("Data", "1", "48K"), ("Instruction", "1", "64K"), ("Unified", "2", "2048K"), ("Unified", "?", "9K")]
    for index, row in enumerate(rows):
        folder = tmp_path / f"index{index}"
        folder.mkdir()
        for name, text in zip(("type", "level", "size"), row, strict=True):
            (folder / name).write_text(text + "\n")
    assert caches(tmp_path) == (48 * 1024, 2048 * 1024, Caches().third)
    assert caches(tmp_path / "absent") == Caches()


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("tokens", [700, 2048, 16384, 32768])
def test_a_space_starts_with_the_default_and_varies_the_fields_of_its_operation(
    operation: Operation, tokens: int
) -> None:
    problem = _problem(tokens=tokens)
    space = BACKEND.search_space(problem, operation)
    default = asdict(BACKEND.default_config(problem))
    assert asdict(space[0]) == default
    changed = {name for config in space for name, value in asdict(config).items() if value != default[name]}
    assert changed <= FIELDS[operation]
    assert len(set(space)) == len(space) <= 40
    assert (len(space) > 2) == bool(FIELDS[operation])


def test_configs_that_cut_a_problem_alike_appear_once() -> None:
    spec = moc.RoutingSpec(chunks=moc.Chunks(size=256), top_k=3, anchors=())
    problem = _problem(spec, tokens=1024)
    cuts = []
    for config in BACKEND.search_space(problem, "attend"):
        blocks = config.forward_blocks(problem.plan, 1024, 4).tolist()
        cuts.append((tuple(blocks), -(-256 // config.key_tile)))
    # One block or two, in one key tile, in two or in four of a chunk.
    assert sorted(cuts) == [(bounds, tiles) for bounds in ((0, 512, 1024), (0, 1024)) for tiles in (1, 2, 4)]


@pytest.mark.parametrize("operation", ["attend", "attend_backward"])
@pytest.mark.parametrize("spec", [SPEC, moc.RoutingSpec(chunks=moc.Chunks(size=1000), top_k=4, causal="token")])
def test_absurd_tiles_are_ranked_behind_all_others(operation: Operation, spec: moc.RoutingSpec) -> None:
    problem = _problem(spec)
    absurd = NumbaConfig(query_block=16, query_block_max=16, key_tile=16, grad_block=64, grad_rows=1, grad_keys=16)
    worst = max(_seconds(problem, operation, config) for config in BACKEND.search_space(problem, operation))
    assert _seconds(problem, operation, absurd) > 1.5 * worst


def test_the_order_after_the_default_is_that_of_the_estimates() -> None:
    problem = _problem(tokens=32768)
    for operation in OPERATIONS[2:]:
        space = BACKEND.search_space(problem, operation)
        seconds = [BACKEND.estimate(problem, operation, config).seconds or 0.0 for config in space[1:]]
        assert seconds == sorted(seconds)


def test_idle_threads_take_no_work_away() -> None:
    problem = _problem(tokens=2048, heads=3, kv_heads=3)
    times = [estimate(problem, "attend", NumbaConfig(), threads).seconds or 0.0 for threads in (1, 2, 3)]
    # One block of each head: two rounds of two threads, of which the second is half idle.
    assert times[0] > times[1] > times[2]
    assert times[1] == pytest.approx(2 * times[2], rel=0.1)


@pytest.mark.parametrize("operation", ["attend", "attend_backward"])
def test_more_work_is_estimated_to_take_longer(operation: Operation) -> None:
    problem = _problem()
    once = _seconds(problem, operation)
    assert _seconds(replace(problem, batch=2), operation) == pytest.approx(2 * once)
    assert _seconds(replace(problem, dtype="float64"), operation) > 1.5 * once
    assert _seconds(_problem(tokens=32768), operation) > 1.8 * once
    assert _seconds(_problem(moc.RoutingSpec(chunks=moc.Chunks(size=128), top_k=2)), operation) < once
    assert _seconds(_problem(head_dim=128), operation) > once


def test_the_forward_is_cut_alike_whether_or_not_gradients_follow() -> None:
    alone, before_gradients = _problem(tokens=8192), _problem(tokens=8192, backward=True)
    assert _seconds(before_gradients, "attend") == _seconds(alone, "attend")
    tokens = 8192 + 64 * lanes_of(np.float32)
    assert packed_bytes(before_gradients, False) == packed_bytes(alone, False) == tokens * (64 + 64) * 4
    assert packed_bytes(before_gradients, True) == tokens * (3 * 64 + 2 * 64 + 64) * 4


def test_a_limit_on_memory_that_nothing_fits_is_told_as_the_backend_tells_it() -> None:
    problem = _problem(options=Options(max_workspace=1000))
    for operation in OPERATIONS:
        reason = BACKEND.estimate(problem, operation, NumbaConfig()).reason
        assert reason == BACKEND.refuses(problem)
        assert str(reason).endswith("bytes of workspace for one key head, more than max_workspace = 1000")
    assert BACKEND.estimate(_problem(), "route", NumbaConfig()) == Estimate()


def test_the_workload_counts_what_a_plan_holds() -> None:
    spec = moc.RoutingSpec(chunks=moc.Chunks(size=10), top_k=2, anchors=("chunk",), causal="chunk")
    (found,) = workloads(moc.plan(spec, tokens=50))
    # The queries of chunk c have c chunks before them, and take two; each of 50 queries sees its own 10 keys.
    assert (found.queries, found.keys, found.chunks, found.chunk, found.rectangles) == (50, 50, 5, 10, 5)
    assert (found.routed, found.routed_pairs, found.anchored, found.rows) == (70, 700, 500, 50)
    assert (found.units, found.candidates, found.overlap, found.span) == (40, 2.5, 1, 10)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_every_config_gives_the_results_of_the_default(dtype: str) -> None:
    spec = moc.RoutingSpec(
        chunks=moc.Chunks(size=70), top_k=3, anchors=("text", "chunk", moc.window(40)), causal="token"
    )
    stream = moc.Stream((moc.Segment("text", 33), moc.Segment("video", 601)))
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    rng = np.random.default_rng(0)
    q, k, v, d_out = (rng.standard_normal((1, 634, heads, 24)).astype(kind) for heads in (2, 1, 1, 2))
    problem = Problem(
        plan=moc.plan(spec, stream), framework="numpy", device="cpu", dtype=dtype, batch=1, heads=2, kv_heads=1,
        head_dim=24, v_head_dim=24, backward=True,
    )  # fmt: skip
    layout = moc.route(q, k, spec, stream=stream)
    bound = {"float32": 2e-5, "float64": 1e-13, "bfloat16": 4e-2}[dtype]

    def computed(config: NumbaConfig, gradients: bool) -> list[Any]:
        if not gradients:
            return [moc.attend(q, k, v, layout, backend="numba", config=config)]
        return list(moc.attention_grads(q, k, v, spec, d_out, stream=stream, backend="numba", config=config))

    small = NumbaConfig(query_block=90, query_block_max=90, key_tile=16, grad_block=100, grad_rows=5, grad_keys=16)
    for gradients, operation in enumerate(OPERATIONS[2:]):
        space = BACKEND.search_space(problem, operation)
        assert len(space) > 4
        wanted = [array.astype(np.float64) for array in computed(NumbaConfig(), bool(gradients))]
        for config in (small, *space[1:]):
            for array, one in zip(computed(config, bool(gradients)), wanted, strict=True):
                np.testing.assert_allclose(array.astype(np.float64), one, rtol=bound, atol=bound)
