"""JAX arrays under jit, grad, vmap, scan and shard_map: on the CPU any backend that takes NumPy arrays serves them.

Nothing here reads an array: all of it works on tracers. A layout is a pytree.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparsemoc.backends import Randomness, Result
from sparsemoc.frameworks import jax_bridge, jax_call, jax_gradients
from sparsemoc.frameworks import numpy as numpy_arrays
from sparsemoc.frameworks.execution import Execution
from sparsemoc.spec.errors import ShapeError, SpecError, describe
from sparsemoc.spec.host import dtype_name, host
from sparsemoc.spec.layout import Layout
from sparsemoc.spec.philox import seed_number
from sparsemoc.spec.traced import is_traced

NAME = jax_gradients.NAME
#: What JAX calls a kind of device, where the backends have another word for it.
_DEVICES = {"gpu": "cuda"}

jax.tree_util.register_pytree_node(Layout, Layout.tree_flatten, Layout.tree_unflatten)


def checked(array: Any, argument: str, function: str) -> jax.Array:
    """Return a float array of a dtype that is served, or raise ShapeError."""
    if not isinstance(array, jax.Array):
        raise ShapeError(f"{function}: `{argument}` must be a JAX array, got {describe(array)}.")
    if dtype(array) not in numpy_arrays.DTYPES:
        raise ShapeError(
            f"{function}: `{argument}` must be {', '.join(numpy_arrays.DTYPES)}, got {dtype(array)}. "
            "Hint: array.astype(jax.numpy.float32)."
        )
    return array


def device(array: jax.Array) -> str:
    """Return the kind of device, "cpu" or "cuda"; of a traced array, the kind that JAX takes by default."""
    if is_traced(array):
        default = jax.config.jax_default_device
        kind = default if isinstance(default, str) else default.platform if default else jax.default_backend()
    else:
        kind = next(iter(array.devices())).platform
    return _DEVICES.get(kind, kind)


def dtype(array: jax.Array) -> str:
    """Return the name of an array's dtype."""
    return dtype_name(array)


def integers(array: Any, argument: str, function: str, like: jax.Array) -> jax.Array:
    """Return integers, in an array or a sequence, as int32, clamped to [0, 2**31 - 1]."""
    if not isinstance(array, jax.Array) and not any(map(is_traced, jax.tree.leaves(array))):
        return own(numpy_arrays.integers(array, argument, function), like)
    array = jnp.asarray(array)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise ShapeError(
            f"{function}: `{argument}` must be an integer array, got dtype {dtype(array)}. "
            "Hint: array.astype(jax.numpy.int32)."
        )
    most = min(np.iinfo(np.int32).max, np.iinfo(array.dtype).max)
    return jnp.clip(array, 0, most).astype(jnp.int32)


def seed(value: Any, like: jax.Array) -> Any:
    """Return a 0-d integer array as it is, traced or not, anything else as an int in [0, 2**64)."""
    if not isinstance(value, jax.Array):
        return seed_number(value)
    if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        raise SpecError(
            f"seed must be a whole number or a 0-d integer array, got a PRNG key, {dtype(value)}. "
            "Hint: seed=jax.random.bits(key)."
        )
    if value.ndim or not jnp.issubdtype(value.dtype, jnp.integer):
        raise SpecError(
            f"seed must be a whole number or a 0-d integer array, got {dtype(value)}{list(value.shape)}. Hint: seed=0."
        )
    return value


def transpose(array: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Return the array with the axes in another order: a copy, unless the order is the same."""
    return array if axes == tuple(range(array.ndim)) else jnp.transpose(array, axes)


def expand(array: jax.Array) -> jax.Array:
    """Return the array with a batch axis of 1 in front."""
    return array[None]


def views(array: jax.Array) -> tuple[str, ...]:
    """Return NumPy for what lies on the CPU."""
    return (numpy_arrays.NAME,) if device(array) == "cpu" else ()


def show(array: jax.Array, framework: str) -> Any:
    """Return the array for a backend that takes JAX arrays; the others are given them within a program, by NumPy."""
    assert framework == NAME
    return array


def own(array: Any, like: jax.Array) -> jax.Array:
    """Return an array of a served library as JAX's."""
    return array if isinstance(array, jax.Array) else jnp.asarray(host(array))


def deterministic() -> bool:
    """Return False: JAX has no such setting for the CPU."""
    return False


def records(*arrays: jax.Array) -> bool:
    """Return False: an array does not tell. Whether the backend has gradients is asked where they are taken."""
    return False


def pool(run: Execution, k: jax.Array, key_lengths: jax.Array | None) -> jax.Array:
    """Return the mean key of each chunk, a constant to derivatives."""
    k = jax.lax.stop_gradient(k)
    if run.problem.framework == NAME:
        return run.compute_pool(k, key_lengths)
    return jax_call.pool(run, k, key_lengths)


def route(
    run: Execution,
    q: jax.Array,
    centroids: jax.Array,
    key_lengths: jax.Array | None,
    randomness: Randomness | None,
) -> jax.Array:
    """Return `Layout.selected`."""
    q, centroids = jax.lax.stop_gradient((q, centroids))
    if run.problem.framework == NAME:
        return run.compute_route(q, centroids, key_lengths, randomness)
    return jax_call.route(run, q, centroids, key_lengths, randomness)


def attend(run: Execution, q: jax.Array, k: jax.Array, v: jax.Array, layout: Layout, scale: float) -> Result:
    """Return out and lse, both differentiable in reverse mode, once."""
    lengths = () if layout.key_lengths is None else (layout.key_lengths,)
    arrays, _ = jax_bridge.varying_alike(q, k, v, layout.selected, *lengths)
    which = jax_gradients.Attention(run, scale)
    return Result(*jax_gradients.attend(which, *arrays, *(() if lengths else (None,))))


def backward(
    run: Execution,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    layout: Layout,
    scale: float,
    result: Result,
    d_out: jax.Array,
    d_lse: jax.Array | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return dq, dk, dv."""
    which = jax_gradients.Attention(run, scale)
    dq, dk, dv = jax_gradients.gradients(which, q, k, v, layout.selected, layout.key_lengths, *result, d_out, d_lse)
    return dq, dk, dv
