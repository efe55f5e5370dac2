"""The methods of an `Execution` as steps of a JAX program: shapes and dtypes of the results, and the call."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparsemoc.backends import Randomness, Result
from sparsemoc.backends.protocol import lse_dtype
from sparsemoc.frameworks import jax_bridge, jax_host
from sparsemoc.frameworks.execution import Execution


def pool(run: Execution, k: Any, key_lengths: Any) -> Any:
    """Return `run.compute_pool` of JAX arrays."""
    plan = run.problem.plan
    chunks = sum(sample.chunks for sample in plan.samples) if plan.packed else plan.chunks
    shape = (k.shape[0], k.shape[2], chunks, k.shape[3])
    (centroids,) = _call("pool", run, ((shape, np.float32),), k, key_lengths)
    return _placed(centroids, k, (0, 2, None, None))


def route(run: Execution, q: Any, centroids: Any, key_lengths: Any, randomness: Randomness | None) -> Any:
    """Return `run.compute_route` of JAX arrays; seed, batch_start and head_start may be traced."""
    shape = (q.shape[0], q.shape[2], q.shape[1], run.problem.plan.slots)
    counters = None if randomness is None else _counters(randomness)
    (selected,) = _call("route", run, ((shape, np.int32),), q, centroids, key_lengths, counters)
    return _placed(selected, q, (0, 2, 1, None))


def attend(run: Execution, scale: float, q: Any, k: Any, v: Any, selected: Any, key_lengths: Any) -> Result:
    """Return `run.compute_forward` of JAX arrays."""
    outputs = (
        ((*q.shape[:3], v.shape[3]), q.dtype),
        ((q.shape[0], q.shape[2], q.shape[1]), lse_dtype(run.problem.dtype)),
    )
    out, lse = _call("attend", run, outputs, q, k, v, selected, key_lengths, scale=scale)
    return Result(_placed(out, q, (0, 1, 2, None)), _placed(lse, q, (0, 2, 1)))


def backward(run: Execution, scale: float, *arrays: Any) -> tuple[Any, Any, Any]:
    """Return `run.compute_backward` of JAX arrays: q, k, v, selected, key_lengths, out, lse, d_out, d_lse."""
    outputs = tuple((tuple(array.shape), array.dtype) for array in arrays[:3])
    grads = _call("backward", run, outputs, *arrays, scale=scale)
    dq, dk, dv = (_placed(grad, array, (0, 1, 2, 3)) for grad, array in zip(grads, arrays[:3], strict=True))
    return dq, dk, dv


def _call(method: str, run: Execution, outputs: jax_bridge.Shapes, *arrays: Any, scale: float = 1.0) -> list[Any]:
    text = jax_host.text_of(method, run, scale, [array is not None for array in arrays])
    return jax_bridge.call(text, outputs, *(array for array in arrays if array is not None))


def _placed(result: Any, like: Any, axes: tuple[int | None, ...]) -> Any:
    """Return a result sharded as these axes of an input, where its sharding is a part of its type: explicit meshes."""
    sharding = jax.typeof(like).sharding
    names = [None if axis is None else sharding.spec[axis] for axis in axes]
    if not any(names):
        return result
    return jax.sharding.reshard(result, jax.NamedSharding(sharding.mesh, jax.P(*names)))


def _counters(randomness: Randomness) -> Any:
    """Return low and high word of the seed, first batch row and first head, as uint32 (4,)."""
    words = (*_words(randomness.seed), randomness.batch_start, randomness.head_start)
    if not any(isinstance(one, jax.Array) for one in words):
        return np.array(words, np.uint32)
    return jnp.stack([jnp.uint32(one) if isinstance(one, int) else one.astype(jnp.uint32) for one in words])


def _words(seed: Any) -> tuple[Any, Any]:
    """Return the low and the high word of seed mod 2**64, of an int or of a 0-d integer array."""
    if isinstance(seed, int):
        return seed & 0xFFFFFFFF, seed >> 32
    low = jax.lax.convert_element_type(seed, jnp.uint32)
    if seed.dtype.itemsize == 8:
        return low, jax.lax.convert_element_type(seed >> 32, jnp.uint32)
    return low, jnp.where(seed < 0, jnp.uint32(0xFFFFFFFF), jnp.uint32(0))
