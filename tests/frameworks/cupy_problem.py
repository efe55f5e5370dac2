"""A small problem in arrays that stand for CuPy's, and backends that take them or tensors in their memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np

from sparsemoc.backends import Problem, Randomness, Result
from sparsemoc.backends.reference import ReferenceBackend
from sparsemoc.spec.layout import Layout
from tests.backends.cupy.fake_arrays import ndarray
from tests.frameworks.conftest import Small, Telling

STREAM, SPEC, FREE, DROPOUT, LENGTHS = Small.STREAM, Small.SPEC, Small.FREE, Small.DROPOUT, Small.LENGTHS
#: Where the arrays are; another device is current.
DEVICE = 1


def numpy_arrays(dtype: str = "float32", packed: bool = False) -> dict[str, Any]:
    """Return q, k, v, d_out as NumPy arrays, (batch, tokens, heads, head_dim)."""
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    lead = (53,) if packed else (2, 42)
    shapes = {"q": (*lead, 4, 8), "k": (*lead, 2, 8), "v": (*lead, 2, 5), "d_out": (*lead, 4, 5)}
    return {name: np.random.default_rng(shape).standard_normal(shape).astype(kind) for name, shape in shapes.items()}


def put(array: Any, device: int = DEVICE) -> ndarray:
    """Return an array in the memory of a NumPy array."""
    return ndarray(array, device)


def bits(found: Any) -> Any:
    """Return the NumPy array of what came back, which must be an array of CuPy on the device of the problem."""
    assert isinstance(found, ndarray)
    assert found.device.id == DEVICE
    return found.memory


def same(found: Any, expected: Any) -> None:
    """Check that an array that came back holds the bits of a NumPy array."""
    found = bits(found)
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    np.testing.assert_array_equal(np.ascontiguousarray(found).view(np.uint8), expected.copy("C").view(np.uint8))


def _each(change: Callable[[Any], Any], value: Any) -> Any:
    """Return arguments or results with every array changed."""
    if isinstance(value, Layout):
        return Layout(change(value.selected), value.plan, _each(change, value.key_lengths))
    if isinstance(value, Randomness):
        return value if isinstance(value.seed, int) else replace(value, seed=change(value.seed))
    if isinstance(value, Result):
        return Result(*(change(one) for one in value))
    if isinstance(value, tuple):
        return tuple(change(one) for one in value)
    return change(value) if hasattr(value, "dtype") else value


class Elsewhere(Telling):
    """The reference behind a backend for arrays on a GPU; it keeps what it was given, each array as it came."""

    def _computed(self, method: str, problem: Problem, *given: Any, config: Any = None) -> Any:
        self.given[method] = (problem, *given)
        seen = replace(problem, framework="numpy", device="cpu")
        result = getattr(ReferenceBackend, method)(self, seen, *(_each(self.taken, one) for one in given))
        return _each(lambda array: self.made(array, given[0]), result)

    def taken(self, array: Any) -> Any:
        """Return an array that was given as NumPy's."""
        raise NotImplementedError

    def made(self, array: Any, like: Any) -> Any:
        """Return a result on the device of an array."""
        raise NotImplementedError

    def pool(self, *given: Any, **options: Any) -> Any:
        return self._computed("pool", *given, **options)

    def route(self, *given: Any, **options: Any) -> Any:
        return self._computed("route", *given, **options)

    def attend(self, *given: Any, **options: Any) -> Any:
        return self._computed("attend", *given, **options)

    def attend_backward(self, *given: Any, **options: Any) -> Any:
        return self._computed("attend_backward", *given, **options)


class OnCupy(Elsewhere):
    """Takes CuPy's arrays, on the current device as a kernel would."""

    name = "on_cupy"
    capabilities = replace(
        ReferenceBackend.capabilities,
        frameworks=("cupy",),
        devices=("cuda",),
        dtypes=("float16", "bfloat16", "float32"),
    )

    def taken(self, array: Any) -> Any:
        assert isinstance(array, ndarray)
        return array.here()

    def made(self, array: Any, like: Any) -> Any:
        return like.like(array)


class OnTorch(Elsewhere):
    """Takes torch's tensors."""

    name = "on_torch"
    capabilities = replace(OnCupy.capabilities, frameworks=("torch",))

    def taken(self, array: Any) -> Any:
        from sparsemoc.frameworks import torch as tensors

        return tensors.show(array, "numpy")

    def made(self, array: Any, like: Any) -> Any:
        from sparsemoc.frameworks import torch as tensors

        return tensors.own(array, like)
