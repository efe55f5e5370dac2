"""Traced arrays answer as torch tensors do: the same operations on both, and the same elements after writes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

jax = pytest.importorskip("jax", reason="JAX is not installed")

from sparsemoc.backends.triton.library import starts  # noqa: E402  # what imports JAX comes after the question for it
from sparsemoc.backends.triton.traced import Traced  # noqa: E402
from sparsemoc.backends.triton.traced_library import Launch, TracedLibrary  # noqa: E402


def launched(launch: Launch) -> dict[str, Any]:
    """Add 1 to whatever a launch writes to; what is fresh becomes 5."""
    fresh = {name: np.full(size, 5, dtype) for name, (size, dtype) in launch.fresh.items()}
    return fresh | {name: launch.given[name] + 1 for name in launch.changed}


LIBRARY = TracedLibrary(launched)
NUMBERS = np.arange(2 * 3 * 4 * 5, dtype=np.int32).reshape(2, 3, 4, 5)
INDEX = np.array([2, 0, 1, 2], np.int32)


def both(operation: Callable[[Any, Any], Any], values: Any = NUMBERS) -> tuple[Traced, torch.Tensor]:
    found = operation(LIBRARY.from_numpy(values), LIBRARY.from_numpy(INDEX))
    return found, operation(torch.from_numpy(values.copy()), torch.from_numpy(INDEX))


@pytest.mark.parametrize(
    "operation",
    [
        lambda x, i: x[1:],
        lambda x, i: x[..., ::3],
        lambda x, i: x[None],
        lambda x, i: x[:, 1:3, None, 1::2],
        lambda x, i: x.narrow(2, 1, 2).transpose(1, 2),
        lambda x, i: x.permute([2, 0, 1, 3])[1:, :1],
    ],
)
def test_views_have_the_strides_and_elements_of_torch(operation: Any) -> None:
    found, wanted = both(operation)
    assert (found.shape, found.offset) == (tuple(wanted.shape), wanted.storage_offset())
    long = [axis for axis, length in enumerate(found.shape) if length > 1]  # elsewhere strides mean nothing
    assert [found.stride()[axis] for axis in long] == [wanted.stride(axis) for axis in long]
    assert found.stride(1) == wanted.stride(1)
    np.testing.assert_array_equal(found.value(), wanted)


@pytest.mark.parametrize(
    "operation",
    [
        lambda x, i: x.transpose(1, 3).contiguous(),
        lambda x, i: x[..., 1:4].diff(dim=-1) + (x.narrow(3, 0, 2) > 30),
        lambda x, i: starts(x[..., ::2]),
        lambda x, i: -x.unflatten(1, (-1, 3)).sum(2, dtype=x.dtype) // 7,
        lambda x, i: x.index_select(1, i) * 3,
        lambda x, i: x.reshape(6, -1)[:, i.long()].clamp(min=9).minimum(i).maximum(i + 1),
    ],
)
def test_what_is_computed_is_what_torch_computes(operation: Any) -> None:
    found, wanted = both(operation)
    assert str(found.dtype) == str(wanted.dtype).removeprefix("torch.")
    np.testing.assert_array_equal(found.value(), wanted)


def test_products_are_written_to_views() -> None:
    def product(x: Any, _: Any) -> Any:
        library = LIBRARY if isinstance(x, Traced) else torch
        library.mul(x[:1].narrow(2, 1, 2) + 1, 2, out=x[1:].narrow(2, 2, 2))
        return x

    found, wanted = both(product)
    np.testing.assert_array_equal(found.value(), wanted)


class Kernel:
    """What a launch needs to know of a kernel."""

    arg_names = ("selected", "run_of_row", "run_base", "starts", "entries", "rows")

    @staticmethod
    def fn() -> None: ...


Kernel.fn.__name__ = "place_kernel"


def test_a_kernel_writes_to_the_stretch_of_a_view_and_to_nothing_else() -> None:
    whole = LIBRARY.from_numpy(np.zeros((4, 3), np.int32))
    entries = LIBRARY.empty((2, 2), dtype=LIBRARY.int32, device=LIBRARY)
    kept = LIBRARY.from_numpy(INDEX)
    LIBRARY.kernel(Kernel)[1, 1, 1](kept, kept, kept, whole[1:3], entries[1:], 7, num_warps=4, num_stages=1)
    np.testing.assert_array_equal(whole.value(), [[0] * 3, [1] * 3, [1] * 3, [0] * 3])
    np.testing.assert_array_equal(entries.value()[1], [5, 5])
    np.testing.assert_array_equal(kept.value(), INDEX)


def test_a_grid_of_nothing_launches_nothing() -> None:
    def refuse(launch: Launch) -> Any:
        raise AssertionError("launched")

    library = TracedLibrary(refuse)
    one = library.from_numpy(INDEX)
    library.kernel(Kernel)[0, 1, 1](one, one, one, one, one, 7, num_warps=4, num_stages=1)
    np.testing.assert_array_equal(one.value(), INDEX)
