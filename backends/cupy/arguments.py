"""The arguments of a launch, checked against the signature of its kernel before anything runs."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import numpy as np

from sparsemoc.backends.cupy.arrays import Arrays
from sparsemoc.backends.cupy.errors import KernelError
from sparsemoc.backends.cupy.machine import Kernel
from sparsemoc.backends.cupy.sources import Parameter, signature
from sparsemoc.spec.errors import describe

#: The ints of each C type.
_RANGES = {
    "int": (-(2**31), 2**31 - 1),
    "u32": (0, 2**32 - 1),
    "u64": (0, 2**64 - 1),
    "i64": (-(2**63), 2**63 - 1),
}
#: Most blocks along x, y and z: CUDA's limits, held to on the CPU too.
MOST_BLOCKS = (2**31 - 1, 65535, 65535)


def values_of(kernel: Kernel, arguments: Mapping[str, Any], arrays: Arrays) -> list[int | float]:
    """Return the arguments of a kernel as numbers, in the order of its signature; arrays as their addresses.

    Raises:
        KernelError: an argument is missing, unknown, or no value of its C type.
    """
    parameters = signature(kernel.file, kernel.name)
    try:
        found = [_value(kernel, parameter, arguments[parameter.name], arrays) for parameter in parameters]
    except KeyError:
        raise _unmatched(kernel, parameters, arguments) from None
    if len(found) != len(arguments):
        raise _unmatched(kernel, parameters, arguments)
    return found


def _value(kernel: Kernel, parameter: Parameter, value: Any, arrays: Arrays) -> int | float:
    kind = parameter.kind
    if kind == "pointer":
        if value is None:
            return 0
        if arrays.holds(value):
            return arrays.pointer(value)
        raise _refused(kernel, parameter, f"an array of {arrays}, or None", value)
    if kind == "float":
        if isinstance(value, (float, int, np.floating)):
            return float(value)
        raise _refused(kernel, parameter, "a number", value)
    least, most = _RANGES[kind]
    try:
        number = operator.index(value)
    except TypeError:
        raise _refused(kernel, parameter, "a whole number", value) from None
    if not least <= number <= most:
        raise _refused(kernel, parameter, f"within [{least}, {most}]", value)
    return number


def _unmatched(kernel: Kernel, parameters: tuple[Parameter, ...], arguments: Mapping[str, Any]) -> KernelError:
    known = {parameter.name for parameter in parameters}
    lacking, excess = sorted(known - set(arguments)), sorted(set(arguments) - known)
    listed = [f"{word} {', '.join(names)}" for word, names in (("lacks", lacking), ("does not take", excess)) if names]
    return KernelError(f"launch: {kernel.name} of {kernel.file}.cu {' and '.join(listed)}.")


def _refused(kernel: Kernel, parameter: Parameter, rule: str, value: Any) -> KernelError:
    return KernelError(
        f"launch: {kernel.name} of {kernel.file}.cu: {parameter.type} {parameter.name} must be {rule}, "
        f"got {describe(value)}."
    )


def has_blocks(kernel: Kernel, grid: tuple[int, int, int]) -> bool:
    """Return whether a grid has blocks.

    Raises:
        KernelError: it has more than CUDA allows, or fewer than none.
    """
    if any(not 0 <= count <= most for count, most in zip(grid, MOST_BLOCKS, strict=True)):
        raise KernelError(
            f"launch: the grid of {kernel.name} of {kernel.file}.cu must be within {MOST_BLOCKS}, got {grid}."
        )
    return 0 not in grid
