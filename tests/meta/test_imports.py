"""What `import sparsemoc` loads and costs, and what works without the optional libraries. Each in a fresh process."""

from __future__ import annotations

import ctypes.util
import json
import os
import subprocess
import sys
from typing import Any

import pytest

HEAVY = ("torch", "jax", "cupy", "triton", "numba", "scipy", "matplotlib", "av", "click", "rich", "ml_dtypes")

SMALL_ATTENTION = """
import json, sys
sys.modules[{library!r}] = None  # makes `import` of it raise ModuleNotFoundError
import numpy as np
import sparsemoc as moc

rng = np.random.default_rng(0)
q, k, v = rng.standard_normal((3, 1, 48, 2, 8), dtype=np.float32)
said = {{"backends": moc.available_backends(), "finite": False, "refused": ""}}
try:
    out = moc.attention(q, k, v, moc.RoutingSpec(chunks=moc.Chunks(size=16), top_k=1), backend={backend!r})
    said["finite"] = bool(np.isfinite(out).all())
except moc.UnsupportedError as error:
    said["refused"] = str(error)
print(json.dumps(said))
"""

IMPORT_SECONDS = """
import json, time
import numpy
start = time.perf_counter()
import sparsemoc
print(json.dumps(time.perf_counter() - start))
"""


def run_fresh(code: str) -> Any:
    """Run `code` in a fresh interpreter and return what its last line of output says, as JSON."""
    # As a user's process: what runs GPU kernels on the CPU is for tests of those kernels.
    for_tests = ("TRITON_INTERPRET", "SPARSEMOC_CUPY_EMULATE")
    plain = {name: value for name, value in os.environ.items() if name not in for_tests}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False, env=plain
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_import_loads_nothing_heavy() -> None:
    loaded = run_fresh("import json, sys, sparsemoc; print(json.dumps(sorted(sys.modules)))")
    assert "numpy" in loaded
    assert not set(HEAVY) & set(loaded)


@pytest.mark.skipif(ctypes.util.find_library("cuda") is not None, reason="with an NVIDIA driver torch is asked")
def test_listing_backends_loads_nothing_heavy() -> None:
    listing = "sparsemoc.available_backends(); print(json.dumps(sorted(sys.modules)))"
    loaded = run_fresh(f"import json, sys, sparsemoc; {listing}")
    assert not {"torch", "jax", "cupy", "triton"} & set(loaded)


def test_import_costs_under_a_tenth_of_a_second_beyond_numpy() -> None:
    seconds = min(run_fresh(IMPORT_SECONDS) for _ in range(5))  # the best run: the others measure the machine
    assert seconds < 0.1


@pytest.mark.parametrize("library", HEAVY)
def test_reference_backend_needs_numpy_alone(library: str) -> None:
    said = run_fresh(SMALL_ATTENTION.format(library=library, backend="reference"))
    assert said["finite"]
    assert said["backends"]["reference"] is None


def test_automatic_choice_works_without_numba_and_says_why_it_is_absent() -> None:
    said = run_fresh(SMALL_ATTENTION.format(library="numba", backend="auto"))
    assert said["finite"]
    assert "numba" in said["backends"]["numba"]


def test_a_named_backend_that_is_absent_is_refused_with_the_reason() -> None:
    said = run_fresh(SMALL_ATTENTION.format(library="numba", backend="numba"))
    assert said["backends"]["numba"] in said["refused"]
