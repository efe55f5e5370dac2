"""What the Triton backend owes tuning: the GPU, its search spaces, its limits, and the order of its estimates."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import sparsemoc as moc
from sparsemoc.backends import Options, Problem
from sparsemoc.backends.gpus import GPUS, gpu_of
from sparsemoc.backends.protocol import OPERATIONS, Operation, Tunable
from sparsemoc.backends.triton import forward, gpu
from sparsemoc.backends.triton.config import TritonConfig, default_config
from sparsemoc.backends.triton.cost import estimate, parts
from sparsemoc.backends.triton.entry import BACKEND
from sparsemoc.backends.triton.resources import Needs, Tile, attend_needs, grad_needs, resident
from sparsemoc.backends.triton.search import MOST, search_space

ROOT = Path(__file__).resolve().parents[3]
SPEC = moc.RoutingSpec(chunks=moc.Chunks(size=1560), top_k=5, anchors=("chunk",))
#: What the names of an operation's fields begin with.
FIELDS = {
    "pool": ("pool_",),
    "route": ("route_", "drop_"),
    "attend": ("anchor_", "routed_", "merge_", "index_"),
    "attend_backward": ("grad_", "index_"),
}


def _problem(spec: moc.RoutingSpec = SPEC, tokens: int = 32760, head_dim: int = 128, **changes: Any) -> Problem:
    sizes = {"batch": 1, "heads": 8, "kv_heads": 8, "head_dim": head_dim, "v_head_dim": head_dim}
    fields = {"framework": "torch", "device": "cuda", "dtype": "bfloat16", "backward": True, **sizes, **changes}
    return Problem(plan=moc.plan(spec, tokens=tokens), **fields)


def _seconds(problem: Problem, operation: Operation, config: TritonConfig, capability: int = 90) -> float:
    found = estimate(problem, operation, config, capability)
    assert found.reason is None
    assert found.seconds is not None
    return found.seconds


def test_it_can_be_tuned_and_interpreted_kernels_have_hardware_of_their_own() -> None:
    assert isinstance(BACKEND, Tunable)
    assert BACKEND.hardware(_problem(device="cpu")) == ("interpreter", "interpreter", "")


def test_a_gpu_is_known_by_name_architecture_and_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def name(device: int) -> str:
        asked.append(device)
        return f"NVIDIA Test {device}"

    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (12, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", name)
    monkeypatch.setattr(gpu, "driver", lambda: "570.86.15")
    gpu._of_torch.cache_clear()
    try:
        assert BACKEND.hardware(_problem()) == ("NVIDIA Test 1", "sm_120", "570.86.15")
        assert BACKEND.hardware(_problem()).architecture == "sm_120"
        assert asked == [1]  # of calls, only the first asks for more than which device is current
    finally:
        gpu._of_torch.cache_clear()


def test_jax_calls_that_are_lowered_without_a_gpu_are_tuned_for_its_architecture() -> None:
    with gpu.lowering_for(89):
        assert BACKEND.hardware(_problem(framework="jax")) == ("sm_89", "sm_89", "")


@pytest.mark.parametrize(
    ("text", "version"),
    [
        (
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Thu Jan 23 2025\nGCC version: 12.2.0",
            "570.86.15",
        ),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  575.51  Release Build\n", "575.51"),
        ("", ""),
    ],
)
def test_the_driver_is_read_from_the_system(tmp_path: Path, text: str, version: str) -> None:
    file = tmp_path / "version"
    file.write_text(text)
    found = gpu.driver(file)
    assert found == version or (not version and found.startswith("CUDA "))


@pytest.mark.parametrize("capability", [80, 89, 90, 100, 120])
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize(("head_dim", "dtype"), [(128, "bfloat16"), (64, "float16"), (128, "float32")])
def test_a_space_starts_with_the_default_and_varies_what_its_operation_reads(
    capability: int, operation: Operation, head_dim: int, dtype: str
) -> None:
    problem, default = _problem(head_dim=head_dim, dtype=dtype), default_config(head_dim, dtype, capability)
    space = search_space(problem, operation, default, capability)
    assert space[0] == default
    assert len(set(space)) == len(space) <= MOST[operation]
    assert len(space) >= {"pool": 6, "route": 10, "attend": 50, "attend_backward": 20}[operation]
    changed = {name for one in space for name, value in asdict(one).items() if value != getattr(default, name)}
    assert all(name.startswith(FIELDS[operation]) for name in changed)
    found = [estimate(problem, operation, one, capability) for one in space[1:]]
    assert [one.reason for one in found] == [None] * len(found)
    assert [one.seconds for one in found] == sorted(one.seconds or 0.0 for one in found)


def test_no_tile_is_longer_than_what_it_cuts() -> None:
    problem = _problem(moc.RoutingSpec(chunks=moc.Chunks(size=30), top_k=2, anchors=("chunk",)), tokens=60)
    default = default_config(128, "bfloat16", 90)
    for operation in OPERATIONS[2:]:
        for one in search_space(problem, operation, default, 90)[1:]:
            for name in ("anchor_keys", "routed_keys", "grad_keys"):
                assert getattr(one, name) in (16, 32, getattr(default, name))


def test_without_anchors_or_routes_their_tiles_are_left_alone() -> None:
    default = default_config(128, "bfloat16", 90)

    def varied(spec: moc.RoutingSpec) -> set[str]:
        space = search_space(_problem(spec), "attend", default, 90)
        return {name for one in space for name, value in asdict(one).items() if value != getattr(default, name)}

    alone = varied(moc.RoutingSpec(chunks=moc.Chunks(size=1560), top_k=5, anchors=()))
    assert {"routed_rows", "index_rows"} <= alone
    assert not [name for name in alone if name.startswith("anchor_")]
    no_routes = varied(moc.RoutingSpec(chunks=moc.Chunks(size=1560), top_k=0, anchors=("chunk",)))
    assert "anchor_rows" in no_routes
    assert not [name for name in no_routes if name.startswith(("routed_", "index_"))]


def test_a_fixed_order_of_sums_tunes_its_own_kernel() -> None:
    default = default_config(128, "bfloat16", 90)
    free = search_space(_problem(), "attend_backward", default, 90)
    fixed = search_space(_problem(deterministic=True), "attend_backward", default, 90)
    assert {one.grad_query_rows for one in free} == {default.grad_query_rows}
    assert len({(one.grad_query_rows, one.grad_query_keys) for one in fixed}) > 3
    assert {one.grad_atomic for one in free} == {True, False}
    assert {one.grad_atomic for one in fixed} == {True}  # it would change nothing


def test_what_a_block_cannot_hold_is_refused_with_the_numbers() -> None:
    large = TritonConfig(routed_keys=128, routed_stages=5)
    # Rows of 128 and four steps of 128 keys and values, 128 wide, 2 bytes each.
    needs = (128 * 128 + 4 * 128 * 256) * 2
    assert estimate(_problem(), "attend", large, 89).reason == (
        f"routed needs {needs} bytes of shared memory, sm_89 has 101376"
    )
    assert estimate(_problem(), "pool", large, 89).reason is None
    assert "grads needs" in str(estimate(_problem(), "attend_backward", TritonConfig(grad_keys=256), 120).reason)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"anchor_rows": 48}, "anchor_rows must be a power of 2 from 16 on, not 48"),
        ({"routed_keys": 8}, "routed_keys must be a power of 2 from 16 on, not 8"),
        ({"pool_keys": 0}, "pool_keys must be a power of 2 from 1 on, not 0"),
        ({"merge_rows": 256}, "merge_rows 256 does not divide anchor_rows 128"),
    ],
)
def test_tiles_that_kernels_do_not_take_are_refused(fields: dict[str, int], reason: str) -> None:
    assert estimate(_problem(), "attend", TritonConfig(**fields), 90).reason == reason  # type: ignore[arg-type]


def test_a_limit_on_memory_that_a_config_exceeds_is_told() -> None:
    config = default_config(128, "bfloat16", 90)
    least = forward.least_workspace(_problem(tokens=3120), config)
    problem = _problem(tokens=3120, options=Options(max_workspace=least))
    assert estimate(problem, "attend", config, 90).reason is None
    wide = replace(config, merge_float32=True)
    assert estimate(problem, "attend", wide, 90).reason == (
        f"needs {forward.least_workspace(problem, wide)} bytes of workspace for one batch row and key head, "
        f"more than max_workspace = {least}"
    )
    assert estimate(problem, "route", wide, 90).reason is None


@pytest.mark.parametrize("operation", ["attend", "attend_backward"])
@pytest.mark.parametrize("capability", [80, 90, 120])
def test_absurd_tiles_are_ranked_behind_all_others(operation: Operation, capability: int) -> None:
    problem, default = _problem(), default_config(128, "bfloat16", capability)
    space = search_space(problem, operation, default, capability)[1:]
    worst = max(_seconds(problem, operation, one, capability) for one in space)
    small = replace(
        default, anchor_rows=16, anchor_keys=16, routed_rows=16, routed_keys=16, grad_rows=16, grad_keys=16,
        grad_stages=1, anchor_stages=1, routed_stages=1,
    )  # fmt: skip
    spilling = replace(default, routed_rows=128, routed_keys=128, routed_warps=2, routed_stages=1, grad_warps=1)
    assert _seconds(problem, operation, small, capability) > min(
        worst, 2 * _best(problem, operation, space, capability)
    )
    assert _seconds(problem, operation, spilling, capability) > 2 * _best(problem, operation, space, capability)


def _best(problem: Problem, operation: Operation, space: list[TritonConfig], capability: int) -> float:
    return min(_seconds(problem, operation, one, capability) for one in space)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_more_work_is_estimated_to_take_longer(operation: Operation) -> None:
    problem, config = _problem(), default_config(128, "bfloat16", 90)
    once = _seconds(problem, operation, config)
    # What leaves multiprocessors idle has room for more.
    assert _seconds(replace(problem, batch=16), operation, config) > once
    assert _seconds(_problem(tokens=2 * 32760), operation, config) > once
    assert _seconds(problem, operation, config, 100) < once < _seconds(problem, operation, config, 80)
    if operation == "attend":
        assert _seconds(_problem(replace(SPEC, top_k=10)), operation, config) > 1.6 * once


def test_the_launches_of_an_operation_are_those_that_it_makes() -> None:
    def kernels(operation: Operation, spec: moc.RoutingSpec = SPEC, **changes: Any) -> list[str]:
        config = default_config(128, "bfloat16", 90)
        return [part.kernel for part in parts(_problem(spec, **changes), operation, config, 90)]

    assert kernels("pool") == ["pool"]
    assert kernels("route") == ["route"]
    assert kernels("route", replace(SPEC, dropout=moc.RouteDropout(off=0.5))) == ["route", "route dropout"]
    assert kernels("attend") == ["anchors", "index", "routed", "merge"]
    assert kernels("attend", replace(SPEC, unit=moc.Block(64))) == ["anchors", "merge"]
    assert kernels("attend_backward") == ["index", "grads"]
    assert kernels("attend_backward", deterministic=True) == ["index", "grads", "query grads"]


def test_a_multiprocessor_holds_what_its_memory_registers_and_threads_allow() -> None:
    hopper = gpu_of(90)
    assert resident(hopper, Needs(100 * 1024, 64), 4) == 2
    assert resident(hopper, Needs(0, 255), 8) == 1
    assert resident(hopper, Needs(0, 32), 8) == 8
    assert resident(gpu_of(89), Needs(0, 32), 8) == 6
    assert gpu_of(91) is GPUS[90]
    assert gpu_of(200) is GPUS[121]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_interpreter_computes_the_same_under_another_config(operation: Operation) -> None:
    spec = moc.RoutingSpec(chunks=moc.Chunks(size=20), top_k=1, anchors=("chunk",))
    made = torch.Generator().manual_seed(0)
    q, k, v, d_out = (torch.randn((1, 50, 1, 8), generator=made) for _ in range(4))
    problem = _problem(spec, 50, 8, dtype="float32", device="cpu", heads=1, kv_heads=1)
    means = BACKEND.pool(problem, k, None)
    layout = moc.route(q, k, spec, backend="triton")
    result = BACKEND.attend(problem, q, k, v, layout, 0.3) if operation == "attend_backward" else None
    arguments = {
        "pool": (k, None),
        "route": (q, means, None, None),
        "attend": (q, k, v, layout, 0.3),
        "attend_backward": (q, k, v, layout, 0.3, result, d_out, None),
    }[operation]
    config = BACKEND.search_space(problem, operation)[-1]
    assert config != BACKEND.default_config(problem)
    found, wanted = (getattr(BACKEND, operation)(problem, *arguments, config=one) for one in (config, None))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


#: Compiles kernels as they are launched on a GPU, and prints their shared memory; the interpreter cannot be on.
_COMPILE = """
from bench.kernels import Job, _variants, compiled
for part, name, dtype, capability in {jobs}:
    names = [one.name for one in _variants(part, 128, dtype, capability)]
    print(compiled(Job(part, names.index(name), 128, dtype, capability)).shared)
"""


def test_shared_memory_is_never_more_than_what_the_compiler_says_and_near_it(tmp_path: Path) -> None:
    """Exact for the forward on Hopper and for routing; for gradients the compiler adds up to half to change layouts."""
    jobs = [
        ("forward", "attend_routed", "bfloat16", 90),
        ("backward", "grads add_dq", "bfloat16", 80),
        ("routing", "route_kernel-5slots", "bfloat16", 90),
    ]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    command = [sys.executable, "-c", _COMPILE.format(jobs=jobs)]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True)
    actual = list(map(int, done.stdout.split()))

    def tile(capability: int, kernel: str) -> Tile:
        config = default_config(128, "bfloat16", capability)
        rows, keys, warps, stages = (
            getattr(config, f"{kernel}_{name}") for name in ("rows", "keys", "warps", "stages")
        )
        return Tile(rows, keys, warps, stages, 128, 128, 2)

    routing = next(parts(_problem(), "route", default_config(128, "bfloat16", 90), 90))
    counted = [
        attend_needs(tile(90, "routed"), 90).shared, grad_needs(tile(80, "grad"), 80).shared, routing.needs.shared,
    ]  # fmt: skip
    assert (counted[0], counted[2]) == (actual[0], actual[2])
    for one, other in zip(counted, actual, strict=True):
        assert 2 / 3 * other <= one <= other
