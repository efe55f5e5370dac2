"""What `sparsemoc explain` tells of a spec's speed."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

import sparsemoc as moc
from sparsemoc.backends import Backend, Problem, available_backends, get_backend
from sparsemoc.cli import speed
from sparsemoc.spec.plan import plan
from sparsemoc.tuning import crossover_store, shipped
from sparsemoc.tuning.crossover import Crossover, Point
from sparsemoc.tuning.key import environment_of
from tests.cli.conftest import RunCommand


@pytest.fixture(autouse=True)
def nothing_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEMOC_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(shipped, "data_folder", lambda: tmp_path / "data")


@pytest.fixture
def made() -> Crossover:
    """A crossover in the cache: numba takes (1,000 / tokens)^2 + density / 2 of dense attention's time."""
    here = environment_of(get_backend("numba"), asked_of_numba())
    points = [
        Point(tokens, density, 1 / ((1000 / tokens) ** 2 + density / 2))
        for tokens in (500, 1000, 2000, 4000, 8000)
        for density in (0.04, 0.2, 1.0)
    ]
    found = Crossover(
        backend="numba", architecture=here.architecture, device=here.device, versions=here.versions, threads=2,
        heads=4, dtype="float32", head_dim=64, dense="torch sdpa flash", points=tuple(points),
        command="python -m bench.crossover --rounds 5", time="2025-01-02T03:04:05+00:00",
    )  # fmt: skip
    assert crossover_store.save(here, found) is None
    return found


def asked_of_numba() -> Problem:
    found = plan(moc.RoutingSpec(), tokens=64)
    return Problem(
        plan=found, framework="numpy", device="cpu", dtype="float32", batch=1, heads=1, kv_heads=1, head_dim=64,
        v_head_dim=64,
    )  # fmt: skip


def plain(output: str) -> str:
    """Return what a terminal shows as running text: no frames, one space between words."""
    return " ".join(re.sub(r"[^\x00-\x7f]", " ", output).split())


def explained(run: RunCommand, path: Path, *arguments: object, top_k: int = 1, causal: str = "none") -> str:
    """Return what is printed of a spec whose density is top_k tenths, with no anchors and chunks of a tenth."""
    tokens = arguments[1]
    assert isinstance(tokens, int)
    path.write_text(f'top_k = {top_k}\ncausal = "{causal}"\nanchors = []\n[chunks]\nsize = {tokens // 10}\n')
    result = run("explain", path, *arguments, "--backend", "numba")
    assert result.exit_code == 0, result.output
    return plain(result.output)


def test_the_speed_that_was_measured_here(run: RunCommand, made: Crossover, tmp_path: Path) -> None:
    output = explained(run, tmp_path / "spec.toml", "--tokens", 4000, "--head-dim", 64, top_k=2)
    assert "numba 6.2 x as fast as dense attention is expected: 4,000 tokens at 20 % density" in output, 1 / 0.1625
    # 1.1 of dense attention's time at 1,000 tokens and 0.35 at 2,000; 1 at 1,000 * 2 ** (log(1.1) / log(1.1 / 0.35)).
    assert made.length(0.2) == 1060
    assert "at this density MoC is faster from about 1,100 tokens" in output
    assert "at this length MoC is faster up to 100 % density" in output
    where = f"measured on {made.device} ({made.architecture}), 2 threads, 2025-01-02: float32, 4 heads, head_dim 64"
    assert plain(f"{where}, against torch sdpa flash: python -m bench.crossover --rounds 5") in output


def test_another_head_dim_is_said(run: RunCommand, made: Crossover, tmp_path: Path) -> None:
    output = explained(run, tmp_path / "spec.toml", "--tokens", 4000)
    assert "head_dim 64, the nearest measured to 128, against" in output


def test_where_dense_attention_is_faster(run: RunCommand, made: Crossover, tmp_path: Path) -> None:
    output = explained(run, tmp_path / "spec.toml", "--tokens", 900, top_k=6)
    here = "dense attention is expected to be faster here: 900 tokens at 60 % density"
    assert f"{here} (MoC pays from about 1,200)" in output
    never = dataclasses.replace(made, points=tuple(point._replace(speedup=0.5) for point in made.points))
    (line,) = speed.told(never, 900, 0.6)
    assert line == f"{here} (MoC pays at no measured length, up to 8,000)"


def test_dense_attention_computes_half_the_pairs_where_no_query_sees_a_later_key(
    run: RunCommand, made: Crossover, tmp_path: Path
) -> None:
    output = explained(run, tmp_path / "spec.toml", "--tokens", 8000, causal="token")
    found = re.search(
        r"numba ([\d.]+) x as fast as dense attention is expected: 8,000 tokens at ([\d.]+) % density", output
    )
    assert found is not None, output
    assert float(found[1]) == pytest.approx(0.5 / ((1 / 8) ** 2 + float(found[2]) / 200), rel=0.04)


@pytest.mark.parametrize(
    ("tokens", "density", "line"),
    [
        (
            32_000, 0.2,
            "not measured beyond 8,000 tokens; at 8,000 tokens and 20 % density: 8.6 x as fast as dense attention",
        ),
        (100, 0.2, "not measured below 500 tokens; at 500 tokens and 20 % density: dense attention is faster"),
        (
            8000, 0.01,
            "not measured below 4 % density; at 8,000 tokens and 4 % density: 28 x as fast as dense attention",
        ),
        (
            180_000, 0.01,
            "not measured beyond 8,000 tokens and below 4 % density; at 8,000 tokens and 4 % density: "
            "28 x as fast as dense attention",
        ),
    ],
)  # fmt: skip
def test_what_lies_beyond_the_measured_range_is_not_told(
    made: Crossover, tokens: int, density: float, line: str
) -> None:
    assert speed.told(made, tokens, density) == [line]


def test_a_little_beyond_it_is_told_as_extrapolated(made: Crossover) -> None:
    first, *_ = speed.told(made, 16_000, 0.03)
    assert first.endswith("expected: 16,000 tokens at 3 % density, extrapolated from 8,000 tokens and 4 % density")
    assert speed.told(made, 400, 0.5)[0].startswith(
        "dense attention is expected to be faster here: 400 tokens at 50 % density, extrapolated from 500 tokens (MoC"
    )


def test_faster_at_every_measured_length(made: Crossover) -> None:
    always = dataclasses.replace(made, points=tuple(point._replace(speedup=2.0) for point in made.points))
    assert speed.told(always, 1000, 0.5) == [
        "2 x as fast as dense attention is expected: 1,000 tokens at 50 % density",
        "at this density MoC is faster at every measured length, from 500 tokens",
        "at this length MoC is faster up to 100 % density",
    ]


def test_what_was_not_measured_here_comes_with_the_command(run: RunCommand, tmp_path: Path) -> None:
    architecture = environment_of(get_backend("numba"), asked_of_numba()).architecture
    path = tmp_path / "spec.toml"
    output = explained(run, path, "--tokens", 1000)
    line = f"numba not measured on this machine ({architecture}) in float32; in a checkout: python -m bench.crossover"
    assert f"{line} --backend numba --dtype float32" in output
    assert "in a checkout: python -m bench.crossover --backend numba --dtype bfloat16" in explained(
        run, path, "--tokens", 1000, "--dtype", "bfloat16"
    )
    assert "numba cannot run this: it takes head_dim up to 256, not 512" in explained(
        run, path, "--tokens", 1000, "--head-dim", 512
    )


def test_kernels_for_gpus_are_asked_as_they_would_run(run: RunCommand, tmp_path: Path) -> None:
    reason = available_backends()["triton"]
    if reason is not None:
        pytest.skip(reason)
    path = tmp_path / "spec.toml"
    path.write_text("[chunks]\nsize = 100\n")
    dtype = "float32" if "cpu" in get_backend("triton").capabilities.devices else "bfloat16"
    result = run("explain", path, "--tokens", 1000, "--backend", "triton")
    assert result.exit_code == 0, result.output
    output = plain(result.output)
    assert re.search(rf"triton not measured on this machine \([\w. -]+\) in {dtype}; in a checkout: python -m", output)
    assert f"bench.crossover --backend triton --dtype {dtype}" in output


def test_only_backends_that_were_measured_are_loaded(
    run: RunCommand, made: Crossover, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = []

    def get(name: str, function: str) -> Backend:
        loaded.append(name)
        if name == "triton":
            raise moc.UnsupportedError("absent")
        return get_backend(name, function)

    monkeypatch.setattr(speed, "get_backend", get)
    path = tmp_path / "spec.toml"
    path.write_text("[chunks]\nsize = 100\n")
    assert run("explain", path, "--tokens", 1000).exit_code == 0
    assert loaded == ["numba"]
    crossover_store.ship(dataclasses.replace(made, backend="triton", architecture="sm_90"), tmp_path / "data")
    loaded.clear()
    assert run("explain", path, "--tokens", 1000).exit_code == 0, "absent, and so passed over"
    assert loaded == ["numba", "triton"]


def test_a_backend_or_dtype_that_there_is_not(run: RunCommand, tmp_path: Path) -> None:
    path = tmp_path / "spec.toml"
    path.write_text("top_k = 3\n")
    line = run.fails("explain", path, "--tokens", 100, "--backend", "nunba")
    assert line.startswith("Error: explain: backend must be ")
    assert line.endswith("got 'nunba' (str). Did you mean \"numba\"?")
    line = run.fails("explain", path, "--tokens", 100, "--dtype", "float23")
    assert line.startswith('Error: explain: --dtype must be "float16", "bfloat16", "float32" or "float64", got ')
