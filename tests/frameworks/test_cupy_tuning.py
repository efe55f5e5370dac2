"""Tuning on CuPy arrays: measured on CuPy's stream, judged on the device, never while a CUDA graph is captured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sparsemoc as moc
from sparsemoc.backends import Problem
from sparsemoc.backends.protocol import Operation
from sparsemoc.tuning import resolve
from sparsemoc.tuning import search as searching
from sparsemoc.tuning.clock import HostClock
from tests.backends.cupy.fake_arrays import Stream
from tests.backends.cupy.fake_cupy import installed
from tests.frameworks.cupy_problem import LENGTHS, SPEC, OnCupy, numpy_arrays, put, same


@dataclass(frozen=True, kw_only=True)
class Config:
    """Whether the backend's results are right."""

    right: bool = True
    tile: int = 1


class Tuned(OnCupy):
    """Two configs that are right, and one that is not."""

    name = "tuned"

    def default_config(self, problem: Problem) -> Any:
        return Config()

    def search_space(self, problem: Problem, operation: Operation) -> Any:
        return [Config(), Config(tile=2), Config(right=False)]

    def attend_backward(self, *given: Any, config: Any = None) -> Any:
        grads = super().attend_backward(*given)
        return grads if config is None or config.right else tuple(grad.like(grad.memory + 1) for grad in grads)


@pytest.fixture(autouse=True)
def _cupy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("SPARSEMOC_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(searching, "clock_of", lambda problem, array: HostClock())
    resolve.forget()
    with installed():
        yield
    resolve.forget()


def test_every_operation_is_tuned() -> None:
    backend, arrays = Tuned(), numpy_arrays()
    told: list[str] = []
    with moc.tune(budget_s=20, progress=told.append) as session:
        found = moc.attention_grads(
            put(arrays["q"]), put(arrays["k"]), put(arrays["v"]), SPEC, put(arrays["d_out"]), key_lengths=LENGTHS,
            backend=backend,
        )  # fmt: skip
    assert not session.skipped
    assert sorted(key.operation for _, key in session.outcomes) == ["attend", "attend_backward", "pool", "route"]
    assert any("dq[" in line and "off the reference" in line for line in told), told
    own_q, own_k, own_v, own_d_out = arrays.values()
    expected = moc.attention_grads(own_q, own_k, own_v, SPEC, own_d_out, key_lengths=LENGTHS, backend="reference")
    for one, other in zip(found, expected, strict=True):
        same(one, other)


def test_nothing_is_tuned_while_a_graph_is_captured() -> None:
    arrays = numpy_arrays()
    with Stream(5) as stream, moc.tune(budget_s=20, progress=None) as session:
        stream.capturing = True
        moc.pool(put(arrays["k"]), moc.plan(SPEC), backend=Tuned())
    assert list(session.skipped.values()) == ["a CUDA graph is captured. Hint: make a first call before the capture"]


def test_arrays_that_hold_infinity_are_not_tuned_on() -> None:
    keys = numpy_arrays()["k"]
    keys[0, 0, 0, 0] = np.inf
    with moc.tune(budget_s=20, progress=None) as session:
        moc.pool(put(keys), moc.plan(SPEC), backend=Tuned())
    assert list(session.skipped.values()) == ["the arrays hold NaN or infinity, so that results cannot be judged"]
