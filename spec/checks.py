"""Checks of one value that the spec's classes share. Each raises SpecError with argument, rule, value and hint."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Sequence
from typing import Any, TypeGuard

from sparsemoc.spec.errors import SpecError, describe, did_you_mean, one_of

#: Positions and counts are int32 on every backend.
MOST = 2**31 - 1


def whole(value: object, name: str, *, least: int, most: int = MOST, hint: str = "") -> int:
    """Return `value` as an int within [least, most], or raise. bool is refused: True is not a count."""
    rule = f"must be a whole number >= {least}"
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)  # type: ignore[arg-type]  # TypeError is how it answers for other types
    except TypeError:
        raise SpecError(f"{name} {rule}, got {describe(value)}.{_space(hint)}") from None
    if number > most:
        raise SpecError(f"{name} {rule} and <= {most}, got {describe(value)}.{_space(hint)}")
    if number < least:
        raise SpecError(f"{name} {rule}, got {describe(value)}.{_space(hint)}")
    return number


def real(value: object, name: str, *, least: float, most: float = math.inf) -> float:
    """Return `value` as a finite float within [least, most], or raise."""
    rule = f"must be a finite number >= {least:g}" + (f" and <= {most:g}" if most != math.inf else "")
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise SpecError(f"{name} {rule}, got {describe(value)}.")
    try:
        number = float(value)
    except OverflowError:  # an int beyond the floats
        number = math.inf
    if not math.isfinite(number) or number < least or number > most:
        raise SpecError(f"{name} {rule}, got {describe(value)}.")
    return number


def word(value: object, name: str, allowed: Sequence[str]) -> str:
    """Return `value` if it is one of the allowed words, or raise with a "did you mean"."""
    if isinstance(value, str) and value in allowed:
        return value
    raise SpecError(f"{name} must be {one_of(allowed)}, got {describe(value)}.{did_you_mean(value, allowed)}")


def words(value: object, name: str, hint: str) -> tuple[str, ...]:
    """Return `value` as a tuple of non-empty words; a lone string is refused, since it would be cut into letters."""
    if not is_items(value):
        raise SpecError(f"{name} must be a tuple of words, got {describe(value)}. {hint}")
    for item in value:
        if not isinstance(item, str) or not item:
            raise SpecError(f"{name} must hold non-empty words, got {describe(item)}. {hint}")
    return tuple(value)


def is_items(value: object) -> TypeGuard[Sequence[Any]]:
    """Say whether `value` is a sequence of values: a tuple or a list, but no text and no bytes."""
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray, memoryview))


def _space(hint: str) -> str:
    return f" {hint}" if hint else ""
