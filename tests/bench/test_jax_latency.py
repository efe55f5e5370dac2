"""The benchmark of calls under JAX says what it measured."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("jax", reason="the benchmark times JAX programs")

from bench import jax_latency


def test_a_line_for_each_call_and_a_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.timing.TURN_SECONDS", 0.001)
    assert jax_latency.main(["--rounds", "2", "--tokens", "64"]) == 0
    lines = capsys.readouterr().out.splitlines()
    records = [json.loads(line) for line in lines if line.startswith("{")]
    assert [(record["case"], record["call"]) for record in records] == [
        ("empty", "XLA alone"),
        ("empty", "jit, ffi"),
        ("empty", "jit, pure_callback"),
        ("64 tokens", "NumPy"),
        ("64 tokens", "at once, ffi"),
        ("64 tokens", "jit, ffi"),
        ("64 tokens", "jit, pure_callback"),
    ]
    assert all(record["seconds"]["median"] > 0 for record in records)
    assert [record["beyond"]["median"] for record in records if record["call"] in ("XLA alone", "NumPy")] == [0, 0]
    assert sum("pure_callback" in line for line in lines if not line.startswith("{")) == 2
