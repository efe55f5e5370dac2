"""The benchmarks of the way through torch and through JAX say what they measured."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]

CASES = {
    "torch": [
        (case, call)
        for case in ("64 tokens", "64 tokens, with gradients")
        for call in ("NumPy", "torch", "torch, compiled")
    ],
    "jax": [
        *(("empty", call) for call in ("XLA alone", "jit, ffi", "jit, pure_callback")),
        *(("64 tokens", call) for call in ("NumPy", "at once, ffi", "jit, ffi", "jit, pure_callback")),
    ],
}


@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")  # torch's own
@pytest.mark.parametrize("library", CASES)
def test_a_line_for_each_call_and_a_table(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    pytest.importorskip(library, reason="what is measured")
    monkeypatch.syspath_prepend(ROOT)
    main: Any = import_module(f"bench.{library}_latency").main
    monkeypatch.setattr("bench.timing.TURN_SECONDS", 0.001)
    assert main(["--rounds", "2", "--tokens", "64"]) == 0
    lines = capsys.readouterr().out.splitlines()
    records = [json.loads(line) for line in lines if line.startswith("{")]
    assert [(record["case"], record["call"]) for record in records] == CASES[library]
    assert all(record["seconds"]["median"] > 0 and record["ratio"]["median"] > 0 for record in records)
    firsts = [record for record in records if record["call"] in ("XLA alone", "NumPy")]
    assert {(record["beyond"]["median"], record["ratio"]["median"]) for record in firsts} == {(0, 1)}
    shown = [line for line in lines if not line.startswith("{")]
    assert all(any(case in line and f" {call} " in line for line in shown) for case, call in CASES[library])
