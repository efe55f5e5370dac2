"""The arrays of a call in canonical form, (batch, tokens, heads, head_dim), and the way back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

from sparsemoc.frameworks import Framework, framework_of
from sparsemoc.spec.errors import ShapeError, describe, did_you_mean

Size = TypeVar("Size", int, str)

_TO_CANONICAL = {"bshd": (0, 1, 2, 3), "bhsd": (0, 2, 1, 3)}


@dataclass(frozen=True)
class Arrays:
    """The arrays of a call in canonical form, and the way back."""

    function: str
    framework: Framework
    axes: str
    rank: int
    of: dict[str, Any]

    @classmethod
    def check(cls, function: str, axes: str, **given: Any) -> Arrays:
        """Check library, dtype, device, rank and the sizes that arrays share, and bring them to (b, s, h, d)."""
        if not isinstance(axes, str) or axes not in _TO_CANONICAL:
            raise ShapeError(
                f'{function}: axes must be "bshd" or "bhsd", got {describe(axes)}.{did_you_mean(axes, _TO_CANONICAL)}'
            )
        framework = framework_of(function, **given)
        given = {argument: framework.checked(array, argument, function) for argument, array in given.items()}
        rank = given[next(iter(given))].ndim
        canonical = {}
        for argument, array in given.items():
            canonical[argument] = _canonical(function, framework, axes, rank, argument, array)
        arrays = cls(function, framework, axes, rank, canonical)
        arrays._same("dtype", {name: framework.dtype(array) for name, array in given.items()})
        arrays._same("device", {name: framework.device(array) for name, array in given.items()})
        return arrays

    def _same(self, what: str, found: dict[str, str]) -> None:
        if len(set(found.values())) > 1:
            listed = ", ".join(f"`{name}` {value}" for name, value in found.items())
            raise ShapeError(f"{self.function}: all arrays must have one {what}, got {listed}.")

    @property
    def some(self) -> Any:
        """One of the arrays, for what they all share: device, dtype, batch."""
        return next(iter(self.of.values()))

    def check_other(self, argument: str, array: Any) -> None:
        """Check library and device of an array that has a shape and a dtype of its own."""
        framework_of(self.function, **{argument: array})  # first alone: a library that is not served is named as such
        name, some = next(iter(self.of.items()))
        framework_of(self.function, **{name: some, argument: array})
        self.framework.checked(array, argument, self.function)
        self._same("device", {name: self.framework.device(some), argument: self.framework.device(array)})

    @property
    def packed(self) -> bool:
        """Whether samples stand end to end in one token axis (rank 3)."""
        return self.rank == 3

    def restore(self, array: Any) -> Any:
        """Return a canonical (b, s, h, d) result in the caller's axes and rank."""
        array = self.framework.transpose(array, _TO_CANONICAL[self.axes])
        return array[0] if self.packed else array

    def restore_lse(self, lse: Any) -> Any:
        """Return a canonical (b, h, s) result in the caller's rank."""
        return lse[0] if self.packed else lse

    def expect(self, argument: str, shape: tuple[int, ...], source: str) -> None:
        """Raise ShapeError unless an array has this canonical shape."""
        got = tuple(self.of[argument].shape)
        if got != shape:
            names = ", ".join(self.shown(("batch", "tokens", "heads", "head_dim")))
            raise ShapeError(
                f"{self.function}: `{argument}` must have shape ({names}) = {self.shown(shape)}, "
                f"got {self.shown(got)}. {source}"
            )

    def shown(self, shape: tuple[Size, ...]) -> tuple[Size, ...]:
        """Return a canonical shape, or the names of its axes, in the caller's axes and rank."""
        shown = tuple(shape[axis] for axis in _TO_CANONICAL[self.axes])
        return shown[1:] if self.packed else shown


def _canonical(function: str, framework: Framework, axes: str, rank: int, argument: str, array: Any) -> Any:
    if array.ndim not in (3, 4):
        raise ShapeError(
            f"{function}: `{argument}` must have rank 4 (batch, tokens, heads, head_dim), or 3 for a packed batch, "
            f"got rank {array.ndim} with shape {tuple(array.shape)}."
        )
    if array.ndim != rank:
        raise ShapeError(f"{function}: `{argument}` must have the rank of the others, {rank}, got {array.ndim}.")
    if 0 in array.shape:
        raise ShapeError(f"{function}: `{argument}` must have no axis of size 0, got shape {tuple(array.shape)}.")
    whole_array = framework.expand(array) if rank == 3 else array
    return framework.transpose(whole_array, _TO_CANONICAL[axes])
