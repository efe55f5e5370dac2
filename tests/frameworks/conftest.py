"""A small problem in torch tensors, and backends that take tensors or tell what they are given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import pytest

import sparsemoc as moc
from sparsemoc.backends import Problem, Result
from sparsemoc.backends.reference import ReferenceBackend

Three = tuple[Any, Any, Any]
Five = tuple[Any, Any, Any, Any, Any]
Given = TypeVar("Given", bound=tuple[Any, ...])


class Small:
    """Tensors of a problem; NumPy arrays in the same memory."""

    # Prompt 4, caption 3, video 16, caption 3, video 16: 42 tokens.
    STREAM = moc.Stream.multishot(shots=2, frames=4, height=2, width=2, caption=3, prompt=4)
    SPEC = moc.RoutingSpec(stream=STREAM, chunks=moc.Chunks(size=6), top_k=2, anchors=("caption", "chunk"))
    FREE = replace(SPEC, stream=None)
    DROPOUT = replace(SPEC, top_k=4, dropout=moc.RouteDropout(off=1.0, into=2.0))
    LENGTHS = ((4, 3, 16, 3, 16), (2, 3, 9, 0, 16))

    def __init__(self) -> None:
        import torch

        from sparsemoc.frameworks import torch as tensors

        self.tensors = tensors
        self.torch = torch

    def draw(self, *shape: int, dtype: str = "float32") -> Any:
        values = np.random.default_rng(shape).standard_normal(shape)
        return self.torch.from_numpy(values).to(getattr(self.torch, dtype))

    def qkv(self, dtype: str = "float32") -> Three:
        return (
            self.draw(2, 42, 4, 8, dtype=dtype),
            self.draw(2, 42, 2, 8, dtype=dtype),
            self.draw(2, 42, 2, 5, dtype=dtype),
        )

    def each(self, change: Callable[[Any], Any], arrays: Three) -> Three:
        q, k, v = arrays
        return change(q), change(k), change(v)

    def leaves(self, dtype: str = "float32") -> Three:
        return self.each(lambda x: x.requires_grad_(), self.qkv(dtype))

    def d_out(self, dtype: str = "float32") -> Any:
        return self.draw(2, 42, 4, 5, dtype=dtype)

    def d_lse(self, dtype: str = "float32") -> Any:
        return self.draw(2, 4, 42, dtype="float64" if dtype == "float64" else "float32")

    def numpy(self, x: Any) -> Any:
        return self.tensors.show(x, "numpy")

    def same(self, found: Any, expected: Any) -> None:
        """Check that a tensor holds the bits of a NumPy array."""
        assert isinstance(found, self.torch.Tensor)
        found = self.numpy(found)
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        np.testing.assert_array_equal(np.ascontiguousarray(found).view(np.uint8), expected.copy("C").view(np.uint8))


class Telling(ReferenceBackend):
    """The reference, which keeps what it was given and what it gave."""

    name = "telling"

    def __init__(self) -> None:
        self.given: dict[str, tuple[Any, ...]] = {}
        self.gave: dict[str, Any] = {}

    def _kept(self, method: str, given: tuple[Any, ...], result: Any) -> Any:
        self.given[method], self.gave[method] = given, result
        return result

    def pool(self, *given: Any, **options: Any) -> Any:
        return self._kept("pool", given, super().pool(*given, **options))

    def route(self, *given: Any, **options: Any) -> Any:
        return self._kept("route", given, super().route(*given, **options))

    def attend(self, *given: Any, **options: Any) -> Any:
        return self._kept("attend", given, super().attend(*given, **options))

    def attend_backward(self, *given: Any, **options: Any) -> Any:
        return self._kept("attend_backward", given, super().attend_backward(*given, **options))


class Hollow(Telling):
    """A backend for tensors without data: results of the right shape, so that only shapes may be looked at."""

    name = "hollow"
    capabilities = replace(ReferenceBackend.capabilities, frameworks=("torch",), devices=("meta", "cpu"))

    def pool(self, problem: Problem, k: Any, *given: Any, **options: Any) -> Any:
        result = k.new_empty((k.shape[0], k.shape[2], problem.plan.chunks, k.shape[3])).float()
        return self._kept("pool", (problem, k, *given), result)

    def route(self, problem: Problem, q: Any, *given: Any, **options: Any) -> Any:
        size = (q.shape[0], q.shape[2], q.shape[1], problem.plan.slots)
        return self._kept("route", (problem, q, *given), q.new_empty(size).int())

    def attend(self, problem: Problem, q: Any, k: Any, v: Any, *given: Any, **options: Any) -> Any:
        lse = q.new_empty((q.shape[0], q.shape[2], q.shape[1]))
        result = Result(q.new_empty((*q.shape[:3], v.shape[3])), lse)
        return self._kept("attend", (problem, q, k, v, *given), result)

    def attend_backward(self, problem: Problem, q: Any, k: Any, v: Any, *given: Any, **options: Any) -> Any:
        result = tuple(x.new_empty(x.shape) for x in (q, k, v))
        return self._kept("attend_backward", (problem, q, k, v, *given), result)


@pytest.fixture(scope="session")
def small() -> Small:
    return Small()


@pytest.fixture
def telling() -> Telling:
    return Telling()


@pytest.fixture
def hollow() -> Hollow:
    return Hollow()


class Traced:
    """The same problem in JAX arrays, and in the NumPy arrays that they were made of."""

    STREAM, SPEC, FREE, DROPOUT, LENGTHS = Small.STREAM, Small.SPEC, Small.FREE, Small.DROPOUT, Small.LENGTHS

    def __init__(self) -> None:
        import jax

        self.jax = jax

    def draw(self, *shape: int, dtype: str = "float32") -> Any:
        import ml_dtypes

        kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
        return np.random.default_rng(shape).standard_normal(shape).astype(kind)

    def numpy(self, dtype: str = "float32", packed: bool = False) -> Five:
        """Return q, k, v, d_out, d_lse."""
        lead = (55,) if packed else (2, 42)
        shapes = [(*lead, heads, dim) for heads, dim in ((4, 8), (2, 8), (2, 5), (4, 5))]
        lse = "float64" if dtype == "float64" else "float32"
        q, k, v, d_out = (self.draw(*shape, dtype=dtype) for shape in shapes)
        return q, k, v, d_out, self.draw(*lead[:-1], 4, lead[-1], dtype=lse)

    def given(self, arrays: Given) -> Given:
        return tuple(self.jax.numpy.asarray(array) for array in arrays)  # type: ignore[return-value]  # as many

    def same(self, found: Any, expected: Any) -> None:
        """Check that trees of JAX arrays hold the bits of a tree of other arrays."""
        leaves, wanted = self.jax.tree.leaves(found), self.jax.tree.leaves(expected)
        assert len(leaves) == len(wanted)
        for one, other in zip(leaves, wanted, strict=True):
            assert isinstance(one, self.jax.Array)
            one, other = np.asarray(one), np.asarray(other)
            assert (one.dtype, one.shape) == (other.dtype, other.shape)
            np.testing.assert_array_equal(one.view(np.uint8), np.ascontiguousarray(other).view(np.uint8))


@pytest.fixture(scope="session")
def traced() -> Traced:
    return Traced()


@pytest.fixture(params=["ffi", "pure_callback"])
def each_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a test once by each of the two ways from JAX to the host."""
    from sparsemoc.frameworks import jax_bridge

    assert jax_bridge.way() == "ffi"
    monkeypatch.setattr(jax_bridge._Way, "found", request.param)
    return str(request.param)
