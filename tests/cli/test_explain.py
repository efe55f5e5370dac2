from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

import sparsemoc as moc
from sparsemoc.backends import Backend, Problem, available_backends, get_backend
from sparsemoc.cli import speed
from sparsemoc.cli.explain import candidates
from sparsemoc.cli.summary import amount, chunk_sizes
from sparsemoc.spec.anchors import First
from sparsemoc.spec.plan import plan
from sparsemoc.tuning import crossover_store, shipped
from sparsemoc.tuning.crossover import Crossover, Point
from sparsemoc.tuning.key import environment_of
from tests.cli.conftest import RunCommand


def expected_pairs(spec: moc.RoutingSpec, heads: int) -> float:
    """Return anchored and expected routed pairs by walking every query."""
    sample = moc.plan(spec).samples[0]
    total = 0.0
    for position in range(sample.k_tokens):
        anchors = set(sample.anchors(position).tolist())
        chunks = sample.candidates(position)
        new = [
            len(set(range(sample.chunk_bounds[chunk], sample.chunk_stop[chunk])) - anchors) for chunk in chunks.tolist()
        ]
        total += heads * len(anchors)
        total += sum(min(k, len(new)) for k in spec.top_k_of(heads)) * float(np.mean(new)) if new else 0.0
    return total


@pytest.mark.parametrize("anchors", [("text", "shot"), ("text", "chunk", moc.first(5))])
@pytest.mark.parametrize("causal", ["none", "chunk"])
def test_the_estimate_is_the_mean_over_all_choices(anchors: tuple[str | First, ...], causal: str) -> None:
    stream = moc.Stream.multishot(shots=3, frames=2, height=3, width=4, caption=3, prompt=2)
    spec = moc.RoutingSpec(stream=stream, chunks=moc.Chunks(size=8), top_k=(1, 2), anchors=anchors, causal=causal)
    sample = moc.plan(spec).samples[0]
    anchored = 2 * sample.anchor_rectangles.pairs(sample.reach, sample.token_causal)
    assert anchored + candidates(sample, (1, 2)).routed_pairs == pytest.approx(expected_pairs(spec, 2))


def test_prints_what_a_spec_costs(run: RunCommand, tmp_path: Path) -> None:
    spec = moc.RoutingSpec(
        stream=moc.Stream.multishot(shots=8, frames=16, height=30, width=47, caption=77, prompt=226),
        chunks=moc.Chunks(size=1280),
        top_k=5,
        anchors=("text", "shot"),
        causal="chunk",
    )
    path = tmp_path / "spec.json"
    path.write_text(spec.to_json())
    result = run("explain", path, "--heads", 24)
    assert result.exit_code == 0, result.output
    assert "181,322 tokens" in result.output
    assert re.search(r"counted for +. 24 heads x 128 channels, one sample", result.output)
    assert "153 chunks, 77 to 1,254 tokens each, median 1,253" in result.output
    assert "candidates of a query" in result.output
    # Own shot 12.5 %, text and dense text rows 0.9 %, five chunks of 1254 keys (fewer in the first shots) 3 %.
    assert "16.32% of all pairs" in result.output


def test_tokens_give_a_stream(run: RunCommand, tmp_path: Path) -> None:
    path = tmp_path / "spec.toml"
    path.write_text("top_k = 3\n[chunks]\nsize = 100\n")
    result = run("explain", path, "--tokens", 1000)
    assert result.exit_code == 0, result.output
    assert "1,000 tokens: video 1000" in result.output
    assert "1 head x 128 channels, one sample" in result.output
    assert "10 chunks, 100 tokens each, median 100" in result.output
    assert "9 to 9 chunks, mean 9.0" in result.output
    assert "40.00% of all pairs" in result.output


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


def test_top_k_per_head_wants_as_many_heads(run: RunCommand, tmp_path: Path) -> None:
    path = tmp_path / "spec.toml"
    path.write_text("top_k = [1, 2]\n")
    line = "Error: explain: --heads must be 2, for the spec has one top_k per head, got 1. Hint: --heads 2.\n"
    assert run("explain", path, "--tokens", 100).output == line, "nothing is printed before the error"
    assert run("explain", path, "--tokens", 100, "--heads", 2).exit_code == 0


def test_bounds_that_do_not_fit(run: RunCommand, tmp_path: Path) -> None:
    path = tmp_path / "spec.toml"
    path.write_text("[chunks]\nbounds = [0, 50]\n")
    line = "Error: Chunks: bounds must end with the stream's 100 tokens, got 50 as the last.\n"
    assert run("explain", path, "--tokens", 100).output == line, "nothing is printed before the error"


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 B"), (400, "400 B"), (999.4, "999 B"), (999.6, "1 kB"), (51_200, "51.2 kB"), (5e9, "5 GB"), (2e15, "2 PB")],
)
def test_amounts(number: float, text: str) -> None:
    assert amount(number, "B") == text
    assert amount(number) == text.removesuffix("B").rstrip()


@pytest.mark.parametrize(
    ("sizes", "text"),
    [
        ((37, 226, 1254), "37 chunks, 226 to 1,254 tokens each"),
        ((10, 100, 100), "10 chunks, 100 tokens each"),
        ((1, 50, 50), "1 chunk, 50 tokens"),
        ((3, 1, 1), "3 chunks, 1 token each"),
    ],
)
def test_chunk_sizes(sizes: tuple[int, int, int], text: str) -> None:
    assert chunk_sizes(*sizes) == text


def test_a_mistyped_command(run: RunCommand) -> None:
    line = run.fails("expalin")
    assert line.endswith("got 'expalin' (str). Did you mean \"explain\"?")
    line = run.fails("xyz")
    assert line.endswith("got 'xyz' (str). Hint: sparsemoc --help.")


def test_no_stream_and_no_tokens(run: RunCommand, tmp_path: Path) -> None:
    path = tmp_path / "spec.toml"
    path.write_text("top_k = 3\n")
    assert "--tokens must be given, for the spec has no stream. Hint: --tokens 16384." in run.fails("explain", path)


def test_tokens_that_are_not_the_streams(run: RunCommand, tmp_path: Path) -> None:
    path = tmp_path / "spec.json"
    path.write_text(moc.RoutingSpec(stream=moc.Stream((moc.Segment("video", 64),))).to_json())
    assert "must equal the stream's 64 tokens, got 65" in run.fails("explain", path, "--tokens", 65)


def test_an_unknown_key_is_named(run: RunCommand, tmp_path: Path) -> None:
    path = tmp_path / "spec.toml"
    path.write_text("topk = 3\n")
    line = run.fails("explain", path)
    assert "topk" in line
    assert "Did you mean" in line


def test_no_such_file(run: RunCommand, tmp_path: Path) -> None:
    assert "must be a readable file" in run.fails("explain", tmp_path / "none.toml")
