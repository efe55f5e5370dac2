"""`sparsemoc.tune`: what is measured where, and what every other call takes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sparsemoc as moc
from sparsemoc.spec.errors import SpecError
from sparsemoc.tuning import resolve, search, session
from sparsemoc.tuning.store import Store
from tests.tuning.planted import Planted, PlantedConfig, ScriptedClock

SPEC = moc.RoutingSpec(chunks=moc.Chunks(size=8), top_k=2, anchors=("chunk",))
Q, K, V = np.random.default_rng(0).standard_normal((3, 1, 40, 2, 4), np.float32)


class Scene:
    """A planted backend and the clock that reads its script."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.backend = Planted({0: 1.0, 1: 0.5})
        monkeypatch.setattr(search, "clock_of", lambda problem, array: ScriptedClock(self.backend))

    def call(self, tokens: int = 40, **given: Any) -> Any:
        q, k, v = Q[:, :tokens], K[:, :tokens], V[:, :tokens]
        return moc.attention(q, k, v, SPEC, backend=self.backend, **given)

    def used(self, tokens: int = 40) -> dict[str, int]:
        """Return the config of each operation of a call."""
        self.backend.calls.clear()
        self.call(tokens)
        assert [name for name, _ in self.backend.calls] == ["pool", "route", "attend"]
        return dict(self.backend.calls)


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Scene]:
    monkeypatch.setenv("SPARSEMOC_CACHE_DIR", str(tmp_path))
    resolve.forget()
    yield Scene(monkeypatch)
    resolve.forget()
    assert session._OPEN == []


ALL = {"pool": 1, "route": 1, "attend": 1}
NONE = dict.fromkeys(ALL, 0)


def test_nothing_is_measured_outside_a_block(scene: Scene) -> None:
    assert scene.used() == NONE
    assert len(scene.backend.calls) == 3
    with moc.tune(budget_s=1000, progress=None):
        pass
    assert scene.used() == NONE


def test_every_operation_is_tuned_once_and_for_all(scene: Scene) -> None:
    with moc.tune(budget_s=1000, progress=None) as tuned:
        out = scene.call()
        measured = len(scene.backend.calls)
        scene.call()
    assert len(scene.backend.calls) == measured + 3
    assert {key.operation for _, key in tuned.outcomes} == set(ALL)
    assert all(outcome.config == {"number": 1} for outcome in tuned.outcomes.values())
    assert scene.used() == ALL
    np.testing.assert_array_equal(out, moc.attention(Q, K, V, SPEC, backend="reference"))


def test_results_serve_another_process(scene: Scene) -> None:
    with moc.tune(budget_s=1000, progress=None):
        scene.call()
    assert len(list(Store().entries())) == 3
    resolve.forget()
    assert scene.used() == ALL


def test_a_second_block_reuses(scene: Scene) -> None:
    with moc.tune(budget_s=1000, progress=None):
        scene.call()
    for forget in (False, True):
        if forget:  # as another process would
            resolve.forget()
        scene.backend.calls.clear()
        with moc.tune(budget_s=1000, progress=None) as second:
            scene.call()
        assert len(scene.backend.calls) == 3
        assert second.outcomes == {}
        assert {key.operation for _, key in second.reused} == set(ALL)


def test_again_tunes_anew(scene: Scene) -> None:
    with moc.tune(budget_s=1000, progress=None):
        scene.call()
    scene.backend.seconds = {0: 1.0, 1: 2.0}
    with moc.tune(budget_s=1000, progress=None, again=True) as second:
        scene.call()
    assert len(second.outcomes) == 3
    assert scene.used() == NONE


def test_gradients_are_tuned_too(scene: Scene) -> None:
    with moc.tune(budget_s=10_000, progress=None) as tuned:
        moc.attention_grads(Q, K, V, SPEC, np.ones_like(V), backend=scene.backend)
    assert {key.operation for _, key in tuned.outcomes} == {*ALL, "attend_backward"}


def test_an_explicit_config_is_obeyed_and_not_tuned(scene: Scene) -> None:
    with moc.tune(budget_s=1000, progress=None) as tuned:
        scene.call(config=PlantedConfig(number=1))
    assert (tuned.outcomes, tuned.skipped) == ({}, {})
    assert {number for _, number in scene.backend.calls} == {1}


def test_other_threads_are_tuned_in_the_block(scene: Scene) -> None:
    """Autograd and host callbacks run in threads of their own."""
    with moc.tune(budget_s=1000, progress=None) as tuned:
        threads = [threading.Thread(target=scene.call) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(tuned.outcomes) == 3
    assert sum(call == ("pool", 0) for call in scene.backend.calls) < 50


def test_the_inner_block_is_the_one_that_measures(scene: Scene) -> None:
    with moc.tune(budget_s=1000, progress=None) as outer:
        with moc.tune(budget_s=1000, progress=None) as inner:
            scene.call()
        scene.call()
    assert len(inner.outcomes) == 3
    assert (outer.outcomes, len(outer.reused)) == ({}, 3)


def test_an_error_in_the_block_closes_it(scene: Scene) -> None:
    with pytest.raises(RuntimeError, match="mine"), moc.tune(budget_s=1000, progress=None):
        raise RuntimeError("mine")
    assert scene.used() == NONE


def test_an_error_of_the_default_is_the_callers(scene: Scene) -> None:
    def fault(results: Any) -> Any:
        raise ValueError("broken")

    scene.backend.faults[0] = fault
    with pytest.raises(ValueError, match="broken"), moc.tune(budget_s=1000, progress=None) as tuned:
        scene.call()
    assert (tuned.outcomes, tuned.skipped) == ({}, {})


def test_the_budget_is_shared(scene: Scene) -> None:
    with moc.tune(budget_s=40, progress=None) as tuned:
        scene.call()
    outcomes = {key.operation: outcome for (_, key), outcome in tuned.outcomes.items()}
    assert outcomes["pool"].budget == 20.0
    assert outcomes["route"].budget == (40 - outcomes["pool"].spent) / 2
    assert tuned.spent <= 40
    assert tuned.left == 40 - tuned.spent
    skipped = {key.operation: reason for (_, key), reason in tuned.skipped.items()}
    assert set(skipped) == {"attend"}
    assert "too small to compare a config with the default" in skipped["attend"]


def test_nothing_begins_when_the_budget_is_used_up(scene: Scene) -> None:
    lines: list[str] = []
    with moc.tune(budget_s=1000, progress=lines.append) as tuned:
        tuned.spent = 1000.0
        scene.call()
    assert set(tuned.skipped.values()) == {"the budget is used up"}
    assert len(scene.backend.calls) == 3
    assert lines[0] == "not tuned: planted pool: 40 tokens, 2 heads x 4, float32: the budget is used up"


def test_what_cannot_be_tuned_is_told(scene: Scene) -> None:
    scene.backend.operations = ("attend",)
    with moc.tune(budget_s=1000, progress=None) as tuned:
        scene.call()
    assert {key.operation: reason for (_, key), reason in tuned.skipped.items()} == dict.fromkeys(
        ("pool", "route"), "nothing to tune: the search space holds the default alone"
    )
    assert scene.used() == {"pool": 0, "route": 0, "attend": 1}


def test_a_wrong_default_is_told_and_not_replaced(scene: Scene) -> None:
    lines: list[str] = []
    scene.backend.operations, scene.backend.faults = (
        ("attend",),
        {0: lambda r: type(r)(r.out, r.lse + 1) if hasattr(r, "lse") else r},
    )
    with moc.tune(budget_s=1000, progress=lines.append) as tuned:
        scene.call()
        scene.call()
    (reason,) = (reason for (_, key), reason in tuned.skipped.items() if key.operation == "attend")
    assert reason.startswith("the default's results differ from the reference: lse[0, 0, 0:")
    assert sum("NOT TUNED" in line for line in lines) == 1
    assert tuned.outcomes == {}
    assert scene.used() == NONE


def test_results_that_cannot_be_written_hold_in_this_process(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Store, "save", lambda self, environment, key, outcome: "the folder is read-only")
    lines: list[str] = []
    with moc.tune(budget_s=1000, progress=lines.append) as tuned:
        scene.call()
    assert tuned.unsaved == "the folder is read-only"
    assert any("for this process only: the folder is read-only" in line for line in lines)
    assert scene.used() == ALL


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"budget_s": 0}, "tune: budget_s must be a positive number of seconds, got 0 (int)."),
        ({"budget_s": True}, "tune: budget_s must be a positive number of seconds, got True (bool)."),
        ({"budget_s": float("inf")}, "tune: budget_s must be a positive number of seconds, got inf (float)."),
        ({"budget_s": float("nan")}, "tune: budget_s must be a positive number of seconds, got nan (float)."),
        ({"budget_s": "60"}, "tune: budget_s must be a positive number of seconds, got '60' (str)."),
        ({"max_configs": 0}, "tune: max_configs must be"),
        ({"max_configs": 2.0}, "tune: max_configs must be"),
        ({"again": 1}, "tune: again must be True or False, got 1 (int)."),
        ({"progress": "stderr"}, "tune: progress must be a function of a line of text, or None, got 'stderr' (str)."),
    ],
)
def test_errors_of_arguments(given: dict[str, Any], text: str) -> None:
    with pytest.raises(SpecError) as caught, moc.tune(**given):
        pass
    assert str(caught.value).startswith(text)
    assert session._OPEN == []
