"""What the CuPy backend owes tuning: search spaces of configs that run, its limits, and the order of its estimates."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest

import sparsemoc as moc
from sparsemoc.backends import Options, Problem
from sparsemoc.backends.cupy import forward, search
from sparsemoc.backends.cupy.config import EMULATED, CupyConfig, default_config, most_shared
from sparsemoc.backends.cupy.cost import estimate, launches
from sparsemoc.backends.cupy.machine import kernel
from sparsemoc.backends.cupy.roofline import Launch, register_limit, seconds
from sparsemoc.backends.gpus import GPUS
from sparsemoc.backends.planning.geometry import geometry
from sparsemoc.backends.protocol import OPERATIONS, Operation, Tunable
from sparsemoc.backends.registry import get_backend

#: What the names of an operation's fields begin with.
FIELDS = {
    "pool": ("pool_",),
    "route": ("route_", "pool_"),
    "attend": ("anchor_", "routed_", "index_"),
    "attend_backward": ("grad_", "index_"),
}


def _problem(chunk: int = 1560, top_k: int = 5, tokens: int = 32760, head_dim: int = 128, **changes: Any) -> Problem:
    routing = {"anchors": changes.pop("anchors", ("chunk",)), **changes.pop("routing", {})}
    spec = moc.RoutingSpec(chunks=moc.Chunks(size=chunk), top_k=top_k, **routing)
    sizes = {"batch": 1, "heads": 8, "kv_heads": 8, "head_dim": head_dim, "v_head_dim": head_dim}
    fields = {"framework": "torch", "device": "cuda", "dtype": "bfloat16", "backward": True, **sizes, **changes}
    return Problem(plan=moc.plan(spec, tokens=tokens), **fields)


def _default(problem: Problem, capability: int = 90) -> CupyConfig:
    return default_config(problem.head_dim, problem.dtype, capability, geometry(problem.plan, False).most_chunk)


def _space(
    problem: Problem, operation: Operation, monkeypatch: pytest.MonkeyPatch, capability: int = 90
) -> list[CupyConfig]:
    monkeypatch.setattr(search, "capability", lambda problem: capability)
    return search.search_space(problem, operation, _default(problem, capability))


def _seconds(problem: Problem, operation: Operation, config: CupyConfig, capability: int = 90) -> float:
    found = estimate(problem, operation, config, capability)
    assert found.reason is None
    assert found.seconds is not None
    return found.seconds


def _changed(space: list[CupyConfig]) -> set[str]:
    return {name for one in space for name, value in asdict(one).items() if value != getattr(space[0], name)}


@pytest.mark.parametrize("capability", [80, 89, 90, 100, 120])
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize(("head_dim", "dtype"), [(128, "bfloat16"), (64, "float16"), (128, "float32")])
def test_a_space_starts_with_the_default_and_varies_what_its_operation_reads(
    capability: int, operation: Operation, head_dim: int, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = _problem(head_dim=head_dim, dtype=dtype)
    space = _space(problem, operation, monkeypatch, capability)
    assert space[0] == _default(problem, capability)
    assert len(set(space)) == len(space) <= search.MOST[operation]
    assert len(space) >= {"pool": 5, "route": 4, "attend": 45, "attend_backward": 30}[operation]
    assert all(name.startswith(FIELDS[operation]) for name in _changed(space))
    found = [_seconds(problem, operation, one, capability) for one in space]
    assert found[1:] == sorted(found[1:])
    most = max(one.kernel.shared for config in space for one in launches(problem, operation, config, capability))
    assert most <= most_shared(capability)


def test_no_tile_is_longer_than_what_it_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = _problem(chunk=30, top_k=2, tokens=60)
    default = _default(problem)
    for operation in OPERATIONS[2:]:
        for one in _space(problem, operation, monkeypatch)[1:]:
            for name in ("anchor_keys", "routed_keys", "grad_keys", "grad_query_keys"):
                assert getattr(one, name) in (16, 32, getattr(default, name))
            for name in ("anchor_rows", "routed_rows"):
                assert getattr(one, name) in (32, 64, getattr(default, name))


def test_what_has_no_effect_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = _changed(_space(_problem(anchors=()), "attend", monkeypatch))
    assert {"routed_rows", "index_rows"} <= alone
    assert not [name for name in alone if name.startswith("anchor_")]
    no_routes = _changed(_space(_problem(top_k=0), "attend", monkeypatch))
    assert "anchor_rows" in no_routes
    assert not [name for name in no_routes if name.startswith(("routed_", "index_"))]
    # Keys of long chunks do not stay: no group of rows passes by.
    assert "routed_span" not in _changed(_space(_problem(), "attend", monkeypatch))
    assert "routed_span" in _changed(_space(_problem(chunk=64), "attend", monkeypatch))
    blocks = {one.routed_blocks for one in _space(_problem(anchors=()), "attend", monkeypatch) if one.routed_warps == 4}
    assert 1 not in blocks  # two blocks of four warps leave a thread all the registers that it can name


def test_kernels_of_short_chunks_keep_their_keys_and_all_others_the_usual_tiles() -> None:
    found = {chunk: default_config(128, "bfloat16", 90, chunk) for chunk in (32, 33, 64, 128, 129, None)}
    assert {chunk: one.routed_keys for chunk, one in found.items()} == {
        32: 32, 33: 64, 64: 64, 128: 128, 129: 32, None: 32,
    }  # fmt: skip
    assert len({replace(one, routed_keys=0, routed_warps=0, routed_blocks=0) for one in found.values()}) == 1
    # Where a block has 99 KB, 128 keys have no room.
    assert default_config(128, "bfloat16", 120, 128).routed_keys == 64


@pytest.mark.parametrize("capability", sorted(GPUS))
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_default_configs_run_everywhere(head_dim: int, dtype: str, capability: int) -> None:
    for chunk in (64, 128, 1560):
        problem = _problem(chunk, head_dim=head_dim, dtype=dtype)
        for operation in OPERATIONS:
            _seconds(problem, operation, _default(problem, capability), capability)


def test_shared_memory_is_refused_from_the_first_byte_on() -> None:
    # 128 rows, twice the keys, 256 + 16 bytes each; the notes; and 8 bytes for each row.
    fits = replace(CupyConfig(), routed_keys=112, routed_warps=8)
    for keys, needs in ((112, 128 * 272 + 2 * 112 * 272 + 128), (128, 128 * 272 + 2 * 128 * 272 + 128)):
        config = replace(fits, anchor_keys=keys, anchor_warps=8, routed_keys=32)
        reason = estimate(_problem(), "attend", config, 89).reason
        told = f"attend_anchors needs {needs} bytes of shared memory, sm_89 has 101376"
        assert reason == (told if needs > 101376 else None)
        assert estimate(_problem(), "attend", config, 90).reason is None
        assert estimate(_problem(), "pool", config, 89).reason is None


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"anchor_rows": 48}, "anchor_rows must be 16 or 32 to each of 4 warps, not 48"),
        ({"routed_keys": 24}, "routed_keys must be one of 16, 32, 48, 64, 80, 96, 112, 128, not 24"),
        ({"grad_rows": 128}, "grad_rows must be one of 16, 32, 64, not 128"),
        ({"grad_stages": 3}, "grad_stages must be one of 1, 2, not 3"),
        ({"route_chunks": 64}, "route_chunks must be one of 16, 32, not 64"),
        ({"routed_blocks": 9}, "routed_blocks must be at most 8 of 4 warps, not 9"),
    ],
)
def test_tiles_that_kernels_do_not_take_are_refused(fields: dict[str, int], reason: str) -> None:
    assert estimate(_problem(), "attend", CupyConfig(**fields), 90).reason == reason


def test_a_limit_on_memory_that_a_config_exceeds_is_told() -> None:
    config = _default(_problem(tokens=3120))
    split = replace(config, anchor_split=64)
    least = forward.least_workspace(_problem(tokens=3120), config)
    problem = _problem(tokens=3120, options=Options(max_workspace=least))
    assert estimate(problem, "attend", config, 90).reason is None
    assert estimate(problem, "attend", split, 90).reason == (
        f"needs {forward.least_workspace(problem, split)} bytes of workspace for one batch row and key head, "
        f"more than max_workspace = {least}"
    )
    assert estimate(problem, "route", split, 90).reason is None


@pytest.mark.parametrize("operation", ["attend", "attend_backward"])
@pytest.mark.parametrize("capability", [80, 90, 120])
def test_absurd_tiles_are_ranked_behind_the_default(operation: Operation, capability: int) -> None:
    problem = _problem()
    default = _default(problem, capability)
    small = replace(
        default, anchor_rows=16, anchor_keys=16, anchor_warps=1, routed_rows=16, routed_keys=16, routed_warps=1,
        grad_keys=16, grad_rows=16, grad_warps=1, grad_stages=1, grad_query_rows=16, grad_query_warps=1,
        grad_query_keys=16,
    )  # fmt: skip
    squeezed = replace(default, anchor_blocks=8, routed_blocks=8, grad_blocks=8, grad_query_blocks=8)
    squeezed = replace(squeezed, anchor_rows=64, anchor_warps=4, routed_rows=64, routed_warps=4, grad_keys=64,
                       grad_warps=4, grad_query_rows=64, grad_query_warps=4)  # fmt: skip
    usual = _seconds(problem, operation, default, capability)
    assert _seconds(problem, operation, small, capability) > 1.3 * usual
    assert _seconds(problem, operation, squeezed, capability) > 1.3 * usual


def test_keys_of_short_chunks_stay_and_those_of_long_ones_pass() -> None:
    """As `default_config` chooses: what stays is read once for many rows, what passes takes smaller tiles."""
    short, long = _problem(chunk=64, top_k=8), _problem(chunk=1560)
    stay, usual = default_config(128, "bfloat16", 90, 64), default_config(128, "bfloat16", 90)
    assert stay.routed_keys != usual.routed_keys
    assert _seconds(short, "attend", stay) < _seconds(short, "attend", usual)
    assert _seconds(long, "attend", stay) > _seconds(long, "attend", usual)
    assert _seconds(short, "attend", replace(stay, routed_span=1)) > _seconds(short, "attend", stay)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_more_work_is_estimated_to_take_longer(operation: Operation) -> None:
    problem, config = _problem(), _default(_problem())
    once = _seconds(problem, operation, config)
    assert _seconds(replace(problem, batch=16), operation, config) > once
    assert _seconds(_problem(tokens=2 * 32760), operation, config) > once
    assert _seconds(problem, operation, config, 100) < once < _seconds(problem, operation, config, 80)
    if operation == "attend":
        assert _seconds(_problem(top_k=10), operation, config) > 1.6 * once


def test_the_launches_of_an_operation_are_those_that_it_makes() -> None:
    def kernels(operation: Operation, **changes: Any) -> list[str]:
        problem = _problem(**changes)
        return [one.kernel.name for one in launches(problem, operation, _default(problem), 90)]

    assert kernels("pool") == ["pool"]
    assert kernels("route") == ["route"]
    assert kernels("route", routing={"unit": moc.Block(64)}) == ["pool_units", "route"]
    assert kernels("attend") == ["attend_anchors", "count_entries", "place_entries", "attend_routed", "merge"]
    assert kernels("attend", routing={"unit": moc.Block(64)}) == ["attend_anchors", "merge"]
    grads = ["key_grads", "anchor_query_grads", "routed_query_grads"]
    assert kernels("attend_backward") == ["count_entries", "place_entries", *grads]
    assert kernels("attend_backward", top_k=0) == grads[:2]


def test_a_launch_takes_as_long_as_its_scarcest_resource() -> None:
    one = kernel("merge", "merge", threads=256)
    base = Launch(one, blocks=132 * 8, steps=1000)
    assert register_limit(256, 1) == 255
    assert register_limit(256, 2) == 128
    # Steps without work wait for nothing but latency, which four blocks share: there are registers for no more.
    waiting = seconds(base, 90)
    assert seconds(base._replace(products=1e6), 90) > 2 * waiting
    assert seconds(base._replace(reads=1e5), 90) > 2 * waiting
    assert seconds(base._replace(moved=3350e9), 90) == pytest.approx(1, rel=1e-3)
    assert seconds(base._replace(registers=255 + 64), 90) > 2 * waiting
    assert seconds(base._replace(kernel=replace(one, shared=200 * 1024)), 90) > 3.9 * waiting


@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_last_config_of_a_space_computes_the_same_as_the_default(operation: Operation) -> None:
    backend = get_backend("cupy")
    if backend.capabilities.devices != ("cpu",):
        pytest.skip("the arrays are NumPy's, which GPUs do not take")
    assert isinstance(backend, Tunable)
    spec = moc.RoutingSpec(chunks=moc.Chunks(size=20), top_k=1, anchors=("chunk",))
    made = np.random.default_rng(0)
    q, k, v, d_out = (made.standard_normal((1, 50, 1, 8), np.float32) for _ in range(4))
    problem = _problem(
        20, 1, 50, 8, dtype="float32", framework="numpy", device="cpu", heads=1, kv_heads=1, deterministic=True
    )  # fmt: skip
    means, layout = backend.pool(problem, k, None), moc.route(q, k, spec, backend="cupy")
    result = backend.attend(problem, q, k, v, layout, 0.3)
    arguments: dict[str, tuple[Any, ...]] = {
        "pool": (k, None),
        "route": (q, means, None, None),
        "attend": (q, k, v, layout, 0.3),
        "attend_backward": (q, k, v, layout, 0.3, result, d_out, None),
    }
    default = backend.default_config(problem)
    assert default == default_config(8, "float32", EMULATED)
    config = list(backend.search_space(problem, operation))[-1]
    assert config != default
    assert backend.estimate(problem, operation, config).reason is None
    found, wanted = (getattr(backend, operation)(problem, *arguments[operation], config=one) for one in (config, None))
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
