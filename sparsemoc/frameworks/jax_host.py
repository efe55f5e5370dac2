"""What JAX programs run on the host: a method of an `Execution`, named by a text that a program can hold."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsemoc.backends import Randomness, Result
from sparsemoc.frameworks import jax_exit
from sparsemoc.frameworks import numpy as numpy_arrays
from sparsemoc.frameworks.execution import Execution
from sparsemoc.frameworks.portable import Static, static_of
from sparsemoc.spec.layout import Layout

Floats = NDArray[Any]


@dataclass(frozen=True)
class HostCall:
    """A pure function on NumPy arrays.

    Attributes:
        method: "pool", "route", "attend" or "backward".
        static: what is known of the execution before there are arrays.
        scale: factor on logits.
        given: whether each argument of the method is an input; the others are None.
    """

    method: str
    static: Static
    scale: float
    given: tuple[bool, ...]

    def __call__(self, *arrays: Floats) -> Sequence[Floats]:
        """Return the results."""
        run = self.static.execution(numpy_arrays, arrays[0])
        inputs = iter(arrays)
        arguments = [next(inputs) if one else None for one in self.given]
        return _METHODS[self.method](run, self.scale, *arguments)


def text_of(method: str, run: Execution, scale: float, given: Sequence[bool]) -> str:
    """Return the text that names a call; equal calls have equal texts, in every process."""
    return json.dumps([method, scale, list(given), run.line])


@lru_cache(maxsize=1024)
def call_of(text: str) -> HostCall:
    """Return the call that `text_of` named.

    Raises:
        UnsupportedError: the text was written by another process, and it names an object of that.
    """
    method, scale, given, line = json.loads(text)
    return HostCall(method, static_of(line), scale, tuple(given))


def fill(text: str, inputs: Sequence[Floats], outputs: Sequence[Floats]) -> None:
    """Run a call, once for each index of the axes that jax.vmap has put in front, and write what it gives."""
    function = call_of(text)
    mapped = outputs[0].shape[: inputs[0].ndim - 4]  # all methods begin with q or k
    for index in np.ndindex(mapped):
        with jax_exit.counted():
            results = function(*(_element(array, index) for array in inputs))
        for output, result in zip(outputs, results, strict=True):
            output[index] = result


def _element(array: Floats, index: tuple[int, ...]) -> Floats:
    """Return what stands at an index of the axes in front; an input that is not mapped has 1 there."""
    part: Floats = array[tuple(0 if size == 1 else at for at, size in zip(index, array.shape, strict=False))]
    return part


def _pool(run: Execution, _: float, k: Floats, key_lengths: Floats | None) -> Sequence[Floats]:
    return (run.compute_pool(k, key_lengths),)


def _route(
    run: Execution, _: float, q: Floats, centroids: Floats, key_lengths: Floats | None, counters: Floats | None
) -> Sequence[Floats]:
    randomness = None
    if counters is not None:
        low, high, batch_start, head_start = counters.tolist()
        randomness = Randomness(low | high << 32, batch_start, head_start)
    return (run.compute_route(q, centroids, key_lengths, randomness),)


def _attend(
    run: Execution, scale: float, q: Floats, k: Floats, v: Floats, selected: Floats, key_lengths: Floats | None
) -> Sequence[Floats]:
    return run.compute_forward(q, k, v, Layout(selected, run.problem.plan, key_lengths), scale)


def _backward(
    run: Execution, scale: float, q: Floats, k: Floats, v: Floats, selected: Floats, *rest: Any
) -> Sequence[Floats]:
    key_lengths, out, lse, d_out, d_lse = rest
    layout = Layout(selected, run.problem.plan, key_lengths)
    return run.compute_backward(q, k, v, layout, scale, Result(out, lse), d_out, d_lse)


_METHODS: dict[str, Callable[..., Sequence[Floats]]] = {
    "pool": _pool,
    "route": _route,
    "attend": _attend,
    "backward": _backward,
}
