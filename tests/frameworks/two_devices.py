"""A script, run by test_jax_devices.py: attention under JAX with two host devices. It fails by an assertion."""

from __future__ import annotations

import faulthandler
import sys
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import P

import sparsemoc as moc
from sparsemoc.jax import host_bridge

STREAM = moc.Stream.multishot(shots=2, frames=4, height=2, width=2, caption=3, prompt=4)
SPEC = moc.RoutingSpec(stream=STREAM, chunks=moc.Chunks(size=6), top_k=2, anchors=("caption", "chunk"))
DROPOUT = moc.RoutingSpec(stream=STREAM, chunks=moc.Chunks(size=6), top_k=4, dropout=moc.RouteDropout(off=1.0))
LENGTHS = jnp.asarray(((4, 3, 16, 3, 16), (2, 3, 9, 0, 16)))
#: How q, k and v are sharded, key_lengths, and the axis of lse that goes with it.
SHARDINGS = {"batch": (P("x"), P("x"), P("x")), "heads": (P(None, None, "x"), P(), P(None, "x"))}
#: The axis of a (batch, tokens, heads, head_dim) array that is sharded.
AXES = {"batch": 0, "heads": 2}


def draw(*shape: int) -> Any:
    return jnp.asarray(np.random.default_rng(shape).standard_normal(shape), jnp.float32)


def same(found: Any, expected: Any) -> None:
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(one, other)


def both(q: Any, k: Any, v: Any, lengths: Any) -> Any:
    return moc.attention(q, k, v, SPEC, key_lengths=lengths, return_lse=True)


def loss(call: Callable[..., Any], weight: Any, *arrays: Any) -> Any:
    out, lse = call(*arrays)
    return (out * weight).sum() + jnp.where(jnp.isneginf(lse), 0, lse).sum()


def sharded(mesh: Any, name: str) -> None:
    """shard_map and plain jit give what one device gives: out, lse, gradients, and the sharding of the inputs."""
    own, of_lengths, of_lse = SHARDINGS[name]
    whole = (draw(2, 42, 4, 8), draw(2, 42, 2, 8), draw(2, 42, 2, 5), LENGTHS)
    weight = draw(2, 42, 4, 5)
    expected = both(*whole)
    grads = jax.grad(partial(loss, both), (1, 2, 3))(weight, *whole)
    specs = (own, own, own, of_lengths)
    placed = [jax.device_put(x, jax.NamedSharding(mesh, spec)) for x, spec in zip(whole, specs, strict=True)]
    weight = jax.device_put(weight, jax.NamedSharding(mesh, own))
    calls = {"plain": both}
    for check in (True, False):
        calls[f"shard_map {check}"] = jax.shard_map(
            both, mesh=mesh, in_specs=specs, out_specs=(own, of_lse), check_vma=check
        )
    for kind, call in calls.items():
        found = jax.jit(call)(*placed)
        same(found, expected)
        found_grads = jax.jit(jax.grad(partial(loss, call), (1, 2, 3)))(weight, *placed)
        same(found_grads, grads)
        if kind != "plain":
            axis = AXES[name]
            assert {x.sharding.shard_shape(x.shape)[axis] for x in (found[0], found_grads[0])} == {
                whole[0].shape[axis] // 2
            }


def replicated_keys(mesh: Any) -> None:
    """Query heads on two devices read one key head that both hold: its gradient sums over the devices."""
    q, k, v, weight = draw(2, 42, 4, 8), draw(2, 42, 1, 8), draw(2, 42, 1, 5), draw(2, 42, 4, 5)
    heads = P(None, None, "x")

    def call(q: Any, k: Any, v: Any) -> Any:
        return moc.attention(q, k, v, SPEC)

    mapped = jax.shard_map(call, mesh=mesh, in_specs=(heads, P(), P()), out_specs=heads)
    found, expected = (
        jax.jit(jax.value_and_grad(lambda *x, one=one: (one(*x) * weight).sum(), (0, 1, 2)))(q, k, v)
        for one in (mapped, call)
    )
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def dropout(mesh: Any, name: str) -> None:
    """Route dropout counts batch rows and heads globally: the start of each device's part is traced."""
    q, k, v = draw(2, 42, 4, 8), draw(2, 42, 2, 8), draw(2, 42, 2, 5)
    axis, own = AXES[name], SHARDINGS[name][0]

    def call(q: Any, k: Any, v: Any, seed: Any) -> Any:
        start = {f"{'batch' if name == 'batch' else 'head'}_start": jax.lax.axis_index("x") * q.shape[axis]}
        return moc.attention(q, k, v, DROPOUT, training=True, seed=seed, **start)

    mapped = jax.shard_map(call, mesh=mesh, in_specs=(own, own, own, P()), out_specs=own)
    expected = [moc.attention(q, k, v, DROPOUT, training=True, seed=seed) for seed in (7, 8)]
    assert not np.array_equal(*expected)
    q, k, v = (jax.device_put(x, jax.NamedSharding(mesh, own)) for x in (q, k, v))
    for seed, one in zip((7, 8), expected, strict=True):
        same(jax.jit(mapped)(q, k, v, jnp.uint32(seed)), one)


def crowd(mesh: Any, rounds: int) -> None:
    """Both devices call at once, by one program and from two threads, while a third thread calls with NumPy arrays."""
    spec = moc.RoutingSpec(chunks=moc.Chunks(size=64), top_k=2, anchors=("chunk",))
    arrays = tuple(np.asarray(draw(2, 512, 4, 64)) * scale for scale in (1, 2, 3))

    def call(q: Any, k: Any, v: Any) -> Any:
        return moc.attention(q, k, v, spec)

    mapped = jax.shard_map(call, mesh=mesh, in_specs=P("x"), out_specs=P("x"))
    grads = jax.jit(jax.grad(lambda *x: (mapped(*x) ** 2).sum(), (0, 1, 2)))
    placed = [jax.device_put(x, jax.NamedSharding(mesh, P("x"))) for x in arrays]
    failures: list[BaseException] = []

    def of_device(device: Any) -> None:
        one, own = jax.jit(call), [jax.device_put(x[:1], device) for x in arrays]
        expected = call(*(x[:1] for x in arrays))
        for found in [one(*own) for _ in range(rounds)]:
            same(found, expected)

    def of_numpy() -> None:
        for _ in range(rounds):
            call(*(x[:1] for x in arrays))

    def kept(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as failure:
            failures.append(failure)
            raise

    works = [*(partial(of_device, device) for device in jax.devices()), of_numpy]
    threads = [threading.Thread(target=kept, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    results = [grads(*placed) for _ in range(rounds)]
    for found in results:
        same(found, results[0])
    for thread in threads:
        thread.join()
    assert not failures
    grads(*placed)  # under way while the process ends


def main(way: str) -> None:
    """Check everything by one way to the host."""
    assert len(jax.devices()) == 2
    assert host_bridge() == way
    for kind in jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit:
        mesh = jax.make_mesh((2,), ("x",), axis_types=(kind,))
        for name in SHARDINGS:
            sharded(mesh, name)
            dropout(mesh, name)
    mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    replicated_keys(mesh)
    crowd(mesh, 10)


if __name__ == "__main__":
    faulthandler.dump_traceback_later(250, exit=True)  # what waits for ever says where
    main(sys.argv[1])
