"""Context parallelism: two processes give what one gives, forward and backward."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the adapter needs torch")
pytest.importorskip("diffusers", reason="the adapter needs diffusers")
NAME = "tests.adapters.diffusers.parallel_worker"
worker: Any = import_module(NAME)
ROOT = Path(__file__).resolve().parents[3]


def test_two_processes_give_what_one_gives(tmp_path: Path) -> None:
    started = [
        subprocess.Popen([sys.executable, "-m", NAME, str(rank), str(tmp_path)], cwd=ROOT, stderr=subprocess.PIPE)
        for rank in (0, 1)
    ]
    try:
        errors = [process.communicate(timeout=120)[1].decode() for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], errors
    found = torch.load(tmp_path / "found")
    model = worker.CASES["wan"].build()
    dense = worker.gradients(model)["out"]
    model.zero_grad()
    with worker.enable(model, worker.SPEC, per_layer={0: worker.OTHER}):
        expected = worker.gradients(model)
    torch.testing.assert_close(found.pop("dense"), dense, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.pop("restored"), dense, rtol=0, atol=1e-5)
    assert found.keys() == expected.keys()
    assert not torch.allclose(expected["out"], dense, atol=1e-3)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4 * max(value.abs().max(), 1e-4), msg=name)
