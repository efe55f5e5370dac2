"""Counting on the device that holds a layout: the few array operations that NumPy and torch spell differently.

Nothing here reads a tensor on the host, so nothing waits for a device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sparsemoc.spec.host import host
from sparsemoc.training.tensors import torch_of


class ArrayOps(Protocol):
    """Array operations of one library on one device. Equal ones give arrays that can be added to each other."""

    @property
    def numbers(self) -> Any:
        """The library, for the functions that NumPy and torch share."""
        ...

    @property
    def most_entries(self) -> int:
        """Entries to count at a time: what is in between fits a CPU's cache, or a small part of a GPU's memory."""
        ...

    def own(self, array: Any) -> Any:
        """Return an array as one of this library on this device."""
        ...

    def wide(self, array: Any) -> Any:
        """Return integers as int64."""
        ...

    def zeros(self, *shape: int) -> Any:
        """Return zeros, int64."""
        ...

    def arange(self, count: int) -> Any:
        """Return 0 ... count - 1, int64."""
        ...

    def take(self, table: Any, index: Any) -> Any:
        """Return the entries of a table, read as flat, at places given by an int64 array of any shape."""
        ...

    def histogram(self, index: Any, size: int) -> Any:
        """Return how often each of 0 ... size - 1 stands in an array, int64 (size,)."""
        ...

    def rows_with(self, index: Any, size: int) -> Any:
        """Return in how many rows each of 0 ... size - 1 stands: int64 (..., rows, n) to int64 (..., size)."""
        ...


def ops_of(array: Any) -> ArrayOps:
    """Return what serves an array: torch's for tensors on a device of their own, NumPy's, on the host, for the rest."""
    on_device = torch_of(array) is not None and array.device.type != "cpu"
    return TorchOps(array.device) if on_device else NumpyOps()


@dataclass(frozen=True)
class NumpyOps:
    """NumPy arrays, and those of other libraries as NumPy's: in their own memory on the CPU, else in a copy."""

    numbers: Any = np
    most_entries: int = 2**15  # larger blocks are handed back to the system each time, and fetched anew

    def own(self, array: Any) -> NDArray[Any]:
        """Return an array as NumPy's."""
        return host(array)

    def wide(self, array: NDArray[Any]) -> NDArray[np.int64]:
        """Return integers as int64."""
        return array.astype(np.int64)

    def zeros(self, *shape: int) -> NDArray[np.int64]:
        """Return zeros, int64."""
        return np.zeros(shape, np.int64)

    def arange(self, count: int) -> NDArray[np.int64]:
        """Return 0 ... count - 1, int64."""
        return np.arange(count)

    def take(self, table: NDArray[Any], index: NDArray[np.int64]) -> NDArray[Any]:
        """Return entries of a table, read as flat."""
        return table.reshape(-1).take(index)

    def histogram(self, index: NDArray[np.int64], size: int) -> NDArray[np.int64]:
        """Return how often each number stands in an array."""
        return np.bincount(index.reshape(-1), minlength=size)

    def rows_with(self, index: NDArray[np.int64], size: int) -> NDArray[np.int64]:
        """Return in how many rows each number stands."""
        *lead, rows, count = index.shape
        groups = index.size // (rows * count)
        found = np.zeros(groups * size * rows, bool)  # (groups, size, rows): counting runs along memory
        place = np.arange(groups)[:, None, None] * (size * rows) + np.arange(rows)[:, None]
        found[index.reshape(groups, rows, count) * rows + place] = True
        return np.asarray(np.count_nonzero(found.reshape(*lead, size, rows), axis=-1), np.int64)


@dataclass(frozen=True)
class TorchOps:
    """Torch tensors on one device."""

    device: Any
    most_entries: int = 2**24

    @property
    def numbers(self) -> Any:
        """The library."""
        import torch

        return torch

    def own(self, array: Any) -> Any:
        """Return a tensor on the device."""
        if torch_of(array) is not None:
            return array.to(self.device, non_blocking=True)
        tensor = self.numbers.from_numpy(np.array(array))
        # From pinned memory the copy to a GPU is queued, and no one waits for it.
        return (tensor.pin_memory() if self.device.type == "cuda" else tensor).to(self.device, non_blocking=True)

    def wide(self, array: Any) -> Any:
        """Return integers as int64."""
        return array.long()

    def zeros(self, *shape: int) -> Any:
        """Return zeros, int64."""
        return self.numbers.zeros(shape, dtype=self.numbers.int64, device=self.device)

    def arange(self, count: int) -> Any:
        """Return 0 ... count - 1, int64."""
        return self.numbers.arange(count, device=self.device)

    def take(self, table: Any, index: Any) -> Any:
        """Return entries of a table, read as flat."""
        return self.numbers.take(table, index)

    def histogram(self, index: Any, size: int) -> Any:
        """Return how often each number stands in a tensor."""
        flat = index.reshape(-1)  # torch.bincount would ask the device for the largest number
        return self.zeros(size).index_add_(0, flat, flat.new_ones(1).expand(len(flat)))

    def rows_with(self, index: Any, size: int) -> Any:
        """Return in how many rows each number stands."""
        found = index.new_zeros((*index.shape[:-1], size), dtype=self.numbers.uint8)
        return found.scatter_(-1, index, 1).sum(-2, dtype=self.numbers.int64)
