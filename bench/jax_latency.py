"""What a call costs under JAX on the CPU beside the same call with NumPy arrays: `python -m bench.jax_latency`.

A JSON line for each measurement, and a table. "empty" is a program whose one step copies eight numbers on the host:
what remains is the way there and back. The other cases are `attention` of float32, batch 1, 4 heads of 64.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

import sparsemoc as moc
from bench import latency, machine
from sparsemoc.frameworks import jax_abi, jax_bridge

TOKENS = (64, 1024, 4096)
_ECHO = "sparsemoc_bench_echo"


def _echo(text: str, inputs: list[Any], outputs: list[Any]) -> None:
    outputs[0][...] = inputs[0]


_HANDLER = jax_abi.handler(_echo)


def empty() -> dict[str, Callable[[], object]]:
    """Return programs that do next to nothing: in XLA alone, and by each of the two ways to the host."""
    jax.ffi.register_ffi_target(_ECHO, jax_abi.capsule(_HANDLER), platform="cpu", api_version=1)
    x = jnp.ones(8)
    like = jax.ShapeDtypeStruct(x.shape, x.dtype)
    programs = {
        "XLA alone": jax.jit(lambda x: x + 1),
        "jit, ffi": jax.jit(lambda x: jax.ffi.ffi_call(_ECHO, like)(x, call="")),
        "jit, pure_callback": jax.jit(lambda x: jax.pure_callback(np.asarray, like, x)),
    }
    return {name: lambda run=run: jax.block_until_ready(run(x)) for name, run in programs.items()}  # type: ignore[misc]


def attention(tokens: int) -> dict[str, Callable[[], object]]:
    """Return the same call with NumPy arrays and, at once and compiled, with JAX arrays."""
    spec = moc.RoutingSpec(chunks=moc.Chunks(size=tokens // 8), top_k=2, anchors=("chunk",))
    own_q, own_k, own_v = np.random.default_rng(0).standard_normal((3, 1, tokens, 4, 64), np.float32)
    q, k, v = jnp.asarray(own_q), jnp.asarray(own_k), jnp.asarray(own_v)
    calls: dict[str, Callable[[], object]] = {
        "NumPy": lambda: moc.attention(own_q, own_k, own_v, spec),
        "at once, ffi": lambda: jax.block_until_ready(moc.attention(q, k, v, spec)),
    }
    for way in jax_bridge.WAYS:
        with mock.patch.object(jax_bridge, "way", lambda way=way: way):  # read while the program is traced
            run = jax.jit(lambda q, k, v: moc.attention(q, k, v, spec)).lower(q, k, v).compile()
        calls[f"jit, {way}"] = lambda run=run: jax.block_until_ready(run(q, k, v))  # type: ignore[misc]
    return calls


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and print the lines and the table."""
    asked = latency.parser("bench.jax_latency", "Time calls under JAX on the CPU.", TOKENS).parse_args(arguments)
    if jax_bridge.way() != "ffi":
        print("the FFI target does not work here, or is not asked for", file=sys.stderr)
        return 2
    cases = {"empty": empty()} | {f"{tokens:,} tokens": attention(tokens) for tokens in asked.tokens}
    facts = machine.facts("numba", 0) | {"jax": jax.__version__}
    del facts["threads"]
    latency.report(cases, asked.rounds, facts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
