"""Calls on JAX arrays: the host code runs while JAX traces, and its kernels are launched by jax-triton.

A call is a pure function of arrays, compiled once for what is not an array. It can be batched by `jax.vmap`, one row at
a time; its gradients are those of `attend_backward`, which the framework wires up.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, lru_cache, wraps
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from numbers import Integral
from types import FunctionType
from typing import Any, TypeVar

from sparsemoc.backends.protocol import Problem, Randomness, Result
from sparsemoc.backends.triton import gpu
from sparsemoc.spec.layout import Layout
from sparsemoc.spec.philox import seed_key

Method = TypeVar("Method", bound=Callable[..., Any])
#: What jax-triton's module does away with when it is imported.
_CACHE = "TRITON_CACHE_DIR"


def refuses() -> str | None:
    """Return why jax-triton cannot launch kernels here, or None."""
    try:
        bridge, jax = (_release(name) for name in ("jax-triton", "jax"))
    except PackageNotFoundError as error:
        return f'needs {error.name} for JAX arrays. Hint: pip install "jax-triton==0.4.1" "jax[cuda13]>=0.11.1,<0.12"'
    if bridge != (0, 4):
        return f"needs jax-triton 0.4 for JAX arrays, not {version('jax-triton')}"
    if jax != (0, 11):
        return f"needs jax 0.11 with jax-triton {version('jax-triton')}, not {version('jax')}"
    return None


def _release(package: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version(package).split(".")[:2])


@cache
def import_jax_triton() -> Any:
    """Return the module jax_triton. Importing it changes where Triton caches kernels: that is put back."""
    before = os.environ.get(_CACHE)
    try:
        return import_module("jax_triton")
    finally:
        os.environ.pop(_CACHE, None)
        if before is not None:
            os.environ[_CACHE] = before


def in_any_library(method: Method) -> Method:
    """Let a method of the backend, written for torch tensors, take and give JAX arrays too."""

    @wraps(method)
    def call(self: Any, problem: Problem, *given: Any, config: Any = None) -> Any:
        if problem.framework != "jax":
            return method(self, problem, *given, config=config)
        forms, parts = zip(*(_taken_apart(one) for one in given), strict=True)
        arrays = [array for some in parts for array in some]
        run = _compiled(method, self, problem, config, gpu.capability(problem), forms)
        return _varying_as(arrays, run(*arrays))

    return call  # type: ignore[return-value]  # of the method's own type


def _varying_as(arrays: list[Any], found: Any) -> Any:
    """Return results that vary over the axes of a `jax.shard_map` as the arrays do: of a launch JAX cannot know it."""
    jax = import_module("jax")
    axes = frozenset().union(*(jax.typeof(one).manual_axis_type.varying for one in arrays))

    def varied(one: Any) -> Any:
        lacking = tuple(sorted(axes - jax.typeof(one).manual_axis_type.varying))
        return jax.lax.pcast(one, lacking, to="varying") if lacking else one

    return jax.tree.map(varied, found)


@lru_cache(maxsize=256)
def _compiled(method: Any, backend: Any, problem: Problem, config: Any, target: int, forms: tuple[Any, ...]) -> Any:
    """Return a method as a function of JAX arrays."""
    jax = import_module("jax")

    def run(*arrays: Any) -> Any:
        left = [_library(target).array(array) for array in arrays]
        found = method(backend, problem, *(_put_together(form, left) for form in forms), config=config)
        return jax.tree.map(lambda one: one.value(), found)

    return jax.jit(jax.custom_batching.sequential_vmap(run))


@cache
def _library(target: int) -> Any:
    from sparsemoc.backends.triton.traced_library import TracedLibrary

    return TracedLibrary(lambda launch: _launch(target, launch))


def _taken_apart(one: Any) -> tuple[Any, tuple[Any, ...]]:
    """Return what is known before a call is traced, hashable, and the arrays."""
    if isinstance(one, Layout):
        padded = one.key_lengths is not None
        return (Layout, one.plan, padded), (one.selected, one.key_lengths) if padded else (one.selected,)
    if isinstance(one, Result):
        return (Result,), tuple(one)
    if isinstance(one, Randomness):
        return Randomness(None), (_counters(one),)
    return (one, ()) if one is None or isinstance(one, float) else ("array", (one,))


def _put_together(form: Any, left: list[Any]) -> Any:
    """Return an argument of a method again, its arrays taken from the front of those left."""
    if form is None or isinstance(form, float):
        return form
    if isinstance(form, Randomness):
        return replace(form, seed=left.pop(0))
    if form == "array":
        return left.pop(0)
    if form[0] is Result:
        return Result(left.pop(0), left.pop(0))
    return Layout(left.pop(0), form[1], left.pop(0) if form[2] else None)


def _counters(randomness: Randomness) -> Any:
    """Return the words of the seed, low before high, and the first batch row and head: int32 (4,), any of them traced.

    Words, for without a switch JAX has no int64; an array, so that no number of them compiles anything anew.
    """
    jnp = import_module("jax.numpy")
    words = [*_words(randomness.seed), _words(randomness.batch_start)[0], _words(randomness.head_start)[0]]
    return jnp.stack([jnp.asarray(word, jnp.uint32) for word in words]).view(jnp.int32)


def _words(number: Any) -> tuple[Any, Any]:
    """Return the low and the high word of a whole number, an int or a 0-d array: those of it mod 2**64."""
    if isinstance(number, Integral):
        return seed_key(number)
    jnp = import_module("jax.numpy")
    number = jnp.asarray(number)
    low = number.astype(jnp.uint32)
    if number.dtype.itemsize == 8:
        return low, (number >> 32).astype(jnp.uint32)
    return low, jnp.where(number < 0, jnp.uint32(2**32 - 1), jnp.uint32(0))


@cache
def _strides_known(kernel: Any) -> Any:
    """Return a kernel whose strides are compile-time arguments.

    Triton's own launcher tells the compiler which integers 16 divides, jax-triton does not, and without that rows are
    loaded two bytes at a time. A traced call knows its strides.
    """
    triton, plain = import_module("triton"), kernel.fn
    copy = FunctionType(plain.__code__, plain.__globals__, plain.__name__, plain.__defaults__, plain.__closure__)
    copy.__module__, copy.__qualname__ = plain.__module__, plain.__qualname__
    known = {name: triton.language.constexpr for name in kernel.arg_names if name.startswith("stride_")}
    copy.__annotations__ = {**plain.__annotations__, **known}
    return triton.jit(copy)


def _launch(target: int, launch: Any) -> Mapping[str, Any]:
    """Carry out a launch by jax-triton: what it writes to are outputs; of what held something, in the same memory."""
    jax = import_module("jax")
    kernel, given = _strides_known(launch.kernel), launch.given
    operands = [one.name for one in kernel.params if one.name in given and not one.is_constexpr]
    shapes = [jax.ShapeDtypeStruct((size,), dtype) for size, dtype in launch.fresh.values()]
    shapes += [jax.ShapeDtypeStruct(given[name].shape, given[name].dtype) for name in launch.changed]
    with warnings.catch_warnings():
        # What jax-triton would have instead, references, has no place in functions with derivatives of their own.
        warnings.filterwarnings("ignore", "input_output_aliases is deprecated", DeprecationWarning)
        made = import_jax_triton().triton_call(
            kernel=kernel,
            grid=launch.grid,
            out_type=shapes,
            input_output_aliases={
                operands.index(name): len(launch.fresh) + place for place, name in enumerate(launch.changed)
            },
            num_warps=launch.warps,
            num_stages=launch.stages,
            compute_capability=target,
            # As Triton's default is, which warns where nobody chose.
            backend_options={"enable_fp_fusion": True},
            **given,
        )
    return dict(zip((*launch.fresh, *launch.changed), made, strict=True))
