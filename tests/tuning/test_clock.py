"""Clocks: the right one for the arrays, and what it waits for."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sparsemoc.testing.problems import Chunks, Problem, RoutingSpec, Segment, Stream
from sparsemoc.tuning import clock as clocks
from sparsemoc.tuning.clock import CudaClock, CupyClock, HostClock, JaxClock, clock_of
from tests.tuning.planted import Planted, works

PROBLEM = Problem(RoutingSpec(chunks=Chunks(size=8), top_k=2), (Stream((Segment("video", 16),)),))


def test_a_mean_over_the_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, calls = HostClock(), []
    times = iter([10.0, 16.0])
    monkeypatch.setattr(clock, "now", lambda: next(times))
    assert clock.seconds(lambda: calls.append(1), 4) == 1.5
    assert len(calls) == 4


def test_jax_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[Any] = []
    monkeypatch.setattr(clocks, "import_module", lambda name: SimpleNamespace(block_until_ready=waited.append))
    JaxClock().seconds(lambda: "result", 3)
    assert waited == ["result"] * 3


def test_events_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call stands between two events, after the cache was emptied; nothing is read before the device is done."""
    told: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self, stream: str) -> None:
            told.append(f"event on {stream}")

        def elapsed_time(self, other: Any) -> float:
            assert told[-1] == "wait"
            return 2.0  # milliseconds

    def empty(size: int, **given: Any) -> Any:
        assert size > 50_000_000
        return SimpleNamespace(zero_=lambda: told.append("flush"))

    cuda = SimpleNamespace(
        Event=Event,
        current_stream=lambda device: f"stream of {device}",
        synchronize=lambda device: told.append("wait"),
        get_device_properties=lambda device: SimpleNamespace(L2_cache_size=50_000_000),
    )
    monkeypatch.setattr(clocks, "import_module", lambda name: SimpleNamespace(cuda=cuda, empty=empty, int8="int8"))
    assert CudaClock("cuda:1").seconds(lambda: told.append("call"), 2) == pytest.approx(0.002)
    turn = ["flush", "event on stream of cuda:1", "call", "event on stream of cuda:1"]
    assert told == ["wait", *turn, *turn, "wait"]


def test_events_of_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    class Event:
        def record(self, stream: str) -> None:
            told.append(f"event on {stream}")

    def empty(size: int, dtype: str) -> Any:
        assert (size, dtype) == (200_000_000, "int8")
        return SimpleNamespace(fill=lambda value: told.append("flush"))

    cuda = SimpleNamespace(
        Event=Event, get_current_stream=lambda: "CuPy's stream", get_elapsed_time=lambda start, stop: 3.0
    )
    device = SimpleNamespace(attributes={"L2CacheSize": 50_000_000}, synchronize=lambda: told.append("wait"))
    monkeypatch.setattr(clocks, "import_module", lambda name: SimpleNamespace(cuda=cuda, empty=empty))
    assert CupyClock(device).seconds(lambda: told.append("call"), 2) == pytest.approx(0.003)
    turn = ["flush", "event on CuPy's stream", "call", "event on CuPy's stream"]
    assert told == ["wait", *turn, *turn, "wait"]


def test_the_clock_follows_the_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = works(PROBLEM, Planted())["attend"].problem
    monkeypatch.setattr(clocks, "CudaClock", lambda device: f"events on {device}")
    monkeypatch.setattr(clocks, "CupyClock", lambda device: f"CuPy's events on {device}")
    array = SimpleNamespace(device="cuda:0")
    assert type(clock_of(problem, np.zeros(1))) is HostClock
    assert type(clock_of(replace(problem, framework="torch"), array)) is HostClock
    assert type(clock_of(replace(problem, framework="jax", device="cuda"), array)) is JaxClock
    on_gpu: object = clock_of(replace(problem, framework="torch", device="cuda"), array)
    assert on_gpu == "events on cuda:0"
    of_cupy: object = clock_of(replace(problem, framework="cupy", device="cuda"), array)
    assert of_cupy == "CuPy's events on cuda:0"
