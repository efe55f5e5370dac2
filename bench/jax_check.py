"""Run calls on JAX arrays on a GPU and hold them against the CPU: `python -m bench.jax_check`.

Each line is a case of `bench.jax_lowering`: the share of routes that are the same, and the largest error of out, lse
and each gradient, as a part of the largest number there. Both attend to the routes that were found on the GPU, the CPU
in float32. With `--on cpu` the CPU is held against itself, which tries the check.
"""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from typing import Any

import numpy as np

import sparsemoc as moc
from bench.jax_lowering import CASES, Case

#: Largest errors that pass; float32 on a GPU is made of three products of tf32.
TOLERANCE = {"bfloat16": 2e-2, "float16": 4e-3, "float32": 1e-4}
#: Least share of equal routes: nearly equal scores may come in another order.
SAME = 0.999
NAMES = ("out", "lse", "dq", "dk", "dv")


def drawn(case: Case) -> tuple[list[Any], Any]:
    """Return q, k, v and the gradients of out and lse, and key_lengths, as NumPy arrays."""
    made, (batch, heads, kv_heads) = np.random.default_rng(0), case.lanes
    plan = moc.plan(case.spec)
    shapes = [(batch, plan.k_tokens, count, case.head_dim) for count in (heads, kv_heads, kv_heads, heads)]
    arrays = [made.standard_normal(shape, np.float32) for shape in (*shapes, (batch, heads, plan.q_tokens))]
    tokens = np.array([segment.tokens for segment in plan.streams[0].segments], np.int32)
    return arrays, np.stack([tokens - row for row in range(batch)]) if case.padded else None


def routed(case: Case, arrays: list[Any], lengths: Any, backend: str) -> Any:
    """Return the layout that a backend finds."""
    drops: dict[str, Any] = {"training": True, "seed": 7} if case.spec.dropout else {}
    return moc.route(arrays[0], arrays[1], case.spec, key_lengths=lengths, backend=backend, **drops)


def attended(case: Case, arrays: list[Any], layout: Any, backend: str) -> list[Any]:
    """Return out, lse, dq, dk and dv as float32 NumPy arrays."""
    jax = import_module("jax")

    def attend(q: Any, k: Any, v: Any) -> Any:
        return moc.attend(q, k, v, layout, return_lse=True, backend=backend, **case.wishes)

    # A traced array does not tell its device: JAX's default counts.
    with jax.default_device(next(iter(arrays[0].devices()))):
        results, back = jax.vjp(attend, *arrays[:3])
        grads = back(jax.tree.unflatten(jax.tree.structure(results), arrays[3:]))
    return [np.asarray(one, np.float32) for one in (*results, *grads)]


def check(case: Case, device: Any, backend: str) -> tuple[float, list[float]]:
    """Return the share of equal routes and the errors of the results."""
    jax = import_module("jax")
    arrays, lengths = drawn(case)
    given = [jax.device_put(jax.numpy.asarray(one, case.dtype), device) for one in arrays[:4]]
    given.append(jax.device_put(arrays[4], device))
    host = jax.devices("cpu")[0]
    exact = [jax.device_put(np.asarray(one, np.float32), host) for one in given]
    layout, wanted = routed(case, given, lengths, backend), routed(case, exact, lengths, "numba")
    same = float(np.mean(np.asarray(layout.selected) == np.asarray(wanted.selected)))
    shared = jax.device_put(layout, host)
    pairs = zip(attended(case, given, layout, backend), attended(case, exact, shared, "numba"), strict=True)
    return same, [_error(found, one) for found, one in pairs]


def _error(found: Any, wanted: Any) -> float:
    """Return the largest difference as a part of the largest number; infinite where they differ in what is finite."""
    finite = np.isfinite(wanted)
    if not np.array_equal(finite, np.isfinite(found)):
        return float("inf")
    return float(np.abs(found[finite] - wanted[finite]).max() / max(np.abs(wanted[finite]).max(), 1e-30))


def main(arguments: list[str] | None = None) -> None:
    """Check the cases, and exit with 1 where one fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--on", choices=("cuda", "cpu"), default="cuda", help="device, default cuda")
    parser.add_argument("--case", nargs="+", choices=list(CASES), default=list(CASES), help="cases, default all")
    options = parser.parse_args(arguments)
    device = import_module("jax").devices(options.on)[0]
    failed = False
    for name in options.case:
        case = CASES[name]
        same, errors = check(case, device, "triton" if options.on == "cuda" else "numba")
        bad = same < SAME or max(errors) > TOLERANCE[case.dtype]
        failed |= bad
        listed = "  ".join(f"{what} {error:.1e}" for what, error in zip(NAMES, errors, strict=True))
        print(f"{device.device_kind}  {name:<14}routes {same:.4f}  {listed}{'  FAILED' if bad else ''}", flush=True)
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
