"""What a call costs under JAX on the CPU beside the same call with NumPy arrays: `python -m bench.jax_latency`.

A JSON line for each measurement, and a table. "empty" is a program whose one step copies eight numbers on the host:
what remains is the way there and back. The other cases are `attention` of float32, batch 1, 4 heads of 64.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

import sparsemoc as moc
from bench import machine
from bench.timing import Summary, interleaved
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


def measure(case: str, calls: dict[str, Callable[[], object]], rounds: int) -> list[dict[str, Any]]:
    """Return a record for each call; `beyond` is what it takes more than the first, round by round."""
    times = interleaved(calls, rounds)
    first = next(iter(calls))
    records = []
    for name in calls:
        beyond = times.seconds[name] - times.seconds[first]
        figures = {"seconds": vars(times.summary(name)), "beyond": vars(_summary(beyond))}
        records.append({"case": case, "call": name, **figures})
    return records


def _summary(values: Any) -> Summary:
    return Summary(*np.quantile(values, (0.5, 0.2, 0.8)).tolist())


def table(records: Sequence[dict[str, Any]]) -> Table:
    """Return the records as a table."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("case", "call", "microseconds", "20 % to 80 %", "beyond the first"):
        made.add_column(name, justify="left" if name in ("case", "call") else "right", no_wrap=True)
    for record in records:
        seconds, beyond = record["seconds"], record["beyond"]
        spread = f"{1e6 * seconds['p20']:,.0f} to {1e6 * seconds['p80']:,.0f}"
        figures = (f"{1e6 * seconds['median']:,.0f}", spread, f"{1e6 * beyond['median']:+,.0f}")
        made.add_row(record["case"], record["call"], *figures)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and print the lines and the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.jax_latency", description="Time calls under JAX on the CPU.")
    parser.add_argument("--rounds", type=int, default=15, help="rounds of each measurement (default: %(default)s)")
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS, help="sizes, multiples of 8 (default: all)")
    asked = parser.parse_args(arguments)
    if jax_bridge.way() != "ffi":
        print("the FFI target does not work here, or is not asked for", file=sys.stderr)
        return 2
    cases = {"empty": empty()} | {f"{tokens:,} tokens": attention(tokens) for tokens in asked.tokens}
    facts = machine.facts("numba", 0) | {"jax": jax.__version__}
    del facts["threads"]
    records = []
    for case, calls in cases.items():
        for record in measure(case, calls, asked.rounds):
            records.append(record)
            print(json.dumps(record | facts))
    Console(width=100).print(table(records))
    return 0


if __name__ == "__main__":
    sys.exit(main())
