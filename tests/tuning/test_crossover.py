"""What is said of lengths and densities between measured points, and how it is kept."""

from __future__ import annotations

import json
import math
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparsemoc.spec.errors import SpecError
from sparsemoc.tuning import crossover_store, shipped
from sparsemoc.tuning.crossover import Crossover, Point, nearest
from sparsemoc.tuning.key import Environment

HERE = Environment("numba", "numba 1", "AMD EPYC", "znver4", "", "abc")
DENSITIES = (0.03, 0.1, 0.3, 1.0)


def f(tokens: float, density: float) -> float:
    """Our time in units of dense attention's, of a made machine: what each call costs falls with the square."""
    return float((400 / tokens) ** 2 + 0.9 * density * (1 + 300 / tokens))


def made(lengths: tuple[int, ...] = (256, 512, 1024, 2048, 4096), **more: Any) -> Crossover:
    points = [Point(tokens, density, 1 / f(tokens, density)) for tokens in lengths for density in DENSITIES]
    fields: dict[str, Any] = {
        "backend": "numba", "architecture": "znver4", "device": "AMD EPYC", "versions": "numba 1", "threads": 2,
        "heads": 4, "dtype": "float32", "head_dim": 64, "dense": "torch sdpa flash", "points": points,
        "command": "python -m bench.crossover", "time": "2025-01-02T03:04:05+00:00",
    }  # fmt: skip
    return Crossover(**fields | more)


def test_measured_points_are_told_as_they_are() -> None:
    found = made()
    assert found.lengths == (256, 512, 1024, 2048, 4096)
    assert found.densities == (0.03, 1.0)
    for tokens, density, speedup in found.points:
        assert found.speedup(tokens, density) == pytest.approx(speedup)
    assert found.misfit < 1e-6


def test_between_points_it_is_a_line_in_the_density_and_a_power_of_the_length() -> None:
    found = made()
    assert 1 / found.speedup(512, 0.2) == pytest.approx(f(512, 0.2))  # type: ignore[operator]
    middle = math.sqrt(512 * 1024)
    assert found.speedup(middle, 0.2) == pytest.approx(1 / math.sqrt(f(512, 0.2) * f(1024, 0.2)))


def test_beyond_the_measured_range_a_factor_of_two_and_no_more() -> None:
    found = made()
    assert found.speedup(8192, 0.1) == pytest.approx(f(2048, 0.1) / f(4096, 0.1) ** 2)
    assert found.speedup(128, 0.1) == pytest.approx(f(512, 0.1) / f(256, 0.1) ** 2)
    assert found.speedup(1024, 0.015) == pytest.approx(1 / f(1024, 0.015))
    for tokens, density in ((8193, 0.1), (127, 0.1), (1024, 0.0149)):
        assert found.speedup(tokens, density) is None
        assert not found.knows(tokens, density)
    assert made((1024,)).speedup(2048, 0.3) == pytest.approx(1 / f(1024, 0.3)), "of one length all are like it"


@pytest.mark.parametrize("density", [0.03, 0.1, 0.25, 0.5, 0.8])
def test_the_length_is_where_the_speed_up_passes_one(density: float) -> None:
    found = made()
    length = found.length(density)
    assert length is not None
    assert found.speedup(length, density) > 1 >= found.speedup(length - 1, density)  # type: ignore[operator]
    assert f(length / 1.1, density) > 1 > f(length * 1.1, density), "near the length of the made machine"


def test_the_length_is_the_last_crossing_and_none_where_there_is_none() -> None:
    again = [p if p.tokens != 2048 else p._replace(speedup=0.9 - 0.5 * p.density) for p in made().points]
    length = made(points=again).length(0.1)
    assert length is not None
    assert 2048 < length < 4096, "faster at 1,024, slower again at 2,048"
    assert made((128, 256)).length(0.1) is None
    assert made((2048, 4096)).length(0.1) == 2048, "faster at every measured length"
    assert made().length(0.014) is None, "not measured"


@pytest.mark.parametrize("tokens", [512, 600, 1000, 1024])
def test_the_density_is_where_the_speed_up_passes_one(tokens: int) -> None:
    found = made()
    density = found.density(tokens)
    assert density is not None
    assert found.speedup(tokens, density) == pytest.approx(1)
    assert found.speedup(tokens, density * 0.99) > 1 > found.speedup(tokens, density * 1.01)  # type: ignore[operator]


def test_every_density_or_none() -> None:
    assert made().density(300) is None
    assert made().density(100_000) is None
    cheap = [p._replace(speedup=3 - p.density) for p in made().points]
    assert made(points=cheap).density(4096) == 1.0


def test_noise_and_unlike_layouts_are_averaged() -> None:
    random = np.random.default_rng(0)
    noisy = [p._replace(speedup=p.speedup * random.uniform(0.95, 1.05)) for p in made().points]
    anchored = Point(1024, 0.1, 1.1 / f(1024, 0.1))
    found = made(points=[*noisy, anchored])
    for tokens, density, speedup in made().points:
        assert found.speedup(tokens, density) == pytest.approx(speedup, rel=0.1)
    assert 0.02 < found.misfit < 0.15
    for low, high in pairwise(np.linspace(0.03, 1, 9).tolist()):
        assert found.speedup(1500, low) > found.speedup(1500, high)  # type: ignore[operator]


def test_no_part_of_the_time_is_negative() -> None:
    # A line through both points would cost less than nothing at density 0: least of (8 b / 4 - 1)^2 + (b - 1)^2.
    steep = made(points=[(64, 0.25, 8.0), (64, 1.0, 1.0)])
    assert [steep.speedup(64, density) for density in (0.25, 0.5)] == pytest.approx([4 / 0.6, 2 / 0.6])
    # It would fall with the density: least of (a - 1)^2 + (2 a - 1)^2.
    falling = made(points=[(64, 0.25, 1.0), (64, 1.0, 2.0)])
    assert [falling.speedup(64, density) for density in (0.25, 0.5)] == pytest.approx([1 / 0.6, 1 / 0.6])


def test_json_gives_it_back() -> None:
    found = made()
    assert Crossover.from_dict(json.loads(json.dumps(found.to_dict()))) == found


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"points": []}, "points must be a list of some points, got [] (list)"),
        ({"points": [[1, 0.5]]}, "a point must be tokens, density and speedup, got [1, 0.5] (list)"),
        ({"points": [[64, 0.5, 1.0]]}, "two densities of each length"),
        ({"points": [[64, 0.1, 1.0], [64, 0.2, 1.0], [128, 0.4, 1.0], [128, 0.5, 1.0]]}, "that all lengths share"),
        ({"points": [[0, 0.5, 1.0], [64, 0.6, 1.0]]}, "tokens of a point must be a whole number >= 1, got 0 (int)"),
        ({"points": [[64, 1.5, 1.0], [64, 0.6, 1.0]]}, "density of a point must be a finite number >= 0 and <= 1"),
        ({"points": [[64, 0.5, 0.0], [64, 0.6, 1.0]]}, "density and speedup of a point must be above 0"),
        ({"points": [[64, 0.5, math.nan], [64, 0.6, 1.0]]}, "speedup of a point must be a finite number"),
        ({"head_dim": "64"}, "head_dim must be a whole number >= 1, got '64' (str)"),
        ({"device": None}, "device must be a text, got None (NoneType)"),
        ({"extra": 1}, "it must hold architecture, backend, command"),
    ],
)
def test_what_is_no_crossover_is_refused(change: dict[str, Any], text: str) -> None:
    with pytest.raises(SpecError) as caught:
        Crossover.from_dict(made().to_dict() | change)
    assert str(caught.value).startswith("Crossover: ")
    assert text in str(caught.value)


def test_the_nearest_head_dim_of_the_dtype() -> None:
    held = [made(head_dim=32), made(head_dim=128), made(dtype="bfloat16", head_dim=64)]
    assert nearest(held, "float32", 256) == held[1]
    assert nearest(held, "float32", 64) == held[0], "as near as 128, and the smaller"
    assert nearest(held, "bfloat16", 128) == held[2]
    assert nearest(held, "float16", 64) is None


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPARSEMOC_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(shipped, "data_folder", lambda: tmp_path / "data")
    return tmp_path / "cache"


def test_a_measurement_is_kept_by_environment_dtype_and_head_dim(cache: Path) -> None:
    assert crossover_store.load(HERE) == ()
    assert crossover_store.save(HERE, made()) is None
    assert crossover_store.save(HERE, made(head_dim=128)) is None
    newer = made(time="2026-01-01T00:00:00+00:00")
    assert crossover_store.save(HERE, newer) is None
    assert crossover_store.load(HERE) == (newer, made(head_dim=128))
    assert crossover_store.place(HERE) == cache / "crossover" / f"{HERE.digest}.json"
    assert crossover_store.load(HERE._replace(versions="numba 2")) == ()


def test_what_the_user_measured_comes_before_what_is_shipped(cache: Path, tmp_path: Path) -> None:
    there = made(device="another EPYC", points=made((512, 1024)).points)
    path = crossover_store.ship(there, tmp_path / "data")
    assert path == tmp_path / "data" / "znver4" / "numba.crossover.json"
    assert crossover_store.ship(made(head_dim=128), tmp_path / "data") == path
    assert crossover_store.load(HERE) == (there, made(head_dim=128))
    assert crossover_store.load(HERE._replace(architecture="znver3")) == ()
    assert crossover_store.load(HERE._replace(backend="triton")) == ()
    crossover_store.save(HERE, made())
    assert crossover_store.load(HERE) == (made(), made(head_dim=128))


@pytest.mark.parametrize(
    "damage", ["", "{", "[]", '{"version": 1}', "half", "version", "another", "a field", "[" * 9999]
)
def test_a_damaged_file_counts_as_absent_and_is_replaced(cache: Path, tmp_path: Path, damage: str) -> None:
    crossover_store.save(HERE, made())
    files = [crossover_store.place(HERE), crossover_store.ship(made(), tmp_path / "data")]
    for path in files:
        whole = path.read_text()
        changed = {
            "half": whole[: len(whole) // 2],
            "version": whole.replace('"version": 1', '"version": 2'),
            "another": whole.replace('"numba"', '"triton"', 1),
            "a field": whole.replace('"dense"', '"thick"'),
        }.get(damage, damage)
        assert changed != whole
        path.write_text(changed)
    assert crossover_store.load(HERE) == ()
    with pytest.raises(SpecError, match=r"ship: .* must be a file of crossovers, or absent: .* Hint: remove it\."):
        crossover_store.ship(made(), tmp_path / "data")
    assert crossover_store.save(HERE, made()) is None
    assert crossover_store.load(HERE) == (made(),)


def test_a_cache_that_cannot_be_written_gives_the_reason(cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    reason = crossover_store.save(HERE, made())
    assert reason == f"{crossover_store.place(HERE)} cannot be written: {os.strerror(20)}"
    assert crossover_store.load(HERE) == ()


def test_a_backend_is_known_to_be_measured_before_it_is_loaded(cache: Path, tmp_path: Path) -> None:
    assert not crossover_store.measured("numba")
    crossover_store.save(HERE, made())
    assert crossover_store.measured("numba")
    assert not crossover_store.measured("triton")
    crossover_store.ship(made(backend="triton", architecture="sm_90"), tmp_path / "data")
    assert crossover_store.measured("triton")
    for path in (cache / "crossover").iterdir():
        path.write_text("[1]")
    assert not crossover_store.measured("numba")


def test_dense_attention_that_computes_half_the_pairs_is_twice_as_fast() -> None:
    found = made()
    assert found.speedup(1024, 0.1, 0.5) == pytest.approx(0.5 / f(1024, 0.1))
    length, density = found.length(0.1, 0.5), found.density(1024, 0.5)
    assert length is not None
    assert density is not None
    assert found.speedup(length, 0.1, 0.5) > 1 >= found.speedup(length - 1, 0.1, 0.5)  # type: ignore[operator]
    assert found.speedup(1024, density, 0.5) == pytest.approx(1)
