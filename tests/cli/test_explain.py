from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import sparsemoc as moc
from sparsemoc.cli.explain import candidates
from sparsemoc.spec.anchors import First
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
    assert "candidates of a query" in result.output
    # Own shot 12.5 %, text and dense text rows 0.9 %, five chunks of 1254 keys (fewer in the first shots) 3 %.
    assert "16.32% of all pairs" in result.output


def test_tokens_give_a_stream(run: RunCommand, tmp_path: Path) -> None:
    path = tmp_path / "spec.toml"
    path.write_text("top_k = 3\n[chunks]\nsize = 100\n")
    result = run("explain", path, "--tokens", 1000)
    assert result.exit_code == 0, result.output
    assert "1,000 tokens: video 1000" in result.output
    assert "10 of 100 to 100 tokens" in result.output
    assert "9 to 9 chunks, mean 9.0" in result.output
    assert "40.00% of all pairs" in result.output


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
