"""What is compiled without a GPU, and what counts as a kernel that cannot run."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

needs_triton = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("torch", "triton")), reason="needs torch and triton"
)


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Any:
    """bench is no part of the package: it is imported from the root of the checkout."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2])
    return import_module("bench.kernels")


@pytest.fixture
def fine(kernels: Any) -> Any:
    return kernels.Outcome("merge", 128, "bfloat16", 89, 1.0, shared=99 * 1024, registers=255, spills=0)


def test_a_kernel_that_fits_has_no_problem(fine: Any) -> None:
    assert fine.problem is None


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"shared": 99 * 1024 + 1}, "101377 bytes of shared memory, more than 101376"),
        ({"registers": 256}, "256 registers, more than 255"),
        ({"spills": 385}, "385 bytes of spills, more than 384"),
        ({"kernel": "grads split", "spills": 769}, "769 bytes of spills, more than 768"),
        ({"error": "CompilationError: at 3:4"}, "CompilationError: at 3:4"),
    ],
)
def test_a_kernel_that_cannot_run_says_why(fine: Any, change: dict[str, object], told: str) -> None:
    assert replace(fine, **change).problem == told


def test_a_masked_kernel_may_spill_more(fine: Any) -> None:
    assert replace(fine, kernel="grads split", spills=385).problem is None


@needs_triton
def test_every_kernel_is_compiled_for_every_architecture(kernels: Any) -> None:
    own = {
        "pool_kernel", "candidates_kernel", "split_kernel", "route_kernel", "drop_kernel", "count_kernel",
        "place_kernel", "attend_anchors", "attend_routed", "merge", "row_constants", "grads", "join_segments",
        "anchor_query_grads", "routed_query_grads", "join_query_grads",
    }  # fmt: skip
    for capability in kernels.SHARED:
        named = {name.replace("-", " ").split()[0] for _, name in kernels.jobs_of([capability])}
        assert named == own


@needs_triton
def test_every_shipped_config_and_the_usual_gradients_are_compiled(kernels: Any) -> None:
    found = [(job, name) for job, name in kernels.jobs_of([90])]
    assert {(job.head_dim, job.dtype) for job, _ in found} == set(kernels.CONFIGS)
    assert sum(name == "grads add_dq" for _, name in found) == len(kernels.CONFIGS)


@needs_triton
def test_what_a_config_never_runs_is_not_compiled(kernels: Any) -> None:
    """Gradients of float32 at head_dim 256 sum dq in a fixed order where shared memory is small."""
    found = {(job.head_dim, job.dtype) for job, name in kernels.jobs_of([120]) if name == "grads add_dq"}
    assert found == set(kernels.CONFIGS) - {(256, "float32")}
