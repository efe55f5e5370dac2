"""What problems share a result, and what makes an environment another."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import sparsemoc as moc
from sparsemoc.backends import Problem, get_backend
from sparsemoc.tuning.key import Environment, Key, environment_of, key_of, sources_of
from tests.tuning.toys import Toy

STREAM = moc.Stream.multishot(shots=2, frames=2, height=3, width=4, caption=3, prompt=2)
SPEC = moc.RoutingSpec(stream=STREAM, chunks=moc.Chunks(size=8), top_k=(1, 3), anchors=("text", "shot"))


def problem(plan: moc.Plan | None = None, **changes: Any) -> Problem:
    values: dict[str, Any] = {
        "plan": plan or moc.plan(SPEC), "framework": "numpy", "device": "cpu", "dtype": "float32", "batch": 3,
        "heads": 2, "kv_heads": 1, "head_dim": 8, "v_head_dim": 4,
    }  # fmt: skip
    return Problem(**values | changes)


def power(count: float) -> int:
    """Return the next power of two, by counting up."""
    found = 1
    while found < count:
        found *= 2
    return found if count > 0 else 0


def test_the_key_by_counting_every_query() -> None:
    sample = moc.plan(SPEC).samples[0]
    tokens = sample.k_tokens
    assert tokens == 2 + 2 * (3 + 24)
    anchored = sum(len(sample.anchors(position)) for position in range(tokens)) / tokens
    assert key_of(problem(), "route") == Key(
        operation="route", dtype="float32", precision="ieee", head_dim=8, v_head_dim=4, group=2, token_causal=False,
        unit=1, slots=3, chunk=power(tokens / sample.chunks), anchored=power(anchored), q_tokens=64, k_tokens=64,
        rows=8, anchors="auto", gradients=False,
    )  # fmt: skip


@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5, 63, 64, 65, 127, 128, 129, 1000])
def test_lengths_count_by_the_next_power_of_two(tokens: int) -> None:
    plan = moc.plan(moc.RoutingSpec(chunks=moc.Chunks(size=5), top_k=1, anchors=()), tokens=tokens)
    key = key_of(problem(plan), "pool")
    assert (key.k_tokens, key.q_tokens, key.anchored) == (power(tokens), power(tokens), 0)
    assert key.chunk == power(tokens / plan.chunks)


def test_a_packed_key_is_of_the_mean_sample() -> None:
    streams = tuple(moc.Stream((moc.Segment("video", tokens),)) for tokens in (30, 100, 200))
    key = key_of(problem(moc.plan(moc.RoutingSpec(chunks=moc.Chunks(size=10), top_k=1), streams), batch=1), "attend")
    assert (key.q_tokens, key.k_tokens, key.chunk, key.rows) == (128, 128, 16, 2)


def test_queries_that_are_a_part_of_the_stream() -> None:
    plan = moc.plan(moc.RoutingSpec(chunks=moc.Chunks(size=10), top_k=1), tokens=100, q_tokens=7)
    key = key_of(problem(plan), "attend")
    assert (key.q_tokens, key.k_tokens) == (8, 128)


def test_problems_alike_share_a_key_and_others_do_not() -> None:
    key = key_of(problem(), "attend")
    assert key_of(problem(batch=4), "attend") == key, "6 rows count as 8 do"
    others = [
        problem(batch=5), problem(heads=8), problem(kv_heads=2), problem(dtype="float16"), problem(backward=True),
        problem(head_dim=16), problem(v_head_dim=8), problem(options=moc.Options(precision="tf32")),
        problem(options=moc.Options(anchors="own")), problem(deterministic=True),
    ]  # fmt: skip
    keys = {key, key_of(problem(), "pool")} | {key_of(one, "attend") for one in others}
    assert len(keys) == 2 + len(others)
    assert len({one.digest for one in keys}) == len(keys)


def test_what_changes_no_speed_changes_no_key() -> None:
    key = key_of(problem(), "attend")
    options = moc.Options(max_workspace=1 << 20, checked=True)
    assert key_of(problem(framework="torch", views=("numpy",), options=options), "attend") == key


def test_a_deterministic_key_knows_no_batch_and_no_heads() -> None:
    keys = {
        key_of(problem(batch=batch, heads=heads, kv_heads=heads, deterministic=True), "attend")
        for batch in (1, 2, 64)
        for heads in (2, 40)
    }
    (key,) = keys
    assert key.rows == 0


def test_the_digest_is_that_of_the_fields() -> None:
    key = key_of(problem(), "attend")
    assert key.digest == Key(**key._asdict()).digest
    assert len(key.digest) == 16
    assert int(key.digest, 16) >= 0


def test_the_environment_is_what_the_backend_tells() -> None:
    toy = Toy(device="Toy 9", architecture="toy_9", driver="7.5", versions="toy 3")
    found = environment_of(toy, problem())
    assert found == Environment("toy", "toy 3", "Toy 9", "toy_9", "7.5", sources_of(toy))
    assert environment_of(Toy(), problem()) != found


def test_a_backend_that_tells_nothing_has_the_machines_kind() -> None:
    found = environment_of(get_backend("reference"), problem())
    assert found.architecture
    assert found.device
    assert found.driver == ""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., ModuleType]:
    def load(name: str, file: Path, package: bool = False) -> ModuleType:
        where = [str(file.parent)] if package else None
        spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=where)
        assert spec is not None
        assert spec.loader is not None
        loaded = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, loaded)
        spec.loader.exec_module(loaded)
        return loaded

    return load


PLUG_IN = "from tests.tuning.toys import Toy\nclass Plug(Toy):\n    pass\n"


def test_a_change_of_a_plug_in_changes_its_sources(tmp_path: Path, module: Callable[..., ModuleType]) -> None:
    file, beside = tmp_path / "plug.py", tmp_path / "beside.py"
    file.write_text(PLUG_IN)
    beside.write_text("")
    plug = module("plug_of_this_test", file).Plug()
    first = sources_of(plug)
    assert sources_of(plug) == first
    beside.write_text("x = 1\n")
    assert sources_of(plug) == first, "a module that stands alone is one file"
    file.write_text(PLUG_IN + "# faster now\n")
    assert sources_of(plug) != first


@pytest.mark.parametrize("name", ["kernels.py", "deep/kernels.cu", "deep/er/tile.cuh", "glue.h"])
def test_a_change_anywhere_in_a_package_changes_its_sources(
    tmp_path: Path, module: Callable[..., ModuleType], name: str
) -> None:
    (tmp_path / "backend.py").write_text(PLUG_IN)
    (tmp_path / "__init__.py").write_text("")
    module("package_of_this_test", tmp_path / "__init__.py", package=True)
    plug = module("package_of_this_test.backend", tmp_path / "backend.py").Plug()
    seen = {sources_of(plug)}
    kernel = tmp_path / name
    kernel.parent.mkdir(parents=True, exist_ok=True)
    kernel.write_text("one")
    seen.add(sources_of(plug))
    kernel.write_text("two")
    seen.add(sources_of(plug))
    moved = kernel.with_name(f"moved{kernel.suffix}")
    kernel.rename(moved)
    seen.add(sources_of(plug))
    assert len(seen) == 4
    (tmp_path / "notes.txt").write_text("no kernel")
    assert sources_of(plug) in seen


def test_the_sources_of_a_base_class_count(tmp_path: Path, module: Callable[..., ModuleType]) -> None:
    base, derived = tmp_path / "base.py", tmp_path / "derived.py"
    base.write_text(PLUG_IN)
    module("base_of_this_test", base)
    derived.write_text("from base_of_this_test import Plug\nclass Own(Plug):\n    pass\n")
    own = module("derived_of_this_test", derived).Own()
    first = sources_of(own)
    base.write_text(PLUG_IN + "# faster now\n")
    assert sources_of(own) != first


def test_a_class_without_a_file_is_served() -> None:
    values: dict[str, Any] = {"__name__": "a_notebook", "Toy": Toy}
    exec("class Cell(Toy):\n    name = 'cell'\n", values)
    cell = values["Cell"]()
    assert sources_of(cell) == sources_of(Toy())
    assert environment_of(cell, problem()).backend == "cell"


def test_a_file_that_is_gone_is_no_error(tmp_path: Path, module: Callable[..., ModuleType]) -> None:
    file = tmp_path / "plug.py"
    file.write_text(PLUG_IN)
    plug = module("gone_of_this_test", file).Plug()
    file.unlink()
    assert sources_of(plug) == sources_of(plug)
