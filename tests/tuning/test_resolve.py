"""Which config an operation runs with: explicit > memory > cache > shipped > default, as the backend itself sees it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sparsemoc as moc
from sparsemoc.backends import Problem
from sparsemoc.tuning import resolve, shipped
from sparsemoc.tuning.key import Environment, Key, environment_of, key_of
from sparsemoc.tuning.store import Entry, Store
from tests.tuning.samples import outcome
from tests.tuning.toys import BYTES, SHARED, Toy, ToyConfig

SPEC = moc.RoutingSpec(chunks=moc.Chunks(size=4), top_k=1, anchors=("chunk",))
Q = np.random.default_rng(0).standard_normal((1, 16, 2, 8), np.float32)
OPERATIONS = ("pool", "route", "attend")


@pytest.fixture(autouse=True)
def clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cache and shipped data of the test's own."""
    monkeypatch.setenv("SPARSEMOC_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(shipped, "data_folder", lambda: tmp_path / "data")
    resolve.forget()
    shipped._records.cache_clear()
    yield
    resolve.forget()
    shipped._records.cache_clear()


def problem(batch: int = 1, heads: int = 2, deterministic: bool = False, limit: int | None = None) -> Problem:
    return Problem(
        plan=moc.plan(SPEC, tokens=16), framework="numpy", device="cpu", dtype="float32", batch=batch, heads=heads,
        kv_heads=heads, head_dim=8, v_head_dim=8, deterministic=deterministic,
        options=moc.Options(max_workspace=limit),
    )  # fmt: skip


def place(toy: Toy, operation: str = "attend", **sizes: Any) -> tuple[Environment, Key]:
    return environment_of(toy, problem(**sizes)), key_of(problem(**sizes), operation)  # type: ignore[arg-type]


def cached(toy: Toy, **config: Any) -> None:
    """Put a config into the user's cache, as another process would."""
    for operation in OPERATIONS:
        assert Store().save(*place(toy, operation), outcome(**config)) is None


def ship(toy: Toy, folder: Path, **config: Any) -> None:
    shipped.ship([Entry(*place(toy, operation), outcome(**config)) for operation in OPERATIONS], folder / "data")
    shipped._records.cache_clear()


def given(toy: Toy, q: Any = Q, **options: Any) -> dict[str, Any]:
    """Return the config that each operation of a call got."""
    toy.ran.clear()
    expected = moc.attention(q, q, q, SPEC, backend="reference")
    np.testing.assert_array_equal(moc.attention(q, q, q, SPEC, backend=toy, **options), expected)
    assert [operation for operation, _ in toy.ran] == list(OPERATIONS), "each runs once: nothing is measured"
    return dict(toy.ran)


def all_of(config: Any) -> dict[str, Any]:
    return dict.fromkeys(OPERATIONS, config)


def test_each_level_shadows_the_next(tmp_path: Path) -> None:
    toy = Toy()
    assert given(toy) == all_of(None), "the backend's own default"
    ship(toy, tmp_path, tile=1)
    resolve.forget()
    assert given(toy) == all_of(ToyConfig(tile=1))
    cached(toy, tile=2)
    resolve.forget()
    assert given(toy) == all_of(ToyConfig(tile=2))
    for operation in OPERATIONS:
        resolve.remember(*place(toy, operation), ToyConfig(tile=3))
    assert given(toy) == all_of(ToyConfig(tile=3))
    assert given(toy, config=ToyConfig(tile=4)) == all_of(ToyConfig(tile=4))
    assert toy.asked == 0, "no call outside tune looks for configs to try"


def test_the_source_is_told(tmp_path: Path) -> None:
    toy = Toy()
    ship(toy, tmp_path, tile=1)
    assert resolve.resolve(toy, problem(), "attend") == (ToyConfig(tile=1), "shipped")
    cached(toy, tile=2)
    resolve.forget()
    assert resolve.resolve(toy, problem(), "attend") == (ToyConfig(tile=2), "cache")
    resolve.remember(*place(toy), ToyConfig(tile=3))
    assert resolve.resolve(toy, problem(), "attend") == (ToyConfig(tile=3), "memory")
    assert resolve.resolve(toy, problem(), "attend", ToyConfig(tile=4)) == (ToyConfig(tile=4), "explicit")
    assert resolve.resolve(toy, problem(), "attend_backward") == (None, "default")


def test_operations_have_configs_of_their_own() -> None:
    toy = Toy()
    Store().save(*place(toy, "pool"), outcome(tile=7))
    Store().save(*place(toy, "attend"), outcome(tile=9))
    assert given(toy) == {"pool": ToyConfig(tile=7), "route": None, "attend": ToyConfig(tile=9)}


def test_gradients_have_configs_of_their_own() -> None:
    toy = Toy()
    cached(toy, tile=7)
    environment, key = place(toy, "attend_backward")
    Store().save(environment, key._replace(gradients=True), outcome(tile=9))
    moc.attention_grads(Q, Q, Q, SPEC, Q, backend=toy)
    assert dict(toy.ran) == all_of(None) | {"attend_backward": ToyConfig(tile=9)}


def test_a_process_keeps_to_what_it_has_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy = Toy()
    cached(toy, tile=2)
    assert given(toy) == all_of(ToyConfig(tile=2))
    cached(toy, tile=3)
    assert given(toy) == all_of(ToyConfig(tile=2))
    monkeypatch.setenv("SPARSEMOC_CACHE_DIR", str(tmp_path / "another"))
    assert given(toy) == all_of(None)


def test_a_near_result_is_used_until_an_own_one_is_there(tmp_path: Path) -> None:
    toy = Toy()
    environment, key = place(toy)
    shipped.ship([Entry(environment, key._replace(k_tokens=32, q_tokens=32), outcome(tile=5))], tmp_path / "data")
    assert given(toy) == {"pool": None, "route": None, "attend": ToyConfig(tile=5)}
    Store().save(environment, key._replace(k_tokens=32), outcome(tile=6))
    resolve.forget()
    assert given(toy)["attend"] == ToyConfig(tile=5), "the cache knows exact keys alone"


def test_a_result_of_other_heads_serves_until_an_own_one_is_there(tmp_path: Path) -> None:
    toy = Toy()
    ship(toy, tmp_path, tile=1)
    for heads, tile in ((16, 16), (64, 64)):
        assert Store().save(*place(toy, heads=heads), outcome(tile=tile)) is None
    assert resolve.resolve(toy, problem(heads=2), "attend") == (ToyConfig(tile=16), "near"), "the nearer of the two"
    assert resolve.resolve(toy, problem(heads=32), "attend") == (ToyConfig(tile=64), "near"), "as near: the larger"
    alone = problem(heads=2, deterministic=True)
    assert resolve.resolve(toy, alone, "attend").source == "shipped", "its config depends on no heads"
    assert Store().save(*place(toy), outcome(tile=2)) is None
    resolve.forget()
    assert resolve.resolve(toy, problem(heads=2), "attend") == (ToyConfig(tile=2), "cache")


@pytest.mark.parametrize(
    "other", [{"device": "Toy 2"}, {"driver": "1.1"}, {"versions": "toy 2"}, {"architecture": "toy_2"}], ids=str
)
def test_another_device_or_version_misses_the_cache(tmp_path: Path, other: dict[str, str]) -> None:
    cached(Toy(), tile=2)
    ship(Toy(), tmp_path, tile=1)
    assert given(Toy()) == all_of(ToyConfig(tile=2))
    expected = None if "architecture" in other else ToyConfig(tile=1)
    assert given(Toy(**other)) == all_of(expected), "what is shipped serves the architecture"


def test_a_change_of_the_kernels_misses_the_cache() -> None:
    toy = Toy()
    environment, key = place(toy)
    Store().save(environment._replace(sources="0" * 16), key, outcome(tile=2))
    assert given(toy) == all_of(None)


@pytest.mark.parametrize(
    "config", [{"tile": 0}, {"tile": "wide"}, {"width": 3}, {"tile": SHARED // BYTES + 1}], ids=str
)
def test_a_config_that_cannot_run_gives_way_to_the_next(tmp_path: Path, config: dict[str, Any]) -> None:
    toy = Toy()
    cached(toy, **config)
    assert given(toy) == all_of(None)
    ship(toy, tmp_path, tile=1)
    resolve.forget()
    assert given(toy) == all_of(ToyConfig(tile=1))
    ship(toy, tmp_path, **config)
    resolve.forget()
    assert given(toy) == all_of(None)


def test_a_config_beyond_max_workspace_gives_the_default() -> None:
    toy = Toy()
    cached(toy, tile=200)
    tight, wide = (moc.Options(max_workspace=BYTES * tiles) for tiles in (199, 200))
    # The tight call comes first: what does not fit it must not be lost to the others.
    assert given(toy, options=tight) == all_of(None)
    assert given(toy, options=wide) == all_of(ToyConfig(tile=200))
    assert given(toy) == all_of(ToyConfig(tile=200))
    assert given(toy, options=tight) == all_of(None)
    assert given(toy, options=tight, config=ToyConfig(tile=200)) == all_of(ToyConfig(tile=200)), "explicit is obeyed"


def test_the_config_of_a_deterministic_problem_depends_on_no_batch_and_heads(tmp_path: Path) -> None:
    toy = Toy()
    for rows, tile in ((2, 5), (4, 6), (64, 7)):
        environment, key = place(toy)
        shipped.ship([Entry(environment, key._replace(rows=rows), outcome(tile=tile))], tmp_path / "data")
    large = np.concatenate([Q] * 3)
    assert given(toy, large)["attend"] == ToyConfig(tile=6), "the nearest rows"
    assert given(toy)["attend"] == ToyConfig(tile=5)
    found = {given(toy, q, deterministic=True)["attend"] for q in (Q, large, Q[:, :, :1])}
    assert len(found) == 1
    resolve.forget()
    assert {given(toy, q, deterministic=True)["attend"] for q in (large, Q[:, :, :1], Q)} == found
    Store().save(*place(toy, deterministic=True), outcome(tile=9))
    resolve.forget()
    assert {given(toy, q, deterministic=True)["attend"] for q in (Q, large)} == {ToyConfig(tile=9)}


def test_a_damaged_cache_does_no_harm() -> None:
    toy = Toy()
    cached(toy, tile=2)
    for path in Path(os.environ["SPARSEMOC_CACHE_DIR"]).rglob("*.json"):
        path.write_bytes(b"\xff" * 100)
    assert given(toy) == all_of(None)


def test_without_a_place_to_write_calls_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEMOC_CACHE_DIR", "/proc/self/fdinfo")
    toy = Toy()
    assert given(toy) == all_of(None)
    resolve.remember(*place(toy), ToyConfig(tile=3))
    assert given(toy)["attend"] == ToyConfig(tile=3), "results hold in memory"


FRESH = """
import json, sys
import numpy as np
import sparsemoc as moc
q = np.ones((1, 16, 2, 8), np.float32)
spec = moc.RoutingSpec(chunks=moc.Chunks(size=4), top_k=1)
moc.attention(q, q, q, spec, backend="reference")
moc.attention_grads(q, q, q, spec, q, backend="reference")
print(json.dumps([name for name in ("search", "judge", "clock") if f"sparsemoc.tuning.{name}" in sys.modules]))
"""


def test_a_plain_call_loads_nothing_that_measures_and_writes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "cache of a fresh process"
    environment = os.environ | {"SPARSEMOC_CACHE_DIR": str(folder)}
    done = subprocess.run([sys.executable, "-c", FRESH], capture_output=True, text=True, check=True, env=environment)
    assert json.loads(done.stdout) == []
    assert not folder.exists()
