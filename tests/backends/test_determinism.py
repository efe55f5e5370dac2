"""The same call gives the same bits: again, in another process with other threads, and in a larger batch."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import sparsemoc as moc

STREAM = moc.Stream.multishot(shots=3, frames=2, height=4, width=7, caption=5, prompt=11)
SPEC = moc.RoutingSpec(
    chunks=moc.Chunks(size=32), top_k=3, anchors=("text", "shot"), dropout=moc.RouteDropout(off=0.5, into=1.0)
)
SPEC_PLAIN = moc.RoutingSpec(chunks=moc.Chunks(size=32), top_k=3, anchors=("text", "chunk"), unit=moc.Block(4))


def _arrays(batch: int = 2) -> list[NDArray[Any]]:
    rng = np.random.default_rng(1)
    shapes = [(batch, STREAM.tokens, heads, 16) for heads in (4, 2, 2, 4)]
    return [rng.standard_normal(shape, np.float32) for shape in shapes]


def digest(backend: str) -> str:
    """Return a hash of everything a call computes, forward and backward."""
    q, k, v, d_out = _arrays()
    options: dict[str, Any] = {"stream": STREAM, "training": True, "seed": 3, "deterministic": True, "backend": backend}
    out, lse, layout = moc.attention(q, k, v, SPEC, return_lse=True, return_layout=True, **options)
    grads = moc.attention_grads(q, k, v, SPEC, d_out, d_lse=np.ones_like(lse), **options)
    total = hashlib.sha256()
    for x in (out, lse, layout.selected, *grads):
        total.update(np.ascontiguousarray(x).tobytes())
    return total.hexdigest()


def test_again(backend: str) -> None:
    assert digest(backend) == digest(backend)


def _in_a_process(backend: str, threads: int) -> str:
    code = (
        "import importlib.util, sys;"
        "spec = importlib.util.spec_from_file_location('digests', sys.argv[1]);"
        "module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module);"
        "print(module.digest(sys.argv[2]))"
    )
    names = ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    path = os.pathsep.join(path for path in sys.path if path)
    environment = {**os.environ, **{name: str(threads) for name in names}, "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-c", code, __file__, backend], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_threads_change_no_bit(backend: str) -> None:
    assert _in_a_process(backend, 1) == _in_a_process(backend, 2) == digest(backend)


@pytest.mark.parametrize("axes", ["bshd", "bhsd"])
def test_a_sample_does_not_depend_on_its_batch(backend: str, axes: str) -> None:
    q, k, v, d_out = (x if axes == "bshd" else x.swapaxes(1, 2) for x in _arrays(batch=5))
    options: dict[str, Any] = {"stream": STREAM, "deterministic": True, "backend": backend, "axes": axes}
    out, lse = moc.attention(q, k, v, SPEC_PLAIN, return_lse=True, **options)
    grads = moc.attention_grads(q, k, v, SPEC_PLAIN, d_out, **options)
    one = slice(3, 4)
    own_out, own_lse = moc.attention(q[one], k[one], v[one], SPEC_PLAIN, return_lse=True, **options)
    own_grads = moc.attention_grads(q[one], k[one], v[one], SPEC_PLAIN, d_out[one], **options)
    assert np.array_equal(out[one], own_out)
    assert np.array_equal(lse[one], own_lse)
    assert all(np.array_equal(x[one], y) for x, y in zip(grads, own_grads, strict=True))
