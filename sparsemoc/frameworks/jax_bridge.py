"""The way from a JAX program on the CPU to the host: a typed FFI target, or jax.pure_callback.

One FFI handler serves all calls; a program holds the text that names its call, so that one that JAX has kept on disk
means the same in the next process.
"""

from __future__ import annotations

import math
import os
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from sparsemoc.backends import Problem, get_backend
from sparsemoc.frameworks import jax_abi, jax_host
from sparsemoc.frameworks import numpy as numpy_arrays
from sparsemoc.frameworks.execution import Execution
from sparsemoc.spec.checks import word
from sparsemoc.spec.plan import plan
from sparsemoc.spec.routing import RoutingSpec
from sparsemoc.spec.stream import Segment, Stream

TARGET = "sparsemoc_host"
#: Environment variable that asks for one of the ways; by default the first that works.
VARIABLE = "SPARSEMOC_JAX_BRIDGE"
WAYS = ("ffi", "pure_callback")
#: Bytes that XLA copies at once, without its pool of threads: below 100 KiB.
PIECE = 2**16

Shapes = tuple[tuple[tuple[int, ...], Any], ...]


def call(text: str, outputs: Shapes, *arrays: Any) -> list[Any]:
    """Return what the call of a text gives for JAX arrays, traced or not. It has no derivative.

    Args:
        text: from `jax_host.text_of`.
        outputs: shape and dtype of each result.
        arrays: its inputs. Under jax.vmap the host runs the call for one element after the other.
    """
    inputs, axes = varying_alike(*map(_gathered, arrays))
    found = (_by_ffi if way() == "ffi" else _by_callback)(text, outputs, *inputs)
    return [jax.lax.pcast(one, axes, to="varying") if axes else one for one in found]


def varying_alike(*arrays: Any) -> tuple[list[Any], tuple[str, ...]]:
    """Return the arrays, all varying over the same axes of the shard_map that traces them, and those axes."""
    varying = [_varying(array) for array in arrays]
    axes = frozenset[str]().union(*varying)
    cast = [
        jax.lax.pcast(array, tuple(sorted(axes - own)), to="varying") if axes - own else array
        for array, own in zip(arrays, varying, strict=True)
    ]
    return cast, tuple(sorted(axes))


def _gathered(array: Any) -> Any:
    """Return an array whole on every device, where its sharding is a part of its type: explicit meshes."""
    sharding = jax.typeof(array).sharding
    return jax.sharding.reshard(array, jax.NamedSharding(sharding.mesh, jax.P())) if any(sharding.spec) else array


def _varying(array: Any) -> frozenset[str]:
    kind = jax.typeof(array)
    if hasattr(kind, "vma"):  # its name before JAX 0.10
        return frozenset(kind.vma)
    return frozenset(kind.manual_axis_type.varying)


def _structures(outputs: Shapes) -> list[Any]:
    return [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in outputs]


def _by_ffi(text: str, outputs: Shapes, *arrays: Any) -> list[Any]:
    return list(jax.ffi.ffi_call(TARGET, _structures(outputs), vmap_method="expand_dims")(*arrays, call=text))


def _by_callback(text: str, outputs: Shapes, *arrays: Any) -> list[Any]:
    """Return what jax.pure_callback gives.

    It hands each input over as an array of JAX, and a large one is copied by a thread of the very pool in which
    callbacks wait for it: two devices at once would wait for ever. Small ones are copied at once: inputs go in pieces.
    """
    shapes = tuple((tuple(array.shape), np.dtype(array.dtype)) for array in arrays)
    called = _Callback(text, shapes, tuple(outputs))
    pieces = [
        piece
        for array, count in zip(arrays, called.counts, strict=True)
        if count
        for piece in jnp.array_split(jnp.reshape(array, -1), count)
    ]
    return list(jax.pure_callback(called, _structures(outputs), *pieces, vmap_method="sequential"))


@dataclass(frozen=True)
class _Callback:
    """What pure_callback runs; equal for equal calls, so that JAX compiles them once."""

    text: str
    inputs: Shapes
    outputs: Shapes

    @property
    def counts(self) -> list[int]:
        """Return the number of pieces of each input."""
        return [-(-math.prod(shape) * dtype.itemsize // PIECE) for shape, dtype in self.inputs]

    def __call__(self, *pieces: Any) -> list[NDArray[Any]]:
        left = iter(pieces)
        arrays = []
        for (shape, dtype), count in zip(self.inputs, self.counts, strict=True):
            parts = [np.asarray(next(left)) for _ in range(count)]
            arrays.append(np.concatenate(parts).reshape(shape) if parts else np.empty(shape, dtype))
        results = [np.empty(shape, dtype) for shape, dtype in self.outputs]
        jax_host.fill(self.text, arrays, results)
        return results


class _Way:
    """What `way` has found, and the handler, which XLA may call as long as the process lives."""

    lock = threading.Lock()
    found: str | None = None
    handler: Any = None


def way() -> str:
    """Return how JAX programs on the CPU call this library: "ffi", or "pure_callback".

    The first call tries the FFI target. Where it does not work a warning says why, and calls go by pure_callback, which
    takes longer for each. The environment variable SPARSEMOC_JAX_BRIDGE, read at the first call, asks for one of the
    two. Arrays that are sharded over devices stay so under jax.shard_map; plain jax.jit gathers them for each call, and
    by pure_callback leaves the results on one device.

    Raises:
        SpecError: the variable holds another word.
        RuntimeError: it asks for "ffi", which does not work here.
    """
    with _Way.lock:
        if _Way.found is None:
            _Way.found = _find(os.environ.get(VARIABLE))
        return _Way.found


def _find(asked: str | None) -> str:
    if asked is not None and word(asked, f"environment variable {VARIABLE}", WAYS) == "pure_callback":
        return asked
    # In a thread of its own: no trace, mesh or setting of the caller's reaches it.
    with ThreadPoolExecutor(1) as alone:
        reason = alone.submit(_why_no_ffi).result()
    if reason is None:
        return "ffi"
    text = f"sparsemoc: the FFI target does not work with JAX {jax.__version__}: {reason}"
    if asked is not None:
        raise RuntimeError(f"{text}. Hint: {VARIABLE}=pure_callback.")
    warnings.warn(f"{text}. Calls go through jax.pure_callback.", RuntimeWarning, stacklevel=2)
    return "pure_callback"


def _why_no_ffi() -> str | None:
    """Register the target, let the reference pool keys through it, and return what went wrong."""
    try:
        if _Way.handler is None:
            handler = jax_abi.handler(jax_host.fill)
            jax.ffi.register_ffi_target(TARGET, jax_abi.capsule(handler), platform="cpu", api_version=1)
            _Way.handler = handler
        run = _trial()
        k = np.arange(36, dtype=np.float32).reshape(3, 1, 6, 1, 2).astype("bfloat16")
        lengths = np.array([[5]], np.int32)
        text = jax_host.text_of("pool", run, 1.0, (True, True))
        one = partial(_by_ffi, text, (((1, 1, run.problem.plan.chunks, 2), np.float32),))
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            (found,) = jax.vmap(one, in_axes=(0, None))(k, lengths)
        same = np.array_equal(found, np.stack([run.compute_pool(row, lengths) for row in k]))
    except Exception as error:  # noqa: BLE001  # whatever does not work is the reason
        return f"{type(error).__name__}: {error}"
    return None if same else "it gives wrong results"


def _trial() -> Execution:
    sizes: dict[str, Any] = {"batch": 1, "heads": 1, "kv_heads": 1, "head_dim": 2, "v_head_dim": 2}
    found = plan(RoutingSpec(), Stream((Segment("video", 6),)))
    problem = Problem(plan=found, framework="numpy", device="cpu", dtype="bfloat16", **sizes)
    return Execution(numpy_arrays, get_backend("reference"), problem, None)
