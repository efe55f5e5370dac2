from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import sparsemoc as moc
from sparsemoc.cli.explain import candidates
from sparsemoc.cli.summary import amount, chunk_sizes
from sparsemoc.spec.anchors import First
from sparsemoc.tuning import shipped
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
