"""Two host devices: shard_map over batch and heads, and calls at once: no deadlock, no abort, no wrong value."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("jax", reason="JAX arrays need JAX")

TWO = {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    "TF_CPP_MIN_LOG_LEVEL": "2",  # XLA warns of what plain jit with sharded arrays gathers
}


@pytest.mark.parametrize("way", ["ffi", "pure_callback"])
def test_two_devices(way: str) -> None:
    script = Path(__file__).with_name("two_devices.py")
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script), way],
        capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, **TWO, "SPARSEMOC_JAX_BRIDGE": way},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-8000:]


ENDS = """
import jax, sparsemoc as moc
spec = moc.RoutingSpec(chunks=moc.Chunks(size=64), top_k=2, anchors=("chunk",))

def loss(q):
    for _ in range(4):
        q = moc.attention(q, q, q, spec)
    return (q**2).sum()

run = jax.jit(jax.grad(loss))
placed = [jax.device_put(jax.random.normal(jax.random.key(0), (1, 512, 4, 64)), device) for device in jax.devices()]
jax.block_until_ready([run(q) for q in placed])
held = [run(q) for q in placed for _ in range(5)]
held.clear()
"""


@pytest.mark.parametrize("way", ["ffi", "pure_callback"])
def test_python_ends_while_programs_are_under_way(way: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ENDS], capture_output=True, text=True, timeout=200, check=False,
        env={**os.environ, **TWO, "SPARSEMOC_JAX_BRIDGE": way},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
