"""What stands for torch tensors where JAX traces a call: views of memory whose contents are JAX arrays.

JAX arrays do not change and have no strides, and the host code allocates, takes views, and has kernels write to them.
Here memory is flat, and holds a JAX array, another after each write. A view has shape, strides and offset, like a
tensor; it costs nothing, and a kernel that takes strides is given the memory from the view's first element on.
Operations that compute give contiguous arrays in new memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

Shape = tuple[int, ...]


class Memory:
    """A flat array that can be written to.

    Attributes:
        size, dtype: of the array.
        value: a 1-d JAX or NumPy array; None as long as nothing was written.
    """

    def __init__(self, size: int, dtype: Any, value: Any = None) -> None:
        self.size, self.dtype, self.value = size, np.dtype(dtype), value

    def read(self, first: int, count: int) -> Any:
        """Return a stretch of the memory."""
        assert self.value is not None, "nothing is read that was never written"
        return self.value if count == self.size else self.value[first : first + count]

    def write(self, first: int, values: Any) -> None:
        """Replace a stretch of the memory."""
        if len(values) == self.size:
            self.value = values
        else:
            before = jnp.zeros(self.size, self.dtype) if self.value is None else self.value
            self.value = jnp.asarray(before).at[first : first + len(values)].set(values)


class Traced:
    """A view of memory that answers as a tensor does, as far as the host code asks.

    Attributes:
        memory: what it shows.
        shape, strides, offset: in elements.
        library: what made it.
    """

    def __init__(
        self, library: Any, memory: Memory, shape: Sequence[int], strides: Shape = (), offset: int = 0
    ) -> None:
        self.library, self.memory, self.offset = library, memory, offset
        self.shape: Shape = tuple(map(int, shape))
        self.strides = strides or _dense(self.shape)

    @property
    def dtype(self) -> Any:
        """The dtype."""
        return self.memory.dtype

    @property
    def device(self) -> Any:
        """What stands for a device: the library itself."""
        return self.library

    @property
    def extent(self) -> int:
        """Elements of the memory from the first of the view to its last, both counted."""
        return 1 + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True)) if self.size else 0

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def stride(self, axis: int | None = None) -> Any:
        """Return the stride of an axis, or all of them."""
        return self.strides if axis is None else self.strides[axis]

    def _view(self, axes: Sequence[tuple[int, int]], offset: int = 0) -> Traced:
        """Return a view of the same memory with (length, stride) for each axis."""
        shape, strides = (tuple(column) for column in zip(*axes, strict=True))
        return Traced(self.library, self.memory, shape, strides, self.offset + offset)

    def permute(self, order: Sequence[int]) -> Traced:
        """Return a view with the axes in another order."""
        return self._view([(self.shape[axis], self.strides[axis]) for axis in order])

    def transpose(self, one: int, other: int) -> Traced:
        """Return a view with two axes exchanged."""
        order = list(range(len(self.shape)))
        order[one], order[other] = other, one
        return self.permute(order)

    def narrow(self, axis: int, start: int, length: int) -> Traced:
        """Return a view of a part of an axis."""
        axes = list(zip(self.shape, self.strides, strict=True))
        axes[axis] = (length, self.strides[axis])
        return self._view(axes, start * self.strides[axis])

    def __getitem__(self, index: Any) -> Traced:
        """Return a view for None and slices; for one array of numbers, what it picks."""
        given = index if isinstance(index, tuple) else (index,)
        if any(isinstance(one, Traced) for one in given):
            return self.index_select(len(given) - 1, given[-1])
        if Ellipsis in given:
            place = given.index(Ellipsis)
            missing = len(self.shape) - len(given) + 1
            given = (*given[:place], *(slice(None),) * missing, *given[place + 1 :])
        axes, offset, left = [], 0, list(zip(self.shape, self.strides, strict=True))
        for one in given:
            if one is None:
                axes.append((1, 0))
                continue
            length, stride = left.pop(0)
            start, stop, step = one.indices(length)
            axes.append((max(0, -(-(stop - start) // step)), stride * step))
            offset += start * stride
        return self._view([*axes, *left], offset)

    def value(self) -> Any:
        """Return the elements as an array of the view's shape."""
        if 0 in self.shape:
            return jnp.zeros(self.shape, self.dtype)
        flat, order = self.memory.read(self.offset, self.extent), self._dense_order()
        if order is None:
            return jnp.asarray(flat)[self._places()]
        return flat.reshape([self.shape[axis] for axis in order]).transpose(np.argsort(order).tolist())

    def write(self, values: Any) -> None:
        """Replace the elements by those of an array of the view's shape."""
        values, order = values.astype(self.dtype), self._dense_order()
        if order is None:
            written = self.memory.value is not None
            flat = self.memory.read(self.offset, self.extent) if written else jnp.zeros(self.extent, self.dtype)
            values = jnp.asarray(flat).at[self._places()].set(values)
        else:
            values = values.transpose(order).reshape(-1)
        self.memory.write(self.offset, values)

    def _dense_order(self) -> list[int] | None:
        """Return the axes, outermost first, if the elements lie side by side, else None."""
        order = sorted(range(len(self.shape)), key=lambda axis: -self.strides[axis])
        dense = _dense(tuple(self.shape[axis] for axis in order))
        lies = all(
            self.strides[axis] == wanted or self.shape[axis] == 1 for axis, wanted in zip(order, dense, strict=True)
        )
        return order if lies else None

    def _places(self) -> Any:
        """Return where each element lies, counted from the first."""
        steps = [np.int32(stride) for stride in self.strides]
        grids = jnp.meshgrid(
            *(jnp.arange(length, dtype=jnp.int32) for length in self.shape), indexing="ij", sparse=True
        )
        return sum(grid * step for grid, step in zip(grids, steps, strict=True))

    def made(self, values: Any) -> Traced:
        """Return values in new memory."""
        new: Traced = self.library.array(values)
        return new

    def contiguous(self) -> Traced:
        """Return the elements row-major: the view itself if they lie so."""
        return self if self.strides == _dense(self.shape) else self.made(self.value())

    def clone(self, memory_format: Any) -> Traced:
        """Return a row-major copy; values do not change, so that new memory is copy enough."""
        return self.made(self.value())

    def reshape(self, *shape: int) -> Traced:
        """Return the elements in another shape."""
        return self.made(self.value().reshape(shape))

    def unflatten(self, axis: int, lengths: Shape) -> Traced:
        """Return the elements with one axis cut in several."""
        return self.made(self.value().reshape((*self.shape[:axis], *lengths, *self.shape[axis + 1 :])))

    def to(self, target: Any) -> Traced:
        """Return the elements in a dtype; on a device, of which there is one, the view itself."""
        same = target is self.library or self.dtype == target
        return self if same else self.made(self.value().astype(target))

    def view(self, dtype: Any) -> Traced:
        """Return the view: it is asked for in the dtype that it has."""
        assert self.dtype == dtype, "words come as int32"
        return self

    def long(self) -> Traced:
        """Return the view: any integers can be an index."""
        return self

    def _with(self, operation: Callable[..., Any], other: Any) -> Traced:
        return self.made(operation(self.value(), other.value() if isinstance(other, Traced) else other))

    def __add__(self, other: Any) -> Traced:
        return self._with(jnp.add, other)

    def __mul__(self, other: Any) -> Traced:
        return self._with(jnp.multiply, other)

    def __floordiv__(self, other: Any) -> Traced:
        return self._with(jnp.floor_divide, other)

    def __gt__(self, other: Any) -> Traced:
        return self._with(jnp.greater, other)

    def __neg__(self) -> Traced:
        return self.made(-self.value())

    def minimum(self, other: Any) -> Traced:
        """Return the smaller of each pair."""
        return self._with(jnp.minimum, other)

    def maximum(self, other: Any) -> Traced:
        """Return the larger of each pair."""
        return self._with(jnp.maximum, other)

    def clamp(self, min: int) -> Traced:  # noqa: A002  torch's name
        """Return the elements, none below a number."""
        return self.maximum(min)

    def cumsum(self, axis: int, dtype: Any) -> Traced:
        """Return running totals."""
        return self.made(jnp.cumsum(self.value(), axis, dtype=dtype))

    def diff(self, dim: int) -> Traced:
        """Return differences of neighbours."""
        return self.made(jnp.diff(self.value(), axis=dim))

    def sum(self, axis: int, dtype: Any) -> Traced:
        """Return totals."""
        return self.made(jnp.sum(self.value(), axis, dtype=dtype))

    def index_select(self, axis: int, index: Traced) -> Traced:
        """Return the elements at some places of an axis."""
        return self.made(jnp.take(self.value(), index.value(), axis))


def _dense(shape: Shape) -> Shape:
    """Return the strides of a row-major array."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
